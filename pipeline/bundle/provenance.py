"""`provenance.json`: what a bundle was made from and how, without paths of the maker's machine."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass, replace
from pathlib import Path, PurePath
from typing import Any

from mipkd.core.codec import decode_file, encode, read_json
from mipkd.core.evidence import Evidence, Failure
from mipkd.core.records import PatchSet, Photos, QuantPlan, TestSet

PROVENANCE = "provenance.json"
RUN = "run.json"  # what differs between two runs of the same inputs
_OF_THE_CLOCK = ("created", "name", "plans", "seconds", "warnings")
_TIMED = ("plans", "seconds")  # wherever they are: a search holds what it measured
_PATHS = ("teacher", "model", "data", "val")  # in a configuration
_OF_THE_WAY = ("address", "ssh_config")  # to a device
_DEVICE = re.compile(r"\b(?!https?:)[a-z][\w+-]*://[^\s'\",;]*[^\s'\",;:.]")
_ABSOLUTE = re.compile(r"(?<![\w.:/~])/(?:[^\s'\"/:,]+/)+(?=[^\s'\"/:,])")


@dataclass(frozen=True)
class TestsUsed:
    """The test images of a bundle's run."""

    sha256: str
    source: str


@dataclass(frozen=True)
class Provenance:
    """What is read again of a bundle's provenance."""

    tests: TestsUsed
    gates: dict[str, Any]
    failures: tuple[Failure, ...]
    plans: tuple[QuantPlan, ...]  # how each target's INT8 was searched
    config: dict[str, Any]


def provenance(evidence: Evidence, program: str) -> dict[str, Any]:
    """A run's evidence as plain JSON, but for what other files of the bundle hold."""
    config = dict(evidence.config)
    config |= {name: PurePath(config[name]).name for name in _PATHS if config.get(name)}
    config |= {"compare": [PurePath(rival).name for rival in config.get("compare", ())]}
    if device := config.get("device"):
        config["device"] = {name: device[name] for name in device if name not in _OF_THE_WAY}
    rivals = (replace(rival, plans=_without_crops(rival.plans)) for rival in evidence.rivals)
    rest = replace(
        evidence,
        measurements=(),
        builts=(),
        config=config,
        plans=_without_crops(evidence.plans),
        rivals=tuple(rivals),
    )
    stated = encode(rest, write_path=lambda path: path.name) | {
        "command": " ".join(shlex.quote(word) for word in command(evidence)),
        "program": program,
        "versions": {m.target: m.versions for m in evidence.measurements if m.versions},
        "gates": evidence.config.get("gates", {}),
    }
    for name in ("host", "measurements", "builts", "verdict", *_OF_THE_CLOCK):
        del stated[name]
    stated = _without_times(stated)
    stated["config"].pop("out", None)
    for name in ("photos", "calibration", "tests"):
        if images := getattr(evidence, name):
            stated[name]["source"] = source(images)
    return {name: without_paths(value) for name, value in stated.items()}


def run_facts(evidence: Evidence) -> dict[str, Any]:
    """What differs between two runs of the same inputs: times, and what was chosen by them."""
    plain = replace(evidence, plans=_without_crops(evidence.plans))
    stated = {name: encode(getattr(plain, name), write_path=_name) for name in _OF_THE_CLOCK}
    trained = evidence.distilled
    stated["training_seconds"] = trained.seconds if trained else None
    rivals = {rival.name: encode(_without_crops(rival.plans)) for rival in evidence.rivals}
    stated["plans_of_rivals"] = rivals
    return {name: without_paths(value) for name, value in stated.items()}


def _name(path: PurePath) -> str:
    return path.name


def _without_times(stated: Any) -> Any:
    """JSON without times, which `run_facts` gives."""
    if isinstance(stated, list):
        return [_without_times(one) for one in stated]
    if not isinstance(stated, dict):
        return stated
    return {n: _without_times(one) for n, one in stated.items() if n not in _TIMED}


def _without_crops(plans: tuple[QuantPlan, ...]) -> tuple[QuantPlan, ...]:
    """Plans without what they were made on."""
    return tuple(replace(plan, holdout=None, tuned=None) for plan in plans)


def read_provenance(bundle: Path) -> Provenance:
    """That of a bundle.

    Raises:
        UsageError: it is damaged.
    """
    file, run = bundle / PROVENANCE, bundle / RUN
    stated = read_json(file)
    if isinstance(stated, dict) and run.is_file():  # older bundles hold it all in one file
        facts = read_json(run)
        stated = {**stated, **(facts if isinstance(facts, dict) else {"plans": None})}
    return decode_file(Provenance, stated, file)


def command(evidence: Evidence) -> list[str]:
    """The words of the command, each path in them by its name alone, without the run's folder."""
    words = [_DEVICE.sub("DEVICE", word) for word in shlex.split(evidence.command)]
    words = [w for w in _without_value(words, "--out") if not w.startswith("--out=")]
    after = ["", *words]
    return [
        _by_name(w, listed=before == "--compare") for before, w in zip(after, words, strict=False)
    ]


def _without_value(words: list[str], option: str) -> list[str]:
    after = ["", *words]
    pairs = zip(after, words, strict=False)
    return [word for before, word in pairs if option not in (before, word)]


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


def source(images: TestSet | Photos | PatchSet) -> str:
    """Where images came from: the name of the folder, with its parent's where it is but `HR`."""
    path = PurePath(images.source)
    return "/".join(path.parts[-2:]) if path.name == "HR" else path.name
