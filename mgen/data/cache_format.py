"""The files of a token cache, and their checks.

    index.json                   tokenizer fingerprint, token spec, counts, flips, classes
    shard-00000.safetensors      tokens (n, V, L) with V = 2 if horizontal flips are stored (view 1), labels (n,)

Every shard says which cache and which rows of it it holds (`Mark`, in its metadata), so that shards of different caches cannot be mixed.
Version 1 of caches had no marks: such a cache can be read, but not extended.
"""

import functools
import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from mgen.data.record import DataRecord
from mgen.tokens import TokenSpec
from mgen.utils.config import Settings
from mgen.utils.errors import MgenError, shown
from mgen.utils.reading import parse_json, read_json, read_tensors
from mgen.utils.schema import Count, Natural, Size, build, schema

CACHE_VERSION: Literal[2] = 2
STORED = {"fp32": torch.float32, "fp16": torch.float16}
MARK = "mgen"  # key of a shard's metadata
SAMPLED = 1024  # rows that are checked when a cache is opened, over all shards; small caches are checked as a whole
Digest = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


@schema
class CacheIndex:
    """The contents of index.json: where the tokens come from, what they are, and how they are stored.

    Args:
        fingerprint: of the tokenizer. count: images. source: the data, in words. data: their record; None in older caches.
        shuffled: True, the images stand in a random order.
        moments: precision of the moments of a KL tokenizer; None: ids are stored. latents: True, these are latents without a variance.
        first_stage_size:
            pixels of the smaller copies that are stored too, if they are.
    """

    version: Literal[1, 2] = CACHE_VERSION
    fingerprint: Digest
    spec: TokenSpec
    count: Count
    num_classes: Annotated[int, Field(ge=1, le=2**31 - 1)]
    class_names: tuple[str, ...]
    flips: bool
    shard_size: Count
    source: str = ""
    shuffled: Literal[True] | None = None
    moments: Literal["fp32", "fp16"] | None = None
    latents: Literal[True] | None = None
    first_stage_size: Size | None = None
    data: DataRecord | None = None

    def __post_init__(self) -> None:
        if len(self.class_names) != self.num_classes:
            raise MgenError(f"num_classes is {self.num_classes}, but there are {len(self.class_names)} class_names")
        if len(set(self.class_names)) != self.num_classes:
            double = next(name for name in self.class_names if self.class_names.count(name) > 1)
            raise MgenError(f"class_names has {shown(double)} twice")
        if self.moments is None and (self.spec.kind == "vector" or not 1 <= (self.spec.vocab_size or 0) < 2**31):
            raise MgenError("spec describes no ids (kind and vocab_size), and there are no moments")
        if self.moments is not None and self.spec.kind == "index":
            raise MgenError("spec is of kind index: a tokenizer of ids has no moments")

    def to_dict(self) -> Settings:
        """As written to index.json."""
        kept = {key: value for key, value in asdict(self).items() if value is not None}
        return kept | {"spec": self.spec.to_dict(), "class_names": list(self.class_names)}

    def settings(self) -> Settings:
        """What all shards have in common, whatever images they hold."""
        return {key: value for key, value in self.to_dict().items() if key not in ("count", "source", "data")}

    @functools.cached_property
    def digest(self) -> str:
        """SHA-256 of the settings, by which shards know their cache."""
        return hashlib.sha256(json.dumps(self.settings(), sort_keys=True).encode()).hexdigest()

    @property
    def name(self) -> str:
        """The entry that shards hold, "tokens" or "moments"."""
        return "tokens" if self.moments is None else "moments"

    @property
    def names(self) -> list[str]:
        """The entries that shards hold besides labels."""
        return [self.name] + ([f"first_stage_{self.name}"] if self.first_stage_size is not None else [])

    @property
    def dtype(self) -> torch.dtype:
        """Of stored moments, or of ids: the smallest integers that hold the vocabulary."""
        if self.moments is not None:
            return STORED[self.moments]
        size = self.spec.vocab_size or 0
        return torch.uint8 if size <= 256 else torch.int16 if size <= 32768 else torch.int32

    @property
    def shards(self) -> int:
        return -(-self.count // self.shard_size)

    def rows(self, shard: int) -> range:
        """The images that a shard holds."""
        return range(shard * self.shard_size, min((shard + 1) * self.shard_size, self.count))


@schema
class Mark:
    """What a shard is: number and rows; digests of the cache's settings, of the data (see StampedData) and of its tensors."""

    shard: Natural
    rows: Count
    settings: Digest
    data: Digest
    content: Digest


def mark_shard(index: CacheIndex, shard: int, data: str, tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """The metadata of a shard; one entry, as safetensors writes several in any order."""
    mark = Mark(
        shard=shard,
        rows=len(index.rows(shard)),
        settings=index.digest,
        data=data,
        content=content_of(tensors),
    )
    return {MARK: json.dumps(asdict(mark))}


def content_of(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of tensors and their names."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(name.encode())
        digest.update(tensor.contiguous().numpy().data)
    return digest.hexdigest()


# -- reading ---------------------------------------------------------------------------------------------------------------


def shard_path(folder: Path, shard: int) -> Path:
    return folder / f"shard-{shard:05d}.safetensors"


def shards_in(folder: Path) -> list[int]:
    """Numbers of the shards that are in a folder, whole or not."""
    found = [re.fullmatch(r"shard-([0-9]{5,9})\.safetensors", p.name) for p in folder.glob("shard-*.safetensors")]
    return sorted(int(match[1]) for match in found if match)


def read_index(folder: Path) -> CacheIndex:
    """The index of a cache; MgenError if it is missing or damaged, or no cache of this mgen."""
    file = folder / "index.json"
    if not file.is_file():
        raise MgenError(f"no token cache in {folder} (index.json is missing): make one with mgen cache")
    try:
        data = read_json(file)
        version = data.get("version") if isinstance(data, dict) else None
        if version is not None and version not in (1, CACHE_VERSION):
            raise MgenError(f"{file} has cache version {shown(version)}, this mgen reads 1 and {CACHE_VERSION}")
        return build(CacheIndex, data, f"{file}: ")
    except MgenError as error:
        raise MgenError(f"{error}. Remove it and run mgen cache again: complete shards are kept") from error


def read_shard(
    folder: Path, index: CacheIndex, shard: int, *, full: bool = False, data: str | None = None
) -> dict[str, Tensor]:
    """The memory-mapped tensors of a shard, checked.

    Args:
        full: check all rows and the digest of the contents, instead of some rows. data: digest of the data that it must have been made of.

    Raises:
        MgenError: the shard is missing or damaged, holds other than what the index says, or belongs to another cache or other data.
    """
    path = shard_path(folder, shard)
    if not os.path.lexists(path):
        raise MgenError(f"no such file: {path}: the cache is not complete, run mgen cache again")
    try:
        tensors, metadata = read_tensors(path)
        mark = None if index.version == 1 else _checked_mark(index, shard, metadata, data)
        for problem in _problems(index, shard, tensors, full):
            raise MgenError(f"it {problem}")
        if full and mark is not None and content_of(tensors) != mark.content:
            raise MgenError("its contents are not those that were written")
    except MgenError as error:
        reason = str(error) if str(path) in str(error) else f"{path}: {error}"
        raise MgenError(f"{reason}. Remove this shard and run mgen cache again") from error
    return tensors


def _checked_mark(index: CacheIndex, shard: int, metadata: Mapping[str, str], data: str | None) -> Mark:
    if MARK not in metadata:
        raise MgenError("it was not written by this version of mgen cache, or by another program since")
    mark = build(Mark, parse_json(metadata[MARK], "its metadata"), "its metadata: ")
    if mark.settings != index.digest:
        raise MgenError("it belongs to another cache: another tokenizer, other classes or settings than in index.json")
    if mark.shard != shard:
        raise MgenError(f"it is shard {mark.shard}, under the name of shard {shard}")
    if data is not None and mark.data != data:
        raise MgenError("its images have changed since it was written (their names, sizes, times or classes)")
    if mark.rows != len(index.rows(shard)):
        raise MgenError(f"it was written with {mark.rows} images, by index.json there are {len(index.rows(shard))}")
    return mark


def _problems(index: CacheIndex, shard: int, tensors: Mapping[str, Tensor], full: bool) -> Iterator[str]:
    """What is wrong with the tensors of a shard, in the words of an error text."""
    count, views = len(index.rows(shard)), 1 + index.flips
    for name in (*index.names, "labels"):
        if name not in tensors:
            yield f"is without {name}"
    expected = {name: (index.dtype, 5 if index.moments else 2 + len(index.spec.shape)) for name in index.names}
    for name, (dtype, rank) in {**expected, "labels": (torch.int32, 1)}.items():
        found, shape = tensors[name], "×".join(map(str, tensors[name].shape))
        if found.dtype != dtype:
            yield f"holds {name} of type {str(found.dtype)[6:]}, expected {str(dtype)[6:]}"
        if found.ndim != rank or len(found) != count or (name != "labels" and found.shape[1] != views):
            yield f"holds {name} of shape {shape or 'a number'}, expected {count} rows{'' if rank == 1 else f' of {views} views'}"
        if name != "labels" and not _fits(index, name, found):
            yield f"holds {name} of shape {shape}, which is not that of {index.spec.sizes()}"
    labels = tensors["labels"]
    if labels.amin() < 0 or labels.amax() >= index.num_classes:
        yield f"holds labels from {labels.amin()} to {labels.amax()}, but there are {index.num_classes} classes"
    rows = _sample(count, count if full or index.count <= 4 * SAMPLED else max(2, SAMPLED // index.shards))
    for name in index.names:
        for part in rows.split(256):
            yield from _wrong_values(index, name, tensors[name][part])


def _fits(index: CacheIndex, name: str, found: Tensor) -> bool:
    """Whether the shape of a tensor (n, V, …) is that of the tokens or moments of an image, or of a smaller copy of one."""
    spec, shape = index.spec, tuple(found.shape[2:])
    small = name != index.name
    if index.moments is None:
        wanted = spec.shape
        return shape[1:] == wanted[1:] and (0 < shape[0] < wanted[0] if small else shape[0] == wanted[0])
    width, rows, columns = (
        shape  # 2c numbers (c without a variance) on the grid of the latent, of which a token has c·p²
    )
    parts = 1 if index.latents else 2
    numbers, wanted_numbers = width * rows * columns, parts * spec.length * spec.channels
    if width % parts or spec.channels % (width // parts or 1):
        return False
    if small:
        return 0 < numbers < wanted_numbers
    square = spec.grid is None or rows * spec.grid[1] == columns * spec.grid[0]
    return square and numbers == wanted_numbers


def _wrong_values(index: CacheIndex, name: str, values: Tensor) -> Iterator[str]:
    if index.moments is not None:
        if not torch.isfinite(values).all():
            yield f"holds {name} that are not finite"
        return
    low, high = (int(v) for v in values.aminmax())
    if low < 0 or high >= (index.spec.vocab_size or 0):
        yield f"holds ids from {low} to {high}, but the vocabulary has {index.spec.vocab_size} ids"


def _sample(count: int, most: int) -> Tensor:
    """Up to `most` of `count` rows, evenly spread, the first and the last among them."""
    return torch.arange(count) if most >= count else torch.linspace(0, count - 1, most).round().long().unique()
