"""How fast a cache of moments is read: random permutation or shards in sequence, from the disk or from memory.

    python tools/data_speed.py --folder /data/try --images 65536

A cache of random moments is written as `mgen cache --dtype fp16` writes it (KL16 at 256 px: 32 × 16 × 16 numbers, 16 kB an image), then
every way of reading makes batches in a process of its own, which also has opened the cache before. Cold: the files have been dropped from
the system's memory before. Warm: all of them are in there. Reported are images per second by the clock, from the first batch on, and the
reading process's CPU time. The folder must be on the disk that is to be measured, and larger caches tell more: drives and networks have
caches of their own.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[1]
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


def read(args: argparse.Namespace) -> dict[str, float]:
    """Images and seconds of one way of reading, in this process."""
    from mgen.data import TokenCache
    from mgen.training.config import DataConfig, TrainConfig
    from mgen.training.data import BatchOrder, batches

    torch.set_num_threads(1)
    folder = Path(args.folder)
    cache = TokenCache(folder)
    if args.cold:
        drop(folder)
    settings: dict[str, Any] = {"shuffle": args.shuffle}
    if args.shuffle == "shards":
        settings |= {"buffer": args.buffer, "streams": args.streams}
    config = TrainConfig(
        task="generator",
        output="unused",
        steps=len(cache) // args.batch_size,
        batch_size=args.batch_size,
        model="mar-b",
        data=DataConfig(kind="cache", path=str(folder), workers=args.workers, **settings),
    )
    order = BatchOrder(config, data=cache, rank=0, world=1, start=0)
    images, total = 0, 0.0
    began, cpu = time.perf_counter(), time.process_time()
    for batch in batches(cache, order, args.workers):
        images += len(batch["label"])
        total += float(batch["moments"][0, 0, 0, 0, 0])  # so that a batch is there
        if time.perf_counter() - began > args.seconds:
            break
    return {"images": images, "seconds": time.perf_counter() - began, "cpu": time.process_time() - cpu}


def measure(args: argparse.Namespace, folder: Path, *, shuffle: str, cold: bool, workers: int) -> dict[str, Any]:
    """The same in a process of its own, which hasn't touched the shards before."""
    if cold:
        drop(folder)
    command = [
        sys.executable,
        __file__,
        "--child",
        "--folder",
        str(folder),
        "--shuffle",
        shuffle,
        "--workers",
        str(workers),
    ]
    for name in ("batch_size", "buffer", "streams", "seconds"):
        command += [f"--{name.replace('_', '-')}", str(getattr(args, name))]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [*command, *(["--cold"] if cold else [])], check=True, capture_output=True, text=True, env=environment
    )
    found = json.loads(done.stdout.splitlines()[-1])
    return {
        "shuffle": shuffle,
        "from": "disk" if cold else "memory",
        "workers": workers,
        "images_per_second": round(found["images"] / found["seconds"]),
        "cpu_ms_per_1000_images": round(1e6 * found["cpu"] / found["images"]),
        "images": found["images"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="where the cache is written and removed; default: a temporary one")
    parser.add_argument("--images", type=int, default=65536)
    parser.add_argument("--shard-size", type=int, default=4096)
    parser.add_argument("--dtype", choices=("fp16", "fp32"), default="fp16")
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--buffer", type=int, default=16384)
    parser.add_argument("--streams", type=int, default=1)
    parser.add_argument("--workers", type=int, nargs="*", default=[0])
    parser.add_argument("--seconds", type=float, default=30.0, help="after which a way is stopped")
    parser.add_argument("--repeats", type=int, default=3, help="rounds through all ways; the fastest counts")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--shuffle", default="full", help=argparse.SUPPRESS)
    parser.add_argument("--cold", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        args.workers = args.workers[0]
        print(json.dumps(read(args)))
        return
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
    print(json.dumps({**about, "ways": list(best.values())}, indent=2))


if __name__ == "__main__":
    main()
