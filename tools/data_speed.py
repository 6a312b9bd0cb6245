"""How fast a cache of moments is read: random permutation or shards in sequence, from the disk or from memory.

    python tools/data_speed.py --folder /data/try --images 65536

A cache of random moments is written as `mgen cache --dtype fp16` writes it (KL16 at 256 px: 32 × 16 × 16 numbers, 16 kB an image), then
every way of reading makes batches in a process of its own, which also has opened the cache before. Disk: the files have been dropped from
the system's memory before. Memory: all of them are in there. Forgotten: what was read is dropped after every batch, as if the cache were
much larger than the memory; by the system's own read-ahead, and with the advice that a training gives for such caches.

Reported are images per second by the clock, from the first batch on; the reading process's CPU time; how often it stood still until the
disk had brought something (major page faults), and how much was brought. With workers the last three are of the main process alone. The
folder must be on the disk that is to be measured, and larger caches tell more: drives and networks have caches of their own.
"""

import argparse
import json
import mmap
import multiprocessing
import os
import platform
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from mgen.cli import run
from mgen.cli.parser import Parser, number, whole
from mgen.utils.errors import MgenError

SHAPE = (32, 16, 16)


def write(folder: Path, images: int, shard_size: int, dtype: str) -> None:
    """A cache of random moments of images of 1000 classes."""
    from mgen.data.cache_format import CacheIndex, mark_shard, shard_path
    from mgen.tokens import TokenSpec
    from mgen.utils.files import write_json, write_tensors

    spec = TokenSpec(kind="vector", length=256, grid=(16, 16), channels=16)
    index = CacheIndex(
        fingerprint="0" * 64,
        spec=spec,
        count=images,
        num_classes=1000,
        class_names=tuple(map(str, range(1000))),
        flips=False,
        shard_size=shard_size,
        moments=dtype,
    )
    rng = torch.Generator().manual_seed(0)
    for shard in range(index.shards):
        rows = len(index.rows(shard))
        tensors = {
            "moments": torch.randn(rows, 1, *SHAPE, generator=rng).to(index.dtype),
            "labels": torch.randint(0, 1000, (rows,), generator=rng, dtype=torch.int32),
        }
        write_tensors(shard_path(folder, shard), tensors, mark_shard(index, shard, "0" * 64, tensors))
    write_json(folder / "index.json", index.to_dict())


def drop(folder: Path) -> None:
    """Drop the shards from the system's memory."""
    for path in folder.glob("shard-*"):
        handle = os.open(path, os.O_RDONLY)
        os.fsync(handle)
        os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(handle)


def read(args: argparse.Namespace, folder: Path, shuffle: str, cold: bool, workers: int) -> dict[str, float]:
    """Images and seconds of one way of reading, in this process."""
    from mgen.data import TokenCache
    from mgen.training.config import DataConfig, TrainConfig
    from mgen.training.data import BatchOrder, batches

    cache = TokenCache(folder)
    if cold:
        drop(folder)
    settings: dict[str, Any] = {"shuffle": shuffle}
    if shuffle == "shards":
        settings |= {"buffer": args.buffer, "streams": args.streams}
    config = TrainConfig(
        task="generator",
        output="unused",
        steps=len(cache) // args.batch_size,
        batch_size=args.batch_size,
        model="mar-b",
        data=DataConfig(kind="cache", path=str(folder), workers=workers, **settings),
    )
    order = BatchOrder(config, data=cache, rank=0, world=1, start=0)
    images, total = 0, 0.0
    faults, fetched = resource.getrusage(resource.RUSAGE_SELF).ru_majflt, bytes_fetched()
    began, cpu = time.perf_counter(), time.process_time()
    for batch in batches(cache, order, workers):
        images += len(batch["label"])
        total += float(batch["moments"][0, 0, 0, 0, 0])  # so that a batch is there
        if time.perf_counter() - began > args.seconds:
            break
    return {
        "images": images,
        "seconds": time.perf_counter() - began,
        "cpu": time.process_time() - cpu,
        "waits": resource.getrusage(resource.RUSAGE_SELF).ru_majflt - faults,
        "fetched": bytes_fetched() - fetched,
    }


def bytes_fetched() -> int:
    """Bytes that this process has made the system read from the disk."""
    lines = Path("/proc/self/io").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith("read_bytes")))


