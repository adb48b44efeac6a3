"""Settings of training, and the losses they name."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from mipkd.core import plugins
from mipkd.core.errors import UsageError, nearest
from mipkd.losses.base import Loss, Positions

MethodName = Literal[
    "mipkd",
    "feature_prior",
    "control",
    "paper",
    "logits",
    "scratch",
    "fitnet",
    "at",
    "rkd",
    "fakd",
    "crosskd",
]


@dataclass(frozen=True)
class Method:
    """Losses, as in `[[distill.losses]]`, and the settings of training that go with them."""

    losses: tuple[dict[str, Any], ...]
    overrides: Mapping[str, Any] = field(default_factory=dict)


def _taught(name: str, **settings: Any) -> Method:
    """A loss beside pixel and logits."""
    return Method(({"name": "pixel"}, {"name": "logits"}, {"name": name, **settings}))


# What was read as the published recipe. "cnn": the auto-encoder is learned.
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

# dukd is none of these: it is listed in [[distill.losses]] beside any of them. The defaults of
# mixture_of_priors are those of mipkd.
METHODS: dict[MethodName, Method] = {
    "scratch": Method(({"name": "pixel"},)),
    "logits": Method(({"name": "pixel"}, {"name": "logits"})),
    "fitnet": _taught("fitnet"),
    "at": _taught("at"),
    "rkd": _taught("rkd"),
    "fakd": _taught("fakd"),
    # Its paper's point: in place of matching the outputs.
    "crosskd": Method(({"name": "pixel"}, {"name": "crosskd"})),
    "mipkd": _taught("mixture_of_priors"),
    # Nothing is mixed: the student's features alone against the teacher's.
    "feature_prior": _taught("mixture_of_priors", mask_ratio=1.0, block_weight=0.0),
    # MiPKD without what it is about: no student's element in a mixture and no teacher's block.
    # Its one stream starts anew at the last position, so that the student's body is not taught.
    "control": _taught(
        "mixture_of_priors",
        mask_ratio=0.0,
        student_share=1.0,
        feature_weight=0.0,
        mixed_path="chain",
    ),
    "paper": replace(_taught("mixture_of_priors", **_PAPER_LOSS), overrides=_PAPER_RECIPE),
}


@dataclass(frozen=True)
class _Rate:
    lr: float
    warmup: float  # share of the steps


# By how the student got its first weights; docs/decisions/0015-projected-start.md.
_RATES = {"random": _Rate(5e-4, 0.02), "project": _Rate(1e-3, 0.1)}


class DistillConfig(BaseModel):
    """How a student is trained; the defaults suit hours, the paper's recipe suits days."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    method: MethodName | None = None  # None: logits with a teacher, scratch without
    losses: tuple[dict[str, Any], ...] = ()  # [[distill.losses]], in place of the method's
    init: str = "project"  # "project", "inherit" (of the teacher), "random" or a checkpoint
    steps: int = Field(10_000, ge=1)
    batch: int = Field(16, ge=1)
    accumulate: int = Field(1, ge=1, exclude=True)  # parts of a batch: less memory, same step
    patch: int = Field(48, ge=8)  # LR pixels a side
    lr: float | None = Field(None, gt=0)  # None: what suits the start, `_RATES`
    betas: tuple[float, float] = (0.9, 0.99)
    schedule: Literal["cosine", "multistep"] = "cosine"
    warmup: float | None = Field(None, ge=0, lt=1)  # share of the steps; None: likewise
    ema: float = Field(0.999, ge=0, lt=1)
    clip_grad_norm: float | None = Field(1.0, gt=0)  # of the student, and of the helpers
    positions: int | Positions = Field(3, union_mode="left_to_right")  # how many, or which
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    channels_last: bool = True
    cuda_graphs: bool = Field(True, exclude=True)  # the same step, launched as one
    compile: bool | None = Field(None, exclude=True)  # None: on a GPU, from 5,000 steps on
    # Of what the teacher makes of whole photos; 0 runs it at each step instead. Whether there is
    # such a cache is part of a training's key, how large it might have been is not.
    cache_gb: float = Field(8.0, ge=0, exclude=True)
    device: str = "auto"
    seed: int = Field(0, ge=0)
    validate_every: int | None = Field(None, ge=1)  # None: five times in all
    save_every: int = Field(100, ge=1)

    @model_validator(mode="before")
    @classmethod
    def _with_the_methods_settings(cls, given: Any) -> Any:
        """The method's own recipe, where the user says nothing else."""
        name = given.get("method") if isinstance(given, dict) else None
        for known, method in METHODS.items():
            if known == name:
                return {**method.overrides, **given}
        return given

    @model_validator(mode="after")
    def _one_way(self) -> DistillConfig:
        if self.method and self.losses:
            raise ValueError("give method or losses, not both")
        if self.init == "teacher":
            raise ValueError('init: "teacher" is called "inherit" since students can be projected')
        return self

    def chosen(self, *, teacher: bool = True) -> dict[str, Loss]:
        """The losses by name, each with its own settings.

        Raises:
            UsageError: an unknown loss, one given twice, settings that it does not have, or a
                loss that needs a teacher when there is none.
        """
        method = self.method or ("logits" if teacher else "scratch")  # why: docs/decisions/0016
        entries = self.losses or METHODS[method].losses
        found: dict[str, Loss] = {}
        for entry in entries:
            name, loss = _loss(entry)
            if name in found:
                raise UsageError(f"distill.losses: {name} is given twice", hint="set its weight")
            if loss.needs_teacher and not teacher:
                raise UsageError(
                    f"distill.losses: {name} needs a teacher",
                    hint='give --teacher FILE, or --set distill.method="scratch"',
                )
            found[name] = loss
        if all(loss.until < 1 for loss in found.values()):
            last = max(loss.until for loss in found.values())
            raise UsageError(
                f"distill.losses: all of them rest after {last:g} of the steps",
                hint="let one of them teach to the end, such as pixel: until = 1",
            )
        return found

    def set_by_user(self) -> dict[str, Any]:
        """The settings that are not defaults, nor brought by the method."""
        brought = METHODS[self.method].overrides if self.method else {}
        return {
            name: getattr(self, name)
            for name in self.model_fields_set
            if name not in brought or getattr(self, name) != brought[name]
        }

    def begun(self, how: str) -> DistillConfig:
        """With the rate and the warm-up of a student that started so, where the user set none."""
        suits = _RATES.get(how, _RATES["random"])
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
        if self.schedule == "multistep":  # the MiPKD group's: x0.1 at 40 % and 80 %
            return lr * 0.1 ** ((step >= 0.4 * self.steps) + (step >= 0.8 * self.steps))
        done = (step - warm) / max(1, self.steps - warm)
        return lr * (0.01 + 0.99 * 0.5 * (1 + math.cos(done * math.pi)))

    def ema_at(self, step: int) -> float:
        """The EMA's decay; less at first, so that a short run forgets its start."""
        return min(self.ema, (1 + step) / (10 + step))

    @property
    def validation_period(self) -> int:
        """Steps from one validation to the next."""
        return self.validate_every or max(1, self.steps // 5)


def _loss(entry: dict[str, Any]) -> tuple[str, Loss]:
    settings = dict(entry)
    name = str(settings.pop("name", ""))
    known = plugins.names("mipkd.losses")
    if name not in known:
        raise UsageError(f"distill.losses: unknown loss {name!r}", hint=nearest(name, known))
    kind: type[Loss] = plugins.load("mipkd.losses", name, "LOSS")
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
