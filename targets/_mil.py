"""Core ML packages run op by op without Core ML: what graph and weights give, not how fast.

Everything is read from the saved package: the program from model.mlmodel, the weights from the
blob file beside it (https://apple.github.io/coremltools/docs-guides/source/ml-programs.html).
Arithmetic is torch's in float32; each result is rounded to the type that the program declares,
so FP16 programs round, and overflow, where Core ML does at the latest. Where it keeps more
digits or sums in another order is not known here.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mipkd.core.errors import StageError, UnsupportedError, UsageError

if TYPE_CHECKING:
    from targets.base import FloatArray

WEIGHTS_SHA256 = "mipkd.weights_sha256"  # metadata of a package: what its weight file must be
_MODEL_PATH = "@model_path/"
# Of a weight file: a header of 64 bytes, then for each blob a record of 64 and its values.
_RECORD = struct.Struct("<IIQQ")  # sentinel, type, bytes, where the values begin
_SENTINEL = 0xDEADBEEF
# Types that torch can hold but not index or add; macOS 14 programs have sizes in them.
_WIDER = {"UINT16": "int32", "UINT32": "int64"}

Values = dict[str, Any]
Op = Callable[[Any, Values], Any]  # (torch, inputs by name) -> result, or a tuple of results


@dataclass(frozen=True)
class Step:
    """One operation: inputs and outputs are names of values."""

    op: str
    inputs: dict[str, tuple[str, ...]]
    outputs: tuple[tuple[str, str], ...]  # name, declared type
    spent: tuple[str, ...] = ()  # values that no later step reads


class Program:
    """A package's program, its weights decompressed; call it with one image."""

    def __init__(self, package: Path) -> None:
        """
        Raises:
            UsageError: not a package of an ML program.
            StageError: its weight file is not the one that was built.
            UnsupportedError: it has an operation that is not known here.
        """
        import torch

        self._torch = torch
        self.package = package
        self.spec = read_spec(package)
        check_weights(package, self.spec)
        block = _block(self.spec, package)
        self.constants: Values = {}
        self._anonymous = 0
        self._steps: list[Step] = []
        for operation in block.operations:
            self._take(operation)
        self.output: str = block.outputs[0]
        self.input: str = self.spec.description.input[0].name
        self._steps = _with_spent(self._steps, self.output)

    def __call__(self, image_NCHW: FloatArray) -> FloatArray:
        """The program's output for one image, as float32.

        Raises:
            UnsupportedError: the package does not take images of this size.
        """
        torch = self._torch
        self._check_size(image_NCHW.shape)
        values = dict(self.constants)
        values[self.input] = torch.from_numpy(np.array(image_NCHW, np.float32))
        with torch.inference_mode():
            for step in self._steps:
                self._do(step, values)
                for name in step.spent:
                    del values[name]
        result: FloatArray = values[self.output].float().numpy()
        return result

    def _do(self, step: Step, values: Values) -> None:
        given = {
            name: [values[n] for n in names] if name == "values" else values[names[0]]
            for name, names in step.inputs.items()
        }
        found = _OPS[step.op](self._torch, given)
        found = found if isinstance(found, tuple) else (found,)
        for (name, declared), value in zip(step.outputs, found, strict=True):
            values[name] = _rounded(self._torch, value, declared)

    def _take(self, operation: Any) -> None:
        """Constants are kept as values, everything else as a step."""
        outputs = tuple((o.name, _type_name(o.type)) for o in operation.outputs)
        if operation.type == "const":
            self.constants[outputs[0][0]] = self._value(operation.attributes["val"])
            return
        if operation.type not in _OPS:
            raise UnsupportedError(
                f"coreml: {self.package.name}: operation {operation.type!r} "
                f"({outputs[0][0]}) is not known to the simulation",
                hint="run the package on a Mac, or give a net without it; known: "
                + ", ".join(sorted(_OPS)),
            )
        inputs = {name: self._names(argument) for name, argument in operation.inputs.items()}
        for name, attribute in operation.attributes.items():
            if name != "name":
                inputs[name] = (self._named(attribute),)
        step = Step(operation.type, inputs, outputs)
        if operation.type.startswith("constexpr_"):
            self._do(step, self.constants)
        else:
            self._steps.append(step)

    def _names(self, argument: Any) -> tuple[str, ...]:
        return tuple(
            b.name if b.WhichOneof("binding") == "name" else self._named(b.value)
            for b in argument.arguments
        )

    def _named(self, value: Any) -> str:
        self._anonymous += 1
        name = f"constant {self._anonymous}"
        self.constants[name] = self._value(value)
        return name

    def _value(self, value: Any) -> Any:
        """A constant: a str, or a tensor whose floats are float32 whatever they are stored as."""
        kind = _type_name(value.type)
        if value.WhichOneof("value") == "blobFileValue":
            place = value.blobFileValue
            file = _inside(self.package) / place.fileName.removeprefix(_MODEL_PATH)
            array = _blob(file, place.offset, kind)
        else:
            tensor = value.immediateValue.tensor
            held: Any = getattr(tensor, tensor.WhichOneof("value") or "ints").values
            if kind == "STRING":
                return held[0]
            raw = isinstance(held, bytes)
            array = np.frombuffer(held, _dtype(kind)) if raw else np.array([*held], _dtype(kind))
        shape = [d.constant.size for d in value.type.tensorType.dimensions]
        floating = array.dtype.kind == "f"
        # A scalar may be stored for a tensor of equal values.
        whole = array if array.size == np.prod(shape, dtype=int) else np.broadcast_to(array, shape)
        copied = np.array(
            whole.reshape(shape), np.float32 if floating else _WIDER.get(kind, whole.dtype)
        )
        return self._torch.from_numpy(copied)

    def _check_size(self, shape: tuple[int, ...]) -> None:
        ranges = accepted(self.spec)
        fits = len(shape) == 4 and all(
            low <= side <= (high if high > 0 else side)
            for side, (low, high) in zip(shape, ranges, strict=True)
        )
        if not fits:
            told = " x ".join(f"{a}" if a == b else f"{a}..{b}" for a, b in ranges)
            raise UnsupportedError(
                f"coreml: {self.package.name} takes {told}, not "
                + " x ".join(str(side) for side in shape),
                hint="pad or tile the image to a size that it takes",
            )


