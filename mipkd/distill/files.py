"""Read, write and hash weights files; reading runs no code."""

from __future__ import annotations

import argparse
import collections
import hashlib
import json
import pickle
import re
import struct
import warnings
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from mipkd.core.archives import check_inflation
from mipkd.core.errors import UsageError
from mipkd.distill.file_kinds import describe_file, describe_folder, find_code

_LICENCES = ("licence", "license", "modelspec.license")
_KNOWN = "give a .pth, .pt or .safetensors file"
# What trainers store beside weights: best scores as numpy numbers, and their options. Each only
# holds values.
_PLAIN: list[Any] = [
    argparse.Namespace,
    collections.defaultdict,
    *(dict, int, list),  # of defaultdict
    np.dtype,
    *(type(np.dtype(kind)) for kind in ("f2", "f4", "f8", "i4", "i8", "u1", "?")),
    *(np.ndarray, np.zeros(1).__reduce__()[0]),  # and numpy's own way to make one
    np.float64(0).__reduce__()[0],  # numpy's `scalar`, wherever this numpy has it
]
MOST_TENSORS = 50_000  # of one file: the largest nets have a tenth of that
_TENSOR_IN_PLAIN_PICKLE = "torch.storage._load_from_bytes"
# What torch's reader was seen to raise, or can, on files with damaged bytes.
_DAMAGED = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    EOFError,
    LookupError,
    MemoryError,
    OSError,
    RuntimeError,  # RecursionError and NotImplementedError too
    TypeError,
    ValueError,
    pickle.UnpicklingError,
    struct.error,
    zipfile.BadZipFile,
    zlib.error,
)


@dataclass(frozen=True)
class StoredHyper:
    """What the header of a file of ours tells of its net; of others' files only the licence."""

    values: Mapping[str, Any] = field(default_factory=dict)  # hyper-parameters
    licence: str = ""


def read_content(path: Path) -> tuple[Any, StoredHyper]:
    """What a checkpoint holds, as it was saved, and what its header tells.

    Raises:
        UsageError: no such file, not a checkpoint, or a pickle that would run code.
    """
    if path.is_dir():
        what, hint = describe_folder(path)
        raise UsageError(f"{path}: {what}", hint=hint)
    if not path.is_file():
        raise UsageError(f"{path}: no such file", hint=_KNOWN)
    try:
        length = _length_of_header(path)
        if length:
            return _read_safetensors(path, length)
        check_inflation(path)
        with path.open("rb") as file:  # by its name, torch would choose another reader
            return _load_pickle(file), StoredHyper()
    except UsageError:
        raise
    except _DAMAGED as error:
        raise _explain(path, error) from error


def _load_pickle(file: BinaryIO) -> Any:
    with torch.serialization.safe_globals(_PLAIN), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of sparse tensors, of old pickles
        return torch.load(file, map_location="cpu", weights_only=True)


def _length_of_header(path: Path) -> int:
    """Of a safetensors header, by the file's first bytes and not by its name; 0 for others."""
    with path.open("rb") as file:
        start = file.read(9)
    return int.from_bytes(start[:8], "little") if start[8:] == b"{" else 0


def _read_safetensors(path: Path, length: int) -> tuple[dict[str, Tensor], StoredHyper]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            check_count(len(file.keys()), path)
            state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise _not_a_checkpoint(path, *_explain_safetensors(path, length, error)) from error
    return state, _read_header(path, header)


def check_count(tensors: int, path: Path) -> None:
    """Refuse more tensors than any net has.

    Raises:
        UsageError: there are.
    """
    if tensors > MOST_TENSORS:
        raise UsageError(
            f"{path}: more than {MOST_TENSORS} tensors in it",
            hint="save the state dict of the net alone: torch.save(net.state_dict(), FILE)",
        )


def _explain_safetensors(path: Path, length: int, error: Exception) -> tuple[str, str]:
    size, whole = path.stat().st_size, 8 + length
    try:
        with path.open("rb") as file:
            header = json.loads(file.read(whole)[8:])
        whole += max(one["data_offsets"][1] for one in header.values() if "data_offsets" in one)
    except _DAMAGED:
        pass  # the header is cut off or damaged too
    if 0 < size < whole < 2**48:
        what = f"a safetensors file that is cut short: {size} of {whole} bytes"
        return what, "download or copy it again"
    return f"a damaged safetensors file: {error}", "download or copy it again"


def _read_header(path: Path, header: Mapping[str, str]) -> StoredHyper:
    named = {key.casefold(): value for key, value in header.items()}
    licence = next((named[key].strip() for key in _LICENCES if named.get(key, "").strip()), "")
    if not {"arch", "hyper"} <= header.keys():
        return StoredHyper(licence=licence)
    try:
        values = json.loads(header["hyper"])
    except (ValueError, RecursionError):
        values = None
    if not isinstance(values, dict):
        raise UsageError(
            f"{path}: hyper in its header is no JSON object: {header['hyper'][:40]!r}",
            hint="a file of ours has it; remove the header, or convert the checkpoint again",
        )
    return StoredHyper(values, licence)


def write_state(state: Mapping[str, Tensor], path: Path, header: dict[str, str]) -> None:
    """Write safetensors atomically.

    Raises:
        OSError: the disk is full, or does not take it.
    """
    from safetensors.torch import save

    # Cloned: safetensors refuses tensors that share memory.
    tensors = {k: v.detach().cpu().clone().contiguous() for k, v in state.items()}
    partial = path.with_name(path.name + ".partial")
    data = _sort_metadata(save(tensors, metadata=header))
    try:
        partial.write_bytes(data)
    except OSError as error:  # of a write, it does not know of which file
        raise OSError(error.errno, error.strerror, str(partial)) from error
    partial.replace(path)


def _sort_metadata(data: bytes) -> bytes:
    """The same file with its metadata in order: safetensors writes it in another one each time.

    Source: https://huggingface.co/docs/safetensors, section Format.
    """
    end = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:end])
    header["__metadata__"] = dict(sorted(header.get("__metadata__", {}).items()))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + data[end:]


def hash_weights(path: Path) -> str:
    """sha256 of a weights file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _explain(path: Path, error: Exception) -> UsageError:
    """What torch refused: a pickle that asks for code, or no checkpoint at all."""
    said = re.search(r"GLOBAL ([\w.]+)", str(error))
    asked = said[1] if said else find_code(path)
    is_code = bool(asked) and asked != _TENSOR_IN_PLAIN_PICKLE
    if isinstance(error, pickle.UnpicklingError) and is_code:
        is_module = asked.startswith("torch.nn.")
        kind = f"a whole module, {asked}" if is_module else asked
        return UsageError(
            f"{path}: refused: the pickle holds code, not only tensors: {kind}",
            hint="load it where you trust it and save its state_dict, best as .safetensors",
        )
    try:
        return _not_a_checkpoint(path, *describe_file(path))
    except OSError as reason:
        return UsageError(f"{path}: cannot be read: {reason.strerror}", hint=_KNOWN)


def _not_a_checkpoint(path: Path, what: str, hint: str) -> UsageError:
    return UsageError(f"{path}: not a checkpoint that torch can read: {what}", hint=hint)
