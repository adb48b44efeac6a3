"""What a quantised candidate loses on held crops and what its floats cost, each measured once.

Everything measured is kept in two files, so that an interrupted search goes on where it was.
Shapes: N batch, C channels, H W low-res size, S scale.
"""

from __future__ import annotations

import json
import logging
import statistics
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack, closing
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from calibration.search import Loss
from mipkd.core.images import UNSEEN_DB, luma
from mipkd.core.records import Holdout
from pipeline.bench.latency import BenchSettings, compare
from targets.base import ByteArray, Session, Tuner, upscale

log = logging.getLogger(__name__)

_FLOOR = 255**2 / 10 ** (UNSEEN_DB / 10)  # the same as a mean squared error
_QUICK = 4  # a harm is measured on each fourth crop
_CLEARLY = 0.9  # of the time of a finer precision
_LEAST = 0.01  # of the whole: what is timed together costs at least that; less cannot be measured
_AS_FAST = 1.02  # of another's time: hardly to be told from it
_ALIKE = 12  # of operations that take the same time, this many are timed together
_AT_ONCE = 8  # candidates timed in turns

Planes = list[npt.NDArray[np.float32]]


class Crops:
    """The crops of a holdout, and what sessions make of them."""

    def __init__(self, held: Holdout, *, multiple: int) -> None:
        self._lr: ByteArray = np.load(held.lr)
        self._scale, self._multiple, self._photos = held.scale, multiple, held.photos
        self.truth = [self._inside(hr) for hr in np.load(held.hr)]

    def seen(self, session: Session, step: int = 1) -> Planes:
        """The luma of each `step`-th output."""
        return [
            self._inside(upscale(session, lr, scale=self._scale, multiple=self._multiple))
            for lr in self._lr[::step]
        ]

    def psnrs(self, session: Session) -> list[float]:
        """PSNR-Y of each crop in dB, at most `UNSEEN_DB`."""
        return [_psnr(y, hr) for y, hr in zip(self.seen(session), self.truth, strict=True)]

    def loss(self, before: Sequence[float], after: Sequence[float]) -> Loss:
        """PSNR-Y lost: mean over the photos, worst of the pages too."""
        drops = [one - other for one, other in zip(before, after, strict=True)]
        return Loss(statistics.fmean(drops[: self._photos]), max(drops))

    def _inside(self, image_HWC: ByteArray) -> npt.NDArray[np.float32]:
        edge = self._scale
        return luma(image_HWC)[edge:-edge, edge:-edge].astype(np.float32)


