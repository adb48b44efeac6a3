"""What OpenVINO does on its own unless it is told otherwise."""

from __future__ import annotations

import logging
import os
import platform
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mipkd.archs import edsr
from mipkd.core.errors import MissingError, UnsupportedError, UsageError
from mipkd.core.measurement import Host
from mipkd.core.records import Built, Graph, PatchSet, TargetInfo
from mipkd.export.onnx import export
from targets._openvino import devices
from targets._openvino.session import CACHE, KEPT, SHAPES, Compiler, ThroughputSession
from targets.base import BuildRequest, find
from targets.openvino import TARGET

pytestmark = pytest.mark.skipif(bool(TARGET.why_not()), reason=TARGET.why_not() or "-")
ROOT = Path(__file__).resolve().parents[2]
THIRD = np.float32(1 / 3)
ACCELERATORS = ("openvino:gpu", "openvino:npu", "openvino:gpu-throughput")


def told(target: str, *precisions: str) -> TargetInfo:
    host = Host("there", "another CPU", 4, 2**33, "Linux 6.8 aarch64")
    return TargetInfo(target, "", False, precisions, {"openvino": "2026.4"}, host)


def image(*sides: int, count: int = 1) -> np.ndarray[Any, np.dtype[np.float32]]:
    return np.random.default_rng(0).random((count, 3, *sides), dtype=np.float32)


@pytest.mark.parametrize("name", ["openvino", "openvino:auto", "openvino:throughput"])
def test_fp32_is_computed_in_fp32_and_keeps_fp32_weights(
    name: str, thirds: Graph, tmp_path: Path
) -> None:
    built = find(name).build(BuildRequest(thirds, "fp32", tmp_path / "out"))
    assert built.options["INFERENCE_PRECISION_HINT"] == "f32"
    lr = image(16, 16)
    with closing(find(name).open(built)) as session:
        found = session.run(lr)[0, :, ::2, ::2]
    np.testing.assert_allclose(found, lr[0] * THIRD * THIRD, rtol=2e-6)


@pytest.mark.skipif("bf16" not in TARGET.precisions(), reason="the CPU has no BF16")
@pytest.mark.parametrize("direct", [False, True])
def test_the_mean_of_images_is_added_in_fp32(direct: bool, tmp_path: Path) -> None:
    mean = (0.4488, 0.4371, 0.4040)
    net = edsr.EDSR(edsr.Hyper(2, channels=8, blocks=1, mean=mean, direct=direct))
    last = net.up[0] if direct else net.last
    for value in last.parameters():
        torch.nn.init.zeros_(value)
    (tmp_path / "graph").mkdir()
    graph = export(net.eval(), out=tmp_path / "graph", metadata={}, role="student", family="edsr")
    built = TARGET.build(BuildRequest(graph, "bf16", tmp_path / "out"))
    with closing(TARGET.open(built)) as session:
        found = session.run(image(16, 16))
    np.testing.assert_allclose(found[0].mean((1, 2)), mean, atol=1e-5)


def test_a_variant_is_called_by_its_whole_name() -> None:
    assert find("openvino:gpu").name == "openvino:gpu"
    with pytest.raises(UsageError, match="unknown variant 'gpo'") as caught:
        find("openvino:gpo")
    assert "did you mean gpu?" in caught.value.hint


@pytest.mark.parametrize("name", ACCELERATORS)
def test_a_device_that_is_absent_says_its_cure_and_builds_nothing(
    name: str, thirds: Graph, tmp_path: Path
) -> None:
    target = find(name)
    if not (reason := target.why_not()):
        pytest.skip(f"{name} is here")
    assert "driver" in reason or "apt install" in reason
    with pytest.raises(MissingError, match="OpenVINO finds no"):
        target.build(BuildRequest(thirds, "fp16", tmp_path / "out"))


@pytest.mark.skipif(platform.machine() != "x86_64", reason="OpenVINO has its NPU plug-in on x86")
def test_an_npu_has_no_fp32_and_fp16_is_its_reference() -> None:
    assert find("openvino:npu").precisions() == ("fp16", "int8")


