"""`mgen cache`: tokenize a data set once."""

from argparse import ArgumentParser, Namespace
from collections.abc import Sequence

from mgen.cli.parser import add_vision, make_parser
from mgen.utils.errors import MgenError

EXAMPLES = """  mgen cache --data fmnist --out caches/fmnist
  mgen cache --data fmnist --split test --out caches/fmnist-test
  mgen cache --data /data/imagenet/train --tokenizer models/vqgan --image-size 256 --flips --out caches/in256
  mgen cache --data /data/photos --tokenizer models/kl16 --measure-scale 2000      the scale of your data, for mgen convert … scale=S
  mgen cache --data fmnist --tokenizer models/kl --measure-order 2000      channels by frequency, for mgen convert quantize …
  mgen cache --data fmnist --tokenizer models/kl --first-stage-size 16 --out caches/two        two resolutions, for Hi-MAR
  mgen cache --data /data/imagenet/train --tokenizer models/hita --vision-weights dinov2_vitl14_reg4_pretrain.pth --out caches/hita

For KL tokenizers the moments of the posterior are stored, which training samples afresh.
Rerun an interrupted command to resume. Train on the cache with data.kind=cache data.path=caches/fmnist."""


def command(argv: Sequence[str] | None = None) -> int:
    parser = make_parser("cache", "Tokenize a data set once, into a sharded token cache.", EXAMPLES)
    add_options(parser)
    args = parser.parse_args(argv)
    counts = [args.batch_size, args.shard_size, args.measure_scale, args.measure_order]
    if any(count is not None and count < 1 for count in counts):
        raise MgenError("--batch-size, --shard-size, --measure-scale and --measure-order must be at least 1")
    if args.out is None and args.measure_scale is None and args.measure_order is None:
        raise MgenError("--out is missing: give the folder for the cache")
    return tokenize(args)


def add_options(parser: ArgumentParser) -> None:
    option = parser.add_argument
    option("--data", required=True, help="a folder of images (labels: its subfolders), or `fmnist`")
    option("--data-path", help="folder of the four IDX files, for fmnist; default: search")
    option("--split", default="train", help="train or test, for fmnist")
    option("--tokenizer", default="fmnist-maskgit", help="folder or name of a tokenizer or pipeline")
    option("--out", metavar="DIR", help="folder of the cache")
    option(
        "--measure-scale",
        type=int,
        metavar="N",
        help="write no cache; print the scale that brings the latents of N images to unit variance",
    )
    option(
        "--measure-order",
        type=int,
        metavar="N",
        help="write no cache; print the latent channels sorted by frequency, lowest first, measured on N images",
    )
    option("--image-size", type=int, help="pixels; default: the tokenizer's")
    option("--flips", action="store_true", help="also store the horizontally flipped images")
    option("--batch-size", type=int, default=64)
    option("--shard-size", type=int, default=16384, help="images per shard")
    option("--dtype", default="fp32", help="precision of the moments of a KL tokenizer: fp32 or fp16")
    option(
        "--first-stage-size",
        type=int,
        metavar="PIXELS",
        help="also store tokens of a smaller copy of every image, for Hi-MAR's first stage (published: 128 of 256)",
    )
    add_vision(parser)
    option("--device", default="auto", help="cpu, cuda, cuda:1, auto")


def tokenize(args: Namespace) -> int:
    from mgen.data import spread_batches, write_cache
    from mgen.data.images import open_images
    from mgen.pipelines.pipeline import load_tokenizer
    from mgen.tokenizers.bridge import kl_tokenizer
    from mgen.tokenizers.frequency import measure_order
    from mgen.tokenizers.kl import estimate_scale
    from mgen.tokenizers.vision import give_vision

    tokenizer = load_tokenizer(args.tokenizer, device=args.device)
    give_vision(tokenizer, args.vision_weights)
    data, source = open_images(args.data, tokenizer, path=args.data_path, split=args.split, image_size=args.image_size)
    if args.measure_scale:
        kl = kl_tokenizer(tokenizer, "--measure-scale")
        print(f"{estimate_scale(kl, spread_batches(data, args.measure_scale, args.batch_size)):.6g}")
    elif args.measure_order:
        kl = kl_tokenizer(tokenizer, "--measure-order")
        order = measure_order(kl, spread_batches(data, args.measure_order, args.batch_size))
        print(f"[{','.join(map(str, order))}]")
    else:
        out = write_cache(
            data,
            tokenizer,
            args.out,
            flips=args.flips,
            batch_size=args.batch_size,
            shard_size=args.shard_size,
            dtype=args.dtype,
            first_stage_size=args.first_stage_size,
            source=source,
        )
        print(out)
    return 0
