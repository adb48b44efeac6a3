"""docs/teachers.md, made of the rows of `python -m benchmarks.spandrel_teachers`."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from mipkd.distill.spandrel_reader import import_spandrel

PAGE = Path(__file__).parents[1] / "docs/teachers.md"
STEPS = 20  # that each net teaches
Row = dict[str, Any]

_HEAD = """\
# Teachers that spandrel reads

Made by `python -m benchmarks.spandrel_teachers` with spandrel {spandrel} and torch {torch}; do not
edit. Figures: [teachers.jsonl](results/teachers/teachers.jsonl).

Every architecture in spandrel's registry, as a small net with random weights that goes through a
file as a user's checkpoint does. It says that an architecture works, not how good anybody's weights
are.

- **Scales**: those at which our reader takes it and an image of 45x37 gives one of the right size.
  Nets of x1 are refused.
- **Image**: L1 between the image of a `compact:c16b4` student and the teacher's, on one batch of
  photos, at the first and at the {steps}th step.
- **Blocks**: found by a trial run. **Features**: L1 of the feature prior on them, beside the image,
  at the same steps (learning rate 2e-4; of the image alone 2e-3). A teacher without blocks of one
  size teaches by its image alone.
- **ONNX**: by how many levels of 255 the exported graph, in ONNX Runtime, is from torch on noise of
  three odd sizes; or the number of the reason, below, why there is none. Such a teacher teaches all
  the same: its graph is needed only to compare speeds, and
  `--set gates.min_speedup_over_teacher=off` goes without.

| Architecture | Scales | Image | Blocks | Features | ONNX |
|---|---|---|---|---|---|
"""
_END = """
## Restorers and others, refused

Restorers give an image of the size that they take, and have nothing to teach a student of
super-resolution. What the reader says:

| Architecture | Refused as |
|---|---|
{refused}

## Of others

`spandrel_extra_arches` 0.2.0 has two more for super-resolution, SRFormer and FeMaSR. spandrel's
authors keep it apart because the code in it is licensed for non-commercial use (FeMaSR's is
copyleft as well). It is no extra of ours, and no architecture of it is read: what is learnt from
such a teacher would often be shipped.
"""


def write_page(rows: Sequence[Row], page: Path = PAGE) -> None:
    """Write the page."""
    spandrel = import_spandrel().__version__
    said = _HEAD.format(spandrel=spandrel, torch=torch.__version__, steps=STEPS)
    teachers = [row for row in rows if "scales" in row]
    why_no_graph = list(dict.fromkeys(filter(None, map(_say_why, teachers))))
    said += "".join(_line(cells) for cells in _teachers(teachers, why_no_graph))
    said += "".join(f"\n{number}. {why}" for number, why in enumerate(why_no_graph, 1))
    unread = [
        _name(row) + " " + row["refused_scales"] for row in teachers if "refused_scales" in row
    ]
    said += f"\n\nNot read at a scale that its class has: {'; '.join(unread)}.\n" if unread else ""
    refused = [_line([_name(row), row["refused"]]) for row in rows if "refused" in row]
    page.write_text(said + "\n" + _END.format(refused="".join(refused).rstrip()))


def _teachers(rows: Sequence[Row], reasons: Sequence[str]) -> Iterator[list[str]]:
    for row in rows:
        why = _say_why(row)
        graph = f"no ({reasons.index(why) + 1})" if why else str(row["levels"])
        scales = " ".join(f"x{scale}" for scale in row["scales"])
        image, features = _lesson(row["image"], "logits"), _lesson(row.get("features"), "feature")
        yield [_name(row), scales, image, row["blocks"], features, graph]


def _say_why(row: Row) -> str:
    """Why there is no graph: of two exporters the newer one's reason."""
    why: str = row["why_no_graph"]
    return why.split("; ")[0].removeprefix("export: ")


def _lesson(found: dict[str, list[float]] | str | None, term: str) -> str:
    """A term of the loss, first and last."""
    if not isinstance(found, dict):
        return found or "-"
    first, last = found[term]
    assert all(map(math.isfinite, (first, last)))
    return f"{first:.3g} to {last:.3g}"


def _name(row: Row) -> str:
    family, _, kind = row["name"].partition(".")
    return kind if family == kind else f"{family}: {kind}"


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |\n"
