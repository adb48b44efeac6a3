"""Failures that become rows of the report while the rest goes on."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from mipkd.core.errors import MipkdError
from mipkd.core.evidence import Failure

log = logging.getLogger(__name__)


@contextmanager
def record_failure(
    failures: list[Failure], target: str, precision: str, stage: str, role: str
) -> Iterator[None]:
    """Turn the failure of one model on one target into a row of the report."""
    try:
        yield
    except Exception as error:
        what = error.what if isinstance(error, MipkdError) else f"{type(error).__name__}: {error}"
        hint = error.hint if isinstance(error, MipkdError) else ""
        whose = "" if role == "student" else f" of {role}"
        log.error("%s %s%s: %s failed: %s", target, precision, whose, stage, what)
        log.debug("traceback", exc_info=True)
        failures.append(Failure(target, precision, stage, what, hint, role))
