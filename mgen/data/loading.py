"""Reading batches in other processes: torch's DataLoader, with the errors and signals of this package."""

import contextlib
import os
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, TypeVar

from torch import Tensor
from torch.utils.data import DataLoader

from mgen.data.base import ImageData
from mgen.utils.errors import MgenError, first_line

T = TypeVar("T")
Batch = dict[str, Tensor]


def load_batches(
    data: ImageData, indices: Iterable[Sequence[Any]], workers: int, setting: str = "data.workers", **options: Any
) -> Iterator[Batch]:
    """The batches of these lists of indices, in their order; the data set itself makes whole batches, in `workers` processes if any.

    The lists are taken in this process, some batches ahead. setting: the name of `workers`, for errors. options: of the DataLoader.

    Raises:
        MgenError: as the data set says; or a process has ended.
    """
    loader: DataLoader[Batch | MgenError] = DataLoader(
        _Told(data),  # type: ignore[arg-type]  # torch asks for __getitem__, but uses __getitems__ alone
        batch_sampler=indices,  # type: ignore[arg-type]  # any iterable will do
        collate_fn=_identity,
        num_workers=workers,
        persistent_workers=workers > 0,
        worker_init_fn=_own_group if workers else None,
        **options,
    )
    try:
        for batch in loader:
            if isinstance(batch, MgenError):
                raise batch
            yield batch
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise MgenError(
            f"a process that reads the data has ended ({first_line(error)}): give it more memory, or set {setting} to fewer"
        ) from error


class _Told:
    """A data set whose errors arrive as they are; a loader process would wrap them into a trace."""

    def __init__(self, data: ImageData) -> None:
        self.data = data

    def __len__(self) -> int:
        return len(self.data)

    def __getitems__(self, indices: Sequence[Any]) -> Batch | MgenError:
        try:
            return self.data.__getitems__(indices)
        except MgenError as error:
            return error


def _own_group(worker: int) -> None:
    """Let a Ctrl-C, or a signal to the group of the run, pass by a loader process: the run needs it for the last step."""
    with contextlib.suppress(OSError):
        os.setpgid(0, 0)


def _identity(batch: T) -> T:
    return batch
