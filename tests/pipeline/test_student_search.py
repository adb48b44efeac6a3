"""`--student auto`: few timings find what fits a budget, short trainings the best of it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from random import Random

import numpy as np
import pytest
import torch
from report_case import EvidenceOf

from mipkd.archs import edsr
from mipkd.archs.base import load_arch
from mipkd.core.errors import UnsupportedError
from mipkd.core.images import resize_bicubic, write_png
from mipkd.core.records import Model, StudentSearch
from mipkd.distill.student import find_sizes
from mipkd.distill.teacher import save
from pipeline.bench.host import describe_host
from pipeline.config import load
from pipeline.context import RunContext, choose_targets
from pipeline.inputs import choose_patches, identify_nets, prepare_images
from pipeline.lr_only import find_lr_only
from pipeline.machine.base import connect
from pipeline.report.results_file import RESULTS, read_results, report_folder
from pipeline.report.student_table import describe_search, student_table
from pipeline.report.write import write
from pipeline.run import Run
from pipeline.student_grid import Grid, find_largest, grids_for
from pipeline.student_latency import AutoTask
from pipeline.student_search import foretell, rung_ends, search_student

GRID = Grid("edsr", (1, 2, 3, 4, 5), (1, 2, 3, 4))
NETS = ("edsr:c8b1", "compact:c8b1", "edge:c8b2")


@pytest.mark.parametrize("seed", range(20))
def test_the_walk_finds_what_trying_all_sizes_finds(seed: int) -> None:
    rng = Random(seed)
    deepest, reach = {}, 0
    for width in reversed(GRID.widths):  # a narrower net may be as deep, or deeper
        deepest[width] = reach = rng.randint(reach, len(GRID.depths))
    room = {GRID.spec(w, d): d <= deepest[w] for w in GRID.widths for d in GRID.depths}
    asked = []
    found = find_largest(GRID, lambda spec: asked.append(spec) or room[spec])  # type: ignore[func-returns-value]
    largest = [
        GRID.spec(w, d)
        for w in reversed(GRID.widths)
        for d in GRID.depths
        if d == deepest[w] and not room.get(GRID.spec(w + 1, d), False)
    ]
    assert found == largest
    assert len(set(asked)) == len(asked) < len(GRID.widths) + len(GRID.depths)


def test_every_size_of_the_grids_is_one_of_its_family() -> None:
    for name in ("rcan", "swinir", "imdn", "lkdn"):
        arch = load_arch(name)
        teacher = Model("teacher", Path(), "", name, vars(arch.paper(2)), 2, "", {}, 1, 1.0)
        grids = grids_for(teacher)
        assert [grid.family for grid in grids][-1] == name
        for grid in grids:
            sizes = [
                repr(find_sizes(teacher, grid.spec(width, depth))[1])
                for width in grid.widths
                for depth in grid.depths
            ]
            assert len(set(sizes)) == len(grid.widths) * len(grid.depths)


@pytest.mark.parametrize("nets", range(2, 14))
def test_rungs_share_the_steps_and_the_last_has_two_nets(nets: int) -> None:
    ends = rung_ends(10_000, nets)
    left, at, taken = nets, 0, []
    for end in ends:
        taken.append((end - at) * left)
        assert left >= 2
        at, left = end, -(-left // 2)
    assert left == 1
    assert sum(taken) <= 10_000
    assert max(taken) - min(taken) <= nets
    assert rung_ends(10_000, 1) == ()
    assert rung_ends(1, 8) == (1, 2, 3)  # a step each at least


def test_each_doubling_is_foretold_to_bring_less_in_the_same_ratio() -> None:
    steps = [0, 25, 50, 100, 200, 400, 800, 1600]
    saturating = [0.0, *(35 - 4 * 0.6**n for n in range(7))]
    for seen in (4, 5, 6):
        for at in (6, 7):
            foretold = foretell(steps[:seen], saturating[:seen], steps[at])
            assert foretold == pytest.approx(saturating[at])


def test_a_curve_that_falls_or_begins_is_foretold_with_care() -> None:
    assert foretell([0, 100], [10.0, 30.0], 400) == 30  # a point alone has no direction
    assert foretell([0, 50, 100, 200], [9.0, 29.0, 30.0, 29.9], 400) == 29.9
    early = foretell([0, 50, 100, 200], [9.0, 10.0, 15.0, 25.0], 400)
    assert early == pytest.approx(25 + 0.8 * 10)  # and no more, however steep
    assert foretell([0, 50, 100, 200], [9.0, 10.0, 15.0, 25.0], 200) == 25


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Photos, test images and a teacher."""
    home, rng = tmp_path_factory.mktemp("given"), np.random.default_rng(0)
    for folder, count in (("photos", 5), ("val", 2)):
        (home / folder).mkdir()
        for number in range(count):
            coarse = rng.integers(0, 256, (12, 12, 3), dtype=np.uint8)
            write_png(home / folder / f"{number}.png", resize_bicubic(coarse, (96, 96)))
    torch.manual_seed(0)
    hyper = edsr.Hyper(scale=2, channels=16, blocks=2)
    save(edsr.EDSR(hyper), edsr.ARCH, hyper, home / "teacher.safetensors", licence="CC0-1.0")
    return home


