"""Identify a checkpoint, and settle what its tensors cannot tell."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from mipkd.archs.base import (
    Arch,
    SRNet,
    StateDict,
    arch_names,
    gmacs,
    load_arch,
    load_archs,
    params,
    upscale_image,
)
from mipkd.core.errors import UnsupportedError, UsageError
from mipkd.core.images import psnr_y
from mipkd.core.records import Model
from mipkd.distill.data import Pair
from mipkd.distill.files import hash_weights, read_state, write_state
from mipkd.distill.spandrel_reader import read_foreign

log = logging.getLogger(__name__)

_DERIVED = {f"{sign}_mean.{part}" for sign in ("sub", "add") for part in ("weight", "bias")}
_PROBE_SIZE = 96  # LR pixels a side: a probe is quick


class TeacherOptions(BaseModel):
    """What a checkpoint's tensors cannot tell; None: from the layout or a probe on images."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    scale: int | None = None
    image_range: float | None = None
    res_scale: float | None = None
    mean_shift: bool | None = None
    licence: str | None = None
    blocks: str | None = None  # of a foreign family: a container, or modules "B1,B2,B3"


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
        UnsupportedError: an architecture that neither we nor spandrel know.
        MissingError: none of ours, and spandrel is not installed.
    """
    state, header = read_state(path)
    recognised = _recognise(state)
    if recognised is None:
        return _identify_foreign(path, state, role=role, options=options)
    arch, layout, weights = recognised
    hyper, settled = arch.read(weights, layout)
    _check_scale(path, hyper.scale, options)
    if stored := header.get("hyper"):
        layout = "ours"
        known = {f.name for f in fields(hyper)}
        hyper = replace(hyper, **{k: _as_tuple(v) for k, v in stored.items() if k in known})
        settled = dict.fromkeys(settled, "header of our own checkpoint")
    hyper, settled = _apply_options(hyper, settled, options)
    unknown = [fact for fact, how in settled.items() if how == "unknown"]
    if unknown:
        best, how = _probe_hyper(arch, hyper, weights, probe, settled)
        changed = [f for f in settled if getattr(best, f) != getattr(hyper, f)]
        hyper, settled = best, settled | dict.fromkeys([*unknown, *changed], how)
    net = _fill(arch, hyper, weights)
    licence = options.licence or header.get("licence") or "unknown"
    found = describe(arch, hyper, role=role, file=path, licence=licence)
    if options.blocks:
        raise UsageError(f"identify.blocks: those of {arch.name} are known", hint="leave it out")
    settled = {fact: f"{getattr(hyper, fact, None)} ({how})" for fact, how in settled.items()}
    return replace(found, layout=layout, settled=settled), net


def describe(arch: Arch, hyper: Any, *, role: str, file: Path, licence: str) -> Model:
    """The record of a net of our families whose weights are in `file`."""
    with torch.device("meta"):
        net = arch.make(hyper).to_deployed()
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
    state, _ = read_state(model.file)
    recognised = _recognise(state)
    if recognised is None:
        blocks = str(model.hyper.get("blocks", ""))
        return read_foreign(state, model.file, blocks=blocks, unknown=_describe_unknown(state)).net
    arch, _, weights = recognised
    return _fill(arch, hyper_of(arch, model), weights)


def load_structure(model: Model) -> SRNet:
    """The net of a record for uses without weights: on the meta device if it is one of ours."""
    if model.arch not in arch_names():
        return load(model)
    arch = load_arch(model.arch)
    with torch.device("meta"):
        return arch.make(hyper_of(arch, model))


def save_copy(model: Model, net: SRNet, file: Path) -> None:
    """Copy an identified model's weights into a safetensors file that `load` can read."""
    if net.in_parts:
        arch = load_arch(model.arch)
        save(net, arch, hyper_of(arch, model), file, licence=model.licence)
    else:  # under its own key names, by which spandrel recognises it
        write_state(read_state(model.file)[0], file, {"licence": model.licence})


def hyper_of(arch: Arch, model: Model) -> Any:
    """A record's hyper-parameters as the family's own type."""
    return arch.Hyper(**{name: _as_tuple(value) for name, value in model.hyper.items()})


