"""A net of a foreign family: its image, and the features of its blocks read by forward hooks.

Shapes: N batch, C channels, H W low-res size, L = H * W tokens, S scale. Images: float32 in
[0, 1], RGB.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from mipkd.archs.base import SRNet, params
from mipkd.core.errors import UsageError, nearest

_LEAST_SIDE = 32  # LR pixels a side in a trial run
_WINDOW = 16  # the largest window of attention in use: at its multiples nets do not pad inside


@dataclass(frozen=True)
class BlockSequence:
    """Modules that run one after the other and give features of one size."""

    names: tuple[str, ...] = ()  # as in `named_modules`
    width: int = 0  # channels


class HookedNet(SRNet):
    """A net whose parts cannot be run one by one, but whose blocks give features."""

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
    ) -> None:
        super().__init__()
        self.net = net
        self.scale, self.width = scale, blocks.width
        self.multiple, self.least = multiple, least
        self.smallest = max(2, least)
        self.names = blocks.names
        # Not registered as submodules: the state dict must hold their weights once.
        self.__dict__["blocks"] = nn.ModuleList(net.get_submodule(n) for n in blocks.names)

    def forward_with_taps(
        self, lr_NCHW: Tensor, positions: tuple[int, ...] = ()
    ) -> tuple[Tensor, list[Tensor]]:
        """As in `SRNet`.

        Raises:
            UsageError: at this LR size a block's features have another size.
        """
        outputs: dict[int, Any] = {}
        handles = [_on_output(self.blocks[p], partial(outputs.__setitem__, p)) for p in positions]
        try:
            pixels = lr_NCHW.clone()  # some nets write to their input
            image: Tensor = self.net(pixels if self.image_range == 1 else pixels * self.image_range)
            image = image if self.image_range == 1 else image / self.image_range
        finally:
            for handle in handles:
                handle.remove()
        return image, [self._features(p, outputs[p], lr_NCHW) for p in positions]

    def _features(self, position: int, output: Any, lr_NCHW: Tensor) -> Tensor:
        features = to_feature_map(output, lr_NCHW)
        if features is None:
            height, width = lr_NCHW.shape[-2:]
            raise UsageError(
                f"distill.patch: at LR {width}x{height} the teacher's {self.names[position]} gives "
                f"{_describe(output)}: features of another size",
                hint=f"try a multiple of {_WINDOW}, or --set distill.method=logits",
            )
        return features


def to_feature_map(output: Any, lr_NCHW: Tensor) -> Tensor | None:
    """A block's output as (N, C, H, W), tokens (N, L, C) reshaped; None if it is neither.

    Of a tuple the first element: attention maps or an inner state follow the features.
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
    """A small image of noise (1, 3, H, W), H and W different, on which any net can run."""
    unit = math.lcm(_WINDOW, multiple)
    height = math.ceil(max(_LEAST_SIDE, least) / unit) * unit
    generator = torch.Generator().manual_seed(0)
    return torch.rand(1, 3, height, height + unit, generator=generator)


def find_blocks(net: nn.Module, lr_NCHW: Tensor, named: str | None = None) -> BlockSequence:
    """The blocks of the net's body, found by running it once; empty if there are none.

    Candidates are the members of a container, or those of one class in any module, that run once
    each, in order, and give maps of the LR image's size. The longest that holds at least half of
    the parameters is taken, or else the one that holds the most: the groups of RCAN, not the
    blocks in one of them. `named` overrides it: a container, or modules separated by commas.

    Raises:
        UsageError: `named` does not exist, or is no such sequence.
    """
    trial = _Trial(net, lr_NCHW)
    if named:
        return _find_named(net, trial, named)
    fitting = [names for names in _sequences(net) if len(names) > 1 and trial.fits(names)]
    if not fitting:
        return BlockSequence()
    share = {names: _count_params(net, names) / params(net) for names in fitting}
    large = [names for names in fitting if share[names] >= 0.5]
    best = max(large, key=len) if large else max(fitting, key=lambda names: share[names])
    return BlockSequence(best, trial.width(best))


def format_block_names(net: nn.Module, names: Sequence[str]) -> str:
    """The names as `find_blocks` takes them: the container's if they are all of its members."""
    parent = names[0].rpartition(".")[0] if names else ""
    whole = parent and tuple(names) == _members(parent, net.get_submodule(parent))
    return parent if whole else ",".join(names)


class _Trial:
    """The shapes of each module's outputs in one run."""

    def __init__(self, net: nn.Module, lr_NCHW: Tensor) -> None:
        self._lr = lr_NCHW
        self._order: list[str] = []
        self._outputs: dict[str, list[Any]] = defaultdict(list)
        handles = [_on_output(m, partial(self._record, n)) for n, m in net.named_modules() if n]
        try:
            with torch.no_grad():
                net(lr_NCHW.clone())
        finally:
            for handle in handles:
                handle.remove()

    def fits(self, names: Sequence[str]) -> bool:
        once = all(len(self._outputs[name]) == 1 for name in names)
        if not once:
            return False
        shapes = {self._shape(name) for name in names}
        ran = [self._order.index(name) for name in names]
        return len(shapes) == 1 and None not in shapes and ran == sorted(ran)

    def width(self, names: Sequence[str]) -> int:
        shape = self._shape(names[0])
        assert shape is not None
        return shape[1]

    def describe(self, names: Sequence[str]) -> str:
        """The shapes of the modules' outputs, for a message."""
        given = [_describe(one) for name in names for one in self._outputs[name] or [None]]
        return ", ".join(dict.fromkeys(given))

    def _record(self, name: str, output: Any) -> None:
        self._order.append(name)
        self._outputs[name].append(_drop_values(output))

    def _shape(self, name: str) -> torch.Size | None:
        features = to_feature_map(self._outputs[name][0], self._lr)
        return None if features is None else features.shape


def _find_named(net: nn.Module, trial: _Trial, named: str) -> BlockSequence:
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
    if not names or not trial.fits(names):
        raise UsageError(
            f"identify.blocks: {named}: not features of one size, that of the LR image, each given "
            f"once and in order: {trial.describe(names) or 'no modules'}",
            hint="leave it out: blocks are looked for",
        )
    return BlockSequence(names, trial.width(names))


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
