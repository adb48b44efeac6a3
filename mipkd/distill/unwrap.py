"""Find the nets in what a checkpoint holds: state dicts in wrappers, under prefixes.

Trainers wrap a state dict in mappings (`params_ema`, `state_dict`, `model`), put a prefix before
its keys (`module.` of DataParallel, `_orig_mod.` of torch.compile, `model.` of Lightning,
`generator.` of MMagic) and store others beside it (a discriminator, the optimiser). No list of
these is complete: every mapping that holds tensors, and every prefix in it, is a candidate, and the
first that a network family recognises is the net. Averaged weights (EMA) come before others, by
the innermost name that tells.
"""

from __future__ import annotations

import re
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mipkd.core.errors import UsageError
from mipkd.distill.files import check_count

_DEEPEST = 16  # mappings inside each other
_MOST_MAPPINGS = 10_000
_MOST_PREFIXES = 6  # one after the other
_MOST_CANDIDATES = 64
# Layers that torch puts around a module, or into it, and that no net has.
_LAYERS = re.compile(
    r"(?:^|(?<=\.))(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\."
)
# Of the words of a name.
_AVERAGED = re.compile(r"(?:ema[a-z]*|swa|avg|averaged?|polyak|shadow|target)\d*")
_RAW = re.compile(r"(?:online|raw|student)\d*")  # what is averaged
_COUNTERS = ("total_ops", "total_params")  # of thop, in each layer
_BESIDE = re.compile(  # what is stored beside the net
    r"(?:^|[^a-z])(?:d|net_?d|dis|discriminators?|critic|optim\w*|sched\w*|lr_sched\w*|scaler|loss\w*"
    r"|perceptual\w*|vgg\w*|lpips|metric\w*|feature_extractor|degrad\w*|\w*step\w*|epoch|iter\w*"
    r"|n_averaged|initted|num_updates|decay)(?:$|[^a-z])",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Candidate:
    """Tensors that may be a net's state dict, under its own key names."""

    state: Mapping[str, Tensor]
    wrappers: tuple[str, ...]  # the mappings around it, from outside
    prefix: str  # before its keys, with the dot
    layers: tuple[str, ...]  # of torch, taken out of its keys
    left_out: tuple[str, ...]  # keys of the same mapping without that prefix
    averaged_list: str = ""  # where the file has averaged weights without names, if these are not

    @property
    def place(self) -> str:
        """What comes before its keys in a message."""
        return "".join(f"{name} > " for name in self.wrappers) + self.prefix

    @property
    def taken_from(self) -> str:
        """Where in the file it was, in words; nothing to say of a bare state dict."""
        parts = [" > ".join(self.wrappers)] if self.wrappers else []
        if self.prefix:
            parts.append(f"prefix {self.prefix!r}")
        parts += [f"without {layer!r}" for layer in self.layers]
        if self.left_out:
            first = sorted({key.partition(".")[0] for key in self.left_out})[:3]
            parts.append(f"{len(self.left_out)} others left out: {', '.join(first)}")
        return ", ".join(parts)

    @property
    def strangers(self) -> tuple[str, ...]:
        """Keys left out that are not known to be of something beside a net, nor of its twin."""
        return tuple(
            key
            for key in self.left_out
            if not _BESIDE.search(key.partition(".")[0])
            and not any(end in self.state for end in _list_ends(key))
        )


def list_candidates(content: Any, path: Path) -> list[Candidate]:
    """All that may be a net in a checkpoint, the likeliest first; at least one.

    Raises:
        UsageError: there are no tensors in it, or more than any net has.
    """
    found: list[Candidate] = []
    count = 0
    for wrappers, tensors in _find_states(content):
        count += len(tensors)
        check_count(count, path)
        found += islice(_strip_prefixes(wrappers, tensors), _MOST_CANDIDATES)
    if not found:
        kind = type(content).__name__
        inside = f": a {kind}" if not isinstance(content, Mapping) else ""
        raise UsageError(
            f"{path}: no tensors in it under names{inside}",
            hint="give a state dict, bare or in mappings like params_ema, state_dict or model",
        )
    unnamed = _find_averaged_list(content)
    ranked = sorted((one for one in found if one.state), key=_rank)[:_MOST_CANDIDATES]
    return [one if _is_averaged(one) else replace(one, averaged_list=unnamed) for one in ranked]


def _rank(one: Candidate) -> tuple[bool, list[int], int, int]:
    """Nets before what is beside them, then averaged ones, whole before parts, and large ones."""
    beside = any(_BESIDE.search(name) for name in _names_around(one))
    told = [_tell_average(name) for name in reversed(_names_around(one))]
    size = sum(value.numel() for value in one.state.values())
    depth = _DEEPEST + _MOST_PREFIXES + 2
    return beside, told + [1] * (depth - len(told)), one.prefix.count("."), -size


def _names_around(one: Candidate) -> list[str]:
    return [*one.wrappers, *one.prefix.split(".")[:-1]]


def _is_averaged(one: Candidate) -> bool:
    return any(not _tell_average(name) for name in _names_around(one))


def _tell_average(name: str) -> int:
    """0: an average's name; 2: of what is averaged; 1: neither."""
    words = re.split(r"[\W_]+", re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower())
    if any(_AVERAGED.fullmatch(word) for word in words):
        return 0
    return 2 if any(_RAW.fullmatch(word) for word in words) else 1


def _find_averaged_list(content: Any) -> str:
    """Where averaged weights are in a list, without their names; "" if nowhere."""
    for names, one in _walk(content):
        if not isinstance(one, list | tuple) or sum(_as_tensor(v) is not None for v in one) < 2:
            continue
        is_net = not any(_BESIDE.search(name) for name in names)
        if is_net and any(not _tell_average(name) for name in names):
            return " > ".join(names)
    return ""


def _find_states(content: Any) -> Iterator[tuple[tuple[str, ...], dict[str, Tensor]]]:
    """Each mapping that holds tensors under names, and the names around it."""
    for names, one in _walk(content):
        if tensors := _tensors_in(one):
            yield names, tensors


def _walk(content: Any) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Each mapping and list, breadth first, and the names around it.

    Each is looked at once: one that holds itself ends.
    """
    queue: deque[tuple[tuple[str, ...], Any]] = deque([((), content)])
    seen: dict[int, Any] = {}  # kept, so that no id is used again
    while queue and len(seen) < _MOST_MAPPINGS:
        names, one = queue.popleft()
        if id(one) in seen or len(names) > _DEEPEST:
            continue
        seen[id(one)] = one
        yield names, one
        queue += [((*names, str(name)), inner) for name, inner in _children(one)]


def _tensors_in(one: Any) -> dict[str, Tensor]:
    if not isinstance(one, Mapping):
        return {}
    named = (
        (key, _as_tensor(value))
        for key, value in one.items()
        if isinstance(key, str) and key.rpartition(".")[2] not in _COUNTERS
    )
    return {key: value for key, value in named if value is not None}


def _as_tensor(value: Any) -> Tensor | None:
    """A tensor, or an array of numbers as one."""
    if isinstance(value, np.ndarray) and value.dtype.kind in "fiub":
        return torch.from_numpy(value.copy())
    return value if isinstance(value, Tensor) else None


def _children(one: Any) -> Iterable[tuple[Any, Any]]:
    """What a mapping or list holds that may hold tensors; a tensor has no such children."""
    if not isinstance(one, Mapping | list | tuple):
        return []
    items = one.items() if isinstance(one, Mapping) else enumerate(one)
    return [(k, v) for k, v in items if isinstance(v, Mapping | list | tuple)]


def _strip_prefixes(
    wrappers: tuple[str, ...], tensors: Mapping[str, Tensor]
) -> Iterator[Candidate]:
    """The tensors of a mapping as they are, and those under each prefix without it."""
    named = {_LAYERS.sub("", key): key for key in tensors}
    if len(named) < len(tensors):  # two keys of one name: they stay as they are
        named = {key: key for key in tensors}
    layers = tuple({match: None for key in tensors for match in _LAYERS.findall(key)})
    queue = deque([""])
    while queue:
        prefix = queue.popleft()
        inside = {name: key for name, key in named.items() if name.startswith(prefix)}
        state = {name.removeprefix(prefix): tensors[key] for name, key in inside.items()}
        others = tuple(name for name in named if name not in inside)
        yield Candidate(state, wrappers, prefix, layers, others)
        if beside := {key for key, value in state.items() if _is_beside(key, value)}:
            rest = {key: value for key, value in state.items() if key not in beside}
            yield Candidate(
                rest, wrappers, prefix, layers, (*others, *(prefix + key for key in beside))
            )
        if prefix.count(".") < _MOST_PREFIXES:
            queue += [f"{prefix}{first}." for first in _first_parts(state)]


def _is_beside(key: str, value: Tensor) -> bool:
    """Whether a tensor among a net's may be none of its own: by its name, or one lone number."""
    return bool(_BESIDE.search(key.partition(".")[0])) or is_lone_number(key, value)


def is_lone_number(key: str, value: Tensor) -> bool:
    """Whether it is one number that is in no layer, like a best score."""
    return "." not in key and value.numel() == 1


def _first_parts(state: Iterable[str]) -> list[str]:
    """The first parts of dotted names, the most frequent first; no indices."""
    counts = Counter(first for first, dot, _ in (key.partition(".") for key in state) if dot)
    return [first for first, _ in counts.most_common() if not first.isdigit()]


def _list_ends(key: str) -> Iterator[str]:
    """`b.c` and `c` of `a.b.c`."""
    while "." in key:
        key = key.partition(".")[2]
        yield key
