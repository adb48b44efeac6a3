"""A device on the loopback: an sshd with keys of its own, and Pythons that have little."""

from __future__ import annotations

import getpass
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import distribution
from pathlib import Path

import numpy as np
import pytest

from mipkd.core import plugins
from mipkd.core.records import Built, Graph
from pipeline.bench.latency import BenchSettings
from pipeline.machine.base import DeviceConfig, Job, Machine
from targets.base import BuildRequest, find

SSHD = shutil.which("sshd") or "/usr/sbin/sshd"
BarePython = Callable[..., str]
RNG = np.random.default_rng(0)


class Sshd:
    """An sshd of its own; `config` leads ssh to it without a look at the user's files."""

    def __init__(self, root: Path) -> None:
        self.root = root
        for name in ("host", "host2", "user", "stranger"):
            key = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(root / name)]
            subprocess.run(key, check=True)
        with socket.socket() as found:
            found.bind(("127.0.0.1", 0))
            self.port = found.getsockname()[1]
        shutil.copy(root / "user.pub", root / "allowed")
        self.config = self.client_config()
        self.start()

    def start(self) -> None:
        if os.geteuid() == 0:
            Path("/run/sshd").mkdir(exist_ok=True)
        lines = {
            "ListenAddress": "127.0.0.1",
            "Port": self.port,
            "HostKey": self.root / "host",
            "AuthorizedKeysFile": self.root / "allowed",
            "PermitRootLogin": "yes",
            "PasswordAuthentication": "no",
            "StrictModes": "no",
            "PidFile": "none",
            "UsePAM": "no",
        }
        file = self.root / "sshd_config"
        file.write_text("".join(f"{name} {value}\n" for name, value in lines.items()))
        command = [SSHD, "-D", "-e", "-f", str(file)]
        self.log = (self.root / "log").open("ab")
        self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=self.log)
        until = time.monotonic() + 10
        while time.monotonic() < until:
            with socket.socket() as trying:
                if trying.connect_ex(("127.0.0.1", self.port)) == 0:
                    return
            time.sleep(0.05)
        pytest.fail("sshd did not start: " + (self.root / "log").read_text())

    def client_config(
        self, name: str = "config", *, known: str = "host", key: str = "user", port: int = 0
    ) -> Path:
        """What ssh is given; `known` is the host key it expects, "" for none."""
        hosts = self.root / f"{name}-hosts"
        there = f"[127.0.0.1]:{port or self.port}"
        written = (self.root / f"{known}.pub").read_text() if known else ""
        hosts.write_text(f"{there} {written}" if known else "")
        file = self.root / name
        file.write_text(
            f"Host board\n HostName 127.0.0.1\n Port {port or self.port}\n"
            f" User {getpass.getuser()}\n IdentityFile {self.root / key}\n IdentitiesOnly yes\n"
            f" UserKnownHostsFile {hosts}\n GlobalKnownHostsFile /dev/null\n"
        )
        return file

    def cut(self) -> int:
        """Kill every connection, as a cable that is pulled; the server stays."""
        found = children(self.process.pid)
        for child in found:
            os.kill(child, signal.SIGKILL)
        return len(found)

    def stop(self) -> None:
        """No connection any more, and no server: a device that was switched off."""
        self.process.send_signal(signal.SIGSTOP)
        self.cut()
        self.process.kill()
        self.process.wait()
        self.log.close()


def children(pid: int) -> list[int]:
    """The processes of sshd below one; what they started is left to notice by itself."""
    found = []
    for child in map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split()):
        try:
            is_sshd = Path(f"/proc/{child}/comm").read_text().startswith("sshd")
            found += [child, *children(child)] if is_sshd else []
        except OSError:
            continue  # it has just ended
    return found


