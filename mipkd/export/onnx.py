"""Export a net to ONNX: RGB NCHW float32 in [0, 1] in and out, dynamic height and width."""

from __future__ import annotations

import ast
import hashlib
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any, cast

import onnx
import torch
from torch import Tensor, nn

from mipkd.archs.base import SRNet
from mipkd.core.errors import StageError
from mipkd.core.quiet import quiet
from mipkd.core.records import Graph
from mipkd.export.pixel_shuffle import replace_pixel_shuffle, shuffles

OPSET = 20
INPUT, OUTPUT = "lr", "sr"
PRODUCER = "mipkd-pipeline"
_FAILURES = (torch.onnx.OnnxExporterError, RuntimeError, ValueError, TypeError)
_EXAMPLE = 48  # LR pixels a side while tracing; the result does not depend on it


def export(net: SRNet, *, out: Path, metadata: dict[str, str], role: str, family: str) -> Graph:
    """Write `out`/model.onnx, with scale, colour, range, border and multiple as metadata.

    The graph takes one image; height and width are multiples of `net.multiple` and at least
    `net.smallest`.

    Raises:
        StageError: torch cannot turn the net into a graph.
    """
    try:
        program = _export_program(net.to_exportable())
    except _FAILURES as error:
        raise _explain_failure(family, error) from error
    _strip_metadata(program.model)
    program.model.metadata_props.update({**_facts(net, family), **metadata})
    file = out / "model.onnx"
    partial = file.with_name(file.name + ".partial")
    program.save(partial)
    partial.replace(file)
    return _graph(net, file, role, family)


def export_traced(
    net: SRNet, *, out: Path, metadata: dict[str, str], role: str, family: str
) -> Graph:
    """As `export`, by torch's older exporter, which traces and takes some nets that the newer one
    does not. Branches that depend on the size are as for the example: parity has to be checked.

    Raises:
        StageError: it cannot turn the net into a graph either.
    """
    try:
        content = _trace(net.to_exportable())
    except _FAILURES as error:
        raise _explain_failure(family, error) from error
    model = onnx.load_from_string(content)
    for key, value in {**_facts(net, family), **metadata}.items():
        model.metadata_props.add(key=key, value=value)
    for node in model.graph.node:
        node.ClearField("doc_string")
    return _save(model, _graph(net, out / "model.onnx", role, family), out / "model.onnx")


def export_anew(graph: Graph, net: SRNet, *, out: Path) -> Graph:
    """Write `out`/model.onnx: a graph of `export`, of the same net with other weights.

    They are not put into the graph that is there: it holds some folded into constants, such as a
    PReLU's slopes, and holds equal ones once.

    Raises:
        StageError: torch cannot turn the net into a graph, or calls its operations otherwise.
    """
    before = onnx.load(graph.file)
    metadata = {one.key: one.value for one in before.metadata_props}
    net.multiple = graph.multiple
    made = export(net, out=out, metadata=metadata, role=graph.role, family=graph.family)
    if not shuffles(before):
        made = edit_graph(made, replace_pixel_shuffle)
    theirs = {node.name for node in before.graph.node}
    if unlike := {node.name for node in onnx.load(made.file).graph.node} ^ theirs:
        what = f"export: {graph.family} was exported anew with other operations: {min(unlike)}"
        raise StageError(what)
    return replace(graph, file=made.file, sha256=made.sha256)


def edit_graph(graph: Graph, edit: Callable[[Any], Any]) -> Graph:
    """Apply `edit` to the graph's model and rewrite its file."""
    return _save(edit(onnx.load(graph.file)), graph, graph.file)


def open_session(model: str | bytes) -> Any:
    """ONNX Runtime on this CPU for a graph's file or bytes; its log shows errors only."""
    import onnxruntime

    onnxruntime.set_default_logger_severity(4)  # some of it is said before there is a session
    settings = onnxruntime.SessionOptions()
    settings.log_severity_level = 4
    return onnxruntime.InferenceSession(model, settings, providers=["CPUExecutionProvider"])


def _save(model: Any, graph: Graph, file: Path) -> Graph:
    partial = file.with_name(file.name + ".partial")
    onnx.save(model, partial)
    partial.replace(file)
    return replace(graph, file=file, sha256=hashlib.sha256(file.read_bytes()).hexdigest())


def _explain_failure(family: str, error: BaseException) -> StageError:
    while error.__cause__ is not None:  # the first cause is the informative one
        error = error.__cause__
    why = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    return StageError(
        f"export: torch cannot turn {family} into an ONNX graph: {type(error).__name__}: {why}",
    )


def _facts(net: SRNet, family: str) -> dict[str, str]:
    return {
        "scale": str(net.scale),
        "colour": "RGB",
        "range": "0..1",
        "border": str(net.scale),
        "multiple": str(net.multiple),
        "producer": PRODUCER,
        "family": family,
    }


