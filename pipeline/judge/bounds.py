"""The bounds that a student must keep: the settings of [gates]."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from mipkd.core.errors import UsageError, nearest
from mipkd.metrics.base import list_metrics
from pipeline.config_values import as_usage_error

Bound = Annotated[float, Field(allow_inf_nan=False)] | Literal["off"]
Limit = Annotated[float, Field(gt=0, allow_inf_nan=False)] | Literal["off"]
Pixels = Annotated[int, Field(ge=1, le=2**14)]


class MetricBounds(BaseModel):
    """How much worse than the FP32 student a target may be by a metric, in the metric's unit."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    max_mean_drop: Bound = "off"  # mean over the test images
    max_worst_drop: Bound = "off"  # on the image that loses most


class GateConfig(BaseModel):
    """The bounds a student must keep; "off" lifts one.

    The defaults are those of somebody who ships a student in its teacher's place. It may lose
    15 % of what the teacher has over bicubic (docs/decisions/0030). Quantisation may cost what
    nobody sees: 0.1 dB on the mean (MLPerf Mobile's EDSR loses 0.06 dB with training for INT8 and
    0.18 without). No picture may be broken behind a good mean: 0.5 dB on the one that loses most.
    The student must beat plain bicubic, and be faster than its teacher.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    # Share of the teacher's gain over bicubic that is lost, mean PSNR-Y of the pixels of a target.
    max_loss_to_teacher: Bound = 0.15
    max_mean_drop_db: Bound = 0.1  # PSNR-Y below the FP32 student, mean over the test images
    max_worst_drop_db: Bound = 0.5  # the same, on the image that loses most
    max_channel_shift: Bound = 1.0  # levels a channel is brighter or darker, mean, likewise
    min_gain_over_bicubic_db: Bound = 0.1  # PSNR-Y of the FP32 student, mean
    min_speedup_over_teacher: Bound = 1.0  # at every LR size, against its fastest float precision
    min_gain_retained: Bound = "off"  # share of the FP32 gain over each rival, where quantised
    metrics: dict[str, MetricBounds] = Field(default_factory=dict)  # by name, beside PSNR-Y
    # What a device has room and time for. On each target one precision at least must keep them all.
    max_latency_ms: Limit = "off"  # p90 of one image
    min_fps: Limit = "off"  # images a second, by the median latency
    max_size_mb: Limit = "off"  # of the model's files, 1e6 bytes
    max_memory_mb: Limit = "off"  # that loading and running added to the process at most, 1e6 bytes
    size: tuple[Pixels, Pixels] | None = None  # LR height, width of these; default the largest
    # Of LiteRT: which must know every operator of a model; all are a CPU's XNNPACK, GPU and NPU.
    delegates: Literal["all", "XNNPACK", "off"] = "all"

    @field_validator("metrics")
    @classmethod
    def _are_known(cls, bounds: dict[str, MetricBounds]) -> dict[str, MetricBounds]:
        for name in bounds:
            if name not in list_metrics():
                raise ValueError(f"unknown metric {name!r}; {nearest(name, list_metrics())}")
        return bounds


def read_gates(stated: dict[str, Any], where: str) -> GateConfig:
    """The bounds that a bundle states.

    Raises:
        UsageError: they are none.
    """
    try:
        return GateConfig.model_validate(stated)
    except ValidationError as error:
        wrong = as_usage_error(error, GateConfig)
        raise UsageError(f"{where}: gates: {wrong.what}", hint=wrong.hint) from error
