"""Gates on made-up measurements: what passes, fails, and cannot be said."""

from dataclasses import replace

import numpy as np
import pytest
from pydantic import ValidationError

from mipkd.core.evidence import Failure, Gate, Outcome
from mipkd.core.measurement import ImageScore, Latency, Measurement
from mipkd.core.records import QuantPlan
from pipeline.judge.bounds import GateConfig
from pipeline.judge.gates import judge
from pipeline.stages.measure import is_disturbed

SMALL, LARGE = (64, 64), (180, 320)
IMAGES = {"baby": 34.0, "bird": 32.0, "woman": 30.0}  # of the FP32 student
IMAGES |= {"lenna": 34.0, "monarch": 32.0, "zebra": 30.0}  # that lose what the first three lose


def measurement(
    role: str,
    target: str,
    precision: str,
    ms: float | None = None,
    lost_db: tuple[float, float, float] = (0.0, 0.0, 0.0),
    spread: float = 0.01,
) -> Measurement:
    """One whose latency grows with the size and whose PSNR lies below the FP32 student's."""
    latencies = []
    for size in (SMALL, LARGE) if ms else ():
        noise = (
            np.random.default_rng([*(role + precision).encode()]).normal(1, spread, 60).clip(0.2)
        )
        usual_s = (ms or 0) * 1e-3 * size[0] * size[1] / (64 * 64)
        latencies.append(Latency(size, tuple(float(usual_s * n) for n in noise), 2, usual_s))
    scores = tuple(
        ImageScore(name, {"psnr_y": psnr - lost})
        for (name, psnr), lost in zip(IMAGES.items(), 2 * lost_db, strict=True)
    )
    return Measurement(role, target, precision, 1000, tuple(latencies), scores, None, {})


BICUBIC = measurement("bicubic", "reference", "fp32", lost_db=(2.0, 2.0, 2.0))
STUDENT = measurement("student", "reference", "fp32")
BEST = measurement("teacher", "reference", "fp32", lost_db=(-0.05, -0.05, -0.05))
TEACHER = replace(measurement("teacher", "cpu", "fp32", ms=20), scores=())
FP32 = measurement("student", "cpu", "fp32", ms=5)
INT8 = measurement("student", "cpu", "int8", ms=2, lost_db=(0.03, 0.04, 0.05))
ALL = (BICUBIC, STUDENT, BEST, TEACHER, FP32, INT8)


def gate(gates: tuple[Gate, ...], subject: str, name: str) -> Gate:
    return next(g for g in gates if (g.subject, g.name) == (subject, name))


def test_good_student_passes_and_int8_is_recommended() -> None:
    verdict = judge(GateConfig(), ALL, ())
    assert verdict.outcome is Outcome.PASS
    assert gate(verdict.gates, "student", "gain over bicubic").figure == pytest.approx(2.0)
    assert gate(verdict.gates, "cpu int8", "mean drop").figure == pytest.approx(0.04)
    assert gate(verdict.gates, "cpu int8", "worst drop").figure == pytest.approx(0.05)
    assert "woman" in gate(verdict.gates, "cpu int8", "worst drop").reason
    speed = gate(verdict.gates, "cpu int8", "speed-up over teacher")
    assert speed.figure == pytest.approx(10, rel=0.02)
    assert [(r.target, r.precision) for r in verdict.recommended] == [("cpu", "int8")]
    assert verdict.remarks == ()


@pytest.mark.parametrize(
    ("lost_db", "failed"),
    [
        ((0.2, 0.2, 0.2), {"mean drop"}),
        ((0.0, -0.5, 0.6), {"worst drop"}),
        ((0.0, 0.0, 5.0), {"worst drop"}),  # of the mean six such images tell nothing
        ((1.0, 1.0, 1.0), {"mean drop", "worst drop", "loss to the teacher"}),
    ],
)
def test_lost_quality_fails_and_float_is_recommended(
    lost_db: tuple[float, float, float], failed: set[str]
) -> None:
    int8 = measurement("student", "cpu", "int8", ms=2, lost_db=lost_db)
    verdict = judge(GateConfig(), (BICUBIC, STUDENT, BEST, TEACHER, FP32, int8), ())
    assert verdict.outcome is Outcome.FAIL
    assert {g.name for g in verdict.gates if g.outcome is Outcome.FAIL} == failed
    assert [r.precision for r in verdict.recommended] == ["fp32"]


