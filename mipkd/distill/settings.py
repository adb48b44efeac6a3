"""Settings of training, and the losses they name."""

from __future__ import annotations

from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from mipkd.core import plugins
from mipkd.core.errors import UsageError, nearest
from mipkd.losses.base import Loss

_METHODS: dict[str, tuple[str, ...]] = {
    "scratch": ("pixel",),
    "logits": ("pixel", "logits"),
    "mipkd": ("pixel", "logits", "mixture_of_priors"),
}


class DistillConfig(BaseModel):
    """How a student is trained. The paper's recipe is `docs/recipes/paper.toml`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    method: Literal["mipkd", "logits", "scratch"] = "mipkd"
    losses: tuple[dict[str, Any], ...] = ()  # [[distill.losses]], in place of the method's
    init: str = "teacher"  # "teacher", "random" or a checkpoint
    steps: int = Field(10_000, ge=1)
    batch: int = Field(16, ge=1)
    patch: int = Field(48, ge=8)  # LR pixels a side
    lr: float = Field(5e-4, gt=0)
    betas: tuple[float, float] = (0.9, 0.99)
    schedule: Literal["cosine", "multistep"] = "cosine"
    warmup: float = Field(0.02, ge=0, lt=1)  # share of the steps
    ema: float = Field(0.999, ge=0, lt=1)
    clip_grad_norm: float | None = Field(1.0, gt=0)  # of all gradients together
    positions: int = Field(3, ge=1)
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    channels_last: bool = True
    device: str = "auto"
    seed: int = 0
    validate_every: int | None = Field(None, ge=1)  # None: five times in all
    save_every: int = Field(100, ge=1)

    def chosen(self) -> dict[str, Loss]:
        """The losses by name, each with its own settings.

        Raises:
            UsageError: an unknown loss, or settings that it does not have.
        """
        entries = self.losses or tuple({"name": name} for name in _METHODS[self.method])
        found: dict[str, Loss] = {}
        for entry in entries:
            settings = dict(entry)
            name = settings.pop("name", "")
            if name not in plugins.names("mipkd.losses"):
                known = nearest(name, plugins.names("mipkd.losses"))
                raise UsageError(f"distill.losses: unknown loss {name!r}", hint=known)
            kind: type[Loss] = plugins.load("mipkd.losses", name, "LOSS")
            try:
                found[name] = kind(**settings)
            except ValidationError as error:
                first = error.errors()[0]
                place = ".".join(map(str, first["loc"]))
                raise UsageError(
                    f"distill.losses: {name}.{place}: {first['msg']}",
                    hint="known: " + ", ".join(kind.model_fields),
                ) from error
        return found

    def rate(self, step: int) -> float:
        """The learning rate of a step, counted from 0."""
        warm = max(1, round(self.warmup * self.steps))
        if step < warm:
            return self.lr * (step + 1) / warm
        done = (step - warm) / max(1, self.steps - warm)
        if self.schedule == "multistep":  # the MiPKD group's: x0.1 at 40 % and 80 %
            return self.lr * 0.1 ** ((done >= 0.4) + (done >= 0.8))
        return self.lr * (0.01 + 0.99 * 0.5 * float(1 + torch.cos(torch.tensor(done * torch.pi))))

    def where(self) -> tuple[torch.device, torch.dtype | None]:
        """The device, and the autocast type or None."""
        name = self.device
        if name == "auto":
            name = "cuda" if torch.cuda.is_available() else "cpu"
        device = torch.device(name)
        fast = torch.cuda.is_bf16_supported() if device.type == "cuda" else _cpu_has_bf16()
        wanted = self.precision == "bf16" or (self.precision == "auto" and fast)
        return device, torch.bfloat16 if wanted else None


def _cpu_has_bf16() -> bool:
    from torch import cpu

    names = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")  # no public check in 2.13
    return any(getattr(cpu, name, lambda: False)() for name in names)
