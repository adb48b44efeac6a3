"""Turn weights into an ONNX graph, with proof that it computes the same."""

from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict

from mipkd.core.errors import StageError
from mipkd.core.records import Distilled, Graph, Model, TestSet, model_of
from mipkd.distill import teacher as teachers
from mipkd.distill.data import load_tests, probe_images
from mipkd.export import adopt_onnx, onnx
from mipkd.export.parity import check_parity
from mipkd.export.pixel_shuffle import replace_pixel_shuffle
from pipeline.stage import Ref, Source, stage


class ExportConfig(BaseModel):
    """Settings of the export."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    # "conv_transpose" for runtimes that lack DepthToSpace; it gives the same values
    shuffle: Literal["depth_to_space", "conv_transpose"] = "depth_to_space"
    max_parity: float = 1e-4  # largest difference to torch, images in [0, 1]
    parity_images: int = 3


@dataclass(frozen=True)
class ExportInputs:
    """A net in torch; `baseline` is its name where it is one that the student is compared with."""

    config: ExportConfig
    net: Ref[Model | Distilled]
    teacher: Ref[Model] | None
    tests: Ref[TestSet]
    baseline: str = ""


@stage(version=3)
def export(inputs: ExportInputs, *, out: Path) -> Graph:
    """The FP32 graph of a net, compared with torch on real images and on noise.

    Raises:
        StageError: torch cannot turn it into a graph, or the graph computes something else.
    """
    config, model = inputs.config, model_of(inputs.net.value)
    teacher = inputs.teacher.value if inputs.teacher else None
    net = teachers.load(model)
    metadata = {
        "teacher_sha256": teacher.sha256 if teacher else "",
        "licence": model.licence,
        "weights_sha256": model.sha256,
    }
    graph = (_graph if net.in_parts else _graph_apart)(model, metadata, out)
    if config.shuffle == "conv_transpose":
        graph = onnx.edit_graph(graph, replace_pixel_shuffle)
    images = [lr for _, lr, _ in load_tests(inputs.tests.value)[: config.parity_images]]
    largest = check_parity(net, graph, images, bound=config.max_parity)
    return replace(
        graph,
        role=inputs.baseline or model.role,
        parity_max_abs=largest,
        parity_images=len(images),
        licence=model.licence,
        model=model,
    )


def _graph(model: Model, metadata: dict[str, str], out: Path) -> Graph:
    net = teachers.load(model)
    return onnx.export(net, out=out, metadata=metadata, role=model.role, family=model.arch)


def _graph_apart(model: Model, metadata: dict[str, str], out: Path) -> Graph:
    """`_graph` in a process of its own: on a net that is not ours torch's exporter may crash."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        try:
            return pool.submit(_graph, model, metadata, out).result()
        except BrokenProcessPool as error:
            raise StageError(
                f"export: torch crashed while it turned {model.arch} into an ONNX graph",
                hint=onnx.NOT_NEEDED,
            ) from error


class AdoptConfig(BaseModel):
    """What a foreign graph cannot tell, when a probe on images should not settle it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    scale: int | None = None
    image_range: float | None = None


@dataclass(frozen=True)
class AdoptInputs:
    """A graph, the images that settle what it cannot tell, and its name as a baseline.

    `weights` are the files beside the graph that hold its weights, where it does not.
    """

    config: AdoptConfig
    source: Source
    weights: tuple[Source, ...]
    images: Source | None
    baseline: str = ""


@stage(version=2, apart=True)
def adopt(inputs: AdoptInputs, *, out: Path) -> Graph:
    """Any ONNX graph with one image in and one out, brought to our range and dynamic sizes."""
    images = inputs.images.path if inputs.images else None
    graph = adopt_onnx.adopt(
        inputs.source.path,
        scale=inputs.config.scale,
        image_range=inputs.config.image_range,
        probe=lambda scale: probe_images(images, scale=scale),
        out=out,
    )
    return replace(graph, role=inputs.baseline or graph.role)
