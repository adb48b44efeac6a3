"""Which net a checkpoint holds: one of our families, or one that spandrel knows."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mipkd.archs.base import Arch, SRNet, StateDict, load_archs
from mipkd.core.errors import MipkdError, MissingError, UnsupportedError, UsageError
from mipkd.core.finite import check_finite
from mipkd.distill.files import StoredHyper, read_content
from mipkd.distill.reparametrised import describe_halves
from mipkd.distill.spandrel_reader import ForeignNet, NotKnownError, read_foreign
from mipkd.distill.unwrap import Candidate, is_lone_number, list_candidates

_DERIVED = {f"{sign}_mean.{part}" for sign in ("sub", "add") for part in ("weight", "bias")}
_ASKED = 8  # candidates that spandrel is asked about
_SAVE = "save the trained weights: torch.save(net.state_dict(), FILE)"
_FEW_VALUES = 2**22
_MOST_VALUES_A_BYTE = 16  # quantised to 4 bits, and packed well, they have two and a few
# What reading sizes from tensors of another net's shapes can raise, or making a net of them.
_MISFIT = (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)


@dataclass(frozen=True)
class OurNet:
    """A net of one of our families: its weights under our key names, and what they tell."""

    arch: Arch
    layout: str
    weights: StateDict
    hyper: Any
    settled: dict[str, str]  # fact -> how it was settled, or "unknown" or "assumed ..."
    taken: Candidate  # where in the file
    licence: str

    def make(self, hyper: Any) -> SRNet:
        """The net with these weights, in eval mode."""
        return fill(self.arch, hyper, self.weights)


@dataclass(frozen=True)
class Foreign:
    """A net that spandrel read, and its tensors as spandrel takes them."""

    found: ForeignNet
    state: StateDict
    taken: Candidate  # where in the file
    licence: str


def recognise(path: Path, *, blocks: str | None = None) -> OurNet | Foreign:
    """The net in a checkpoint; `blocks` names a foreign one's body, or None to find it.

    Our families are asked first, and spandrel before anything is refused.

    Raises:
        UsageError: not a checkpoint, or weights that are NaN, infinite or all zero.
        UnsupportedError: an architecture that neither we nor spandrel know.
        MissingError: none of ours, and spandrel is not installed.
    """
    content, header = read_content(path)
    candidates = list_candidates(content, path)
    whole = [one for one in candidates if not one.strangers]
    parts = [one for one in candidates if one.strangers]
    ours_refused: list[UnsupportedError] = []
    spandrel_refused: list[MipkdError] = []
    for some in (whole, parts):
        for one, arch in product(some, load_archs()):
            try:
                if ours := _read_ours(arch, one, header, path):
                    return ours
            except UnsupportedError as error:
                ours_refused.append(error)
        unknown = ours_refused[0].what if ours_refused else _describe_unknown(candidates)
        if foreign := _read_foreign(some, header, path, blocks, unknown, spandrel_refused):
            return foreign
    if halves := describe_halves(candidates[0].state):
        what, hint = halves
        raise UnsupportedError(f"{path}: {what}", hint=hint)
    # What it knows and we do not take says most; then that it is missing.
    raise min(spandrel_refused, key=lambda error: isinstance(error, NotKnownError))


def _read_ours(arch: Arch, one: Candidate, header: StoredHyper, path: Path) -> OurNet | None:
    """None if the signs of that family are not there.

    Raises:
        UnsupportedError: they are, and the rest does not fit.
    """
    if not any(all(key in one.state for key in keys) for keys in arch.signs.values()):
        return None
    state = _as_floats(one, path)
    _check_not_zero(state, f"{path}: {one.place}")
    try:
        found = arch.canonical(state)
        if found is None:
            return None
        layout, weights = found
        hyper, settled = arch.read(weights, layout)
        hyper, settled = _take_header(hyper, settled, header, path)
        _check_fit(arch, hyper, weights)
    except _MISFIT as error:
        first = (str(error) or type(error).__name__).splitlines()[0]
        raise UnsupportedError(f"{arch.name}: the tensors do not fit: {first}") from error
    layout = "ours" if header.values else layout
    return OurNet(arch, layout, weights, hyper, settled, one, header.licence)


def _read_foreign(
    candidates: Sequence[Candidate],
    header: StoredHyper,
    path: Path,
    blocks: str | None,
    unknown: str,
    refused: list[MipkdError],
) -> Foreign | None:
    """The first candidate that spandrel knows; why it takes none goes to `refused`."""
    for one in candidates[:_ASKED]:
        try:
            state = _as_floats(one, path)
            found = read_foreign(state, path, blocks=blocks, unknown=unknown)
        except (UnsupportedError, MissingError) as error:
            refused.append(error)
        except UsageError:
            if not refused:  # else it is of what lies beside the net
                raise
        else:
            _check_not_zero(state, f"{path}: {one.place}")
            return Foreign(found, state, one, header.licence)
    return None


def _as_floats(one: Candidate, path: Path) -> dict[str, Tensor]:
    """A candidate's tensors, dense; those of floating point in float32.

    Raises:
        UsageError: a tensor has no values, or such as no net can compute with.
    """
    _check_size(one.state, path)
    state = {key: _as_float(value, f"{path}: {one.place}{key}") for key, value in one.state.items()}
    inside = ((k, v) for k, v in state.items() if not is_lone_number(k, v))
    check_finite(path, ((one.place + key, value.numpy()) for key, value in inside))
    return state


def _check_size(state: Mapping[str, Tensor], path: Path) -> None:
    """Refuse tensors that repeat a few stored values, or hardly any, before they are copied.

    Raises:
        UsageError: they have many more values than the file has room for.
    """
    values, size = sum(value.numel() for value in state.values()), path.stat().st_size
    if values > max(_FEW_VALUES, _MOST_VALUES_A_BYTE * size):
        raise UsageError(
            f"{path}: its tensors claim {values} values, in a file of {size} bytes", hint=_SAVE
        )


def _check_not_zero(state: StateDict, where: str) -> None:
    """Refuse a net that nobody trained; a few of its kernels may be zero.

    Raises:
        UsageError: all are.
    """
    kernels = [v for k, v in state.items() if v.ndim > 1 and k not in _DERIVED]
    if kernels and not any(bool(value.any()) for value in kernels):
        raise UsageError(
            f"{where}all {len(kernels)} kernels in it are zero",
            hint="it holds no trained net: give another checkpoint",
        )


def _as_float(value: Tensor, name: str) -> Tensor:
    value = value.detach()
    if value.is_meta:
        raise UsageError(f"{name} has no values: it was saved on the meta device", hint=_SAVE)
    if value.is_complex():
        raise UsageError(f"{name} has complex values", hint="known: floating-point weights")
    if value.is_quantized:
        return value.dequantize()
    if value.layout != torch.strided:
        value = value.to_dense()
    return value.float() if value.is_floating_point() else value


def fill(arch: Arch, hyper: Any, weights: StateDict) -> SRNet:
    """A net of a family with these weights, in eval mode.

    Raises:
        UnsupportedError: they do not fit it.
    """
    _check_fit(arch, hyper, weights)
    net = arch.make(hyper)
    net.load_state_dict({key: weights[key] for key in net.state_dict()})
    return net.eval()


def _check_fit(arch: Arch, hyper: Any, weights: StateDict) -> None:
    if hyper.scale == 1:
        raise UnsupportedError(f"{arch.name} for x{hyper.scale}", hint="known: x2 and more")
    with torch.device("meta"):
        wanted = arch.make(hyper).state_dict()
    for key, value in wanted.items():
        if key not in weights:
            raise UnsupportedError(f"{arch.name}: key {key!r} is missing from the checkpoint")
        if weights[key].shape != value.shape:
            raise UnsupportedError(
                f"{arch.name}: {key} is {tuple(weights[key].shape)}, expected {tuple(value.shape)}"
            )
        if value.is_floating_point() and not weights[key].is_floating_point():
            kind = str(weights[key].dtype).removeprefix("torch.")
            raise UnsupportedError(
                f"{arch.name}: {key} has {kind} values", hint="known: floating-point weights"
            )
    if foreign := sorted(weights.keys() - wanted.keys() - _DERIVED):
        raise UnsupportedError(
            f"{arch.name}: the checkpoint has parts that this family does not: {foreign[0]!r}",
            hint=f"{len(foreign)} keys in all are unknown",
        )


def _take_header(
    hyper: Any, settled: dict[str, str], header: StoredHyper, path: Path
) -> tuple[Any, dict[str, str]]:
    """What tensors cannot tell from the header of a file of ours; what they can must agree."""
    known = {f.name for f in fields(hyper)}
    stored = {k: _as_tuple(v) for k, v in header.values.items() if k in known}
    for name, value in stored.items():
        read = getattr(hyper, name)
        wrong = not _is_fact(value, read) if name in settled else value != read
        if wrong:
            raise UsageError(
                f"{path}: its header says {name}={value!r}, its tensors {read!r}",
                hint="the header was changed: convert the checkpoint again",
            )
    if not stored:
        return hyper, settled
    return replace(hyper, **stored), dict.fromkeys(settled, "header of our own checkpoint")


def _is_fact(value: Any, like: Any) -> bool:
    """Whether it can be an image range or a residual scale; or a mean, which may be none."""
    if like is None or isinstance(like, tuple):
        return value is None or (
            isinstance(value, tuple) and len(value) == 3 and all(map(_is_number, value))
        )
    return _is_number(value) and value > 0


def _is_number(value: Any) -> bool:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return is_number and math.isfinite(value)


def _as_tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _describe_unknown(candidates: Sequence[Candidate]) -> str:
    """The nearest of our families, and the first of its keys that is not there."""
    signs = [
        (sum(key in one.state for key in keys) / len(keys), arch, keys, one)
        for one in candidates
        for arch in load_archs()
        for keys in arch.signs.values()
    ]
    share, closest, keys, one = max(signs, key=lambda sign: sign[0])
    if not share:
        return f"unknown architecture: no family of ours has {next(iter(candidates[0].state))!r}"
    missing = next((key for key in keys if key not in one.state), None)
    first = f"its key {missing!r} is not there" if missing else _name_misfit(closest, keys, one)
    return f"unknown architecture; the nearest is {closest.name}, but {first}"


def _name_misfit(arch: Arch, keys: Sequence[str], one: Candidate) -> str:
    """The first key of a candidate that the family has no name for beside its signs."""
    signs = {key: one.state[key] for key in keys}
    for key, value in one.state.items():
        try:
            if arch.canonical({**signs, key: value}) is None:
                return f"it has no {key!r}"
        except (UnsupportedError, *_MISFIT):
            pass  # a key of its own that says nothing alone
    return "other keys do not fit"
