"""What a quantised candidate loses on held crops and how long it takes, each measured once.

Everything measured is kept in two files, so that an interrupted search goes on where it was.
Shapes: N batch, C channels, H W low-res size, S scale.
"""

from __future__ import annotations

import json
import logging
import math
import statistics
from collections.abc import Callable, Collection, Iterable, Sequence
from contextlib import ExitStack, closing
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from calibration.search import Harms, Loss, float_share
from mipkd.core.errors import NotFiniteError, StageError
from mipkd.core.images import ASSUMED_TRUTH_DB, UNSEEN_DB, luma, mse_of
from mipkd.core.records import Holdout
from pipeline.bench.latency import BenchSettings, compare
from targets._images import upscale
from targets.base import ByteArray, Session, Tuner

log = logging.getLogger(__name__)

_FLOOR = mse_of(UNSEEN_DB)
_FOR_HARMS = 10  # crops of photos on which harms are measured, beside the pages
_CLEARLY = 0.9  # of the time of a finer precision
_CLOSE = 0.1  # a ratio so near to that is measured again, longer
_FEW = 0.02  # of the work: so little may as well be computed in the finest precision
_SURE = 0.95  # one side of what the mean over another set may be higher
_SET = 14  # images of a usual test set, for which a bound is to hold

Planes = list[npt.NDArray[np.float32]]


class Crops:
    """The crops of a holdout to choose on, or those that confirm, as sessions upscale them."""

    def __init__(self, held: Holdout, *, multiple: int, confirming: bool = False) -> None:
        lr, hr = (held.confirming_lr, held.confirming_hr) if confirming else (held.lr, held.hr)
        assert lr, "a holdout is made anew where its stage changed"
        assert hr, "both are made together"
        self._lr: ByteArray = np.load(lr)
        self._scale, self._multiple, self._photos = held.scale, multiple, held.photos
        self.truth = [self._inside(hr) for hr in np.load(hr)]
        # A net's image is not the truth: as far from it as nets are, the same noise costs what it
        # would on photos.
        self._base = 0.0 if held.against == "truth" else mse_of(ASSUMED_TRUTH_DB)

    @property
    def few_photos(self) -> int:
        """The photos' crops on which harms are measured."""
        return min(self._photos, _FOR_HARMS)

    def few(self) -> list[int]:
        """The crops on which harms are measured: some of the photos', all pages."""
        return [*range(self.few_photos), *range(self._photos, len(self._lr))]

    def errors(self, session: Session, some: Sequence[int] | None = None) -> list[float]:
        """The mean squared error of each crop, or of some, at least what nobody sees."""
        numbers = range(len(self._lr)) if some is None else some
        return [self._error(session, n) for n in numbers]

    def loss(self, before: Sequence[float], after: Sequence[float]) -> Loss:
        """PSNR-Y lost between two lists of errors: mean over the photos, worst of the pages too."""
        one, other = np.array(before), np.array(after)
        drops = 10 * np.log10(other / one)
        of_photos = drops[: self._photos].tolist()
        added = float((other - one)[: self._photos].mean())
        return Loss(statistics.fmean(of_photos), float(drops.max()), _margin(of_photos), added)

    def _error(self, session: Session, number: int) -> float:
        """A candidate that overflows is as bad as one can be."""
        try:
            apart = _mse(self._upscale(session, number), self.truth[number])
            return max(apart + self._base, _FLOOR)
        except NotFiniteError:
            return 255.0**2

    def _upscale(self, session: Session, number: int) -> npt.NDArray[np.float32]:
        lr_HWC = self._lr[number]
        return self._inside(upscale(session, lr_HWC, scale=self._scale, multiple=self._multiple))

    def _inside(self, image_HWC: ByteArray) -> npt.NDArray[np.float32]:
        edge = self._scale
        return luma(image_HWC)[edge:-edge, edge:-edge].astype(np.float32)


