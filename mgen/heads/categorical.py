"""Categorical head: logits over code ids by a transformed context vector and the tied token table (as in BERT).

Notation: B batch, M positions, D width, V codes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mgen.heads.chains import ChainSettings
from mgen.heads.choice import check_cuts, choose, keep_likeliest
from mgen.heads.draws import Draws
from mgen.utils.errors import MgenError
from mgen.utils.modeling import check_keys


@dataclass(frozen=True, kw_only=True)
class DrawSettings:
    """How a categorical head draws an id.

    Args:
        top_k: only the k likeliest ids can be drawn; None: all.
        top_p: only the likeliest ids that together reach this probability can be drawn, 0 < top_p ≤ 1; None: all.
        tempered: positions are ranked by the log-probability at the temperature of the draw (Halton-MaskGIT's confidence
            sampler) instead of at temperature 1.
        mask: where the head has a logit for the mask (Halton-MaskGIT), let it be drawn, as published.
    """

    top_k: int | None = None
    top_p: float | None = None
    tempered: bool = False
    mask: bool = True

    def __post_init__(self) -> None:
        for name in ("tempered", "mask"):
            if not isinstance(getattr(self, name), bool):
                raise MgenError(f"head.{name} is {getattr(self, name)!r}: expected true or false")
        check_cuts(self.top_k, self.top_p)

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> "DrawSettings":
        """From a mapping; MgenError for a key or value that is not allowed."""
        check_keys(dict(settings), set(cls.__dataclass_fields__), "head.")
        return cls(**settings)


class CategoricalHead(nn.Module):
    """logits = LN(gelu(fc z)) Eᵀ + bias, with E the rows of the generator's own token table.

    Args:
        table: module whose weight is E (rows, D); it belongs to the generator and is not stored twice.
        codes: V, the ids that can be drawn: rows first … first + V − 1 of the table.
        bias: whether there is one.
        context_dim: width of z, where it is not D. transform: False leaves fc, gelu and LN out: logits = z Eᵀ + bias.
        mask_drawn: row V, the mask, has a logit too and can be drawn (Halton-MaskGIT).
        loss_rows: rows that take part in the training softmax: V, or more (JAX MaskGIT: the whole vocabulary).
        approximate: "none" or "tanh", the form of GELU. eps: of the layer norm.
        detach: official PyTorch MaskGIT sends no gradient through the tie into the table.
    """

    figure = "accuracy"  # what `loss` gives besides the loss
    ranks = True  # its draws have probabilities, by which positions can be ranked

    def __init__(
        self,
        *,
        table: nn.Module,
        codes: int,
        first: int = 0,
        bias: bool = True,
        context_dim: int | None = None,
        transform: bool = True,
        mask_drawn: bool = False,
        loss_rows: int | None = None,
        approximate: str = "none",
        eps: float = 1e-5,
        detach: bool = True,
    ) -> None:
        super().__init__()
        rows, dim = table.weight.shape  # type: ignore[union-attr, misc]
        self.width = dim if context_dim is None else context_dim  # of the context it takes
        self._table = [table]  # in a list: shared with the embedding, registered there
        self.first, self.codes, self.loss_rows = first, codes, loss_rows or codes + int(mask_drawn)
        self.approximate, self.detach, self.mask_drawn, self.transform = approximate, detach, mask_drawn, transform
        if transform:
            self.fc = nn.Linear(self.width, dim)
            self.norm = nn.LayerNorm(dim, eps=eps)
        self.bias = nn.Parameter(torch.zeros(rows if not first else codes)) if bias else None

    def logits(self, z: Tensor, rows: int | None = None) -> Tensor:
        """(…, D) → (…, V), or (…, rows)."""
        rows = self.codes if rows is None else rows
        table: Tensor = self._table[0].weight[self.first : self.first + rows]  # type: ignore[index]
        h = self.norm(F.gelu(self.fc(z), approximate=self.approximate)) if self.transform else z
        return F.linear(h, table.detach() if self.detach else table, None if self.bias is None else self.bias[:rows])

    def loss(self, z: Tensor, target: Tensor, *, label_smoothing: float = 0.0) -> tuple[Tensor, Tensor]:
        """Cross entropy per token and whether the likeliest code is right, both of target's shape; z (…, D)."""
        logits = self.logits(z, self.loss_rows).float()
        flat, goal = logits.flatten(0, -2), target.flatten()
        losses = F.cross_entropy(flat, goal, reduction="none", label_smoothing=label_smoothing)
        return losses.view(target.shape), (flat.argmax(-1) == goal).float().view(target.shape)

    def check(self, settings: Mapping[str, Any], *, temperatures: Sequence[float]) -> None:
        """MgenError for settings of a draw that this head does not take."""
        if settings.keys() & ChainSettings.__dataclass_fields__.keys():
            raise MgenError(f"head {dict(settings)} is for a diffusion head; this generator draws ids")
        DrawSettings.of(settings)

    def draws(self, settings: Mapping[str, Any]) -> Draws:
        """One uniform number for an id."""
        return Draws()

    def plan(self, settings: Mapping[str, Any]) -> DrawSettings:
        """What every draw of a run shares; `settings` as in DrawSettings."""
        return DrawSettings.of(settings)

    def sample(
        self,
        z: Tensor,
        *,
        noise: Tensor,
        plan: DrawSettings = DrawSettings(),  # noqa: B008  (frozen)
        temperature: float = 1.0,
        guidance: float | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Draw a code at each position.

        Args:
            z: context (B, M, D), or (2B, M, D) with the rows of the null class after those of the class, if guided.
            noise: uniform (B, M) in [0, 1), used by inverting the distribution function, or Gumbel (B, M, V), used as
                argmax(logits / temperature + noise).
            plan: made by `plan`.
            temperature: divides the logits of the draw; held above 1e-4, where the draw is the likeliest code.
            guidance: s in u + s·(c − u); None: z has no null rows.

        Returns:
            ids (B, M) int64 and their log-probabilities (B, M) at temperature 1, or `plan.tempered`.
        """
        rows = self.codes + int(self.mask_drawn and plan.mask)
        logits = self.logits(z, rows).float()
        if guidance is not None:
            conditional, null = logits.chunk(2)
            logits = torch.lerp(null, conditional, guidance)
        scaled = logits if temperature == 1.0 else logits / max(temperature, 1e-4)
        ranked = scaled if plan.tempered else logits
        scaled = keep_likeliest(scaled, top_k=plan.top_k, top_p=plan.top_p)
        ids = choose(scaled, noise if noise.ndim == 2 else noise[..., :rows])
        chosen = ranked.gather(-1, ids.unsqueeze(-1)).squeeze(-1)  # (B, M)
        return ids, chosen - ranked.logsumexp(-1)
