"""What a user gave: checkpoints, graphs and folders, known by their content."""

from __future__ import annotations

from pathlib import Path

from mipkd.core.errors import UsageError
from mipkd.core.images import hash_folder
from mipkd.core.records import Graph, Model
from pipeline.config import Config
from pipeline.run import Ref, Run, Source, hash_file
from pipeline.stages.export import adopt
from pipeline.stages.identify import identify


def is_graph(file: Path | None) -> bool:
    """Whether a finished student is an ONNX graph, and no checkpoint."""
    return file is not None and file.suffix == ".onnx"


def checkpoint(
    config: Config, run: Run, role: str, file: Path | None, images: Source | None, *, label: str
) -> Ref[Model] | None:
    """The model in a checkpoint."""
    if file is None:
        return None
    options = config.identify.model_copy(update={"scale": config.scale}) if config.scale else None
    return run.step(identify, options or config.identify, file_of(file), role, images, label=label)


def graph(
    config: Config, run: Run, file: Path | None, images: Source | None, rival: str = ""
) -> Ref[Graph] | None:
    """The student in an ONNX graph, ours or a `rival` of that name."""
    if file is None:
        return None
    named = (rival,) if rival else ()
    return run.step(adopt, config.adopt, file_of(file), images, *named, label=rival)


def file_of(path: Path | None) -> Source:
    """A file.

    Raises:
        UsageError: there is none.
    """
    assert path is not None
    if not path.is_file():
        raise UsageError(f"{path}: no such file", hint="check the path of --teacher or --model")
    return Source(path, hash_file(path))


def folder_of(path: Path | None) -> Source | None:
    """A folder of images, where one was given."""
    return Source(path, hash_folder(path)) if path else None


def check_scale(
    option: str,
    other: Ref[Model] | Ref[Graph] | None,
    like: Ref[Model] | Ref[Graph] | None,
) -> None:
    """Refuse nets of two scales; what is only planned is not known.

    Raises:
        UsageError: names both.
    """
    if not (other and like and other.record and like.record):
        return
    if other.record.scale != like.record.scale:
        raise UsageError(
            f"{option}: its scale is x{other.record.scale}, the {like.record.role}'s "
            f"x{like.record.scale}",
            hint="give nets of the same scale",
        )
