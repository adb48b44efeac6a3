"""A net of a foreign family: its image, and the features of its blocks read by forward hooks.

Shapes: N batch, C channels, H W low-res size, L = H * W tokens, S scale. Images: float32 in
[0, 1], RGB.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from mipkd.archs._branches import merge_branches
from mipkd.archs.base import SRNet, params
from mipkd.core.errors import UsageError, nearest

_LEAST_SIDE = 32  # LR pixels a side in a trial run
_WINDOW = 16  # the largest window of attention in use: at its multiples nets do not pad inside


@dataclass(frozen=True)
class Padding:
    """What a net adds inside at the bottom and at the right, before its blocks."""

    multiple: int = 1  # of which H and W are after it
    always: bool = False  # by a whole multiple where they were before

    def pad(self, side: int) -> int:
        """The length of a side after it."""
        whole = side // self.multiple if self.always else -(-side // self.multiple) - 1
        return (whole + 1) * self.multiple


# CRAFT always adds, GRL pads to its stripes, the largest of which are 64 in published weights.
_PADDINGS = (
    Padding(),
    *(Padding(side) for side in (32, 64, 128)),
    *(Padding(side, always=True) for side in (8, 16, 32)),
)


@dataclass(frozen=True)
class BlockSequence:
    """Modules that run one after the other and give features of one size."""

    names: tuple[str, ...] = ()  # as in `named_modules`
    width: int = 0  # channels
    padding: Padding = Padding()


# How a net is asked for its image, where that is not by calling it.
Call = Callable[[nn.Module, Tensor], Tensor]


class HookedNet(SRNet):
    """A net whose parts cannot be run one by one, but whose blocks give features.

    Args:
        call: gives the image of a net that is not called plainly.
        one_by_one: the images of a batch would change each other's.
        channels_last: it can compute in that layout of memory.
    """

    in_parts = False
    image_range = 1.0  # of the pixels that the foreign net takes and gives

    def __init__(
        self,
        net: nn.Module,
        blocks: BlockSequence,
        *,
        scale: int,
        multiple: int = 1,
        least: int = 1,
        call: Call = nn.Module.__call__,
        one_by_one: bool = False,
        channels_last: bool = True,
    ) -> None:
        super().__init__()
        self.net, self.call = net, call
        self.one_by_one, self.channels_last = one_by_one, channels_last
        self.scale, self.width = scale, blocks.width
        self.multiple, self.least = multiple, least
        self.smallest = max(2, least)
        self.names, self.padding = blocks.names, blocks.padding
        # Not registered as submodules: the state dict must hold their weights once.
        self.__dict__["blocks"] = nn.ModuleList(net.get_submodule(n) for n in blocks.names)

    @property
    def unpadded_multiple(self) -> int:
        """A multiple of H and W at which the net pads nothing inside, as far as is known."""
        return math.lcm(self.multiple, _WINDOW, self.padding.multiple)

    def to_deployed(self) -> SRNet:
        """A copy in which branches for training are merged."""
        copy = deepcopy(self)
        merge_branches(copy.net)
        return copy

    def forward_with_taps(
        self, lr_NCHW: Tensor, positions: tuple[int, ...] = ()
    ) -> tuple[Tensor, list[Tensor]]:
        """As in `SRNet`.

        Raises:
            UsageError: at this LR size a block's features have another size.
        """
        if self.one_by_one and len(lr_NCHW) > 1:
            each = [self.forward_with_taps(one[None], positions) for one in lr_NCHW]
            taps = zip(*(features for _, features in each), strict=True)
            return torch.cat([image for image, _ in each]), [torch.cat(one) for one in taps]
        outputs: dict[int, Any] = {}
        handles = [_on_output(self.blocks[p], partial(outputs.__setitem__, p)) for p in positions]
        try:
            layout = torch.preserve_format if self.channels_last else torch.contiguous_format
            pixels = lr_NCHW.clone(memory_format=layout)  # some nets write to their input
            pixels = pixels if self.image_range == 1 else pixels * self.image_range
            image = self.call(self.net, pixels)
            image = image if self.image_range == 1 else image / self.image_range
        finally:
            for handle in handles:
                handle.remove()
        return image, [self._features(p, outputs[p], lr_NCHW) for p in positions]

    def _features(self, position: int, output: Any, lr_NCHW: Tensor) -> Tensor:
        features = to_feature_map(output, lr_NCHW, self.padding)
        if features is None:
            height, width = lr_NCHW.shape[-2:]
            raise UsageError(
                f"distill.patch: at LR {width}x{height} the teacher's {self.names[position]} gives "
                f"{_describe(output)}: features of another size",
                hint=f"try a multiple of {_WINDOW}, or --set distill.method=logits",
            )
        return features


def to_feature_map(output: Any, lr_NCHW: Tensor, padding: Padding = _PADDINGS[0]) -> Tensor | None:
    """A block's output as (N, C, H, W), tokens (N, L, C) reshaped; None if it is neither.

    Of a tuple the first element: attention maps or an inner state follow the features. What the net
    has padded is cut off.
    """
    if isinstance(output, tuple) and output:
        output = output[0]
    if not isinstance(output, Tensor):
        return None
    height, width = lr_NCHW.shape[-2:]
    high, wide = padding.pad(height), padding.pad(width)
    if output.ndim == 3 and output.shape[1] == high * wide:
        output = output.transpose(1, 2).reshape(len(output), -1, high, wide)
    if output.ndim != 4 or output.shape[-2:] != (high, wide):
        return None
    features: Tensor = output[..., :height, :width]
    return features


def trial_image(*, multiple: int, least: int) -> Tensor:
    """A small image of noise (1, 3, H, W), H and W different, on which any net can run."""
    unit = math.lcm(_WINDOW, multiple)
    height = math.ceil(max(_LEAST_SIDE, least) / unit) * unit
    generator = torch.Generator().manual_seed(0)
    return torch.rand(1, 3, height, height + unit, generator=generator)


def find_blocks(
    net: nn.Module, lr_NCHW: Tensor, named: str | None = None, call: Call = nn.Module.__call__
) -> BlockSequence:
    """The blocks of the net's body, found by running it once; empty if there are none.

    Candidates are the members of a container, or those of one class in any module, that run once
    each, in order, and give maps of the LR image's size, or of that which the net pads it to. The
    longest that holds at least half of the parameters is taken, or else the one that holds the
    most: the groups of RCAN, not the blocks in one of them. `named` overrides it: a container, or
    modules separated by commas.

    Raises:
        UsageError: `named` does not exist, or is no such sequence.
    """
    trial = _Trial(net, lr_NCHW, call)
    names = _list_named(net, named) if named else ()
    for padding in _PADDINGS:
        if named:
            found = trial.measure(BlockSequence(names, 0, padding))
        else:
            found = _find_longest(net, trial, padding)
        # Two ways of padding may give one size: they differ at this one.
        if found.names and (
            padding == Padding() or _Trial(net, lr_NCHW.repeat(1, 1, 2, 3), call).fits(found)
        ):
            return found
    if not named:
        return BlockSequence()
    raise UsageError(
        f"identify.blocks: {named}: not features of one size, that of the LR image, each given "
        f"once and in order: {trial.describe(names) or 'no modules'}",
        hint="leave it out: blocks are looked for",
    )


def _find_longest(net: nn.Module, trial: _Trial, padding: Padding) -> BlockSequence:
    sequences = (names for names in _sequences(net) if len(names) > 1)
    fitting = [names for names in sequences if trial.fits(BlockSequence(names, 0, padding))]
    if not fitting:
        return BlockSequence()
    share = {names: _count_params(net, names) / params(net) for names in fitting}
    large = [names for names in fitting if share[names] >= 0.5]
    best = max(large, key=len) if large else max(fitting, key=lambda names: share[names])
    return trial.measure(BlockSequence(best, 0, padding))


def format_block_names(net: nn.Module, names: Sequence[str]) -> str:
    """The names as `find_blocks` takes them: the container's if they are all of its members."""
    parent = names[0].rpartition(".")[0] if names else ""
    whole = parent and tuple(names) == _members(parent, net.get_submodule(parent))
    return parent if whole else ",".join(names)


