"""A small bundle, made without a run, and ways to forge it with hashes that fit."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from mipkd.core.images import write_png
from mipkd.core.measurement import Host, ImageScore, Latency, Measurement
from mipkd.core.records import Built
from pipeline.bundle import manifest
from pipeline.bundle.measurements import write_measurements
from targets._images import upscale
from targets.base import find

SCALE = 2
HOST = Host("id", "a CPU", 2, 2**32, "Linux")
Json = dict[str, Any]


def graph() -> onnx.ModelProto:
    """Nearest neighbour, x2: a convolution and a pixel shuffle."""
    weights = np.zeros((12, 3, 1, 1), np.float32)
    for place in range(4):
        weights[[place, 4 + place, 8 + place], [0, 1, 2]] = 1
    nodes = [
        helper.make_node("Conv", ["lr", "w"], ["c12"]),
        helper.make_node("DepthToSpace", ["c12"], ["sr"], blocksize=2, mode="CRD"),
    ]
    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 3, f"{name}_h", f"{name}_w"])
        for name in ("lr", "sr")
    ]
    body = helper.make_graph(
        nodes, "g", ends[:1], ends[1:], [numpy_helper.from_array(weights, "w")]
    )
    return helper.make_model(body, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def make_bundle(folder: Path) -> Path:
    """One FP32 model for `cpu` with a golden image, quality, speed and provenance."""
    home = folder / "model" / "cpu-fp32"
    home.mkdir(parents=True)
    onnx.save(graph(), home / "model.onnx")
    size = (home / "model.onnx").stat().st_size
    lr = np.random.default_rng(0).integers(0, 256, (20, 24, 3), dtype=np.uint8)
    for name in ("lr", "cpu-fp32"):
        (folder / "golden" / name).mkdir(parents=True)
    write_png(folder / "golden/lr/a.png", lr)
    built = Built("cpu", "fp32", "student", home / "model.onnx", size, SCALE, 1)
    write_png(folder / "golden/cpu-fp32/a.png", upscale(find("cpu").open(built), lr, scale=SCALE))
    write_measurements(_measurements(size), folder)
    stated = {
        "tests": {"sha256": "0" * 64, "source": "Set5"},
        "gates": {},
        "failures": [],
        "plans": [],
        "config": {"bench": {"sizes": [[24, 24]], "min_time_s": 0.05, "warmup_s": 0.01}},
    }
    (folder / "provenance.json").write_text(json.dumps(stated))
    model = manifest.Model(
        *("cpu", "fp32", "measured", "model/cpu-fp32/model.onnx", size, SCALE, 1),
        *({"session.intra_op.allow_spinning": "0"}, (), {}, 4, ""),
    )
    files = manifest.list_files(folder)
    whole = manifest.Manifest(1, "run", "2026", "0", SCALE, 1, (model,), files)
    manifest.write(whole, folder)
    return folder


def _measurements(size: int) -> tuple[Measurement, ...]:
    score = ImageScore("a", {"psnr_y": 30.0, "ssim_y": 0.9}, (0.0, 0.0, 0.0))
    latency = Latency((24, 24), (0.01,) * 20, 2, 0.02)
    of_model = Measurement("student", "cpu", "fp32", size, (latency,), (score,), host=HOST)
    bicubic = Measurement("bicubic", "reference", "fp32", scores=(score,))
    student = Measurement("student", "reference", "fp32", scores=(score,))
    return of_model, bicubic, student


def refit(bundle: Path, change: Callable[[Json], None] = lambda stated: None) -> None:
    """Write the manifest with hashes of the files that are there, a change, and a seal that fits:
    all that somebody can forge who knows this program."""
    file = bundle / "manifest.json"
    stated = json.loads(file.read_text())
    for name in list(stated["files"]):
        if (bundle / name).is_file():
            data = (bundle / name).read_bytes()
            stated["files"][name] |= {
                "sha256": hashlib.sha256(data).hexdigest(),
                "size": len(data),
            }
    del stated["content"]  # as older versions wrote it
    change(stated)
    for model in stated["models"] if isinstance(stated.get("models"), list) else ():
        if isinstance(model, dict) and model.get("executes") == "":
            del model["executes"]
    unsealed = json.dumps({**stated, "seal": ""}, sort_keys=True)
    stated["seal"] = hashlib.sha256(unsealed.encode()).hexdigest()
    file.write_text(json.dumps(stated))


def rewrite(bundle: Path, name: str, change: Callable[[Json], None]) -> None:
    """Change a JSON file of a bundle and refit the hashes."""
    stated = json.loads((bundle / name).read_text())
    change(stated)
    (bundle / name).write_text(json.dumps(stated))
    refit(bundle)
