"""One pass of images through an extractor into shards of features: split between processes, resumable, in little memory.

A shard holds the features of 500 consecutive images and is written atomically. Process s mod `world` measures shard s. All metrics are
computed from the shards in order, so they depend neither on the number of processes nor on interruptions. The batch size affects the
rounding of features, relatively by about 1e-6.
"""

import contextlib
import random
import sys
import tempfile
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from mgen.evaluation.extractors import Extractor, Seen
from mgen.evaluation.feature_files import SHARD, damage, shard_file, write_shard
from mgen.evaluation.measured import Measured
from mgen.evaluation.source import Batch, Images, Source
from mgen.utils.errors import MgenError


@dataclass(frozen=True, kw_only=True)
class Workers:
    """The processes of an evaluation: this one's rank, their number, its device, and a barrier."""

    rank: int = 0
    world: int = 1
    device: torch.device = torch.device("cpu")
    wait: Callable[[], None] = lambda: None


ALONE = Workers()


def measure(
    source: Source,
    extractor: Extractor,
    *,
    classifier: Extractor | None = None,
    folder: Path | None = None,
    made: Sequence[Path] = (),
    batch_size: int = 100,
    examples: int = 100,
    workers: Workers = ALONE,
    progress: bool = True,
) -> Measured:
    """Pass all images through the extractor, and through the classifier behind the class accuracy if there is one.

    Args:
        folder: of the shards, so that the pass can resume; None: a temporary one that is deleted with the result. made: what `begin`
            made for it, to be removed if no shard is finished.
        batch_size: images at a time. examples: about how many images to keep for a grid, spread over all.
        workers: only the first one gets the rows.

    Raises:
        MgenError: there are no images, features are not finite, or the disk is full.
    """
    if not source.count:
        raise MgenError("there are no images to evaluate")
    rank, world, temporary = workers.rank, workers.world, None
    if folder is None:
        temporary = tempfile.TemporaryDirectory(prefix="mgen-")
        folder = Path(temporary.name)
    if rank == 0 and progress:
        _warn_of_idle(source.count, world)
    shards = [range(start, min(start + SHARD, source.count)) for start in range(0, source.count, SHARD)][rank::world]
    shown = example_rows(source.count, examples)
    todo = [shard for shard in shards if not _kept(folder, shard, shown, extractor, classifier)]
    try:
        with _bar(shards, todo, hidden=not progress or rank > 0) as bar:
            ranges = [(a, min(a + batch_size, shard.stop)) for shard in todo for a in shard[::batch_size]]
            batches = read_ahead(source, ranges)
            for shard in todo:
                parts = []
                for first in shard[::batch_size]:
                    batch = next(batches)
                    kept = [i - first for i in shown if first <= i < first + len(batch.images)]
                    parts.append(_seen(batch, extractor, classifier, kept))
                    bar.update(len(batch.images))
                write_shard(shard_file(folder, shard.start), _joined(parts))
    except MgenError:
        if world == 1:
            _leave_nothing(folder, made)
        raise
    if todo and rank == 0:
        for path in folder.glob("*.f32"):  # they lack the new rows
            path.unlink()
    workers.wait()
    return Measured(folder, source.count if rank == 0 else 0, temporary)


def _bar(shards: Sequence[range], todo: Sequence[range], *, hidden: bool) -> "tqdm[Any]":
    """Progress bar over the images of a process, those that are done included."""
    total, left = sum(map(len, shards)), sum(map(len, todo))
    return tqdm(
        total=total,
        initial=total - left,
        unit="img",
        desc="evaluating",
        file=sys.stderr,
        disable=hidden,
        delay=1,  # an input that fails at once gives one line
    )


