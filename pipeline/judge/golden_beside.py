"""Gates on what two bundles' models make of the baseline's golden images here.

Recorded figures may be wrong, on either side: these are computed from pixels made on this machine.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from mipkd.core.evidence import Gate, Outcome
from mipkd.core.images import UNSEEN_DB, ByteArray, psnr_y, read_rgb, shift_rgb
from mipkd.core.precision import FLOATS, executed_precision
from pipeline.bench.differences import COLOURS, place_of_worst, tile_errors
from pipeline.bench.pixels import output_file
from pipeline.bundle.golden import GOLDEN, HR, LR, names_in
from pipeline.bundle.manifest import read
from pipeline.bundle.replay import Replayed, replay
from pipeline.judge.bounds import Bound
from pipeline.judge.regression import BaselineConfig
from pipeline.limits import LimitsConfig

_MOST_TILE_DB = 6.0  # twice the error of the baseline's own tile
_UNSEEN_MSE = 255**2 / 10 ** (UNSEEN_DB / 10)  # below it nobody sees a difference


@dataclass(frozen=True)
class _Image:
    """The truth of one golden image, and what both made of it."""

    name: str
    hr: ByteArray
    old: ByteArray
    new: ByteArray


def judge_beside(
    config: BaselineConfig, new: Path, old: Path, limits: LimitsConfig
) -> Iterator[Gate]:
    """The gates of each model that both have and that runs here."""
    inputs, truths = old / GOLDEN / LR, old / GOLDEN / HR
    with TemporaryDirectory() as folder:
        by_bundle = [
            {
                (one.model.target, one.model.precision): one
                for one in replay(
                    bundle, read(bundle), [], Path(folder) / side, inputs=inputs, limits=limits
                )
            }
            for side, bundle in (("old", old), ("new", new))
        ]
        before, now = by_bundle
        for key in (key for key in before if key in now):
            yield from _judge_model(config, " ".join(key), before[key], now[key], truths)


def _judge_model(
    config: BaselineConfig, name: str, before: Replayed, now: Replayed, truths: Path
) -> Iterator[Gate]:
    if now.failed:
        yield Gate("beside", name, Outcome.FAIL, None, 0.0, "", now.failed)
    if before.outputs is None or now.outputs is None:
        return
    images = [
        _Image(
            image,
            read_rgb(output_file(truths, image)),
            read_rgb(output_file(before.outputs, image)),
            read_rgb(output_file(now.outputs, image)),
        )
        for image in names_in(truths)
    ]
    if images:
        yield from _judge_images(config, name, images, before.model.scale)
    then, here = (executed_precision(one.kernels) for one in (before, now))
    if then not in FLOATS and then and here in FLOATS:
        why = f"the baseline runs in {then} here, the bundle in {here}"
        yield Gate("runs in", name, Outcome.FAIL, None, 0.0, "", why)
    if before.size_bytes:
        growth = now.size_bytes / before.size_bytes
        why = f"{now.size_bytes / 1e6:.2f} MB, {before.size_bytes / 1e6:.2f} before"
        yield from _bounded("size of the files", name, growth, config.max_growth, "x", why)


def _judge_images(
    config: BaselineConfig, name: str, images: list[_Image], scale: int
) -> Iterator[Gate]:
    lost = {
        one.name: min(UNSEEN_DB, psnr_y(one.old, one.hr, border=scale))
        - min(UNSEEN_DB, psnr_y(one.new, one.hr, border=scale))
        for one in images
    }
    worst = max(lost, key=lambda image: lost[image])
    on = f"on {worst} of {len(images)} images, from the pixels made here"
    yield from _bounded("worst loss here", name, lost[worst], config.max_worst_loss_db, "dB", on)
    shifts = np.mean([shift_rgb(one.new, one.old, border=0) for one in images], axis=0)
    most = int(np.abs(shifts).argmax())
    why = f"{COLOURS[most]} {shifts[most]:+.2f}, mean of {len(images)} images"
    shift = float(abs(shifts[most]))
    yield from _bounded(
        "new channel shift here", name, shift, config.max_channel_shift, "levels", why
    )
    tile_db, place = max(_worst_tile(one) for one in images)
    yield from _bounded("worst tile here", name, tile_db, _MOST_TILE_DB, "dB", f"lost in {place}")


def _worst_tile(one: _Image) -> tuple[float, str]:
    """The most that a tile lost, in dB, and which."""
    before, now = (tile_errors(sr, one.hr) + _UNSEEN_MSE for sr in (one.old, one.new))
    ratios = now / before
    return 10 * math.log10(ratios.max()), place_of_worst(one.name, ratios)


def _bounded(
    what: str, name: str, figure: float, bound: Bound, unit: str, why: str
) -> Iterator[Gate]:
    if bound != "off":
        outcome = Outcome.PASS if figure <= bound else Outcome.FAIL
        yield Gate(what, name, outcome, figure, bound, unit, why)
