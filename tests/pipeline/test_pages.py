"""What the pages promise a reader, without a browser: order, folding, words, and what axe looks at.

`benchmarks/look` looks at them in one.
"""

from __future__ import annotations

import re
from dataclasses import replace
from html.parser import HTMLParser
from io import StringIO
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from report_case import EvidenceOf, disturbed
from rich.console import Console

from mipkd.core.evidence import Evidence, Gate, Outcome
from mipkd.core.measurement import Measurement, Stream
from pipeline.cli.summary import summarize
from pipeline.report import history
from pipeline.report.advice import advise
from pipeline.report.gate_groups import group_gates
from pipeline.report.glossary import QUESTIONS, explain, list_words, question_of, title_of
from pipeline.report.results_file import read_results
from pipeline.report.write import write

SIMULATED = ("coreml", "jetson")


@pytest.fixture(scope="module")
def five(tmp_path_factory: pytest.TempPathFactory) -> Evidence:
    """Five targets, two of them simulated; INT8 on one loses too much."""
    measured = ("cpu", "openvino", "tensorrt")
    folder = tmp_path_factory.mktemp("five")
    return EvidenceOf(folder, targets=measured, simulated=SIMULATED).evidence


@pytest.fixture(scope="module")
def page(five: Evidence, tmp_path_factory: pytest.TempPathFactory) -> str:
    return page_of(five, tmp_path_factory.mktemp("page"))


def page_of(evidence: Evidence, folder: Path) -> str:
    return write(evidence, folder / "report" / "latest").read_text()


def text_of(html: str) -> str:
    without_style = re.sub(r"<style>.*?</style>", "", html, flags=re.DOTALL)
    return " ".join(re.sub(r"<[^>]*>", " ", without_style).split())


def on_terminal(evidence: Evidence) -> list[str]:
    console = Console(width=300, file=StringIO())
    console.print(summarize(evidence))
    return console.file.getvalue().splitlines()


def test_the_first_screen_says_whether_it_may_be_shipped(page: str) -> None:
    first = text_of(page.split("<header>")[1].split("</header>")[0])
    order = [
        "FAIL Part of it may be shipped.",
        "3 of 52 gates failed: quality lost to the teacher, cpu int8: ",
        *("Bicubic ", "Student ", "Teacher ", "6 test images"),
        *("cpu ship fp32", "openvino ship int8", "tensorrt ship int8"),
        "Simulated, not measured: coreml, jetson.",
    ]
    places = [first.find(words) for words in order]
    assert -1 not in places, order[places.index(-1)]
    assert places == sorted(places)
    assert "bundle/model/openvino-int8/openvino-int8.bin" in first
    assert "build/" not in first


def test_terminal_says_the_same_in_its_first_lines(five: Evidence) -> None:
    lines = on_terminal(five)
    assert lines[0].strip() == "verdict: FAIL: Part of it may be shipped."
    assert re.search(r"bicubic \d+\.\d+ dB, student \d+\.\d+ dB, teacher \d+\.\d+ dB", lines[2])
    assert lines[3].startswith("  cpu: ship fp32: ")
    assert sum("not measured" in line for line in lines) == 1
    assert lines[-1].strip() == "verdict: FAIL"


def test_simulated_targets_are_told_once_and_not_as_a_failure(page: str) -> None:
    text = text_of(page)
    assert text.count("not measured: coreml") == 1
    assert "not measured on the device" not in text
    cards = page.split('<ul class="ships">')[1].split("</ul>")[0]
    assert not any(target in cards for target in SIMULATED)


def test_each_question_has_a_section_with_its_gates(page: str) -> None:
    for name, question in QUESTIONS.items():
        section = page.split(f'<section id="{name}"')[1].split("</section>")[0]
        assert f'id="q-{name}">{question}</h2>' in section
        assert f'href="#{name}"' in page
    cost = page.split('<section id="int8"')[1].split("</section>")[0]
    assert "quality lost, worst image" in cost
    assert "faster than the teacher" not in cost


