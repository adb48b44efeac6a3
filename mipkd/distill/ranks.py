"""The processes of one training, started by torchrun: one a GPU, on one machine or on many.

The first one alone runs the program. The others wait for what it does `together` with them, and
do it on their share of the batch.
"""

from __future__ import annotations

import functools
import importlib
import logging
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, ParamSpec, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from mipkd.core.errors import StageError

log = logging.getLogger(__name__)
P = ParamSpec("P")
R = TypeVar("R")

# A process that waits for the next training waits as long as the first one measures; that the
# first one died is told by its connection, or by torchrun, which then ends them all.
_PATIENCE = timedelta(days=30)
_shared: dict[str, Callable[..., Any]] = {}


@dataclass(frozen=True)
class Ranks:
    """This process among those of a training."""

    rank: int = 0
    count: int = 1

    def mean(self, values: Tensor) -> Tensor:
        """The mean over all processes."""
        if self.count == 1:
            return values
        total = values.detach().clone()
        with self.alive():
            dist.all_reduce(total)
        return total / self.count

    def any(self, asked: bool) -> bool:
        """Whether it holds in any process."""
        if self.count == 1:
            return asked
        flag = torch.tensor(int(asked))
        with self.alive():
            dist.all_reduce(flag, dist.ReduceOp.MAX, group=_control)
        return bool(flag)

    def agree(self, step: int) -> None:
        """Make sure that all go on from the same step.

        Raises:
            StageError: they do not.
        """
        if self.any(step != int(self.from_first(step))):
            raise StageError(
                f"distill: process {self.rank} is at step {step}, others are not",
                hint="--out must be a folder that all machines share",
            )

    def wrapped(self, module: nn.Module) -> nn.Module:
        """The module with gradients averaged over the processes while they are computed."""
        if self.count == 1:
            return module
        # A toss of the block mixer decides which heads a step uses.
        return DistributedDataParallel(module, broadcast_buffers=False, find_unused_parameters=True)

    @contextmanager
    def alive(self) -> Iterator[None]:
        """Turn the failure of a process that this one works with into a StageError."""
        try:
            yield
        except RuntimeError as error:
            if self.count == 1 or isinstance(error, torch.OutOfMemoryError):
                raise
            raise StageError(
                f"distill: process {self.rank} of {self.count} cannot go on: {_why(error)}",
                hint="when another one ended, its own message says why; "
                "the same command goes on from the last save",
            ) from error

    def from_first(self, value: Any) -> Any:
        """The first process's value."""
        if self.count == 1:
            return value
        box = [value]
        with self.alive():
            dist.broadcast_object_list(box, src=0, group=_control)
        return box[0]


_current = Ranks()
_control: Any = None  # the group for what is not on a GPU; here alone, so that leaving frees it
_busy = False  # in something done together: the others are not waiting for a message


def current() -> Ranks:
    """This process among those of its training; the only one where torchrun did not start it."""
    return _current


def local() -> int:
    """The number of this process on its machine, and so of its GPU."""
    return int(os.environ.get("LOCAL_RANK", "0")) if _current.count > 1 else 0


def together(function: Callable[P, R]) -> Callable[P, R]:
    """Let every process call the function when the first one does; for a module's functions."""
    name = f"{function.__module__}:{function.__qualname__}"
    _shared[name] = function

    @functools.wraps(function)
    def called(*args: P.args, **kwargs: P.kwargs) -> R:
        global _busy
        _current.from_first((name, args, kwargs))
        _busy = True
        result = function(*args, **kwargs)
        _busy = False
        return result

    return called


def serve() -> None:
    """Do with the first process what it does together with others, until it ends.

    Raises:
        StageError: the first process ended without a word.
    """
    while True:
        asked = _current.from_first(None)
        if asked is None:
            return
        name, args, kwargs = asked
        importlib.import_module(name.split(":")[0])
        _shared[name](*args, **kwargs)


@contextmanager
def joined() -> Iterator[Ranks]:
    """Join the processes that torchrun started; on leaving, the first lets the others go."""
    global _current, _control
    cuda = torch.cuda.is_available() and dist.is_nccl_available()
    dist.init_process_group("cpu:gloo,cuda:nccl" if cuda else "gloo")
    _control = dist.new_group(backend="gloo", timeout=_PATIENCE)
    _current = Ranks(dist.get_rank(), dist.get_world_size())
    try:
        yield _current
    finally:
        if not _busy:
            if _current.rank == 0:
                _current.from_first(None)
            # A thread of gloo that still holds a message's tensor when Python ends aborts the
            # process: the group's threads are joined when its last reference goes.
            _control = None
            dist.destroy_process_group()
        _current = Ranks()


def _why(error: Exception) -> str:
    """The first sentence, without the place in torch's own source."""
    line = (str(error).splitlines() or [type(error).__name__])[0]
    return re.sub(r"^\[\S+\] ", "", line).split(". ")[0]
