"""`check` and `verify` see what a model does, though every hash fits."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.planted import FAULTS, make_fit, plant
from mipkd.core.errors import NotFiniteError
from mipkd.core.evidence import Outcome
from mipkd.core.images import read_rgb, write_png
from pipeline.bench.differences import TILE, compare_images, tile_errors
from pipeline.bundle import manifest
from pipeline.bundle.golden import GOLDEN, HR, names_in
from pipeline.judge.check import check
from targets._images import upscale
from targets.base import Session

Command = Callable[..., Any]
CALM = ("bench.sizes=[[32,32]]", "bench.min_time_s=0.05", "baseline.max_slowdown='off'")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a run on one target: not to be changed."""
    from typer.testing import CliRunner

    from pipeline import cli

    run = tmp_path_factory.mktemp("planted") / "run"
    model = Path(str(files("pipeline"))) / "presets" / "teacher_x2.safetensors"
    words = [
        "run",
        "--model",
        str(model),
        "--demo-data",
        "--target",
        "cpu",
        "--precision",
        "fp32,int8",
    ]
    sets = ("quantize.search=false", "calibrate.count=8", "calibrate.size=32")
    sets += ("bench.sizes=[[32,32]]", "bench.min_time_s=0.05", "bench.max_drift=9")
    sets += ("bench.max_busy=1", "gates.max_mean_drop_db=9", "gates.max_worst_drop_db=9")
    words += [word for one in sets for word in ("--set", one)]
    said = CliRunner().invoke(cli.app, [*words, "--out", str(run)])
    assert said.exit_code in (0, 7), said.output
    return run / "bundle"


@pytest.fixture
def copy(bundle: Path, tmp_path: Path) -> Path:
    """One that a test may change."""
    return Path(shutil.copytree(bundle, tmp_path / "bundle"))


def failed(bundle: Path) -> dict[str, str]:
    """Gates that fail, with their reasons."""
    return {g.name: g.reason for g in check(bundle).gates if g.outcome is Outcome.FAIL}


def test_a_bundle_that_nobody_touched_has_every_pixel_and_figure(bundle: Path) -> None:
    found = check(bundle)
    assert not [gate for gate in found.gates if gate.outcome is Outcome.FAIL]
    by_name = {gate.name for gate in found.gates if gate.outcome is Outcome.PASS}
    assert {"replay", "worst tile", "runs in", "figures"} <= by_name
    assert len([gate for gate in found.gates if gate.name == "replay"]) == 2


@pytest.mark.parametrize("fault", [fault for fault in FAULTS if fault != "twice the work"])
def test_a_fault_is_found_though_its_hashes_fit(copy: Path, fault: str) -> None:
    plant(copy, fault, np.random.default_rng(1))
    assert manifest.problems(copy, manifest.read(copy)) == []
    assert failed(copy).keys() & {"replay", "runs in", "figures"}


def test_verify_finds_a_tint_too(copy: Path, ended: Command) -> None:
    plant(copy, "tint of a level", np.random.default_rng(0))
    said = ended("verify", copy)
    assert said.code == 6
    assert "a tint: " in said.out


def test_a_value_that_is_no_number_is_told_and_not_black(copy: Path, ended: Command) -> None:
    plant(copy, "NaN on bright inputs", np.random.default_rng(0))
    said = ended("check", copy)
    assert "values that are not finite (NaN, infinite)" in said.out
    image = copy.parent / "white.png"
    write_png(image, np.full((20, 20, 3), 255, np.uint8))
    for precision in ("fp32", "int8"):
        words = ("upscale", copy, image, "--precision", precision, "-o", copy.parent / precision)
        said = ended(*words)
        if said.code:
            assert "not finite" in said.err
            assert not (copy.parent / precision / "white.png").exists()
            return
    raise AssertionError("one of the two is broken")


def test_a_size_that_is_not_the_files_is_found(copy: Path) -> None:
    stated = manifest.read(copy)
    smaller = tuple(replace(model, size_bytes=7) for model in stated.models)
    manifest.write(replace(stated, models=smaller), copy)
    assert "7 " in failed(copy)["size as recorded"]