def test_alike_gates_fold_into_one_line_that_names_the_worst(page: str, five: Evidence) -> None:
    passed = [g for g in five.verdict.gates if g.name == "worst drop" and g.outcome == "PASS"]
    worst = max(passed, key=lambda gate: gate.figure or 0)
    line = f"{len(passed)} of {len(passed) + 1} PASS, worst {worst.figure:.3f} dB"
    summaries = re.findall(r"<summary>(.*?)</summary>", page, re.DOTALL)
    assert sum(line in text_of(one) for one in summaries) == 1


def test_what_fails_or_is_invalid_is_never_folded(five: Evidence, tmp_path: Path) -> None:
    for evidence in (five, disturbed(five)):
        shown = re.sub(
            r"<details.*?</details>", "", page_of(evidence, tmp_path / "p"), flags=re.DOTALL
        )
        stopped = [g for g in evidence.verdict.gates if g.outcome is not Outcome.PASS]
        assert stopped
        for gate in stopped:
            assert gate.reason in shown
            assert gate.subject in shown


def test_invalid_says_what_to_do_and_has_no_milliseconds(five: Evidence, tmp_path: Path) -> None:
    evidence = disturbed(five)
    page = page_of(evidence, tmp_path)
    assert "What to do: end other programs" in text_of(page)
    assert "openvino</b> <span>not proven</span>" in page
    latencies = page.split('aria-label="table of latencies"')[1].split("</table>")[0]
    rows = re.findall(r'<tr class="INVALID">(.*?)</tr>', latencies, re.DOTALL)
    assert len(rows) == 2 * 4  # sizes, models
    for row in rows:
        cells = text_of(row.replace("64×64", "").replace("320×180", ""))
        assert not re.search(r"\d\.\d|\b\d+\b", re.sub(r"[a-z]+\d+", "", cells))
    assert any("What to do: end other programs" in line for line in on_terminal(evidence))


def test_a_shipped_model_is_told_by_a_latency_that_is_valid(five: Evidence, tmp_path: Path) -> None:
    largest = (180, 320)
    found = tuple(
        replace(
            m,
            latencies=tuple(
                replace(one, invalid_because="unstable: it drifted" if one.size == largest else "")
                for one in m.latencies
            ),
        )
        for m in five.measurements
    )
    evidence = replace(five, measurements=found)
    cards = page_of(evidence, tmp_path).split('<ul class="ships">')[1].split("</ul>")[0]
    assert "ms at LR 64×64" in cards
    assert "320×180" not in cards


def test_pages_are_free_of_jargon(page: str, five: Evidence) -> None:
    said = text_of(page) + "\n".join(on_terminal(five))
    for word in ("settled", "drop", "drops", "own FP32"):
        assert not re.search(rf"\b{word}\b", said, re.IGNORECASE), word


def test_terms_lead_to_their_meaning_and_show_it_on_focus(page: str) -> None:
    assert explain("p50 and p50 <b>") == explain("p50") + " and p50 <b>"
    links = re.findall(r'<a class="term" href="#([\w-]+)" aria-describedby="([\w-]+)"', page)
    assert len(links) > 5
    assert all(f'<dd id="{anchor}">' in page for pair in links for anchor in pair)
    assert ".term:hover::after, .term:focus::after" in page
    anchors = [anchor for anchor, _, _ in list_words()]
    assert len(set(anchors)) == len(anchors)


@pytest.mark.parametrize("name", ["a gate of a plug-in", "latencyx"])
def test_an_unknown_gate_keeps_its_name_and_is_shown(name: str, tmp_path: Path) -> None:
    assert title_of(name) == name
    assert question_of(name) == "good"
    assert title_of("latency at 320x180") == "latency at 320x180"
    assert question_of("mean drop of SSIM-Y") == "int8"
    gate = Gate(name, "cpu int8", Outcome.FAIL, 3.0, 2.0, "things", "because")
    (group,) = group_gates([gate], "good")
    assert (group.stopped, group.passed) == ((gate,), ())


@pytest.mark.parametrize(
    ("reason", "unit", "helps"),
    [
        ("CPU throttled: cooling device 'x' rose", "", "cool"),
        ("3 samples in 1 s, fewer than 5: raise bench.max_time_s", "ms", "max_time_s"),
        ("inconclusive: 95 % interval 0.90 to 1.10", "x", "min_time_s"),
        ("inconclusive with 6 images, about 12 would do", "dB", ""),  # says it itself
    ],
)
def test_advice_fits_the_reason(reason: str, unit: str, helps: str) -> None:
    said = advise(Gate("measured", "cpu int8", Outcome.INVALID, None, 1.0, unit, reason))
    assert helps in said
    assert bool(said) == bool(helps)
    assert advise(Gate("measured", "cpu int8", Outcome.FAIL, 2.0, 1.0, unit, reason)) == ""


