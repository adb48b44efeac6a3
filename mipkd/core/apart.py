"""Work that may crash or never end, in a process of its own: its death is an error like any other.

A quantiser, a converter or a runtime is native code, and a graph that nobody tried before can end
it by a signal or by want of memory. A stranger's file can make any reader of it work for ever, or
ask for all memory there is: `Limits` end that.
"""

from __future__ import annotations

import contextlib
import logging
import math
import multiprocessing
import os
import pickle
import signal
import threading
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from logging.handlers import QueueHandler
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from mipkd.core import memory
from mipkd.core.errors import StageError

if TYPE_CHECKING:
    from multiprocessing.connection import Connection
    from types import TracebackType

R = TypeVar("R")
Take = Callable[[Any], None]
Send = Callable[[str, Any], None]

# "forkserver" is quicker where one program starts many; but for environment and working folder they
# then have what that program had at the first start.
START_METHOD = "spawn"
_PATIENCE_S = 5.0  # until a process that was told to end is killed
_BUSY = 8  # times its seconds, for a process that hardly gets the CPU
_LOOK_S = 0.02  # between looks at its memory: in that time it can take 0.1 GB more
_REASONS = {
    "SIGSEGV": "segmentation fault in native code",
    "SIGABRT": "native code gave up",
    "SIGKILL": "killed, most likely for want of memory",
    "SIGBUS": "bus error in native code",
    "SIGILL": "an instruction that this CPU lacks",
    "SIGFPE": "arithmetic error in native code",
}


@dataclass(frozen=True)
class Limits:
    """What one call may take, and which option of the user's raises it; None: no limit.

    Time counts from when the process has imported the function, and anew from each `report` of it.
    It is over where as much of the clock and of the CPU is: on a busy machine the clock alone says
    nothing, up to eight times as much of it.
    Memory is what the process holds, without the files that it maps; it is not limited where the
    system does not tell (neither Linux nor psutil).
    """

    seconds: float | None = None
    memory_bytes: int | None = None
    raise_seconds: str = ""  # such as "--set limits.seconds=..."
    raise_memory: str = ""
    later: Limits | None = None  # in their place from the first `report` on


class _Clock:
    """Whether a process has had its seconds, of the clock and of the CPU; without any it has not
    started."""

    def __init__(self, process: int = 0, seconds: float = math.inf) -> None:
        self._process, self._seconds, self._began = process, seconds, time.monotonic()
        self._used_s = memory.cpu_seconds(process) if process and seconds < math.inf else None

    def is_over(self) -> bool:
        passed_s = time.monotonic() - self._began
        if passed_s <= self._seconds or self._used_s is None:
            return passed_s > self._seconds
        used_s = memory.cpu_seconds(self._process)
        busy = used_s is not None and used_s - self._used_s <= self._seconds
        return not busy or passed_s > _BUSY * self._seconds


class LimitError(StageError):
    """A call took more time or memory than its limits allow, and was ended."""


class Worker:
    """A process that makes one call after the other; after its death the next call starts anew.

    What it logs arrives in this process's log. Starting it costs a Python and the imports of the
    function's module, 0.4 s for a build and 2 s more where NNCF or torch is needed.
    """

    def __init__(self, limits: Limits | None = None) -> None:
        self.limits = limits or Limits()  # of each call; may be replaced between calls
        self.peak_bytes: int | None = None  # of the process, during the last call
        self._process: Any = None
        self._pipe: Connection[Any, Any] | None = None

    def __enter__(self) -> Worker:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def call(
        self, what: str, function: Callable[..., R], *args: Any, take: Take | None = None
    ) -> R:
        """What the function gives; it, its arguments and its result are pickled.

        Args:
            what: the work, for messages.
            take: is given what the function reports.

        Raises:
            LimitError: it took more than its limits allow; says which, and what raises it.
            StageError: the process died; says by which signal.
            Exception: the function's own.
        """
        limits, clock = self.limits, _Clock()
        try:
            pipe = self._start()
            pipe.send((function, args, _levels()))
            while True:
                self._wait(what, pipe, limits, clock)
                kind, value = pipe.recv()
                if kind == "log":
                    logging.getLogger(value.name).handle(value)
                    continue
                if kind not in ("started", "report"):
                    break
                if kind == "report":
                    limits = limits.later or limits
                    if take:
                        take(value)
                clock = _Clock(self._process.pid, limits.seconds or math.inf)
        except (EOFError, ConnectionError) as error:
            raise self._explain_death(what) from error
        except BaseException:  # Ctrl-C too: the process does not hear it
            self._end(at_once=True)
            raise
        if kind == "failed":
            raise value
        result, self.peak_bytes = value
        return result  # type: ignore[no-any-return]

    def _wait(self, what: str, pipe: Connection[Any, Any], limits: Limits, clock: _Clock) -> None:
        """Until there is something to receive, or the process took too much."""
        most = limits.memory_bytes or math.inf
        while True:
            if most < math.inf and (memory.held_bytes(self._process.pid) or 0) > most:
                what = f"{what}: it took more than {_as_size(int(most))} of memory and was ended"
                raise LimitError(what, hint=_explain_limit(limits.raise_memory))
            if clock.is_over():
                what = f"{what}: not done after {limits.seconds:g} s, it was ended"
                raise LimitError(what, hint=_explain_limit(limits.raise_seconds))
            if pipe.poll(_LOOK_S):
                return

    def close(self) -> None:
        """End the process, if it runs."""
        self._end(at_once=False)

    def _end(self, *, at_once: bool) -> None:
        if self._process is None:
            return
        assert self._pipe is not None
        self._pipe.close()  # an idle process ends by itself then
        for stop in (self._process.terminate, self._process.kill):
            if not at_once:
                self._process.join(_PATIENCE_S)
            if self._process.is_alive():
                stop()
            at_once = False
        self._process.join()
        self._process.close()
        self._process = self._pipe = None

    def _start(self) -> Connection[Any, Any]:
        if self._pipe is None:
            context: Any = multiprocessing.get_context(START_METHOD)
            self._pipe, theirs = context.Pipe()
            self._process = context.Process(target=_serve, args=(theirs, dict(os.environ)))
            self._process.start()
            theirs.close()  # its end must be the process's alone, to be seen when that dies
        return self._pipe

    def _explain_death(self, what: str) -> StageError:
        self._process.join(_PATIENCE_S)
        code = self._process.exitcode
        self.close()
        hint = "a library that it uses crashed: update it, or report it to its makers; to go "
        hint += "without what failed: other --target, --precision"
        if code is None or code >= 0:
            return StageError(f"{what}: its process ended with exit code {code}", hint=hint)
        name = _signal_name(-code)
        if name == "SIGKILL":
            hint = "free some memory and run the same command again: finished steps are remembered"
        reason = f" ({_REASONS[name]})" if name in _REASONS else ""
        return StageError(f"{what}: its process died of {name}{reason}", hint=hint)


