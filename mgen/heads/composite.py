"""Heads made of heads: one for each codebook, one for all ids of a window, one for a window of vectors.

Notation: B batch, M positions, D width, V ids, s² tokens of a window.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, Self

import torch
from torch import Tensor, nn

from mgen.heads.categorical import CategoricalConfig, CategoricalHead, DrawSettings, OwnTable
from mgen.heads.head import Draw, Head, HeadInputs, HeadNoise, NoiseSpec, PlanT
from mgen.nn.blocks import Blocks
from mgen.nn.halves import by_halves, sharing
from mgen.nn.windows import ResidualMLP, TokenUnshuffle
from mgen.utils.config import Settings
from mgen.utils.fitting import DataRows, Rows, below


class _Composite(Head[PlanT]):
    """What the heads here share: settings and checks are those of the leading head inside."""

    inner: Head[PlanT]

    @property
    def lead(self) -> Head[PlanT]:
        return self.inner

    @property
    def settings(self) -> Settings:
        return self.lead.settings

    def data_rows(self, table: tuple[Rows, ...] = ()) -> DataRows:
        return below("inner", self.inner.data_rows(table))

    def check(self, settings: Settings, *, temperatures: Sequence[float]) -> None:
        self.lead.check(settings, temperatures=temperatures)

    def plan(self, settings: Settings) -> PlanT:
        return self.lead.plan(settings)


class PerCodebookHead(_Composite[DrawSettings]):
    """Categorical heads for global tokens and for those of the grid, which have codebooks of their own.

    A draw evaluates the head of the step's part alone. Settings and noise are those of CategoricalHead.
    """

    has_moments = True

    def __init__(self, config: CategoricalConfig, inputs: HeadInputs) -> None:
        super().__init__()
        vocab_size, table = inputs.tokens.vocab_size, inputs.table
        assert vocab_size is not None
        if config.table == "own":
            table = self.table = OwnTable(2 * vocab_size, inputs.width)
        self.parts = Blocks(
            CategoricalHead(config, HeadInputs(tokens=inputs.tokens, width=inputs.width, table=table, first=first))
            for first in (0, vocab_size)
        )
        self.width = inputs.width

    def data_rows(self, table: tuple[Rows, ...] = ()) -> DataRows:
        out: DataRows = {}
        if hasattr(self, "table"):
            shape = (self.parts[0].vocab_size,)
            table = (Rows("global ids", shape), Rows("ids", shape))
            out["table.weight"] = {0: table}
        return out | below("parts.0", self.parts[0].data_rows(table)) | below("parts.1", self.parts[1].data_rows(table))

    @property
    def lead(self) -> Head[DrawSettings]:
        return self.parts[0]

    def initialize(self, default: Callable[[nn.Module], None]) -> None:
        super().initialize(default)
        if hasattr(self, "table"):
            nn.init.zeros_(self.table.weight)

    def guided_by(self, guide: Head[Any]) -> Self:
        self.check_guide(guide)
        assert isinstance(guide, PerCodebookHead)
        return sharing(self, parts=Blocks(own.guided_by(other) for own, other in zip(self.parts, guide.parts)))

    def sample(
        self,
        z: Tensor,
        *,
        noise: Tensor,
        plan: DrawSettings,
        temperature: float = 1.0,
        guidance: float | Tensor | None = None,
        part: int = 0,
        exponent: float = 0.0,
    ) -> Draw:
        """See CategoricalHead.sample. part: 0 for global tokens, 1 for the others; one for all of z."""
        return self.parts[part].sample(
            z, noise=noise, plan=plan, temperature=temperature, guidance=guidance, exponent=exponent
        )

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
        """See Head.log_moments and `sample`."""
        return self.parts[part].log_moments(z, plan=plan, temperature=temperature, guidance=guidance, exponent=exponent)

    def loss(
        self,
        z: Tensor,
        target: Tensor,
        *,
        noise: HeadNoise | None = None,
        label_smoothing: float = 0.0,
        part: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Cross entropy and hit of every token, both (n,), for z (n, D) and target (n,).

        Args:
            part: bool (n,), True outside the global tokens; None: all are global.
        """
        part = torch.zeros_like(target, dtype=torch.bool) if part is None else part
        losses, hits = z.new_zeros(target.shape, dtype=torch.float32), z.new_zeros(target.shape, dtype=torch.float32)
        for head, own in zip(self.parts, (~part, part)):
            some = head.loss(z[own], target[own], label_smoothing=label_smoothing)
            losses, hits = (whole.masked_scatter(own, value) for whole, value in zip((losses, hits), some))
        return losses, hits


