"""TokenSpec: the token format a tokenizer and a generator share."""

from dataclasses import asdict
from operator import attrgetter
from typing import Annotated, Literal

import torch
from pydantic import Field

from mgen.utils.config import Settings
from mgen.utils.errors import MgenError
from mgen.utils.schema import Listed, Size, build, schema

# Of latents, and of the levels of quantized ones.
Bound = Annotated[float, Field(ge=-1e6, le=1e6)]
Scale = Annotated[float, Field(gt=0, le=1e6)]
Span = Annotated[float, Field(gt=0, le=100)]
Form = Literal["published", "clean"]


def has_values(array: object) -> bool:
    """Whether the values of an array can be read one by one: no tensor that is sparse or on the meta device."""
    return not isinstance(array, torch.Tensor) or (array.layout == torch.strided and not array.is_meta)


def check_range(low: float, high: float) -> None:
    """Raise MgenError unless low < high."""
    if not low < high:
        raise MgenError(f"range [{low:g}, {high:g}]: the lower number comes first")


@schema
class LevelSpec:
    """Which numbers the ids of quantized tokens stand for (see mgen.nn.levels): form, range and span of the levels."""

    form: Form = "published"
    low: Bound = -5.0
    high: Bound = 5.0
    span: Span = 3.0

    def __post_init__(self) -> None:
        check_range(self.low, self.high)

    def __str__(self) -> str:
        span = f", span {self.span:g}" if self.form == "published" else ""
        return f"{self.form} in [{self.low:g}, {self.high:g}]{span}"


@schema
class TokenSpec:
    """The tokens of one image.

    Args:
        kind: "index" (one id per position), "vector" (a real vector per position) or "multi-index" (one id per channel).
        length: positions per image, L. channels: numbers per position (1 for "index").
        grid: (rows, columns) with rows · columns = length − global_tokens, or None for tokens without a place in the image.
        vocab_size: number of ids (kinds "index" and "multi-index"), else None.
        scale: factor that brought latents to unit variance ("vector" and "multi-index"; None: not known), 1.0 for "index".
        levels: of "multi-index", which numbers the ids stand for; None: unknown.
        global_tokens: so many positions, the first ones, describe the image as a whole and have no place in it (Hita,
            arXiv 2507.02358); the others make the grid, and their ids are those of a codebook of their own.
    """

    kind: Literal["index", "vector", "multi-index"]
    length: Size
    grid: Listed[tuple[Size, Size]] | None = None
    vocab_size: Size | None = None
    channels: Size = 1
    scale: Scale | None = 1.0
    levels: LevelSpec | None = None
    global_tokens: Annotated[int, Field(ge=0, le=2**20)] = 0

    def __post_init__(self) -> None:
        if (self.vocab_size is None) != (self.kind == "vector"):
            needed = "none, as they are no ids" if self.kind == "vector" else "the number of ids"
            raise MgenError(f"vocab_size is {self.vocab_size}: of tokens of kind {self.kind!r} it is {needed}")
        if self.kind == "index" and self.channels != 1:
            raise MgenError(f"channels is {self.channels}: tokens of kind 'index' are one id, so 1")
        rows = self.length - self.global_tokens
        if rows < 0 or (self.grid is not None and self.grid[0] * self.grid[1] != rows):
            raise MgenError(
                f"length is {self.length}, grid {self.grid and list(self.grid)}, global_tokens {self.global_tokens}: rows times "
                "columns of the grid must be length − global_tokens"
            )

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the tokens of one image: (L,), or (L, C)."""
        return (self.length,) if self.kind == "index" else (self.length, self.channels)

    @property
    def dtype(self) -> torch.dtype:
        """Of its tokens: int64 for ids, float32 for vectors."""
        return torch.float32 if self.kind == "vector" else torch.int64

    @property
    def side(self) -> int:
        """Rows of a square grid; MgenError for other tokens."""
        if self.grid is None or self.grid[0] != self.grid[1]:
            raise MgenError(f"a square token grid is needed, this one is {self.grid}")
        return self.grid[0]

    def to_dict(self) -> Settings:
        """As written to JSON, without what has its default."""
        kept = {k: v for k, v in asdict(self).items() if k in ("kind", "length") or v != getattr(TokenSpec, k)}
        return kept | ({"grid": list(self.grid)} if self.grid else {})

    @classmethod
    def from_dict(cls, data: Settings) -> "TokenSpec":
        """From a mapping of a file; MgenError for an unknown key, a missing one or a value of the wrong type."""
        return build(cls, dict(data), "tokens.")

    def require(self, other: "TokenSpec", *, by: str) -> None:
        """Raise MgenError unless these tokens of a tokenizer are the tokens `other` that a generator `by` takes."""
        if self.kind != other.kind:
            raise MgenError(f"{by} takes tokens of kind {other.kind!r}, the tokenizer makes {self.kind!r}")
        sizes = attrgetter("length", "global_tokens", "vocab_size", "channels")
        if sizes(self) != sizes(other):
            raise MgenError(
                f"{by} takes {other.sizes()}, the tokenizer makes {self.sizes()}: use the tokenizer this generator was trained on"
            )
        if self.kind == "vector" and self.scale is None:
            raise MgenError(
                "the tokenizer has no scale: measure it with mgen cache --data DATA --tokenizer DIR --measure-scale 2000, and set "
                "what is printed (`scale`, or the statistics of the channels) in its config.json or when converting"
            )
        if self.levels and other.levels and str(self.levels) != str(other.levels):
            raise MgenError(
                f"{by} was trained on levels {other.levels}, the tokenizer has {self.levels}: the same ids stand for other numbers; "
                "make the tokenizer again with those levels (mgen convert quantize)"
            )
        # Half a per mille of slack: a scale that was written down with three digits is the same scale.
        if self.scale and other.scale and abs(self.scale / other.scale - 1) > 5e-4:
            raise MgenError(
                f"{by} was trained on latents times {other.scale}, the tokenizer's scale is {self.scale}: images would come out "
                "under- or over-saturated; use the tokenizer this generator was trained on, or set the scale of one of them"
            )

    def sizes(self) -> str:
        """Words for an error text."""
        each = f"{self.channels} numbers" if self.kind == "vector" else f"{self.vocab_size} ids"
        each = f"{self.channels} channels of {each}" if self.kind == "multi-index" else each
        return f"{self.length} tokens of {each}" + (
            f", the first {self.global_tokens} global" if self.global_tokens else ""
        )
