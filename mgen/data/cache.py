"""Token caches: a data set passed once through a tokenizer, stored as safetensors shards with an index.

    index.json                   tokenizer fingerprint, token spec, counts, flips, classes
    shard-00000.safetensors      tokens (n, V, L) with V = 2 if horizontal flips are stored (view 1), labels (n,)

Ids are stored in the smallest integer type that holds the vocabulary. KL tokenizers, quantized or not, store the posterior's
`moments` (n, V, 2c, h, w) instead, in fp32 or fp16, so that training can sample it afresh. A smaller copy of every image can be
encoded as well, for generators with a low-resolution first stage (first_stage_tokens or first_stage_moments). The fingerprint is
a hash of the tokenizer's configuration and encoder: a cache made with another encoder raises an error, and one made before the
decoder was retrained (or the scale changed) stays valid. Shards are memory-mapped, so only the rows of a batch are read.
"""

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from mgen.data.base import ImageData
from mgen.data.first_stage import shrink
from mgen.tokenizers.base import PosteriorTokenizer, Tokenizer
from mgen.tokens import TokenSpec
from mgen.utils.errors import MgenError, check_choice
from mgen.utils.files import read_json, read_tensors, write_json, write_tensors

CACHE_VERSION = 1
STORED = {"fp32": torch.float32, "fp16": torch.float16}


def _smallest(vocab_size: int) -> torch.dtype:
    return torch.uint8 if vocab_size <= 256 else torch.int16 if vocab_size <= 32768 else torch.int32


@torch.inference_mode()
def write_cache(
    dataset: ImageData,
    tokenizer: Tokenizer,
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
    """Encode `dataset` with `tokenizer` into the folder `out`; existing shards are kept, so that an interrupted run resumes.

    Args:
        flips: also store the tokens of the horizontally flipped images.
        dtype: of moments, "fp32" or "fp16" (half the size, rounds to 0.05 %).
        first_stage_size: side in pixels of the smaller copies (see mgen.data.first_stage); None stores none.
        source: description of the data, stored in the index.

    Raises:
        MgenError: `out` holds a cache made with another tokenizer or other settings, or cannot be written.
    """
    out = Path(out)
    check_choice("dtype", dtype, STORED)
    with_moments = isinstance(tokenizer, PosteriorTokenizer)
    if not with_moments and dtype != "fp32":
        raise MgenError(f"dtype {dtype} is for the moments of a KL tokenizer: ids are integers")
    moments = {"moments": dtype} if with_moments else {}
    copies = {} if first_stage_size is None else {"first_stage_size": first_stage_size}
    index = _index(dataset, tokenizer, flips=flips, shard_size=shard_size, source=source, **moments, **copies)
    # Compared after a round trip through JSON, where tuples become lists.
    if (out / "index.json").exists() and read_json(out / "index.json") != json.loads(json.dumps(index)):
        raise MgenError(
            f"{out} already holds a cache made with other data, settings or tokenizer: choose another --out"
        )
    if first_stage_size is not None:  # raises for an impossible size before anything is written
        tokenizer.encode(shrink(dataset.__getitems__([0])["image"].to(tokenizer.device), first_stage_size))
    write_json(out / "index.json", index)
    stored = STORED[dtype] if with_moments else _smallest(tokenizer.spec.vocab_size or 0)
    with tqdm(total=len(dataset), unit="img", desc="tokenizing", disable=not progress) as bar:
        for number, start in enumerate(range(0, len(dataset), shard_size)):
            path = out / f"shard-{number:05d}.safetensors"
            rows = range(start, min(start + shard_size, len(dataset)))
            if path.exists():
                bar.update(len(rows))
                continue
            parts: dict[str, list[Tensor]] = {}
            for first in range(0, len(rows), batch_size):
                batch = dataset.__getitems__(rows[first : first + batch_size])
                for key, encoded in _encode(tokenizer, batch["image"], flips, first_stage_size).items():
                    parts.setdefault(key, []).append(encoded.to(stored).cpu())
                parts.setdefault("labels", []).append(batch["label"].to(torch.int32))
                bar.update(len(batch["label"]))
            if with_moments and not all(torch.isfinite(part).all() for made in parts.values() for part in made):
                raise MgenError(f"the tokenizer's moments are not finite in {dtype}: use fp32, or another tokenizer")
            write_tensors(path, {key: torch.cat(values) for key, values in parts.items()})
    return out


def _index(dataset: ImageData, tokenizer: Tokenizer, **settings: object) -> dict[str, object]:
    """The contents of index.json."""
    return {
        "version": CACHE_VERSION,
        "fingerprint": tokenizer.fingerprint(),
        "spec": tokenizer.spec.to_dict(),
        "count": len(dataset),
        "num_classes": dataset.num_classes,
        "class_names": list(dataset.class_names),
        **settings,
    }


def _encode(tokenizer: Tokenizer, images: Tensor, flips: bool, first_stage_size: int | None) -> dict[str, Tensor]:
    """Tokens or moments (B, V, …) of images (B, C, H, W), and of their smaller copies if `first_stage_size` is given."""
    name, encode = "tokens", tokenizer.encode
    if isinstance(tokenizer, PosteriorTokenizer):
        name, encode = "moments", tokenizer.moments
    images = images.to(tokenizer.device)
    views = [images, images.flip(-1)] if flips else [images]
    sizes = {name: views}
    if first_stage_size is not None:
        sizes[f"first_stage_{name}"] = [shrink(view, first_stage_size) for view in views]
    return {key: torch.stack([encode(view) for view in views], dim=1) for key, views in sizes.items()}


class TokenCache:
    """Tokens or moments of N images, and their `labels` (N,).

    Args:
        path: folder written by `write_cache`. fingerprint: of the tokenizer that will decode; None skips the check.

    Raises:
        MgenError: there is no cache, shards are missing or damaged, or it belongs to another tokenizer.
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
        self.shards = {name: [p[name] for p in parts] for name in names}  # memory-mapped
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
        """A batch: all stored views of tokens (B, V, L) int64 or moments (B, V, 2c, h, w) fp32, of smaller copies too, and label (B,)."""
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