def read_spec(package: Path) -> Any:
    """The package's description and program.

    Raises:
        UsageError: not a package that can be read.
    """
    from coremltools.proto import Model_pb2
    from google.protobuf.message import DecodeError

    spec = Model_pb2.Model()
    try:
        spec.ParseFromString(model_file(package).read_bytes())
    except (OSError, KeyError, ValueError, DecodeError) as error:
        raise UsageError(
            f"coreml: {package} is not a Core ML package: {error}",
            hint="give the .mlpackage folder, whole",
        ) from error
    return spec


def model_file(package: Path) -> Path:
    """The file with the program, as the package's manifest says."""
    manifest = json.loads((package / "Manifest.json").read_text())
    root = manifest["itemInfoEntries"][manifest["rootModelIdentifier"]]
    return package / "Data" / str(root["path"])


def weight_file(package: Path) -> Path:
    """The file with the weights; a program with small constants only has none."""
    return _inside(package) / "weights" / "weight.bin"


def check_weights(package: Path, spec: Any) -> None:
    """Compare the weight file with the hash in the package's metadata, where there is one.

    Raises:
        StageError: it is another file, or gone.
    """
    told = spec.description.metadata.userDefined.get(WEIGHTS_SHA256)
    if told is None:
        return
    file = weight_file(package)
    found = hashlib.sha256(file.read_bytes()).hexdigest() if file.is_file() else "no file"
    if found != told:
        raise StageError(
            f"coreml: {package.name}/{file.relative_to(package)} is not what was built: "
            f"its sha256 is {found[:12]}, noted is {told[:12]}",
            hint="copy the package again from where it was built, or build it again",
        )


