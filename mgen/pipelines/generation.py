"""Sampling many images: in batches, shared between processes, resumable after an interruption.

Image i of a run is a function of (weights, settings, seed, i) alone: the number of processes and interruptions change nothing, the
batch size only the rounding of sums. A run's folder, and what makes it resumable, is in mgen/pipelines/runs.py.
"""

import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from mgen.nn.precision import held
from mgen.pipelines.classes import read_classes
from mgen.pipelines.pipeline import MaskedPipeline
from mgen.pipelines.pixels import to_pil, to_uint8
from mgen.pipelines.run_file import IMAGE, SHARD
from mgen.pipelines.runs import Run, begin_images, names_in, remove_leftovers, spans
from mgen.pipelines.shards import ShardFolder, write_npz
from mgen.pipelines.sizes import check_run_size, image_numbers
from mgen.utils.errors import MgenError, shown
from mgen.utils.files import atomic_path
from mgen.utils.modeling import check_dtype


def chosen_classes(text: str | None, pipe: MaskedPipeline, option: str = "--classes") -> Sequence[int | None]:
    """Class ids of a text (see `read_classes`), all for None; [None] for an unconditional model; MgenError for other texts."""
    if not pipe.conditional:
        if text is not None:
            raise MgenError(
                f"{option} {shown(text)}: this model is unconditional and has no classes: leave the option out"
            )
        return [None]
    if text is None:
        return list(range(pipe.transformer.num_classes))
    return read_classes(text, pipe.class_names, option)


def complete_run(
    pipe: MaskedPipeline,
    run: Run,
    *,
    about: Mapping[str, Any],
    batch_size: int,
    rank: int = 0,
    world: int = 1,
    wait: Callable[[], Any] = lambda: None,
) -> int:
    """Start or resume a run and complete it; returns how many images this process sampled.

    Args:
        about: see `begin_images`. rank, world: number of this process, and of all processes. wait: their barrier.

    Raises:
        MgenError: the folder holds another run, a file can't be written, or an image is missing at the end.
    """
    if rank == 0:
        check_run_size(run, batch_size, image_numbers(pipe.tokenizer.config))
        begin_images(run, about)
    wait()
    made = run_images(pipe, run, batch_size=batch_size, rank=rank, world=world)
    wait()
    if rank == 0:
        check_complete(run)
    return made


def run_images(pipe: MaskedPipeline, run: Run, *, batch_size: int, rank: int = 0, world: int = 1) -> int:
    """Sample the missing images of this process; returns how many.

    The process samples batches rank, rank + world, … of the run, or such shards with npz. A batch always holds the same images: in a
    batch of another size sums may be rounded differently, and a resumed run would end with other bytes.
    """
    work = _sample_pngs if run.format == "png" else _sample_shards
    with held(pipe.transformer, check_dtype(run.dtype)):  # converted once for all batches
        return work(pipe, run, batch_size=batch_size, rank=rank, world=world)


