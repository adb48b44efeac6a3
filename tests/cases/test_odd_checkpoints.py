"""Checkpoints of odd content: infinities, averages, counters, and weights in two halves."""

from __future__ import annotations

import numpy as np
import pytest

from mipkd.core.errors import UsageError
from mipkd.core.finite import check_finite


def with_infinity(sign: float, *shape: int) -> np.ndarray:
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
def test_infinities_that_are_no_mask_are_refused(name: str, values: np.ndarray) -> None:
    with pytest.raises(UsageError, match=f"a.pth: {name} has"):
        check_finite("a.pth", [(name, values)])


@pytest.mark.parametrize(
    ("name", "shape"), [("layers.0.attn_mask", (4, 9, 9)), ("m", (4, 4)), ("mask", (1, 1, 4, 4))]
)
def test_a_mask_of_attention_may_hold_minus_infinity(name: str, shape: tuple[int, ...]) -> None:
    check_finite("a.pth", [(name, with_infinity(-1, *shape))])
