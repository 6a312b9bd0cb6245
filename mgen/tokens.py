"""TokenSpec: what a tokenizer makes and a generator eats."""

from dataclasses import asdict, dataclass
from typing import Any, Literal

from mgen.errors import MgenError


@dataclass(frozen=True, kw_only=True)
class TokenSpec:
    """The tokens of one image.

    Args:
        kind: "index" (one id per position), "vector" (a real vector per position) or "multi-index" (one id per channel).
        length: positions per image, L.
        grid: (rows, columns) with rows · columns = length, or None for tokens without a place in the image.
        vocab: number of ids (kinds "index" and "multi-index"), else None.
        channels: numbers per position (1 for "index").
        scale: factor that brings stored vectors to unit variance (1.0 for ids).
    """

    kind: Literal["index", "vector", "multi-index"]
    length: int
    grid: tuple[int, int] | None = None
    vocab: int | None = None
    channels: int = 1
    scale: float = 1.0

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> "TokenSpec":
        grid = data.get("grid")
        return cls(**{**data, "grid": tuple(grid) if grid is not None else None})

    def require(self, *, vocab: int, length: int, by: str) -> None:
        """Raise MgenError unless these tokens fit a generator `by` made for `vocab` ids at `length` positions."""
        if self.kind != "index":
            raise MgenError(f"{by} takes tokens of kind 'index', the tokenizer makes {self.kind!r}")
        if self.vocab != vocab or self.length != length:
            raise MgenError(
                f"{by} takes {length} tokens of {vocab} ids, the tokenizer makes {self.length} of {self.vocab}: "
                "use the tokenizer this generator was trained on"
            )
