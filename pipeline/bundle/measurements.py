"""Figures in a bundle: `quality/NAME.json` and `bench/NAME.json`, from measurements and back."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from pydantic import TypeAdapter, ValidationError
from pydantic_core import to_jsonable_python

from mipkd.core.errors import UsageError
from mipkd.core.measurement import Host, ImageScore, Latency, Measurement
from pipeline.bench.comparisons import (
    REFERENCE,
    drop_by_image,
    mean_psnr_db,
    mean_ssim,
    reference,
)
from pipeline.bundle.manifest import name_of

K = TypeVar("K")


@dataclass(frozen=True)
class ImageQuality:
    """PSNR and SSIM of one image, Y channel, PSNR lost against the FP32 student, and how much
    brighter than the truth each channel is, in levels."""

    image: str
    psnr_y_db: float
    ssim_y: float
    drop_db: float | None
    shift_rgb: tuple[float, float, float] | None = None


@dataclass(frozen=True)
class Quality:
    """The pixels of one model on the test images."""

    role: str
    target: str
    precision: str
    simulated: bool
    psnr_y_db: float | None
    ssim_y: float | None
    images: tuple[ImageQuality, ...]


@dataclass(frozen=True)
class Bench:
    """The speed of one model: every sample, where and how it was taken."""

    role: str
    target: str
    precision: str
    simulated: bool  # then nothing was timed
    size_bytes: int
    host: Host
    versions: dict[str, str]
    conditions: dict[str, str]
    notes: tuple[str, ...]
    invalid_because: str
    latencies: tuple[Latency, ...]


def write_figures(measurements: tuple[Measurement, ...], host: Host, out: Path) -> None:
    """The files of all measurements; `host` measured those that name no other."""
    for kind in ("quality", "bench"):
        (out / kind).mkdir()
    base = reference(measurements, "student")
    for m in measurements:
        if m.scores:
            _write(out / "quality" / _file(m), _quality(m, base))
        if m.target != REFERENCE:
            _write(out / "bench" / _file(m), _bench(m, host))


def read_figures(bundle: Path) -> tuple[Measurement, ...]:
    """The measurements that were written, without their files and outputs.

    Raises:
        UsageError: a file is not what it should be.
    """
    return measurements_of(*figures_of(bundle))


def figures_of(bundle: Path) -> tuple[dict[str, Quality], dict[str, Bench]]:
    """Quality and speed of each model, by its name.

    Raises:
        UsageError: a file is not what it should be.
    """
    return _read_all(bundle / "quality", Quality), _read_all(bundle / "bench", Bench)


def measurements_of(
    qualities: Mapping[str, Quality], benches: Mapping[str, Bench]
) -> tuple[Measurement, ...]:
    """The measurements that such figures were written from, without files and outputs."""
    return tuple(
        _measurement(qualities.get(name), benches.get(name)) for name in {**qualities, **benches}
    )


def _measurement(quality: Quality | None, bench: Bench | None) -> Measurement:
    one = quality or bench
    assert one is not None
    images = quality.images if quality else ()
    return Measurement(
        role=one.role,
        target=one.target,
        precision=one.precision,
        size_bytes=bench.size_bytes if bench else 0,
        latencies=bench.latencies if bench else (),
        scores=tuple(ImageScore(i.image, i.psnr_y_db, i.ssim_y, i.shift_rgb) for i in images),
        outputs=None,
        versions=bench.versions if bench else {},
        notes=bench.notes if bench else (),
        invalid_because=bench.invalid_because if bench else "",
        simulated=one.simulated,
        conditions=bench.conditions if bench else {},
        host=bench.host if bench else None,
    )


def _quality(m: Measurement, base: Measurement | None) -> Quality:
    drops = drop_by_image(m, base) if m.role == "student" else {}
    return Quality(
        role=m.role,
        target=m.target,
        precision=m.precision,
        simulated=m.simulated,
        psnr_y_db=mean_psnr_db(m),
        ssim_y=mean_ssim(m),
        images=tuple(
            ImageQuality(s.image, s.psnr_y_db, s.ssim_y, drops.get(s.image), s.shift_rgb)
            for s in m.scores
        ),
    )


def _bench(m: Measurement, host: Host) -> Bench:
    return Bench(
        role=m.role,
        target=m.target,
        precision=m.precision,
        simulated=m.simulated,
        size_bytes=m.size_bytes,
        host=m.host or host,
        versions=m.versions,
        conditions=m.conditions,
        notes=m.notes,
        invalid_because=m.invalid_because,
        latencies=m.latencies,
    )


def _file(m: Measurement) -> str:
    """Students on targets have the plain names."""
    if m.target == REFERENCE:
        return f"{REFERENCE}-{m.role}.json"
    role = "" if m.role == "student" else f"-{m.role}"
    return f"{name_of(m.target, m.precision)}{role}.json"


def _write(file: Path, record: Quality | Bench) -> None:
    file.write_text(json.dumps(to_jsonable_python(record), indent=1))


def _read_all(folder: Path, kind: type[K]) -> dict[str, K]:
    found = {}
    for file in sorted(folder.glob("*.json")):
        try:
            found[file.stem] = TypeAdapter(kind).validate_json(file.read_bytes())
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(str(part) for part in first["loc"])
            raise UsageError(f"{file}: damaged: {place}: {first['msg']}") from error
    return found
