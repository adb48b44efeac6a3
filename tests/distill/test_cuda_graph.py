"""A step replayed as a CUDA graph is the step that was launched kernel by kernel."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch

from mipkd.archs import edsr, rlfn
from mipkd.archs.base import SRNet
from mipkd.distill.batch import Batch
from mipkd.distill.cuda_graph import Backward, ReplayedBackward, _NoCoins
from mipkd.distill.forward import StepForward
from mipkd.distill.settings import DistillConfig, method_names
from mipkd.distill.train_step import Learner
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
    if "losses" not in settings:
        settings = {"method": "mipkd", **settings}
    return Learner(DistillConfig(steps=40, precision="fp32", **settings), student, teacher)


def small() -> SRNet:
    torch.manual_seed(0)
    return edsr.EDSR(edsr.Hyper(2, channels=8, blocks=4))


@on_a_gpu
@pytest.mark.parametrize("method", method_names())
def test_replayed_steps_are_the_launched_ones(method: str) -> None:
    torch.backends.cudnn.deterministic = True
    curves, weights = [], []
    for graphs in (False, True):
        taught = learner(small(), method=method, cuda_graphs=graphs)
        curves.append([taught.advance(Noise()) for _ in range(12)])
        weights.append(taught.student.state_dict())
        if graphs:
            assert isinstance(taught._gradients, ReplayedBackward)
            assert taught._gradients.recordings
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
def test_each_outcome_of_the_tosses_is_recorded_and_replayed_as_it_was_launched() -> None:
    curves, weights = [], []
    for graphs in (False, True):
        taught = learner(small(), method="mipkd", cuda_graphs=graphs)
        curves.append([taught.advance(Noise()) for _ in range(40)])  # it rests from step 20 on
        weights.append(taught.student.state_dict())
        if graphs:
            assert isinstance(taught._gradients, ReplayedBackward)
            assert len(taught._gradients.recordings) > 3
    for launched, replayed in zip(*curves, strict=True):
        assert replayed == pytest.approx(launched, rel=1e-3, abs=1e-5)
    for name, value in weights[0].items():
        torch.testing.assert_close(weights[1][name], value, rtol=1e-2, atol=1e-3)


@on_a_gpu
def test_a_loss_that_takes_coins_is_launched_kernel_by_kernel(
    caplog: pytest.LogCaptureFixture,
) -> None:
    losses = ({"name": "pixel"}, {"name": "dukd"})
    curves = []
    for graphs in (False, True):
        with caplog.at_level(logging.INFO):
            taught = learner(small(), losses=losses, cuda_graphs=graphs)
            curves.append([taught.advance(Noise()) for _ in range(12)])
    assert "kernel by kernel: a loss branches on random numbers" in caplog.text
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
    assert isinstance(taught._gradients, ReplayedBackward)
    assert taught._gradients.recordings


class Tally:
    """Counts what is launched, recorded and replayed, and computes nothing."""

    def __init__(self, step: StepForward) -> None:
        self.step, self.launched, self.replayed = step, list[Any](), list[Any]()
        self.recorded: list[Any] = []

    def launch(self, batch: Batch) -> dict[str, torch.Tensor]:
        self.launched.append(self.step.key)
        return {}

    def record(self, batch: Batch) -> Backward:
        key = self.step.key
        if "dukd" in self.step.active:
            self.step.coins.random()
        self.recorded.append(key)

        def replay(batch: Batch) -> dict[str, torch.Tensor]:
            self.replayed.append(key)
            return {}

        return replay


def tallied(steps: int, **settings: Any) -> tuple[Tally, ReplayedBackward]:
    step = learner(small(), device="cpu", **settings).forward
    tally = Tally(step)
    recorded = ReplayedBackward(tally.launch, step, tally.record)
    for number in range(steps):
        step.prepare(number)
        recorded(Noise().batch(number))
    return tally, recorded


def test_each_outcome_of_the_tosses_is_launched_once_and_then_recorded_once() -> None:
    tally, _ = tallied(20, method="mipkd")  # of 40 steps: it does not rest yet
    keys = set(tally.launched) | set(tally.recorded)
    assert len(tally.recorded) == len(set(tally.recorded)) >= 4
    assert all(tally.launched.count(key) == 1 for key in tally.launched[3:])
    assert len(keys) > len(tally.launched[:3])
    # What is replayed is the recording of the tosses of that step.
    _, step = None, tally.step
    drawn = []
    for number in range(20):
        step.prepare(number)
        drawn.append(step.key)
    assert [key for key in drawn if key in tally.recorded][-1] == tally.replayed[-1]
    assert len(tally.launched) + len(tally.replayed) == 20


def test_a_loss_that_comes_to_rest_makes_other_recordings() -> None:
    tally, recorded = tallied(40, method="mipkd")
    resting = [key for key in recorded.recordings if len(dict(key)) == 2]  # type: ignore[call-overload]
    assert len(resting) == 1
    assert tally.launched.count(resting[0]) == 3  # once more for each set of losses
    assert tally.replayed[-1] == resting[0]


def test_a_failed_recording_is_not_tried_again_and_others_are_made_anew() -> None:
    losses = ({"name": "pixel"}, {"name": "dukd", "until": 0.5})
    tally, recorded = tallied(40, losses=losses)
    assert len(tally.launched) == 20 + 3
    assert list(recorded.recordings) == [(("pixel", ()),)]


def test_there_is_a_bound_on_recordings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mipkd.distill.cuda_graph._MOST", 2)
    tally, recorded = tallied(20, method="mipkd")
    assert len(recorded.recordings) == 2
    assert len(tally.launched) + len(tally.replayed) == 20


def test_coins_refuse_while_recorded() -> None:
    for toss in (
        lambda coins: coins.random(),
        lambda coins: coins.randint(0, 3),
        lambda coins: coins.choice("ab"),
    ):
        with pytest.raises(RuntimeError, match="branches on random numbers"):
            toss(_NoCoins())


def test_a_cpu_launches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    taught = learner(small(), method="logits")
    assert not isinstance(taught._gradients, ReplayedBackward)


def test_a_renewed_generator_draws_the_same() -> None:
    step = learner(small(), method="logits", device="cpu").forward
    assert isinstance(step, StepForward)
    step.prepare(7)
    expected = torch.rand(3, generator=step.generator)
    step.prepare(7)
    step.renew_generator()
    assert torch.equal(torch.rand(3, generator=step.generator), expected)
