"""What is trained in branches is what is exported, and no feature leaves [0, 1]."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mipkd.archs.edge import ARCH, Branched, Edge, Hyper
from mipkd.distill.batch import Batch
from mipkd.distill.settings import DistillConfig
from mipkd.distill.teacher import TeacherOptions, describe, identify, save
from mipkd.distill.train_step import Learner
from mipkd.losses.base import TeacherPass

HYPER = Hyper(2, channels=9, blocks=3)


def made(hyper: Hyper = HYPER, seed: int = 0, size: float = 1.0) -> Edge:
    """A net with weights `size` times as large as at first, and a last layer that tells."""
    torch.manual_seed(seed)
    net = ARCH.make(hyper).eval()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter *= size
        for branch in (net.up.direct, net.up.narrow):
            branch.weight *= 40  # type: ignore[union-attr]
    return net


def image(height: int = 7, width: int = 10) -> Tensor:
    return torch.rand(2, 3, height, width, generator=torch.Generator().manual_seed(1))


def apart(layer: nn.Module, x: Tensor) -> Tensor:
    """The branches one by one, each with its own padding."""
    assert isinstance(layer, Branched)
    wide = layer.narrow(F.conv2d(x, layer.wide.weight, padding=1))
    total: Tensor = layer.direct(x) + wide
    return total + x if total.shape == x.shape else total


@pytest.mark.parametrize("size", [1.0, 1.5])
@pytest.mark.parametrize("height", [1, 2, 7])
def test_the_folded_net_equals_its_branches_at_the_borders_too(height: int, size: float) -> None:
    net, lr = made(size=size), image(height)
    with torch.inference_mode():
        shallow = torch.cat([lr, apart(net.lift, lr)], 1).clamp(0, 1)
        features = shallow
        for block in net.blocks:
            features = apart(block.conv, features).clamp(0, 1)  # type: ignore[arg-type]
        change = F.pixel_shuffle(apart(net.up, features), 2)
        wanted = (F.interpolate(lr, scale_factor=2) + change).clamp(0, 1)
        assert change.abs().mean() > 0.03
        for tried in (net, net.to_deployed()):
            assert torch.allclose(tried(lr), wanted, atol=1e-5)


def test_the_folded_net_has_single_convolutions_only() -> None:
    folded = made().to_deployed()
    convolutions = [m for m in folded.modules() if isinstance(m, nn.Conv2d)]
    assert len(convolutions) == HYPER.blocks + 2
    assert not any(isinstance(m, Branched) for m in folded.modules())
    assert folded.to_deployed() is folded


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_a_new_net_begins_near_repeated_pixels(scale: int) -> None:
    torch.manual_seed(0)
    net, lr = ARCH.make(ARCH.paper(scale)).eval(), image()
    assert (net(lr) - F.interpolate(lr, scale_factor=scale)).abs().max() < 0.02


def test_features_and_image_stay_in_range_whatever_the_weights() -> None:
    net = made(size=30)
    with torch.inference_mode():
        sr, taps = net.forward_with_taps(image(), (0, 1, 2))
    assert all(t.min() >= 0 and t.max() <= 1 for t in (sr, *taps, net.head(image())))
    assert (taps[0] == 1).any()


def test_in_training_a_pixel_beyond_white_still_has_a_gradient() -> None:
    net = made().train()
    with torch.no_grad():
        net.up.direct.bias += 5  # type: ignore[union-attr, operator]
    sr = net(image())
    assert sr.min() > 1
    sr.mean().backward()
    assert net.up.direct.bias.grad.abs().sum() > 0  # type: ignore[union-attr]


@pytest.mark.parametrize("folded", [False, True])
def test_a_file_tells_whether_it_is_folded(tmp_path: Path, folded: bool) -> None:
    net, hyper = made(), replace(HYPER, folded=folded)
    kept = net.to_deployed() if folded else net
    ours, foreign = tmp_path / "ours.safetensors", tmp_path / "plain.pth"
    save(kept, ARCH, hyper, ours, licence="MIT")
    torch.save(kept.state_dict(), foreign)
    for file, layout in ((ours, "ours"), (foreign, "folded" if folded else "branched")):
        model, found = identify(file, role="student", options=TeacherOptions())
        assert (model.layout, Hyper(**model.hyper)) == (layout, hyper)
        assert torch.equal(found(image()), kept(image()))


def test_what_is_told_of_a_student_is_what_runs_on_the_device(tmp_path: Path) -> None:
    file = tmp_path / "student.safetensors"
    save(made(), ARCH, HYPER, file, licence="MIT")
    told = describe(ARCH, HYPER, role="student", file=file, licence="MIT")
    assert told.params == sum(p.numel() for p in made().to_deployed().parameters())


@pytest.mark.parametrize("folded", [False, True])
def test_a_student_inherits_the_image_too_and_is_trained_in_branches(folded: bool) -> None:
    teacher = made(Hyper(2, channels=20, blocks=6))
    if folded:
        teacher = teacher.to_deployed()
    hyper = ARCH.shrink(teacher.hyper, "c8b4")
    assert not hyper.folded
    student = made(hyper)
    ARCH.inherit(student, teacher)
    lr = image()
    theirs, shallow = teacher.head(lr), student.head(lr)
    assert torch.equal(shallow[:, :3], lr)
    kept = [any(torch.allclose(s, t, atol=1e-6) for t in theirs[0]) for s in shallow[0]]
    assert all(kept)


class Noise:
    """Patches that are drawn from the step."""

    def batch(self, step: int, wants: TeacherPass = "none") -> Batch:
        chance = torch.Generator().manual_seed(step)
        hr = torch.rand(2, 3, 16, 16, generator=chance)
        return Batch(F.avg_pool2d(hr, 2), hr)


def test_training_in_branches_goes_on_exactly_and_its_average_folds() -> None:
    config = DistillConfig(steps=6, batch=2, patch=8, lr=1e-2, precision="fp32", method="scratch")
    whole, parts = (Learner(config, made(), None) for _ in range(2))
    for _ in range(6):
        whole.advance(Noise())
    for _ in range(3):
        parts.advance(Noise())
    again = Learner(config, made(seed=5), None)
    again.load_state_dict(parts.state_dict())
    for _ in range(3):
        again.advance(Noise())
    for one, other in ((whole.student, again.student), (whole.averaged, again.averaged)):
        assert all(torch.equal(v, other.state_dict()[k]) for k, v in one.state_dict().items())
    assert isinstance(whole.averaged, Edge)
    averaged, lr = whole.averaged.cpu(), image()
    assert not torch.equal(averaged(lr), made()(lr))
    assert torch.allclose(averaged.to_deployed()(lr), averaged(lr), atol=1e-5)


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16])
def test_under_autocast_kernels_are_still_summed_in_float32(kind: torch.dtype) -> None:
    layer = Branched(4, 4)
    wanted, _ = layer.fold_branches()
    with torch.autocast("cpu", kind):
        weight, _ = layer.fold_branches()
        assert layer(torch.rand(1, 4, 5, 5)).dtype == kind
    assert torch.equal(weight, wanted)
