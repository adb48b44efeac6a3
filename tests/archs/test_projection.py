"""A student that starts as its teacher's projection, in all families."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mipkd.archs import (
    _edsr_projection,
    _rcan_projection,
    _rlfn_projection,
    _span_projection,
    _swinir_projection,
    compact,
    edge,
)
from mipkd.archs._regression import Regression
from mipkd.archs.base import Arch, SRNet
from mipkd.core import plugins
from mipkd.core.images import downscale, psnr_y, read_rgb, resize_bicubic
from mipkd.distill.teacher import TeacherOptions, identify

PROJECT: dict[str, Callable[[Any, Any, Tensor], None]] = {
    "compact": compact.ARCH.project,
    "edge": edge.ARCH.project,
    "edsr": _edsr_projection.project,
    "rcan": _rcan_projection.project,
    "rlfn": _rlfn_projection.project,
    "span": _span_projection.project,
    "swinir": _swinir_projection.project,
}
TEACHERS = {
    "compact": "c12b4",
    "edge": "c12b4",
    "edsr": "c12b4",
    "rcan": "c12g3b2",
    "rlfn": "c16b4m18",
    "span": "c12b4",
    "swinir": "c12r3",
}
SMALLER = [
    ("compact", "c8b4"),
    ("compact", "c12b2"),
    ("compact", "c8b2"),
    ("edge", "c8b4"),
    ("edge", "c12b2"),
    ("edge", "c8b2"),
    ("edsr", "c8b4"),
    ("edsr", "c12b2"),
    ("edsr", "c8b2"),
    ("rcan", "c8g3b2"),
    ("rcan", "c12g2b2"),
    ("rcan", "c12g3b1"),
    ("rcan", "c8g2b1"),
    ("rlfn", "c10b4"),
    ("rlfn", "c16b2"),
    ("rlfn", "c10b2"),
    ("span", "c8b4"),
    ("span", "c8b2"),
    ("swinir", "c6r3"),
    ("swinir", "c12r2"),
    ("swinir", "c6r1"),
]
DEEPER = {
    "compact": "c8b7",
    "edge": "c8b7",
    "edsr": "c8b7",
    "rcan": "c8g5b3",
    "rlfn": "c10b7",
    "swinir": "c6r5",
}


NARROW = {
    "compact": "c8b4",
    "edge": "c8b4",
    "edsr": "c8b4",
    "rcan": "c8g3b2",
    "rlfn": "c10b4",
    "span": "c8b4",
    "swinir": "c6r3",
}
DEPTH_AND_WIDTH = {
    "compact": "c8b2",
    "edge": "c8b2",
    "edsr": "c8b2",
    "rcan": "c8g2b1",
    "rlfn": "c10b2",
    "span": "c8b2",
    "swinir": "c6r1",
}


def teacher_of(name: str, scale: int = 2, **other: Any) -> tuple[Arch, Any, SRNet]:
    """A net whose blocks change the image: weights above their usual random size."""
    arch: Arch = plugins.load("mipkd.archs", name, "ARCH")
    fields = {k: v for k, v in ({"layers": 2} | other).items() if hasattr(arch.paper(scale), k)}
    hyper = replace(arch.shrink(arch.paper(scale), TEACHERS[name]), **fields)
    torch.manual_seed(0)
    net = arch.make(hyper).eval()
    with torch.no_grad():
        for key, parameter in net.named_parameters():
            parameter *= 1.5 if key.startswith("blocks.") else 1.0
    return arch, hyper, net


def student_of(arch: Arch, hyper: Any, budget: str, teacher: SRNet) -> SRNet:
    """A net of random weights that has inherited what can be."""
    torch.manual_seed(1)
    student = arch.make(arch.shrink(hyper, budget)).eval()
    arch.inherit(student, teacher)
    return student


def photos(count: int, seed: int, size: int = 16) -> Tensor:
    """Smooth noise and fine noise, in [0, 1]."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, 3, 5, 5, generator=generator)
    smooth = F.interpolate(coarse, (size, size), mode="bicubic", align_corners=False)
    return (smooth + 0.05 * torch.randn(smooth.shape, generator=generator)).clamp(0, 1)


def nearness(student: SRNet, teacher: SRNet) -> float:
    """How far the student's images are from the teacher's, in dB under the spread of the
    teacher's; of images that nothing was fitted on."""
    lr_NCHW = photos(4, seed=9)
    with torch.inference_mode():
        theirs = teacher(lr_NCHW)
        error = (student(lr_NCHW) - theirs).square().mean()
        spread = (theirs - theirs.mean((2, 3), keepdim=True)).square().mean()
    return float(10 * torch.log10(spread / error))


@pytest.mark.parametrize("name", PROJECT)
def test_a_student_of_the_teachers_size_becomes_the_teacher(name: str) -> None:
    arch, hyper, teacher = teacher_of(name)
    torch.manual_seed(1)
    student = arch.make(hyper).eval()
    PROJECT[name](student, teacher, photos(24, seed=1))
    assert nearness(student, teacher) > 50


