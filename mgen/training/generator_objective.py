"""The objective of generators: predict masked tokens, or each token from those before it, from the others and the class."""

from dataclasses import dataclass, replace
from typing import NamedTuple, Self, TypeVar

import torch
from torch import Tensor

from mgen.generators import Cascade, Generator, LossOptions
from mgen.generators.losses import Masked, masked_tokens
from mgen.heads import HeadNoise
from mgen.training.carried import encode_features
from mgen.training.companions import Companions
from mgen.training.config import (
    FirstStageConfig,
    GeneratorObjectiveConfig,
    MaskConfig,
    PermutationConfig,
)
from mgen.training.masking import (
    curve_weight,
    known_before,
    known_from_count,
    known_from_uniform,
    known_in_phases,
    mask_fraction_from_uniform,
    masked_counts,
    masking_time,
)
from mgen.training.noise import Augmentation, AugmentationNoise, Noise, stack
from mgen.training.objective import DEFAULT_OPTIONS, Objective, StepOptions, StepOutput
from mgen.training.token_source import Batch, TokenSource
from mgen.utils import seeds
from mgen.utils.errors import MgenError
from mgen.utils.modeling import Model


@dataclass(frozen=True, kw_only=True)
class RowNoise(Noise):
    """Noise of each image from a seed of its own: of a diffusion head's loss, and of a tokenizer's posterior (B, c, h, w)."""

    head: HeadNoise | None = None
    posterior: Tensor | None = None


@dataclass(frozen=True, kw_only=True)
class GeneratorNoise(RowNoise):
    """Of a step of generator training."""

    augmentation: AugmentationNoise
    known: Tensor  # bool (B, L), True where a token is visible
    label_drop: Tensor  # bool (B,), True where the null class replaces the label
    loss_weight: Tensor | None = None  # (B,), factor of each image's loss
    trunk: Tensor | None = None  # what the trunk randomizes, see Trunk.training_noise
    earlier_known: Tensor | None = (
        None  # bool (B, L), visible in the simulated earlier step; None: the step continues from none
    )
    second_label_drop: Tensor | None = None  # bool (B,), labels dropped for this step alone and not for the earlier one
    masked: Masked | None = None  # what `known` says, found out before it goes to a GPU

    def to(self, device: torch.device) -> Self:
        return super(GeneratorNoise, replace(self, masked=masked_tokens(self.known))).to(device)


G = TypeVar("G", bound=GeneratorNoise)


class Masks(NamedTuple):
    """Visible tokens, bool (B, L), the uniform numbers (B, L) that decided which, and factors (B,) of the losses if there are any."""

    known: Tensor
    uniform: Tensor
    weight: Tensor | None = None


