"""A report made from small real photos: what it says, in all its four files."""

import html
import json
import re
import xml.etree.ElementTree as ET
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from report_case import MS, EvidenceOf
from rich.console import Console

from mipkd.core import records
from mipkd.core.errors import UsageError
from mipkd.core.evidence import Evidence, Failure
from mipkd.metrics.base import find_metric
from pipeline.cli.summary import summarize
from pipeline.judge.bounds import GateConfig
from pipeline.judge.gates import judge
from pipeline.report import schema
from pipeline.report.results_file import SCHEMA_VERSION, read_results
from pipeline.report.wording import milliseconds, number
from pipeline.report.write import write

ROOT = Path(__file__).resolve().parents[2]
Make = Callable[..., Evidence]


@pytest.fixture(scope="module")
def make(tmp_path_factory: pytest.TempPathFactory) -> Make:
    """Evidence of a run whose photos and scores are real and whose times are made up."""
    return lambda **changes: replace(EvidenceOf(tmp_path_factory.mktemp("run")).evidence, **changes)


def files(evidence: Evidence) -> dict[str, str]:
    """The text of each file of a report."""
    page = write(evidence, evidence.graph.file.parent / "report" / "latest")
    return {file.name: file.read_text() for file in page.parent.iterdir()}


class _Tags(HTMLParser):
    """Checks that tags nest, and keeps all attributes and text."""

    VOID = ("meta", "img", "br", "link", "input", "line", "rect", "circle", "path", "polyline")

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.attributes: list[tuple[str, str, str | None]] = []
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.attributes += [(tag, name, value) for name, value in attrs]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_startendtag(self, tag: str, attrs: Any) -> None:
        self.attributes += [(tag, name, value) for name, value in attrs]

    def handle_data(self, text: str) -> None:
        if self.open and self.open[-1] != "style":
            self.text.append(text)


def parsed(page: str) -> _Tags:
    tags = _Tags()
    tags.feed(page)
    tags.close()
    assert tags.open == []
    return tags


def test_page_says_verdict_and_figures(make: Make) -> None:
    evidence = make()
    made = files(evidence)
    assert set(made) == {"index.html", "report.md", "results.json", "junit.xml"}
    text = " ".join(" ".join(parsed(made["index.html"]).text).split())
    results = json.loads(made["results.json"])
    figures = results["figures"]
    assert figures["sentence"].startswith("Part of it may be shipped. 3 of 26 gates failed")
    assert (
        " ".join(figures["sentence"].split()).removesuffix(" Ship cpu fp32 and openvino int8.")
        in text
    )
    assert "edsr-to-c32b8" in text
    for m in figures["models"]:
        for name, metric in m["quality"].items():
            mean = number(metric["mean"], find_metric(name).digits)
            assert mean in text
            assert mean in made["report.md"]
        for latency in m["latencies"]:
            assert milliseconds(latency["p50_ms"]["value"]) in text
            assert milliseconds(latency["p50_ms"]["value"]) in made["report.md"]
    for gate in results["verdict"]["gates"]:
        assert gate["reason"] in text
    for expected in ("broken.jpg: truncated", "probe on 3 images", "4.2e-07", "energy"):
        assert expected in text


def test_page_is_whole_without_a_network(make: Make) -> None:
    page = files(make())["index.html"]
    tags = parsed(page)
    for tag, name, value in tags.attributes:
        if name in ("src", "href", "srcset", "data", "action"):
            assert (value or "").startswith(("data:", "#")), f"<{tag} {name}={value[:40]}>"
    assert not re.search(r"@import|url\(|<script|<link", page)
    assert len(page.encode()) < 5e6
    assert all(value for tag, name, value in tags.attributes if (tag, name) == ("img", "alt"))
    images = sum(tag == "img" and name == "src" for tag, name, _ in tags.attributes)
    alts = sum(tag == "img" and name == "alt" for tag, name, _ in tags.attributes)
    assert images == alts > 10


def test_crops_show_every_output_where_int8_differs(make: Make) -> None:
    page = files(make())["index.html"]
    for name in ("Truth", "Bicubic", "Teacher", "Student FP32", "INT8 cpu"):
        assert f"<b>{name}</b>" in page
    assert "INT8 on cpu differs most from the FP32 student here" in page
    assert "the student falls behind its teacher most here" in page


