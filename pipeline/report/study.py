"""A study's page, table and files."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import tomli_w
from markupsafe import Markup

from mipkd.core.codec import encode
from mipkd.core.durable import new_folder
from mipkd.core.measurement import ImageScore
from mipkd.core.study import SetScores, Study
from mipkd.core.texts import write_text
from pipeline.bench.stats import Estimate, mean_over_seeds, mean_over_seeds_and_images
from pipeline.report.curves import read_rows, series
from pipeline.report.plots import COLOURS, Curve, Span, lines, spans
from pipeline.report.tables import Row, Table
from pipeline.report.wording import NONE, number, signed
from pipeline.report.write import environment, others_in

REPEATS = "95 % interval of the mean over seeds, on these images"
EQUAL_TIME = (
    "Rows with seconds had that long to train, first weights included; validation, checkpoints "
    "and the teacher's cache, which all arms share, not: their steps are what fits, by a pace that "
    "was measured on this machine beforehand; their differences are to the other arm's same row"
)
# What an arm is that is there to be compared with, not to be used.
ABOUT = {
    "control": "control is the mixture of priors with nothing in the mixture: no element of the "
    "student's in the mask and no block of the teacher's, so that the thing under test is absent"
}


@dataclass(frozen=True)
class Difference:
    """dB of PSNR-Y over another arm, and how many seeds and images both have."""

    db: Estimate
    seeds: int
    images: int

    @property
    def known(self) -> bool:
        """Whether there is an interval: one training, or one image, tells no spread."""
        return math.isfinite(self.db.high)

    @property
    def over(self) -> str:
        """What the figures are over, and what is not known."""
        images = f"{self.images} images" if self.images > 1 else "one image"
        if self.seeds == 1:
            return f"over {images}; spread over trainings not known: one seed"
        return f"over {self.seeds} seeds and {images}"


@dataclass(frozen=True)
class Line:
    """One arm on one test set."""

    test: str
    arm: str
    seeds: int
    psnr_y_db: Estimate
    ssim_y: Estimate
    against: dict[str, Difference | None]  # other arms, at the same steps or seconds
    steps: int | None
    seconds: float | None  # median of the trainings, validation and checkpoints included
    peak_rss_bytes: int | None


def lines_of(study: Study) -> list[Line]:
    """All arms, test set by test set; bicubic first and the teacher last."""
    found: list[Line] = []
    for number_of_set, bicubic in enumerate(study.bicubic_scores):
        name = set_name(bicubic)
        found.append(_format_fixed(name, "bicubic", bicubic, study))
        for arm in _arms(study):
            found.append(_line(name, arm, number_of_set, study))
        found.append(_format_fixed(name, "teacher", study.teacher_scores[number_of_set], study))
    return found


def set_name(scores: SetScores) -> str:
    """The last part of where a test set lies."""
    return Path(scores.source).name or scores.source


def write_study(study: Study, out: Path) -> Path:
    """Write `index.html`, `study.md` and `study.json` into `out`; gives the path of the page."""
    table = lines_of(study)
    facts = {"study": encode(study), "lines": encode(table)}
    template = environment(html=True).get_template("study.html.j2")
    page = template.render(
        s=study,
        table=_table(study, table),
        plots=[(name, Markup(svg)) for name, svg in _plots(study, table)],
        curves=Markup(_curves(study)),
        legend=[(arm, i % COLOURS) for i, arm in enumerate(_arms(study))],
        config=tomli_w.dumps(study.config),
        repeats=REPEATS,
        notes=_notes(study, table),
    )
    with new_folder(out, keep=others_in) as partial:
        write_text(partial / "study.json", json.dumps(facts, indent=1, allow_nan=False))
        write_text(partial / "study.md", markdown(study))
        write_text(partial / "index.html", page)
    return out / "index.html"


def markdown(study: Study) -> str:
    """The table and what it was made with."""
    head, found = _head(study), lines_of(study)
    rows = [head, ["---"] * len(head), *(_cells(line, study) for line in found)]
    said = _notes(study, found)
    table = "\n".join("| " + " | ".join(row) + " |" for row in rows)
    notes = "".join(f"\nNot trained: {line}\n" for line in study.missing)
    return (
        f"# {study.name}\n\n{table}\n\nPSNR-Y and SSIM-Y: {REPEATS}. {' '.join(said)}\n"
        f"{notes}\nTeacher {study.teacher.arch} {study.teacher.params:,} parameters, student "
        f"{study.student.arch} {study.student.params:,}; photos: {study.photos.count} of "
        f"{study.photos.source}; {study.host.cpu}, {study.host.cores} cores; {study.created}, "
        f"commit {study.commit}.\nAgain: `{study.command}`\n"
    )


def table_of(study: Study) -> tuple[list[str], list[list[str]]]:
    """Head and rows, as text."""
    return _head(study), [_cells(line, study) for line in lines_of(study)]


def _table(study: Study, found: Sequence[Line]) -> Table:
    rows = [Row("arm" if line.seeds else "reference", _cells(line, study)) for line in found]
    return Table(_head(study), rows, first=2)


def _line(name: str, arm: str, index: int, study: Study) -> Line:
    trained = [t for t in study.trained if t.name == arm]
    psnr = [_mean(t.scores[index].images, "psnr_y") for t in trained]
    ssim = [_mean(t.scores[index].images, "ssim_y") for t in trained]
    peaks = [t.peak_rss_bytes for t in trained if t.peak_rss_bytes]
    return Line(
        test=name,
        arm=arm,
        seeds=len(trained),
        psnr_y_db=mean_over_seeds(psnr),
        ssim_y=mean_over_seeds(ssim),
        against={other: difference(study, arm, other, index) for other in study.against},
        steps=trained[0].steps,
        seconds=statistics.median(t.seconds for t in trained),
        peak_rss_bytes=max(peaks, default=None),
    )


def difference(study: Study, arm: str, other: str, index: int) -> Difference | None:
    """dB of PSNR-Y that the row `arm` has over the arm `other` at the same steps or seconds:
    paired by image, of the seeds both have."""
    mine = {t.seed: t for t in study.trained if t.name == arm and t.arm != other}
    each = [
        [a.psnr_y_db - b.psnr_y_db for a, b in zip(*pair, strict=True)]
        for t in study.trained
        if t.arm == other and t.seed in mine and t.budget_s == mine[t.seed].budget_s
        for pair in [(mine[t.seed].scores[index].images, t.scores[index].images)]
    ]
    if not each:
        return None
    return Difference(mean_over_seeds_and_images(each), len(each), len(each[0]))


def _format_fixed(name: str, arm: str, scores: SetScores, study: Study) -> Line:
    nan = float("nan")
    psnr, ssim = (_mean(scores.images, metric) for metric in ("psnr_y", "ssim_y"))
    return Line(
        name,
        arm,
        0,
        Estimate(psnr, nan, nan),
        Estimate(ssim, nan, nan),
        dict.fromkeys(study.against),
        None,
        None,
        None,
    )


def _mean(images: Sequence[ImageScore], metric: str) -> float:
    return statistics.fmean(image.metrics[metric] for image in images)


def _head(study: Study) -> list[str]:
    gains = [f"dB over {other}" for other in study.against]
    return [
        "Test set",
        "Arm",
        "Seeds",
        "PSNR-Y dB",
        "SSIM-Y",
        *gains,
        "Steps",
        "Seconds",
        "Peak MB",
    ]


def _cells(line: Line, study: Study) -> list[str]:
    return [
        line.test,
        line.arm,
        str(line.seeds or NONE),
        _with_reach(line.psnr_y_db, 3),
        _with_reach(line.ssim_y, 4),
        *(_gain(line.against[other]) for other in study.against),
        str(line.steps or NONE),
        number(line.seconds, 0),
        number(line.peak_rss_bytes / 1e6 if line.peak_rss_bytes else None, 0),
    ]


def _with_reach(interval: Estimate, digits: int) -> str:
    reach = interval.high - interval.value
    known = f" ± {number(reach, digits)}" if math.isfinite(reach) else ""
    return number(interval.value, digits) + known


def _gain(found: Difference | None) -> str:
    if found is None:
        return NONE
    spread = f"{signed(found.db.low, 3)} to {signed(found.db.high, 3)}"
    if not found.known:
        spread = "not known: one seed" if found.seeds == 1 else "not known: one image"
    return f"{signed(found.db.value, 3)} ({spread})"


def _notes(study: Study, table: Sequence[Line]) -> list[str]:
    """Over what the differences are, what rows at equal time are, and what a control is."""
    sets: dict[str, list[str]] = {}
    for line in table:
        for found in (found for found in line.against.values() if found):
            named = sets.setdefault(found.over, [])
            named += [line.test] if line.test not in named else []
    over = ". ".join(f"{', '.join(named)}: {what}" for what, named in sets.items())
    notes = [f"Differences and their 95 % intervals, {over}."] if over else []
    if any(t.budget_s for t in study.trained):
        notes.append(f"{EQUAL_TIME}.")
    arms = {t.arm for t in study.trained}
    return notes + [f"{about}." for arm, about in ABOUT.items() if arm in arms]


def _arms(study: Study) -> list[str]:
    return list(dict.fromkeys(t.name for t in study.trained))


def _plots(study: Study, table: Sequence[Line]) -> Iterator[tuple[str, str]]:
    """For each test set, what each arm has over the last of `against`."""
    if not study.against:
        return
    other = study.against[-1]
    for name in dict.fromkeys(line.test for line in table):
        drawn = [
            Span(
                line.arm, found.db.value, found.db.low, found.db.high, _arms(study).index(line.arm)
            )
            for line in table
            if line.test == name and (found := line.against.get(other)) and found.known
        ]
        if drawn:
            yield name, spans(drawn, title=f"{name}: PSNR-Y over {other}", x=f"dB over {other}")


def _curves(study: Study) -> str:
    """Validation PSNR over the steps, mean over seeds."""
    drawn = []
    for colour, arm in enumerate(_arms(study)):
        found = [series(read_rows(t.curves), "psnr_y_db") for t in study.trained if t.name == arm]
        steps = sorted(set.intersection(*(set(xs) for xs, _ in found)))[1:]  # not the start
        values = [statistics.fmean(dict(zip(*f, strict=True))[x] for f in found) for x in steps]
        if len(steps) > 1:
            drawn.append(Curve(arm, steps, values, colour % COLOURS))
    return lines(drawn, title="Validation PSNR-Y", x="step", y="PSNR-Y, dB") if drawn else ""
