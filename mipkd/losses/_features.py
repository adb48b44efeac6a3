"""What losses between features share: pairs of features and the unit of their distance."""

from __future__ import annotations

import logging
from typing import Literal

import torch
from torch import Tensor, nn

from mipkd.core.errors import UsageError
from mipkd.losses.base import Pass, l1

log = logging.getLogger(__name__)

Normalise = Literal["auto", "always", "never"]

# With "auto", features are measured in units of the teacher's mean magnitude from the first step at
# which the feature loss is more than this many times the reconstruction loss: features of nets
# that work in 0 to 255 would drown every other term.
TOO_LARGE = 10.0
SLOWEST_RATE = 0.01  # of the running mean of the magnitude, from its 100th step on


def feature_pairs(seen: Pass, loss: str) -> list[tuple[Tensor, Tensor]]:
    """The student's and the teacher's features (N, C, H, W) at each position; the teacher's
    latents if those are cached.

    Raises:
        UsageError: they differ in H or W.
    """
    theirs_K = seen.teacher_features or seen.teacher_latents
    found = list(zip(seen.student_features, theirs_K, strict=True))
    for k, (mine, theirs) in enumerate(found):
        if mine.shape[-2:] != theirs.shape[-2:]:
            raise UsageError(
                f"distill.losses: {loss} compares features place by place: at position {k} the "
                f"student's are {_size(mine)}, the teacher's {_size(theirs)}",
                hint="give nets that work at one resolution, or --set distill.method=logits",
            )
    return found


def _size(features_NCHW: Tensor) -> str:
    height, width = features_NCHW.shape[-2:]
    return f"{width}x{height}"


class Units(nn.Module):
    """The running magnitude of the teacher's features at each position, saved with a helper."""

    magnitude_K: Tensor
    steps: Tensor
    in_use: Tensor

    def __init__(self, count: int) -> None:
        super().__init__()
        self.register_buffer("magnitude_K", torch.zeros(count))
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))
        self.register_buffer("in_use", torch.zeros((), dtype=torch.bool))
        self._logged = False

    @torch.no_grad()
    def unit(self, seen: Pass, feature_K: Tensor, normalise: Normalise, loss: str) -> Tensor:
        """The unit of each position's features, (K,): the teacher's running mean magnitude, or 1
        without normalisation. Updates the running mean.

        Only tensor arithmetic, so that no step waits for the GPU.
        """
        theirs_K = torch.stack([f.float().abs().mean() for f in seen.teacher_features])
        reconstruction = l1(seen.student_image, seen.target)
        means = seen.mean(torch.stack([*theirs_K, feature_K.mean(), reconstruction]))
        now_K, ratio = means[:-2], means[-2] / means[-1]
        rate = (1 / (self.steps + 1)).clamp(min=SLOWEST_RATE)
        self.magnitude_K.lerp_(now_K, rate)
        self.in_use |= ratio > TOO_LARGE if normalise == "auto" else normalise == "always"
        if not self._logged:
            self._log(float(ratio), loss)
        self.steps += 1
        return torch.where(self.in_use, self.magnitude_K.clamp(min=1e-8), torch.ones_like(now_K))

    def _log(self, ratio: float, loss: str) -> None:
        self._logged = True
        if int(self.steps) == 0:
            how = "in units of the teacher's mean magnitude" if self.in_use else "as they are"
            log.info("%s: L_feat / L_rec is %.3g, features compared %s", loss, ratio, how)
