"""Frames without truth: what is judged by the teacher's image, or by the student's own."""

import math
from dataclasses import replace

import pytest

from mipkd.core.evidence import Gate, Outcome
from mipkd.core.images import ASSUMED_TRUTH_DB
from mipkd.core.measurement import Against, ImageScore, Measurement
from pipeline.bench.comparisons import drop_by_image
from pipeline.judge.bounds import GateConfig
from pipeline.judge.gates import OWN_IMAGE, judge
from pipeline.judge.regression import BaselineConfig, Beside, regress

APART = (0.4, -0.3, 0.1, 0.0, -0.2, 0.2, -0.1, 0.3, -0.4, 0.0)  # of each image, dB
OFF = {"min_speedup_over_teacher": "off"}


def scored(
    role: str, psnr_db: float, target: str = "reference", against: Against = "teacher"
) -> Measurement:
    scores = (ImageScore(f"{n}", {"psnr_y": psnr_db + apart}) for n, apart in enumerate(APART))
    precision = "fp32" if target == "reference" else "int8"
    return Measurement(role, target, precision, scores=tuple(scores), against=against)


def gates(
    student_db: float, int8_db: float, *, against: Against = "teacher", **bounds: object
) -> dict[str, Gate]:
    on = [scored("bicubic", 30.0, against=against), scored("student", student_db, against=against)]
    on += [scored("teacher", 100.0)] if against == "teacher" else []
    on.append(scored("student", int8_db, "cpu", against))
    verdict = judge(GateConfig.model_validate({**OFF, **bounds}), on, ())
    assert (OWN_IMAGE in verdict.remarks) is (against == "student")
    return {gate.name: gate for gate in verdict.gates}


@pytest.mark.parametrize(
    ("int8_db", "outcome"), [(39.0, Outcome.PASS), (37.0, Outcome.FAIL), (31.0, Outcome.FAIL)]
)
def test_the_loss_to_the_teacher_is_what_is_left_of_bicubics_error(
    int8_db: float, outcome: Outcome
) -> None:
    gate = gates(int8_db + 0.01, int8_db)["loss to the teacher"]
    assert gate.outcome is outcome
    assert gate.figure == pytest.approx(10 ** (-(int8_db - 30) / 10))
    assert "to the teacher's image" in gate.reason
    assert "bicubic 30.000" in gate.reason


def test_a_student_at_the_bound_is_not_known() -> None:
    apart = gates(38.3, 38.24)["loss to the teacher"]
    assert apart.figure == pytest.approx(0.15, abs=0.001)
    on = [scored("bicubic", 30.0), scored("teacher", 100.0), scored("student", 38.3)]
    noisy = scored("student", 38.24, "cpu")
    noisy = replace(
        noisy,
        scores=tuple(
            replace(s, metrics={"psnr_y": s.psnr_y_db + (-1) ** n})
            for n, s in enumerate(noisy.scores)
        ),
    )
    verdict = judge(GateConfig.model_validate(OFF), [*on, noisy], ())
    (gate,) = (one for one in verdict.gates if one.name == "loss to the teacher")
    assert gate.outcome is Outcome.INVALID
    assert gate.reason.startswith("inconclusive with 10 images")


def test_a_student_must_be_nearer_to_the_teacher_than_bicubic() -> None:
    assert gates(39.0, 38.9)["gain over bicubic"].outcome is Outcome.PASS
    assert gates(29.0, 28.9)["gain over bicubic"].outcome is Outcome.FAIL
    assert "to the teacher's image" in gates(39.0, 38.9)["gain over bicubic"].reason


def test_the_same_noise_costs_a_student_that_follows_closely_no_more() -> None:
    def lost(student_db: float, noise_db: float) -> float:
        error = 10 ** (-student_db / 10) + 10 ** (-noise_db / 10)
        m = scored("student", -10 * math.log10(error), "cpu")
        drops = drop_by_image(m, scored("student", student_db))
        return sum(drops.values()) / len(drops)

    assert lost(40.0, 46.0) < 0.1 < lost(40.0, 43.0)
    assert abs(lost(50.0, 46.0) - lost(35.0, 46.0)) < 0.05


def test_by_its_own_image_int8_has_a_floor_and_the_student_no_gain() -> None:
    floor_db = ASSUMED_TRUTH_DB + 16.33  # of noise that costs 0.1 dB there
    for int8_db, outcome in ((floor_db + 1, Outcome.PASS), (floor_db - 1, Outcome.FAIL)):
        found = gates(100.0, int8_db, against="student")
        assert found["mean drop"].outcome is outcome
        assert "own image" in found["mean drop"].reason
        assert not {"gain over bicubic", "loss to the teacher"} & set(found)


def test_figures_against_different_things_are_not_compared() -> None:
    mine, theirs = scored("student", 38.0, "cpu"), scored("student", 38.0, "cpu", "truth")
    assert not drop_by_image(mine, theirs)
    found = regress(BaselineConfig(), [mine], [theirs], Beside({}))
    assert [gate.outcome for gate in found if gate.name == "mean loss"] == [Outcome.INVALID]
