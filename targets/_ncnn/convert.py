"""Conversion of an ONNX graph to ncnn's .param and .bin by pnnx, a program that its wheel brings.

It starts from our ONNX, not from the torch net: a graph that came as a file converts too, and what
is compared is what was converted. A size that is read from the graph's input is the one thing that
pnnx maps for TorchScript alone; that is done here.
"""

from __future__ import annotations

import os
import subprocess
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from mipkd.core.errors import MissingError, StageError, UnsupportedError
from targets._ncnn.param import Layer, drop_unread, read_layers, rename_blobs, write_layers
from targets._onnx.outside_files import refuse_outside_files

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from mipkd.core.records import Graph

INSTALL = 'pip install "mipkd-pipeline[ncnn]"'
INPUT, OUTPUT = "in0", "out0"  # as pnnx calls them
_LIMIT_S = 600
_SIDES = ((48, 56), (40, 64))  # two sizes: what differs between them is left free
_RESIZE = "F.interpolate"
_MODES = {"nearest": "1", "bilinear": "2", "bicubic": "3"}


def convert_graph(graph: Graph, file: Path, *, fp16: bool, blobs: tuple[str, str]) -> None:
    """Write `file`, a .param, and its .bin; with `fp16` the weights are stored in 16 bits.

    `blobs` are the names of its input and output.

    Raises:
        UnsupportedError: pnnx or ncnn does not know one of its operators.
        StageError: pnnx does not end.
    """
    refuse_outside_files(graph.file)
    with TemporaryDirectory(prefix="pnnx-", dir=file.parent) as folder:
        work = Path(folder)
        _write_source(graph, work / "graph.onnx", fp16=fp16)
        _run_pnnx(work, graph, fp16=fp16)
        layers = read_layers(_read(work / "graph.ncnn.param"))
        layers = _size_by_input(layers, read_layers(_read(work / "graph.pnnx.param")))
        layers = drop_unread(layers, [OUTPUT])
        _refuse_unmapped(layers, graph)
        renamed = rename_blobs(layers, dict(zip((INPUT, OUTPUT), blobs, strict=True)))
        file.write_text(write_layers(renamed))
        (work / "graph.ncnn.bin").replace(file.with_suffix(".bin"))


def find_pnnx() -> Path | None:
    """The program in pnnx's wheel, whose own import would load torch."""
    spec = find_spec("pnnx")
    folder = Path(spec.origin).parent if spec and spec.origin else None
    program = folder / ("pnnx.exe" if os.name == "nt" else "pnnx") if folder else None
    return program if program and program.is_file() else None


def _write_source(graph: Graph, file: Path, *, fp16: bool) -> None:
    import onnx

    from targets._ncnn.small_weights import scale_small_weights

    model = onnx.load(graph.file)
    onnx.save(scale_small_weights(model) if fp16 else model, file)


def _run_pnnx(work: Path, graph: Graph, *, fp16: bool) -> None:
    program = find_pnnx()
    if program is None:
        raise MissingError("ncnn: pnnx is not installed", hint=INSTALL)
    shapes = [
        "[1,3,{},{}]".format(*(-(-side // graph.multiple) * graph.multiple for side in sides))
        for sides in _SIDES
    ]
    command = [str(program), "graph.onnx", f"inputshape={shapes[0]}", f"inputshape2={shapes[1]}"]
    try:
        done = subprocess.run(
            [*command, f"fp16={int(fp16)}"],
            cwd=work,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_LIMIT_S,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise StageError(f"ncnn: pnnx did not end within {_LIMIT_S} s") from error
    if done.returncode or not (work / "graph.ncnn.param").is_file():
        why = _last_words(done.stderr) or f"it ended with {done.returncode}"
        raise _refusal(graph, f"pnnx cannot convert {graph.file.name}: {why}")


def _last_words(stderr: bytes) -> str:
    lines = stderr.decode(errors="replace").splitlines()
    return next((line.strip() for line in reversed(lines) if line.strip()), "")


def _read(file: Path) -> str:
    return file.read_text(errors="replace")


def _size_by_input(layers: Sequence[Layer], before: Sequence[Layer]) -> list[Layer]:
    """Give a Resize to the size of the graph's input that input to read it from.

    `before` are the layers as pnnx had them before it wrote ncnn's.
    """
    made = {blob: layer for layer in before for blob in layer.outputs}
    resizes = {layer.name: layer for layer in before if layer.kind == _RESIZE}
    found = []
    for layer in layers:
        resize = resizes.get(layer.name)
        if layer.kind == _RESIZE and resize and _reads_input_size(resize, made):
            layer = replace(
                layer,
                kind="Interp",
                inputs=(layer.inputs[0], INPUT),
                settings=_interp_settings(resize),
            )
        found.append(layer)
    return found


def _reads_input_size(resize: Layer, made: Mapping[str, Layer]) -> bool:
    """Whether the last two of the sizes that it is given are the input's height and width."""
    if resize.setting("mode") not in _MODES or len(resize.inputs) != 2:
        return False
    sizes = [made[one] for one in _joined(resize.inputs[1], made) if one in made]
    told = [(one.setting("expr"), *(made[b].kind for b in one.inputs)) for one in sizes[-2:]]
    return told == [(f"size(@0,{axis})", "pnnx.Input") for axis in (2, 3)]


def _joined(blob: str, made: Mapping[str, Layer]) -> list[str]:
    """The blobs that a chain of concatenations puts one after the other."""
    layer = made.get(blob)
    if layer is None or layer.kind != "torch.cat":
        return [blob]
    return [one for part in layer.inputs for one in _joined(part, made)]


def _interp_settings(resize: Layer) -> tuple[str, ...]:
    """Its kind, and that its size is the second input's width and height."""
    aligned = int(resize.setting("align_corners") == "True")
    return (f"0={_MODES[resize.setting('mode')]}", "5=1", f"6={aligned}", '9="1w,1h"')


def _refuse_unmapped(layers: Sequence[Layer], graph: Graph) -> None:
    import ncnn

    unknown = {layer.kind for layer in layers if ncnn.layer_to_index(layer.kind) < 0}
    if unknown:
        raise _refusal(graph, f"ncnn has no layer for {', '.join(sorted(unknown))}")


def _refusal(graph: Graph, what: str) -> UnsupportedError:
    return UnsupportedError(
        f"ncnn: {what}",
        hint=f"other --target, or another net than {graph.family}",
    )
