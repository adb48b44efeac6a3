"""Use a bundle's model: any picture, in tiles, within a bound of memory."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path, PurePath
from time import perf_counter

import numpy as np

from mipkd.core import memory
from mipkd.core.errors import MissingError, StageError, UsageError, nearest
from mipkd.core.folders import LeftOut, count_reasons, say_reasons, walk_images
from mipkd.core.images import ByteArray, resize_bicubic
from mipkd.core.names import printable
from mipkd.core.records import Built
from pipeline.bench.latency import measure_memory_rise
from pipeline.bundle import manifest
from pipeline.judge import check
from pipeline.run import as_stage_error
from pipeline.upscale.pictures import Picture, join_alpha, read_picture
from pipeline.upscale.png import PngBands
from pipeline.upscale.tiles import Tiling, bands, spans
from targets.base import Session, Target, find, upscale

log = logging.getLogger(__name__)

_PER_PIXEL = 16 * 1024  # bytes of activations an LR pixel, where the system does not tell
_SMALL, _TRIED = (
    16,
    256,
)  # LR pixels a side of images that show how much memory a pixel takes
_ROUNDING = 1  # level: sums in another order may fall to the one beside
_MOST = 1024  # LR pixels a side of a tile: larger ones are no faster

_IN_THE_WAY = (FileExistsError, NotADirectoryError, IsADirectoryError, PermissionError)

OnProgress = Callable[[int, int], None]  # rows done, rows in all


@dataclass(frozen=True)
class Upscaled:
    """What became of one picture."""

    source: Path
    file: Path | None  # None when it failed
    seconds: float = 0.0
    megapixels: float = 0.0
    why: str = ""
    levels: int | None = None  # largest difference to one piece, on a part; None: not looked at


@dataclass(frozen=True)
class Asked:
    """A picture to be upscaled, and where its result goes in the folder of results."""

    file: Path
    result: PurePath


def list_pictures(paths: Sequence[Path], out: Path) -> list[Asked]:
    """Files as they are, folders as the images in them and in the folders below but for `out`;
    the results lie in such folders too, and two of one stem keep their suffixes.

    Raises:
        UsageError: a folder without images, or two pictures that would share a name.
    """
    found: list[tuple[Path, PurePath]] = []
    for path in paths:
        if path.is_dir():
            walked = walk_images(path)
            made = out.resolve() if out.resolve() != path.resolve() else None
            kept = (f for f in walked.files if not (made and f.resolve().is_relative_to(made)))
            found += [(file, file.relative_to(path)) for file in kept]
            _say_left_out(path, walked.left_out)
        else:
            found.append((path, PurePath(path.name)))
    stems = Counter(_folded(inside.with_suffix("")) for _, inside in found)
    asked: dict[str, Asked] = {}
    for file, inside in found:
        alone = stems[_folded(inside.with_suffix(""))] == 1
        result = inside.with_name((inside.stem if alone else inside.name) + ".png")
        if other := asked.get(_folded(result)):
            raise UsageError(
                f"{other.file} and {file} would both become {result}",
                hint="upscale them into different folders",
            )
        asked[_folded(result)] = Asked(file, result)
    return list(asked.values())


def _folded(file: PurePath) -> str:
    """What a file system that knows no case takes it for."""
    return str(file).casefold()


def _say_left_out(folder: Path, left_out: list[LeftOut]) -> None:
    if counts := count_reasons(left_out):
        log.warning("%s: left out: %s", printable(folder), say_reasons(counts))


def choose_model(bundle: Path, target: str | None, precision: str | None) -> manifest.Model:
    """The model to use: what the run recommends of those that this machine runs, else the first.

    Raises:
        UsageError: nothing of the bundle is of that target or precision.
        MissingError: this machine runs none of them.
    """
    judged = check.check_recorded(bundle)
    if judged.problems:
        first = judged.problems[0]
        raise UsageError(
            f"{bundle}: {first.file} is {first.what}", hint="see all: mipkd-pipeline verify"
        )
    manifest.check_models(judged.manifest)
    models = judged.manifest.models
    for name, wanted in (("target", target), ("precision", precision)):
        models = tuple(m for m in models if wanted in (None, getattr(m, name)))
        if not models:
            known = {getattr(m, name) for m in judged.manifest.models}
            raise UsageError(
                f"--{name}: no model for {wanted!r}", hint=nearest(wanted or "", known)
            )
    here = [m for m in models if _runs_here(find(m.target))]
    if not here:
        why = find(models[0].target).why_not() or "this machine could only simulate it"
        raise MissingError(f"upscale: {models[0].target}: {why}", hint="name another with --target")
    shipped = {(r.target, r.precision) for r in judged.recommended}
    return next((m for m in here if (m.target, m.precision) in shipped), here[0])


def _runs_here(target: Target) -> bool:
    return not target.why_not() and not target.simulated


def describe_tiles(model: manifest.Model, levels: int | None) -> str:
    """How tiles of this model compare with the whole, in words.

    `levels`: the largest difference that was seen; None where none was looked for.
    """
    margin = f"margin {model.margin} LR pixels"
    seen = "" if levels is None else f", up to {levels} level{'s' * (levels != 1)} from one piece"
    if model.inexact_because:
        return f"tiles not exact{seen}, {margin} ({model.inexact_because})"
    if levels is not None and levels > _ROUNDING:
        return f"tiles not exact{seen}, {margin}: this runtime computes them in another way"
    return f"tiles exact{' but for rounding' if levels else ''}, {margin}"


def upscale_all(
    bundle: Path,
    model: manifest.Model,
    pictures: Sequence[Asked],
    out: Path,
    *,
    memory_bytes: int,
    side: int | None,
    notify: OnProgress,
    overwrite: bool = False,
) -> Iterator[Upscaled]:
    """Every picture as PNG in `out`; one that fails is reported and the others go on.

    A file in its place that was made elsewhere is a failure too, unless `overwrite` is set.
    `side` is that of a tile in LR pixels; None takes what fits into `memory_bytes`.

    Raises:
        UsageError: `side` is too small for the net.
        StageError: the disk is full, or memory does not hold one tile.
    """
    least = _smallest_side(model.margin, model.multiple)
    if side is not None and side < least:
        raise UsageError(
            f"--tile: {side} is too small for this net",
            hint=f"at least {least}, margins of {model.margin} included",
        )
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"--out: {out}: {error.strerror}", hint="give a folder") from error
    cutter = _Cutter(model, model.built(bundle), memory_bytes, side)
    with closing(find(model.target).open(cutter.built)) as session:
        for asked in pictures:
            file, result = asked.file, out / asked.result
            try:
                picture = read_picture(file)
                if file.resolve() == result.resolve():
                    raise UsageError(f"{file}: would be overwritten", hint="give another --out")
                levels = cutter.look(picture)
                tiling = cutter.tiling(picture)
                if cutter.is_new(picture, tiling):
                    session.forget_shapes()
                start = perf_counter()
                result.parent.mkdir(parents=True, exist_ok=True)
                made = _write(session, picture, tiling, model.scale, result, notify, overwrite)
            except UsageError as error:
                yield Upscaled(file, None, why=error.what)
                continue
            except _IN_THE_WAY as error:
                yield Upscaled(file, None, why=f"{result}: {error.strerror}")
                continue
            except OSError as error:
                raise as_stage_error("upscale", error) from error
            pixels = picture.rgb_HWC.shape[0] * picture.rgb_HWC.shape[1] * model.scale**2
            yield Upscaled(file, made, perf_counter() - start, pixels / 1e6, levels=levels)


class _Cutter:
    """How to cut pictures so that a bound of memory holds."""

    def __init__(
        self, model: manifest.Model, built: Built, memory_bytes: int, side: int | None
    ) -> None:
        self.built = built
        self._model, self._memory_bytes, self._side = model, memory_bytes, side
        self._looked, self._per_pixel, self._left, self._size = False, 0, 0, (0, 0)
        self._knows_memory = side is not None

    def look(self, picture: Picture) -> int | None:
        """Find out what a pixel takes, once, and what cutting changes in levels, on the first
        picture that is cut; in a session of its own, for one keeps the memory of all it ran."""
        if self._looked or (self._knows_memory and not self._cuts(picture)):
            return None
        with closing(find(self._model.target).open(self.built)) as session:
            if not self._knows_memory:
                self._per_pixel = _bytes_per_pixel(session, self._model)
                self._left = self._memory_bytes - (memory.resident_bytes() or 0)
                self._knows_memory = True
            self._looked = self._cuts(picture)
            return difference(session, picture.rgb_HWC, self.tiling(picture), self._model.scale)

    def _cuts(self, picture: Picture) -> bool:
        longest: int = max(picture.rgb_HWC.shape[:2])
        return longest > self.tiling(picture).side

    def tiling(self, picture: Picture) -> Tiling:
        """For pictures of that width.

        Raises:
            StageError: memory does not hold one tile.
        """
        margin, step = self._model.margin, self._model.multiple
        if self._side is not None:
            return Tiling(self._side // step * step or self._side, margin, step, exact=True)
        # A band of the result is held as a whole, and once more where it is join_alpha with alpha.
        row_bytes = picture.rgb_HWC.shape[1] * self._model.scale**2 * 3 * 2
        least = _smallest_side(margin, step)
        for side in range(_MOST, least - 1, -16):
            if side * side * self._per_pixel + side * row_bytes <= self._left:
                log.debug("tiles of at most %d LR pixels, %d bytes each", side, self._per_pixel)
                return Tiling(side // step * step, margin, step)
        raise StageError(
            f"upscale: {self._memory_bytes / 2**20:.0f} MiB do not hold a tile of {least}x{least} "
            "LR pixels",
            hint="raise --memory, or choose a smaller --precision",
        )

    def is_new(self, picture: Picture, tiling: Tiling) -> bool:
        """Whether its tiles are of another size than those before."""
        before = self._size
        height, width = (spans(length, tiling)[0].stop for length in picture.rgb_HWC.shape[:2])
        self._size = height, width
        return before not in ((0, 0), self._size)


def difference(session: Session, lr_HWC: ByteArray, tiling: Tiling, scale: int) -> int | None:
    """Largest difference in levels between tiles and one piece, on a part where both fit.

    None where the part is no larger than the smallest tile.
    """
    margin, step = tiling.margin, tiling.multiple
    whole = min(tiling.side, max(_TRIED, 2 * _smallest_side(margin, step)))
    part = np.ascontiguousarray(lr_HWC[:whole, :whole])
    smaller = Tiling(max(whole // 2, _smallest_side(margin, step)), margin, step)
    if max(part.shape[:2]) <= smaller.side:
        return None  # it would be one tile
    one = upscale(session, part, scale=scale, multiple=step)
    cut = np.concatenate(list(bands(session, part, smaller, scale=scale)))
    return int(np.abs(one.astype(np.int16) - cut).max())


def _write(
    session: Session,
    picture: Picture,
    tiling: Tiling,
    scale: int,
    file: Path,
    notify: OnProgress,
    overwrite: bool,
) -> Path:
    lr = picture.rgb_HWC
    height, width = lr.shape[0] * scale, lr.shape[1] * scale
    alpha = _upscale_alpha(picture.alpha_HW1, scale)
    done = 0
    size, chunks = (height, width), picture.chunks
    with PngBands(file, size, picture.channels, chunks, overwrite=overwrite) as png:
        for band in bands(session, lr, tiling, scale=scale):
            rows = slice(done, done + len(band))
            png.write(join_alpha(picture, band, None if alpha is None else alpha[rows]))
            done = rows.stop
            notify(done, height)
    return file


def _upscale_alpha(alpha_HW1: ByteArray | None, scale: int) -> ByteArray | None:
    """Transparency is no photo: bicubic."""
    if alpha_HW1 is None:
        return None
    height, width = alpha_HW1.shape[:2]
    return resize_bicubic(alpha_HW1, (height * scale, width * scale))


def _smallest_side(margin: int, multiple: int) -> int:
    """LR pixels a side of the smallest tile that holds more than its margins."""
    return 2 * margin + 2 * multiple + 1


def _bytes_per_pixel(session: Session, model: manifest.Model) -> int:
    """What an LR pixel takes from its bytes to those of its result, where the system tells."""

    def run(size: int) -> None:
        image = np.zeros((size, size, 3), np.uint8)
        upscale(session, image, scale=model.scale, multiple=model.multiple)

    run(_SMALL)
    with measure_memory_rise() as bytes_more:
        run(_TRIED)
    return max(bytes_more[0], _TRIED**2) // _TRIED**2 if bytes_more else _PER_PIXEL
