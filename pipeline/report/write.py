"""Write a run's report: a page to read, a comment for a pull request, files for machines."""

from __future__ import annotations

import os
from pathlib import Path

import tomli_w
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from mipkd.core.durable import LEFT_BY_SYSTEMS, new_folder
from mipkd.core.errors import UsageError
from mipkd.core.evidence import Evidence
from mipkd.core.texts import write_text
from pipeline.bench.comparisons import (
    NOT_MEASURED,
    RAN_EMULATED,
    emulated_targets,
    simulated_targets,
)
from pipeline.report import charts, sentences, tables, wording
from pipeline.report.advice import advise, next_step
from pipeline.report.answers import list_answers
from pipeline.report.crops import find_exhibits
from pipeline.report.figures import Figures, compute_figures
from pipeline.report.gain_tables import draw_gains, gain_table, list_unknown
from pipeline.report.gate_groups import group_gates
from pipeline.report.glossary import QUESTIONS, explain, list_words
from pipeline.report.junit import junit
from pipeline.report.latency_table import latency_table, list_doubts
from pipeline.report.markup import cell, code, in_html
from pipeline.report.results_file import RESULTS, SCHEMA_VERSION, run_of, write_results
from pipeline.report.stream_table import list_stream_notes, stream_table
from pipeline.report.student_table import describe_search, student_table

_MARK = b'<p class="kicker">'  # of each template
_NAMES = ("index.html", "junit.xml", "report.md", RESULTS, "study.json", "study.md")


def write(evidence: Evidence, out: Path) -> Path:
    """Write `index.html`, `report.md`, `results.json` and `junit.xml` into `out`.

    An earlier report there is replaced once the new one is whole. Gives the path of the page.
    """
    figures = compute_figures(evidence)
    with new_folder(out, keep=others_in) as partial:
        write_results(evidence, figures, partial / RESULTS, run_of(out))
        tests = junit(evidence.name, evidence.created, evidence.verdict.gates)
        write_text(partial / "junit.xml", tests)
        write_text(partial / "report.md", _render("report.md.j2", evidence, figures))
        write_text(partial / "index.html", _page(evidence, figures))
    return out / "index.html"


def others_in(folder: Path) -> list[str]:
    """Names in a report's folder that are no report's."""
    if not folder.is_dir():
        return ["."] if os.path.lexists(folder) else []
    known = (*_NAMES, *LEFT_BY_SYSTEMS)
    return sorted(one.name for one in folder.iterdir() if one.name not in known or one.is_dir())


def replace_page(page: str, out: Path) -> Path:
    """Write a page of ours into the file `out`.

    Raises:
        UsageError: another file is there.
    """
    if out.is_file() and out.stat().st_size and _MARK not in out.read_bytes():
        raise UsageError(
            f"{out}: is there, and is no page of this program",
            hint="move it away, or name another file with --out",
        )
    write_text(out, page)
    return out


def _page(evidence: Evidence, figures: Figures) -> str:
    curves = evidence.distilled.curves if evidence.distilled else None
    trace = charts.training(curves, evidence.tests.against)
    return _render(
        "page.html.j2",
        evidence,
        figures,
        exhibits=find_exhibits(evidence),
        scatter=Markup(charts.quality_against_latency(evidence.measurements)),
        bicubic=charts.bicubic_note(evidence.measurements),
        psnr_curve=Markup(trace.psnr),
        loss_curves=Markup(trace.losses),
        legend=trace.legend,
        config=tomli_w.dumps(evidence.config),
        spans=[(name, Markup(svg)) for name, svg in draw_gains(figures.gains)],
        fronts=[Markup(charts.front(plan)) for plan in evidence.plans],
        image_table=tables.image_table(evidence, figures),
        model_table=tables.model_table(evidence),
        words=list_words(),
    )


def _render(template: str, evidence: Evidence, figures: Figures, **more: object) -> str:
    found = environment(html=template.endswith(".html.j2"))
    return found.get_template(template).render(
        r=evidence,
        f=figures,
        w=wording,
        to=wording.TO[evidence.tests.against],
        version=SCHEMA_VERSION,
        s=sentences,
        todo=next_step(evidence.verdict, evidence.failures),
        answers=list_answers(evidence, figures),
        unseen=simulated_targets(evidence.measurements),
        emulated=emulated_targets(evidence.measurements),
        remarks=[
            r for r in evidence.verdict.remarks if not r.endswith((NOT_MEASURED, RAN_EMULATED))
        ],
        questions=QUESTIONS,
        groups={one: group_gates(evidence.verdict.gates, one) for one in QUESTIONS},
        quality=tables.quality_table(evidence, figures),
        quality_notes=tables.list_quality_notes(evidence),
        speed=tables.speed_table(evidence, figures),
        cost=tables.cost_table(evidence, figures),
        floats=[tables.float_table(plan) for plan in evidence.plans],
        gains=gain_table(figures.gains, evidence.measurements),
        untold=list_unknown(figures.gains),
        latencies=latency_table(evidence, figures),
        stream=stream_table(evidence, figures),
        stream_notes=list_stream_notes(evidence),
        tried=student_table(evidence.search),
        chosen=describe_search(evidence.search) if evidence.search else "",
        doubts=list_doubts(figures),
        devices=tables.devices(evidence.measurements),
        images=tables.images_used(evidence),
        **more,
    )


def environment(*, html: bool) -> Environment:
    """Where the templates are; what is put into them is escaped as HTML, or else as Markdown."""
    found = Environment(
        loader=PackageLoader("pipeline", "report"),
        autoescape=True,  # so that macros, whose text is ours, give Markup
        finalize=in_html if html else cell,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    found.filters.update(cell=cell, code=code, explain=explain)
    found.globals.update(advise=advise)
    return found
