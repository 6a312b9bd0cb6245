"""Estimates of what sampling needs, against what the machine has; all are low, so that nothing that could have worked raises an error."""

import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mgen.pipelines.runs import Run, names_in
from mgen.pipelines.shards import find_shards
from mgen.utils.errors import MgenError
from mgen.utils.limits import check_disk, check_memory, folder_above

if TYPE_CHECKING:
    from mgen.bench.flops import Networks
    from mgen.samplers import ParallelSampler

SMALLEST_PNG = 67  # bytes
COMPRESSION = 1032  # deflate's best ratio
UNNOTICED = 2**28  # bytes that are not worth a look at the machine


def image_numbers(config: Mapping[str, Any], side: int | None = None) -> int:
    """Numbers of one image of a tokenizer with this configuration, or of one resized to `side`."""
    return int(config["in_channels"]) * (side or int(config["image_size"])) ** 2


def check_batch(pipe: "Networks", sampler: "ParallelSampler", size: int, count: int) -> None:
    """Raise MgenError if the noise of a batch of `size` images and all `count` images don't fit in memory."""
    generator = pipe.transformer
    noise = generator.head.noise_spec(sampler.longest_head)
    each = math.prod(noise.shape) * generator.units.length
    if sampler.order.ranked or sampler.remask is not None:  # else a position is drawn once
        each *= sampler.config.steps
    image = 0 if pipe.tokenizer is None else image_numbers(pipe.tokenizer.config)
    # Single precision: noise of the batch; images of the call.
    need = 4 * (size * each + count * image)
    if need < UNNOTICED:
        return
    check_memory(
        need, f"{count:,} images, {size:,} at a time, in {sampler.config.steps} steps", "ask for fewer at once"
    )


def check_run_size(run: Run, batch_size: int, numbers: int) -> None:
    """Raise MgenError if a batch of a run doesn't fit in memory, or its files on the disk.

    Args:
        numbers: of an image as the tokenizer makes it.
    """
    pixels = numbers if run.image_size is None else run.image_size**2
    batch = min(batch_size, run.count)
    check_memory(
        4 * batch * max(pixels, numbers),
        f"a batch of {batch:,} images of {pixels:,} pixels",
        "make the batch or the images smaller",
    )
    if run.format == "npz":
        missing, each = run.count - sum(map(len, find_shards(run.out))), float(pixels)
    else:
        missing, each = run.count - len(names_in(run.out)), max(SMALLEST_PNG, pixels / COMPRESSION)
        _check_names(run.out, missing)
    if missing * each > UNNOTICED:
        check_disk(
            run.out, missing * each, f"{run.count:,} images in {run.out}", "ask for fewer, or choose another --out"
        )


def _check_names(folder: Path, missing: int) -> None:
    """Raise MgenError for more files than the file system has room for."""
    folder = folder_above(folder)
    try:
        there = os.statvfs(folder)
    except OSError:
        return
    if 0 < there.f_files and there.f_favail < missing:  # some file systems don't count files
        raise MgenError(
            f"{missing:,} files don't fit on the disk of {folder}, which has room for {there.f_favail:,}: use --format npz, or ask "
            "for fewer"
        )
