"""Quantisation-aware distillation: the student trained on with what a target's INT8 rounds."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field

from calibration.pages import TO_TRAIN, page
from calibration.patches import split
from mipkd.archs.base import SRNet
from mipkd.core.errors import UnsupportedError
from mipkd.core.images import ByteArray, downscale
from mipkd.core.photos import Photo
from mipkd.core.records import (
    Distilled,
    Graph,
    Holdout,
    Model,
    PatchSet,
    Photos,
    QatStudent,
    QuantScheme,
    model_of,
)
from mipkd.distill import teacher as teachers
from mipkd.distill.data import load_holdout
from mipkd.distill.patch_sampler import PatchSampler
from mipkd.distill.settings import DistillConfig
from mipkd.distill.trainer import TrainingInputs, train
from mipkd.export import onnx
from mipkd.export.fake_quant import FakeQuantNet
from pipeline.quantize.search import floats_for_budget, make_evaluator
from pipeline.stage import Ref, stage
from targets.base import BuildRequest, Feature, find

log = logging.getLogger(__name__)

_PER_PAGE = 16  # photos


class QatConfig(DistillConfig):
    """As a distillation's, but short, and taught by the truth and by the student's own FP32, or
    by the teacher."""

    run: bool = False
    taught_by: Literal["itself", "teacher"] = "itself"
    losses: tuple[dict[str, Any], ...] = ({"name": "psnr_drop"},)
    spare: float = Field(0.05, ge=0)  # share of the time of all in INT8 that floats may cost
    steps: int = 800
    batch: int = 8
    lr: float = 3e-5
    ema: float = 0.99
    cuda_graphs: bool = Field(False, exclude=True)  # its roundings wait for the GPU
    precision: Literal["auto", "fp32", "bf16"] = "fp32"  # 16 bits would round on their own


@dataclass(frozen=True)
class QatInputs:
    """A student and its graph. Without a `teacher` its own FP32 teaches it.

    Photos that the holdout is cropped from, by `split_seed`, are not trained on. Float while it is
    trained is what brings most for its time at LR `size`.
    """

    config: QatConfig
    target: str
    net: Ref[Distilled | Model]
    teacher: Ref[Model] | None
    graph: Ref[Graph]
    patches: Ref[PatchSet]
    photos: Ref[Photos]
    holdout: Ref[Holdout]
    split_seed: int
    size: tuple[int, int]


@stage(version=14, resumes=True, apart=True)
def qat(inputs: QatInputs, *, out: Path) -> QatStudent:
    """The student trained on with what INT8 of the target rounds.

    Raises:
        UnsupportedError: no INT8 of the target and net can be trained for.
    """
    config, photos = inputs.config, inputs.photos.value
    net = teachers.load(model_of(inputs.net.value))
    student = FakeQuantNet(net, _rounding(inputs, out / "ptq"))
    sampler = PatchSampler(photos, patch=config.patch, batch=config.batch, seed=config.seed)
    sampler.photos, _ = split(photos, inputs.split_seed)
    sampler.photos += _draw_pages(sampler.photos, net, config.seed)
    teacher = teachers.load(inputs.teacher.value) if inputs.teacher else net
    training = TrainingInputs(config, student, teacher, sampler)
    trained = train(training, tests=load_holdout(inputs.holdout.value), out=out)
    rounded = trained.student
    assert isinstance(rounded, FakeQuantNet)
    return QatStudent(
        graph=onnx.export_anew(inputs.graph.value, rounded.float_net(), out=out),
        rounding=rounded.learned_rounding(),
        curves=trained.curves,
        steps=trained.steps,
        seconds=trained.seconds,
        losses=trained.losses,
    )


def _rounding(inputs: QatInputs, folder: Path) -> QuantScheme:
    """What the target's INT8 rounds beside what is worth its time as a float."""
    folder.mkdir(exist_ok=True)
    target, graph, patches = inputs.target, inputs.graph.value, inputs.patches.value
    chosen, spare = find(target), inputs.config.spare
    if evaluator := make_evaluator(target, graph, None, patches, inputs.holdout.value, folder):
        floats = floats_for_budget(evaluator, inputs.size, spare) if spare else []
        found = evaluator.tuner.quant_scheme(floats)
        left = f"{len(found.floats)} of {len(evaluator.operations)} operations float"
    elif Feature.FIXED_INT8 in chosen.features:
        found = chosen.quant_scheme(BuildRequest(graph, "int8", folder, patches))
        left = "those of its fixed recipe"
    else:
        raise UnsupportedError(
            f"qat: {target} has a fixed recipe for {graph.family}", hint="leave out --qat"
        )
    log.info("%s: trains on with %d roundings, %s", target, len(found.grids), left)
    return found


def _draw_pages(photos: Sequence[Photo], net: SRNet, seed: int) -> list[Photo]:
    """Pages of letters and flat colours beside the photos, lest INT8 loses most on them.

    Their truth is what the net makes of them in FP32: their own would draw it away from photos.
    """
    # As large as most photos: the net has to run over each in FP32.
    sides = sorted(min(photo.lr_HWC.shape[:2]) for photo in photos)
    side = sides[len(sides) // 2] * net.scale
    drawn = []
    for number in range(len(photos) // _PER_PAGE):
        lr_HWC = downscale(page(side, number, seed, TO_TRAIN), net.scale)
        drawn.append(Photo(f"page-{number}", _by_net(net, lr_HWC), lr_HWC))
    return drawn


@torch.no_grad()
def _by_net(net: SRNet, lr_HWC: ByteArray) -> ByteArray:
    """What a net makes of an image."""
    lr_NCHW = torch.from_numpy(lr_HWC.transpose(2, 0, 1)[None].astype(np.float32) / 255)
    sr_HWC = net.eval()(lr_NCHW)[0].permute(1, 2, 0).clamp(0, 1).mul(255).round()
    return sr_HWC.to(torch.uint8).numpy()  # type: ignore[no-any-return]
