"""Say what a checkpoint is, and keep its weights."""

from dataclasses import dataclass, field, replace
from pathlib import Path

from mipkd.core.apart import Limits
from mipkd.core.records import Model
from mipkd.distill import teacher
from mipkd.distill.probe import choose_photos
from mipkd.distill.teacher import TeacherOptions
from pipeline.limits import LimitsConfig
from pipeline.stage import NotInKey, Source, stage


@dataclass(frozen=True)
class IdentifyInputs:
    """A checkpoint, and the photos that settle what its tensors cannot tell; None: the samples."""

    config: TeacherOptions
    checkpoint: Source
    role: str
    photos: Source | None
    limits: NotInKey[LimitsConfig] = field(default_factory=lambda: NotInKey(LimitsConfig()))


def _limits(inputs: IdentifyInputs) -> Limits:
    return inputs.limits.value.of(inputs.checkpoint.path)


@stage(version=3, limits=_limits, looks=True)
def identify(inputs: IdentifyInputs, *, out: Path) -> Model:
    """The model in a checkpoint; its weights are copied into `out` as safetensors."""
    photos = inputs.photos.path if inputs.photos else None
    model, net = teacher.identify(
        inputs.checkpoint.path,
        role=inputs.role,
        options=inputs.config,
        probe=lambda scale: choose_photos(photos, None, scale=scale),
    )
    file = out / f"{inputs.role}.safetensors"
    teacher.save_copy(model, net, file)
    return replace(model, file=file)
