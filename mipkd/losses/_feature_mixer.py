"""The Feature Prior Mixer: both nets' features are encoded into one latent space and mixed there.

Paper: "Knowledge Distillation with Multi-granularity Mixture of Priors for Image
Super-Resolution" (MiPKD). Shapes: N batch, C channels of a net, L latent channels, H W low-res.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor, nn

from mipkd.archs._parts import conv
from mipkd.losses.base import Carrier

Encoder = Literal["cnn", "mlp"]


def latent_width(teacher_width: int) -> int:
    """Channels of the latent space: the teacher's, but no more than 64."""
    return min(teacher_width, 64)


def student_mask(
    like_NLHW: Tensor,
    *,
    student_share: float,
    generator: torch.Generator | None,
    rows: tuple[int, int] | None = None,
) -> Tensor:
    """A random 3-D mask of 0 and 1 for each image; 1 takes the student's element.

    The share has steps of 1/256: eight elements take one 64-bit random number, a tenth of the time
    of a float for each. In channels-last memory, like the features; `rows` as in `Pass`.
    """
    if student_share in (0, 1):
        return torch.full_like(like_NLHW, student_share)
    here, channels, height, width = like_NLHW.shape
    first, whole = rows or (0, here)
    count = whole * channels * height * width
    words = torch.empty(-(-count // 8), dtype=torch.int64, device=like_NLHW.device)
    words.random_(-(2**63), None, generator=generator)
    chance = words.view(torch.uint8)[:count].view(whole, height, width, channels)
    chance = chance[first : first + here]
    threshold = max(1, round(student_share * 256))
    return (chance <= threshold - 1).to(like_NLHW.dtype).permute(0, 3, 1, 2)


def _encoder(inputs: int, latent: int, kind: Encoder) -> nn.Sequential:
    size = 3 if kind == "cnn" else 1  # an MLP at each place; the decoder is always a CNN
    return nn.Sequential(conv(inputs, latent, size), nn.ReLU(), conv(latent, latent, size))


class FeatureMixer(nn.Module):
    """One position's encoders and decoder, learned from random weights.

    The decoder has one trunk and a last convolution for each net's width.
    """

    def __init__(
        self, student_width: int, teacher_width: int, latent: int, *, encoder: Encoder = "cnn"
    ) -> None:
        super().__init__()
        self.encode_student: nn.Module = _encoder(student_width, latent, encoder)
        self.encode_teacher: nn.Module = _encoder(teacher_width, latent, encoder)
        self.trunk: nn.Module = nn.Sequential(conv(latent, latent), nn.ReLU())
        self.to_teacher: nn.Module = conv(latent, teacher_width)
        # At equal widths one head serves both, so that the student's blocks get what it restores.
        self.to_student: nn.Module | None = (
            conv(latent, student_width) if student_width != teacher_width else None
        )

    def decode(self, latents_NLHW: Tensor, carrier: Carrier) -> Tensor:
        """Features of `carrier`'s width."""
        trunk_NLHW = self.trunk(latents_NLHW)
        if carrier == "student" and self.to_student is not None:
            return self.to_student(trunk_NLHW)  # type: ignore[no-any-return]
        return self.to_teacher(trunk_NLHW)  # type: ignore[no-any-return]


@dataclass(frozen=True)
class Mixture:
    """Both nets' latents at one position and the mask that mixes them."""

    student_NLHW: Tensor
    teacher_NLHW: Tensor
    mask_NLHW: Tensor  # 1 takes the student's

    @cached_property
    def mixed(self) -> Tensor:
        """M * Z_S + (1 - M) * Z_T, exact for masks of 0 and 1; six times as fast as `where`."""
        return torch.lerp(self.teacher_NLHW, self.student_NLHW, self.mask_NLHW)


def mix(
    student_NLHW: Tensor,
    teacher_NLHW: Tensor,
    *,
    student_share: float,
    generator: torch.Generator | None,
    rows: tuple[int, int] | None = None,
) -> Mixture:
    """A random mixture of both nets' latents; `rows` as in `Pass`."""
    teacher_NLHW = teacher_NLHW.to(student_NLHW.dtype)  # cached, or under autocast
    mask_NLHW = student_mask(
        teacher_NLHW, student_share=student_share, generator=generator, rows=rows
    )
    return Mixture(student_NLHW, teacher_NLHW, mask_NLHW)