class _Trial:
    """The shapes of each module's outputs in one run."""

    def __init__(self, net: nn.Module, lr_NCHW: Tensor, call: Call) -> None:
        self._lr = lr_NCHW
        self._order: list[str] = []
        self._outputs: dict[str, list[Any]] = defaultdict(list)
        handles = [_on_output(m, partial(self._record, n)) for n, m in net.named_modules() if n]
        try:
            with torch.no_grad():
                call(net, lr_NCHW.clone())
        finally:
            for handle in handles:
                handle.remove()

    def fits(self, body: BlockSequence) -> bool:
        """Whether the modules ran once each, in order, and gave maps of one size."""
        names = body.names
        once = bool(names) and all(len(self._outputs[name]) == 1 for name in names)
        if not once:
            return False
        shapes = {self._shape(name, body.padding) for name in names}
        ran = [self._order.index(name) for name in names]
        return len(shapes) == 1 and None not in shapes and ran == sorted(ran)

    def measure(self, body: BlockSequence) -> BlockSequence:
        """The modules with their width; none if they do not fit."""
        shape = self._shape(body.names[0], body.padding) if self.fits(body) else None
        return replace(body, width=shape[1]) if shape else BlockSequence()

    def describe(self, names: Sequence[str]) -> str:
        """The shapes of the modules' outputs, for a message."""
        given = [_describe(one) for name in names for one in self._outputs[name] or [None]]
        return ", ".join(dict.fromkeys(given))

    def _record(self, name: str, output: Any) -> None:
        self._order.append(name)
        self._outputs[name].append(_drop_values(output))

    def _shape(self, name: str, padding: Padding) -> torch.Size | None:
        features = to_feature_map(self._outputs[name][0], self._lr, padding)
        return None if features is None else features.shape


