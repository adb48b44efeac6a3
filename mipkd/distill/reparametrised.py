"""Kernels that training stored in two halves, which only the code of that training joins."""

from __future__ import annotations

import re
from collections.abc import Iterable

_LATEST = "torch.nn.utils.parametrize.remove_parametrizations(layer, 'weight')"
# (end of a key, what stands in its place beside it, what it is, what joins them)
_HALVES = (
    (r"_g$", "_v", "weight norm", "torch.nn.utils.remove_weight_norm(layer)"),
    (r"_orig$", "_mask", "pruning", "torch.nn.utils.prune.remove(layer, 'weight')"),
    (r"_orig$", "_u", "spectral norm", "torch.nn.utils.remove_spectral_norm(layer)"),
    (r"(?<=parametrizations\.weight\.original)0$", "1", "weight norm", _LATEST),
    (r"(?<=parametrizations\.weight)\.original$", ".0._u", "spectral norm", _LATEST),
    (r"(?<=parametrizations\.weight)\.original$", ".original", "a parametrization", _LATEST),
)


def describe_halves(keys: Iterable[str]) -> tuple[str, str] | None:
    """What stored kernels in two halves, and how to join them; None where they are whole."""
    names = dict.fromkeys(keys)
    for end, beside, what, joins in _HALVES:
        for key in names:
            if (other := re.sub(end, beside, key)) in names and re.search(end, key):
                pair = f"{key!r} and {other!r} in place of one" if other != key else repr(key)
                hint = f"call {joins} for each layer before saving"
                return f"weights under {what}: {pair}", hint
    return None
