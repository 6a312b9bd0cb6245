"""The only code of training that calls a generator: what it can do, the noise of its loss, its loss, its features.

Objectives use these functions and never an attribute of the model, so a change of the generators' interface ends here.
"""

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call

from mgen.generators import HiMAR
from mgen.generators.base import Generator
from mgen.heads import DiffusionHead, DiffusionTransformerHead
from mgen.nn.memory import Memory
from mgen.tokens import TokenSpec
from mgen.training.noise import Noise
from mgen.utils.errors import MgenError
from mgen.utils.modeling import Model


@dataclass(frozen=True)
class LossOptions:
    """How a generator's loss is computed.

    Args:
        label_smoothing: of a cross entropy.
        tokens: which tokens count, the masked ones or all.
        head_tokens: "all" also passes visible tokens through a diffusion head, as published; the loss is the same.
    """

    label_smoothing: float = 0.0
    tokens: Literal["masked", "all"] = "masked"
    head_tokens: Literal["masked", "all"] = "masked"


@dataclass(frozen=True, kw_only=True)
class HeadNoise(Noise):
    """Noise of a diffusion head's loss: timesteps t (B, K, L) and noise (B, K, L, C), for K copies of each token."""

    t: Tensor
    noise: Tensor


class StageInputs(NamedTuple):
    """What one stage of a cascade is trained on: tokens (B, L) or (B, L, C), class ids (B,), known (B, L), the head's noise."""

    tokens: Tensor
    class_ids: Tensor
    known: Tensor
    noise: HeadNoise | None


class StageLoss(NamedTuple):
    """Loss and metric of each image (B,): sums over its masked tokens, or means over the image for a joint head."""

    loss: Tensor
    metric: Tensor


# -- what a generator can do -------------------------------------------------------------------------------------------


def is_causal(model: Generator) -> bool:
    """Whether each token is predicted from those before it, so that nothing is masked."""
    return model.causal


def carries_features(model: Model) -> bool:
    """Whether the model is a generator whose steps can continue from the features of an earlier step (ENAT)."""
    return isinstance(model, Generator) and model.carries


def is_cascade(model: Generator) -> bool:
    """Whether a first stage draws the tokens of a smaller image (Hi-MAR)."""
    return model.staged


def counts_all_tokens(model: Generator) -> bool:
    """Whether visible tokens can be part of the loss (`LossOptions.tokens`)."""
    return "loss_tokens" in inspect.signature(type(model).forward).parameters


def token_spec(model: Generator) -> TokenSpec:
    """The tokens that the tokenizer makes."""
    return model.spec


def unit_spec(model: Generator) -> TokenSpec:
    """What is masked as one: the tokens, or windows of them."""
    return model.unit_spec


def to_units(model: Generator, tokens: Tensor) -> Tensor:
    """Tokens (B, L) or (B, L, C) as the units that are masked."""
    return tokens if model.unit is None else model.unit.fold(tokens)


def first_stage_spec(model: Generator) -> TokenSpec:
    """The tokens of a cascade's first stage."""
    assert isinstance(model, HiMAR)
    return model.pivot_spec


def head_metric(model: Generator, *, first_stage: bool = False) -> str:
    """Name of the metric that the head reports beside its loss."""
    return str(_head(model, first_stage).figure)


def is_joint(model: Generator) -> bool:
    """Whether the head draws all tokens of an image as one."""
    return bool(getattr(model.head, "whole", False))


def _head(model: Generator, first_stage: bool) -> nn.Module:
    return model.pivot_head if first_stage else model.head


# -- settings that a generator takes from its tokenizer and data -------------------------------------------------------


def adopt_tokenizer(model: Generator, tokenizer: Model) -> None:
    """Take over the tokenizer's scale if the model has none.

    Raises:
        MgenError: tokens or channel order of the tokenizer are not those of the model.
    """
    spec: TokenSpec = tokenizer.spec
    if spec.kind != "index" and model.config.get("scale", 1.0) is None:
        model.register_to_config(scale=spec.scale)
    spec.require(token_spec(model), by=type(model).__name__)
    order = tokenizer.config.get("channel_order")
    if order is not None and spec.kind == "multi-index" and model.config.channel_order is None:
        raise MgenError(
            "the tokenizer has a channel_order, but the model draws channels in ascending order: set "
            f"model.channel_order={list(order)}, or write out the ascending order"
        )