class _Structure(HTMLParser):
    """What axe-core asks for, as far as it stands in the text of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.append((tag, dict(attrs)))


def test_pages_have_landmarks_labels_and_headers(page: str, five: Evidence, tmp_path: Path) -> None:
    for _ in range(2):
        history.append(five, tmp_path / history.FILE)
    history.write_page(history.read(tmp_path / history.FILE), tmp_path / "history.html")
    for one in (page, (tmp_path / "history.html").read_text()):
        found = _Structure()
        found.feed(one)
        names = [tag for tag, _ in found.tags]
        assert [names.count(tag) for tag in ("main", "h1")] == [1, 1]
        assert ("html", {"lang": "en"}) in found.tags
        levels = [int(tag[1]) for tag in names if re.fullmatch(r"h\d", tag)]
        assert all(low + 1 >= high for low, high in pairwise(levels))
        for tag, attributes in found.tags:
            if tag == "th":
                assert attributes["scope"] in ("col", "row")
            if tag in ("img", "input", "nav"):
                assert attributes.get("alt") or attributes.get("aria-label")
            if attributes.get("class") == "scroll":
                assert (attributes["tabindex"], attributes["role"]) == ("0", "region")
        regions = [a["aria-label"] for _, a in found.tags if a.get("class") == "scroll"]
        assert len(set(regions)) == len(regions)
        ids = [attributes["id"] for _, attributes in found.tags if "id" in attributes]
        assert len(set(ids)) == len(ids)


def test_wide_tables_say_that_they_scroll_and_keep_their_first_column(page: str) -> None:
    wide = [t for t in page.split('<div class="table">')[1:] if t.count('scope="col"') > 3]
    assert len(wide) > 5
    assert all("swipe sideways" in table.split("<table>")[0] for table in wide)
    assert "tbody th { font-weight: 600; position: sticky; left: 0;" in page


def streamed(evidence: Evidence) -> Evidence:
    """INT8 on the CPU at a camera's rate, and FP32 on a board that throttled."""
    held = Stream((180, 320), 30.0, "RGB in and out", 2, 1, 300, (0.1, 0.2, 0.3), (0.05,) * 3)
    held = replace(held, joules_per_frame=0.4, power_from="RAPL package-0")
    hot = replace(held, invalid_because="CPU throttled", power_from="")
    of = {("student", "cpu", "int8"): held, ("student", "cpu", "fp32"): hot}
    every = [replace(m, stream=of.get(name_of(m))) for m in evidence.measurements]
    return replace(evidence, measurements=tuple(every))


def name_of(m: Measurement) -> tuple[str, str, str]:
    return m.role, m.target, m.precision


def test_a_stream_stands_in_the_page_the_file_and_on_the_terminal(
    five: Evidence, page: str, tmp_path: Path
) -> None:
    assert "camera" not in text_of(page)
    with_streams = streamed(five)
    text = text_of(page_of(with_streams, tmp_path))
    assert "Frames at a camera's rate" in text.replace("&#39;", "'")
    assert "cpu student int8 320×180 30 2 10.00 50.0 50.0 297 of 300 0.4 From" in text
    assert "cpu student fp32 320×180 30 2 INVALID" in text
    assert "the newest frame waits (1 at most), older ones are dropped" in text
    assert "J/frame by RAPL package-0" in text
    assert "10.0, 2 in flight" in text
    report = tmp_path / "report" / "latest"
    assert "| cpu | student int8 | 320×180 | 30 | 2 | 10.00 |" in (report / "report.md").read_text()
    table = [line for line in on_terminal(with_streams) if "cpu" in line and "int8" in line]
    assert any(line.rstrip(" │").endswith("10.0") for line in table)
    read = read_results(report / "results.json")
    assert [m.stream for m in read.measurements] == [m.stream for m in with_streams.measurements]
