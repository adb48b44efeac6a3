"""Metrics beside PSNR and SSIM: held against libraries, and what they need is told."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from skimage import data
from torch import Tensor, nn

from mipkd.core.errors import MissingError, UnsupportedError, UsageError
from mipkd.core.images import luma, resize_bicubic
from mipkd.metrics._perceptual import make_features
from mipkd.metrics.base import list_plain
from pipeline import doctor
from pipeline.bench.pixels import measure_image
from pipeline.config import load
from pipeline.stages.perceive import check_metric, open_metric

TRUTH = data.astronaut()[:192, 128:352]


def spoil(image_HWC: np.ndarray, kind: str) -> np.ndarray:
    if kind == "noise":
        noise = np.random.default_rng(0).normal(0, 12, image_HWC.shape)
        return np.clip(image_HWC + noise, 0, 255).astype(np.uint8)
    height, width = image_HWC.shape[:2]
    return resize_bicubic(resize_bicubic(image_HWC, (height // 4, width // 4)), (height, width))


@pytest.mark.parametrize("kind", ["noise", "blur"])
def test_ms_ssim_is_that_of_a_library(kind: str) -> None:
    reference = pytest.importorskip("torchmetrics.functional.image")
    image = spoil(TRUTH, kind)
    planes = [torch.from_numpy(luma(one))[None, None] for one in (image, TRUTH)]
    wanted = reference.multiscale_structural_similarity_index_measure(*planes, data_range=255.0)
    found = measure_image("one", image, TRUTH, scale=0, metrics=list_plain()).metrics["ms_ssim_y"]
    assert found == pytest.approx(float(wanted), abs=1e-4)
    assert found < 0.999


def test_an_image_that_is_too_small_for_a_metric_has_the_others() -> None:
    small = TRUTH[:164, :164]
    assert "ms_ssim_y" in measure_image("one", small, small, scale=1, metrics=list_plain()).metrics
    found = measure_image("one", small, small, scale=2, metrics=list_plain()).metrics
    assert found.keys() == {"psnr_y", "ssim_y", "psnr_rgb", "tint"}


@pytest.fixture(scope="module")
def backbones(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Random weights in torchvision's layout, as its files have them."""
    pytest.importorskip("torchmetrics")
    folder, found = tmp_path_factory.mktemp("backbones"), {}
    for metric, name in (("lpips", "alexnet"), ("dists", "vgg16")):
        torch.manual_seed(0)
        net = nn.Module()
        net.features, net.classifier = make_features(name), nn.Sequential(nn.Linear(2, 2))
        found[metric] = folder / f"{name}.pth"
        torch.save(net.state_dict(), found[metric])
    return found


def as_batch(image_HWC: np.ndarray) -> Tensor:
    return torch.from_numpy(image_HWC.copy()).permute(2, 0, 1)[None].float() / 255


def lpips_of_the_paper(file: Path, image: np.ndarray, truth: np.ndarray) -> float:
    """Squared distances of unit features, weighted by the published heads, summed over layers."""
    from torchmetrics.functional.image import lpips

    state, features = torch.load(file), make_features("alexnet")
    features.load_state_dict({k: state[f"features.{k}"] for k in features.state_dict()})
    features.requires_grad_(False)
    published = Path(lpips.__file__).with_name("lpips_models") / "alex.pth"
    heads = torch.load(published, map_location="cpu")
    shift = torch.tensor([-0.030, -0.088, -0.188])[:, None, None]
    spread = torch.tensor([0.458, 0.448, 0.450])[:, None, None]
    a, b = ((2 * as_batch(one) - 1 - shift) / spread for one in (image, truth))
    total, layer = 0.0, 0
    for one in features:
        a, b = one(a), one(b)
        if isinstance(one, nn.ReLU):
            gap = (nn.functional.normalize(a) - nn.functional.normalize(b)) ** 2
            total += float((gap * heads[f"lin{layer}.model.1.weight"]).sum(1).mean())
            layer += 1
    return total


@pytest.mark.parametrize("name", ["lpips", "dists"])
def test_less_alike_is_higher_and_worse(name: str, backbones: dict[str, Path]) -> None:
    metric = open_metric(name, backbones[name])
    assert metric.measure is not None
    truth = TRUTH[:64, :80]
    others = (truth, truth // 2 * 2, spoil(truth, "noise"))
    equal, some, more = (metric.measure(image, truth) for image in others)
    assert equal == pytest.approx(0, abs=1e-5)
    assert 0 < some < more
    assert metric.loss(more, some) > 0


def test_lpips_is_the_papers_on_the_users_weights(backbones: dict[str, Path]) -> None:
    metric, image = open_metric("lpips", backbones["lpips"]), spoil(TRUTH, "blur")
    assert metric.measure is not None
    wanted = lpips_of_the_paper(backbones["lpips"], image, TRUTH)
    assert metric.measure(image, TRUTH) == pytest.approx(wanted, rel=1e-4)


def test_weights_of_another_net_are_refused_with_the_first_that_differs(
    backbones: dict[str, Path],
) -> None:
    message = r"vgg16\.pth: no weights of torchvision's alexnet: features\.0\.weight is of shape"
    with pytest.raises(UnsupportedError, match=message):
        open_metric("lpips", backbones["dists"])


def test_what_a_metric_lacks_is_told_before_any_work(
    tmp_path: Path, backbones: dict[str, Path]
) -> None:
    check_metric("psnr_y", None, "here")
    check_metric("lpips", backbones["lpips"], "here")
    with pytest.raises(
        MissingError, match=r"here: LPIPS needs .*AlexNet.*none are given"
    ) as caught:
        check_metric("lpips", None, "here")
    assert "--set metrics.weights.lpips=FILE" in caught.value.hint
    with pytest.raises(MissingError, match=r"gone\.pth is not there"):
        check_metric("dists", tmp_path / "gone.pth", "here")


def test_without_the_library_its_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mipkd.metrics._perceptual.find_spec", lambda name: None)
    with pytest.raises(MissingError, match=r"DISTS: torch is not installed") as caught:
        check_metric("dists", None, "here")
    assert caught.value.hint == "pip install 'mipkd-pipeline[perceptual]'"


def test_a_library_that_cannot_be_imported_is_one_line(
    backbones: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torchmetrics.functional.image.lpips", None)
    with pytest.raises(MissingError, match="lpips: torchmetrics cannot be imported: "):
        check_metric("lpips", backbones["lpips"], "here")


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("metrics.weights.psnr_y=x.pth", "psnr_y needs no weights"),
        ("metrics.weights.lpisp=x.pth", "unknown metric 'lpisp'"),
    ],
)
def test_weights_for_what_takes_none_are_refused(setting: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        load({}, sets=[setting])


def test_doctor_says_of_each_metric_what_it_needs() -> None:
    found = doctor.examine_machine()
    assert found["metrics"]["tint"] == found["metrics"]["ms_ssim_y"] == ""
    said = doctor.describe_machine(found)
    assert "metrics: psnr_y, ssim_y, ms_ssim_y, psnr_rgb, tint\n" in said
    assert "lpips needs" in said
    assert "vgg16-397923af.pth" in said
