"""Use a bundle's model: any picture, in tiles, within a bound of memory."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path, PurePath
from time import perf_counter

from mipkd.core.errors import MissingError, UsageError, nearest
from mipkd.core.evidence import Outcome
from mipkd.core.folders import LeftOut, count_reasons, say_reasons, walk_images
from mipkd.core.images import ByteArray, resize_bicubic
from mipkd.core.names import printable
from pipeline.bundle import manifest
from pipeline.judge import check
from pipeline.run import as_stage_error
from pipeline.upscale.cutter import Cutter, smallest_side
from pipeline.upscale.output import Asked, Output, name_results
from pipeline.upscale.pictures import Picture, join_alpha, read_picture
from pipeline.upscale.png import PngBands
from pipeline.upscale.result_file import ResultFile
from pipeline.upscale.tiles import bands
from pipeline.upscale.whole_files import WholeFile
from targets._tiles import Tiling
from targets.base import Session, Target, find

log = logging.getLogger(__name__)

_ROUNDING = 1  # level: sums in another order may fall to the one beside

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


def list_pictures(paths: Sequence[Path], output: Output) -> list[Asked]:
    """Files as they are, folders as the images in them and in the folders below but for the
    results'; the results lie in such folders too, and two of one stem keep their suffixes.

    Raises:
        UsageError: a folder without images, two pictures that would share a name, or several
            where the output is one file.
    """
    out = output.folder
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
        result = inside.with_name((inside.stem if alone else inside.name) + output.suffix)
        if other := asked.get(_folded(result)):
            raise UsageError(
                f"{other.file} and {file} would both become {result}",
                hint="upscale them into different folders",
            )
        asked[_folded(result)] = Asked(file, result)
    return name_results(list(asked.values()), output)


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
    _warn_of_verdict(bundle, judged)
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


def _warn_of_verdict(bundle: Path, judged: check.Checked) -> None:
    """Say that a run's gates failed, or could not tell; each gate by its name, the first whole."""
    stopped = [gate for gate in judged.gates if gate.outcome is judged.outcome]
    if judged.outcome is Outcome.PASS or not stopped:
        return
    names = ", ".join(dict.fromkeys(f"{gate.name} ({gate.subject})" for gate in stopped))
    if judged.outcome is Outcome.FAIL:
        message = "%s: the verdict of its run is FAIL: %s; %s"
        log.warning(message, printable(str(bundle)), printable(names), stopped[0].reason)
    else:
        message = "%s: its run could not tell whether its models may be shipped (INVALID): %s"
        log.info(message, printable(str(bundle)), printable(names))


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
    output: Output,
    *,
    memory_bytes: int,
    side: int | None,
    notify: OnProgress,
) -> Iterator[Upscaled]:
    """Every picture's result; one that fails is reported and the others go on.

    A file in its place that was made elsewhere is a failure too, unless the output overwrites.
    `side` is that of a tile in LR pixels; None takes what fits into `memory_bytes`.

    Raises:
        UsageError: `side` is too small for the net, or the model gives no 16 bits.
        StageError: the disk is full, or memory does not hold one tile.
    """
    _check_side(model, side)
    try:
        output.folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        what = f"--out: {output.folder}: {error.strerror}"
        raise UsageError(what, hint="give a folder") from error
    cutter = Cutter(model, model.built(bundle), memory_bytes, side)
    with closing(find(model.target).open(cutter.built)) as session:
        if output.bits == 16 and session.takes_uint8:
            raise UsageError(
                f"--bits 16: {model.target} {model.precision} rounds to 8 bits in the model",
                hint="name another --target or --precision",
            )
        for asked in pictures:
            try:
                yield _upscale_one(session, cutter, asked, output, notify)
            except UsageError as error:
                yield Upscaled(asked.file, None, why=error.what)
            except _IN_THE_WAY as error:
                why = f"{output.folder / asked.result}: {error.strerror}"
                yield Upscaled(asked.file, None, why=why)
            except OSError as error:
                raise as_stage_error("upscale", error) from error


def _check_side(model: manifest.Model, side: int | None) -> None:
    least = smallest_side(model.margin, model.multiple)
    if side is not None and side < least:
        raise UsageError(
            f"--tile: {side} is too small for this net",
            hint=f"at least {least}, margins of {model.margin} included",
        )


def _upscale_one(
    session: Session, cutter: Cutter, asked: Asked, output: Output, notify: OnProgress
) -> Upscaled:
    file, result, scale = asked.file, output.folder / asked.result, cutter.built.scale
    picture = read_picture(file, cutter.bytes_left())
    _warn_of_loss(file, picture, output)
    if file.resolve() == result.resolve():
        raise UsageError(f"{file}: would be overwritten", hint="give another --out")
    levels = cutter.look(picture)
    tiling = cutter.tiling(picture)
    if cutter.is_new(picture, tiling):
        session.forget_shapes()
    start = perf_counter()
    result.parent.mkdir(parents=True, exist_ok=True)
    height, width = (length * scale for length in picture.rgb_HWC.shape[:2])
    room = cutter.bytes_left()
    with _open_result(result, output, picture, (height, width), room) as opened:
        _write(session, picture, tiling, scale, opened, output.bits, notify)
    return Upscaled(file, result, perf_counter() - start, height * width / 1e6, levels=levels)


def _warn_of_loss(file: Path, picture: Picture, output: Output) -> None:
    lost = list(picture.lost)
    if output.format == "jpeg" and picture.alpha_HW1 is not None:
        lost.append("JPEG holds no transparency: it is laid over white")
    if lost:
        log.warning("%s: %s", printable(str(file)), "; ".join(lost))


def _open_result(
    file: Path,
    output: Output,
    picture: Picture,
    size: tuple[int, int],
    memory_bytes: int,
) -> ResultFile:
    """A result of that height and width, to be written."""
    overwrite = output.overwrite
    if output.format == "png":
        chunks, bits = picture.chunks, output.bits
        return PngBands(file, size, picture.channels, chunks, overwrite=overwrite, bits=bits)
    kind = output.format.upper()
    return WholeFile(file, kind, size, picture, overwrite=overwrite, memory_bytes=memory_bytes)


def _write(
    session: Session,
    picture: Picture,
    tiling: Tiling,
    scale: int,
    result: ResultFile,
    bits: int,
    notify: OnProgress,
) -> None:
    lr = picture.rgb_HWC
    height = lr.shape[0] * scale
    alpha = _upscale_alpha(picture.alpha_HW1, scale)
    done = 0
    for band in bands(session, lr, tiling, scale=scale, bits=bits):
        rows = slice(done, done + len(band))
        result.write(join_alpha(picture, band, None if alpha is None else alpha[rows]))
        done = rows.stop
        notify(done, height)


def _upscale_alpha(alpha_HW1: ByteArray | None, scale: int) -> ByteArray | None:
    """Transparency is no photo: bicubic."""
    if alpha_HW1 is None:
        return None
    height, width = alpha_HW1.shape[:2]
    return resize_bicubic(alpha_HW1, (height * scale, width * scale))
