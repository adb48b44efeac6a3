"""Refuse weights that no net can compute with: NaN and infinity."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt

from mipkd.core.errors import UsageError

_MASK = re.compile(r"(?:^|[._/])(?:\w*_)?mask(?:$|[._/\d])", re.IGNORECASE)


def check_finite(where: object, weights: Iterable[tuple[str, npt.NDArray[Any]]]) -> None:
    """Refuse floating-point weights that hold NaN or infinity; `where` is the file they are in.

    A mask of attention is none of these: minus infinity among zeros, and no kernel.

    Raises:
        UsageError: names the first such tensor, and how many of its values are bad.
    """
    bad = [(name, values) for name, values in weights if not _is_finite(name, values)]
    if not bad:
        return
    name, values = bad[0]
    nans, infinite = int(np.isnan(values).sum()), int(np.isinf(values).sum())
    kinds = [f"{count} {kind}" for count, kind in ((nans, "NaN"), (infinite, "infinite")) if count]
    more = f"; so have {len(bad) - 1} more tensors" if len(bad) > 1 else ""
    raise UsageError(
        f"{where}: {name} has {' and '.join(kinds)} of {values.size} values{more}",
        hint="its training diverged, or its numbers were too large for their type: "
        "give an earlier checkpoint, or one in float32",
    )


def _is_finite(name: str, values: npt.NDArray[Any]) -> bool:
    if values.dtype.kind not in "fcV":  # V: bfloat16 and float8 of ml_dtypes
        return True
    finite = np.isfinite(values)
    if finite.all():
        return True
    if not bool(np.isneginf(values[~finite]).all()) or not finite.any() or values[finite].any():
        return False
    return values.ndim in (2, 3) or (values.ndim > 3 and bool(_MASK.search(name)))
