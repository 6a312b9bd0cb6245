"""Token caches: a data set passed once through a tokenizer, as safetensors shards beside an index.

    index.json                   tokenizer fingerprint, token spec, counts, flips, classes
    shard-00000.safetensors      tokens (n, V, L) with V = 2 if horizontal flips are stored (view 1), labels (n,)

Ids are stored in the smallest integer type that holds the vocabulary. Of a KL tokenizer, quantized or not, the posterior's
`moments` (n, V, 2c, h, w) are stored instead, in fp32 or fp16, so that training can sample it afresh. Of every image a
smaller copy can be encoded too, as first_stage_tokens or first_stage_moments, for cascades (Hi-MAR). The fingerprint is a hash
over the tokenizer's configuration and encoder: a cache made by another tokenizer raises an error, one with a newly trained
decoder (or another scale) still fits. Shards are memory-mapped: what a batch does not ask for is not read.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from mgen.data.first_stage import shrink
from mgen.tokens import TokenSpec
from mgen.utils.errors import MgenError, check_choice
from mgen.utils.files import read_json, read_tensors, write_json, write_tensors

CACHE_VERSION = 1
STORED = {"fp32": torch.float32, "fp16": torch.float16}


def tokenizer_fingerprint(tokenizer: Any) -> str:
    """SHA-256 over the configuration of a tokenizer and the weights that decide its ids or moments (not those of the decoder)."""
    return tokenizer.fingerprint()


def _smallest(vocab_size: int) -> torch.dtype:
    return torch.uint8 if vocab_size <= 256 else torch.int16 if vocab_size <= 32768 else torch.int32


@torch.inference_mode()
def write_cache(
    dataset: Any,
    tokenizer: Any,
    out: str | Path,
    *,
    flips: bool = False,
    batch_size: int = 64,
    shard_size: int = 16384,
    dtype: str = "fp32",
    first_stage_size: int | None = None,
    source: str = "",
    progress: bool = True,
) -> Path:
    """Encode `dataset` with `tokenizer` into the folder `out`; shards that are already there are kept (resume).

    Args:
        flips: also store the tokens of the horizontally flipped image.
        dtype: "fp32" or "fp16", of moments (fp16 halves the cache and rounds to 0.05 %).
        first_stage_size: side in pixels of a smaller copy of every image, whose tokens are stored too (see mgen.data.first_stage).
        source: a note of what the data is, kept in the index.

    Raises:
        MgenError: `out` holds a cache of another tokenizer or of other settings, or cannot be written.
    """
    out = Path(out)
    count = len(dataset)
    check_choice("dtype", dtype, STORED)
    stored = dtype if hasattr(tokenizer, "moments") else ""
    if not stored and dtype != "fp32":
        raise MgenError(f"dtype {dtype} is for the moments of a KL tokenizer: ids are whole numbers")
    index = {
        "version": CACHE_VERSION,
        "fingerprint": tokenizer_fingerprint(tokenizer),
        "spec": tokenizer.spec.to_dict(),
        "count": count,
        "flips": flips,
        "shard_size": shard_size,
        "num_classes": dataset.num_classes,
        "class_names": list(dataset.class_names),
        "source": source,
    } | ({"moments": stored} if stored else {})
    if first_stage_size is not None:
        index["first_stage_size"] = first_stage_size
    # Compared after a round trip through JSON: tuples come back as lists.
    if (out / "index.json").exists() and read_json(out / "index.json") != json.loads(json.dumps(index)):
        raise MgenError(
            f"{out} already holds a cache made from other data, settings or tokenizer: choose another --out"
        )
    if first_stage_size is not None:  # raises for a size that cannot be, before the folder is bound to it
        tokenizer.encode(
            shrink(dataset.__getitems__([0])["image"].to(next(tokenizer.parameters()).device), first_stage_size)
        )
    write_json(out / "index.json", index)
    name = "moments" if stored else "tokens"
    encode = tokenizer.moments if stored else tokenizer.encode
    kind = STORED[stored] if stored else _smallest(tokenizer.spec.vocab_size)
    device = next(tokenizer.parameters()).device
    with tqdm(total=count, unit="img", desc="tokenizing", disable=not progress) as bar:
        for number, start in enumerate(range(0, count, shard_size)):
            path = out / f"shard-{number:05d}.safetensors"
            stop = min(start + shard_size, count)
            if not path.exists():
                parts: dict[str, list[Tensor]] = {}
                labels = []
                for first in range(start, stop, batch_size):
                    batch = dataset.__getitems__(range(first, min(first + batch_size, stop)))
                    image = batch["image"].to(device)
                    views = [image, image.flip(-1)] if flips else [image]
                    sizes = {name: views}
                    if first_stage_size is not None:
                        sizes[f"first_stage_{name}"] = [shrink(view, first_stage_size) for view in views]
                    for key, images in sizes.items():
                        encoded = torch.stack([encode(v).to(kind).cpu() for v in images], dim=1)  # (B, V, …)
                        parts.setdefault(key, []).append(encoded)
                    labels.append(batch["label"].to(torch.int32))
                    bar.update(len(image))
                if stored and not all(torch.isfinite(part).all() for made in parts.values() for part in made):
                    raise MgenError(
                        f"the tokenizer made moments that are not finite ({stored}): use fp32, or another tokenizer"
                    )
                made = {key: torch.cat(values) for key, values in parts.items()}
                write_tensors(path, {**made, "labels": torch.cat(labels)})
            else:
                bar.update(stop - start)
    return out


class TokenCache:
    """Tokens, or moments, of N images, and their `labels` (N,).

    Args:
        path: folder written by `write_cache`.
        fingerprint: of the tokenizer the tokens are meant for; None skips the check (nothing will be decoded).

    Raises:
        MgenError: no cache there, shards missing or damaged, or another tokenizer's cache.
    """

    def __init__(self, path: str | Path, *, fingerprint: str | None = None) -> None:
        path = Path(path)
        if not (path / "index.json").is_file():
            raise MgenError(f"no token cache in {path} (index.json is missing): make one with mgen cache")
        self.index = read_json(path / "index.json")
        if self.index.get("version") != CACHE_VERSION:
            raise MgenError(
                f"{path} has cache version {self.index.get('version')}, this mgen reads {CACHE_VERSION}: write it again"
            )
        if fingerprint is not None and self.index["fingerprint"] != fingerprint:
            raise MgenError(
                f"{path} was made by another tokenizer (fingerprint {self.index['fingerprint'][:12]}…, here {fingerprint[:12]}…)"
            )
        shards = -(-self.index["count"] // self.index["shard_size"])
        parts = [read_tensors(path / f"shard-{number:05d}.safetensors")[0] for number in range(shards)]
        self.name = "moments" if "moments" in self.index else "tokens"
        names = [self.name] + ([f"first_stage_{self.name}"] if "first_stage_size" in self.index else [])
        if any(name not in p for p in parts for name in (*names, "labels")):
            raise MgenError(
                f"{path} has a shard without {' or '.join(names)} or labels: remove it and run mgen cache again"
            )
        self.shards = {name: [p[name] for p in parts] for name in names}  # mapped from the files, not read
        self.labels = torch.cat([p["labels"] for p in parts]).long()
        if len(self.labels) != self.index["count"]:
            raise MgenError(
                f"{path} holds {len(self.labels)} of {self.index['count']} images: run mgen cache again to complete it"
            )
        self.spec = TokenSpec.from_dict(self.index["spec"])
        self.flips: bool = self.index["flips"]
        self.num_classes: int = self.index["num_classes"]
        self.class_names: Sequence[str] = self.index["class_names"]

    def __len__(self) -> int:
        return len(self.labels)

    def __getitems__(self, indices: Sequence[int]) -> dict[str, Tensor]:
        """A batch: label (B,), and of all stored views tokens (B, V, L) int64 or moments (B, V, 2c, h, w) fp32, likewise those of
        the smaller copies."""
        index = torch.as_tensor(indices)
        shard, row = index // self.index["shard_size"], index % self.index["shard_size"]
        batch = {"label": self.labels[index]}
        for name, shards in self.shards.items():
            kind = torch.int64 if self.name == "tokens" else torch.float32
            batch[name] = out = torch.empty(len(index), *shards[0].shape[1:], dtype=kind)
            for number in shard.unique().tolist():
                here = shard == number
                out[here] = shards[number][row[here]].to(kind)
        return batch
