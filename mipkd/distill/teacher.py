"""Read a checkpoint, say what it is, and settle what its tensors cannot tell."""

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

from mipkd.archs.base import Arch, SRNet, StateDict, gmacs, params
from mipkd.core import plugins
from mipkd.core.errors import UnsupportedError, UsageError
from mipkd.core.images import ByteArray, psnr_y
from mipkd.core.records import Model
from mipkd.distill import spandrel_reader
from mipkd.distill.files import hash_weights, read_state, write_state

log = logging.getLogger(__name__)

Pair = tuple[str, ByteArray, ByteArray]  # name, LR, HR
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
    blocks: str | None = None  # of a family not ours: a container, or modules "B1,B2,B3"


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
        UnsupportedError: no architecture that we know, nor spandrel.
        MissingError: none that we know, and there is no spandrel to ask.
    """
    state, header = read_state(path)
    recognised = _recognised(state)
    if recognised is None:
        return _identify_foreign(path, state, role=role, options=options)
    arch, layout, weights = recognised
    hyper, settled = arch.read(weights, layout)
    _check_scale(path, hyper.scale, options)
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
    if options.blocks:
        raise UsageError(f"identify.blocks: those of {arch.name} are known", hint="leave it out")
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
    state, _ = read_state(model.file)
    recognised = _recognised(state)
    if recognised is None:
        blocks = str(model.hyper.get("blocks", ""))
        return spandrel_reader.read(state, model.file, blocks=blocks, unknown=_nearest(state)).net
    arch, _, weights = recognised
    return _filled(arch, hyper_of(arch, model), weights)


def outline(model: Model) -> SRNet:
    """The net of a record for what needs no weights: they are not read where it is of ours."""
    if model.arch not in plugins.names("mipkd.archs"):
        return load(model)
    arch: Arch = plugins.load("mipkd.archs", model.arch, "ARCH")
    with torch.device("meta"):
        return arch.make(hyper_of(arch, model))


def keep(model: Model, net: SRNet, file: Path) -> None:
    """Copy an identified model's weights into a safetensors file: `load` can read it."""
    if net.in_parts:
        arch: Arch = plugins.load("mipkd.archs", model.arch, "ARCH")
        save(net, arch, hyper_of(arch, model), file, licence=model.licence)
    else:  # under the names that it came with, so that it is known again
        write_state(read_state(model.file)[0], file, {"licence": model.licence})


def hyper_of(arch: Arch, model: Model) -> Any:
    """A record's plain hyper-parameters as the architecture's own type."""
    return arch.Hyper(**{name: _tupled(value) for name, value in model.hyper.items()})


def save(net: SRNet, arch: Arch, hyper: Any, path: Path, *, licence: str) -> None:
    """Write safetensors under the original repository's key names, whole or not at all.

    The header carries the hyper-parameters, so that our own files need no probe.
    """
    header = {"arch": arch.name, "hyper": json.dumps(asdict(hyper)), "licence": licence}
    write_state(arch.original(net), path, header)


def _identify_foreign(
    path: Path, state: StateDict, *, role: str, options: TeacherOptions
) -> tuple[Model, SRNet]:
    found = spandrel_reader.read(state, path, blocks=options.blocks, unknown=_nearest(state))
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
    """At LR 256x256, along a line through two small images: not every net runs on meta."""
    low, high = 64, 96
    at_low, at_high = gmacs(net, low), gmacs(net, high)
    return at_low + (at_high - at_low) * (256**2 - low**2) / (high**2 - low**2)


def _check_scale(path: Path, scale: int, options: TeacherOptions) -> None:
    if options.scale and options.scale != scale:
        raise UsageError(
            f"{path}: its scale is x{scale}, --scale asks for x{options.scale}",
            hint=f"leave --scale out, or give a x{options.scale} checkpoint",
        )


def _families() -> list[Arch]:
    return [plugins.load("mipkd.archs", name, "ARCH") for name in plugins.names("mipkd.archs")]


def _recognised(state: StateDict) -> tuple[Arch, str, dict[str, Tensor]] | None:
    for arch in _families():
        if found := arch.canonical(state):
            return arch, *found
    return None


def _nearest(state: StateDict) -> str:
    """Which of our families a state dict of none of them is most like, and what it lacks."""
    signs = [(arch, keys) for arch in _families() for keys in arch.signs.values()]
    closest, keys = max(signs, key=lambda s: sum(k in state for k in s[1]) / len(s[1]))
    missing = next((key for key in keys if key not in state), "")
    first = f"its key {missing!r} is not there" if missing else "other keys do not fit"
    return f"unknown architecture; the nearest is {closest.name}, but {first}"


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
