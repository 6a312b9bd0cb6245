"""Reuse: what of one step's computation serves the next ones. One policy for every trunk.

ReCAP (Liu et al., arXiv 2505.19089): steps are cut into groups. The first step of a group is *full*: all tokens are evaluated and
the keys and values of every layer kept; the positions of the whole group are settled then. The other steps are *local*: only
the group's positions are computed anew and attend to what was kept.

ENAT (arXiv 2411.06959): full evaluations carry the features of visible tokens. The two compose: features are carried from one full
step to the next, and local steps in between read what the last full one kept.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from mgen.utils.errors import MgenError, check_choice
from mgen.utils.modeling import check_keys


@dataclass(frozen=True, kw_only=True)
class Reuse:
    """The policy.

    Args:
        local: local steps after each full one; 0: every step is full. full_first: steps before the first group.
        groups: instead of both, the number of steps of every group, e.g. [1, 1, 1, 2, 2, 3]; they sum to the steps of the run.
        inside: order within a group: "order", the sampler's own, or "raster", row by row (ReCAP's MAR code).
        refresh: computed anew in a local step: "group", all of the group's positions (published), or "latest", those revealed in
            the step before and those about to be revealed; the group's others stay as they were.
        prefix: compute the class token, buffer or register anew in local steps (published); False keeps it (`cache_buffer`).
        head_share: steps of a diffusion head's chain in local steps, as a share of those in full ones (ReCAP's MAR code: 0.5,
            whatever its option diff_fast_ratio says).
        late_guidance: a local step draws with the guidance of the step before (ReCAP's MaskGIT code).
        features: trunks that carry features (ENAT) continue from those of the full evaluation before; others have none.
    """

    local: int = 0
    full_first: int = 0
    groups: Sequence[int] | None = None
    inside: Literal["order", "raster"] = "order"
    refresh: Literal["group", "latest"] = "group"
    prefix: bool = True
    head_share: float = 1.0
    late_guidance: bool = False
    features: bool = True

    def __post_init__(self) -> None:
        for name in ("local", "full_first"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 0:
                raise MgenError(f"reuse.{name} is {value!r}: a whole number of at least 0 is needed")
        for name in ("prefix", "late_guidance", "features"):
            if not isinstance(getattr(self, name), bool):
                raise MgenError(f"reuse.{name} is {getattr(self, name)!r}: expected true or false")
        if self.groups is not None:
            whole = isinstance(self.groups, Sequence) and not isinstance(self.groups, str)
            if not whole or not all(isinstance(g, int) and g > 0 for g in self.groups):
                raise MgenError(
                    f"reuse.groups is {self.groups!r}: a list of whole numbers of at least 1, one per group"
                )
            if self.local or self.full_first:
                raise MgenError("reuse.groups says all: leave reuse.local and reuse.full_first out")
        check_choice("reuse.inside", self.inside, ("order", "raster"))
        check_choice("reuse.refresh", self.refresh, ("group", "latest"))
        if isinstance(self.head_share, bool | str) or not 0 < self.head_share <= 1:
            raise MgenError(f"reuse.head_share is {self.head_share!r}: a share in 0 … 1 is needed")

    @classmethod
    def of(cls, settings: Mapping[str, Any] | None) -> "Reuse":
        """From a mapping; MgenError for a key or value that is not allowed."""
        if settings is not None and not isinstance(settings, Mapping):
            raise MgenError(f"reuse is {settings!r}: expected a mapping, such as {{local: 1, full_first: 12}}")
        check_keys(dict(settings or {}), set(cls.__dataclass_fields__), "reuse.")
        return cls(**(settings or {}))

    def grouped(self, start: int, steps: int) -> list[list[int]]:
        """The steps `start` … `steps` − 1 cut into groups; the first of each is full.

        Raises:
            MgenError: `groups` that do not sum to the number of steps.
        """
        if self.groups is not None:
            if sum(self.groups) != steps - start:
                raise MgenError(f"reuse.groups sum to {sum(self.groups)}, the run has {steps - start} steps")
            sizes = list(self.groups)
        else:
            first = min(self.full_first, steps - start)
            whole, rest = divmod(steps - start - first, 1 + self.local)
            sizes = [1] * first + [1 + self.local] * whole + [rest] * (rest > 0)
        out, first = [], start
        for size in sizes:
            out.append(list(range(first, first + size)))
            first += size
        return out

    @property
    def any_local(self) -> bool:
        """Whether there are local steps at all."""
        return self.local > 0 or any(g > 1 for g in self.groups or ())
