"""Limits of a device: one precision that keeps them all is enough, and is the one to ship."""

from dataclasses import replace

import numpy as np
import pytest
from pydantic import ValidationError

from mipkd.core.evidence import Gate, Outcome, Verdict
from mipkd.core.measurement import ImageScore, Latency, Measurement
from pipeline.judge.bounds import GateConfig
from pipeline.judge.gates import judge

SMALL, LARGE = (64, 64), (180, 320)
REFERENCE = Measurement(
    role="student",
    target="reference",
    precision="fp32",
    scores=tuple(ImageScore(f"{n}", {"psnr_y": 30.0 + n}) for n in range(6)),
)
BICUBIC = replace(
    REFERENCE,
    role="bicubic",
    scores=tuple(ImageScore(s.image, {"psnr_y": s.psnr_y_db - 2}) for s in REFERENCE.scores),
)


def timed(precision: str, ms: float, memory_bytes: int | None = 50_000_000) -> Measurement:
    """At 64x64 in a tenth of the time, with one call in 20 that takes twice as long."""
    rng = np.random.default_rng(0)

    def latency(size: tuple[int, int], usual_ms: float) -> Latency:
        calls = usual_ms * 1e-3 * rng.normal(1, 0.01, 200).clip(0.9)
        calls[::20] *= 2
        return Latency(size, tuple(calls.tolist()), 2, 0.1, memory_bytes=memory_bytes)

    latencies = (latency(SMALL, ms / 10), latency(LARGE, ms))
    on = replace(REFERENCE, target="cpu", precision=precision, latencies=latencies)
    return replace(on, size_bytes=900_000 if precision == "int8" else 3_000_000)


FP32, INT8 = timed("fp32", 30.0), timed("int8", 10.0)


def judged(config: GateConfig, *on: Measurement) -> Verdict:
    return judge(config, (REFERENCE, BICUBIC, *on), ())


def named(verdict: Verdict, name: str) -> Gate:
    (found,) = (gate for gate in verdict.gates if gate.name == name)
    return found


def test_a_budget_that_int8_keeps_passes_and_int8_is_shipped() -> None:
    verdict = judged(GateConfig(max_latency_ms=12), FP32, INT8)
    gate = named(verdict, "latency")
    assert (verdict.outcome, gate.subject, gate.unit) == (Outcome.PASS, "cpu int8", "ms")
    assert gate.figure == pytest.approx(10, rel=0.05)
    assert gate.reason.startswith("p90 at LR 320x180, 95 % interval ")
    assert gate.reason.endswith("the best of 2 precisions")
    assert [one.precision for one in verdict.recommended] == ["int8"]
    assert judged(GateConfig(max_latency_ms=12), FP32).outcome is Outcome.FAIL


def test_a_budget_that_none_keeps_fails_with_the_least_and_nothing_is_shipped() -> None:
    verdict = judged(GateConfig(max_latency_ms=1), FP32, INT8)
    gate = named(verdict, "latency")
    assert (verdict.outcome, gate.subject) == (Outcome.FAIL, "cpu int8")
    assert [one.precision for one in verdict.recommended] == [""]


def test_the_named_size_is_the_one_that_is_judged() -> None:
    verdict = judged(GateConfig(max_latency_ms=1.2, size=SMALL), INT8)
    assert verdict.outcome is Outcome.PASS
    assert "p90 at LR 64x64" in named(verdict, "latency").reason
    unseen = named(judged(GateConfig(max_latency_ms=9, size=(90, 160)), INT8), "latency")
    assert unseen.outcome is Outcome.INVALID
    assert unseen.reason == "LR 160x90 was not measured; give --size 160x90 to the run"


def test_a_model_that_loses_too_much_keeps_no_budget_for_the_others() -> None:
    """INT8 is quick and broken: the budget is asked of FP32."""
    broken = replace(
        INT8,
        scores=tuple(ImageScore(s.image, {"psnr_y": s.psnr_y_db - 3}) for s in INT8.scores),
    )
    verdict = judged(GateConfig(max_latency_ms=12), FP32, broken)
    assert named(verdict, "latency").subject == "cpu fp32"
    assert named(verdict, "latency").outcome is Outcome.FAIL
    assert [one.precision for one in verdict.recommended] == [""]


def test_a_p90_that_may_lie_on_either_side_is_inconclusive() -> None:
    found = named(judged(GateConfig(max_latency_ms=10.13), INT8), "latency")
    assert found.outcome is Outcome.INVALID
    assert found.reason.startswith("inconclusive: p90")


@pytest.mark.parametrize(
    ("bounds", "name", "figure"),
    [
        ({"min_fps": 90}, "frames per second", 100.0),
        ({"max_size_mb": 1}, "size of the model", 0.9),
        ({"max_memory_mb": 64}, "memory", 50.0),
    ],
)
def test_frames_size_and_memory_are_judged_likewise(
    bounds: dict[str, float], name: str, figure: float
) -> None:
    assert named(judged(GateConfig(**bounds), FP32, INT8), name).outcome is Outcome.PASS
    tight = {key: bound * (2 if key == "min_fps" else 0.5) for key, bound in bounds.items()}
    gate = named(judged(GateConfig(**tight), FP32, INT8), name)
    assert (gate.outcome, gate.figure) == (Outcome.FAIL, pytest.approx(figure, rel=0.02))


def test_what_was_not_measured_is_not_kept() -> None:
    config = GateConfig(max_memory_mb=64)
    gate = named(judged(config, timed("int8", 10.0, memory_bytes=None)), "memory")
    assert gate.outcome is Outcome.INVALID
    doubtful = [replace(one, invalid_because="busy machine") for one in INT8.latencies]
    config = GateConfig(max_latency_ms=12)
    gate = named(judged(config, replace(INT8, latencies=tuple(doubtful))), "latency")
    assert (gate.outcome, gate.reason) == (Outcome.INVALID, "at LR 320x180: busy machine")


def test_of_a_simulated_target_only_the_size_is_known() -> None:
    simulated = replace(INT8, target="coreml", simulated=True, latencies=())
    config = GateConfig(max_latency_ms=12, max_size_mb=1)
    verdict = judged(config, simulated)
    gate = named(verdict, "latency")
    assert (verdict.outcome, gate.outcome) == (Outcome.INVALID, Outcome.INVALID)
    assert gate.reason.startswith("not measured on the device")
    assert named(verdict, "size of the model").outcome is Outcome.PASS


@pytest.mark.parametrize("wrong", [{"max_latency_ms": 0}, {"min_fps": -1}, {"size": [0, 9]}])
def test_limits_that_nothing_keeps_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        GateConfig.model_validate(wrong)


def test_what_a_delegate_refuses_fails_unless_it_is_not_asked() -> None:
    refused = {"XNNPACK": "", "GPU": "2 GELU", "NPU": "2 GELU"}
    phone = replace(FP32, refused_by=refused)
    verdict = judged(GateConfig(), phone)
    gate = named(verdict, "operators GPU")
    assert (gate.outcome, gate.subject) == (Outcome.FAIL, "cpu fp32")
    assert gate.reason == "it refuses 2 GELU"
    assert named(verdict, "operators XNNPACK").outcome is Outcome.PASS
    assert not any(g.name.startswith("operators") for g in judged(GateConfig(), FP32).gates)
    assert judged(GateConfig(delegates="XNNPACK"), phone).outcome is Outcome.PASS