def accepted(spec: Any) -> list[tuple[int, int]]:
    """The least and largest size of each dimension (N, C, H, W) that the input may have."""
    kind = spec.description.input[0].type
    if kind.WhichOneof("Type") == "imageType":
        image = kind.imageType
        if image.WhichOneof("SizeFlexibility") == "imageSizeRange":
            sides = [image.imageSizeRange.heightRange, image.imageSizeRange.widthRange]
            return [(1, 1), (3, 3), *((s.lowerBound, s.upperBound) for s in sides)]
        return [(1, 1), (3, 3), (image.height, image.height), (image.width, image.width)]
    array = kind.multiArrayType
    if array.WhichOneof("ShapeFlexibility") == "shapeRange":
        return [(r.lowerBound, r.upperBound) for r in array.shapeRange.sizeRanges]
    return [(side, side) for side in array.shape]


def _with_spent(steps: list[Step], output: str) -> list[Step]:
    """The steps, each with the values that are used there for the last time."""
    seen, found = {output}, list[Step]()
    for step in reversed(steps):
        names = {n for given in step.inputs.values() for n in given}
        names |= {name for name, _ in step.outputs}
        found.append(replace(step, spent=tuple(sorted(names - seen))))
        seen |= names
    return found[::-1]


def _inside(package: Path) -> Path:
    return model_file(package).parent


def _block(spec: Any, package: Path) -> Any:
    functions = spec.mlProgram.functions
    if spec.WhichOneof("Type") != "mlProgram" or "main" not in functions:
        raise UsageError(
            f"coreml: {package} holds no ML program", hint="convert it with convert_to='mlprogram'"
        )
    (block,) = functions["main"].block_specializations.values()
    if len(spec.description.input) != 1 or len(block.outputs) != 1:
        raise UsageError(
            f"coreml: {package}: {len(spec.description.input)} inputs and "
            f"{len(block.outputs)} outputs",
            hint="known: one image in, one image out",
        )
    return block


def _type_name(value_type: Any) -> str:
    from coremltools.proto import MIL_pb2

    kind = value_type.tensorType.dataType
    return str(MIL_pb2.DataType.Name(kind))


def _dtype(kind: str) -> np.dtype[Any]:
    return np.dtype(kind.lower())


def _blob(file: Path, offset: int, kind: str) -> Any:
    """The values of one blob; `offset` is where its record begins."""
    with file.open("rb") as weights:
        weights.seek(offset)
        record = weights.read(_RECORD.size)
        sentinel, _, size, begin = (
            _RECORD.unpack(record) if len(record) == _RECORD.size else [0] * 4
        )
        weights.seek(begin)
        held = weights.read(size)
    if sentinel != _SENTINEL or len(held) != size:
        raise StageError(
            f"coreml: {file.name}: no whole blob at {offset}",
            hint="the file was cut or changed: copy the package again",
        )
    return np.frombuffer(held, _dtype(kind))


def _rounded(torch: Any, value: Any, declared: str) -> Any:
    """A result in the type that the program says it has; floats stay in float32."""
    if declared == "FLOAT16":
        return value.to(torch.float16).to(torch.float32)
    if declared == "FLOAT32":
        return value.to(torch.float32)
    return value.to(getattr(torch, _WIDER.get(declared, declared.lower())))


def _ints(tensor: Any) -> list[int]:
    return [int(v) for v in tensor.flatten().tolist()]


def _int(tensor: Any) -> int:
    return int(tensor.item())


def _conv(torch: Any, v: Values) -> Any:
    x, weight = v["x"], v["weight"]
    strides = _ints(v["strides"]) if "strides" in v else [1, 1]
    dilations = _ints(v["dilations"]) if "dilations" in v else [1, 1]
    x = torch.nn.functional.pad(x, _padding(v))
    groups = _int(v["groups"]) if "groups" in v else 1
    return torch.conv2d(x, weight, v.get("bias"), strides, 0, dilations, groups)


def _padding(v: Values) -> list[int]:
    """Of an image, as torch takes it: left, right, above, below."""
    kind = v.get("pad_type", "valid")
    if kind == "valid":
        return [0] * 4
    if kind != "custom":
        raise UnsupportedError(f"coreml: padding {kind!r} is not known to the simulation")
    above, below, left, right = _ints(v["pad"])
    return [left, right, above, below]


def _clip(torch: Any, v: Values) -> Any:
    return v["x"].clamp(float(v["alpha"]), float(v["beta"]))


