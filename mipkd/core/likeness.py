"""Find copies of images among others: compressed, resized, turned, cropped a little, made grey.

By the perceptual hash of ImageHash: signs of the lowest frequencies of a DCT. Shapes: H W size,
V views, B bits. Figures behind the threshold: docs/decisions/0023-leakage.md.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from mipkd.core.images import ByteArray

if TYPE_CHECKING:
    from PIL import Image

Bits = npt.NDArray[np.bool_]

_SIDE = 16  # of a hash: 256 bits
MOST_APART = 64  # bits of a copy; of 67,000 pairs of different photos the nearest have 80
_THUMB = 256  # pixels a side, of which a hash is taken
_LEAST_CONTRAST = 2.0  # levels: what is flat has no hash, and is only compared as a whole
# Parts of an image that a cropped copy may show: left, top, right, bottom.
_PARTS = (
    (0.0, 0.0, 1.0, 1.0),
    (0.04, 0.04, 0.96, 0.96),
    (0.07, 0.0, 1.0, 1.0),
    (0.0, 0.07, 1.0, 1.0),
    (0.0, 0.0, 0.93, 1.0),
    (0.0, 0.0, 1.0, 0.93),
    (0.05, 0.05, 1.0, 1.0),
    (0.0, 0.0, 0.95, 0.95),
)


@dataclass(frozen=True)
class Copy:
    """A photo and the image that it is a copy of, by name."""

    photo: str
    original: str
    exact: bool  # whether every pixel is the same


def find_copies(
    photos: Iterable[tuple[str, ByteArray]], originals: Iterable[tuple[str, ByteArray]]
) -> Iterator[Copy]:
    """Each photo that shows one of the images, and which."""
    exact, names, hashes = dict[tuple[tuple[int, ...], bytes], str](), list[str](), list[Bits]()
    for name, image_HWC in originals:
        exact[_pixels(image_HWC)] = name
        views_VB = hash_views(image_HWC)
        hashes += list(views_VB)
        names += [name] * len(views_VB)
    known = np.array(hashes, np.bool_).reshape(len(hashes), _SIDE * _SIDE)
    shapes = {shape for shape, _ in exact}
    for photo, image_HWC in photos:
        same = exact.get(_pixels(image_HWC)) if image_HWC.shape in shapes else None
        at = None if same else _nearest(hash_image(image_HWC), known)
        if same or at is not None:
            yield Copy(photo, same or names[at or 0], exact=bool(same))


def hash_image(image_HWC: ByteArray) -> Bits | None:
    """An image's 256 bits, the same whatever its size; None where it is flat."""
    thumb = _thumb(image_HWC)
    return None if _is_flat(thumb) else _hash(thumb)


def hash_views(image_HWC: ByteArray) -> Bits:
    """Hashes of an image and of parts of it, turned and mirrored in all eight ways, (V, B)."""
    from PIL import Image

    thumb, found = _thumb(image_HWC), []
    if _is_flat(thumb):
        return np.empty((0, _SIDE * _SIDE), np.bool_)
    for left, top, right, bottom in _PARTS:
        part = thumb.crop((left * _THUMB, top * _THUMB, right * _THUMB, bottom * _THUMB))
        found += [_hash(part), *(_hash(part.transpose(turn)) for turn in Image.Transpose)]
    return np.array(found)


def _nearest(bits_B: Bits | None, known_VB: Bits) -> int | None:
    """The view of the fewest other bits, if they are few enough."""
    if bits_B is None or not len(known_VB):
        return None
    apart = (known_VB != bits_B).sum(axis=1)
    nearest = int(apart.argmin())
    return nearest if apart[nearest] <= MOST_APART else None


def _thumb(image_HWC: ByteArray) -> Image.Image:
    from PIL import Image

    image = Image.fromarray(image_HWC)
    shrink = max(1, min(image.size) // (2 * _THUMB))
    grey = (image.reduce(shrink) if shrink > 1 else image).convert("L")
    return grey.resize((_THUMB, _THUMB), Image.Resampling.BICUBIC)


def _is_flat(thumb: Image.Image) -> bool:
    return float(np.asarray(thumb).std()) < _LEAST_CONTRAST


def _hash(thumb: Image.Image) -> Bits:
    from imagehash import phash

    bits: Bits = phash(thumb, hash_size=_SIDE).hash.ravel()
    return bits


def _pixels(image_HWC: ByteArray) -> tuple[tuple[int, ...], bytes]:
    return image_HWC.shape, hashlib.sha256(np.ascontiguousarray(image_HWC).data).digest()
