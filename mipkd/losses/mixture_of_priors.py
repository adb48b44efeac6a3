"""MiPKD: the teacher's and the student's features mixed in a latent space, their blocks in a chain.

Paper: "Knowledge Distillation with Multi-granularity Mixture of Priors for Image
Super-Resolution", ICLR 2025, arXiv 2404.02573. What texts about the paper do not settle (mask
ratio, latent width, chain or branches, the auto-encoder's weight, normalisation) is a setting.
Reconstruction and logits are losses of their own (`pixel`, `logits`).
"""

from __future__ import annotations

from typing import ClassVar, Literal, cast

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from mipkd.archs.base import SRNet
from mipkd.losses._block_mixer import branches, chain, toss
from mipkd.losses._feature_mixer import Encoder, FeatureMixer, Latents, Mask, latent_width
from mipkd.losses._features import Normalise, Units, pairs
from mipkd.losses.base import Loss, Pass, Positions, l1

NAME = "mixture_of_priors"  # in messages


class MixtureOfPriors(Loss):
    """Feature Prior Mixer and Block Prior Mixer, for nets of any depth, width and family.

    A mixer of weight 0 is left out: the paper's ablations are settings. `mixed_path` "branches"
    sends each mixture through the whole rest of one net.
    """

    needs_features: ClassVar[bool] = True

    # Weights and shares: docs/decisions/0006-mipkd-settings.md, also for the paper's.
    feature_weight: float = Field(0.03, ge=0)
    autoencoder_weight: float = Field(1.0, ge=0)  # within the feature term
    block_weight: float = Field(3.0, ge=0)
    mask: Mask = "random"
    mask_ratio: float = Field(0.1, ge=0, le=1)  # share of latent elements that are the student's
    student_share: float = Field(1.0, ge=0, le=1)  # chance that the student carries the stream on
    encoder: Encoder = "cnn"
    shared_encoder: bool = False  # but for the first layer, where the nets' widths differ
    latent_width: int | None = Field(None, ge=1)  # None: the teacher's, or 64 when it is wider
    mixed_path: Literal["chain", "branches"] = "chain"
    normalise: Normalise = "auto"

    @model_validator(mode="after")
    def _one_mixer(self) -> MixtureOfPriors:
        if not (self.feature_weight or self.block_weight):
            raise ValueError("feature_weight or block_weight must be more than 0")
        return self

    def helper(self, student: SRNet, teacher: SRNet | None, positions: Positions) -> Mixers:
        assert teacher is not None
        latent = self.latent_width or latent_width(teacher.width)
        return Mixers(
            len(positions.student),
            student.width,
            teacher.width,
            latent,
            encoder=self.encoder,
            shared=self.shared_encoder,
        )

    def served_by(self, teacher: SRNet) -> Loss | None:
        if teacher.in_parts or not self.block_weight or not teacher.blocks:
            return super().served_by(teacher)
        return self.model_copy(update={"block_weight": 0.0}) if self.feature_weight else None

    def __call__(self, seen: Pass, helper: nn.Module | None) -> dict[str, Tensor]:
        assert isinstance(helper, Mixers)
        latents = [
            mixer.mix(
                s,
                t,
                student_share=self.mask_ratio,
                generator=seen.generator,
                rows=seen.rows,
                mask=self.mask,
            )
            for mixer, (s, t) in zip(helper.each(), pairs(seen, NAME), strict=True)
        ]
        terms = self._feature_terms(seen, helper, latents) if self.feature_weight else {}
        if self.block_weight:
            terms["block"] = self.block_weight * self._block_loss(seen, helper, latents)
        return {name: self.weight * term for name, term in terms.items()}

    def _feature_terms(
        self, seen: Pass, helper: Mixers, latents: list[Latents]
    ) -> dict[str, Tensor]:
        """L1 of the enhanced features, and of the teacher's own through the auto-encoder."""
        truths = seen.teacher_features
        feature_K = torch.stack(
            [l1(z.enhanced_NCHW, truth) for z, truth in zip(latents, truths, strict=True)]
        )
        unit_K = helper.unit(seen, feature_K, self.normalise, NAME)
        terms = {"feature": self.feature_weight * (feature_K / unit_K).mean()}
        if self.autoencoder_weight:
            restored_K = torch.stack(
                [
                    l1(mixer.restored(z), truth)
                    for mixer, z, truth in zip(helper.each(), latents, truths, strict=True)
                ]
            )
            weight = self.feature_weight * self.autoencoder_weight
            terms["autoencoder"] = weight * (restored_K / unit_K).mean()
        return terms

    def _block_loss(self, seen: Pass, helper: Mixers, latents: list[Latents]) -> Tensor:
        """L1 of the mixed net's image, or the mean over the branches', against the teacher's."""
        assert seen.teacher_image is not None
        mixers = helper.each()
        carriers = toss(len(mixers), student_share=self.student_share, coins=seen.coins)
        if self.mixed_path == "chain":
            return l1(chain(seen, mixers, latents, carriers), seen.teacher_image)
        images = branches(seen, mixers, latents, carriers)
        return torch.stack([l1(image, seen.teacher_image) for image in images]).mean()


class Mixers(Units):
    """A mixer for each position, and the running magnitude of the teacher's features."""

    mixers: nn.ModuleList

    def __init__(
        self,
        count: int,
        student_width: int,
        teacher_width: int,
        latent: int,
        *,
        encoder: Encoder = "cnn",
        shared: bool = False,
    ) -> None:
        super().__init__(count)
        self.mixers = nn.ModuleList(
            FeatureMixer(student_width, teacher_width, latent, encoder=encoder, shared=shared)
            for _ in range(count)
        )

    def each(self) -> list[FeatureMixer]:
        """The mixers of the positions, in order."""
        return cast("list[FeatureMixer]", list(self.mixers))


LOSS = MixtureOfPriors
