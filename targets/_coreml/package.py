"""A Core ML package's files: description, program and weights, as they are saved.

The program is in model.mlmodel, the weights in the blob file beside it
(https://apple.github.io/coremltools/docs-guides/source/ml-programs.html).
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection
from pathlib import Path
from typing import Any

from mipkd.core.codec import read_json
from mipkd.core.errors import StageError, UnsupportedError, UsageError
from targets.base import BuildRequest

WEIGHTS_SHA256 = "mipkd.weights_sha256"  # metadata of a package: what its weight file must be


def read_spec(package: Path) -> Any:
    """The package's description and program.

    Raises:
        UsageError: not a package that can be read.
        MissingError: coremltools is not installed.
    """
    from targets._coreml.convert import load_coremltools

    load_coremltools()  # quietly
    from coremltools.proto import Model_pb2
    from google.protobuf.message import DecodeError

    spec = Model_pb2.Model()
    try:
        spec.ParseFromString(model_file(package).read_bytes())
    except (OSError, KeyError, ValueError, DecodeError) as error:
        raise UsageError(
            f"coreml: {package} is not a Core ML package: {error}",
            hint="give the .mlpackage folder, whole",
        ) from error
    return spec


def model_file(package: Path) -> Path:
    """The file with the program, as the package's manifest says.

    Raises:
        UsageError: that is none, or leads out of the package.
    """
    stated, hint = package / "Manifest.json", "give the .mlpackage folder, whole"
    manifest = read_json(stated, what="Core ML package", hint=hint)
    try:
        root = manifest["itemInfoEntries"][manifest["rootModelIdentifier"]]["path"]
        file = package / "Data" / str(root)
        inside = file.resolve().is_relative_to(package.resolve())
    except (LookupError, OSError, TypeError, ValueError) as error:
        raise UsageError(f"coreml: {stated}: no list of a package: {error!r}", hint=hint) from error
    if not inside:
        raise UsageError(f"coreml: {stated}: {root} leads out of the package", hint=hint)
    return file


def weight_file(package: Path) -> Path:
    """The file with the weights; a program with small constants only has none."""
    return model_file(package).parent / "weights" / "weight.bin"


def check_weights(package: Path, spec: Any) -> None:
    """Compare the weight file with the hash in the package's metadata, where there is one.

    Raises:
        StageError: it is another file, or gone.
    """
    noted = spec.description.metadata.userDefined.get(WEIGHTS_SHA256)
    if noted is None:
        return
    file = weight_file(package)
    found = hashlib.sha256(file.read_bytes()).hexdigest() if file.is_file() else "no file"
    if found != noted:
        raise StageError(
            f"coreml: {package.name}/{file.relative_to(package)} is not what was built: "
            f"its sha256 is {found[:12]}, noted is {noted[:12]}",
            hint="copy the package again from where it was built, or build it again",
        )


def takes_images(spec: Any) -> bool:
    """Whether it takes and gives 8-bit images, not arrays."""
    kind: str = spec.description.input[0].type.WhichOneof("Type")
    return kind == "imageType"


def margin_of(spec: Any) -> int:
    """LR pixels that a tile needs around it, as the package states them."""
    stated = spec.description.metadata.userDefined.get("mipkd.margin", "")
    return int(stated) if re.fullmatch(r"\d{1,4}", stated) else BuildRequest.margin


def listed_sizes(spec: Any) -> tuple[tuple[int, int], ...]:
    """Height and width of each image that the package takes, the usual one first; () of a range."""
    kind = spec.description.input[0].type
    if takes_images(spec):
        image = kind.imageType
        flexible = image.WhichOneof("SizeFlexibility")
        others = image.enumeratedSizes.sizes if flexible == "enumeratedSizes" else ()
        usual, listed = (image.height, image.width), [(s.height, s.width) for s in others]
    else:
        array = kind.multiArrayType
        flexible = array.WhichOneof("ShapeFlexibility")
        shapes = array.enumeratedShapes.shapes if flexible == "enumeratedShapes" else ()
        usual, listed = tuple(array.shape[-2:]), [tuple(one.shape[-2:]) for one in shapes]
    if flexible and not listed:
        return ()
    return tuple(dict.fromkeys((usual, *listed)))


def range_of_sides(spec: Any) -> tuple[tuple[int, int], tuple[int, int]]:
    """The least and largest height, and width, that a package for a range takes; 0: no bound."""
    kind = spec.description.input[0].type
    if takes_images(spec):
        sides = kind.imageType.imageSizeRange
        found = [sides.heightRange, sides.widthRange]
    else:
        found = list(kind.multiArrayType.shapeRange.sizeRanges[-2:])
    height, width = ((one.lowerBound, max(0, one.upperBound)) for one in found)
    return height, width


def load_program(package: Path, spec: Any, known: Collection[str]) -> Any:
    """The main function, as coremltools reads it: typed operations and constants with values.

    Raises:
        UsageError: it is not an ML program, or has more inputs or outputs.
        UnsupportedError: an operation is none of `known`.
        StageError: the weight file does not hold what the program reads.
    """
    from coremltools.converters.mil.frontend.milproto.load import load

    functions = spec.mlProgram.functions
    if spec.WhichOneof("Type") != "mlProgram" or "main" not in functions:
        raise UsageError(
            f"coreml: {package} holds no ML program", hint="convert it with convert_to='mlprogram'"
        )
    (block,) = functions["main"].block_specializations.values()
    if len(spec.description.input) != 1 or len(block.outputs) != 1:
        raise UsageError(
            f"coreml: {package}: {len(spec.description.input)} inputs and "
            f"{len(block.outputs)} outputs",
            hint="known: one image in, one image out",
        )
    for operation in block.operations:
        if operation.type not in (*known, "const"):
            raise UnsupportedError(
                f"coreml: {package.name}: operation {operation.type!r} "
                f"({operation.outputs[0].name}) is not known to the simulation",
                hint="run the package on a Mac, or give a net without it; known: "
                + ", ".join(sorted(known)),
            )
    try:
        program = load(spec, spec.specificationVersion, str(weight_file(package).parent))
    except (RuntimeError, ValueError) as error:
        raise StageError(
            f"coreml: {package.name}: its weights do not load: {error}",
            hint="a file was cut or changed: copy the package again",
        ) from error
    return program.functions["main"]
