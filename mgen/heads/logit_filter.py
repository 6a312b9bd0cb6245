"""From logits to an id: which ids can be drawn, and the draw. Notation: V ids."""

import torch
from torch import Tensor

from mgen.utils.errors import MgenError


def check_cuts(top_k: object, top_p: object) -> None:
    """MgenError unless these are settings of `keep_likeliest`."""
    if top_k is not None and (not isinstance(top_k, int) or isinstance(top_k, bool) or top_k < 1):
        raise MgenError(f"head.top_k is {top_k!r}: a whole number of at least 1 is needed, or null for all ids")
    if top_p is not None and (not isinstance(top_p, int | float) or isinstance(top_p, bool) or not 0 < top_p <= 1):
        raise MgenError(f"head.top_p is {top_p!r}: a probability above 0 and up to 1 is needed, or null for all ids")


def keep_likeliest(logits: Tensor, *, top_k: int | None = None, top_p: float | None = None) -> Tensor:
    """Logits (…, V) with −∞ for ids that cannot be drawn.

    Args:
        top_k: the k likeliest stay, and what ties with the last of them.
        top_p: of these, the fewest that together have this probability stay (nucleus sampling, arXiv 1904.09751), and ties.
    """
    if top_k is not None and top_k < logits.shape[-1]:
        least = logits.topk(top_k, dim=-1).values[..., -1:]
        logits = logits.masked_fill(logits < least, -torch.inf)
    if top_p is not None and top_p < 1:
        ranked = logits.sort(dim=-1, descending=True).values
        shares = ranked.softmax(-1)
        ahead = shares.cumsum(-1) - shares  # probability of all that are likelier
        least = ranked.masked_fill(ahead >= top_p, torch.inf).amin(dim=-1, keepdim=True)
        logits = logits.masked_fill(logits < least, -torch.inf)
    return logits


def choose(logits: Tensor, noise: Tensor) -> Tensor:
    """An id (…,) drawn from softmax(logits), logits (…, V), with noise uniform (…,) in [0, 1) or Gumbel (…, V)."""
    if noise.ndim == logits.ndim:
        return (logits + noise.to(logits.dtype)).argmax(-1)
    cdf = logits.softmax(-1).cumsum(-1)
    point = noise.unsqueeze(-1) * cdf[..., -1:]  # the last entry is 1 up to rounding
    return torch.searchsorted(cdf, point, right=True).squeeze(-1).clamp_(max=logits.shape[-1] - 1)
