"""`mgen cache`: tokenize a data set once."""

import re
from argparse import ArgumentParser, ArgumentTypeError, Namespace
from collections.abc import Sequence
from contextlib import nullcontext

from mgen.cli import resumable
from mgen.cli.overwrite import add_overwrite, again, overwriting
from mgen.cli.parser import add_vision, data_path, make_parser, path, whole
from mgen.utils.errors import MgenError, shown

EXAMPLES = """  mgen cache --data fmnist --out caches/fmnist
  mgen cache --data fmnist --split test --out caches/fmnist-test
  mgen cache --data /data/imagenet/train --tokenizer models/vqgan --image-size 256 --flips --out caches/in256
  mgen cache --data /data/photos --tokenizer models/kl16 --measure-scale 2000      the scale of your data, for mgen convert … scale=S
  mgen cache --data fmnist --tokenizer models/kl --measure-order 2000      channels by frequency, for mgen convert quantize …
  mgen cache --data fmnist --tokenizer models/kl --first-stage-size 16 --out caches/two        two resolutions, for Hi-MAR
  mgen cache --data /data/imagenet/train --tokenizer models/hita --vision-weights dinov2_vitl14_reg4_pretrain.pth --out caches/hita
  accelerate launch --multi_gpu --num_processes 8 -m mgen cache --data /data/imagenet/train --tokenizer models/kl16 --dtype fp16 \\
      --flips --shuffle --workers 8 --out caches/in256                    8 GPUs, each with 8 processes that read images
  mgen cache … --part 3/16      the third of 16 independent commands with one --out, of a cluster's array job for example
  mgen cache --data '/data/imagenet-{000000..000146}.tar' --tokenizer models/kl16 --out caches/in256       a WebDataset
  mgen cache --verify caches/fmnist      check every row, after a copy for example

For KL tokenizers the moments of the posterior are stored, which training samples afresh.
Rerun an interrupted command to resume, with as many processes as you like: complete shards are kept, and on equal machines the same
--batch-size and number of threads make the same bytes. Train on the cache with data.kind=cache data.path=caches/fmnist."""


def command(argv: Sequence[str] | None = None) -> int:
    parser = make_parser("cache", "Tokenize a data set once, into a sharded token cache.", EXAMPLES)
    add_options(parser)
    args = parser.parse_args(argv)

    from mgen.cli.early import check_common, check_model, check_there
    from mgen.utils.files import check_writable
    from mgen.utils.paths import check_apart
    from mgen.utils.tar_paths import PIPE, names_tars

    if args.verify:
        check_unused(args, "--verify", ("data", "out", "overwrite"))
        return verify(args.verify)
    if args.data is None:
        raise MgenError("--data is missing: give a folder of images, or fmnist")
    if args.data == "fmnist":
        check_unused(args, "--data fmnist", ("image_size", "classes", "index", "on_error"))
    else:
        tars = names_tars(args.data)
        unused = ("data_path", "split", *(() if tars else ("index",)))
        check_unused(args, "tars" if tars else "a folder of images", unused)
        if args.shuffle and args.data.startswith(PIPE):  # before every command has been run for its index
            raise MgenError(
                "--shuffle stores the images in a random order, which streams (pipe:…) don't allow: leave it out"
            )
    measures = [name for name in ("measure_scale", "measure_order") if getattr(args, name)]
    if measures:
        check_unused(
            args,
            f"--{measures[0].replace('_', '-')}",
            ("out", "overwrite", "flips", "shuffle", "shard_size", "dtype", "first_stage_size", "part", "workers"),
        )
    elif args.out is None:
        raise MgenError("--out is missing: give the folder for the cache")
    elif args.part and args.overwrite:
        raise MgenError("--overwrite with --part would remove what other parts have written: remove the folder first")
    else:
        check_writable(args.out)
    check_common(args)
    check_model(args.tokenizer)
    if args.data != "fmnist" and not names_tars(args.data):
        check_there("--data", args.data, "folder")
        if args.out:
            check_apart(args.out, "--out", {"--data": args.data})
    with (
        resumable(f"the same command{again(args)} goes on after the shards it has written")
        if args.out
        else nullcontext()
    ):
        with overwriting(
            args.out or "", "cache", active=args.overwrite, inputs=(args.data, args.tokenizer, args.data_path)
        ):
            return tokenize(args)


def check_unused(args: Namespace, mode: str, names: Sequence[str]) -> None:
    """Raise MgenError for the first of these options that is given, though it has no effect with `mode`."""
    for name in names:
        if getattr(args, name):
            raise MgenError(f"--{name.replace('_', '-')} has no effect with {mode}: leave it out")