def class_count(model: Generator) -> int:
    """Classes of the model; 0 if it is unconditional."""
    return model.config.num_classes


def name_classes(model: Generator, names: Sequence[str]) -> None:
    """Keep the classes' names of the data with the model, unless it has names."""
    if class_count(model) and model.config.class_names is None and tuple(names) != ("",):
        model.register_to_config(class_names=tuple(names))


# -- noise -------------------------------------------------------------------------------------------------------------


def head_noise(model: Generator, copies: int, rng: torch.Generator, *, first_stage: bool = False) -> HeadNoise | None:
    """Noise for the head's loss on one image, t (K, L) and noise (K, L, C); None for a head that needs none."""
    head = _head(model, first_stage)
    if not isinstance(head, DiffusionHead | DiffusionTransformerHead):
        return None
    length = (first_stage_spec(model) if first_stage else unit_spec(model)).length
    return HeadNoise(**head.draw(length, copies, rng))


def trunk_noise(model: Generator, rank: Tensor, known: Tensor) -> Tensor | None:
    """What the trunk randomizes in training, from the permutation (B, L) behind the mask `known` (B, L): MAGE's dropped tokens."""
    return model.mask_draws(rank, known).get("dropped")


# -- losses ------------------------------------------------------------------------------------------------------------


def generator_loss(
    model: Generator,
    tokens: Tensor,
    class_ids: Tensor,
    known: Tensor,
    *,
    options: LossOptions,
    noise: HeadNoise | None = None,
    trunk_noise: Tensor | None = None,
    carried: Memory | None = None,
) -> tuple[Tensor, Tensor]:
    """Loss and metric of every token that counts, both flat.

    Args:
        tokens: units (B, L, …). class_ids: (B,). known: bool (B, L), True where the token is visible.
        noise, trunk_noise: see `head_noise` and `trunk_noise`. carried: see `encode_features`.
    """
    extra: dict[str, object] = {}
    if noise is None:
        extra["label_smoothing"] = options.label_smoothing
    else:
        extra |= {"t": noise.t, "noise": noise.noise, "head_tokens": options.head_tokens}
    if trunk_noise is not None:
        extra["dropped"] = trunk_noise
    if carried is not None:
        extra["memory"] = carried
    if counts_all_tokens(model):
        extra["loss_tokens"] = options.tokens
    return model(tokens, class_ids, known, **extra)


def cascade_loss(
    model: Generator, first: StageInputs, second: StageInputs, without_first: Tensor, *, options: LossOptions
) -> tuple[StageLoss, StageLoss]:
    """Losses of a cascade's two stages.

    Args:
        without_first: bool (B,), images whose second stage does not see the first.
    """
    out: dict[str, Tensor] = model(
        second.tokens,
        first.tokens,
        second.class_ids,
        first.class_ids,
        second.known,
        first.known,
        without_first,
        chain=_as_dict(second.noise),
        pivot_chain=_as_dict(first.noise),
        label_smoothing=options.label_smoothing,
    )
    return StageLoss(out["pivot_loss"], out["pivot_figure"]), StageLoss(out["loss"], out["figure"])


def _as_dict(noise: HeadNoise | None) -> dict[str, Tensor] | None:
    return None if noise is None else {"t": noise.t, "noise": noise.noise}


# -- features of an earlier step ---------------------------------------------------------------------------------------


class EncodeFeatures(nn.Module):
    """A generator's feature encoding as the forward of a module, so that it can run with other weights."""

    def __init__(self, model: Generator) -> None:
        super().__init__()
        self.model = model

    def forward(self, tokens: Tensor, class_ids: Tensor, known: Tensor) -> Memory:
        return self.model.look(tokens, class_ids, known)


@torch.no_grad()
def encode_features(
    model: Generator, tokens: Tensor, class_ids: Tensor, known: Tensor, weights: Mapping[str, Tensor] | None = None
) -> Memory:
    """The features of a step in which `known` (B, L) was known, without dropout.

    Args:
        weights: "model.NAME" → tensor, in place of the model's own.
    """
    training = model.training
    model.eval()
    try:
        return functional_call(EncodeFeatures(model), dict(weights or {}), (tokens, class_ids, known))
    finally:
        model.train(training)
