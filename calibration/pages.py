"""Drawn pages: text from captions to headlines, flat shapes, a gradient, on paper of one colour.

Photos of nature hold few white pages with dark letters and few flat saturated colours, on which
INT8 of SR nets breaks first: so what it is trained for and judged on has some that are drawn.
"""

from __future__ import annotations

import string

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from mipkd.core.images import ByteArray

TO_JUDGE, TO_TRAIN = range(2)  # uses: no page has two

_PAPERS = (
    (255, 255, 255),
    (255, 255, 255),
    (250, 244, 200),
    (20, 30, 120),
    (8, 8, 8),
    (220, 20, 30),
)
_LETTERS = list(string.ascii_letters + string.digits + "%&?!" + "     ")
_TALL = (14, 20, 32, 56, 96)  # HR pixels of a line


def page(side: int, number: int, seed: int, use: int) -> ByteArray:
    """A square page of (side, side, 3) bytes, another one for each number, seed and use.

    The first papers are those that broke INT8 most; of the others every second has any colour.
    Large letters matter: INT8 lost most along their outlines (docs/decisions/0010-qat.md).
    """
    rng = np.random.default_rng((seed, use, number))
    paper = np.array(_PAPERS[number % len(_PAPERS)])
    if number >= len(_PAPERS) and number % 2:
        paper = rng.integers(0, 256, 3)
    ink = 255 - paper if number % 3 else np.full(3, 255 * (paper.mean() < 128))
    sheet = np.broadcast_to(paper, (side, side, 3)).astype(np.uint8)
    ramp = np.linspace(0, 1, side)[:, None]
    sheet[-side // 9 :] = np.rint((1 - ramp) * paper + ramp * rng.integers(0, 256, 3))
    image = Image.fromarray(sheet)
    draw = ImageDraw.Draw(image)
    for shape in (draw.rectangle, draw.ellipse):
        left, top, wide, tall = rng.integers(side // 12, side // 2, 4).tolist()
        shape((left, top, left + wide, top + tall), fill=_colour(rng.choice([0, 255], 3)))
    _write(draw, side, _colour(ink), rng)
    return np.array(image)


def _write(
    draw: ImageDraw.ImageDraw, side: int, ink: tuple[int, ...], rng: np.random.Generator
) -> None:
    """Lines of letters down the page, each of a height of its own, half of them bold."""
    top = 0
    while top < side:
        tall = min(int(rng.choice(_TALL)), side // 3)
        left = int(rng.integers(-tall // 2, tall // 2 + 1))
        letters = "".join(rng.choice(_LETTERS, 3 * side // tall))
        bold = tall // 24 * int(rng.integers(2))
        font = ImageFont.load_default(tall)
        draw.text((left, top), letters, fill=ink, font=font, stroke_width=bold)
        top += tall * 5 // 4


def _colour(rgb: np.ndarray) -> tuple[int, ...]:
    return tuple(int(value) for value in rgb)