@pytest.mark.parametrize(
    ("name", "offered", "precision", "rest"),
    [
        ("openvino", ("fp32", "fp16", "int8"), "fp16", "f16"),
        ("openvino", ("fp32", "fp16", "int8"), "int8", "f16"),
        ("openvino", ("fp32", "bf16", "int8"), "int8", "bf16"),
        ("openvino", ("fp32", "int8"), "int8", "f32"),
        ("openvino:gpu", ("fp32", "fp16", "int8"), "int8", "f16"),
        ("openvino:npu", ("fp16", "int8"), "int8", None),
    ],
)
def test_what_another_machine_told_decides_not_this_one(
    name: str,
    offered: tuple[str, ...],
    precision: str,
    rest: str | None,
    thirds: Graph,
    noise: PatchSet,
    tmp_path: Path,
) -> None:
    on = told(name, *offered)
    built = find(name).build(BuildRequest(thirds, precision, tmp_path / "out", noise, on=on))
    assert built.options.get("INFERENCE_PRECISION_HINT") == rest
    if precision == "int8":
        kept = {"f16": "FP16", None: "FP16", "bf16": "BF16", "f32": "FP32"}[rest]
        assert f"stay {kept}" in " ".join(built.notes)
    # The graph itself is any device's: this CPU gives its pixels.
    lr = image(12, 20)
    here = replace(built, target="openvino", options={"INFERENCE_PRECISION_HINT": "f32"})
    with closing(TARGET.open(here)) as session:
        found = session.run(lr)[0, :, ::2, ::2]
    np.testing.assert_allclose(found, lr[0] * THIRD * THIRD, atol=0.01)


def test_what_the_other_machine_does_not_offer_is_refused(thirds: Graph, tmp_path: Path) -> None:
    on = told("openvino", "fp32", "int8")
    with pytest.raises(UnsupportedError, match="no precision 'bf16'") as caught:
        TARGET.build(BuildRequest(thirds, "bf16", tmp_path, on=on))
    assert caught.value.hint == "known: fp32, int8"


def test_throughput_keeps_as_many_frames_in_flight_as_openvino_wants(
    thirds: Graph, tmp_path: Path
) -> None:
    target = find("openvino:throughput")
    built = target.build(BuildRequest(thirds, "fp32", tmp_path / "out"))
    assert built.options["PERFORMANCE_HINT"] == "THROUGHPUT"
    assert "one frame alone" in " ".join(built.notes)
    theirs = devices.core().compile_model(str(built.file), "CPU", built.options)
    wanted = theirs.get_property("OPTIMAL_NUMBER_OF_INFER_REQUESTS")
    frames = image(12, 20, count=2 * wanted + 1)
    with closing(target.open(built)) as session, closing(TARGET.open(built)) as single:
        assert isinstance(session, ThroughputSession)
        assert session.frames_in_flight((1, 3, 12, 20)) == wanted
        found = session.run(frames)
        for i, frame in enumerate(frames):
            assert np.array_equal(found[i], single.run(frame[None])[0])
        assert np.array_equal(session.run(frames[:1]), found[:1])
        with ThreadPoolExecutor(wanted + 1) as threads:  # each takes a request that is free
            made = list(threads.map(session.run, [frame[None] for frame in frames]))
        assert np.array_equal(np.concatenate(made), found)


def compiled(built: Built, options: dict[str, str]) -> tuple[Compiler, list[Any]]:
    made: list[Any] = []

    def wrap(model: Any) -> Any:
        made.append(model)
        return model

    return Compiler(built.file, "CPU", options, wrap), made


def test_fixed_shapes_are_compiled_once_each_and_the_oldest_dropped(
    thirds: Graph, tmp_path: Path
) -> None:
    built = TARGET.build(BuildRequest(thirds, "fp32", tmp_path / "out"))
    compiler, made = compiled(built, {SHAPES: "fixed"})
    assert made == []
    shapes = [(1, 3, 8, 8 + i) for i in range(KEPT + 1)]
    for shape in (shapes[0], *shapes[:KEPT], shapes[0]):
        assert compiler.at(shape).input(0).partial_shape.is_static
    assert len(made) == KEPT
    compiler.at(shapes[KEPT])  # drops the second, which was used longest ago
    compiler.at(shapes[0])
    assert len(made) == KEPT + 1
    compiler.at(shapes[1])
    assert len(made) == KEPT + 2


def test_fixed_shapes_give_the_same_pixels(thirds: Graph, tmp_path: Path) -> None:
    built = TARGET.build(BuildRequest(thirds, "fp32", tmp_path / "out"))
    assert built.options[SHAPES] == "fixed"
    of_any = replace(built, options={k: v for k, v in built.options.items() if k != SHAPES})
    with closing(TARGET.open(built)) as one, closing(TARGET.open(of_any)) as other:
        for size in ((8, 12), (9, 7), (8, 12)):
            np.testing.assert_allclose(one.run(image(*size)), other.run(image(*size)), rtol=2e-6)


