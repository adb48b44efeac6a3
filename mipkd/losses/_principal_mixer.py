"""A Feature Prior Mixer whose latent space is the teacher's principal directions.

Encoder and decoder of the teacher are fixed, so that they restore its features from the first
step on; what is learned is linear, and starts at its least-squares solution.

Shapes: N batch, C channels of a net, L latent channels, H W low-res size, P places.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from mipkd.losses._principal import PrincipalDirections
from mipkd.losses.base import Carrier

_RIDGE = 1e-4  # of the inputs' mean variance


class PrincipalMixer(nn.Module):
    """One position's encoders and decoders; of no use before `start` or a load of its state."""

    principal: PrincipalDirections
    magnitude: Tensor

    def __init__(self, student_width: int, teacher_width: int, latent: int) -> None:
        super().__init__()
        self._student_width = student_width
        self.register_buffer("magnitude", torch.ones(()))  # mean |Z_T|
        self._take(
            PrincipalDirections(torch.zeros(teacher_width), torch.eye(teacher_width)[:, :latent])
        )

    def encode_teacher(self, features_NCHW: Tensor) -> Tensor:
        """The teacher's latents (N, L, H, W)."""
        return self.principal.encode(features_NCHW)

    def decode(self, latents_NLHW: Tensor, carrier: Carrier) -> Tensor:
        """Features of `carrier`'s width."""
        if carrier == "student":
            return self.to_student(latents_NLHW)  # type: ignore[no-any-return]
        return self.principal.decode(latents_NLHW)

    @torch.no_grad()
    def start(
        self, principal: PrincipalDirections, student_NCHW: Tensor, teacher_NCHW: Tensor
    ) -> None:
        """Take these directions, and learn from both nets' features of the same patches."""
        self._take(principal)
        latents_NLHW = self.encode_teacher(teacher_NCHW)
        self.magnitude.copy_(latents_NLHW.abs().mean().clamp(min=1e-8))
        _fit(self.encode_student, student_NCHW, latents_NLHW)
        _fit(self.to_student, latents_NLHW, student_NCHW)

    def _take(self, principal: PrincipalDirections) -> None:
        """Make all of that latent width."""
        self.principal = principal
        device = principal.mean_C.device
        self.encode_student: nn.Module = Pointwise(
            self._student_width, principal.width, device=device
        )
        self.to_student: nn.Module = Pointwise(principal.width, self._student_width, device=device)

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *rest: Any) -> None:
        """A state is of the width that its own start chose."""
        mean_C, directions_CL = (
            state_dict[f"{prefix}principal.{name}"].to(self.magnitude.device)
            for name in ("mean_C", "directions_CL")
        )
        self._take(PrincipalDirections(mean_C.clone(), directions_CL.clone()))
        super()._load_from_state_dict(state_dict, prefix, *rest)


class Pointwise(nn.Linear):
    """A 1x1 convolution, as a product: on a CPU in a third of the time where channels are few."""

    def forward(self, features_NCHW: Tensor) -> Tensor:
        """Features (N, D, H, W) of features (N, C, H, W)."""
        return super().forward(features_NCHW.movedim(1, -1)).movedim(-1, 1)


@torch.no_grad()
def _fit(pointwise: nn.Module, inputs_NCHW: Tensor, outputs_NDHW: Tensor) -> None:
    """Weights and bias of least squared error, by ridge regression in float64."""
    assert isinstance(pointwise, Pointwise)
    x_PC, y_PD = (t.movedim(1, -1).flatten(0, -2).double() for t in (inputs_NCHW, outputs_NDHW))
    mean_C, mean_D = x_PC.mean(0), y_PD.mean(0)
    x_PC, y_PD = x_PC - mean_C, y_PD - mean_D
    gram_CC = x_PC.T @ x_PC
    ridge = _RIDGE * gram_CC.diagonal().mean() + torch.finfo(torch.float64).tiny
    gram_CC.diagonal().add_(ridge)
    weight_CD = torch.linalg.solve(gram_CC, x_PC.T @ y_PD)
    pointwise.weight.copy_(weight_CD.T)
    pointwise.bias.copy_(mean_D - mean_C @ weight_CD)
