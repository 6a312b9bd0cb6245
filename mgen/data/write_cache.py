"""Writing token caches: one pass of a tokenizer over a data set, which can be interrupted and resumed."""

import os
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from tqdm import tqdm

from mgen.data.base import ImageData, StampedData
from mgen.data.cache_format import (
    CacheIndex,
    mark_shard,
    read_index,
    read_shard,
    shard_path,
    shards_in,
)
from mgen.data.first_stage import shrink
from mgen.data.record import record_of
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
    batch_size: Count = 64,
    shard_size: Count = 16384,
    dtype: Literal["fp32", "fp16"] = "fp32",
    first_stage_size: Size | None = None,
    source: str = "",
    progress: bool = True,
) -> Path:
    """Encode `dataset` with `tokenizer` into the folder `out`; complete shards are checked and kept, so that an interrupted run resumes.

    Args:
        flips: also store the tokens of the horizontally flipped images.
        dtype: of moments, "fp32" or "fp16" (half the size, rounds to 0.05 %).
        first_stage_size: side in pixels of the smaller copies (see mgen.data.first_stage); None stores none.
        source: description of the data, stored in the index.

    Raises:
        MgenError: `out` holds a cache made with another tokenizer, other data or settings, or cannot be written; there is too little
            memory or disk.
    """
    out = check_path(out, "out")
    if not isinstance(tokenizer, PosteriorTokenizer) and dtype != "fp32":
        raise MgenError(f"dtype {dtype} is for the moments of a KL tokenizer: ids are integers")
    index = CacheIndex(
        fingerprint=tokenizer.fingerprint(),
        spec=tokenizer.spec,
        count=len(dataset),
        num_classes=dataset.num_classes,
        class_names=tuple(dataset.class_names),
        flips=flips,
        shard_size=shard_size,
        source=source,
        moments=dtype if isinstance(tokenizer, PosteriorTokenizer) else None,
        latents=True if isinstance(tokenizer, PosteriorTokenizer) and not tokenizer.has_variance else None,
        first_stage_size=first_stage_size,
        data=record_of(dataset),
    )
    check_writable(out)
    listed, missing = _what_is_left(out, index, dataset)
    if missing:
        _check_room(out, index, dataset, tokenizer, missing, batch_size)
    done = len(dataset) - sum(len(index.rows(shard)) for shard in missing)
    with tqdm(total=len(dataset), initial=done, unit="img", desc="tokenizing", disable=not progress) as bar:
        for shard in missing:
            stamp = dataset.stamp(index.rows(shard))  # before the images are read: what changes meanwhile is noticed
            tensors = _tokenize(dataset, tokenizer, index, shard, batch_size, bar)
            if not listed:  # late, so that what fails in the first shard leaves nothing
                write_json(out / "index.json", index.to_dict())
                listed = True
            write_tensors(shard_path(out, shard), tensors, mark_shard(index, shard, stamp, tensors))
    if not listed:
        write_json(out / "index.json", index.to_dict())
    return out


def _what_is_left(out: Path, index: CacheIndex, dataset: StampedData) -> tuple[bool, list[int]]:
    """Whether index.json is there already, and which shards are missing.

    Raises an MgenError if something in the folder belongs to another cache, or to data that have changed.
    """
    there, file = shards_in(out), out / "index.json"
    old = None
    if os.path.lexists(file) and check_file(file).stat().st_size:  # a crash can leave an empty one
        old = read_index(out)
    if not there:
        return old is not None and old == index, list(range(index.shards))
    if old is not None and (differs := _difference(old.settings(), index.settings())):
        raise MgenError(f"{out} already holds a cache made with {differs}: choose another --out, or --overwrite")
    if there[-1] >= index.shards:
        raise MgenError(
            f"{out} already holds a cache of more images ({shard_path(out, there[-1]).name}): choose another --out, or --overwrite"
        )
    for shard in there:
        read_shard(out, index, shard, data=dataset.stamp(index.rows(shard)))
    # Images that were added or removed behind the existing shards change the count and the record alone.
    same = old is not None and (old.count, old.data) == (index.count, index.data)
    return same, sorted(set(range(index.shards)) - set(there))


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


def _tokenize(
    dataset: ImageData, tokenizer: Tokenizer, index: CacheIndex, shard: int, batch_size: int, bar: Any
) -> dict[str, Tensor]:
    """The tensors of a shard."""
    parts: dict[str, list[Tensor]] = {}
    rows = index.rows(shard)
    for first in range(0, len(rows), batch_size):
        batch = dataset.__getitems__(rows[first : first + batch_size])
        for key, encoded in _encode(tokenizer, batch["image"], index).items():
            parts.setdefault(key, []).append(encoded.to(index.dtype).cpu())
        parts.setdefault("labels", []).append(batch["label"].to(torch.int32))
        bar.update(len(batch["label"]))
    if index.moments and not all(torch.isfinite(part).all() for made in parts.values() for part in made):
        raise MgenError(f"the tokenizer's moments are not finite in {index.moments}: use fp32, or another tokenizer")
    return {key: torch.cat(values) for key, values in parts.items()}


def _encode(tokenizer: Tokenizer, images: Tensor, index: CacheIndex) -> dict[str, Tensor]:
    """Tokens or moments (B, V, …) of images (B, C, H, W), and of their smaller copies if the cache holds some."""
    encode = tokenizer.moments if isinstance(tokenizer, PosteriorTokenizer) else tokenizer.encode
    images = images.to(tokenizer.device)
    views = [images, images.flip(-1)] if index.flips else [images]
    sizes = {index.name: views}
    if index.first_stage_size is not None:
        sizes[f"first_stage_{index.name}"] = [shrink(view, index.first_stage_size) for view in views]
    return {key: torch.stack([encode(view) for view in views], dim=1) for key, views in sizes.items()}
