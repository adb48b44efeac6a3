"""What every architecture of spandrel does here: is read, teaches, exports.

`python -m benchmarks.spandrel_teachers [NAME ...]`: small nets with random weights go through a
file, as a user's checkpoint. The rows go to docs/results/teachers/teachers.jsonl, in the place of
older ones of the same names, and docs/teachers.md is made of all rows.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.spandrel_nets import RESTORERS, SUPER_RESOLUTION, list_scales, write_checkpoint
from benchmarks.teachers_page import STEPS, write_page
from mipkd.archs.base import SRNet
from mipkd.core.errors import MipkdError
from mipkd.core.records import Model, TestSet
from mipkd.distill import student as students
from mipkd.distill import teacher as teachers
from mipkd.distill.batch import Batch
from mipkd.distill.data import prepare_photos, prepare_tests
from mipkd.distill.patch_sampler import PatchSampler
from mipkd.distill.settings import DistillConfig
from mipkd.distill.teacher import TeacherOptions, identify
from mipkd.distill.train_step import Learner
from mipkd.export.parity import levels_apart
from mipkd.losses.base import TeacherPass
from pipeline.stage import ready
from pipeline.stages.export import ExportConfig, ExportInputs, export

ALLOWED = 1  # levels of 255 that a graph may be from its net
ROWS = Path(__file__).parents[1] / "docs/results/teachers/teachers.jsonl"
_STUDENT = "compact:c16b4"
_TAUGHT_AT = (2, 4, 3)  # the first of these scales that the architecture has
_ASIS = TeacherOptions()


@dataclass(frozen=True)
class Lesson:
    """What a teacher is asked for in every step, and the student's learning rate."""

    losses: tuple[dict[str, Any], ...]
    rate: float


_PRIOR = {"name": "mixture_of_priors", "mask_ratio": 1.0, "block_weight": 0.0, "until": 1.0}
IMAGE = Lesson(({"name": "logits"},), 2e-3)
# The prior's encoder starts fitted to the student's features, which greater steps undo at first.
FEATURES = Lesson((*IMAGE.losses, _PRIOR), 2e-4)


def main() -> None:
    """Write a row a net, and the page; exit code 1 if a net that exports differs."""
    known = {**SUPER_RESOLUTION, **RESTORERS}
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(known)}")
    parser.add_argument("--page", action="store_true", help="only make the page of the rows")
    parser.add_argument("--lessons", action="store_true", help="export nothing: keep what is known")
    asked = parser.parse_args()
    rows = {row["name"]: row for row in map(json.loads, ROWS.read_text().splitlines())}
    for name in [] if asked.page else asked.names or known:
        rows[name] = examine(name, rows.get(name, {}) if asked.lessons else None)
        print(json.dumps(rows[name]), flush=True)
        text = "".join(json.dumps(rows[one]) + "\n" for one in known if one in rows)
        ROWS.write_text(text)
    write_page(list(rows.values()))
    sys.exit(any((row.get("levels") or 0) > ALLOWED for row in rows.values()))


def examine(name: str, known: dict[str, Any] | None = None) -> dict[str, Any]:
    """The row of one net; what is `known` of its graph is taken from an older row."""
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of spandrel's nets
        if name in RESTORERS:
            found = _examine_restorer(name, Path(folder))
        else:
            found = _examine(name, Path(folder), known)
    return {"name": name, **found, "seconds": round(time.perf_counter() - start, 1)}


def _examine_restorer(name: str, out: Path) -> dict[str, Any]:
    file = write_checkpoint(name, 1, out / "net.pth")
    return {"refused": _why_not(lambda: identify(file, role="teacher", options=_ASIS))}


