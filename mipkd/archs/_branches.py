"""Branches that a foreign net merges into one convolution at every call: merged here for good.

Such a module (SPAN's Conv3XC) writes its weights while it runs, which exporters trace or die of.
"""

from __future__ import annotations

from copy import deepcopy

import torch
from torch import Tensor, nn

# What authors call the method that merges branches.
_MERGERS = (
    *("update_params", "rep_params", "reparameterize", "merge_kernel", "fuse", "fuse_block"),
    *("switch_to_deploy", "get_equivalent_kernel_bias"),
)
_FURTHEST = 7  # pixels that a merged kernel may reach
_EQUAL = 1e-5  # of the largest value


def merge_branches(net: nn.Module) -> int:
    """Put a plain convolution in place of each module that merges its branches, where it gives the
    same values; how many were replaced. The net is in eval mode."""
    count = 0
    for name, module in list(net.named_modules()):
        if not (name and any(callable(getattr(module, one, None)) for one in _MERGERS)):
            continue
        if conv := _as_convolution(module):
            parent, _, own = name.rpartition(".")
            setattr(net.get_submodule(parent), own, conv)
            count += 1
    return count


@torch.no_grad()
def _as_convolution(module: nn.Module) -> nn.Conv2d | None:
    """The convolution that the module amounts to, from its response to single pixels."""
    inner = [one for one in module.modules() if isinstance(one, nn.Conv2d)]
    if not inner or inner[0] is module:
        return None
    exact, channels = deepcopy(module).double(), inner[0].in_channels
    reach = min(sum(max(one.kernel_size) // 2 for one in inner), _FURTHEST)
    side, middle = 4 * reach + 1, 2 * reach
    dots = torch.zeros(channels + 1, channels, side, side)  # the last one stays empty
    dots[range(channels), range(channels), middle, middle] = 1
    try:
        seen = exact(dots.double())
    except (RuntimeError, ValueError, TypeError):  # it takes something else than features
        return None
    if not isinstance(seen, Tensor) or seen.shape[2:] != (side, side):
        return None
    bias = seen[-1, :, middle, middle]
    around = slice(middle - reach, middle + reach + 1)
    kernel = (seen[:-1] - bias[:, None, None])[..., around, around].flip(2, 3).transpose(0, 1)
    conv = _convolution(_without_margin(kernel), bias).to(inner[0].weight)
    trial = torch.randn(2, channels, side + 2, side, generator=torch.Generator().manual_seed(0))
    trial = trial.to(inner[0].weight)
    expected, found = module(trial), conv(trial)
    same = float((expected - found).abs().max()) <= _EQUAL * float(expected.abs().max())
    return conv if same else None


def _without_margin(kernel: Tensor) -> Tensor:
    """The smallest odd kernel that holds all that is not rounding."""
    least = 1e-9 * float(kernel.abs().max())
    while kernel.shape[-1] > 1:
        inside = kernel[..., 1:-1, 1:-1]
        margin = kernel.clone()
        margin[..., 1:-1, 1:-1] = 0
        if float(margin.abs().max()) > least:
            break
        kernel = inside
    return kernel


def _convolution(kernel: Tensor, bias: Tensor) -> nn.Conv2d:
    made, read, side, _ = kernel.shape
    conv = nn.Conv2d(read, made, side, padding=side // 2).to(kernel)
    conv.weight.copy_(kernel)
    assert conv.bias is not None, "it was made with one"
    conv.bias.copy_(bias)
    return conv.eval()
