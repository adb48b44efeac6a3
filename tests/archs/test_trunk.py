"""Nets whose last layers read many blocks: the authors' form, and the one block by block."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mipkd.archs import imdn, lkdn, span
from mipkd.archs._trunk import _cut
from mipkd.archs.base import Arch, SRNet
from mipkd.core.errors import UsageError
from mipkd.distill.teacher import TeacherOptions, identify, load, save_copy
from mipkd.export.onnx import export

FAMILIES: dict[str, Arch] = {"imdn": imdn.ARCH, "lkdn": lkdn.ARCH}
BUDGETS = {"imdn": "c12b3", "lkdn": "c12b3a10", "span": "c12b3"}


def made(name: str, *, seed: int = 0, **changed: Any) -> tuple[Arch, SRNet]:
    torch.manual_seed(seed)
    arch = FAMILIES.get(name, span.ARCH)
    net = arch.make(replace(arch.shrink(arch.paper(2), BUDGETS[name]), **changed)).eval()
    with torch.no_grad():
        for parameter in net.parameters():  # no bias is zero, no norm one
            parameter.add_(0.05 * torch.randn(parameter.shape))
    return arch, net


def image(height: int = 13, width: int = 18) -> Tensor:
    return torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("image_range", [1.0, 255.0])
@pytest.mark.parametrize("name", FAMILIES)
def test_what_runs_on_a_device_gives_the_nets_image(name: str, image_range: float) -> None:
    _, net = made(name, image_range=image_range)
    for deployed in (net.to_deployed(), net.to_exportable()):
        with torch.no_grad():
            assert torch.allclose(deployed(image()), net(image()), atol=1e-5)
        assert not any("share" in key for key in deployed.state_dict())


@pytest.mark.parametrize("name", FAMILIES)
def test_its_graph_gives_the_nets_image_at_any_size(name: str, tmp_path: Path) -> None:
    _, net = made(name)
    graph = export(net, out=tmp_path, metadata={}, role="student", family=name)
    session = onnxruntime.InferenceSession(str(graph.file))
    for size in ((13, 18), (32, 24)):
        (sr,) = session.run(None, {session.get_inputs()[0].name: image(*size).numpy()})
        with torch.no_grad():
            assert torch.allclose(torch.from_numpy(sr), net(image(*size)), atol=1e-5)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_kept_copy_gives_the_same_image(name: str, tmp_path: Path) -> None:
    arch, net = made(name)
    torch.save(arch.original(net), tmp_path / "net.pth")
    model, found = identify(tmp_path / "net.pth", role="teacher", options=TeacherOptions())
    assert (model.arch, model.scale) == (name, 2)
    save_copy(model, found, tmp_path / "copy.safetensors")
    again = load(replace(model, file=tmp_path / "copy.safetensors"))
    assert torch.equal(again(image()), net(image()))


@torch.no_grad()
def embed(name: str, small: SRNet, wide: SRNet) -> None:
    """Put a net into a wider one, whose other channels stay dead, at random places of each axis."""
    module: Any = {"imdn": imdn, "lkdn": lkdn, "span": span}[name]
    cuts = getattr(module, "_cuts", lambda _: None)  # no weight of SPAN is a row of parts
    picked: dict[str, Tensor] = {}
    mine = _cut(dict(small.named_parameters()), cuts)
    theirs = _cut(dict(wide.named_parameters()), cuts)
    for key, value in mine.items():
        theirs[key].zero_()
        index = [torch.arange(size) for size in theirs[key].shape]
        for dim, axis in enumerate(module._axes(key)[: value.ndim]):
            if axis:
                length = theirs[key].shape[dim]
                places = picked.setdefault(
                    axis.name, torch.randperm(length)[: value.shape[dim]].sort().values
                )
                index[dim] = places
        theirs[key][torch.meshgrid(*index, indexing="ij")] = value


@pytest.mark.parametrize("name", [*FAMILIES, "span"])
def test_a_student_inherits_just_the_channels_that_are_alive(name: str) -> None:
    arch, small = made(name)
    hyper = arch.shrink(arch.paper(2), BUDGETS[name])
    teacher = arch.make(arch.shrink(hyper, "c24")).eval()
    student = arch.make(hyper).eval()
    embed(name, small, teacher)
    arch.inherit(student, teacher)
    for key, value in student.state_dict().items():
        assert torch.equal(value, small.state_dict()[key]), key
    for net in (teacher, small):  # a norm over the channels counts the dead ones
        for step in net.blocks:
            if isinstance(step.block, lkdn.Block):  # type: ignore[union-attr]
                step.block.pixel_norm = torch.nn.Identity()  # type: ignore[union-attr,assignment]
    with torch.no_grad():
        wanted = small(image())
        near = 1e-5 * float(wanted.abs().max().clamp(min=1))  # SPAN's values are large
        assert torch.allclose(teacher(image()), wanted, atol=near)


def test_imdns_channels_are_a_multiple_of_four() -> None:
    with pytest.raises(UsageError, match="30 channels of imdn:c30") as caught:
        imdn.ARCH.shrink(imdn.ARCH.paper(4), "c30")
    assert "imdn:c28" in caught.value.hint


def test_lkdns_four_copies_of_the_image_are_read_as_one() -> None:
    arch, net = made("lkdn")
    state = arch.original(net)
    share = torch.rand(4, generator=torch.Generator().manual_seed(3))
    copies = [state["fea_conv.pw.weight"] * part / share.sum() for part in share]
    found = arch.canonical({**state, "fea_conv.pw.weight": torch.cat(copies, 1)})
    assert found is not None
    again = arch.make(arch.read(found[1], found[0])[0]).eval()
    again.load_state_dict(found[1])
    with torch.no_grad():
        assert torch.allclose(again(image()), net(image()), atol=1e-6)


def branched(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The state dict of LKDN-S in training: random branches beside what is there."""
    made = torch.Generator().manual_seed(4)

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=made) / 10

    found = dict(state)
    for key in [key for key in state if key.endswith("_r.pw.weight")]:
        name, channels = key.removesuffix("pw.weight"), len(state[key])
        found[f"{name}rep1x1.weight"] = random(channels, 1, 1, 1)
        found[f"{name}rep1x1.bias"] = random(channels)
    channels, outputs = state["fea_conv.dw.weight"].shape[0], 12
    for name, shape in (
        ("conv1", (outputs, channels, 1, 1)),
        ("conv3", (outputs, channels, 3, 3)),
        ("conv1x1", (2 * channels, channels, 1, 1)),
        ("conv3x3", (outputs, 2 * channels, 3, 3)),
    ):
        found[f"upsampler.{name}.weight"] = random(*shape)
        found[f"upsampler.{name}.bias"] = random(shape[0])
    return {k: v for k, v in found.items() if not k.startswith("upsampler.0.")}


