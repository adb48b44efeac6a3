"""The net whose FP32 image stands for the truth of LR frames that have none.

Shapes: H W size, C channels. Values: uint8 RGB.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from mipkd.archs.base import upscale_image
from mipkd.core.records import Graph, Model
from mipkd.distill import teacher as teachers
from targets._images import upscale
from targets.base import BuildRequest, ByteArray, find

FP32_ON = "cpu"  # ONNX Runtime is always installed, and parity ties its FP32 to torch


@contextmanager
def open_reference(net: Model | Graph) -> Iterator[Callable[[ByteArray], ByteArray]]:
    """What makes a net's images, in torch or, of a graph, in ONNX Runtime."""
    if isinstance(net, Model):
        loaded = teachers.load(net)
        with torch.inference_mode():
            yield lambda lr_HWC: upscale_image(loaded, lr_HWC)
        return
    target, (scale, multiple) = find(FP32_ON), (net.scale, net.multiple)
    with TemporaryDirectory() as folder:
        built = target.build(BuildRequest(net, "fp32", Path(folder)))
        with closing(target.open(built)) as session:
            yield lambda lr_HWC: upscale(session, lr_HWC, scale=scale, multiple=multiple)