def _examine(name: str, out: Path, known: dict[str, Any] | None) -> dict[str, Any]:
    read, refused = _read_scales(name, out)
    if not read:
        return {"refused": refused}
    scale = next((one for one in _TAUGHT_AT if one in read), max(read))
    file = write_checkpoint(name, scale, out / "net.pth")
    model, net = identify(file, role="teacher", options=_ASIS)
    found = {"scales": read, "at": scale, "blocks": _describe_blocks(net)}
    if refused:
        found["refused_scales"] = refused
    for name_of_it, lesson in {"image": IMAGE, "features": FEATURES}.items():
        if lesson is IMAGE or net.blocks:
            found[name_of_it] = _try(lambda lesson=lesson: teach(model, net, lesson, out))
    found["levels"], found["why_no_graph"] = None, "not tried"
    if known is not None:
        return found | {key: known[key] for key in ("levels", "why_no_graph") if key in known}
    why = _why_not(lambda: found.update(levels=count_levels(model, out)))
    return found | {"why_no_graph": why}


def _read_scales(name: str, out: Path) -> tuple[list[int], str]:
    """The scales at which our reader takes the net, and the first reason why not at another."""
    read, refused = list[int](), ""
    for scale in list_scales(name):
        try:
            file = write_checkpoint(name, scale, out / f"x{scale}.pth")
        except Exception:  # the class has no such scale
            continue
        why = _why_not(lambda file=file, scale=scale: _check_read(file, scale))
        if why and scale > 1:
            refused = refused or f"x{scale}: {why}"
        elif not why:
            read.append(scale)
    return read, refused


def _check_read(file: Path, scale: int) -> None:
    """Refuse what is read as another scale, or does not take images of odd sizes."""
    model, net = identify(file, role="teacher", options=_ASIS)
    if model.scale != scale:
        raise MipkdError(f"its file reads as x{model.scale}")
    with torch.inference_mode():
        shape = tuple(net(torch.rand(1, 3, 37, 45)).shape)
    if shape != (1, 3, 37 * scale, 45 * scale):
        raise MipkdError(f"an image of 45x37 gives one of {shape[3]}x{shape[2]}")


def _describe_blocks(net: SRNet) -> str:
    return f"{len(net.blocks)} of {net.width} channels" if net.blocks else "none of one size"


@dataclass(frozen=True)
class _OneBatch:
    """The same patches at each step, so that the losses of steps can be compared."""

    patches: Batch

    def batch(self, step: int, wants: TeacherPass = "none") -> Batch:
        return self.patches


def teach(
    model: Model, net: SRNet, lesson: Lesson, out: Path, *, steps: int = STEPS
) -> dict[str, list[float]]:
    """Each term of the loss at the first and at the last step.

    Raises:
        StageError: one is not finite.
    """
    patch = max(32, -(-net.least // 16) * 16)
    sampler = PatchSampler(
        prepare_photos(None, scale=model.scale, patch=patch, out=out), patch=patch, batch=4, seed=0
    )
    arch, hyper = students.choose_without_teacher(_STUDENT, model.scale)
    torch.manual_seed(0)
    config = DistillConfig(
        losses=lesson.losses,
        steps=steps,
        batch=4,
        patch=patch,
        init="random",
        lr=lesson.rate,
        warmup=0.0,
    )
    learner = Learner(config, arch.make(hyper), net)
    terms = [learner.advance(_OneBatch(sampler.batch(0))) for _ in range(steps)]
    return {term: [round(one[term], 5) for one in (terms[0], terms[-1])] for term in terms[0]}


def count_levels(model: Model, out: Path) -> int:
    """By how many levels of 255 the exported graph is from the net, on noise of odd sizes."""
    folder = out / "graph"
    folder.mkdir()
    tests: TestSet = prepare_tests(None, scale=model.scale, out=folder)
    inputs = ExportInputs(ExportConfig(parity_images=1), ready(model), None, ready(tests))
    return levels_apart(teachers.load(model).eval(), export.function(inputs, out=folder))


def _try(work: Callable[[], Any]) -> Any:
    """What it gives, or in words why it gives nothing."""
    found: list[Any] = []
    why = _why_not(lambda: found.append(work()))
    return why or found[0]


def _why_not(work: Callable[[], Any]) -> str:
    """Why it cannot be done, in one line; "" if it can."""
    try:
        work()
    except MipkdError as error:
        return error.what.rpartition(".pth: ")[2][:300]
    except Exception as error:
        traceback.print_exc()
        return f"{type(error).__name__}: {error}".splitlines()[0][:300]
    return ""


if __name__ == "__main__":
    main()
