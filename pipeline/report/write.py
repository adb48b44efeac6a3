"""Write a run's report: a page to read, a comment for a pull request, files for machines."""

from __future__ import annotations

import shutil
from pathlib import Path

import tomli_w
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from mipkd.core.evidence import Evidence
from pipeline.report import charts, tables, wording
from pipeline.report.crops import exhibits
from pipeline.report.figures import collect
from pipeline.report.gain_tables import gain_figures, gain_table, untold
from pipeline.report.junit import junit
from pipeline.report.schema import Results

RESULTS = "results.json"


def report_folder(root: Path) -> Path:
    """Where a run's newest report lies."""
    return root / "report" / "latest"


def write(evidence: Evidence, out: Path) -> Path:
    """Write `index.html`, `report.md`, `results.json` and `junit.xml` into `out`.

    An earlier report there is replaced once the new one is whole. Gives the path of the page.
    """
    results = collect(evidence, out)
    partial = out.with_name(out.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    (partial / RESULTS).write_text(results.model_dump_json(indent=1))
    tests = junit(results.run.name, results.run.created, results.verdict.gates)
    (partial / "junit.xml").write_text(tests)
    (partial / "report.md").write_text(_markdown(results))
    (partial / "index.html").write_text(_page(results, evidence))
    replace_folder(out, partial)
    return out / "index.html"


def replace_folder(out: Path, partial: Path) -> None:
    """Put `partial` in the place of `out`."""
    old = out.with_name(out.name + ".old")
    shutil.rmtree(old, ignore_errors=True)
    if out.exists():
        out.rename(old)
    partial.rename(out)
    shutil.rmtree(old, ignore_errors=True)


def _page(results: Results, evidence: Evidence) -> str:
    trace = charts.training(evidence.distilled.curves if evidence.distilled else None)
    return _render(
        "page.html.j2",
        results,
        exhibits=exhibits(evidence),
        scatter=Markup(charts.quality_against_latency(results)),
        bicubic=charts.bicubic_note(results),
        psnr_curve=Markup(trace.psnr),
        loss_curves=Markup(trace.losses),
        legend=trace.legend,
        config=tomli_w.dumps(results.run.config),
        spans=[(name, Markup(svg)) for name, svg in gain_figures(results)],
        fronts=[Markup(charts.front(plan)) for plan in results.plans],
        image_table=tables.image_table(results),
        model_table=tables.model_table(results),
    )


def _markdown(results: Results) -> str:
    return _render("report.md.j2", results)


def _render(template: str, results: Results, **more: object) -> str:
    found = environment(html=template.endswith(".html.j2"))
    found.filters["cell"] = cell
    return found.get_template(template).render(
        r=results,
        w=wording,
        main=tables.main_table(results),
        gates=tables.gate_table(results),
        floats=[tables.float_table(plan) for plan in results.plans],
        gains=gain_table(results),
        untold=untold(results),
        latencies=tables.latency_table(results),
        devices=tables.devices(results),
        **more,
    )


def environment(*, html: bool) -> Environment:
    """Where the templates are; `html` escapes what is put into them."""
    return Environment(
        loader=PackageLoader("pipeline", "report"),
        autoescape=html,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )


def cell(text: str) -> str:
    """Text that cannot break out of a cell of a Markdown table."""
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")
