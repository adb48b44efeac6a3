"""An ARM64 Python on a PC: Debian's, unpacked and run by qemu-user, with wheels for ARM64.

Nothing is installed on the PC and no binary format is registered: qemu is called by its name.
Debian 12's qemu 7.2 crashes when ONNX Runtime is imported, so that Debian 13's is fetched.
"""

from __future__ import annotations

import hashlib
import lzma
import re
import shutil
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from urllib.request import urlopen

MIRROR, SUITE = "http://deb.debian.org/debian", "trixie"
_PYTHON = "3.13"  # that suite's
_PACKAGES = "base-files,python3,libgomp1,libstdc++6,libatomic1,zlib1g"
_WHEELS = ("numpy", "onnxruntime", "openvino", "ai-edge-litert", "flatbuffers", "ncnn")
_PLATFORMS = ("manylinux_2_35", "manylinux_2_31", "manylinux_2_28", "manylinux_2_27")
_PLATFORMS += ("manylinux_2_17", "manylinux2014")
_WRAPPER = """#!/bin/sh
exec env QEMU_LD_PREFIX={root} QEMU_CPU={cpu} PYTHONPATH={site} PYTHONNOUSERSITE=1 \\
    OMP_NUM_THREADS=1 nice -n 10 {qemu} {root}/usr/bin/python{python} "$@"
"""


def make_python(folder: Path, cpu: str) -> Path:
    """A program that is an ARM64 Python of that CPU; what is in `folder` already is kept."""
    folder.mkdir(parents=True, exist_ok=True)
    qemu, root, site = folder / "qemu-aarch64", folder / "root", folder / "site"
    for made, make in ((qemu, _fetch_qemu), (root, _unpack_root), (site, _install_wheels)):
        if not made.exists():
            print(f"making {made}", flush=True)
            partial = made.with_name(f"{made.name}.partial")
            shutil.rmtree(partial, ignore_errors=True)
            make(partial)
            partial.replace(made)
    python = folder / f"python-{cpu}"
    text = _WRAPPER.format(root=root, cpu=cpu, site=site, qemu=qemu, python=_PYTHON)
    python.write_text(text)
    python.chmod(0o755)
    return python


def qemu_version(folder: Path) -> str:
    """As it says itself."""
    command = [str(folder / "qemu-aarch64"), "--version"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return done.stdout.splitlines()[0]


def _fetch_qemu(out: Path) -> None:
    """The one static program out of Debian's package, which is compared with its hash."""
    with urlopen(f"{MIRROR}/dists/{SUITE}/main/binary-amd64/Packages.xz") as answer:
        index = lzma.decompress(answer.read()).decode()
    entry = next(e for e in index.split("\n\n") if e.startswith("Package: qemu-user\n"))
    facts = dict(re.findall(r"^(Filename|SHA256): (\S+)$", entry, re.MULTILINE))
    with urlopen(f"{MIRROR}/{facts['Filename']}") as answer:
        data = answer.read()
    if hashlib.sha256(data).hexdigest() != facts["SHA256"]:
        raise SystemExit(f"{facts['Filename']}: not the package that the index names")
    package, unpacked = out.with_suffix(".deb"), out.with_suffix(".files")
    package.write_bytes(data)
    subprocess.run(["dpkg-deb", "--extract", str(package), str(unpacked)], check=True)
    (unpacked / "usr/bin/qemu-aarch64").replace(out)
    package.unlink()
    shutil.rmtree(unpacked)


def _unpack_root(out: Path) -> None:
    """Packages unpacked and not configured: that would need ARM64 programs to run."""
    command = ["mmdebstrap", "--quiet", "--architectures=arm64", "--variant=extract"]
    subprocess.run(
        [*command, "--format=directory", f"--include={_PACKAGES}", SUITE, str(out), MIRROR],
        check=True,
    )


def _install_wheels(out: Path) -> None:
    """The versions that this PC has, so that only the processor differs."""
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps"]
    command += ["--only-binary=:all:", "--python-version", _PYTHON, "--target", str(out)]
    for platform in _PLATFORMS:
        command += ["--platform", f"{platform}_aarch64"]
    subprocess.run([*command, *filter(None, map(_pin, _WHEELS))], check=True)


def _pin(package: str) -> str:
    try:
        return f"{package}=={version(package)}"
    except PackageNotFoundError:
        return ""