def _concat(torch: Any, v: Values) -> Any:
    if "interleave" in v and bool(v["interleave"]):
        raise UnsupportedError("coreml: an interleaved concat is not known to the simulation")
    # A scalar counts as a vector of one.
    return torch.cat([x if x.ndim else x[None] for x in v["values"]], _int(v["axis"]))


def _spread(v: Values, name: str, ndim: int) -> Any:
    """A scale or zero point in float32, along its axis; a missing zero point is 0."""
    if name not in v:
        return 0
    value = v[name].float()
    if not value.ndim:
        return value
    along = [1] * ndim
    along[_int(v["axis"])] = -1
    return value.reshape(along)


def _dequantized(torch: Any, v: Values) -> Any:
    """scale * (stored - zero point), per tensor or along an axis."""
    stored = (v["quantized_data"] if "quantized_data" in v else v["input"]).float()
    zero, scale = (_spread(v, name, stored.ndim) for name in ("zero_point", "scale"))
    return (stored - zero) * scale


def _quantized(torch: Any, v: Values) -> Any:
    """8-bit codes, clipped; their type is the declared one."""
    x, bounds = v["input"], torch.iinfo(getattr(torch, v["output_dtype"]))
    zero, scale = (_spread(v, name, x.ndim) for name in ("zero_point", "scale"))
    return ((x / scale).round() + zero).clamp(bounds.min, bounds.max)


def _gather(torch: Any, v: Values) -> Any:
    x, indices = v["x"], v["indices"].to(torch.int64)
    axis = _int(v["axis"]) % x.ndim
    if "batch_dims" in v and _int(v["batch_dims"]):
        raise UnsupportedError("coreml: gather with batch_dims is not known to the simulation")
    wrapped = torch.where(indices < 0, indices + x.shape[axis], indices)
    shape = [*x.shape[:axis], *indices.shape, *x.shape[axis + 1 :]]
    return x.index_select(axis, wrapped.flatten()).reshape(shape)


def _gelu(torch: Any, v: Values) -> Any:
    if (mode := v.get("mode", "EXACT")) != "EXACT":
        raise UnsupportedError(f"coreml: gelu {mode!r} is not known to the simulation")
    return torch.nn.functional.gelu(v["x"])


def _layer_norm(torch: Any, v: Values) -> Any:
    axes = _ints(v["axes"])
    x = v["x"]
    centred = x - x.mean(axes, keepdim=True)
    normed = centred / torch.sqrt(centred.pow(2).mean(axes, keepdim=True) + float(v["epsilon"]))
    if "gamma" in v:
        normed = normed * v["gamma"]
    return normed + v["beta"] if "beta" in v else normed


def _linear(torch: Any, v: Values) -> Any:
    return torch.nn.functional.linear(v["x"], v["weight"], v.get("bias"))


def _matmul(torch: Any, v: Values) -> Any:
    x, y = v["x"], v["y"]
    if "transpose_x" in v and bool(v["transpose_x"]):
        x = x.transpose(-1, -2)
    if "transpose_y" in v and bool(v["transpose_y"]):
        y = y.transpose(-1, -2)
    return x @ y


def _max_pool(torch: Any, v: Values) -> Any:
    if "ceil_mode" in v and bool(v["ceil_mode"]):
        raise UnsupportedError("coreml: max_pool with ceil_mode is not known to the simulation")
    padded = torch.nn.functional.pad(v["x"], _padding(v), value=float("-inf"))
    return torch.max_pool2d(padded, _ints(v["kernel_sizes"]), _ints(v["strides"]))


def _mean(torch: Any, v: Values) -> Any:
    axes = _ints(v["axes"]) if "axes" in v else [*range(v["x"].ndim)]
    return v["x"].mean(axes, keepdim="keep_dims" in v and bool(v["keep_dims"]))


def _range(torch: Any, v: Values) -> Any:
    begin, end, step = (v[name].item() for name in ("start", "end", "step"))
    return torch.arange(begin, end, step)


