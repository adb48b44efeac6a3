"""Work in a process of its own: what it gives, says and raises arrives, and so does its death."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mipkd.core.apart import LimitError, Limits, Worker, call_apart
from mipkd.core.errors import StageError, UnsupportedError

sys.path.insert(0, str(Path(__file__).parent))  # so that the other process finds this module
import crashing


def test_one_process_makes_all_calls_until_it_is_closed() -> None:
    with Worker() as worker:
        first, second = (worker.call("work", os.getpid) for _ in range(2))
        assert first == second != os.getpid()
        if sys.platform == "linux":
            assert worker.peak_bytes
            assert worker.peak_bytes > 1e6
    with pytest.raises(ProcessLookupError):
        os.kill(first, 0)


@pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")
@pytest.mark.parametrize(
    ("number", "says"),
    [
        (signal.SIGSEGV, r"SIGSEGV \(segmentation fault in native code\)"),
        (signal.SIGABRT, r"SIGABRT \(native code gave up\)"),
        (signal.SIGKILL, r"SIGKILL \(killed, most likely for want of memory\)"),
    ],
)
def test_a_death_is_an_error_that_names_the_signal_and_the_next_call_works(
    number: signal.Signals, says: str
) -> None:
    with Worker() as worker:
        with pytest.raises(StageError, match=f"build cpu int8: its process died of {says}") as e:
            worker.call("build cpu int8", crashing.die_of, number)
        assert e.value.hint
        assert worker.call("work", crashing.add, 1, 2) == 3


def test_an_exit_is_named_by_its_code() -> None:
    with Worker() as worker, pytest.raises(StageError, match=r"work: .* exit code 3"):
        worker.call("work", os._exit, 3)


def test_errors_arrive_as_they_are(caplog: pytest.LogCaptureFixture) -> None:
    with Worker() as worker:
        with pytest.raises(UnsupportedError, match="no such thing") as caught:
            worker.call("work", crashing.refuse, "no such thing", "another")
        assert caught.value.hint == "another"
        with pytest.raises(StageError, match="OddError: 1 and 2"):
            worker.call("work", crashing.raise_odd)
        with pytest.raises(TypeError, match="cannot pickle"):
            worker.call("work", __import__, "os")


def test_what_is_logged_arrives_in_order_and_at_the_levels_set_here(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, logger="crashing")
    with Worker() as worker:
        worker.call("work", crashing.tell)
        assert [r.getMessage() for r in caplog.records] == ["first 1", "second"]
        assert {r.name for r in caplog.records} == {"crashing"}


def test_what_never_ends_is_ended_and_the_next_call_works() -> None:
    limits = Limits(seconds=0.5, raise_seconds="--set limits.seconds=9")
    with Worker(limits) as worker:
        with pytest.raises(LimitError, match=r"work: not done after 0\.5 s") as caught:
            worker.call("work", crashing.never_end)
        assert "--set limits.seconds=9" in caught.value.hint
        worker.limits = Limits()
        assert worker.call("work", crashing.add, 1, 2) == 3


def test_what_hardly_gets_the_cpu_has_more_of_the_clock() -> None:
    limits = Limits(seconds=0.25)
    assert call_apart("work", limits, crashing.rest, 0.8) == 0.8
    with pytest.raises(LimitError, match=r"not done after 0\.25 s"):
        call_apart("work", limits, crashing.rest, 600.0)


def test_reports_arrive_and_time_counts_from_the_last_of_them() -> None:
    found: list[int] = []
    with Worker(Limits(seconds=2)) as worker:
        assert worker.call("work", crashing.count_slowly, 7, take=found.append) == 7
    assert found == [*range(7)]
    crashing.report("nobody asked")


def test_other_limits_may_hold_from_the_first_report_on() -> None:
    limits = Limits(seconds=60, later=Limits(seconds=0.04))
    with pytest.raises(LimitError, match=r"not done after 0\.04 s"):
        call_apart("work", limits, crashing.count_slowly, 7)
    assert call_apart("work", limits, crashing.add, 1, 2) == 3


@pytest.mark.skipif(sys.platform != "linux", reason="memory as Linux counts it")
def test_what_takes_too_much_memory_is_ended() -> None:
    limits = Limits(memory_bytes=2**28, raise_memory="--memory")
    with pytest.raises(LimitError, match="more than 256 MiB of memory") as caught:
        call_apart("work", limits, crashing.take, 2**32)
    assert "--memory" in caught.value.hint
    assert call_apart("work", limits, crashing.take, 2**20) == 2**20


@pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_it_ends_when_its_parent_is_interrupted_or_killed(
    number: signal.Signals, tmp_path: Path
) -> None:
    note = tmp_path / "pid"
    code = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
from mipkd.core.apart import Worker
import crashing
if __name__ == "__main__":
    with Worker() as worker:
        worker.call("work", crashing.wait, {str(note)!r})
"""
    script = tmp_path / "script.py"
    script.write_text(code)
    path = os.pathsep.join([str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")])
    parent = subprocess.Popen(
        [sys.executable, script],
        env=os.environ | {"PYTHONPATH": path},
        stderr=subprocess.DEVNULL,
    )
    until(lambda: note.is_file() and bool(note.read_text()))
    parent.send_signal(number)
    assert parent.wait(60) != 0
    until(lambda: not alive(int(note.read_text())))


def until(done: object) -> None:
    end = time.monotonic() + 60
    while not done():  # type: ignore[operator]
        assert time.monotonic() < end
        time.sleep(0.05)


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    stat = Path(f"/proc/{pid}/stat")  # a zombie, where nobody waits for orphans, is dead
    return not (stat.is_file() and stat.read_text().rpartition(")")[2].split()[0] == "Z")
