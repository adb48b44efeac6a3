"""The last bias of a model in FP32, also where the model computes in 16 bits.

OpenVINO rounds a convolution's bias with its weights, but adds what comes after an activation in
FP32. The last bias holds the mean of the images, near 0.44: rounded to BF16 a channel is up to a
quarter of a level of 255 off, everywhere and to one side.
"""

from __future__ import annotations

from typing import Any

_PASSES_ON = ("DepthToSpace", "Convert")
_BEYOND = 16.0  # no pixel of range 1 is: the activation changes nothing


def last_bias_in_fp32(model: Any) -> Any:
    """The model, its last bias added behind a clamp that clamps nothing; changed in place.

    A model that does not end in a convolution with a bias stays as it is.
    """
    from openvino import opset13 as ops

    node = model.get_results()[0].input_value(0).get_node()
    while node.get_type_name() in _PASSES_ON:
        node = node.input_value(0).get_node()
    if node.get_type_name() != "Add":
        return model
    summed, bias = (node.input_value(index) for index in (0, 1))
    of, constant = summed.get_node(), bias.get_node()
    if of.get_type_name() != "Convolution" or constant.get_type_name() != "Constant":
        return model
    readers = list(node.output(0).get_target_inputs())
    added = ops.add(ops.clamp(summed, -_BEYOND, _BEYOND), bias)
    for reader in readers:
        reader.replace_source_output(added.output(0))
    return model