def save(net: SRNet, arch: Arch, hyper: Any, path: Path, *, licence: str) -> None:
    """Write safetensors atomically under the original repository's key names.

    The header holds the hyper-parameters, so that our own files need no probe.
    """
    header = {"arch": arch.name, "hyper": json.dumps(asdict(hyper)), "licence": licence}
    write_state(arch.original(net), path, header)


def _identify_foreign(
    path: Path, state: StateDict, *, role: str, options: TeacherOptions
) -> tuple[Model, SRNet]:
    found = read_foreign(state, path, blocks=options.blocks, unknown=_describe_unknown(state))
    for fact in ("image_range", "res_scale", "mean_shift"):
        if getattr(options, fact) is not None:
            raise UsageError(f"identify.{fact}: {found.arch} has no such setting: spandrel's own")
    net, by = found.net, f"spandrel {found.version}"
    _check_scale(path, net.scale, options)
    how = "option" if options.blocks else "found by a trial run"
    body = f"{found.blocks} ({how}: {len(net.blocks)} blocks of {net.width} channels)"
    settled = {
        "image_range": f"1.0 ({by})",
        "blocks": body if net.blocks else "none of one size found: teaches by its image alone",
    }
    model = Model(
        role=role,
        file=path,
        sha256=hash_weights(path),
        arch=found.arch,
        hyper={"image_range": 1.0, "blocks": found.blocks},
        scale=net.scale,
        layout=by,
        settled=settled,
        params=params(net),
        gmacs=round(_gmacs_of_foreign(net), 2),
        licence=options.licence or "unknown",
    )
    return model, net


def _gmacs_of_foreign(net: SRNet) -> float:
    """At LR 256x256, extrapolated from two small images: not every net runs on meta."""
    low, high = 64, 96
    at_low, at_high = gmacs(net, low), gmacs(net, high)
    return at_low + (at_high - at_low) * (256**2 - low**2) / (high**2 - low**2)


def _check_scale(path: Path, scale: int, options: TeacherOptions) -> None:
    if options.scale and options.scale != scale:
        raise UsageError(
            f"{path}: its scale is x{scale}, --scale asks for x{options.scale}",
            hint=f"leave --scale out, or give a x{options.scale} checkpoint",
        )


def _recognise(state: StateDict) -> tuple[Arch, str, dict[str, Tensor]] | None:
    for arch in load_archs():
        if found := arch.canonical(state):
            return arch, *found
    return None


def _describe_unknown(state: StateDict) -> str:
    """Which of our families an unknown state dict is most like, and what it lacks."""
    signs = [(arch, keys) for arch in load_archs() for keys in arch.signs.values()]
    closest, keys = max(signs, key=lambda s: sum(k in state for k in s[1]) / len(s[1]))
    missing = next((key for key in keys if key not in state), "")
    first = f"its key {missing!r} is not there" if missing else "other keys do not fit"
    return f"unknown architecture; the nearest is {closest.name}, but {first}"


def _fill(arch: Arch, hyper: Any, weights: StateDict) -> SRNet:
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


def _apply_options(
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


def _probe_hyper(
    arch: Arch,
    hyper: Any,
    weights: StateDict,
    probe: Callable[[int], Sequence[Pair]] | None,
    settled: Mapping[str, str],
) -> tuple[Any, str]:
    """The unsettled hyper-parameters that upscale the probe's images best."""
    images = probe(hyper.scale) if probe else []
    if not images:
        log.warning("no images to probe: guessing what the checkpoint does not tell")
        return hyper, "guess: no images to probe"
    fixed = {f: getattr(hyper, f) for f, how in settled.items() if how == "option"}
    tried = {replace(h, **fixed): 0.0 for h in arch.unsettled(hyper)}
    for candidate in tried:
        tried[candidate] = _quality(_fill(arch, candidate, weights), images)
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
        sr = upscale_image(net, np.ascontiguousarray(lr_HWC[:size, :size]))
        truth = np.ascontiguousarray(hr_HWC[: size * net.scale, : size * net.scale])
        scores.append(psnr_y(sr, truth, border=net.scale))
    return float(np.mean(scores))


def _as_tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
