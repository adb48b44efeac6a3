"""Replay a bundle's golden images on this machine, and compare with what came out before."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mipkd.core.errors import MipkdError, MissingError, UnsupportedError
from mipkd.core.images import psnr_of, read_rgb
from mipkd.core.precision import Tolerance
from mipkd.core.records import Built
from pipeline.bench.models import make_pixels
from pipeline.bundle.manifest import Manifest, Model, Problem, is_damaged, is_golden_damaged
from targets.base import ByteArray, find


@dataclass(frozen=True)
class Replayed:
    """What came of one model; figures only where it ran."""

    model: Model
    why_not: str = ""  # it could not be replayed here
    failed: str = ""  # it should have run here and did not
    images: int = 0
    levels: int = 0  # the largest difference
    share: float = 0.0  # of values that differ
    psnr_db: float = 100.0  # 100 stands for equal
    simulated: bool = False  # here

    @property
    def tolerance(self) -> Tolerance:
        """The bound that applies."""
        target, kinds = find(self.model.target), {self.model.precision, self.model.executes} - {""}
        return max((target.tolerance(kind) for kind in kinds), key=lambda bound: bound.levels)

    @property
    def well(self) -> bool:
        """Whether nothing is wrong with it as far as this machine can tell."""
        if self.failed or self.why_not:
            return not self.failed
        bound = self.tolerance
        return self.levels <= bound.levels and self.psnr_db >= bound.psnr_db


def replay(bundle: Path, manifest: Manifest, wrong: list[Problem]) -> Iterator[Replayed]:
    """Each model in turn; one whose files are damaged is not opened."""
    for model in manifest.models:
        if is_damaged(model, wrong):
            yield Replayed(model, why_not="its files are not those of the bundle")
            continue
        if is_golden_damaged(model, wrong):
            yield Replayed(model, why_not="its golden images are not those of the bundle")
            continue
        try:
            yield _replay_model(bundle, model)
        except (MissingError, UnsupportedError) as error:
            yield Replayed(model, why_not=error.what)
        except Exception as error:  # one model's failure is a row
            what = error.what if isinstance(error, MipkdError) else f"{error}".strip()
            yield Replayed(model, failed=what or type(error).__name__)


def _replay_model(bundle: Path, model: Model) -> Replayed:
    target = find(model.target)
    if reason := target.why_not():
        return Replayed(model, why_not=reason)
    golden = sorted((bundle / "golden" / model.name).glob("*.png"))
    if not target.makes_pixels or not golden:
        return Replayed(model, why_not="the bundle has no golden outputs of it")
    inputs = ((file.stem, read_rgb(bundle / "golden" / "lr" / file.name)) for file in golden)
    compared = _Compared({file.stem: file for file in golden})
    make_pixels(target, [model.built(bundle)], inputs, compared.take)
    return compared.of(model, simulated=target.simulated)


class _Compared:
    """Takes outputs and keeps how far they are from the golden ones."""

    def __init__(self, golden: dict[str, Path]) -> None:
        self._golden = golden
        self._levels = self._differing = self._values = 0
        self._squares = 0.0

    def take(self, built: Built, image: str, sr_HWC: ByteArray) -> None:
        """One output."""
        wanted = read_rgb(self._golden[image])
        if wanted.shape != sr_HWC.shape:
            raise MipkdError(f"{image}: output of {sr_HWC.shape}, golden one of {wanted.shape}")
        apart = np.abs(sr_HWC.astype(np.int16) - wanted)
        self._levels = max(self._levels, int(apart.max()))
        self._differing += int(np.count_nonzero(apart))
        self._values += apart.size
        self._squares += float(np.square(apart, dtype=np.float64).sum())

    def of(self, model: Model, *, simulated: bool) -> Replayed:
        """All of them together."""
        return Replayed(
            model,
            images=len(self._golden),
            levels=self._levels,
            share=self._differing / self._values,
            psnr_db=psnr_of(self._squares / self._values),
            simulated=simulated,
        )