class GeneratorObjectiveBase(Objective[G]):
    """What the objectives of one generator and of a cascade share: tokens, masks, label drop, checks of the settings."""

    model: Generator | Cascade

    def __init__(
        self, model: Generator | Cascade, config: GeneratorObjectiveConfig, tokenizer: Model | None = None
    ) -> None:
        super().__init__(model, Companions(tokenizer=tokenizer))
        self.config = config
        self.source = TokenSource(tokenizer)
        self._check()

    def _check(self) -> None:
        """Raise MgenError for settings that the model does not take."""
        model, config = self.model, self.config
        name = "a cascade" if isinstance(model, Cascade) else f"trunk {model.trunk.type_name!r}"
        if config.reuse and not model.capabilities.carried_features:
            raise MgenError(f"objective.reuse is for models that carry features (ENAT), not for {name}: set it to 0")
        if config.first_stage != FirstStageConfig() and not isinstance(model, Cascade):
            raise MgenError(f"objective.first_stage is for cascades (Hi-MAR), not for {name}: leave it out")
        if config.loss_tokens == "all" and (model.tokens.kind != "index" or isinstance(model, Cascade)):
            raise MgenError(
                f"objective.loss_tokens is 'all', but {name} with tokens of kind {model.tokens.kind!r} is trained on masked ones: use "
                "'masked'"
            )
        if config.known_weight != 1 and (config.loss_tokens != "all" or self.causal):
            do = (
                "leave it out, no token is visible to a causal trunk"
                if self.causal
                else "set objective.loss_tokens=all"
            )
            raise MgenError(f"objective.known_weight is {config.known_weight}, but visible tokens don't count: {do}")
        if self.causal and config.mask != MaskConfig():
            raise MgenError(
                f"objective.mask is for masked generators, but {name} is causal and predicts every token: leave it out"
            )
        if model.capabilities.order != "sequential" and config.permutation != PermutationConfig():
            raise MgenError(
                f"objective.permutation is for trunks that take any order (RAR), not for {name}: leave it out"
            )
        least, global_tokens = model.units.length, model.tokens.global_tokens
        if self.in_phases:
            least = min(global_tokens, least - global_tokens)
        if config.mask.visible >= least:
            raise MgenError(
                f"objective.mask.visible is {config.mask.visible}, but at least one of {least} tokens must be masked: use at "
                f"most {least - 1}"
            )
        if config.mask.rounding == "binomial" and config.mask.fewest > least - config.mask.visible:
            raise MgenError(
                f"objective.mask.fewest is {config.mask.fewest}, with {config.mask.visible} of {least} tokens visible: use at most "
                f"{least - config.mask.visible}"
            )
        if (config.mask.rounding == "binomial" or config.mask.weighted) and self.in_phases:
            raise MgenError(
                "objective.mask.rounding=binomial and weighted know one kind of tokens: set objective.mask.global_share=null"
            )
        if any(mask.weighted for mask in (config.mask, config.first_stage.mask)) and isinstance(model, Cascade):
            raise MgenError("objective.mask.weighted is for generators of one stage: set it to false")
        if config.mask.rounding == "bernoulli" and config.loss_tokens != "all":
            raise MgenError(
                "objective.mask.rounding=bernoulli may mask no token at all: set objective.loss_tokens=all, or use another "
                "rounding"
            )
        if config.label_drop and model.null_class is None:
            raise MgenError(
                "objective.label_drop needs a model with a null class: set model.classes.null_class=true or objective.label_drop=0"
            )

    @property
    def causal(self) -> bool:
        """Whether each token is predicted from those before it, so that nothing is masked."""
        return self.model.capabilities.one_by_one

    @property
    def in_phases(self) -> bool:
        """Whether global tokens are masked in a phase of their own."""
        has_both = bool(self.model.tokens.global_tokens) and self.config.mask.global_share is not None
        return has_both and not self.causal

    def sample_masks(self, mask: MaskConfig, count: int, length: int, rng: torch.Generator) -> "Masks":
        """The masks of `count` images of L tokens."""
        one = mask.per == "batch" and self.training  # validation must not depend on how it is cut into batches
        rows, masked = 1 if one else count, None
        if mask.rounding == "binomial":
            share, masked = masked_counts(
                mask, rows, lambda n: (torch.rand(n, generator=rng), torch.rand(n, length, generator=rng))
            )
        else:
            share = torch.rand(rows, generator=rng)
        fraction = mask_fraction_from_uniform(share, mask)
        uniform = torch.rand(count, length, generator=rng)
        if not self.in_phases:
            weight = curve_weight(mask.curve, masking_time(share, mask.clamp)).float() if mask.weighted else None
            weight = None if weight is None else weight.expand(count)
            if masked is not None:
                return Masks(known_from_count(masked, uniform), uniform, weight)
            return Masks(known_from_uniform(fraction, uniform, mask.rounding, mask.visible), uniform, weight)
        assert mask.global_share is not None
        first = torch.rand(len(fraction), generator=rng) < mask.global_share
        tokens = self.model.tokens.global_tokens
        return Masks(known_in_phases(fraction, uniform, mask, global_tokens=tokens, first=first), uniform)

    def predicted_order(self, permutations: Tensor, step: int, rng: torch.Generator) -> Tensor:
        """Orders (B, L) in which tokens are predicted, global ones first: permutations (B, L), or as they stand."""
        settings, length = self.config.permutation, permutations.shape[1]
        # Validation is in the order that training ends with.
        share = settings.share(step) if self.training else float(settings.end is None)
        permuted = torch.rand(len(permutations), 1, generator=rng) < share
        order = torch.where(permuted, permutations, torch.arange(length))
        later = order >= self.model.tokens.global_tokens
        return order.gather(1, later.long().argsort(dim=1, stable=True))

    def make_generator_noise(
        self, count: int, rng: torch.Generator, augmentation: Augmentation, step: int = 0
    ) -> GeneratorNoise:
        """The noise of a step for a plain generator."""
        config, augmented = self.config, augmentation.make_noise(count, rng)
        known, uniform, weight = self.sample_masks(config.mask, count, self.model.units.length, rng)
        if self.causal:
            known = torch.zeros_like(known)  # every token is predicted, from those before it
        label_drop = torch.rand(count, generator=rng) < config.label_drop
        trunk = None
        if isinstance(self.model, Generator):
            order = uniform.argsort(dim=1)
            if self.model.capabilities.order == "sequential":
                order = self.predicted_order(order, step, rng)
            trunk = self.model.trunk.training_noise(order, known)
        noise = GeneratorNoise(
            augmentation=augmented, known=known, label_drop=label_drop, loss_weight=weight, trunk=trunk
        )
        if not (config.reuse and self.training):
            return noise
        coin, share = torch.rand(2, generator=rng)
        earlier = known_before(known, share[None], torch.rand(uniform.shape, generator=rng))
        return replace(
            noise,
            earlier_known=earlier if coin < config.reuse else None,
            second_label_drop=torch.rand(count, generator=rng) < config.reuse_label_drop,
        )

    def make_row_noise(self, stage: Generator, source: TokenSource, rng: torch.Generator) -> RowNoise:
        """The row noise of one image, for a generator or a stage of a cascade."""
        head = stage.head.training_noise(stage.units.length, self.config.diffusion_batch_mul, rng)
        shape = source.posterior_shape
        posterior = None if shape is None else torch.randn(shape, generator=rng, device=rng.device)
        return RowNoise(head=head, posterior=posterior)

    def drop_labels(self, labels: Tensor, drop: Tensor | None) -> Tensor:
        """Labels (B,) with the null class where `drop` (B,) is True."""
        if drop is None or self.model.null_class is None:
            return labels
        return torch.where(drop, self.model.null_class, labels)

    @property
    def loss_options(self) -> LossOptions:
        """How the loss is computed; without label smoothing in validation."""
        config = self.config
        smoothing = config.label_smoothing if self.training else 0.0
        return LossOptions(
            label_smoothing=smoothing,
            tokens=config.loss_tokens,
            known_weight=config.known_weight,
            head_tokens=config.head_tokens,
        )