def test_figures_of_fewer_images_and_of_none_are_found(copy: Path) -> None:
    file = copy / "quality/cpu-int8.json"
    stated = json.loads(file.read_text())
    file.write_text(json.dumps({**stated, "scores": stated["scores"][:1]}))
    make_fit(copy)
    assert "scores of 1 images, the test set has 15" in failed(copy)["figures"]
    for kind in ("quality", "bench"):
        (copy / kind / "cpu-int8.json").unlink()
    make_fit(copy)
    assert failed(copy)["figures"] == "measured, and no figures of it"


def test_a_forged_bicubic_is_found(copy: Path) -> None:
    file = copy / "quality/reference-bicubic.json"
    stated = json.loads(file.read_text())
    for score in stated["scores"]:
        score["metrics"]["psnr_y"] -= 1
    file.write_text(json.dumps(stated))
    make_fit(copy)
    assert "PSNR-Y of " in failed(copy)["figures"]


def test_without_truths_nothing_is_known_of_the_figures(copy: Path) -> None:
    shutil.rmtree(copy / GOLDEN / HR)
    make_fit(copy)
    (gate,) = [gate for gate in check(copy).gates if gate.name == "figures"]
    assert gate.outcome is Outcome.INVALID


def test_beside_its_baseline_a_bundle_is_judged_by_pixels_made_here(
    bundle: Path, copy: Path
) -> None:
    """Golden outputs that were made anew hide a fault from `check` alone, not from the baseline."""
    plant(copy, "tint of a level", np.random.default_rng(0))
    _make_golden_outputs_anew(copy)
    found = check(copy, CALM, bundle)
    shifts = [gate for gate in found.gates if gate.name == "new channel shift here"]
    assert Outcome.FAIL in {gate.outcome for gate in shifts}
    same = check(bundle, CALM, bundle)
    assert {g.name for g in same.gates if g.outcome is Outcome.FAIL} == set()
    assert {"worst loss here", "worst tile here"} <= {g.name for g in same.gates}


def _make_golden_outputs_anew(bundle: Path) -> None:
    from pipeline.bundle.replay import replay

    made = bundle.parent / "made"
    for one in replay(bundle, manifest.read(bundle), [], made):
        assert one.outputs
        shutil.rmtree(bundle / GOLDEN / one.model.name)
        shutil.copytree(one.outputs, bundle / GOLDEN / one.model.name)
    make_fit(bundle)


def test_golden_images_hold_probes_and_truths(bundle: Path) -> None:
    lr, hr = names_in(bundle / GOLDEN / "lr"), names_in(bundle / GOLDEN / HR)
    kinds = {"bright", "dark", "saturated", "noise", "page"}
    assert {*lr} - {*hr} == {f"probe/{kind}" for kind in kinds}
    assert names_in(bundle / GOLDEN / "cpu-int8") == lr
    assert read_rgb(bundle / GOLDEN / "lr/probe/bright.png").max() == 255


def test_a_tile_and_a_channel_are_seen_in_the_mean_of_many() -> None:
    image = np.full((70, 80, 3), 100, np.uint8)
    other = image.copy()
    other[TILE : 2 * TILE, :TILE] += 50
    found = compare_images([("same", image, image), ("tile", other, image)])
    assert found.tile == f"tile at 0,{TILE}"
    assert found.tile_db == pytest.approx(10 * np.log10(255**2 / 2500))
    assert tile_errors(other, image).shape == (3, 3)
    other = image.copy()
    other[..., 2] -= 1
    found = compare_images([("same", image, image), ("blue", other, image)])
    assert (found.levels, found.shift, found.shifted) == (1, 1.0, "blue of blue -1.00")
    assert found.psnr_db > 50


class Broken(Session):
    """Gives one value that is no number."""

    def run(self, lr_NCHW: Any) -> Any:
        sr = np.zeros((1, 3, 2 * lr_NCHW.shape[2], 2 * lr_NCHW.shape[3]), np.float32)
        sr[0, 1, 2, 3] = np.nan
        return sr


def test_no_image_is_made_of_values_that_are_no_numbers() -> None:
    with pytest.raises(NotFiniteError, match="output of 10x8 pixels: values that are not finite"):
        upscale(Broken(), np.zeros((4, 5, 3), np.uint8), scale=2)