@contextmanager
def opened(
    given: Path, root: Path, *sets: str, budget_ms: float = 1e4, run: Run | None = None
) -> Iterator[AutoTask]:
    """All that a run of `--student auto` has before it chooses."""
    config = load(
        {
            "teacher": given / "teacher.safetensors",
            "data": given / "photos",
            "val": given / "val",
            "student": "auto",
            "target": ("cpu",),
            "precision": ("fp32",),
            "gates": {"max_latency_ms": budget_ms, "size": (16, 16)},
            "distill": {"steps": 60, "batch": 2, "patch": 16, "threads": 1, "device": "cpu"},
            "identify": {"accept_worse_than_bicubic": True},
            "calibrate": {"count": 4, "size": 16},
            "quantize": {"photos": 4, "pages": 0, "crop": 24},
            "fit": {"candidates": NETS, "steps": 24},
        },
        sets=sets,
        folder=given,
    )
    with connect(config.device) as machine:
        run = run or Run(root)
        targets = choose_targets(config, machine)
        on = RunContext(config, run, machine, describe_host(), targets, find_lr_only(config))
        nets = identify_nets(on)
        assert nets.teacher is not None
        images = prepare_images(config, run, nets, on.lr_only, config.distill.patch)
        patches = choose_patches(on, images)
        yield AutoTask(on, nets.teacher, images, patches, {"student": config.distill})


def said(found: StudentSearch | None) -> tuple[object, ...]:
    """All of it that the machine's pace does not change."""
    assert found is not None
    tried = {one.spec: replace(one, p90_ms={}) for one in found.tried}
    return found.spec, found.rungs, found.steps, tried


class Stopped(Run):
    """A run that is killed as its second net of the second rung begins."""

    def _make(self, stage, inputs, folder, asked, label):  # type: ignore[no-untyped-def]
        if stage.name == "rung" and label.endswith(" 2") and self.labels("rung", " 2"):
            raise KeyboardInterrupt
        return super()._make(stage, inputs, folder, asked, label)

    def labels(self, stage: str, end: str = "") -> list[str]:
        made = [one for one in self.events if one.stage == stage and one.record is not None]
        return [one.label for one in made if one.label.endswith(end)]


@pytest.fixture(scope="module")
def searched(given: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, StudentSearch]:
    """A search that was killed and went on."""
    root = tmp_path_factory.mktemp("searched") / "run"
    with (
        opened(given, root, run=Stopped(root)) as task,
        pytest.raises(KeyboardInterrupt),
    ):
        search_student(task)
    with opened(given, root) as task:
        found = search_student(task)
    assert found is not None
    by_stage = {(one.stage, one.remembered) for one in task.on.run.events}
    assert ("fit", False) not in by_stage
    made = [one for one in task.on.run.events if one.stage == "rung" and not one.remembered]
    assert len(made) == 1
    return root, found


