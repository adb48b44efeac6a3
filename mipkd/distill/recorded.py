"""A step's forward and backward as one CUDA graph: launched one by one, the kernels of a small
student take less time than their launches.

Shapes: N batch, H W low-res size.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Callable

import torch
from torch import Tensor

from mipkd.distill.batch import Batch
from mipkd.distill.step import Step

log = logging.getLogger(__name__)

_LAUNCHED_FIRST = 3  # steps kernel by kernel: libraries choose their kernels in them

Backward = Callable[[Batch], dict[str, Tensor]]


class Recorded:
    """Runs `backward` kernel by kernel at first, then replays a recording of it.

    Masks are drawn anew at each replay, from the generator of `step`, which the caller seeds. What
    Python decides by tossing coins cannot be replayed: such steps go on kernel by kernel.

    Args:
        backward: leaves the gradients of a batch and gives the loss terms.
        step: whose chance it uses.
    """

    def __init__(self, backward: Backward, step: Step) -> None:
        self._backward, self._step = backward, step
        self._calls = 0
        self._graph: torch.cuda.CUDAGraph | None = None
        self._batch: Batch | None = None
        self._terms: dict[str, Tensor] = {}

    def __call__(self, batch: Batch) -> dict[str, Tensor]:
        """The loss terms, valid until the next call; batches are of one size for ever."""
        self._calls += 1
        if self._calls == _LAUNCHED_FIRST + 1:
            self._record(batch)
        if self._graph is None or self._batch is None:
            return self._backward(batch)
        for mine, given in zip(self._batch.tensors(), batch.tensors(), strict=True):
            mine.copy_(given)
        self._graph.replay()
        return self._terms

    def _record(self, batch: Batch) -> None:
        """Nothing is computed by it."""
        graph, coins = torch.cuda.CUDAGraph(), self._step.coins
        graph.register_generator_state(self._step.generator)
        self._batch = batch.copied()
        self._step.coins = _NoCoins()
        try:
            # A thread that reads patches ahead may call CUDA meanwhile; a recording that breaks
            # off does not leave its stream by itself.
            with (
                torch.cuda.stream(torch.cuda.current_stream()),
                torch.cuda.graph(graph, capture_error_mode="thread_local"),
            ):
                self._terms = self._backward(self._batch)
            self._graph = graph
        except RuntimeError as error:
            why = str(error.__context__ or error).splitlines()[0]
            log.info("steps are launched kernel by kernel: %s", why)
            self._batch, self._terms = None, {}
            self._step.renew()
        finally:
            self._step.coins = coins


class _NoCoins(random.Random):
    """Refuses to be tossed."""

    def random(self) -> float:
        raise RuntimeError("a loss decides by chance what to compute")

    def getrandbits(self, k: int, /) -> int:
        raise RuntimeError("a loss decides by chance what to compute")
