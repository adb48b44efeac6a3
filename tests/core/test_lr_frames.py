"""Which folders hold LR frames without truth."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from mipkd.core.errors import UsageError
from mipkd.core.image_sets import find_set
from mipkd.core.images import downscale, resize_bicubic, write_png
from mipkd.core.lr_frames import find_frames, has_pairs, is_lr_only

Draw = Callable[..., Path]


@pytest.fixture
def draw(tmp_path: Path) -> Draw:
    """Writes images of one content, HR of 48x64 or as many times smaller, and gives the root."""

    def written(*files: str, by: int = 1) -> Path:
        for number, file in enumerate(files):
            coarse = np.random.default_rng(number).integers(0, 256, (6, 8, 3), dtype=np.uint8)
            (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
            write_png(tmp_path / file, downscale(resize_bicubic(coarse, (48, 64)), by))
        return tmp_path

    return written


def names(folder: Path, scale: int = 2) -> list[str]:
    return [
        member.hr.relative_to(folder).as_posix() for member in find_frames(folder, scale).members
    ]


@pytest.mark.parametrize(
    ("folder", "inside"),
    [("LR", ""), ("cam/lowres", ""), ("LR_bicubic", "X2/"), ("LRx2", ""), ("Set/image_SRF_2", "")],
)
def test_a_set_without_hr_is_known_by_its_names(draw: Draw, folder: str, inside: str) -> None:
    root = draw(f"{folder}/{inside}a.png", f"{folder}/{inside}b_LR.png", by=2)
    assert is_lr_only(root)
    assert is_lr_only(root / folder)
    assert len(names(root)) == 2


def test_photos_pairs_and_the_lr_part_of_a_set_are_none(draw: Draw) -> None:
    root = draw("photos/a.png", "photos/low key.png", "set/HR/a.png", "mixed/b.png")
    draw("set/LR/a.png", "mixed/LR/c.png", by=2)
    for folder in ("photos", "set", "set/HR", "set/LR", "mixed"):
        assert not is_lr_only(root / folder)
    with pytest.raises(UsageError, match="not its HR ones") as refused:
        find_set(root / "set/LR", 2)
    assert "--lr-only" in refused.value.hint


def test_pairs_have_a_truth_however_they_are_named(draw: Draw) -> None:
    root = draw("set/HR/a.png", "one/a.png", "photos/a.png", "photos/b.png")
    draw("set/LR/a.png", "one/ax2.png", by=2)
    assert has_pairs(root / "set")
    assert has_pairs(root / "one")
    assert not has_pairs(root / "photos")
    assert not has_pairs(root / "set/LR")


def test_frames_are_the_lr_part_where_there_is_one_and_of_the_scale(draw: Draw) -> None:
    root = draw("HR/a.png", "cover.png")
    draw("LR_bicubic/X2/ax2.png", by=2)
    draw("LR_bicubic/X4/ax4.png", by=4)
    assert names(root) == ["LR_bicubic/X2/ax2.png"]
    assert names(root, 4) == ["LR_bicubic/X4/ax4.png"]
    reasons = [left.reason for left in find_frames(root, 4).left_out]
    assert sorted(reasons) == ["LR of another scale", "beside LR", "beside LR"]


def test_of_pairs_in_one_folder_the_small_ones_are_frames(draw: Draw) -> None:
    root = draw("a.png", "b.png")
    draw("ax2.png", "bx2.png", by=2)
    assert names(root) == ["ax2.png", "bx2.png"]


def test_an_empty_folder_is_refused(tmp_path: Path) -> None:
    for look in (is_lr_only, has_pairs):
        with pytest.raises(UsageError, match="no image in it"):
            look(tmp_path)
