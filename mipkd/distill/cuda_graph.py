"""A step's forward and backward pass as CUDA graphs: the kernels of a small student take less time
than launching them one by one.

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
from mipkd.distill.forward import StepForward

log = logging.getLogger(__name__)

_WARM_UP = 3  # steps without a graph: libraries choose their kernels in them
_MOST = 32  # recordings: three fair coins make eight, as many again when a loss has ended

Backward = Callable[[Batch], dict[str, Tensor]]
Record = Callable[[Batch], Backward]  # raises RuntimeError where it cannot


class ReplayedBackward:
    """Runs `backward` kernel by kernel at first, then replays recordings of it.

    There is one recording for each set of active losses and each outcome of their tosses. Each
    replay draws new masks from the generator of `forward`, which the caller seeds. A loss that
    branches on coins within the step cannot be replayed: with it steps run kernel by kernel.

    Args:
        backward: sets the gradients of a batch and gives the loss terms.
        forward: the module that `backward` runs, for its random numbers.
        record: makes a recording, which does the same and is valid until the next call.
    """

    def __init__(self, backward: Backward, forward: StepForward, record: Record) -> None:
        self._backward, self._forward, self._record = backward, forward, record
        self._runs: Counter[Hashable] = Counter()
        self._refused: set[Hashable] = set()
        self.recordings: dict[Hashable, Backward] = {}

    def __call__(self, batch: Batch) -> dict[str, Tensor]:
        """The loss terms, valid until the next call; all batches have one size."""
        key, active = self._forward.key, tuple(self._forward.active)
        if key not in self.recordings and self._is_warm(key, active):
            self._try_recording(key, active, batch)
        if key in self.recordings:
            return self.recordings[key](batch)
        self._runs[active] += 1
        self._runs[key] += 1
        return self._backward(batch)

    def _is_warm(self, key: Hashable, active: Hashable) -> bool:
        """Whether to record now; a key runs once before: cuDNN cannot benchmark in a recording."""
        warm = self._runs[active] >= _WARM_UP and self._runs[key] >= 1
        return warm and active not in self._refused and len(self.recordings) < _MOST

    def _try_recording(self, key: Hashable, active: Hashable, batch: Batch) -> None:
        coins, self._forward.coins = self._forward.coins, _NoCoins()
        try:
            self.recordings[key] = self._record(batch)
        except RuntimeError as error:
            why = str(error.__context__ or error).splitlines()[0]
            log.info("steps run kernel by kernel: %s", why)
            self._refused.add(active)
            self.recordings.clear()  # they use the generator that the failure broke
            self._forward.renew_generator()
        finally:
            self._forward.coins = coins


class GraphRecorder:
    """Records `backward` as CUDA graphs in one memory pool.

    Another graph's replay overwrites the terms and gradients of one.
    """

    def __init__(
        self, backward: Backward, forward: StepForward, trained: Iterable[nn.Parameter]
    ) -> None:
        self._backward, self._forward, self._trained = backward, forward, list(trained)
        self._pool: Any = None
        self._batches: dict[Hashable, Batch] = {}  # the inputs of the graphs, by their shapes

    def record(self, batch: Batch) -> Backward:
        """A recording of the step that `forward` is prepared for; computes nothing.

        Raises:
            RuntimeError: something in it cannot be recorded.
        """
        if self._pool is None:
            self._pool = torch.cuda.graph_pool_handle()
        graph, inputs = torch.cuda.CUDAGraph(), self._static_inputs(batch)
        graph.register_generator_state(self._forward.generator)
        try:
            # thread_local: the prefetching thread may call CUDA meanwhile. The outer `stream`
            # restores the current stream after a failed recording.
            with (
                torch.cuda.stream(torch.cuda.current_stream()),
                torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"),
            ):
                terms = self._backward(inputs)
        except RuntimeError:
            self._pool = None  # the failed recording's memory cannot be used again
            raise
        gradients = [parameter.grad for parameter in self._trained]

        def replay(batch: Batch) -> dict[str, Tensor]:
            for static, tensor in zip(inputs.tensors(), batch.tensors(), strict=True):
                static.copy_(tensor)
            graph.replay()
            # None for parameters that these tosses do not use, whatever the step before set.
            for parameter, gradient in zip(self._trained, gradients, strict=True):
                parameter.grad = gradient
            return terms

        return replay

    def _static_inputs(self, batch: Batch) -> Batch:
        """A copy of the batch at a fixed address, one for all batches of these shapes."""
        shapes = tuple(tensor.shape for tensor in batch.tensors())
        if shapes not in self._batches:
            self._batches[shapes] = batch.clone()
        return self._batches[shapes]


class _NoCoins(random.Random):
    """Raises when used."""

    def random(self) -> float:
        raise RuntimeError("a loss branches on random numbers within the step")

    def getrandbits(self, k: int, /) -> int:
        return int(self.random())
