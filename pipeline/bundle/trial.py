"""Open a bundle's models and run each once on a small image, in a process with limits.

What never ends, or asks for all memory, is found before a command's own process runs it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from mipkd.core.apart import Limits, Worker
from mipkd.core.errors import MipkdError, StageError
from mipkd.core.records import Built
from pipeline.bundle.manifest import Manifest, Model, is_damaged, problems
from pipeline.config_values import as_usage_error, assignments
from pipeline.limits import LimitsConfig
from targets._images import upscale
from targets.base import files_of, find

_LEAST = 16  # pixels a side
# Those that open a small model in a moment; others may compile it for minutes, and fill the
# memory of a GPU that the process maps.
_QUICK = ("cpu", "openvino")


class _Settings(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    limits: LimitsConfig = Field(default_factory=LimitsConfig)


def try_models(bundle: Path, models: Iterable[Model], config: LimitsConfig) -> None:
    """Run each once, where this machine can.

    Raises:
        LimitError: one took more than its limits.
        MipkdError: its runtime refuses one.
    """
    with Worker() as worker:
        for model in models:
            if find(model.target).why_not():
                continue
            built = model.built(bundle)
            worker.limits = limits_of(built, config)
            what = f"{bundle}: {model.target} {model.precision}"
            worker.call(what, run_once, built, f"{what}: ")


def try_asked(bundle: Path, stated: Manifest, targets: Sequence[str], config: LimitsConfig) -> None:
    """Run each model of `targets`, or of all when none is named, whose files are the bundle's."""
    wrong = problems(bundle, stated)
    asked = [one for one in stated.models if not targets or one.target in targets]
    try_models(bundle, [one for one in asked if not is_damaged(one, wrong)], config)


def limits_with(sets: Sequence[str]) -> LimitsConfig:
    """The limits where nothing but `--set limits.NAME=VALUE` says otherwise.

    Raises:
        UsageError: an unknown setting, or a value of the wrong kind.
    """
    try:
        return _Settings.model_validate(assignments(sets)).limits
    except ValidationError as error:
        raise as_usage_error(error, _Settings) from error


def limits_of(built: Built, config: LimitsConfig) -> Limits:
    """Of opening a model and running it on a small image, then on others after a `report`."""
    limits = config.of(*files_of(built))
    if opens_at_once(built.target):
        return limits
    assert limits.later is not None, "it has both"
    return replace(limits.later, memory_bytes=None)


def opens_at_once(target: str) -> bool:
    """Whether a small model of a target is opened in a moment."""
    return target.partition(":")[0] in _QUICK


def run_once(built: Built, where: str = "") -> None:
    """Open a model of this machine and run it on a small grey image.

    Raises:
        StageError: its runtime does not.
    """
    side = -(-_LEAST // built.multiple) * built.multiple
    try:
        grey = np.full((side, side, 3), 128, np.uint8)
        with closing(find(built.target).open(built)) as session:
            upscale(session, grey, scale=built.scale, multiple=built.multiple)
    except (MipkdError, OSError):
        raise
    except Exception as error:  # whatever a runtime raises
        first = next(iter(str(error).splitlines()), type(error).__name__)
        raise StageError(
            f"{where}cannot be run: {first}", hint="see: mipkd-pipeline verify"
        ) from error
