"""Reading checkpoints: what is in them, what is refused, and what an option or a probe settles."""

import logging
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mipkd.archs.base import Arch, SRNet
from mipkd.archs.edsr import ARCH as EDSR
from mipkd.archs.edsr import Hyper
from mipkd.core import plugins
from mipkd.core.errors import MipkdError, UsageError
from mipkd.core.images import psnr_y, read_rgb, ssim_y
from mipkd.distill.data import Pair
from mipkd.distill.probe import ProbeImages, choose_photos
from mipkd.distill.teacher import TeacherOptions, identify, load, load_structure, save

TINY = Hyper(scale=2, channels=8, blocks=2)
ASIS = TeacherOptions()


def tiny(hyper: Hyper = TINY, seed: int = 0) -> SRNet:
    torch.manual_seed(seed)
    return EDSR.make(hyper).eval()


def stored(path: Path, content: Any) -> Path:
    torch.save(content, path)
    return path


def weights(net: SRNet) -> dict[str, torch.Tensor]:
    return EDSR.original(net)


def same(a: SRNet, b: SRNet) -> bool:
    image = torch.rand(1, 3, 7, 9, generator=torch.Generator().manual_seed(1))
    return torch.equal(a(image), b(image))


@pytest.mark.parametrize(
    "wrap",
    [
        lambda s: s,
        lambda s: {"params": {}, "params_ema": s},
        lambda s: {"params": s, "iter": 3},
        lambda s: {"state_dict": {f"module.{k}": v for k, v in s.items()}, "epoch": 1},
        lambda s: {"model": {"params": s}},
        lambda s: {k: v.half() for k, v in s.items()},
    ],
    ids=["bare", "params_ema", "params", "module", "nested", "half"],
)
def test_weights_are_found_in_every_wrapper(
    tmp_path: Path, wrap: Callable[[dict[str, Any]], dict[str, Any]]
) -> None:
    net = tiny()
    model, found = identify(
        stored(tmp_path / "a.pth", wrap(weights(net))), role="teacher", options=ASIS
    )
    assert (model.arch, model.scale, model.layout) == ("edsr", 2, "original")
    facts = {"channels": 8, "blocks": 2, "direct": False, "image_range": 255.0, "res_scale": 1.0}
    assert facts.items() <= model.hyper.items()
    assert model.hyper["mean"] == pytest.approx((0.4488, 0.4371, 0.4040), abs=1e-3)
    assert "sub_mean.bias" in model.settled["image_range"]
    assert found(torch.zeros(1, 3, 4, 4)).shape == (1, 3, 8, 8)


@pytest.mark.parametrize("name", plugins.names("mipkd.archs"))
def test_our_own_files_need_no_probe(
    tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    arch: Arch = plugins.load("mipkd.archs", name, "ARCH")
    smallest = {"edsr": "c8b1", "rcan": "c8g1b1", "swinir": "c12r1"}.get(name, "")
    hyper = arch.shrink(arch.paper(3), smallest)
    unusual = {"image_range": 100.0, "mean": None}
    hyper = replace(hyper, **{k: v for k, v in unusual.items() if hasattr(hyper, k)})
    net = arch.make(hyper).eval()
    file = tmp_path / "net.safetensors"
    save(net, arch, hyper, file, licence="MIT")
    model, found = identify(file, role="student", options=ASIS)
    assert same(found, net)
    assert same(load(model), net)
    assert (model.layout, model.licence) == ("ours", "MIT")
    assert arch.Hyper(**model.hyper) == hyper
    assert not list(tmp_path.glob("*.partial"))
    assert not caplog.records


class Code:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("echo this must not run",)


def test_an_outline_has_the_nets_shape_and_no_weights(tmp_path: Path) -> None:
    save(tiny(), EDSR, TINY, tmp_path / "t.safetensors", licence="")
    model, net = identify(tmp_path / "t.safetensors", role="teacher", options=TeacherOptions())
    model.file.unlink()
    found = load_structure(model)
    mine, theirs = found.state_dict(), net.state_dict()
    assert {k: v.shape for k, v in mine.items()} == {k: v.shape for k, v in theirs.items()}
    assert all(parameter.is_meta for parameter in found.parameters())


def _bad(folder: Path, kind: str) -> Path:
    file = folder / f"{kind}.pth"
    if kind == "text":
        file.write_text("not a checkpoint")
    elif kind == "empty":
        file.write_bytes(b"")
    elif kind == "cut":
        whole = stored(folder / "whole.pth", weights(tiny())).read_bytes()
        file.write_bytes(whole[: len(whole) // 2])
    elif kind == "code":
        stored(file, {"params": {"head.0.weight": Code()}})
    elif kind == "module":
        stored(file, torch.nn.Conv2d(1, 1, 1))
    elif kind == "numbers":
        stored(file, {"epoch": 3})
    elif kind == "header":
        file = folder / "header.safetensors"
        file.write_bytes(b"x" * 30)
    return file


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("missing", "no such file"),
        ("text", "not a checkpoint"),
        ("empty", "not a checkpoint"),
        ("cut", "not a checkpoint"),
        ("header", "not a checkpoint"),
        ("numbers", "no tensors"),
        ("code", "refused: the pickle holds code"),
        ("module", "refused: the pickle holds code"),
    ],
)
def test_what_is_no_checkpoint_is_refused_by_name(
    tmp_path: Path, kind: str, message: str, capfd: pytest.CaptureFixture[str]
) -> None:
    file = _bad(tmp_path, kind)
    with pytest.raises(UsageError, match=message) as caught:
        identify(file, role="teacher", options=ASIS)
    assert str(file) in caught.value.what
    assert caught.value.hint
    assert "must not run" not in capfd.readouterr().out


def test_an_unknown_architecture_names_the_nearest_and_the_first_missing_key(
    tmp_path: Path,
) -> None:
    state = weights(tiny())
    state = {k.replace("body.0.body.2", "body.0.body.7"): v for k, v in state.items()}
    # A MissingError where spandrel is not installed.
    with pytest.raises(MipkdError, match=r"nearest is edsr.*'body\.0\.body\.2\.weight'"):
        identify(stored(tmp_path / "a.pth", state), role="teacher", options=ASIS)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s | {"body.0.body.3.weight": torch.zeros(1)}, "parts that this family"),
        (lambda s: {k: v for k, v in s.items() if k != "tail.1.bias"}, "'last.bias' is missing"),
        (lambda s: s | {"head.0.weight": torch.zeros(8, 1, 3, 3)}, r"\(8, 1, 3, 3\)"),
    ],
    ids=["extra", "missing", "grey"],
)
def test_a_variant_that_would_be_misread_is_refused(
    tmp_path: Path, change: Callable[[dict[str, Any]], dict[str, Any]], message: str
) -> None:
    file = stored(tmp_path / "a.pth", change(weights(tiny())))
    with pytest.raises(MipkdError, match=message):
        identify(file, role="teacher", options=ASIS)