def test_int8_over_the_searchs_bound_fails_and_float_is_recommended() -> None:
    plan = QuantPlan(
        "cpu", "whole", "fp32", (), 0.07, 0.2, met=False, max_drop_db=0.05, max_worst_db=0.3
    )
    verdict = judge(GateConfig(), ALL, (), (plan,))
    assert verdict.outcome is Outcome.FAIL
    assert gate(verdict.gates, "cpu int8", "holdout drop").outcome is Outcome.FAIL
    assert gate(verdict.gates, "cpu int8", "holdout worst drop").outcome is Outcome.PASS
    assert [(r.target, r.precision) for r in verdict.recommended] == [("cpu", "fp32")]
    kept = QuantPlan("cpu", "", "", (), None, None, met=True, fixed=True)
    assert judge(GateConfig(), ALL, (), (kept,)) == judge(GateConfig(), ALL, ())


def test_student_no_better_than_bicubic_ships_nowhere() -> None:
    bicubic = measurement("bicubic", "reference", "fp32", lost_db=(0.05, 0.05, 0.05))
    verdict = judge(GateConfig(), (bicubic, *ALL[1:]), ())
    assert verdict.outcome is Outcome.FAIL
    assert [r.precision for r in verdict.recommended] == [""]
    assert "bicubic" in verdict.recommended[0].reason


def test_speed_up_is_against_the_teachers_fastest_float_at_the_worst_size() -> None:
    bf16 = replace(measurement("teacher", "cpu", "bf16", ms=10), scores=())
    slow_when_large = replace(FP32, latencies=(FP32.latencies[0], TEACHER.latencies[1]))
    verdict = judge(GateConfig(), (BICUBIC, STUDENT, BEST, TEACHER, bf16, slow_when_large), ())
    speed = gate(verdict.gates, "cpu fp32", "speed-up over teacher")
    assert speed.outcome is Outcome.FAIL
    assert speed.figure == pytest.approx(0.5, rel=0.02)
    assert "bf16" in speed.reason
    assert "320x180" in speed.reason


def test_speed_up_within_the_noise_is_inconclusive() -> None:
    teacher = replace(measurement("teacher", "cpu", "fp32", ms=5, spread=0.3), scores=())
    student = measurement("student", "cpu", "int8", ms=5.4, spread=0.3)
    verdict = judge(GateConfig(), (BICUBIC, STUDENT, BEST, teacher, student), ())
    assert verdict.outcome is Outcome.INVALID
    speed = gate(verdict.gates, "cpu int8", "speed-up over teacher")
    assert speed.reason.startswith("inconclusive")


def test_without_teacher_there_is_no_gate_on_speed() -> None:
    verdict = judge(GateConfig(), (BICUBIC, STUDENT, FP32, INT8), ())
    assert verdict.outcome is Outcome.PASS
    assert "speed-up over teacher" not in {g.name for g in verdict.gates}


def test_teacher_without_latency_on_this_target_leaves_speed_unjudged() -> None:
    elsewhere = replace(TEACHER, target="openvino")
    verdict = judge(GateConfig(), (BICUBIC, STUDENT, BEST, elsewhere, FP32), ())
    assert verdict.outcome is Outcome.INVALID
    assert "no valid latency of the teacher on cpu" in verdict.gates[-1].reason


def test_a_teacher_that_may_be_the_fastest_but_is_invalid_leaves_speed_unjudged() -> None:
    bf16 = measurement("teacher", "cpu", "bf16", ms=10)
    doubtful = tuple(replace(one, invalid_because="unstable") for one in bf16.latencies)
    teachers = (TEACHER, replace(bf16, latencies=doubtful, scores=()))
    verdict = judge(GateConfig(), (BICUBIC, STUDENT, BEST, *teachers, FP32), ())
    assert verdict.outcome is Outcome.INVALID
    assert "64x64, 320x180" in gate(verdict.gates, "cpu fp32", "speed-up over teacher").reason


