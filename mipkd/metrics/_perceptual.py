"""LPIPS and DISTS by torchmetrics, on backbones whose weights are the user's.

torchmetrics brings what both learned beside their backbones, and takes these from torchvision,
which downloads their weights. Here torchvision's layers are made of torch's, and filled from a
file.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from types import ModuleType, SimpleNamespace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from mipkd.core.errors import MissingError, UnsupportedError
from mipkd.metrics.base import ByteArray, Measure

if TYPE_CHECKING:
    from torch import nn

Name = Literal["alexnet", "vgg16"]
# Of each convolution: channels in and out, kernel, stride and padding; "pool" between them.
_ALEXNET = ((3, 64, 11, 4, 2), "pool", (64, 192, 5, 1, 2), "pool", (192, 384, 3, 1, 1))
_LAYERS: dict[Name, tuple[Any, ...]] = {
    "alexnet": (*_ALEXNET, (384, 256, 3, 1, 1), (256, 256, 3, 1, 1), "pool"),
    "vgg16": tuple(
        "pool" if width == "pool" else (before, width, 3, 1, 1)
        for before, width in (
            *((3, 64), (64, 64), (0, "pool"), (64, 128), (128, 128), (0, "pool")),
            *((128, 256), (256, 256), (256, 256), (0, "pool")),
            *((256, 512), (512, 512), (512, 512), (0, "pool")),
            *((512, 512), (512, 512), (512, 512), (0, "pool")),
        )
    ),
}
_POOL_SIDE: dict[Name, int] = {"alexnet": 3, "vgg16": 2}


def why_no_library() -> str:
    """What is missing to compute these metrics; "" if nothing is."""
    for package in ("torch", "torchmetrics"):
        if find_spec(package) is None:
            return f"{package} is not installed: pip install 'mipkd-pipeline[perceptual]'"
    return ""


def make_features(name: Name) -> nn.Sequential:
    """The layers that torchvision calls `features`, with random weights."""
    from torch import nn

    layers: list[nn.Module] = []
    for one in _LAYERS[name]:
        if one == "pool":
            layers.append(nn.MaxPool2d(_POOL_SIDE[name], 2))
        else:
            width_in, width_out, side, stride, padding = one
            layers += [nn.Conv2d(width_in, width_out, side, stride, padding), nn.ReLU()]
    return nn.Sequential(*layers)


def fill_features(name: Name, weights: Mapping[str, Any]) -> nn.Sequential:
    """The layers with weights by torchvision's key names; what belongs to its classifier is left.

    Raises:
        UnsupportedError: they are not those of the net.
    """
    features = make_features(name)
    mine = {key.removeprefix("features."): value for key, value in weights.items()}
    for key, wanted in features.state_dict().items():
        found = getattr(mine.get(key), "shape", None)
        if found != wanted.shape:
            stated = "missing" if found is None else f"of shape {tuple(found)}"
            raise UnsupportedError(
                f"no weights of torchvision's {name}: features.{key} is {stated}, "
                f"expected {tuple(wanted.shape)}",
                hint="give torchvision's own file, or torch.save(net.state_dict(), FILE) of it",
            )
    features.load_state_dict({key: mine[key] for key in features.state_dict()})
    return features.eval().requires_grad_(False)


def open_lpips(weights: Mapping[str, Any]) -> Measure:
    """LPIPS 0.1 on AlexNet with these weights."""
    lpips, features = _import("lpips"), fill_features("alexnet", weights)
    with _replaced(lpips, _get_tv_model_features=lambda *_, **__: features):
        net = lpips._NoTrainLpips(net="alex")
    return _on_images(lambda image, truth: net(image, truth, normalize=True))


def open_dists(weights: Mapping[str, Any]) -> Measure:
    """DISTS on VGG16 with these weights, images not resized."""
    dists = _import("dists")
    vgg16 = SimpleNamespace(features=fill_features("vgg16", weights))
    stand_ins = {"vgg16": lambda weights: vgg16, "VGG16_Weights": SimpleNamespace(DEFAULT=None)}
    with _replaced(dists, _TORCHVISION_AVAILABLE=True, **stand_ins):
        net = dists.DISTSNetwork().eval()
    return _on_images(net)


def _import(metric: str) -> ModuleType:
    """torchmetrics' functions of a metric.

    Raises:
        MissingError: it cannot be imported; it imports a torchvision that is there.
    """
    try:
        return importlib.import_module(f"torchmetrics.functional.image.{metric}")
    except Exception as error:  # of what it imports
        first = next(iter(str(error).splitlines()), type(error).__name__)
        raise MissingError(
            f"{metric}: torchmetrics cannot be imported: {first}",
            hint="a torchvision that is not built for the torch that is here: uninstall it",
        ) from error


@contextmanager
def _replaced(module: ModuleType, **names: Any) -> Iterator[None]:
    """Inside, a module has these attributes: torchmetrics knows no backbone but torchvision's."""
    before = {name: vars(module)[name] for name in names if name in vars(module)}
    vars(module).update(names)
    try:
        yield
    finally:
        for name in names:
            del vars(module)[name]
        vars(module).update(before)


def _on_images(net: Callable[..., Any]) -> Measure:
    """A net of two batches in [0, 1] as a metric of two images."""
    import torch

    def measure(image_HWC: ByteArray, truth_HWC: ByteArray) -> float:
        pair = (
            torch.from_numpy(np.ascontiguousarray(one)).permute(2, 0, 1)[None].float() / 255
            for one in (image_HWC, truth_HWC)
        )
        with torch.inference_mode():
            return float(net(*pair))

    return measure
