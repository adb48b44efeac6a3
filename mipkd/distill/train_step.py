"""One training step: the nets, their helpers, the optimiser and the EMA.

Shapes: N batch, C channels, H W low-res size. Images: float32 in [0, 1], RGB.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import get_ema_multi_avg_fn

from mipkd.archs.base import SRNet, params
from mipkd.core.errors import StageError
from mipkd.distill import ranks
from mipkd.distill.batch import Batch, Sampler
from mipkd.distill.compatibility import check_batch, check_nets, resolve_positions
from mipkd.distill.compile import compile_blocks, run_eager, should_compile
from mipkd.distill.cuda_graph import Backward, GraphRecorder, ReplayedBackward
from mipkd.distill.forward import Objective, StepForward
from mipkd.distill.hardware import autocast_type, find_device
from mipkd.distill.ranks import Ranks
from mipkd.distill.settings import DistillConfig
from mipkd.distill.supported_losses import build_supported_losses, list_truth_terms
from mipkd.losses._principal import PrincipalDirections
from mipkd.losses.base import Carrier, Loss

log = logging.getLogger(__name__)

_START_PATCHES = 32  # that helpers get their first weights from


class Learner:
    """A student in training: `advance` is one step, `state_dict` all that the next one needs.

    Args:
        principal: the directions of the latents in a sampler's cache, one for each position;
            without them they are fitted to the first patches.
        truth: whether the sampler's batches have HR images; without them losses that need one are
            left out.
    """

    def __init__(
        self,
        config: DistillConfig,
        student: SRNet,
        teacher: SRNet | None,
        *,
        principal: Sequence[PrincipalDirections] = (),
        truth: bool = True,
    ) -> None:
        self.config, self.step, self.rate = config, 0, 0.0
        self.carried: dict[Carrier, int] = {"student": 0, "teacher": 0}
        self.ranks = ranks.current()
        self.losses = build_supported_losses(config, teacher, truth=truth)
        self.teacher = teacher if any(x.needs_teacher for x in self.losses.values()) else None
        check_nets(config, student, self.teacher)
        check_batch(config, self.ranks.count)
        self.device = find_device(config.device)
        self.principal = tuple(directions.to(self.device) for directions in principal)
        self.autocast = autocast_type(config.precision, self.device)
        self.student = student
        self._place(student).train()
        if self.teacher is not None:
            self._place(self.teacher, self.teacher.channels_last).eval().requires_grad_(False)
        self.averaged = deepcopy(student)
        self.averaged.eval().requires_grad_(False)
        self.positions = resolve_positions(config, self.losses.values(), student, self.teacher)
        self.helpers = self._make_helpers()
        if should_compile(config, self.device):
            ours = [net for net in (self.teacher, student) if net and net.in_parts]
            compile_blocks(*ours, self.helpers)
        self.forward = self.make_forward(student, self.helpers, self.autocast, self.ranks)
        self._next: tuple[int, Batch] | None = None
        self._started = False
        self._shared_forward: nn.Module | None = None
        self._set_up_optimiser()
        self._log_start()
        if not truth:
            off = ", ".join(list_truth_terms(config)) or "nothing"
            log.info("LR frames without truth; terms of losses that read it are off: %s", off)

    def _make_helpers(self) -> nn.ModuleDict:
        with torch.random.fork_rng([]):
            torch.manual_seed(self.config.seed)
            helpers = {
                name: loss.helper(self.student, self.teacher, self.positions)
                for name, loss in self.losses.items()
            }
        modules = nn.ModuleDict({name: helper for name, helper in helpers.items() if helper})
        self._place(modules)
        return modules

    def make_forward(
        self,
        student: SRNet,
        helpers: nn.ModuleDict,
        autocast: torch.dtype | None,
        ranks: Ranks,
    ) -> StepForward:
        """The forward pass of this training's losses for these modules."""
        objective = Objective(self.losses, self.positions, self.config.steps, self.config.seed)
        return StepForward(
            objective, student, self.teacher, helpers, autocast=autocast, ranks=ranks
        )

    def start(self, sampler: Sampler) -> None:
        """Fit helpers without weights to the first patches and connect the processes.

        `sampler` gives the patches of all processes. A single process may leave it to `advance`.

        Raises:
            StageError: the processes are at different steps.
        """
        if self._shared_forward is not None:
            return
        self.ranks.check_same(self.step)
        starting = [n for n, x in self.losses.items() if type(x).start is not Loss.start]
        if starting and not self._started:
            batch = _first_patches(sampler).to(self.device)
            with torch.no_grad(), run_eager(self.device):
                seen = self.forward.run_nets(batch, (0, len(batch)))
                seen.principal = self.principal
                for name in starting:
                    self.losses[name].start(seen, self.helpers[name])
            if self.ranks.count > 1:  # gradients are averaged, fitted weights are not
                state = {name: value.cpu() for name, value in self.helpers.state_dict().items()}
                self.helpers.load_state_dict(self.ranks.broadcast(state))
            self._place(self.helpers)
            self._set_up_optimiser()
        self._started = True
        self._shared_forward = self.ranks.average_gradients(self.forward)

    def _set_up_optimiser(self) -> None:
        """Collect the trained weights; again whenever helpers have new ones."""
        self._groups = [list(self.student.parameters()), list(self.helpers.parameters())]
        trained = [p for group in self._groups for p in group]
        self._gradients: Backward = self._run_kernels
        if self.config.cuda_graphs and self._can_record():
            recorder = GraphRecorder(self._run_kernels, self.forward, trained)
            self._gradients = ReplayedBackward(self._run_kernels, self.forward, recorder.record)
        self.optimiser = torch.optim.Adam(trained, betas=self.config.betas, fused=True)

    def advance(self, sampler: Sampler) -> dict[str, float]:
        """One step of the optimiser; the loss terms, weighted.

        Raises:
            StageError: a term or a gradient is not finite, or the GPU's memory is too small; no
                weight of the student or its helpers has changed.
        """
        self.start(sampler)
        batch = self._next_batch(sampler)
        try:
            with self.ranks.explain_failure():
                self.forward.prepare(self.step)
                terms = self._gradients(batch)
        except torch.OutOfMemoryError as error:
            raise self._explain_memory(batch) from error
        norms = self._clip_gradients()
        means = self.ranks.mean(torch.stack(list(terms.values())))
        figures = torch.stack([*means, *norms])
        self.rate = self.config.rate(self.step)
        for group in self.optimiser.param_groups:
            group["lr"] = self.rate
        # As from a gradient scaler: at 1 the fused optimiser changes no weight.
        self.optimiser.found_inf = 1 - figures.isfinite().all().float()  # type: ignore[attr-defined]
        self.optimiser.step()
        self._update_average()
        if self.device.type == "cuda":
            self._next = self.step + 1, self._read_batch(sampler, self.step + 1)
        values = figures.tolist()  # waits for the GPU, once a step
        names = [*terms, "gradient of the student", "gradient of the helpers"]
        self._check_finite(dict(zip(names, values, strict=False)))
        self._count_carriers()
        self.step += 1
        return dict(zip(terms, values, strict=False))

    def state_dict(self) -> dict[str, Any]:
        """All that changes from step to step."""
        return {
            "step": self.step,
            "student": self.student.state_dict(),
            "averaged": self.averaged.state_dict(),
            "helpers": self.helpers.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "carried": dict(self.carried),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` gave."""
        for name in ("student", "averaged", "helpers"):
            getattr(self, name).load_state_dict(state[name])
        self._started, self._shared_forward = True, None
        self._set_up_optimiser()
        self.optimiser.load_state_dict(state["optimiser"])
        self.step, self.carried = state["step"], dict(state["carried"])

    def _place(self, net: nn.Module, channels_last: bool = True) -> nn.Module:
        last = self.config.channels_last and channels_last
        layout = torch.channels_last if last else torch.contiguous_format
        return net.to(self.device, memory_format=layout)  # type: ignore[call-overload,no-any-return]

    def _can_record(self) -> bool:
        """Not with foreign nets: their forward may copy to the GPU, which cannot be recorded."""
        ours = all(net.in_parts for net in (self.student, self.teacher) if net is not None)
        alone = self.ranks.count == 1 and self.config.accumulate == 1
        return self.device.type == "cuda" and alone and ours

    def _next_batch(self, sampler: Sampler) -> Batch:
        if self._next is not None and self._next[0] == self.step:
            return self._next[1]
        return self._read_batch(sampler, self.step)

    def _read_batch(self, sampler: Sampler, step: int) -> Batch:
        return sampler.batch(step, self.forward.objective.wants_at(step)).to(self.device)

    def _run_kernels(self, batch: Batch) -> dict[str, Tensor]:
        assert self._shared_forward is not None
        with _benchmark_kernels():
            return self._backward(batch, self._shared_forward)

    def _backward(self, batch: Batch, forward: nn.Module) -> dict[str, Tensor]:
        """The loss terms; sets the gradients of their mean over the batch."""
        self.optimiser.zero_grad(set_to_none=True)
        parts = batch.split(self.config.accumulate)
        first, whole = self.ranks.rank * len(batch), self.ranks.count * len(batch)
        terms: dict[str, Tensor] = {}
        for number, part in enumerate(parts):
            if number:
                self.forward.prepare(self.step)  # the same random numbers for all rows
            # Processes average their gradients once, with the last part.
            with nullcontext() if number + 1 == len(parts) else _skip_averaging(forward):
                found = forward(part, (first, whole))
                total = torch.stack(list(found.values())).sum() / len(parts)
                total.backward()  # type: ignore[no-untyped-call]
            for name, term in found.items():
                terms[name] = terms.get(name, 0) + term.detach() / len(parts)
            first += len(part)
        return terms

    def _explain_memory(self, batch: Batch) -> StageError:
        """The error for a full memory, with a batch and a patch that fit, found by trying."""
        size, fits = len(batch), 0
        while size > 1 and not fits:
            size //= 2
            # Eager: compiled blocks would be compiled again for each size.
            with suppress(torch.OutOfMemoryError), run_eager(self.device):
                self._backward(batch.select(slice(size)), self.forward)
                fits = size
        self.optimiser.zero_grad(set_to_none=True)
        hint = "lower distill.patch, or take a smaller teacher or student"
        if fits:
            step = 8 * self.student.multiple
            side = int(self.config.patch * math.sqrt(fits / len(batch))) // step * step
            hint = f"this fits: --set distill.batch={fits * self.ranks.count}"
            hint += f", or about --set distill.patch={side}" if side else ""
            parts = self.config.accumulate * -(-len(batch) // fits)
            hint += f"; or the same batch in parts: --set distill.accumulate={parts}"
        tried = f"a batch of {len(batch)} patches of {self.config.patch}x{self.config.patch}"
        return StageError(
            f"distill: {tried} is too large for the memory of {self.device}", hint=hint
        )

    def _clip_gradients(self) -> list[Tensor]:
        """The norms of the gradients of student and helpers. They are clipped separately: the
        helpers' are often larger and would shrink the student's."""
        most = self.config.clip_grad_norm or math.inf
        groups = [group for group in self._groups if any(p.grad is not None for p in group)]
        return [nn.utils.clip_grad_norm_(group, most) for group in groups]

    def _count_carriers(self) -> None:
        """Count which nets carried this step's mixed streams through blocks."""
        end = len(self.teacher.blocks) - 1 if self.teacher is not None else 0
        for toss in self.forward.tosses.values():
            for place, carrier in zip(self.positions.teacher, toss, strict=False):
                self.carried[carrier] += place < end

    def _check_finite(self, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            if not math.isfinite(value):
                raise StageError(
                    f"distill: step {self.step + 1}: {name} is {value}",
                    hint="lower the rate (--set distill.lr=...) or --set distill.precision=fp32; "
                    "the last good checkpoint is kept",
                )

    @torch.no_grad()
    def _update_average(self) -> None:
        average = get_ema_multi_avg_fn(self.config.ema_at(self.step))  # type: ignore[no-untyped-call]
        mean, now = list(self.averaged.parameters()), list(self.student.parameters())
        average(mean, now, 0)
        for copy, buffer in zip(self.averaged.buffers(), self.student.buffers(), strict=True):
            copy.copy_(buffer)

    def _log_start(self) -> None:
        precision = {None: "float32", torch.bfloat16: "bfloat16"}[self.autocast]
        log.info(
            "trains %.3gM parameters (and %.3gM of helpers) for %d steps on %s in %s; losses: %s",
            params(self.student) / 1e6,
            params(self.helpers) / 1e6,
            self.config.steps,
            self.device,
            precision,
            ", ".join(self.losses),
        )


@contextmanager
def _benchmark_kernels() -> Iterator[None]:
    """Let cuDNN benchmark its kernels: patches have one size, unlike images."""
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = True
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before


def _first_patches(sampler: Sampler) -> Batch:
    """The patches of the first steps, without cached outputs of the teacher."""
    batches = [sampler.batch(0)]
    while sum(map(len, batches)) < _START_PATCHES:
        batches.append(sampler.batch(len(batches)))
    truths = [batch.hr_NCHW for batch in batches if batch.hr_NCHW is not None]
    hr_NCHW = torch.cat(truths) if truths else None
    whole = Batch(torch.cat([batch.lr_NCHW for batch in batches]), hr_NCHW)
    return whole.select(slice(_START_PATCHES))


def _skip_averaging(forward: nn.Module) -> AbstractContextManager[None]:
    return forward.no_sync() if isinstance(forward, DistributedDataParallel) else nullcontext()
