"""`provenance.json`: what a bundle was made from and how, without paths of the maker's machine."""

from __future__ import annotations

import re
import shlex
from dataclasses import replace
from pathlib import PurePath
from typing import Any

from mipkd.core.codec import decode, encode
from mipkd.core.evidence import Evidence, Failure
from mipkd.core.records import Distilled, Model, PatchSet, Photos, QuantPlan, TestSet

PROVENANCE = "provenance.json"
_PATHS = ("teacher", "model", "data", "val", "out")  # in a configuration
_DEVICE = re.compile(r"ssh://[^\s'\",;]*[^\s'\",;:.]")
_ABSOLUTE = re.compile(r"(?<![\w.:/~])/(?:[^\s'\"/:,]+/)+(?=[^\s'\"/:,])")


def provenance(evidence: Evidence, program: str) -> dict[str, Any]:
    """All of it as plain JSON."""
    config = dict(evidence.config)
    config |= {name: PurePath(config[name]).name for name in _PATHS if config.get(name)}
    config |= {"compare": [PurePath(rival).name for rival in config.get("compare", ())]}
    stated = {
        "created": evidence.created,
        "command": " ".join(shlex.quote(word) for word in command(evidence)),
        "program": program,
        "commit": evidence.commit,
        "smoke": evidence.smoke,
        "teacher": _model(evidence.teacher),
        "student": _model(evidence.student),
        "training": _training(evidence.distilled),
        "rivals": [
            {"name": r.name, "model": _model(r.model), "training": _training(r.distilled)}
            for r in evidence.rivals
        ],
        "graph": {
            "sha256": evidence.graph.sha256,
            "opset": evidence.graph.opset,
            "parity_max_abs": evidence.graph.parity_max_abs,
        },
        "photos": _images(evidence.photos),
        "calibration": _images(evidence.calibration),
        "tests": _images(evidence.tests),
        "versions": {m.target: m.versions for m in evidence.measurements if m.versions},
        "gates": evidence.config.get("gates", {}),
        "failures": encode(evidence.failures),
        "plans": encode([_without_files(plan) for plan in evidence.plans]),
        "warnings": list(evidence.warnings),
        "not_measured": list(evidence.not_measured),
        "seconds": evidence.seconds,
        "config": config,
    }
    return {name: without_paths(value) for name, value in stated.items()}


def failures(stated: dict[str, Any]) -> tuple[Failure, ...]:
    """What did not run, from a bundle's provenance."""
    return decode(tuple[Failure, ...], stated["failures"])


def plans(stated: dict[str, Any]) -> tuple[QuantPlan, ...]:
    """How each target's INT8 was searched, from a bundle's provenance."""
    return decode(tuple[QuantPlan, ...], stated["plans"])


def _without_files(plan: QuantPlan) -> QuantPlan:
    """What a search found; where its files lie on this machine is nobody's business."""
    return replace(plan, holdout=None, tuned=None)


def command(evidence: Evidence) -> list[str]:
    """The words of the command, each path in them by its name alone."""
    words = [_DEVICE.sub("DEVICE", word) for word in shlex.split(evidence.command)]
    after = ["", *words]
    return [
        _by_name(w, listed=before == "--compare") for before, w in zip(after, words, strict=False)
    ]


def _by_name(word: str, *, listed: bool) -> str:
    """A path by its last part, and so each of a list with commas."""
    parts = word.split(",") if listed else [word]
    return ",".join(PurePath(part).name if "/" in part else part for part in parts)


def without_paths(value: Any) -> Any:
    """The same with absolute paths in its texts cut down to names, and no devices' addresses."""
    if isinstance(value, str):
        return _ABSOLUTE.sub("", _DEVICE.sub("DEVICE", value))
    if isinstance(value, list):
        return [without_paths(one) for one in value]
    if isinstance(value, dict):
        return {name: without_paths(one) for name, one in value.items()}
    return value


def _model(model: Model | None) -> dict[str, Any] | None:
    if model is None:
        return None
    return {
        "arch": model.arch,
        "hyper": model.hyper,
        "layout": model.layout,
        "params": model.params,
        "sha256": model.sha256,
        "licence": model.licence,
    }


def _training(made: Distilled | None) -> dict[str, Any] | None:
    if made is None:
        return None
    return {"steps": made.steps, "seconds": made.seconds, "losses": list(made.losses)}


def _images(images: TestSet | Photos | PatchSet | None) -> dict[str, Any] | None:
    if images is None:
        return None
    return {
        "source": source(images),
        "sha256": images.sha256,
        "count": len(images.images) if isinstance(images, TestSet) else images.count,
    }


def source(images: TestSet | Photos | PatchSet) -> str:
    """Where images came from: the name of the folder, with its parent's where it is but `HR`."""
    path = PurePath(images.source)
    return "/".join(path.parts[-2:]) if path.name == "HR" else path.name
