"""A Swift package measures on a Mac or iPhone: its plan, run by a Python that does what it says.

`measure` below follows pipeline/bundle/swift/Sources/Golden line by line, with the simulation in
the place of Core ML: what it writes must be what `collect` takes.
"""

from __future__ import annotations

import hashlib
import json
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mipkd.core.errors import UnsupportedError, UsageError
from mipkd.core.records import Built
from pipeline.bench.latency import BenchSettings
from pipeline.bundle import swift_kit
from pipeline.bundle.kit import Contents
from pipeline.bundle.swift_kit import make_swift_kit
from targets._coreml.simulate import Program
from targets._images import upscale
from targets.base import find

Finished = Any  # the record of conftest.py
Command = Callable[..., Any]


def measure(kit: Path, results: Path) -> None:
    """Golden.swift's function of that name."""
    plan = json.loads((kit / "plan.json").read_text())
    programs = [Program(kit / model["package"]) for model in plan["models"]]
    files = {}
    for number, model in enumerate(plan["models"]):
        for picture in model["pictures"]:
            pixels = upscaled(programs[number], picture, kit)
            files[f"outputs/{number}/{picture['number']}.npy"] = npy(pixels)
    record = fill(plan, files)
    seal = hashlib.sha256(plan["job"].encode() + record).hexdigest().encode()
    job = (kit / "job.json").read_bytes()
    results.write_bytes(archive({**files, "results.json": record, "seal": seal, "job.json": job}))


def upscaled(program: Program, picture: dict[str, Any], kit: Path) -> Any:
    """Network.swift's `upscale`."""
    pixels = np.zeros((*picture["size"], 3), np.uint8)
    for tile in picture["tiles"]:
        data = np.frombuffer((kit / tile["file"]).read_bytes(), np.uint8)
        sr = program((data.astype(np.float32) / np.float32(255)).reshape(tile["shape"]))[0]
        (top, left), (to, across), (rows, columns) = tile["from"], tile["to"], tile["keep"]
        part = sr[:, top : top + rows, left : left + columns].transpose(1, 2, 0)
        levels = np.rint(part.clip(0, 1) * np.float32(255))
        pixels[to : to + rows, across : across + columns] = levels
    return pixels


def fill(plan: dict[str, Any], files: dict[str, bytes]) -> bytes:
    """Golden.swift's function of that name, with Timing.swift's records."""
    host = {"id": "0" * 12, "cpu": "Apple M9", "cores": 8, "memory_bytes": 2**34, "system": "macOS"}
    record, versions = plan["results"], {"macos": "Version 15.1 (Build 24B83)"}
    record["info"] |= {"host": host, "versions": versions}
    for number, one in enumerate(record["measurements"]):
        times = [1e-3 * (1 + number) + 1e-6 * n for n in range(20)]
        one["latencies"] = [
            {
                **{"size": size, "samples_s": times, "warmup": 2, "cold_start_s": 0.1},
                **{"load_s": 0.2, "invalid_because": ""},
            }
            for size in plan["settings"]["sizes"]
        ]
        one |= {"host": host, "versions": versions, "invalid_because": ""}
        one["conditions"] = {"thermal state": "nominal, nominal", "low power mode": "off"}
    record["files"] = {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}
    return json.dumps(record).encode()


def npy(pixels: Any) -> bytes:
    """Files.swift's function of that name."""
    sides = ", ".join(map(str, pixels.shape))
    header = f"{{'descr': '|u1', 'fortran_order': False, 'shape': ({sides}), }}"
    header += " " * (63 - (10 + len(header)) % 64) + "\n"
    start = b"\x93NUMPY\1\0" + struct.pack("<H", len(header))
    return bytes(start + header.encode() + pixels.tobytes())


def archive(files: dict[str, bytes]) -> bytes:
    """Files.swift's function of that name."""
    body = directory = b""
    for name, data in files.items():
        size, crc = len(data), zlib.crc32(data)
        facts = struct.pack("<HHHHHIIIHH", 20, 0, 0, 0, 33, crc, size, size, len(name), 0)
        directory += struct.pack("<IH", 0x02014B50, 20) + facts
        directory += bytes(10) + struct.pack("<I", len(body)) + name.encode()
        body += struct.pack("<I", 0x04034B50) + facts + name.encode() + data
    count = struct.pack("<H", len(files)) * 2
    ends = struct.pack("<II", len(directory), len(body)) + bytes(2)
    return body + directory + struct.pack("<I", 0x06054B50) + bytes(4) + count + ends


