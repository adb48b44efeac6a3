"""A net that rounds to 8 bits where a target's INT8 does, to be trained in place of it.

What is rounded is read from the target's own model, so that the net computes what that will.
Rounding lets gradients through as if it were not there; a grid's scale is learned with the
weights, as in Esser et al., "Learned Step Size Quantization", ICLR 2020.

Shapes: N batch, C channels, H W low-res size, S scale.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor, fx, nn

from mipkd.archs.base import SRNet
from mipkd.core.errors import UnsupportedError
from mipkd.core.records import Grid, Rounding
from mipkd.export.onnx import called, sources

_GRID = "grid_"  # how the modules that round begin
_LEVELS = 255  # steps of a grid
_PACE = 30.0  # how much faster than a weight a scale's logarithm learns, at one learning rate
_USUAL = 2.0**-5  # of weights in a convolution of 64 channels: their root mean square
_EXAMPLE = 48  # LR pixels a side while tracing; the result does not depend on it


class Rounded(SRNet):
    """`net`, traced, with what is in `rounding` rounded; the weights are a copy of the net's."""

    in_parts = False

    def __init__(self, net: SRNet, rounding: Rounding) -> None:
        super().__init__()
        net = net.exported()
        self.scale, self.width = net.scale, net.width
        self.multiple, self.least, self.smallest = net.multiple, net.least, net.smallest
        self.__dict__["blocks"] = net.blocks  # to be counted; their weights are in the trace
        self._rounding = rounding
        self.traced = _traced(deepcopy(net))  # whose parameters the trace has for its own
        self._units = _even(self.traced)
        _insert(self.traced, sources(net), rounding)

    def tapped(
        self, lr_NCHW: Tensor, positions: tuple[int, ...] = ()
    ) -> tuple[Tensor, list[Tensor]]:
        """The image, and the features after each of `positions` (indices into `blocks`)."""
        image, *features = self.traced(lr_NCHW)
        return image, [features[position] for position in positions]

    def rounding(self) -> Rounding:
        """The grids as they are now."""
        made = (self.traced.get_submodule(_name(n)) for n in range(len(self._rounding.grids)))
        grids = [
            replace(grid, scale=cast("_Rounder", rounder).scale())
            for grid, rounder in zip(self._rounding.grids, made, strict=True)
        ]
        return replace(self._rounding, grids=tuple(grids))

    def weights(self) -> dict[str, Tensor]:
        """As floats, under the names that they have in the net's graph."""
        found = self.traced.named_parameters()
        return {name: p.detach() * self._units[name] for name, p in found if name in self._units}


class _Rounder(nn.Module):
    """Rounds to a grid whose scale is learned, by what it has grown since the start."""

    def __init__(self, grid: Grid) -> None:
        super().__init__()
        self.start, self.zero = grid.scale, grid.zero
        self.growth = nn.Parameter(torch.zeros(()))  # of the scale's logarithm, in units of `_PACE`

    def scale(self) -> float:
        return self.start * math.exp(_PACE * float(self.growth.detach()))

    def forward(self, features: Tensor) -> Tensor:
        rounded: Tensor = _Round.apply(features, self.growth, self.scale(), self.zero)  # type: ignore[no-untyped-call]
        return rounded


class _Round(torch.autograd.Function):
    """To the nearest of `_LEVELS` + 1 values.

    The features' gradient goes through where they lie within the grid. With y the rounded x, the
    scale's is y - x there and y beyond it, over the scale: for its logarithm no division is left.
    """

    @staticmethod
    def forward(ctx: Any, features: Tensor, growth: Tensor, scale: float, zero: int) -> Tensor:
        round_ = torch.ops.aten.fake_quantize_per_tensor_affine_cachemask
        rounded, inside = round_(features, scale, zero, 0, _LEVELS)
        ctx.save_for_backward(features, rounded, inside)
        return rounded  # type: ignore[no-any-return]

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = gradients
        features, rounded, inside = ctx.saved_tensors
        through = gradient * inside
        of_scale = (gradient * rounded).sum() - (through * features).sum()
        return through, _PACE * of_scale, None, None