def test_half_of_the_nets_go_on_until_one_is_left(searched: tuple[Path, StudentSearch]) -> None:
    _, found = searched
    assert {one.spec for one in found.tried} == set(NETS)
    assert found.rungs == (4, 10)  # 24 steps: 3 nets to step 4, 2 of them to step 10
    chosen, second, third = found.tried
    assert chosen.spec == found.spec
    assert chosen.dropped == ""
    assert [len(one.psnr_y_db) for one in found.tried] == [2, 2, 1]
    assert chosen.foretold_db[-1] >= second.foretold_db[-1]
    assert second.dropped.startswith("rung 2: ")
    assert third.dropped.startswith("rung 1: ")
    assert all(0 < one.p90_ms["cpu"] < 1e4 for one in found.tried)


def test_a_search_that_was_killed_chooses_as_one_that_was_not(
    searched: tuple[Path, StudentSearch], given: Path, tmp_path: Path
) -> None:
    root, found = searched
    shutil.copytree(root, tmp_path / "run", ignore=shutil.ignore_patterns("rung"))
    with opened(given, tmp_path / "run") as task:
        assert said(search_student(task)) == said(found)
    made = [one.stage for one in task.on.run.events if not one.remembered]
    assert made == ["rung"] * 5


def test_another_budget_times_nothing_anew(
    searched: tuple[Path, StudentSearch], given: Path
) -> None:
    root, before = searched
    with opened(given, root, budget_ms=2e4) as task:
        assert said(search_student(task)) == said(before)
    assert all(one.remembered for one in task.on.run.events)
    with (
        opened(given, root, budget_ms=1e-3) as task,
        pytest.raises(UnsupportedError, match=r"a p90 of 0.001 ms at LR 16x16: the quickest, \w+:"),
    ):
        search_student(task)


def test_a_plan_says_how_many_nets_and_steps_there_are(
    searched: tuple[Path, StudentSearch], given: Path, tmp_path: Path
) -> None:
    new = Run(tmp_path / "run", dry=True, scratch=tmp_path / "scratch")
    with opened(given, tmp_path, "fit.candidates=[]", run=new) as task:
        assert search_student(task) is None
    notes = " | ".join(one.note for one in new.events if one.stage in ("fit", "rung"))
    assert "of 79 nets, to see which keep 10000 ms at LR 16x16" in notes
    assert "up to 12 nets, 24 steps together" in notes
    again = Run(searched[0], dry=True, scratch=tmp_path / "scratch")
    with opened(given, searched[0], "fit.steps=48", run=again) as task:
        assert search_student(task) is None
    todo = [(one.stage, one.note) for one in again.events if not one.remembered]
    assert [stage for stage, _ in todo] == ["rung"] * 4
    assert todo[-1][1] == "1 more rungs, 24 steps together"


def test_the_report_tells_each_net_and_why_it_went(searched: tuple[Path, StudentSearch]) -> None:
    _, found = searched
    table = student_table(found)
    assert table.head[:3] == ["Net", "GMACs", "p90 ms, cpu"]
    assert all(len(row.cells) == len(table.head) for row in table.rows)
    assert [row.cells[0] for row in table.rows] == [one.spec for one in found.tried]
    assert table.rows[0].cells[-1] == "chosen"
    assert f"({found.tried[0].foretold_db[0]:.2f})" in table.rows[0].cells[4]
    assert "24 training steps together" in describe_search(found)
    alone = replace(found, rungs=(), tried=found.tried[:1])
    assert "nothing was trained to choose it" in describe_search(alone)


def test_the_report_of_a_run_has_that_table(
    searched: tuple[Path, StudentSearch], tmp_path: Path
) -> None:
    _, found = searched
    evidence = replace(EvidenceOf(tmp_path / "run").evidence, search=found)
    page = write(evidence, report_folder(tmp_path / "run"))
    for file in (page, page.with_name("report.md")):
        text = file.read_text()
        assert "24 training steps together" in text
        assert all(one.spec in text for one in found.tried)
    assert read_results(page.with_name(RESULTS)).search == found
