"""Say what a checkpoint is, and keep its weights."""

from dataclasses import dataclass, replace
from pathlib import Path

from mipkd.core.records import Model
from mipkd.distill import teacher
from mipkd.distill.data import probe_images
from mipkd.distill.teacher import TeacherOptions
from pipeline.stage import Source, stage


@dataclass(frozen=True)
class IdentifyInputs:
    """A checkpoint, and the images that settle what its tensors cannot tell."""

    config: TeacherOptions
    checkpoint: Source
    role: str
    images: Source | None


@stage(version=1)
def identify(inputs: IdentifyInputs, *, out: Path) -> Model:
    """The model in a checkpoint; its weights are copied into `out` as safetensors."""
    images = inputs.images.path if inputs.images else None
    model, net = teacher.identify(
        inputs.checkpoint.path,
        role=inputs.role,
        options=inputs.config,
        probe=lambda scale: probe_images(images, scale=scale),
    )
    file = out / f"{inputs.role}.safetensors"
    teacher.save_copy(model, net, file)
    return replace(model, file=file)
