"""The radius told is at least what one pixel changes; what is unknown is inexact, by its name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from mipkd.distill import student
from mipkd.export.onnx import export
from mipkd.export.receptive_field import find_receptive_field
from pipeline.upscale.tiles import bands
from targets._images import upscale
from targets._onnxruntime.session import OrtSession
from targets._tiles import Tiling

SCALE = 2


class Net:
    """An ONNX graph in the making; arrays among the inputs become constants."""

    def __init__(self, opset: int = 20) -> None:
        self.opset, self.rng = opset, np.random.default_rng(0)
        self.nodes: list[Any] = []
        self.constants: list[Any] = []
        self.functions: list[Any] = []
        self.count = 0

    def name(self) -> str:
        self.count += 1
        return f"t{self.count}"

    def constant(self, value: Any) -> str:
        self.constants.append(numpy_helper.from_array(np.asarray(value), self.name()))
        return str(self.constants[-1].name)

    def add(self, kind: str, *inputs: Any, outs: int = 1, **facts: Any) -> Any:
        names = [one if isinstance(one, str) else self.constant(one) for one in inputs]
        made = [self.name() for _ in range(outs)]
        self.nodes.append(helper.make_node(kind, names, made, **facts))
        return made[0] if outs == 1 else made

    def conv(self, x: str, channels: int, to: int, side: int = 3, **facts: Any) -> str:
        pads = facts.pop("pads", [(side - 1) * facts.get("dilations", [1])[0] // 2] * 4)
        shape = (to, channels // facts.get("group", 1), side, side)
        weight = self.rng.standard_normal(shape).astype(np.float32) / side
        return str(self.add("Conv", x, weight, pads=pads, **facts))

    def sizes(self, x: str) -> tuple[str, str]:
        shape = self.add("Shape", x)
        return tuple(self.add("Gather", shape, np.array([at])) for at in (2, 3))  # type: ignore[return-value]

    def shape(self, *parts: Any) -> str:
        parts = tuple(np.array([p]) if isinstance(p, int) else p for p in parts)
        return str(self.add("Concat", *parts, axis=0))

    def shuffled(self, x: str, channels: int, side: int = SCALE) -> str:
        wide = self.conv(x, channels, 3 * side**2)
        return str(self.add("DepthToSpace", wide, blocksize=side, mode="CRD"))

    def save(self, result: str, file: Path) -> Path:
        images = [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
            for name, shape in (("lr", [1, 3, "h", "w"]), (result, [1, 3, "H", "W"]))
        ]
        graph = helper.make_graph(self.nodes, "net", images[:1], images[1:], self.constants)
        domains = [helper.make_opsetid("", self.opset), helper.make_opsetid("other", 1)]
        model = helper.make_model(
            graph, opset_imports=domains, ir_version=10, functions=self.functions
        )
        onnx.save(model, file)
        return file


def espcn(net: Net) -> str:
    x = net.add("Tanh", net.conv("lr", 3, 6, 5))
    return net.shuffled(net.add("Tanh", net.conv(x, 6, 6)), 6)


def fsrcnn(net: Net) -> str:
    x = net.add("PRelu", net.conv("lr", 3, 6, 5), np.full((6, 1, 1), 0.2, np.float32))
    weight = net.rng.standard_normal((6, 3, 9, 9)).astype(np.float32)
    facts = {"strides": [2, 2], "pads": [4] * 4, "output_padding": [1, 1]}
    return str(net.add("ConvTranspose", x, weight, **facts))


def carn(net: Net) -> str:
    one = net.add("Relu", net.conv("lr", 3, 6))
    two = net.add("Relu", net.conv(one, 6, 6, group=2))
    both = net.conv(net.add("Concat", one, two, axis=1), 12, 6, 1)
    return net.shuffled(net.add("Add", both, one), 6)


def dilated(net: Net) -> str:
    x = net.conv("lr", 3, 6, dilations=[3, 3])
    return net.shuffled(net.conv(x, 6, 6, 5, dilations=[2, 2]), 6)


def strided(net: Net) -> str:
    """A U-Net whose inner grid is coarser by 4."""
    x = net.conv("lr", 3, 6)
    inner = net.add("Relu", net.conv(x, 6, 6, strides=[2, 2]))
    inner = net.add("MaxPool", inner, kernel_shape=[2, 2], strides=[2, 2])
    inner = net.conv(inner, 6, 6)
    scales = np.array([1, 1, 4, 4], np.float32)
    inner = net.add("Resize", inner, "", scales, mode="linear")
    return net.shuffled(net.add("Concat", x, inner, axis=1), 12)


def strided_back(net: Net) -> str:
    inner = net.conv("lr", 3, 6, 4, strides=[2, 2], pads=[1] * 4)
    weight = net.rng.standard_normal((6, 6, 4, 4)).astype(np.float32)
    back = net.add("ConvTranspose", inner, weight, strides=[2, 2], pads=[1] * 4)
    return net.shuffled(back, 6)


def unshuffled(net: Net) -> str:
    """Pixel-unshuffle as torch writes it, with sizes that the graph computes."""
    height, width = net.sizes("lr")
    two = np.array([2])
    halves = net.add("Div", height, two), net.add("Div", width, two)
    x = net.add("Reshape", "lr", net.shape(1, 3, halves[0], 2, halves[1], 2))
    x = net.add("Transpose", x, perm=[0, 1, 3, 5, 2, 4])
    x = net.add("Reshape", x, net.shape(1, 12, *halves))
    return net.shuffled(net.conv(x, 12, 6), 6, 4)


def reshaped_shuffle(net: Net) -> str:
    height, width = net.sizes("lr")
    x = net.add("Reshape", net.conv("lr", 3, 12), net.shape(1, 3, 2, 2, height, width))
    x = net.add("Transpose", x, perm=[0, 1, 4, 2, 5, 3])
    return _merged(net, x)


def _merged(net: Net, x: str) -> str:
    two = np.array([2])
    doubled = (net.add("Mul", side, two) for side in net.sizes("lr"))
    return str(net.add("Reshape", x, net.shape(1, 3, *doubled)))


def focus(net: Net) -> str:
    parts = []
    for row, column in np.ndindex(2, 2):
        ends, axes, steps = np.array([2**31, 2**31]), np.array([2, 3]), np.array([2, 2])
        parts.append(net.add("Slice", "lr", np.array([row, column]), ends, axes, steps))
    return net.shuffled(net.conv(net.add("Concat", *parts, axis=1), 12, 6), 6, 4)


def space_to_depth(net: Net) -> str:
    x = net.add("SpaceToDepth", "lr", blocksize=2)
    return net.shuffled(net.conv(x, 12, 6), 6, 4)


def mirrored(net: Net) -> str:
    """Reflected at the ends, then convolutions without padding."""
    x = net.add("Pad", "lr", np.array([0, 0, 3, 3, 0, 0, 3, 3]), mode="reflect")
    x = net.conv(x, 3, 6, 5, pads=[0] * 4)
    return net.shuffled(net.conv(x, 6, 6, pads=[0] * 4), 6)


def moved_between(net: Net) -> str:
    """A row is cut off after the image was enlarged, another is padded at the other end."""
    up = net.add("Resize", "lr", "", np.array([1, 1, 2, 2], np.float32))
    ends = np.array([2**31] * 2)
    x = net.add("Slice", up, np.array([1, 1]), ends, np.array([2, 3]))
    x = net.add("Pad", net.conv(x, 3, 6), np.array([0, 0, 0, 0, 0, 0, 1, 1]))
    return net.conv(x, 6, 3)


def lopsided(net: Net) -> str:
    """What is cut off at one end and padded at the other moves the image."""
    x = net.add("Pad", "lr", np.array([0, 0, 0, 0, 0, 0, 4, 4]))
    x = net.add("Slice", x, np.array([4, 4]), np.array([2**31] * 2), np.array([2, 3]))
    return net.shuffled(net.conv(x, 3, 6), 6)


def bicubic(net: Net) -> str:
    scales = np.array([1, 1, 2, 2], np.float32)
    facts = {"mode": "cubic", "coordinate_transformation_mode": "half_pixel"}
    return str(net.add("Add", net.shuffled("lr", 3), net.add("Resize", "lr", "", scales, **facts)))


def fractional(net: Net) -> str:
    """To three halves of the size and back."""
    up, down = (np.array([1, 1, f, f], np.float32) for f in (1.5, 2 / 3))
    x = net.conv(net.add("Resize", "lr", "", up, mode="linear"), 3, 6)
    return net.shuffled(net.add("Resize", x, "", down, mode="linear"), 6)


def average_below(net: Net) -> str:
    """The same size by SAME padding, with a kernel of even side."""
    facts = {"kernel_shape": [4, 4], "auto_pad": "SAME_UPPER"}
    return net.shuffled(net.add("AveragePool", "lr", **facts), 3)


def channel_normalized(net: Net) -> str:
    """LayerNormalization and attention over channels alone."""
    x = net.add("Transpose", net.conv("lr", 3, 8), perm=[0, 2, 3, 1])
    x = net.add("LayerNormalization", x, np.ones(8, np.float32), axis=-1)
    x = net.add("MatMul", x, net.rng.standard_normal((8, 8)).astype(np.float32))
    x = net.add("Transpose", net.add("Softmax", x, axis=-1), perm=[0, 3, 1, 2])
    mean = net.add("ReduceMean", x, np.array([1]), keepdims=1)
    return net.shuffled(net.add("Sub", x, mean), 8)


def shuffled_channels(net: Net) -> str:
    height, width = net.sizes("lr")
    x = net.add("Reshape", net.conv("lr", 3, 8), net.shape(1, 2, 4, height, width))
    x = net.add("Transpose", x, perm=[0, 2, 1, 3, 4])
    x = net.add("Reshape", x, net.shape(1, 8, height, width))
    one, two = net.add("Split", x, outs=2, axis=1, num_outputs=2)
    return net.shuffled(net.add("Mul", one, two), 4)


def from_function(net: Net) -> str:
    body = [
        helper.make_node("AveragePool", ["x"], ["y"], kernel_shape=[7, 7], pads=[3] * 4),
    ]
    domains = [helper.make_opsetid("", net.opset)]
    net.functions.append(helper.make_function("other", "Blur", ["x"], ["y"], body, domains))
    return net.shuffled(net.add("Blur", "lr", domain="other"), 3)


EXACT: dict[Callable[[Net], str], int] = {  # with the multiple of their sizes
    espcn: 1,
    fsrcnn: 1,
    carn: 1,
    dilated: 1,
    strided: 4,
    strided_back: 2,
    unshuffled: 2,
    reshaped_shuffle: 1,
    focus: 2,
    space_to_depth: 2,
    mirrored: 1,
    moved_between: 1,
    lopsided: 1,
    bicubic: 1,
    fractional: 2,
    average_below: 1,
    channel_normalized: 1,
    shuffled_channels: 1,
    from_function: 1,
}


def measured_radius(file: Path, multiple: int) -> int:
    """LR pixels from one that changed to the furthest whose result changed, at every phase."""
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    side = -(-64 // multiple) * multiple
    rng, most = np.random.default_rng(1), 0
    lr_NCHW = rng.random((1, 3, side, side), dtype=np.float32)
    (before,) = session.run(None, {session.get_inputs()[0].name: lr_NCHW})
    scale = before.shape[2] // side
    for phase in range(multiple):
        at = side // 2 + phase
        for sign in (-3, 3):
            other = lr_NCHW.copy()
            other[..., at, at] += sign
            (after,) = session.run(None, {session.get_inputs()[0].name: other})
            changed = np.argwhere((before != after).any((0, 1))) // scale
            most = max(most, int(np.abs(changed - at).max()))
    return most


@pytest.mark.parametrize("build", EXACT, ids=lambda build: build.__name__)
def test_what_is_told_is_what_one_pixel_changes(
    build: Callable[[Net], str], tmp_path: Path
) -> None:
    net, multiple = Net(), EXACT[build]
    file = net.save(build(net), tmp_path / "net.onnx")
    found = find_receptive_field(file, multiple)
    assert found.inexact_because == ""
    measured = measured_radius(file, multiple)
    assert measured <= found.radius <= measured + multiple + 1  # a phase may hold a zero weight


@pytest.mark.parametrize("build", EXACT, ids=lambda build: build.__name__)
def test_tiles_with_that_margin_are_the_whole(build: Callable[[Net], str], tmp_path: Path) -> None:
    net, multiple = Net(), EXACT[build]
    file = net.save(build(net), tmp_path / "net.onnx")
    margin = find_receptive_field(file, multiple).radius
    session = OrtSession(file, {})
    lr = np.random.default_rng(0).integers(0, 256, (101, 90, 3), dtype=np.uint8)
    whole = upscale(session, lr, scale=SCALE, multiple=multiple).astype(int)
    least = 2 * margin + 2 * multiple + 1
    for side in (least, least + multiple):
        tiled = np.concatenate(
            list(bands(session, lr, Tiling(side, margin, multiple), scale=SCALE))
        )
        # Sums in another order may round to the level beside it.
        assert np.abs(tiled - whole).max() <= 1
        assert (tiled != whole).mean() < 1e-3


@pytest.mark.parametrize("spec", ["edsr:c8b2", "edge:c8b2", "rcan:g1b1", "rlfn:c8b2m8"])
def test_our_families_are_exact_with_enough_or_inexact(spec: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    arch, hyper = student.choose_without_teacher(spec, SCALE)
    net = arch.make(hyper).eval().to_deployed()
    graph = export(net, out=tmp_path, metadata={}, role="student", family=arch.name)
    found = find_receptive_field(graph.file, graph.multiple)
    assert bool(found.inexact_because) == (arch.name in ("rcan", "rlfn"))
    if not found.inexact_because:
        assert found.radius >= measured_radius(graph.file, graph.multiple)


def group_norm(net: Net, x: str) -> str:
    return str(net.add("GroupNormalization", x, *[np.ones(6, np.float32)] * 2, num_groups=2))


def instance_norm(net: Net, x: str) -> str:
    return str(net.add("InstanceNormalization", x, *[np.ones(6, np.float32)] * 2))


def reduced(kind: str, axes: list[int], keepdims: int = 1) -> Callable[[Net, str], str]:
    def build(net: Net, x: str) -> str:
        gone = net.add(kind, x, np.array(axes), keepdims=keepdims)
        if not keepdims:
            gone = net.add("Unsqueeze", gone, np.array(axes))
        return str(net.add("Mul", x, gone))

    return build


def pooled(net: Net, x: str) -> str:
    return str(net.add("Mul", x, net.add("GlobalAveragePool", x)))


def softmax_of_rows(net: Net, x: str) -> str:
    return str(net.add("Softmax", x, axis=3))


def attention(net: Net, x: str) -> str:
    rows = net.add("Transpose", x, perm=[0, 1, 3, 2])
    return str(net.add("MatMul", net.add("MatMul", x, rows), x))


def flat_attention(net: Net, x: str) -> str:
    flat = net.add("Reshape", x, np.array([1, 6, -1]))
    weight = net.add("MatMul", flat, net.add("Transpose", flat, perm=[0, 2, 1]))
    mixed = net.add("MatMul", net.add("Softmax", weight), flat)
    return str(net.add("Reshape", mixed, net.add("Shape", x)))


def einsum(net: Net, x: str) -> str:
    return str(net.add("Einsum", x, x, equation="nchw,nchv->nchv"))


def running_sum(net: Net, x: str) -> str:
    return str(net.add("CumSum", x, np.int64(2)))


def turned(net: Net, x: str) -> str:
    ends = np.array([-1]), np.array([-(2**31)]), np.array([2]), np.array([-1])
    return str(net.add("Add", x, net.add("Slice", x, *ends)))


def last_rows(net: Net, x: str) -> str:
    last = net.add("Slice", x, np.array([-1]), np.array([2**31]), np.array([2]))
    return str(net.add("Add", x, last))


def first_row(net: Net, x: str) -> str:
    return str(net.add("Add", x, net.add("Gather", x, np.array([0]), axis=2)))


def sampled(net: Net, x: str) -> str:
    moved = net.add("Transpose", net.conv(x, 6, 2), perm=[0, 2, 3, 1])
    return str(net.add("GridSample", x, net.add("Tanh", moved)))


def position(net: Net, x: str) -> str:
    width = net.add("Squeeze", net.sizes(x)[1])
    steps = net.add("Range", np.int64(0), width, np.int64(1))
    return str(net.add("Add", x, net.add("Cast", steps, to=TensorProto.FLOAT)))


def by_area(net: Net, x: str) -> str:
    count = net.add("Cast", net.add("Size", x), to=TensorProto.FLOAT)
    return str(net.add("Div", x, count))


def windows(net: Net, x: str) -> str:
    """Windows of 4 side by side as a batch, each looked at as a whole."""
    height, width = (net.add("Div", side, np.array([4])) for side in net.sizes(x))
    parts = net.add("Reshape", x, net.shape(6, height, 4, width, 4))
    parts = net.add("Transpose", parts, perm=[1, 3, 0, 2, 4])
    parts = net.add("Reshape", parts, np.array([-1, 16]))
    parts = net.add("Reshape", net.add("Softmax", parts), net.shape(height, width, 6, 4, 4))
    parts = net.add("Transpose", parts, perm=[2, 0, 3, 1, 4])
    return str(net.add("Reshape", parts, net.add("Shape", x)))


def aligned_corners(net: Net, x: str) -> str:
    factors = {"mode": "linear", "coordinate_transformation_mode": "align_corners"}
    up = net.add("Resize", x, "", np.array([1, 1, 2, 2], np.float32), **factors)
    return str(net.add("AveragePool", up, kernel_shape=[2, 2], strides=[2, 2]))


def odd_stride(net: Net, x: str) -> str:
    """Pooled by 2 and brought back to whatever the size was."""
    small = net.add("MaxPool", x, kernel_shape=[2, 2], strides=[2, 2], ceil_mode=1)
    return str(net.add("Resize", small, "", "", net.add("Shape", x), mode="nearest"))


def rows_as_columns(net: Net, x: str) -> str:
    """Read in another order: a row's length decides what lies beneath."""
    height, width = net.sizes(x)
    turned = net.add("Reshape", x, net.shape(1, 6, width, height))
    return str(net.add("Transpose", turned, perm=[0, 1, 3, 2]))