def test_smoke_run_is_called_one_loudly(make: Make) -> None:
    made = files(make(smoke=True))
    assert "Smoke run on sample photos: not a result." in made["index.html"]
    assert "Smoke run on sample photos: not a result." in made["report.md"]
    assert "Smoke run" not in files(make())["index.html"]


def test_without_teacher_and_training_the_rest_stands(make: Make) -> None:
    evidence = make(teacher=None, distilled=None, photos=None, calibration=None)
    alone = tuple(m for m in evidence.measurements if m.role != "teacher")
    evidence = replace(evidence, measurements=alone, verdict=judge(GateConfig(), alone, ()))
    made = files(evidence)
    parsed(made["index.html"])
    assert "the student is furthest from the truth here" in made["index.html"]
    assert "speed-up over teacher" not in made["index.html"]
    assert json.loads(made["results.json"])["teacher"] is None


def test_the_last_figures_of_health_are_shown_and_bad_ones_explained(make: Make) -> None:
    made = files(make())
    health = json.loads(made["results.json"])["figures"]["health"]
    assert {one["name"]: one["value"] for one in health} == {
        "reconstruction_error": 0.45,
        "teacher_share": 0.5,
        "body_gradient_share/mixture_of_priors": 1e-3,
    }
    assert [bool(one["remark"]) for one in health] == [True, False, True]
    training = made["index.html"].split("How was it trained?</h2>")[1].split("</section>")[0]
    assert "teacher's share of the mixed path 50\u00a0%" in html.unescape(training)
    assert "mixture_of_priors gives 0.1% of the gradient on the student" in training
    assert "body_gradient_share" not in training  # no curve of it among the losses


def test_failures_are_shown_and_nothing_is_nan(make: Make) -> None:
    evidence = make()
    broken = [
        replace(
            m,
            latencies=tuple(
                replace(one, samples_s=(), cold_start_s=0.0, invalid_because="inference failed")
                for one in m.latencies
            ),
            scores=(),
            outputs=None,
        )
        if m.target == "cpu" and m.precision == "int8"
        else m
        for m in evidence.measurements
    ]
    failure = Failure("openvino", "fp16", "build", "no <such> kernel | \x1b[31mred", "try bf16")
    verdict = judge(GateConfig(), broken, (failure,))
    graph = replace(evidence.graph, parity_max_abs=float("nan"))
    made = files(
        replace(
            evidence,
            measurements=tuple(broken),
            failures=(failure,),
            verdict=verdict,
            graph=graph,
            student=replace(evidence.student, params=0, gmacs=float("nan")),
        )
    )
    text = " ".join(parsed(made["index.html"]).text)
    assert "no <such> kernel" in text
    assert "try bf16" in text
    assert "inference failed" in text
    assert "no &lt;such> kernel \\|" in made["report.md"]
    for name, content in made.items():
        assert not re.search(r"\b(nan|inf|infinity)\b", content, re.IGNORECASE), name
    suite = ET.fromstring(made["junit.xml"]).find("testsuite")
    assert suite is not None
    assert suite.get("errors") == str(len(suite.findall("testcase/error"))) != "0"


def test_energy_and_conditions_are_shown_where_they_are_known(make: Make) -> None:
    evidence = make()
    plain = files(evidence)
    assert "J/frame" not in plain["index.html"] + plain["report.md"]
    board = {"power mode": "15W (0)", "highest temperature": "tj-thermal 61.5 °C"}
    metered = [
        replace(
            m,
            conditions=board,
            latencies=tuple(
                replace(one, joules_per_frame=0.012345, power_from="tegrastats VDD_IN")
                for one in m.latencies
            ),
        )
        if m.target == "cpu"
        else m
        for m in evidence.measurements
    ]
    made = files(replace(evidence, measurements=tuple(metered)))
    text = " ".join(parsed(made["index.html"]).text)
    assert "J/frame" in made["report.md"]
    assert "0.0123" in made["report.md"]
    assert "idle power included, by tegrastats VDD_IN." in re.sub(r"\s+", " ", text)
    assert "power mode 15W (0), highest temperature tj-thermal 61.5 °C" in text


