"""ncnn's .param files: one layer a line, and a Split wherever a blob is read more than once.

    7767517
    LAYERS BLOBS
    TYPE NAME INPUTS OUTPUTS input... output... key=value...

Source: https://github.com/Tencent/ncnn/wiki/param-and-model-file-structure
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_MAGIC = "7767517"
_SPLIT = "Split"


@dataclass(frozen=True)
class Layer:
    """One line of a .param file, and of pnnx's own, which are written alike."""

    kind: str
    name: str
    inputs: tuple[str, ...]  # names of blobs
    outputs: tuple[str, ...]
    settings: tuple[str, ...]  # each "key=value"

    def setting(self, key: str) -> str:
        """The value of a setting, "" without it."""
        known = dict(one.partition("=")[::2] for one in self.settings)
        return known.get(key, "")


def read_layers(text: str) -> list[Layer]:
    """The layers, each reading the blob that a Split would have copied."""
    layers, source = [], dict[str, str]()
    for line in text.splitlines()[2:]:
        kind, name, count_in, count_out, *rest = line.split()
        ends = int(count_in), int(count_in) + int(count_out)
        inputs = tuple(source.get(blob, blob) for blob in rest[: ends[0]])
        outputs = tuple(rest[ends[0] : ends[1]])
        if kind == _SPLIT:
            source.update(dict.fromkeys(outputs, inputs[0]))
        else:
            layers.append(Layer(kind, name, inputs, outputs, tuple(rest[ends[1] :])))
    return layers


def write_layers(layers: Sequence[Layer]) -> str:
    """The text of a .param file: with the Splits that ncnn wants."""
    split = _with_splits(layers)
    blobs = sum(len(layer.outputs) for layer in split)
    lines = [_MAGIC, f"{len(split)} {blobs}", *map(_line, split)]
    return "\n".join(lines) + "\n"


def drop_unread(layers: Sequence[Layer], results: Sequence[str]) -> list[Layer]:
    """The layers that `results`, names of blobs, are computed from, in their order."""
    read, kept = set(results), list[Layer]()
    for layer in reversed(layers):
        if read.intersection(layer.outputs):
            read.update(layer.inputs)
            kept.append(layer)
    return kept[::-1]


def rename_blobs(layers: Sequence[Layer], names: Mapping[str, str]) -> list[Layer]:
    """The same layers, with some of their blobs under other names."""

    def renamed(blobs: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(names.get(blob, blob) for blob in blobs)

    return [
        replace(layer, inputs=renamed(layer.inputs), outputs=renamed(layer.outputs))
        for layer in layers
    ]


def _with_splits(layers: Sequence[Layer]) -> list[Layer]:
    reads = Counter(blob for layer in layers for blob in layer.inputs)
    copies = {
        blob: [f"{blob}_splitncnn_{i}" for i in range(n)] for blob, n in reads.items() if n > 1
    }
    unused = {blob: iter(names) for blob, names in copies.items()}
    split = []
    for layer in layers:
        inputs = tuple(next(unused[b]) if b in unused else b for b in layer.inputs)
        split.append(replace(layer, inputs=inputs))
        for blob in layer.outputs:
            if blob in copies:
                split.append(Layer(_SPLIT, f"split_{blob}", (blob,), tuple(copies[blob]), ()))
    return split


def _line(layer: Layer) -> str:
    counts = (str(len(layer.inputs)), str(len(layer.outputs)))
    head = f"{layer.kind:<24} {layer.name:<24}"
    return " ".join((head, *counts, *layer.inputs, *layer.outputs, *layer.settings))
