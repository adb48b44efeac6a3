"""Turn weights into an ONNX graph, with proof that it computes the same."""

import logging
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict

from mipkd.archs._hooked import HookedNet
from mipkd.core.apart import Limits, Worker
from mipkd.core.errors import StageError
from mipkd.core.records import Distilled, Graph, Model, TestSet, model_of
from mipkd.distill import teacher as teachers
from mipkd.distill.data import load_tests, probe_images
from mipkd.export import adopt_onnx, onnx
from mipkd.export.parity import check_parity
from mipkd.export.pixel_shuffle import replace_pixel_shuffle
from pipeline.limits import LimitsConfig
from pipeline.stage import NotInKey, Ref, Source, stage

log = logging.getLogger(__name__)

_EXPORTERS = {"export": "newer", "export_traced": "older"}
_NO_TEACHER = "only the comparison of speeds needs a teacher's graph; to go without: "
_NO_TEACHER += "--set gates.min_speedup_over_teacher=off"


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


@stage(version=6)
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
    images = [lr for _, lr, _ in load_tests(inputs.tests.value)[: config.parity_images]]

    def held(graph: Graph) -> Graph:
        if config.shuffle == "conv_transpose":
            graph = onnx.edit_graph(graph, replace_pixel_shuffle)
        largest = check_parity(net, graph, images, bound=config.max_parity)
        return replace(graph, parity_max_abs=largest)

    role = inputs.baseline or model.role
    try:
        if isinstance(net, HookedNet):
            graph = _export_foreign(net, model, metadata, out, held)
        else:
            graph = held(_export_net(onnx.export, model, metadata, out))
    except StageError as error:
        raise StageError(error.what, hint=error.hint or _hint(role)) from error
    licence = model.licence
    return replace(graph, role=role, parity_images=len(images), licence=licence, model=model)


def _export_foreign(
    net: HookedNet,
    model: Model,
    metadata: dict[str, str],
    out: Path,
    held: Callable[[Graph], Graph],
) -> Graph:
    """The graph of a net that is not ours, by the first of torch's exporters that gives its images.

    Each works in a process of its own, since it may crash. A net that pads inside, where the size
    of the example would stay in the graph, is exported once more for sizes that need no padding.
    """
    said, made = list[StageError](), False
    for multiple in dict.fromkeys((net.multiple, net.unpadded_multiple)):
        if said and not made:  # what no exporter takes is not taken at another size
            break
        net.multiple = multiple
        for exporter in (onnx.export, onnx.export_traced):
            what = f"export: torch's {_EXPORTERS[exporter.__name__]} exporter, for {model.arch}"
            try:
                with Worker() as worker:
                    graph = worker.call(what, _export_net, exporter, model, metadata, out, multiple)
                made = True
                return held(graph)
            except StageError as error:
                log.info("%s", error.what)
                said.append(error)
    raise StageError("; ".join(dict.fromkeys(error.what for error in said)))


def _export_net(
    exporter: Callable[..., Graph],
    model: Model,
    metadata: dict[str, str],
    out: Path,
    multiple: int | None = None,
) -> Graph:
    net = teachers.load(model)
    net.multiple = multiple or net.multiple
    return exporter(net, out=out, metadata=metadata, role=model.role, family=model.arch)


def _hint(role: str) -> str:
    """How to go on without the graph of a net in this role."""
    if role == "teacher":
        return _NO_TEACHER
    if role == "student":
        return "export it where it was made, and give the graph: --model FILE.onnx"
    return f"leave {role} out of --compare, or give its graph: --compare FILE.onnx"


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
    limits: NotInKey[LimitsConfig] = field(default_factory=lambda: NotInKey(LimitsConfig()))


def _limits(inputs: AdoptInputs) -> Limits:
    return inputs.limits.value.of(*(one.path for one in (inputs.source, *inputs.weights)))


@stage(version=3, limits=_limits, looks=True)
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
