"""Golden images: inputs that travel with the models, their truth, and what came out of them.

Beside the first test images go the one that lost most and the probes: a gate computes figures again
from them, and sees there what a broken model does. Names may have a folder, such as "probe/dark".
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Sequence
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from mipkd.core.image_headers import pixels_in
from mipkd.core.measurement import REFERENCE, Measurement
from mipkd.core.names import name_of_model
from mipkd.core.records import TestSet
from pipeline.bench.comparisons import drop_by_image, find_reference, students
from pipeline.bench.pixels import output_file

log = logging.getLogger(__name__)

GOLDEN, LR, HR = "golden", "lr", "hr"  # folders


class BundleConfig(BaseModel):
    """What a bundle holds beside the models."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    golden_images: int = Field(5, ge=1)  # test images that are not too large, beside the probes
    golden_pixels: int = Field(2**17, ge=1)  # of the largest one, LR
    # What a run cannot know, for the model card and OpenModelDB: names there, such as "me/edsr-x4".
    base_model: str | None = None  # the teacher's repository
    datasets: tuple[str, ...] = ()  # that the photos are of
    authors: tuple[str, ...] = ()  # of the models


def choose(
    tests: TestSet, config: BundleConfig, measurements: Sequence[Measurement] = ()
) -> tuple[str, ...]:
    """Names of test images: the one that lost most and the first ones, the smallest one where all
    are too large."""
    pixels = {name: pixels_in(tests.lr_file(name)) for name in tests.images}
    fitting = [name for name in tests.images if pixels[name] <= config.golden_pixels]
    if fitting:
        worst = [name for name in _worst(measurements) if name in fitting]
        kept = [*dict.fromkeys([*worst[:1], *fitting])][: config.golden_images]
        return tuple(name for name in fitting if name in kept)
    smallest = min(tests.images, key=lambda name: pixels[name])
    log.info("bundle: every test image has over %d LR pixels: one is kept", config.golden_pixels)
    return (smallest,)


def _worst(measurements: Sequence[Measurement]) -> list[str]:
    """Images by what they lost at most in any precision, the worst first."""
    base, lost = find_reference(measurements, "student"), dict[str, float]()
    for m in students(measurements):
        for image, drop in drop_by_image(m, base).items():
            lost[image] = max(drop, lost.get(image, drop))
    return sorted(lost, key=lambda image: -lost[image])


def copy_golden(
    tests: TestSet, measurements: tuple[Measurement, ...], config: BundleConfig, out: Path
) -> tuple[str, ...]:
    """`golden/lr` and `golden/hr`, and what the FP32 student (`golden/reference`) and each student
    with outputs made of them; the names of the test images."""
    names = choose(tests, config, measurements)
    every = (*names, *tests.probes)
    for name in every:
        _copy(tests.lr_file(name), output_file(out / GOLDEN / LR, name))
    for name in names:
        _copy(tests.hr_file(name), output_file(out / GOLDEN / HR, name))
    for m in measurements:
        if m.role == "student" and m.outputs:
            folder = golden_folder(out, m.target, m.precision)
            for name in (n for n in every if output_file(m.outputs, n).is_file()):
                _copy(output_file(m.outputs, name), output_file(folder, name))
    return names


def golden_folder(bundle: Path, target: str, precision: str) -> Path:
    """Where the outputs of a model lie, or of the FP32 student in ONNX Runtime."""
    name = REFERENCE if target == REFERENCE else name_of_model(target, precision)
    return bundle / GOLDEN / name


def names_in(folder: Path) -> list[str]:
    """The names of the images below a folder of golden ones."""
    files = sorted(folder.rglob("*.png"))
    return [file.relative_to(folder).with_suffix("").as_posix() for file in files]


def _copy(file: Path, to: Path) -> None:
    to.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(file, to)
