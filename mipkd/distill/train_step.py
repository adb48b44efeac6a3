"""One step of training: the nets, their helpers, the optimiser and the EMA.

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
from mipkd.core.errors import StageError, UsageError
from mipkd.distill import ranks
from mipkd.distill.batch import Batch, Sampler
from mipkd.distill.compatibility import compared
from mipkd.distill.compile import eagerly, fuse, pays
from mipkd.distill.cuda_graph import Backward, Graphs, Recorded
from mipkd.distill.forward import Step
from mipkd.distill.hardware import autocast_type, find_device
from mipkd.distill.ranks import Ranks
from mipkd.distill.settings import DistillConfig
from mipkd.distill.supported_losses import suited
from mipkd.losses._principal import PrincipalDirections
from mipkd.losses.base import Carrier, Loss

log = logging.getLogger(__name__)

_START_PATCHES = 32  # that helpers start from


class Learner:
    """A student on its way: `advance` is one step, `state_dict` is all that the next one needs.

    Args:
        principal: the directions of the teacher's features that a sampler's latents are in, one
            for each position; without any they are found in the first patches.
    """

    def __init__(
        self,
        config: DistillConfig,
        student: SRNet,
        teacher: SRNet | None,
        *,
        principal: Sequence[PrincipalDirections] = (),
    ) -> None:
        self.config, self.step, self.rate = config, 0, 0.0
        self.carried: dict[Carrier, int] = {"student": 0, "teacher": 0}
        self.ranks = ranks.current()
        self.losses = suited(config, teacher)
        taught = any(loss.needs_teacher for loss in self.losses.values())
        self.teacher = teacher if taught else None
        check_fit(config, student, self.teacher)
        _check_shares(config, self.ranks)
        self.device = find_device(config.device)
        self.principal = tuple(directions.to(self.device) for directions in principal)
        self.autocast = autocast_type(config.precision, self.device)
        self.student = student
        self._place(student).train()
        if self.teacher is not None:
            self._place(self.teacher).eval().requires_grad_(False)
        self.averaged = deepcopy(student)
        self.averaged.eval().requires_grad_(False)
        self.positions = compared(config, self.losses.values(), student, self.teacher)
        with torch.random.fork_rng([]):
            torch.manual_seed(config.seed)
            helpers = {name: self._helper(loss) for name, loss in self.losses.items()}
        self.helpers = nn.ModuleDict({name: made for name, made in helpers.items() if made})
        self._place(self.helpers)
        if pays(config, self.device):
            fuse(*(net for net in (self.teacher, student) if net and net.in_parts), self.helpers)
        self.plain = Step(
            self.student,
            self.helpers,
            self.teacher,
            self.losses,
            self.positions,
            seed=config.seed,
            steps=config.steps,
            device=self.device,
            autocast=self.autocast,
            ranks=self.ranks,
        )
        self._next: tuple[int, Batch] | None = None
        self._started = False
        self._shared_step: nn.Module | None = None
        self._prepare()
        self._tell()

    def start(self, sampler: Sampler) -> None:
        """Give the helpers their first weights, from the first patches of all processes, where
        they do not have them already, and join the processes. `advance` does it for one alone."""
        if self._shared_step is not None:
            return
        starting = [n for n, x in self.losses.items() if type(x).start is not Loss.start]
        if starting and not self._started:
            batch = _first_patches(sampler).to(self.device)
            with torch.no_grad(), eagerly(self.device):
                seen = self.plain.seen(batch, (0, len(batch)))
                seen.principal = self.principal
                for name in starting:
                    self.losses[name].start(seen, self.helpers[name])
            if self.ranks.count > 1:  # gradients are shared, what was fitted here is not
                state = {name: value.cpu() for name, value in self.helpers.state_dict().items()}
                self.helpers.load_state_dict(self.ranks.from_first(state))
            self._place(self.helpers)
            self._prepare()
        self._started = True
        self._shared_step = self.ranks.wrapped(self.plain)

    def _prepare(self) -> None:
        """Make what has to know all weights that are trained."""
        self._groups = [list(self.student.parameters()), list(self.helpers.parameters())]
        trained = [p for group in self._groups for p in group]
        self._gradients: Backward = self._launched
        if self.config.cuda_graphs and self._can_record():
            graphs = Graphs(self._launched, self.plain, trained)
            self._gradients = Recorded(self._launched, self.plain, graphs.record)
        self.optimiser = torch.optim.Adam(trained, betas=self.config.betas, fused=True)

    def advance(self, sampler: Sampler) -> dict[str, float]:
        """One step of the optimiser; the loss terms, weighted.

        Raises:
            StageError: a term or a gradient is not finite, or the GPU's memory is too small; no
                weight of the student or its helpers has been changed.
        """
        self.start(sampler)
        batch = self._batch(sampler)
        try:
            with self.ranks.alive():
                self.plain.draw(self.step)
                terms = self._gradients(batch)
        except torch.OutOfMemoryError as error:
            raise self._too_large(batch) from error
        norms = self._clip()
        means = self.ranks.mean(torch.stack(list(terms.values())))
        figures = torch.stack([*means, *norms])
        self.rate = self.config.rate(self.step)
        for group in self.optimiser.param_groups:
            group["lr"] = self.rate
        # As of a gradient scaler: the fused optimiser leaves all weights as they are if it is 1.
        self.optimiser.found_inf = 1 - figures.isfinite().all().float()  # type: ignore[attr-defined]
        self.optimiser.step()
        self._average()
        if self.device.type == "cuda":
            self._next = self.step + 1, self._cut(sampler, self.step + 1)
        values = figures.tolist()  # a GPU is waited for once a step, when it has all its work
        names = [*terms, "gradient of the student", "gradient of the helpers"]
        self._check_finite(dict(zip(names, values, strict=False)))
        self._count()
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
        """Go back to where `state_dict` was taken."""
        for name in ("student", "averaged", "helpers"):
            getattr(self, name).load_state_dict(state[name])
        self._started, self._shared_step = True, None
        self._prepare()
        self.optimiser.load_state_dict(state["optimiser"])
        self.step, self.carried = state["step"], dict(state["carried"])

    def _place(self, net: nn.Module) -> nn.Module:
        layout = torch.channels_last if self.config.channels_last else torch.contiguous_format
        return net.to(self.device, memory_format=layout)  # type: ignore[call-overload,no-any-return]

    def _helper(self, loss: Loss) -> nn.Module | None:
        return loss.helper(self.student, self.teacher, self.positions)

    def _can_record(self) -> bool:
        """Foreign nets may copy to the GPU in their forward, which no recording bears."""
        ours = all(net.in_parts for net in (self.student, self.teacher) if net is not None)
        alone = self.ranks.count == 1 and self.config.accumulate == 1
        return self.device.type == "cuda" and alone and ours

    def _batch(self, sampler: Sampler) -> Batch:
        if self._next is not None and self._next[0] == self.step:
            return self._next[1]
        return self._cut(sampler, self.step)

    def _cut(self, sampler: Sampler, step: int) -> Batch:
        return sampler.batch(step, self.plain.wants_at(step)).to(self.device)

    def _launched(self, batch: Batch) -> dict[str, Tensor]:
        assert self._shared_step is not None
        with _fastest_kernels():
            return self._backward(batch, self._shared_step)

    def _backward(self, batch: Batch, step: nn.Module) -> dict[str, Tensor]:
        """Leave the gradients of these images' mean loss; the terms."""
        self.optimiser.zero_grad(set_to_none=True)
        parts = batch.parts(self.config.accumulate)
        first, whole = self.ranks.rank * len(batch), self.ranks.count * len(batch)
        terms: dict[str, Tensor] = {}
        for number, part in enumerate(parts):
            if number:
                self.plain.draw(self.step)  # for all rows again
            # Gradients are averaged over the processes once, with the last part.
            with nullcontext() if number + 1 == len(parts) else _unshared(step):
                found = step(part, (first, whole))
                total = torch.stack(list(found.values())).sum() / len(parts)
                total.backward()  # type: ignore[no-untyped-call]
            for name, term in found.items():
                terms[name] = terms.get(name, 0) + term.detach() / len(parts)
            first += len(part)
        return terms

    def _too_large(self, batch: Batch) -> StageError:
        """What to say when memory ran out: the batch and the patch that were tried and fit."""
        size, fits = len(batch), 0
        while size > 1 and not fits:
            size //= 2
            # What is compiled would be compiled anew for each size.
            with suppress(torch.OutOfMemoryError), eagerly(self.device):
                self._backward(batch.rows(slice(size)), self.plain)
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

    def _clip(self) -> list[Tensor]:
        """The gradients' norms. The helpers' are clipped apart: theirs are often the larger, and
        would otherwise shrink the student's."""
        most = self.config.clip_grad_norm or math.inf
        groups = [group for group in self._groups if any(p.grad is not None for p in group)]
        return [nn.utils.clip_grad_norm_(group, most) for group in groups]

    def _count(self) -> None:
        """Note who carried the mixed streams of this step, where blocks were left to run."""
        end = len(self.teacher.blocks) - 1 if self.teacher is not None else 0
        for toss in self.plain.tosses.values():
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
    def _average(self) -> None:
        average = get_ema_multi_avg_fn(self.config.ema_at(self.step))  # type: ignore[no-untyped-call]
        mean, now = list(self.averaged.parameters()), list(self.student.parameters())
        average(mean, now, 0)
        for kept, buffer in zip(self.averaged.buffers(), self.student.buffers(), strict=True):
            kept.copy_(buffer)

    def _tell(self) -> None:
        weight = {None: "float32", torch.bfloat16: "bfloat16"}[self.autocast]
        log.info(
            "trains %.3gM parameters (and %.3gM of helpers) for %d steps on %s in %s; losses: %s",
            params(self.student) / 1e6,
            params(self.helpers) / 1e6,
            self.config.steps,
            self.device,
            weight,
            ", ".join(self.losses),
        )