def _sample_pngs(pipe: MaskedPipeline, run: Run, *, batch_size: int, rank: int, world: int) -> int:
    there = names_in(run.out)
    batch_size = min(batch_size, -(-run.count // world))  # so that every process has work in a small run
    mine = spans(0, run.count, batch_size)[rank::world]
    done = sum(1 for name in there if (m := IMAGE.fullmatch(name)) and int(m[1]) // batch_size % world == rank)
    made = 0
    with _bar(mine.total, done, rank) as bar:
        for start, stop in mine:
            if lost := [i for i in range(start, stop) if run.file(i, i + 1) not in there]:
                images = to_pil(sample_images(pipe, run, range(start, stop)))
                for i in lost:
                    save_png(images[i - start], run.out / run.file(i, i + 1))
                bar.update(len(lost))
                made += len(lost)
    return made


def _sample_shards(pipe: MaskedPipeline, run: Run, *, batch_size: int, rank: int, world: int) -> int:
    there, shards = names_in(run.out), run.spans
    if rank == 0 and world > len(shards):
        warnings.warn(f"{len(shards)} shards for {world} processes: give a smaller --shard-size", stacklevel=3)
    mine = shards[rank::world]
    done = sum(span[1] - span[0] for span in mine if run.file(*span) in there)
    made = 0
    with _bar(mine.total, done, rank) as bar:

        def images(start: int, stop: int) -> Iterator[Tensor]:
            for part in spans(start, stop, batch_size):
                yield sample_images(pipe, run, range(*part))
                bar.update(part[1] - part[0])

        for span in mine:
            if run.file(*span) in there:
                continue
            labels = np.fromiter(run.ids(*span), np.int64, span[1] - span[0])
            write_npz(run.out / run.file(*span), images(*span), labels=labels)
            made += span[1] - span[0]
            for shorter in there:  # the last shard of a run that is being extended
                if shorter.startswith(f"images-{span[0]:06d}-") and SHARD.fullmatch(shorter):
                    (run.out / shorter).unlink(missing_ok=True)
    return made


def _bar(total: int, done: int, rank: int) -> Any:
    """Progress bar of this process; only the first process shows it."""
    return tqdm(total=total, initial=min(done, total), unit="img", desc="sampling", disable=rank > 0)


def sample_images(pipe: MaskedPipeline, run: Run, indices: Sequence[int]) -> Tensor:
    """Images of a run, uint8 (B, C, H, W); `run.image_size` and `run.quantization`: see mgen.pipelines.pixels.to_uint8."""
    images = pipe(
        [run.labels(i) for i in indices],
        indices=indices,
        seed=run.labels.seed,
        dtype=run.dtype,
        output_type="raw",
        progress=False,
    ).images
    return to_uint8(images, size=run.image_size, quantization=run.quantization)


def check_complete(run: Run) -> None:
    """Raise MgenError unless every image of the run is there."""
    there, missing, first = names_in(run.out), 0, ""
    for span in run.spans:
        name = run.file(*span)
        # A listing may lag behind what other machines wrote; a query for the file itself does not.
        if name not in there and not (run.out / name).is_file():
            missing, first = missing + 1, first or name
    if missing:
        raise MgenError(
            f"{missing} of {len(run.spans)} files are missing from {run.out}, the first is {first}: rerun the same command; "
            "processes on several machines must share the folder"
        )
    if run.format == "npz":
        expected = run.ids(0, run.count)
        if any(shard != list(islice(expected, len(shard))) for shard in ShardFolder(run.out).labels_by_shard()):
            raise MgenError(f"the shards in {run.out} are not those of this run: remove them, or choose another --out")


def save_png(image: Image.Image, path: Path) -> None:
    """Write a PNG completely or not at all."""
    with atomic_path(path) as temporary:
        image.save(temporary, format="PNG")


def export_npz(run: Run, file: Path) -> None:
    """All images of a complete run in one npz for ADM's evaluator: arr_0 (N, H, W, 3), gray repeated; arr_1 class ids."""
    from mgen.data import load_image

    def parts() -> Iterator[Tensor]:
        if run.format == "png":
            for span in run.spans:
                yield load_image(run.out / run.file(*span), channels=3)[None]
            return
        folder = ShardFolder(run.out)
        for start, stop in run.spans:
            for part in spans(start, stop, 100):
                yield folder.read(*part)[0].expand(-1, 3, -1, -1)

    remove_leftovers(file.parent, re.escape(file.name))
    with tqdm(parts(), unit="part", desc=file.name, leave=False) as bar:  # gone before an error is told
        write_npz(file, bar, labels=np.fromiter(run.ids(0, run.count), np.int64, run.count))


def read_back(run: Run) -> tuple[Tensor, list[int]]:
    """Images of a run for a preview grid, uint8 (n, C, H, W), and their classes, -1 for none: 10 of each of 20 classes."""
    from mgen.data.image_files import load_image, open_image

    chosen: dict[int, list[int]] = {}
    for i, label in enumerate(run.ids(0, run.count)):
        if label in chosen or len(chosen) < 20:
            if len(chosen.setdefault(label, [])) < (200 if label < 0 else 10):
                chosen[label].append(i)
    pairs = sorted((i, label) for label, indices in chosen.items() for i in indices)
    if run.format == "npz":
        folder = ShardFolder(run.out)
        images = [folder.read(i, i + 1)[0][0] for i, _ in pairs]
    else:
        with open_image(run.out / run.file(0, 1)) as first:
            channels = 1 if first.mode == "L" else 3
        images = [load_image(run.out / run.file(i, i + 1), channels=channels) for i, _ in pairs]
    for image, (i, _) in zip(images, pairs):
        if image.shape != images[0].shape:
            sizes = [f"{x.shape[-1]}×{x.shape[-2]}" for x in (image, images[0])]
            raise MgenError(
                f"{run.out / run.file(i, i + 1)} is {sizes[0]} pixels, other images of the run are {sizes[1]}: remove it and rerun"
            )
    return torch.stack(images), [label for _, label in pairs]