def test_failure_and_invalid_latency_are_invalid_gates() -> None:
    doubtful = replace(INT8.latencies[1], invalid_because="unstable: 40 % apart")
    int8 = replace(INT8, latencies=(INT8.latencies[0], doubtful))
    failure = Failure("openvino", "int8", "build", "no such kernel")
    verdict = judge(GateConfig(), (BICUBIC, STUDENT, BEST, TEACHER, FP32, int8), (failure,))
    assert verdict.outcome is Outcome.INVALID
    assert "40 % apart" in gate(verdict.gates, "cpu int8", "latency at 320x180").reason
    assert "no such kernel" in gate(verdict.gates, "openvino int8", "measured").reason
    assert {r.target: r.precision for r in verdict.recommended} == {"cpu": "fp32", "openvino": ""}


def test_pixels_are_judged_where_no_time_may_be_believed() -> None:
    busy = replace(INT8, invalid_because="busy machine: other programs took 80 % of the CPU")
    config = GateConfig(max_latency_ms=100)
    verdict = judge(config, (BICUBIC, STUDENT, BEST, TEACHER, busy), ())
    assert verdict.outcome is Outcome.INVALID
    found = {g.name: g for g in verdict.gates if g.subject == "cpu int8"}
    times = {"latencies", "latency"}
    assert {name for name, one in found.items() if one.outcome is not Outcome.PASS} == times
    assert {found[name].reason for name in times} == {busy.invalid_because}
    assert {"mean drop", "worst drop"} <= found.keys()
    assert "speed-up over teacher" not in found
    assert is_disturbed((FP32, busy))
    lost = replace(
        busy, scores=tuple(replace(one, metrics={"psnr_y": 20.0}) for one in INT8.scores)
    )
    assert judge(config, (BICUBIC, STUDENT, BEST, TEACHER, lost), ()).outcome is Outcome.FAIL


def test_a_teacher_that_did_not_build_does_not_hold_the_student_back() -> None:
    failure = Failure("cpu", "fp32", "build", "no such kernel", role="teacher")
    verdict = judge(GateConfig(), (BICUBIC, STUDENT, FP32), (failure,))
    assert "no such kernel" in gate(verdict.gates, "cpu fp32 of the teacher", "measured").reason
    assert verdict.outcome is Outcome.INVALID
    assert [(r.target, r.precision) for r in verdict.recommended] == [("cpu", "fp32")]


def test_where_no_speed_up_is_asked_for_a_lost_teacher_is_no_matter() -> None:
    failure = Failure("onnx", "fp32", "export", "no such operator", role="teacher")
    config = GateConfig(min_speedup_over_teacher="off", max_loss_to_teacher="off")
    verdict = judge(config, (BICUBIC, STUDENT, FP32), (failure,))
    assert verdict.outcome is Outcome.PASS
    assert [r.target for r in verdict.recommended] == ["cpu"]


def test_a_failed_gate_outweighs_an_invalid_one() -> None:
    int8 = measurement("student", "cpu", "int8", ms=2, lost_db=(1.0, 1.0, 1.0))
    failure = Failure("openvino", "int8", "build", "no such kernel")
    verdict = judge(GateConfig(), (BICUBIC, STUDENT, FP32, int8), (failure,))
    assert verdict.outcome is Outcome.FAIL


def test_nothing_measured_is_no_pass() -> None:
    assert judge(GateConfig(), (BICUBIC, STUDENT), ()).outcome is Outcome.INVALID
    everything_off = GateConfig.model_validate(
        dict.fromkeys(GateConfig.model_fields.keys() - {"metrics", "size"}, "off")
    )
    assert judge(everything_off, (), ()).outcome is Outcome.INVALID


def test_other_images_than_the_reference_cannot_be_compared() -> None:
    int8 = replace(INT8, scores=INT8.scores[:2])
    verdict = judge(GateConfig(), (BICUBIC, STUDENT, FP32, int8), ())
    assert gate(verdict.gates, "cpu int8", "mean drop").outcome is Outcome.INVALID