def by_random(net: Net, x: str) -> str:
    return str(net.add("Add", x, net.add("RandomNormal", shape=[1, 6, 1, 1], seed=1.0)))


def by_condition(net: Net, x: str) -> str:
    value = helper.make_tensor_value_info("branch", TensorProto.FLOAT, None)
    branch = helper.make_graph([helper.make_node("Neg", [x], ["branch"])], "b", [], [value])
    bright = net.add("Greater", net.add("ReduceMean", x, keepdims=0), np.float32(0))
    return str(net.add("If", bright, then_branch=branch, else_branch=branch))


def foreign(net: Net, x: str) -> str:
    return str(net.add("Enhance", x, domain="other"))


def kernel_of_pixels(net: Net, x: str) -> str:
    mean = net.add("GlobalAveragePool", "lr")
    weight = net.add("Tile", mean, np.array([6, 2, 3, 3]))
    return str(net.add("Conv", x, weight, pads=[1] * 4))


INEXACT: dict[str, tuple[Callable[[Net, str], str], str]] = {
    "group norm": (group_norm, "GroupNormalization: it looks at the whole image"),
    "instance norm": (instance_norm, "InstanceNormalization: it looks at the whole image"),
    "L2 of rows": (reduced("ReduceL2", [3]), "ReduceL2: it looks at the whole image"),
    "mean of columns": (reduced("ReduceMean", [2], 0), "ReduceMean: it looks at the whole image"),
    "max of all": (reduced("ReduceMax", [-1, -2]), "ReduceMax: it looks at the whole image"),
    "pool": (pooled, "GlobalAveragePool: it looks at the whole image"),
    "softmax": (softmax_of_rows, "Softmax: it looks at the whole image"),
    "attention": (attention, "MatMul: attention"),
    "flat attention": (flat_attention, "Reshape: it puts places of the image behind one another"),
    "einsum": (einsum, "Einsum: how far it looks is not known"),
    "running sum": (running_sum, "CumSum: how far it looks is not known"),
    "turned": (turned, "Slice: it counts from the image's other end"),
    "last rows": (last_rows, "Slice: it counts from the image's other end"),
    "first row": (first_row, "Gather: it picks places of the image"),
    "sampled": (sampled, "GridSample: how far it looks is not known"),
    "position": (position, "Add: it takes values that depend on the image's size"),
    "area": (by_area, "Div: it takes values that depend on the image's size"),
    "windows": (windows, "Reshape: it puts places of the image behind one another"),
    "aligned corners": (aligned_corners, "Resize: align_corners"),
    "odd stride": (odd_stride, "MaxPool: a coarser grid"),
    "rows as columns": (rows_as_columns, "Reshape: "),
    "random": (by_random, "RandomNormal: it is random"),
    "condition": (by_condition, "If: what it runs depends on values"),
    "foreign": (foreign, "other.Enhance: how far it looks is not known"),
    "dynamic kernel": (kernel_of_pixels, "GlobalAveragePool: it looks at the whole image"),
}


@pytest.mark.parametrize("name", INEXACT)
def test_what_is_unknown_or_looks_everywhere_is_inexact_by_its_name(
    name: str, tmp_path: Path
) -> None:
    build, why = INEXACT[name]
    net = Net(21 if name == "group norm" else 20)
    file = net.save(net.shuffled(build(net, net.conv("lr", 3, 6)), 6), tmp_path / "net.onnx")
    multiple = 4 if name == "windows" else 1
    found = find_receptive_field(file, multiple)
    assert found.inexact_because.startswith(why), found


def test_a_coarser_grid_than_tiles_begin_at_is_inexact(tmp_path: Path) -> None:
    net = Net()
    file = net.save(strided(net), tmp_path / "net.onnx")
    assert find_receptive_field(file, 4).inexact_because == ""
    assert find_receptive_field(file, 8).inexact_because == ""
