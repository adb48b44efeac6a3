"""Quality of the pixels that a session produced, image by image, and the pixels themselves."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from pathlib import Path

from mipkd.core.images import crop_border, shift_rgb, write_png
from mipkd.core.measurement import ImageScore
from mipkd.metrics.base import Metric, list_plain
from targets._images import upscale
from targets.base import ByteArray, Session


def score(
    session: Session,
    *,
    tests: Sequence[tuple[str, ByteArray, ByteArray]],
    scale: int,
    multiple: int,
    out: Path,
) -> tuple[ImageScore, ...]:
    """The metrics of each test image `(name, lr_HWC, hr_HWC)`; outputs go to `out`."""
    made = (
        (name, upscale(session, lr_HWC, scale=scale, multiple=multiple), hr_HWC)
        for name, lr_HWC, hr_HWC in tests
    )
    return score_images(made, scale=scale, out=out)


def score_images(
    images: Iterable[tuple[str, ByteArray, ByteArray]], *, scale: int, out: Path
) -> tuple[ImageScore, ...]:
    """The metrics of images `(name, sr_HWC, hr_HWC)`, a border of `scale` pixels cropped."""
    return tuple(
        score_image(name, sr_HWC, hr_HWC, scale=scale, out=out) for name, sr_HWC, hr_HWC in images
    )


def score_image(
    name: str, sr_HWC: ByteArray, hr_HWC: ByteArray, *, scale: int, out: Path
) -> ImageScore:
    """Every metric that needs no weights, of one image, which is kept in `out` as PNG."""
    keep_output(name, sr_HWC, out=out)
    return measure_image(name, sr_HWC, hr_HWC, scale=scale, metrics=list_plain())


def measure_image(
    name: str, sr_HWC: ByteArray, hr_HWC: ByteArray, *, scale: int, metrics: Collection[Metric]
) -> ImageScore:
    """Some metrics of one image, a border of `scale` pixels cropped; those that it is too small for
    are left out."""
    image, truth = crop_border(sr_HWC, hr_HWC, scale, least=min(m.least_side for m in metrics))
    return ImageScore(
        image=name,
        metrics={m.name: m.measure(image, truth) for m in metrics if m.measure and m.fits(image)},
        shift_rgb=shift_rgb(image, truth, border=0),
    )


def keep_output(name: str, sr_HWC: ByteArray, *, out: Path) -> None:
    """Write an output as PNG into a folder, which is made."""
    file = output_file(out, name)
    file.parent.mkdir(parents=True, exist_ok=True)
    write_png(file, sr_HWC)


def output_file(folder: Path, image: str) -> Path:
    """Where the output for a test image lies."""
    return folder / f"{image}.png"
