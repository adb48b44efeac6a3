"""What catalogues of models read: the front matter of a Hugging Face model card, and an entry of
OpenModelDB. What a run does not know is left out; `[bundle]` can state it.

https://huggingface.co/docs/hub/model-cards#model-card-metadata
https://github.com/OpenModelDB/open-model-database/blob/main/src/lib/schema.ts
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from mipkd.core.evidence import Evidence
from mipkd.core.measurement import Measurement
from mipkd.core.names import printable
from pipeline.bench.comparisons import mean_of, students
from pipeline.bundle import manifest
from pipeline.bundle.golden import BundleConfig
from pipeline.bundle.licences import find_root, is_unknown, spdx_id
from pipeline.bundle.provenance import source
from pipeline.report.sentences import verdict_sentence
from pipeline.report.wording import TO

_TASK = {"type": "image-to-image", "name": "Image super-resolution"}
_METRICS = {"psnr_y": ("psnr", "PSNR-Y"), "ssim_y": ("ssim", "SSIM-Y")}
# OpenModelDB's names of architectures that it calls otherwise.
_ARCHITECTURES = {"edsr": "EDSR"}
_NO_WORD = re.compile(r"[^a-z0-9]+")


def front_matter(evidence: Evidence, config: BundleConfig, models: Sequence[manifest.Model]) -> str:
    """The card's metadata as YAML between its two lines."""
    stated = {name: value for name, value in _metadata(evidence, config, models) if value}
    return "---\n" + "\n".join(_yaml_lines(stated)) + "\n---\n"


def open_model_db(
    evidence: Evidence, config: BundleConfig, files: Mapping[str, manifest.File]
) -> str:
    """The entry as JSON: addresses, pictures and the author's name are the publisher's to add, and
    the date is the day on which the models were made."""
    student, trained = evidence.student, evidence.distilled
    scale = evidence.graph.scale
    settings = evidence.config.get("distill", {})
    training: dict[str, Any] = {}
    if trained:
        training = {
            "trainingIterations": trained.steps,
            "trainingBatchSize": settings.get("batch"),
            "trainingHRSize": (settings.get("patch") or 0) * scale,
            "dataset": ", ".join(config.datasets) or (evidence.photos and source(evidence.photos)),
            "datasetSize": evidence.photos.count if evidence.photos else None,
        }
    entry = {
        "name": f"{scale}x-{_slug(evidence.name) or student.arch}",
        "author": list(config.authors),
        "license": spdx_id(find_root(evidence).licence) or None,
        "tags": [],
        "description": _describe(evidence),
        "date": evidence.created[:10],
        "architecture": _ARCHITECTURES.get(student.arch, student.arch),
        "size": None,
        "scale": scale,
        "inputChannels": 3,
        "outputChannels": 3,
        "resources": [_resource(file) for name, file in sorted(files.items()) if _is_graph(name)],
        "images": [],
    }
    known = {name: value for name, value in training.items() if value}
    return json.dumps(entry | known, indent=4) + "\n"


def _is_graph(name: str) -> bool:
    return name.startswith("model/cpu-") and name.endswith(".onnx")


def _resource(file: manifest.File) -> dict[str, Any]:
    plain = {"platform": "onnx", "type": "onnx"}
    return plain | {"size": file.size, "sha256": file.sha256, "urls": []}


def _describe(evidence: Evidence) -> str:
    scale = evidence.graph.scale
    root = find_root(evidence)
    taught = f", distilled from a {root.arch} teacher" if root.role == "teacher" else ""
    smoke = " Smoke run on sample photos: not a result." if evidence.smoke else ""
    what = f"Super-resolution x{scale} for devices ({evidence.student.arch}){taught}."
    verdict = f" Verdict: {evidence.verdict.outcome.value}. {verdict_sentence(evidence.verdict)}"
    return printable(what + smoke + verdict)


def _metadata(
    evidence: Evidence, config: BundleConfig, models: Sequence[manifest.Model]
) -> Iterator[tuple[str, Any]]:
    licence = find_root(evidence).licence
    known = spdx_id(licence)
    if known:
        yield "license", known.lower()
    elif not is_unknown(licence):
        yield from (("license", "other"), ("license_name", _slug(licence)))
    yield "library_name", "mipkd-pipeline"
    yield "pipeline_tag", "image-to-image"
    yield "base_model", config.base_model
    yield "datasets", list(config.datasets)
    yield "metrics", [name for name, _ in _METRICS.values()]
    yield "tags", list(dict.fromkeys(_tags(evidence, models)))
    yield "model-index", list(_model_index(evidence))


def _tags(evidence: Evidence, models: Sequence[manifest.Model]) -> Iterator[str]:
    yield from ("super-resolution", f"x{evidence.graph.scale}", _slug(evidence.student.arch))
    if evidence.distilled and evidence.teacher:
        yield "knowledge-distillation"
    if any(model.precision == "int8" for model in models):
        yield "int8"
    formats = {"cpu": "onnx"}
    yield from (formats.get(model.target, _slug(model.target)) for model in models)


def _model_index(evidence: Evidence) -> Iterator[dict[str, Any]]:
    """The run's own figures on its test set, one metric a model; nothing of what was not scored."""
    metrics = [one for m in students(evidence.measurements) for one in _scores(m)]
    if metrics:
        name = source(evidence.tests)
        dataset = {"type": _slug(name) or "images", "name": printable(name)}
        results = [{"task": _TASK, "dataset": dataset, "metrics": metrics}]
        yield {"name": printable(evidence.name), "results": results}


def _scores(m: Measurement) -> Iterator[dict[str, Any]]:
    simulated = f", {m.kind}" if m.simulated else ""
    for metric, (kind, title) in _METRICS.items():
        if (mean := mean_of(m, metric)) is not None:
            name = f"{title}{TO[m.against]}, {m.target} {m.precision}{simulated}"
            yield {"type": kind, "value": round(mean, 4), "name": name}


def _slug(text: str) -> str:
    """Small letters, digits and single hyphens."""
    return _NO_WORD.sub("-", text.lower()).strip("-")


def _yaml_lines(value: Any, indent: str = "") -> Iterator[str]:
    """A mapping or list as YAML in blocks; texts as in JSON, which YAML reads."""
    pairs = value.items() if isinstance(value, dict) else ((None, one) for one in value)
    for name, one in pairs:
        start = indent + ("-" if name is None else f"{name}:")
        if isinstance(one, str | int | float):
            yield f"{start} {json.dumps(one, ensure_ascii=False)}"
        elif name is None and isinstance(one, dict):
            first, *rest = _yaml_lines(one, indent + "  ")
            yield from (f"{start} {first.lstrip()}", *rest)
        else:
            yield from (start, *_yaml_lines(one, indent + "  "))
