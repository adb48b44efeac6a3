"""Check that an exported graph computes what the torch net does."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from mipkd.archs.base import SRNet
from mipkd.core.errors import StageError
from mipkd.core.images import ByteArray
from mipkd.core.records import Graph
from mipkd.export.onnx import open_session

# White noise and odd sizes reveal faults that smooth photos of even sizes hide.
_NOISE_SIZES = ((31, 41), (17, 75))


def check_parity(net: SRNet, graph: Graph, images: Sequence[ByteArray], *, bound: float) -> float:
    """The largest difference between torch and ONNX Runtime in FP32, images in [0, 1].

    LR images and white noise are both tried, cropped to the graph's multiple.

    Raises:
        StageError: it is above `bound`.
    """
    session = open_session(str(graph.file))
    rng = np.random.default_rng(0)
    noise = [rng.integers(0, 256, (*size, 3), dtype=np.uint8) for size in _NOISE_SIZES]
    largest = 0.0
    for image_HWC in [*images, *noise]:
        height, width = (side - side % graph.multiple for side in image_HWC.shape[:2])
        lr_NCHW = image_HWC[:height, :width].transpose(2, 0, 1)[None].astype(np.float32) / 255
        (theirs,) = session.run(None, {session.get_inputs()[0].name: lr_NCHW})
        with torch.inference_mode():
            ours = net(torch.from_numpy(lr_NCHW)).numpy()
        largest = max(largest, float(np.abs(ours - theirs).max()))
    if not largest <= bound:
        raise StageError(
            f"export: the graph differs from torch by {largest:.2g}, allowed is {bound:.2g}",
            hint="--set export.max_parity=... if you know why; otherwise report the checkpoint",
        )
    return largest