def _list_named(net: nn.Module, named: str) -> tuple[str, ...]:
    """The modules that a user named: a container's, or one by one.

    Raises:
        UsageError: the net has no such module.
    """
    modules = dict(net.named_modules())
    names = tuple(part.strip() for part in named.split(","))
    for name in names:
        if not name or name not in modules:
            raise UsageError(
                f"identify.blocks: the net has no {name!r}",
                hint=nearest(name, [n for n in modules if n and n.count(".") < 2]),
            )
    if len(names) == 1 and isinstance(modules[names[0]], nn.ModuleList | nn.Sequential):
        names = _members(names[0], modules[names[0]])
    return names


def _sequences(net: nn.Module) -> Iterator[tuple[str, ...]]:
    for name, module in net.named_modules():
        if isinstance(module, nn.ModuleList | nn.Sequential):
            yield _members(name, module)
        for kind in dict.fromkeys(type(child) for child in module.children()):
            members = zip(_members(name, module), module.children(), strict=True)
            yield tuple(member for member, child in members if type(child) is kind)


def _members(name: str, module: nn.Module) -> tuple[str, ...]:
    return tuple(f"{name}.{child}".lstrip(".") for child, _ in module.named_children())


def _count_params(net: nn.Module, names: Sequence[str]) -> int:
    return sum(params(net.get_submodule(name)) for name in names)


def _on_output(module: nn.Module, use: Callable[[Any], None]) -> RemovableHandle:
    return module.register_forward_hook(lambda _module, _inputs, output: use(output))


def _drop_values(output: Any) -> Any:
    """The output on the meta device: the features of a large net would fill memory."""
    if isinstance(output, tuple):
        return tuple(_drop_values(one) for one in output)
    return output.to("meta") if isinstance(output, Tensor) else None


def _describe(output: Any) -> str:
    if isinstance(output, tuple):
        return f"({', '.join(map(_describe, output))})"
    return str(tuple(output.shape)) if isinstance(output, Tensor) else "no tensor"
