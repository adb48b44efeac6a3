"""Jobs on a device behind a real sshd: what comes back, and every way it can go wrong."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mipkd.core import codec
from mipkd.core.errors import MipkdError, MissingError, StageError, UsageError
from mipkd.core.records import Built, Graph
from pipeline.machine.base import DeviceConfig, MachineLostError, connect
from pipeline.machine.remote import agent
from pipeline.machine.remote.agent_machine import AgentMachine
from pipeline.machine.remote.transfer import RemotePython
from pipeline.machine.ssh import MACHINE, SshLink, address_of
from targets.base import BuildRequest, ByteArray, find

from .conftest import RNG, BarePython, Sshd, gone, job_of, running


@pytest.fixture
def device(config: DeviceConfig) -> Iterator[AgentMachine]:
    """Afterwards nothing of it runs there any more, and its connection is closed."""
    with closing(MACHINE(config)) as found:
        yield found
    assert gone(config.folder), running(config.folder)
    link = found._link
    assert isinstance(link, SshLink)
    assert gone(link._folder), running(link._folder)


def test_a_device_says_what_it_offers(device: AgentMachine) -> None:
    found = device.offers(["cpu", "openvino", "null"])
    assert found["cpu"].precisions == ("fp32", "int8")
    assert not found["cpu"].why_not
    assert "openvino is not installed" in found["openvino"].why_not
    assert found["cpu"].host.cores > 0


def test_of_a_job_the_program_alone_stays_there(
    device: AgentMachine, net: Built, config: DeviceConfig
) -> None:
    device.run(job_of(device, net))
    left = sorted(f.name for f in Path(config.folder).rglob("*") if f.is_file())
    assert [name[:6] for name in left] == ["agent-"]


def test_openvino_runs_where_numpy_and_openvino_are_all_there_is(
    sshd: Sshd, config: DeviceConfig, python_with: BarePython, tmp_path: Path, net: Built
) -> None:
    openvino = find("openvino")
    if reason := openvino.why_not():
        pytest.skip(reason)
    python = python_with("numpy", "openvino")
    there = replace(config, python=python)
    graph = Graph(net.file, "", "student", 2, 1, 18, "edsr")
    outputs: list[ByteArray] = []
    with closing(MACHINE(there)) as device:
        info = device.offers(["openvino"])["openvino"]
        built = openvino.build(BuildRequest(graph, "fp32", tmp_path / "ov", on=info))
        (found,) = device.run(job_of(device, built), lambda _b, _n, sr: outputs.append(sr))
    assert len(outputs) == 2
    assert found.latencies[0].samples_s
    assert gone(config.folder)


def in_the_meantime(ready: Callable[[], bool], act: Callable[[], object]) -> threading.Thread:
    """Do something as soon as something is so."""

    def wait() -> None:
        until = time.monotonic() + 20
        while not ready() and time.monotonic() < until:
            time.sleep(0.02)
        act()

    thread = threading.Thread(target=wait)
    thread.start()
    return thread


def test_a_broken_connection_is_made_again_and_no_part_is_lost(
    sshd: Sshd, device: AgentMachine, config: DeviceConfig, net: Built
) -> None:
    job = job_of(device, net, sizes=8, seconds=0.4)
    before: list[str] = []

    def parts() -> list[Path]:
        return sorted(Path(config.folder).glob("jobs/*/done/latency-*.json"))

    def cut() -> None:
        before.extend(part.read_text() for part in parts())
        sshd.cut()

    thread = in_the_meantime(lambda: len(parts()) > 1, cut)
    latencies = device.run(job)[0].latencies
    thread.join()
    assert len(latencies) == 8
    assert 1 < len(before) < 8
    for part in before:
        ((kept,),) = (m.latencies for m in codec.decode(agent.Parts, json.loads(part)))
        assert kept in latencies  # to the last sample


def test_an_upload_goes_on_after_the_bytes_that_are_there(
    device: AgentMachine, config: DeviceConfig, tmp_path: Path
) -> None:
    device.offers(["null"])
    data = RNG.bytes(1_000_000)
    python = device._python
    file = tmp_path / "there" / "data"
    Path(f"{file}.partial").write_bytes(data[:600_000])
    with python._talk("put", 10, file=str(file), size=len(data), sha256="?") as talk:
        assert talk.answer() == {"have": 600_000}
    python.put(data, str(file))
    assert file.read_bytes() == data
    file.unlink()
    Path(f"{file}.partial").write_bytes(b"damaged" + data[:600_000])
    python.put(data, str(file))
    assert file.read_bytes() == data
    assert not Path(f"{file}.partial").exists()


def test_jobs_that_nobody_came_back_for_are_cleared(
    device: AgentMachine, config: DeviceConfig
) -> None:
    old, new = (Path(config.folder) / "jobs" / name for name in ("old", "new"))
    for folder in (old, new):
        (folder / "done").mkdir(parents=True)
    month_ago = time.time() - 31 * 24 * 3600
    os.utime(old, (month_ago, month_ago))
    device.offers(["null"])
    assert new.is_dir()
    assert not old.exists()


def test_a_device_that_stays_away_is_given_up(
    config: DeviceConfig,
    net: Built,
    tmp_path_factory: pytest.TempPathFactory,
    sshd: Sshd,
) -> None:
    mine = Sshd(tmp_path_factory.mktemp("mortal"))
    with closing(MACHINE(replace(config, ssh_config=mine.config, tries=2))) as device:
        job = job_of(device, net, sizes=40, seconds=0.4)
        thread = in_the_meantime(lambda: bool(running(" work " + config.folder)), mine.stop)
        with pytest.raises(MachineLostError, match="connection lost for good") as raised:
            device.run(job)
        thread.join()
    assert "run the same command again" in raised.value.hint
    assert gone(config.folder)


def test_a_job_that_is_too_slow_is_ended_there(config: DeviceConfig, net: Built) -> None:
    with closing(MACHINE(replace(config, time_limit_s=1.5))) as device:
        job = job_of(device, net, sizes=40, seconds=0.4)
        with pytest.raises(StageError, match=r"not done in 1\.5 s"):
            device.run(job)
        assert gone(" work " + config.folder)  # one that was still starting ends when it looks


def refusal(config: DeviceConfig, **changes: Any) -> MipkdError:
    with closing(MACHINE(replace(config, **changes))) as device:
        with pytest.raises(MipkdError) as raised:
            device.offers(["cpu"])
        assert gone(config.folder)
        return raised.value


def test_host_keys_and_users_are_checked(sshd: Sshd, config: DeviceConfig) -> None:
    unknown = sshd.client_config("unknown", known="")
    error = refusal(config, ssh_config=unknown)
    assert isinstance(error, UsageError)
    assert "its host key is not known here" in error.what
    assert "once and compare the key" in error.hint
    assert not unknown.with_name("unknown-hosts").read_text()  # it is not accepted on the way
    error = refusal(config, ssh_config=sshd.client_config("wrong", known="host2"))
    assert isinstance(error, UsageError)
    assert "is not the one that is known" in error.what
    error = refusal(config, ssh_config=sshd.client_config("stranger", key="stranger"))
    assert isinstance(error, UsageError)
    assert "not let in" in error.what


def test_a_device_that_is_off_or_has_no_name_is_told(sshd: Sshd, config: DeviceConfig) -> None:
    error = refusal(config, ssh_config=sshd.client_config("off", port=1))
    assert isinstance(error, MissingError)
    assert "Connection refused" in error.what
    error = refusal(config, address="ssh://no-such-host.invalid")
    assert isinstance(error, MissingError)
    assert "Could not resolve hostname" in error.what


def test_a_device_without_what_is_needed_is_told(
    config: DeviceConfig, python_with: BarePython, tmp_path: Path
) -> None:
    error = refusal(config, python="/nowhere/python3")
    assert isinstance(error, MissingError)
    assert "no Python there: /nowhere/python3" in error.what
    error = refusal(config, python=python_with())
    assert isinstance(error, MissingError)
    assert "has no numpy" in error.what


def test_an_old_python_is_told(config: DeviceConfig) -> None:
    from .test_agent_zip import old_python

    if not (python := old_python()):
        pytest.skip("needs a Python older than 3.10")
    error = refusal(config, python=python)
    assert isinstance(error, MissingError)
    assert "3.10 or later is needed" in error.what


def test_a_program_that_dies_there_is_no_broken_connection(
    device: AgentMachine, config: DeviceConfig, net: Built
) -> None:
    job = job_of(device, net, sizes=40, seconds=0.4)

    def locks() -> list[str]:
        return [f.read_text() for f in Path(config.folder).glob("jobs/*/lock")]

    thread = in_the_meantime(lambda: any(locks()), lambda: os.kill(int(locks()[0]), 9))
    with pytest.raises(StageError, match="its program ended with exit code 137"):
        device.run(job)
    thread.join()


def test_a_runtime_that_went_missing_is_told(
    device: AgentMachine, config: DeviceConfig, net: Built, python_with: BarePython
) -> None:
    job = job_of(device, net)
    with (
        closing(MACHINE(replace(config, python=python_with("numpy")))) as without,
        pytest.raises(MissingError, match="onnxruntime is not installed"),
    ):
        without.run(job)
    assert not list(Path(config.folder).glob("jobs/*"))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "small"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1200k", "tmpfs", str(folder)]
    try:
        failed = subprocess.run(mount, capture_output=True, text=True).stderr
    except OSError as error:
        failed = str(error)
    if failed:
        pytest.skip(f"NOT TESTED, needs to mount a small disk (root): {failed}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_there_is_told_and_nothing_is_left_on_it(
    config: DeviceConfig, net: Built, small_disk: Path
) -> None:
    with closing(MACHINE(replace(config, folder=str(small_disk)))) as device:
        for side in (700, 300):  # too large to be sent; sent, but its outputs are too large
            job = job_of(device, net, images=1, side=side)
            with pytest.raises(StageError, match="No space left on device") as raised:
                device.run(job)
            assert "free some space" in raised.value.hint
            left = [f.name for f in small_disk.rglob("*") if f.is_file()]
            assert [name[:6] for name in left] == ["agent-"]
    assert gone(str(small_disk))


def test_ctrl_c_here_ends_the_job_there(
    sshd: Sshd, config: DeviceConfig, net: Built, tmp_path: Path
) -> None:
    with closing(MACHINE(config)) as device:
        asked = tmp_path / "asked"
        asked.write_bytes(pickle.dumps((config, job_of(device, net, sizes=40, seconds=0.4))))
    code = (
        "import pickle, sys; from pathlib import Path\n"
        "from pipeline.machine.base import connect\n"
        "config, job = pickle.loads(Path(sys.argv[1]).read_bytes())\n"
        "with connect(config) as machine:\n"
        "    machine.run(job)\n"
    )
    command = [sys.executable, "-c", code, str(asked)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        thread = in_the_meantime(
            lambda: any((Path(config.folder) / "jobs").glob("*/done/*.json")),
            lambda: process.send_signal(2),
        )
        complaint = process.communicate(timeout=30)[1]
        thread.join()
    assert complaint.rstrip().endswith("KeyboardInterrupt")
    assert "not known whether" not in complaint
    assert gone(" work " + config.folder, within_s=0)
    assert gone(config.folder, within_s=3)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("board", "is no address"),
        ("http://board", "unknown kind 'http'"),
        ("ssh://", "is no address"),
        ("ssh://-oProxyCommand=x", "is no address"),
        ("ssh://board:99999", "no port 99999"),
        ("ssh://board/folder", "is no address"),
        ("ssh://me:secret@board", "a password in an address is not taken"),
    ],
)
def test_an_address_that_is_none_is_refused(text: str, problem: str) -> None:
    with pytest.raises(UsageError, match=problem) as raised, connect(DeviceConfig(text)):
        pass
    assert "secret" not in raised.value.what + raised.value.hint


def test_addresses_are_read_as_they_are_written() -> None:
    for text in ("ssh://pi@board:2222", "ssh://board", "ssh://me@[fe80::1]:22"):
        assert str(address_of(text)) == text


def test_a_shell_that_talks_first_is_heard_out(
    config: DeviceConfig, bare: str, tmp_path: Path
) -> None:
    chatty = tmp_path / "python"
    chatty.write_text(f'#!/bin/sh\necho "Welcome! [1]"\nexec {bare} "$@"\n')
    chatty.chmod(0o755)
    with closing(MACHINE(replace(config, python=str(chatty)))) as other:
        assert other.offers(["null"])["null"].precisions == ("fp32",)
        python = RemotePython(other._link, str(chatty))
        assert python.ask("look", folder=config.folder)["numpy"]
