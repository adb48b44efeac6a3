"""Quality against latency of many nets on this machine: what can be downloaded, and ours.

`python -m benchmarks.front LIST.toml --out FOLDER [--assets ASSETS]`

Each net of the list is a run of `mipkd-pipeline` in a folder of its own, remembered as any run.
Then all models are timed in one go, in turns, in units of one of them, and scored on each set. The
folder gets `front.json`, a page and a plot, and each run's `results.json`.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import os
import shutil
import statistics
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np
import tomllib

from mipkd.core.image_sets import ImageSet, find_set
from mipkd.core.images import crop_to_multiple, downscale, psnr_y, read_rgb
from mipkd.core.measurement import Latency
from mipkd.core.precision import FLOATS
from pipeline.bench.comparisons import mean_of
from pipeline.bench.host import OtherPrograms, describe_host
from pipeline.bench.latency import BenchSettings, compare
from pipeline.bundle import manifest
from pipeline.bundle.manifest import Model
from pipeline.origin import commit
from pipeline.report.charts import SHAPES
from pipeline.report.plots import Point, scatter
from pipeline.report.results_file import RESULTS, read_results, report_folder
from targets._images import upscale
from targets.base import Session, find

log = logging.getLogger(__name__)

_JUDGED = (0, 6, 7)  # exit codes of a run that has a report, whatever its verdict
_TITLES = {"cpu": "ONNX Runtime", "openvino": "OpenVINO", "litert": "LiteRT"}
_STYLE = """<style>svg { font-family: sans-serif; background: #fff; }
.tick, .title { font-size: 12px; fill: #555; } .label { font-weight: 600; font-size: 11px; }
.grid { stroke: #ddd; } .mark { stroke-width: 2; stroke: var(--c); } .label { fill: var(--c); }
.mark:not(.hollow) { fill: var(--c); } .mark.hollow { fill: #fff; } .lead { stroke: var(--c); }
.c0 { --c: #1f5fa8; } .c1 { --c: #b0480f; }</style>"""


@dataclass(frozen=True)
class Net:
    """A net of the list: its name, its run's arguments, and whether it is one to download."""

    name: str
    run: tuple[str, ...]
    ours: bool = False


@dataclass(frozen=True)
class Front:
    """The list: what all runs share, the sets, and the model whose time is 1."""

    scale: int
    unit: str  # net, target and precision
    sets: tuple[str, ...]  # folders of ASSETS/test; the first ranks, and is that of the runs
    common: tuple[str, ...]
    nets: tuple[Net, ...]
    size: tuple[int, int] = (128, 128)  # LR height, width


@dataclass(frozen=True)
class Dot:
    """A model of a net: its time beside all others', its PSNR-Y on each set."""

    net: str
    target: str
    precision: str
    ours: bool  # a student, or weights that can be had brought to INT8 here
    p50_ms: float
    p90_ms: float
    of_unit: float
    psnr_y_db: dict[str, float] = field(default_factory=dict)
    on_front: bool = False  # nothing else is as fast and as good
    beyond: bool = False  # ours, and nothing to download is as fast and as good
    invalid_because: str = ""

    @property
    def key(self) -> str:
        """How its session is called."""
        return f"{self.net} {self.target} {self.precision}"


def main() -> None:
    """Run what is not done, time and score all, write the page."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("list", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--assets", type=Path, default=os.environ.get("MIPKD_ASSETS"))
    parser.add_argument("--only-runs", action="store_true", help="time and score nothing yet")
    asked = parser.parse_args()
    front = read_list(asked.list, assets=asked.assets, out=asked.out)
    done = [net for net in front.nets if _run(net, front, asked.out)]
    if asked.only_runs:
        return
    dots, facts = _measure(front, done, asked.out, Path(asked.assets))
    stated = {"facts": facts, "dots": [asdict(dot) for dot in dots]}
    (asked.out / "front.json").write_text(json.dumps(stated, indent=1) + "\n")
    (asked.out / "front.svg").write_text(_draw(dots, front))
    (asked.out / "table.md").write_text("\n".join(_rows(dots, front)) + "\n")


def read_list(file: Path, **folders: Path | str | None) -> Front:
    """The list in a TOML file; "{assets}" and "{out}" in arguments are those folders."""
    stated = tomllib.loads(file.read_text())

    def fill(arguments: Sequence[str]) -> tuple[str, ...]:
        return tuple(one.format_map(folders) for one in arguments)

    return Front(
        scale=stated["scale"],
        unit=stated["unit"],
        sets=tuple(stated["sets"]),
        common=fill(stated["common"]),
        nets=tuple(
            Net(one["name"], fill(one["run"]), one.get("ours", False)) for one in stated["net"]
        ),
    )


def _run(net: Net, front: Front, out: Path) -> bool:
    """Whether the net's run has a report; its `results.json` is copied then."""
    folder = out / "runs" / net.name
    program = "from pipeline.cli import main; main()"
    command = [sys.executable, "-c", program, "run", *front.common, *net.run, "--out", str(folder)]
    log.info("%s", net.name)
    code = subprocess.run(command, check=False, stdout=subprocess.DEVNULL).returncode
    if code not in _JUDGED:
        log.warning("%s: exit code %d: left out", net.name, code)
        return False
    (out / "results").mkdir(exist_ok=True)
    shutil.copyfile(report_folder(folder) / RESULTS, out / "results" / f"{net.name}.json")
    return True


def _measure(
    front: Front, nets: Sequence[Net], out: Path, assets: Path
) -> tuple[list[Dot], dict[str, object]]:
    """All models of all nets, in one process: what was measured, and where."""
    models = dict(_models(nets, out))
    settings = BenchSettings(sizes=(front.size,), min_time_s=3.0, min_samples=25)
    multiples = {key: one.model.multiple for key, one in models.items()}
    with ExitStack() as stack:
        sessions = {key: stack.enter_context(closing(one.open())) for key, one in models.items()}
        others = OtherPrograms()
        found = compare(sessions, front.size, settings, multiples=multiples)
        share = others.share()
        scores = {front.sets[0]: {key: _scored(one) for key, one in models.items()}}
        for name in front.sets[1:]:
            images = find_set(assets / "test" / name, front.scale)
            scores[name] = _score(sessions, models, images, front.scale)
    unit = statistics.median(found[front.unit].samples_s)
    dots = [_dot(models[key], found[key], unit) for key in models]
    dots = [
        replace(dot, psnr_y_db={name: own[dot.key] for name, own in scores.items()}) for dot in dots
    ]
    facts = {
        "command": "python -m benchmarks.front",
        "commit": commit(),
        "host": describe_host().cpu,
        "other_programs": round(share, 3),
        "unit": front.unit,
        "unit_ms": round(unit * 1e3, 3),
        "size": list(front.size),
    }
    return sorted(_rank(dots, front.sets[0]), key=lambda dot: dot.of_unit), facts


@dataclass(frozen=True)
class _Opened:
    """A model of a bundle, and the net that it is of."""

    net: Net
    model: Model
    bundle: Path

    def open(self) -> Session:
        return find(self.model.target).open(self.model.built(self.bundle))


def _models(nets: Sequence[Net], out: Path) -> Iterator[tuple[str, _Opened]]:
    for net in nets:
        bundle = out / "runs" / net.name / "bundle"
        for model in manifest.read(bundle).models:
            yield f"{net.name} {model.target} {model.precision}", _Opened(net, model, bundle)


def _scored(one: _Opened) -> float:
    """Mean PSNR-Y on the set of its run."""
    found = read_results(report_folder(one.bundle.parent) / RESULTS)
    wanted = ("student", one.model.target, one.model.precision)
    m = next(m for m in found.measurements if (m.role, m.target, m.precision) == wanted)
    return mean_of(m) or math.nan


def _score(
    sessions: Mapping[str, Session], models: Mapping[str, _Opened], images: ImageSet, scale: int
) -> dict[str, float]:
    """Mean PSNR-Y of each model on a set."""
    scores: dict[str, list[float]] = {key: [] for key in sessions}
    for member in images.members:
        hr = crop_to_multiple(read_rgb(member.hr), scale)
        lr = read_rgb(member.lr) if member.lr else downscale(hr, scale)
        for key, session in sessions.items():
            sr = upscale(session, lr, scale=scale, multiple=models[key].model.multiple)
            scores[key].append(psnr_y(sr, hr, border=scale))
    return {key: statistics.fmean(own) for key, own in scores.items()}


def _dot(one: _Opened, latency: Latency, unit_s: float) -> Dot:
    samples = latency.samples_s
    p50, p90 = (float(np.quantile(samples, q)) if samples else math.nan for q in (0.5, 0.9))
    return Dot(
        net=one.net.name,
        target=one.model.target,
        precision=one.model.precision,
        ours=one.net.ours or one.model.precision not in FLOATS,
        p50_ms=p50 * 1e3,
        p90_ms=p90 * 1e3,
        of_unit=p50 / unit_s,
        invalid_because=latency.invalid_because,
    )


def _rank(dots: Sequence[Dot], by: str) -> Iterator[Dot]:
    """With what stands on the front, by time and PSNR on a set; a time that is INVALID does not."""
    theirs = [dot for dot in dots if not dot.ours]
    for dot in dots:
        counts = not dot.invalid_because
        beyond = counts and dot.ours and not _is_beaten(dot, theirs, by)
        yield replace(dot, on_front=counts and not _is_beaten(dot, dots, by), beyond=beyond)


def _is_beaten(dot: Dot, rivals: Sequence[Dot], by: str) -> bool:
    """Whether another one is as fast and as good."""
    return any(
        one.of_unit <= dot.of_unit and one.psnr_y_db[by] >= dot.psnr_y_db[by]
        for one in rivals
        if one is not dot and not one.invalid_because
    )


def _rows(dots: Sequence[Dot], front: Front) -> Iterator[str]:
    yield "| Net | Runtime | | of the unit | p50 ms | " + " | ".join(front.sets) + " | |"
    yield "|---|---|---|---:|---:|" + "---:|" * len(front.sets) + "---|"
    for dot in dots:
        title = _TITLES.get(dot.target, dot.target)
        scores = " | ".join(f"{dot.psnr_y_db[name]:.3f}" for name in front.sets)
        note = ", ".join(
            text for text, holds in (("front", dot.on_front), ("ours", dot.ours)) if holds
        )
        yield (
            f"| {dot.net} | {title} | {dot.precision.upper()} | {dot.of_unit:.3f} | "
            f"{dot.p50_ms:.1f} | {scores} | {note}{dot.invalid_because and ', INVALID'} |"
        )


def _draw(dots: Sequence[Dot], front: Front) -> str:
    """What is on the front, of ours and of what can be downloaded, as a file of its own."""
    by = front.sets[0]
    theirs = [dot for dot in dots if not (dot.ours or dot.invalid_because)]
    shown = [dot for dot in dots if dot.on_front] + [
        dot for dot in theirs if not (dot.on_front or _is_beaten(dot, theirs, by))
    ]
    points = [
        Point(
            x=dot.of_unit,
            y=dot.psnr_y_db[by],
            name=f"{dot.net} {dot.precision.upper()}",
            colour=int(dot.ours),
            shape=SHAPES.get(dot.precision, "circle"),
            hollow=not dot.on_front,
        )
        for dot in shown
    ]
    x = f"time, in units of {front.unit}"
    plot = scatter(points, title=f"PSNR-Y on {by} against time", x=x, y=f"PSNR-Y {by}, dB")
    plot = plot.replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1)
    return plot.replace(">", f">{_STYLE}", 1) + "\n"


if __name__ == "__main__":
    main()
