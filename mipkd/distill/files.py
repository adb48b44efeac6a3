"""Read, write and hash weights files; reading runs no code."""

from __future__ import annotations

import hashlib
import json
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mipkd.core.errors import UsageError

_WRAPPERS = ("params_ema", "params", "state_dict", "model")


def read_state(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """A checkpoint's tensors, unwrapped, and the `hyper` and `licence` in a file of ours.

    Raises:
        UsageError: no such file, not a checkpoint, or a pickle that would run code.
    """
    if not path.is_file():
        raise UsageError(f"{path}: no such file", hint="give a .pth, .pt or .safetensors file")
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if _is_pickle(path):
            raise UsageError(
                f"{path}: refused: the pickle holds code, not only tensors",
                hint="load it where you trust it and save its state_dict, best as .safetensors",
            ) from error
        raise _not_a_checkpoint(path) from error
    except (RuntimeError, OSError, EOFError, ValueError, KeyError) as error:
        raise _not_a_checkpoint(path) from error
    return _unwrap(content, path), {}


def _is_pickle(path: Path) -> bool:
    """Whether a file that torch refused is a pickle, bare or in torch's zip, not text."""
    with path.open("rb") as file:
        return file.read(2) in (b"PK", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise _not_a_checkpoint(path) from error
    ours = {"arch", "hyper"} <= header.keys()
    facts = {"hyper": json.loads(header["hyper"]), "licence": header.get("licence")} if ours else {}
    return _unwrap(state, path), facts


def write_state(state: Mapping[str, Tensor], path: Path, header: dict[str, str]) -> None:
    """Write safetensors atomically."""
    from safetensors.torch import save_file

    # Cloned: safetensors refuses tensors that share memory.
    tensors = {k: v.detach().cpu().clone().contiguous() for k, v in state.items()}
    partial = path.with_name(path.name + ".partial")
    save_file(tensors, partial, metadata=header)
    partial.replace(path)


def hash_weights(path: Path) -> str:
    """sha256 of a weights file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _not_a_checkpoint(path: Path) -> UsageError:
    return UsageError(
        f"{path}: not a checkpoint that torch can read",
        hint="give a state dict saved by torch.save, or a .safetensors file",
    )


def _unwrap(content: Any, path: Path) -> dict[str, Tensor]:
    while isinstance(content, Mapping):
        inner = next((content[w] for w in _WRAPPERS if isinstance(content.get(w), Mapping)), None)
        if inner is None:
            break
        content = inner
    tensors = (
        {k: v for k, v in content.items() if isinstance(v, Tensor)}
        if isinstance(content, Mapping)
        else {}
    )
    if not tensors:
        raise UsageError(
            f"{path}: no tensors in it", hint="known wrappers: " + ", ".join(_WRAPPERS)
        )
    if all(key.startswith("module.") for key in tensors):
        tensors = {key.removeprefix("module."): value for key, value in tensors.items()}
    return {k: v.float() if v.is_floating_point() else v for k, v in tensors.items()}
