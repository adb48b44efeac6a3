"""Check that a graph computes what the net or the graph did that it was made from.

Shapes: N batch, C channels, H W low-res size, S scale.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import torch

from mipkd.archs.base import SRNet
from mipkd.core.errors import StageError
from mipkd.core.images import ByteArray
from mipkd.core.records import Graph
from mipkd.export.onnx import open_session

FloatArray = npt.NDArray[np.float32]
Run = Callable[[FloatArray], FloatArray]  # (N, C, H, W) to (N, C, S*H, S*W)

EXACT = 1e-4  # float32's rounding, over the largest value: a fortieth of a level of 255
ONE_LEVEL = 1 / 255  # what float16 may round a picture by
_ROUNDINGS = 16  # a net rounds in each of its layers
_MOST_ROUNDING = 0.05  # of the largest value: more than twice what SPAN x4 needs on noise
# White noise and odd sizes reveal faults that smooth photos of even sizes hide.
_NOISE_SIZES = ((31, 41), (17, 75), (25, 23))


def check_parity(net: SRNet, graph: Graph, images: Sequence[ByteArray], *, bound: float) -> float:
    """The largest difference between torch and ONNX Runtime in FP32, on images in [0, 1].

    White noise is tried too. Images are cropped to the graph's multiple.

    Raises:
        StageError: it is above `bound`, and above what float32's rounding does to the net; or the
            graph cannot be run, or gives another size.
    """
    theirs, largest = _strict_runner(graph), 0.0

    def ours(lr_NCHW: FloatArray) -> FloatArray:
        with torch.inference_mode():
            found: FloatArray = net(torch.from_numpy(lr_NCHW)).numpy()
        return found

    noise = noise_images(graph.multiple, net.smallest)
    tried = [*(_cropped(one, graph.multiple) for one in images), *noise]
    for number, lr_NCHW in enumerate(tried):
        found, expected = theirs(lr_NCHW), ours(lr_NCHW)
        height, width = lr_NCHW.shape[2:]
        if found.shape != expected.shape:
            raise StageError(
                f"export: for LR {width}x{height} the graph's image is {_size(found)}, torch's "
                f"{_size(expected)}"
            )
        gap = float(np.abs(found - expected).max())
        if number < len(images):
            largest = max(largest, gap)
        if gap <= bound:
            continue
        allowed = rounding_of(ours, lr_NCHW) * max(1.0, float(np.abs(expected).max()))
        if not gap <= max(bound, allowed):
            raise StageError(
                f"export: the graph differs from torch by {gap:.2g}, allowed is {bound:.2g}, "
                f"at LR {width}x{height}",
                hint="--set export.max_parity=... if you know why; otherwise report the checkpoint",
            )
    return largest


def levels_apart(net: SRNet, graph: Graph) -> int:
    """By how many levels of 255 a graph's images of noise are from its net's, at most."""
    run, most = runner(open_session(str(graph.file))), 0
    for lr_NCHW in noise_images(graph.multiple, net.smallest):
        with torch.inference_mode():
            ours = net(torch.from_numpy(lr_NCHW)).numpy()
        one, other = (np.rint(np.clip(sr, 0, 1) * 255).astype(int) for sr in (ours, run(lr_NCHW)))
        most = max(most, int(np.abs(one - other).max()))
    return most


def noise_images(multiple: int, least: int = 1) -> list[FloatArray]:
    """White noise in [0, 1] of three sizes: odd numbers of the multiple."""
    rng = np.random.default_rng(0)
    sizes = [[max(s, least) // multiple | 1 for s in size] for size in _NOISE_SIZES]
    return [rng.random((1, 3, h * multiple, w * multiple), np.float32) for h, w in sizes]


def rounding_of(run: Run, lr_NCHW: FloatArray) -> float:
    """How far float32's rounding may move the output, over its largest value.

    A few times what a change of the image in its last bit does: some nets are chaotic on noise.
    At most 0.05, so that what is no rounding is not taken for it.
    """
    rng = np.random.default_rng(0)
    last_bit = np.float32(2.0**-23) * rng.uniform(-1, 1, lr_NCHW.shape).astype(np.float32)
    gap = relative_gap(run(lr_NCHW), run(lr_NCHW * (1 + last_bit)))
    return min(_MOST_ROUNDING, _ROUNDINGS * gap)


def runner(session: Any) -> Run:
    """An ONNX Runtime session as a function, for one image at a time.

    Its input may be of any float type and of a fixed batch.
    """
    (image,) = session.get_inputs()
    dtype = {"tensor(float16)": np.float16, "tensor(double)": np.float64}.get(image.type)
    count = image.shape[0] if isinstance(image.shape[0], int) else 1

    def run(lr_NCHW: FloatArray) -> FloatArray:
        batch = lr_NCHW.astype(dtype or np.float32).repeat(count, 0)
        (found,) = session.run(None, {image.name: batch})
        return np.asarray(found, np.float32)[:1]

    return run


def in_unit_range(run: Run, image_range: float) -> Run:
    """A function of images in `image_range` as one of images in [0, 1]."""
    factor = np.float32(image_range)
    return lambda lr_NCHW: run(lr_NCHW * factor) / factor


def find_first_difference(
    before: Any, after: Any, lr_before: FloatArray, lr_after: FloatArray, *, bound: float
) -> str:
    """The first operator whose output is another in the model `after`; "" if none can be told.

    Tensors of the two are told apart by their names.
    """
    made = {name for node in after.graph.node for name in node.output}
    shared = {name: node for node in before.graph.node for name in node.output if name in made}
    try:
        pairs = ((before, lr_before), (after, lr_after))
        found = [_tensors(model, [*shared], lr_NCHW) for model, lr_NCHW in pairs]
    except Exception:  # onnxruntime has no public base class; what cannot be told is left out
        return ""
    for (name, node), *values in zip(shared.items(), *found, strict=True):
        if not relative_gap(*values) <= bound:
            return f"{node.op_type} {node.name or name!r}"
    return ""


def _tensors(model: Any, names: Sequence[str], lr_NCHW: FloatArray) -> Iterator[Any]:
    exposed = type(model)()
    exposed.CopyFrom(model)
    del exposed.graph.output[:]
    exposed.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    session = open_session(exposed.SerializeToString())
    (image,) = session.get_inputs()
    dtype = np.float16 if image.type == "tensor(float16)" else np.float32
    return iter(session.run(None, {image.name: lr_NCHW.astype(dtype)}))


def relative_gap(one: npt.NDArray[Any], other: npt.NDArray[Any]) -> float:
    """The largest difference, over the largest value of `one` where that is above 1.

    Infinite where the shapes differ, or one holds a number and the other none.
    """
    if one.shape != other.shape:
        return float("inf")
    if one.dtype.kind not in "fiu" or not one.size:
        return 0.0
    one, other = one.astype(np.float64), other.astype(np.float64)
    if not np.array_equal(np.isfinite(one), np.isfinite(other)):
        return float("inf")
    finite = np.isfinite(one)
    most = np.abs(one).max(initial=1.0, where=finite)
    gap = np.subtract(one, other, where=finite, out=np.zeros_like(one))
    return float(np.abs(gap).max() / most)


def _strict_runner(graph: Graph) -> Run:
    """The graph as a function that raises StageError."""
    try:
        run = runner(open_session(str(graph.file)))
    except Exception as error:  # onnxruntime has no public base class
        raise _explain(error, "open the graph") from error

    def strict(lr_NCHW: FloatArray) -> FloatArray:
        try:
            return run(lr_NCHW)
        except Exception as error:
            height, width = lr_NCHW.shape[2:]
            raise _explain(error, f"run the graph at LR {width}x{height}") from error

    return strict


def _explain(error: Exception, what: str) -> StageError:
    why = str(error).splitlines()[0]
    return StageError(f"export: ONNX Runtime cannot {what}: {why}")


def _size(image_NCHW: FloatArray) -> str:
    return "x".join(map(str, image_NCHW.shape[:1:-1]))


def _cropped(image_HWC: ByteArray, multiple: int) -> FloatArray:
    height, width = (side - side % multiple for side in image_HWC.shape[:2])
    return image_HWC[:height, :width].transpose(2, 0, 1)[None].astype(np.float32) / np.float32(255)
