"""A model on uint8 or int8 makes of a picture what the model of floats makes of it."""

from __future__ import annotations

from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from mipkd.core import plugins
from mipkd.core.records import Built, Graph, PatchSet
from mipkd.export.onnx import export
from pipeline.bench.latency import BenchSettings, compare
from targets._images import upscale
from targets.base import BuildRequest, Pixels, find

TARGETS = (("cpu", "uint8"), ("litert", "uint8"), ("litert", "int8"), ("openvino", "uint8"))
SIZE = (20, 28)


@pytest.fixture(scope="module")
def edge(tmp_path_factory: pytest.TempPathFactory) -> Graph:
    torch.manual_seed(0)
    arch = plugins.load("mipkd.archs", "edge", "ARCH")
    net = arch.make(arch.shrink(arch.paper(2), "c16b1")).eval()
    for weight in net.parameters():
        weight.data.mul_(2.0)  # so that it goes beyond black and white
    out = tmp_path_factory.mktemp("edge")
    return export(net, out=out, metadata={}, role="student", family="edge")


@pytest.fixture(params=TARGETS, ids="-".join)
def ends(request: pytest.FixtureRequest) -> tuple[str, Pixels]:
    target, pixels = request.param
    if why := find(target).why_not():
        pytest.skip(f"{target}: {why}")
    return target, pixels


def both(
    ends: tuple[str, Pixels], precision: str, graph: Graph, patches: PatchSet, folder: Path
) -> tuple[Built, Built]:
    """A model of floats and the same on bytes."""
    target, pixels = ends
    request = BuildRequest(graph, precision, folder / "float", patches)
    direct = replace(request, out=folder / pixels, pixels=pixels)
    return find(target).build(request), find(target).build(direct)


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_the_same_picture(
    ends: tuple[str, Pixels], precision: str, edge: Graph, patches: PatchSet, tmp_path: Path
) -> None:
    target, pixels = ends
    floats, bytes_ = both(ends, precision, edge, patches, tmp_path)
    image = np.random.default_rng(0).integers(0, 256, (*SIZE, 3), dtype=np.uint8)
    image[:4], image[-4:] = 0, 255
    with (
        closing(find(target).open(floats)) as plain,
        closing(find(target).open(bytes_)) as direct,
    ):
        assert direct.takes_uint8
        assert not plain.takes_uint8
        wanted = upscale(plain, image, scale=edge.scale)
        off = np.abs(upscale(direct, image, scale=edge.scale).astype(int) - wanted)
    # OpenVINO multiplies where we divide: what lies between two levels may fall to either.
    assert off.max() <= (target == "openvino")
    assert np.count_nonzero(off) <= 1e-3 * off.size
    assert wanted.min() == 0
    assert wanted.max() == 255
    assert pixels in bytes_.notes[-1]


def test_it_is_timed_on_bytes(
    ends: tuple[str, Pixels], edge: Graph, patches: PatchSet, tmp_path: Path
) -> None:
    _, bytes_ = both(ends, "fp32", edge, patches, tmp_path)
    with closing(find(ends[0]).open(bytes_)) as session:
        pace = BenchSettings(
            warmup_s=0.0, min_time_s=0.01, min_samples=5, attempts=1, max_drift=99.0
        )
        (latency,) = compare({"bytes": session}, SIZE, pace).values()
    assert latency.invalid_because == ""