def add_options(parser: ArgumentParser) -> None:
    # Longer than 60 lines since it is the list of the command's options, one after the other.
    option = parser.add_argument
    option(
        "--data",
        type=data_path,
        metavar="DATA",
        help="a folder of images (classes: its subfolders), tars of a WebDataset (a folder of them, or a pattern: "
        "'shard-{000..146}.tar'), commands that write tars ('pipe:curl -sf URL'), or `fmnist`",
    )
    option("--index", type=path, metavar="DIR", help="folder for the indexes of tars; default: beside them")
    option(
        "--on-error",
        choices=("raise", "skip"),
        help="skip: leave out images of tars without a valid label, and let the next image take the place of one that can't be read; "
        "default: raise",
    )
    option("--data-path", type=path, metavar="DIR", help="folder of the four IDX files, for fmnist; default: search")
    option("--split", choices=("train", "test"), help="of fmnist; default: train")
    option(
        "--classes",
        choices=("folders", "none"),
        help="none: all images of the folder are of one class; default: folders",
    )
    option("--tokenizer", default="fmnist-maskgit", type=path, help="folder or name of a tokenizer or pipeline")
    option("--out", metavar="DIR", type=path, help="folder of the cache")
    add_overwrite(parser, "a cache of other settings or data")
    modes = parser.add_mutually_exclusive_group().add_argument
    modes(
        "--measure-scale",
        type=whole(1),
        metavar="N",
        help="write no cache; print what brings the latents of N images to unit variance: a scale, or statistics of each channel",
    )
    modes(
        "--measure-order",
        type=whole(1),
        metavar="N",
        help="write no cache; print the latent channels sorted by frequency, lowest first, measured on N images",
    )
    modes("--verify", metavar="DIR", type=path, help="write no cache; check every row of the one in DIR")
    option("--image-size", type=whole(1), metavar="PIXELS", help="default: the tokenizer's")
    option("--flips", action="store_true", help="also store the horizontally flipped images")
    option(
        "--shuffle",
        action="store_true",
        help="store the images in a random order, for trainings with data.shuffle=shards",
    )
    option("--batch-size", type=whole(1), default=64)
    option("--shard-size", type=whole(1), help="images per shard, which one process writes at once; default: 16384")
    option(
        "--dtype",
        choices=("fp32", "fp16"),
        help="of the moments of a KL tokenizer; fp16 halves their size, see docs/training.md; default: fp32",
    )
    option("--workers", type=whole(0, 256), metavar="N", help="processes that read images; default: 0, this one")
    option(
        "--part",
        type=part,
        metavar="K/N",
        help="write only the K-th of N parts of the shards, beside N - 1 other commands that write the others",
    )
    option(
        "--first-stage-size",
        type=whole(1),
        metavar="PIXELS",
        help="also store tokens of a smaller copy of every image, for Hi-MAR's first stage (published: 128 of 256)",
    )
    add_vision(parser)
    option("--device", default="auto", help="cpu, cuda, cuda:1, auto")


def part(text: str) -> tuple[int, int]:
    """The type of K/N, 1 ≤ K ≤ N."""
    found = re.fullmatch("([0-9]{1,6})/([0-9]{1,6})", text)
    if not found or not 1 <= int(found[1]) <= int(found[2]):
        raise ArgumentTypeError(f"{shown(text)}: expected K/N with 1 ≤ K ≤ N, such as 3/16")
    return int(found[1]), int(found[2])


def verify(folder: str) -> int:
    from mgen.data import TokenCache

    cache = TokenCache(folder, full=True)
    print(f"{folder}: {len(cache)} images in {cache.index.shards} shards, nothing wrong")
    return 0


def tokenize(args: Namespace) -> int:
    from mgen.cli.sample import processes
    from mgen.data import spread_batches, write_cache
    from mgen.data.images import open_images
    from mgen.data.sharing import Writers
    from mgen.data.write_cache import check_batch
    from mgen.pipelines.saved import load_tokenizer
    from mgen.tokenizers.bridge import kl_tokenizer, measurable
    from mgen.tokenizers.frequency import measure_order
    from mgen.tokenizers.vision import give_vision
    from mgen.training.launch import agree

    rank, world, device, wait = processes(args.device)
    count = args.measure_scale or args.measure_order
    if count and rank > 0:
        return 0
    tokenizer = load_tokenizer(args.tokenizer, device=device)
    give_vision(tokenizer, args.vision_weights)
    data, source = open_images(
        args.data,
        tokenizer,
        path=args.data_path,
        split=args.split or "train",
        image_size=args.image_size,
        classes=args.classes or ("any" if count else "folders"),
        index=args.index,
        on_error=args.on_error or "raise",
    )
    if not count:
        out = write_cache(
            data,
            tokenizer,
            args.out,
            flips=args.flips,
            shuffle=args.shuffle,
            batch_size=args.batch_size,
            shard_size=args.shard_size or 16384,
            dtype=args.dtype or "fp32",
            first_stage_size=args.first_stage_size,
            source=source,
            workers=args.workers or 0,
            writers=Writers(rank=rank, world=world, wait=wait, agree=agree, part=args.part or (1, 1)),
        )
        if rank == 0:
            print(out)
        return 0
    check_batch(tokenizer, tokenizer.config.image_size, min(args.batch_size, count, len(data)))
    batches = spread_batches(data, count, args.batch_size)
    if args.measure_scale:
        print(measured(measurable(tokenizer, "--measure-scale").measure(batches)))
    else:
        kl = kl_tokenizer(tokenizer, "--measure-order")
        print(f"[{','.join(map(str, measure_order(kl, batches)))}]")
    return 0


def measured(found: dict[str, object]) -> str:
    """A scale alone as its number; statistics of channels as settings of mgen convert."""
    if isinstance(scale := found.get("scale"), float):
        return f"{scale:.6g}"
    return " ".join(f"{name}=[{','.join(f'{v:.6g}' for v in values)}]" for name, values in found.items())  # type: ignore[attr-defined]
