"""A machine is one file, from outside the repository: with a Python of its own, and without."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

# As `docker exec -i NAME COMMAND`, but here.
STAND_IN = """#!/bin/sh
[ "$3" = box ] || { echo "Error: No such container: $3" >&2; exit 1; }
shift 3
exec "$@"
"""

# No agent, no Python there: `sleep` stands for a phone's benchmark program.
PHONE = """
import subprocess
from time import perf_counter

from mipkd.core.measurement import Latency, Measurement
from pipeline.bench.models import probe_target


class Phone:
    def __init__(self, config):
        self.address = config.address

    def offers(self, targets):
        return {name: probe_target(name) for name in targets if name == "null"}

    def run(self, job, take=None):
        sizes, host = job.settings.sizes, job.info.host
        return tuple(
            Measurement(
                b.role,
                b.target,
                b.precision,
                latencies=tuple(map(self._time, sizes)),
                host=host,
            )
            for b in job.builts
        )

    def close(self):
        pass

    def _time(self, size):
        samples = []
        for _ in range(5):
            start = perf_counter()
            subprocess.run(["sleep", "0.01"], check=True)
            samples.append(perf_counter() - start)
        return Latency(size, tuple(samples), warmup=0, cold_start_s=samples[0])


MACHINE = Phone
"""


def write_machine(folder: Path, name: str, text: str) -> Path:
    file = folder / "pipeline/machine" / f"{name}.py"
    file.parent.mkdir(parents=True)
    file.write_text(text)
    return folder


def run_program(mine: Path, *words: str, path: str = "") -> subprocess.CompletedProcess[str]:
    env = os.environ | {
        "PYTHONPATH": os.pathsep.join((str(ROOT), str(mine))),
        "PATH": os.pathsep.join(filter(None, (path, os.environ["PATH"]))),
    }
    command = [sys.executable, "-c", "from pipeline.cli import main; main()", *words]
    return subprocess.run(command, capture_output=True, text=True, env=env, cwd=mine)


@pytest.mark.skipif(sys.platform == "win32", reason="the stand-in for docker is a shell script")
def test_the_machine_of_the_page_is_reached_by_its_own_link(tmp_path: Path) -> None:
    page = (ROOT / "docs/extending.md").read_text()
    stated = re.search(
        r"^`mine/pipeline/machine/docker\.py`.*?^```python\n(.*?)^```",
        page,
        re.DOTALL | re.MULTILINE,
    )
    assert stated
    mine = write_machine(tmp_path / "mine", "docker", stated[1])
    docker = tmp_path / "bin" / "docker"
    docker.parent.mkdir()
    docker.write_text(STAND_IN)
    docker.chmod(0o755)
    sets = {"python": sys.executable, "folder": tmp_path / "there"}
    words = [word for name, value in sets.items() for word in ("--set", f"device.{name}={value}")]
    given = ("doctor", "--json", *words, "--device")
    found = run_program(mine, *given, "docker://box", path=str(docker.parent))
    assert found.returncode == 0, found.stderr
    assert json.loads(found.stdout)["targets"]["cpu"]["usable"]
    lost = run_program(mine, *given, "docker://other", path=str(docker.parent))
    assert lost.returncode == 4
    assert "error: docker://other: no such container\nhint: see docker ps" in lost.stderr


def test_a_machine_without_python_runs_jobs_its_own_way(tmp_path: Path) -> None:
    mine = write_machine(tmp_path, "phone", PHONE)
    code = (
        "from pathlib import Path\n"
        "from mipkd.core.records import Built\n"
        "from pipeline.bench.latency import BenchSettings\n"
        "from pipeline.machine.base import DeviceConfig, Job, connect\n"
        "built = Built('null', 'fp32', 'student', Path('m'), 1, scale=2, multiple=1)\n"
        "with connect(DeviceConfig('phone://mine')) as machine:\n"
        "    info = machine.offers(['null', 'cpu'])['null']\n"
        "    found = machine.run(Job(info, (built,), BenchSettings(sizes=((8, 8), (9, 9)))))\n"
        "print([[one.size, min(one.samples_s) >= 0.01] for one in found[0].latencies])\n"
    )
    env = os.environ | {"PYTHONPATH": os.pathsep.join((str(ROOT), str(mine)))}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[[(8, 8), True], [(9, 9), True]]"
    named = run_program(mine, "doctor", "--device", "fone://mine")
    assert named.returncode == 2
    assert "error: --device: unknown kind 'fone'\nhint: did you mean phone?" in named.stderr
