"""Core ML's operations in torch, computed in float32; integers and booleans keep their types.

Ties go to even, as coremltools folds constants (numpy.round). It documents one tie, that `round`
makes 0.5 to 0, and for `quantize` the order: round, then add the zero point. What devices do at the
ties of `quantize`, and whether they divide in FP16 there, is known to us from nowhere.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from mipkd.core.errors import UnsupportedError

# Types that torch can hold but not index or add; macOS 14 programs have sizes in them.
WIDER = {"uint16": "int32", "uint32": "int64"}

Values = dict[str, Any]
Op = Callable[[Any, Values], Any]  # (torch, inputs by name) -> result, or a tuple of results


def cast_to(torch: Any, value: Any, dtype: str) -> Any:
    """A result in the type that the program gives it; floats stay in float32."""
    if dtype == "float16":
        return value.to(torch.float16).to(torch.float32)
    return value.to(getattr(torch, WIDER.get(dtype, dtype)))


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
    """Padding of an image in torch's order: left, right, above, below."""
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


def _dequantize(torch: Any, v: Values) -> Any:
    """scale * (stored - zero point), per tensor or along an axis."""
    stored = (v["quantized_data"] if "quantized_data" in v else v["input"]).float()
    zero, scale = (_spread(v, name, stored.ndim) for name in ("zero_point", "scale"))
    return (stored - zero) * scale


def _quantize(torch: Any, v: Values) -> Any:
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


def _upsample(torch: Any, v: Values) -> Any:
    """Bilinear upsampling by given factors; the size is rounded down."""
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


def _expand_dims(torch: Any, v: Values) -> Any:
    x = v["x"]
    axes = _ints(v["axes"])
    rank = x.ndim + len(axes)
    for axis in sorted(axis % rank for axis in axes):
        x = x.unsqueeze(axis)
    return x


OPS: Mapping[str, Op] = {
    "add": lambda torch, v: v["x"] + v["y"],
    "cast": lambda torch, v: v["x"],  # to the declared type, as every result
    "clip": _clip,
    "concat": _concat,
    "constexpr_affine_dequantize": _dequantize,
    "conv": _conv,
    "dequantize": _dequantize,
    "expand_dims": _expand_dims,
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
    "quantize": _quantize,
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
    "upsample_bilinear": _upsample,
}