def _graph(net: SRNet, file: Path, role: str, family: str) -> Graph:
    content = file.read_bytes() if file.is_file() else b""
    return Graph(
        file=file,
        sha256=hashlib.sha256(content).hexdigest(),
        role=role,
        scale=net.scale,
        multiple=net.multiple,
        opset=OPSET,
        family=family,
    )


class _Unpadded(nn.Module):
    """The net without padding: runtimes pad outside the graph."""

    def __init__(self, net: SRNet) -> None:
        super().__init__()
        self.net = net

    def forward(self, lr: Tensor) -> Tensor:
        image, _ = self.net.forward_with_taps(lr)
        return image


def _strip_metadata(model: Any) -> None:
    """Drop the exporter's metadata: source lines and absolute paths of this machine. They are a
    third of a small student's file and make its hash depend on the machine."""
    graph = model.graph
    graph.metadata_props.clear()
    for node in graph.all_nodes():
        for item in (node, *node.outputs):
            item.metadata_props.clear()
        node.doc_string = None
    for value in (*graph.inputs, *graph.initializers.values()):
        value.metadata_props.clear()


def map_to_trace(net: SRNet) -> dict[str, str]:
    """For each operation of the exported graph the call in the trace that it comes from, named as
    by `name_calls`."""
    found = {}
    program = _export_program(net.to_exportable())
    calls = name_calls(program.exported_program.graph)
    for node in program.model.graph.all_nodes():
        if (call := _find_call(node)) in calls:
            found[node.name] = calls[call]
    return found


def _find_call(node: Any) -> str:
    """The call in the trace that an exported operation comes from; "" of none."""
    scopes = ast.literal_eval(node.metadata_props.get("pkg.torch.onnx.name_scopes", "[]"))
    return str(scopes[-1]) if scopes else ""


def _name_nodes(model: Any) -> None:
    """Name the last operation of each call after it, as the exporter does where it changes nothing:
    a convolution whose bias is zero loses that and its name, so that names told of weights."""
    nodes = list(model.graph.all_nodes())
    named = {node.name for node in nodes}
    for call, node in {_find_call(node): node for node in nodes}.items():
        if call and (name := f"node_{call}") not in named:
            node.name = name


def name_calls(graph: torch.fx.Graph) -> dict[str, str]:
    """For each tensor operation of a trace its operator and the number of that call.

    Unlike torch's own names these do not depend on how many symbolic sizes there are.
    """
    count: Counter[str] = Counter()
    found = {}
    for node in graph.nodes:
        if node.op == "call_function" and isinstance(node.meta.get("val"), Tensor):
            operator = str(node.target).rpartition(".")[0]  # without its overload
            found[node.name] = f"{operator} {count[operator]}"
            count[operator] += 1
    return found


def _export_program(net: SRNet) -> Any:
    height, width = (net.multiple * torch.export.Dim(n, min=1, max=8192) for n in ("h", "w"))
    if net.multiple == 1:
        least = net.smallest
        height, width = (torch.export.Dim(n, min=least, max=8192) for n in ("height", "width"))
    with quiet("torch.onnx", "onnxscript", "onnx_ir"), torch.no_grad():
        program = torch.onnx.export(
            _Unpadded(net).eval().cpu().float(),
            (_example(net),),
            dynamo=True,
            opset_version=OPSET,
            input_names=[INPUT],
            output_names=[OUTPUT],
            dynamic_shapes={"lr": {2: height, 3: width}},
            custom_translation_table={torch.ops.aten.sort.stable: _sort},
            verbose=False,
        )
    _name_nodes(cast("Any", program).model)
    return program


def _sort(values: Any, stable: bool = True, dim: int = -1, descending: bool = False) -> Any:
    """`aten.sort.stable`, which torch's exporter does not know: TopK of all of them is stable."""
    from onnxscript import opset20 as op

    count = op.Gather(op.Shape(values), op.Constant(value_ints=[dim]))
    return op.TopK(values, count, axis=dim, largest=int(descending), sorted=1)


def _trace(net: SRNet) -> bytes:
    made = BytesIO()
    with quiet("torch.onnx"), torch.no_grad():
        torch.onnx.export(
            _Unpadded(net).eval().cpu().float(),
            (_example(net),),
            made,  # type: ignore[arg-type]  # it takes files too
            dynamo=False,
            opset_version=OPSET,
            input_names=[INPUT],
            output_names=[OUTPUT],
            dynamic_axes={INPUT: {2: "height", 3: "width"}, OUTPUT: {2: "out_h", 3: "out_w"}},
        )
    return made.getvalue()


def _example(net: SRNet) -> Tensor:
    side = -(-max(_EXAMPLE, net.smallest) // net.multiple) * net.multiple
    return torch.rand(1, 3, side, side + net.multiple * 2)
