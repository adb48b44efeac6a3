"""The model card: what the models are, how to use them, their figures and their conditions."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from markupsafe import Markup

from mipkd.core.evidence import Evidence
from pipeline.bench.comparisons import NOT_MEASURED, RAN_EMULATED
from pipeline.bundle import manifest
from pipeline.bundle.golden import BundleConfig
from pipeline.bundle.hub import front_matter
from pipeline.bundle.licences import find_root, licence_warning
from pipeline.bundle.provenance import command, source, without_paths
from pipeline.report import wording
from pipeline.report.figures import Figures, ModelFigures
from pipeline.report.markup import code
from pipeline.report.tables import Row, Table, images_used, sizes_of
from pipeline.report.write import environment

_UNTIMED = ("simulated", "emulated")
_UNSEEN = "not measured on the device"


def card(
    evidence: Evidence,
    figures: Figures,
    models: Sequence[manifest.Model],
    golden: str,
    config: BundleConfig,
) -> str:
    """`README.md` of a bundle; `golden` is an image that it holds."""
    text = (
        environment(html=False)
        .get_template("card.md.j2")
        .render(
            r=evidence,
            f=figures,
            w=wording,
            to=wording.TO[evidence.tests.against],
            models=models,
            table=_table(evidence, figures, models),
            photos=source(evidence.photos) if evidence.photos else "",
            tests=source(evidence.tests),
            detail=images_used(evidence)[0].detail,
            command=shlex.join(command(evidence)),
            warning=licence_warning(find_root(evidence)),
            golden=golden,
            unseen=[m for m in models if m.kind == "simulated"],
            emulated=[m for m in models if m.kind == "emulated"],
            ran_emulated=RAN_EMULATED,
            not_measured=NOT_MEASURED,
        )
    )
    return str(without_paths(front_matter(evidence, config, models) + "\n" + text))


def _table(evidence: Evidence, figures: Figures, models: Sequence[manifest.Model]) -> Table:
    pairs = zip(evidence.measurements, figures.models, strict=True)
    measured = {(m.target, m.precision): (m, f) for m, f in pairs if m.role == "student"}
    sizes = sizes_of(evidence.measurements)
    size = sizes[-1] if sizes else (0, 0)
    at = f" at LR {wording.as_size(*size)}" if sizes else ""
    head = ["Target", "Precision", "File", "Size", f"p50 ms{at}", "× teacher"]
    to = wording.TO[evidence.tests.against]
    head += [f"PSNR-Y{to} dB", f"SSIM-Y{to}", "Worst drop dB", "Measured on"]
    rows = []
    for model in models:
        m, found = measured.get((model.target, model.precision), (None, None))
        host = (m and m.host) or evidence.host
        where = {"measured": f"{host.cpu}, {host.cores} cores", "simulated": _UNSEEN}
        where["emulated"] = f"{host.cpu}, emulated"
        target = f"{model.target} ({model.kind})" if model.kind in _UNTIMED else model.target
        cells = [target, model.precision, Markup(f"`{code(model.file)}`".replace("|", "\\|"))]
        cells += [wording.megabytes(model.size_bytes), *_speed(found, size, model.kind)]
        cells += _pixels(found)
        rows.append(Row(model.kind, [*cells, where.get(model.kind, "failed, see below")]))
    return Table(head, rows, first=3, last=9)


def _speed(found: ModelFigures | None, size: tuple[int, int], kind: str) -> list[str]:
    if kind in _UNTIMED:
        return [_UNSEEN, wording.NONE]
    one = next((one for one in found.latencies if one.size == size), None) if found else None
    if one and one.invalid_because:
        return ["INVALID", wording.NONE]
    over = one.over_teacher if one else None
    return [
        wording.milliseconds(one.p50_ms.value if one and one.p50_ms else None),
        wording.interval(over) if over else wording.NONE,
    ]


def _pixels(found: ModelFigures | None) -> list[str]:
    quality = found.quality if found else {}
    psnr_y, ssim_y = quality.get("psnr_y"), quality.get("ssim_y")
    return [
        wording.number(psnr_y.mean if psnr_y else None, 3),
        wording.number(ssim_y.mean if ssim_y else None, 4),
        wording.number(psnr_y.worst_drop if psnr_y else None, 3),
    ]
