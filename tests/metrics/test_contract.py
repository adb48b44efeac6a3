"""Every metric keeps the contract; a new one is one file and is seen everywhere."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from skimage import data
from skimage.metrics import peak_signal_noise_ratio

from mipkd.core.errors import UsageError
from mipkd.core.images import psnr_y, ssim_y
from mipkd.metrics.base import find_metric, list_plain
from pipeline.bench.pixels import measure_image

ROOT = Path(__file__).parents[2]
TRUTH = data.astronaut()[100:261, 200:361]
# A metric as a user would write it.
MAE = """
import numpy as np
from mipkd.metrics.base import Metric


def mae(image_HWC, truth_HWC):
    return float(np.abs(image_HWC.astype(np.int16) - truth_HWC).mean())


METRIC = Metric("mae", "MAE", "levels", "down", mae, digits=4)
"""


def noisy(levels: float) -> np.ndarray:
    noise = np.random.default_rng(0).normal(levels, levels, TRUTH.shape)
    return np.clip(TRUTH + noise, 0, 255).astype(np.uint8)


@pytest.mark.parametrize("name", [metric.name for metric in list_plain()])
def test_more_noise_is_worse_and_equal_images_are_best(name: str) -> None:
    metric = find_metric(name)
    assert metric.measure is not None
    assert metric.name == name
    assert metric.title
    equal, some, more = (metric.measure(image, TRUTH) for image in (TRUTH, noisy(2), noisy(9)))
    assert metric.loss(some, equal) > 0
    assert metric.loss(more, some) > 0
    assert metric.loss(equal, equal) == 0


def test_figures_are_those_of_the_functions_that_papers_are_compared_by() -> None:
    image = noisy(4)
    found = measure_image("one", image, TRUTH, scale=0, metrics=list_plain()).metrics
    assert found["psnr_y"] == psnr_y(image, TRUTH, border=0)
    assert found["ssim_y"] == ssim_y(image, TRUTH, border=0)
    assert found["psnr_rgb"] == pytest.approx(peak_signal_noise_ratio(TRUTH, image))


def test_a_tint_of_one_channel_is_its_mean_shift() -> None:
    grey = np.full((8, 8, 3), 100, np.uint8)
    warm = grey + np.array([0, 0, 253], np.uint8)  # blue is 3 levels darker, as bytes wrap
    found = measure_image("one", warm, grey, scale=0, metrics=list_plain()).metrics
    assert found["tint"] == pytest.approx(3.0)
    assert found["psnr_y"] > 58  # which luma hardly sees


def test_a_name_that_nobody_knows_is_told_with_the_nearest() -> None:
    with pytest.raises(UsageError, match="unknown name 'psnr_x'") as caught:
        find_metric("psnr_x")
    assert "psnr_y" in caught.value.hint


def python(code: str, *path: Path) -> str:
    """What `code` prints, with our packages and `path` importable."""
    env = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, (ROOT, *path)))}
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env)
    assert said.returncode in (0, 6, 7), said.stderr
    return said.stdout + said.stderr


def test_a_metric_is_one_file_that_table_results_and_gates_know(tmp_path: Path) -> None:
    (tmp_path / "mipkd/metrics").mkdir(parents=True)
    (tmp_path / "mipkd/metrics/mae.py").write_text(MAE)
    model = ROOT / "pipeline/presets/teacher_x2.safetensors"
    words = ["run", "--model", str(model), "--target", "cpu", "--precision", "fp32"]
    for setting in (
        *("gates.metrics.mae.max_mean_drop=0.5", "gates.metrics.mae.max_worst_drop=-1"),
        *("bench.sizes=[[8,8]]", "bench.min_time_s=0.02", "bench.warmup_s=0.01"),
        *("bench.max_busy=1", "bench.max_drift=9"),
    ):
        words += ["--set", setting]
    words += ["--out", str(tmp_path / "run")]
    said = python(f"from pipeline.cli import app; app({words!r})", tmp_path)
    assert "quality lost, worst image, by MAE, cpu fp32: 0.00 levels (bound -1 levels)" in " ".join(
        said.split()
    )
    report = tmp_path / "run/report/latest"
    results = json.loads((report / "results.json").read_text())
    (m,) = [m for m in results["measurements"] if m["target"] == "cpu"]
    assert all(score["metrics"]["mae"] > 0 for score in m["scores"])
    (figures,) = [one for one in results["figures"]["models"] if one["target"] == "cpu"]
    assert figures["quality"]["mae"]["mean_drop"] == pytest.approx(0, abs=0.01)
    gates = {gate["name"]: gate["outcome"] for gate in results["verdict"]["gates"]}
    assert gates["mean drop of MAE"] == "PASS"
    assert gates["worst drop of MAE"] == "FAIL"
    shown = f"{figures['quality']['mae']['mean']:.4f}"
    for page in ("report.md", "index.html"):
        assert "MAE levels" in (report / page).read_text()
        assert shown in (report / page).read_text()


def test_a_package_brings_a_metric_by_an_entry_point(tmp_path: Path) -> None:
    facts = tmp_path / "their_metrics-1.0.dist-info"
    facts.mkdir()
    (facts / "METADATA").write_text("Metadata-Version: 2.1\nName: their-metrics\nVersion: 1.0\n")
    (facts / "entry_points.txt").write_text("[mipkd.metrics]\nmae = their_metrics:METRIC\n")
    (tmp_path / "their_metrics.py").write_text(MAE)
    code = "from mipkd.metrics.base import find_metric; print(find_metric('mae').title)"
    assert python(code, tmp_path) == "MAE\n"


def test_a_broken_metric_is_left_out_with_its_reason(tmp_path: Path) -> None:
    (tmp_path / "mipkd/metrics").mkdir(parents=True)
    (tmp_path / "mipkd/metrics/mae.py").write_text("import nothing_of_that_name\n")
    (tmp_path / "mipkd/metrics/notes.py").write_text("")
    code = "from mipkd.metrics.base import list_metrics; print(*list_metrics())"
    said = python(code, tmp_path)
    assert "psnr_y ssim_y ms_ssim_y dists lpips psnr_rgb tint\n" in said
    assert "metric mae does not load: ModuleNotFoundError" in said
    assert "metric notes: mipkd.metrics.notes offers no METRIC, a Metric: left out" in said