def test_lkdns_training_branches_are_merged() -> None:
    arch, net = made("lkdn")
    state = branched(arch.original(net))
    found = arch.canonical(state)
    assert found is not None
    again = arch.make(arch.read(found[1], found[0])[0]).eval()
    again.load_state_dict(found[1])
    features = torch.rand(1, 12, 7, 8)

    def plain(name: str, x: Tensor, **how: Any) -> Tensor:
        return F.conv2d(x, state[f"{name}.weight"], state.get(f"{name}.bias"), **how)

    with torch.no_grad():
        name = "B2.c3_r."
        mixed = plain(f"{name}pw", features) + features
        wanted = plain(f"{name}dw", mixed, padding=1, groups=12) + mixed
        wanted = wanted + plain(f"{name}rep1x1", mixed, groups=12)
        block: Any = again.blocks[1]
        assert torch.allclose(block.block.c3_r(features), wanted, atol=1e-5)
        bias = state["upsampler.conv1x1.bias"][:, None, None]
        passed = F.conv2d(features, state["upsampler.conv1x1.weight"])
        passed = F.pad(passed, (1, 1, 1, 1)) + bias  # the border holds the bias alone
        wanted = plain("upsampler.conv1", features) + plain("upsampler.conv3x3", passed)
        wanted = wanted + plain("upsampler.conv3", features, padding=1)
        up: Any = again.up
        assert torch.allclose(up[0](features), wanted, atol=1e-5)


def test_a_constant_channel_leaves_imdn_a_gradient() -> None:
    _, net = made("imdn")
    net.train()
    net(torch.zeros(1, 3, 8, 8)).mean().backward()
    assert all(bool(p.grad.isfinite().all()) for p in net.parameters() if p.grad is not None)
