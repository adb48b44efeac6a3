"""Where outputs differ most: the same small window of truth, bicubic, teacher, student and INT8.

Shapes: H W HR size, C channels; h w size of a window. Values: uint8 RGB.
"""

from __future__ import annotations

import base64
import io
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from mipkd.core.errors import UsageError
from mipkd.core.evidence import Evidence
from mipkd.core.images import PSNR_OF_EQUAL_DB, ByteArray, luma, psnr_y, read_rgb
from mipkd.core.measurement import Measurement
from pipeline.bench.comparisons import drop_by_image, find_reference, students
from pipeline.bench.pixels import output_file
from pipeline.report.wording import number

log = logging.getLogger(__name__)

# What the other images are held against, the first tile.
_TRUTHS = {"truth": "Truth", "teacher": "Teacher", "student": "Student FP32"}
_WINDOW = 48  # HR pixels a side
_STRIDE = 4
_LOOK_AT = 16  # images, those with the largest figures, so that a large test set stays quick
_EACH = 2  # exhibits a reason
_GAIN = 8  # of differences in an error map
_THUMBNAIL = 240  # pixels of its longer side

Plane = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Tile:
    """One output's window as a data URI, with its PSNR there."""

    name: str
    uri: str
    caption: str


@dataclass(frozen=True)
class Exhibit:
    """One window in all outputs; the frame is in percent of the thumbnail."""

    image: str
    why: str
    thumbnail: str
    frame: tuple[float, float, float, float]  # left, top, width, height
    tiles: tuple[Tile, ...]
    under: Tile  # of a slider: what the second one is drawn over
    over: Tile


@dataclass(frozen=True)
class _Find:
    amount: float
    image: str
    top: int
    left: int
    side: int

    @property
    def place(self) -> tuple[str, int, int]:
        """The same for windows that mostly overlap."""
        return self.image, round(self.top / self.side), round(self.left / self.side)


def find_exhibits(evidence: Evidence) -> list[Exhibit]:
    """Where INT8 leaves the FP32 student, and where the student falls behind its teacher."""
    named = [(_TRUTHS[evidence.tests.against], evidence.tests.folder / "hr")]
    for role, name in (("bicubic", "Bicubic"), ("teacher", "Teacher"), ("student", "Student FP32")):
        m = find_reference(evidence.measurements, role)
        if m and m.outputs and role != evidence.tests.against:
            named.append((name, m.outputs))
    int8 = _worst_int8(evidence)
    if int8 and int8.outputs:
        named.append((f"INT8 {int8.target}", int8.outputs))
    folders = dict(named)
    if "Student FP32" not in folders:
        return []
    shown: dict[tuple[str, int, int], Exhibit] = {}  # a window once, under its first reason
    for why, images, amount in _reasons(evidence, folders, int8):
        finds = [f for image in images if (f := _strongest(image, folders, evidence, amount))]
        finds.sort(key=lambda f: -f.amount)
        new = [f for f in finds if f.amount > 0 and f.place not in shown]
        shown |= {find.place: _exhibit(find, why, folders) for find in new[:_EACH]}
    return list(shown.values())


Amount = Callable[[dict[str, Plane]], Plane]


def _reasons(
    evidence: Evidence, folders: dict[str, Path], int8: Measurement | None
) -> list[tuple[str, Sequence[str], Amount]]:
    """Why a window is shown, the images to search, and the map whose largest window it is."""
    student = find_reference(evidence.measurements, "student")
    teacher = find_reference(evidence.measurements, "teacher")
    images = evidence.tests.images[:_LOOK_AT]
    reasons: list[tuple[str, Sequence[str], Amount]] = []
    if int8 and int8.outputs:
        drops = drop_by_image(int8, student)
        last = f"INT8 {int8.target}"
        reasons.append(
            (
                f"INT8 on {int8.target} differs most from the FP32 student here",
                _largest(drops) or images,
                lambda y: np.abs(y[last] - y["Student FP32"]),
            )
        )
    truth = _TRUTHS[evidence.tests.against]
    if truth == "Truth" and "Teacher" in folders and student and teacher:
        reasons.append(
            (
                "the student falls behind its teacher most here",
                _largest(drop_by_image(student, teacher)) or images,
                lambda y: (
                    np.abs(y["Student FP32"] - y["Truth"]) - np.abs(y["Teacher"] - y["Truth"])
                ),
            )
        )
    elif truth != "Student FP32":
        whose = "truth" if truth == "Truth" else "teacher's image"
        reasons.append(
            (
                f"the student is furthest from the {whose} here",
                images,
                lambda y: np.abs(y["Student FP32"] - y[truth]),
            )
        )
    return reasons


