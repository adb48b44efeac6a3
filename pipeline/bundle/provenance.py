"""`provenance.json`: what a bundle was made from and how, without paths of the maker's machine.

A statement of in-toto (https://in-toto.io/Statement/v1) with SLSA's provenance as its predicate
(https://slsa.dev/provenance/v1). Whoever made it wrote it: it is worth what its signature is.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path, PurePath
from typing import Any

from mipkd.core.codec import decode_file, encode, read_json
from mipkd.core.errors import UsageError
from mipkd.core.evidence import Evidence, Failure
from mipkd.core.records import PatchSet, Photos, QuantPlan, TestSet
from pipeline.bundle.manifest import SBOM, File

PROVENANCE = "provenance.json"
RUN = "run.json"  # what two equal runs do not share
STATEMENT = "https://in-toto.io/Statement/v1"
PREDICATE = "https://slsa.dev/provenance/v1"
BUILD_TYPE = "urn:mipkd-pipeline:run:v1"  # what the parameters mean: docs/trust.md
BUILDER = "urn:mipkd-pipeline:local"  # the machine of whoever typed the command
_OF_IMAGES = "every image's content, and how they were prepared"
_OF_THE_CLOCK = ("name", "created", "plans", "seconds", "warnings")
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
    images: tuple[str, ...] = ()  # names; files of older versions have them too


@dataclass(frozen=True)
class Provenance:
    """What is read again of a bundle's provenance."""

    tests: TestsUsed
    gates: dict[str, Any]
    failures: tuple[Failure, ...]
    plans: tuple[QuantPlan, ...]  # how each target's INT8 was searched
    config: dict[str, Any]


def provenance(evidence: Evidence, program: str, files: Mapping[str, File]) -> dict[str, Any]:
    """The statement on a bundle's models among its `files`, but for what other files hold.

    Two equal runs make the same one: what they do not share is in `run.json`, by `run_facts`.
    """
    commit = {"commit": evidence.commit} if evidence.commit else {}
    models = {name: file.sha256 for name, file in files.items() if file.role == "model"}
    stated = {
        "_type": STATEMENT,
        "subject": [_resource(name, sha256) for name, sha256 in sorted(models.items())],
        "predicateType": PREDICATE,
        "predicate": {
            "buildDefinition": {
                "buildType": BUILD_TYPE,
                "externalParameters": {
                    "command": " ".join(shlex.quote(word) for word in command(evidence)),
                    "config": _config(evidence),
                },
                "internalParameters": _internal(evidence),
                "resolvedDependencies": list(_dependencies(evidence, files)),
            },
            "runDetails": {
                "builder": {
                    "id": BUILDER,
                    "version": {"mipkd-pipeline": program} | commit,
                },
            },
        },
    }
    plain: dict[str, Any] = without_paths(stated)
    return plain


def _config(evidence: Evidence) -> dict[str, Any]:
    """The settings, without what is only on the maker's machine."""
    config = dict(evidence.config)
    config |= {name: PurePath(config[name]).name for name in _PATHS if config.get(name)}
    config |= {"compare": [PurePath(rival).name for rival in config.get("compare", ())]}
    config.pop("out", None)
    if device := config.get("device"):
        config["device"] = {name: device[name] for name in device if name not in _OF_THE_WAY}
    return config


def run_facts(evidence: Evidence) -> dict[str, Any]:
    """What differs between two runs of the same inputs: times, what was chosen by them, and where
    it was written."""
    plain = replace(evidence, plans=_without_crops(evidence.plans))
    stated = {name: _encode(getattr(plain, name)) for name in _OF_THE_CLOCK}
    trained = evidence.distilled
    rivals = {rival.name: _encode(_without_crops(rival.plans)) for rival in evidence.rivals}
    facts: dict[str, Any] = without_paths(
        stated
        | {
            "training_seconds": trained.seconds if trained else None,
            "plans_of_rivals": rivals,
        }
    )
    return facts