def _kept(folder: Path, shard: range, shown: Sequence[int], extractor: Extractor, classifier: Extractor | None) -> bool:
    """Whether the features of these images are there and whole; a damaged file is measured again, with a word."""
    file = shard_file(folder, shard.start)
    if not file.is_file():
        return False
    needed = {"guesses"} if classifier is not None else set()
    if extractor.spatial_length:
        needed.add("spatial")
    if any(row in shard for row in shown):
        needed |= {"examples", "example_labels"}
    if why := damage(file, len(shard), extractor.length, needed):
        print(f"{file} is damaged ({why}): its images are measured again", file=sys.stderr)
    return not why


def _warn_of_idle(count: int, world: int) -> None:
    """Say on stderr if there are more processes than shards."""
    if count <= SHARD * (world - 1):
        print(
            f"{count} images are {-(-count // SHARD)} shards of {SHARD} images: {world} processes are more than needed",
            file=sys.stderr,
        )


def _leave_nothing(folder: Path, made: Sequence[Path]) -> None:
    """If no shard was finished, remove what `begin` wrote and made."""
    if any(folder.glob("part-*")):
        return
    (folder / "features.json").unlink(missing_ok=True)
    for new in made:
        with contextlib.suppress(OSError):  # something else is in it
            new.rmdir()


def read_ahead(source: Source, ranges: Sequence[tuple[int, int]]) -> Iterator[Batch]:
    """The batches in order; if the source allows it, the next one is read while one is measured."""
    if not source.ahead:
        yield from (source.read(*r) for r in ranges)
        return
    with ThreadPoolExecutor(1) as pool:
        ahead = deque(pool.submit(source.read, *r) for r in ranges[:2])
        for i in range(len(ranges)):
            batch = ahead.popleft().result()
            if i + 2 < len(ranges):
                ahead.append(pool.submit(source.read, *ranges[i + 2]))
            yield batch


def example_rows(count: int, wanted: int) -> list[int]:
    """About `wanted` of the indices below `count`, spread so that all classes appear whether images alternate or are sorted by class."""
    if count <= wanted:
        return list(range(count))
    rng = random.Random(0)  # evenly spaced indices would interfere with the number of classes
    return [rng.randrange(i * count // wanted, (i + 1) * count // wanted) for i in range(wanted)]


def features_of(extractor: Extractor, images: Images) -> Seen:
    """What the extractor sees; images of several sizes go through it by size."""
    if isinstance(images, Tensor):
        return extractor(images)
    by_size: dict[torch.Size, list[int]] = {}
    for i, image in enumerate(images):
        by_size.setdefault(image.shape, []).append(i)
    parts = [extractor(torch.stack([images[i] for i in rows])) for rows in by_size.values()]
    order = torch.tensor([i for rows in by_size.values() for i in rows]).argsort()
    spatial = [part.spatial for part in parts if part.spatial is not None]
    return Seen(
        torch.cat([part.features for part in parts])[order],
        torch.cat([part.logits for part in parts])[order],
        torch.cat(spatial)[order] if spatial else None,
    )


def _seen(batch: Batch, extractor: Extractor, classifier: Extractor | None, kept: Sequence[int]) -> dict[str, Tensor]:
    seen = features_of(extractor, batch.images)
    if not torch.isfinite(seen.features).all():
        raise MgenError("the extractor gave NaN features: its weights or the images are damaged")
    out = {"features": seen.features, "logits": seen.logits, "labels": batch.labels}
    if seen.spatial is not None:
        out["spatial"] = seen.spatial
    if batch.originals is not None:
        out["original"] = extractor(batch.originals).features
    if classifier is not None:
        out["guesses"] = features_of(classifier, batch.images).logits.argmax(1)
    out |= {f"column.{name}": column for name, column in batch.columns.items()}
    out |= {f"total.{name}": total for name, total in batch.totals.items()}
    if kept:
        out["examples"] = batch.shown(kept)
        out["example_labels"] = batch.labels[kept]
    return out


def _joined(parts: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    names = dict.fromkeys(name for part in parts for name in part)
    found = {name: [part[name] for part in parts if name in part] for name in names}
    return {name: torch.stack(x).sum(0) if name.startswith("total.") else torch.cat(x) for name, x in found.items()}
