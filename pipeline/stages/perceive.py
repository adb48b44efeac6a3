"""Metrics that compare the features of a net: its weights are the user's, the pixels a run's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, field_validator

from mipkd.core.errors import MissingError, UnsupportedError, nearest
from mipkd.core.images import read_rgb
from mipkd.core.measurement import ImageScore, Measurement
from mipkd.core.names import printable
from mipkd.core.records import TestSet
from mipkd.distill.data import load_tests
from mipkd.distill.files import read_content
from mipkd.distill.unwrap import list_candidates
from mipkd.metrics.base import Metric, find_metric, list_metrics
from pipeline.bench.pixels import measure_image, output_file
from pipeline.stage import Ref, Source, stage


class MetricsConfig(BaseModel):
    """Metrics beside those that need nothing."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    # Weights of the net whose features a metric compares, by the metric's name, such as lpips: the
    # metrics that have such a file are measured.
    weights: dict[str, Path] = Field(default_factory=dict)

    @field_validator("weights")
    @classmethod
    def _need_them(cls, weights: dict[str, Path]) -> dict[str, Path]:
        known = {name: one for name, one in list_metrics().items() if one.backbone}
        for name in weights:
            if name in list_metrics() and name not in known:
                raise ValueError(f"metric {name} needs no weights; known: {', '.join(known)}")
            if name not in known:
                raise ValueError(f"unknown metric {name!r}; {nearest(name, known)}")
        return weights


@dataclass(frozen=True)
class PerceiveInputs:
    """A metric, its net's weights, and the measurements whose kept outputs it looks at."""

    metric: str
    weights: Source
    measured: tuple[Ref[tuple[Measurement, ...]], ...]
    tests: Ref[TestSet]


@dataclass(frozen=True)
class Perceived:
    """A metric of a model's outputs."""

    metric: str
    role: str  # as in its measurement
    target: str  # as in its measurement
    precision: str  # as in its measurement
    values: dict[str, float]  # by image


@stage(version=1)
def perceive(inputs: PerceiveInputs, *, out: Path) -> tuple[Perceived, ...]:
    """The metric of every output that was kept.

    Raises:
        UsageError, UnsupportedError: the file holds no weights of that net.
    """
    every = [m for ref in inputs.measured for m in ref.value]
    return look_at(every, inputs.metric, inputs.weights.path, inputs.tests.value)


def look_at(
    measurements: Sequence[Measurement], name: str, weights: Path, tests: TestSet
) -> tuple[Perceived, ...]:
    """The metric of that name of every output that was kept.

    Raises:
        UsageError, UnsupportedError: the file holds no weights of its net.
    """
    metric = open_metric(name, weights)
    truths = {image: hr_HWC for image, _, hr_HWC in load_tests(tests)}
    return tuple(
        Perceived(name, m.role, m.target, m.precision, _look(m, metric, truths, tests.scale))
        for m in measurements
        if m.outputs
    )


def _look(
    m: Measurement, metric: Metric, truths: Mapping[str, Any], scale: int
) -> dict[str, float]:
    assert m.outputs is not None, "outputs were kept"
    found = {}
    for name in (score.image for score in m.scores):
        sr_HWC = read_rgb(output_file(m.outputs, name))
        score = measure_image(name, sr_HWC, truths[name], scale=scale, metrics=[metric])
        if metric.name in score.metrics:
            found[name] = score.metrics[metric.name]
    return found


def add_scores(
    measurements: Sequence[Measurement], found: Sequence[Perceived]
) -> tuple[Measurement, ...]:
    """The measurements, their images' scores with these metrics beside the others."""
    values = {(one.role, one.target, one.precision, one.metric): one.values for one in found}

    def add(m: Measurement, score: ImageScore) -> ImageScore:
        mine = {
            metric: images[score.image]
            for (*of, metric), images in values.items()
            if of == [m.role, m.target, m.precision] and score.image in images
        }
        return replace(score, metrics={**score.metrics, **mine})

    return tuple(replace(m, scores=tuple(add(m, one) for one in m.scores)) for m in measurements)


def check_metric(name: str, weights: Path | None, where: str) -> None:
    """Refuse a metric that cannot be measured here.

    Raises:
        MissingError: its weights or the library are not here.
        UsageError, UnsupportedError: the file holds no weights of its net.
    """
    metric = find_metric(name)
    if metric.backbone is None:
        return
    missing, _, install = metric.backbone.why_not().partition(": ")
    if missing:
        raise MissingError(f"{where}: {metric.title}: {missing}", hint=install)
    if weights is None or not weights.is_file():
        stated = "none are given" if weights is None else f"{printable(weights)} is not there"
        raise MissingError(
            f"{where}: {metric.title} needs weights of {metric.backbone.title}, and {stated}",
            hint=f"--set metrics.weights.{name}=FILE; nothing is downloaded",
        )
    open_metric(name, weights)


def open_metric(name: str, weights: Path) -> Metric:
    """The metric, ready to measure.

    Raises:
        UsageError, UnsupportedError: the file holds no weights of its net.
    """
    metric = find_metric(name)
    assert metric.backbone is not None, "others need no weights"
    content, _ = read_content(weights)
    first: UnsupportedError | None = None
    for one in list_candidates(content, weights):
        try:
            return replace(metric, measure=metric.backbone.open(one.state))
        except UnsupportedError as error:
            first = first or error
    assert first is not None, "a file holds one candidate at least"
    what = f"metrics.weights.{name}: {printable(weights)}: {first.what}"
    raise UnsupportedError(what, hint=first.hint) from first
