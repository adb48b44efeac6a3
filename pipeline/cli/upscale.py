"""The command that uses a bundle's model, on pictures and on video."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, BinaryIO

import typer

from mipkd.core.errors import StageError, UsageError
from mipkd.core.yuv import MATRICES
from pipeline.cli.terminal import PlainConsole, Verbose, say, set_logging

if TYPE_CHECKING:
    from pipeline.bundle.manifest import Model
    from pipeline.upscale.output import Output
    from pipeline.upscale.video import Asked


def register(app: typer.Typer) -> None:
    """Add the command to the command line."""
    app.command()(upscale)


def upscale(
    bundle: Annotated[Path, typer.Argument(help="Folder bundle/ of a finished run.")],
    images: Annotated[
        list[Path],
        typer.Argument(help="Images, or folders of images; a video FILE.y4m, - for one on stdin."),
    ],
    out: Annotated[
        Path,
        typer.Option(
            "--out",
            "-o",
            help="Folder of the results; FILE.png, .webp or .jpg for one picture, FILE.y4m or - "
            "(stdout) for a video.",
        ),
    ],
    target: Annotated[str | None, typer.Option(help="Default: what the run recommends.")] = None,
    precision: Annotated[str | None, typer.Option(help="Default: what the run recommends.")] = None,
    file_format: Annotated[
        str | None,
        typer.Option(
            "--format", help="png, webp (no pixel is lost) or jpeg (quality 95); default: of --out."
        ),
    ] = None,
    bits: Annotated[
        int, typer.Option(help="Bits a channel, 8 or 16 (PNG alone: before 8 bits are left).")
    ] = 8,
    memory: Annotated[float, typer.Option(help="GiB that the program may hold.", min=0.5)] = 2.0,
    tile: Annotated[
        int | None, typer.Option(help="LR pixels a side of a tile; default: what fits.", min=1)
    ] = None,
    matrix: Annotated[
        str | None,
        typer.Option(help="Of a video's colours: bt601 or bt709; default by its size."),
    ] = None,
    sets: Annotated[
        list[str] | None,
        typer.Option("--set", help="Settings of [limits]: limits.seconds=60."),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace files that upscale did not make, too.")
    ] = False,
    verbose: Verbose = False,
) -> None:
    """Upscale pictures of any size, or a video, with a bundle's model."""
    set_logging(verbose)
    from pipeline.bundle.trial import limits_with, try_models
    from pipeline.upscale.output import choose_output
    from pipeline.upscale.upscale import choose_model
    from pipeline.upscale.video import STANDARD, claim_stdout, find_video

    def choose() -> Model:
        model = choose_model(bundle, target, precision)
        try_models(bundle, [model], limits_with(sets or ()))
        return model

    limits = _Limits(int(memory * 2**30), tile)
    if video := find_video(images, out):
        asked = _ask_video(*video, file_format, bits, matrix, overwrite=overwrite)
        with claim_stdout() if asked.result == STANDARD else nullcontext() as frames:
            _upscale_video(bundle, choose(), asked, limits, frames)
        return
    if matrix is not None:
        raise UsageError(
            f"--matrix {matrix}: of a video, and these are pictures", hint="leave it out"
        )
    output = choose_output(out, file_format, bits, overwrite=overwrite)
    _upscale_pictures(bundle, choose, images, output, limits)


@dataclass(frozen=True)
class _Limits:
    memory_bytes: int
    side: int | None  # of a tile


def _upscale_pictures(
    bundle: Path,
    choose: Callable[[], Model],
    images: list[Path],
    output: Output,
    limits: _Limits,
) -> None:
    from rich.progress import Progress

    from pipeline.upscale import upscale as work

    pictures = work.list_pictures(images, output)
    model = choose()
    say(f"{model.target} {model.precision}, x{model.scale}")
    failed, levels = 0, list[int | None]()
    with Progress(console=PlainConsole(stderr=True), transient=True) as bar:
        task = bar.add_task("rows")
        made = work.upscale_all(
            bundle,
            model,
            pictures,
            output,
            memory_bytes=limits.memory_bytes,
            side=limits.side,
            notify=lambda done, whole: bar.update(task, completed=done, total=whole),
        )
        for one in made:
            if one.file is None:
                failed += 1
                say(f"FAILED  {one.why}", err=True)
            else:
                rate = one.seconds / one.megapixels
                say(f"{one.file}  {one.seconds:.1f} s, {rate:.2f} s a megapixel")
                levels.append(one.levels)
    if levels:
        seen = [n for n in levels if n is not None]
        say(work.describe_tiles(model, max(seen, default=None)))
    if failed:
        raise StageError(f"upscale: {failed} of {len(pictures)} images failed")


def _ask_video(
    source: Path,
    result: Path,
    file_format: str | None,
    bits: int,
    matrix: str | None,
    *,
    overwrite: bool,
) -> Asked:
    """The video, once no option is of pictures alone.

    Raises:
        UsageError: one is.
    """
    from pipeline.upscale.video import Asked

    for option, other in ((f"--format {file_format}", file_format), (f"--bits {bits}", bits != 8)):
        if other:
            raise UsageError(
                f"{option}: of pictures; a video is y4m of 8 bits", hint="leave it out"
            )
    if matrix not in (None, *MATRICES):
        raise UsageError(f"--matrix: {matrix!r}", hint=f"known: {', '.join(MATRICES)}")
    return Asked(source, result, overwrite, matrix)


def _upscale_video(
    bundle: Path, model: Model, asked: Asked, limits: _Limits, frames: BinaryIO | None
) -> None:
    """All that is said goes to stderr: stdout may be the video."""
    from pipeline.upscale.upscale import describe_tiles
    from pipeline.upscale.video import upscale_video
    from pipeline.upscale.y4m import matrix_by_size

    say(f"{model.target} {model.precision}, x{model.scale}", err=True)
    made = upscale_video(
        bundle, model, asked, frames, memory_bytes=limits.memory_bytes, side=limits.side
    )
    rate = made.frames / made.seconds
    which = "as --matrix says" if asked.matrix else "by its size: y4m does not say; --matrix"
    say(f"{made.header.kind} in and out (matrix {which})", err=True)
    after = matrix_by_size(made.header.enlarge(model.scale).size)
    if after != made.header.kind.matrix:
        say(f"players take {after} for a video of the result's size that does not say", err=True)
    say(f"{made.frames} frames, {made.seconds:.1f} s, {rate:.2f} frames/s", err=True)
    if made.stopped:
        say("stopped: nobody reads stdout any more", err=True)
    if made.levels is not None:
        say(describe_tiles(model, made.levels), err=True)
