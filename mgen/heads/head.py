"""The contract of heads: context vector → token. A head knows nothing of trunks.

Who calls what:

* training: `training_noise` for every image (None for heads without noise), then `loss` on contexts and true tokens;
* sampling: `check` and `plan` once per run, `noise_spec` when the noise of the run is made, `sample` in every step.

Notation: B batch, M positions, D width of the context, C numbers or ids of a token, K copies of a token in the loss.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, NamedTuple, Self, TypeVar

import torch
from torch import Tensor, nn

from mgen.nn.denoising import Denoiser
from mgen.nn.windows import TokenUnshuffle
from mgen.tokens import TokenSpec
from mgen.utils.config import Settings
from mgen.utils.errors import MgenError
from mgen.utils.fitting import DataRows, Rows
from mgen.utils.registry import Configured, Registry
from mgen.utils.schema import build, schema

HEADS: Registry["Head"] = Registry("head", "mgen.heads")
register_head = HEADS.register

PlanT = TypeVar("PlanT")  # what the draws of a run share


class Draw(NamedTuple):
    """Drawn tokens (B, M) or (B, M, C) and their log-probabilities (B, M), or other scores to rank positions by; None: there are none."""

    tokens: Tensor
    log_prob: Tensor | None


def mix(x: Tensor, guidance: float | Tensor | None) -> Tensor:
    """u + s·(c − u) (B, …) of rows (2B, …), those of the class before those of the null class; x itself without guidance s.

    s may be a tensor, one for each of some images; of every image there are as many rows, which stand together.
    """
    if guidance is None:
        return x
    conditional, null = x.chunk(2)
    if isinstance(guidance, Tensor):
        rows = guidance.to(x.dtype).repeat_interleave(len(conditional) // len(guidance))
        guidance = rows.view(-1, *[1] * (x.ndim - 1))
    return torch.lerp(null, conditional, guidance)


@schema
class HeadSettings:
    """Base of the settings of a draw."""

    @classmethod
    def of(cls, settings: Settings) -> Self:
        """From a mapping; MgenError for a key or value that is not allowed."""
        return build(cls, settings, "head.")


@dataclass(frozen=True)
class NoiseSpec:
    """The random numbers that a head takes to draw a token.

    Args:
        normal: standard normal numbers, else uniform ones in [0, 1).
        shape: () for one number; (C,) for one per channel of a token; (count, C) for the steps of a reverse chain.
        every_step: fresh ones in every decoding step, for a head that draws all positions again and again. Chains of single
            tokens need none: a position is drawn once in a run. Uniform numbers are always fresh where a step may redraw.
    """

    normal: bool = False
    shape: tuple[int, ...] = ()
    every_step: bool = False


@dataclass(frozen=True)
class HeadNoise:
    """Timesteps and noise of a loss: t (K, L) and noise (K, L, C) of an image, or (K,) and (K, L, C) of a joint head."""

    t: Tensor
    noise: Tensor


@dataclass(frozen=True, kw_only=True)
class HeadInputs:
    """What a head is built for.

    Args:
        tokens: what it draws: single tokens, or windows of them as one vector. width: D.
        table: the embedder's table of ids, for heads that are tied to it; None if there is none.
        first: first row of the table that this head draws from, for tokens with two codebooks.
        parts: s, tokens that are drawn as one and have a context each; 1 but for trunks that read noisy tokens.
    """

    tokens: TokenSpec
    width: int
    table: nn.Embedding | nn.Linear | None = None
    first: int = 0
    parts: int = 1


class Head(nn.Module, Configured, Generic[PlanT]):
    """Base of the heads. The constructor takes (config, inputs: HeadInputs).

    Attributes:
        token_kinds: kinds of TokenSpec that it draws. metric: what `loss` gives besides the loss, by its name in the logs.
        has_log_prob: whether its draws have probabilities, by which positions can be ranked.
        has_moments: whether `log_moments` is there, and `sample` takes an `exponent`, for an order that chooses positions before it draws.
        joint: whether it draws all positions together, from the context of all.
        width: D.
        passes: methods that are worth compiling in sampling, see Composed.compile.
    """

    passes: ClassVar[tuple[str, ...]] = ()
    token_kinds: tuple[str, ...] = ("index",)
    metric: str = "accuracy"
    has_log_prob: bool = True
    has_moments: bool = False
    joint: ClassVar[bool] = False
    width: int

    def __getstate__(self) -> dict[str, Any]:
        """Of a copy, which is not compiled: compiled passes belong to the one that they were made of."""
        return {name: value for name, value in super().__getstate__().items() if name not in self.passes}

    @property
    def unshuffle(self) -> TokenUnshuffle | None:
        """Takes the context of a window apart; None for heads of single tokens."""
        return None

    def data_rows(self, table: tuple[Rows, ...] = ()) -> DataRows:
        """See Model.data_rows. table: what the rows of the embedder's table of ids stand for, which a head may be tied to."""
        return {}

    def initialize(self, default: Callable[[nn.Module], None]) -> None:
        """Initial values; `default` is the trunk's rule, which heads without a rule of their own follow."""
        self.apply(default)

    def training_noise(self, length: int, copies: int, rng: torch.Generator) -> HeadNoise | None:
        """Random numbers for the loss of one image of `length` tokens, `copies` of each, on the device of `rng`; None if the loss takes
        none."""
        return None

    def loss(
        self, z: Tensor, target: Tensor, *, noise: HeadNoise | None = None, label_smoothing: float = 0.0
    ) -> tuple[Tensor, Tensor]:
        """Loss and metric of every token, for contexts z (…, D) and true tokens (…) or (…, C); leading shapes broadcast."""
        raise NotImplementedError

    def check(self, settings: Settings, *, temperatures: Sequence[float]) -> None:
        """MgenError for settings of a draw that this head does not take, or temperatures (of all steps) that do nothing."""
        self.plan(settings)

    def noise_spec(self, settings: Settings) -> NoiseSpec:
        """The random numbers that a draw with these settings takes."""
        return NoiseSpec()

    def plan(self, settings: Settings) -> PlanT:
        """What all draws of a run share, made once; passed to `sample`."""
        raise NotImplementedError

    def sample(
        self, z: Tensor, *, noise: Tensor, plan: PlanT, temperature: float = 1.0, guidance: float | Tensor | None = None
    ) -> Draw:
        """Draw a token at each position.

        Args:
            z: context (B, M, D), or (2B, M, D) with the rows of the null class after those of the class, if guided.
            noise: as `noise_spec` says, of the positions.
            plan: made by `plan`. temperature: of the draw. guidance: s in u + s·(c − u); None: z has no null rows.
        """
        raise NotImplementedError

    def log_moments(
        self,
        z: Tensor,
        *,
        plan: PlanT,
        temperature: float = 1.0,
        guidance: float | Tensor | None = None,
        exponent: float = math.inf,
        part: int = 0,
    ) -> Tensor:
        """log Σ q · p^exponent (B, M) over all tokens, with q the distribution of the draw and log p what positions are ranked by.

        At exponent ∞: the largest log p (B, M) of tokens that can be drawn. `sample` with the same exponent then draws from q · p^exponent,
        at ∞ the likeliest token. Arguments as for `sample`; part: as there, of heads with parts.
        """
        raise NotImplementedError

    def guided_by(self, guide: "Head[Any]") -> Self:
        """A head for guided draws in which `guide` takes the place of the null class: it shares everything with this one, but answers
        the rows behind by the weights of the guide, whose width may be another (see mgen.nn.halves).

        Raises:
            MgenError: the guide's head is of another kind, or its answers cannot be mixed with those of this one.
        """
        raise MgenError(f"head {self.settings['type']!r} takes no guide: sample without one")

    def check_guide(self, guide: "Head[Any]", *settings: str) -> None:
        """Raise MgenError unless a guide's head is of this one's kind, with the same values of these settings."""
        own, other = self.settings, guide.settings
        if type(guide) is not type(self):
            raise MgenError(
                f"the guide's head is {other['type']!r}, this model's is {own['type']!r}: only answers of one kind can be mixed"
            )
        for name in settings:
            if own[name] != other[name]:
                raise MgenError(
                    f"the guide's head has {name} {other[name]}, this model's has {own[name]}: only answers of one kind can be mixed"
                )