def test_latencies_of_an_invalid_measurement_are_not_shown(make: Make) -> None:
    evidence = make()
    why = "CPU throttled: cooling device 'cpu-throttle-alert' rose to state 2"
    slow = [replace(m, invalid_because=why) if m.latencies else m for m in evidence.measurements]
    made = files(replace(evidence, measurements=tuple(slow), verdict=judge(GateConfig(), slow, ())))
    results = json.loads(made["results.json"])
    of_times = {g["outcome"] for g in results["verdict"]["gates"] if g["name"] == "latencies"}
    assert of_times == {"INVALID"}
    found = [one for m in results["figures"]["models"] for one in m["latencies"]]
    assert {one["invalid_because"] for one in found} == {why}
    assert why in " ".join(parsed(made["index.html"]).text)
    assert "6.00" not in made["report.md"]
    console = Console(width=200, file=StringIO())
    console.print(summarize(replace(evidence, measurements=tuple(slow))))
    table = console.file.getvalue().split("PASS ")[0].split("┏")[1]
    assert table.count("INVALID") == sum(map(len, (MS["cpu"], MS["openvino"])))


def test_markup_in_names_stays_text(make: Make) -> None:
    page = files(make(name="<script>alert(1)</script>"))["index.html"]
    assert "<script" not in page
    assert "<script>alert(1)</script>" in " ".join(parsed(page).text)


def test_junit_has_a_case_a_gate(make: Make) -> None:
    evidence = make()
    suite = ET.fromstring(files(evidence)["junit.xml"]).find("testsuite")
    assert suite is not None
    assert len(suite.findall("testcase")) == len(evidence.verdict.gates)
    failed = [gate for gate in evidence.verdict.gates if gate.outcome == "FAIL"]
    assert len(suite.findall("testcase/failure")) == len(failed) > 0


def test_results_are_read_back_as_they_were_written(make: Make) -> None:
    evidence = make()
    root = evidence.graph.file.parent
    file = write(evidence, root / "report" / "latest").with_name("results.json")
    assert str(root) not in file.read_text()
    assert read_results(file) == evidence


def test_shipped_file_is_named_as_it_lies_in_the_bundle(make: Make) -> None:
    results = json.loads(files(make())["results.json"])
    shipped = {one["target"]: one for one in results["figures"]["shipping"]}
    assert shipped["openvino"]["precision"] == "int8"
    assert shipped["openvino"]["file"] == "bundle/model/openvino-int8/openvino-int8.bin"


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("{}", "not the results of a run"),
        ("no JSON", "damaged"),
        (None, "no results of a run"),
    ],
)
def test_what_is_no_results_file_is_refused(content: str | None, says: str, tmp_path: Path) -> None:
    file = tmp_path / "results.json"
    if content is not None:
        file.write_text(content)
    with pytest.raises(UsageError, match=says):
        read_results(file)


def test_results_of_another_major_version_are_refused(make: Make, tmp_path: Path) -> None:
    file = write(make(), tmp_path / "latest").with_name("results.json")
    ours = f'"schema_version": "{SCHEMA_VERSION}"'
    file.write_text(file.read_text().replace(ours, '"schema_version": "3.0"'))
    with pytest.raises(UsageError, match=r"schema_version is 3\.0"):
        read_results(file)


def test_float_layers_are_shown_with_their_reasons_and_the_front(
    make: Make, tmp_path: Path
) -> None:
    layer = records.FloatLayer("node_conv2d", "Conv", 0.0113, 0.5, "first convolution: <harm>")
    front = (
        records.FrontPoint(40.0, 0.04, 0.2, 0),
        records.FrontPoint(40.5, 0.015, 0.05, 1, chosen=True),
    )
    plan = records.QuantPlan(
        target="openvino",
        ranges="whole",
        rest="bf16",
        floats=(layer,),
        drop_db=0.015,
        worst_db=0.05,
        met=True,
        front=front,
        operations=54,
        size=(128, 128),
        added_mse=0.5,
    )
    page = write(make(plans=(plan,)), tmp_path / "latest")
    html, text = page.read_text(), page.with_name("report.md").read_text()
    for shown in (html, text):
        assert "1 of 54 operations stay float, computed in bf16; ranges: whole" in shown
        assert "first convolution: &lt;harm" in shown
        assert re.search(
            r"how well each is upscaled: 0\.\d{3} dB foretold, -?0\.\d{3} measured", shown
        )
    assert "openvino: PSNR-Y lost, on the crops chosen on, against latency at LR 128×128" in html
    assert "1 float, built" in html
    assert read_results(page.with_name("results.json")).plans[0].floats[0].name == "node_conv2d"


