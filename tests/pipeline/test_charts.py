"""The curves of a training."""

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from pipeline.report.charts import training


@pytest.mark.parametrize(
    ("losses", "log"), [((0.5, 0.2, 0.1), True), ((0.5, 0.0, 0.1), True), ((0.5, 0.1, -0.1), False)]
)
def test_losses_below_zero_are_drawn(tmp_path: Path, losses: Sequence[float], log: bool) -> None:
    """A loss in dB is below 0 where the student is better than its teacher."""
    file = tmp_path / "metrics.jsonl"
    rows = ({"step": step, "total": loss} for step, loss in enumerate(losses, 1))
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    drawn = training(file).losses
    assert ("log scale" in drawn) == log
    (points,) = (line for line in drawn.split("<") if line.startswith("polyline"))
    assert points.count(",") == sum(loss > 0 or not log for loss in losses)
