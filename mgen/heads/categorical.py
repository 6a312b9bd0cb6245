"""Categorical head: logits over code ids by a transformed context vector and the tied token table (as in BERT).

Notation: B batch, M positions, D width, V codes.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class CategoricalHead(nn.Module):
    """logits = LN(gelu(fc z)) Eᵀ + bias, with E the rows of the generator's own token table.

    Args:
        table: embedding whose weight is E (rows, D); it belongs to the generator and is not stored twice.
        codes: V, the ids that can be drawn: the first rows of the table.
        loss_rows: rows that take part in the training softmax: V, or more (JAX MaskGIT: the whole vocabulary).
        approximate: "none" or "tanh", the form of GELU. eps: of the layer norm.
        detach: official PyTorch MaskGIT sends no gradient through the tie into the table.
    """

    figure = "accuracy"  # what `loss` gives besides the loss

    def __init__(
        self,
        *,
        table: nn.Embedding,
        codes: int,
        loss_rows: int | None = None,
        approximate: str = "none",
        eps: float = 1e-5,
        detach: bool = True,
    ) -> None:
        super().__init__()
        rows, dim = table.weight.shape
        self.width = dim  # of the context it takes
        self._table = [table]  # in a list: shared with the embedding, registered there
        self.codes, self.loss_rows = codes, loss_rows or codes
        self.approximate, self.detach = approximate, detach
        self.fc = nn.Linear(dim, dim)
        self.norm = nn.LayerNorm(dim, eps=eps)
        self.bias = nn.Parameter(torch.zeros(rows))

    def logits(self, z: Tensor, rows: int | None = None) -> Tensor:
        """(…, D) → (…, V), or (…, rows)."""
        rows = self.codes if rows is None else rows
        table = self._table[0].weight[:rows]
        h = self.norm(F.gelu(self.fc(z), approximate=self.approximate))
        return F.linear(h, table.detach() if self.detach else table, self.bias[:rows])

    def loss(self, z: Tensor, target: Tensor, *, label_smoothing: float = 0.0) -> tuple[Tensor, Tensor]:
        """Cross entropy per token and whether the likeliest code is right, both of target's shape; z (…, D)."""
        logits = self.logits(z, self.loss_rows).float()
        flat, goal = logits.flatten(0, -2), target.flatten()
        losses = F.cross_entropy(flat, goal, reduction="none", label_smoothing=label_smoothing)
        return losses.view(target.shape), (flat.argmax(-1) == goal).float().view(target.shape)

    def sample(
        self, z: Tensor, *, noise: Tensor, temperature: float = 1.0, guidance: float | None = None
    ) -> tuple[Tensor, Tensor]:
        """Draw a code at each position.

        Args:
            z: context (B, M, D), or (2B, M, D) with the rows of the null class after those of the class, if guided.
            noise: uniform (B, M) in [0, 1), used by inverting the distribution function, or Gumbel (B, M, V), used as
                argmax(logits / temperature + noise).
            temperature: divides the logits of the draw; held above 1e-4, where the draw is the likeliest code.
            guidance: s in u + s·(c − u); None: z has no null rows.

        Returns:
            ids (B, M) int64 and their log-probabilities (B, M) at temperature 1.
        """
        logits = self.logits(z).float()
        if guidance is not None:
            conditional, null = logits.chunk(2)
            logits = torch.lerp(null, conditional, guidance)
        scaled = logits if temperature == 1.0 else logits / max(temperature, 1e-4)
        if noise.ndim == 3:
            ids = (scaled + noise.to(scaled.dtype)).argmax(-1)
        else:
            cdf = scaled.softmax(-1).cumsum(-1)
            point = noise.unsqueeze(-1) * cdf[..., -1:]  # the last entry is 1 up to rounding
            ids = torch.searchsorted(cdf, point, right=True).squeeze(-1).clamp_(max=self.codes - 1)
        chosen = logits.gather(-1, ids.unsqueeze(-1)).squeeze(-1)  # (B, M)
        return ids, chosen - logits.logsumexp(-1)
