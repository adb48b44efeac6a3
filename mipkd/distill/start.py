"""A student's first weights: its teacher's projection, the teacher's strongest channels, or chance.

Shapes: N patches, H W low-res size. Images: float32 in [0, 1], RGB.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from pathlib import Path
from time import perf_counter

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from mipkd.archs.base import Arch, SRNet
from mipkd.core import memory
from mipkd.core.errors import UsageError
from mipkd.core.records import Photos
from mipkd.distill import ranks
from mipkd.distill.checkpoint import writing
from mipkd.distill.data import PatchSampler
from mipkd.distill.teacher import TeacherOptions, identify

log = logging.getLogger(__name__)

_WAYS = ("project", "inherit", "random")
_SIDE = 32  # LR pixels a side of the patches that a projection is fitted on
_PLACES = 128 * _SIDE**2  # in all of them: some hundred times what a layer has inputs
_LEAST_PLACES = 32 * _SIDE**2
_GMACS = 1500.0  # that a teacher may take for all of them, half a minute of two cores


def start(
    student: SRNet, arch: Arch, teacher: SRNet | None, how: str, patches: Callable[[], Tensor]
) -> str:
    """Give `student` its first weights, in place: "project", "inherit", "random" or a checkpoint;
    which it was.

    `patches` gives LR patches (N, 3, H, W). A teacher of another family leaves random weights.

    Raises:
        UsageError: the checkpoint does not fit.
    """
    if how not in _WAYS:
        _copy(student, Path(how))
        return how
    if how == "random" or teacher is None:
        return "random"
    if type(teacher) is not type(student):
        log.warning("init: the teacher is of another family: the student starts at random")
        return "random"
    arch.inherit(student, teacher)
    return _project(student, arch, teacher, patches()) if how == "project" else how


def check_start(how: str) -> None:
    """Refuse what is neither a way to start nor a file.

    Raises:
        UsageError: it is neither.
    """
    if how not in _WAYS and not Path(how).is_file():
        raise UsageError(
            f"distill.init: {how!r}: no such file",
            hint=f"known: {', '.join(_WAYS)}, or a checkpoint of the student's size",
        )


def patches_of(photos: Photos, *, most: int, multiple: int, gmacs: float, seed: int) -> Tensor:
    """LR patches (N, 3, H, W) to fit a projection on, at most `most` pixels a side; fewer for a
    teacher that takes many `gmacs` at LR 256x256."""
    side = max(multiple, min(_SIDE, most) // multiple * multiple)
    places = min(_PLACES, max(_LEAST_PLACES, int(_GMACS / gmacs * 256**2)))
    count = min(8 * 128, places // side**2)
    return PatchSampler(photos, patch=side, batch=count, seed=seed).batch(0).lr_NCHW


def remembered(student: SRNet, folder: Path, make: Callable[[], str]) -> str:
    """The start that `make` gives the student, kept in `folder`: a resumed training starts from
    the same weights, and with several processes all start from the first one's."""
    file, mine = folder / "start.safetensors", ranks.current()
    if mine.rank == 0 and not _is_whole(file):
        found = make()
        state = {name: value.contiguous() for name, value in student.state_dict().items()}
        partial = file.with_name(file.name + ".partial")
        with writing(file):
            save_file(state, partial, {"how": found})
            with partial.open("rb") as written:
                os.fsync(written.fileno())
            partial.replace(file)
        mine.from_first(None)
        return found
    mine.from_first(None)
    with safe_open(file, "pt") as kept:
        student.load_state_dict({name: kept.get_tensor(name) for name in kept.keys()})  # noqa: SIM118
        return str(kept.metadata()["how"])


def _is_whole(file: Path) -> bool:
    try:
        with safe_open(file, "pt") as kept:
            return "how" in (kept.metadata() or {})
    except (OSError, SafetensorError):
        return False


def _project(student: SRNet, arch: Arch, teacher: SRNet, lr_NCHW: Tensor) -> str:
    fit = getattr(arch, "project", None)  # a family of the user's own may have none
    if fit is None:
        log.warning("init: %s has no projection: the student inherits", arch.name)
        return "inherit"
    begun = perf_counter()
    fit(student.eval(), teacher.eval(), lr_NCHW)
    told = "starts as its teacher's projection, fitted in %.1f s; peak memory so far %.1f GiB"
    log.info(told, perf_counter() - begun, (memory.peak_bytes() or 0) / 2**30)
    return "project"


def _copy(student: SRNet, path: Path) -> None:
    check_start(str(path))
    _, net = identify(path, role="student", options=TeacherOptions())
    given = net.state_dict()
    for key, value in student.state_dict().items():
        if key not in given or given[key].shape != value.shape:
            there = tuple(given[key].shape) if key in given else "missing"
            raise UsageError(
                f"distill.init: {path}: {key} is {there}, the student's is {tuple(value.shape)}",
                hint="give a checkpoint of the student's own size",
            )
    student.load_state_dict(given)
