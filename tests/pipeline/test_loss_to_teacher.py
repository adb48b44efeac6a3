"""A student is held against its teacher, by what that has over bicubic."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from mipkd.core.evidence import Gate, Outcome
from mipkd.core.measurement import ImageScore, Measurement
from mipkd.core.records import Distilled
from pipeline.judge.bounds import GateConfig
from pipeline.judge.gates import judge

GAINS = (1.8, 4.1, 3.2, 2.4, 2.9, 3.6)  # of the teacher over bicubic, dB
OFF = {"min_speedup_over_teacher": "off"}


def scored(role: str, kept: float, target: str = "reference") -> Measurement:
    """One that has a share of what the teacher has over bicubic, on each image a little else."""
    shares = [kept + apart for apart in (0.02, -0.01, 0.0, 0.01, -0.02, 0.0)]
    if role != "student":
        shares = [kept] * len(shares)
    scores = (
        ImageScore(f"{n}", {"psnr_y": 26.0 + n + gain * share})
        for n, (gain, share) in enumerate(zip(GAINS, shares, strict=True))
    )
    return Measurement(role=role, target=target, precision="fp32", scores=tuple(scores))


def judged(kept: float, **bounds: object) -> tuple[Outcome, Gate]:
    on = [scored("bicubic", 0.0), scored("teacher", 1.0), scored("student", kept)]
    on.append(scored("student", kept, target="cpu"))
    verdict = judge(GateConfig.model_validate({**OFF, **bounds}), on, ())
    (gate,) = (g for g in verdict.gates if g.name == "loss to the teacher")
    return verdict.outcome, gate


def test_a_student_that_keeps_most_of_the_gain_passes_and_one_that_keeps_little_fails() -> None:
    outcome, gate = judged(0.95)
    assert outcome is gate.outcome is Outcome.PASS
    assert gate.figure == pytest.approx(0.05, abs=0.01)
    assert gate.subject == "cpu fp32"
    outcome, gate = judged(0.22)  # README's first table of 0.1.0
    assert outcome is gate.outcome is Outcome.FAIL
    assert "teacher 31.500, bicubic 28.500" in gate.reason
    assert judged(0.22, max_loss_to_teacher=0.9)[0] is Outcome.PASS


def test_a_student_at_the_bound_is_not_known() -> None:
    outcome, gate = judged(0.85)
    assert outcome is gate.outcome is Outcome.INVALID
    assert gate.reason.startswith("inconclusive")


def test_without_a_teacher_or_with_one_that_is_worthless_there_is_no_share() -> None:
    bicubic, student = scored("bicubic", 0.0), scored("student", 0.9)
    measured = replace(student, target="cpu")
    gates = judge(GateConfig(), (bicubic, student, measured), ()).gates
    assert "loss to the teacher" not in {gate.name for gate in gates}
    worthless = (bicubic, scored("teacher", -0.1), student, measured)
    gates = judge(GateConfig.model_validate(OFF), worthless, ()).gates
    (found,) = (gate for gate in gates if gate.name == "loss to the teacher")
    assert (found.outcome, found.reason) == (
        Outcome.INVALID,
        "the teacher is not better than bicubic",
    )


@pytest.mark.parametrize(
    ("rise_db", "says"),
    [(0.2, "trained for 1,000 of the about 17,000 steps it would need"), (0.001, "hardly rises")],
)
def test_what_more_steps_would_bring_is_read_from_the_curve(
    rise_db: float, says: str, tmp_path: Path
) -> None:
    """PSNR rises by so much each time the steps double; 0.82 dB are missing."""
    curves = tmp_path / "metrics.jsonl"
    points = {1000 / 2 ** (n / 4): 30.0 - rise_db * n / 4 for n in range(8)}
    curves.write_text(
        "".join(json.dumps({"step": s, "psnr_y_db": p}) + "\n" for s, p in points.items())
    )
    on = [scored("bicubic", 0.0), scored("teacher", 1.0), scored("student", 0.577)]
    training = Distilled(None, curves, (), 1000, 1.0, (), 30.0)  # type: ignore[arg-type]
    remarks = judge(GateConfig(), on, (), training=training).remarks
    assert any(says in remark for remark in remarks)
    good = [*on[:2], scored("student", 0.95)]
    assert not judge(GateConfig(), good, (), training=training).remarks
