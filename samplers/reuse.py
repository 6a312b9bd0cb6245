"""Reuse: what one step's forward pass leaves for the next ones. One policy for every trunk; the setting `reuse:`.

ReCAP (Liu et al., arXiv 2505.19089): steps are cut into groups. The first step of a group is *full*: all tokens are computed,
the keys and values of every layer are cached, and the positions of the whole group are settled. The others are *cached* steps: only
the group's positions are computed and attend to the cache.

ENAT (arXiv 2411.06959): full steps carry the features of visible tokens on. The two compose: features are carried from one full
step to the next, and cached steps in between read what the last full one stored.

LazyMAR (arXiv 2503.12450): what the null class changes is kept for a few steps (mgen.samplers.condition), and what the tokens are
made of (mgen.samplers.token_cache).
"""

from dataclasses import field
from typing import Annotated, Literal

from pydantic import Field

from mgen.samplers.condition import Condition
from mgen.samplers.token_cache import TokenCache
from mgen.utils.config import Settings
from mgen.utils.errors import MgenError
from mgen.utils.schema import Natural, build, schema


@schema
class Reuse:
    """The policy: which steps are cached ones, and what they compute.

    Args:
        cached: cached steps after each full one; 0: every step is full. full_first: steps before the first group.
        inside: order within a group: "order", the sampler's own, or "raster", row by row (ReCAP's MAR code).
        refresh: computed anew in a cached step: "group", all of the group's positions (published), or "latest", those revealed in
            the step before and those about to be revealed; the group's others stay as they were.
        prefix: compute the class token, buffer or register anew in cached steps (published); False keeps it (`cache_buffer`).
        head_share: steps of a diffusion head's chain in cached steps, as a share of those in full ones (ReCAP's MAR code: 0.5,
            whatever its option diff_fast_ratio says).
        late_guidance: a cached step draws with the guidance of the step before (ReCAP's MaskGIT code).
        features: trunks that carry features (ENAT) continue from those of the full step before; others have none.
        condition: how long the difference between the null class's rows and the class's is kept (LazyMAR), see mgen.samplers.condition.
        tokens: which steps compute few tokens, and which of them (LazyMAR), see mgen.samplers.token_cache.
    """

    cached: Natural = 0
    full_first: Natural = 0
    inside: Literal["order", "raster"] = "order"
    refresh: Literal["group", "latest"] = "group"
    prefix: bool = True
    head_share: Annotated[float, Field(gt=0, le=1)] = 1.0
    late_guidance: bool = False
    features: bool = True
    condition: Condition = field(default_factory=Condition)
    tokens: TokenCache = field(default_factory=TokenCache)

    def __post_init__(self) -> None:
        if self.cached and self.tokens.lazy:
            raise MgenError(
                f"reuse.cached is {self.cached} and reuse.tokens.every {self.tokens.every}: cached and lazy steps overwrite the same keys "
                "and values, so that a run takes one kind: set reuse.cached=0 or reuse.tokens.every=1"
            )

    @property
    def equal_counts(self) -> bool:
        """Whether every image of a batch must reveal as many tokens as the others."""
        return self.cached > 0 or self.tokens.lazy

    @property
    def off(self) -> str:
        """The setting that makes every step a full one."""
        return "reuse.tokens.every=1" if self.tokens.lazy else "reuse.cached=0"

    @classmethod
    def of(cls, settings: Settings | None) -> "Reuse":
        """From a mapping; MgenError for a key or value that is not allowed."""
        return build(cls, {} if settings is None else settings, "reuse.")

    def groups(self, start: int, steps: int) -> list[list[int]]:
        """The steps `start` … `steps` − 1 cut into groups; the first of each is full."""
        run, first, size = list(range(start, steps)), self.full_first, 1 + self.cached
        return [[t] for t in run[:first]] + [run[i : i + size] for i in range(first, len(run), size)]
