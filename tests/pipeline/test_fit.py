"""`--student auto`: the largest student within a latency budget on every target."""

import pytest

from mipkd.core.errors import UsageError
from pipeline.stages.fit import Budget, Candidate, largest_within

BUDGET = Budget(10.0, (180, 320))
CPU = [
    Candidate("edge:c16b3", 1.0, "cpu", "int8", 2.0),
    Candidate("rlfn:c52b6", 5.0, "cpu", "fp32", 9.0),
    Candidate("edge:c64b10", 9.0, "cpu", "int8", 8.0),
]


def test_the_most_arithmetic_within_the_budget_is_taken() -> None:
    assert largest_within(BUDGET, [CPU]) == "edge:c64b10"
    assert largest_within(Budget(7.0, (180, 320)), [CPU]) == "edge:c16b3"


def test_every_target_must_run_it_in_time() -> None:
    other = [
        Candidate("edge:c16b3", 1.0, "openvino", "int8", 1.0),
        Candidate("rlfn:c52b6", 5.0, "openvino", "bf16", 9.9),
        Candidate("edge:c64b10", 9.0, "openvino", "bf16", 10.1),
    ]
    assert largest_within(BUDGET, [CPU, other]) == "rlfn:c52b6"
    assert largest_within(BUDGET, [CPU, other[:1]]) == "edge:c16b3"


def test_a_budget_that_none_keeps_names_the_quickest() -> None:
    with pytest.raises(
        UsageError, match=r"a p90 of 1 ms at LR 320x180: the quickest, edge:c16b3, takes 2"
    ):
        largest_within(Budget(1.0, (180, 320)), [CPU])
    with pytest.raises(UsageError, match="none could be built"):
        largest_within(BUDGET, [[]])
