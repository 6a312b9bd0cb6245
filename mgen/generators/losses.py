"""From contexts to losses: of every masked token, or summed per image. Shared by `Generator` and `Cascade`.

Notation: B batch, L tokens, M masked ones where all images have as many, C numbers or ids of a token, K copies of a token.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from mgen.generators.trunk import count_known, unknown_first
from mgen.heads.composite import PerCodebookHead
from mgen.heads.head import Head, HeadNoise, JointHead
from mgen.nn import gather_rows, take
from mgen.utils.schema import PositiveShare, Rate, schema


@schema
class LossOptions:
    """How the training loss is computed.

    Args:
        label_smoothing: of a head of ids. tokens: "all" counts given tokens too (Halton-MaskGIT as published).
        known_weight: with "all", weight of a given token against 1 of a masked one (TiTok: 0.1).
        head_tokens: "all" passes given tokens through a diffusion head too and drops their loss, as MAR's code does; the same loss.
    """

    label_smoothing: Rate = 0.0
    tokens: Literal["masked", "all"] = "masked"
    known_weight: PositiveShare = 1.0
    head_tokens: Literal["masked", "all"] = "masked"


def token_weights(known: Tensor, known_weight: float) -> Tensor:
    """Weights (B, L) of masked and given tokens in a loss over all of them, for bool known (B, L); their mean is 1."""
    weights = torch.where(known, known_weight, 1.0)
    return weights / weights.mean()


@dataclass(frozen=True, kw_only=True)
class Masked:
    """Where the masked tokens of a batch are. Made of masks that lie in host memory, so that a step need not wait for its GPU.

    Attributes:
        visible: fewest and most known tokens of an image. flat: b·L + l of all masked tokens (n,), ascending.
        where: positions (B, M), where all images know as many; else None.
    """

    visible: tuple[int, int]
    flat: Tensor
    where: Tensor | None = None


def masked_tokens(known: Tensor) -> Masked:
    """Where the masked tokens of bool known (B, L) are."""
    fewest, most = count_known(known)
    if fewest == most:
        where = unknown_first(known, known.shape[1] - most)
        starts = torch.arange(len(known), device=known.device).unsqueeze(1) * known.shape[1]  # (B, 1)
        return Masked(visible=(fewest, most), flat=(starts + where).flatten(), where=where)
    return Masked(visible=(fewest, most), flat=flat_positions(known))


def flat_positions(known: Tensor) -> Tensor:
    """b·L + l of all masked tokens (n,), ascending, for bool known (B, L); a GPU is waited for."""
    return (~known).flatten().nonzero().squeeze(1)


def token_losses(
    head: Head,
    z: Tensor,
    tokens: Tensor,
    known: Tensor,
    where: Tensor | None,
    *,
    noise: HeadNoise | None,
    options: LossOptions,
    global_tokens: int = 0,
    flat: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Loss and metric of every masked token (of a diffusion head of its K copies, of a joint head of every image), both flat.

    Args:
        z: context (B, M, D) of the masked positions `where` (B, M), or (B, L, D) where that is None.
        tokens: (B, L) or (B, L, C). known: bool (B, L). noise: of all positions, (B, K, L) and (B, K, L, C).
        global_tokens: S. With S global tokens among L the loss is theirs times L / S, and that of the others times L / (L − S): where
            all are masked its mean is the sum of the two means (Hita, arXiv 2507.02358).
        flat: see Masked; None: looked for here.
    """
    smoothing = options.label_smoothing
    if isinstance(head, JointHead):
        losses, metric = head.loss(z, tokens, masked=~known, noise=noise)
        return losses.mean(1), metric.mean(1)
    if where is not None:
        if noise is None:
            losses, metric = head.loss(z, take(tokens, where), label_smoothing=smoothing)
        else:
            losses, metric = _copies(head, z, tokens, where, noise)
        return losses.flatten(), metric.flatten()
    if noise is not None:
        masked = (~known).unsqueeze(1).expand_as(noise.t)  # (B, K, L)
        if options.head_tokens == "all":
            losses, metric = head.loss(z.unsqueeze(1), tokens.unsqueeze(1), noise=noise)
            return losses[masked], metric[masked]
        row, _, position = masked.nonzero(as_tuple=True)
        own = HeadNoise(noise.t[masked], noise.noise[masked])
        return head.loss(z[row, position], tokens[row, position], noise=own)
    flat = flat_positions(known) if flat is None else flat
    z, tokens = z.flatten(0, 1).index_select(0, flat), tokens.flatten(0, 1).index_select(0, flat)
    if not isinstance(head, PerCodebookHead):
        return head.loss(z, tokens, label_smoothing=smoothing)
    length, s = known.shape[1], global_tokens
    part = flat % length >= s
    losses, metric = head.loss(z, tokens, part=part, label_smoothing=smoothing)
    return losses * torch.where(part, length / (length - s), length / s), metric


def image_losses(
    head: Head,
    z: Tensor,
    tokens: Tensor,
    known: Tensor,
    where: Tensor | None,
    *,
    noise: HeadNoise | None,
    options: LossOptions,
    flat: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Loss and metric of each image, both (B,): summed over its masked tokens and averaged over copies.

    Of a joint head the mean over all elements. Arguments as in `token_losses`, but z is (B, L, D) always.
    """
    if isinstance(head, JointHead):
        return token_losses(head, z, tokens, known, where, noise=noise, options=options)
    if noise is None:
        flat = flat_positions(known) if flat is None else flat
        own, target = z.flatten(0, 1).index_select(0, flat), tokens.flatten(0, 1).index_select(0, flat)
        losses, metric = head.loss(own, target, label_smoothing=options.label_smoothing)
        row = flat // known.shape[1]
        return _by_row(losses, row, len(z)), _by_row(metric, row, len(z))
    if where is not None:
        losses, metric = _copies(head, gather_rows(z, where), tokens, where, noise)  # (B, K, M)
        return losses.mean(1).sum(1), metric.mean(1).sum(1)
    row, copy, position = at = (~known).unsqueeze(1).expand_as(noise.t).nonzero(as_tuple=True)
    losses, metric = head.loss(z[row, position], tokens[row, position], noise=HeadNoise(noise.t[at], noise.noise[at]))
    copies = noise.t.shape[1]
    return _by_row(losses, row, len(z)) / copies, _by_row(metric, row, len(z)) / copies


def _copies(head: Head, z: Tensor, tokens: Tensor, where: Tensor, noise: HeadNoise) -> tuple[Tensor, Tensor]:
    """A diffusion head's loss and metric (B, K, M) of K copies of the tokens (B, L, C) at `where` (B, M); z (B, M, D)."""
    copies = where.unsqueeze(1).expand(-1, noise.t.shape[1], -1)  # (B, K, M)
    numbers = noise.noise.gather(2, copies.unsqueeze(-1).expand(-1, -1, -1, noise.noise.shape[-1]))
    own = HeadNoise(noise.t.gather(2, copies), numbers)
    return head.loss(z.unsqueeze(1), gather_rows(tokens, where).unsqueeze(1), noise=own)


def _by_row(values: Tensor, row: Tensor, count: int) -> Tensor:
    return values.new_zeros(count).index_add(0, row, values)
