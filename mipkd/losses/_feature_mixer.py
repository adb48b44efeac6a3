"""The Feature Prior Mixer: two nets' features encoded into one latent space and mixed there.

Paper: "Knowledge Distillation with Multi-granularity Mixture of Priors for Image
Super-Resolution" (MiPKD). Shapes: N batch, C channels of a net, L latent channels, H W low-res.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

Carrier = Literal["student", "teacher"]
Encoder = Literal["cnn", "mlp"]
Mask = Literal["random", "grid", "none"]


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
    """A random mask of 0 and 1 over image, channel, height and width; 1 takes the student's.

    The share is kept to 1/256: eight elements cost one 64-bit random number, a tenth of the
    time of a float for each. Laid out in memory as channels last, like the
    features; `rows` as in `Pass`.
    """
    here, channels, height, width = like_NLHW.shape
    first, whole = rows or (0, here)
    count = whole * channels * height * width
    words = torch.empty(-(-count // 8), dtype=torch.int64, device=like_NLHW.device)
    words.random_(-(2**63), None, generator=generator)
    chance = words.view(torch.uint8)[:count].view(whole, height, width, channels)
    chance = chance[first : first + here]
    threshold = round(student_share * 256)
    mask = chance <= threshold - 1 if threshold else torch.zeros_like(chance, dtype=torch.bool)
    return mask.to(like_NLHW.dtype).permute(0, 3, 1, 2)


def grid_mask(like_NLHW: Tensor, *, student_share: float) -> Tensor:
    """The same mask at every step: its 1s evenly spaced along channel, height and width alike.

    A chequerboard at a share of a half.
    """
    _, channels, height, width = like_NLHW.shape
    along = [torch.arange(size, device=like_NLHW.device) for size in (channels, height, width)]
    diagonal = along[0][:, None, None] + along[1][:, None] + along[2]
    taken = ((diagonal + 1) * student_share).floor() - (diagonal * student_share).floor()
    return taken.to(like_NLHW.dtype).expand_as(like_NLHW)


def masked(
    kind: Mask,
    like_NLHW: Tensor,
    *,
    student_share: float,
    generator: torch.Generator | None,
    rows: tuple[int, int] | None = None,
) -> Tensor:
    """A mask of that kind; "none" is the share itself, so that all of both nets is averaged."""
    if kind == "grid":
        return grid_mask(like_NLHW, student_share=student_share)
    if kind == "none":
        return torch.full_like(like_NLHW, student_share)
    return student_mask(like_NLHW, student_share=student_share, generator=generator, rows=rows)


def _blend(mask_NLHW: Tensor, z_student: Tensor, z_teacher: Tensor) -> Tensor:
    """M * Z_S + (1 - M) * Z_T, exact for a mask of 0 and 1; a sixth of the time of `where`."""
    return torch.lerp(z_teacher, z_student, mask_NLHW)


def _conv(inputs: int, outputs: int, size: int = 3) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, size, padding=size // 2)


def _encoder(inputs: int, latent: int, kind: Encoder) -> nn.Sequential:
    size = 3 if kind == "cnn" else 1  # an MLP of each place; the decoder stays a CNN
    return nn.Sequential(_conv(inputs, latent, size), nn.ReLU(), _conv(latent, latent, size))


class Decoder(nn.Module):
    """Latent back to features: one trunk, and a last convolution for each net's width."""

    def __init__(self, latent: int, student_width: int, teacher_width: int) -> None:
        super().__init__()
        self.trunk = nn.Sequential(_conv(latent, latent), nn.ReLU())
        self.to_teacher: nn.Module = _conv(latent, teacher_width)
        # Same width: one head serves both, and the student's blocks see what it restores.
        self.to_student: nn.Module | None = (
            _conv(latent, student_width) if student_width != teacher_width else None
        )

    def head(self, trunk_NLHW: Tensor, carrier: Carrier) -> Tensor:
        """Features of `carrier`'s width from the trunk's output."""
        if carrier == "student" and self.to_student is not None:
            return self.to_student(trunk_NLHW)  # type: ignore[no-any-return]
        return self.to_teacher(trunk_NLHW)  # type: ignore[no-any-return]


@dataclass(frozen=True)
class Latents:
    """What is known at one position, kept for the block mixer."""

    student_NLHW: Tensor
    teacher_NLHW: Tensor
    mask_NLHW: Tensor
    trunk_NLHW: Tensor  # of the decoder, for the mixture of the two above
    enhanced_NCHW: Tensor  # the mixture as features of the teacher's width


class FeatureMixer(nn.Module):
    """One position's encoders and decoder."""

    def __init__(
        self,
        student_width: int,
        teacher_width: int,
        latent: int,
        *,
        encoder: Encoder = "cnn",
        shared: bool = False,
    ) -> None:
        super().__init__()
        mine = _encoder(student_width, latent, encoder)
        theirs = _encoder(teacher_width, latent, encoder)
        if shared:  # all that takes the same number of channels
            first = theirs[0] if student_width == teacher_width else mine[0]
            mine = nn.Sequential(first, *list(theirs)[1:])
        self.encode_student: nn.Module = mine
        self.encode_teacher: nn.Module = theirs
        self.decoder = Decoder(latent, student_width, teacher_width)

    def mix(
        self,
        student_NCHW: Tensor,
        teacher_NCHW: Tensor,
        *,
        student_share: float,
        generator: torch.Generator | None,
        rows: tuple[int, int] | None = None,
        mask: Mask = "random",
    ) -> Latents:
        """Encode both features and decode their mixture."""
        z_student = self.encode_student(student_NCHW)
        z_teacher = self.encode_teacher(teacher_NCHW)
        taken = masked(mask, z_teacher, student_share=student_share, generator=generator, rows=rows)
        trunk = self.decoder.trunk(_blend(taken, z_student, z_teacher))
        enhanced = self.decoder.head(trunk, "teacher")
        return Latents(z_student, z_teacher, taken, trunk, enhanced)

    def enhanced(self, latents: Latents, carrier: Carrier) -> Tensor:
        """The mixture as features of `carrier`'s width."""
        if carrier == "teacher" or self.decoder.to_student is None:
            return latents.enhanced_NCHW
        return self.decoder.head(latents.trunk_NLHW, carrier)

    def restored(self, latents: Latents) -> Tensor:
        """The teacher's own features through encoder and decoder, nothing mixed in."""
        return self.decoder.head(self.decoder.trunk(latents.teacher_NLHW), "teacher")

    def remixed(
        self, latents: Latents, stream_NCHW: Tensor, source: Carrier, carrier: Carrier
    ) -> Tensor:
        """The mixture with `stream_NCHW`, which net `source` computed, in place of its own
        features, as features of `carrier`'s width."""
        z_student, z_teacher = latents.student_NLHW, latents.teacher_NLHW
        if source == "student":
            z_student = self.encode_student(stream_NCHW)
        else:
            z_teacher = self.encode_teacher(stream_NCHW)
        mixed = _blend(latents.mask_NLHW, z_student, z_teacher)
        return self.decoder.head(self.decoder.trunk(mixed), carrier)
