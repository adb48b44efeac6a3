"""Wrong photos, graphs and bounds for INT8: one line that says what, a hint, the exit code."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from mipkd.core.images import read_rgb, resize_bicubic, write_png
from mipkd.distill.teacher import TeacherOptions, identify
from mipkd.export.onnx import export

Command = Callable[..., Any]  # runs one, of conftest.py

QUICK = (
    *("--target", "cpu", "--precision", "fp32,int8", "--set", "distill.patch=16"),
    *("--set", "calibrate.count=4", "--set", "calibrate.size=16"),
    *("--set", "quantize.photos=4", "--set", "quantize.pages=2", "--set", "quantize.crop=24"),
    *("--set", "quantize.size=[16, 16]", "--set", "bench.sizes=[[16, 16]]"),
    *(
        "--set",
        "bench.min_time_s=0.05",
        "--set",
        "bench.warmup_s=0.01",
        "--set",
        "bench.max_drift=9",
        "--set",
        "bench.max_busy=1",
    ),
)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trained x2 student as ONNX, on which rounding of any layer can be seen."""
    preset = Path(str(files("pipeline"))) / "presets" / "teacher_x2.safetensors"
    _, net = identify(preset, role="student", options=TeacherOptions())
    out = tmp_path_factory.mktemp("model")
    return export(net, out=out, metadata={}, role="student", family="edsr").file


def drawn(folder: Path, seed: int, count: int = 2, sides: tuple[int, int] = (96, 112)) -> Path:
    folder.mkdir()
    rng = np.random.default_rng(seed)
    for index in range(count):
        coarse = rng.integers(0, 256, (12, 14, 3), dtype=np.uint8)
        write_png(folder / f"{index}.png", resize_bicubic(coarse, sides))
    return folder


@pytest.fixture
def start(model: Path, tmp_path: Path, ended: Command) -> Command:
    """A run of the model, judged on images of its own."""
    shown = drawn(tmp_path / "shown", seed=1)

    def begin(*words: object, data: Path | None = None, of: Path = model) -> Any:
        data = data or drawn(tmp_path / "photos", seed=0)
        given = ("--model", of, "--data", data, "--val", shown, "--out", tmp_path / "run")
        return ended("run", *given, *QUICK, *words)

    return begin


def refused(said: Any, code: int) -> tuple[str, str]:
    """What is wrong and the hint, which end what the command says."""
    assert said.code == code, said.err
    assert "Traceback" not in said.err
    *_, what, hint = said.err.splitlines()
    assert what.startswith("error: ")
    assert hint.startswith("hint: ")
    return what, hint


def test_an_empty_folder_of_photos(start: Command, tmp_path: Path) -> None:
    (tmp_path / "none").mkdir()
    (tmp_path / "none" / "notes.txt").write_text("no photo")
    what, hint = refused(start(data=tmp_path / "none"), 2)
    assert what.endswith("none: no image in it")
    assert ".png" in hint


def test_a_single_photo(start: Command, tmp_path: Path) -> None:
    one = drawn(tmp_path / "one", seed=0, count=1)
    what, hint = refused(start(data=one), 2)
    assert "one has 1 photo that can be used; 2 are the fewest" in what
    assert "--data" in hint


def test_a_single_photo_that_is_large_enough(start: Command, tmp_path: Path) -> None:
    folder = drawn(tmp_path / "few", seed=0)
    write_png(folder / "1.png", np.zeros((20, 30, 3), np.uint8))
    said = start(data=folder)
    what, _ = refused(said, 2)
    assert "few has 1 photo that can be used" in what
    assert "skipped 1.png: 30x20 is smaller than a patch of 32x32" in said.err


def test_photos_of_which_none_is_large_enough(start: Command, tmp_path: Path) -> None:
    small = drawn(tmp_path / "small", seed=0, sides=(30, 31))
    what, hint = refused(start(data=small), 2)
    assert "none of 2 photos can be used; the first: 0.png: 30x30 is smaller than a patch" in what
    assert "photos need 32 pixels a side" in hint


def test_photos_smaller_than_what_is_calibrated_on(start: Command) -> None:
    what, hint = refused(start("--set", "calibrate.size=60"), 2)
    assert "photos has 60 LR pixels a side" in what
    assert "--set calibrate.size=30" in hint


def same_bytes(test: Path, photos: Path) -> None:
    shutil.copy(test, photos / "holiday.png")


def same_pixels(test: Path, photos: Path) -> None:
    Image.open(test).save(photos / "holiday.tif")