@contextmanager
def _fastest_kernels() -> Iterator[None]:
    """Let cuDNN measure its kernels: for patches, which are of one size; images are not."""
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = True
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before


def _first_patches(sampler: Sampler) -> Batch:
    """Those of the first steps, without what is kept of the teacher."""
    batches = [sampler.batch(0)]
    while sum(map(len, batches)) < _START_PATCHES:
        batches.append(sampler.batch(len(batches)))
    lr_NCHW, hr_NCHW = (
        torch.cat(parts)
        for parts in zip(*((batch.lr_NCHW, batch.hr_NCHW) for batch in batches), strict=True)
    )
    return Batch(lr_NCHW, hr_NCHW).rows(slice(_START_PATCHES))


def _unshared(step: nn.Module) -> AbstractContextManager[None]:
    if not isinstance(step, DistributedDataParallel):
        return nullcontext()
    return step.no_sync()


def check_fit(config: DistillConfig, student: SRNet, teacher: SRNet | None) -> None:
    """Refuse nets and patches that do not fit; the nets may be on the meta device.

    Raises:
        UsageError: two scales, or a patch that a net cannot take.
    """
    if teacher is not None and teacher.scale != student.scale:
        raise UsageError(
            f"distill: the student's scale is x{student.scale}, the teacher's x{teacher.scale}",
            hint="they must be of one scale",
        )
    for net in (student, teacher):
        if net is not None and (config.patch % net.multiple or config.patch < net.least):
            at_least = f" of at least {net.least}" if net.least > net.multiple else ""
            raise UsageError(
                f"distill.patch: {config.patch} is not a multiple of {net.multiple}{at_least}, "
                f"as {type(net).__name__} needs"
            )


def _check_shares(config: DistillConfig, ranks: Ranks) -> None:
    parts = ranks.count * config.accumulate
    if config.batch % parts:
        raise UsageError(
            f"distill.batch: {config.batch} cannot be shared by {ranks.count} processes in "
            f"{config.accumulate} parts each",
            hint=f"--set distill.batch={-(-config.batch // parts) * parts}",
        )
