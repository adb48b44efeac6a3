"""`--student auto` beside every net that it chooses among, each trained whole.

`python -m benchmarks.auto_search TEACHER --data PHOTOS --holdout IMAGES --budgets 12,40 --work DIR`

For each budget (ms, p90 on `cpu` in FP32 at --size) the nets of the grid that fit are timed, then
searched with a quarter of the steps that all of them whole would take, then all trained whole. Both
kinds of training have the same settings and photos, every fourth of PHOTOS by name. Quality is the
mean PSNR-Y of the centre crops of the first images of IMAGES, on which nothing is chosen. The same
command goes on where it was. It ends with 1 where a chosen net is 0.05 dB or more behind the best.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from mipkd.core.errors import MipkdError
from mipkd.core.folders import list_images
from mipkd.core.images import read_rgb, write_png
from mipkd.core.records import StudentSearch
from pipeline import caching
from pipeline.bench.host import describe_host
from pipeline.cli.terminal import set_logging
from pipeline.config import Config, load
from pipeline.context import RunContext, choose_targets
from pipeline.inputs import choose_patches, identify_nets, prepare_images
from pipeline.lr_only import find_lr_only
from pipeline.machine.base import connect
from pipeline.origin import commit
from pipeline.run import Run
from pipeline.stages.distill import DistillInputs, distill
from pipeline.student_latency import AutoTask, Timer
from pipeline.student_search import search_student

_BEHIND_DB, _SHARE = 0.05, 0.25  # the bounds: behind the best, of the steps of all whole
_SIDE = 256  # HR pixels of a crop that quality is measured on


def main() -> None:
    """Print a table a budget and write all figures to WORK/auto_search.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("teacher", type=Path)
    parser.add_argument("--data", type=Path, required=True, help="folder of photos")
    parser.add_argument("--holdout", type=Path, required=True, help="images to score")
    parser.add_argument("--budgets", required=True, help="milliseconds, separated by commas")
    parser.add_argument("--work", type=Path, required=True, help="folder for all that is made")
    parser.add_argument("--size", default="96x96", help="LR width x height")
    parser.add_argument("--steps", type=int, default=800, help="of a whole training")
    parser.add_argument("--every", type=int, default=4, help="photo that is used")
    parser.add_argument("--count", type=int, default=24, help="images to score")
    parser.add_argument("--set", action="append", default=[], help="any setting of a run")
    asked = parser.parse_args()
    set_logging(False)
    _choose_images(asked)
    found = []
    for budget in map(float, asked.budgets.split(",")):
        with connect(_config(asked, budget).device) as machine:
            one = _compare(_open(asked, budget, machine), asked.steps)
        found.append(one)
        _print(one)
    words = [Path(word).name if "/" in word else word for word in sys.argv[1:]]
    stated = {"commit": commit(), "host": describe_host().cpu, "command": words}
    (asked.work / "auto_search.json").write_text(json.dumps({**stated, "budgets": found}, indent=1))
    if not all(one["behind_db"] <= _BEHIND_DB and one["share"] <= _SHARE for one in found):
        raise SystemExit(1)


