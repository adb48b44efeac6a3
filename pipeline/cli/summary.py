"""The end of a run on a terminal: the verdict, what to ship, one table, what does not pass."""

from __future__ import annotations

import statistics
from collections.abc import Iterator

from rich.console import Group
from rich.table import Table
from rich.text import Text

from mipkd.core.evidence import Evidence, Gate, Outcome
from mipkd.core.measurement import BY_KIT, Measurement
from mipkd.core.names import printable
from pipeline.bench.comparisons import (
    NOT_MEASURED,
    RAN_EMULATED,
    drop_by_image,
    emulated_targets,
    frames_per_second,
    mean_of,
    p50_s,
    simulated_targets,
    speedup,
    valid_stream,
)
from pipeline.bench.distillation_gain import compare_with
from pipeline.cli.terminal import COLOURS
from pipeline.report.advice import advise
from pipeline.report.answers import list_answers
from pipeline.report.figures import compute_figures
from pipeline.report.gate_groups import group_gates
from pipeline.report.glossary import QUESTIONS
from pipeline.report.sentences import answer, describe_gate, gain_sentence, reason
from pipeline.report.wording import TO, precision_label, whose


def summarize(evidence: Evidence) -> Group:
    """The verdict, what to ship, figures of each model, and which gates do not pass."""
    verdict = evidence.verdict
    smoke = [Text("smoke run on sample photos: not a result", "yellow")] if evidence.smoke else []
    return Group(
        *smoke,
        *_answers(evidence),
        _table(evidence),
        *_gates(evidence),
        *_notes(evidence),
        _line(f"verdict: {verdict.outcome.value}", f"bold {COLOURS[verdict.outcome]}"),
    )


def _answers(evidence: Evidence) -> Iterator[Text]:
    """What a manager reads: may it be shipped, how good it is, what to take for each target."""
    verdict, figures = evidence.verdict, compute_figures(evidence)
    bold = f"bold {COLOURS[verdict.outcome]}"
    yield _line(f"verdict: {verdict.outcome.value}: {answer(verdict)}", bold)
    yield _line(reason(verdict))
    if figures.compared:
        means = ", ".join(f"{role} {db:.2f} dB" for role, db in figures.compared.items())
        images = len(evidence.tests.images)
        mean = f"mean PSNR-Y{TO[evidence.tests.against]} of {images} test images"
        yield _line(f"{mean}, student in FP32: {means}")
    for one in list_answers(evidence, figures):
        more = [one.summary, one.file] if one.file else [one.summary, one.why]
        said = f": {'; '.join(filter(None, more))}" if any(more) else ""
        yield _line(f"  {one.target}: {one.what}{said}")
    if unseen := simulated_targets(evidence.measurements):
        yield _line(f"  simulated here, not measured on the device: {', '.join(unseen)}")
    if emulated := emulated_targets(evidence.measurements):
        yield _line(f"  ran emulated, not measured: {', '.join(emulated)}")


def _table(evidence: Evidence) -> Table:
    """Latency, speed-up, PSNR and what is lost of each model."""
    table = Table(title=f"{evidence.name}: x{evidence.graph.scale} student, mean of test images")
    for name in ("target", "model", "precision", "size MB", "p50 ms", "at"):
        table.add_column(name, justify="left" if name in ("target", "model") else "right")
    psnr_y = f"PSNR-Y{TO[evidence.tests.against]} dB"
    for name in ("x as fast as teacher", psnr_y, "lost to FP32 dB"):
        table.add_column(name, justify="right")
    streamed = any(m.stream for m in evidence.measurements)
    if streamed:
        table.add_column("frames/s", justify="right")
    for m in evidence.measurements:
        psnr, base = mean_of(m), _of(evidence, m.role, "reference")
        drops = drop_by_image(m, base) if m.target != "reference" else {}
        p50, size, faster = _latency(evidence, m)
        table.add_row(
            f"{m.target} ({m.kind})" if m.simulated else m.target,
            m.role,
            precision_label(m),
            f"{m.size_bytes / 1e6:.2f}" if m.size_bytes else "",
            p50,
            size,
            faster,
            f"{psnr:.3f}" if psnr else "",
            f"{statistics.fmean(drops.values()):.3f}" if drops else "",
            *([_frames(m)] if streamed else []),
        )
    return table


