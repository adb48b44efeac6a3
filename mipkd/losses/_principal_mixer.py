"""A Feature Prior Mixer whose latent space is that of the teacher's principal directions.

The teacher's encoder and decoder are fixed, so that they restore its features from the first step
on. The student's are linear, learned, and start at their least-squares solution.

Shapes: N batch, C channels of a net, L latent channels, H W low-res size, P places.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from mipkd.losses._principal import PrincipalDirections
from mipkd.losses.base import Carrier

_RIDGE = 1e-4  # damping, relative to the inputs' mean variance


class PrincipalMixer(nn.Module):
    """One position's encoders and decoders; without values before `start` or a loaded state."""

    principal: PrincipalDirections
    magnitude: Tensor

    def __init__(self, student_width: int, teacher_width: int, latent: int) -> None:
        super().__init__()
        self._student_width = student_width
        self.register_buffer("magnitude", torch.ones(()))  # mean |Z_T|
        self._set_directions(
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
        """Take these directions, and fit to both nets' features of the same patches."""
        self._set_directions(principal)
        latents_NLHW = self.encode_teacher(teacher_NCHW)
        self.magnitude.copy_(latents_NLHW.abs().mean().clamp(min=1e-8))
        _fit_pointwise(self.encode_student, student_NCHW, latents_NLHW)
        _fit_pointwise(self.to_student, latents_NLHW, student_NCHW)

    def _set_directions(self, principal: PrincipalDirections) -> None:
        """Take the directions and make the learned layers of their width."""
        self.principal = principal
        device = principal.mean_C.device
        self.encode_student: nn.Module = Pointwise(
            self._student_width, principal.width, device=device
        )
        self.to_student: nn.Module = Pointwise(principal.width, self._student_width, device=device)

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *rest: Any) -> None:
        """Load a state of any latent width: `start` chose it."""
        mean_C, directions_CL = (
            state_dict[f"{prefix}principal.{name}"].to(self.magnitude.device)
            for name in ("mean_C", "directions_CL")
        )
        self._set_directions(PrincipalDirections(mean_C.clone(), directions_CL.clone()))
        super()._load_from_state_dict(state_dict, prefix, *rest)


class Pointwise(nn.Linear):
    """A 1x1 convolution as a matrix product: on a CPU a third of the time for few channels."""

    def forward(self, features_NCHW: Tensor) -> Tensor:
        return super().forward(features_NCHW.movedim(1, -1)).movedim(-1, 1)


@torch.no_grad()
def _fit_pointwise(pointwise: nn.Module, inputs_NCHW: Tensor, outputs_NDHW: Tensor) -> None:
    """Set weight and bias by ridge regression.

    Not `archs._regression`, which sums float32 products on a CPU and damps relative to the energy
    with the mean: this runs on the features' device and is damped relative to their variance.
    """
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
