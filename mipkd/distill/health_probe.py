"""Whether the mixtures work as intended: figures taken at each validation on a few patches.

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
from mipkd.distill.compile import run_eager
from mipkd.distill.forward import StepForward
from mipkd.distill.ranks import Ranks
from mipkd.distill.train_step import Learner
from mipkd.losses.mixture_of_priors import Mixers

log = logging.getLogger(__name__)

PROBE_PATCHES = 4
_LEAST_TOSSES = 100  # a fair coin then leaves 0.3 to 0.7 once in 20,000 times


class HealthProbe:
    """Health figures of a training on the patches of `probe`; the teacher runs on them each time.

    It changes nothing of the training, whose weights stay bit-equal.
    """

    def __init__(self, learner: Learner, probe: Batch) -> None:
        self._learner, self._probe = learner, probe.to(learner.device)
        self._warned: set[str] = set()

    def measure(self) -> dict[str, float]:
        """The figures by name, of active losses only.

        reconstruction_error: mean absolute error of the teacher's features, encoded and decoded by
        the mixers, over their mean magnitude, at the worst position.
        teacher_share: share of the mixed path's parts that ran the teacher's blocks, since it was
        last measured.
        body_gradient_share/NAME: the norm of that loss's gradient on the student's blocks over the
        sum of all losses' norms.
        """
        forward = self._copy_forward()
        found = self._reconstruction(forward) | self._teacher_share()
        norms = self._body_gradients(forward)
        if len(norms) > 1 and (total := sum(norms.values())):
            found |= {f"body_gradient_share/{n}": norm / total for n, norm in norms.items()}
        return found

    def warn(self, figures: Mapping[str, float]) -> None:
        """Warn of bad figures, of each once in a training."""
        for name, value in figures.items():
            if (what := remark(name, value)) and name not in self._warned:
                self._warned.add(name)
                log.warning("step %d: %s", self._learner.step, what)

    def _copy_forward(self) -> StepForward:
        """The last step's losses on copies of all that a forward pass may change, in float32."""
        learner = self._learner
        nets = deepcopy(learner.student), deepcopy(learner.helpers)
        forward = learner.make_forward(*nets, autocast=None, ranks=Ranks())
        forward.prepare(max(0, learner.step - 1))
        return forward

    @torch.no_grad()
    def _reconstruction(self, forward: StepForward) -> dict[str, float]:
        active, teacher = forward.active, forward.teacher
        mixers = [h for n, h in forward.helpers.items() if n in active and isinstance(h, Mixers)]
        if not mixers or teacher is None:
            return {}
        with run_eager(self._learner.device):
            positions = self._learner.positions.teacher
            _, features_K = teacher.forward_with_taps(self._probe.lr_NCHW, positions)
            errors = [helper.reconstruction_error(features_K) for helper in mixers]
        return {"reconstruction_error": float(torch.stack(errors).max())}

    def _teacher_share(self) -> dict[str, float]:
        carried = self._learner.carried
        if (tosses := sum(carried.values())) < _LEAST_TOSSES:
            return {}
        share = carried["teacher"] / tosses
        carried["student"] = carried["teacher"] = 0
        return {"teacher_share": share}

    def _body_gradients(self, forward: StepForward) -> dict[str, float]:
        """The norm of each loss's gradient on the student's blocks."""
        body = [p for p in forward.student.blocks.parameters() if p.requires_grad]
        if not body:
            return {}
        with run_eager(self._learner.device):
            terms = forward.terms_by_loss(self._probe, (0, len(self._probe)))
            totals = {name: torch.stack(list(of.values())).sum() for name, of in terms.items()}
            return {name: _gradient_norm(total, body) for name, total in totals.items()}


def _gradient_norm(total: Tensor, body: list[nn.Parameter]) -> float:
    if not total.requires_grad:
        return 0.0
    gradients = torch.autograd.grad(total, body, retain_graph=True, allow_unused=True)
    found = [torch.linalg.vector_norm(g) for g in gradients if g is not None]
    return float(torch.linalg.vector_norm(torch.stack(found))) if found else 0.0
