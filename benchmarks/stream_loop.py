"""A stream's frames per second and age beside those of a bare loop over the same session.

`python -m benchmarks.stream_loop BUNDLE`: in turns, each round both ways in both orders. The bare
loop has a conversion, a call and a conversion, nothing else; of a session that wants several frames
in flight, one such loop a thread. `--pause MS` has work that sleeps in the place of a bundle: what
the bench itself adds, on a busy machine too.
"""

from __future__ import annotations

import argparse
import json
import statistics
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from pathlib import Path

import numpy as np

from mipkd.core.yuv import rgb_of_yuv, yuv_of_rgb
from pipeline.bench.host import describe_host
from pipeline.bench.stream import CAMERA, StreamSettings, make_process, run_stream
from pipeline.bundle import manifest
from targets._images import upscale
from targets.base import ByteArray, FloatArray, Session, find

BOUND = 0.05
Loop = Callable[[], float]


def main() -> None:
    """Print one line a figure, exit with 1 when one is further apart than the bound."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundle", type=Path, nargs="?")
    parser.add_argument("--pause", type=float, metavar="MS", help="sleep in place of a model")
    parser.add_argument("--target", default="cpu")
    parser.add_argument("--size", default="64x64", help="LR width x height")
    parser.add_argument("--fps", type=float, default=30.0)
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--json", action="store_true", help="one JSON object instead of lines")
    asked = parser.parse_args()
    width, height = map(int, asked.size.split("x"))
    with closing(_open(asked)) as session:
        loops = _Loops(session, (height, width), asked.scale, asked.seconds)
        found = {
            "frames per second": _interleave(loops.rate, loops.bare_rate, asked.rounds),
            "median age in ms": _interleave(
                lambda: loops.age_ms(asked.fps), lambda: loops.bare_age_ms(asked.fps), asked.rounds
            ),
        }
    facts = {"host": describe_host().cpu, "target": asked.target, "in_flight": loops.in_flight}
    if asked.json:
        print(json.dumps({**facts, "figures": found}, indent=1))
    else:
        for name, one in found.items():
            print(f"{name}: {one['ours']:.3f}, bare {one['bare']:.3f}, ratio {one['ratio']:.4f}")
    raise SystemExit(any(abs(one["ratio"] - 1) > BOUND for one in found.values()))


class _Sleeper(Session):
    """Repeats pixels after a pause that takes no processor."""

    def __init__(self, pause_s: float) -> None:
        self._pause_s = pause_s

    def run(self, lr_NCHW: FloatArray) -> FloatArray:
        time.sleep(self._pause_s)
        return lr_NCHW.repeat(2, axis=2).repeat(2, axis=3)


def _open(asked: argparse.Namespace) -> Session:
    """The session, whose scale is noted."""
    if asked.bundle is None:
        asked.target, asked.scale = f"sleeping {asked.pause or 0:g} ms", 2
        return _Sleeper((asked.pause or 0) * 1e-3)
    models = {m.target: m for m in reversed(manifest.read(asked.bundle).models)}
    if asked.target not in models:
        raise SystemExit(f"no model for {asked.target}; known: {', '.join(models)}")
    model = models[asked.target]
    asked.scale = model.scale
    return find(model.target).open(model.built(asked.bundle))


def _interleave(ours: Loop, bare: Loop, rounds: int) -> dict[str, float]:
    pairs = []
    for number in range(rounds):
        first, second = (ours, bare) if number % 2 else (bare, ours)
        figures = first(), second()
        pairs.append(figures if number % 2 else figures[::-1])
    return {
        "ours": statistics.median(a for a, _ in pairs),
        "bare": statistics.median(b for _, b in pairs),
        "ratio": statistics.median(a / b for a, b in pairs),
        "least": min(a / b for a, b in pairs),
        "most": max(a / b for a, b in pairs),
    }


class _Loops:
    """The same session, streamed by the bench and by loops of its own."""

    def __init__(self, session: Session, size: tuple[int, int], scale: int, seconds: float) -> None:
        noise = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
        self._frame = yuv_of_rgb(noise, CAMERA)
        self._session, self._size, self._scale, self._seconds = session, size, scale, seconds
        self.in_flight = session.frames_in_flight((1, 3, *size))
        self._process = make_process(session, StreamSettings(), size, scale, 1)
        for _ in range(3):
            self._bare()

    def rate(self) -> float:
        settings = StreamSettings(fps=0, seconds=self._seconds)
        found = run_stream(self._process, [self._frame], settings, self.in_flight)
        return (len(found.ready_s) - 1) / (found.ready_s[-1] - found.ready_s[0])

    def age_ms(self, fps: float) -> float:
        settings = StreamSettings(fps=fps, seconds=self._seconds)
        found = run_stream(self._process, [self._frame], settings, self.in_flight)
        return 1e3 * statistics.median(found.age_s)

    def bare_rate(self) -> float:
        counts: list[int] = []

        def loop() -> None:
            count, end = 0, time.perf_counter() + self._seconds
            while time.perf_counter() < end:
                self._bare()
                count += 1
            counts.append(count)

        start = time.perf_counter()
        threads = [threading.Thread(target=loop) for _ in range(self.in_flight)]
        for one in threads:
            one.start()
        for one in threads:
            one.join()
        return sum(counts) / (time.perf_counter() - start)

    def bare_age_ms(self, fps: float) -> float:
        """One frame at a time, by each of the threads in turn: at a rate that leaves pauses."""
        ages: list[float] = []
        with ExitStack() as stack:
            # Not one pool: whose threads need not take turns.
            others = [stack.enter_context(ThreadPoolExecutor(1)) for _ in range(self.in_flight - 1)]
            start = time.perf_counter()
            for number in range(round(fps * self._seconds)):
                due = start + number / fps
                if due > time.perf_counter():
                    time.sleep(due - time.perf_counter())
                turn = number % self.in_flight
                others[turn - 1].submit(self._bare).result() if turn else self._bare()
                ages.append(time.perf_counter() - due)
        return 1e3 * statistics.median(ages)

    def _bare(self) -> ByteArray:
        lr_HWC = rgb_of_yuv(self._frame, self._size, CAMERA)
        return yuv_of_rgb(upscale(self._session, lr_HWC, scale=self._scale), CAMERA)


if __name__ == "__main__":
    main()
