"""One table says all that there is to say of a precision."""

from __future__ import annotations

import pytest

from mipkd.core.precision import FLOATS, PRECISIONS, QUANTIZED, order_of, tolerance_of
from targets.base import find


def test_each_precision_is_a_float_or_quantised_and_stands_in_the_order_of_tables() -> None:
    assert (*FLOATS, *QUANTIZED) == tuple(PRECISIONS)
    assert [order_of(name) for name in PRECISIONS] == [0, 1, 2, 3, 4]
    assert order_of("int3") == len(PRECISIONS)


def test_only_what_is_quantised_to_patches_cannot_do_without() -> None:
    assert [name for name, row in PRECISIONS.items() if row.reads_patches] == ["fp16", "int8"]
    assert [name for name, row in PRECISIONS.items() if row.needs_patches] == ["int8"]


def test_a_precision_that_nobody_knows_is_allowed_the_most() -> None:
    assert tolerance_of("int3") == tolerance_of("int8")
    assert tolerance_of("int8").levels == max(row.tolerance.levels for row in PRECISIONS.values())


@pytest.mark.parametrize("name", ["coreml", "coreml:ane"])
def test_a_target_may_allow_more(name: str) -> None:
    """Core ML computes in FP16 with weights of 8 bits; elsewhere they are exact."""
    assert find(name).tolerance("w8") == tolerance_of("fp16")
    assert find(name).tolerance("int8") == tolerance_of("int8")
    assert find("cpu").tolerance("w8") == tolerance_of("fp32")
