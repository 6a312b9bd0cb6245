"""Training of a cascade: a first stage on smaller images, and a second stage that reads the first one's features.

Zheng et al., "Hierarchical Masked Autoregressive Models with Low-Resolution Token Pivots" (Hi-MAR, arXiv 2505.20288, §3). Each
stage has its own masks and label drops. No gradient flows from the second stage to the first, and only a share of the images
is trained with features.
"""

from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

from mgen.generators import Cascade
from mgen.generators.losses import Masked, masked_tokens
from mgen.training.config import GeneratorObjectiveConfig
from mgen.training.generator_objective import GeneratorNoise, GeneratorObjectiveBase, RowNoise
from mgen.training.noise import Augmentation, stack
from mgen.training.objective import DEFAULT_OPTIONS, StepOptions, StepOutput
from mgen.training.token_source import Batch, TokenSource
from mgen.utils import seeds
from mgen.utils.errors import MgenError
from mgen.utils.modeling import Model


@dataclass(frozen=True, kw_only=True)
class FirstStageNoise(RowNoise):
    """Masks (B, S) and label drops (B,) of the first stage, and the weight (B,) of each image's sum over masked tokens."""

    known: Tensor
    label_drop: Tensor
    weight: Tensor
    masked: Masked | None = None  # as in GeneratorNoise


@dataclass(frozen=True, kw_only=True)
class CascadeNoise(GeneratorNoise):
    """Of a step of cascade training."""

    first: FirstStageNoise
    weight: Tensor  # (B,), as in `first`, of the second stage
    without_first: Tensor  # bool (B,), images whose second stage is trained without features

    def to(self, device: torch.device) -> Self:
        first = replace(self.first, masked=masked_tokens(self.first.known))
        return super(CascadeNoise, replace(self, first=first)).to(device)


class CascadeObjective(GeneratorObjectiveBase[CascadeNoise]):
    """weight · loss of the first stage + token_weight · loss of the second."""

    model: Cascade

    def __init__(self, model: Cascade, config: GeneratorObjectiveConfig, tokenizer: Model | None = None) -> None:
        super().__init__(model, config, tokenizer)
        spec, first = model.tokens, model.first_stage_spec
        assert spec.grid is not None and first.grid is not None
        self.first_source = TokenSource(tokenizer, scale=(first.grid[0], spec.grid[0]))
        mask = config.first_stage.mask
        if mask.rounding == "bernoulli":
            raise MgenError(
                "objective.first_stage.mask.rounding=bernoulli may mask no token of an image: use another rounding"
            )
        if mask.visible >= first.length:
            raise MgenError(
                f"objective.first_stage.mask.visible is {mask.visible}, but at least one of {first.length} tokens must be masked: "
                f"use at most {first.length - 1}"
            )

    def make_noise(
        self, count: int, rng: torch.Generator, *, augmentation: Augmentation, step: int = 0
    ) -> CascadeNoise:
        noise, settings = self.make_generator_noise(count, rng, augmentation), self.config.first_stage
        known = self.sample_masks(settings.mask, count, self.model.first_stage_spec.length, rng).known
        label_drop = torch.rand(count, generator=rng) < self.config.label_drop
        ready = min(1.0, step / settings.warmup) if settings.warmup and self.training else 1.0
        joint = self.model.head.joint
        return CascadeNoise(
            **vars(noise),
            first=FirstStageNoise(known=known, label_drop=label_drop, weight=_per_token(known)),
            weight=torch.ones(count) if joint else _per_token(noise.known),
            without_first=torch.rand(count, generator=rng) >= settings.keep * ready,
        )

    def add_row_noise(
        self, noise: CascadeNoise, rows: slice, *seed: int | str, device: torch.device | str = "cpu"
    ) -> CascadeNoise:
        second, first = [], []
        for row in range(rows.start, rows.stop):
            rng = seeds.generator(*seed, row, device=device)
            second.append(self.make_row_noise(self.model.second, self.source, rng))
            first.append(self.make_row_noise(self.model.first, self.first_source, rng))
        made, made_first = stack(second), stack(first)
        return replace(
            noise,
            head=made.head,
            posterior=made.posterior,
            first=replace(noise.first, head=made_first.head, posterior=made_first.posterior),
        )

    def forward(self, batch: Batch, noise: CascadeNoise, options: StepOptions = DEFAULT_OPTIONS) -> StepOutput:
        first, labels = noise.first, batch["label"]
        out = self.model(
            (
                self.first_source.tokens(batch, noise.augmentation, first.posterior),
                self.source.tokens(batch, noise.augmentation, noise.posterior),
            ),
            (self.drop_labels(labels, first.label_drop), self.drop_labels(labels, noise.label_drop)),
            (first.known, noise.known),
            noise.without_first,
            options=self.loss_options,
            noise=(first.head, noise.head),
            masked=(first.masked, noise.masked),
        )
        a, b = (out["first_stage_loss"] * first.weight).mean(), (out["loss"] * noise.weight).mean()
        logs = {
            "token_loss": b,
            "first_stage_loss": a,
            self.model.head.metric: (out["metric"] * noise.weight).mean(),
            f"first_stage_{self.model.first.head.metric}": (out["first_stage_metric"] * first.weight).mean(),
        }
        settings = self.config.first_stage
        return StepOutput(settings.weight * a + settings.token_weight * b, logs)


def _per_token(known: Tensor) -> Tensor:
    """The weight (B,) of each image's sum over masked tokens: a mean over the images is the mean over all masked tokens.

    Computed for the whole batch, so that it holds for any piece of it.
    """
    return (1 / (~known).sum(1).float().mean()).expand(len(known))