def test_int8_no_faster_than_bf16_is_remarked_not_failed() -> None:
    bf16 = measurement("student", "cpu", "bf16", ms=2.0, lost_db=(0.001, 0.001, 0.001))
    int8 = measurement("student", "cpu", "int8", ms=2.2, lost_db=(0.05, 0.05, 0.05))
    verdict = judge(GateConfig(), (BICUBIC, STUDENT, BEST, TEACHER, FP32, bf16, int8), ())
    assert verdict.outcome is Outcome.PASS
    said = "cpu: INT8 is not surely faster than a float precision: 0.9"
    assert len(verdict.remarks) == 1
    assert verdict.remarks[0].startswith(said)
    assert "x bf16" in verdict.remarks[0]
    assert verdict.recommended[0].precision == "bf16"


def test_of_two_as_fast_the_better_one_is_recommended() -> None:
    int8 = measurement("student", "cpu", "int8", ms=4.99, lost_db=(0.05, 0.05, 0.05))
    verdict = judge(GateConfig(), (BICUBIC, STUDENT, BEST, TEACHER, FP32, int8), ())
    assert verdict.recommended[0].precision == "fp32"


def test_a_gate_can_be_switched_off() -> None:
    int8 = measurement("student", "cpu", "int8", ms=2, lost_db=(1.0, 1.0, 1.0))
    off = GateConfig(max_mean_drop_db="off", max_worst_drop_db="off", max_loss_to_teacher="off")
    verdict = judge(off, (BICUBIC, STUDENT, BEST, TEACHER, FP32, int8), ())
    assert verdict.outcome is Outcome.PASS


PLAIN = (
    measurement("scratch", "reference", "fp32", lost_db=(0.29, 0.31, 0.3)),
    measurement("scratch", "cpu", "fp32", ms=5, lost_db=(0.29, 0.31, 0.3)),
    measurement("scratch", "cpu", "int8", ms=2, lost_db=(0.29, 0.31, 0.3)),
)
KEPT = "gain retained over scratch"


@pytest.mark.parametrize(
    ("bound", "outcome"), [(0.75, Outcome.PASS), (0.86, Outcome.INVALID), (0.95, Outcome.FAIL)]
)
def test_the_share_of_the_gain_that_is_kept_is_judged_by_its_interval(
    bound: float, outcome: Outcome
) -> None:
    """INT8 costs the student 0.04 of 0.3 dB on the mean, its rival nothing."""
    int8 = measurement("student", "cpu", "int8", ms=2, lost_db=(0.03, 0.04, 0.05))
    verdict = judge(GateConfig(min_gain_retained=bound), (*ALL[:-1], int8, *PLAIN), ())
    found = gate(verdict.gates, "cpu int8", KEPT)
    assert found.outcome is outcome is verdict.outcome
    assert found.figure == pytest.approx(0.26 / 0.3)
    assert "95 % interval 0.84 to 0.90" in found.reason
    assert "+0.260 dB (+0.251 to +0.269) of +0.300 in FP32, 6 images" in found.reason
    assert found.reason.startswith("inconclusive") == (outcome is Outcome.INVALID)
    assert [g.subject for g in verdict.gates if g.name == KEPT] == ["cpu int8"]
    assert [r.precision for r in verdict.recommended] == ["int8" if bound == 0.75 else "fp32"]


def test_rivals_are_no_matter_of_the_verdict_unless_asked_for() -> None:
    lost = Failure("cpu", "int8", "build", "out of memory", role="scratch")
    assert judge(GateConfig(), (*ALL, *PLAIN[:2]), (lost,)) == judge(GateConfig(), ALL, ())
    asked = judge(GateConfig(min_gain_retained=0.9), (*ALL, *PLAIN[:2]), (lost,))
    found = gate(asked.gates, "cpu int8", KEPT)
    assert found.outcome is Outcome.INVALID
    assert found.reason == "the rival has no pixels there"


