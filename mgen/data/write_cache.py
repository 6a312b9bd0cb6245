"""Writing token caches: one pass of a tokenizer over a data set, shared by any number of processes, interrupted and resumed at will.

A shard is a function of (tokenizer, images, settings, batch size) alone, and is there as a whole or not at all: whoever writes it, on
equal machines the bytes are the same.
"""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from mgen.data.base import StampedData
from mgen.data.cache_format import (
    CacheIndex,
    mark_shard,
    read_index,
    read_shard,
    shard_path,
    shards_in,
)
from mgen.data.first_stage import shrink
from mgen.data.loading import Batch, load_batches
from mgen.data.read_ahead import Streamed
from mgen.data.record import record_of
from mgen.data.sharing import ALONE, SharedBar, Writers
from mgen.data.shuffled import Shuffled
from mgen.tokenizers.base import PosteriorTokenizer, Tokenizer
from mgen.utils.changes import changes, plain, told
from mgen.utils.config import Settings
from mgen.utils.errors import MgenError, shown
from mgen.utils.files import check_writable, write_json, write_tensors
from mgen.utils.limits import check_disk, check_memory
from mgen.utils.reading import check_file, check_path
from mgen.utils.schema import Count, Size, checked


@checked
@torch.inference_mode()
def write_cache(
    dataset: StampedData,
    tokenizer: Tokenizer,
    out: str | Path,
    *,
    flips: bool = False,
    shuffle: bool = False,
    batch_size: Count = 64,
    shard_size: Count = 16384,
    dtype: Literal["fp32", "fp16"] = "fp32",
    first_stage_size: Size | None = None,
    source: str = "",
    workers: Annotated[int, Field(ge=0, le=256)] = 0,
    writers: Writers = ALONE,
    progress: bool = True,
) -> Path:
    """Encode `dataset` with `tokenizer` into the folder `out`; complete shards are checked and kept, so that an interrupted run resumes.

    Args:
        flips: also store the tokens of the horizontally flipped images. shuffle: store the images in a random order, the same every time.
        dtype: of moments, "fp32" or "fp16" (half the size, rounds to 0.05 %).
        first_stage_size: side in pixels of the smaller copies (see mgen.data.first_stage); None stores none.
        source: description of the data, stored in the index. workers: processes that read the images of this one.
        writers: the processes that share the work; each of them calls this function with the same arguments.

    Raises:
        MgenError: `out` holds a cache made with another tokenizer, other data or settings, or cannot be written; there is too little
            memory or disk; another process has ended before its part was done.
    """
    # Longer than 60 lines with 13 arguments: each is a choice of who makes a cache, and most go into its index, which is made elsewhere.
    out = check_path(out, "out")
    if not isinstance(tokenizer, PosteriorTokenizer) and dtype != "fp32":
        raise MgenError(f"dtype {dtype} is for the moments of a KL tokenizer: ids are integers")
    if shuffle and isinstance(dataset, Streamed) and dataset.piped:
        raise MgenError("shuffle reads images in a random order, which streams (pipe:…) don't allow: leave it out")
    if shuffle:
        dataset = Shuffled(dataset)
    index = _index_of(
        dataset,
        tokenizer,
        dtype,
        flips=flips,
        shuffled=True if shuffle else None,
        shard_size=shard_size,
        first_stage_size=first_stage_size,
        source=source,
    )
    check_writable(out)
    writers.wait()  # an old cache has been set aside
    listed, missing = _what_is_left(out, index, dataset, writers)
    mine = writers.own(missing)
    if mine:
        _check_room(out, index, dataset, tokenizer, mine, batch_size)
    writers.wait()  # nobody has found a shard that doesn't belong here: only then is something written
    shards, others = writers.of_part(range(index.shards)), set(missing) - set(mine)
    with SharedBar(out, index, shards, missing, sorted(others), shown=progress and writers.rank == 0) as bar:
        for shard, metadata, tensors in _shards(dataset, tokenizer, index, mine, batch_size, workers, bar):
            if not listed:  # late, so that what fails in the first shard leaves nothing
                write_json(out / "index.json", index.to_dict())
                listed = True
            write_tensors(shard_path(out, shard), tensors, metadata)
        writers.wait()
    if writers.rank == 0:
        if not listed:
            write_json(out / "index.json", index.to_dict())
        _check_complete(out, shards)
    return out


