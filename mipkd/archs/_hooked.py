"""A net that is not ours: its image, and the features of its blocks listened to by hooks.

Shapes: N batch, C channels, H W low-res size, L = H * W tokens, S scale. Images: float32 in
[0, 1], RGB.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from mipkd.archs.base import SRNet, params
from mipkd.core.errors import UsageError, nearest

_LEAST_SIDE = 32  # LR pixels of a trial run
_WINDOW = 16  # the widest of window attention: at its multiples nothing is padded within


@dataclass(frozen=True)
class Blocks:
    """A sequence of modules that each give features of one size, in the order they run."""

    names: tuple[str, ...] = ()  # as in `named_modules`
    width: int = 0  # channels


class Hooked(SRNet):
    """A net as a whole: its parts cannot be run one by one, but its blocks can be heard."""

    in_parts = False

    def __init__(
        self, net: nn.Module, blocks: Blocks, *, scale: int, multiple: int = 1, least: int = 1
    ) -> None:
        super().__init__()
        self.net = net
        self.scale, self.width = scale, blocks.width
        self.multiple, self.least = multiple, least
        self.smallest = max(2, least)
        self.names = blocks.names
        # Not registered: they are the net's own, and its state dict has them once.
        self.__dict__["blocks"] = nn.ModuleList(net.get_submodule(n) for n in blocks.names)

    def tapped(
        self, lr_NCHW: Tensor, positions: tuple[int, ...] = ()
    ) -> tuple[Tensor, list[Tensor]]:
        """The image, and the features after each of `positions` (indices into `blocks`).

        Raises:
            UsageError: at this LR size a block's features are not of it.
        """
        heard: dict[int, Any] = {}
        handles = [_listen(self.blocks[p], heard, p) for p in positions]
        try:
            image: Tensor = self.net(lr_NCHW.clone())  # some nets scale their input in place
        finally:
            for handle in handles:
                handle.remove()
        return image, [self._features(p, heard[p], lr_NCHW) for p in positions]

    def _features(self, position: int, output: Any, lr_NCHW: Tensor) -> Tensor:
        features = as_map(output, lr_NCHW)
        if features is None:
            height, width = lr_NCHW.shape[-2:]
            raise UsageError(
                f"distill.patch: at LR {width}x{height} the teacher's {self.names[position]} gives "
                f"{_told(output)}: features of another size",
                hint=f"try a multiple of {_WINDOW}, or --set distill.method=logits",
            )
        return features


def as_map(output: Any, lr_NCHW: Tensor) -> Tensor | None:
    """What a block gave, as (N, C, H, W); tokens (N, L, C) are laid out. None if it is neither.

    Of a tuple the first: what else a block gives (attention, an inner state) comes after.
    """
    if isinstance(output, tuple) and output:
        output = output[0]
    if not isinstance(output, Tensor):
        return None
    height, width = lr_NCHW.shape[-2:]
    if output.ndim == 4 and output.shape[-2:] == (height, width):
        return output
    if output.ndim == 3 and output.shape[1] == height * width:
        return output.transpose(1, 2).reshape(len(output), -1, height, width)
    return None


def trial_image(*, multiple: int, least: int) -> Tensor:
    """A small image of noise (1, 3, H, W), H and W not equal, on which any net can run."""
    unit = math.lcm(_WINDOW, multiple)
    height = math.ceil(max(_LEAST_SIDE, least) / unit) * unit
    chance = torch.Generator().manual_seed(0)
    return torch.rand(1, 3, height, height + unit, generator=chance)


def find_blocks(net: nn.Module, lr_NCHW: Tensor, named: str | None = None) -> Blocks:
    """The net's body as a sequence, found by running it once; empty if there is none.

    A sequence is the members of a container, or those of one class in any module, that run once
    each and in order and give maps of one size, that of the LR image. Of all that hold at least
    half of the parameters the longest is taken, or else the one that holds the most: so the
    groups of RCAN, not the blocks in one of them. `named` says which instead: a container, or
    modules separated by commas.

    Raises:
        UsageError: `named` is not there, or is no such sequence.
    """
    trial = _Trial(net, lr_NCHW)
    if named:
        return _named(net, trial, named)
    fitting = [names for names in _sequences(net) if len(names) > 1 and trial.fits(names)]
    if not fitting:
        return Blocks()
    share = {names: _weight(net, names) / params(net) for names in fitting}
    large = [names for names in fitting if share[names] >= 0.5]
    best = max(large, key=len) if large else max(fitting, key=lambda names: share[names])
    return Blocks(best, trial.width(best))


def brief(net: nn.Module, names: Sequence[str]) -> str:
    """The names as `find_blocks` takes them: the container's if they are all of its members."""
    parent = names[0].rpartition(".")[0] if names else ""
    whole = parent and tuple(names) == _members(parent, net.get_submodule(parent))
    return parent if whole else ",".join(names)


