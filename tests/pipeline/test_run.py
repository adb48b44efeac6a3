"""Steps are remembered by what they depend on, and nothing half-done is taken for whole."""

import json
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from mipkd.core.errors import StageError, UsageError
from pipeline import receipts
from pipeline.receipts import hash_file
from pipeline.run import Run
from pipeline.run_lock import lock_folder
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
        "import sys; from pathlib import Path; from pipeline.run_lock import lock_folder\n"
        "with lock_folder(Path(sys.argv[1])):\n"
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
            lock_folder(tmp_path),
        ):
            pass
    with lock_folder(tmp_path):
        pass


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="cannot write to"), lock_folder(tmp_path / "file/run"):
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


def steps(run: Run) -> list[tuple[bool, str]]:
    return [(event.remembered, event.why) for event in run.events]


@pytest.mark.parametrize("damage", ["flip", "replace", "delete", "grow", "folder"])
def test_a_changed_file_of_a_step_is_named_and_the_step_made_anew(
    damage: str, tmp_path: Path, source: Source, caplog: pytest.LogCaptureFixture
) -> None:
    first = both(tmp_path / "run", source)
    file = tmp_path / "run/shout" / first.keys["shout"] / "loud.txt"
    if damage == "flip":
        file.write_text("A ")
    elif damage == "replace":
        file.unlink()
        file.write_text("B!")
    elif damage == "grow":
        file.write_text("A!!")
    else:
        file.unlink()
        if damage == "folder":
            file.mkdir()
    plan = both(tmp_path / "run", source, dry=True)
    assert steps(plan) == [
        (False, "loud.txt was changed since it was made"),
        (True, "remembered, if shout comes out as before"),
    ]
    assert calls == ["shout", "double"]
    again = both(tmp_path / "run", source)
    assert "loud.txt was changed since it was made, the step is made again" in caplog.text
    assert calls == ["shout", "double", "shout"]  # it came out as before, and so what follows stays
    assert [e.remembered for e in again.events] == [False, True]
    assert file.read_text() == "A!"
    assert [e.remembered for e in both(tmp_path / "run", source).events] == [True, True]


def test_what_a_user_put_in_a_steps_folder_is_kept(tmp_path: Path, source: Source) -> None:
    folder = tmp_path / "run/shout" / both(tmp_path / "run", source).keys["shout"]
    (folder / "mine.txt").write_text("mine")
    (folder / "loud.txt").write_text("my own words")
    both(tmp_path / "run", source)
    kept = folder.with_name(folder.name + ".kept")
    assert (kept / "mine.txt").read_text() == "mine"
    assert (kept / "loud.txt").read_text() == "my own words"


@stage(version=1)
def draw(inputs: Nothing, *, out: Path) -> Made:
    """What comes out otherwise each time, as training on a GPU."""
    calls.append("draw")
    (out / "drawn.txt").write_text(str(len(calls)))
    return Made(out / "drawn.txt", "")


@stage(version=1)
def copied(inputs: DoubleInputs, *, out: Path) -> Made:
    calls.append("copied")
    (out / "copy.txt").write_text(inputs.made.value.file.read_text())
    return Made(out / "copy.txt", "")


def test_what_depends_on_other_content_is_made_anew_too(tmp_path: Path) -> None:
    calls.clear()

    def both_of() -> list[tuple[bool, str]]:
        run = Run(tmp_path / "run")
        found = run.step(copied, DoubleInputs(run.step(draw, Nothing())))
        assert found.value.file.read_text() == run.step(draw, Nothing()).value.file.read_text()
        return steps(run)[:2]

    both_of()
    next((tmp_path / "run/draw").glob("*/drawn.txt")).unlink()
    assert both_of() == [
        (False, "drawn.txt was changed since it was made"),
        (False, "changed: what draw made"),
    ]
    assert both_of() == [(True, "remembered"), (True, "remembered")]


def test_files_are_read_again_only_when_size_or_time_changed(
    tmp_path: Path, source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    both(tmp_path / "run", source)
    shutil.copytree(tmp_path / "run", tmp_path / "copy", copy_function=shutil.copyfile)
    read: list[Path] = []
    hash_now = receipts.hash_file
    monkeypatch.setattr(receipts, "hash_file", lambda f: (read.append(f), hash_now(f))[1])
    both(tmp_path / "run", source)
    assert read == []
    both(tmp_path / "copy", source)
    assert {file.name for file in read} == {"loud.txt", "twice.txt", "record.json"}
    read.clear()
    both(tmp_path / "copy", source)
    assert read == []
    assert calls == ["shout", "double"]


def test_receipts_of_earlier_versions_are_believed_once(tmp_path: Path, source: Source) -> None:
    first = both(tmp_path / "run", source)
    for file in (tmp_path / "run").glob("*/*/receipt.json"):
        stated = json.loads(file.read_text())
        for name in ("files", "contents", "made_from"):
            del stated[name]
        file.write_text(json.dumps(stated))
    plan = both(tmp_path / "run", source, dry=True)
    assert [e.why for e in plan.events] == ["remembered", "remembered"]
    both(tmp_path / "run", source)
    assert calls == ["shout", "double"]
    (tmp_path / "run/double" / first.keys["double"] / "twice.txt").write_text("A!B!")
    both(tmp_path / "run", source)
    assert calls == ["shout", "double", "double"]


SPOILT = [b"", b"[]", b"null", b"{}", b'"a"', b"7", b"\xff\xfe", b"[" * 900, b"[" * 100_000]


@pytest.mark.parametrize("name", ["record.json", "receipt.json"])
@pytest.mark.parametrize("content", [*SPOILT, b"half", None])
def test_an_unreadable_record_means_not_run(
    name: str,
    content: bytes | None,
    tmp_path: Path,
    source: Source,
    caplog: pytest.LogCaptureFixture,
) -> None:
    file = tmp_path / "run/shout" / both(tmp_path / "run", source).keys["shout"] / name
    whole = file.read_bytes()
    file.unlink()
    if content is None:
        file.mkdir()
    else:
        nested = content[:900] == b"[" * 900
        content = content + b"]" * len(content) if nested and len(content) == 900 else content
        file.write_bytes(whole[: len(whole) // 2] if content == b"half" else content)
    assert not both(tmp_path / "run", source, dry=True).events[0].remembered
    both(tmp_path / "run", source)
    said = [record for record in caplog.records if "the step is made again" in record.message]
    assert len(said) == 1
    assert f"{name} is damaged" in said[0].message
    assert calls == ["shout", "double", "shout"]


def test_half_a_line_of_the_journal_stays_alone(tmp_path: Path, source: Source) -> None:
    both(tmp_path / "run", source)
    journal = tmp_path / "run/journal.jsonl"
    journal.write_text(journal.read_text() + '{"at": "20')
    both(tmp_path / "run", source)
    lines = journal.read_text().splitlines()
    assert lines.count('{"at": "20') == 1
    assert [json.loads(line)["event"] for line in lines[-2:]] == ["remembered", "remembered"]


def test_a_file_in_the_place_of_a_stages_folder_is_named(tmp_path: Path, source: Source) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run/shout").write_text("mine")
    with pytest.raises(UsageError, match="run/shout is no folder, and steps go there"):
        both(tmp_path / "run", source)
    assert (tmp_path / "run/shout").read_text() == "mine"