def running(word: str) -> list[str]:
    """Command lines with a word in them, of processes of this machine other than ours."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit() and int(folder.name) != os.getpid():
            try:
                line = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            except OSError:
                continue
            found += [line] if word in line else []
    return found


def gone(word: str, within_s: float = 8.0) -> bool:
    until = time.monotonic() + within_s
    while running(word):
        if time.monotonic() > until:
            return False
        time.sleep(0.05)
    return True


@pytest.fixture(scope="session")
def sshd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sshd]:
    """Shared by all tests, which skip where there is none."""
    if sys.platform != "linux" or not Path(SSHD).is_file() or not shutil.which("ssh"):
        pytest.skip("NOT TESTED, needs Linux with sshd: apt-get install openssh-server")
    found = Sshd(tmp_path_factory.mktemp("sshd"))
    yield found
    found.stop()


@pytest.fixture(scope="session")
def python_with(tmp_path_factory: pytest.TempPathFactory) -> BarePython:
    """A Python that has the packages that are named, and no other."""
    made: dict[Sequence[str], str] = {}

    def make(*packages: str) -> str:
        if packages not in made:
            root = tmp_path_factory.mktemp("python")
            command = [sys.executable, "-m", "venv", "--without-pip", str(root)]
            subprocess.run(command, check=True)
            site = next(root.glob("lib/python3.*/site-packages"))
            for package in packages:
                found = distribution(package)
                for name in {part.parts[0] for part in found.files or ()} - {".."}:
                    (site / name).symlink_to(Path(str(found.locate_file(name))))
            made[packages] = str(root / "bin" / "python")
        return made[packages]

    return make


@pytest.fixture(scope="session")
def bare(python_with: BarePython) -> str:
    """numpy and onnxruntime; the rest of this program's packages are proven to be absent."""
    python = python_with("numpy", "onnxruntime")
    unwanted = ("torch", "pydantic", "PIL", "pipeline", "mipkd", "targets")
    code = f"import importlib.util as u; print([n for n in {unwanted} if u.find_spec(n)])"
    command = [python, "-I", "-c", code]
    found = subprocess.run(command, capture_output=True, text=True, check=True, cwd="/")
    assert found.stdout.strip() == "[]"
    return python


@pytest.fixture
def config(sshd: Sshd, bare: str, tmp_path: Path) -> DeviceConfig:
    """The way to the loopback device; its folder there tells this test's processes apart."""
    return DeviceConfig(
        address="ssh://board",
        python=bare,
        folder=str(tmp_path / "there"),
        ssh_config=sshd.config,
        pause_s=0.1,
    )


def job_of(
    machine: Machine,
    built: Built,
    sizes: int = 1,
    images: int = 2,
    side: int = 12,
    seconds: float = 0.02,
) -> Job:
    """Each size takes `seconds` at least."""
    shown = [
        (f"image {n}", RNG.integers(0, 256, (side, side + 1, 3), dtype=np.uint8))
        for n in range(images)
    ]
    settings = BenchSettings(
        sizes=tuple((32, 32 + n) for n in range(sizes)),
        warmup_s=0.01,
        min_time_s=seconds,
        max_time_s=seconds,
        min_samples=5,
        max_drift=9,
        attempts=1,
    )
    info = machine.offers([built.target])[built.target]
    return Job(info, (built,), settings, shown)


@pytest.fixture(scope="session")
def graph(tmp_path_factory: pytest.TempPathFactory) -> Graph:
    """A tiny x2 net."""
    import torch

    from mipkd.export.onnx import export

    arch = plugins.load("mipkd.archs", "edsr", "ARCH")
    torch.manual_seed(0)
    made = arch.make(arch.shrink(arch.paper(2), "c8b2")).eval()
    out = tmp_path_factory.mktemp("net")
    return export(made, out=out, metadata={}, role="student", family="edsr")


@pytest.fixture(scope="session")
def net(graph: Graph, tmp_path_factory: pytest.TempPathFactory) -> Built:
    """It for ONNX Runtime."""
    return find("cpu").build(BuildRequest(graph, "fp32", tmp_path_factory.mktemp("cpu")))
