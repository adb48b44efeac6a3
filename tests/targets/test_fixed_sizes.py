"""Models that take some sizes only: which tiles other images become, and what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from mipkd.core.errors import UnsupportedError
from mipkd.core.records import Graph
from targets._tiles import FixedSizes, Sizes
from targets.base import BuildRequest, FloatArray, Session, find

REACH = 3


class Blur(Session):
    """Means over 7x7 pixels with zeros around the image, at twice its size; notes what it saw."""

    def __init__(self) -> None:
        self.seen: list[tuple[int, ...]] = []

    def run(self, lr_NCHW: FloatArray) -> FloatArray:
        self.seen.append(lr_NCHW.shape[2:])
        around = np.pad(lr_NCHW, ((0, 0), (0, 0), (REACH, REACH), (REACH, REACH)))
        windows = np.lib.stride_tricks.sliding_window_view(around, (7, 7), (2, 3))
        return windows.mean((-2, -1), dtype=np.float32).repeat(2, 2).repeat(2, 3)


def noise(height: int, width: int) -> FloatArray:
    return np.random.default_rng(0).random((1, 3, height, width), dtype=np.float32)


@pytest.mark.parametrize("size", [(16, 24), (24, 24), (17, 25), (100, 33), (24, 200)])
def test_an_image_no_smaller_than_a_tile_comes_out_as_in_one_piece(size: tuple[int, int]) -> None:
    session, lr = FixedSizes(Blur(), Sizes(((16, 24),), REACH)), noise(*size)
    np.testing.assert_allclose(session.run(lr), Blur().run(lr), atol=1e-6)


@pytest.mark.parametrize("size", [(5, 7), (16, 7), (40, 9), (1, 1)])
def test_a_smaller_one_is_padded_and_cropped(size: tuple[int, int]) -> None:
    blur, lr = Blur(), noise(*size)
    found = FixedSizes(blur, Sizes(((16, 24), (24, 24)), REACH)).run(lr)
    assert found.shape == (1, 3, 2 * size[0], 2 * size[1])
    assert set(blur.seen) <= {(16, 24), (24, 24)}
    inside = np.s_[:, :, : 2 * (size[0] - REACH), : 2 * (size[1] - REACH)]
    np.testing.assert_allclose(found[inside], Blur().run(lr)[inside], atol=1e-6)


def test_the_tiles_are_those_with_the_least_work() -> None:
    blur = Blur()
    session = FixedSizes(blur, Sizes(((64, 64), (32, 96), (20, 20)), REACH))
    session.run(noise(30, 90))
    session.run(noise(20, 20))
    session.run(noise(21, 20))
    assert blur.seen == [(32, 96), (20, 20), (20, 20), (20, 20)]


@pytest.mark.parametrize("multiple", [1, 8])
def test_tiles_begin_at_multiples(multiple: int) -> None:
    tiles = Sizes(((32, 48),), 5, multiple).tiles(104, 160)
    assert all(tile.rows.start % multiple == tile.columns.start % multiple == 0 for tile in tiles)
    assert tiles[-1].rows.stop == 104


def test_what_no_size_suffices_for_is_refused_with_what_is_taken() -> None:
    session = FixedSizes(Blur(), Sizes(((16, 16), (60, 12)), 8))
    with pytest.raises(UnsupportedError, match=r"30x20 LR pixels; this model takes 16x16, 12x60"):
        session.run(noise(20, 30))


def test_sizes_are_padded_to_whole_multiples_each_once(tmp_path: Path) -> None:
    graph = Graph(tmp_path, "", "student", 2, multiple=8, opset=20, family="swinir")
    request = BuildRequest(graph, "fp32", tmp_path, sizes=((180, 320), (184, 320), (64, 63)))
    assert request.padded_sizes == ((184, 320), (64, 64))


def test_fixed_sizes_are_refused_where_a_target_has_none(tmp_path: Path) -> None:
    graph = Graph(tmp_path, "", "student", 2, multiple=1, opset=20, family="edsr")
    with pytest.raises(
        UnsupportedError, match=r"build\.fixed_sizes: cpu has no models for"
    ) as caught:
        find("cpu").build(BuildRequest(graph, "fp32", tmp_path, fixed_sizes=True))
    assert caught.value.hint == "leave it at false"
