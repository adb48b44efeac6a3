"""Image range and mean shift of EDSR and RCAN, read from a checkpoint.

Their authors' repositories store the mean shift as 1x1 convolutions `sub_mean` and `add_mean` with
bias -range * mean and its opposite. Some versions trained these by mistake.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from typing import Any

import torch
from torch import Tensor

from mipkd.archs._parts import DIV2K_MEAN
from mipkd.archs.base import StateDict
from mipkd.core.errors import UnsupportedError


def fold_shift(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Our keys with shift layers that only shift: any other map that they learned is folded into
    the first and last convolution. Exact at the borders too: padding adds the pixels that
    `sub_mean` maps to 0."""
    if "sub_mean.weight" not in state or "add_mean.weight" not in state:
        return state
    before, after = (state[f"{s}_mean.weight"].double().reshape(3, 3) for s in ("sub", "add"))
    sub, add = (state[f"{s}_mean.bias"].double() for s in ("sub", "add"))
    if not float(torch.linalg.det(before)):
        raise UnsupportedError(
            "sub_mean.weight maps colours to fewer than three dimensions",
            hint="known: a shift of the mean, or a map that can be undone",
        )
    shift = torch.linalg.solve(before, sub)
    identity = torch.eye(3, dtype=torch.float64)
    if torch.equal(before, identity) and torch.equal(after, identity) and torch.equal(sub, -add):
        return state
    last = "last" if "last.weight" in state else "up.0"
    read, write = state["lift.weight"].double(), state[f"{last}.weight"].double()
    bias = after @ state[f"{last}.bias"].double().view(3, -1) + (add + shift)[:, None]
    exact = {
        "lift.weight": torch.einsum("oikl,ij->ojkl", read, before),
        f"{last}.weight": (after @ write.view(3, -1)).view_as(write),
        f"{last}.bias": bias.flatten(),
        "sub_mean.weight": identity.view(3, 3, 1, 1),
        "add_mean.weight": identity.view(3, 3, 1, 1),
        "sub_mean.bias": shift,
        "add_mean.bias": -shift,
    }
    return {**state, **{key: value.float() for key, value in exact.items()}}


def settle_range(state: StateDict, layout: str) -> tuple[dict[str, object], dict[str, str]]:
    """Image range and mean as fields of a Hyper, and how each is known."""
    if "sub_mean.bias" in state:
        how = "layout original: sub_mean.bias"
        shift = [-float(b) for b in state["sub_mean.bias"]]
        image_range = 255.0 if max(shift) > 1 else 1.0
        mean = tuple(round(s / image_range, 6) for s in shift) if any(shift) else None
        return {"image_range": image_range, "mean": mean}, {"image_range": how, "mean": how}
    if layout == "basicsr":
        how = "assumed from layout basicsr: its defaults"
        return {"image_range": 255.0, "mean": DIV2K_MEAN}, {"image_range": how, "mean": how}
    return {}, {"image_range": "unknown", "mean": "unknown"}


def list_ranges(hyper: Any) -> list[Any]:
    """Image range 255 or 1, with and without mean shift; and pixels from -1 to 1."""
    pairs = [*product((255.0, 1.0), (None, DIV2K_MEAN)), (2.0, (0.5, 0.5, 0.5))]
    return [replace(hyper, image_range=r, mean=m) for r, m in pairs]
