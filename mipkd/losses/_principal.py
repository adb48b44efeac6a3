"""Principal directions of a net's features at one position, a linear latent space.

Shapes: N batch, C channels, L latent channels, H W low-res size.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

_UNIT = 8  # `choose_width` takes a multiple of it


class PrincipalDirections(nn.Module):
    """A fixed linear encoder and its transpose: latent = (features - mean) @ directions."""

    mean_C: Tensor
    directions_CL: Tensor  # orthonormal columns, by decreasing variance

    def __init__(self, mean_C: Tensor, directions_CL: Tensor) -> None:
        super().__init__()
        self.register_buffer("mean_C", mean_C)
        self.register_buffer("directions_CL", directions_CL)

    @classmethod
    @torch.no_grad()
    def fit(cls, features_NCHW: Tensor, width: int) -> PrincipalDirections:
        """The `width` directions in which these features vary most, float32 on their device.

        Each direction's largest component is positive: an eigenvector's sign is arbitrary.
        """
        mean_C, covariance_CC = _moments(features_NCHW)
        _, vectors_CC = torch.linalg.eigh(covariance_CC)  # by rising variance
        directions_CL = vectors_CC.flip(1)[:, :width]
        largest_1L = directions_CL.gather(0, directions_CL.abs().argmax(0, keepdim=True))
        directions_CL = directions_CL * torch.where(largest_1L < 0, -1.0, 1.0)
        return cls(mean_C.float(), directions_CL.float().contiguous())

    @property
    def width(self) -> int:
        """L."""
        return self.directions_CL.shape[1]

    def narrow(self, width: int) -> PrincipalDirections:
        """The first `width` of the directions."""
        return PrincipalDirections(self.mean_C, self.directions_CL[:, :width].contiguous())

    def encode(self, features_NCHW: Tensor) -> Tensor:
        """Latents (N, L, H, W)."""
        centred_NHWC = features_NCHW.movedim(1, -1) - self.mean_C
        return (centred_NHWC @ self.directions_CL).movedim(-1, 1)

    def decode(self, latents_NLHW: Tensor) -> Tensor:
        """Features (N, C, H, W), the inverse of `encode` within the L directions."""
        centred_NHWC = latents_NLHW.movedim(1, -1) @ self.directions_CL.T
        return (centred_NHWC + self.mean_C).movedim(-1, 1)


@torch.no_grad()
def choose_width(features_K: Sequence[Tensor], *, at_most: int = 64, error: float = 0.1) -> int:
    """The smallest multiple of 8 directions that restores the features of every position within
    `error` (as in `relative_error`); the largest width, at most C and `at_most`, if none does."""
    widest = min(at_most, *(features.shape[1] for features in features_K))
    fitted = [PrincipalDirections.fit(features, widest) for features in features_K]
    for width in range(_UNIT, widest, _UNIT):
        pairs = zip(fitted, features_K, strict=True)
        if all(relative_error(f.narrow(width), features) <= error for f, features in pairs):
            return width
    return widest


@torch.no_grad()
def relative_error(directions: PrincipalDirections, features_NCHW: Tensor) -> float:
    """Mean absolute error of encoded and decoded features over the features' mean magnitude."""
    restored = directions.decode(directions.encode(features_NCHW))
    error = (restored - features_NCHW).abs().mean() / features_NCHW.abs().mean().clamp(min=1e-12)
    return float(error)


def _moments(features_NCHW: Tensor) -> tuple[Tensor, Tensor]:
    """Mean (C,) and covariance (C, C) over all places, in float64, image by image.

    Not `archs._regression.second_moments`, whose products are float32 for speed on wide teachers
    and on a CPU: cached latents stay in these directions, so they are fitted in full precision.
    """
    channels = features_NCHW.shape[1]
    mean_C = features_NCHW.mean((0, 2, 3), dtype=torch.float64)
    total_CC = mean_C.new_zeros(channels, channels)
    for features_CHW in features_NCHW:
        centred_CP = features_CHW.flatten(1).double() - mean_C[:, None]
        total_CC += centred_CP @ centred_CP.T
    return mean_C, total_CC / (features_NCHW.numel() / channels)
