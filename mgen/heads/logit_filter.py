"""From logits to an id: which ids can be drawn, and the draw. Notation: V ids."""

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from mgen.utils.schema import Count

# Settings of `keep_likeliest`; None: all ids can be drawn.
TopK = Count | None
TopP = Annotated[float, Field(gt=0, le=1)] | None


def keep_likeliest(
    logits: Tensor, *, top_k: int | None = None, top_p: float | None = None, crossing: bool = True
) -> Tensor:
    """Logits (…, V) with −∞ for ids that cannot be drawn.

    Args:
        top_k: the k likeliest stay, and what ties with the last of them.
        top_p: of these, the fewest that together have this probability stay (nucleus sampling, arXiv 1904.09751), and ties.
        crossing: the last of these stays, with which the probability is reached; False: only if it is the likeliest (ReMDM, 2503.00307).
    """
    if top_k is not None and top_k < logits.shape[-1]:
        least = logits.topk(top_k, dim=-1).values[..., -1:]
        logits = logits.masked_fill(logits < least, -torch.inf)
    if top_p is not None and top_p < 1:
        ranked = logits.sort(dim=-1, descending=True).values
        shares = ranked.softmax(-1)
        ahead = shares.cumsum(-1) - shares  # probability of all that are likelier
        dropped = ahead >= top_p if crossing else (shares.cumsum(-1) > top_p) & (ahead > 0)
        least = ranked.masked_fill(dropped, torch.inf).amin(dim=-1, keepdim=True)
        logits = logits.masked_fill(logits < least, -torch.inf)
    return logits


def choose(logits: Tensor, noise: Tensor) -> Tensor:
    """An id (…,) drawn from softmax(logits), logits (…, V), with noise uniform (…,) in [0, 1) or Gumbel (…, V)."""
    if noise.ndim == logits.ndim:
        return (logits + noise.to(logits.dtype)).argmax(-1)
    cdf = logits.softmax(-1).cumsum(-1)
    point = noise.unsqueeze(-1) * cdf[..., -1:]  # the last entry is 1 up to rounding
    return torch.searchsorted(cdf, point, right=True).squeeze(-1).clamp_(max=logits.shape[-1] - 1)