def test_a_scale_that_contradicts_the_file_is_refused(tmp_path: Path) -> None:
    file = stored(tmp_path / "a.pth", weights(tiny()))
    with pytest.raises(UsageError, match="its scale is x2, --scale asks for x4"):
        identify(file, role="teacher", options=TeacherOptions(scale=4))


def _pair(seed: int, net: SRNet) -> tuple[str, Any, Any]:
    """A smooth image, and what `net` makes of it."""
    rough = torch.rand(1, 3, 6, 6, generator=torch.Generator().manual_seed(seed))
    lr = torch.nn.functional.interpolate(rough, 24, mode="bicubic").clamp(0, 1).mul(255).byte()
    with torch.inference_mode():
        hr = net(lr / 255).clamp(0, 1).mul(255).round().byte()
    return f"{seed}", *(np.ascontiguousarray(i[0].permute(1, 2, 0).numpy()) for i in (lr, hr))


def test_a_probe_finds_the_range_that_no_tensor_tells(tmp_path: Path) -> None:
    unshifted = replace(TINY, image_range=255.0, mean=None)
    net = tiny(unshifted)
    file = stored(tmp_path / "a.pth", weights(net))
    images = ProbeImages("two nets' images", [_pair(seed, net) for seed in range(2)])
    model, found = identify(file, role="teacher", options=ASIS, probe=lambda scale: images)
    assert (model.hyper["image_range"], model.hyper["mean"]) == (255.0, None)
    assert "on 2 images of two nets' images: 100.00 dB" in model.settled["image_range"]
    assert same(found, net)


def test_an_option_comes_before_the_probe(tmp_path: Path) -> None:
    net = tiny(replace(TINY, mean=None))
    file = stored(tmp_path / "a.pth", weights(net))
    options = TeacherOptions(image_range=1.0, mean_shift=True, res_scale=0.1, licence="MIT")
    model, _ = identify(file, role="teacher", options=options)
    assert model.hyper["image_range"] == 1.0
    assert model.hyper["res_scale"] == 0.1
    assert model.settled["image_range"] == "1.0 (option)"
    assert model.licence == "MIT"


def test_without_images_the_guess_is_said_aloud(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = stored(tmp_path / "a.pth", weights(tiny(replace(TINY, mean=None))))
    with caplog.at_level(logging.WARNING):
        model, _ = identify(file, role="teacher", options=ASIS)
    assert "guess" in model.settled["image_range"]
    assert "no images to probe" in caplog.text


PUBLISHED = {
    "edsr_baseline_x4_deq8.pt": (32.038, 0.8930),
    "RLFN_x4.pth": (32.238, None),
    "IMDN_x4.pth": (32.21, 0.8948),
    "LKDN_x4.pth": (32.39, 0.8979),
    "mlperf_edsr/edsr_f64b5_x2.pt": (37.652, None),
    "mlperf_edsr/edsr_f32b5_x2.pt": (37.377, None),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_real_teachers_reach_their_published_figures_on_set5(assets: Path, name: str) -> None:
    folder = assets / "test" / "Set5"

    def pairs(scale: int) -> list[Pair]:
        found = []
        for file in sorted((folder / "HR").iterdir()):
            lr = read_rgb(folder / "LR_bicubic" / f"X{scale}" / f"{file.stem}x{scale}.png")
            hr = read_rgb(file)[: lr.shape[0] * scale, : lr.shape[1] * scale]
            found.append((file.stem, lr, hr))
        return found

    model, net = identify(
        assets / "weights" / name,
        role="teacher",
        options=ASIS,
        probe=lambda scale: choose_photos(None, None, scale=scale),
    )
    psnr, ssim = [], []
    for _, lr, hr in pairs(model.scale):
        with torch.inference_mode():
            sr = net(torch.from_numpy(lr).permute(2, 0, 1)[None] / 255)
        image = sr[0].clamp(0, 1).mul(255).round().byte().permute(1, 2, 0).numpy()
        psnr.append(psnr_y(image, hr, border=model.scale))
        ssim.append(ssim_y(image, hr, border=model.scale))
    wanted_psnr, wanted_ssim = PUBLISHED[name]
    assert np.mean(psnr) == pytest.approx(wanted_psnr, abs=0.01)
    if wanted_ssim:
        assert np.mean(ssim) == pytest.approx(wanted_ssim, abs=0.001)
