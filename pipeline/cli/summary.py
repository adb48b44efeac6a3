"""The end of a run on a terminal: one table and the verdict."""

from __future__ import annotations

from collections.abc import Iterator

from rich.console import Group
from rich.table import Table
from rich.text import Text

from mipkd.core.evidence import Evidence, Gate, Outcome
from mipkd.core.measurement import BY_KIT, Measurement
from mipkd.core.names import printable
from pipeline.bench.comparisons import mean_of, p50_s, simulated_targets, speedup
from pipeline.bench.distillation_gain import compare_with
from pipeline.cli.terminal import COLOURS
from pipeline.report.sentences import gain_sentence
from pipeline.report.wording import precision_label, whose


def summarize(evidence: Evidence) -> Group:
    """Latency, speed-up, PSNR and drop of each, then what no gate passes and what to ship."""
    table = Table(title=f"{evidence.name}: x{evidence.graph.scale} student, mean of test images")
    for name in ("target", "model", "precision", "size MB", "p50 ms", "at", "x teacher"):
        table.add_column(name, justify="left" if name in ("target", "model") else "right")
    table.add_column("PSNR-Y dB", justify="right")
    table.add_column("drop dB", justify="right")
    for m in evidence.measurements:
        psnr, base = mean_of(m), mean_of(_of(evidence, m.role, "reference"))
        p50, size, faster = _latency(evidence, m)
        table.add_row(
            f"{m.target} (simulated)" if m.simulated else m.target,
            m.role,
            precision_label(m),
            f"{m.size_bytes / 1e6:.2f}" if m.size_bytes else "",
            p50,
            size,
            faster,
            f"{psnr:.3f}" if psnr else "",
            f"{base - psnr:+.3f}" if psnr and base and m.target != "reference" else "",
        )
    gates = evidence.verdict.gates
    stopped = [gate for gate in gates if gate.outcome is not Outcome.PASS]
    lines = [_outcome_line(Outcome.PASS, f"{len(gates) - len(stopped)} of {len(gates)} gates")]
    lines += [_outcome_line(gate.outcome, gate_line(gate)) for gate in stopped]
    for rival in evidence.rivals:
        found = compare_with(rival.name, evidence.measurements)
        lines.append(_line(f"gain    {gain_sentence(found, rival, evidence.student)}"))
    lines += [_line(f"note    {where}") for where in dict.fromkeys(_elsewhere(evidence))]
    lines += [_line(f"note    {remark}") for remark in evidence.verdict.remarks]
    for one in evidence.verdict.recommended:
        if not one.simulated:
            what = one.precision or "nothing"
            lines.append(_line(f"ship    {one.target}: {what}: {one.reason}"))
    for failure in evidence.failures:
        what = f"{failure.target} {failure.precision}{whose(failure.role)}: {failure.what}"
        lines.append(_line(f"FAILED  {what}", "red"))
    verdict = evidence.verdict.outcome
    unseen = simulated_targets(evidence.measurements)
    but = f"; not measured on the device: {', '.join(unseen)}" if unseen else ""
    end = _line(f"verdict: {verdict.value}{but}", f"bold {COLOURS[verdict]}")
    smoke = Text("smoke run on sample photos: not a result", "yellow") if evidence.smoke else ""
    return Group(table, *lines, end, smoke)


def _elsewhere(evidence: Evidence) -> Iterator[str]:
    for m in evidence.measurements:
        if m.device == BY_KIT and m.host:
            yield f"{m.target}: measured by a kit on {m.host.cpu}, {m.host.cores} cores"
        elif m.device:
            yield f"measured on {m.device}"


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
    if m.simulated:
        return "not measured", "", ""
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


def _of(evidence: Evidence, role: str, target: str) -> Measurement | None:
    """The FP32 measurement of a role on a target."""
    found = (m for m in evidence.measurements if (m.role, m.target) == (role, target))
    return next((m for m in found if m.precision == "fp32"), None)
