"""Settings of training, and the methods and losses that they name."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from mipkd.core.errors import UsageError, nearest
from mipkd.losses.base import Loss, Positions, load_loss, loss_names


@dataclass(frozen=True)
class Method:
    """Losses, as in `[[distill.losses]]`, and settings of training that go with them."""

    losses: tuple[dict[str, Any], ...]
    overrides: Mapping[str, Any] = field(default_factory=dict)


def _mixture(**settings: Any) -> Method:
    """MiPKD with these settings, beside pixel and logits."""
    mixture = {"name": "mixture_of_priors", **settings}
    return Method(({"name": "pixel"}, {"name": "logits"}, mixture))


# The published recipe, as far as it could be read. "cnn" learns the auto-encoder.
_PAPER_LOSS = {
    "until": 1.0,
    "feature_weight": 1.0,
    "block_weight": 0.1,
    "mask_ratio": 0.5,
    "student_share": 0.5,
    "encoder": "cnn",
    "mixed_path": "chain",
}
_PAPER_RECIPE = {"init": "random", "lr": 1e-4, "schedule": "multistep", "warmup": 0.0}

# A loss is a method of its own name already, beside those that it names itself (`Loss.beside`).
# The defaults of mixture_of_priors are those of mipkd.
METHODS = {
    "scratch": Method(({"name": "pixel"},)),
    "mipkd": _mixture(),
    # No mixture: the student's features alone against the teacher's.
    "feature_prior": _mixture(mask_ratio=1.0, block_weight=0.0),
    # MiPKD without its mechanism: no student element in a mixture and no teacher block in the path.
    # Its one stream starts anew at the last position, so that the student's body is not taught.
    "control": _mixture(mask_ratio=0.0, student_share=1.0, feature_weight=0.0, mixed_path="chain"),
    "paper": replace(_mixture(**_PAPER_LOSS), overrides=_PAPER_RECIPE),
}


def method_names() -> tuple[str, ...]:
    """All methods, sorted: compositions of losses, and the losses themselves."""
    return tuple(sorted({*METHODS, *loss_names()}))


def find_method(name: str) -> Method:
    """The method `name`.

    Raises:
        UsageError: no such method.
    """
    if name in METHODS:
        return METHODS[name]
    if name not in loss_names():
        raise UsageError(f"unknown method {name!r}", hint=nearest(name, method_names()))
    return Method(tuple({"name": loss} for loss in (*load_loss(name).beside, name)))


@dataclass(frozen=True)
class _Rate:
    lr: float
    warmup: float  # share of the steps


# By the kind of the student's first weights; docs/decisions/0015-projected-start.md.
_RATES = {"random": _Rate(5e-4, 0.02), "project": _Rate(1e-3, 0.1)}


class DistillConfig(BaseModel):
    """How a student is trained; the defaults are for hours, the paper's recipe for days."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    method: str | None = None  # None: logits with a teacher, scratch without
    losses: tuple[dict[str, Any], ...] = ()  # [[distill.losses]], instead of the method's
    init: str = "project"  # "project", "inherit" (of the teacher), "random" or a checkpoint
    steps: int = Field(10_000, ge=1)
    batch: int = Field(16, ge=1)
    accumulate: int = Field(1, ge=1, exclude=True)  # parts of a batch: less memory, same step
    patch: int = Field(48, ge=8)  # LR pixels a side
    lr: float | None = Field(None, gt=0)  # None: by the kind of the first weights, `_RATES`
    betas: tuple[float, float] = (0.9, 0.99)
    schedule: Literal["cosine", "multistep", "constant"] = "cosine"
    warmup: float | None = Field(None, ge=0, lt=1)  # share of the steps; None: as for lr
    ema: float = Field(0.999, ge=0, lt=1)
    clip_grad_norm: float | None = Field(1.0, gt=0)  # of the student, and of the helpers
    positions: int | Positions = Field(3, union_mode="left_to_right")  # how many, or which
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    channels_last: bool = True
    cuda_graphs: bool = Field(True, exclude=True)  # the same step, replayed from a recording
    compile: bool | None = Field(None, exclude=True)  # None: on a GPU, from 5,000 steps on
    # Of the teacher's outputs for whole photos; 0 runs the teacher at each step. Whether there is a
    # cache is part of a training's key, this limit is not.
    cache_gb: float = Field(8.0, ge=0, exclude=True)
    device: str = "auto"
    # Of a training on the CPU; None: as many as are fastest now. Results differ in their last bits
    # between numbers: to repeat or resume a training to the last bit, fix one.
    threads: int | None = Field(None, ge=1, exclude=True)
    seed: int = Field(0, ge=0)
    validate_every: int | None = Field(None, ge=1)  # None: five times in all
    save_every: int = Field(100, ge=1)

    @model_validator(mode="before")
    @classmethod
    def _apply_overrides(cls, given: Any) -> Any:
        """The method's own recipe below what the user set."""
        name = given.get("method") if isinstance(given, dict) else None
        method = METHODS.get(name) if isinstance(name, str) else None
        return {**method.overrides, **given} if method else given

    @field_validator("method")
    @classmethod
    def _check_method(cls, name: str | None) -> str | None:
        if name is not None and name not in method_names():
            raise ValueError(f"unknown method; {nearest(name, method_names())}")
        return name

    @model_validator(mode="after")
    def _check_settings(self) -> DistillConfig:
        if self.method and self.losses:
            raise ValueError("give method or losses, not both")
        if self.init == "teacher":
            raise ValueError('init: "teacher" is called "inherit" since students can be projected')
        return self

    def build_losses(self, *, teacher: bool = True, truth: bool = True) -> dict[str, Loss]:
        """The losses by name, each with its own settings; without truth those that need one are
        left out.

        Raises:
            UsageError: an unknown loss, one given twice, settings that it does not have, a loss
                that needs a teacher when there is none, or no loss that can do without truth.
        """
        method = self.method or ("logits" if teacher else "scratch")  # why: docs/decisions/0016
        entries = self.losses or find_method(method).losses
        found: dict[str, Loss] = {}
        for entry in entries:
            name, loss = _build_loss(entry)
            if name in found:
                raise UsageError(f"distill.losses: {name} is given twice", hint="set its weight")
            if loss.needs_teacher and not teacher:
                raise UsageError(
                    f"distill.losses: {name} needs a teacher",
                    hint='give --teacher FILE, or --set distill.method="scratch"',
                )
            found[name] = loss
        if not truth:
            found = _without_truth(found, self.method)
        if all(loss.until < 1 for loss in found.values()):
            last = max(loss.until for loss in found.values())
            raise UsageError(
                f"distill.losses: all of them end after {last:g} of the steps",
                hint="let one of them last to the end, such as logits: until = 1",
            )
        return found

    def set_by_user(self) -> dict[str, Any]:
        """The settings that are neither defaults nor of the method."""
        own = find_method(self.method).overrides if self.method else {}
        return {
            name: getattr(self, name)
            for name in self.model_fields_set
            if name not in own or getattr(self, name) != own[name]
        }

    def with_rate_for(self, init: str) -> DistillConfig:
        """With the learning rate and warm-up that suit these first weights, unless set."""
        suits = _RATES.get(init, _RATES["random"])
        lr = suits.lr if self.lr is None else self.lr
        warmup = suits.warmup if self.warmup is None else self.warmup
        return self.model_copy(update={"lr": lr, "warmup": warmup})

    def rate(self, step: int) -> float:
        """The learning rate of a step, counted from 0."""
        usual = _RATES["random"]
        lr = self.lr or usual.lr
        warm = max(1, round((usual.warmup if self.warmup is None else self.warmup) * self.steps))
        if step < warm:
            return lr * (step + 1) / warm
        if self.schedule == "constant":  # each step is one of any longer training too
            return lr
        if self.schedule == "multistep":  # the MiPKD group's: x0.1 at 40 % and 80 %
            return lr * 0.1 ** ((step >= 0.4 * self.steps) + (step >= 0.8 * self.steps))
        done = (step - warm) / max(1, self.steps - warm)
        return lr * (0.01 + 0.99 * 0.5 * (1 + math.cos(done * math.pi)))

    def ema_at(self, step: int) -> float:
        """The EMA's decay; smaller at first, so that a short run forgets its first weights."""
        return min(self.ema, (1 + step) / (10 + step))

    @property
    def validation_period(self) -> int:
        """Steps between validations."""
        return self.validate_every or max(1, self.steps // 5)


def _without_truth(losses: Mapping[str, Loss], method: str | None) -> dict[str, Loss]:
    found = {name: loss for name, loss in losses.items() if not loss.needs_truth}
    if not found:
        asked = f"method={method}" if method else f"losses: {', '.join(losses)}"
        raise UsageError(
            f"distill.{asked} learns from the truth alone, and the photos are LR frames without",
            hint="a teacher can teach on them: --teacher FILE --set distill.method=logits; "
            "or give HR photos: --data",
        )
    return found


def _build_loss(entry: dict[str, Any]) -> tuple[str, Loss]:
    settings = dict(entry)
    name = str(settings.pop("name", ""))
    if name not in loss_names():
        hint = nearest(name, loss_names())
        raise UsageError(f"distill.losses: unknown loss {name!r}", hint=hint)
    kind = load_loss(name)
    try:
        return name, kind(**settings)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join([name, *map(str, first["loc"])])
        if first["type"] == "extra_forbidden":
            what = f"distill.losses: {place}: unknown setting"
            raise UsageError(
                what, hint=nearest(str(first["loc"][-1]), kind.model_fields)
            ) from error
        what = f"distill.losses: {place}: {first['msg']}, got {first['input']!r}"
        raise UsageError(what, hint="settings: " + ", ".join(kind.model_fields)) from error