class Evaluator:
    """Losses and times of a tuner's candidates."""

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
        self._confirming = Crops(held, multiple=multiple, confirming=True)
        self._known = _Known(folder / "measured.jsonl")
        self._fp32: dict[Crops, list[float]] = {}
        self.rest = tuner.other_precisions[0]  # the precision of what stays float

    def hold_against(self, session: Session) -> None:
        """Make a session's quality, the target's own FP32, what losses are counted from."""
        for name, crops in (("fp32", self._crops), ("fp32 confirming", self._confirming)):
            self._fp32[crops] = self._known(name, partial(crops.errors, session))

    def settle_rest(self, size: tuple[int, int], settings: BenchSettings) -> None:
        """Compute floats in the fastest precision, a coarser one only if it is clearly faster.

        A CPU may offer 16 bits and be slower with them.
        """
        if len(self.tuner.other_precisions) == 1:
            return
        ms = self._by_rest(size, settings)
        for rest in self.tuner.other_precisions:
            if ms[rest] < _CLEARLY * ms[self.rest]:
                self.rest = rest
        log.info("floats in %s: %s", self.rest, _list_ms(ms))

    def refine_rest(self, floats: Collection[str]) -> None:
        """Compute floats that hardly weigh anything in the finest precision there is.

        A coarse one would bring no time and still lose quality.
        """
        if float_share(self.operations, floats) <= _FEW:
            self.rest = self.tuner.other_precisions[0]

    def _by_rest(self, size: tuple[int, int], settings: BenchSettings) -> dict[str, float]:
        """The median in ms with everything float, in each precision there is."""
        ranges, names = self.tuner.range_estimators[0], sorted(self._every)

        def measure() -> dict[str, float]:
            with ExitStack() as stack:
                sessions = {
                    rest: stack.enter_context(closing(self.tuner.session(ranges, names, rest)))
                    for rest in self.tuner.other_precisions
                }
                ms = self._time(sessions, size, settings)
                least, most = min(ms.values()), max(ms.values())
                if abs(least / most - _CLEARLY) < _CLOSE:
                    longer = replace(settings, min_time_s=4 * settings.min_time_s)
                    ms = self._time(sessions, size, longer)
                return ms

        known: dict[str, float] = self._known(json.dumps(["rest", ranges, size]), measure)
        return known

    def loss(self, ranges: str, floats: Iterable[str]) -> Loss:
        """PSNR-Y below FP32: mean over the photos, worst of the pages too."""
        return self._loss("loss", self._crops, ranges, floats)

    def confirm(self, ranges: str, floats: Iterable[str]) -> Loss:
        """`loss` on the crops that nothing is chosen on."""
        return self._loss("confirm", self._confirming, ranges, floats)

    def _loss(self, kind: str, crops: Crops, ranges: str, floats: Iterable[str]) -> Loss:
        names = sorted(floats)

        def measure() -> dict[str, float]:
            with closing(self._session(ranges, names)) as session:
                loss = crops.loss(self._fp32[crops], crops.errors(session))
            log.info(
                "%s: %d of %d operations float: %.4f dB lost (at most %.4f), worst crop %.3f",
                kind, len(names), len(self._every), loss.mean_db, loss.upper_db, loss.worst_db,
            )  # fmt: skip
            return asdict(loss)

        return Loss(**self._known(json.dumps([kind, ranges, self.rest, names]), measure))

    def harms(self, ranges: str) -> Harms:
        """What each operation alone in INT8 adds to the squared error of some of the crops."""
        errors = np.array(self._errors(ranges, self._every))
        alone = []
        for number, op in enumerate(self.operations, 1):
            alone.append(self._errors(ranges, self._every - {op.name}))
            if number % 20 == 0 or number == len(self.operations):
                log.info("what INT8 harms: %d of %d operations", number, len(self.operations))
        return Harms(self.operations, errors, np.array(alone) - errors, self._crops.few_photos)

    def _errors(self, ranges: str, floats: Iterable[str]) -> list[float]:
        names = sorted(floats)

        def measure() -> list[float]:
            with closing(self._session(ranges, names)) as session:
                return self._crops.errors(session, self._crops.few())

        left = sorted(self._every - set(names))
        found: list[float] = self._known(json.dumps(["errors", ranges, self.rest, left]), measure)
        return found

    def times_ms(
        self,
        ranges: str,
        candidates: Sequence[Collection[str]],
        size: tuple[int, int],
        settings: BenchSettings,
    ) -> list[float]:
        """The median of each candidate, measured in turns."""
        names = [sorted(floats) for floats in candidates]

        def measure() -> list[float]:
            with ExitStack() as stack:
                sessions = {
                    str(number): stack.enter_context(closing(self._session(ranges, floats)))
                    for number, floats in enumerate(names)
                }
                return list(self._time(sessions, size, settings).values())

        found: list[float] = self._known(
            json.dumps(["ms", ranges, self.rest, names, size]), measure
        )
        return found

    def _time(
        self, sessions: dict[str, Session], size: tuple[int, int], settings: BenchSettings
    ) -> dict[str, float]:
        multiples = dict.fromkeys(sessions, self._multiple)
        found = compare(sessions, size, settings, multiples=multiples)
        for one in found.values():
            if not one.samples_s:
                raise StageError(f"int8: a candidate cannot be timed: {one.invalid_because}")
        return {n: statistics.median(one.samples_s) * 1e3 for n, one in found.items()}

    def _session(self, ranges: str, floats: Iterable[str]) -> Session:
        return self.tuner.session(ranges, sorted(floats), self.rest)


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
        except (ValueError, TypeError):
            continue
        if isinstance(key, str):
            yield key, value


def _list_ms(ms: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:.3g} ms" for name, value in ms.items())


def _mse(a: npt.NDArray[np.float32], b: npt.NDArray[np.float32]) -> float:
    return float(np.mean((a - b) ** 2, dtype=np.float64))


def _margin(drops: Sequence[float]) -> float:
    """What the mean over a test set may be higher, by Student's t; 0 for a single photo."""
    from scipy.stats import t

    count = len(drops)
    if count < 2:
        return 0.0
    quantile = float(t.ppf(_SURE, count - 1))
    return quantile * statistics.stdev(drops) * math.sqrt(1 / count + 1 / _SET)