def beside(evidence: Evidence, name: str, lost_db: float) -> Evidence:
    """With a rival whose pixels are worse by so much, on some by 0.02 and 0.04 dB more."""
    mine = [m for m in evidence.measurements if m.role == "student"]
    theirs = [
        replace(
            m,
            role=name,
            scores=tuple(
                replace(
                    one, metrics={"psnr_y": one.psnr_y_db - lost_db - 0.02 * (n % 3), "ssim_y": 0.9}
                )
                for n, one in enumerate(m.scores)
            ),
        )
        for m in mine
    ]
    rival = records.Rival(name, replace(evidence.student, params=200_000), evidence.distilled, ())
    return replace(evidence, measurements=(*evidence.measurements, *theirs), rivals=(rival,))


def test_the_gain_over_a_rival_is_told_first_and_in_full(make: Make) -> None:
    found = files(beside(make(), "scratch", 0.18))
    results = json.loads(found["results.json"])
    (gain,) = results["figures"]["gains"]
    assert gain["fp32_db"]["value"] == pytest.approx(0.2)
    by_target = {(one["target"], one["precision"]): one for one in gain["on"]}
    assert by_target["cpu", "int8"]["retained"]["value"] == pytest.approx(1.0)
    assert by_target["cpu", "int8"]["speed"]["value"] == pytest.approx(1.0)
    said = "Over scratch: +0.200 dB in FP32; after INT8 on cpu +0.200 dB, 100 % kept (100 to 100)"
    budget = "The budget is not the same: 200 000 parameters, the student 190 000."
    for name in ("index.html", "report.md"):
        page = " ".join(found[name].split())
        assert said in page
        assert budget in page
        place = page.index("Did the distillation gain survive?")
        assert page.index("openvino") < place < page.index("Is it fast enough?")
    assert parsed(found["index.html"])
    assert "PSNR-Y of the student over scratch: reference fp32 +0.200 dB; " in found["index.html"]
    row = found["report.md"].split("| cpu | int8 | scratch | ")[1].splitlines()[0]
    assert "| +0.200 (+0.181 to +0.219) | 100 % (100 to 100) | 1.00× " in row


def test_rows_of_rivals_follow_those_of_the_student(make: Make) -> None:
    page = files(beside(make(), "scratch", 0.18))["report.md"].split("## What did INT8 cost?")[1]
    models = [line.split(" | ")[1] for line in page.splitlines() if line.startswith("| cpu | ")]
    both = [
        f"{role} {precision}" for role in ("student", "scratch") for precision in ("fp32", "int8")
    ]
    assert models == both


def test_no_gain_to_keep_is_said_and_no_share_given(make: Make) -> None:
    evidence = beside(make(), "logits", -0.02)  # the student's lead is -0.02, 0 and 0.02 dB
    found = files(evidence)
    said = "Over logits: 0.000 dB in FP32 (-0.019 to +0.019): no gain in FP32 to keep."
    assert said in found["report.md"]
    assert "none to keep" in found["index.html"]
    terminal = StringIO()
    Console(file=terminal, width=200).print(summarize(evidence))
    assert said in terminal.getvalue()


def test_without_rivals_nothing_is_said_of_them(make: Make) -> None:
    found = files(make())
    assert json.loads(found["results.json"])["rivals"] == []
    assert not any("distillation gain" in page for page in found.values())


def test_a_report_is_replaced_whole(make: Make, tmp_path: Path) -> None:
    out = tmp_path / "report" / "latest"
    write(make(), out)
    write(make(name="another"), out)
    assert "another" in (out / "index.html").read_text()
    assert [path.name for path in out.parent.iterdir()] == ["latest"]
    (out / "mine.txt").write_text("what others laid into it is put aside")
    write(make(name="third"), out)
    assert "third" in (out / "index.html").read_text()
    assert {path.name for path in out.parent.iterdir()} == {"latest", "latest.kept"}
    assert (out.parent / "latest.kept" / "mine.txt").is_file()


def test_docs_of_the_results_are_up_to_date() -> None:
    hint = "run: python -m pipeline.report.schema docs"
    assert (ROOT / "docs" / "results.schema.json").read_text() == schema.json_schema(), hint
    assert (ROOT / "docs" / "results-schema.md").read_text() == schema.documentation(), hint


def test_every_field_of_the_results_is_explained() -> None:
    rows = re.findall(r"^\| `(\w+)` \| .+ \| (.*) \|$", schema.documentation(), re.MULTILINE)
    assert len(rows) > 100
    assert [name for name, meaning in rows if not meaning] == []
