"""What the families share: the upsampler, sizes in names, and weights inherited from a teacher."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mipkd.archs.base import StateDict
from mipkd.core.errors import UnsupportedError, UsageError

# Mean RGB of DIV2K's 800 training images in [0, 1], which EDSR and RCAN subtract.
DIV2K_MEAN = (0.4488, 0.4371, 0.4040)

# What a net of RGB images reads and what its last convolution gives before a pixel shuffle, by
# scale; spandrel's nets of grey images and of x1 are no super-resolution of ours.
COLOUR_ENDS = tuple((3, 3 * scale**2) for scale in (2, 3, 4, 8))


def conv(inputs: int, outputs: int, size: int = 3) -> nn.Conv2d:
    """A convolution that keeps height and width."""
    return nn.Conv2d(inputs, outputs, size, padding=size // 2)


def make_upsampler(channels: int, scale: int, *, direct: bool) -> nn.Sequential:
    """Pixel shuffles to `scale`: in steps of 2 (or one of 3), or one step straight to RGB."""
    if direct:
        return nn.Sequential(conv(channels, 3 * scale**2), nn.PixelShuffle(scale))
    steps = [3] if scale == 3 else [2] * (scale.bit_length() - 1)
    layers = [
        layer for s in steps for layer in (conv(channels, s * s * channels), nn.PixelShuffle(s))
    ]
    return nn.Sequential(*layers)


def read_upsampler(state: StateDict, channels: int) -> tuple[int, bool]:
    """Scale and whether the upsampler is direct, from `up.0`, `up.2`, ... and `last`.

    Raises:
        UnsupportedError: there is none.
    """
    outputs = [int(v.shape[0]) for k, v in state.items() if re.fullmatch(r"up\.\d+\.weight", k)]
    if not outputs:
        raise UnsupportedError(
            "the upsampler is missing: its first kernel, tail.0.0.weight or upsample.0.weight, is "
            "not there"
        )
    if "last.weight" not in state:
        return round((outputs[0] / 3) ** 0.5), True
    return round((outputs[0] // channels) ** (len(outputs) / 2)), False


def rename_keys(state: StateDict, rules: Mapping[str, str]) -> dict[str, Tensor] | None:
    """Keys rewritten by the first rule (regex to template) that matches; None if no rule matches
    one of them. An empty template drops the key."""
    found = {}
    for key, value in state.items():
        for pattern, template in rules.items():
            new, count = re.subn(f"^{pattern}", template, key)
            if count:
                if new:
                    found[new] = value
                break
        else:
            return None
    return found


def restore_keys(net: nn.Module, rules: Mapping[str, str]) -> dict[str, Tensor]:
    """A net's weights under the key names of another repository; the rules cover all keys."""
    restored = rename_keys(net.state_dict(), rules)
    assert restored is not None
    return restored


def count_indices(state: StateDict, prefix: str) -> int:
    """How many different indices follow `prefix` in the keys."""
    return len({m[1] for k in state if (m := re.match(re.escape(prefix) + r"(\d+)\.", k))})


def parse_budget(arch: str, budget: str, letters: Mapping[str, str]) -> dict[str, int]:
    """`c64b32` as {"channels": 64, "blocks": 32}, with `letters` {"c": "channels", ...}.

    Raises:
        UsageError: not that grammar.
    """
    parts = re.findall(r"([a-z])(\d+)", budget)
    whole = "".join(a + n for a, n in parts) == budget
    if not whole or any(a not in letters or int(n) < 1 for a, n in parts):
        grammar = ", ".join(f"{a}N ({word})" for a, word in letters.items())
        raise UsageError(
            f"--student: cannot read {budget!r} of {arch}:{budget}",
            hint=f"known: {grammar}; for example {arch}:c32"
            + "".join(f"{a}4" for a in letters if a != "c"),
        )
    return {letters[a]: int(n) for a, n in parts}


def spread_evenly(few: int, many: int) -> list[int]:
    """`few` indices spread evenly over `many`."""
    return [min(many - 1, int((i + 0.5) * many / few)) for i in range(few)]


