"""Settle on images what a checkpoint's tensors cannot tell: range, residual scale, mean.

A layout's convention is a guess. The images confirm it, or another guess upscales them better.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mipkd.archs.base import SRNet, upscale_image
from mipkd.core.errors import MissingError
from mipkd.core.images import (
    crop_to_multiple,
    downscale,
    psnr_y,
    read_rgb,
    resize_bicubic,
)
from mipkd.core.samples import sample_photos
from mipkd.distill.data import Pair, probe_images
from mipkd.distill.pair_reader import Degrade

log = logging.getLogger(__name__)

ASSUMED = "assumed"  # begins what is known from a layout's convention alone
_SIZE = 48  # LR pixels a side: a probe is quick
_HOPELESS_DB = 3.0  # below the best on the first image: not tried on the others
_LEAD_DB = 0.05  # by which another guess must be better than the layout's
_LEAD_OF_BAD_DB = 1.0  # the same where bicubic beats them all


@dataclass(frozen=True)
class ProbeImages:
    """Small images to try a net on."""

    source: str  # where they came from, in words
    pairs: Sequence[Pair]


Probe = Callable[[int], ProbeImages]  # by scale


@dataclass(frozen=True)
class TeacherQuality:
    """Mean PSNR-Y of a net and of bicubic on the same images."""

    teacher_db: float
    bicubic_db: float
    images: int  # 0: there were none, and nothing is known
    source: str


def choose_photos(photos: Path | None, tests: Path | None, *, scale: int) -> ProbeImages:
    """Images to settle facts on: training photos, ours where there are none.

    Test images only where the sample photos are not installed: nothing is chosen on what is
    reported.
    """
    if photos:
        return read_centres(photos, scale=scale)
    try:
        files = sample_photos()
    except MissingError:
        return read_centres(tests, scale=scale) if tests else ProbeImages("no folder", ())
    return ProbeImages("the sample photos", [_cut_sample(file, scale) for file in files[::2]])


def read_centres(
    folder: Path, *, scale: int, size: int = _SIZE, degrade: Degrade | None = None
) -> ProbeImages:
    """The middle of a few images of a folder, at most `size` LR pixels a side."""
    found = probe_images(folder, scale=scale, degrade=degrade)
    pairs = [_cut_centre(pair, size) for pair in found]
    return ProbeImages(str(folder), pairs)


def _cut_centre(pair: Pair, size: int) -> Pair:
    name, lr_HWC, hr_HWC = pair
    scale = hr_HWC.shape[0] // lr_HWC.shape[0]
    high, wide = (min(size, side) for side in lr_HWC.shape[:2])
    top, left = (lr_HWC.shape[0] - high) // 2, (lr_HWC.shape[1] - wide) // 2
    lr = lr_HWC[top : top + high, left : left + wide]
    hr = hr_HWC[top * scale : (top + high) * scale, left * scale : (left + wide) * scale]
    return name, np.ascontiguousarray(lr), np.ascontiguousarray(hr)


def _cut_sample(file: Path, scale: int) -> Pair:
    photo = read_rgb(file)
    side = min(_SIZE * scale, *photo.shape[:2])
    top, left = ((length - side) // 2 for length in photo.shape[:2])
    hr_HWC = crop_to_multiple(photo[top : top + side, left : left + side], scale)
    return file.stem, downscale(hr_HWC, scale), np.ascontiguousarray(hr_HWC)


def measure_quality(net: SRNet, images: ProbeImages) -> TeacherQuality:
    """The net beside bicubic."""
    return TeacherQuality(
        teacher_db=_mean([_score(net, pair) for pair in images.pairs]),
        bicubic_db=_mean([_score_bicubic(pair) for pair in images.pairs]),
        images=len(images.pairs),
        source=images.source,
    )


def is_open(settled: Mapping[str, str]) -> bool:
    """Whether a fact is unknown, or only assumed."""
    return any(how == "unknown" or how.startswith(ASSUMED) for how in settled.values())


def settle(
    guesses: Sequence[Any],
    settled: Mapping[str, str],
    make: Callable[[Any], SRNet],
    images: ProbeImages | None,
) -> tuple[Any, dict[str, str]]:
    """The hyper-parameters among `guesses` that upscale the images best, and how each fact is
    known now. The first is the layout's own; what it assumes stays unless another is clearly
    better."""
    own = guesses[0]
    open_facts = [fact for fact, how in settled.items() if is_open({fact: how})]
    if not open_facts or len(guesses) == 1:
        return own, dict(settled)
    if not images or not images.pairs:
        guessed = [f for f in open_facts if settled[f] == "unknown"]
        if guessed:
            log.warning("no images to probe: guessing what the checkpoint does not tell")
        return own, {**settled, **dict.fromkeys(guessed, "guess: no images to probe")}
    tried = _score_guesses(guesses, make, images.pairs)
    bicubic_db = _mean([_score_bicubic(pair) for pair in images.pairs])
    best = max(tried, key=lambda guess: tried[guess])
    suits = tried[best] > bicubic_db
    assumed = [fact for fact in open_facts if settled[fact] != "unknown"]
    usual = [g for g in tried if all(getattr(g, f) == getattr(own, f) for f in assumed)]
    best_usual = max(usual, key=lambda guess: tried[guess], default=best)
    if tried[best] < tried[best_usual] + (_LEAD_DB if suits else _LEAD_OF_BAD_DB):
        best = best_usual
    figures = _describe(best, tried, bicubic_db, images)
    if not suits:
        log.warning("no known setting suits this checkpoint: the best %s", figures)
    known = {f: _say(f, settled[f], own, best, figures, suits=suits) for f in open_facts}
    return best, {**settled, **known}


def _score_guesses(
    guesses: Sequence[Any], make: Callable[[Any], SRNet], pairs: Sequence[Pair]
) -> dict[Any, float]:
    """Mean PSNR-Y of each guess but those that are so wrong that the first image tells."""
    first = {guess: _score(make(guess), pairs[0]) for guess in guesses}
    hopeless = max(first.values()) - _HOPELESS_DB
    found = {}
    for guess in (one for one in guesses if first[one] >= hopeless):
        net = make(guess)
        found[guess] = _mean([first[guess], *(_score(net, pair) for pair in pairs[1:])])
    return found


def _describe(best: Any, tried: Mapping[Any, float], bicubic_db: float, images: ProbeImages) -> str:
    others = [db for guess, db in tried.items() if guess != best]
    second = (
        f"against {max(others):.2f}" if others else f"others {_HOPELESS_DB:.0f} dB and more worse"
    )
    return (
        f"on {len(images.pairs)} images of {images.source}: {tried[best]:.2f} dB, {second}, "
        f"bicubic {bicubic_db:.2f}"
    )


def _say(fact: str, before: str, own: Any, best: Any, figures: str, *, suits: bool) -> str:
    """How a fact is known after a probe."""
    if before == "unknown":
        return f"probe {figures}"
    if getattr(best, fact) == getattr(own, fact):
        return f"{before}; {'confirmed' if suits else 'not confirmed'} {figures}"
    return f"probe {figures}; {getattr(own, fact)}, {before}, was refused"


def _score(net: SRNet, pair: Pair) -> float:
    _, lr_HWC, hr_HWC = pair
    sr_HWC = upscale_image(net, lr_HWC)
    return psnr_y(sr_HWC, hr_HWC, border=net.scale)


def _score_bicubic(pair: Pair) -> float:
    _, lr_HWC, hr_HWC = pair
    height, width = hr_HWC.shape[:2]
    sr_HWC = resize_bicubic(lr_HWC, (height, width))
    return psnr_y(sr_HWC, hr_HWC, border=height // lr_HWC.shape[0])


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if values else 0.0
