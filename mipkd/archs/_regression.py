"""Ridge regression of convolutions on features, and the selection of their input channels.

Shapes: N patches, C and K channels, H W low-res size, P places of a patch, k kernel side,
I inputs: the unfolded k x k neighbourhoods and a constant for the bias, O outputs.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

_AT_ONCE = 2**24  # unfolded values in memory: 64 MiB, a few times over
_ROUNDS = 8  # of backward elimination at least: each removes an eighth of the channels in excess


@dataclass
class Regression:
    """The normal equations of a convolution, summed over all places of all patches."""

    gram_II: Tensor  # of the unfolded inputs and the constant, float64
    cross_IO: Tensor  # of inputs and targets
    size: int  # k

    @classmethod
    def of(cls, inputs_NKHW: Tensor, targets_NCHW: Tensor, size: int) -> Regression:
        """From the layer's input features and its target features."""
        width, outputs = inputs_NKHW.shape[1] * size**2, targets_NCHW.shape[1]
        gram = torch.zeros(width + 1, width + 1, dtype=torch.float64)
        cross = torch.zeros(width + 1, outputs, dtype=torch.float64)
        step = max(1, _AT_ONCE // (width * inputs_NKHW[0, 0].numel()))
        for start in range(0, len(inputs_NKHW), step):
            seen, wanted = (t[start : start + step] for t in (inputs_NKHW, targets_NCHW))
            x_NIP, y_NOP = F.unfold(seen, size, padding=size // 2), wanted.flatten(2)
            gram[:-1, :-1] += _products(x_NIP, x_NIP)
            gram[-1, :-1] += x_NIP.sum((0, 2)).double()
            gram[-1, -1] += len(x_NIP) * x_NIP.shape[2]
            cross[:-1] += _products(x_NIP, y_NOP)
            cross[-1] += y_NOP.sum((0, 2)).double()
        gram[:-1, -1] = gram[-1, :-1]
        return cls(gram, cross, size)

    def solve(self, damping: float = 1e-5) -> tuple[Tensor, Tensor]:
        """Weight (C, K, k, k) and bias (C,) by ridge regression; `damping` is relative to the
        inputs' mean energy, the bias is not damped."""
        solution_IO = torch.linalg.solve(self._damp(damping), self.cross_IO)
        return self._as_kernel(solution_IO)

    def strongest_inputs(self, count: int, damping: float = 1e-5, always: int = 0) -> list[int]:
        """The `count` input channels whose removal would raise the error most, sorted; the first
        `always` are kept.

        Backward elimination, several channels at a time: first go those that the others replace
        best (optimal brain surgeon, Hassibi and Stork 1993, for groups of weights).
        """
        group = self.size**2
        left = list(range((len(self.gram_II) - 1) // group))
        inverse_II = torch.linalg.inv(self._damp(damping))
        weights_IO = inverse_II @ self.cross_IO
        while len(left) > count:
            harms = _harms(inverse_II, weights_IO, len(left), group)
            harms[:always] = torch.inf
            few = -(-(len(left) - count) // _ROUNDS)
            goes = harms.topk(few, largest=False).indices.sort().values.tolist()
            inverse_II, weights_IO = _without(inverse_II, weights_IO, goes, group)
            left = [channel for at, channel in enumerate(left) if at not in goes]
        return left

    def _damp(self, damping: float) -> Tensor:
        # Features that are 0 everywhere get weights of 0.
        energy = max(1e-12, float(self.gram_II.diagonal()[:-1].mean()))
        diagonal = torch.full((len(self.gram_II),), energy, dtype=torch.float64)
        diagonal[-1] = 0
        return self.gram_II + damping * diagonal.diag()

    def _as_kernel(self, solution_IO: Tensor) -> tuple[Tensor, Tensor]:
        outputs = solution_IO.shape[1]
        weight = solution_IO[:-1].T.reshape(outputs, -1, self.size, self.size)
        return weight.float(), solution_IO[-1].float()


def _harms(inverse_II: Tensor, weights_IO: Tensor, count: int, group: int) -> Tensor:
    """What removing each of the first `count` groups of inputs adds to the squared error."""
    used = count * group
    square = inverse_II[:used, :used].view(count, group, count, group)
    block_Ggg = square.diagonal(dim1=0, dim2=2).permute(2, 0, 1)
    weight_GgO = weights_IO[:used].view(count, group, -1)
    solved_GgO: Tensor = torch.linalg.solve(block_Ggg, weight_GgO)
    return (weight_GgO * solved_GgO).sum((1, 2))


def _without(
    inverse_II: Tensor, weights_IO: Tensor, goes: list[int], group: int
) -> tuple[Tensor, Tensor]:
    """Inverse and solution without the groups in `goes`, by the block inverse."""
    gone = torch.zeros(len(inverse_II), dtype=torch.bool)
    for at in goes:
        gone[at * group : (at + 1) * group] = True
    across_Ig = inverse_II[:, gone]
    solved = torch.linalg.solve(across_Ig[gone], torch.cat([across_Ig.T, weights_IO[gone]], 1))
    inverse_II = inverse_II - across_Ig @ solved[:, : len(inverse_II)]
    weights_IO = weights_IO - across_Ig @ solved[:, len(across_Ig) :]
    return inverse_II[~gone][:, ~gone], weights_IO[~gone]


def _products(a_NIP: Tensor, b_NOP: Tensor) -> Tensor:
    """The products of all pairs of rows, summed over patches and places, (I, O) in float64."""
    empty = a_NIP.new_zeros(a_NIP.shape[1], b_NOP.shape[1])
    return torch.addbmm(empty, a_NIP, b_NOP.transpose(1, 2)).double()


def second_moments(features_NCHW: Tensor) -> Tensor:
    """The covariance (C, C) of features over all places, float64."""
    mean_C = features_NCHW.mean((0, 2, 3), dtype=torch.float64)
    total = torch.zeros(len(mean_C), len(mean_C), dtype=torch.float64)
    for some_NCHW in features_NCHW.tensor_split(-(-features_NCHW.numel() // _AT_ONCE)):
        x_NCP = some_NCHW.flatten(2) - mean_C.float()[:, None]
        total += _products(x_NCP, x_NCP)
    return total / features_NCHW[:, 0].numel()
