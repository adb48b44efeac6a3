"""Gains over a rival by hand-worked cases: kept, refused, and what cannot be held together."""

import math
import statistics
from collections.abc import Sequence

import pytest

from mipkd.core.measurement import ImageScore, Latency, Measurement
from pipeline.bench.distillation_gain import NO_GAIN, DistillationGain, TargetGain, compare_with

SIZES = ((64, 64), (128, 128))


def scored(
    role: str,
    target: str,
    psnr_y_db: Sequence[float],
    *,
    precision: str = "fp32",
    ms: float | None = None,
    simulated: bool = False,
) -> Measurement:
    """One with images "0", "1", ... of these scores, and the same latency at two sizes."""
    found = tuple(ImageScore(str(n), {"psnr_y": db}) for n, db in enumerate(psnr_y_db))
    samples_s = (ms * 1e-3,) * 40 if ms else ()
    latencies = tuple(Latency(size, samples_s, 1, 0.0) for size in SIZES if ms)
    return Measurement(role, target, precision, 1, latencies, found, None, {}, simulated=simulated)


OURS = scored("student", "reference", [30.2, 31.4, 32.3])
T_OF_3 = 4.302653  # Student's t of three images, 97.5 %
PLAIN = scored("scratch", "reference", [30.0, 31.0, 32.0])  # 0.2, 0.4 and 0.3 dB below


def int8(
    role: str, *psnr_y_db: float, ms: float | None = None, simulated: bool = False
) -> Measurement:
    return scored(role, "cpu", psnr_y_db, precision="int8", ms=ms, simulated=simulated)


def on_cpu(*measurements: Measurement) -> tuple[DistillationGain, TargetGain]:
    found = compare_with("scratch", (OURS, PLAIN, *measurements))
    (one,) = found.on
    return found, one


def test_the_share_kept_is_that_of_the_mean_gains() -> None:
    whole, one = on_cpu(
        int8("student", 30.1, 31.2, 32.3, ms=4), int8("scratch", 29.9, 31.0, 32.0, ms=2)
    )
    assert whole.fp32_db
    assert whole.fp32_db.value == pytest.approx(0.3)
    reach = T_OF_3 * statistics.stdev([0.2, 0.4, 0.3]) / math.sqrt(3)
    assert whole.fp32_db.low == pytest.approx(0.3 - reach, abs=1e-5)
    assert one.gain_db
    assert one.gain_db.value == pytest.approx((0.2 + 0.2 + 0.3) / 3)
    assert (one.psnr_y_db, one.rival_psnr_y_db) == (
        pytest.approx(31.2),
        pytest.approx(30.9667, abs=1e-4),
    )
    assert one.retained
    assert one.retained.value == pytest.approx(0.7 / 0.9)
    for share in (one.retained.low, one.retained.high):  # of which the data say just: perhaps
        left = [0.2 - share * 0.2, 0.2 - share * 0.4, 0.3 - share * 0.3]
        reach = T_OF_3 * statistics.stdev(left) / math.sqrt(3)
        assert abs(statistics.fmean(left)) == pytest.approx(reach, abs=1e-5)
    assert (one.images, one.why_not) == (3, "")


def test_the_rivals_speed_is_told_beside_ours_at_the_largest_size() -> None:
    _, one = on_cpu(int8("student", 30, 31, ms=4), int8("scratch", 30, 31, ms=2))
    assert one.speed
    assert one.speed.value == pytest.approx(2.0)
    assert one.size == (128, 128)
    _, untimed = on_cpu(int8("student", 30, 31, ms=4), int8("scratch", 30, 31))
    assert (untimed.speed, untimed.size) == (None, None)


@pytest.mark.parametrize("fp32", [[30.0, 31.6, 32.1], [30.5, 31.6, 32.4]])
def test_no_share_of_a_gain_that_may_be_none(fp32: list[float]) -> None:
    """One interval holds zero, the other lies below it."""
    rival = scored("scratch", "reference", fp32)
    both = (int8("student", 30.1, 31.2, 32.3), int8("scratch", 29.9, 31.0, 32.0))
    (one,) = compare_with("scratch", (OURS, rival, *both)).on
    assert one.retained is None
    assert one.why_not == NO_GAIN
    assert one.gain_db
    assert one.gain_db.value == pytest.approx(0.7 / 3)


def test_a_simulated_figure_is_held_against_a_simulated_one_alone() -> None:
    ours = int8("student", 30.1, 31.2, 32.3, simulated=True)
    _, one = on_cpu(ours, int8("scratch", 29.9, 31.0, 32.0, simulated=True))
    assert one.simulated
    assert one.retained
    _, mixed = on_cpu(ours, int8("scratch", 29.9, 31.0, 32.0))
    assert (mixed.gain_db, mixed.retained) == (None, None)
    assert mixed.why_not == "ours is simulated, the rival's measured"


def test_only_images_that_all_four_have_enter_the_share() -> None:
    fp32 = (
        scored("student", "reference", [30.29, 31.40, 32.30, 33.31]),
        scored("scratch", "reference", [30.0, 31.0, 32.0, 33.0]),
    )
    ours = int8("student", 30.2, math.nan, 32.3, 33.3, 35.0)
    (one,) = compare_with(
        "scratch", (*fp32, ours, int8("scratch", 30.0, 31.0, 32.0, 33.0, 34.0))
    ).on
    assert one.images == 4  # the second has no score here, the fifth none in FP32
    assert one.gain_db
    assert one.gain_db.value == pytest.approx((0.2 + 0.3 + 0.3 + 1.0) / 4)
    assert one.retained
    assert one.retained.value == pytest.approx((0.2 + 0.3 + 0.3) / (0.29 + 0.3 + 0.31))


def test_one_image_tells_no_spread() -> None:
    _, one = on_cpu(int8("student", 30.1), int8("scratch", 29.9))
    assert (one.gain_db, one.retained) == (None, None)
    assert one.why_not == "fewer than 2 test images that both have scores of"
    alone = compare_with("scratch", (scored("student", "reference", [30.0]), PLAIN))
    assert (alone.fp32_db, alone.on) == (None, ())
    assert "fewer than 2" in alone.why_not


def test_a_rival_that_is_not_there_is_said_to_be_absent() -> None:
    _, one = on_cpu(int8("student", 30.1, 31.2, 32.3))
    assert one.why_not == "the rival has no pixels there"
    nobody = compare_with("logits", (OURS, PLAIN))
    assert nobody.why_not == "it has no scores in FP32"
