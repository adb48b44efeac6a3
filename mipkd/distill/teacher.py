"""Read a checkpoint, say what it is, and settle what its tensors cannot tell."""

from __future__ import annotations

import json
import logging
import pickle
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from mipkd.archs.base import Arch, SRNet, StateDict, gmacs, params
from mipkd.core import plugins
from mipkd.core.errors import UnsupportedError, UsageError
from mipkd.core.images import ByteArray, psnr_y
from mipkd.core.records import Model

log = logging.getLogger(__name__)

Pair = tuple[str, ByteArray, ByteArray]  # name, LR, HR
_WRAPPERS = ("params_ema", "params", "state_dict", "model")
_DERIVED = {f"{sign}_mean.{part}" for sign in ("sub", "add") for part in ("weight", "bias")}
_PROBE_SIZE = 96  # LR pixels a side: a probe is quick


class TeacherOptions(BaseModel):
    """What a checkpoint's tensors cannot tell; not set means: from the layout or a probe."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    scale: int | None = None
    image_range: float | None = None
    res_scale: float | None = None
    mean_shift: bool | None = None
    licence: str | None = None


def identify(
    path: Path,
    *,
    role: str,
    options: TeacherOptions,
    probe: Callable[[int], Sequence[Pair]] | None = None,
) -> tuple[Model, SRNet]:
    """The model in a checkpoint and its net; `probe` gives images at a scale.

    Raises:
        UsageError: not a checkpoint, or it contradicts an option.
        UnsupportedError: no architecture that we know.
    """
    state, header = read_state(path)
    arch, layout, weights = _recognise(state, path)
    hyper, settled = arch.read(weights, layout)
    if options.scale and options.scale != hyper.scale:
        raise UsageError(
            f"{path}: its scale is x{hyper.scale}, --scale asks for x{options.scale}",
            hint=f"leave --scale out, or give a x{options.scale} checkpoint",
        )
    if told := header.get("hyper"):
        layout = "ours"
        kept = {f.name for f in fields(hyper)}
        hyper = replace(hyper, **{k: _tupled(v) for k, v in told.items() if k in kept})
        settled = dict.fromkeys(settled, "header of our own checkpoint")
    hyper, settled = _with_options(hyper, settled, options)
    unknown = [fact for fact, how in settled.items() if how == "unknown"]
    if unknown:
        best, how = _probed(arch, hyper, weights, probe, settled)
        changed = [f for f in settled if getattr(best, f) != getattr(hyper, f)]
        hyper, settled = best, settled | dict.fromkeys([*unknown, *changed], how)
    net = _filled(arch, hyper, weights)
    licence = options.licence or header.get("licence") or "unknown"
    found = describe(arch, hyper, role=role, file=path, licence=licence)
    settled = {fact: f"{getattr(hyper, fact, None)} ({how})" for fact, how in settled.items()}
    return replace(found, layout=layout, settled=settled), net


def describe(arch: Arch, hyper: Any, *, role: str, file: Path, licence: str) -> Model:
    """The record of a model of our own whose weights lie in `file`."""
    with torch.device("meta"):
        net = arch.make(hyper).deployed()
    return Model(
        role=role,
        file=file,
        sha256=hash_weights(file),
        arch=arch.name,
        hyper=asdict(hyper),
        scale=hyper.scale,
        layout="ours",
        settled={},
        params=params(net),
        gmacs=round(gmacs(net), 2),
        licence=licence,
    )


def load(model: Model) -> SRNet:
    """The net of a record, in eval mode."""
    arch: Arch = plugins.load("mipkd.archs", model.arch, "ARCH")
    state, _ = read_state(model.file)
    _, _, weights = _recognise(state, model.file)
    return _filled(arch, hyper_of(arch, model), weights)


def hyper_of(arch: Arch, model: Model) -> Any:
    """A record's plain hyper-parameters as the architecture's own type."""
    return arch.Hyper(**{name: _tupled(value) for name, value in model.hyper.items()})


def save(net: SRNet, arch: Arch, hyper: Any, path: Path, *, licence: str) -> None:
    """Write safetensors under the original repository's key names, whole or not at all.

    The header carries the hyper-parameters, so that our own files need no probe.
    """
    from safetensors.torch import save_file

    header = {"arch": arch.name, "hyper": json.dumps(asdict(hyper)), "licence": licence}
    tensors = {k: v.detach().cpu().contiguous() for k, v in arch.original(net).items()}
    partial = path.with_name(path.name + ".partial")
    save_file(tensors, partial, metadata=header)
    partial.replace(path)


def read_state(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """A checkpoint's tensors, unwrapped; and of a file of ours `hyper` and `licence`.

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
        raise _no_checkpoint(path) from error
    except (RuntimeError, OSError, EOFError, ValueError, KeyError) as error:
        raise _no_checkpoint(path) from error
    return _unwrapped(content, path), {}