def with_another_profile(test: Path, photos: Path) -> None:
    Image.fromarray(read_rgb(test)).save(photos / "holiday.png", compress_level=1, dpi=(72, 72))
    assert (photos / "holiday.png").read_bytes() != test.read_bytes()


@pytest.mark.parametrize("put", [same_bytes, same_pixels, with_another_profile])
def test_a_test_image_among_the_photos_whatever_its_name_and_format(
    put: Callable[[Path, Path], None], start: Command, tmp_path: Path
) -> None:
    photos = drawn(tmp_path / "mixed", seed=0)
    put(tmp_path / "shown" / "1.png", photos)
    what, hint = refused(start(data=photos), 2)
    assert f"holiday of {photos} is the test image 1 of {tmp_path / 'shown'}" in what
    assert "take it out of --data" in hint


def quantized(path: Path, op: str) -> Path:
    """A graph with 8 bits in it; it is never run."""
    step, zero = (
        numpy_helper.from_array(np.float32(0.1), "s"),
        numpy_helper.from_array(np.uint8(0), "z"),
    )
    grid = ["s", "z"]
    weight = numpy_helper.from_array(np.ones((3, 3, 1, 1), np.uint8), "w")
    nodes = {
        "QuantizeLinear": [
            helper.make_node("QuantizeLinear", ["lr", *grid], ["q"]),
            helper.make_node("DequantizeLinear", ["q", *grid], ["sr"]),
        ],
        "QLinearConv": [
            helper.make_node("QuantizeLinear", ["lr", *grid], ["q"]),
            helper.make_node("QLinearConv", ["q", *grid, "w", *grid, *grid], ["c"]),
            helper.make_node("DequantizeLinear", ["c", *grid], ["sr"]),
        ],
        "ConvInteger": [
            helper.make_node("DynamicQuantizeLinear", ["lr"], ["q", "qs", "qz"]),
            helper.make_node("ConvInteger", ["q", "w"], ["i"]),
            helper.make_node("Cast", ["i"], ["sr"], to=TensorProto.FLOAT),
        ],
        "DynamicQuantizeMatMul": [
            helper.make_node(
                "DynamicQuantizeMatMul", ["lr", "w", "s"], ["sr"], domain="com.microsoft"
            ),
        ],
    }[op]
    graph = helper.make_graph(
        nodes,
        "quantized",
        [helper.make_tensor_value_info("lr", TensorProto.FLOAT, [1, 3, "h", "w"])],
        [helper.make_tensor_value_info("sr", TensorProto.FLOAT, ["n", "c", "y", "x"])],
        [step, zero, weight],
    )
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("com.microsoft", 1)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=9), path)
    return path


@pytest.mark.parametrize(
    "op", ["QuantizeLinear", "QLinearConv", "ConvInteger", "DynamicQuantizeMatMul"]
)
def test_a_graph_that_is_quantised_already(op: str, start: Command, tmp_path: Path) -> None:
    what, hint = refused(start(of=quantized(tmp_path / "int8.onnx", op)), 3)
    assert "int8.onnx: already quantised" in what
    assert op in what
    assert "give the FP32 graph" in hint


def test_a_layer_that_is_not_there(start: Command, model: Path, tmp_path: Path) -> None:
    said = start("--set", "quantize.float=['node_conv2d', 'node_conv2d_x']")
    what, hint = refused(said, 2)
    assert "quantize.float: no operation 'node_conv2d_x' in " in what
    assert hint.startswith("hint: the nearest: node_conv2d")
    assert not (tmp_path / "run" / "build").exists()


def test_layers_asked_for_where_a_fixed_recipe_does_not_heed_them(start: Command) -> None:
    words = ("--set", "quantize.float=['node_conv2d']", "--set", "quantize.search=false")
    said = start(*words)
    assert said.code in (0, 6, 7)
    assert "cpu: INT8 by its fixed recipe leaves out quantize.float" in " ".join(said.err.split())


