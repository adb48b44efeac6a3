"""YUV planes beside the standards' own figures and beside where their samples lie."""

from __future__ import annotations

import numpy as np
import pytest

from mipkd.core.yuv import YuvFormat, rgb_of_yuv, yuv_of_rgb

KINDS = {
    "jpeg": YuvFormat((2, 2), (False, False), "bt601", full_range=True),
    "mpeg2": YuvFormat((2, 2), (False, True), "bt709"),
    "paldv": YuvFormat((2, 2), (True, True), "bt601"),
    "422": YuvFormat((1, 2), (False, True), "bt709"),
    "444": YuvFormat((1, 1), (False, False), "bt601"),
}


@pytest.mark.parametrize(
    ("matrix", "full", "rgb", "yuv"),
    [  # 75 and 100 % colour bars as they are published
        ("bt601", False, (255, 255, 255), (235, 128, 128)),
        ("bt601", False, (255, 0, 0), (81, 90, 240)),
        ("bt601", False, (191, 191, 0), (162, 44, 142)),
        ("bt709", False, (255, 0, 0), (63, 102, 240)),
        ("bt709", False, (0, 191, 191), (145, 147, 44)),
        ("bt709", False, (0, 0, 255), (32, 240, 118)),
        ("bt601", True, (255, 0, 0), (76, 85, 255)),
        ("bt601", True, (0, 0, 0), (0, 128, 128)),
    ],
)
def test_colours_are_those_of_the_standards(
    matrix: str, full: bool, rgb: tuple[int, ...], yuv: tuple[int, ...]
) -> None:
    kind = YuvFormat((1, 1), matrix=matrix, full_range=full)
    picture = np.full((1, 1, 3), rgb, np.uint8)
    made = yuv_of_rgb(picture, kind)
    assert np.abs(made.astype(int) - yuv).max() <= 1
    back = rgb_of_yuv(np.array(yuv, np.uint8), (1, 1), kind)
    assert np.abs(back.astype(int) - rgb).max() <= 2


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
@pytest.mark.parametrize("size", [(24, 36), (23, 37), (1, 1), (2, 5)])
def test_a_smooth_picture_comes_back(kind: YuvFormat, size: tuple[int, int]) -> None:
    rows, columns = np.indices(size)
    channels = (60 + 2 * rows, 90 + columns, 160 - 2 * columns + rows)
    picture = np.stack(channels, axis=2).astype(np.uint8)
    yuv = yuv_of_rgb(picture, kind)
    assert len(yuv) == kind.count_bytes(size)
    back = rgb_of_yuv(yuv, size, kind).astype(int)
    assert np.abs(back - picture).max() <= 5  # at an end chroma has one neighbour
    assert np.abs(back - picture).mean() <= 1.5


@pytest.mark.parametrize(
    ("cosited", "first"), [((False, False), 0.5), ((True, True), 0.0)], ids=["between", "on"]
)
@pytest.mark.parametrize("axis", [0, 1])
def test_chroma_is_sampled_where_it_lies(
    cosited: tuple[bool, bool], first: float, axis: int
) -> None:
    """A ramp of blue: a sample between two pixels has their mean, one on a pixel that pixel's."""
    kind = YuvFormat((2, 2), cosited, "bt601", full_range=True)
    ramp = np.arange(0, 240, 10)
    picture = np.zeros((24, 24, 3), np.uint8)
    picture[..., 2] = ramp[:, None] if axis == 0 else ramp
    chroma = yuv_of_rgb(picture, kind)[24 * 24 :][: 12 * 12].reshape(12, 12)
    line = chroma[:, 5] if axis == 0 else chroma[5]
    places = np.arange(1, 11) * 2 + first
    wanted = 128 + 0.5 * places * 10  # Cb of blue b is b / 2
    assert np.abs(line[1:11] - wanted).max() <= 0.5
    back = rgb_of_yuv(yuv_of_rgb(picture, kind), (24, 24), kind)[..., 2].astype(int)
    inside = slice(2, -2)
    found = back[inside, 12] if axis == 0 else back[12, inside]
    assert np.abs(found - ramp[inside]).max() <= 3