def _is_pickle(path: Path) -> bool:
    """Whether a file that torch refused is a pickle, bare or in torch's zip, and not just text."""
    with path.open("rb") as file:
        return file.read(2) in (b"PK", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise _no_checkpoint(path) from error
    ours = {"arch", "hyper"} <= header.keys()
    told = {"hyper": json.loads(header["hyper"]), "licence": header.get("licence")} if ours else {}
    return _unwrapped(state, path), told


def hash_weights(path: Path) -> str:
    """sha256 of a weights file."""
    import hashlib

    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _no_checkpoint(path: Path) -> UsageError:
    return UsageError(
        f"{path}: not a checkpoint that torch can read",
        hint="give a state dict saved by torch.save, or a .safetensors file",
    )


def _unwrapped(content: Any, path: Path) -> dict[str, Tensor]:
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


def _recognise(state: StateDict, path: Path) -> tuple[Arch, str, dict[str, Tensor]]:
    known: list[Arch] = [
        plugins.load("mipkd.archs", name, "ARCH") for name in plugins.names("mipkd.archs")
    ]
    for arch in known:
        if found := arch.canonical(state):
            return arch, *found
    signs = [(arch, keys) for arch in known for keys in arch.signs.values()]
    closest, keys = max(signs, key=lambda s: sum(k in state for k in s[1]) / len(s[1]))
    missing = next((key for key in keys if key not in state), "")
    first = f"its key {missing!r} is not there" if missing else "other keys do not fit"
    raise UnsupportedError(
        f"{path}: unknown architecture; the nearest is {closest.name}, but {first}",
        hint="known: " + ", ".join(arch.name for arch in known),
    )


def _filled(arch: Arch, hyper: Any, weights: StateDict) -> SRNet:
    net = arch.make(hyper)
    wanted = net.state_dict()
    for key, value in wanted.items():
        if key not in weights:
            raise UnsupportedError(f"{arch.name}: key {key!r} is missing from the checkpoint")
        if weights[key].shape != value.shape:
            raise UnsupportedError(
                f"{arch.name}: {key} is {tuple(weights[key].shape)}, expected {tuple(value.shape)}"
            )
    if foreign := sorted(weights.keys() - wanted.keys() - _DERIVED):
        raise UnsupportedError(
            f"{arch.name}: the checkpoint has parts that this family does not: {foreign[0]!r}",
            hint=f"{len(foreign)} keys in all are unknown",
        )
    net.load_state_dict({key: weights[key] for key in wanted})
    return net.eval()


def _with_options(
    hyper: Any, settled: dict[str, str], options: TeacherOptions
) -> tuple[Any, dict[str, str]]:
    from mipkd.archs._parts import DIV2K_MEAN

    given: dict[str, Any] = {
        "image_range": options.image_range,
        "res_scale": options.res_scale,
        "mean": None if options.mean_shift is None else DIV2K_MEAN if options.mean_shift else (),
    }
    own = {f.name for f in fields(hyper)}
    for fact, value in given.items():
        if value is None:
            continue
        if fact not in own:
            raise UsageError(f"identify.{fact}: this architecture has no such setting")
        hyper = replace(hyper, **{fact: value or None})
        settled = settled | {fact: "option"}
    return hyper, settled


def _probed(
    arch: Arch,
    hyper: Any,
    weights: StateDict,
    probe: Callable[[int], Sequence[Pair]] | None,
    settled: Mapping[str, str],
) -> tuple[Any, str]:
    """The hyper-parameters that upscale the probe's images best, among the unsettled."""
    images = probe(hyper.scale) if probe else []
    if not images:
        log.warning("no images to probe: guessing what the checkpoint does not tell")
        return hyper, "guess: no images to probe"
    fixed = {f: getattr(hyper, f) for f, how in settled.items() if how == "option"}
    tried = {replace(h, **fixed): 0.0 for h in arch.unsettled(hyper)}
    for candidate in tried:
        tried[candidate] = _quality(_filled(arch, candidate, weights), images)
    ranked = sorted(tried, key=lambda h: tried[h], reverse=True)
    best, second = ranked[0], ranked[min(1, len(ranked) - 1)]
    figures = f"{tried[best]:.2f} dB against {tried[second]:.2f}"
    if tried[best] < 15:
        log.warning("no known image range suits this checkpoint: best probe %s", figures)
    return best, f"probe on {len(images)} images: {figures}"


def _quality(net: SRNet, images: Sequence[Pair]) -> float:
    scores = []
    for _, lr_HWC, hr_HWC in images:
        size = min(_PROBE_SIZE, *lr_HWC.shape[:2])
        lr = torch.from_numpy(lr_HWC[:size, :size].copy()).permute(2, 0, 1)[None] / 255
        with torch.inference_mode():
            sr = net(lr)[0].clamp(0, 1).mul(255).round().byte().permute(1, 2, 0).numpy()
        truth = np.ascontiguousarray(hr_HWC[: size * net.scale, : size * net.scale])
        scores.append(psnr_y(sr, truth, border=net.scale))
    return float(np.mean(scores))


def _tupled(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
