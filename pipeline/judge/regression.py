"""Whether a bundle is worse than its baseline: image by image, and beside it where that can be.

Quality is paired by image. Latency can be trusted only where both ran in turns in one go; figures
of two days on one machine drift by more than what is to be found, so that they settle only what is
beyond `max_drift`.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from mipkd.core.evidence import Gate, Outcome
from mipkd.core.measurement import Latency, Measurement
from pipeline.bench.board import describe_changes
from pipeline.bench.comparisons import (
    Size,
    channel_shift,
    drop_by_image,
    students,
    subject,
    valid_latency,
)
from pipeline.bench.host import is_emulated
from pipeline.bench.latency import BenchSettings
from pipeline.bench.models import time_models
from pipeline.bench.stats import Estimate, mean_over_images, ratio_of_medians
from pipeline.bundle.manifest import read
from pipeline.judge.bounds import Bound
from pipeline.judge.means import SURE
from targets.base import find

Pair = tuple[Latency, Latency]  # the baseline's, ours
Timed = Mapping[tuple[str, str], Sequence[Pair]]  # by target and precision, one a size

FEWEST_COMPARED = 10  # more than a run asks for: what replaces a model that is shipped is compared
_TAIL = 0.05  # the share of images that lose most
_OLD = "baseline"  # the role of its models among those measured in turns


class BaselineConfig(BaseModel):
    """How much worse than its baseline a bundle may be; "off" lifts a bound.

    0.05 dB is what nobody has been shown to see; a picture that is broken loses whole decibels.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    max_loss_db: Bound = 0.05  # PSNR-Y, mean over the images; the interval must lie below it
    max_tail_loss_db: Bound = 0.2  # mean over the 5 % of images that lose most
    max_worst_loss_db: Bound = 0.5  # on one image
    max_channel_shift: Bound = 0.25  # levels a channel is brighter or darker, mean
    max_slowdown: Bound = 1.05  # of the median latency; told apart from chance besides
    max_drift: float = Field(1.15, ge=1)  # as far as two measurements of one thing may be apart
    max_growth: Bound = 1.1  # of the model's size


@dataclass(frozen=True)
class Beside:
    """Latencies of both, measured in turns; or why they were not."""

    pairs: Timed
    why_not: str = ""
    invalid: Mapping[tuple[str, str], str] | None = None


def regress(
    config: BaselineConfig,
    new: Sequence[Measurement],
    old: Sequence[Measurement],
    beside: Beside,
) -> tuple[Gate, ...]:
    """A gate for each thing that could be worse, of each model of the baseline."""
    ours = {(m.target, m.precision): m for m in students(new)}
    gates: list[Gate] = []
    for before in students(old):
        now = ours.get((before.target, before.precision))
        if now is None:
            why = "the baseline has it, the bundle has not"
            gates.append(Gate("there", subject(before), Outcome.FAIL, None, 0.0, "", why))
            continue
        gates += [*_quality(config, now, before), *_size(config, now, before)]
        gates += _speed(config, now, before, beside)
    if not gates:
        why = "the baseline has no model"
        gates.append(Gate("there", "student", Outcome.INVALID, None, 0.0, "", why))
    return tuple(gates)


def time_in_turns(new: Path, old: Path, settings: BenchSettings) -> Beside:
    """Both bundles' models, those of a target in turns, on this machine."""
    theirs = {(m.target, m.precision): m for m in read(old).models}
    pairs: dict[tuple[str, str], list[Pair]] = {}
    invalid: dict[tuple[str, str], str] = {}
    both = [m for m in read(new).models if (m.target, m.precision) in theirs]
    for name in dict.fromkeys(m.target for m in both):
        target = find(name)
        if target.why_not() or target.simulated or is_emulated():
            continue
        mine = [m for m in both if m.target == name]
        builts = [m.built(new) for m in mine]
        builts += [replace(theirs[name, m.precision].built(old), role=_OLD) for m in mine]
        found = time_models(target, builts, settings)
        for ours, before in zip(found[: len(mine)], found[len(mine) :], strict=True):
            key = (name, ours.precision)
            pairs[key] = list(zip(before.latencies, ours.latencies, strict=True))
            if ours.invalid_because:
                invalid[key] = ours.invalid_because
    return Beside(pairs, invalid=invalid)


def _quality(config: BaselineConfig, now: Measurement, before: Measurement) -> Iterator[Gate]:
    if not before.scores:
        return
    lost = drop_by_image(now, before)
    if not lost or not all(math.isfinite(db) for db in lost.values()):
        why = "not scored on the images of the baseline"
        yield Gate("mean loss", subject(now), Outcome.INVALID, None, 0.0, "dB", why)
        return
    yield from _mean_loss(config.max_loss_db, now, list(lost.values()))
    worst = sorted(lost, key=lambda image: -lost[image])
    tail = worst[: max(1, round(_TAIL * len(worst)))]
    for name, bound, images in (
        ("loss of the worst 5 %", config.max_tail_loss_db, tail),
        ("worst loss", config.max_worst_loss_db, worst[:1]),
    ):
        if bound != "off":
            figure = statistics.fmean(lost[image] for image in images)
            why = f"on {worst[0]}" if len(images) == 1 else f"{len(images)} of {len(lost)} images"
            yield _judge_bound(name, now, figure, bound, "dB", why)
    found = channel_shift(now, before)
    if found and config.max_channel_shift != "off":
        figure, words = found
        why = f"{words}, mean of all images"
        yield _judge_bound(
            "new channel shift", now, figure, config.max_channel_shift, "levels", why
        )


