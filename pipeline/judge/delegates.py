"""Whether each delegate of a phone takes all of a model: one that is right on a CPU is refused."""

from __future__ import annotations

from collections.abc import Iterator

from mipkd.core.evidence import Gate
from mipkd.core.measurement import Measurement
from pipeline.bench.comparisons import subject
from pipeline.judge.bounds import GateConfig
from pipeline.judge.outcomes import passes


def judge_delegates(config: GateConfig, m: Measurement) -> Iterator[Gate]:
    """A gate for each delegate that the target tells of and the settings name."""
    for delegate, refused in m.refused_by.items():
        if config.delegates in ("all", delegate):
            why = f"it refuses {refused}" if refused else "it knows every operator"
            yield Gate(f"operators {delegate}", subject(m), passes(not refused), None, 0.0, "", why)
