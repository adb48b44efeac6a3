"""A metric with weights of the user's is added to a run that was finished without it."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from mipkd.metrics._perceptual import make_features
from pipeline.bundle.kit import make_kit

Finished = Any  # the record of conftest.py
Command = Callable[..., Any]


@pytest.fixture
def alexnet(tmp_path: Path) -> Path:
    """Random weights by torchvision's names."""
    pytest.importorskip("torchmetrics")
    torch.manual_seed(0)
    state = make_features("alexnet").state_dict()
    torch.save({f"features.{key}": value for key, value in state.items()}, tmp_path / "alex.pth")
    return tmp_path / "alex.pth"


def test_it_measures_nothing_anew_and_gates_know_that_lower_is_better(
    finished: Finished, alexnet: Path, ended: Command
) -> None:
    given = ("--set", f"metrics.weights.lpips={alexnet}")
    given += ("--set", "gates.metrics.lpips.max_worst_drop=-1", "--out", finished.root)
    plan = ended("plan", *finished.words[1:], *given)
    assert [line.split()[1:3] for line in plan.out.splitlines() if line.startswith("run ")] == [
        ["perceive", "lpips"]
    ]
    assert ended(*finished.words, *given).code == 6
    report = finished.root / "report/latest"
    results = json.loads((report / "results.json").read_text())
    scored = [m for m in results["measurements"] if m["scores"]]
    assert {"bicubic", "student", "teacher"} <= {m["role"] for m in scored}
    assert all(0 < score["metrics"]["lpips"] < 1 for m in scored for score in m["scores"])
    gates = {g["subject"]: g for g in results["verdict"]["gates"] if g["name"].endswith("LPIPS")}
    assert gates["cpu fp32"]["figure"] == pytest.approx(0, abs=1e-4)
    assert gates["cpu int8"]["figure"] > gates["cpu fp32"]["figure"]  # INT8 is less alike
    for page in ("report.md", "index.html"):
        assert "Lower is better: LPIPS, Tint." in (report / page).read_text()


def test_what_a_kit_brings_is_measured_by_it_too(
    finished: Finished, alexnet: Path, ended: Command, tmp_path: Path
) -> None:
    given = ("--set", f"metrics.weights.lpips={alexnet}", "--out", finished.root)
    ended(*finished.words, *given)
    before = _lpips_on_cpu(finished.root)
    assert before
    kit = tmp_path / "kit.pyz"
    make_kit(finished.bundle, "cpu", kit)
    subprocess.run([sys.executable, "-I", kit.name], cwd=tmp_path, check=True, capture_output=True)
    ended("collect", tmp_path / "results.zip", finished.root)
    assert _lpips_on_cpu(finished.root) == before
    alexnet.unlink()
    said = ended("collect", tmp_path / "results.zip", finished.root)
    assert "lpips is left out" in " ".join(said.err.split())
    assert not _lpips_on_cpu(finished.root)


def _lpips_on_cpu(run: Path) -> list[float]:
    results = json.loads((run / "report/latest/results.json").read_text())
    on = [m for m in results["measurements"] if m["target"] == "cpu"]
    return [s["metrics"]["lpips"] for m in on for s in m["scores"] if "lpips" in s["metrics"]]


def test_the_report_says_which_images_are_too_small_for_a_metric(once: Finished) -> None:
    results = json.loads((once.root / "report/latest/results.json").read_text())
    assert "ms_ssim_y" not in results["measurements"][0]["scores"][0]["metrics"]
    for page in ("report.md", "index.html"):
        text = (once.root / "report/latest" / page).read_text()
        assert "MS-SSIM-Y: n/a on 3 of 3 images; it needs 161 pixels a side." in text


@pytest.mark.parametrize("name", ["plan", "run"])
def test_a_gate_on_a_metric_without_weights_is_refused_first(
    name: str, once: Finished, tmp_path: Path, ended: Command
) -> None:
    gate = ("--set", "gates.metrics.lpips.max_mean_drop=0.01", "--out", tmp_path / "run")
    said = ended(name, *once.words[1:], *gate)
    assert said.code == 4
    assert "gates.metrics.lpips: LPIPS needs weights of torchvision's AlexNet" in " ".join(
        said.err.split()
    )
    assert not (tmp_path / "run/reference").exists()
