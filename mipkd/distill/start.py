"""A student's first weights: its teacher's projection, its strongest channels, or random ones.

Shapes: N patches, H W low-res size. Images: float32 in [0, 1], RGB.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Collection
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
from mipkd.distill.checkpoint import report_write_errors
from mipkd.distill.patch_sampler import PatchSampler
from mipkd.distill.teacher import TeacherOptions, identify

log = logging.getLogger(__name__)

START = "start.safetensors"  # in a training's folder: its first weights
WAYS = ("project", "inherit", "random")
_SIDE = 32  # LR pixels a side of the patches that a projection is fitted to
_PLACES = 128 * _SIDE**2  # in all patches: some hundred times a layer's inputs
_LEAST_PLACES = 32 * _SIDE**2
_GMACS = 1500.0  # of the teacher on all patches at most: half a minute of two cores


def initialise(
    student: SRNet, arch: Arch, teacher: SRNet | None, init: str, patches: Callable[[], Tensor]
) -> str:
    """Set the student's first weights as `init` says: "project", "inherit", "random" or a
    checkpoint's file; the way that was possible.

    `patches` gives LR patches (N, 3, H, W). With a teacher of another family weights are random.

    Raises:
        UsageError: the checkpoint does not fit.
    """
    if init not in WAYS:
        _copy_checkpoint(student, Path(init))
        return init
    if init == "random" or teacher is None:
        return "random"
    if type(teacher) is not type(student):
        log.warning("init: the teacher is of another family: the student starts at random")
        return "random"
    arch.inherit(student, teacher)
    return _project(student, arch, teacher, patches()) if init == "project" else init


def check_init(init: str) -> None:
    """Refuse a `distill.init` that is neither a known way nor a file.

    Raises:
        UsageError: it is neither.
    """
    if init not in WAYS and not Path(init).is_file():
        raise UsageError(
            f"distill.init: {init!r}: no such file",
            hint=f"known: {', '.join(WAYS)}, or a checkpoint of the student's size",
        )


def check_start(init: str, student: SRNet) -> None:
    """Refuse first weights that there are not, or that do not fit; the student may be on meta.

    Raises:
        UsageError: as of `initialise`.
    """
    check_init(init)
    if init not in WAYS:
        _read_weights(student, Path(init))


def count_start_pixels(gmacs: float) -> int:
    """LR pixels of the patches that a projection is fitted to, of a teacher of `gmacs` at LR
    256x256."""
    return min(_PLACES, max(_LEAST_PLACES, int(_GMACS / gmacs * 256**2)))


def cut_start_patches(
    photos: Photos,
    *,
    most: int,
    multiple: int,
    gmacs: float,
    seed: int,
    leave_out: Collection[int] = (),
) -> Tensor:
    """LR patches (N, 3, H, W) to fit a projection to, at most `most` pixels a side; fewer for a
    teacher of many `gmacs` at LR 256x256."""
    side = max(multiple, min(_SIDE, most) // multiple * multiple)
    count = min(8 * 128, count_start_pixels(gmacs) // side**2)
    sampler = PatchSampler(photos, patch=side, batch=count, seed=seed, leave_out=leave_out)
    return sampler.batch(0).lr_NCHW


def initialise_once(student: SRNet, folder: Path, begin: Callable[[], str]) -> str:
    """The way of `begin`, which sets the student's first weights; they are stored in `folder`.

    So a resumed training starts from the same weights, and all processes from the first one's.
    """
    file, mine = folder / START, ranks.current()
    if mine.rank == 0 and not _is_complete(file):
        init = begin()
        state = {name: value.contiguous() for name, value in student.state_dict().items()}
        partial = file.with_name(file.name + ".partial")
        with report_write_errors(file):
            save_file(state, partial, {"how": init})
            with partial.open("rb") as written:
                os.fsync(written.fileno())
            partial.replace(file)
        mine.broadcast(None)
        return init
    mine.broadcast(None)
    with safe_open(file, "pt") as stored:
        student.load_state_dict({k: stored.get_tensor(k) for k in stored.keys()})  # noqa: SIM118
        return str(stored.metadata()["how"])


def _is_complete(file: Path) -> bool:
    try:
        with safe_open(file, "pt") as stored:
            return "how" in (stored.metadata() or {})
    except (OSError, SafetensorError):
        return False


def _project(student: SRNet, arch: Arch, teacher: SRNet, lr_NCHW: Tensor) -> str:
    if not arch.can_project:  # a family of the user's own
        log.warning("init: %s has no projection: the student inherits", arch.name)
        return "inherit"
    begun = perf_counter()
    arch.project(student.eval(), teacher.eval(), lr_NCHW)
    message = "starts as its teacher's projection, fitted in %.1f s; peak memory so far %.1f GiB"
    log.info(message, perf_counter() - begun, (memory.peak_bytes() or 0) / 2**30)
    return "project"


def _copy_checkpoint(student: SRNet, path: Path) -> None:
    student.load_state_dict(_read_weights(student, path))


def _read_weights(student: SRNet, path: Path) -> dict[str, Tensor]:
    check_init(str(path))
    _, net = identify(path, role="student", options=TeacherOptions())
    weights = net.state_dict()
    for key, value in student.state_dict().items():
        if key not in weights or weights[key].shape != value.shape:
            found = tuple(weights[key].shape) if key in weights else "missing"
            raise UsageError(
                f"distill.init: {path}: {key} is {found}, the student's is {tuple(value.shape)}",
                hint="give a checkpoint of the student's own size",
            )
    return weights