def test_what_the_package_writes_is_collected_as_measured(
    finished: Finished, tmp_path: Path, ended: Command
) -> None:
    out = tmp_path / "kit"
    said = ended("kit", finished.bundle, "--target", "coreml", "--swift", "--out", out)
    assert said.code == 0, said.err
    assert "student fp32, student int8, teacher fp32; 8 images" in said.out
    assert "swift run -c release measure" in said.out
    sources = {f.relative_to(out).as_posix() for f in out.rglob("*.swift")}
    assert {"Package.swift", "Sources/Golden/Golden.swift", "Sources/measure/main.swift"} <= sources
    before = scores_of(finished)
    measure(out / "kit", tmp_path / "results.zip")
    said = ended("collect", tmp_path / "results.zip", finished.root)
    assert said.code in (0, 6, 7), said.err
    assert "coreml: measured on Apple M9, 8 cores" in said.out
    found = json.loads((finished.root / "report/latest/results.json").read_text())
    rows = [m for m in found["measurements"] if m["target"] == "coreml"]
    assert {m["device"] for m in rows} == {"kit"}
    assert not any(m["simulated"] for m in rows)
    assert scores_of(finished) == before


def scores_of(run: Finished) -> dict[str, Any]:
    found = json.loads((run.root / "report/latest/results.json").read_text())["measurements"]
    ours = [m for m in found if (m["target"], m["role"]) == ("coreml", "student")]
    return {m["precision"]: m["scores"] for m in ours}


def test_its_pixels_are_those_of_a_session(
    once: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a model for some sizes too, whose images are cut and padded here."""
    from targets._tiles import FixedSizes, Sizes

    (model,) = (b for b in bundled(once) if b.precision == "fp32")
    rng = np.random.default_rng(0)
    images = [("a", rng.integers(0, 256, (21, 50, 3), dtype=np.uint8))]
    settings = BenchSettings(sizes=((16, 16), (24, 32)))
    for name, sizes in (("any", None), ("some", Sizes(((16, 24), (24, 32)), 5, 1))):
        monkeypatch.setattr("targets.coreml.sizes_of", lambda _, sizes=sizes: sizes)
        contents = Contents("run", (model,), tuple(images), settings, whole=False)
        monkeypatch.setattr(swift_kit, "gather", lambda *_, contents=contents: contents)
        make_swift_kit(once.bundle, "coreml", tmp_path / name)
        plan = json.loads((tmp_path / name / "kit/plan.json").read_text())
        (picture,) = plan["models"][0]["pictures"]
        found = upscaled(Program(model.file), picture, tmp_path / name / "kit")
        session = find("coreml").open(model)
        if sizes:
            assert isinstance(session, FixedSizes)
            assert {tuple(tile["shape"][2:]) for tile in picture["tiles"]} <= {*sizes.taken}
        assert np.array_equal(found, upscale(session, images[0][1], scale=model.scale))
        assert [len(frame) for frame in plan["models"][0]["timed"]] == [1, 1]


def bundled(run: Finished) -> list[Built]:
    from pipeline.bundle import manifest

    models = manifest.read(run.bundle).models
    return [model.built(run.bundle) for model in models if model.target == "coreml"]


def test_other_targets_and_others_folders_are_refused(once: Finished, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match="cpu is none of Core ML's"):
        make_swift_kit(once.bundle, "cpu", tmp_path / "new")
    (tmp_path / "mine").mkdir()
    with pytest.raises(UsageError, match="mine: is there, and is no kit"):
        make_swift_kit(once.bundle, "coreml", tmp_path / "mine")


def test_a_model_that_takes_images_is_refused(
    once: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("targets._coreml.package.takes_images", lambda _: True)
    with pytest.raises(UnsupportedError, match="takes images, not arrays") as caught:
        make_swift_kit(once.bundle, "coreml", tmp_path / "new")
    assert "build.pixels=float32" in caught.value.hint
    assert not (tmp_path / "new").exists()