def _internal(evidence: Evidence) -> dict[str, Any]:
    """What the run made and found on its way to the models, without times."""
    names = ["smoke", "distilled", "graph", "failures", "not_measured", "calibration", "rivals"]
    names += ["student"] if evidence.distilled else []
    stated = {name: _encode(getattr(evidence, name)) for name in names}
    for made in (stated, *stated["rivals"]):
        if made["distilled"]:
            del made["distilled"]["model"]  # it stands beside it
    if evidence.calibration:
        stated["calibration"]["source"] = source(evidence.calibration)
    stated["versions"] = {m.target: m.versions for m in evidence.measurements if m.versions}
    plain: dict[str, Any] = _without_times(stated)
    return plain


def _without_times(stated: Any) -> Any:
    """JSON without times, which `run_facts` gives."""
    if isinstance(stated, list):
        return [_without_times(one) for one in stated]
    if not isinstance(stated, dict):
        return stated
    return {n: _without_times(one) for n, one in stated.items() if n not in _TIMED}


def _dependencies(evidence: Evidence, files: Mapping[str, File]) -> Iterator[dict[str, Any]]:
    """What was given to the run: weights and images, and the list of the packages that made it."""
    given = [evidence.teacher] if evidence.teacher else []
    given += [] if evidence.distilled else [evidence.student]
    for model in given:
        yield _resource(model.role, model.sha256, _encode(model))
    for rival in evidence.rivals:
        if rival.model and not rival.distilled:
            yield _resource(f"compared: {rival.name}", rival.model.sha256)
    for name, images in (("photos", evidence.photos), ("tests", evidence.tests)):
        if images:
            about = _encode(images) | {"source": source(images), "digest_of": _OF_IMAGES}
            yield _resource(name, images.sha256, about)
    if SBOM in files:
        yield _resource(SBOM, files[SBOM].sha256) | {"mediaType": "application/vnd.cyclonedx+json"}


def _resource(name: str, sha256: str, about: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """A resource descriptor of in-toto; the hash stands nowhere else in it."""
    stated: dict[str, Any] = {"name": name, "digest": {"sha256": sha256}}
    annotations = {name: one for name, one in (about or {}).items() if name != "sha256"}
    return stated | ({"annotations": annotations} if annotations else {})


def _encode(value: Any) -> Any:
    return encode(value, write_path=lambda path: path.name)


def _without_crops(plans: tuple[QuantPlan, ...]) -> tuple[QuantPlan, ...]:
    """Plans without what they were made on."""
    return tuple(replace(plan, holdout=None, tuned=None) for plan in plans)


def read_provenance(bundle: Path) -> Provenance:
    """That of a bundle, also in the plain form that it had at first.

    Raises:
        UsageError: it is damaged, or a statement on something else.
    """
    file = bundle / PROVENANCE
    stated = read_json(file)
    if isinstance(stated, dict) and "_type" in stated:
        try:
            stated = _plain(stated, read_json(bundle / RUN))
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise UsageError(f"{file}: damaged: no provenance of a run: {error}") from error
    return decode_file(Provenance, stated, file)


def _plain(stated: dict[str, Any], run: dict[str, Any]) -> dict[str, Any]:
    """What is read again of a statement and of `run.json`, side by side."""
    build = stated["predicate"]["buildDefinition"]
    kinds = stated["_type"], stated["predicateType"], build["buildType"]
    for kind, wanted in zip(kinds, (STATEMENT, PREDICATE, BUILD_TYPE), strict=True):
        if kind != wanted:
            raise ValueError(f"{kind!r}, not {wanted!r}")
    tests = {one["name"]: one for one in build["resolvedDependencies"]}["tests"]
    config = build["externalParameters"]["config"]
    return {
        **build["internalParameters"],
        **run,
        "tests": {**tests["annotations"], **tests["digest"]},
        "config": config,
        "gates": config.get("gates", {}),
    }


def command(evidence: Evidence) -> list[str]:
    """The words of the command but for `--out`, each path in them by its name alone."""
    words = [_DEVICE.sub("DEVICE", word) for word in shlex.split(evidence.command)]
    pairs = zip(["", *words], words, strict=False)
    return [
        _by_name(word, listed=before == "--compare")
        for before, word in pairs
        if before != "--out" and word != "--out" and not word.startswith("--out=")
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


def source(images: TestSet | Photos | PatchSet) -> str:
    """Where images came from: the name of the folder, with its parent's where it is but `HR`."""
    path = PurePath(images.source)
    return "/".join(path.parts[-2:]) if path.name == "HR" else path.name
