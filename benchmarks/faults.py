"""Whether commands survive what machines do to them: they are killed, disks fill, files rot.

Each fault hits one command in a copy of a small finished run: `run` (in a new folder and in a
finished one), `collect`, `check --update-baseline` or `upscale`. It is killed at a random moment,
meets a full disk at a random write, or finds records that were cut short or files of steps with a
flipped bit. Afterwards the same command must end as it did without the fault, pixels and PSNR must
be the same to the last bit, and files of others in the folder must be as they were.

`python -m benchmarks.faults [--count 60] [--seed 0] [--work FOLDER]`; Linux and macOS.
"""

from __future__ import annotations

import argparse
import errno
import hashlib
import io
import json
import os
import random
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

KINDS = ("kill", "full disk", "cut record", "flipped bit")
COMMANDS = ("run", "run again", "collect", "baseline", "upscale")
_QUICK = (
    *("--target", "cpu", "--precision", "fp32,int8", "--set", "quantize.search=false"),
    *(
        "--set",
        "distill.threads=1",
        "--set",
        "calibrate.count=4",
        "--set",
        "calibrate.size=32",
        "--set",
        "bench.max_busy=1",
    ),
    *("--set", "bench.sizes=[[24,32]]", "--set", "bench.min_time_s=0.02"),
    *("--set", "bench.warmup_s=0.01", "--set", "bench.max_drift=99"),
)
_ENDS_WELL = (0, 6, 7)  # gates may fail: the settings are quick, not good
_FOREIGN = ("mine.txt", "report/mine.txt", "collected/mine.txt", "build/mine.txt")
_PATIENCE_S = 300.0


@dataclass(frozen=True)
class Scene:
    """A finished run, and what its commands need."""

    run: Path
    results: Path  # of its kit
    pictures: Path

    def words(self, command: str, home: Path) -> tuple[str, ...]:
        """A command's words, in a copy of the scene."""
        run, bundle = str(home / "run"), str(home / "run" / "bundle")
        model = str(files("pipeline") / "presets" / "teacher_x2.safetensors")
        baseline = ("--baseline", str(home / "baseline.json"), "--update-baseline")
        return {
            "run": ("run", "--model", model, "--demo-data", *_QUICK, "--out", str(home / "new")),
            "run again": ("run", "--model", model, "--demo-data", *_QUICK, "--out", run),
            "collect": ("collect", str(self.results), run),
            "baseline": ("check", bundle, *baseline, "--reason", "a fault"),
            "upscale": (
                *("upscale", bundle, str(self.pictures), "-o", str(home / "out")),
                *("--target", "cpu", "--precision", "int8"),  # which is shipped depends on times
            ),
        }[command]


def main() -> None:
    """Print one line a fault, and how many were survived."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--count", type=int, default=60, help="faults")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", type=Path, help="keep all folders here, to look at them")
    asked = parser.parse_args()
    with TemporaryDirectory() as folder:
        survived = survive(asked.work or Path(folder), asked.count, asked.seed)
    print(f"survived {survived} of {asked.count}")
    sys.exit(survived < asked.count)


def survive(work: Path, count: int, seed: int, say: Callable[[str], object] = print) -> int:
    """How many of `count` faults were survived."""
    import pipeline.flow  # noqa: F401 - once, before the commands are forked

    scene = _prepare(work)
    plain = {command: _without_fault(scene, command, work) for command in COMMANDS}
    survived = 0
    for number in range(count):
        rng = random.Random(f"{seed} {number}")
        command, kind = COMMANDS[number % len(COMMANDS)], KINDS[number // len(COMMANDS) % 4]
        home = work / f"fault-{number}"
        before = plain[command]
        wrong = _try(scene, command, kind, home, before, rng)
        say(f"{number:3} {command:<9} {kind:<11} {wrong or 'survived'}")
        survived += not wrong
        if not wrong:
            shutil.rmtree(home)
    return survived


@dataclass(frozen=True)
class Plain:
    """A command without a fault."""

    seconds: float
    writes: int  # calls that can meet a full disk
    figures: dict[str, str]


def _prepare(work: Path) -> Scene:
    """The finished run, the results of its own kit, and pictures."""
    import numpy as np

    from mipkd.core.images import write_png
    from pipeline.bundle.kit import make_kit
    from pipeline.machine.remote import kit_program

    work.mkdir(parents=True, exist_ok=True)
    scene = Scene(work / "run", work / "results.zip", work / "pictures")
    words = scene.words("run", work)
    code = _wait(_start(lambda: _command(*words[:-1], str(scene.run)), work / "log"))
    assert code in _ENDS_WELL, (work / "log").read_text()
    for name in _FOREIGN:
        (scene.run / name).parent.mkdir(exist_ok=True)
        (scene.run / name).write_text(f"of the user: {name}")
    kit = make_kit(scene.run / "bundle", "cpu", work / "kit.pyz")
    _measure_kit(kit.file, scene.results, kit_program.__name__)
    rng = np.random.default_rng(0)
    scene.pictures.mkdir()
    for number in range(3):
        image = rng.integers(0, 256, (40, 50, 3), dtype=np.uint8)
        write_png(scene.pictures / f"{number}.png", image)
    return scene


def _measure_kit(kit: Path, results: Path, _: str) -> None:
    command = [sys.executable, str(kit), "-o", str(results)]
    code = os.spawnv(os.P_WAIT, sys.executable, command)
    assert code == 0, f"the kit ended with {code}"


def _copy(scene: Scene, home: Path) -> None:
    """The run, a baseline and a picture of the user's where results go."""
    shutil.copytree(scene.run, home / "run", symlinks=True)
    (home / "out").mkdir()
    (home / "out" / "1.png").write_bytes(b"the user's own picture")


