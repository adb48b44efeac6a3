"""Files that older versions wrote, kept as they were: each is read, and says what it said.

`golden/` holds the `results.json` of two runs, the figures of a bundle and a baseline.
"""

from __future__ import annotations

import json
import re
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mipkd.core.codec import decode
from mipkd.core.errors import UsageError
from mipkd.core.evidence import Evidence
from mipkd.core.records import QuantParams
from pipeline.bench.comparisons import find_reference, students
from pipeline.bundle.measurements import read_measurements
from pipeline.bundle.provenance import read_provenance
from pipeline.judge.baseline import load
from pipeline.report import history
from pipeline.report.figures import compute_figures
from pipeline.report.results_file import read_results

GOLDEN = Path(__file__).parent / "golden"
VERSIONS = ("1.5", "1.6")
Ended = Callable[..., Any]


def of(version: str) -> tuple[dict[str, Any], Evidence]:
    """A file as it stands, and as it is read."""
    file = GOLDEN / f"results-{version}.json"
    stated: dict[str, Any] = json.loads(file.read_text())
    assert stated["schema_version"] == version
    return stated, read_results(file)


@pytest.mark.parametrize("version", VERSIONS)
def test_what_was_measured_is_read_to_the_last_digit(version: str) -> None:
    stated, evidence = of(version)
    assert len(evidence.measurements) == len(stated["measurements"]) > 3
    for old, m in zip(stated["measurements"], evidence.measurements, strict=True):
        assert (m.role, m.target, m.precision, m.kind) == tuple(
            old[name] for name in ("role", "target", "precision", "kind")
        )
        for one, latency in zip(old["latencies"], m.latencies, strict=True):
            assert latency.size == (one["height"], one["width"])
            assert list(latency.samples_s) == one["samples_s"]
            assert latency.invalid_because == one["invalid_because"]
        images = old["quality"]["images"] if old["quality"] else []
        assert [score.psnr_y_db for score in m.scores] == [image["psnr_y_db"] for image in images]


@pytest.mark.parametrize("version", VERSIONS)
def test_its_figures_come_out_as_they_stood_there(version: str, tmp_path: Path) -> None:
    stated, evidence = of(version)
    figures = compute_figures(evidence)
    counted = re.compile(r"\d+ of \d+ gates|ll \d+ gates")
    assert counted.findall(figures.sentence) == counted.findall(stated["verdict"]["sentence"])
    for old, found in zip(stated["measurements"], figures.models, strict=True):
        for one, latency in zip(old["latencies"], found.latencies, strict=True):
            if one["p50_ms"] is not None:
                assert latency.p50_ms
                assert latency.p50_ms.value == pytest.approx(one["p50_ms"], abs=1e-5)
                assert latency.p50_ms.low == pytest.approx(one["p50_range"]["low"], abs=1e-5)
        if old["quality"]:
            quality = found.quality["psnr_y"]
            assert quality.mean == pytest.approx(old["quality"]["psnr_y_db"])
            assert quality.mean_drop == pytest.approx(old["quality"]["mean_drop_db"])
            assert quality.worst_image == old["quality"]["worst_image"]
    gains = [gain.fp32_db for gain in figures.gains]
    assert [gain and gain.value for gain in gains] == [
        rival["fp32_gain_db"] and pytest.approx(rival["fp32_gain_db"]["value"])
        for rival in stated["rivals"]
    ]


@pytest.mark.parametrize("version", VERSIONS)
def test_the_history_takes_them_in(version: str, tmp_path: Path) -> None:
    stated, evidence = of(version)
    history.append(evidence, tmp_path / history.FILE)
    lines = history.read(tmp_path / history.FILE)
    assert len(lines) == len(students(evidence.measurements)) > 0
    assert {line.run for line in lines} == {stated["run"]["name"]}
    assert {line.verdict for line in lines} == {stated["verdict"]["outcome"]}