def take_blocks(
    state: StateDict, sources: Sequence[int], prefix: str = "blocks."
) -> dict[str, Tensor]:
    """A state dict whose block i is block `sources[i]` of `state`; other keys are unchanged."""
    taken = {key: value for key, value in state.items() if not key.startswith(prefix)}
    for index, source in enumerate(sources):
        before = f"{prefix}{source}."
        for key in [k for k in state if k.startswith(before)]:
            taken[f"{prefix}{index}.{key.removeprefix(before)}"] = state[key]
    return taken


@dataclass(frozen=True)
class Axis:
    """Which channels a dimension of a weight runs over.

    Args:
        repeat: consecutive entries that belong to one channel (before a pixel shuffle).
        stacks: copies of the channels that follow each other (q, k and v).
        parts: groups of channels that each keep the same share (attention heads).
        always: the first channels, kept whatever their strength.
    """

    name: str
    repeat: int = 1
    stacks: int = 1
    parts: int = 1
    always: int = 0


Axes = Callable[[str], tuple[Axis | None, ...]]


def inherit_channels(student: nn.Module, weights: StateDict, axes: Axes) -> None:
    """Fill a narrower student with the strongest channels of `weights` (the same key names).

    Raises:
        UsageError: the student is wider somewhere, or differs in a dimension without channels.
    """
    inherit_tensors(dict(student.named_parameters()), weights, axes)


def inherit_tensors(student: Mapping[str, Tensor], weights: StateDict, axes: Axes) -> None:
    """The same for the student's tensors by name, which may be views of its weights' parts.

    A channel's strength is the summed norm of all weights that write or read it.
    """
    for name, parameter in student.items():
        pairs = zip(parameter.shape, weights[name].shape, strict=True)
        if any(mine > theirs for mine, theirs in pairs):
            raise _mismatch(name, weights[name], parameter)
    kept = _strongest_channels(student, weights, axes)
    with torch.no_grad():
        for name, parameter in student.items():
            value = weights[name]
            for dim, axis in enumerate(axes(name)[: value.ndim]):
                if axis and axis.name in kept:
                    value = value.index_select(
                        dim, _entries(axis, kept[axis.name], value.shape[dim])
                    )
            if value.shape != parameter.shape:
                raise _mismatch(name, value, parameter)
            parameter.copy_(value)


def _mismatch(name: str, theirs: Tensor, mine: Tensor) -> UsageError:
    return UsageError(
        f"distill.init: {name} is {tuple(theirs.shape)} in the teacher, "
        f"{tuple(mine.shape)} in the student: it cannot be cut from it",
        hint='give a narrower student, or --set distill.init="random"',
    )


def _strongest_channels(
    small: Mapping[str, Tensor], weights: StateDict, axes: Axes
) -> dict[str, Tensor]:
    """For each axis that shrinks, the sorted indices of the channels to keep."""
    strength: dict[str, Tensor] = {}
    wanted: dict[str, tuple[int, int]] = {}
    for name, parameter in small.items():
        value = weights[name]
        for dim, axis in enumerate(axes(name)[: value.ndim]):
            if axis is None or parameter.shape[dim] == value.shape[dim]:
                continue
            block = axis.repeat * axis.stacks
            wanted[axis.name] = (parameter.shape[dim] // block, axis.parts)
            by_channel = value.float().movedim(dim, 0).reshape(value.shape[dim], -1)
            norms = by_channel.pow(2).sum(1)
            per_channel = norms.view(axis.stacks, -1, axis.repeat).sum((0, 2)).sqrt()
            per_channel[: axis.always] = torch.inf
            strength[axis.name] = strength.get(axis.name, torch.zeros(())) + per_channel
    kept = {}
    for name, (count, parts) in wanted.items():
        by_part = strength[name].view(parts, -1)
        top = by_part.topk(count // parts, dim=1).indices.sort(dim=1).values
        kept[name] = (top + torch.arange(parts)[:, None] * by_part.shape[1]).flatten()
    return kept


def _entries(axis: Axis, channels: Tensor, length: int) -> Tensor:
    """The positions of `channels` along a dimension of `length`."""
    per_stack = length // axis.stacks
    one = (channels[:, None] * axis.repeat + torch.arange(axis.repeat)).flatten()
    return (torch.arange(axis.stacks)[:, None] * per_stack + one).flatten()
