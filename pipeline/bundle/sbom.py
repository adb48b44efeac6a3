"""`sbom.cdx.json`: what made a bundle, in CycloneDX: packages, Python, the weights, the models.

Two equal runs write the same bytes: there is no serial number and no time in it.
"""

from __future__ import annotations

import json
import platform
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from typing import Any

from cyclonedx.contrib.license.factories import LicenseFactory
from cyclonedx.model import HashAlgorithm, HashType
from cyclonedx.model.bom import Bom, BomMetaData
from cyclonedx.model.component import Component, ComponentType
from cyclonedx.model.license import License, LicenseAcknowledgement
from cyclonedx.output import make_outputter
from cyclonedx.schema import OutputFormat, SchemaVersion
from packageurl import PackageURL
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from mipkd.core.evidence import Evidence
from mipkd.core.names import printable
from mipkd.core.records import Model
from pipeline.bundle.manifest import File
from pipeline.bundle.manifest import Model as Packed

PROGRAM = "mipkd-pipeline"
_LONGEST = 100  # of a licence's name; longer ones are its text
_UNKNOWN = ("", "unknown", "none", "other")


def sbom(evidence: Evidence, models: Sequence[Packed], files: Mapping[str, File]) -> str:
    """A bundle's bill of materials, as JSON."""
    packages, needs = list_packages(root_requirements(evidence))
    python = _package("python", platform.python_version(), (), kind="generic")
    made = {name: _installed(one) for name, one in packages.items()}
    licence = (evidence.teacher or evidence.student).licence
    given = {model.sha256: _weights(model) for model in _given(evidence)}
    packed = [part for model in models for part in _packed(model, files, licence)]
    whole = Component(
        name=f"{evidence.student.arch}-x{evidence.graph.scale}",
        type=ComponentType.MACHINE_LEARNING_MODEL,
        bom_ref="bundle",
    )
    parts = [*made.values(), python, *given.values(), *packed]
    bom = Bom(metadata=BomMetaData(component=whole), components=parts)
    bom.register_dependency(whole, parts)
    for name, needed in needs.items():
        bom.register_dependency(made[name], [made[one] for one in needed if one in made])
    return _without_time(make_outputter(bom, OutputFormat.JSON, SchemaVersion.V1_6))


def root_requirements(evidence: Evidence) -> list[str]:
    """What this program asks for, and what the targets and readers say they used beyond that."""
    try:
        ours = [PROGRAM, *(distribution(PROGRAM).requires or ())]
    except PackageNotFoundError:  # run from a checkout
        ours = []
    used = {name for built in evidence.builts for name in built.versions}
    used |= {name for m in evidence.measurements for name in m.versions}
    used |= {model.layout.partition(" ")[0] for model in _given(evidence)}  # "spandrel 0.4.2"
    return [*ours, *sorted(name for name in used if _find(name))]


def list_packages(
    requirements: Iterable[str],
) -> tuple[dict[str, Distribution], dict[str, set[str]]]:
    """The installed packages that requirements lead to, and which each of them needs."""
    found, needs = dict[str, Distribution](), dict[str, set[str]]()
    waiting = [r for text in requirements if (r := _wanted(text, ()))]
    while waiting:
        wanted = waiting.pop()
        name, extras = canonicalize_name(wanted.name), wanted.extras
        one = _find(name)
        if one is None:
            continue
        theirs = [r for text in one.requires or () if (r := _wanted(text, extras))]
        names = {str(canonicalize_name(r.name)) for r in theirs}
        if name not in found or not names <= needs[name]:
            waiting += theirs
        found[name] = one
        needs[name] = needs.get(name, set()) | names
    return dict(sorted(found.items())), dict(sorted(needs.items()))


def _wanted(text: str, extras: Iterable[str]) -> Requirement | None:
    """A requirement that holds here, with these extras of its package."""
    one = Requirement(text)
    holds = not one.marker or any(one.marker.evaluate({"extra": e}) for e in ("", *extras))
    return one if holds else None


def _find(name: str) -> Distribution | None:
    try:
        return distribution(name)
    except (PackageNotFoundError, ValueError):  # "" and the like
        return None


def _given(evidence: Evidence) -> Iterator[Model]:
    """Weights that came from outside."""
    if evidence.teacher:
        yield evidence.teacher
    if not evidence.distilled:
        yield evidence.student
    yield from (r.model for r in evidence.rivals if r.model and not r.distilled)


def _installed(one: Distribution) -> Component:
    about = one.metadata
    classifiers = about.get_all("Classifier") or ()
    named = [c.rpartition(" :: ")[2] for c in classifiers if c.startswith("License ::")]
    said = about.json  # a message in older Pythons, of whose types nothing is known
    stated = [said.get("license_expression"), said.get("license"), *named]
    texts = (str(text) for text in stated if text)
    short = next((text for text in texts if len(text) <= _LONGEST and "\n" not in text), "")
    return _package(canonicalize_name(about["Name"]), one.version, _licences(short))


def _package(
    name: str, version: str, licences: Sequence[License], *, kind: str = "pypi"
) -> Component:
    url = PackageURL(type=kind, name=name, version=version)
    library, runtime = ComponentType.LIBRARY, ComponentType.PLATFORM
    return Component(
        name=name,
        version=version,
        type=library if kind == "pypi" else runtime,
        purl=url,
        bom_ref=url.to_string(),
        licenses=licences,
    )


def _weights(model: Model) -> Component:
    return Component(
        name=printable(model.file.name),
        type=ComponentType.MACHINE_LEARNING_MODEL,
        bom_ref=f"given:{model.sha256}",
        description=f"weights of the {model.role}, {model.arch} x{model.scale}",
        hashes=[HashType(alg=HashAlgorithm.SHA_256, content=model.sha256)],
        licenses=_licences(model.licence),
    )


def _packed(model: Packed, files: Mapping[str, File], licence: str) -> Iterator[Component]:
    """Each file of a model in the bundle."""
    home = f"model/{model.name}/"
    for name, file in files.items():
        if name.startswith(home):
            yield Component(
                name=name,
                type=ComponentType.MACHINE_LEARNING_MODEL,
                bom_ref=name,
                description=f"student for {model.target} in {model.precision}",
                hashes=[HashType(alg=HashAlgorithm.SHA_256, content=file.sha256)],
                licenses=_licences(licence),
            )


def _licences(text: str) -> list[License]:
    """As they are declared: an SPDX identifier or expression where it is one."""
    if text.strip().lower() in _UNKNOWN:
        return []
    declared = LicenseAcknowledgement.DECLARED
    factory = LicenseFactory()
    return [factory.make_from_string(printable(text), license_acknowledgement=declared)]


def _without_time(written: Any) -> str:
    """What CycloneDX does not ask for and two equal runs would not share is left out."""
    stated = json.loads(written.output_as_string())
    del stated["serialNumber"], stated["metadata"]["timestamp"]
    return json.dumps(stated, indent=1, sort_keys=True)
