"""Token caches: a data set passed once through a tokenizer, stored as safetensors shards with an index (see cache_format.py).

Ids are stored in the smallest integer type that holds the vocabulary. KL tokenizers, quantized or not, store the posterior's
`moments` (n, V, 2c, h, w) instead, in fp32 or fp16, so that training can sample it afresh. A smaller copy of every image can be
encoded as well, for generators with a low-resolution first stage (first_stage_tokens or first_stage_moments). The fingerprint is
a hash of the tokenizer's configuration and encoder: a cache made with another encoder raises an error, and one made before the
decoder was retrained (or the scale changed) stays valid. Shards are memory-mapped, so only the rows of a batch are read.
"""

import mmap
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from mgen.data.cache_format import read_index, read_shard, shard_path, shards_in
from mgen.data.read_ahead import advise, read_through
from mgen.data.record import DataRecord
from mgen.utils.errors import MgenError
from mgen.utils.limits import available_memory
from mgen.utils.reading import tensor_places
from mgen.utils.schema import checked


class TokenCache:
    """Tokens or moments of N images, and their `labels` (N,).

    Args:
        path: folder written by `write_cache`. fingerprint: of the tokenizer that will decode; None skips the check.
        full: check all rows, not only some of a large cache.

    Raises:
        MgenError: there is no cache, shards are missing, damaged or foreign, or it belongs to another tokenizer.
    """

    @checked
    def __init__(self, path: str | Path, *, fingerprint: str | None = None, full: bool = False) -> None:
        self.path = Path(path)
        self.index = index = read_index(self.path)
        if fingerprint is not None and index.fingerprint != fingerprint:
            raise MgenError(
                f"{path} was made by another tokenizer (fingerprint {index.fingerprint[:12]}…, here {fingerprint[:12]}…)"
            )
        there = shards_in(self.path)
        if there and there[-1] >= index.shards:
            raise MgenError(
                f"{path} holds shard {there[-1]}, but by its index.json of {index.count} images the last one is {index.shards - 1}: "
                "write the cache again"
            )
        parts = [read_shard(self.path, index, shard, full=full) for shard in range(index.shards)]
        self.name = index.name
        self.shards = {name: [part[name] for part in parts] for name in index.names}  # memory-mapped
        for name, shards in self.shards.items():
            if any(shard.shape[1:] != shards[0].shape[1:] for shard in shards):
                raise MgenError(f"{path} has shards with {name} of several shapes: write the cache again")
        self.labels = torch.cat([part["labels"] for part in parts]).long()
        self._places: dict[
            int, dict[str, tuple[int, int]]
        ] = {}  # of tensors in the files of shards that were read ahead
        self.spec = index.spec
        self.flips: bool = index.flips
        self.num_classes: int = index.num_classes
        self.class_names: Sequence[str] = index.class_names

    @property
    def record(self) -> DataRecord | None:
        """The images that the cache was made of; None in caches of earlier versions."""
        return self.index.data

    @property
    def shard_rows(self) -> list[range]:
        """The images of each shard."""
        return [self.index.rows(shard) for shard in range(self.index.shards)]

    @property
    def row_bytes(self) -> float:
        """Bytes of an image as it is stored."""
        return 4.0 + sum(shards[0][0].nbytes for shards in self.shards.values())

    def expect_random(self) -> None:
        """Prepare for reads in a random order: if memory can't hold the cache, the system is told not to read what is around a row.

        It would fetch as much as its read-ahead, 128 kB and up to some MB, for every image, and drop it before it is needed.
        """
        if len(self) * self.row_bytes > available_memory():
            advise((shard for shards in self.shards.values() for shard in shards), getattr(mmap, "MADV_RANDOM", 1))

    def read_ahead(self, rows: range) -> None:
        """Read the bytes of these images of one shard, from front to back, so that the system has them in memory."""
        shard = rows.start // self.index.shard_size
        path, held = shard_path(self.path, shard), self.index.rows(shard)
        if shard not in self._places:
            self._places[shard] = tensor_places(path)
        for name in self.shards:
            start, stop = self._places[shard][name]
            size = (stop - start) // len(held)
            read_through(path, start + (rows.start - held.start) * size, start + (rows.stop - held.start) * size)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitems__(self, indices: Sequence[int]) -> dict[str, Tensor]:
        """A batch: all stored views of tokens (B, V, L) int64 or moments (B, V, 2c, h, w), of smaller copies too, and label (B,).

        Moments stay in the precision in which they are stored; a trainer makes them fp32 on its device.
        """
        index = torch.as_tensor(indices)
        shard, row = index // self.index.shard_size, index % self.index.shard_size
        places = [(number, (shard == number).nonzero().flatten()) for number in shard.unique().tolist()]
        batch = {"label": self.labels[index]}
        for name, shards in self.shards.items():
            batch[name] = out = torch.empty(len(index), *shards[0].shape[1:], dtype=self.index.dtype)
            for number, here in places:
                if len(here) == len(index):
                    torch.index_select(shards[number], 0, row, out=out)
                else:
                    out[here] = shards[number][row[here]]
            if self.name == "tokens":  # opening a large cache looks at some rows only
                batch[name] = out = out.long()
                self._check_ids(out)
        return batch

    def _check_ids(self, ids: Tensor) -> None:
        low, high = (int(v) for v in ids.aminmax())
        if low < 0 or high >= (self.spec.vocab_size or 0):
            raise MgenError(
                f"{self.path} holds ids from {low} to {high}, but the vocabulary has {self.spec.vocab_size}: find the damaged shard "
                f"with mgen cache --verify {self.path}"
            )
