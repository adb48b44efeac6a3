"""Drawn pages: lines of strokes as of text, flat boxes, gradients, on paper of one colour.

Photos of nature hold few white pages with dark strokes and few flat saturated colours, on which
INT8 of SR nets breaks first: so what it is trained for and judged on has some that are drawn.
"""

from __future__ import annotations

import numpy as np

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


def page(side: int, number: int, seed: int, use: int) -> ByteArray:
    """A square page: paper of one colour, lines of strokes as of text, a flat box, a gradient.

    The first papers are those that broke INT8 most; of the others every second has any colour.
    """
    rng = np.random.default_rng((seed, use, number))
    paper = np.array(_PAPERS[number % len(_PAPERS)], np.float64)
    if number >= len(_PAPERS) and number % 2:
        paper = rng.integers(0, 256, 3).astype(np.float64)
    ink = 255 - paper if number % 3 else np.zeros(3) + (paper.mean() < 128) * 255
    sheet = np.broadcast_to(paper, (side, side, 3)).copy()
    box, top = side // 3, int(rng.integers(side // 2))
    sheet[top : top + box // 2, side - box :] = rng.choice([0, 255], 3)
    ramp = np.linspace(0, 1, side)[None, :, None]
    sheet[-box // 3 :] = (1 - ramp) * paper + ramp * rng.integers(0, 256, 3)
    tall = 10 + 4 * (number % 3)  # HR pixels of a letter
    for line in range(tall, side - tall, 2 * tall):
        _write(sheet, line, tall, ink, rng)
    return np.rint(sheet).astype(np.uint8)


def _write(
    sheet: np.ndarray, top: int, tall: int, ink: np.ndarray, rng: np.random.Generator
) -> None:
    """A line of letters: each some upright, level and slanting strokes."""
    left, thick = tall, max(2, tall // 6)
    while left < sheet.shape[1] - 2 * tall:
        if rng.random() < 0.8:
            for stroke in rng.choice(4, 3, replace=False):
                _stroke(sheet[top : top + tall, left : left + tall], int(stroke), thick, ink)
        left += tall + thick


def _stroke(cell: np.ndarray, kind: int, thick: int, ink: np.ndarray) -> None:
    wide = cell.shape[1] * 3 // 4
    if kind == 0:
        cell[:, :thick] = ink
    elif kind == 1:
        cell[:thick, :wide] = ink
    elif kind == 2:
        middle = cell.shape[0] // 2
        cell[middle : middle + thick, :wide] = ink
    else:
        for row in range(cell.shape[0]):
            start = row * (wide - thick) // cell.shape[0]
            cell[row, start : start + thick] = ink
