"""Token selection: of the tokens that a step draws, a few get a chain of another length; `select` of a stage (mgen.samplers.stages).

A reading of the frequency-weighted token selection of "Generation then Reconstruction" (GtR, arXiv 2510.17171), for which no code was
published. Each token has a score from its context vector z (D,), of the image's own class: A_n = |DFT(z)|(n) along the channels,
n = 1 … D/2, without the constant term, and the score Σ A_n · (1 + n / (D/2)). The channels have no natural order, so that what the
frequencies mean is open: compare with `by: random`.

A token uses the first numbers of its own noise whatever its chain, so that it depends on its image alone.

Notation: B images, M positions drawn in a step, k of them selected, D width of a context vector, C numbers of a token.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from mgen.nn.attention import put
from mgen.samplers.stages import Selection


@dataclass(frozen=True, kw_only=True)
class Split:
    """How the tokens of a step are split: `quota` (B, 1) of each row are selected, `fewest` … `most` of them.

    `head_steps`: of their chain. `by`: see Selection.
    """

    head_steps: int
    by: str
    fewest: int
    most: int
    quota: Tensor = field(repr=False, compare=False)

    @classmethod
    def of(cls, select: Selection, head_steps: int, reveal: Sequence[int], device: torch.device | str) -> "Split":
        """For a step that reveals so many tokens of each row; `head_steps`: of the selected tokens in this step."""
        counts = select.counts(reveal)
        quota = torch.tensor(counts, device=device).unsqueeze(1)
        return cls(head_steps=head_steps, by=select.by, fewest=min(counts), most=max(counts), quota=quota)

    def __str__(self) -> str:
        """Such as 6 × 50, of six tokens with a chain of 50 steps."""
        count = f"{self.most}" if self.fewest == self.most else f"{self.fewest}–{self.most}"
        return f"{count} × {self.head_steps}"

    def ranked(self, score: Tensor, revealed: Tensor) -> Tensor:
        """Rows of the step (B, M), the selected ones first, by score (B, M); `revealed` (B, 1): tokens that each image reveals."""
        place = torch.arange(score.shape[1], device=score.device)
        return score.masked_fill(place >= revealed, -torch.inf).argsort(dim=1, descending=True, stable=True)

    def draw(self, rank: Tensor, head_steps: int | None, sample: Callable[[Tensor, int | None], Tensor]) -> Tensor:
        """Tokens (B, M, C) of all rows: two draws, of the selected rows and of the others.

        Args:
            rank: as of `ranked`. head_steps: of the others. sample: tokens (B, N, C) of rows (B, N), by chains of so many steps.
        """
        chosen = sample(rank[:, : self.most], self.head_steps)
        if self.fewest == rank.shape[1]:
            return put(torch.empty_like(chosen), rank, chosen)
        others = sample(rank[:, self.fewest :], head_steps)
        # Rows that some images select and others do not, where images reveal other numbers of tokens, are drawn both ways.
        both = self.most - self.fewest
        place = torch.arange(self.fewest, self.most, device=rank.device)
        middle = torch.where((place < self.quota).unsqueeze(-1), chosen[:, self.fewest :], others[:, :both])
        tokens = torch.cat([chosen[:, : self.fewest], middle, others[:, both:]], dim=1)
        return put(torch.empty_like(tokens), rank, tokens)


def frequency(z: Tensor) -> Tensor:
    """The score (B, M) of context vectors z (B, M, D), in fp32; see above."""
    amplitude = torch.fft.rfft(z.float()).abs()[..., 1:]  # (B, M, D/2)
    half = z.shape[-1] / 2
    weight = 1 + torch.arange(1, amplitude.shape[-1] + 1, device=z.device) / half
    return (amplitude * weight).sum(-1)
