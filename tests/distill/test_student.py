"""Choosing a student and its first weights."""

import logging
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from mipkd.archs.base import Arch, SRNet
from mipkd.core import plugins
from mipkd.core.errors import UsageError
from mipkd.core.images import psnr_y, read_rgb
from mipkd.core.records import Model
from mipkd.distill.start import initialise
from mipkd.distill.student import choose
from mipkd.distill.teacher import TeacherOptions, identify, save


def arch_of(name: str) -> Arch:
    arch: Arch = plugins.load("mipkd.archs", name, "ARCH")
    return arch


def record(name: str, budget: str, *, scale: int = 2, gmacs: float = 1e6, **facts: Any) -> Model:
    arch = arch_of(name)
    hyper = replace(arch.shrink(arch.paper(scale), budget), **facts)
    return Model(
        role="teacher",
        file=Path("none"),
        sha256="",
        arch=name,
        hyper=asdict(hyper),
        scale=scale,
        layout="original",
        settled={},
        params=0,
        gmacs=gmacs,
    )


def made(arch: Arch, hyper: Any, seed: int = 0) -> SRNet:
    torch.manual_seed(seed)
    return arch.make(hyper).eval()


@pytest.mark.parametrize(
    ("teacher", "spec", "sizes"),
    [
        (("edsr", "c256b32"), None, {"channels": 64, "blocks": 32}),
        (("edsr", "c64b16"), None, {"channels": 32, "blocks": 8}),
        (("rcan", "g10b20"), None, {"channels": 64, "groups": 10, "blocks": 6}),
        (("swinir", "c180r6"), None, {"channels": 60, "groups": 4}),
        (("edsr", "c64b16"), "edsr:c32", {"channels": 32, "blocks": 16}),
        (("rcan", "g10b20"), "rcan:g5", {"channels": 64, "groups": 5, "blocks": 20}),
        (("rlfn", "c52b6"), None, {"channels": 26, "blocks": 3, "middle": 26}),
        (("edsr", "c64b16"), "rlfn:c46b4m48", {"channels": 46, "blocks": 4, "middle": 48}),
        (("rlfn", "c46b4m48"), "rlfn:c23", {"channels": 23, "blocks": 4, "middle": 24}),
        (("edsr", "c64b16"), "edge", {"channels": 32, "blocks": 6, "folded": False}),
        (("edge", "c32b6"), None, {"channels": 16, "blocks": 3}),
        (("swinir", "c180r6"), "edsr:c48", {"channels": 48, "blocks": 32}),
        (("swinir", "c180r6"), "edsr", {"channels": 64, "blocks": 32}),
    ],
)
def test_the_student_is_the_one_asked_for_or_the_papers(
    teacher: tuple[str, str], spec: str | None, sizes: dict[str, int]
) -> None:
    arch, hyper = choose(record(*teacher, scale=4), spec)
    assert arch.name == (spec or teacher[0]).partition(":")[0]
    assert {k: getattr(hyper, k) for k in sizes} == sizes
    assert hyper.scale == 4


def test_within_a_family_range_shift_and_tail_are_the_teachers() -> None:
    teacher = record("edsr", "c64b16", image_range=1.0, mean=None, direct=True)
    _, hyper = choose(teacher, "edsr:c16b2")
    assert (hyper.image_range, hyper.mean, hyper.direct) == (1.0, None, True)


@pytest.mark.parametrize(
    ("spec", "message", "hint"),
    [
        ("edrs:c32", "unknown family 'edrs'", "did you mean edsr?"),
        ("edsr:wide", "cannot read 'wide'", "for example edsr:c32b4"),
        ("edsr:c32x4", "cannot read 'c32x4'", "b"),
        ("edsr:c0", "cannot read 'c0'", "channels"),
        ("edge:c3", "three channels are the image itself", "edge:c16"),
        ("swinir:c64", "64 channels cannot be shared by 6 heads", "multiple of 6"),
    ],
)
def test_a_student_that_cannot_be_is_refused(spec: str, message: str, hint: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        choose(record("edsr", "c64b16"), spec)
    assert hint in caught.value.hint


def test_a_student_no_smaller_than_its_teacher_is_warned_of(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.WARNING):
        choose(record("edsr", "c16b4", gmacs=0.5), "edsr:c16b4")
    assert "no smaller than its teacher" in caplog.text


def no_patches() -> torch.Tensor:
    raise AssertionError("nothing is fitted")


def test_another_familys_teacher_leaves_the_student_at_random(
    caplog: pytest.LogCaptureFixture,
) -> None:
    edsr, rcan = arch_of("edsr"), arch_of("rcan")
    student = made(edsr, edsr.shrink(edsr.paper(2), "c8b1"))
    before = {k: v.clone() for k, v in student.state_dict().items()}
    teacher = made(rcan, rcan.shrink(rcan.paper(2), "c8g1b1"))
    with caplog.at_level(logging.WARNING):
        assert initialise(student, edsr, teacher, "project", no_patches) == "random"
    assert "another family" in caplog.text
    assert all(torch.equal(before[k], v) for k, v in student.state_dict().items())


def test_a_checkpoint_gives_the_first_weights_if_it_fits(tmp_path: Path) -> None:
    edsr = arch_of("edsr")
    small, large = (edsr.shrink(edsr.paper(2), b) for b in ("c8b1", "c12b1"))
    given, file = made(edsr, small, 1), tmp_path / "given.safetensors"
    save(given, edsr, small, file, licence="MIT")
    student = made(edsr, small, 0)
    initialise(student, edsr, None, str(file), no_patches)
    assert all(torch.equal(given.state_dict()[k], v) for k, v in student.state_dict().items())
    with pytest.raises(UsageError, match=r"lift\.weight is \(8, 3, 3, 3\), the student's is \(12"):
        initialise(made(edsr, large), edsr, None, str(file), no_patches)
    with pytest.raises(UsageError, match="no such file"):
        initialise(student, edsr, None, str(tmp_path / "absent.pth"), no_patches)


def test_fewer_blocks_of_a_real_teacher_start_far_above_bicubic(assets: Path) -> None:
    model, teacher = identify(
        assets / "weights" / "mlperf_edsr" / "edsr_f64b5_x2.pt",
        role="teacher",
        options=TeacherOptions(image_range=255, mean_shift=False),
    )
    folder = assets / "test" / "Set5"
    lr, hr = (
        read_rgb(folder / part) for part in ("LR_bicubic/X2/butterflyx2.png", "HR/butterfly.png")
    )
    figures = {}
    for spec, how in (("edsr:b4", "inherit"), ("edsr:b4", "random"), ("edsr:c60", "inherit")):
        arch, hyper = choose(model, spec)
        student = made(arch, hyper)
        initialise(student, arch, teacher, how, no_patches)
        with torch.inference_mode():
            sr = student(torch.from_numpy(lr).permute(2, 0, 1)[None] / 255)
        image = sr[0].clamp(0, 1).mul(255).round().byte().permute(1, 2, 0).numpy()
        figures[spec, how] = psnr_y(image, hr, border=2)
    assert figures["edsr:b4", "inherit"] > 32  # bicubic: 27.4 dB
    assert figures["edsr:c60", "inherit"] > figures["edsr:b4", "random"] + 10
