"""8-bit images at both ends of an OpenVINO model."""

from __future__ import annotations

from typing import Any


def with_uint8_io(model: Any) -> Any:
    """The model on uint8, by OpenVINO's own pre- and post-processing."""
    from openvino import Type, opset13
    from openvino.preprocess import PrePostProcessor

    def to_uint8(sr: Any) -> Any:
        levels = opset13.multiply(opset13.clamp(sr, 0.0, 1.0), opset13.constant(255.0, Type.f32))
        return opset13.convert(opset13.round(levels, "half_to_even"), "u8").output(0)

    steps = PrePostProcessor(model)
    steps.input().tensor().set_element_type(Type.u8)
    steps.input().preprocess().convert_element_type(Type.f32).scale(255.0)
    steps.output().postprocess().custom(to_uint8)
    return steps.build()
