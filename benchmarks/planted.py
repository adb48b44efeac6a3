"""How often `check` finds a fault planted in a bundle whose hashes were made anew.

`python -m benchmarks.planted BUNDLE... [--count 100] [--alarms 200] [--json FILE]`

Each fault is put into an ONNX model of a copy (targets `cpu`), or into its figures, then manifest
and sizes are made to fit. Bundles take turns; the seed decides model, channel, place and bound. A
slower graph is looked for beside the untouched bundle as baseline, on an idle machine.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from mipkd.core.evidence import Outcome
from pipeline.bundle import manifest
from pipeline.judge.check import check, check_recorded
from targets.base import files_of

TILE = 32  # SR pixels
_BRIGHT = (0.9, 0.999)  # of the range: a net that fails on white, or on what is nearly white

Random = np.random.Generator
Rewrite = Callable[[onnx.ModelProto, Random], None]


def all_black(model: onnx.ModelProto, _: Random) -> None:
    """Every value 0."""
    _after(model, [helper.make_node("Mul", ["was", "zero"], ["sr"])], zero=np.float32(0))


def blank_tile(model: onnx.ModelProto, rng: Random) -> None:
    """One tile of the image is black."""
    top, left = (TILE * int(rng.integers(0, 3)) for _ in range(2))
    ends = {"a": 0, "t": top, "b": top + TILE, "l": left, "r": left + TILE, "z": 2**31 - 1}
    arrays = {f"end_{name}": np.array([end], np.int64) for name, end in ends.items()}
    arrays |= {"axis_2": np.array([2], np.int64), "axis_3": np.array([3], np.int64)}

    def cut(of: str, to: str, start: str, stop: str, axis: int) -> onnx.NodeProto:
        inputs = [of, f"end_{start}", f"end_{stop}", f"axis_{axis}"]
        return helper.make_node("Slice", inputs, [to])

    nodes = [
        *(cut("was", "above", "a", "t", 2), cut("was", "row", "t", "b", 2)),
        *(cut("was", "below", "b", "z", 2), cut("row", "before", "a", "l", 3)),
        *(cut("row", "tile", "l", "r", 3), cut("row", "behind", "r", "z", 3)),
        helper.make_node("Mul", ["tile", "zero"], ["blank"]),
        helper.make_node("Concat", ["before", "blank", "behind"], ["joined"], axis=3),
        helper.make_node("Concat", ["above", "joined", "below"], ["sr"], axis=2),
    ]
    _after(model, nodes, zero=np.float32(0), **arrays)


def tint(model: onnx.ModelProto, rng: Random) -> None:
    """One channel is a level brighter or darker."""
    shift = np.zeros((1, 3, 1, 1), np.float32)
    shift[0, rng.integers(3)] = rng.choice([-1, 1]) / 255
    _after(model, [helper.make_node("Add", ["was", "shift"], ["sr"])], shift=shift)


def nan_on_bright(model: onnx.ModelProto, rng: Random) -> None:
    """No number wherever some input value is above a bound."""
    image = model.graph.input[0].name
    nodes = [
        helper.make_node("ReduceMax", [image], ["most"], keepdims=0),
        helper.make_node("Sub", ["bound", "most"], ["left"]),
        helper.make_node("Sqrt", ["left"], ["root"]),
        helper.make_node("Mul", ["root", "zero"], ["nothing"]),
        helper.make_node("Add", ["was", "nothing"], ["sr"]),
    ]
    _after(model, nodes, zero=np.float32(0), bound=np.float32(rng.uniform(*_BRIGHT)))


def twice_the_work(model: onnx.ModelProto, rng: Random) -> None:
    """The whole graph again, on an input that differs by nothing that can be seen."""
    graph, image = model.graph, model.graph.input[0].name
    made = {name for node in graph.node for name in node.output}
    again = {name: f"again_{name}" for name in (*made, image)}
    head = helper.make_node("Add", [image, "planted_eps"], [again[image]])
    copies = [head]
    for node in graph.node:
        copy = onnx.NodeProto()
        copy.CopyFrom(node)
        copy.name = f"again_{node.name}"
        copy.input[:] = [again.get(name, name) for name in node.input]
        copy.output[:] = [again.get(name, name) for name in node.output]
        copies.append(copy)
    nodes = [
        helper.make_node("Mul", [again[graph.output[0].name], "zero"], ["nothing"]),
        helper.make_node("Add", ["was", "nothing"], ["sr"]),
    ]
    _after(model, nodes, zero=np.float32(0), eps=np.float32(rng.uniform(1e-6, 2e-6)))
    for copy in reversed(copies):
        graph.node.insert(0, copy)


def _after(model: onnx.ModelProto, nodes: Sequence[onnx.NodeProto], **arrays: Any) -> None:
    """Nodes between what gave the output ("was") and the output ("sr")."""
    graph, name = model.graph, model.graph.output[0].name
    for node in graph.node:
        for names in (node.input, node.output):
            names[:] = ["planted_was" if one == name else one for one in names]
    known = {"was": "planted_was", "sr": name}
    known |= {n: f"planted_{n}" for node in nodes for n in node.output if n != "sr"}
    known |= {n: f"planted_{n}" for n in arrays}
    for node in nodes:
        node.input[:] = [known.get(n, n) for n in node.input]
        node.output[:] = [known.get(n, n) for n in node.output]
    graph.node.extend(nodes)
    graph.initializer.extend(
        numpy_helper.from_array(np.asarray(v), f"planted_{k}") for k, v in arrays.items()
    )


GRAPHS: dict[str, Rewrite] = {
    "all black": all_black,
    "one blank tile": blank_tile,
    "tint of a level": tint,
    "NaN on bright inputs": nan_on_bright,
    "twice the work": twice_the_work,
}


def plant(bundle: Path, fault: str, rng: Random) -> None:
    """A fault in one of a bundle's models on ONNX Runtime, or in its figures; hashes fit again."""
    models = [m for m in manifest.read(bundle).models if m.target == "cpu"]
    files = {m.precision: bundle / m.file for m in models}
    if fault in GRAPHS:
        file = files[str(rng.choice(sorted(files)))]
        model = onnx.load(file)
        GRAPHS[fault](model, rng)
        onnx.save(model, file)
    elif fault == "INT8 swapped for FP32":
        shutil.copyfile(files["fp32"], files["int8"])
    elif fault == "FP32 swapped for INT8":
        shutil.copyfile(files["int8"], files["fp32"])
    else:
        _forge(bundle, str(rng.choice(sorted(files))), rng)
    make_fit(bundle)