class JointHead(Head[PlanT]):
    """Base of the heads that draw all L positions of an image together, from the context of all."""

    joint: ClassVar[bool] = True

    def loss(
        self,
        z: Tensor,
        target: Tensor,
        *,
        noise: HeadNoise | None = None,
        label_smoothing: float = 0.0,
        masked: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Loss and metric (B, K) of every image and copy, for contexts z (B, L, D) and true tokens (B, L, C).

        Args:
            masked: bool (B, L), True where the error counts; None: everywhere.
        """
        raise NotImplementedError

    def sample(
        self,
        z: Tensor,
        *,
        noise: Tensor,
        plan: PlanT,
        temperature: float = 1.0,
        guidance: float | Tensor | None = None,
        tokens: Tensor | None = None,
        known: Tensor | None = None,
        unknown: Tensor | None = None,
    ) -> Draw:
        """Draw all positions, given the known tokens.

        Args:
            z: context (B, L, D), or (2B, L, D) with null rows. Others as for Head, and:
            tokens, known: (B, L, C), and bool (B, L), True where a token is given; None: no token is.
            unknown: (B, M), the positions that are not known, where the caller has them.
        """
        raise NotImplementedError


class DenoisingHead(Head[PlanT]):
    """Base of the heads whose network is the trunk: it reads noisy tokens and is called at every step of the chain.

    In training `noisy` makes what the trunk reads, and `loss` takes the context of that.
    """

    def noisy(self, target: Tensor, noise: HeadNoise | None) -> tuple[Tensor, Tensor]:
        """Noisy tokens (…, C) and what the time embedding takes (…), of clean ones and the noise of a loss."""
        raise NotImplementedError

    def denoise(
        self,
        denoiser: Denoiser,
        *,
        noise: Tensor,
        plan: PlanT,
        temperature: float = 1.0,
        guidance: float | Tensor | None = None,
    ) -> Draw:
        """Draw tokens (B, M, C) by a chain that asks `denoiser`; other arguments as for `sample`."""
        raise NotImplementedError