@pytest.mark.parametrize(("name", "budget"), SMALLER)
def test_a_smaller_student_starts_nearer_than_one_that_inherits(name: str, budget: str) -> None:
    arch, hyper, teacher = teacher_of(name)
    student = student_of(arch, hyper, budget, teacher)
    inherited = nearness(student, teacher)
    PROJECT[name](student, teacher, photos(24, seed=1))
    assert nearness(student, teacher) > inherited + 3


@pytest.mark.parametrize(("name", "budget"), DEEPER.items())
def test_a_deeper_student_is_as_near_as_one_of_the_teachers_depth(name: str, budget: str) -> None:
    arch, hyper, teacher = teacher_of(name)
    near = []
    for one in (NARROW[name], budget):
        student = student_of(arch, hyper, one, teacher)
        PROJECT[name](student, teacher, photos(24, seed=1))
        near.append(nearness(student, teacher))
    assert near[1] > near[0] - 0.5


@pytest.mark.parametrize("direct", [False, True])
@pytest.mark.parametrize("scale", [2, 3, 4])
@pytest.mark.parametrize("name", PROJECT)
def test_every_scale_and_tail_is_fitted(name: str, scale: int, direct: bool) -> None:
    arch, hyper, teacher = teacher_of(name, scale, direct=direct)
    student = student_of(arch, hyper, DEPTH_AND_WIDTH[name], teacher)
    inherited = nearness(student, teacher)
    PROJECT[name](student, teacher, photos(12, seed=1))
    assert nearness(student, teacher) > inherited + 3


@pytest.mark.parametrize("name", PROJECT)
def test_the_same_patches_give_the_same_weights_and_leave_the_teacher_as_it_is(name: str) -> None:
    arch, hyper, teacher = teacher_of(name)
    before = {key: value.clone() for key, value in teacher.state_dict().items()}
    states = []
    for _ in range(2):
        student = student_of(arch, hyper, DEPTH_AND_WIDTH[name], teacher)
        PROJECT[name](student, teacher, photos(12, seed=1))
        states.append(student.state_dict())
    assert all(torch.equal(value, states[1][key]) for key, value in states[0].items())
    assert all(torch.equal(value, before[key]) for key, value in teacher.state_dict().items())


def test_an_edge_student_of_single_convolutions_gets_the_same_weights() -> None:
    arch, hyper, teacher = teacher_of("edge")
    branched = student_of(arch, hyper, "c8b2", teacher)
    folded = arch.make(replace(arch.shrink(hyper, "c8b2"), folded=True)).eval()
    for student in (branched, folded):
        PROJECT["edge"](student, teacher, photos(12, seed=1))
    lr_NCHW = photos(2, seed=9)
    assert torch.allclose(branched(lr_NCHW), folded(lr_NCHW), atol=1e-5)


def test_swinirs_directions_are_orthonormal_and_keep_means() -> None:
    x_PC = torch.randn(50, 12, generator=torch.Generator().manual_seed(0)).double()
    basis_KC = _swinir_projection._directions_with_mean(x_PC.T @ x_PC, 5)
    assert torch.allclose(basis_KC @ basis_KC.T, torch.eye(5), atol=1e-6)
    assert torch.allclose(basis_KC.sum(1) / 12**0.5, torch.full((5,), 5**-0.5), atol=1e-6)


def test_input_channels_can_be_kept_whatever_they_are_worth() -> None:
    features = torch.randn(2, 6, 8, 8, generator=torch.Generator().manual_seed(0))
    regression = Regression.of(features, features[:, 3:], 1)
    assert regression.strongest_inputs(3) == [3, 4, 5]
    assert regression.strongest_inputs(4, always=3)[:3] == [0, 1, 2]


def centre(file: Path, side: int) -> np.ndarray:
    """The middle of a photo, (side, side, 3)."""
    photo = read_rgb(file)
    top, left = ((length - side) // 2 for length in photo.shape[:2])
    return np.ascontiguousarray(photo[top : top + side, left : left + side])


@pytest.mark.slow
def test_a_narrow_rlfn_starts_above_bicubic(assets: Path) -> None:
    teacher_model, teacher = identify(
        assets / "weights/RLFN_x4.pth", role="teacher", options=TeacherOptions(image_range=255)
    )
    arch: Arch = plugins.load("mipkd.archs", "rlfn", "ARCH")
    student = student_of(arch, arch.Hyper(**teacher_model.hyper), "c40b6", teacher)
    lr = np.stack(
        [
            downscale(centre(file, 128), 4)
            for file in sorted((assets / "train/BSDS400").iterdir())[:48]
        ]
    )
    PROJECT["rlfn"](student, teacher, torch.from_numpy(lr).permute(0, 3, 1, 2).float() / 255)
    gains = []
    for file in sorted((assets / "train/SunHays40").iterdir())[:8]:
        hr = centre(file, 256)
        small = downscale(hr, 4)
        with torch.inference_mode():
            sr = student(torch.from_numpy(small).permute(2, 0, 1)[None].float() / 255)[0]
        pixels = sr.clamp(0, 1).mul(255).round().byte().permute(1, 2, 0).numpy()
        bicubic = resize_bicubic(small, (256, 256))
        gains.append(psnr_y(pixels, hr, border=4) - psnr_y(bicubic, hr, border=4))
    assert sum(gains) / len(gains) > 0.8
