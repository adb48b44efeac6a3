"""Tiles come out as the whole image does, where the net allows it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from mipkd.distill import student
from mipkd.export.onnx import export
from mipkd.export.receptive_field import find_receptive_field
from pipeline.stages.assess import TorchSession
from pipeline.upscale.tiles import bands
from targets._images import upscale
from targets._tiles import Tiling, spans


@pytest.mark.parametrize("length", [1, 7, 40, 41, 63, 64, 65, 200, 1001])
@pytest.mark.parametrize("multiple", [1, 8])
@pytest.mark.parametrize("margin", [0, 5, 11, 16])
@pytest.mark.parametrize("exact", [False, True])
def test_spans_cover_a_side_once_and_keep_their_margin(
    length: int, multiple: int, margin: int, exact: bool
) -> None:
    tiling = Tiling(48, margin, multiple, exact)
    found = spans(length, tiling)
    kept = [at for span in found for at in range(span.keep_from, span.keep_to)]
    assert kept == list(range(length))
    sizes = set()
    for span in found:
        assert span.keep_from < span.keep_to
        assert span.start % multiple == 0
        assert span.start == 0 or span.keep_from - span.start >= margin
        assert span.stop == length or span.stop - span.keep_to >= margin
        sizes.add(-(-(span.stop - span.start) // multiple) * multiple)
    assert len(sizes) == 1  # a model is compiled for one
    assert max(sizes) <= 48
    if exact and length > 48:
        assert sizes == {48}


def test_no_more_is_computed_than_the_margins_ask() -> None:
    computed = 1.0
    for length in (3000, 4000):
        found = spans(length, Tiling(850, 35, 1))
        computed *= sum(span.stop - span.start for span in found) / length
    assert computed < 1.17  # 1.63 with tiles of the largest side


@pytest.mark.parametrize("spec", ["edsr:c8b3", "edge:c16b3"])
def test_tiles_equal_the_whole_where_the_reach_is_known(spec: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    arch, hyper = student.choose_without_teacher(spec, 2)
    net = arch.make(hyper).eval().to_deployed()
    graph = export(net, out=tmp_path, metadata={}, role="student", family=arch.name)
    found = find_receptive_field(graph.file, graph.multiple)
    assert found.inexact_because == ""
    session, tiling = TorchSession(net), Tiling(2 * found.radius + 9, found.radius, 1)
    lr = np.random.default_rng(0).integers(0, 256, (70, 51, 3), dtype=np.uint8)
    whole = upscale(session, lr, scale=2).astype(int)

    def off(cut: Tiling) -> np.ndarray:  # type: ignore[type-arg]
        return np.abs(np.concatenate(list(bands(session, lr, cut, scale=2))) - whole)

    # Sums in another order may round one level away from the whole's.
    assert off(tiling).max() <= 1
    assert off(tiling).mean() < 1e-3
    assert off(Tiling(tiling.side, 0, 1)).mean() > 1e-3


@pytest.mark.parametrize(
    ("spec", "sizes", "why"),
    [
        ("rcan:g2b2", {}, "looks at the whole image"),
        ("swinir:c12r1", {"layers": 2}, "places of the image"),
        ("rlfn:c16b2m16", {}, "coarser grid"),
    ],
)
def test_what_no_margin_makes_exact_is_told(
    spec: str, sizes: dict[str, int], why: str, tmp_path: Path
) -> None:
    arch, hyper = student.choose_without_teacher(spec, 2)
    net = arch.make(replace(hyper, **sizes)).eval()
    graph = export(net, out=tmp_path, metadata={}, role="student", family=arch.name)
    found = find_receptive_field(graph.file, graph.multiple)
    assert why in found.inexact_because


def test_the_reach_is_what_one_pixel_changes(tmp_path: Path) -> None:
    torch.manual_seed(1)
    arch, hyper = student.choose_without_teacher("edsr:c8b2", 3)
    net = arch.make(hyper).eval()
    graph = export(net, out=tmp_path, metadata={}, role="student", family=arch.name)
    found = find_receptive_field(graph.file, graph.multiple)
    lr = torch.rand(1, 3, 41, 41)
    other = lr.clone()
    other[..., 20, 20] += 0.5
    with torch.inference_mode():
        changed = (net(lr) - net(other)).abs().amax((0, 1)).nonzero()[:, 0]
    seen = max(20 * 3 - int(changed.min()), int(changed.max()) - 20 * 3 - 2)
    assert found.radius - 1 <= seen / 3 <= found.radius