def test_a_bound_that_nothing_keeps_fails_and_names_the_best_found(
    start: Command, tmp_path: Path
) -> None:
    bounds = ("quantize.max_drop_db=1e-9", "quantize.max_worst_drop_db=1e-9")
    said = start(
        *(word for one in bounds for word in ("--set", one)),
        *("--set", "gates.min_gain_over_bicubic_db=off"),  # and of means two images tell nothing
        *("--set", "gates.max_mean_drop_db=off", "--set", "gates.max_channel_shift=off"),
    )
    assert said.code == 6, said.err
    told = " ".join(said.err.split())
    assert "cpu: no INT8 keeps quantize.max_drop_db=1e-09, max_worst_drop_db=1e-09" in told
    assert "best found: " in told
    shown = " ".join(said.out.split())
    assert "FAIL quality lost on other photos, worst crop, cpu int8: 0." in shown
    assert "the best of INT8 with " in shown
    assert "cpu: ship fp32" in shown
    report = tmp_path / "run/report/latest"
    results = json.loads((report / "results.json").read_text())
    (plan,) = results["plans"]
    assert not plan["met"]
    assert plan["worst_db"] > 1e-9
    assert len(plan["floats"]) < plan["operations"]
    (ship,) = results["verdict"]["recommended"]
    assert (ship["target"], ship["precision"]) == ("cpu", "fp32")
    assert "over the bounds, which no INT8 tried keeps" in (report / "report.md").read_text()


def test_a_lesson_without_a_teacher(start: Command) -> None:
    what, hint = refused(start("--qat", "--set", "qat.taught_by=teacher"), 2)
    assert "there is no teacher" in what
    assert "--teacher" in hint


def test_a_student_for_a_target_that_nothing_can_be_timed_on(
    ended: Command, tmp_path: Path
) -> None:
    words = ("--student", "auto", "--latency-budget", "5", "--target", "jetson")
    said = ended("plan", *words, "--out", tmp_path / "run")
    assert said.code == 4
    assert "error: --student auto: jetson cannot be timed here" in said.err
    assert "hint: name a student, or a --device that has it" in said.err


def test_a_study_of_a_student_that_is_to_be_chosen(ended: Command, tmp_path: Path) -> None:
    what, hint = refused(ended("study", "--student", "auto", "--out", tmp_path / "run"), 2)
    assert what == "error: --student auto: a study teaches one student in several ways"
    assert "--student edsr:c32b8" in hint


def test_a_precision_that_there_is_not_where_no_target_is_named(
    ended: Command, tmp_path: Path
) -> None:
    what, hint = refused(ended("plan", "--precision", "int9", "--out", tmp_path), 2)
    assert what == "error: --precision: unknown name 'int9'"
    assert "int8" in hint


def test_a_precision_that_no_target_offers(ended: Command, tmp_path: Path) -> None:
    what, hint = refused(
        ended("plan", "--target", "cpu", "--precision", "bf16", "--out", tmp_path), 2
    )
    assert what == "error: --precision: cpu: none of bf16 can be built here"
    assert hint == "hint: known: fp32, int8"


@pytest.mark.parametrize(
    "words", [("plan", "--student", "foo:c8"), ("train", "--arch", "foo:c8")], ids=["plan", "train"]
)
def test_a_family_that_there_is_not_is_refused_before_any_work(
    words: tuple[str, ...], ended: Command, tmp_path: Path
) -> None:
    what, _ = refused(ended(*words, "--out", tmp_path / "run"), 2)
    assert "unknown family 'foo'" in what
    assert not list((tmp_path / "run").glob("*/*"))


def test_a_teacher_that_was_forgotten_is_said_to_be_ours(
    ended: Command, start: Command, tmp_path: Path
) -> None:
    photos = drawn(tmp_path / "photos", seed=0)
    said = ended("plan", "--data", photos, "--val", photos, "--out", tmp_path / "run")
    assert "samples of the package stand in for the teacher;" in " ".join(said.err.split())


def test_a_method_that_there_is_not_has_its_hint_apart(ended: Command, tmp_path: Path) -> None:
    what, hint = refused(ended("plan", "--set", "distill.method=nosuch", "--out", tmp_path), 2)
    assert what == "error: config: distill.method: unknown method"
    assert hint.startswith("hint: known: ")


def test_a_bundle_without_models_is_said_to_have_none(
    finished: Any, ended: Command, tmp_path: Path
) -> None:
    from dataclasses import replace

    from pipeline.bundle import manifest

    bundle = finished.bundle
    shutil.rmtree(bundle / "model")
    stated = replace(manifest.read(bundle), models=(), files=manifest.list_files(bundle))
    manifest.write(stated, bundle)
    for words in (
        ("bench", bundle),
        ("verify", bundle),
        ("kit", bundle, "--target", "cpu", "-o", tmp_path / "kit.pyz"),
    ):
        what, hint = refused(ended(*words), 2)
        assert "holds no model: its run built none" in what
        assert hint == "hint: the run's report says why"
