"""Refuse weights that no net can compute with: NaN and infinity."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt

from mipkd.core.errors import UsageError


def check_finite(where: object, weights: Iterable[tuple[str, npt.NDArray[Any]]]) -> None:
    """Refuse floating-point weights that hold NaN or infinity; `where` is the file they are in.

    Infinite may be a bound (one number) and a mask (else zeros).

    Raises:
        UsageError: names the first such tensor, and how many of its values are bad.
    """
    bad = [(name, values) for name, values in weights if not _is_finite(values)]
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


def _is_finite(values: npt.NDArray[Any]) -> bool:
    if values.dtype.kind not in "fcV":  # V: bfloat16 and float8 of ml_dtypes
        return True
    finite = np.isfinite(values)
    if finite.all():
        return True
    is_mask = values.ndim > 1 and finite.any() and not values[finite].any()
    return bool((values.ndim == 0 or is_mask) and not np.isnan(values).any())