class _Trial:
    """What each module gave in one run."""

    def __init__(self, net: nn.Module, lr_NCHW: Tensor) -> None:
        self._lr = lr_NCHW
        self._order: list[str] = []
        self._given: dict[str, list[Any]] = defaultdict(list)
        handles = [self._note(name, module) for name, module in net.named_modules() if name]
        try:
            with torch.no_grad():
                net(lr_NCHW.clone())
        finally:
            for handle in handles:
                handle.remove()

    def fits(self, names: Sequence[str]) -> bool:
        once = all(len(self._given[name]) == 1 for name in names)
        if not once:
            return False
        shapes = {self._shape(name) for name in names}
        ran = [self._order.index(name) for name in names]
        return len(shapes) == 1 and None not in shapes and ran == sorted(ran)

    def width(self, names: Sequence[str]) -> int:
        shape = self._shape(names[0])
        assert shape is not None
        return shape[1]

    def told(self, names: Sequence[str]) -> str:
        """What the modules gave, for a message."""
        given = [_told(one) for name in names for one in self._given[name] or [None]]
        return ", ".join(dict.fromkeys(given))

    def _note(self, name: str, module: nn.Module) -> RemovableHandle:
        def hook(_module: nn.Module, _inputs: Any, output: Any) -> None:
            self._order.append(name)
            self._given[name].append(_shaped(output))

        return module.register_forward_hook(hook)

    def _shape(self, name: str) -> torch.Size | None:
        features = as_map(self._given[name][0], self._lr)
        return None if features is None else features.shape


def _named(net: nn.Module, trial: _Trial, named: str) -> Blocks:
    there = dict(net.named_modules())
    names = tuple(part.strip() for part in named.split(","))
    for name in names:
        if not name or name not in there:
            raise UsageError(
                f"identify.blocks: the net has no {name!r}",
                hint=nearest(name, [n for n in there if n and n.count(".") < 2]),
            )
    if len(names) == 1 and isinstance(there[names[0]], nn.ModuleList | nn.Sequential):
        names = _members(names[0], there[names[0]])
    if not names or not trial.fits(names):
        raise UsageError(
            f"identify.blocks: {named}: not features of one size, that of the LR image, each given "
            f"once and in order: {trial.told(names) or 'no modules'}",
            hint="leave it out: blocks are looked for",
        )
    return Blocks(names, trial.width(names))


def _sequences(net: nn.Module) -> Iterator[tuple[str, ...]]:
    for name, module in net.named_modules():
        if isinstance(module, nn.ModuleList | nn.Sequential):
            yield _members(name, module)
        for kind in dict.fromkeys(type(child) for child in module.children()):
            members = zip(_members(name, module), module.children(), strict=True)
            yield tuple(member for member, child in members if type(child) is kind)


def _members(name: str, module: nn.Module) -> tuple[str, ...]:
    return tuple(f"{name}.{child}".lstrip(".") for child, _ in module.named_children())


def _weight(net: nn.Module, names: Sequence[str]) -> int:
    return sum(params(net.get_submodule(name)) for name in names)


def _listen(module: nn.Module, heard: dict[int, Any], position: int) -> RemovableHandle:
    def hook(_module: nn.Module, _inputs: Any, output: Any) -> None:
        heard[position] = output

    return module.register_forward_hook(hook)


def _shaped(output: Any) -> Any:
    """The output without its values: of a large net's run nothing is kept but shapes."""
    if isinstance(output, tuple):
        return tuple(_shaped(one) for one in output)
    return output.to("meta") if isinstance(output, Tensor) else None


def _told(output: Any) -> str:
    if isinstance(output, tuple):
        return f"({', '.join(map(_told, output))})"
    return str(tuple(output.shape)) if isinstance(output, Tensor) else "no tensor"