def _index_of(dataset: StampedData, tokenizer: Tokenizer, dtype: Literal["fp32", "fp16"], **stored: Any) -> CacheIndex:
    """What index.json says of these data and this tokenizer. stored: how they are stored, fields of CacheIndex."""
    return CacheIndex(
        fingerprint=tokenizer.fingerprint(),
        spec=tokenizer.spec,
        count=len(dataset),
        num_classes=dataset.num_classes,
        class_names=tuple(dataset.class_names),
        moments=dtype if isinstance(tokenizer, PosteriorTokenizer) else None,
        latents=True if isinstance(tokenizer, PosteriorTokenizer) and not tokenizer.has_variance else None,
        data=record_of(dataset),
        **stored,
    )


def _what_is_left(out: Path, index: CacheIndex, dataset: StampedData, writers: Writers) -> tuple[bool, list[int]]:
    """Whether index.json is there already, and which shards of the writers' part are missing; the same in all processes.

    Raises an MgenError if something in the folder belongs to another cache, or to data that have changed. Each process checks
    some of the shards.
    """
    there, file = shards_in(out), out / "index.json"
    old = None
    if os.path.lexists(file) and check_file(file).stat().st_size:  # a crash can leave an empty one
        old = read_index(out)
    if there and old is not None and (differs := _difference(old.settings(), index.settings())):
        raise MgenError(f"{out} already holds a cache made with {differs}: choose another --out, or --overwrite")
    if there and there[-1] >= index.shards:
        raise MgenError(
            f"{out} already holds a cache of more images ({shard_path(out, there[-1]).name}): choose another --out, or --overwrite"
        )
    # A listing may lag behind what other machines wrote: that of the first process counts.
    found = writers.agree([shard in set(there) for shard in range(index.shards)])
    for shard in writers.own(writers.of_part([shard for shard in range(index.shards) if found[shard]])):
        read_shard(out, index, shard, data=dataset.stamp(index.rows(shard)))
    if not there:
        same = old is not None and old == index
    else:  # images that were added or removed behind the existing shards change the count and the record alone
        same = old is not None and (old.count, old.data) == (index.count, index.data)
    return same, writers.of_part([shard for shard in range(index.shards) if not found[shard]])


def _check_complete(out: Path, shards: list[int]) -> None:
    """Raise MgenError unless all these shards are there."""
    missing = [shard for shard in shards if not shard_path(out, shard).is_file()]
    if missing:
        raise MgenError(
            f"{len(missing)} of {len(shards)} shards are missing from {out}, the first is {shard_path(out, missing[0]).name}: run the same "
            "command again; processes on several machines must share the folder"
        )


def _difference(old: Settings, new: Settings) -> str:
    """In words what differs between the settings of two caches; "" if nothing does."""
    words = {
        "version": "an earlier version of mgen, which can be trained on but not completed",
        "fingerprint": "another tokenizer",
        "spec": "another image size or token format",
        "num_classes": "other classes",
        "class_names": "other classes",
    }
    if old.get("version") != new.get("version"):
        return words["version"]
    found: list[str] = []
    for key in dict.fromkeys((*words, *old, *new)):
        for name, then, now in changes(plain(old.get(key)), plain(new.get(key)), key):
            detail = f" ({name} was {shown(then)}, now it is {shown(now)})" if key == "spec" else ""
            found.append(words[key] + detail if key in words else told([(name, then, now)]))
    return ", ".join(dict.fromkeys(found))