class Evaluator:
    """Losses and costs of a tuner's candidates."""

    def __init__(
        self,
        tuner: Tuner,
        held: Holdout,
        *,
        multiple: int,
        folder: Path,
    ) -> None:
        self.tuner, self.operations = tuner, tuner.operations()
        self._every = frozenset(op.name for op in self.operations)
        self._crops, self._multiple = Crops(held, multiple=multiple), multiple
        self._known = _Known(folder / "measured.jsonl")
        self._planes: dict[str, Planes] = {}
        self._fp32: list[float] = []
        self.rest = tuner.other_precisions[0]  # the precision of what stays float

    def hold_against(self, session: Session) -> None:
        """Make a session's quality, the target's own FP32, what losses are counted from."""
        self._fp32 = self._known("fp32", lambda: self._crops.psnrs(session))

    def settle_rest(self, size: tuple[int, int], settings: BenchSettings) -> None:
        """Compute floats in the fastest precision, a coarser one only if it is clearly faster.

        A CPU may offer 16 bits and be slower with them.
        """
        if len(self.tuner.other_precisions) == 1:
            return

        ms = self._by_rest(self.tuner.range_estimators[0], sorted(self._every), size, settings)
        for rest in self.tuner.other_precisions:
            if ms[rest] < _CLEARLY * ms[self.rest]:
                self.rest = rest
        log.info("floats in %s: %s", self.rest, _list_ms(ms))

    def refine_rest(
        self, ranges: str, floats: Iterable[str], size: tuple[int, int], settings: BenchSettings
    ) -> None:
        """Compute the floats of one candidate in the finest precision that takes no longer.

        With few floats a coarse one may bring no time and still lose quality.
        """
        finer = self.tuner.other_precisions[: self.tuner.other_precisions.index(self.rest)]
        if not finer:
            return
        ms = self._by_rest(ranges, sorted(floats), size, settings)
        as_fast = [rest for rest in finer if ms[rest] <= _AS_FAST * ms[self.rest]]
        self.rest = (*as_fast, self.rest)[0]
        log.info("these floats in %s: %s", self.rest, _list_ms(ms))

    def _by_rest(
        self, ranges: str, names: list[str], size: tuple[int, int], settings: BenchSettings
    ) -> dict[str, float]:
        """The median of one candidate in ms, its floats computed in each precision there is."""

        def measure() -> dict[str, float]:
            with ExitStack() as stack:
                sessions = {
                    rest: stack.enter_context(closing(self.tuner.session(ranges, names, rest)))
                    for rest in self.tuner.other_precisions
                }
                return self._time(sessions, size, settings)

        known: dict[str, float] = self._known(json.dumps(["rest", ranges, names, size]), measure)
        return known

    def loss(self, ranges: str, floats: Iterable[str]) -> Loss:
        """PSNR-Y below FP32: mean over the photos, worst of the pages too."""
        names = sorted(floats)

        def measure() -> dict[str, float]:
            with closing(self._session(ranges, names)) as session:
                found = self._crops.psnrs(session)
            loss = self._crops.loss(self._fp32, found)
            log.info(
                "%d of %d operations float: %.4f dB lost, worst crop %.3f",
                len(names), len(self._every), loss.mean_db, loss.worst_db,
            )  # fmt: skip
            return asdict(loss)

        return Loss(**self._known(json.dumps(["loss", ranges, self.rest, names]), measure))

    def harm(self, ranges: str, name: str) -> Loss:
        """What one operation alone in INT8 adds to the error: expected loss over some crops.

        From the power of the difference it makes, not from PSNR: its chance agreement with the
        truth would hide it.
        """

        def measure() -> dict[str, float]:
            plain = self._plain(ranges)
            with closing(self._session(ranges, self._every - {name})) as session:
                planes = self._crops.seen(session, _QUICK)
            truth = self._crops.truth[::_QUICK]
            losses = [
                10 * float(np.log10(1 + _mse(y, p) / max(_mse(p, hr), _FLOOR)))
                for y, p, hr in zip(planes, plain, truth, strict=True)
            ]
            return asdict(Loss(statistics.fmean(losses), max(losses)))

        return Loss(**self._known(json.dumps(["harm", ranges, self.rest, name]), measure))

    def costs_ms(
        self, ranges: str, size: tuple[int, int], settings: BenchSettings
    ) -> tuple[float, dict[str, float]]:
        """The median of everything in INT8, and what each operation takes longer as a float.

        Operations that are alike are timed together, some of them as floats against none.
        """
        alike: dict[str, list[str]] = {}
        for op in self.operations:
            alike.setdefault(op.alike, []).append(op.name)
        base, costs = [], {}
        kinds = list(alike.items())
        for start in range(0, len(kinds), _AT_ONCE):
            some = kinds[start : start + _AT_ONCE]
            found = self._medians_ms(
                ranges, {kind: names[:_ALIKE] for kind, names in some}, size, settings
            )
            base.append(found[""])
            for kind, names in some:
                extra = max(found[kind] - found[""], _LEAST * found[""])
                costs.update(dict.fromkeys(names, extra / len(names[:_ALIKE])))
        return statistics.median(base), costs

    def base_ms(self, ranges: str, size: tuple[int, int], settings: BenchSettings) -> float:
        """The median of everything in INT8."""
        return self._medians_ms(ranges, {}, size, settings)[""]

    def _medians_ms(
        self,
        ranges: str,
        candidates: dict[str, list[str]],
        size: tuple[int, int],
        settings: BenchSettings,
    ) -> dict[str, float]:
        """Of candidates by name, and of everything in INT8 under ""."""

        def measure() -> dict[str, float]:
            with ExitStack() as stack:
                sessions = {
                    name: stack.enter_context(closing(self._session(ranges, floats)))
                    for name, floats in {"": list[str](), **candidates}.items()
                }
                return self._time(sessions, size, settings)

        key = json.dumps(["ms", ranges, self.rest, sorted(candidates.items()), size])
        known: dict[str, float] = self._known(key, measure)
        return known

    def _time(
        self, sessions: dict[str, Session], size: tuple[int, int], settings: BenchSettings
    ) -> dict[str, float]:
        multiples = dict.fromkeys(sessions, self._multiple)
        found = compare(sessions, size, settings, multiples=multiples)
        return {n: statistics.median(one.samples_s) * 1e3 for n, one in found.items()}

    def _session(self, ranges: str, floats: Iterable[str]) -> Session:
        return self.tuner.session(ranges, sorted(floats), self.rest)

    def _plain(self, ranges: str) -> Planes:
        """Outputs with no operation in INT8, for some crops."""
        if ranges not in self._planes:
            with closing(self._session(ranges, self._every)) as session:
                self._planes[ranges] = self._crops.seen(session, _QUICK)
        return self._planes[ranges]


class _Known:
    """Figures by a key, in a file of JSON lines."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._found = dict(_whole_lines(file))

    def __call__(self, key: str, measure: Callable[[], Any]) -> Any:
        if key not in self._found:
            self._found[key] = measure()
            with self._file.open("a") as kept:
                kept.write(json.dumps([key, self._found[key]]) + "\n")
        return self._found[key]


def _whole_lines(file: Path) -> Iterable[tuple[str, Any]]:
    """A search that was killed may have left half of the last line."""
    if not file.is_file():
        return
    for line in file.read_text().splitlines():
        try:
            key, value = json.loads(line)
        except ValueError:
            continue
        yield key, value


def _list_ms(ms: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:.3g} ms" for name, value in ms.items())


def _mse(a: npt.NDArray[np.float32], b: npt.NDArray[np.float32]) -> float:
    return float(np.mean((a - b) ** 2, dtype=np.float64))


def _psnr(a: npt.NDArray[np.float32], b: npt.NDArray[np.float32]) -> float:
    return 10 * float(np.log10(255**2 / max(_mse(a, b), _FLOOR)))