def _forge(bundle: Path, precision: str, rng: Random) -> None:
    """Every image of one model is better than it was, by a hundredth to half a decibel."""
    file = bundle / "quality" / f"cpu-{precision}.json"
    stated = json.loads(file.read_text())
    more = float(rng.uniform(0.01, 0.5))
    for score in stated["scores"]:
        score["metrics"]["psnr_y"] += more
    file.write_text(json.dumps(stated))


def make_fit(bundle: Path) -> None:
    """Write manifest and sizes of what lies there now, as someone with bad intentions would."""
    stated = manifest.read(bundle)
    models = []
    for model in stated.models:
        size = sum(file.stat().st_size for file in files_of(model.built(bundle)))
        models.append(replace(model, size_bytes=size))
        for kind in ("bench", "quality"):
            file = bundle / kind / f"{model.name}.json"
            if file.is_file():
                figures = json.loads(file.read_text())
                file.write_text(json.dumps(figures | {"size_bytes": size}))
    files = manifest.list_files(bundle)
    manifest.write(replace(stated, models=tuple(models), files=files), bundle)


FAULTS = (*GRAPHS, "INT8 swapped for FP32", "FP32 swapped for INT8", "forged figures")


def is_found(bundle: Path, fault: str, rng: Random) -> tuple[bool, str]:
    """Whether `check` fails a copy with the fault, and by which gates."""
    with TemporaryDirectory() as folder:
        copy = Path(shutil.copytree(bundle, Path(folder) / "bundle"))
        if fault:
            plant(copy, fault, rng)
        if fault == "twice the work":
            found = check(copy, ["bench.sizes=[[64,64]]", "bench.attempts=1"], bundle)
        else:
            found = check(copy)
        names = {gate.name.split(" at ")[0] for gate in _new_failures(found.gates, bundle)}
        return bool(names), ", ".join(sorted(names))


def _new_failures(gates: Sequence[Any], bundle: Path) -> list[Any]:
    """What fails and did not fail by the bundle's own recorded figures."""
    known = {(g.name, g.subject) for g in check_recorded(bundle).gates if g.outcome is Outcome.FAIL}
    return [g for g in gates if g.outcome is Outcome.FAIL and (g.name, g.subject) not in known]


def main() -> None:
    """Print how many of each fault were found; exit with 1 if one was not, or at a false alarm."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundles", type=Path, nargs="+")
    parser.add_argument("--count", type=int, default=100, help="of each fault")
    parser.add_argument("--alarms", type=int, default=200, help="looks at untouched bundles")
    parser.add_argument("--faults", default=",".join(FAULTS), help="separated by commas")
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    rows = []
    for fault in [*filter(None, asked.faults.split(",")), ""]:
        count, found, by = asked.count if fault else asked.alarms, 0, Counter[str]()
        start = time.monotonic()
        for seed in range(count):
            bundle = asked.bundles[seed % len(asked.bundles)]
            seen, names = is_found(bundle, fault, np.random.default_rng(seed))
            found, by = found + seen, by + Counter([names])
        seconds = time.monotonic() - start
        name = fault or "untouched (false alarms)"
        rows.append({"fault": name, "found": found, "of": count, "by": dict(by)})
        print(f"{name}: {found} of {count}, {seconds / max(1, count):.1f} s each; by {dict(by)}")
    if asked.json:
        asked.json.write_text(json.dumps(rows, indent=1))
    well = all(row["found"] == (row["of"] if row["fault"] in FAULTS else 0) for row in rows)
    sys.exit(0 if well else 1)


if __name__ == "__main__":
    main()