def _choose_images(asked: argparse.Namespace) -> None:
    """Links to the photos and crops of the hold-out, in the folder of the work."""
    photos, crops = asked.work / "photos", asked.work / "holdout"
    for folder in (photos, crops):
        folder.mkdir(parents=True, exist_ok=True)
    for file in list_images(asked.data)[:: asked.every]:
        link = photos / file.name
        if not link.exists():
            link.symlink_to(file.resolve())
    for file in list_images(asked.holdout)[: asked.count]:
        image = read_rgb(file)
        top, left = ((side - _SIDE) // 2 for side in image.shape[:2])
        crop = image[max(0, top) :, max(0, left) :][:_SIDE, :_SIDE]
        write_png(crops / f"{file.stem}.png", crop.copy())


def _config(asked: argparse.Namespace, budget_ms: float) -> Config:
    width, height = (int(side) for side in asked.size.split("x"))
    flags: dict[str, Any] = {
        "teacher": asked.teacher,
        "data": asked.work / "photos",
        "val": asked.work / "holdout",
        "student": "auto",
        "target": ("cpu",),
        "precision": ("fp32",),
        "gates": {"max_latency_ms": budget_ms, "size": (height, width)},
        "distill": {"steps": asked.steps, "batch": 4, "patch": 32, "precision": "fp32"},
    }
    return load(flags, sets=asked.set, folder=asked.work)


def _open(asked: argparse.Namespace, budget_ms: float, machine: Any) -> AutoTask:
    """What `run` prepares before it chooses a student."""
    config, run = _config(asked, budget_ms), Run((asked.work / "run").resolve())
    targets = choose_targets(config, machine)
    on = RunContext(config, run, machine, describe_host(), targets, find_lr_only(config))
    nets = identify_nets(on)
    assert nets.teacher is not None, "a teacher was given"
    images = prepare_images(config, run, nets, on.lr_only, config.distill.patch)
    patches = choose_patches(on, images)
    return AutoTask(on, nets.teacher, images, patches, {"student": config.distill})


def _compare(task: AutoTask, steps: int) -> dict[str, Any]:
    """The net that is chosen beside the best of those that it was chosen from."""
    timer = Timer(task)
    nets = [spec for family in timer.find_largest() for spec in family]
    config = task.on.config
    fit = config.fit.model_copy(update={"steps": int(_SHARE * steps * len(nets))})
    config = config.model_copy(update={"fit": fit})
    search = search_student(replace(task, on=replace(task.on, config=config)))
    assert search is not None, "nothing was only planned"
    whole = dict(_train_whole(task, nets))
    best = max(whole, key=lambda spec: whole[spec])
    return {
        "budget_ms": task.budget_ms,
        "size": task.size,
        "chosen": search.spec,
        "best": best,
        "behind_db": round(whole[best] - whole[search.spec], 4),
        "steps_searched": _count_steps(search),
        "steps_whole": steps * len(nets),
        "share": _count_steps(search) / (steps * len(nets)),
        "foretold_off_db": _how_far_off(search),
        "nets": [
            {
                "net": one.spec,
                "gmacs": round(one.gmacs, 2),
                "p90_ms": round(one.p90_ms["cpu"], 2),
                "rungs_db": [round(x, 3) for x in one.psnr_y_db],
                "foretold_db": [round(x, 3) for x in one.foretold_db],
                "whole_db": round(whole[one.spec], 3),
                "dropped": one.dropped,
            }
            for one in search.tried
            if one.spec in whole
        ],
        "rungs": search.rungs,
    }


def _train_whole(task: AutoTask, nets: list[str]) -> Iterator[tuple[str, float]]:
    """Each net with its PSNR-Y on the hold-out after all steps."""
    run, config = task.on.run, task.trainings["student"]
    images = task.images
    for spec in nets:
        subject = caching.Subject(run, task.teacher, spec, images.photos, images.tests)
        cache = caching.keep_teacher(subject, {"": config})[""]
        inputs = DistillInputs(config, task.teacher, spec, images.photos, images.tests, cache)
        try:
            yield spec, run.step(distill, inputs, label=spec).value.psnr_y_db
        except MipkdError as error:
            print(f"{spec}: {error.what}", file=sys.stderr)


def _count_steps(search: StudentSearch) -> int:
    """What all short trainings took together."""
    return sum(search.rungs[len(one.psnr_y_db) - 1] for one in search.tried if one.psnr_y_db)


def _how_far_off(search: StudentSearch) -> list[float]:
    """Foretold less what came, dB, of each net at each rung that it was foretold for."""
    return [
        round(before - after, 3)
        for one in search.tried
        for before, after in zip(one.foretold_db, one.psnr_y_db[1:], strict=False)
    ]


def _print(one: dict[str, Any]) -> None:
    print(f"\nbudget {one['budget_ms']:g} ms: chosen {one['chosen']}, best {one['best']}, ", end="")
    print(f"{one['behind_db']:.3f} dB behind, {one['share']:.2f} of the steps\n")
    print("| Net | p90 ms | dB after each rung | foretold | dB whole | |")
    print("|---|---:|---|---|---:|---|")
    for net in one["nets"]:
        rungs, foretold = (
            ", ".join(f"{x:.2f}" for x in net[name]) for name in ("rungs_db", "foretold_db")
        )
        print(
            f"| {net['net']} | {net['p90_ms']:.2f} | {rungs} | {foretold} | {net['whole_db']:.3f} "
            f"| {net['dropped'] or 'chosen'} |"
        )


if __name__ == "__main__":
    try:
        main()
    except MipkdError as error:
        sys.exit(f"error: {error.what}\nhint: {error.hint}")
