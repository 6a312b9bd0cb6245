"""Categorical head: logits over ids by a transformed context vector and the tied token table (as in BERT).

Notation: B batch, M positions, D width, V ids.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mgen.heads.chains import ChainSettings
from mgen.heads.head import Draw, Head, HeadInputs, HeadNoise, HeadSettings, mix, register_head
from mgen.heads.logit_filter import TopK, TopP, choose, keep_likeliest
from mgen.nn.halves import by_halves, sharing
from mgen.nn.sizes import Epsilon
from mgen.utils.config import Settings
from mgen.utils.errors import MgenError
from mgen.utils.fitting import DataRows, Rows
from mgen.utils.schema import schema


class OwnTable(nn.Linear):
    """A table of ids that belongs to the head; zero at first, so that a new model predicts all ids alike."""

    def __init__(self, rows: int, dim: int) -> None:
        super().__init__(dim, rows, bias=False)


@schema
class DrawSettings(HeadSettings):
    """How a categorical head draws an id.

    Args:
        top_k: only the k likeliest ids can be drawn; None: all.
        top_p: only the likeliest ids that together reach this probability can be drawn, 0 < top_p ≤ 1; None: all.
        crossing: the id with which they reach it can be drawn too; False: only if it is the likeliest of all (ReMDM).
        tempered: positions are ranked by the log-probability at the temperature of the draw (Halton-MaskGIT's confidence
            sampler) instead of at temperature 1.
        score: positions are ranked by "log_prob", or by the guided "logit" of the id drawn, which no softmax compares with the
            others at its position (TiTok), or by the log-probability with which it was "drawn": after temperature, top_k and top_p.
        mask: where the head has a logit for the mask (Halton-MaskGIT), let it be drawn, as published.
    """

    top_k: TopK = None
    top_p: TopP = None
    crossing: bool = True
    tempered: bool = False
    score: Literal["log_prob", "logit", "drawn"] = "log_prob"
    mask: bool = True


@schema
class CategoricalConfig:
    """Settings; defaults are those of the PyTorch MaskGIT line.

    Args:
        table: "tied" shares the embedder's table, with the head's gradient; "tied-detached" without it, as in official PyTorch
            MaskGIT code (a narrow table then learns slowly); "own" is a linear layer of its own, zero at first.
        transform: fc, gelu and layer norm in front; False: logits = z Eᵀ + bias. bias: whether there is one.
        approximate: "none" or "tanh", the form of GELU. eps: of the layer norm.
        mask_drawn: the mask, the table's row behind the ids, has a logit too and can be drawn (Halton-MaskGIT).
        loss_rows: "ids", or "table": all rows of the table take part in the training softmax (JAX MaskGIT).
    """

    table: Literal["tied", "tied-detached", "own"] = "tied-detached"
    transform: bool = True
    bias: bool = True
    approximate: Literal["none", "tanh"] = "none"
    eps: Epsilon = 1e-5
    mask_drawn: bool = False
    loss_rows: Literal["ids", "table"] = "ids"


@register_head("categorical", CategoricalConfig)
class CategoricalHead(Head[DrawSettings]):
    """logits = LN(gelu(fc z)) Eᵀ + bias, with E the rows of a table of ids."""

    passes = ("logits",)
    has_moments = True

    def __init__(self, config: CategoricalConfig, inputs: HeadInputs) -> None:
        super().__init__()
        c, tokens = config, inputs.tokens
        if tokens.vocab_size is None:
            raise MgenError(f"head 'categorical' draws ids, these tokens are of kind {tokens.kind!r}: use another head")
        self.config, self.width, self.first, self.vocab_size = c, inputs.width, inputs.first, tokens.vocab_size
        table = inputs.table
        if c.table == "own" and not isinstance(table, OwnTable):
            table = self.table = OwnTable(tokens.vocab_size, inputs.width)
        if table is None:
            raise MgenError("head.table is tied, but these tokens have no table of ids: use head.table own")
        self._table = [table]  # in a list: a tied table is registered in the embedder
        rows, dim = table.weight.shape
        if not c.transform and dim != inputs.width:
            raise MgenError(f"head.transform false needs a context as wide as the table, {dim}, not {inputs.width}")
        self.loss_rows = rows if c.loss_rows == "table" else self.vocab_size + int(c.mask_drawn)
        if c.transform:
            self.fc = nn.Linear(self.width, dim)
            self.norm = nn.LayerNorm(dim, eps=c.eps)
        self.bias = nn.Parameter(torch.zeros(rows if not self.first else self.vocab_size)) if c.bias else None

    def data_rows(self, table: tuple[Rows, ...] = ()) -> DataRows:
        ids, own = (Rows("ids", (self.vocab_size,)),), hasattr(self, "table")
        out: DataRows = {"table.weight": {0: ids}} if own else {}
        return out if self.bias is None else out | {"bias": {0: ids if own or self.first else table}}

    def initialize(self, default: Callable[[nn.Module], None]) -> None:
        super().initialize(default)
        if hasattr(self, "table"):
            nn.init.zeros_(self.table.weight)

    def logits(self, z: Tensor, rows: int | None = None) -> Tensor:
        """(…, D) → (…, V), or (…, rows)."""
        c, rows = self.config, self.vocab_size if rows is None else rows
        table = self._table[0].weight[self.first : self.first + rows]
        h = self.norm(F.gelu(self.fc(z), approximate=c.approximate)) if c.transform else z
        detached = c.table == "tied-detached"
        return F.linear(h, table.detach() if detached else table, None if self.bias is None else self.bias[:rows])

    def loss(
        self, z: Tensor, target: Tensor, *, noise: HeadNoise | None = None, label_smoothing: float = 0.0
    ) -> tuple[Tensor, Tensor]:
        """Cross entropy per token and whether the likeliest code is right, both of target's shape; z (…, D)."""
        logits = self.logits(z, self.loss_rows).float()
        flat, goal = logits.flatten(0, -2), target.flatten()
        losses = F.cross_entropy(flat, goal, reduction="none", label_smoothing=label_smoothing)
        return losses.view(target.shape), (flat.argmax(-1) == goal).float().view(target.shape)

    def check(self, settings: Settings, *, temperatures: Sequence[float]) -> None:
        if settings.keys() & ChainSettings.__dataclass_fields__.keys():
            raise MgenError(f"head {dict(settings)} is for a diffusion head; this generator draws ids")
        DrawSettings.of(settings)

    def plan(self, settings: Settings) -> DrawSettings:
        return DrawSettings.of(settings)

    def guided_by(self, guide: Head[Any]) -> Self:
        self.check_guide(guide, "mask_drawn")
        assert isinstance(guide, CategoricalHead)
        return sharing(self, logits=by_halves(self.logits, guide.logits, widths=(self.width, guide.width)))

    def sample(
        self,
        z: Tensor,
        *,
        noise: Tensor,
        plan: DrawSettings = DrawSettings(),  # noqa: B008  (frozen)
        temperature: float = 1.0,
        guidance: float | Tensor | None = None,
        exponent: float = 0.0,
    ) -> Draw:
        """Draw an id at each position; arguments as in Head, and:

        Args:
            noise: uniform (B, M) in [0, 1), used by inverting the distribution function, or Gumbel (B, M, V), used as
                argmax(logits / temperature + noise).
            temperature: divides the logits of the draw; held above 1e-4, where the draw is the likeliest id. At 0 it is exactly that.
            exponent: the draw is from q · p^exponent, see Head.log_moments.

        Returns:
            ids (B, M) int64 and their log-probabilities (B, M) at temperature 1, or `plan.tempered`; or as `plan.score` says.
        """
        scaled, ranked = self.scores(z, plan, temperature, guidance)
        if exponent:
            scaled = _weighed(scaled, ranked if plan.score == "logit" else ranked.log_softmax(-1), exponent)
        if temperature == 0 or math.isinf(exponent):
            ids = scaled.argmax(-1)
        else:
            ids = choose(scaled, noise if noise.ndim == 2 else noise[..., : scaled.shape[-1]])
        chosen = ranked.gather(-1, ids.unsqueeze(-1)).squeeze(-1)  # (B, M)
        return Draw(ids, chosen if plan.score == "logit" else chosen - ranked.logsumexp(-1))

    def log_moments(
        self,
        z: Tensor,
        *,
        plan: DrawSettings,
        temperature: float = 1.0,
        guidance: float | Tensor | None = None,
        exponent: float = math.inf,
        part: int = 0,
    ) -> Tensor:
        """See Head.log_moments."""
        scaled, ranked = self.scores(z, plan, temperature, guidance)
        log_prob = ranked if plan.score == "logit" else ranked.log_softmax(-1)
        weighed = _weighed(scaled.log_softmax(-1), log_prob, exponent)
        return weighed.amax(-1) if math.isinf(exponent) else weighed.logsumexp(-1)

    def scores(
        self, z: Tensor, plan: DrawSettings, temperature: float, guidance: float | Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Logits (B, M, V) that ids are drawn by, −∞ where they cannot be, and those that positions are ranked by."""
        rows = self.vocab_size + int(self.config.mask_drawn and plan.mask)
        logits = mix(self.logits(z, rows).float(), guidance)
        scaled = logits if temperature == 1.0 else logits / max(temperature, 1e-4)
        ranked = scaled if plan.tempered else logits
        scaled = keep_likeliest(scaled, top_k=plan.top_k, top_p=plan.top_p, crossing=plan.crossing)
        return scaled, scaled if plan.score == "drawn" else ranked


def _weighed(scaled: Tensor, log_prob: Tensor, exponent: float) -> Tensor:
    """log(q · p^exponent) of the logits of q and log p, both (B, M, V); at ∞ log p of the ids that q can draw."""
    if math.isinf(exponent):
        return log_prob.masked_fill(scaled == -torch.inf, -torch.inf)
    return scaled + exponent * log_prob
