"""A bundle's provenance is an in-toto statement that its own schema takes, and is read again."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from mipkd.core.errors import UsageError
from mipkd.core.evidence import Evidence
from pipeline.bundle import manifest
from pipeline.bundle.provenance import (
    PROVENANCE,
    RUN,
    provenance,
    read_provenance,
    run_facts,
)
from pipeline.report.results_file import read_results

GOLDEN = Path(__file__).parent / "golden"
FILES = {
    "model/cpu-int8/model.onnx": manifest.File("a" * 64, 9, "model"),
    "golden/lr/a.png": manifest.File("b" * 64, 9, "golden"),
    "sbom.cdx.json": manifest.File("c" * 64, 9, "sbom"),
}


@pytest.fixture
def evidence() -> Evidence:
    return read_results(GOLDEN / "results-1.6.json")


def write(stated: Any, folder: Path, facts: Any = None) -> Path:
    (folder / PROVENANCE).write_text(json.dumps(stated))
    if facts is not None:
        (folder / RUN).write_text(json.dumps(facts))
    return folder


def test_it_is_a_statement_on_the_models_by_the_published_schema(evidence: Evidence) -> None:
    protos = pytest.importorskip("in_toto_attestation.v1.statement_pb2")
    slsa = pytest.importorskip("in_toto_attestation.predicates.provenance.v1.provenance_pb2")
    from google.protobuf import json_format

    stated = provenance(evidence, "1.0", FILES)
    statement = json_format.ParseDict(stated, protos.Statement())
    assert statement.type == "https://in-toto.io/Statement/v1"
    assert [(one.name, one.digest["sha256"]) for one in statement.subject] == [
        ("model/cpu-int8/model.onnx", "a" * 64)
    ]
    predicate = stated["predicate"]
    read = json_format.ParseDict(predicate, slsa.Provenance())
    assert stated["predicateType"] == "https://slsa.dev/provenance/v1"
    assert read.build_definition.build_type == "urn:mipkd-pipeline:run:v1"
    assert read.run_details.builder.version["mipkd-pipeline"] == "1.0"
    assert run_facts(evidence)["seconds"] == evidence.seconds
    for one in read.build_definition.resolved_dependencies:
        assert len(one.digest["sha256"]) == 64, one.name


def test_what_was_given_is_named_by_its_hash_and_stands_once(evidence: Evidence) -> None:
    stated = provenance(evidence, "1.0", FILES)
    build = stated["predicate"]["buildDefinition"]
    given = {one["name"]: one["digest"]["sha256"] for one in build["resolvedDependencies"]}
    assert evidence.teacher is not None
    assert evidence.photos is not None
    assert given == {
        "teacher": evidence.teacher.sha256,
        "photos": evidence.photos.sha256,
        "tests": evidence.tests.sha256,
        "sbom.cdx.json": "c" * 64,
    }
    text = json.dumps(stated)
    for sha256 in (*given.values(), evidence.student.sha256):
        assert text.count(sha256) == 1


def test_a_student_that_was_given_is_among_it(evidence: Evidence) -> None:
    stated = provenance(replace(evidence, distilled=None), "1.0", {})
    build = stated["predicate"]["buildDefinition"]
    given = {one["name"]: one["digest"]["sha256"] for one in build["resolvedDependencies"]}
    assert given["student"] == evidence.student.sha256
    assert "student" not in build["internalParameters"]


def test_two_equal_runs_differ_in_times_alone(evidence: Evidence) -> None:
    assert evidence.distilled is not None
    later = replace(
        evidence,
        created="2030-01-01T00:00:00+00:00",
        name="another",
        plans=(),
        seconds={name: 2 * value for name, value in evidence.seconds.items()},
        distilled=replace(evidence.distilled, seconds=1e6),
    )
    one, other = (provenance(e, "1.0", FILES) for e in (evidence, later))
    assert one == other
    assert run_facts(evidence) != run_facts(later)


def test_it_is_read_again(evidence: Evidence, tmp_path: Path) -> None:
    found = read_provenance(
        write(provenance(evidence, "1.0", FILES), tmp_path, run_facts(evidence))
    )
    assert (found.tests.sha256, found.tests.source) == (evidence.tests.sha256, "shown")
    assert found.gates == evidence.config["gates"]
    assert found.failures == evidence.failures
    assert [plan.target for plan in found.plans] == [plan.target for plan in evidence.plans]
    assert found.config["bench"] == evidence.config["bench"]


def test_the_plain_form_of_before_is_read(evidence: Evidence, tmp_path: Path) -> None:
    facts = run_facts(evidence)
    now = read_provenance(write(provenance(evidence, "1.0", FILES), tmp_path, facts))
    build = json.loads((tmp_path / PROVENANCE).read_text())["predicate"]["buildDefinition"]
    plain = {
        **build["internalParameters"],
        **facts,
        "tests": asdict(now.tests) | {"scale": evidence.tests.scale},
        "gates": now.gates,
        "config": now.config,
        "command": "mipkd-pipeline run",
        "created": evidence.created,
    }
    assert read_provenance(write(plain, tmp_path)) == now


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (["predicateType"], "https://slsa.dev/verification_summary/v1"),
        (["predicate", "buildDefinition", "buildType"], "urn:other"),
        (["_type"], None),
        (["predicate"], []),
        (["predicate", "buildDefinition", "resolvedDependencies"], [{"name": []}]),
        (["predicate", "buildDefinition", "resolvedDependencies"], []),
        (["predicate", "buildDefinition", "externalParameters", "config"], None),
        (["predicate", "buildDefinition", "internalParameters"], 3),
    ],
)
def test_a_statement_on_anything_else_is_refused(
    path: list[str], value: Any, evidence: Evidence, tmp_path: Path
) -> None:
    stated = provenance(evidence, "1.0", FILES)
    inner = stated
    for name in path[:-1]:
        inner = inner[name]
    inner[path[-1]] = value
    with pytest.raises(UsageError, match=r"provenance\.json: damaged: "):
        read_provenance(write(stated, tmp_path, run_facts(evidence)))


@pytest.mark.parametrize("facts", [[], None, {"plans": {}}, {"plans": [{"target": 3}]}])
def test_what_hangs_on_the_clock_is_read_as_carefully(
    facts: Any, evidence: Evidence, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=r"(provenance|run)\.json: "):
        read_provenance(write(provenance(evidence, "1.0", FILES), tmp_path, facts))
