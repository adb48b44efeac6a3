"""Make a kit for a Mac or iPhone without Python: a Swift package, and a folder of what it runs.

Images lie there as the models take them, cut and padded here, so that Swift only runs and writes.
Its results are those of any kit. It was never compiled here, where there is neither Swift nor Core
ML: tests run the plan by a Python that does what the Swift says.
Shapes: H W low-res size, C channels, S scale.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

import numpy as np

from mipkd.core import codec
from mipkd.core.durable import replace_folder
from mipkd.core.errors import UnsupportedError, UsageError
from mipkd.core.measurement import Host, Measurement
from mipkd.core.records import Built, TargetInfo
from pipeline.bench.latency import smooth_image
from pipeline.bench.models import gives_pixels
from pipeline.bundle.kit import Contents, Kit, gather
from pipeline.machine.remote import job_file
from pipeline.run import as_stage_error
from targets._tiles import Sizes, Span, Tile
from targets.base import ByteArray

KIT, PLAN = "kit", "plan.json"  # the folder in the package, and what is asked in it


def make_swift_kit(bundle: Path, target: str, out: Path) -> Kit:
    """Write a Swift package with a bundle's models for `target` into the folder `out`.

    Raises:
        UsageError: no bundle, a changed one, no model for the target, or a folder of others.
        UnsupportedError: models that are not Core ML's, or take images.
        StageError: it cannot be written.
    """
    if target.partition(":")[0] != "coreml":
        raise UnsupportedError(
            f"kit --swift: {target} is none of Core ML's", hint="leave --swift out"
        )
    if out.exists() and not (out / KIT / PLAN).is_file():
        raise UsageError(
            f"{out}: is there, and is no kit of this program",
            hint="move it away, or name another folder with --out",
        )
    found = gather(bundle, target)
    partial = out.with_name(f".{out.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        with as_file(files("pipeline.bundle") / "swift") as sources:
            shutil.copytree(sources, partial)
        _write(found, target, partial / KIT)
        replace_folder(out, partial, keep=lambda old: (old / "results.zip").exists())
    except OSError as error:
        raise as_stage_error("kit", error) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return found.describe(out)


def _write(found: Contents, target: str, folder: Path) -> None:
    """The job, its models, and the plan with the images of each."""
    folder.mkdir()
    packed = folder / "job.zip"
    job = job_file.write_job(packed, target, found.builts, found.settings, found.images)
    with zipfile.ZipFile(packed) as whole:
        models = [n for n in whole.namelist() if n.startswith("models/")]
        whole.extractall(folder, [job_file.JOB, *models])
    packed.unlink()
    inputs = _Inputs(folder)
    plan = {
        "job": job.id,
        "settings": codec.encode(found.settings),
        "models": [
            _plan_model(number, built, found, inputs) for number, built in enumerate(found.builts)
        ],
        "results": _template(job.id, target, found.builts),
    }
    (folder / PLAN).write_text(json.dumps(plan, indent=1))


def _plan_model(number: int, built: Built, found: Contents, inputs: _Inputs) -> dict[str, Any]:
    """What is run on a model."""
    from targets._coreml.package import read_spec, takes_images
    from targets.coreml import sizes_of

    if takes_images(read_spec(built.file)):
        raise UnsupportedError(
            f"kit --swift: {built.target} {built.precision} takes images, not arrays",
            hint="build it with --set build.pixels=float32",
        )
    sizes = sizes_of(built)
    images = enumerate(found.images) if gives_pixels(built) else ()
    return {
        "package": f"models/{number}/{built.file.name}",
        "units": built.options.get("compute_units", "ALL"),
        "timed": [
            list(inputs.cut(_frame(size, built, found.settings.seed), built, sizes))
            for size in found.settings.sizes
        ],
        "pictures": [
            {
                "number": place,
                "size": [side * built.scale for side in lr_HWC.shape[:2]],
                "tiles": list(inputs.cut(lr_HWC, built, sizes)),
            }
            for place, (_, lr_HWC) in images
        ],
    }


def _frame(size: tuple[int, int], built: Built, seed: int) -> ByteArray:
    """The image that a size is timed on."""
    image_NCHW = smooth_image(size, built.multiple, seed)
    levels: ByteArray = np.rint(image_NCHW[0].transpose(1, 2, 0) * 255).astype(np.uint8)
    return levels


def _template(job: str, target: str, builts: tuple[Built, ...]) -> Mapping[str, Any]:
    """The records that the device fills in."""
    precisions = tuple(dict.fromkeys(built.precision for built in builts))
    unknown = Host("", "", 1, 0, "")
    measurements = [Measurement(b.role, b.target, b.precision, b.size_bytes) for b in builts]
    return {
        "schema": job_file.SCHEMA,
        "job": job,
        "info": codec.encode(TargetInfo(target, "", False, precisions, {}, unknown)),
        "measurements": codec.encode(measurements),
    }


@dataclass(frozen=True)
class _Inputs:
    """The files of what models are given, each content once."""

    folder: Path

    def cut(self, lr_HWC: ByteArray, built: Built, sizes: Sizes | None) -> Iterator[dict[str, Any]]:
        """The tiles of an image, and where their results go: row and column in S times LR."""
        height, width = lr_HWC.shape[:2]
        ends = [(0, -side % built.multiple) for side in (height, width)]
        padded = np.pad(lr_HWC, (*ends, (0, 0)), mode="symmetric")  # as `targets._images.upscale`
        tall, wide = padded.shape[:2]
        one = Tile(Span(0, tall, 0, tall), Span(0, wide, 0, wide), (tall, wide))
        lr_NCHW: Any = np.ascontiguousarray(padded.transpose(2, 0, 1)[None])  # bytes
        for tile in sizes.tiles(tall, wide) if sizes else [one]:
            kept = (_Kept.of(tile.rows, height), _Kept.of(tile.columns, width))
            if min(part.length for part in kept) > 0:
                yield {
                    "file": self._keep(tile.read(lr_NCHW).tobytes()),
                    "shape": [1, 3, *tile.size],
                    "from": [part.start * built.scale for part in kept],
                    "to": [part.to * built.scale for part in kept],
                    "keep": [part.length * built.scale for part in kept],
                }

    def _keep(self, data: bytes) -> str:
        name = f"inputs/{hashlib.sha256(data).hexdigest()[:16]}.rgb"
        (self.folder / "inputs").mkdir(exist_ok=True)
        (self.folder / name).write_bytes(data)
        return name


@dataclass(frozen=True)
class _Kept:
    """What is kept of a tile along a side, in LR pixels."""

    start: int  # in the tile
    to: int  # in the image
    length: int

    @staticmethod
    def of(span: Span, length: int) -> _Kept:
        """Of an image of that length: what was padded is none of it."""
        stop = min(span.keep_to, length)
        return _Kept(span.keep_from - span.start, span.keep_from, stop - span.keep_from)