def report(value: object = None) -> None:
    """Give a value to whoever called what works here, whose time starts anew; nothing elsewhere."""
    _send("report", value)


def _ignore(kind: str, value: object) -> None:
    """There is nobody to send to."""


_send: Send = _ignore  # in a worker's process, to the other one


def _as_size(count: int) -> str:
    return f"{count / 2**30:.3g} GiB" if count >= 2**30 else f"{count / 2**20:.0f} MiB"


def _explain_limit(option: str) -> str:
    why = "a file that asks for so much may be damaged, or made to do harm"
    return f"{why}; if you trust it: {option}" if option else why


def call_apart(what: str, limits: Limits, function: Callable[..., R], *args: Any) -> R:
    """One call in a process of its own, which ends after it; as `Worker.call`."""
    with Worker(limits) as worker:
        return worker.call(what, function, *args)


class _ToParent(QueueHandler):
    """Sends what is logged through the pipe."""

    def __init__(self, send: Send) -> None:
        super().__init__(None)  # type: ignore[arg-type]  # there is no queue
        self._send = send

    def enqueue(self, record: logging.LogRecord) -> None:
        self._send("log", record)


def _serve(pipe: Connection[Any, Any], environment: dict[str, str]) -> None:
    """Do what comes through the pipe, until it is closed."""
    os.environ.clear()
    os.environ.update(environment)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the other process hears it and ends this one
    threading.Thread(target=_end_with_parent, daemon=True).start()
    warnings.simplefilter("ignore")  # of libraries; ours are logged
    with Path(os.devnull).open("w") as nowhere:  # torch's exporter prints a graph of megabytes
        os.dup2(nowhere.fileno(), 1)
    lock = threading.Lock()

    def send(kind: str, value: Any) -> None:
        with lock:
            pipe.send((kind, value))

    global _send  # so that the function need not be handed it
    _send = send
    logging.root.handlers[:] = [_ToParent(send)]
    with contextlib.suppress(EOFError, ConnectionError):
        while True:
            _answer(pipe, send)


def _answer(pipe: Connection[Any, Any], send: Send) -> None:
    try:
        function, args, levels = pipe.recv()  # imports what the function needs
        send("started", None)
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
        memory.reset_peak()
        send("done", (function(*args), memory.peak_bytes()))
    except (EOFError, ConnectionError):
        raise
    except Exception as error:
        logging.getLogger(__name__).debug("traceback", exc_info=True)
        send("failed", _as_portable(error))


def _as_portable(error: Exception) -> Exception:
    """The error, or one of ours with its words: those of native code cannot be pickled."""
    if isinstance(error, MemoryError):
        return StageError(f"not enough memory: {error}".rstrip(": "))
    try:
        same: Exception = pickle.loads(pickle.dumps(error))
    except Exception:
        return StageError(f"{type(error).__name__}: {error}")
    return same


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None, "a worker was started by one"
    parent.join()
    os._exit(1)


def _levels() -> dict[str, int]:
    """The levels of all loggers that have one; the root's is under ""."""
    known = logging.root.manager.loggerDict.items()
    found = {name: one.level for name, one in known if isinstance(one, logging.Logger)}
    return {"": logging.root.level} | {name: level for name, level in found.items() if level}


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
