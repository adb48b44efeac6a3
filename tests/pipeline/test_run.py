"""Steps are remembered by what they depend on, and nothing half-done is taken for whole."""

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from mipkd.core.errors import StageError, UsageError
from pipeline.run import Run, Source, hash_file, stage

calls: list[str] = []


@dataclass(frozen=True)
class Made:
    file: Path
    text: str


@stage(version=1)
def shout(config: dict[str, str], source: Source, out: Path) -> Made:
    calls.append("shout")
    text = source.path.read_text().upper() + config["end"]
    (out / "loud.txt").write_text(text)
    return Made(out / "loud.txt", text)


@stage(version=1)
def double(config: None, made: Made, out: Path) -> Made:
    calls.append("double")
    (out / "twice.txt").write_text(made.file.read_text() * 2)
    return Made(out / "twice.txt", made.text * 2)


@stage(version=1)
def full(config: None, out: Path) -> Made:
    raise OSError(28, "No space left on device", str(out / "big"))


@stage(version=1, resumes=True)
def stubborn(config: None, out: Path) -> Made:
    mark = out / "half"
    if not mark.exists():
        mark.write_text("")
        raise KeyboardInterrupt
    return Made(mark, "resumed")


@stage(version=1, again=lambda made: made.text == "spoilt")
def delicate(config: None, out: Path) -> Made:
    calls.append("delicate")
    return Made(out, "spoilt" if calls.count("delicate") == 1 else "fine")


@pytest.fixture
def source(tmp_path: Path) -> Source:
    calls.clear()
    (tmp_path / "in.txt").write_text("a")
    return Source(tmp_path / "in.txt", hash_file(tmp_path / "in.txt"))


def both(root: Path, source: Source, end: str = "!", dry: bool = False) -> Run:
    run = Run(root, dry=dry)
    double_of = run.step(double, None, run.step(shout, {"end": end}, source))
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
        found.append((run.step(delicate, None).value.text, run.events[0].why))
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
        "changed: inputs",
    ]
    assert calls == ["shout", "double"]


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
            run.step(full, None)
    events = [json.loads(x)["event"] for x in (tmp_path / "journal.jsonl").read_text().splitlines()]
    assert events == ["start", "failed", "start", "failed"]


def test_a_resuming_stage_finds_what_it_left(tmp_path: Path) -> None:
    run = Run(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        run.step(stubborn, None)
    plan = Run(tmp_path, dry=True)
    plan.step(stubborn, None)
    assert plan.events[0].why == "was interrupted, goes on where it was"
    assert run.step(stubborn, None).value.text == "resumed"


def test_a_planned_step_writes_nothing(tmp_path: Path, source: Source) -> None:
    both(tmp_path / "run", source, dry=True)
    assert not (tmp_path / "run").exists()


def test_two_runs_cannot_share_a_folder(tmp_path: Path) -> None:
    other = (
        "import sys; from pathlib import Path; from pipeline.run import Run\n"
        "with Run(Path(sys.argv[1])).locked():\n"
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
            Run(tmp_path).locked(),
        ):
            pass
    with Run(tmp_path).locked():
        pass


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="cannot write to"), Run(tmp_path / "file/run").locked():
        pass


def test_receipts_note_warnings_and_time(tmp_path: Path) -> None:
    import logging

    @stage(version=1)
    def warns(config: None, out: Path) -> Made:
        logging.getLogger("mipkd.test").warning("two photos were skipped")
        return Made(out, "")

    run = Run(tmp_path)
    run.step(warns, None)
    receipt = run.receipts()["warns"]
    assert receipt["warnings"] == ["two photos were skipped"]
    assert receipt["seconds"] >= 0
