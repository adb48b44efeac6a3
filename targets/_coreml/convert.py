"""Conversion of a torch net to a Core ML package, its metadata, and reproducible files."""

from __future__ import annotations

import hashlib
import json
import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from mipkd.core.errors import MipkdError, MissingError, StageError
from mipkd.core.quiet import quiet
from mipkd.core.records import Graph
from targets._torch.exported_program import export_program
from targets.base import version_of

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

INPUT, OUTPUT = "lr", "sr"
LOGGERS = ("coremltools", "torch.export")
INSTALL = 'pip install "mipkd-pipeline[coreml]"'
_MOST = 2048  # LR pixels a side of a flexible package: Core ML wants a bound
_SURE = 32  # least LR side where a net's own least gives torch no sizes that all hold
_FIXED = 256  # LR pixels a side where no range can be converted
_EXAMPLE = 48  # LR pixels a side of an image that a range is traced with
# The oldest systems: with FP16 arrays in and out and 8-bit weights; with 8-bit activations.
_SYSTEM, _SYSTEM_INT8 = "macOS13", "macOS14"  # iOS 16, iOS 17


def load_coremltools() -> Any:
    """Import coremltools, only where it is used.

    Raises:
        MissingError: it is not installed.
    """
    if not version_of("coremltools"):
        raise MissingError("coreml: coremltools is not installed", hint=INSTALL)
    with quiet(*LOGGERS):
        import coremltools
    return coremltools


@dataclass(frozen=True)
class Shapes:
    """LR sizes of a package: a range of sides from `least` on, some of that range, or one."""

    least: int | None  # of a range; None: the first of `listed` alone
    listed: tuple[tuple[int, int], ...] = ()  # height, width; the first one is the usual one
    lacking: str = ""  # what was wanted and cannot be converted

    @property
    def is_range(self) -> bool:
        """Whether any size will do."""
        return not self.listed

    @property
    def notes(self) -> tuple[str, ...]:
        """For a reader of the report."""
        if self.is_range:
            return (f"LR sizes {self.least} to {_MOST} a side",)
        known = ", ".join(f"{width}x{height}" for height, width in self.listed)
        alone = f"LR sizes {known} alone; other images are padded to one of them, or cut into tiles"
        return (alone, self.lacking) if self.lacking else (alone,)


def convert_net(
    net: Any,
    graph: Graph,
    precision: str,
    *,
    images: bool,
    sizes: tuple[tuple[int, int], ...] = (),
) -> tuple[Any, Shapes]:
    """The converted model, and for which sizes: any in a range, or some `sizes` alone.

    A net that cannot be converted for several sizes gets the first one.

    Raises:
        StageError: no way to convert it.
    """
    why: Exception | None = None
    for shapes in _ways(net, sizes):
        try:
            return _convert(net, precision, shapes, images=images), shapes
        except MipkdError:
            raise
        except Exception as error:  # torch's and coremltools' share no base class
            why = why or error
    reason = next((line for line in str(why).splitlines() if line.strip()), type(why).__name__)
    raise StageError(
        f"coreml: {graph.family} cannot be converted: {reason}",
        hint="report the checkpoint, or leave the target out",
    ) from why


