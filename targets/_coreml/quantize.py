"""8-bit convolutions for Core ML: quantize and dequantize written into the torch net.

Why not by coremltools' own quantiser: docs/decisions/0008-coreml-int8.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mipkd.core.records import PatchSet

_CLIPPED = 1e-4  # share of a patch's values that a range leaves out at either end
_LEAST_SCALE = 2.0**-14  # FP16's smallest normal number: scales are stored as FP16


@dataclass
class Range:
    """The range of the values that reached a convolution."""

    low: float = 0.0
    high: float = 0.0
    pooled: bool = True  # never more than one pixel

    def widen(self, values_NCHW: Any) -> None:
        """Take in all values but the rare extreme ones."""
        flat = values_NCHW.flatten()
        left_out = int(flat.numel() * _CLIPPED)
        self.low = min(self.low, float(flat.kthvalue(left_out + 1).values))
        self.high = max(self.high, float(flat.kthvalue(flat.numel() - left_out).values))
        self.pooled = self.pooled and values_NCHW.shape[2:].numel() == 1

    def codes(self) -> tuple[float, int]:
        """Scale and zero point of UINT8: 0 where nothing is negative, else the middle."""
        if self.low >= 0:
            return max(self.high / 255, _LEAST_SCALE), 0
        return max(self.high / 127, -self.low / 127, _LEAST_SCALE), 128


def quantize_convolutions(net: Any, patches: PatchSet) -> tuple[Any, tuple[str, ...]]:
    """`net` with 8-bit weights and inputs of convolutions, changed in place, and notes."""
    import torch

    from calibration.sensitive_layers import ATTENTION_FLOAT, refuse_nothing_quantized

    seen = _ranges(net, patches)
    small = [name for name, found in seen.items() if found.pooled]
    floats = {*list(seen)[:1], *list(seen)[-1:], *small}
    refuse_nothing_quantized("Conv" for _ in seen.keys() - floats)
    for name, found in seen.items():
        if name not in floats:
            parent, _, own = name.rpartition(".")
            setattr(net.get_submodule(parent), own, _rounding(net.get_submodule(name), found))
    notes = ["2 convolutions (first, last) and skip additions stay FP16"]
    if small:
        notes.append(f"{len(small)} convolutions of pooled values stay FP16")
    if any(isinstance(module, torch.nn.Linear) for module in net.modules()):
        notes.append(ATTENTION_FLOAT)
    return net, tuple(notes)


def _ranges(net: Any, patches: PatchSet) -> dict[str, Range]:
    """The range of each convolution's input, in the order in which they run."""
    import torch

    from calibration.patches import as_batches

    seen: dict[str, Range] = {}
    hooks = [
        module.register_forward_pre_hook(
            lambda _, given, name=name: seen.setdefault(name, Range()).widen(given[0])
        )
        for name, module in net.named_modules()
        if isinstance(module, torch.nn.Conv2d)
    ]
    with torch.inference_mode():
        for image in as_batches(patches):
            net(torch.from_numpy(image))
    for hook in hooks:
        hook.remove()
    return seen


def _rounding(conv: Any, found: Range) -> Any:
    """A convolution whose input and weights are stored in 8 bits."""
    import torch
    import torch.ao.quantization.fx._decomposed  # defines the operators

    operators = torch.ops.quantized_decomposed
    per_tensor = (*found.codes(), 0, 255, torch.uint8)
    weight = conv.weight.detach()
    # Codes for the scale as it will be stored.
    scales = (weight.abs().amax((1, 2, 3)) / 127).clamp(min=_LEAST_SCALE).half().float()
    codes = (weight / scales[:, None, None, None]).round().clamp(-127, 127).to(torch.int8)

    class Rounding(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = conv
            self.register_buffer("codes", codes)
            self.register_buffer("scales", scales)
            self.register_buffer("zeros", torch.zeros(len(scales), dtype=torch.int8))

        def forward(self, x: Any) -> Any:
            stored = operators.quantize_per_tensor(x, *per_tensor)
            x = operators.dequantize_per_tensor(stored, *per_tensor)
            channels = (self.scales, self.zeros, 0, -127, 127, torch.int8)
            kernel = operators.dequantize_per_channel(self.codes, *channels)
            return self.conv._conv_forward(x, kernel, self.conv.bias)

    return Rounding()
