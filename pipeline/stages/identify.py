"""Say what a checkpoint is, and keep it under our own key names."""

from dataclasses import replace
from pathlib import Path

from mipkd.archs.base import Arch
from mipkd.core import plugins
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
    arch: Arch = plugins.load("mipkd.archs", model.arch, "ARCH")
    hyper = teacher.hyper_of(arch, model)
    teacher.save(net, arch, hyper, file, licence=model.licence)
    return replace(model, file=file)
