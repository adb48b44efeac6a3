"""Bundles whose hashes were made to fit, configurations, and what a kit brought back."""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from hostile_checkpoints import HUGE, Maker
from hostile_graphs import endless_loop, endless_scan, pad_where_it_runs, slow_products
from hostile_images import png_of_a_header, png_of_zeros


def refit(bundle: Path, **changes: Any) -> None:
    """Make the manifest list what is there, as whoever changes a bundle can."""
    from pipeline.bundle import manifest

    stated = replace(manifest.read(bundle), files=manifest.list_files(bundle), **changes)
    manifest.write(stated, bundle)


def with_graph(make: Maker) -> Callable[[Path], None]:
    """Put a hostile graph in the place of each model."""

    def change(bundle: Path) -> None:
        with TemporaryDirectory() as folder:
            made = make(Path(folder)).read_bytes()
        for file in bundle.glob("model/*/*.onnx"):
            file.write_bytes(made)
        refit(bundle)

    return change


def with_golden(make: Maker) -> Callable[[Path], None]:
    """Put a hostile image in the place of a golden one."""

    def change(bundle: Path) -> None:
        with TemporaryDirectory() as folder:
            made = make(Path(folder)).read_bytes()
        for file in bundle.glob("golden/*/*.png"):
            file.write_bytes(made)
        refit(bundle)

    return change


def with_text(name: str, text: str) -> Callable[[Path], None]:
    """Put a text in the place of a file."""

    def change(bundle: Path) -> None:
        (bundle / name).write_text(text)
        if name != "manifest.json":
            refit(bundle)

    return change


def with_stated(*place: Any, value: Any) -> Callable[[Path], None]:
    """Change one value of the manifest, and its seal with it."""
    from pipeline.bundle import manifest

    def change(bundle: Path) -> None:
        file = bundle / "manifest.json"
        stated = inner = json.loads(file.read_text())
        for name in place[:-1]:
            inner = inner[name]
        inner[place[-1]] = value
        file.write_text(json.dumps(stated))
        with suppress(Exception):  # what cannot be read cannot be sealed
            manifest.write(manifest.read(bundle), bundle)

    return change


BUNDLES: Mapping[str, Callable[[Path], None]] = {
    "endless loop": with_graph(endless_loop),
    "endless scan": with_graph(endless_scan),
    "padded where it runs": with_graph(pad_where_it_runs),
    "slow products": with_graph(slow_products),
    "golden image of a header": with_golden(png_of_a_header),
    "golden image of zeros": with_golden(png_of_zeros),
    "nested manifest": with_text("manifest.json", "[" * 10**6),
    "nested provenance": with_text("provenance.json", '{"config":' * 10**5),
    "long number": with_stated("scale", value=10**4000),
    "huge scale": with_stated("models", 0, "scale", value=10**9),
    "huge multiple": with_stated("models", 0, "multiple", value=10**9),
    "huge margin": with_stated("models", 0, "margin", value=10**9),
    "another folder": with_stated("models", 0, "file", value="../../../../etc/passwd"),
    "an absolute path": with_stated("models", 0, "file", value="/etc/passwd"),
    "an unknown option": with_stated("models", 0, "options", value={"session.no_such": "1"}),
    "a name that leads out": with_stated("models", 0, "target", value="../../x"),
}


# --- configurations, and what a kit brought back


CONFIGS: Mapping[str, str] = {
    "nested lists": "data = " + "[" * 10**5,
    "nested tables": "[" + "a." * 10**5 + "b]",
    "nested inline": "x = " + "{a=" * 10**5,
    "long number": "scale = " + "9" * 10**5,
    "number of steps": "[distill]\nsteps = 1e400",
    "endless date": "scale = 9999-99-99T99:99:99",
    "no text": 'a = "\u0000"',
}


def results_bomb(folder: Path) -> Path:
    """0.2 MB whose results.json would be 200 MB."""
    path = folder / "results_bomb.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as packed:
        packed.writestr("seal", "0")
        with packed.open("results.json", "w", force_zip64=True) as entry:
            for _ in range(200):
                entry.write(b" " * 10**6)
    return path


def results_nested(folder: Path) -> Path:
    path = folder / "results_nested.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as packed:
        packed.writestr("results.json", '{"a":' * 10**6)
        packed.writestr("seal", "0")
    return path


def results_elsewhere(folder: Path) -> Path:
    """Names that lead out of where it is unpacked, if it were."""
    path = folder / "results_elsewhere.zip"
    text = json.dumps({"schema": 2, "job": "0", "files": {"../../PWNED.npy": "0"}})
    with zipfile.ZipFile(path, "w") as packed:
        packed.writestr("results.json", text)
        packed.writestr("seal", hashlib.sha256(b"0" + text.encode()).hexdigest())
        packed.writestr("../../PWNED.npy", b"harm")
    return path


def results_of_shapes(folder: Path) -> Path:
    """An output that claims to have 10^10 values."""
    path, data = folder / "results_of_shapes.zip", io.BytesIO()
    head = {"descr": "|u1", "fortran_order": False, "shape": (HUGE, HUGE, 3)}
    np.lib.format.write_array_header_1_0(data, head)
    part = data.getvalue()
    files = {"outputs/0/0.npy": hashlib.sha256(part).hexdigest()}
    text = json.dumps({"schema": 2, "job": "0", "files": files})
    with zipfile.ZipFile(path, "w") as packed:
        packed.writestr("results.json", text)
        packed.writestr("seal", hashlib.sha256(b"0" + text.encode()).hexdigest())
        packed.writestr("outputs/0/0.npy", part)
    return path


RESULTS: Sequence[Maker] = (results_bomb, results_nested, results_elsewhere, results_of_shapes)