def _without_fault(scene: Scene, command: str, work: Path) -> Plain:
    home = work / f"plain-{command.replace(' ', '-')}"
    _copy(scene, home)
    words, counted = scene.words(command, home), work / "writes"
    start = time.perf_counter()

    def work_and_count() -> int:
        calls = _break_writes(sys.maxsize)
        code = _command(*words)
        counted.write_text(str(calls[0]))
        return code

    code = _wait(_start(work_and_count, home / "log"))
    assert code == _code_of(command, code), (home / "log").read_text()
    seconds = time.perf_counter() - start
    return Plain(seconds, int(counted.read_text()), _figures(command, home))


def _code_of(command: str, code: int) -> int:
    """What a command ends with that meets no fault: one picture of the user's is refused."""
    if command == "upscale":
        return 5
    return code if code in _ENDS_WELL else 0


def _try(
    scene: Scene, command: str, kind: str, home: Path, plain: Plain, rng: random.Random
) -> str:
    """What went wrong; "" when the fault was survived."""
    _copy(scene, home)
    words = scene.words(command, home)
    if kind == "kill":
        _kill(words, home, rng.uniform(0, plain.seconds))
    elif kind == "full disk":
        _fill(words, home, rng.randrange(max(1, plain.writes)))
    else:
        _damage(home / "run", kind, rng)
        if command == "upscale" or command == "baseline":  # they read the bundle alone
            words_before = scene.words("run again", home)
            _wait(_start(lambda: _command(*words_before), home / "log"))
    code = _wait(_start(lambda: _command(*words), home / "log"))
    if command == "collect" and code == 2 and kind not in ("kill", "full disk"):
        again = scene.words("run again", home)  # as its hint says
        _wait(_start(lambda: _command(*again), home / "log"))
        code = _wait(_start(lambda: _command(*words), home / "log"))
    said = (home / "log").read_text(errors="replace")
    if "Traceback" in said or "a bug of mipkd-pipeline" in said:
        return "a traceback"
    if code != _code_of(command, code):
        return f"exit {code}: {said.strip().splitlines()[-1:]}"
    found = _figures(command, home)
    if found != plain.figures:
        return f"other figures: {sorted(_differences(found, plain.figures))[:3]}"
    return _lost(home)


def _kill(words: Sequence[str], home: Path, after_s: float) -> None:
    child = _start(lambda: _command(*words), home / "log")
    deadline = time.monotonic() + after_s
    while time.monotonic() < deadline:
        if os.waitpid(child, os.WNOHANG) != (0, 0):
            return
        time.sleep(0.001)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)


def _fill(words: Sequence[str], home: Path, at: int) -> None:
    def meet_a_full_disk() -> int:
        _break_writes(at)
        return _command(*words)

    _wait(_start(meet_a_full_disk, home / "log"))
    said = (home / "log").read_text(errors="replace")
    assert "Traceback" not in said, said


