"""`mgen cache`: tokenize a data set once."""

from collections.abc import Sequence
from typing import Any

from mgen.cli import make_parser
from mgen.errors import MgenError

EXAMPLES = """  mgen cache --data fmnist --out caches/fmnist
  mgen cache --data fmnist --split test --out caches/fmnist-test
  mgen cache --data /data/imagenet/train --tokenizer models/vqgan --image-size 256 --flips --out caches/in256
  mgen cache --data /data/photos --tokenizer models/kl16 --measure-scale 2000      the scale of other data, for mgen convert … scale=S

Of a KL tokenizer the moments of the posterior are stored, which training samples afresh.
Interrupted? The same command goes on with the next shard. Train on it with data.kind=cache data.path=caches/fmnist."""


def command(argv: Sequence[str] | None = None) -> int:
    parser = make_parser("cache", "Pass a data set through a tokenizer into a sharded token cache.", EXAMPLES)
    parser.add_argument("--data", required=True, help="a folder of images (labels: its subfolders), or `fmnist`")
    parser.add_argument("--data-path", help="folder of the four IDX files, for fmnist; found by itself if not given")
    parser.add_argument("--split", default="train", help="train or test, for fmnist")
    parser.add_argument("--tokenizer", default="fmnist-maskgit", help="a tokenizer or pipeline: folder or name")
    parser.add_argument("--out", metavar="DIR", help="folder of the cache")
    parser.add_argument(
        "--measure-scale",
        type=int,
        metavar="N",
        help="instead of a cache: print the scale that brings the latents of N images to unit variance",
    )
    parser.add_argument("--image-size", type=int, help="pixels; default: the tokenizer's")
    parser.add_argument("--flips", action="store_true", help="store the horizontally flipped images too")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--shard-size", type=int, default=16384, help="images per shard")
    parser.add_argument("--dtype", default="fp32", help="fp32 or fp16, of the stored moments of a KL tokenizer")
    parser.add_argument("--device", default="auto", help="cpu, cuda, cuda:1, auto")
    args = parser.parse_args(argv)
    if min(args.batch_size, args.shard_size) < 1 or (args.measure_scale is not None and args.measure_scale < 1):
        raise MgenError("--batch-size, --shard-size and --measure-scale must be at least 1")
    if args.out is None and args.measure_scale is None:
        raise MgenError("--out is missing: the folder of the cache")

    from mgen.data import FashionMNIST, ImageFolder, write_cache
    from mgen.pipeline import load_tokenizer

    tokenizer = load_tokenizer(args.tokenizer, device=args.device)
    data: FashionMNIST | ImageFolder
    if args.data == "fmnist":
        data = FashionMNIST(root=args.data_path, split=args.split)
        source = f"fmnist {args.split}"
    else:
        size = args.image_size or tokenizer.config.image_size
        tokenizer.register_to_config(image_size=size)  # the convolutions serve any size; the spec follows this one
        data = ImageFolder(root=args.data, image_size=size, channels=tokenizer.config.in_channels)
        source = f"{args.data} at {size} px"
    channels, have = data.__getitems__([0])["image"].shape[1], tokenizer.config.in_channels
    if channels != have:
        raise MgenError(
            f"{args.data} has images of {channels} channel(s), the tokenizer takes {have}: choose another --tokenizer"
        )
    if args.measure_scale:
        print(f"{measure_scale(tokenizer, data, args.measure_scale, args.batch_size):.6g}")
        return 0
    out = write_cache(
        data,
        tokenizer,
        args.out,
        flips=args.flips,
        batch_size=args.batch_size,
        shard_size=args.shard_size,
        dtype=args.dtype,
        source=source,
    )
    print(out)
    return 0


def measure_scale(tokenizer: Any, data: Any, most: int, batch_size: int) -> float:
    """1 / standard deviation of the latents of up to `most` images, spread over the data."""
    from tqdm import tqdm

    from mgen.tokenizers import KLTokenizer, estimate_scale

    if not isinstance(tokenizer, KLTokenizer):
        raise MgenError("--measure-scale is for KL tokenizers: this one makes ids")
    rows = range(0, len(data), max(1, len(data) // most))[:most]
    starts = tqdm(range(0, len(rows), batch_size), unit="batch", desc="measuring")
    return estimate_scale(tokenizer, (data.__getitems__(rows[i : i + batch_size])["image"] for i in starts))