def forgotten(args: argparse.Namespace, folder: Path, advised: bool) -> dict[str, Any]:
    """Random batches of 32 images, after each of which nothing is in memory any more."""
    from mgen.data import TokenCache
    from mgen.data.read_ahead import advise

    cache = TokenCache(folder)
    rng = torch.Generator().manual_seed(0)
    images, fetched, began = 0, bytes_fetched(), time.perf_counter()
    while time.perf_counter() - began < args.seconds:
        advise(cache.shards["moments"], mmap.MADV_DONTNEED)
        drop(folder)
        if advised:
            advise(cache.shards["moments"], mmap.MADV_RANDOM)
        images += len(cache.__getitems__(torch.randint(0, len(cache), (32,), generator=rng).tolist())["label"])
    return {
        "shuffle": "full",
        "from": "forgotten, advised" if advised else "forgotten",
        "images_per_second": round(images / (time.perf_counter() - began)),
        "bytes_from_disk_per_image": round((bytes_fetched() - fetched) / images),
        "images": images,
    }


def in_a_process(function: Callable[..., dict[str, Any]], *args: Any) -> dict[str, Any]:
    """What a function returns in a forked process, which has imported everything."""
    context = multiprocessing.get_context("fork")
    here, there = context.Pipe()

    def answer() -> None:
        try:
            there.send(function(*args))
        except MgenError as error:
            there.send(error)

    child = context.Process(target=answer)
    child.start()
    there.close()  # so that the end of the child ends the wait below
    try:
        found: dict[str, Any] | MgenError = here.recv()
    except EOFError:
        raise SystemExit("the process that reads has ended, see above") from None
    child.join()
    if isinstance(found, MgenError):
        raise found
    return found


def measure(args: argparse.Namespace, folder: Path, *, shuffle: str, cold: bool, workers: int) -> dict[str, Any]:
    """The same in a process of its own, which hasn't touched the shards before."""
    if cold:
        drop(folder)
    found = in_a_process(read, args, folder, shuffle, cold, workers)
    return {
        "shuffle": shuffle,
        "from": "disk" if cold else "memory",
        "workers": workers,
        "images_per_second": round(found["images"] / found["seconds"]),
        "cpu_us_per_image": round(1e6 * found["cpu"] / found["images"], 1),
        "random_reads_per_1000_images": round(1000 * found["waits"] / found["images"], 1),
        "bytes_from_disk_per_image": round(found["fetched"] / found["images"]),
        "images": found["images"],
    }


def command(argv: Sequence[str] | None = None) -> None:
    """Measure and print; see --help."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="where the cache is written and removed; default: a temporary one")
    parser.add_argument("--images", type=whole(1), default=65536)
    parser.add_argument("--shard-size", type=whole(1), default=4096)
    parser.add_argument("--dtype", choices=("fp16", "fp32"), default="fp16")
    parser.add_argument("--batch-size", type=whole(1), default=256)
    parser.add_argument("--buffer", type=whole(1), default=16384)
    parser.add_argument("--streams", type=whole(1), default=1)
    parser.add_argument("--workers", type=whole(0, 256), nargs="+", default=[0])
    parser.add_argument("--seconds", type=number(0.01), default=30.0, help="after which a way is stopped")
    parser.add_argument("--repeats", type=whole(1), default=3, help="rounds through all ways; the fastest counts")
    args = parser.parse_args(argv)
    if args.images < args.batch_size:
        raise MgenError(f"--images is {args.images}, --batch-size {args.batch_size}: give at least one batch of images")
    if args.folder is not None and not args.folder.is_dir():
        raise MgenError(f"--folder {args.folder} is no folder: make it first, or give another")
    import mgen.training.data  # noqa: F401  # once, for all processes

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(dir=args.folder) as name:
        folder = Path(name)
        write(folder, args.images, args.shard_size, args.dtype)
        best: dict[tuple[str, bool, int], dict[str, Any]] = {}
        for _ in range(args.repeats):
            for cold in (True, False):
                for shuffle in ("full", "shards"):
                    for workers in args.workers:
                        found = measure(args, folder, shuffle=shuffle, cold=cold, workers=workers)
                        key = shuffle, cold, workers
                        if key not in best or found["images_per_second"] > best[key]["images_per_second"]:
                            best[key] = found
        ways = [*best.values(), *(in_a_process(forgotten, args, folder, advised) for advised in (False, True))]
    about = {
        "images": args.images,
        "bytes_per_image": torch.finfo(getattr(torch, {"fp16": "float16", "fp32": "float32"}[args.dtype])).bits
        // 8
        * 8192,
        "shard_size": args.shard_size,
        "buffer": args.buffer,
        "streams": args.streams,
        "batch_size": args.batch_size,
        "cpus": os.cpu_count(),
        "machine": platform.processor() or platform.machine(),
    }
    print(json.dumps({**about, "ways": ways}, indent=2))


if __name__ == "__main__":
    sys.exit(run(command))
