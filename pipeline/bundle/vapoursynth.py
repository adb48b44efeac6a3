"""A script that runs a bundle's ONNX model in VapourSynth, by the plug-ins of vs-mlrt.

It never ran here, where VapourSynth is not; its head says so. Calls after the documents of vs-mlrt
(`vsort`, `vsov`) and of VapourSynth's `resize`.
"""

from __future__ import annotations

from collections.abc import Sequence

from pipeline.bundle.manifest import Model

_TEMPLATE = """\
# Video through this bundle's model in VapourSynth, by vs-mlrt (its plug-in vsort, or vsov).
# This script never ran where it was written: its calls follow the documents of both programs.
#
#     vspipe -c y4m -a source=VIDEO upscale.vpy - | ffmpeg -i - OUT.mkv
#
# Model: x{scale}, {precision}; RGB in and out, float32 in [0, 1]; sides multiples of {multiple}.
# Where the source states its matrix and range, those count; the result has MATRIX, limited range.
from pathlib import Path

import vapoursynth as vs

core = vs.core
MODEL = str(Path(__file__).resolve().parent / {file!r})
SCALE, MULTIPLE = {scale}, {multiple}
MATRIX = "709"  # or "170m", of standard definition; of the source, too, where it does not say

clip = core.lsmas.LWLibavSource(globals()["source"])  # or another source filter
width, height = clip.width, clip.height
rgb = core.resize.Bicubic(clip, format=vs.RGBS, matrix_in_s=MATRIX, prefer_props=True)
right, below = -width % MULTIPLE, -height % MULTIPLE
if right or below:  # by mirroring, as the program pads
    wide = core.std.StackHorizontal([rgb, core.std.FlipHorizontal(rgb)])
    tall = core.std.StackVertical([wide, core.std.FlipVertical(wide)])
    rgb = core.std.Crop(tall, right=width - right, bottom=height - below)
rgb = core.ort.Model(rgb, network_path=MODEL, provider="CPU")  # "CUDA"; or core.ov.Model without it
if right or below:
    rgb = core.std.Crop(rgb, right=right * SCALE, bottom=below * SCALE)
limited = core.std.Expr(rgb, "x 0 max 1 min")
core.resize.Bicubic(limited, format=clip.format.id, matrix_s=MATRIX).set_output()
"""


def make_script(models: Sequence[Model], *, on_bytes: bool) -> str:
    """The script for the first float model in ONNX; "" where there is none on floats."""
    found = next((m for m in models if m.target == "cpu" and m.precision == "fp32"), None)
    if found is None or on_bytes:
        return ""
    return _TEMPLATE.format(
        scale=found.scale, precision=found.precision, multiple=found.multiple, file=found.file
    )
