"""How often a study finds a difference where there is none: an arm against itself.

`python -m benchmarks.intervals STUDY.json...`

Each arm with at least two seeds is held against itself. "Pairs" are trainings of two seeds, by an
interval over images alone, as studies had it until 0.1.0: how many exclude 0. By the interval over
seeds and images one seed claims nothing, so its rate is simulated: two arms of three seeds each,
drawn with the standard deviations that this arm has between seeds and between the cells of seed and
image. Nominal is 5 %.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict, dataclass
from itertools import combinations, permutations
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mipkd.core.codec import decode
from mipkd.core.study import SetScores, arm_name
from pipeline.bench.stats import mean_over_seeds_and_images

MOST = 0.10  # of the 95 % intervals may exclude 0
_TRIALS, _DRAWS, _SEEDS = 1000, 2000, 3

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Row:
    """One arm on one test set."""

    study: str
    test: str
    arm: str
    images: int
    pairs: int
    excluded: int  # of the pairs, by an interval over images
    seed_db: float  # standard deviation between trainings
    cell_db: float  # of an image in a training, beside both their means
    over_images: float  # share that excludes 0, simulated with one seed each
    over_images_of_seeds: float  # with three each
    over_both: float  # with three each, by the interval over seeds and images


def main() -> None:
    """Print the table; exit with 1 when too many new intervals exclude 0."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("studies", nargs="+", type=Path, help="study.json files")
    parser.add_argument(
        "--json", type=Path, help="file for these figures and the differences between arms"
    )
    asked = parser.parse_args()
    rows = [row for file in asked.studies for row in rows_of(file)]
    print(table(rows))
    if asked.json:
        between = [one for file in asked.studies for one in differences_of(file)]
        figures = {"arms": [asdict(row) for row in rows], "differences": between}
        asked.json.write_text(json.dumps(figures, indent=1) + "\n")
    sys.exit(any(row.over_both > MOST for row in rows))


def rows_of(file: Path) -> list[Row]:
    """Every arm of a study on every test set, where it has two seeds."""
    study = json.loads(file.read_text())["study"]
    found = []
    for number, scores in enumerate(study["bicubic_scores"]):
        for arm in _arms(study):
            psnr_SI = _psnr(study, arm, number)
            if len(psnr_SI) > 1:
                found.append(_row(file.parent.name, Path(scores["source"]).name, arm, psnr_SI))
    return found


def differences_of(file: Path) -> list[dict[str, Any]]:
    """What each arm has over each other one of as many seeds in dB, over seeds and images."""
    study = json.loads(file.read_text())["study"]
    found = []
    for number, scores in enumerate(study["bicubic_scores"]):
        for arm, other in permutations(_arms(study), 2):
            ours_SI, theirs_SI = _psnr(study, arm, number), _psnr(study, other, number)
            if len(ours_SI) != len(theirs_SI):
                continue
            interval = mean_over_seeds_and_images((ours_SI - theirs_SI).tolist())
            names = {"test": Path(scores["source"]).name, "arm": arm, "over": other}
            found.append(names | {"db": asdict(interval)})
    return found


def _arms(study: dict[str, Any]) -> list[str]:
    return list(dict.fromkeys(map(_name, study["trained"])))


def _name(trained: dict[str, Any]) -> str:
    """At equal time an arm trained for other steps, and is another one."""
    return arm_name(trained["arm"], trained.get("budget_s"))


def _psnr(study: dict[str, Any], arm: str, number: int) -> Array:
    """PSNR-Y in dB, shape (seeds, images)."""
    trained = [one for one in study["trained"] if _name(one) == arm]
    sets = [decode(SetScores, one["scores"][number]) for one in trained]
    return np.array([[score.psnr_y_db for score in found.images] for found in sets])


def _row(study: str, test: str, arm: str, psnr_SI: Array) -> Row:
    pairs = [a - b for a, b in combinations(psnr_SI, 2)]
    seed_db, cell_db = _deviations(psnr_SI)
    images = psnr_SI.shape[1]
    one, three = (_differences(seed_db, cell_db, count, images) for count in (1, _SEEDS))
    new = [mean_over_seeds_and_images(values_SI.tolist()) for values_SI in three]
    return Row(
        study=study,
        test=test,
        arm=arm,
        images=images,
        pairs=len(pairs),
        excluded=int(_excluded(np.array(pairs)).sum()),
        seed_db=seed_db,
        cell_db=cell_db,
        over_images=float(_excluded(one.mean(axis=1)).mean()),
        over_images_of_seeds=float(_excluded(three.mean(axis=1)).mean()),
        over_both=float(np.mean([not i.low <= 0 <= i.high for i in new])),
    )


def _deviations(psnr_SI: Array) -> tuple[float, float]:
    """Standard deviations between seeds and of cells: two-way variance components."""
    seeds, images = psnr_SI.shape
    by_seed, by_image = psnr_SI.mean(axis=1, keepdims=True), psnr_SI.mean(axis=0)
    cells = psnr_SI - by_seed - by_image + psnr_SI.mean()
    cell = float((cells**2).sum()) / ((seeds - 1) * (images - 1))
    seed = float(by_seed.var(ddof=1)) - cell / images
    return max(0.0, seed) ** 0.5, cell**0.5


def _differences(seed_db: float, cell_db: float, seeds: int, images: int) -> Array:
    """Of two arms that are one, shape (trials, seeds, images)."""
    rng = np.random.default_rng(0)
    by_seed = rng.normal(0, seed_db, (_TRIALS, 2, seeds, 1))
    arms = by_seed + rng.normal(0, cell_db, (_TRIALS, 2, seeds, images))
    return arms[:, 0] - arms[:, 1]


def _excluded(by_image: Array) -> npt.NDArray[np.bool_]:
    """Whether the percentile bootstrap over images of each row excludes 0."""
    images = by_image.shape[1]
    counts = np.random.default_rng(0).multinomial(images, np.full(images, 1 / images), _DRAWS)
    low, high = np.percentile(by_image @ counts.T / images, (2.5, 97.5), axis=1)
    return (low > 0) | (high < 0)


def table(rows: list[Row]) -> str:
    """As Markdown, with the sums in the last line."""
    head = (
        "| Study | Set | Arm | Pairs whose interval over images excludes 0 | sd over seeds, dB | "
        "sd of cells, dB | simulated: over images, 1 seed | over images, 3 seeds | "
        "over seeds and images, 3 seeds |"
    )
    lines = [head, "|---|---|---|---|---|---|---|---|---|"]
    for row in rows:
        shares = (row.over_images, row.over_images_of_seeds, row.over_both)
        lines.append(
            f"| {row.study} | {row.test} | {row.arm} | {row.excluded} of {row.pairs} | "
            f"{row.seed_db:.3f} | {row.cell_db:.3f} | "
            + " | ".join(f"{100 * share:.1f} %" for share in shares)
            + " |"
        )
    for test in dict.fromkeys(row.test for row in rows):
        of = [row for row in rows if row.test == test]
        lines.append(
            f"| all | {test} | | {sum(r.excluded for r in of)} of {sum(r.pairs for r in of)} | "
            "| | | | |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