def _largest(drops: dict[str, float]) -> list[str]:
    return sorted(drops, key=lambda image: -drops[image])[:_LOOK_AT]


def _worst_int8(evidence: Evidence) -> Measurement | None:
    """The INT8 student that loses most on one image."""
    base = find_reference(evidence.measurements, "student")
    found = [m for m in students(evidence.measurements) if m.executes == "int8" and m.outputs]
    return max(found, key=lambda m: max(drop_by_image(m, base).values(), default=0), default=None)


def _strongest(
    image: str, folders: dict[str, Path], evidence: Evidence, amount: Amount
) -> _Find | None:
    """The window of an image with the largest mean of `amount`; None if an output is gone."""
    try:
        planes = {name: luma(pixels) for name, pixels in _read(image, folders).items()}
    except UsageError as error:
        log.warning("report: %s", error.what)
        return None
    border = evidence.tests.scale
    inner = amount(planes)[border:-border, border:-border]
    side = min(_WINDOW, *inner.shape)
    sums = np.pad(inner, ((1, 0), (1, 0))).cumsum(0).cumsum(1)
    windows = sums[side:, side:] - sums[:-side, side:] - sums[side:, :-side] + sums[:-side, :-side]
    coarse = windows[::_STRIDE, ::_STRIDE]
    row, column = np.unravel_index(int(np.argmax(coarse)), coarse.shape)
    top, left = int(row) * _STRIDE + border, int(column) * _STRIDE + border
    return _Find(float(coarse.max()) / side**2, image, top, left, side)


def _exhibit(find: _Find, why: str, folders: dict[str, Path]) -> Exhibit:
    pixels, truth = _read(find.image, folders), next(iter(folders))
    truth_HWC = pixels[truth]
    height, width = truth_HWC.shape[:2]
    crops = {
        name: image_HWC[find.top : find.top + find.side, find.left : find.left + find.side]
        for name, image_HWC in pixels.items()
    }
    tiles = {
        name: Tile(name, _png_uri(crop_hwC), _caption(crop_hwC, crops[truth]))
        for name, crop_hwC in crops.items()
    }
    last = list(crops)[-1]
    base = truth if last == "Student FP32" else "Student FP32"
    error = Tile(
        f"{last} − {base}",
        _png_uri(_error(crops[last], crops[base])),
        f"grey is equal, ×{_GAIN}",
    )
    return Exhibit(
        image=find.image,
        why=why,
        thumbnail=_thumbnail(truth_HWC),
        frame=(
            100 * find.left / width,
            100 * find.top / height,
            100 * find.side / width,
            100 * find.side / height,
        ),
        tiles=(*tiles.values(), error),
        under=tiles[base],
        over=tiles[last],
    )


def _error(crop_hwC: ByteArray, base_hwC: ByteArray) -> ByteArray:
    """Differences, enlarged, around a middle grey: red where the first has more red."""
    apart = crop_hwC.astype(np.int16) - base_hwC
    error_hwC: ByteArray = np.clip(128 + _GAIN * apart, 0, 255).astype(np.uint8)
    return error_hwC


def _read(image: str, folders: dict[str, Path]) -> dict[str, ByteArray]:
    return {name: read_rgb(output_file(folder, image)) for name, folder in folders.items()}


def _caption(crop_hwC: ByteArray, truth_hwC: ByteArray) -> str:
    if crop_hwC is truth_hwC:
        return f"{truth_hwC.shape[1]}×{truth_hwC.shape[0]} pixels"
    psnr_db = psnr_y(crop_hwC, truth_hwC, border=0)
    return "equal" if psnr_db >= PSNR_OF_EQUAL_DB else number(psnr_db, 2, " dB")


def _thumbnail(image_HWC: ByteArray) -> str:
    small = Image.fromarray(image_HWC)
    small.thumbnail((_THUMBNAIL, _THUMBNAIL), Image.Resampling.LANCZOS)
    held = io.BytesIO()
    small.save(held, "JPEG", quality=80)
    return "data:image/jpeg;base64," + base64.b64encode(held.getvalue()).decode()


def _png_uri(image_HWC: ByteArray) -> str:
    held = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(image_HWC)).save(held, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(held.getvalue()).decode()
