"""A step's forward and backward as CUDA graphs: launched one by one, the kernels of a small
student take less time than their launches.

Shapes: N batch, H W low-res size.
"""

from __future__ import annotations

import logging
import random
from collections import Counter
from collections.abc import Callable, Hashable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from mipkd.distill.batch import Batch
from mipkd.distill.forward import Step

log = logging.getLogger(__name__)

_LAUNCHED_FIRST = 3  # steps kernel by kernel: libraries choose their kernels in them
_MOST = 32  # recordings: three fair coins make eight, and as many again where a loss rests

Backward = Callable[[Batch], dict[str, Tensor]]
Record = Callable[[Batch], Backward]  # raises RuntimeError where it cannot


class Recorded:
    """Runs `backward` kernel by kernel at first, then replays recordings of it.

    There is one recording for each set of losses at work and each outcome of their tosses. Masks
    are drawn anew at each replay, from the generator of `step`, which the caller seeds. What
    Python decides by tossing coins within the step cannot be replayed: with such a loss at work
    steps go on kernel by kernel.

    Args:
        backward: leaves the gradients of a batch and gives the loss terms.
        step: whose chance it uses.
        record: makes a recording, which does the same and is valid until the next call.
    """

    def __init__(self, backward: Backward, step: Step, record: Record) -> None:
        self._backward, self._step, self._record = backward, step, record
        self._launched: Counter[Hashable] = Counter()
        self._refused: set[Hashable] = set()
        self.recordings: dict[Hashable, Backward] = {}

    def __call__(self, batch: Batch) -> dict[str, Tensor]:
        """The loss terms, valid until the next call; batches are of one size for ever."""
        key, active = self._step.key, tuple(self._step.active)
        if key not in self.recordings and self._ready(key, active):
            self._try(key, active, batch)
        if key in self.recordings:
            return self.recordings[key](batch)
        self._launched[active] += 1
        self._launched[key] += 1
        return self._backward(batch)

    def _ready(self, key: Hashable, active: Hashable) -> bool:
        """A key is launched once itself: cuDNN cannot measure kernels within a recording."""
        warm = self._launched[active] >= _LAUNCHED_FIRST and self._launched[key] >= 1
        return warm and active not in self._refused and len(self.recordings) < _MOST

    def _try(self, key: Hashable, active: Hashable, batch: Batch) -> None:
        coins, self._step.coins = self._step.coins, _NoCoins()
        try:
            self.recordings[key] = self._record(batch)
        except RuntimeError as error:
            why = str(error.__context__ or error).splitlines()[0]
            log.info("steps are launched kernel by kernel: %s", why)
            self._refused.add(active)
            self.recordings.clear()  # they draw from the generator that is spoiled
            self._step.renew()
        finally:
            self._step.coins = coins


class Graphs:
    """Records `backward` as CUDA graphs that share their memory.

    What one graph leaves, terms and gradients, lies where another one computes: it is valid
    until the next replay.
    """

    def __init__(self, backward: Backward, step: Step, trained: Iterable[nn.Parameter]) -> None:
        self._backward, self._step, self._trained = backward, step, list(trained)
        self._pool: Any = None
        self._batches: dict[Hashable, Batch] = {}  # that the graphs read

    def record(self, batch: Batch) -> Backward:
        """A recording of the step as it is drawn now; nothing is computed by it.

        Raises:
            RuntimeError: something in it cannot be recorded.
        """
        if self._pool is None:
            self._pool = torch.cuda.graph_pool_handle()
        graph, mine = torch.cuda.CUDAGraph(), self._kept(batch)
        graph.register_generator_state(self._step.generator)
        try:
            # A thread that reads patches ahead may call CUDA meanwhile; a recording that breaks
            # off does not leave its stream by itself.
            with (
                torch.cuda.stream(torch.cuda.current_stream()),
                torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"),
            ):
                terms = self._backward(mine)
        except RuntimeError:
            self._pool = None  # the next recording does not share what this one left
            raise
        gradients = [parameter.grad for parameter in self._trained]

        def replay(batch: Batch) -> dict[str, Tensor]:
            for kept, given in zip(mine.tensors(), batch.tensors(), strict=True):
                kept.copy_(given)
            graph.replay()
            # None of a parameter that these tosses leave out, whatever step came before.
            for parameter, gradient in zip(self._trained, gradients, strict=True):
                parameter.grad = gradient
            return terms

        return replay

    def _kept(self, batch: Batch) -> Batch:
        """A copy of the batch at an address of its own, one for all of these shapes."""
        shapes = tuple(tensor.shape for tensor in batch.tensors())
        if shapes not in self._batches:
            self._batches[shapes] = batch.copied()
        return self._batches[shapes]


class _NoCoins(random.Random):
    """Refuses to be tossed."""

    def random(self) -> float:
        raise RuntimeError("a loss decides by chance what to compute")

    def getrandbits(self, k: int, /) -> int:
        raise RuntimeError("a loss decides by chance what to compute")