def test_a_slow_compilation_is_kept_for_the_user_and_said_to_be(
    thirds: Graph,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    on = told("openvino:gpu", "fp32", "fp16", "int8")
    built = find("openvino:gpu").build(BuildRequest(thirds, "fp32", tmp_path / "out", on=on))
    assert built.options[SHAPES] == "fixed"
    assert "a cold start holds the compilation the first time" in " ".join(built.notes)
    with caplog.at_level(logging.INFO, "targets"):
        for _ in range(2):
            compiler, made = compiled(built, built.options)
            compiler.at((1, 3, 8, 8))
    assert made[0].get_property("LOADED_FROM_CACHE")
    assert [r.message for r in caplog.records] == ["CPU: compiled anew", "CPU: compiled before"]
    (folder,) = (tmp_path / "cache/mipkd-pipeline/engines").iterdir()
    assert list(folder.iterdir())
    assert {f.suffix for f in built.file.parent.iterdir()} == {".xml", ".bin"}


def test_what_lies_beside_a_model_is_not_taken_for_its_compilation(
    thirds: Graph, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    on = told("openvino:gpu", "fp32", "fp16", "int8")
    built = find("openvino:gpu").build(BuildRequest(thirds, "fp32", tmp_path / "out", on=on))
    properties = {name: value for name, value in built.options.items() if name.isupper()}
    core = devices.package().Core()  # as a stranger: another model, compiled under its path
    engines = built.file.parent / "engines"
    core.compile_model(str(built.file), "CPU", {**properties, "CACHE_DIR": str(engines)})
    before = {file: file.stat().st_mtime_ns for file in engines.rglob("*")}
    older = {**built.options, CACHE: "engines"}  # as earlier versions wrote it
    compiler, made = compiled(built, older)
    compiler.at((1, 3, 8, 8))
    assert not made[0].get_property("LOADED_FROM_CACHE")
    assert {file: file.stat().st_mtime_ns for file in engines.rglob("*")} == before


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_a_process_that_converted_before_writes_the_same_bytes(
    precision: str, thirds: Graph, noise: PatchSet, tmp_path: Path
) -> None:
    files = []
    for name in ("one", "two"):
        built = TARGET.build(BuildRequest(thirds, precision, tmp_path / name, noise))
        files.append((built.file.read_bytes(), built.file.with_suffix(".bin").read_bytes()))
    assert files[0] == files[1]


def test_a_file_of_another_kind_is_not_opened_as_openvinos(thirds: Graph, tmp_path: Path) -> None:
    built = TARGET.build(BuildRequest(thirds, "fp32", tmp_path / "out"))
    with pytest.raises(UsageError, match=r"does not end in \.xml"):
        TARGET.open(replace(built, file=thirds.file, options={}))


def test_a_cpu_compiles_anew_at_each_opening(thirds: Graph, tmp_path: Path) -> None:
    built = TARGET.build(BuildRequest(thirds, "fp32", tmp_path / "out"))
    TARGET.open(built).close()
    assert not {CACHE, "CACHE_DIR"} & set(built.options)
    assert sorted(f.name for f in built.file.parent.iterdir()) == ["model.bin", "model.xml"]


def test_auto_runs_every_frame_on_the_device_it_has_chosen(thirds: Graph, tmp_path: Path) -> None:
    built = find("openvino:auto").build(BuildRequest(thirds, "fp32", tmp_path / "out"))
    assert built.options["ENABLE_STARTUP_FALLBACK"] == "NO"
    model = devices.core().compile_model(str(built.file), "AUTO", built.options)
    (ran_on,) = model.get_property("EXECUTION_DEVICES")
    assert ran_on.partition(".")[0] == devices.device_of_auto().partition(".")[0]


def test_a_machine_without_openvino_is_told_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("targets.openvino.version_of", lambda package: "")
    assert 'pip install "mipkd-pipeline[openvino]"' in TARGET.why_not()


def test_converting_and_quantising_report_nothing_to_anybody(thirds: Graph, tmp_path: Path) -> None:
    np.save(tmp_path / "patches.npy", np.zeros((2, 16, 16, 3), np.uint8) + 90)
    code = f"""
import warnings
warnings.simplefilter("ignore")
from pathlib import Path
from mipkd.core.records import Graph, PatchSet
from targets.base import BuildRequest
from targets.openvino import TARGET
graph = Graph(Path({str(thirds.file)!r}), "", "student", 2, 1, 20, "edsr")
patches = PatchSet(Path("patches.npy"), "", "", 2, (16, 16))
TARGET.build(BuildRequest(graph, "int8", Path("out"), patches))
"""
    home = tmp_path / "home"
    home.mkdir()
    kept = {k: v for k, v in os.environ.items() if k != "CI"}
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={**kept, "PYTHONPATH": str(ROOT), "HOME": str(home)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout + done.stderr == ""
    assert list(home.rglob("*ga_cid*")) == []  # the identity that reports would carry