def _gates(evidence: Evidence) -> Iterator[Text]:
    """How many pass, and each that does not with its reason and what to do."""
    gates = evidence.verdict.gates
    passed = sum(gate.outcome is Outcome.PASS for gate in gates)
    yield _outcome_line(Outcome.PASS, f"{passed} of {len(gates)} gates")
    for question in QUESTIONS:
        for group in group_gates(gates, question):
            for gate in group.stopped:
                helps = advise(gate, evidence.failures)
                more = f". What to do: {helps}" if helps else ""
                yield _outcome_line(gate.outcome, f"{describe_gate(gate)}: {gate.reason}{more}")


def _notes(evidence: Evidence) -> Iterator[Text]:
    for rival in evidence.rivals:
        found = compare_with(rival.name, evidence.measurements)
        yield _line(f"gain    {gain_sentence(found, rival, evidence.student)}")
    for where in dict.fromkeys(_elsewhere(evidence)):
        yield _line(f"note    {where}")
    for remark in evidence.verdict.remarks:
        if not remark.endswith((NOT_MEASURED, RAN_EMULATED)):  # said above, once
            yield _line(f"note    {remark}")
    for failure in evidence.failures:
        what = f"{failure.target} {failure.precision}{whose(failure.role)}: {failure.what}"
        yield _line(f"FAILED  {what}", "red")


def _how(m: Measurement) -> str:
    return "ran emulated" if m.kind == "emulated" else m.kind


def _elsewhere(evidence: Evidence) -> Iterator[str]:
    for m in evidence.measurements:
        if m.device == BY_KIT and m.host:
            yield f"{m.target}: {_how(m)} by a kit on {m.host.cpu}, {m.host.cores} cores"
        elif m.device:
            yield f"{_how(m)} on {m.device}"


def gate_line(gate: Gate) -> str:
    """A gate in one line."""
    figure = "" if gate.figure is None else f" {gate.figure:.3f} {gate.unit}"
    bound = "" if gate.figure is None else f" (bound {gate.bound:g} {gate.unit})"
    return f"{gate.subject}: {gate.name}{figure}{bound}: {gate.reason}"


def _outcome_line(outcome: Outcome, text: str) -> Text:
    return Text.assemble((f"{outcome.value:<8}", COLOURS[outcome]), _line(text))


def _line(text: str, style: str = "") -> Text:
    """One line, whatever is in it."""
    return Text(printable(text), style)


def _latency(evidence: Evidence, m: Measurement) -> tuple[str, str, str]:
    """Median at the middle of the measured sizes, and how many times the teacher's FP32."""
    if not m.latencies:
        return "", "", ""
    size = m.latencies[len(m.latencies) // 2].size
    of = f"{size[1]}x{size[0]}"
    p50 = p50_s(m, size)
    if p50 is None:
        return "INVALID", of, ""
    teacher = _of(evidence, "teacher", m.target)
    ratio = speedup(teacher, m, size) if teacher and m.role != "teacher" else None
    return f"{p50 * 1e3:.2f}", of, f"{ratio.value:.2f}" if ratio else ""


def _frames(m: Measurement) -> str:
    if m.stream is None:
        return ""
    found = valid_stream(m)
    return f"{frames_per_second(found).value:.1f}" if found else "INVALID"


def _of(evidence: Evidence, role: str, target: str) -> Measurement | None:
    """The FP32 measurement of a role on a target."""
    found = (m for m in evidence.measurements if (m.role, m.target) == (role, target))
    return next((m for m in found if m.precision == "fp32"), None)
