"""What INT8 loses by number and choice of the patches that its ranges are read from.

`python -m benchmarks.calibration MODEL --data PHOTOS [--target openvino] [--counts 4,16,64]`

MODEL is a checkpoint or FAMILY:SIZE. Everything is in INT8, so that ranges are all that differs;
losses are PSNR-Y below the target's own FP32 on photos held out, and on drawn pages:
mean, and the crop that loses most. "spread" is our choice, by edges, brightness and colour;
"random" draws patches of the same photos.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np

from benchmarks.own_tools import graph_of
from calibration.holdout import hold
from calibration.patches import choose, split
from calibration.search import Loss
from mipkd.core.records import Graph, Holdout, PatchSet, Photos
from mipkd.distill.data import prepare_photos
from pipeline.quantize.evaluator import Evaluator
from targets.base import BuildRequest, Target, find

_SIDE = 64  # LR pixels of a patch
_CROPS, _PAGES, _CROP = 24, 6, 80  # of the holdout


def main() -> None:
    """Print one row a count and choice: mean over seeds, and the seeds' range."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", metavar="MODEL")
    parser.add_argument("--data", type=Path, required=True, help="folder of HR photos")
    parser.add_argument("--target", default="openvino")
    parser.add_argument("--counts", default="4,16,64")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--json", action="store_true", help="one JSON object instead of a table")
    asked = parser.parse_args()
    counts = [int(count) for count in asked.counts.split(",")]
    with tempfile.TemporaryDirectory() as folder:
        found = list(_studied(asked, counts, Path(folder)))
    if asked.json:
        print(json.dumps(found, indent=1))
        return
    print("| Patches | Choice | Mean dB (least to most of the seeds) | Worst crop dB |")
    print("|---:|---|---|---|")
    for row in found:
        print(
            f"| {row['count']} | {row['choice']} | {_cell(row['mean'])} | {_cell(row['worst'])} |"
        )


def _cell(values: list[float]) -> str:
    return f"{statistics.fmean(values):.4f} ({min(values):.4f} to {max(values):.4f})"


def _studied(
    asked: argparse.Namespace, counts: list[int], folder: Path
) -> Iterator[dict[str, object]]:
    graph, target = graph_of(asked.model, folder / "graph"), find(asked.target)
    scale = graph.scale
    (folder / "photos").mkdir()
    photos = prepare_photos(asked.data, scale=scale, patch=_SIDE, out=folder / "photos")
    held = [_held(photos, seed, folder / f"held-{seed}") for seed in range(asked.seeds)]
    for count in counts:
        for choice, draw in (("random", random_patches), ("spread", choose)):
            losses = []
            for seed in range(asked.seeds):
                place = folder / f"{choice}-{count}-{seed}"
                place.mkdir()
                patches = draw(photos, count=count, size=_SIDE, seed=seed, out=place)
                losses.append(_loss(target, graph, patches, held[seed], place))
            yield {
                "count": count,
                "choice": choice,
                "mean": [loss.mean_db for loss in losses],
                "worst": [loss.worst_db for loss in losses],
            }


def _held(photos: Photos, seed: int, out: Path) -> Holdout:
    """Each seed parts the photos otherwise, for both choices alike."""
    out.mkdir()
    sizes = {"count": _CROPS, "pages": _PAGES, "size": _CROP}
    return hold(photos, **sizes, seed=seed, split_seed=seed, out=out)


def random_patches(photos: Photos, *, count: int, size: int, seed: int, out: Path) -> PatchSet:
    """Patches as they come, of the photos that `choose` takes its own from."""
    mine, _ = split(photos, seed)
    large = [p.lr_HWC for p in mine if min(p.lr_HWC.shape[:2]) >= size]
    rng = np.random.default_rng(seed)
    drawn = []
    for _ in range(count):
        image = large[rng.integers(len(large))]
        top, left = (rng.integers(side - size + 1) for side in image.shape[:2])
        drawn.append(image[top : top + size, left : left + size])
    np.save(out / "patches.npy", np.stack(drawn))
    return PatchSet(out / "patches.npy", "", photos.source, count=count, size=(size, size))


def _loss(target: Target, graph: Graph, patches: PatchSet, held: Holdout, folder: Path) -> Loss:
    tuner = target.tuner(BuildRequest(graph, "int8", folder, patches))
    assert tuner is not None, f"{target.name} has a fixed recipe for {graph.family}"
    evaluator = Evaluator(tuner, held, multiple=graph.multiple, folder=folder)
    with closing(
        target.open(target.build(BuildRequest(graph, "fp32", folder / "fp32")))
    ) as session:
        evaluator.hold_against(session)
    return evaluator.loss(tuner.range_estimators[0], ())


if __name__ == "__main__":
    main()
