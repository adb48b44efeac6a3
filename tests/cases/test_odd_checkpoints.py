"""Checkpoints of odd content: infinities, averages, counters, and weights in two halves."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from checkpoint_makers import State, tiny, under

from mipkd.archs import edsr
from mipkd.core.errors import UnsupportedError, UsageError
from mipkd.core.finite import check_finite
from mipkd.distill.probe import choose_photos, settle
from mipkd.distill.teacher import TeacherOptions, identify


def look(path: Path, content: Any) -> tuple[Any, State]:
    """What a saved checkpoint is found to be, and the net's weights."""
    torch.save(content, path)
    model, net = identify(path, role="teacher", options=TeacherOptions())
    return model, edsr.ARCH.original(net)


def with_infinity(sign: float, *shape: int) -> npt.NDArray[Any]:
    values = np.zeros(shape, np.float32)
    values[..., -1:] = sign * np.inf
    return values


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("body.0.weight", with_infinity(-1, 8, 8, 3, 3)),
        ("mask", with_infinity(1, 4, 4)),
        ("fc.weight", with_infinity(1, 4, 4)),
        ("bias", with_infinity(-1, 4)),
        ("alpha", np.array(np.inf, np.float32)),
        ("alpha", np.array(-np.inf, np.float32)),
        ("attn_mask", np.array([[0, np.nan], [-np.inf, 0]], np.float32)),
        ("attn_mask", with_infinity(-1, 2, 1)),
    ],
)
def test_infinities_that_are_no_mask_are_refused(name: str, values: npt.NDArray[Any]) -> None:
    with pytest.raises(UsageError, match=f"a.pth: {name} has"):
        check_finite("a.pth", [(name, values)])


@pytest.mark.parametrize(
    ("name", "shape"), [("layers.0.attn_mask", (4, 9, 9)), ("m", (4, 4)), ("mask", (1, 1, 4, 4))]
)
def test_a_mask_of_attention_may_hold_minus_infinity(name: str, shape: tuple[int, ...]) -> None:
    check_finite("a.pth", [(name, with_infinity(-1, *shape))])


AVERAGED: dict[str, Callable[[State, State], Any]] = {
    "online in ema": lambda s, o: {"ema": under("online_model.", o) | under("ema_model.", s)},
    "raw in ema": lambda s, o: {"ema": {"raw": o, "weights": s}},
    "netEMA": lambda s, o: {"net": o, "netEMA": s},
    "netEma": lambda s, o: {"state_dict": under("net.", o) | under("netEma.", s)},
    "emamodel": lambda s, o: {"model": o, "emamodel": s},
    "ema1": lambda s, o: {"model": o, "model_ema1": s},
    "average": lambda s, o: {"model": o, "model_avg": s},
    "target": lambda s, o: {"net": o, "target_net": s},
    "shadow": lambda s, o: {"model": o, "ema": {"shadow": s}},
    "student": lambda s, o: under("student.", o) | under("teacher.", s),
}


@pytest.mark.parametrize("name", AVERAGED)
def test_averaged_weights_are_taken(name: str, tmp_path: Path) -> None:
    for first, second in ((0, 1), (1, 0)):
        averaged = tiny(first)
        _, found = look(tmp_path / "a.pth", AVERAGED[name](averaged, tiny(second)))
        assert torch.equal(found["head.0.weight"], averaged["head.0.weight"])


