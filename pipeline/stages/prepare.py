"""Prepare photos to train on and images to test on, once."""

from dataclasses import dataclass
from pathlib import Path

from mipkd.core.records import Graph, Model, Photos, TestSet
from mipkd.distill import data
from pipeline.stage import Ref, Source, stage

Scale = Ref[Model | Graph] | int  # of a net, or given


@dataclass(frozen=True)
class PhotosInputs:
    """HR photos, ours where none are given; those smaller than an LR patch are skipped."""

    patch: int
    scale: Scale
    source: Source | None


@dataclass(frozen=True)
class TestsInputs:
    """HR images or a set with LR ones, ours where none is given."""

    scale: Scale
    source: Source | None


@stage(version=2)
def photos(inputs: PhotosInputs, *, out: Path) -> Photos:
    """Training photos decoded into flat uint8 files, HR and LR."""
    path = inputs.source.path if inputs.source else None
    return data.prepare_photos(path, scale=_factor(inputs.scale), patch=inputs.patch, out=out)


@stage(version=2)
def tests(inputs: TestsInputs, *, out: Path) -> TestSet:
    """Test images, HR and LR."""
    path = inputs.source.path if inputs.source else None
    return data.prepare_tests(path, scale=_factor(inputs.scale), out=out)


def _factor(scale: Scale) -> int:
    return scale if isinstance(scale, int) else scale.value.scale
