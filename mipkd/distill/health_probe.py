"""Whether distillation does what its name says: measured at each validation, on a small probe.

Shapes: N batch, C channels, H W low-res size.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from copy import deepcopy

import torch
from torch import Tensor, nn

from mipkd.core.health import remark
from mipkd.distill.batch import Batch
from mipkd.distill.compile import eagerly
from mipkd.distill.forward import Step
from mipkd.distill.ranks import Ranks
from mipkd.distill.train_step import Learner
from mipkd.losses.mixture_of_priors import Mixers

log = logging.getLogger(__name__)

PROBE_PATCHES = 4
_LEAST_TOSSES = 100  # by which a fair coin is between 0.3 and 0.7 but for once in 20,000 times


class Health:
    """Figures of a training on the patches of `probe`, which the teacher sees anew each time.

    Nothing of the training changes by it, so that it goes on bit for bit as without.
    """

    def __init__(self, learner: Learner, probe: Batch) -> None:
        self._learner, self._probe = learner, probe.to(learner.device)
        self._warned: set[str] = set()

    def figures(self) -> dict[str, float]:
        """What can be told now; a loss that rests has no figures.

        reconstruction_error: mean absolute error of the teacher's features through the mixers'
        encoders and decoders over their mean magnitude, at the worst position.
        teacher_share: share of the parts of the mixed path that ran the teacher's blocks, since
        this was last told.
        body_gradient_share/NAME: of the gradients on the student's blocks, each loss's norm over
        the sum of all norms.
        """
        step = self._step()
        found = self._reconstruction(step) | self._teacher_share()
        norms = self._body_gradients(step)
        if len(norms) > 1 and (total := sum(norms.values())):
            found |= {f"body_gradient_share/{n}": norm / total for n, norm in norms.items()}
        return found

    def warn(self, figures: Mapping[str, float]) -> None:
        """Say what a bad figure means, once in a training."""
        for name, value in figures.items():
            if (what := remark(name, value)) and name not in self._warned:
                self._warned.add(name)
                log.warning("step %d: %s", self._learner.step, what)

    def _step(self) -> Step:
        """The last step's losses on copies of all that a forward may change, in float32."""
        learner = self._learner
        step = Step(
            deepcopy(learner.student),
            deepcopy(learner.helpers),
            learner.teacher,
            learner.losses,
            learner.positions,
            seed=learner.config.seed,
            steps=learner.config.steps,
            device=learner.device,
            autocast=None,
            ranks=Ranks(),
        )
        step.draw(max(0, learner.step - 1))
        return step

    @torch.no_grad()
    def _reconstruction(self, step: Step) -> dict[str, float]:
        mixers = [h for n, h in step.helpers.items() if n in step.active and isinstance(h, Mixers)]
        if not mixers or step.teacher is None:
            return {}
        with eagerly(self._learner.device):
            _, features_K = step.teacher.tapped(self._probe.lr_NCHW, step.positions.teacher)
            errors = [helper.reconstruction_error(features_K) for helper in mixers]
        return {"reconstruction_error": float(torch.stack(errors).max())}

    def _teacher_share(self) -> dict[str, float]:
        carried = self._learner.carried
        if (tosses := sum(carried.values())) < _LEAST_TOSSES:
            return {}
        share = carried["teacher"] / tosses
        carried["student"] = carried["teacher"] = 0
        return {"teacher_share": share}

    def _body_gradients(self, step: Step) -> dict[str, float]:
        """The norm of each loss's gradient on the student's blocks."""
        body = [p for p in step.student.blocks.parameters() if p.requires_grad]
        if not body:
            return {}
        with eagerly(self._learner.device):
            terms = step.by_loss(self._probe, (0, len(self._probe)))
            totals = {name: torch.stack(list(of.values())).sum() for name, of in terms.items()}
            return {name: _gradient_norm(total, body) for name, total in totals.items()}


def _gradient_norm(total: Tensor, body: list[nn.Parameter]) -> float:
    if not total.requires_grad:
        return 0.0
    gradients = torch.autograd.grad(total, body, retain_graph=True, allow_unused=True)
    found = [torch.linalg.vector_norm(g) for g in gradients if g is not None]
    return float(torch.linalg.vector_norm(torch.stack(found))) if found else 0.0