def _mean_loss(bound: Bound, now: Measurement, lost: Sequence[float]) -> Iterator[Gate]:
    """Non-inferiority: the interval must lie below the margin. One that reaches over it and tells
    of a loss is FAIL, one that may as well be none is inconclusive."""
    if bound == "off":
        return
    found, images = mean_over_images(lost, level=SURE), len(lost)
    why = f"{100 * SURE:g} % interval {found.low:+.4f} to {found.high:+.4f}, {images} images"
    outcome = Outcome.PASS if found.high < bound else Outcome.FAIL
    if images < FEWEST_COMPARED:
        why = f"{images} images, at least {FEWEST_COMPARED} are needed to pass"
    unsure = images < FEWEST_COMPARED or (outcome is Outcome.FAIL and found.low <= 0)
    if unsure and found.value < bound:
        outcome, why = Outcome.INVALID, f"inconclusive: {why}"
    yield Gate("mean loss", subject(now), outcome, found.value, bound, "dB", why)


def _size(config: BaselineConfig, now: Measurement, before: Measurement) -> Iterator[Gate]:
    if config.max_growth != "off" and before.size_bytes and now.size_bytes:
        growth = now.size_bytes / before.size_bytes
        why = f"{now.size_bytes / 1e6:.2f} MB, {before.size_bytes / 1e6:.2f} before"
        yield _judge_bound("size", now, growth, config.max_growth, "x", why)


def _speed(
    config: BaselineConfig, now: Measurement, before: Measurement, beside: Beside
) -> Iterator[Gate]:
    if config.max_slowdown == "off" or not before.latencies or now.simulated:
        return
    key = (now.target, now.precision)
    if key in beside.pairs:
        doubt = (beside.invalid or {}).get(key, "")
        for theirs, ours in beside.pairs[key]:
            why = doubt or ours.invalid_because or theirs.invalid_because
            ratio = None if why else ratio_of_medians(ours.samples_s, theirs.samples_s)
            yield _slowdown(config, now, ours.size, ratio, why or "in turns", sure=True)
        return
    apart = _hosts(now, before)
    for latency in before.latencies:
        there, here = (valid_latency(m, latency.size) for m in (before, now))
        ratio, why = None, apart or "no valid latency of both"
        if there and here and not apart:
            ratio = ratio_of_medians(here.samples_s, there.samples_s)
            why = f"as recorded: {beside.why_not or 'it does not run here'}"
        yield _slowdown(config, now, latency.size, ratio, why, sure=False)


def _slowdown(
    config: BaselineConfig,
    now: Measurement,
    size: Size,
    ratio: Estimate | None,
    why: str,
    *,
    sure: bool,
) -> Gate:
    name, bound = f"slowdown at {size[1]}x{size[0]}", config.max_slowdown
    assert bound != "off"
    if ratio is None:
        return Gate(name, subject(now), Outcome.INVALID, None, bound, "x", why)
    reason = f"95 % interval {ratio.low:.3f} to {ratio.high:.3f}, {why}"
    slower = ratio.value > bound and ratio.low > 1
    outcome = Outcome.FAIL if slower else Outcome.PASS
    if slower and not sure and ratio.value <= config.max_drift:
        outcome = Outcome.INVALID
        reason += f"; two days may be apart by {config.max_drift:g}: give the baseline as a bundle"
    elif not slower and ratio.value > bound:
        outcome, reason = Outcome.INVALID, f"inconclusive: {reason}"
    return Gate(name, subject(now), outcome, ratio.value, bound, "x", reason)


def _hosts(now: Measurement, before: Measurement) -> str:
    """Why recorded latencies of two machines say nothing; "" for one machine, set as it was."""
    if now.host and before.host and now.host.id == before.host.id:
        changed = describe_changes(before.conditions, now.conditions)
        hint = "give the baseline as a bundle"
        return f"measured under other settings ({changed}): {hint}" if changed else ""
    there, here = (m.host.cpu if m.host else "an unknown machine" for m in (before, now))
    return f"measured on another machine ({there}; now {here}): give the baseline as a bundle"


def _judge_bound(
    name: str, now: Measurement, figure: float, bound: float, unit: str, why: str
) -> Gate:
    outcome = Outcome.PASS if figure <= bound else Outcome.FAIL
    return Gate(name, subject(now), outcome, figure, bound, unit, why)