@pytest.mark.parametrize(
    "beside",
    [
        {"ema": {"decay": 0.9, "shadow_params": [torch.ones(3), torch.ones(2)]}},
        {"callbacks": {"EMA": {"ema_weights": [torch.ones(3), torch.ones(2)]}}},
    ],
)
def test_averages_in_a_list_are_warned_of(
    beside: dict[str, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    look(tmp_path / "a.pth", {"model": tiny(), **beside})
    assert "averaged weights as a list, which cannot be told apart: took model" in caplog.text
    caplog.clear()
    look(tmp_path / "a.pth", {"model": tiny(), "model_ema": tiny(), **beside})
    lists = {"optimizer": {"exp_avg": [torch.ones(3), torch.ones(2)]}}
    look(tmp_path / "a.pth", {"model": tiny(), **lists})
    assert not caplog.records


@pytest.mark.parametrize(
    "counters",
    [
        {"total_ops": torch.zeros(1), "body.0.total_params": torch.zeros(1).double()},
        {"best_psnr": torch.tensor(31.2), "lowest": torch.tensor([torch.inf])},
    ],
)
def test_counters_in_a_net_are_left_out(counters: State, tmp_path: Path) -> None:
    _, found = look(tmp_path / "a.pth", {"params": tiny() | counters})
    assert torch.equal(found["head.0.weight"], tiny()["head.0.weight"])


def halves(*ends: str) -> State:
    """A net whose body's kernels are each stored in two tensors."""
    whole = tiny()
    kernels = [key for key in whole if key.startswith("body.") and key.endswith(".weight")]
    found = {k.removesuffix("weight") + end: whole[k] for k in kernels for end in ends}
    return {k: v for k, v in whole.items() if k not in kernels} | found


@pytest.mark.parametrize(
    ("state", "what"),
    [
        ({k: v for k, v in tiny().items() if "tail" not in k}, "upsampler is missing: .*tail.0.0"),
        (tiny() | {"foo.bar.weight": torch.ones(4, 4)}, "edsr, but it has no 'foo.bar.weight'"),
        (halves("weight_g", "weight_v"), "weight norm: 'body.0.body.0.weight_g' and"),
        (halves("weight_orig", "weight_mask"), "pruning: 'body.0.body.0.weight_orig'"),
        (
            halves(*(f"parametrizations.weight.original{i}" for i in (0, 1))),
            "weight norm: 'body.0.body.0.parametrizations.weight.original0' and",
        ),
    ],
    ids=["tail", "stranger", "weight norm", "pruning", "parametrization"],
)
def test_what_does_not_fit_is_said(state: State, what: str, spandrel: Any, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match=what) as caught:
        look(tmp_path / "a.pth", {"params": state})
    assert caught.value.hint


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("kind", ["tensors", "arrays"])
def test_a_plain_pickle_is_called_one(kind: str, protocol: int, tmp_path: Path) -> None:
    state = {k: v if kind == "tensors" else v.numpy() for k, v in tiny().items()}
    file = tmp_path / "a.pth"
    file.write_bytes(pickle.dumps(state, protocol=protocol))
    with pytest.raises(UsageError, match=r"a plain pickle, not one of torch\.save"):
        identify(file, role="teacher", options=TeacherOptions())
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(UsageError, match="cut short or damaged"):
        identify(file, role="teacher", options=TeacherOptions())


def test_weights_that_are_no_numbers_are_named_with_their_wrapper(tmp_path: Path) -> None:
    bad = {key: value * torch.nan for key, value in tiny().items()}
    with pytest.raises(UsageError, match=r"a\.pth: params_ema > head\.0\.weight has 216 NaN"):
        look(tmp_path / "a.pth", {"params": tiny(), "params_ema": bad})


def test_a_probe_that_cannot_tell_keeps_what_is_usual_where_the_range_is_unknown() -> None:
    net = edsr.EDSR(edsr.Hyper(scale=2, channels=8, blocks=2))
    with torch.no_grad():  # residuals of zero: every scale of them gives the same image
        for block in net.blocks[:-1]:
            block.body[2].weight.zero_()  # type: ignore[operator, union-attr, index]
            block.body[2].bias.zero_()  # type: ignore[operator, union-attr, index]
    usual = edsr.Hyper(scale=2, channels=8, blocks=2)
    listed = edsr.ARCH.unsettled(usual)
    guesses = [*(replace(one, res_scale=0.25) for one in listed), *listed]
    settled = {"image_range": "unknown", "res_scale": "assumed from its width"}
    images = choose_photos(None, None, scale=2)

    def make(hyper: edsr.Hyper) -> edsr.EDSR:
        made = edsr.EDSR(hyper)
        made.load_state_dict(net.state_dict())
        return made.eval()

    own = replace(usual, image_range=1e4)  # which all others beat
    best, _ = settle([own, *guesses], settled, make, images)
    assert best.res_scale == 1.0