def _round_weight(weight: Tensor, most: float) -> Tensor:
    """Per output channel, symmetric, to no integer beyond `most`."""
    scale = weight.detach().abs().amax(dim=tuple(range(1, weight.ndim)), keepdim=True) / most
    scale = scale.clamp(min=torch.finfo(weight.dtype).tiny)
    whole = (weight.detach() / scale).round().clamp(-int(most), int(most))
    return weight + (whole * scale - weight).detach()


class _WithFeatures(nn.Module):
    """The net without padding: the image and the features after every block."""

    def __init__(self, net: SRNet) -> None:
        super().__init__()
        self.net = net

    def forward(self, lr: Tensor) -> tuple[Tensor, ...]:
        image, features = self.net.tapped(lr, tuple(range(len(self.net.blocks))))
        return (image, *features)


def _traced(net: SRNet) -> fx.GraphModule:
    example = torch.rand(2, 3, _EXAMPLE, _EXAMPLE + net.multiple * 2)
    shapes = {"lr": dict.fromkeys((0, 2, 3), torch.export.Dim.DYNAMIC)}
    plain = _WithFeatures(net).cpu().float().eval()
    with torch.no_grad():
        program = torch.export.export(plain, (example,), dynamic_shapes=shapes)
    module = program.module(check_guards=False)
    module.graph.set_codegen(fx.graph.CodeGen())  # one tensor in, a plain tuple out
    return fx.GraphModule(module, module.graph)  # one that can be put into training mode


def _even(traced: fx.GraphModule) -> dict[str, float]:
    """Hold every parameter in units in which its layer's weights are about `_USUAL`; gives these.

    The optimiser's steps are of one size for all, and weights with the range of pixels in them
    are hundreds of times larger or smaller than others.
    """
    graph, held = traced.graph, dict(traced.named_parameters())
    units = {}
    reads = [n for n in graph.nodes if n.op == "get_attr" and n.target in held]
    for name in {str(node.target) for node in reads}:
        layer = held.get(f"{name.rpartition('.')[0]}.weight", held[name])
        size = float(layer.detach().square().mean().sqrt())
        units[name] = 2.0 ** round(math.log2(size / _USUAL)) if size else 1.0
    for name, unit in units.items():
        held[name].data.div_(unit)
    for node in reads:
        with graph.inserting_after(node):
            whole = graph.call_function(torch.mul, (node, units[str(node.target)]))
        node.replace_all_uses_with(
            whole, delete_user_cb=lambda user, whole=whole: user is not whole
        )
    traced.recompile()
    return units


def _name(number: int) -> str:
    return f"{_GRID}{number}"


def _insert(traced: fx.GraphModule, sources: dict[str, str], rounding: Rounding) -> None:
    graph = traced.graph
    by_call = {call: name for name, call in called(graph).items()}
    nodes: dict[str, fx.Node] = {node.name: node for node in graph.nodes}

    def found(operation: str) -> fx.Node:
        if not operation:
            return graph.output_node()
        if sources.get(operation) not in by_call:
            raise UnsupportedError(
                f"qat: what the target rounds at {operation} has no like in the traced net",
                hint="run without --qat: the search chooses what stays float",
            )
        return nodes[by_call[sources[operation]]]

    for number, grid in enumerate(rounding.grids):
        traced.add_submodule(_name(number), _Rounder(grid))
        rounded: dict[fx.Node, fx.Node] = {}
        for operation, index in grid.readers:
            reader = found(operation)
            before = _input(reader, index)
            if before not in rounded:
                with graph.inserting_after(before):
                    rounded[before] = graph.call_module(_name(number), (before,))
            _replace(reader, index, rounded[before])
    for operation, most in rounding.weights:
        reader = found(operation)
        weight = reader.args[1]
        with graph.inserting_before(reader):
            made = graph.call_function(_round_weight, (weight, most))
        reader.update_arg(1, made)
    graph.lint()
    traced.recompile()


def _input(node: fx.Node, index: int) -> fx.Node:
    """The tensor at an input, counted as in ONNX: those of a list one by one."""
    first = node.args[0]
    return cast("fx.Node", first[index] if isinstance(first, Sequence) else node.args[index])


def _replace(node: fx.Node, index: int, new: fx.Node) -> None:
    first = node.args[0]
    if isinstance(first, Sequence):
        node.update_arg(0, [new if i == index else one for i, one in enumerate(first)])
    else:
        node.update_arg(index, new)
