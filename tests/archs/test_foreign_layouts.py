"""The layouts that spandrel, chaiNNer and others read: what they give is what ours give."""

from __future__ import annotations

import importlib
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from mipkd.archs import compact, span
from mipkd.archs.base import Arch, load_arch, upscale_image
from mipkd.core.images import crop_to_multiple, psnr_y, read_rgb
from mipkd.distill.teacher import TeacherOptions, identify, save

THEIRS: dict[str, dict[str, Any]] = {
    "SPAN": {"num_in_ch": 3, "num_out_ch": 3, "feature_channels": 8},
    "Compact": {"num_feat": 8, "num_conv": 3},
}
OURS: dict[str, Arch] = {"SPAN": span.ARCH, "Compact": compact.ARCH}
LR = torch.rand(1, 3, 13, 18, generator=torch.Generator().manual_seed(1))


def theirs(name: str, scale: int, **more: Any) -> torch.nn.Module:
    module = importlib.import_module(f"spandrel.architectures.{name}")
    torch.manual_seed(0)
    net: torch.nn.Module = getattr(module, name)(upscale=scale, **THEIRS[name], **more)
    return net.eval()


def as_levels(image_NCHW: Tensor) -> Tensor:
    return image_NCHW.detach().clamp(0, 1).mul(255).round()


@pytest.mark.parametrize("scale", [2, 3, 4])
@pytest.mark.parametrize("name", THEIRS)
def test_a_net_of_theirs_gives_their_pixels_here(
    spandrel: Any, name: str, scale: int, tmp_path: Path
) -> None:
    net = theirs(name, scale)
    torch.save({"params": net.state_dict()}, tmp_path / "net.pth")
    model, ours = identify(tmp_path / "net.pth", role="teacher", options=TeacherOptions())
    assert (model.arch, model.scale) == (name.lower(), scale)
    assert torch.equal(as_levels(ours(LR)), as_levels(net(LR)))


@pytest.mark.filterwarnings("ignore:torch.meshgrid")  # spandrel's SwinIR
@pytest.mark.parametrize(
    ("name", "budget"),
    [("SPAN", "c12"), ("Compact", "c12b3"), ("RCAN", "c16g2b2"), ("SwinIR", "c12r2")],
)
def test_a_student_of_ours_is_read_and_gives_our_pixels_there(
    spandrel: Any, name: str, budget: str, tmp_path: Path
) -> None:
    arch = load_arch(name.lower())
    hyper = arch.shrink(arch.paper(2), budget)
    torch.manual_seed(0)
    net = arch.make(hyper).eval()
    save(net, arch, hyper, tmp_path / "student.safetensors", licence="MIT")
    there = spandrel.ModelLoader().load_from_file(tmp_path / "student.safetensors")
    assert there.architecture.id == name
    lr = torch.rand(1, 3, 16, 24)  # whole windows: what is more is padded in other ways there
    assert torch.equal(as_levels(there.model.eval()(lr.clone())), as_levels(net(lr)))


def test_sums_of_branches_that_came_in_the_file_are_made_anew(
    spandrel: Any, tmp_path: Path
) -> None:
    net = theirs("SPAN", 2)
    state = net.state_dict()
    for key in [key for key in state if "eval_conv" in key]:
        state[key] = torch.full_like(state[key], 9.0)
    torch.save(state, tmp_path / "net.pth")
    _, ours = identify(tmp_path / "net.pth", role="teacher", options=TeacherOptions())
    assert torch.equal(as_levels(ours(LR)), as_levels(net(LR)))


def test_a_span_on_pixels_from_0_to_1_says_so_in_its_file(spandrel: Any, tmp_path: Path) -> None:
    net = theirs("SPAN", 2, norm=False)
    torch.save(net.state_dict(), tmp_path / "net.pth")
    model, ours = identify(tmp_path / "net.pth", role="teacher", options=TeacherOptions())
    assert (model.hyper["image_range"], model.hyper["mean"]) == (1.0, None)
    assert torch.allclose(ours(LR), net(LR), atol=1e-6)
    assert "no_norm" in span.ARCH.original(ours)


@pytest.mark.parametrize("name", ["SPAN", "Compact"])
def test_grey_images_and_x1_are_not_ours(spandrel: Any, name: str) -> None:
    assert OURS[name].canonical(theirs(name, 1).state_dict()) is None


@pytest.mark.parametrize(
    ("file", "psnr_y_db"),
    [("span_x4_ch48.safetensors", 32.203), ("span_x2_ch48.safetensors", 38.070)],
)
def test_real_weights_reach_their_figure_on_set5(file: str, psnr_y_db: float, assets: Path) -> None:
    model, net = identify(assets / "weights" / file, role="teacher", options=TeacherOptions())
    net, found = net.to_deployed(), []
    for hr_file in sorted((assets / "test/Set5/HR").iterdir()):
        lr = assets / f"test/Set5/LR_bicubic/X{model.scale}/{hr_file.stem}x{model.scale}.png"
        hr = crop_to_multiple(read_rgb(hr_file), model.scale)
        found.append(psnr_y(upscale_image(net, read_rgb(lr)), hr, border=model.scale))
    assert sum(found) / 5 == pytest.approx(psnr_y_db, abs=0.002)


@pytest.mark.parametrize(("name", "budget"), [("edge", "c8b2"), ("rlfn", "c8b2")])
def test_the_pages_lines_load_a_student(
    name: str, budget: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    arch = load_arch(name)
    hyper = arch.shrink(arch.paper(2), budget)
    torch.manual_seed(0)
    net = arch.make(hyper).eval()
    save(net, arch, hyper, tmp_path / "student.safetensors", licence="MIT")
    page = (Path(__file__).parents[2] / "docs/start.md").read_text()
    (lines,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    found: dict[str, Any] = {}
    exec(lines, found)
    assert torch.allclose(found["net"](LR), net(LR), atol=1e-5)
