"""Identify a checkpoint, and settle what its tensors cannot tell."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import torch
from pydantic import BaseModel, ConfigDict

from mipkd.archs._hooked import HookedNet
from mipkd.archs.base import Arch, SRNet, arch_names, gmacs, load_arch, params
from mipkd.core.apart import report
from mipkd.core.errors import UsageError
from mipkd.core.records import Model
from mipkd.distill.files import hash_weights, write_state
from mipkd.distill.probe import ASSUMED, Probe, is_open, settle
from mipkd.distill.recognise import Foreign, recognise
from mipkd.distill.unwrap import Candidate

log = logging.getLogger(__name__)


class TeacherOptions(BaseModel):
    """What a checkpoint's tensors cannot tell; None: from the layout or a probe on images."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    scale: int | None = None
    image_range: float | None = None
    res_scale: float | None = None
    mean_shift: bool | None = None
    licence: str | None = None
    blocks: str | None = None  # of a foreign family: a container, or modules "B1,B2,B3"
    accept_worse_than_bicubic: bool = False  # learn from a teacher that bicubic beats


def identify(
    path: Path, *, role: str, options: TeacherOptions, probe: Probe | None = None
) -> tuple[Model, SRNet]:
    """The model in a checkpoint and its net; `probe` gives images at a scale.

    Raises:
        UsageError: not a checkpoint, weights that are not finite, or it contradicts an option.
        UnsupportedError: an architecture that neither we nor spandrel know.
        MissingError: none of ours, and spandrel is not installed.
    """
    found = recognise(path, blocks=options.blocks)
    report()  # it was read
    if isinstance(found, Foreign):
        return _describe_foreign(path, found, role=role, options=options, probe=probe)
    arch = found.arch
    if options.blocks:
        raise UsageError(f"identify.blocks: those of {arch.name} are known", hint="leave it out")
    _check_scale(path, found.hyper.scale, options)
    hyper, settled = _apply_options(found.hyper, found.settled, options)
    images = probe(hyper.scale) if probe and is_open(settled) else None
    hyper, settled = settle(_list_guesses(arch, hyper, settled), settled, found.make, images)
    settled = {fact: f"{getattr(hyper, fact, None)} ({how})" for fact, how in settled.items()}
    settled |= _say_taken(path, found.taken)
    licence = options.licence or found.licence or "unknown"
    model = describe(arch, hyper, role=role, file=path, licence=licence)
    return replace(model, layout=found.layout, settled=settled), found.make(hyper)


def _list_guesses(arch: Arch, hyper: Any, settled: Mapping[str, str]) -> list[Any]:
    """What the open facts may be, the layout's own guess first."""
    fixed = {f: getattr(hyper, f) for f, how in settled.items() if not is_open({f: how})}
    return list(dict.fromkeys([hyper, *(replace(h, **fixed) for h in arch.unsettled(hyper))]))


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
    found = recognise(model.file, blocks=str(model.hyper.get("blocks", "")))
    if isinstance(found, Foreign):
        net = found.found.net
        net.image_range = float(model.hyper["image_range"])
        return net
    return found.make(hyper_of(found.arch, model))


def load_structure(model: Model) -> SRNet:
    """The net of a record for uses without weights: on the meta device if it is one of ours."""
    if model.arch not in arch_names():
        return load(model)
    arch = load_arch(model.arch)
    with torch.device("meta"):
        return arch.make(hyper_of(arch, model))


def save_copy(model: Model, net: SRNet, file: Path) -> None:
    """Copy an identified model's weights into a safetensors file that `load` can read."""
    if model.arch in arch_names():
        arch = load_arch(model.arch)
        save(net, arch, hyper_of(arch, model), file, licence=model.licence)
    else:  # under its own key names, by which spandrel recognises it
        found = recognise(model.file, blocks=str(model.hyper["blocks"]))
        assert isinstance(found, Foreign), "it is none of ours"
        write_state(found.state, file, {"licence": model.licence})


def hyper_of(arch: Arch, model: Model) -> Any:
    """A record's hyper-parameters as the family's own type."""
    return arch.Hyper(**{name: _as_tuple(value) for name, value in model.hyper.items()})


