"""What a bundle is held against: the figures of an earlier one, from it or from one small file.

A file is a bundle's figures without its models, fit to be kept beside the code. Both must be of
one scale, one set of test images and one way of measuring, else nothing can be compared.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from pydantic import TypeAdapter, ValidationError
from pydantic_core import to_jsonable_python

from mipkd.core.errors import UsageError
from mipkd.core.measurement import Latency, Measurement
from pipeline.bundle.manifest import read
from pipeline.bundle.measurements import Bench, Quality, figures_of, measurements_of
from pipeline.bundle.provenance import PROVENANCE

SCHEMA = 1
KIND = "mipkd-pipeline baseline"
PROTOCOL = "PSNR-Y and SSIM-Y of 8-bit RGB, a border of the scale cropped"
_KEPT = 400  # samples of a series, evenly taken; a median needs no more
_HINT = "make one: mipkd-pipeline check BUNDLE --baseline FILE --update-baseline --reason WHY"


@dataclass(frozen=True)
class Reason:
    """Why a baseline was set."""

    created: str
    run: str
    text: str


@dataclass(frozen=True)
class Baseline:
    """Figures that others are held against."""

    schema: int
    kind: str
    run: str
    program: str
    scale: int
    protocol: str
    tests: str  # a hash over the test images
    tests_from: str
    qualities: dict[str, Quality]  # by name, such as "openvino-int8"
    benches: dict[str, Bench]
    reasons: tuple[Reason, ...] = ()  # the newest last

    def measurements(self) -> tuple[Measurement, ...]:
        """As a run gives them, without pixels."""
        return measurements_of(self.qualities, self.benches)


def of_bundle(bundle: Path) -> Baseline:
    """A bundle's own figures.

    Raises:
        UsageError: no bundle, or a damaged one.
    """
    manifest = read(bundle)
    file = bundle / PROVENANCE
    try:
        tests = json.loads(file.read_text())["tests"]
        sha256, source = str(tests["sha256"]), str(tests["source"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(f"{file}: its test images cannot be read: {error}") from error
    qualities, benches = figures_of(bundle)
    return Baseline(
        schema=SCHEMA,
        kind=KIND,
        run=manifest.name,
        program=manifest.program,
        scale=manifest.scale,
        protocol=PROTOCOL,
        tests=sha256,
        tests_from=source,
        qualities=qualities,
        benches=benches,
    )


def load(source: Path) -> Baseline:
    """A baseline from a bundle's folder or from a file.

    Raises:
        UsageError: neither, damaged, or of another schema.
    """
    if source.is_dir():
        return of_bundle(source)
    try:
        stated = json.loads(source.read_bytes())
    except OSError as error:
        why = error.strerror or str(error)
        raise UsageError(f"{source}: no baseline: {why}", hint=_HINT) from error
    except ValueError as error:
        raise UsageError(f"{source}: damaged: {error}", hint=_HINT) from error
    if not isinstance(stated, dict) or stated.get("kind") != KIND:
        raise UsageError(f"{source}: no baseline of this program", hint=_HINT)
    if stated.get("schema") != SCHEMA:
        raise UsageError(
            f"{source}: its schema is {stated.get('schema')!r}, this program reads {SCHEMA}",
            hint="use the version of mipkd-pipeline that wrote it, or set it anew",
        )
    try:
        return TypeAdapter(Baseline).validate_python(stated)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise UsageError(f"{source}: damaged: {place}: {first['msg']}", hint=_HINT) from error


def check_comparable(new: Baseline, old: Baseline, *, name: str) -> None:
    """
    Raises:
        UsageError: they differ in scale, protocol or test images; says in which and how.
    """
    for what, mine, theirs in (
        ("scale", f"x{new.scale}", f"x{old.scale}"),
        ("protocol", new.protocol, old.protocol),
        ("test set", _tests(new), _tests(old)),
    ):
        if mine != theirs:
            raise UsageError(
                f"--baseline {name}: another {what}: {theirs} there, {mine} in the bundle",
                hint="compare with a baseline made on the same images and scale, or set it anew: "
                "--update-baseline --reason WHY",
            )


def save(baseline: Baseline, file: Path, reason: str) -> Baseline:
    """Write it into `file`, whose earlier reasons are kept."""
    before = load(file).reasons if file.is_file() else ()
    now = Reason(datetime.now(UTC).isoformat(timespec="seconds"), baseline.run, reason)
    benches = {name: _thinned(bench) for name, bench in baseline.benches.items()}
    made = replace(baseline, benches=benches, reasons=(*before, now))
    partial = file.with_name(file.name + ".partial")
    partial.write_text(json.dumps(to_jsonable_python(made), indent=1, sort_keys=True) + "\n")
    partial.replace(file)
    return made


def _tests(baseline: Baseline) -> str:
    return f"{baseline.tests_from} ({baseline.tests[:12]})"


def _thinned(bench: Bench) -> Bench:
    return replace(bench, latencies=tuple(_evenly(one) for one in bench.latencies))


def _evenly(latency: Latency) -> Latency:
    step = -(-len(latency.samples_s) // _KEPT)
    return replace(latency, samples_s=latency.samples_s[:: max(1, step)])