def _check_room(
    out: Path, index: CacheIndex, dataset: StampedData, tokenizer: Tokenizer, missing: list[int], batch_size: int
) -> None:
    """Raise MgenError if memory or disk are too small, by the tokens of one image."""
    rows, side = max(len(index.rows(shard)) for shard in missing), tokenizer.config.image_size
    check_batch(tokenizer, side, min(batch_size, rows))
    images = dataset.__getitems__([index.rows(missing[0])[0]])["image"]
    if images.shape[-2:] != (side, side):
        raise MgenError(
            f"the data has images of {tuple(images.shape[-2:])}, but the tokenizer is set to image_size {side}"
        )
    made = _encode(tokenizer, images, index)
    size = 4 + sum(tensor.numel() for tensor in made.values()) * index.dtype.itemsize
    count = sum(len(index.rows(shard)) for shard in missing)
    check_disk(out, count * size, f"a cache of {count} images")
    check_memory(2 * rows * size, f"a shard of {rows} images", "choose a smaller --shard-size")


def check_batch(tokenizer: Tokenizer, side: int, batch_size: int) -> None:
    """Raise MgenError if a batch of images and what the first convolution makes of it don't fit into the memory of the device."""
    first = next((m.out_channels for m in tokenizer.modules() if isinstance(m, nn.Conv2d)), 0)
    need = 4 * batch_size * side**2 * (tokenizer.config.in_channels + first)
    what = f"tokenizing {batch_size} images of {side}×{side} at once"
    check_memory(need, what, "choose a smaller --batch-size or --image-size", tokenizer.device)


def _shards(
    dataset: StampedData,
    tokenizer: Tokenizer,
    index: CacheIndex,
    shards: list[int],
    batch_size: int,
    workers: int,
    bar: SharedBar,
) -> Iterator[tuple[int, dict[str, str], dict[str, Tensor]]]:
    """Number, metadata and tensors of these shards."""
    stamps: dict[int, str] = {}

    def rows() -> Iterator[Sequence[Any]]:
        for shard in shards:
            rows = index.rows(shard)
            stamps[shard] = dataset.stamp(rows)  # before the images are read: what changes meanwhile is noticed
            for first in range(0, len(rows), batch_size):
                batch = rows[first : first + batch_size]
                yield dataset.items(batch) if isinstance(dataset, Streamed) and dataset.piped else batch

    batches = load_batches(dataset, rows(), workers, "--workers")
    for shard in shards:
        tensors = _tokenize(batches, tokenizer, index, len(index.rows(shard)), bar)
        yield shard, mark_shard(index, shard, stamps.pop(shard), tensors), tensors


def _tokenize(
    batches: Iterator[Batch], tokenizer: Tokenizer, index: CacheIndex, count: int, bar: SharedBar
) -> dict[str, Tensor]:
    """The tensors of the next `count` images; moments leave the tokenizer's batch in the precision that is stored."""
    parts: dict[str, list[Tensor]] = {}
    while count > 0:
        batch = next(batches)
        for key, encoded in _encode(tokenizer, batch["image"], index).items():
            parts.setdefault(key, []).append(encoded.to(index.dtype).cpu())
        parts.setdefault("labels", []).append(batch["label"].to(torch.int32))
        count -= len(batch["label"])
        bar.update(len(batch["label"]))
    if index.moments and not all(torch.isfinite(part).all() for made in parts.values() for part in made):
        raise MgenError(f"the tokenizer's moments are not finite in {index.moments}: use fp32, or another tokenizer")
    return {key: torch.cat(parts.pop(key)) for key in list(parts)}


def _encode(tokenizer: Tokenizer, images: Tensor, index: CacheIndex) -> dict[str, Tensor]:
    """Tokens or moments (B, V, …) of images (B, C, H, W), and of their smaller copies if the cache holds some."""
    encode = tokenizer.moments if isinstance(tokenizer, PosteriorTokenizer) else tokenizer.encode
    images = images.to(tokenizer.device)
    views = [images, images.flip(-1)] if index.flips else [images]
    sizes = {index.name: views}
    if index.first_stage_size is not None:
        sizes[f"first_stage_{index.name}"] = [shrink(view, index.first_stage_size) for view in views]
    return {key: torch.stack([encode(view) for view in views], dim=1) for key, views in sizes.items()}
