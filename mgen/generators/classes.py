"""Classes: class id → class vector, with a null class for guidance or without; or one vector for every image."""

from typing import Annotated, Literal, Protocol

import torch
from pydantic import Field
from torch import Tensor, nn

from mgen.utils.errors import MgenError
from mgen.utils.fitting import DataRows, Rows
from mgen.utils.schema import Natural, Size, schema

# Of the published MAGE models: rows of the shared table for classes, and the one that stands for every image.
MAGE_ROWS, MAGE_ROW = 1000, 76


@schema
class ClassesConfig:
    """Settings.

    Args:
        count: classes, not counting the null class; 0: unconditional, every image has the same vector.
        null_class: whether there is one, with the id `count`; needed for guidance. "mask": its vector is the mask token's (eMIGM).
        table: "own", or "shared": class vectors are rows of the embedder's table behind the ids (BERT, MAGE).
        rows, row: of an unconditional model, so many rows of which `row` is read (MAGE has 1000 and reads the 77th).
    """

    count: Annotated[int, Field(ge=0, le=2**20)] = 1000
    null_class: bool | Literal["mask"] = True
    table: Literal["own", "shared"] = "own"
    rows: Size = 1
    row: Natural = 0

    def __post_init__(self) -> None:
        if self.null_class == "mask" and (self.table == "shared" or not self.count):
            raise MgenError(
                "null_class is mask, which needs a table of classes: set count to at least 1 and table to own, or null_class to true"
            )
        if self.row >= self.rows:
            raise MgenError(f"row is {self.row} of {self.rows} rows, counted from 0: it must be one that is there")

    @property
    def table_rows(self) -> int:
        return self.count + int(self.null_class is True) if self.count else self.rows

    @property
    def sections(self) -> tuple[Rows, ...]:
        """What the rows of the table stand for. The one that is read without classes is that of the null class."""
        if self.count:
            parts = [Rows("classes", (self.count,)), Rows("null class", (int(self.null_class is True),))]
        else:
            before, behind = (Rows(f"unused rows {i}", (n,)) for i, n in ((1, self.row), (2, self.rows - self.row - 1)))
            parts = [before, Rows("null class", (1,)), behind]
        return tuple(part for part in parts if part.count)


class Masks(Protocol):
    """A trunk or embedder with a mask token (D,)."""

    @property
    def mask(self) -> Tensor: ...


class Classes(nn.Module):
    """Class vectors of a width.

    Args:
        table, first: the embedder's table and its first row for classes, if it is shared.
        masks: the trunk or embedder with the mask token, `mask` (D,), that stands for the null class if the settings say so.
    """

    def __init__(
        self,
        config: ClassesConfig,
        *,
        width: int,
        table: nn.Embedding | None = None,
        first: int = 0,
        masks: "Masks | None" = None,
    ) -> None:
        super().__init__()
        self.config, self.first = config, first
        self._masks: list[Masks] = []  # a list: the parameter belongs to the trunk or embedder, which registers it once
        if config.null_class == "mask" and masks is not None:
            if masks.mask.shape != (width,):
                raise MgenError(
                    f"classes.null_class is mask, but the mask token has {masks.mask.numel()} numbers and a class vector {width}: choose "
                    "equal widths of encoder and decoder, or null_class true"
                )
            self._masks.append(masks)
        if config.table == "shared":
            if table is None:
                raise MgenError("classes.table shared needs tokens with a table of ids: use classes.table own")
            self._shared = [table]  # in a list: it is registered in the embedder
        else:
            self.vectors = nn.Embedding(config.table_rows, width)

    @property
    def count(self) -> int:
        """Classes to choose from; an unconditional model has one, 0, that stands for everything."""
        return max(1, self.config.count)

    @property
    def null_class(self) -> int | None:
        """The id of the null class, None if there is none."""
        return self.config.count if self.config.count and self.config.null_class else None

    @property
    def shared(self) -> tuple[Rows, ...]:
        """The rows in the embedder's table; none if the classes have a table of their own."""
        return self.config.sections if self.config.table == "shared" else ()

    def data_rows(self) -> DataRows:
        """See Model.data_rows."""
        return {} if self.config.table == "shared" else {"vectors.weight": {0: self.config.sections}}

    def rows(self, class_ids: Tensor) -> Tensor:
        """Rows of the table for class ids (B,)."""
        return self.first + (class_ids if self.config.count else torch.full_like(class_ids, self.config.row))

    def forward(self, class_ids: Tensor) -> Tensor:
        """Class vectors (B, D) of class ids (B,) int64."""
        table = self._shared[0] if self.config.table == "shared" else self.vectors
        if not self._masks:
            return table(self.rows(class_ids))
        null = (class_ids == self.config.count).unsqueeze(1)
        return torch.where(null, self._masks[0].mask, table(class_ids.clamp(max=self.config.count - 1)))
