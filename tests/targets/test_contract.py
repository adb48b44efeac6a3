"""What every target promises, whichever files stand in the folder."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from mipkd.archs.base import SRNet
from mipkd.core import plugins
from mipkd.core.errors import MissingError, UnsupportedError
from mipkd.core.precision import PRECISIONS
from mipkd.core.records import Built, Graph, PatchSet
from mipkd.distill.teacher import describe, save
from mipkd.export.onnx import export
from pipeline.stages.build import load_deployed
from targets._images import upscale
from targets.base import BuildRequest, Feature, Target, every, find

ROOT = Path(__file__).resolve().parents[2]
TARGETS = every()
Once = Callable[[Target, str], Built]
OFFERED = [(name, p) for name in TARGETS for p in PRECISIONS]
# Largest and mean difference to torch, in steps of uint8.
BOUNDS = {
    "fp32": (1, 0.01),
    "bf16": (8, 1.0),
    "fp16": (4, 0.5),
    "w8": (6, 0.75),
    "int8": (16, 1.5),
}


def target_of(name: str) -> Target:
    target = find(name)
    if reason := target.why_not():
        pytest.skip(reason)
    return target


@pytest.fixture(scope="module")
def net() -> SRNet:
    arch = plugins.load("mipkd.archs", "edsr", "ARCH")
    torch.manual_seed(0)
    made: SRNet = arch.make(arch.shrink(arch.paper(2), "c8b2"))
    return made.eval()


@pytest.fixture(scope="module")
def graph(net: SRNet, tmp_path_factory: pytest.TempPathFactory) -> Graph:
    out = tmp_path_factory.mktemp("graph")
    arch, file = plugins.load("mipkd.archs", "edsr", "ARCH"), out / "student.safetensors"
    hyper = arch.shrink(arch.paper(2), "c8b2")
    save(net, arch, hyper, file, licence="unknown")
    model = describe(arch, hyper, role="student", file=file, licence="unknown")
    graph = export(net, out=out, metadata={}, role="student", family="edsr")
    return replace(graph, model=model)


@pytest.fixture(scope="module")
def patches(tmp_path_factory: pytest.TempPathFactory) -> PatchSet:
    file = tmp_path_factory.mktemp("patches") / "patches.npy"
    np.save(file, np.random.default_rng(0).integers(0, 256, (8, 24, 24, 3), dtype=np.uint8))
    return PatchSet(file=file, sha256="", source="noise", count=8, size=(24, 24))


def part_of(name: str, precision: str) -> str:
    """The folder of a build."""
    return f"{name}-{precision}".replace(":", "-")


@pytest.fixture(scope="module")
def once(graph: Graph, patches: PatchSet, tmp_path_factory: pytest.TempPathFactory) -> Once:
    """Builds a target at a precision, the first time that a test asks for it; read only."""
    folder = tmp_path_factory.mktemp("built")
    made: dict[tuple[str, str], Built] = {}

    def build(target: Target, precision: str) -> Built:
        key = (target.name, precision)
        if key not in made:
            made[key] = built(target, graph, precision, patches, folder / part_of(*key))
        return made[key]

    return build


def built(target: Target, graph: Graph, precision: str, patches: PatchSet, out: Path) -> Built:
    if precision not in target.precisions():
        pytest.skip(f"{target.name} offers no {precision} here")
    return target.build(BuildRequest(graph, precision, out, patches, load_net=load_deployed))


@pytest.mark.parametrize(("name", "precision"), OFFERED)
def test_it_builds_opens_and_gives_torchs_pixels_at_odd_sizes(
    name: str,
    precision: str,
    net: SRNet,
    once: Once,
    capfd: pytest.CaptureFixture[str],
) -> None:
    target = target_of(name)
    made = once(target, precision)
    assert (made.target, made.precision, made.role, made.scale) == (name, precision, "student", 2)
    out = made.file.parent
    assert out.name == part_of(name, precision)
    assert made.file.exists()
    files = [f for f in out.rglob("*") if f.is_file()]
    assert made.size_bytes == sum(f.stat().st_size for f in files)
    with closing(target.open(made)) as session:
        for size in ((21, 35), (40, 24), (21, 35)):
            image = np.random.default_rng(1).integers(0, 256, (*size, 3), dtype=np.uint8)
            found = upscale(session, image, scale=2)
            assert found.shape == (2 * size[0], 2 * size[1], 3)
            if target.makes_pixels:
                most, mean = BOUNDS[precision]
                difference = np.abs(found.astype(int) - by_torch(net, image))
                assert difference.max() <= most
                assert difference.mean() <= mean
    said = capfd.readouterr()
    assert said.out == ""
    assert said.err == ""


def by_torch(net: SRNet, image_HWC: np.ndarray) -> np.ndarray:  # type: ignore[type-arg]
    lr = torch.from_numpy(image_HWC.transpose(2, 0, 1)[None].astype(np.float32) / 255)
    with torch.inference_mode():
        sr = net(lr)[0].clamp(0, 1).permute(1, 2, 0).numpy()
    return np.rint(sr * 255).astype(int)


@pytest.mark.parametrize(("name", "precision"), OFFERED)
def test_the_same_graph_and_patches_give_the_same_pixels(
    name: str, precision: str, once: Once, graph: Graph, patches: PatchSet, tmp_path: Path
) -> None:
    target, pixels = target_of(name), []
    lr = np.random.default_rng(2).random((1, 3, 24, 24), dtype=np.float32)
    for made in (once(target, precision), built(target, graph, precision, patches, tmp_path / "b")):
        with closing(target.open(made)) as session:
            pixels.append(np.array(session.run(lr)))
    assert np.array_equal(*pixels)


@pytest.mark.parametrize("name", TARGETS)
def test_the_reference_comes_first_and_versions_are_told(name: str) -> None:
    target = target_of(name)
    assert target.simulated in (True, False)
    assert target.name == name
    offered = target.precisions()
    assert offered[0] == ("fp32" if "fp32" in offered else "fp16")
    assert set(target.precisions()) <= set(PRECISIONS)
    assert "numpy" in target.versions()


@pytest.mark.parametrize("name", TARGETS)
def test_what_is_missing_comes_with_its_cure(name: str) -> None:
    reason = find(name).why_not()
    assert not reason or all(reason.partition("; ")), reason


@pytest.mark.parametrize("name", TARGETS)
def test_what_it_does_not_offer_is_refused(name: str, graph: Graph, tmp_path: Path) -> None:
    target = target_of(name)
    if "int8" in target.precisions():
        with pytest.raises(MissingError, match=f"{name} int8 needs calibration patches"):
            target.build(BuildRequest(graph, "int8", tmp_path))
    with pytest.raises(UnsupportedError, match="int3") as caught:
        target.build(BuildRequest(graph, "int3", tmp_path))
    assert target.precisions()[0] in caught.value.hint


@pytest.mark.parametrize("name", TARGETS)
def test_int8_says_what_stays_float(name: str, once: Once) -> None:
    made = once(target_of(name), "int8")
    assert any("first" in note for note in made.notes)


def run_python(code: str, *, path: str, home: Path) -> str:
    environment = {**os.environ, "PYTHONPATH": path, "HOME": str(home)}
    environment.pop("CI", None)
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(code)],
        cwd=home,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_importing_all_targets_loads_no_runtime(tmp_path: Path) -> None:
    loaded = run_python(
        """
        import sys
        from mipkd.core import plugins
        for name in plugins.names("targets"):
            plugins.load("targets", name, "TARGET")
        heavy = {"torch", "onnx", "onnxruntime", "openvino", "nncf", "coremltools"}
        heavy |= {"ai_edge_litert", "flatbuffers", "ncnn"}
        heavy |= {"PIL", "pydantic", "skimage"}
        heavy |= {m for m in sys.modules if m.startswith("tensorrt")}
        print(sorted(heavy & set(sys.modules)))
        """,
        path=str(ROOT),
        home=tmp_path,
    )
    assert loaded == "[]"


@pytest.mark.parametrize(
    ("name", "runtime"),
    [
        ("cpu", "onnxruntime"),
        ("jetson", "onnxruntime"),
        ("litert", "ai_edge_litert"),
        ("ncnn", "ncnn"),
        ("openvino", "openvino"),
        ("null", "numpy"),
        ("tensorrt_rtx", "onnxruntime"),
    ],
)
def test_opening_needs_numpy_and_the_runtime_alone(
    name: str, runtime: str, once: Once, tmp_path: Path
) -> None:
    made = once(target_of(name), "fp32")
    shape = run_python(
        f"""
        import importlib.abc, sys, warnings
        from pathlib import Path
        warnings.simplefilter("ignore")  # what a runtime's own import says is not ours

        class Bare(importlib.abc.MetaPathFinder):
            def find_spec(self, name, path=None, target=None):
                host = ("torch", "onnx", "nncf", "PIL", "pydantic", "skimage", "typer")
                if name.partition(".")[0] in host:
                    raise ModuleNotFoundError(name)

        sys.meta_path.insert(0, Bare())
        import {runtime}, numpy
        from mipkd.core import plugins
        from mipkd.core.records import Built
        target = plugins.load("targets", "{name}", "TARGET")
        assert target.why_not() == "", target.why_not()
        file, options = Path({str(made.file)!r}), {made.options}
        built = Built("{name}", "fp32", "student", file, 0, 2, 1, options)
        session = target.open(built)
        print(session.run(numpy.zeros((1, 3, 9, 5), "float32")).shape)
        session.close()
        """,
        path=os.pathsep.join(p for p in (str(ROOT), os.environ.get("PYTHONPATH")) if p),
        home=tmp_path,
    )
    assert shape == "(1, 3, 18, 10)"


@pytest.mark.parametrize("name", TARGETS)
def test_it_declares_what_it_can_do(name: str) -> None:
    target = find(name)
    kind = type(target)
    assert (Feature.FLOAT_SEARCH in target.features) == (kind.tuner is not Target.tuner)
    if Feature.FIXED_INT8 in target.features:
        assert kind.quant_scheme is not Target.quant_scheme
        assert "int8" in target.precisions()


@pytest.mark.parametrize("name", TARGETS)
def test_models_on_uint8_are_refused_where_there_are_none(
    name: str, graph: Graph, tmp_path: Path
) -> None:
    target = target_of(name)
    if Feature.UINT8_IO in target.features:
        pytest.skip("tests/targets/test_pixels_of_8_bits.py")
    request = BuildRequest(graph, target.precisions()[0], tmp_path, pixels="uint8")
    with pytest.raises(UnsupportedError, match=f"{name} has no models on uint8") as caught:
        target.build(request)
    assert caught.value.hint == "known: float32"


@pytest.mark.parametrize(("name", "precision"), OFFERED)
def test_what_runs_is_told_or_left_open_and_a_difference_is_noted(
    name: str, precision: str, once: Once
) -> None:
    made = once(target_of(name), precision)
    assert made.executes in ("", *PRECISIONS)
    noted = any("the runtime executes" in note for note in made.notes)
    assert noted == (made.executes not in ("", precision))


def test_a_target_is_one_file_of_any_package_on_the_path(graph: Graph, tmp_path: Path) -> None:
    (tmp_path / "targets").mkdir()
    (tmp_path / "targets" / "echo.py").write_text(
        textwrap.dedent(
            '''
            """Repeats each pixel."""
            import shutil
            from targets.base import Session, Target

            class Repeat(Session):
                def __init__(self, scale):
                    self.scale = scale
                def run(self, lr_NCHW):
                    return lr_NCHW.repeat(self.scale, 2).repeat(self.scale, 3)

            class Echo(Target):
                name = "echo"
                def precisions(self):
                    return ("fp32",)
                def why_not(self):
                    return ""
                def versions(self):
                    return {"numpy": "1"}
                def build(self, request):
                    self.check(request)
                    request.out.mkdir()
                    file = request.out / "echo.onnx"
                    shutil.copy(request.graph.file, file)
                    return self.describe(request, file)
                def open(self, built):
                    return Repeat(built.scale)

            TARGET = Echo()
            '''
        )
    )
    said = run_python(
        f"""
        from pathlib import Path
        import numpy
        from mipkd.core import plugins
        from mipkd.core.records import Graph
        from targets._images import upscale
        from targets.base import BuildRequest, find
        print(plugins.names("targets"))
        target = find("echo")
        graph = Graph(Path({str(graph.file)!r}), "", "student", 2, 1, 20, "edsr")
        session = target.open(target.build(BuildRequest(graph, "fp32", Path.cwd() / "out")))
        print(upscale(session, numpy.full((3, 4, 3), 7, "uint8"), scale=2).shape)
        """,
        path=f"{ROOT}{os.pathsep}{tmp_path}",
        home=tmp_path,
    )
    assert "'cpu', 'echo'" in said
    assert said.endswith("(6, 8, 3)")
