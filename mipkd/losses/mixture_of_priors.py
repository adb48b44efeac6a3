"""MiPKD: features mixed in a latent space, and blocks of both nets assembled at random.

Paper: "Knowledge Distillation with Multi-granularity Mixture of Priors for Image
Super-Resolution", ICLR 2025, arXiv 2404.02573. What texts about the paper leave open (mask
ratio, latent space, chain or branches, normalisation) is a setting. Reconstruction and logits
are losses of their own (`pixel`, `logits`).

The latent space is by default that of the teacher's principal directions ("pca"). It is fixed, so
that no untrained auto-encoder blurs the mixture. "cnn" and "mlp" are the paper's learned ones.
"""

from __future__ import annotations

import random
from typing import ClassVar, Literal, cast

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from mipkd.archs.base import SRNet
from mipkd.losses import _block_mixer
from mipkd.losses._block_mixer import Mixer, run_branches, run_chain
from mipkd.losses._feature_mixer import FeatureMixer, Mixture, latent_width, mix
from mipkd.losses._features import Normalise, Units, feature_pairs
from mipkd.losses._principal import PrincipalDirections, choose_width
from mipkd.losses._principal_mixer import PrincipalMixer
from mipkd.losses.base import Loss, Pass, Positions, TeacherPass, Toss, l1

NAME = "mixture_of_priors"  # in messages and in `Pass.tosses`
_LEARNED = ("autoencoder_weight", "normalise")  # settings of learned auto-encoders