def _ways(net: Any, sizes: tuple[tuple[int, int], ...]) -> Iterator[Shapes]:
    """How to convert a net, the most wanted way first."""
    least = max(net.smallest, net.multiple)
    sure = max(least, -(-_SURE // net.multiple) * net.multiple)
    if len(sizes) != 1:
        yield from (Shapes(lowest, sizes) for lowest in (least, sure))
    usual = _FIXED // net.multiple * net.multiple
    lacking = "" if len(sizes) == 1 else "it cannot be converted for several sizes"
    yield Shapes(None, sizes[:1] or ((usual, usual),), lacking)


def _convert(net: Any, precision: str, shapes: Shapes, *, images: bool) -> Any:
    coremltools = load_coremltools()
    program, shape = _program(net, shapes, images=images), _shape(net, shapes, coremltools)
    if images:
        rgb = coremltools.colorlayout.RGB
        inputs = [coremltools.ImageType(name=INPUT, shape=shape, color_layout=rgb)]
        outputs = [coremltools.ImageType(name=OUTPUT, color_layout=rgb)]
    else:
        inputs = [coremltools.TensorType(name=INPUT, shape=shape, dtype=np.float32)]
        outputs = [coremltools.TensorType(name=OUTPUT, dtype=np.float32)]
    kinds = coremltools.precision
    system = _SYSTEM_INT8 if precision == "int8" else _SYSTEM
    return coremltools.convert(
        program,
        inputs=inputs,
        outputs=outputs,
        convert_to="mlprogram",
        compute_precision=kinds.FLOAT32 if precision == "fp32" else kinds.FLOAT16,
        minimum_deployment_target=coremltools.target[system],
        skip_model_load=True,
    )


def _shape(net: Any, shapes: Shapes, coremltools: Any) -> Any:
    """The input's shape in coremltools' words."""
    if shapes.least is None:
        return (1, 3, *shapes.listed[0])
    if not shapes.is_range:
        return coremltools.EnumeratedShapes(shapes=[(1, 3, *size) for size in shapes.listed])
    sides = coremltools.RangeDim(
        lower_bound=shapes.least, upper_bound=_MOST, default=_example(net, shapes.least)
    )
    return (1, 3, sides, sides)


def _example(net: Any, least: int) -> int:
    """LR pixels a side of the image that a net for a range is traced with."""
    side: int = max(_EXAMPLE, least) // net.multiple * net.multiple
    return side


def _program(net: Any, shapes: Shapes, *, images: bool) -> Any:
    def on_pixels(lr: Any) -> Any:
        return (net.forward_with_taps(lr / 255)[0].clamp(0, 1) * 255).round()

    def on_arrays(lr: Any) -> Any:
        return net.forward_with_taps(lr)[0]

    least = shapes.least or net.multiple
    return export_program(
        net,
        on_pixels if images else on_arrays,
        least=least,
        usual=_example(net, least),
        most=max(_MOST, *(side for size in shapes.listed for side in size))
        if shapes.listed
        else _MOST,
        fixed=shapes.listed[0] if shapes.least is None else None,
    )


def with_8_bit_weights(model: Any) -> Any:
    """Weights as symmetric 8-bit integers with a scale for each output channel.

    The last convolution makes the pixels and stays FP16: where it was quantised too, nets of
    one convolution after their body lost 0.02 to 0.2 dB, and no more than 0.003 dB otherwise.
    """
    optimize = load_coremltools().optimize.coreml
    how = optimize.OpLinearQuantizerConfig(
        mode="linear_symmetric", dtype="int8", granularity="per_channel"
    )
    (block,) = model.get_spec().mlProgram.functions["main"].block_specializations.values()
    last = [o.outputs[0].name for o in block.operations if o.type == "conv"][-1]
    config = optimize.OptimizationConfig(global_config=how, op_name_configs={last: None})
    return optimize.linear_quantize_weights(model, config)


def describe(model: Any, graph: Graph, precision: str, *, margin: int, images: bool) -> None:
    """Write author, licence and what an app must know of the images into the package."""
    model.author = "mipkd-pipeline"
    model.license = graph.licence
    model.version = "1"
    model.short_description = f"Super-resolution x{graph.scale} ({graph.family}, {precision})"
    model.input_description[INPUT] = "RGB image of low resolution"
    model.output_description[OUTPUT] = f"RGB image, {graph.scale} times as high and wide"
    facts = {
        "scale": str(graph.scale),
        "colour": "RGB",
        "range": "0..255" if images else "0..1",
        "multiple": str(graph.multiple),
        "margin": str(margin),
        "family": graph.family,
        "precision": precision,
        "checkpoint_sha256": graph.model.sha256 if graph.model else "",
    }
    for name, value in facts.items():
        model.user_defined_metadata[f"mipkd.{name}"] = value


def make_reproducible(package: Path) -> None:
    """Note the weight file's hash, and drop dates and random names from the package.

    So that a changed weight shows, and the same net gives the same files.
    """
    from targets._coreml.package import WEIGHTS_SHA256, model_file, read_spec, weight_file

    spec = read_spec(package)
    noted = spec.description.metadata.userDefined
    noted.pop("com.github.apple.coremltools.conversion_date", None)
    if (weights := weight_file(package)).is_file():
        noted[WEIGHTS_SHA256] = hashlib.sha256(weights.read_bytes()).hexdigest()
    model_file(package).write_bytes(spec.SerializeToString(deterministic=True))
    for extra in package.glob("*.json"):
        if extra.name != "Manifest.json":
            extra.unlink()
    manifest = json.loads((package / "Manifest.json").read_text())
    items = manifest["itemInfoEntries"]
    lasting = {key: str(uuid.uuid5(uuid.NAMESPACE_URL, items[key]["path"])) for key in items}
    manifest["itemInfoEntries"] = {
        lasting[key]: items[key] for key in sorted(items, key=lambda k: lasting[k])
    }
    manifest["rootModelIdentifier"] = lasting[manifest["rootModelIdentifier"]]
    (package / "Manifest.json").write_text(json.dumps(manifest, indent=4))
