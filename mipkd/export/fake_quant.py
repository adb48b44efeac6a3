"""Fake quantisation: a net that rounds to 8 bits where a target's INT8 does, for training (QAT).

Where and how to round is read from the target's own model, so that the net computes what that
will. Gradients pass straight through; scales are learned with the weights, as in LSQ (Esser et al.,
"Learned Step Size Quantization", ICLR 2020).

Shapes: N batch, C channels, H W low-res size, S scale.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from copy import deepcopy
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor, fx, nn

from mipkd.archs.base import SRNet
from mipkd.core.errors import UnsupportedError
from mipkd.core.records import QuantParams, QuantScheme
from mipkd.export.onnx import map_to_trace, name_calls

_PREFIX = "grid_"  # of the fake quantisers' names, also in checkpoints
_LEVELS = 255  # steps of 8 bits
_PACE = 30.0  # how much faster than a weight a scale's logarithm learns, at one learning rate
_USUAL = 2.0**-5  # root mean square of the weights in a convolution of 64 channels
_EXAMPLE = 48  # LR pixels a side while tracing; the result does not depend on it


class FakeQuantNet(SRNet):
    """`net`, traced, with fake quantisers as `rounding` says; its weights are copies."""

    in_parts = False

    def __init__(self, net: SRNet, rounding: QuantScheme) -> None:
        super().__init__()
        net = deepcopy(net.to_exportable())  # so that whatever is done to the net is not done here
        self.scale, self.width = net.scale, net.width
        self.multiple, self.least, self.smallest = net.multiple, net.least, net.smallest
        # No submodules: the weights are in the trace.
        self.__dict__["_net"], self.__dict__["blocks"] = net, net.blocks
        self._rounding = rounding
        self.traced = _trace(deepcopy(net))  # a copy: the trace uses its parameters
        self._units = _normalise_weights(self.traced)
        _insert_quantizers(self.traced, map_to_trace(net), rounding)

    def forward_with_taps(
        self, lr_NCHW: Tensor, positions: tuple[int, ...] = ()
    ) -> tuple[Tensor, list[Tensor]]:
        image, *features = self.traced(lr_NCHW)
        return image, [features[position] for position in positions]

    def learned_rounding(self) -> QuantScheme:
        """The rounding with its scales as they are now."""
        grids = [
            replace(grid, scale=cast("_FakeQuantizer", self.traced.get_submodule(name)).scale())
            for name, grid in _name_grids(self._rounding)
        ]
        return replace(self._rounding, grids=tuple(grids))

    def float_net(self) -> SRNet:
        """The net as it is exported, with the weights before rounding."""
        net: SRNet = deepcopy(self.__dict__["_net"])
        trained = dict(self.traced.named_parameters())
        with torch.no_grad():
            for name, parameter in net.named_parameters():
                if unit := self._units.get(f"net.{name}"):
                    parameter.copy_(trained[f"net.{name}"] * unit)
        return net.eval()


class _FakeQuantizer(nn.Module):
    """Rounds to 8 bits with a fixed zero point and a learned scale (LSQ)."""

    def __init__(self, grid: QuantParams) -> None:
        super().__init__()
        self.start, self.zero_point = grid.scale, grid.zero_point
        # Of the scale's logarithm since the start, in units of `_PACE`.
        self.growth = nn.Parameter(torch.zeros(()))

    def scale(self) -> float:
        return self.start * math.exp(_PACE * float(self.growth.detach()))

    def forward(self, features: Tensor) -> Tensor:
        rounded: Tensor = _StraightThrough.apply(
            features, self.growth, self.scale(), self.zero_point
        )  # type: ignore[no-untyped-call]
        return rounded


class _StraightThrough(torch.autograd.Function):
    """Rounds to the nearest of `_LEVELS` + 1 values.

    The features' gradient passes through within the range. With y the rounded x, the gradient of
    the scale is (y - x) / scale within the range and y / scale beyond it, that of its logarithm
    without the division.
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
    """Rounded per output channel, symmetric, to integers up to `most`; gradients pass through."""
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
        image, features = self.net.forward_with_taps(lr, tuple(range(len(self.net.blocks))))
        return (image, *features)


def _trace(net: SRNet) -> fx.GraphModule:
    example = torch.rand(2, 3, _EXAMPLE, _EXAMPLE + net.multiple * 2)
    shapes = {"lr": dict.fromkeys((0, 2, 3), torch.export.Dim.DYNAMIC)}
    plain = _WithFeatures(net).cpu().float().eval()
    with torch.no_grad():
        program = torch.export.export(plain, (example,), dynamic_shapes=shapes)
    module = program.module(check_guards=False)
    module.graph.set_codegen(fx.graph.CodeGen())  # plain arguments and outputs
    return fx.GraphModule(module, module.graph)  # unlike an exported one it has a training mode


def _normalise_weights(traced: fx.GraphModule) -> dict[str, float]:
    """Divide every parameter by a unit in which its layer's weights are about `_USUAL`; the units.

    Adam's steps have one size for all weights, and those that convert the range of pixels are
    hundreds of times larger or smaller than others.
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


def _name_grids(rounding: QuantScheme) -> Iterator[tuple[str, QuantParams]]:
    return ((f"{_PREFIX}{number}", grid) for number, grid in enumerate(rounding.grids))


def _insert_quantizers(
    traced: fx.GraphModule, trace_calls: dict[str, str], rounding: QuantScheme
) -> None:
    """Insert the fake quantisers; `trace_calls` as of `map_to_trace`."""
    graph = traced.graph
    nodes_by_name: dict[str, fx.Node] = {node.name: node for node in graph.nodes}
    nodes = {call: nodes_by_name[name] for name, call in name_calls(graph).items()}

    def find_node(operation: str) -> fx.Node:
        if not operation:
            return graph.output_node()
        if (node := nodes.get(trace_calls.get(operation, ""))) is None:
            raise UnsupportedError(
                f"qat: the target rounds at {operation}, which the traced net does not have",
                hint="run without --qat: the search chooses what stays float",
            )
        return node

    for name, grid in _name_grids(rounding):
        traced.add_submodule(name, _FakeQuantizer(grid))
        rounded: dict[fx.Node, fx.Node] = {}
        for operation, index in grid.readers:
            reader = find_node(operation)
            tensor = _get_input(reader, index)
            if tensor not in rounded:
                with graph.inserting_after(tensor):
                    rounded[tensor] = graph.call_module(name, (tensor,))
            _set_input(reader, index, rounded[tensor])
    for operation, most in rounding.weights:
        reader = find_node(operation)
        with graph.inserting_before(reader):
            weight = graph.call_function(_round_weight, (reader.args[1], most))
        reader.update_arg(1, weight)
    graph.lint()
    traced.recompile()


def _get_input(node: fx.Node, index: int) -> fx.Node:
    """The tensor at an input, counted as in ONNX: a list counts one by one."""
    first = node.args[0]
    return cast("fx.Node", first[index] if isinstance(first, Sequence) else node.args[index])


def _set_input(node: fx.Node, index: int, new: fx.Node) -> None:
    first = node.args[0]
    if isinstance(first, Sequence):
        node.update_arg(0, [new if i == index else one for i, one in enumerate(first)])
    else:
        node.update_arg(index, new)
