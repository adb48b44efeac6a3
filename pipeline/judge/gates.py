"""Say whether the student may be shipped: gates, remarks, and what to ship for each target."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from mipkd.core.evidence import Failure, Gate, Outcome, Verdict
from mipkd.core.measurement import Measurement
from mipkd.core.records import Distilled, QuantPlan
from pipeline.bench.comparisons import (
    NOT_MEASURED,
    RAN_EMULATED,
    emulated_targets,
    find_against,
    simulated_targets,
    speedup_over_best,
    students,
    subject,
    valid_latency,
    valid_sizes,
)
from pipeline.bench.distillation_gain import is_rival
from pipeline.judge.bounds import GateConfig
from pipeline.judge.delegates import judge_delegates
from pipeline.judge.outcomes import invalid, passes
from pipeline.judge.outlook import foresee
from pipeline.judge.quality import judge_bicubic, judge_gains, judge_pixels
from pipeline.judge.recommendation import recommend
from pipeline.judge.speed import judge_limits, judge_speedup

OWN_IMAGE = (
    "LR frames without truth and no teacher: how good the student is cannot be told; what each "
    "precision loses is told by the student's own image in FP32"
)


def judge(
    config: GateConfig,
    measurements: Sequence[Measurement],
    failures: Sequence[Failure],
    plans: Sequence[QuantPlan] = (),
    training: Distilled | None = None,
) -> Verdict:
    """FAIL if any gate fails, else INVALID if any could not be judged, else PASS.

    Of a student's `training` a remark says what more of it would bring.
    """
    gates = (
        *judge_bicubic(config, measurements),
        *(gate for m in students(measurements) for gate in _judge_model(config, m, measurements)),
        *(gate for plan in _built(plans, failures) for gate in _judge_search(plan)),
        *judge_gains(config, measurements, failures),
        *_judge_failures(config, measurements, failures),
    )
    stopped = {gate.subject for gate in gates if gate.outcome is not Outcome.PASS}
    limits = judge_limits(config, measurements, stopped)
    outlook = foresee(config.max_loss_to_teacher, measurements, training)
    return Verdict(
        outcome=overall((*gates, *limits.of_targets)),
        gates=(*gates, *limits.of_targets),
        remarks=tuple(filter(None, (outlook, *_remarks(measurements, plans)))),
        recommended=recommend(measurements, (*gates, *limits.of_models), failures),
    )


def _judge_model(
    config: GateConfig, m: Measurement, measurements: Sequence[Measurement]
) -> Iterator[Gate]:
    """The gates of one target and precision."""
    if m.invalid_because:
        yield invalid("latencies", subject(m), 0.0, "", m.invalid_because)
    for latency in m.latencies:
        if not (m.invalid_because or valid_latency(m, latency.size)):
            name = f"latency at {latency.size[1]}x{latency.size[0]}"
            yield invalid(name, subject(m), 0.0, "", latency.invalid_because or "no samples")
    if m.stream and m.stream.invalid_because and config.min_fps == "off":
        why = f"stream: {m.stream.invalid_because}"
        yield invalid("frames per second", subject(m), 0.0, "", why)
    yield from judge_delegates(config, m)
    yield from judge_pixels(config, m, measurements)
    if not (m.simulated or m.invalid_because):
        yield from judge_speedup(config, m, measurements)


def _built(plans: Sequence[QuantPlan], failures: Sequence[Failure]) -> list[QuantPlan]:
    """Without those of which no INT8 was built: they are judged as failures."""
    lost = {f.target for f in failures if (f.role, f.precision) == ("student", "int8")}
    return [plan for plan in plans if plan.target not in lost]


def _judge_search(plan: QuantPlan) -> Iterator[Gate]:
    """What the best INT8 that a search found, or a fixed recipe, loses on photos held out."""
    for name, figure, bound in (
        ("holdout drop", plan.drop_db, plan.max_drop_db),
        ("holdout worst drop", plan.worst_db, plan.max_worst_db),
    ):
        if figure is not None:
            reason = f"the best of INT8 with {plan.counted} float"
            if plan.fixed:
                reason = "the target's fixed recipe"
                reason += "; the student was trained on for it" if plan.tuned else ""
            if plan.holdout and plan.holdout.against != "truth":
                reason += f", by the {plan.holdout.against}'s image: the photos have no truth"
            well = passes(figure <= bound)
            yield Gate(name, f"{plan.target} int8", well, figure, bound, "dB", reason)


def _remarks(measurements: Sequence[Measurement], plans: Sequence[QuantPlan]) -> Iterator[str]:
    """What was only simulated; a search that was cut short; INT8 that runs in float, or may not be
    faster than one."""
    if find_against(measurements) == "student":
        yield OWN_IMAGE
    for target in simulated_targets(measurements):
        yield f"{target}: {NOT_MEASURED}"
    for target in emulated_targets(measurements):
        yield f"{target}: {RAN_EMULATED}"
    for plan in (plan for plan in plans if plan.out_of_tries):
        yield (
            f"{plan.target}: the search for what INT8 leaves float used all its tries: fewer "
            "floats may do; raise quantize.tries"
        )
    on = students(measurements)
    for m in (m for m in on if m.runs_in_float):
        yield (
            f"{m.target}: asked for {m.precision}, the runtime executes {m.executes}: it is not "
            "recommended"
        )
    for int8 in (m for m in on if m.executes == "int8"):
        floats = [m for m in on if m.target == int8.target]
        found = [(size, speedup_over_best(floats, int8, size)) for size in valid_sizes(int8)]
        slow = [
            f"{pair[0].value:.2f}x {pair[1]} ({pair[0].low:.2f} to {pair[0].high:.2f}) "
            f"at LR {size[1]}x{size[0]}"
            for size, pair in found
            if pair and pair[0].low <= 1.0
        ]
        if slow:
            than = "INT8 is not surely faster than a float precision"
            yield f"{int8.target}: {than}: {', '.join(slow)}"


def _judge_failures(
    config: GateConfig, measurements: Sequence[Measurement], failures: Sequence[Failure]
) -> Iterator[Gate]:
    for failure in failures:
        if is_rival(failure.role):
            continue  # no matter of the student's
        by_teacher = (config.min_speedup_over_teacher, config.max_loss_to_teacher)
        if failure.role == "teacher" and set(by_teacher) == {"off"}:
            continue  # nothing is judged by it
        why = f"{failure.stage} failed: {failure.what}"
        of = " of the teacher" if failure.role == "teacher" else ""
        yield invalid("measured", f"{failure.target} {failure.precision}{of}", 0.0, "", why)
    lost = [failure for failure in failures if not is_rival(failure.role)]
    if not lost and not students(measurements):
        yield invalid("measured", "student", 0.0, "", "no target was measured")


def overall(gates: Sequence[Gate]) -> Outcome:
    """FAIL if any fails, else INVALID if any could not be judged."""
    outcomes = [gate.outcome for gate in gates]
    for outcome in (Outcome.FAIL, Outcome.INVALID):
        if outcome in outcomes:
            return outcome
    return Outcome.PASS
