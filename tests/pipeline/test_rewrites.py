"""A run whose models take bytes and shuffle by convolution makes the same pictures."""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from mipkd.core.images import read_rgb, resize_bicubic, write_png
from pipeline.bundle import manifest

Command = Callable[..., Any]  # runs one, of conftest.py

QUICK = (
    *("--target", "cpu", "--precision", "fp32", "--set", "distill.patch=16"),
    *("--set", "calibrate.count=4", "--set", "calibrate.size=16"),
    *("--set", "bench.sizes=[[16, 16]]", "--set", "bench.min_time_s=0.05"),
    *("--set", "bench.warmup_s=0.01", "--set", "bench.max_drift=9", "--set", "bench.max_busy=1"),
)
REWRITTEN = ("--set", "build.pixels=uint8", "--set", "export.shuffle=conv_transpose")


@pytest.fixture
def start(tmp_path: Path, ended: Command) -> Command:
    rng = np.random.default_rng(0)
    for name in ("photos", "shown"):
        (tmp_path / name).mkdir()
        for index in range(2):
            coarse = rng.integers(0, 256, (12, 14, 3), dtype=np.uint8)
            write_png(tmp_path / name / f"{index}.png", resize_bicubic(coarse, (96, 112)))
    model = Path(str(files("pipeline"))) / "presets" / "teacher_x2.safetensors"
    sets = ("--data", tmp_path / "photos", "--val", tmp_path / "shown")

    def begin(out: Path, *words: object) -> Any:
        return ended("run", "--model", model, *sets, "--out", out, *QUICK, *words)

    return begin


def test_a_run_on_bytes_gives_the_same_pictures(
    start: Command, tmp_path: Path, ended: Command
) -> None:
    for name, words in (("usual", ()), ("rewritten", REWRITTEN)):
        said = start(tmp_path / name, *words)
        assert said.code in (0, 6, 7), said.err  # how good and how fast it is is not asked
    bundles = [tmp_path / name / "bundle" for name in ("usual", "rewritten")]
    (model,) = manifest.read(bundles[1]).models
    assert "uint8" in model.notes[-1]
    graph = onnx.load(bundles[1] / model.file).graph
    kinds = {node.op_type for node in graph.node}
    assert kinds >= {"ConvTranspose", "Cast", "Round"}
    assert "DepthToSpace" not in kinds
    psnr = [json.loads((b / "quality" / "cpu-fp32.json").read_text()) for b in bundles]
    assert psnr[0]["scores"] == psnr[1]["scores"]
    for name, bundle in zip(("a", "b"), bundles, strict=True):
        said = ended("upscale", bundle, tmp_path / "shown", "-o", tmp_path / name)
        assert said.code == 0, said.err
    for one in (tmp_path / "a").iterdir():
        assert np.array_equal(read_rgb(one), read_rgb(tmp_path / "b" / one.name))


def test_a_target_without_models_on_bytes_is_refused_before_anything_is_made(
    start: Command, tmp_path: Path
) -> None:
    said = start(tmp_path / "run", *REWRITTEN[:2], "--target", "cpu,null")
    assert said.code == 3
    assert "error: build.pixels: null has no models on uint8 here" in said.err.splitlines()
    assert not list((tmp_path / "run").glob("*/*"))
