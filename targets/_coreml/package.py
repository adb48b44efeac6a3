"""A Core ML package's files: description, program and weights, as they are saved.

The program is in model.mlmodel, the weights in the blob file beside it
(https://apple.github.io/coremltools/docs-guides/source/ml-programs.html).
"""

from __future__ import annotations

import hashlib
import json
import struct
from pathlib import Path
from typing import Any

import numpy as np

from mipkd.core.errors import StageError, UsageError

WEIGHTS_SHA256 = "mipkd.weights_sha256"  # metadata of a package: what its weight file must be
_MODEL_PATH = "@model_path/"
# Of a weight file: a header of 64 bytes, then for each blob a record of 64 and its values.
_RECORD = struct.Struct("<IIQQ")  # sentinel, type, bytes, where the values begin
_SENTINEL = 0xDEADBEEF


def read_spec(package: Path) -> Any:
    """The package's description and program.

    Raises:
        UsageError: not a package that can be read.
    """
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
    """The file with the program, as the package's manifest says."""
    manifest = json.loads((package / "Manifest.json").read_text())
    root = manifest["itemInfoEntries"][manifest["rootModelIdentifier"]]
    return package / "Data" / str(root["path"])


def weight_file(package: Path) -> Path:
    """The file with the weights; a program with small constants only has none."""
    return model_file(package).parent / "weights" / "weight.bin"


def check_weights(package: Path, spec: Any) -> None:
    """Compare the weight file with the hash in the package's metadata, where there is one.

    Raises:
        StageError: it is another file, or gone.
    """
    told = spec.description.metadata.userDefined.get(WEIGHTS_SHA256)
    if told is None:
        return
    file = weight_file(package)
    found = hashlib.sha256(file.read_bytes()).hexdigest() if file.is_file() else "no file"
    if found != told:
        raise StageError(
            f"coreml: {package.name}/{file.relative_to(package)} is not what was built: "
            f"its sha256 is {found[:12]}, noted is {told[:12]}",
            hint="copy the package again from where it was built, or build it again",
        )


def accepted(spec: Any) -> list[tuple[int, int]]:
    """The least and largest size of each dimension (N, C, H, W) that the input may have."""
    kind = spec.description.input[0].type
    if kind.WhichOneof("Type") == "imageType":
        image = kind.imageType
        if image.WhichOneof("SizeFlexibility") == "imageSizeRange":
            sides = [image.imageSizeRange.heightRange, image.imageSizeRange.widthRange]
            return [(1, 1), (3, 3), *((s.lowerBound, s.upperBound) for s in sides)]
        return [(1, 1), (3, 3), (image.height, image.height), (image.width, image.width)]
    array = kind.multiArrayType
    if array.WhichOneof("ShapeFlexibility") == "shapeRange":
        return [(r.lowerBound, r.upperBound) for r in array.shapeRange.sizeRanges]
    return [(side, side) for side in array.shape]


def main_block(spec: Any, package: Path) -> Any:
    """The operations between the one image that goes in and the one that comes out.

    Raises:
        UsageError: it is not an ML program, or has more inputs or outputs.
    """
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
    return block


def type_name(value_type: Any) -> str:
    """Such as FLOAT16."""
    from coremltools.proto import MIL_pb2

    kind = value_type.tensorType.dataType
    return str(MIL_pb2.DataType.Name(kind))


def stored(package: Path, value: Any) -> Any:
    """A constant as it is saved: a str, or an array of its shape.

    Raises:
        StageError: the weight file holds no whole blob where it should be.
    """
    kind = type_name(value.type)
    if value.WhichOneof("value") == "blobFileValue":
        place = value.blobFileValue
        file = model_file(package).parent / place.fileName.removeprefix(_MODEL_PATH)
        array = _blob(file, place.offset, kind)
    else:
        tensor = value.immediateValue.tensor
        held: Any = getattr(tensor, tensor.WhichOneof("value") or "ints").values
        if kind == "STRING":
            return held[0]
        raw = isinstance(held, bytes)
        array = np.frombuffer(held, _dtype(kind)) if raw else np.array([*held], _dtype(kind))
    shape = [d.constant.size for d in value.type.tensorType.dimensions]
    # A scalar may be stored for a tensor of equal values.
    whole = array if array.size == np.prod(shape, dtype=int) else np.broadcast_to(array, shape)
    return whole.reshape(shape)


def _dtype(kind: str) -> np.dtype[Any]:
    return np.dtype(kind.lower())


def _blob(file: Path, offset: int, kind: str) -> Any:
    """The values of one blob; `offset` is where its record begins."""
    with file.open("rb") as weights:
        weights.seek(offset)
        record = weights.read(_RECORD.size)
        sentinel, _, size, begin = (
            _RECORD.unpack(record) if len(record) == _RECORD.size else [0] * 4
        )
        weights.seek(begin)
        held = weights.read(size)
    if sentinel != _SENTINEL or len(held) != size:
        raise StageError(
            f"coreml: {file.name}: no whole blob at {offset}",
            hint="the file was cut or changed: copy the package again",
        )
    return np.frombuffer(held, _dtype(kind))
