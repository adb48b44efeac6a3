"""Steps are remembered by what they depend on, and nothing half-done is taken for whole."""

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from mipkd.core.errors import StageError, UsageError
from pipeline.run import Run, hash_file
from pipeline.stage import NotInKey, Ref, Source, stage

ROOT = Path(__file__).parents[2]

calls: list[str] = []


@dataclass(frozen=True)
class Made:
    file: Path
    text: str


@dataclass(frozen=True)
class ShoutInputs:
    config: dict[str, str]
    source: Source


@dataclass(frozen=True)
class DoubleInputs:
    made: Ref[Made]


@dataclass(frozen=True)
class Nothing:
    pass


@stage(version=1)
def shout(inputs: ShoutInputs, *, out: Path) -> Made:
    calls.append("shout")
    text = inputs.source.path.read_text().upper() + inputs.config["end"]
    (out / "loud.txt").write_text(text)
    return Made(out / "loud.txt", text)


@stage(version=1)
def double(inputs: DoubleInputs, *, out: Path) -> Made:
    calls.append("double")
    made = inputs.made.value
    (out / "twice.txt").write_text(made.file.read_text() * 2)
    return Made(out / "twice.txt", made.text * 2)


@stage(version=1)
def full(inputs: Nothing, *, out: Path) -> Made:
    raise OSError(28, "No space left on device", str(out / "big"))


@stage(version=1, resumes=True)
def stubborn(inputs: Nothing, *, out: Path) -> Made:
    mark = out / "half"
    if not mark.exists():
        mark.write_text("")
        raise KeyboardInterrupt
    return Made(mark, "resumed")


@stage(version=1, retry_if=lambda made: made.text == "spoilt")
def delicate(inputs: Nothing, *, out: Path) -> Made:
    calls.append("delicate")
    return Made(out, "spoilt" if calls.count("delicate") == 1 else "fine")


@pytest.fixture
def source(tmp_path: Path) -> Source:
    calls.clear()
    (tmp_path / "in.txt").write_text("a")
    return Source(tmp_path / "in.txt", hash_file(tmp_path / "in.txt"))


def both(root: Path, source: Source, end: str = "!", dry: bool = False) -> Run:
    run = Run(root, dry=dry)
    double_of = run.step(double, DoubleInputs(run.step(shout, ShoutInputs({"end": end}, source))))
    if not dry:
        assert double_of.value.file.read_text() == double_of.value.text
    return run


def test_a_second_run_remembers_every_step(tmp_path: Path, source: Source) -> None:
    both(tmp_path / "run", source)
    again = both(tmp_path / "run", source)
    assert calls == ["shout", "double"]
    assert [e.remembered for e in again.events] == [True, True]


def test_a_spoilt_record_is_used_and_made_anew_the_next_time(tmp_path: Path) -> None:
    calls.clear()
    found = []
    for _ in range(3):
        run = Run(tmp_path / "run")
        found.append((run.step(delicate, Nothing()).value.text, run.events[0].why))
    assert found == [
        ("spoilt", "not yet run"),
        ("fine", "what was measured cannot be used"),
        ("fine", "remembered"),
    ]


def test_a_changed_setting_redoes_what_follows_and_says_why(tmp_path: Path, source: Source) -> None:
    both(tmp_path / "run", source)
    plan = both(tmp_path / "run", source, end="?", dry=True)
    assert [e.why for e in plan.events] == [
        'changed: config.end "!" -> "?"',
        "changed: made",
    ]
    assert calls == ["shout", "double"]


def test_a_photo_that_changed_is_named_by_its_place(tmp_path: Path, source: Source) -> None:
    both(tmp_path / "run", source)
    source.path.write_text("b")
    plan = both(tmp_path / "run", Source(source.path, hash_file(source.path)), dry=True)
    assert plan.events[0].why == "changed: source"


def test_what_is_not_in_the_key_changes_nothing(tmp_path: Path) -> None:
    @dataclass(frozen=True)
    class Helped:
        by: NotInKey[str]

    @stage(version=1)
    def helped(inputs: Helped, *, out: Path) -> str:
        return inputs.by.value

    run = Run(tmp_path)
    assert run.step(helped, Helped(NotInKey("one"))).value == "one"
    assert run.step(helped, Helped(NotInKey("other"))).value == "one"
    again = run.step(helped, Helped(NotInKey("other")), depends_on={"runtime": "2.0"})
    assert again.value == "other"


