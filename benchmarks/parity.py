"""Pixels of exported graphs beside those of their nets, at three odd sizes.

`python -m benchmarks.parity [NAME ...] [--json]`: small nets with random weights, of all of
spandrel's super-resolution families. Our own: tests/cases/test_exported_pixels.py.
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from mipkd.core.errors import MipkdError
from mipkd.core.records import TestSet
from mipkd.distill import teacher as teachers
from mipkd.distill.data import prepare_tests
from mipkd.distill.teacher import TeacherOptions, identify
from mipkd.export.parity import levels_apart
from pipeline.stage import ready
from pipeline.stages.export import ExportConfig, ExportInputs, export

ALLOWED = 1  # levels of 255

_SMALL: dict[str, Any] = {"embed_dim": 24, "depths": [2, 2], "num_heads": [2, 2], "img_size": 32}
# By family and class: what makes it small. RealCUGAN's have no sizes.
SPANDREL: dict[str, dict[str, Any]] = {
    "ATD.ATD": _SMALL
    | {"category_size": 16, "num_tokens": 8, "upscale": 2}
    | {"upsampler": "pixelshuffledirect"},
    "CRAFT.CRAFT": {"embed_dim": 24, "depths": [1, 1], "num_heads": [2, 2], "upscale": 2},
    "Compact.Compact": {"num_feat": 8, "num_conv": 2, "upscale": 2},
    "DAT.DAT": {"embed_dim": 24, "split_size": [2, 4], "depth": [2], "num_heads": [2]}
    | {"upscale": 2, "img_size": 32, "upsampler": "pixelshuffledirect"},
    "DCTLSA.DCTLSA": {"nf": 20, "upscale": 2, "num_head": 5},
    "DITN.DITN": {"dim": 12, "ITL_blocks": 1, "SAL_blocks": 1, "upscale": 2},
    "DRCT.DRCT": _SMALL | {"upscale": 2, "upsampler": "pixelshuffle", "gc": 8, "window_size": 8},
    "ESRGAN.ESRGAN": {"num_filters": 8, "num_blocks": 2, "scale": 2},
    "FDAT.FDAT": {"embed_dim": 24, "num_groups": 1, "depth_per_group": 2, "num_heads": 2}
    | {"scale": 2, "mid_dim": 16},
    "GRL.GRL": {"embed_dim": 24, "depths": [2], "num_heads_window": [2], "upscale": 2}
    | {"num_heads_stripe": [2], "upsampler": "pixelshuffledirect", "img_size": 32},
    "HAT.HAT": _SMALL | {"upscale": 2, "window_size": 8, "squeeze_factor": 4},
    "MMRealSR.MMRealSR": {"num_in_ch": 3, "num_out_ch": 3, "num_feat": 8, "num_block": 1}
    | {"num_grow_ch": 4},
    "MoESR.MoESR": {"scale": 2, "dim": 16, "n_blocks": 1, "n_block": 1},
    "MoSR.MoSR": {"upscale": 2, "n_block": 2, "dim": 16},
    "OmniSR.OmniSR": {"num_feat": 16, "up_scale": 2},
    "PLKSR.PLKSR": {"dim": 16, "n_blocks": 2, "upscaling_factor": 2},
    "PLKSR.RealPLKSR": {"dim": 16, "n_blocks": 2, "upscaling_factor": 2},
    "RCAN.RCAN": {"scale": 2, "n_resgroups": 1, "n_resblocks": 2, "n_feats": 16},
    "RGT.RGT": {"embed_dim": 24, "depth": [2], "num_heads": [2], "upscale": 2, "img_size": 32},
    "RealCUGAN.UpCunet2x": {},
    "RealCUGAN.UpCunet2x_fast": {},
    "RealCUGAN.UpCunet3x": {},
    "RealCUGAN.UpCunet4x": {},
    "SAFMN.SAFMN": {"dim": 12, "n_blocks": 2, "upscaling_factor": 2},
    "SAFMNBCIE.SAFMNBCIE": {"dim": 12, "n_blocks": 2, "num_layers": 2, "upscaling_factor": 2},
    "SPAN.SPAN": {"num_in_ch": 3, "num_out_ch": 3, "feature_channels": 8, "upscale": 2},
    "SeemoRe.SeemoRe": {"scale": 2, "num_experts": 3, "num_layers": 2, "embedding_dim": 12},
    "SwiftSRGAN.SwiftSRGAN": {"num_channels": 8, "num_blocks": 2, "upscale_factor": 2},
    "Swin2SR.Swin2SR": _SMALL
    | {"upscale": 2, "upsampler": "pixelshuffledirect"}
    | {"window_size": 8},
    "SwinIR.SwinIR": _SMALL
    | {"upscale": 2, "upsampler": "pixelshuffledirect"}
    | {"window_size": 8},
}


def main() -> None:
    """Print one row a family; exit code 1 if one that exports differs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(SPANDREL)}")
    parser.add_argument("--json", action="store_true", help="one JSON object a line, no table")
    asked = parser.parse_args()
    rows = []
    for row in compare(asked.names or list(SPANDREL)):
        rows.append(row)
        print(json.dumps(row) if asked.json else _line(row), flush=True)
    sys.exit(any((row["levels"] or 0) > ALLOWED for row in rows))


def compare(names: list[str]) -> Iterator[dict[str, Any]]:
    """Of each family the largest difference, or why it does not export."""
    with tempfile.TemporaryDirectory() as folder:
        for name in names:
            start, out = time.perf_counter(), Path(folder, name)
            out.mkdir()
            levels, why = None, ""
            try:
                levels = _levels(name, out)
            except MipkdError as error:
                why = error.what
            except Exception as error:
                traceback.print_exc()
                why = f"{type(error).__name__}: {error}"
            seconds = round(time.perf_counter() - start, 1)
            yield {"name": name, "levels": levels, "seconds": seconds, "why": why[:300]}


def make_checkpoint(name: str, file: Path) -> Path:
    """A file with the small net's random weights."""
    family, _, kind = name.partition(".")
    torch.manual_seed(0)
    made = getattr(importlib.import_module(f"spandrel.architectures.{family}"), kind)
    torch.save(made(**SPANDREL[name]).state_dict(), file)
    return file


def _levels(name: str, out: Path) -> int:
    file = make_checkpoint(name, out / "net.pth")
    model, _ = identify(file, role="student", options=TeacherOptions())
    (out / "tests").mkdir()
    tests: TestSet = prepare_tests(None, scale=model.scale, out=out / "tests")
    inputs = ExportInputs(ExportConfig(parity_images=1), ready(model), None, ready(tests))
    graph = export.function(inputs, out=out)
    return levels_apart(teachers.load(model).eval(), graph)


def _line(row: dict[str, Any]) -> str:
    found = "" if row["levels"] is None else row["levels"]
    return f"| {row['name']:<24} | {found:>6} | {row['seconds']:7.1f} | {row['why']} |"


if __name__ == "__main__":
    main()
