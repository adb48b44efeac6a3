"""Golden images: inputs that travel with the models, and what each target made of them."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from mipkd.core.image_headers import pixels_in
from mipkd.core.measurement import Measurement
from mipkd.core.records import TestSet
from pipeline.bench.pixels import output_file
from pipeline.bundle.manifest import name_of

log = logging.getLogger(__name__)


class BundleConfig(BaseModel):
    """What a bundle holds beside the models."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    golden_images: int = Field(5, ge=1)  # the first test images that are not too large
    golden_pixels: int = Field(2**17, ge=1)  # of the largest one, LR


def choose(tests: TestSet, config: BundleConfig) -> tuple[str, ...]:
    """Names of test images, the smallest one where all are too large."""
    pixels = {name: pixels_in(lr_file(tests, name)) for name in tests.images}
    fitting = [name for name in tests.images if pixels[name] <= config.golden_pixels]
    if fitting:
        return tuple(fitting[: config.golden_images])
    smallest = min(tests.images, key=lambda name: pixels[name])
    log.info("bundle: every test image has over %d LR pixels: one is kept", config.golden_pixels)
    return (smallest,)


def lr_file(tests: TestSet, name: str) -> Path:
    """Where the LR pixels of a test image lie."""
    return tests.folder / "lr" / f"{name}.png"


def copy_golden(
    tests: TestSet, measurements: tuple[Measurement, ...], config: BundleConfig, out: Path
) -> tuple[str, ...]:
    """`golden/lr/NAME.png` and `golden/MODEL/NAME.png` of every student with outputs; the names."""
    names = choose(tests, config)
    inputs = out / "golden" / "lr"
    inputs.mkdir(parents=True)
    for name in names:
        shutil.copyfile(lr_file(tests, name), inputs / f"{name}.png")
    for m in measurements:
        if m.role == "student" and m.file and m.outputs:
            folder = out / "golden" / name_of(m.target, m.precision)
            folder.mkdir()
            for name in (n for n in names if output_file(m.outputs, n).is_file()):
                shutil.copyfile(output_file(m.outputs, name), output_file(folder, name))
    return names
