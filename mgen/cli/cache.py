"""`mgen cache`: tokenize a data set once."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from mgen.cli import add_vision, make_parser
from mgen.utils.errors import MgenError

if TYPE_CHECKING:
    from torch import Tensor

EXAMPLES = """  mgen cache --data fmnist --out caches/fmnist
  mgen cache --data fmnist --split test --out caches/fmnist-test
  mgen cache --data /data/imagenet/train --tokenizer models/vqgan --image-size 256 --flips --out caches/in256
  mgen cache --data /data/photos --tokenizer models/kl16 --measure-scale 2000      the scale of other data, for mgen convert … scale=S
  mgen cache --data fmnist --tokenizer models/kl --measure-order 2000      channels by frequency, for mgen convert quantize …
  mgen cache --data fmnist --tokenizer models/kl --first-stage-size 16 --out caches/two        two resolutions, for Hi-MAR
  mgen cache --data /data/imagenet/train --tokenizer models/hita --vision-weights dinov2_vitl14_reg4_pretrain.pth --out caches/hita

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
    parser.add_argument(
        "--measure-order",
        type=int,
        metavar="N",
        help="instead of a cache: print the channels of the latents of N images by frequency, lowest first",
    )
    parser.add_argument("--image-size", type=int, help="pixels; default: the tokenizer's")
    parser.add_argument("--flips", action="store_true", help="store the horizontally flipped images too")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--shard-size", type=int, default=16384, help="images per shard")
    parser.add_argument("--dtype", default="fp32", help="fp32 or fp16, of the stored moments of a KL tokenizer")
    parser.add_argument(
        "--first-stage-size",
        type=int,
        metavar="PIXELS",
        help="store the tokens of a smaller copy of every image too, for the first stage of a cascade (Hi-MAR: 128 of 256)",
    )
    add_vision(parser)
    parser.add_argument("--device", default="auto", help="cpu, cuda, cuda:1, auto")
    args = parser.parse_args(argv)
    counts = [args.batch_size, args.shard_size, args.measure_scale, args.measure_order]
    if any(count is not None and count < 1 for count in counts):
        raise MgenError("--batch-size, --shard-size, --measure-scale and --measure-order must be at least 1")
    if args.out is None and args.measure_scale is None and args.measure_order is None:
        raise MgenError("--out is missing: the folder of the cache")

    from mgen.data import write_cache
    from mgen.pipelines.pipeline import load_tokenizer
    from mgen.tokenizers.vision import give_vision

    tokenizer = load_tokenizer(args.tokenizer, device=args.device)
    give_vision(tokenizer, args.vision_weights)
    data, source = open_images(args.data, tokenizer, path=args.data_path, split=args.split, image_size=args.image_size)
    if args.measure_scale:
        print(f"{measure_scale(tokenizer, data, args.measure_scale, args.batch_size):.6g}")
        return 0
    if args.measure_order:
        order = measure_order(tokenizer, data, args.measure_order, args.batch_size)
        print(f"[{','.join(map(str, order))}]")
        return 0
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


def open_images(
    name: str, tokenizer: Any, *, path: str | None = None, split: str = "test", image_size: int | None = None
) -> tuple[Any, str]:
    """The images of `fmnist` or of a folder, as this tokenizer takes them, and a note of what they are.

    Args:
        path: folder of the IDX files, and split: of fmnist. image_size: of a folder's images; default: the tokenizer's.
    """
    from mgen.data import FashionMNIST, ImageFolder

    data: FashionMNIST | ImageFolder
    if name == "fmnist":
        data, source = FashionMNIST(root=path, split=split), f"fmnist {split}"
    else:
        size = image_size or tokenizer.config.image_size
        tokenizer.register_to_config(image_size=size)  # the convolutions serve any size; the spec follows this one
        data = ImageFolder(root=name, image_size=size, channels=tokenizer.config.in_channels)
        source = f"{name} at {size} px"
    channels, have = data.__getitems__([0])["image"].shape[1], tokenizer.config.in_channels
    if channels != have:
        raise MgenError(
            f"{name} has images of {channels} channel(s), the tokenizer takes {have}: choose another tokenizer"
        )
    return data, source


def measure_scale(tokenizer: Any, data: Any, most: int, batch_size: int) -> float:
    """1 / standard deviation of the latents of up to `most` images, spread over the data."""
    from mgen.tokenizers import estimate_scale

    return estimate_scale(continuous(tokenizer, "--measure-scale"), spread(data, most, batch_size))


def measure_order(tokenizer: Any, data: Any, most: int, batch_size: int) -> tuple[int, ...]:
    """Channels by frequency, from up to `most` images, spread over the data."""
    from mgen.tokenizers.frequency import measure_order as measure

    return measure(continuous(tokenizer, "--measure-order"), spread(data, most, batch_size))


def continuous(tokenizer: Any, option: str) -> Any:
    """The KL tokenizer that `tokenizer` is or holds."""
    from mgen.tokenizers import KLTokenizer

    found = getattr(tokenizer, "continuous", tokenizer)
    if not isinstance(found, KLTokenizer):
        raise MgenError(f"{option} is for KL tokenizers: this one makes ids")
    return found


def spread(data: Any, most: int, batch_size: int) -> "Iterator[Tensor]":
    """Image batches of up to `most` images, evenly spread over the data."""
    from tqdm import tqdm

    rows = range(0, len(data), max(1, len(data) // most))[:most]
    for start in tqdm(range(0, len(rows), batch_size), unit="batch", desc="measuring"):
        yield data.__getitems__(rows[start : start + batch_size])["image"]
