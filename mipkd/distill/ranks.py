"""The processes (ranks) of one training, started by torchrun: one a GPU, on one machine or many.

The first one alone runs the program. The others wait for its calls of functions that
`run_on_all` decorates, and make the same calls on their share of the batch.
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

# A waiting process waits while the first one measures. If the first one dies, its connection
# breaks, or torchrun ends them all.
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
        with self.explain_failure():
            dist.all_reduce(total)
        return total / self.count

    def any(self, value: bool) -> bool:
        """Whether it is true in any process."""
        if self.count == 1:
            return value
        flag = torch.tensor(int(value))
        with self.explain_failure():
            dist.all_reduce(flag, dist.ReduceOp.MAX, group=_control)
        return bool(flag)

    def check_same(self, step: int) -> None:
        """Check that all processes continue from the same step.

        Raises:
            StageError: they do not.
        """
        if self.any(step != int(self.broadcast(step))):
            raise StageError(
                f"distill: process {self.rank} is at step {step}, others are not",
                hint="--out must be a folder that all machines share",
            )

    def average_gradients(self, module: nn.Module) -> nn.Module:
        """The module, with its gradients averaged over the processes during backward."""
        if self.count == 1:
            return module
        # find_unused_parameters: the block mixer's tosses decide which heads a step uses.
        return DistributedDataParallel(module, broadcast_buffers=False, find_unused_parameters=True)

    @contextmanager
    def explain_failure(self) -> Iterator[None]:
        """Turn the failure of another process into a StageError."""
        try:
            yield
        except RuntimeError as error:
            if self.count == 1 or isinstance(error, torch.OutOfMemoryError):
                raise
            raise StageError(
                f"distill: process {self.rank} of {self.count} cannot go on: "
                f"{_first_sentence(error)}",
                hint="when another one ended, its own message says why; "
                "the same command goes on from the last save",
            ) from error

    def broadcast(self, value: Any) -> Any:
        """The first process's value."""
        if self.count == 1:
            return value
        box = [value]
        with self.explain_failure():
            dist.broadcast_object_list(box, src=0, group=_control)
        return box[0]


_current = Ranks()
_control: Any = None  # the group for messages; the only reference to it
_busy = False  # in a call of all processes: the others are not waiting for a message


def current() -> Ranks:
    """This process among those of its training; the only one without torchrun."""
    return _current


def local_rank() -> int:
    """The number of this process on its machine, and so of its GPU."""
    return int(os.environ.get("LOCAL_RANK", "0")) if _current.count > 1 else 0


def run_on_all(function: Callable[P, R]) -> Callable[P, R]:
    """Decorate a module's function: when the first process calls it, all processes do."""
    name = f"{function.__module__}:{function.__qualname__}"
    _shared[name] = function

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        global _busy
        _current.broadcast((name, args, kwargs))
        _busy = True
        result = function(*args, **kwargs)
        _busy = False
        return result

    return call


def serve() -> None:
    """Make the first process's calls with it until it ends.

    Raises:
        StageError: the first process ended without a message.
    """
    while True:
        message = _current.broadcast(None)
        if message is None:
            return
        name, args, kwargs = message
        importlib.import_module(name.split(":")[0])
        _shared[name](*args, **kwargs)


@contextmanager
def join_ranks() -> Iterator[Ranks]:
    """Join the processes that torchrun started; on exit the first one ends the others."""
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
                _current.broadcast(None)
            # A gloo thread that holds a message's tensor when Python ends aborts the process:
            # dropping the last reference to the group joins its threads.
            _control = None
            dist.destroy_process_group()
        _current = Ranks()


def _first_sentence(error: Exception) -> str:
    """The error's first sentence, without torch's source location."""
    line = (str(error).splitlines() or [type(error).__name__])[0]
    return re.sub(r"^\[\S+\] ", "", line).split(". ")[0]
