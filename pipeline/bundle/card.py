"""The model card: what the models are, how to use them, their figures and their conditions."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence

from mipkd.core.evidence import Evidence
from mipkd.core.records import Model
from pipeline.bench.comparisons import NOT_MEASURED
from pipeline.bundle import manifest
from pipeline.bundle.provenance import command, source, without_paths
from pipeline.report import wording
from pipeline.report.schema import MeasurementResult, Results
from pipeline.report.tables import Row, Table
from pipeline.report.write import cell, environment

_UNSEEN = "not measured on the device"
_NON_COMMERCIAL = re.compile(
    r"non.?commercial|research.only|academic|\bby-nc\b|(^|-)nc(-|$)", re.IGNORECASE
)


def card(
    evidence: Evidence, results: Results, models: Sequence[manifest.Model], golden: str
) -> str:
    """`README.md` of a bundle; `golden` is an image that it holds."""
    template = environment(html=False)
    template.filters["cell"] = cell
    text = template.get_template("card.md.j2").render(
        r=results,
        w=wording,
        models=models,
        table=_table(evidence, results, models),
        photos=source(evidence.photos) if evidence.photos else "",
        tests=source(evidence.tests),
        command=shlex.join(command(evidence)),
        warning=licence_warning(_root(evidence)),
        golden=golden,
        unseen=[m for m in models if m.kind == "simulated"],
        not_measured=NOT_MEASURED,
    )
    return str(without_paths(text))


def licence_warning(model: Model) -> str:
    """What a licence forbids or leaves open; "" when it does neither."""
    if model.licence.strip().lower() in ("", "unknown", "none", "other"):
        return (
            f"The licence of the {model.role}'s weights is unknown. Until you know it, you may not "
            "have the right to use or to pass on these models"
        )
    if _NON_COMMERCIAL.search(model.licence):
        return (
            f"The {model.role}'s weights are under {model.licence}: not for commercial use, and "
            "neither are these models"
        )
    return ""


def _root(evidence: Evidence) -> Model:
    """Where the conditions of the weights come from."""
    taught = evidence.distilled and evidence.teacher
    return evidence.teacher if taught and evidence.teacher else evidence.student


def _table(evidence: Evidence, results: Results, models: Sequence[manifest.Model]) -> Table:
    measured = {(m.target, m.precision): m for m in results.measurements if m.role == "student"}
    hosts = {(m.target, m.precision): m.host for m in evidence.measurements if m.host}
    sizes = {(one.height, one.width) for m in results.measurements for one in m.latencies}
    size = max(sizes, key=lambda s: s[0] * s[1], default=(0, 0))
    at = f" at LR {wording.as_size(*size)}" if sizes else ""
    head = ["Target", "Precision", "File", "Size", f"p50 ms{at}", "× teacher"]
    head += ["PSNR-Y dB", "SSIM-Y", "Worst drop dB", "Measured on"]
    rows = []
    for model in models:
        m = measured.get((model.target, model.precision))
        host = hosts.get((model.target, model.precision), evidence.host)
        where = {"measured": f"{host.cpu}, {host.cores} cores", "simulated": _UNSEEN}
        target = f"{model.target} (simulated)" if model.kind == "simulated" else model.target
        cells = [target, model.precision, f"`{model.file}`"]
        cells += [wording.megabytes(model.size_bytes), *_speed(m, size, model.kind), *_pixels(m)]
        rows.append(Row(model.kind, [*cells, where.get(model.kind, "failed, see below")]))
    return Table(head, rows, first=3, last=9)


def _speed(m: MeasurementResult | None, size: tuple[int, int], kind: str) -> list[str]:
    if kind == "simulated":
        return [_UNSEEN, wording.NONE]
    found = (one for one in m.latencies if (one.height, one.width) == size) if m else iter(())
    one = next(found, None)
    if one and one.invalid_because:
        return ["INVALID", wording.NONE]
    over = one.speedup_over_teacher if one else None
    return [
        wording.milliseconds(one.p50_ms if one else None),
        wording.interval(over.value, over.low, over.high) if over else wording.NONE,
    ]


def _pixels(m: MeasurementResult | None) -> list[str]:
    quality = m.quality if m else None
    if quality is None:
        return [wording.NONE] * 3
    return [
        wording.number(quality.psnr_y_db, 3),
        wording.number(quality.ssim_y, 4),
        wording.number(quality.worst_drop_db, 3),
    ]