@pytest.mark.parametrize(
    ("inputs", "wrong"),
    [
        ("settings, teacher, None, photos, tests", ""),
        ("settings, teacher, None, tests, photos", 'expected "Ref[Photos]"'),
        ("settings, None, None, photos, tests", 'expected "Ref[Model]"'),
        ("export, teacher, None, photos, tests", 'expected "DistillConfig"'),
    ],
)
def test_a_type_checker_sees_wrong_inputs(tmp_path: Path, inputs: str, wrong: str) -> None:
    """The main path is typed end to end: swapped inputs do not wait for hours of training."""
    file = tmp_path / "flow.py"
    file.write_text(
        f"""
from mipkd.core.records import Distilled, Model, Photos, TestSet
from mipkd.distill.settings import DistillConfig
from pipeline.run import Run
from pipeline.stage import Ref
from pipeline.stages.distill import DistillInputs, distill
from pipeline.stages.export import ExportConfig


def train(
    run: Run,
    settings: DistillConfig,
    export: ExportConfig,
    teacher: Ref[Model],
    photos: Ref[Photos],
    tests: Ref[TestSet],
) -> Distilled:
    return run.step(distill, DistillInputs({inputs})).value
"""
    )
    options = ["--strict", "--cache-dir", str(ROOT / ".mypy_cache" / "typed")]
    found = subprocess.run(
        [sys.executable, "-m", "mypy", *options, str(file)],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert (found.returncode == 0) == (wrong == ""), found.stdout
    assert wrong in found.stdout


def test_a_file_enters_by_its_content_not_its_place(tmp_path: Path, source: Source) -> None:
    both(tmp_path / "run", source)
    moved = source.path.rename(tmp_path / "elsewhere.txt")
    both(tmp_path / "run", Source(moved, hash_file(moved)))
    assert calls == ["shout", "double"]


def test_a_run_can_be_moved(tmp_path: Path, source: Source) -> None:
    both(tmp_path / "run", source)
    (tmp_path / "run").rename(tmp_path / "moved")
    both(tmp_path / "moved", source)
    assert calls == ["shout", "double"]


def test_a_failure_is_never_remembered(tmp_path: Path) -> None:
    run = Run(tmp_path)
    for _ in range(2):
        with pytest.raises(StageError, match="no space left on the disk"):
            run.step(full, Nothing())
    events = [json.loads(x)["event"] for x in (tmp_path / "journal.jsonl").read_text().splitlines()]
    assert events == ["start", "failed", "start", "failed"]


def test_a_resuming_stage_finds_what_it_left(tmp_path: Path) -> None:
    run = Run(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        run.step(stubborn, Nothing())
    plan = Run(tmp_path, dry=True)
    plan.step(stubborn, Nothing())
    assert plan.events[0].why == "was interrupted, goes on where it was"
    assert run.step(stubborn, Nothing()).value.text == "resumed"


def test_a_planned_step_writes_nothing(tmp_path: Path, source: Source) -> None:
    both(tmp_path / "run", source, dry=True)
    assert not (tmp_path / "run").exists()


def test_two_runs_cannot_share_a_folder(tmp_path: Path) -> None:
    other = (
        "import sys; from pathlib import Path; from pipeline.run import Run\n"
        "with Run(Path(sys.argv[1])).lock():\n"
        "    print('held', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", other, str(tmp_path)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with (
            pytest.raises(UsageError, match=f"in use by another run .process {holder.pid}"),
            Run(tmp_path).lock(),
        ):
            pass
    with Run(tmp_path).lock():
        pass


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="cannot write to"), Run(tmp_path / "file/run").lock():
        pass


def test_receipts_note_warnings_and_time(tmp_path: Path) -> None:
    import logging

    @stage(version=1)
    def warns(inputs: Nothing, *, out: Path) -> Made:
        logging.getLogger("mipkd.test").warning("two photos were skipped")
        return Made(out, "")

    run = Run(tmp_path)
    run.step(warns, Nothing())
    receipt = run.receipts()["warns"]
    assert receipt.warnings == ("two photos were skipped",)
    assert receipt.seconds >= 0
