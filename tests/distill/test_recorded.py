"""A step replayed as a CUDA graph is the step that was launched kernel by kernel."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch

from mipkd.archs import edsr, rlfn
from mipkd.archs.base import SRNet
from mipkd.distill.batch import Batch
from mipkd.distill.learner import Learner
from mipkd.distill.recorded import Recorded, _NoCoins
from mipkd.distill.settings import METHODS, DistillConfig
from mipkd.distill.step import Step
from mipkd.losses.base import TeacherPass


def on_a_gpu(test: Any) -> Any:
    absent = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
    return pytest.mark.gpu(absent(test))


class Noise:
    """Other patches at each step."""

    def batch(self, step: int, wants: TeacherPass = "none") -> Batch:
        chance = torch.Generator().manual_seed(step)
        return Batch(*(torch.rand(4, 3, side, side, generator=chance) for side in (16, 32)))


def learner(student: SRNet, **settings: Any) -> Learner:
    torch.manual_seed(1)
    teacher = edsr.EDSR(edsr.Hyper(2, channels=16, blocks=4))
    return Learner(DistillConfig(steps=40, precision="fp32", **settings), student, teacher)


def small() -> SRNet:
    torch.manual_seed(0)
    return edsr.EDSR(edsr.Hyper(2, channels=8, blocks=4))


@on_a_gpu
@pytest.mark.parametrize("method", METHODS)
def test_replayed_steps_are_the_launched_ones(method: str) -> None:
    torch.backends.cudnn.deterministic = True
    curves, weights = [], []
    for graphs in (False, True):
        taught = learner(small(), method=method, cuda_graphs=graphs)
        curves.append([taught.advance(Noise()) for _ in range(12)])
        weights.append(taught.student.state_dict())
        if graphs:
            assert isinstance(taught._gradients, Recorded)
            assert taught._gradients._graph is not None
    for launched, replayed in zip(*curves, strict=True):
        assert replayed == pytest.approx(launched, rel=1e-4, abs=1e-6)
    for name, value in weights[0].items():
        torch.testing.assert_close(weights[1][name], value, rtol=1e-3, atol=1e-4)


@on_a_gpu
def test_it_goes_on_from_a_save() -> None:
    whole = learner(small())
    curve = [whole.advance(Noise()) for _ in range(12)]
    first, second = learner(small()), learner(small())
    for _ in range(6):
        first.advance(Noise())
    second.load_state_dict(first.state_dict())
    for expected in curve[6:]:
        assert second.advance(Noise()) == pytest.approx(expected, rel=1e-3, abs=1e-6)


@on_a_gpu
def test_a_loss_that_takes_coins_is_launched_kernel_by_kernel(
    caplog: pytest.LogCaptureFixture,
) -> None:
    losses = ({"name": "pixel"}, {"name": "mixture_of_priors", "student_share": 0.5})
    curves = []
    for graphs in (False, True):
        with caplog.at_level(logging.INFO):
            taught = learner(small(), losses=losses, cuda_graphs=graphs)
            curves.append([taught.advance(Noise()) for _ in range(12)])
    assert "kernel by kernel: a loss decides by chance" in caplog.text
    for launched, tried in zip(*curves, strict=True):
        assert tried == pytest.approx(launched, rel=1e-4, abs=1e-6)


@on_a_gpu
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch's own compiler
def test_compiled_steps_are_the_plain_ones(capfd: pytest.CaptureFixture[str]) -> None:
    curves = []
    for compile in (False, True):
        taught = learner(small(), compile=compile)
        curves.append([taught.advance(Noise()) for _ in range(6)])
    for plain, compiled in zip(*curves, strict=True):
        assert compiled == pytest.approx(plain, rel=1e-3, abs=1e-5)
    assert "WON'T CONVERT" not in capfd.readouterr().err


@on_a_gpu
def test_other_families_are_recorded() -> None:
    torch.manual_seed(0)
    taught = learner(rlfn.RLFN(rlfn.Hyper(2, channels=8, blocks=2, middle=8)), method="logits")
    for _ in range(6):
        taught.advance(Noise())
    assert isinstance(taught._gradients, Recorded)
    assert taught._gradients._graph is not None


def test_coins_refuse_while_recorded() -> None:
    for toss in (
        lambda coins: coins.random(),
        lambda coins: coins.randint(0, 3),
        lambda coins: coins.choice("ab"),
    ):
        with pytest.raises(RuntimeError, match="decides by chance"):
            toss(_NoCoins())


def test_a_cpu_launches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    taught = learner(small(), method="logits")
    assert not isinstance(taught._gradients, Recorded)


def test_a_renewed_generator_draws_the_same() -> None:
    step = learner(small(), method="logits", device="cpu").plain
    assert isinstance(step, Step)
    step.draw(7)
    expected = torch.rand(3, generator=step.generator)
    step.draw(7)
    step.renew()
    assert torch.equal(torch.rand(3, generator=step.generator), expected)