class WindowHead(_Composite[DrawSettings]):
    """Ids of all tokens of a window, independent of one another given its context (Token-Shuffle, arXiv 2504.17789).

    Args:
        head: draws an id from each part. side: of the windows. blocks: residual MLPs in front.
    """

    inner: CategoricalHead

    def __init__(self, head: CategoricalHead, *, side: int, blocks: int) -> None:
        super().__init__()
        self.inner, self.width, self.has_moments = head, head.width, head.has_moments
        self.split = TokenUnshuffle(head.width, side, blocks=blocks)

    @property
    def unshuffle(self) -> TokenUnshuffle:
        return self.split

    def noise_spec(self, settings: Settings) -> NoiseSpec:
        """One uniform number for each id of a window."""
        return NoiseSpec(shape=(self.split.parts,))

    def opened(self, z: Tensor) -> Tensor:
        """What the inner head takes, (…, s², D), for contexts (…, D) of windows."""
        return self.split(z)

    def guided_by(self, guide: Head[Any]) -> Self:
        self.check_guide(guide)
        assert isinstance(guide, WindowHead)
        opened = by_halves(self.opened, guide.opened, widths=(self.width, guide.width))
        return sharing(self, inner=self.inner.guided_by(guide.inner), opened=opened)

    def sample(
        self,
        z: Tensor,
        *,
        noise: Tensor,
        plan: DrawSettings,
        temperature: float = 1.0,
        guidance: float | Tensor | None = None,
        exponent: float = 0.0,
    ) -> Draw:
        """Draw the ids of a window at each position.

        Args:
            z: context (B, M, D), or (2B, M, D) with null rows. noise: uniform (B, M, s²), or Gumbel (B, M, s², V).

        Returns:
            ids (B, M, s²) int64, and the sum (B, M) of their log-probabilities.
        """
        rows = self.opened(z).flatten(1, 2)
        ids, score = self.inner.sample(
            rows, noise=noise.flatten(1, 2), plan=plan, temperature=temperature, guidance=guidance, exponent=exponent
        )
        assert score is not None
        parts = (-1, self.split.parts)
        return Draw(ids.unflatten(1, parts), score.unflatten(1, parts).sum(-1))

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
        """See Head.log_moments: ids of a window are independent, so the sum of their own."""
        rows = self.opened(z).flatten(1, 2)
        each = self.inner.log_moments(rows, plan=plan, temperature=temperature, guidance=guidance, exponent=exponent)
        return each.unflatten(1, (-1, self.split.parts)).sum(-1)

    def loss(
        self, z: Tensor, target: Tensor, *, noise: HeadNoise | None = None, label_smoothing: float = 0.0
    ) -> tuple[Tensor, Tensor]:
        """Cross entropy and share of right guesses, means over a window, both (…,), for z (…, D) and target (…, s²)."""
        losses, hits = self.inner.loss(self.split(z), target, label_smoothing=label_smoothing)
        return losses.mean(-1), hits.mean(-1)


class VectorWindowHead(_Composite[PlanT]):
    """A head of vectors on windows: their s²·C numbers are drawn together, behind residual MLPs on the context."""

    def __init__(self, head: Head[PlanT], *, blocks: int) -> None:
        super().__init__()
        self.inner, self.width = head, head.width
        self.blocks = nn.Sequential(*(ResidualMLP(head.width) for _ in range(blocks)))
        self.token_kinds, self.metric, self.has_log_prob = head.token_kinds, head.metric, head.has_log_prob

    def initialize(self, default: Callable[[nn.Module], None]) -> None:
        self.inner.initialize(default)
        self.blocks.apply(default)
        for block in self.blocks:
            assert isinstance(block, ResidualMLP)
            block.reset_parameters()

    def prepared(self, z: Tensor) -> Tensor:
        """What the inner head takes, (…, D), for contexts (…, D)."""
        return self.blocks(z)

    def guided_by(self, guide: Head[Any]) -> Self:
        self.check_guide(guide)
        assert isinstance(guide, VectorWindowHead)
        prepared = by_halves(self.prepared, guide.prepared, widths=(self.width, guide.width))
        return sharing(self, inner=self.inner.guided_by(guide.inner), prepared=prepared)

    def training_noise(self, length: int, copies: int, rng: torch.Generator) -> HeadNoise | None:
        return self.inner.training_noise(length, copies, rng)

    def noise_spec(self, settings: Settings) -> NoiseSpec:
        return self.inner.noise_spec(settings)

    def sample(
        self, z: Tensor, *, noise: Tensor, plan: PlanT, temperature: float = 1.0, guidance: float | Tensor | None = None
    ) -> Draw:
        return self.inner.sample(self.prepared(z), noise=noise, plan=plan, temperature=temperature, guidance=guidance)

    def loss(
        self, z: Tensor, target: Tensor, *, noise: HeadNoise | None = None, label_smoothing: float = 0.0
    ) -> tuple[Tensor, Tensor]:
        return self.inner.loss(self.blocks(z), target, noise=noise, label_smoothing=label_smoothing)
