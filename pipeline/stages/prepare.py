"""Prepare photos to train on and images to test on, once."""

from dataclasses import dataclass, replace
from pathlib import Path

from calibration.probes import make_probes
from mipkd.core.images import read_rgb, write_png
from mipkd.core.measurement import Against
from mipkd.core.records import Graph, Model, Photos, TestSet
from mipkd.distill import data
from mipkd.distill.degradation import BICUBIC, DegradationConfig
from pipeline.reference_net import open_reference
from pipeline.stage import Ref, Source, stage

_PROBES = "probe"  # their folder among the LR images
Scale = Ref[Model | Graph] | int  # of a net, or given


@dataclass(frozen=True)
class PhotosInputs:
    """HR photos, ours where none are given, or LR frames without truth; those smaller than an LR
    patch are skipped."""

    patch: int
    scale: Scale
    source: Source | None
    lr_only: bool = False
    degradation: DegradationConfig = BICUBIC


@dataclass(frozen=True)
class TestsInputs:
    """HR images or a set with LR ones, ours where none is given.

    With a `reference` they are LR frames without truth, and that net's image stands for it:
    `against` says which one it is.
    """

    scale: Scale
    source: Source | None
    reference: Ref[Model] | Ref[Graph] | None = None
    against: Against = "truth"
    degradation: DegradationConfig = BICUBIC


@stage(version=3)
def photos(inputs: PhotosInputs, *, out: Path) -> Photos:
    """Training photos decoded into flat uint8 files, HR and LR."""
    path, scale = inputs.source.path if inputs.source else None, _factor(inputs.scale)
    kind = data.ImageKind(inputs.lr_only, inputs.degradation.for_scale(scale))
    return data.prepare_photos(path, scale=scale, patch=inputs.patch, out=out, kind=kind)


@stage(version=4)
def tests(inputs: TestsInputs, *, out: Path) -> TestSet:
    """Test images, HR and LR, and probes, LR alone."""
    path, scale = inputs.source.path if inputs.source else None, _factor(inputs.scale)
    if reference := inputs.reference:
        kind = data.ImageKind(lr_only=True)
        with open_reference(reference.value) as upscale:
            found = data.prepare_tests(
                path, scale=scale, out=out, kind=kind, upscale=upscale, against=inputs.against
            )
    else:
        kind = data.ImageKind(degrade=inputs.degradation.for_scale(scale))
        found = data.prepare_tests(path, scale=scale, out=out, kind=kind)
    probes = make_probes(read_rgb(found.lr_file(found.images[0])))
    names = tuple(f"{_PROBES}/{name}" for name in probes)
    found.lr_file(names[0]).parent.mkdir()
    for name, lr_HWC in zip(names, probes.values(), strict=True):
        write_png(found.lr_file(name), lr_HWC)
    return replace(found, probes=names)


def scale_of(scale: Scale) -> int | None:
    """The factor; None while the net is only planned."""
    if isinstance(scale, int):
        return scale
    return scale.record.scale if scale.record else None


def _factor(scale: Scale) -> int:
    return scale if isinstance(scale, int) else scale.value.scale
