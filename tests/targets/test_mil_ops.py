"""Operations of the Core ML simulation against ONNX Runtime and torch, where they could differ."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from onnx import ValueInfoProto, helper

from targets._coreml.mil_ops import OPS

Array = Any
RNG = np.random.default_rng(0)


def by_onnx(kind: str, *values: Array, **attributes: Any) -> Array:
    """What ONNX Runtime makes of one operator; "" leaves an input out."""
    names = [f"v{n}" if not isinstance(v, str) else "" for n, v in enumerate(values)]
    given = {n: v for n, v in zip(names, values, strict=True) if n}
    inputs = [
        helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(v.dtype), v.shape)
        for n, v in given.items()
    ]
    result = ValueInfoProto(name="out")  # its type is inferred
    graph = helper.make_graph(
        [helper.make_node(kind, names, ["out"], **attributes)], kind, inputs, [result]
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    session = onnxruntime.InferenceSession(model.SerializeToString())
    return session.run(None, given)[0]


def simulated(kind: str, **values: Any) -> Array:
    tensors = {n: v if isinstance(v, str) else torch.from_numpy(v) for n, v in values.items()}
    return OPS[kind](torch, tensors).numpy()


def ints(*values: int) -> Array:
    return np.array(values, np.int32)


def noise(*shape: int) -> Array:
    return RNG.standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize(
    ("strides", "dilations"), [((1, 1), (1, 1)), ((2, 1), (1, 1)), ((1, 1), (2, 3))]
)
def test_padding_of_convolutions_differs_by_side(
    strides: tuple[int, int], dilations: tuple[int, int]
) -> None:
    """MIL states above, below, left, right; ONNX above, left, below, right."""
    x, weight, bias = noise(1, 4, 9, 11), noise(6, 2, 3, 3), noise(6)
    found = simulated(
        "conv",
        x=x,
        weight=weight,
        bias=bias,
        pad_type="custom",
        pad=ints(1, 2, 3, 0),
        strides=ints(*strides),
        dilations=ints(*dilations),
        groups=np.array(2),
    )
    shape = {"strides": strides, "dilations": dilations, "group": 2}
    wanted = by_onnx("Conv", x, weight, bias, pads=[1, 3, 2, 0], **shape)
    np.testing.assert_allclose(found, wanted, atol=1e-5)


def test_padding_of_a_maximum_is_no_zero() -> None:
    x = -1 - np.abs(noise(1, 3, 8, 9))
    found = simulated(
        "max_pool",
        x=x,
        kernel_sizes=ints(3, 3),
        strides=ints(2, 2),
        pad_type="custom",
        pad=ints(1, 1, 0, 2),
    )
    wanted = by_onnx("MaxPool", x, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 0, 1, 2])
    np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize("factor", [2, 3])
def test_a_pixel_shuffle_takes_channels_as_torch_and_onnx_do(factor: int) -> None:
    x = noise(1, 3 * factor**2, 4, 5)
    found = simulated("pixel_shuffle", x=x, upscale_factor=np.array(factor))
    wanted = by_onnx("DepthToSpace", x, blocksize=factor, mode="CRD")
    np.testing.assert_array_equal(found, wanted)
    np.testing.assert_array_equal(found, torch.pixel_shuffle(torch.from_numpy(x), factor).numpy())


TIES = (np.arange(-300, 300, dtype=np.float32) + np.float32(0.5)) / 4  # for a scale of 1/4


def quantized(kind: str, zero: int) -> Array:
    scale = np.array(0.25, np.float32)
    return simulated(
        "quantize", input=TIES, scale=scale, zero_point=np.array(zero, kind), output_dtype=kind
    )


@pytest.mark.parametrize(("kind", "zero"), [("uint8", 0), ("uint8", 128), ("int8", 4)])
def test_ties_of_quantize_go_to_even_as_in_onnx_and_torch(kind: str, zero: int) -> None:
    """The zero points that we build are even: it does not matter when they are added."""
    found, scale = quantized(kind, zero), np.array(0.25, np.float32)
    wanted = by_onnx("QuantizeLinear", TIES, scale, np.array(zero, kind))
    np.testing.assert_array_equal(found, wanted)
    bounds = np.iinfo(kind)
    by_torch = torch.fake_quantize_per_tensor_affine(
        torch.from_numpy(TIES), 0.25, zero, int(bounds.min), int(bounds.max)
    )
    np.testing.assert_array_equal((found - zero) * scale, by_torch.numpy())


@pytest.mark.parametrize("kind", ["uint8", "int8"])
def test_an_odd_zero_point_is_added_after_rounding_as_coremltools_states(kind: str) -> None:
    """There torch and ONNX Runtime's int8 differ: they round what it was added to."""
    utils = pytest.importorskip("coremltools.optimize._utils")
    zero, scale = np.array(3, kind), np.array(0.25, np.float32)
    wanted = utils.quantize_by_scale_and_zp(TIES, scale, zero, kind)
    np.testing.assert_array_equal(quantized(kind, 3), wanted)


def test_ties_of_round_go_to_even_as_in_onnx_and_in_coremltools() -> None:
    """ "0.5 is rounded to 0": the one tie that coremltools documents."""
    x = np.arange(-9, 9, dtype=np.float32) + np.float32(0.5)
    found = simulated("round", x=x)
    np.testing.assert_array_equal(found, by_onnx("Round", x))
    np.testing.assert_array_equal(found, np.round(x))  # what coremltools folds constants with
    assert found[9] == 0


@pytest.mark.parametrize("axis", [0, 1])
def test_codes_of_channels_are_dequantized_along_their_axis(axis: int) -> None:
    codes = RNG.integers(-128, 128, (3, 3, 2, 2)).astype(np.int8)
    scale, zero = np.abs(noise(3)) + np.float32(0.1), np.array([1, 0, -5], np.int8)
    wanted = by_onnx("DequantizeLinear", codes, scale, zero, axis=axis)
    for kind, name in (("dequantize", "input"), ("constexpr_affine_dequantize", "quantized_data")):
        given = {name: codes, "scale": scale, "zero_point": zero, "axis": np.array(axis)}
        np.testing.assert_array_equal(simulated(kind, **given), wanted)


@pytest.mark.parametrize("factors", [(2, 2), (3, 1.5)])
def test_bilinear_upsampling_is_onnxs_half_pixel(factors: tuple[float, float]) -> None:
    x = noise(1, 2, 6, 8)
    found = simulated(
        "upsample_bilinear",
        x=x,
        scale_factor_height=np.array(factors[0], np.float32),
        scale_factor_width=np.array(factors[1], np.float32),
        align_corners=np.array(False),
        half_pixel_centers=np.array(True),
    )
    scales = np.array([1, 1, *factors], np.float32)
    wanted = by_onnx("Resize", x, "", scales, mode="linear")
    np.testing.assert_allclose(found, wanted, atol=1e-5)