def save(net: SRNet, arch: Arch, hyper: Any, path: Path, *, licence: str) -> None:
    """Write safetensors atomically under the original repository's key names.

    The header holds the hyper-parameters, so that our own files need no probe.
    """
    header = {"arch": arch.name, "hyper": json.dumps(asdict(hyper)), "licence": licence}
    write_state(arch.original(net), path, header)


def _describe_foreign(
    path: Path,
    foreign: Foreign,
    *,
    role: str,
    options: TeacherOptions,
    probe: Probe | None,
) -> tuple[Model, SRNet]:
    found = foreign.found
    for fact in ("res_scale", "mean_shift"):
        if getattr(options, fact) is not None:
            raise UsageError(f"identify.{fact}: {found.arch} has no such setting: spandrel's own")
    net, by = found.net, f"spandrel {found.version}"
    _check_scale(path, net.scale, options)
    image_range, range_settled = _settle_range(net, by, options, probe)
    how = "option" if options.blocks else "found by a trial run"
    body = f"{found.blocks} ({how}: {len(net.blocks)} blocks of {net.width} channels)"
    settled = {
        "image_range": range_settled,
        "blocks": body if net.blocks else "none of one size found: teaches by its image alone",
    }
    settled |= _say_taken(path, foreign.taken)
    model = Model(
        role=role,
        file=path,
        sha256=hash_weights(path),
        arch=found.arch,
        hyper={"image_range": image_range, "blocks": found.blocks},
        scale=net.scale,
        layout=by,
        settled=settled,
        params=params(net),
        gmacs=round(_gmacs_of_foreign(net), 2),
        licence=options.licence or foreign.licence or "unknown",
    )
    return model, net


@dataclass(frozen=True)
class _Foreign:
    """All that spandrel cannot tell of a net."""

    image_range: float


def _settle_range(
    net: HookedNet, by: str, options: TeacherOptions, probe: Probe | None
) -> tuple[float, str]:
    """The range of the pixels that a foreign net takes, which it is set to, and how it is known."""
    how = "option" if options.image_range else f"{ASSUMED} by {by}"
    guesses = [_Foreign(options.image_range or 1.0)]
    guesses += [] if options.image_range else [_Foreign(255.0)]
    images = probe(net.scale) if probe and not options.image_range else None
    best, settled = settle(guesses, {"image_range": how}, partial(_set_range, net), images)
    _set_range(net, best)
    return best.image_range, f"{best.image_range} ({settled['image_range']})"


def _set_range(net: HookedNet, facts: _Foreign) -> SRNet:
    net.image_range = facts.image_range
    return net


def _say_taken(path: Path, taken: Candidate) -> dict[str, str]:
    """Which tensors of a file the net is made of, as a fact, unless it is all of them."""
    if taken.averaged_list:
        log.warning(
            "%s: holds averaged weights as a list, which cannot be told apart: took %s, not %s",
            path.name,
            taken.taken_from or "those with names",
            taken.averaged_list,
        )
    if not taken.taken_from:
        return {}
    log.info("%s: weights taken from %s", path.name, taken.taken_from)
    if taken.strangers:
        log.warning(
            "%s: tensors beside the net are left out, %d that may belong to it; the first: %s",
            path.name,
            len(taken.strangers),
            taken.strangers[0],
        )
    return {"weights": taken.taken_from}


def _gmacs_of_foreign(net: SRNet) -> float:
    """At LR 256x256, extrapolated from two small images: not every net runs on meta."""
    low, high = 64, 96
    at_low, at_high = gmacs(net, low), gmacs(net, high)
    return at_low + (at_high - at_low) * (256**2 - low**2) / (high**2 - low**2)


def _check_scale(path: Path, scale: int, options: TeacherOptions) -> None:
    if options.scale and options.scale != scale:
        refuse_scale(path, scale, options.scale)


def refuse_scale(path: Path | None, scale: int, asked: int | None) -> NoReturn:
    """Say that a file is of another scale than was asked for.

    Raises:
        UsageError: always.
    """
    raise UsageError(
        f"{path}: its scale is x{scale}, --scale asks for x{asked}",
        hint=f"leave --scale out, or give a file of x{asked}",
    )


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


def _as_tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