def _upsampled(torch: Any, v: Values) -> Any:
    """Bilinear by given factors; the size is rounded down."""
    centred = "half_pixel_centers" not in v or bool(v["half_pixel_centers"])
    if bool(v["align_corners"]) or not centred:
        raise UnsupportedError("coreml: bilinear upsampling with aligned corners is not simulated")
    factors = [float(v[f"scale_factor_{side}"]) for side in ("height", "width")]
    sides = [int(side * f + 1e-4) for side, f in zip(v["x"].shape[2:], factors, strict=True)]
    return torch.nn.functional.interpolate(v["x"], sides, mode="bilinear", align_corners=False)


def _slice(torch: Any, v: Values) -> Any:
    x = v["x"]
    begin, end = _ints(v["begin"]), _ints(v["end"])
    stride = _ints(v["stride"]) if "stride" in v else [1] * x.ndim
    masks = {
        name: [bool(m) for m in v[name].tolist()] if name in v else [False] * x.ndim
        for name in ("begin_mask", "end_mask", "squeeze_mask")
    }
    if min(stride) < 1:
        raise UnsupportedError("coreml: slices with a negative stride are not simulated")
    picked: list[Any] = []
    for i in range(x.ndim):
        if masks["squeeze_mask"][i]:
            picked.append(begin[i])
            continue
        first = None if masks["begin_mask"][i] else begin[i]
        picked.append(slice(first, None if masks["end_mask"][i] else end[i], stride[i]))
    return x[tuple(picked)]


def _split(torch: Any, v: Values) -> Any:
    if "split_sizes" not in v:
        raise UnsupportedError("coreml: split without sizes is not known to the simulation")
    return tuple(torch.split(v["x"], _ints(v["split_sizes"]), _int(v["axis"])))


def _squeeze(torch: Any, v: Values) -> Any:
    return v["x"].squeeze(tuple(_ints(v["axes"]))) if "axes" in v else v["x"].squeeze()


def _expanded(torch: Any, v: Values) -> Any:
    x = v["x"]
    axes = _ints(v["axes"])
    rank = x.ndim + len(axes)
    for axis in sorted(axis % rank for axis in axes):
        x = x.unsqueeze(axis)
    return x


_OPS: Mapping[str, Op] = {
    "add": lambda torch, v: v["x"] + v["y"],
    "cast": lambda torch, v: v["x"],  # to the declared type, as every result
    "clip": _clip,
    "concat": _concat,
    "constexpr_affine_dequantize": _dequantized,
    "conv": _conv,
    "dequantize": _dequantized,
    "expand_dims": _expanded,
    "floor_div": lambda torch, v: torch.floor_divide(v["x"], v["y"]),
    "gather": _gather,
    "gelu": _gelu,
    "greater_equal": lambda torch, v: v["x"] >= v["y"],
    "layer_norm": _layer_norm,
    "leaky_relu": lambda torch, v: torch.where(v["x"] >= 0, v["x"], v["x"] * v["alpha"]),
    "linear": _linear,
    "matmul": _matmul,
    "max_pool": _max_pool,
    "mod": lambda torch, v: torch.remainder(v["x"], v["y"]),
    "mul": lambda torch, v: v["x"] * v["y"],
    "not_equal": lambda torch, v: v["x"] != v["y"],
    "pixel_shuffle": lambda torch, v: torch.pixel_shuffle(v["x"], _int(v["upscale_factor"])),
    "quantize": _quantized,
    "range_1d": _range,
    "reduce_mean": _mean,
    "relu": lambda torch, v: v["x"].relu(),
    "reshape": lambda torch, v: v["x"].reshape(_ints(v["shape"])),
    "round": lambda torch, v: v["x"].round(),
    "shape": lambda torch, v: torch.tensor(v["x"].shape),
    "sigmoid": lambda torch, v: v["x"].sigmoid(),
    "slice_by_index": _slice,
    "softmax": lambda torch, v: v["x"].softmax(_int(v["axis"])),
    "split": _split,
    "squeeze": _squeeze,
    "sub": lambda torch, v: v["x"] - v["y"],
    "transpose": lambda torch, v: v["x"].permute(_ints(v["perm"])),
    "upsample_bilinear": _upsampled,
}
