"""Planted faults are caught, a model against itself raises no alarm, and chance decides neither."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from mipkd.core.evidence import Gate, Outcome
from mipkd.core.measurement import Host, ImageScore, Latency, Measurement
from pipeline.judge.regression import FEWEST_COMPARED, BaselineConfig, Beside, regress

HOST = Host("a", "a CPU", 2, 2**34, "Linux", ())
SIZE = (64, 64)
IMAGES = 100
TRIALS = 200
KEY = ("cpu", "int8")


def samples(rng: np.random.Generator, ms: float, drift: np.ndarray) -> tuple[float, ...]:
    """A machine whose pace moves, with noise of 3 % and now and then a call that waits."""
    noise = rng.lognormal(0, 0.03, len(drift)) * np.where(rng.random(len(drift)) < 0.02, 3, 1)
    return tuple(ms * 1e-3 * drift * noise)


def pace(rng: np.random.Generator) -> np.ndarray:
    """Of 240 calls: it moves by up to a tenth from one stretch to the next."""
    return np.repeat(rng.uniform(1.0, 1.1, 12), 20)


def latency(found: tuple[float, ...]) -> Latency:
    return Latency(SIZE, found, 2, found[0])


def measured(
    rng: np.random.Generator, *, psnr: np.ndarray | None = None, ms: float = 5.0
) -> Measurement:
    db = rng.normal(30, 3, IMAGES) if psnr is None else psnr
    scores = tuple(
        ImageScore(str(n), {"psnr_y": float(v)}, (0.1, 0.0, -0.1)) for n, v in enumerate(db)
    )
    series = latency(samples(rng, ms, pace(rng)))
    return Measurement("student", *KEY, 1000, (series,), scores, None, {}, host=HOST)


def outcomes(gates: tuple[Gate, ...]) -> dict[str, Outcome]:
    return {gate.name: gate.outcome for gate in gates}


def judged(
    now: Measurement, before: Measurement, beside: Beside | None = None
) -> dict[str, Outcome]:
    return outcomes(regress(BaselineConfig(), [now], [before], beside or Beside({})))


def in_turns(rng: np.random.Generator, slower: float) -> Beside:
    """Both on one moving pace, as they are when they take turns."""
    moving = pace(rng)
    theirs, ours = (latency(samples(rng, ms, moving)) for ms in (5.0, 5.0 * slower))
    return Beside({KEY: [(theirs, ours)]})


def test_a_model_is_not_worse_than_itself() -> None:
    one = measured(np.random.default_rng(0))
    found = judged(one, one)
    assert set(found.values()) == {Outcome.PASS}
    assert set(found) == {
        *("mean loss", "loss of the worst 5 %", "worst loss", "new channel shift", "size"),
        "slowdown at 64x64",
    }


@pytest.mark.parametrize(("slower", "wanted"), [(1.0, Outcome.PASS), (1.1, Outcome.FAIL)])
def test_latency_in_turns(slower: float, wanted: Outcome) -> None:
    """The bar: at most 1 % false alarms, 10 % slower caught 99 times of 100, few undecided."""
    found = Counter[Outcome]()
    for trial in range(TRIALS):
        rng = np.random.default_rng(trial)
        one = measured(rng)
        found[judged(one, one, in_turns(rng, slower))["slowdown at 64x64"]] += 1
    decided = TRIALS - found[Outcome.INVALID]
    assert found[Outcome.INVALID] < 0.1 * TRIALS
    assert found[wanted] >= 0.99 * decided


def test_a_twentieth_of_a_decibel_on_every_image() -> None:
    found = Counter[Outcome]()
    for trial in range(TRIALS):
        rng = np.random.default_rng(trial)
        before = measured(rng)
        db = np.array([s.psnr_y_db for s in before.scores])
        now = measured(rng, psnr=db - 0.05 + rng.normal(0, 0.02, IMAGES))
        found[judged(now, before)["mean loss"]] += 1
    assert found[Outcome.FAIL] >= 0.99 * TRIALS


def test_a_gain_and_a_loss_that_nobody_sees_pass() -> None:
    before = measured(np.random.default_rng(0))
    db = np.array([s.psnr_y_db for s in before.scores])
    for change in (0.5, -0.02):
        scores = measured(np.random.default_rng(1), psnr=db + change).scores
        found = judged(replace(before, scores=scores), before)
        assert found["mean loss"] is Outcome.PASS


def test_a_loss_lost_in_the_noise_is_inconclusive() -> None:
    rng = np.random.default_rng(0)
    before = measured(rng)
    db = np.array([s.psnr_y_db for s in before.scores])
    found = judged(measured(rng, psnr=db + rng.normal(0, 0.5, IMAGES)), before)
    assert found["mean loss"] is Outcome.INVALID


@pytest.mark.parametrize("lost_db", [12.0, 0.8])
def test_one_image_of_a_hundred(lost_db: float) -> None:
    """Ruined, or with one tile that is."""
    before = measured(np.random.default_rng(0))
    scores = list(before.scores)
    scores[42] = replace(scores[42], metrics={"psnr_y": scores[42].psnr_y_db - lost_db})
    gates = regress(BaselineConfig(), [replace(before, scores=tuple(scores))], [before], Beside({}))
    worst = next(gate for gate in gates if gate.name == "worst loss")
    assert worst.outcome is Outcome.FAIL
    assert worst.reason == "on 42"


@pytest.mark.parametrize("channel", [0, 1, 2])
def test_one_channel_a_level_brighter(channel: int) -> None:
    before = measured(np.random.default_rng(0))
    shift = [0.1, 0.0, -0.1]
    shift[channel] += 1.0
    scores = tuple(replace(s, shift_rgb=(shift[0], shift[1], shift[2])) for s in before.scores)
    gates = regress(BaselineConfig(), [replace(before, scores=scores)], [before], Beside({}))
    tint = next(gate for gate in gates if gate.name == "new channel shift")
    assert tint.outcome is Outcome.FAIL
    assert tint.figure == pytest.approx(1.0)
    assert ("red", "green", "blue")[channel] in tint.reason


def test_recorded_latencies_of_another_machine_are_not_compared() -> None:
    rng = np.random.default_rng(0)
    one = measured(rng)
    other = replace(one, host=replace(HOST, id="b", cpu="another CPU"))
    gates = regress(BaselineConfig(), [one], [other], Beside({}))
    speed = next(gate for gate in gates if gate.name.startswith("slowdown"))
    assert speed.outcome is Outcome.INVALID
    assert "another machine (another CPU; now a CPU)" in speed.reason
    assert outcomes(gates)["mean loss"] is Outcome.PASS


def test_recorded_latencies_of_another_power_mode_are_not_compared() -> None:
    one = measured(np.random.default_rng(0))
    now, before = (replace(one, conditions={"power mode": mode}) for mode in ("15W", "MAXN"))
    for other, outcome in ((before, Outcome.INVALID), (now, Outcome.PASS)):
        gates = regress(BaselineConfig(), [now], [other], Beside({}))
        speed = next(gate for gate in gates if gate.name.startswith("slowdown"))
        assert speed.outcome is outcome
        assert ("settings: power mode MAXN, then 15W" in speed.reason) == (other is before)


@pytest.mark.parametrize(("slower", "wanted"), [(1.1, Outcome.INVALID), (1.4, Outcome.FAIL)])
def test_recorded_latencies_of_two_days_settle_only_what_is_large(
    slower: float, wanted: Outcome
) -> None:
    rng = np.random.default_rng(0)
    before = measured(rng)
    now = replace(before, latencies=(latency(samples(rng, 5.0 * slower, np.full(240, 1.05))),))
    assert judged(now, before)["slowdown at 64x64"] is wanted


def test_a_model_that_is_gone_and_images_that_are_others() -> None:
    before = measured(np.random.default_rng(0))
    assert outcomes(regress(BaselineConfig(), [], [before], Beside({}))) == {"there": Outcome.FAIL}
    fewer = replace(before, scores=before.scores[:-1])
    assert judged(fewer, before)["mean loss"] is Outcome.INVALID
    assert outcomes(regress(BaselineConfig(), [before], [], Beside({}))) == {
        "there": Outcome.INVALID
    }


def test_every_bound_can_be_lifted() -> None:
    names = [name for name in BaselineConfig.model_fields if name != "max_drift"]
    lifted = BaselineConfig.model_validate(dict.fromkeys(names, "off"))
    before = measured(np.random.default_rng(0))
    now = replace(measured(np.random.default_rng(1)), size_bytes=9000)
    gates = regress(lifted, [now], [before], Beside({}))
    assert {gate.name for gate in gates} == {"there"}


@pytest.mark.parametrize("images", [1, FEWEST_COMPARED - 1, FEWEST_COMPARED])
def test_few_images_do_not_show_that_nothing_is_lost(images: int) -> None:
    one = measured(np.random.default_rng(0))
    few = replace(one, scores=one.scores[:images])
    (found,) = (
        gate
        for gate in regress(BaselineConfig(), [few], [few], Beside({}))
        if gate.name == "mean loss"
    )
    enough = images == FEWEST_COMPARED
    assert found.outcome is (Outcome.PASS if enough else Outcome.INVALID)
    assert (f"at least {FEWEST_COMPARED} are needed to pass" in found.reason) != enough


def test_a_loss_over_the_bound_fails_on_few_images_too() -> None:
    one = measured(np.random.default_rng(0))
    before = replace(one, scores=one.scores[:3])
    scores = tuple(replace(s, metrics={"psnr_y": s.psnr_y_db - 0.1}) for s in before.scores)
    assert judged(replace(before, scores=scores), before)["mean loss"] is Outcome.FAIL
