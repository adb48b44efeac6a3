"""The variant `tensorrt:torch`: what can be checked without a GPU, and with one its engine."""

from __future__ import annotations

from contextlib import closing
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mipkd.core import plugins
from mipkd.core.errors import MissingError, StageError, UnsupportedError, UsageError
from mipkd.core.records import Graph
from mipkd.distill.teacher import describe, save
from mipkd.export.onnx import export
from pipeline.stages.build import load_deployed
from targets._images import upscale
from targets._tensorrt import from_torch
from targets._tensorrt.profile import Profile
from targets.base import BuildRequest, find

TARGET = find("tensorrt:torch")
SIZES = {
    "edsr": {"channels": 16, "blocks": 2},
    "rcan": {"channels": 16, "groups": 2, "blocks": 2},
    "swinir": {"channels": 24, "groups": 1, "layers": 2, "heads": 4},
}
absent = pytest.mark.skipif(not TARGET.why_not(), reason="describes a machine that lacks something")


@pytest.fixture(scope="module")
def graphs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Graph]:
    found = {}
    for family, sizes in SIZES.items():
        arch, out = plugins.load("mipkd.archs", family, "ARCH"), tmp_path_factory.mktemp(family)
        hyper = replace(arch.paper(2), **sizes)
        torch.manual_seed(0)
        net, file = arch.make(hyper).eval(), out / "student.safetensors"
        save(net, arch, hyper, file, licence="unknown")
        model = describe(arch, hyper, role="student", file=file, licence="unknown")
        made = export(net, out=out, metadata={}, role="student", family=family)
        found[family] = replace(made, model=model)
    return found


def test_tensorrt_lists_it_and_refuses_others() -> None:
    assert TARGET.name == "tensorrt:torch"
    assert TARGET.precisions() == ("fp32", "fp16")
    assert not TARGET.simulated
    with pytest.raises(UsageError, match="unknown variant 'tosh'") as caught:
        find("tensorrt:tosh")
    assert "torch" in caught.value.hint


@absent
def test_what_it_lacks_is_named_with_its_cure(graphs: dict[str, Graph], tmp_path: Path) -> None:
    if not find_spec("torch_tensorrt"):
        cure = 'torch_tensorrt is not installed; pip install "mipkd-pipeline[tensorrt]"'
        assert cure in TARGET.why_not()
    with pytest.raises(MissingError, match="tensorrt:torch: "):
        TARGET.build(BuildRequest(graphs["edsr"], "fp32", tmp_path, load_net=load_deployed))


def test_int8_is_not_offered(graphs: dict[str, Graph], tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match="no precision 'int8'") as caught:
        TARGET.build(BuildRequest(graphs["edsr"], "int8", tmp_path, load_net=load_deployed))
    assert caught.value.hint == "known: fp32, fp16"


@pytest.mark.parametrize(
    ("family", "kind"),
    [(f, k) for f in SIZES for k in ("fp32", "fp16") if (f, k) != ("swinir", "fp32")],  # it is slow
)
def test_the_program_states_its_types_and_gives_the_nets_pixels(
    family: str, kind: str, graphs: dict[str, Graph]
) -> None:
    graph = graphs[family]
    profile = Profile.of(((48, 64), (80, 40)), graph.multiple)
    net = load_deployed(graph.model)
    lr = torch.from_numpy(np.random.default_rng(0).random((1, 3, 24, 40), np.float32))
    with torch.no_grad():
        wanted = net(lr)
        exported = from_torch.typed_program(net, kind, profile)
        found = exported.module()(lr)
    assert found.dtype == torch.float32
    assert (found - wanted).abs().max() < (1e-5 if kind == "fp32" else 2e-2)
    dtype = torch.float32 if kind == "fp32" else torch.float16
    convolutions = [n for n in exported.graph.nodes if "conv" in str(n.target)]
    assert convolutions
    assert {n.meta["val"].dtype for n in convolutions} == {dtype}


def test_the_program_takes_what_the_profile_says(graphs: dict[str, Graph]) -> None:
    graph = graphs["edsr"]
    profile = Profile.of(((48, 64), (80, 40)), graph.multiple)
    net = load_deployed(graph.model)
    ranges = from_torch.typed_program(net, "fp32", profile).range_constraints.values()
    assert {(int(r.lower), int(r.upper)) for r in ranges} == {(16, 80)}
    assert from_torch.shapes(profile) == {
        "min_shape": (1, 3, 16, 16),
        "opt_shape": (1, 3, 48, 64),
        "max_shape": (1, 3, 80, 64),
    }


@pytest.mark.skipif(bool(find_spec("torch_tensorrt")), reason="torch_tensorrt is installed")
def test_an_absent_torch_tensorrt_is_told_when_it_is_needed() -> None:
    program: Any = None  # is never looked at
    with pytest.raises(MissingError, match="torch_tensorrt cannot be imported"):
        from_torch._engine(program, Profile.of(()))


@pytest.mark.gpu
@pytest.mark.skipif(bool(TARGET.why_not()), reason=f"not measured: {TARGET.why_not()}")
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("family", SIZES)
def test_the_engine_gives_the_nets_pixels(
    family: str, precision: str, graphs: dict[str, Graph], tmp_path: Path
) -> None:
    graph = graphs[family]
    built = TARGET.build(BuildRequest(graph, precision, tmp_path, load_net=load_deployed))
    net = load_deployed(graph.model)
    image = np.random.default_rng(0).integers(0, 256, (40, 24, 3), dtype=np.uint8)
    lr = torch.from_numpy(image.transpose(2, 0, 1)[None].astype(np.float32) / 255)
    with torch.inference_mode():
        wanted = net(lr)[0].clamp(0, 1).permute(1, 2, 0).numpy() * 255
    with closing(TARGET.open(built)) as session:
        found = upscale(session, image, scale=graph.scale, multiple=graph.multiple)
    assert np.abs(found - wanted).max() <= (1.5 if precision == "fp32" else 5)
    with pytest.raises(StageError, match="the engine is for another"):
        TARGET.open(replace(built, options={**built.options, "made_for": "another"}))