def _counted(known: Tensor, visible: float) -> float:
    """Tokens that count of bool known (B, L): masked ones as 1, visible ones as `visible`."""
    masked = (~known).sum().item()
    return masked + visible * (known.numel() - masked)


class GeneratorObjective(GeneratorObjectiveBase[GeneratorNoise]):
    """Predict masked tokens from the visible ones and the class."""

    model: Generator

    def make_noise(
        self, count: int, rng: torch.Generator, *, augmentation: Augmentation, step: int = 0
    ) -> GeneratorNoise:
        return self.make_generator_noise(count, rng, augmentation, step)

    def add_row_noise(
        self, noise: GeneratorNoise, rows: slice, *seed: int | str, device: torch.device | str = "cpu"
    ) -> GeneratorNoise:
        rngs = [seeds.generator(*seed, row, device=device) for row in range(rows.start, rows.stop)]
        made = stack([self.make_row_noise(self.model, self.source, rng) for rng in rngs])
        return replace(noise, head=made.head, posterior=made.posterior)

    def share(self, piece: GeneratorNoise, whole: GeneratorNoise) -> float:
        """Masked tokens of this piece over those of an average one, so that the whole is a mean over all masked tokens.

        Where visible tokens count too, both with their weights.
        """
        if self.model.head.joint:
            return 1.0
        visible = self.config.known_weight if self.config.loss_tokens == "all" else 0.0
        if visible == 1:
            return 1.0
        here, all_ = (_counted(noise.known, visible) for noise in (piece, whole))
        return here / all_ * len(whole.known) / len(piece.known)

    def forward(self, batch: Batch, noise: GeneratorNoise, options: StepOptions = DEFAULT_OPTIONS) -> StepOutput:
        tokens = self.source.tokens(batch, noise.augmentation, noise.posterior)
        if self.model.windows is not None:
            tokens = self.model.windows.to_windows(tokens)
        labels, carried = self.drop_labels(batch["label"], noise.label_drop), None
        if noise.earlier_known is not None:
            carried = encode_features(self.model, tokens, labels, noise.earlier_known, options.ema_weights)
        labels, how, trunk = self.drop_labels(labels, noise.second_label_drop), self.loss_options, noise.trunk
        losses, metric = self.model(
            tokens,
            labels,
            noise.known,
            options=how,
            noise=noise.head,
            trunk_noise=trunk,
            cache=carried,
            masked=noise.masked,
        )
        return StepOutput(self.weighted(losses, noise).mean(), {self.model.head.metric: metric.mean()})

    def weighted(self, losses: Tensor, noise: GeneratorNoise) -> Tensor:
        """Losses of all tokens that count, image by image (of a joint head of all images), times the factors of their images."""
        known, weight = noise.known, noise.loss_weight
        if weight is None:
            return losses
        counted = torch.ones_like(known) if self.config.loss_tokens == "all" else ~known
        each = torch.ones_like(weight).long() if self.model.head.joint else counted.sum(1)
        return losses * weight.repeat_interleave(each * (len(losses) // each.sum()))
