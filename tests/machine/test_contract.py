"""What every machine does alike: this one, one behind SSH, the fake one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest

from mipkd.core.errors import MipkdError
from mipkd.core.records import Built
from pipeline.bench.models import make_pixels
from pipeline.machine.base import DeviceConfig, Job, Machine, MachineLostError, connect
from pipeline.machine.fake import ShellLink
from pipeline.machine.remote.agent_machine import AgentMachine
from targets.base import ByteArray, find

from .conftest import job_of


@pytest.fixture(params=["local", "fake", "ssh"])
def machine(request: pytest.FixtureRequest) -> Iterator[Machine]:
    config = {"local": DeviceConfig(), "fake": DeviceConfig("fake://board")}.get(request.param)
    with connect(config or request.getfixturevalue("config")) as found:
        yield found


def test_it_offers_what_its_targets_can(machine: Machine) -> None:
    offered = machine.offers(["cpu", "null", "nonsense"])
    assert list(offered) == ["cpu", "null", "nonsense"]
    assert "unknown name 'nonsense'" in offered["nonsense"].why_not
    cpu = offered["cpu"]
    assert (cpu.target, cpu.why_not, cpu.simulated) == ("cpu", "", False)
    assert cpu.precisions[0] == "fp32"
    assert cpu.versions["onnxruntime"]
    assert cpu.host.cores > 0
    assert cpu.local == (machine.address == "")


def test_its_pixels_are_those_of_the_runtime_and_every_size_is_timed(
    machine: Machine, net: Built
) -> None:
    job = job_of(machine, net, sizes=2)
    job = replace(job, builts=(net, replace(net, role="teacher")))
    pixels: list[tuple[str, str, ByteArray]] = []
    found = machine.run(job, lambda b, name, sr: pixels.append((b.role, name, sr)))
    assert [[one.size for one in m.latencies] for m in found] == [[(32, 32), (32, 33)]] * 2
    assert all(len(one.samples_s) >= 5 for m in found for one in m.latencies)
    here: list[ByteArray] = []
    make_pixels(find("cpu"), [net], job.images, lambda _b, _n, sr: here.append(sr))
    assert [(role, name) for role, name, _ in pixels] == [  # a teacher's are not asked for
        ("student", "image 0"),
        ("student", "image 1"),
    ]
    for (_, _, sr_HWC), wanted in zip(pixels, here, strict=True):
        assert np.array_equal(sr_HWC, wanted)


def test_a_job_without_images_is_timed_alone(machine: Machine, net: Built) -> None:
    job = job_of(machine, net, images=0)
    assert machine.run(job)[0].latencies[0].samples_s


def test_a_job_that_fails_is_an_error_of_ours_and_the_next_one_runs(
    machine: Machine, net: Built, tmp_path_factory: pytest.TempPathFactory
) -> None:
    broken = tmp_path_factory.mktemp("broken") / "model.onnx"
    broken.write_bytes(b"no model")
    job = job_of(machine, net, images=0)
    with pytest.raises(MipkdError) as raised:
        machine.run(Job(job.info, (replace(net, file=broken),), job.settings))
    assert not isinstance(raised.value, MachineLostError)
    assert machine.run(job)[0].latencies[0].samples_s


def test_a_link_that_drops_is_tried_again_and_given_up(net: Built, tmp_path: str) -> None:
    import sys

    link = ShellLink("fake://far", str(tmp_path))
    config = DeviceConfig("fake://far", sys.executable, str(tmp_path), tries=2, pause_s=0.01)
    machine = AgentMachine(link, config)
    job = job_of(machine, net)
    link.drops = 2
    assert machine.run(job)[0].latencies[0].samples_s
    link.drops = 9
    with pytest.raises(MachineLostError, match="fake://far: connection lost for good"):
        machine.run(job)