def test_report_compares_runs_of_both_versions(tmp_path: Path, ended: Ended) -> None:
    folders = []
    for version in VERSIONS:
        report = tmp_path / version / "report" / "latest"
        report.mkdir(parents=True)
        (report / "results.json").write_text((GOLDEN / f"results-{version}.json").read_text())
        folders.append(tmp_path / version)
    said = ended("report", *folders, "--out", tmp_path / "both.html")
    assert said.code == 0, said.err
    page = (tmp_path / "both.html").read_text()
    for version in VERSIONS:
        stated, _ = of(version)
        assert stated["student"]["arch"] in page
        reference = next(
            m for m in stated["measurements"] if (m["role"], m["target"]) == ("student", "cpu")
        )
        assert f"{reference['quality']['psnr_y_db']:.3f}" in page


def test_a_bundle_of_schema_1_is_read() -> None:
    _, evidence = of("1.5")
    found = {(m.target, m.precision): m for m in read_measurements(GOLDEN / "bundle-1")}
    int8 = found["cpu", "int8"]
    (wanted,) = [m for m in students(evidence.measurements) if m.precision == int8.precision][:1]
    assert [s.psnr_y_db for s in int8.scores] == [s.psnr_y_db for s in wanted.scores]
    assert int8.scores[0].shift_rgb
    assert [len(one.samples_s) for one in int8.latencies] == [
        len(one.samples_s) for one in wanted.latencies
    ]
    assert int8.host
    assert find_reference(tuple(found.values()), "student")


def test_a_baseline_of_schema_1_and_a_results_file_hold_the_same() -> None:
    old, results = load(GOLDEN / "baseline-1.json"), load(GOLDEN / "results-1.5.json")
    assert [reason.text for reason in old.reasons] == ["first"]
    assert (old.scale, old.tests) == (results.scale, results.tests)
    theirs = {(m.target, m.precision): m for m in students(results.measurements)}
    for m in students(old.measurements):
        wanted = theirs[m.target, m.precision]
        assert [s.psnr_y_db for s in m.scores] == [s.psnr_y_db for s in wanted.scores]
        for one, other in zip(m.latencies, wanted.latencies, strict=True):
            ours, them = (statistics.median(of.samples_s) for of in (one, other))
            assert ours == pytest.approx(them, rel=0.1)


@pytest.mark.usefixtures("figures_alone")
def test_check_holds_a_bundle_against_an_older_results_file(
    once: Any, tmp_path: Path, ended: Ended
) -> None:
    text = (GOLDEN / "results-1.5.json").read_text()
    shown = {"chelsea": "blue-periwinkle", "coffee": "canyon-wren", "rocket": "ocean-waves"}
    for then, now in shown.items():
        text = text.replace(then, now)
    old = json.loads(text)
    tests = read_provenance(once.bundle).tests
    old["tests"] |= {"sha256": tests.sha256, "source": tests.source}
    (tmp_path / "results.json").write_text(json.dumps(old))
    said = ended("check", once.bundle, "--baseline", tmp_path / "results.json")
    assert "Traceback" not in said.err
    assert "cpu int8: worst loss " in said.out
    assert "cpu int8: size " in said.out


@pytest.mark.parametrize("qualities", [[1], {"a": 3}, "x"])
def test_a_baseline_of_before_that_is_damaged_is_refused(qualities: object, tmp_path: Path) -> None:
    stated = json.loads((GOLDEN / "baseline-1.json").read_text()) | {"qualities": qualities}
    file = tmp_path / "baseline.json"
    file.write_text(json.dumps(stated))
    with pytest.raises(UsageError, match=r"baseline\.json: damaged"):
        load(file)


def test_a_zero_point_under_its_older_name_is_read() -> None:
    stated = {"readers": [["conv", 0]], "scale": 0.1, "zero": 128}
    assert decode(QuantParams, stated) == QuantParams((("conv", 0),), 0.1, 128)
