"""The contract of trunks: rows of tokens + class → context vectors. A trunk knows nothing of what a token is or how it is drawn.

Who calls what, in this order, for a run of a sampler:

1. `start` once: what depends on the class alone, and an empty cache.
2. `forward` for every full pass: context vectors of the positions asked for. Where cached steps follow, keys and values are kept.
3. `cached_step` between full passes, for trunks with `capabilities.cached_steps`, or `lazy_step`, with `capabilities.lazy_layers`.

Training calls `training_noise` on the mask's ranks, then `training_context` once per step.

Notation: B batch, L rows (tokens or windows of them), M positions asked for, D width of the rows, E width of the context.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from mgen.generators.embedder import TokenRows
from mgen.nn.cache import Cache, CachedStep, KVCache, LazyStep
from mgen.utils.errors import MgenError
from mgen.utils.fitting import DataRows, Rows
from mgen.utils.registry import Configured, Registry

TRUNKS: Registry["Trunk"] = Registry("trunk", "mgen.generators.trunks")
register_trunk = TRUNKS.register


@dataclass(frozen=True, kw_only=True)
class Capabilities:
    """What a sampler may ask of a generator. A trunk says some of it, the generator adds the rest.

    Args:
        order: "any", or tokens are drawn one after the other, each from those before it alone: "causal", as they stand;
            "sequential", in any order that is settled before the run.
        cached_steps: whether there is a `cached_step` (ReCAP). lazy_layers: layers behind whose attention a `lazy_step` can drop rows, the
            first ones (LazyMAR); 0: there is none. log_prob: whether draws have one, by which positions can be ranked.
        carried_features: whether full passes read features of the pass before (ENAT); null rows must then see every pass.
        joint: whether the head draws all positions together, from the context of all. windows: whether windows of tokens are masked
            and drawn as one. two_stages: whether a first stage draws tokens whose context the second one reads.
        guided_by: what the rows behind those of the images stand for under guidance: the "null class", or a "guide", another generator
            (mgen.generators.guided); None: there is nothing to guide by.
        denoises: whether the trunk reads noisy tokens, so that the head calls it at every step of its chain; a causal one then
            computes what earlier steps left out, such as null rows.
    """

    order: Literal["any", "causal", "sequential"] = "any"
    cached_steps: bool = True
    lazy_layers: int = 0
    carried_features: bool = False
    log_prob: bool = True
    joint: bool = False
    windows: bool = False
    two_stages: bool = False
    denoises: bool = False
    guided_by: Literal["null class", "guide"] | None = "null class"

    @property
    def one_by_one(self) -> bool:
        """Whether tokens are drawn one after the other."""
        return self.order != "any"

    @property
    def skips_tail(self) -> bool:
        """Whether the last tokens can be left undrawn."""
        return self.order == "causal" and not self.windows


@dataclass(frozen=True, kw_only=True)
class PassOptions:
    """What a full pass is asked for.

    Args:
        positions: int64 (B, M), the positions whose context is wanted; None for all. cache: of the run.
        visible: fewest and most known tokens of an image, where the caller knows them; saves reading them back from a GPU.
        finished: context is returned as heads take it; False: as `Trunk.to_context` takes it.
        keep: None, or how many tokens the cached or lazy steps reveal that follow: keys and values are then kept.
        keep_images: of so many rows of the batch alone, the first ones; None: of all.
    """

    positions: Tensor | None = None
    visible: tuple[int, int] | None = None
    cache: Cache | None = None
    keep: int | None = None
    keep_images: int | None = None
    finished: bool = True

    def counts(self, known: Tensor) -> tuple[int, int]:
        """Fewest and most known tokens of a row of bool known (B, L)."""
        return self.visible if self.visible is not None else count_known(known)

    def layer(self, name: str, *, grows: bool = False) -> KVCache | None:
        """Where the keys and values of layer `name` are left; None if no cached step follows.

        `grows`: the layer reads known tokens only, so the tokens of cached steps are appended behind the stored ones.
        """
        if self.cache is None or self.keep is None:
            return None
        layer = self.cache.layer(name)
        layer.room, layer.images = self.keep if grows else 0, self.keep_images
        return layer


FULL = PassOptions()


@dataclass(frozen=True, kw_only=True)
class Layout:
    """The rows of an image: how many, their grid (rows, columns) or None, and how many global ones stand in front of it."""

    length: int
    grid: tuple[int, int] | None = None
    global_tokens: int = 0

    @property
    def rows(self) -> tuple[Rows, ...]:
        """What the rows of a table with one for every row stand for."""
        grid = self.grid or (self.length - self.global_tokens,)
        front = (Rows("global tokens", (self.global_tokens,)),) if self.global_tokens else ()
        return (*front, Rows("positions", grid, "interpolated"))


Initializer = Callable[[Tensor], Tensor]
normal: Initializer = partial(nn.init.normal_, std=0.02)
truncated_normal: Initializer = partial(nn.init.trunc_normal_, std=0.02)


def initialize_layer(
    module: nn.Module, linear: Initializer = nn.init.xavier_uniform_, embedding: Initializer = normal
) -> None:
    """Initial weights of a linear layer or a table by these functions, biases 0; nothing for other modules."""
    if isinstance(module, nn.Linear):
        linear(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, nn.Embedding):
        embedding(module.weight)


class Trunk(nn.Module, Configured):
    """Base of the trunks. The constructor takes (config, layout).

    Attributes:
        width: D, of the rows and class vectors it reads. context_width: E.
        initial_values: draw the initial weights of linear layers and of tables; the defaults are those of most systems.
        cache_type: what `start` makes, unless it is overridden.
        masks_inputs: whether unknown tokens enter as a mask row of the embedder; else the trunk has mask tokens of its own.
        partial_windows: whether a row may hold known and unknown tokens at once (Token-Shuffle, one token drawn at a time).
        window_settings: as of an embedder, where tokens of windows are drawn one by one.
        lora_targets: what the names of its linear layers end with that low-rank adapters are for by default.
    """

    passes: ClassVar[tuple[str, ...]] = (
        "forward",
        "cached_step",
        "lazy_step",
    )  # that sampling calls, see Composed.compile
    capabilities: Capabilities = Capabilities()
    initial_values: ClassVar[tuple[Initializer, Initializer]] = (nn.init.xavier_uniform_, normal)
    cache_type: ClassVar[type[Cache]] = Cache
    masks_inputs: ClassVar[bool] = True
    partial_windows: ClassVar[bool] = False
    window_settings: dict[str, object] | None = None
    lora_targets: ClassVar[tuple[str, ...]] = ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")
    width: int
    context_width: int

    def __getstate__(self) -> dict[str, Any]:
        """Of a copy, which is not compiled: compiled passes belong to the one that they were made of."""
        return {name: value for name, value in super().__getstate__().items() if name not in self.passes}

    @property
    def mask(self) -> Tensor:
        """The mask token (D,), of a trunk with one of its own; MgenError for others."""
        raise MgenError(f"trunk {self.type_name!r} has no mask token: set classes.null_class=true")

    def data_rows(self) -> DataRows:
        """The tables with a row for every position, see Model.data_rows."""
        return {}

    def initialize(self, module: nn.Module) -> None:
        """Initial values of one module, of the trunk itself or of embedder, classes and head around it (`nn.Module.apply`)."""
        initialize_layer(module, *self.initial_values)

    def start(self, classes: Tensor, *, prefix: Tensor | None = None, carry: bool = False) -> Cache:
        """An empty cache for a run.

        Args:
            classes: class vectors (B, D), with guidance those of the null class behind.
            prefix: rows (B or 1, S, D) of a first stage, for trunks that read one. carry: leave features for the next full pass.
        """
        if prefix is not None:
            raise MgenError(f"trunk {self.type_name!r} reads no first stage")
        return self.cache_type()

    def forward(self, rows: TokenRows, classes: Tensor, options: PassOptions = FULL) -> Tensor:
        """A full pass: context (B, M, E) at `options.positions`, or (B, L, E), of tokens and class vectors (B, D)."""
        raise NotImplementedError

    def to_context(self, x: Tensor, positions: Tensor | None = None) -> Tensor:
        """Context (B, M, E) at positions (B, M), None: all, of what a pass returns that is not `finished`.

        For trunks with layers at the end that work on each position alone: what is added to their input passes them (LazyMAR).
        """
        return x

    def cached_step(self, rows: TokenRows, classes: Tensor, cache: Cache, step: CachedStep) -> Tensor:
        """Context (B, asked, E) of a group's positions, of which alone the rows are computed anew (ReCAP, arXiv 2505.19089, §3).

        `classes` may be the first rows of those of the full pass. Keys and values in `cache` are overwritten.
        """
        raise MgenError(f"trunk {self.type_name!r} has no cached step: use a sampler without reuse")

    def lazy_step(self, rows: TokenRows, classes: Tensor, cache: Cache, step: LazyStep) -> Tensor:
        """Context (B, n, E) at `step.drawn`, computed of few rows (LazyMAR, arXiv 2503.12450).

        `classes` may be the first rows of those of the full pass. What is kept in `cache` is overwritten.
        """
        raise MgenError(f"trunk {self.type_name!r} has no lazy step: use a sampler without reuse.tokens")

    def carry(self, rows: TokenRows, classes: Tensor, options: PassOptions) -> None:
        """A carry-only step: nothing is drawn, but carried features go on being projected, as published (ENAT)."""

    def training_noise(self, rank: Tensor, known: Tensor) -> Tensor | None:
        """What `training_context` needs beside the mask, bool (B, L), from the ranks (B, L) that made it; None for most trunks.

        Trunks that draw in any settled order get that order (B, L) as ranks: the position of the first token, of the second, …
        """
        return None

    def training_context(
        self, rows: TokenRows, classes: Tensor, options: PassOptions = FULL, *, noise: Tensor | None = None
    ) -> Tensor:
        """Context in training, as `forward`; `noise` as `training_noise` made it."""
        return self(rows, classes, options)


def count_known(known: Tensor) -> tuple[int, int]:
    """Fewest and most known tokens of a row of bool known (B, L); reads them back from the device."""
    counts = known.sum(1)
    fewest, most = torch.stack([counts.amin(), counts.amax()]).tolist()
    return fewest, most


def known_first(known: Tensor, count: int) -> Tensor:
    """Positions (B, count), known ones first, both kinds ascending, for bool known (B, L)."""
    return (~known).to(torch.uint8).argsort(dim=1, stable=True)[:, :count]


def unknown_first(known: Tensor, count: int) -> Tensor:
    """Positions (B, count), unknown ones first, both kinds ascending."""
    return known.to(torch.uint8).argsort(dim=1, stable=True)[:, :count]


def table(*shape: int) -> nn.Parameter:
    """A learned table with initial values normal, std 0.02."""
    return nn.Parameter(torch.empty(*shape).normal_(std=0.02))