class MixtureOfPriors(Loss):
    """Feature Prior Mixer and Block Prior Mixer, for nets of any depth, width and family.

    A mixer of weight 0 is left out. `mixed_path` "branches" sends each mixture through the rest of
    one net, "chain" one stream through parts of both.
    """

    needs_features: ClassVar[bool] = True
    beside: ClassVar[tuple[str, ...]] = ("pixel", "logits")

    # The defaults: docs/decisions/0006-mipkd-settings.md.
    until: float = Field(0.5, gt=0, le=1)
    feature_weight: float = Field(0.2, ge=0)
    block_weight: float = Field(0.1, ge=0)
    mask_ratio: float = Field(0.5, ge=0, le=1)  # share of latent elements that are the student's
    student_share: float = Field(
        0.5, ge=0, le=1
    )  # probability that the student's blocks carry the stream on
    encoder: Literal["pca", "cnn", "mlp"] = "pca"
    latent_width: int | None = Field(None, ge=1)  # None: as many as needed ("pca"), or at most 64
    mixed_path: Literal["branches", "chain"] = "branches"
    autoencoder_weight: float = Field(1.0, ge=0)  # within the feature term; cnn and mlp only
    normalise: Normalise = "auto"  # cnn and mlp only

    @model_validator(mode="after")
    def _check_settings(self) -> MixtureOfPriors:
        if not (self.feature_weight or self.block_weight):
            raise ValueError("feature_weight or block_weight must be more than 0")
        if self.encoder == "pca" and (unused := self.model_fields_set.intersection(_LEARNED)):
            raise ValueError(f"{min(unused)} is a setting of encoder cnn and mlp alone")
        return self

    @property
    def reads(self) -> TeacherPass:
        """The latents if their directions are fixed, so that they can be cached."""
        return "latents" if self.encoder == "pca" else "features"

    @property
    def reads_width(self) -> int | None:
        return self.latent_width

    def helper(self, student: SRNet, teacher: SRNet | None, positions: Positions) -> Mixers:
        assert teacher is not None
        latent = self.latent_width or latent_width(teacher.width)
        mixers: list[Mixer] = []
        for _ in positions.student:
            if self.encoder == "pca":
                widest = min(latent, teacher.width)
                mixers.append(PrincipalMixer(student.width, teacher.width, widest))
            else:
                widths = student.width, teacher.width, latent
                mixers.append(FeatureMixer(*widths, encoder=self.encoder))
        return Mixers(mixers)

    def start(self, seen: Pass, helper: nn.Module | None) -> None:
        """Take the principal directions of the cached latents, or else of these features, and fit
        the student's encoders and decoders."""
        assert isinstance(helper, Mixers)
        if self.encoder != "pca":
            return
        found = feature_pairs(seen, NAME)
        principal = seen.principal or self._directions([theirs for _, theirs in found])
        for mixer, directions, features in zip(helper.each(), principal, found, strict=True):
            cast("PrincipalMixer", mixer).start(directions, *features)

    def _directions(self, teacher_K: list[Tensor]) -> tuple[PrincipalDirections, ...]:
        width = self.latent_width or choose_width(teacher_K)
        widest = min(width, teacher_K[0].shape[1])
        return tuple(PrincipalDirections.fit(features, widest) for features in teacher_K)

    def toss(self, coins: random.Random, positions: Positions) -> Toss:
        if not self.block_weight:
            return ()
        count = len(positions.student)
        return _block_mixer.toss(count, student_share=self.student_share, coins=coins)

    def restrict_to(self, teacher: SRNet) -> Loss | None:
        if teacher.in_parts or not self.block_weight or not teacher.blocks:
            return super().restrict_to(teacher)
        return self.model_copy(update={"block_weight": 0.0}) if self.feature_weight else None

    def __call__(self, seen: Pass, helper: nn.Module | None) -> dict[str, Tensor]:
        assert isinstance(helper, Mixers)
        mixtures = self._mixtures(seen, helper.each())
        terms = self._feature_terms(seen, helper, mixtures) if self.feature_weight else {}
        if self.block_weight:
            terms["block"] = self.block_weight * self._block_loss(seen, helper, mixtures)
        return {name: self.weight * term for name, term in terms.items()}

    def _mixtures(self, seen: Pass, mixers: list[Mixer]) -> list[Mixture]:
        cached = not seen.teacher_features
        return [
            mix(
                mixer.encode_student(mine),
                theirs if cached else mixer.encode_teacher(theirs),
                student_share=self.mask_ratio,
                generator=seen.generator,
                rows=seen.rows,
            )
            for mixer, (mine, theirs) in zip(mixers, feature_pairs(seen, NAME), strict=True)
        ]

    def _feature_terms(
        self, seen: Pass, helper: Mixers, mixtures: list[Mixture]
    ) -> dict[str, Tensor]:
        """The distance of the mixtures from the teacher, and the auto-encoders' own error."""
        if self.encoder == "pca":
            distance_K = [
                l1(mixture.mixed, mixture.teacher_NLHW) / cast("Tensor", mixer.magnitude)
                for mixer, mixture in zip(helper.each(), mixtures, strict=True)
            ]
            return {"feature": self.feature_weight * torch.stack(distance_K).mean()}
        mixed = [mixture.mixed for mixture in mixtures]
        feature_K = helper.distances(mixed, seen.teacher_features)
        unit_K = helper.unit(seen, feature_K, self.normalise, NAME)
        terms = {"feature": self.feature_weight * (feature_K / unit_K).mean()}
        if self.autoencoder_weight:
            restored_K = helper.distances([m.teacher_NLHW for m in mixtures], seen.teacher_features)
            weight = self.feature_weight * self.autoencoder_weight
            terms["autoencoder"] = weight * (restored_K / unit_K).mean()
        return terms

    def _block_loss(self, seen: Pass, helper: Mixers, mixtures: list[Mixture]) -> Tensor:
        """L1 of the mixed net's image, or the mean over the branches, against the teacher's."""
        assert seen.teacher_image is not None
        carriers = seen.tosses.get(NAME) or self.toss(seen.coins, seen.positions)
        if self.mixed_path == "chain":
            return l1(run_chain(seen, helper.each(), mixtures, carriers), seen.teacher_image)
        images = run_branches(seen, helper.each(), mixtures, carriers)
        return torch.stack([l1(image, seen.teacher_image) for image in images]).mean()


class Mixers(Units):
    """The mixers of all positions, and the running magnitude of the teacher's features."""

    mixers: nn.ModuleList

    def __init__(self, mixers: list[Mixer]) -> None:
        super().__init__(len(mixers))
        self.mixers = nn.ModuleList(mixers)

    def each(self) -> list[Mixer]:
        """The mixers of the positions, in order."""
        return cast("list[Mixer]", list(self.mixers))

    def distances(self, latents_K: list[Tensor], teacher_K: list[Tensor]) -> Tensor:
        """Mean absolute difference of the decoded latents from the teacher's features, (K,)."""
        triples = zip(self.each(), latents_K, teacher_K, strict=True)
        return torch.stack([l1(mixer.decode(z, "teacher"), f) for mixer, z, f in triples])

    def reconstruction_error(self, teacher_K: list[Tensor]) -> Tensor:
        """Mean absolute error of the teacher's features, encoded and decoded, over their mean
        magnitude, at the worst position."""
        latents = zip(self.each(), teacher_K, strict=True)
        error_K = self.distances([mixer.encode_teacher(f) for mixer, f in latents], teacher_K)
        return (
            error_K / torch.stack([f.float().abs().mean().clamp(min=1e-12) for f in teacher_K])
        ).max()


LOSS = MixtureOfPriors
