"""What catalogues of models read of a bundle: the card's front matter, OpenModelDB's entry."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mipkd.core.evidence import Evidence
from mipkd.core.records import Distilled
from pipeline.bundle import hub, manifest
from pipeline.bundle.golden import BundleConfig
from pipeline.publish import _with_licence
from pipeline.run import Run

Finished = Any  # the record of conftest.py


@pytest.fixture
def evidence(once: Finished) -> Evidence:
    return Run(once.root).load_record("evidence.json", Evidence)


def parsed(text: str) -> Any:
    """The card as Hugging Face's own client reads it, figures included."""
    cards = pytest.importorskip("huggingface_hub")
    return cards.ModelCard(text).data


def taught(evidence: Evidence, licence: str, folder: Path) -> Evidence:
    """The same with a student that the teacher has taught, whose weights are under a licence."""
    assert evidence.teacher
    distilled = Distilled(evidence.student, folder / "curves.jsonl", (), 2, 1.0, ("pixel",), 30.0)
    teacher = replace(evidence.teacher, licence=licence)
    return replace(evidence, distilled=distilled, teacher=teacher)


def test_hugging_faces_client_reads_the_card_of_a_run(once: Finished, evidence: Evidence) -> None:
    data = parsed((once.bundle / "README.md").read_text())
    assert (data.license, data.pipeline_tag) == ("apache-2.0", "image-to-image")
    assert data.library_name == "mipkd-pipeline"
    assert data.metrics == ["psnr", "ssim"]
    assert {"super-resolution", "x2", "edsr", "onnx", "int8", "coreml"} <= {*data.tags}
    assert "knowledge-distillation" not in data.tags  # nothing was trained
    assert data.base_model is None  # nobody said whether it has a repository, and which
    assert data.datasets is None
    found = {one.metric_name: one for one in data.eval_results}
    (int8,) = (m for m in evidence.measurements if (m.target, m.precision) == ("cpu", "int8"))
    mean = sum(score.metrics["psnr_y"] for score in int8.scores) / len(int8.scores)
    assert found["PSNR-Y, cpu int8"].metric_value == pytest.approx(mean, abs=1e-4)
    assert found["PSNR-Y, cpu int8"].metric_type == "psnr"
    assert "PSNR-Y, coreml fp32, simulated" in found
    assert not [name for name in found if "null" in name and "nan" in name]


def test_quality_is_told_where_no_time_may_be_believed(evidence: Evidence) -> None:
    busy = tuple(replace(m, invalid_because="busy machine") for m in evidence.measurements)
    told = hub.front_matter(replace(evidence, measurements=busy), BundleConfig(), ())
    assert told == hub.front_matter(evidence, BundleConfig(), ())
    assert "PSNR-Y, cpu int8" in told


def test_what_a_run_cannot_know_is_taken_from_the_settings(evidence: Evidence) -> None:
    config = BundleConfig(base_model="me/edsr-x2", datasets=("eugenesiow/Div2k",))
    data = parsed(hub.front_matter(evidence, config, ()))
    assert (data.base_model, data.datasets) == ("me/edsr-x2", ["eugenesiow/Div2k"])


@pytest.mark.parametrize(
    ("licence", "stated"),
    [
        ("CC-BY-NC-4.0", "license: cc-by-nc-4.0"),
        ("gpl-3.0-only", "license: gpl-3.0"),
        ('mine: "all" # rights\nx: y', "license: other license_name: mine-all-rights-x-y"),
        ("unknown", ""),
    ],
)
def test_a_licence_is_stated_by_its_known_name_or_as_another(
    licence: str, stated: str, evidence: Evidence, tmp_path: Path
) -> None:
    text = hub.front_matter(taught(evidence, licence, tmp_path), BundleConfig(), ())
    data = parsed(text).to_dict()
    found = {name: data[name] for name in ("license", "license_name") if data.get(name)}
    assert " ".join(f"{name}: {value}" for name, value in found.items()) == stated


def test_names_from_outside_stay_within_their_fields(evidence: Evidence) -> None:
    odd = 'a"b: c\n---\n- [x] \u202e é #'
    data = parsed(hub.front_matter(replace(evidence, name=odd), BundleConfig(), ()))
    assert data.model_name.startswith('a"b: c')
    assert data.license == "apache-2.0"


def test_open_model_db_gets_an_entry_of_its_own_schema(once: Finished, evidence: Evidence) -> None:
    entry = json.loads((once.bundle / "openmodeldb.json").read_text())
    stated = manifest.read(once.bundle)
    assert stated.files["openmodeldb.json"].role == "card"
    assert re.fullmatch(r"\d+x-[a-zA-Z0-9]+(?:-[a-zA-Z0-9]+)*", entry["name"])
    assert re.fullmatch(r"\d{4}-\d\d-\d\d", entry["date"])
    required = {"name", "author", "license", "tags", "description", "date", "architecture", "size"}
    required |= {"scale", "inputChannels", "outputChannels", "resources", "images"}
    assert entry.keys() == required  # nothing was trained: no field tells of it
    assert (entry["license"], entry["architecture"], entry["scale"]) == ("Apache-2.0", "EDSR", 2)
    assert entry["author"] == []
    for one in entry["resources"]:
        assert (one["platform"], one["type"], one["urls"]) == ("onnx", "onnx", [])
        files = [f for f in (once.bundle / "model").glob("cpu-*/*") if digest(f) == one["sha256"]]
        assert [file.stat().st_size for file in files] == [one["size"]]
    assert len(entry["resources"]) == 2
    assert f"Verdict: {evidence.verdict.outcome.value}." in entry["description"]


def digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def test_open_model_db_is_told_of_a_training(evidence: Evidence, tmp_path: Path) -> None:
    trained = taught(evidence, "proprietary", tmp_path)
    assert trained.photos
    entry = json.loads(hub.open_model_db(trained, BundleConfig(authors=("ann",)), {}))
    assert (entry["trainingIterations"], entry["datasetSize"]) == (2, trained.photos.count)
    assert (entry["author"], entry["license"]) == (["ann"], None)


@pytest.mark.parametrize(
    ("licence", "said"), [("CC-BY-NC-4.0", "not for commercial"), ("", "unknown"), ("MIT", "")]
)
def test_the_verdict_remarks_on_a_licence_that_binds_the_student(
    licence: str, said: str, evidence: Evidence, tmp_path: Path
) -> None:
    before = evidence.verdict.remarks
    added = _with_licence(taught(evidence, licence, tmp_path)).verdict.remarks[len(before) :]
    assert len(added) == bool(said)
    assert all(said in one for one in added)