def _break_writes(after: int) -> list[int]:
    """Let every call of this process that takes space on the disk fail from the `after`th on; the
    list holds their count."""
    count = [0]

    def breaking(call: Callable[..., Any], takes_space: Callable[..., bool]) -> Callable[..., Any]:
        def called(*args: Any, **options: Any) -> Any:
            if takes_space(*args, **options):
                count[0] += 1
                if count[0] > after:
                    name = args[0] if args and not isinstance(args[0], int) else None
                    raise OSError(errno.ENOSPC, "No space left on device", name)
            return call(*args, **options)

        return called

    def writes(name: object, mode: str = "r", *args: Any, **options: Any) -> bool:
        inside = isinstance(name, int) or not str(name).startswith("/dev/")
        return inside and any(letter in mode for letter in "wax+")

    io.open = breaking(io.open, writes)  # type: ignore[assignment]
    for name in ("fsync", "mkdir"):
        setattr(os, name, breaking(getattr(os, name), lambda *args, **options: True))
    return count


def _damage(run: Path, kind: str, rng: random.Random) -> None:
    """Cut some records short, or flip bits in files of steps."""
    names = ("record.json", "receipt.json") if kind == "cut record" else ("*",)
    found = sorted({file for name in names for file in run.glob(f"*/*/**/{name}")})
    found = [one for one in found if one.is_file() and one.name != "mine.txt"]
    steps = [f for f in found if f.relative_to(run).parts[0] not in ("bundle", "report")]
    for file in rng.sample(steps, k=min(len(steps), rng.randint(1, 3))):
        data = bytearray(file.read_bytes())
        if kind == "cut record":
            del data[rng.randrange(len(data) + 1) :]
        elif data:
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        file.write_bytes(bytes(data))


def _figures(command: str, home: Path) -> dict[str, str]:
    """What a command made, but for what is measured in seconds or says when."""
    if command == "baseline":
        stated = json.loads((home / "baseline.json").read_text())
        return _scores(stated["measurements"])
    if command == "upscale":
        said = (home / "log").read_text(errors="replace").strip().splitlines()
        return _hashes(home / "out", home / "out") | {"said": said[-1]}
    run = home / ("new" if command == "run" else "run")
    stated = json.loads((run / "report/latest/results.json").read_text())
    models = _hashes(run / "bundle" / "model", run) | _hashes(run / "bundle" / "golden", run)
    found = _scores(stated["measurements"]) | models
    manifest = json.loads((run / "bundle/manifest.json").read_text())
    return found | dict.fromkeys(manifest["files"], "listed")


def _scores(measurements: Sequence[dict[str, Any]]) -> dict[str, str]:
    return {
        f"{m['target']} {m['role']} {m['precision']} {score['image']}": json.dumps(
            score["metrics"], sort_keys=True
        )
        for m in measurements
        for score in m["scores"]
    }


def _hashes(folder: Path, root: Path) -> dict[str, str]:
    return {
        file.relative_to(root).as_posix(): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(folder.rglob("*"))
        if file.is_file() and "engines" not in file.parts
    }


def _lost(home: Path) -> str:
    """What of the user's is gone or changed."""
    for name in _FOREIGN:
        file = home / "run" / name
        if not file.is_file() or file.read_text() != f"of the user: {name}":
            return f"lost: {name}"
    own = home / "out" / "1.png"
    return "" if own.read_bytes() == b"the user's own picture" else "lost: out/1.png"


def _differences(one: dict[str, str], other: dict[str, str]) -> set[str]:
    return {name for name in one.keys() | other.keys() if one.get(name) != other.get(name)}


def _start(work: Callable[[], int], log: Path) -> int:
    """Do some work in a process of its own, forked, so that it begins at once; gives its id."""
    sys.stdout.flush()
    child = os.fork()
    if child:
        return child
    code = 70
    try:
        out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(out, 1)
        os.dup2(out, 2)
        code = work()
    except BaseException:
        traceback.print_exc()
    finally:
        with suppress(OSError, ValueError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def _command(*words: str) -> int:
    """The exit code of a command of ours, in this process."""
    from pipeline import cli

    try:
        cli.app(list(words))
    except SystemExit as end:
        return int(end.code or 0)
    return 0


def _wait(child: int) -> int:
    deadline = time.monotonic() + _PATIENCE_S
    while time.monotonic() < deadline:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.005)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return -signal.SIGALRM


if __name__ == "__main__":
    main()
