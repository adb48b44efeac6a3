"""The layers that stay float are found in graphs of several families."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from calibration.sensitive_layers import Node, find_sensitive_layers, sensitive_layers_in_file


def node(kind: str, *inputs: str, to: str) -> Node:
    return Node(f"{kind} {to}", kind, inputs, (to,))


def test_first_and_last_convolutions_and_sums_of_two_features_are_found() -> None:
    nodes = [
        node("Sub", "image", to="shifted"),
        node("Conv", "shifted", to="a"),
        node("Conv", "a", to="b"),
        node("Relu", "b", to="c"),
        node("Conv", "c", to="d"),
        node("Add", "a", "d", to="e"),
        node("Conv", "e", to="f"),
        node("DepthToSpace", "f", to="g"),
        node("Conv", "g", to="h"),
        node("Mul", "h", to="i"),
        node("Add", "i", to="result"),  # with a constant, which is not among its inputs
    ]
    found = find_sensitive_layers(nodes, image="image", result="result")
    assert found.head == ("Conv a",)
    assert found.tail == ("Conv h",)
    assert found.adds == ("Add e",)
    assert not found.attention


def test_a_convolution_straight_to_the_shuffled_image_is_the_last() -> None:
    nodes = [
        node("Convolution", "image", to="a"),
        node("Convolution", "a", to="b"),
        node("DepthToSpace", "b", to="result"),
    ]
    found = find_sensitive_layers(nodes, image="image", result="result")
    assert (found.head, found.tail) == (("Convolution a",), ("Convolution b",))


def test_a_skip_from_the_image_adds_both_ends() -> None:
    nodes = [
        node("Conv", "image", to="a"),
        node("Conv", "a", to="b"),
        node("Add", "b", "image", to="result"),
    ]
    found = find_sensitive_layers(nodes, image="image", result="result")
    assert (found.head, found.tail, found.adds) == (("Conv a",), ("Conv b",), ("Add result",))


def test_convolutions_of_pooled_values_are_channel_attention() -> None:
    nodes = [
        node("Conv", "image", to="a"),
        node("ReduceMean", "a", to="pooled"),
        node("Conv", "pooled", to="b"),
        node("Relu", "b", to="c"),
        node("Conv", "c", to="d"),
        node("Sigmoid", "d", to="gate"),
        node("Mul", "a", "gate", to="scaled"),
        node("Conv", "scaled", to="e"),
        node("Add", "a", "e", to="f"),
        node("Conv", "f", to="result"),
    ]
    found = find_sensitive_layers(nodes, image="image", result="result")
    assert found.gates == ("Conv b", "Conv d")
    assert found.parts == {
        "Conv b": "channel attention",
        "Conv d": "channel attention",
        "Conv a": "first convolution",
        "Conv result": "last convolution",
        "Add f": "skip addition",
    }
    assert found.note_on_floats("float") == (
        "2 convolutions (first, last), 2 of channel attention and 1 skip additions stay float"
    )


def test_products_of_two_feature_maps_are_attention_and_of_weights_are_not(
    tmp_path: Path,
) -> None:
    weight = numpy_helper.from_array(np.ones((4, 4), np.float32), "weight")
    shape = [1, 3, 4, 4]

    def saved(second: str) -> Path:
        image = helper.make_tensor_value_info("image", TensorProto.FLOAT, shape)
        out = helper.make_tensor_value_info("out", TensorProto.FLOAT, shape)
        product = helper.make_node("MatMul", ["image", second], ["out"], "product")
        graph = helper.make_graph([product], "g", [image], [out], [weight])
        onnx.save(helper.make_model(graph), tmp_path / "x.onnx")
        return tmp_path / "x.onnx"

    assert sensitive_layers_in_file(saved("image")).attention
    assert not sensitive_layers_in_file(saved("weight")).attention
