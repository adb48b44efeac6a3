"""A bundle's bill of materials: valid CycloneDX, the same for equal runs, nothing left out."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from importlib.metadata import requires, version
from pathlib import Path
from typing import Any

import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from packaging.requirements import Requirement

from mipkd.core.evidence import Evidence
from mipkd.core.records import Rival
from pipeline.bundle import manifest
from pipeline.bundle.sbom import list_packages, sbom
from pipeline.report.results_file import read_results

ROOT = Path(__file__).parents[2]
GOLDEN = Path(__file__).parent / "golden"
MODEL = manifest.Model(
    *("openvino", "int8", "measured", "model/openvino-int8/model.xml", 9, 4, 1),
    *({}, (), {}, 7, ""),
)
FILES = {
    "model/openvino-int8/model.xml": manifest.File("a" * 64, 9, "model"),
    "model/openvino-int8/model.bin": manifest.File("b" * 64, 9, "model"),
    "golden/lr/a.png": manifest.File("c" * 64, 9, "golden"),
}


@pytest.fixture(scope="module")
def evidence() -> Evidence:
    return read_results(GOLDEN / "results-1.6.json")


def by_name(text: str) -> dict[str, dict[str, Any]]:
    return {one["name"]: one for one in json.loads(text)["components"]}


def complaint(text: str) -> object:
    pytest.importorskip("jsonschema")
    return JsonStrictValidator(SchemaVersion.V1_6).validate_str(text)


def test_it_keeps_to_the_schema(evidence: Evidence) -> None:
    text = sbom(evidence, [MODEL], FILES)
    assert complaint(text) is None
    assert complaint(text.replace('"sha', '"ssha').replace("SHA-256", "SHA-1000")) is not None


def test_it_is_the_same_for_equal_runs(evidence: Evidence) -> None:
    later = replace(evidence, created="2030-01-01T00:00:00+00:00", seconds={})
    made = sbom(evidence, [MODEL], FILES)
    assert made == sbom(later, [MODEL], FILES)
    assert "serialNumber" not in json.loads(made)
    code = (
        "from tests.pipeline import test_sbom as t\n"
        "import sys\n"
        "evidence = t.read_results(t.GOLDEN / 'results-1.6.json')\n"
        "sys.stdout.write(t.sbom(evidence, [t.MODEL], t.FILES))"
    )
    for seed in ("1", "2"):  # which order sets have
        env = {**os.environ, "PYTHONHASHSEED": seed}
        ran = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, env=env, cwd=ROOT
        )
        assert ran.stdout == made, ran.stderr


def test_a_file_that_was_given_twice_is_in_it_once(evidence: Evidence) -> None:
    given = replace(evidence, distilled=None, rivals=())
    twins = tuple(Rival(name, given.student, None, ()) for name in ("one", "other"))
    text = sbom(replace(given, rivals=twins), [MODEL], FILES)
    assert complaint(text) is None
    assert text.count(given.student.sha256) == sbom(given, [MODEL], FILES).count(
        given.student.sha256
    )


def test_it_names_every_package_that_ours_ask_for(evidence: Evidence) -> None:
    found = by_name(sbom(evidence, [], {}))
    asked = [Requirement(text) for text in requires("mipkd-pipeline") or ()]
    plain = {one.name.lower() for one in asked if not one.marker}
    assert len(plain) > 10
    assert plain <= found.keys()
    assert found["numpy"]["version"] == version("numpy")
    assert found["numpy"]["purl"] == f"pkg:pypi/numpy@{version('numpy')}"
    assert found["numpy"]["licenses"]
    assert found["python"]["type"] == "platform"
    assert "sympy" in found  # of torch
    assert "pytest" not in found


def test_a_runtime_is_in_it_where_it_was_used(evidence: Evidence) -> None:
    pytest.importorskip("openvino")
    assert "openvino" not in by_name(sbom(evidence, [], {}))
    used = replace(evidence.measurements[0], versions={"openvino": version("openvino"), "os": "1"})
    found = by_name(sbom(replace(evidence, measurements=(used,)), [], {}))
    assert {"openvino", "openvino-telemetry"} <= found.keys()


def test_weights_and_models_are_in_it_with_hash_and_licence(evidence: Evidence) -> None:
    assert evidence.teacher is not None
    teacher = replace(evidence.teacher, file=Path("/a/t.pth"), licence="CC-BY-NC-4.0")
    found = by_name(sbom(replace(evidence, teacher=teacher), [MODEL], FILES))
    for name, sha256 in (
        ("t.pth", teacher.sha256),
        ("model/openvino-int8/model.xml", "a" * 64),
        ("model/openvino-int8/model.bin", "b" * 64),
    ):
        one = found[name]
        assert one["type"] == "machine-learning-model"
        assert one["hashes"] == [{"alg": "SHA-256", "content": sha256}]
        assert one["licenses"] == [
            {"license": {"acknowledgement": "declared", "id": "CC-BY-NC-4.0"}}
        ]
    assert "golden/lr/a.png" not in found


@pytest.mark.parametrize("licence", ["unknown", "", "MIT OR", "\x1b[31mred\n", "免费", "x" * 5000])
def test_any_licence_of_a_stranger_can_be_written(licence: str, evidence: Evidence) -> None:
    assert evidence.teacher is not None
    odd = replace(evidence, teacher=replace(evidence.teacher, licence=licence))
    text = sbom(odd, [MODEL], FILES)
    assert complaint(text) is None
    assert "\\u001b" not in text


def test_extras_and_rings_of_requirements_end() -> None:
    found, needs = list_packages(["hypothesis", "build[virtualenv]>=0", "no-such-package", "build"])
    assert {"hypothesis", "sortedcontainers", "build", "pyproject-hooks"} <= found.keys()
    assert "pyproject-hooks" in needs["build"]
    assert "no-such-package" not in found
