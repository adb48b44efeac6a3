"""Say what a checkpoint is, and keep its weights."""

from dataclasses import replace
from pathlib import Path

from mipkd.core.records import Model
from mipkd.distill import teacher
from mipkd.distill.data import probe_images
from mipkd.distill.teacher import TeacherOptions
from pipeline.run import Source, stage


@stage(version=1)
def identify(
    config: TeacherOptions, source: Source, role: str, images: Source | None, out: Path
) -> Model:
    """The model in a checkpoint; its weights are copied into `out` as safetensors."""
    model, net = teacher.identify(
        source.path,
        role=role,
        options=config,
        probe=lambda scale: probe_images(images.path if images else None, scale=scale),
    )
    file = out / f"{role}.safetensors"
    teacher.save_copy(model, net, file)
    return replace(model, file=file)
