"""Weights of one model in another of the same architecture that differs in classes, grid, vocabulary or channels of tokens.

Parts of a network say which rows of their tensors stand for what (`data_rows`). Rows that stand for the same are copied; positions of
another grid are interpolated; the others keep the values of the new model.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

from mgen.utils.errors import MgenError

How = Literal["new", "interpolated", "computed"]
WORDS: dict[How, str] = {"new": "starts anew", "interpolated": "interpolated", "computed": "computed anew"}


@dataclass(frozen=True)
class Rows:
    """Neighboring rows of a tensor that stand for one thing.

    Args:
        of: what, such as "classes"; once in a tensor. shape: their number, or what it is a product of, such as a grid (rows, columns).
        otherwise: what becomes of them in a model where their shape is another.
    """

    of: str
    shape: tuple[int, ...]
    otherwise: How = "new"

    @property
    def count(self) -> int:
        return math.prod(self.shape)

    def __str__(self) -> str:
        return "×".join(map(str, self.shape))


# Name of a tensor → dimension → what its rows stand for. Tensors that are left out don't depend on the data.
DataRows: TypeAlias = dict[str, Mapping[int, tuple[Rows, ...]]]


def below(name: str, rows: DataRows) -> DataRows:
    """The rows of a part's tensors under the name that the part has in the whole."""
    return {f"{name}.{key}": value for key, value in rows.items()}


class Change(NamedTuple):
    """Rows of a tensor that were not copied: what they stand for, how many there were and are (None: none), what became of them."""

    tensor: str
    of: str
    was: str | None
    now: str
    how: How


@dataclass(frozen=True, kw_only=True)
class Fitted:
    """Tensors for a model, and the rows of them that were not copied from `source`."""

    tensors: Mapping[str, Tensor]
    changes: tuple[Change, ...]

    @property
    def anew(self) -> set[str]:
        """Names of the tensors with rows that start anew."""
        return {change.tensor for change in self.changes if change.how == "new"}

    def lines(self) -> list[str]:
        """What was not copied, as text: a line for each kind of rows."""
        groups: dict[tuple[str, str | None, str, How], list[str]] = {}
        for c in self.changes:
            groups.setdefault((c.of, c.was, c.now, c.how), []).append(c.tensor)
        out = []
        for (of, was, now, how), names in groups.items():
            what = f"{of} {now}" if was is None else f"{of} {was} → {now}"
            more = f" and {len(names) - 4} more" if len(names) > 4 else ""
            out.append(f"{what}: {WORDS[how]} ({', '.join(names[:4])}{more})")
        return out


def fit(found: Mapping[str, Tensor], was: DataRows, own: Mapping[str, Tensor], now: DataRows) -> Fitted:
    """Tensors for a model from those of another one.

    Args:
        found: tensors of the other model, whose rows are `was`. own: tensors of the model as it is, whose rows are `now`.

    Raises:
        MgenError: the tensors differ in more than these rows; the message names the first.
    """
    for name in sorted(found.keys() ^ own.keys()):
        raise MgenError(f"tensor {name!r} is {'missing' if name in own else 'not of this model'}")
    tensors: dict[str, Tensor] = {}
    changes: list[Change] = []
    for name, new in own.items():
        tensors[name], some = _fit_tensor(name, found[name], was.get(name, {}), new.detach(), now.get(name, {}))
        changes += some
    return Fitted(tensors=tensors, changes=tuple(changes))


def _fit_tensor(
    name: str, old: Tensor, was: Mapping[int, tuple[Rows, ...]], new: Tensor, now: Mapping[int, tuple[Rows, ...]]
) -> tuple[Tensor, list[Change]]:
    for tensor, sections in ((old, was), (new, now)):
        wanted = [sum(r.count for r in sections[d]) if d in sections else n for d, n in enumerate(new.shape)]
        if list(tensor.shape) != wanted:
            raise MgenError(f"tensor {name!r} is of shape {tuple(tensor.shape)}, expected is {tuple(wanted)}")
    if was == now:
        return old, []
    changes = [change for dim, rows in now.items() for change in _changes(name, was.get(dim, ()), rows)]
    if len(now) > 1 and any(change.how != "interpolated" for change in changes):
        return new, changes  # rows that start anew cross all others
    for dim, rows in now.items():
        old = _fit_rows(old, was.get(dim, ()), new, rows, dim)
    return old, changes


def _fit_rows(old: Tensor, was: tuple[Rows, ...], new: Tensor, now: tuple[Rows, ...], dim: int) -> Tensor:
    """The rows of one dimension: old ones where they stand for the same, else interpolated or new ones."""
    before: dict[str, tuple[int, Rows]] = {}
    at, pieces = 0, []
    for part in was:
        before[part.of] = at, part
        at += part.count
    at = 0
    for part in now:
        first, found = before.get(part.of, (0, None))
        if found is not None and found.shape == part.shape:
            pieces.append(old.narrow(dim, first, part.count))
        elif found is not None and part.otherwise == "interpolated":
            pieces.append(interpolate(old.narrow(dim, first, found.count), found, part, dim))
        else:
            pieces.append(new.narrow(dim, at, part.count).to(old.dtype))
        at += part.count
    return torch.cat(pieces, dim)


def _changes(name: str, was: tuple[Rows, ...], now: tuple[Rows, ...]) -> list[Change]:
    before = {part.of: part for part in was}
    out = []
    for part in now:
        old = before.get(part.of)
        if old is None or old.shape != part.shape:
            how = part.otherwise if old is not None else "new"
            out.append(Change(name, part.of, None if old is None else str(old), str(part), how))
    return out


def interpolate(table: Tensor, was: Rows, now: Rows, dim: int) -> Tensor:
    """A table with a row for every cell of a grid, along `dim`, for another grid of the same image: bicubic, with antialiasing.

    Grids are (rows, columns), or (length,) for positions in a line.
    """
    if len(was.shape) != len(now.shape):
        raise MgenError(f"{now.of}: {was} cannot become {now}: one is a grid, the other is not")
    h, w = was.shape if len(was.shape) == 2 else (1, *was.shape)
    size = now.shape if len(now.shape) == 2 else (1, *now.shape)
    moved = table.movedim(dim, -1)
    flat = moved.reshape(1, -1, h, w).float()
    resized = F.interpolate(flat, size=size, mode="bicubic", antialias=True, align_corners=False)
    return resized.reshape(*moved.shape[:-1], now.count).movedim(-1, dim).to(table.dtype).contiguous()
