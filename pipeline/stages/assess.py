"""Quality of a net's own FP32 pixels, computed by torch, on several test sets."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from mipkd.archs.base import SRNet
from mipkd.core.images import resize_bicubic
from mipkd.core.records import Distilled, Model, TestSet, model_of
from mipkd.core.study import SetScores
from mipkd.distill import teacher as teachers
from mipkd.distill.data import load_tests
from pipeline.bench.pixels import score, score_images
from pipeline.stage import Ref, stage
from targets.base import FloatArray, Session


class TorchSession(Session):
    """A net that runs as a target's session does."""

    def __init__(self, net: SRNet) -> None:
        self._net = net.eval()

    def run(self, lr_NCHW: FloatArray) -> FloatArray:
        """The upscaled batch, shape (N, C, S*H, S*W)."""
        import torch

        with torch.inference_mode():
            image: FloatArray = self._net(torch.from_numpy(lr_NCHW)).numpy()
        return image


@dataclass(frozen=True)
class AssessInputs:
    """A net, or None for bicubic."""

    net: Ref[Model | Distilled] | None
    tests: tuple[Ref[TestSet], ...]


@stage(version=4)
def assess(inputs: AssessInputs, *, out: Path) -> tuple[SetScores, ...]:
    """Scores on each set; the outputs are kept in a folder a set."""
    net = teachers.load(model_of(inputs.net.value)) if inputs.net else None
    found = []
    for number, one in enumerate(ref.value for ref in inputs.tests):
        pairs, images = load_tests(one), out / str(number)
        if net is None:
            made = ((name, resize_bicubic(lr, hr.shape[:2]), hr) for name, lr, hr in pairs)
            scores = score_images(made, scale=one.scale, out=images)
        else:
            session = TorchSession(net)
            multiple = net.multiple
            scores = score(session, tests=pairs, scale=one.scale, multiple=multiple, out=images)
        to = "" if one.has_truth else f", to the {one.against}'s image"
        found.append(SetScores(one.source + to, scores))
    return tuple(found)
