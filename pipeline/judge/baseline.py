"""What a bundle is held against: the figures of an earlier one, from it or from one small file.

A file is a bundle's figures without its models, fit to be kept beside the code. Both must be of
one scale, one set of test images and one way of measuring, else nothing can be compared.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from mipkd.core.codec import decode_file, encode, read_json
from mipkd.core.durable import write_bytes
from mipkd.core.errors import UsageError
from mipkd.core.measurement import Latency, Measurement
from pipeline.bundle.manifest import read
from pipeline.bundle.measurements import read_measurements
from pipeline.bundle.provenance import read_provenance
from pipeline.report.results_file import read_results

SCHEMA = 2
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
    measurements: tuple[Measurement, ...]
    reasons: tuple[Reason, ...] = ()  # the newest last

    @staticmethod
    def as_now(stated: dict[str, Any]) -> dict[str, Any]:
        """Schema 1 held quality and speed apart, each by name."""
        if stated.get("schema") != 1:
            return stated
        quality, speed = stated.get("qualities", {}), stated.get("benches", {})
        both = [{**quality.get(n, {}), **speed.get(n, {})} for n in {**quality, **speed}]
        return {**stated, "schema": SCHEMA, "measurements": both}


def of_bundle(bundle: Path) -> Baseline:
    """A bundle's own figures.

    Raises:
        UsageError: no bundle, or a damaged one.
    """
    manifest = read(bundle)
    tests = read_provenance(bundle).tests
    return Baseline(
        schema=SCHEMA,
        kind=KIND,
        run=manifest.name,
        program=manifest.program,
        scale=manifest.scale,
        protocol=PROTOCOL,
        tests=tests.sha256,
        tests_from=tests.source,
        measurements=read_measurements(bundle),
    )


def of_results(file: Path) -> Baseline:
    """The figures in a run's `results.json`, of any version that can be read.

    Raises:
        UsageError: it cannot be read.
    """
    evidence = read_results(file)
    return Baseline(
        schema=SCHEMA,
        kind=KIND,
        run=evidence.name,
        program=evidence.commit,
        scale=evidence.student.scale,
        protocol=PROTOCOL,
        tests=evidence.tests.sha256,
        tests_from=evidence.tests.source,
        measurements=evidence.measurements,
    )


def load(source: Path) -> Baseline:
    """A baseline from a bundle's folder, from its own file or from a `results.json`.

    Raises:
        UsageError: none of these, damaged, or of another schema.
    """
    if source.is_dir():
        return of_bundle(source)
    stated = read_json(source, what="baseline", hint=_HINT)
    if isinstance(stated, dict) and "schema_version" in stated:
        return of_results(source)
    if not isinstance(stated, dict) or stated.get("kind") != KIND:
        raise UsageError(f"{source}: no baseline of this program", hint=_HINT)
    if stated.get("schema") not in (1, SCHEMA):
        raise UsageError(
            f"{source}: its schema is {stated.get('schema')!r}, this program reads {SCHEMA}",
            hint="use the version of mipkd-pipeline that wrote it, or set it anew",
        )
    return decode_file(Baseline, stated, source, hint=_HINT)


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
    kept = tuple(
        replace(m, latencies=tuple(_evenly(one) for one in m.latencies), stream=None)
        for m in baseline.measurements
    )
    made = replace(baseline, measurements=kept, reasons=(*before, now))
    text = json.dumps(encode(made), indent=1, sort_keys=True) + "\n"
    write_bytes(file, text.encode())
    return made


def _tests(baseline: Baseline) -> str:
    return f"{baseline.tests_from} ({baseline.tests[:12]})"


def _evenly(latency: Latency) -> Latency:
    step = -(-len(latency.samples_s) // _KEPT)
    return replace(latency, samples_s=latency.samples_s[:: max(1, step)], at_s=())