def test_a_gain_that_may_be_none_cannot_be_kept_and_one_that_is_none_need_not_be() -> None:
    config = GateConfig(min_gain_retained=0.5)
    doubtful = measurement("scratch", "reference", "fp32", lost_db=(-0.1, 0.4, 0.3))
    verdict = judge(config, (*ALL, doubtful, *PLAIN[1:]), ())
    assert gate(verdict.gates, "cpu int8", KEPT).outcome is Outcome.INVALID
    better = measurement("scratch", "reference", "fp32", lost_db=(-0.1, -0.4, -0.3))
    assert judge(config, (*ALL, better, *PLAIN[1:]), ()).outcome is Outcome.PASS


@pytest.mark.parametrize("bound", ["none", float("nan"), None])
def test_bounds_are_numbers_or_off(bound: object) -> None:
    with pytest.raises(ValidationError):
        GateConfig.model_validate({"max_mean_drop_db": bound})


def test_a_tint_that_psnr_hardly_sees_fails() -> None:
    def tinted(m: Measurement, blue: float) -> Measurement:
        scores = tuple(replace(s, shift_rgb=(0.2, -0.1, blue)) for s in m.scores)
        return replace(m, scores=scores)

    measured = (BICUBIC, tinted(STUDENT, 0.1), BEST, TEACHER, tinted(FP32, 0.1), tinted(INT8, 1.3))
    found = judge(GateConfig(), measured, ())
    assert gate(found.gates, "cpu fp32", "channel shift").outcome is Outcome.PASS
    tint = gate(found.gates, "cpu int8", "channel shift")
    assert (tint.outcome, tint.figure) == (Outcome.FAIL, pytest.approx(1.2))
    assert "blue +1.20" in tint.reason


def test_the_recommendation_is_for_the_largest_size() -> None:
    """INT8 is the fastest at the small size, FP32 at the large one."""
    int8 = measurement("student", "cpu", "int8", ms=2)
    slow_when_large = replace(int8, latencies=(int8.latencies[0], TEACHER.latencies[1]))
    off = GateConfig(min_speedup_over_teacher="off")
    verdict = judge(off, (BICUBIC, STUDENT, BEST, TEACHER, FP32, slow_when_large), ())
    assert verdict.outcome is Outcome.PASS
    assert [r.precision for r in verdict.recommended] == ["fp32"]
    turned = replace(int8, latencies=(TEACHER.latencies[0], int8.latencies[1]))
    verdict = judge(off, (BICUBIC, STUDENT, BEST, TEACHER, FP32, turned), ())
    assert [r.precision for r in verdict.recommended] == ["int8"]


def test_a_bound_on_another_metric_is_judged_in_its_own_direction() -> None:
    base = replace(STUDENT, scores=with_tint(STUDENT, 0.2))
    tinted = replace(INT8, scores=with_tint(INT8, 0.9))
    bounds = {"tint": {"max_mean_drop": 0.5, "max_worst_drop": 1.0}}
    config = GateConfig.model_validate({"metrics": bounds})
    gates = judge(config, (BICUBIC, base, BEST, TEACHER, FP32, tinted), ()).gates
    found = gate(gates, "cpu int8", "mean drop of Tint")
    assert (found.outcome, found.unit) == (Outcome.FAIL, "levels")
    assert found.figure == pytest.approx(0.7)
    assert gate(gates, "cpu int8", "worst drop of Tint").outcome is Outcome.PASS
    unscored = gate(gates, "cpu fp32", "mean drop of Tint")
    assert (unscored.outcome, unscored.figure) == (Outcome.INVALID, None)


def with_tint(m: Measurement, levels: float) -> tuple[ImageScore, ...]:
    return tuple(replace(s, metrics={**s.metrics, "tint": levels}) for s in m.scores)


def test_a_bound_on_a_metric_that_nobody_knows_is_refused() -> None:
    with pytest.raises(ValidationError, match=r"unknown metric 'psnr_rbg'; did you mean psnr_rgb"):
        GateConfig.model_validate({"metrics": {"psnr_rbg": {"max_mean_drop": 0.1}}})
