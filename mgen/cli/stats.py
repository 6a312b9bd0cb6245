"""`mgen stats`: reference statistics of any images, for any protocol."""

import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from pathlib import Path

from mgen.cli.parser import make_parser
from mgen.utils.errors import MgenError

EXAMPLES = """  mgen stats /data/imagenet/train --image-size 256 --protocol adm --inception-weights FILE --out imagenet256.safetensors
  mgen stats VIRTUAL_imagenet256_labeled.npz --protocol adm --features 10000 --inception-weights FILE --out adm.safetensors
  mgen stats /data/imagenet/val --image-size 512 --protocol clean --out val512-clean.npz        for other tools: mu, sigma
  mgen stats fmnist --split test --features 10000 --out test.safetensors
  accelerate launch --multi_gpu --num_processes 8 -m mgen stats /data/imagenet/train --image-size 256 --protocol adm --out ref.safetensors

A .safetensors file records how it was made, and mgen eval raises an error if the protocol differs. Rerun an interrupted command to
resume: features are kept in OUT.features until it is done."""


def command(argv: Sequence[str] | None = None) -> int:
    parser = make_parser("stats", "Mean and covariance of the features of images, for mgen eval --reference.", EXAMPLES)
    add_options(parser)
    args = parser.parse_args(argv)
    for name in ("batch_size", "num_images", "image_size"):
        if (value := getattr(args, name)) is not None and value < 1:
            raise MgenError(f"--{name.replace('_', '-')} is {value}: it must be at least 1")
    if args.features < 0 or (args.features and Path(args.out).suffix == ".npz"):
        raise MgenError(
            f"--features {args.features}: expected a number of at least 0, and a .safetensors file to store them"
        )
    return compute(args)


def add_options(parser: ArgumentParser) -> None:
    option = parser.add_argument
    option("path", help="folder of images, .npz (arr_0), or `fmnist`")
    option("--out", required=True, metavar="FILE", help=".safetensors, or .npz for other tools")
    option("--protocol", help="adm, torch-fidelity, clean, halton, reconstruction or fmnist-cnn (the default)")
    option("--extractor", help="instead of --protocol: fmnist-cnn, inception, or a folder of a FashionCNN")
    option("--inception-weights", metavar="FILE", help="torch-fidelity's Inception weights; downloaded if not given")
    option(
        "--image-size",
        type=int,
        metavar="N",
        help="crop the middle square and resize it to N pixels, as ADM does; default: as stored",
    )
    option("--split", default="train", help="train or test, for fmnist")
    option("--num-images", type=int, help="maximum number of images; default: all")
    option(
        "--features",
        type=int,
        default=0,
        metavar="N",
        help="also store features of N single images, for precision, recall and KID",
    )
    option("--batch-size", type=int, default=100)
    option("--device", default="auto")


def compute(args: Namespace) -> int:
    import torch

    from mgen.cli.sample import processes
    from mgen.evaluation.extractors import protocol_extractor
    from mgen.evaluation.measure import Workers, begin, measure, remove_features
    from mgen.evaluation.protocols import find_protocol
    from mgen.evaluation.sources import open_source
    from mgen.evaluation.statistics import check_statistics_name, save_statistics
    from mgen.utils.files import check_writable

    check_statistics_name(args.out, "--out")
    check_writable(Path(args.out).parent)
    rank, world, device, wait = processes(args.device)
    workers = Workers(rank=rank, world=world, device=torch.device(device), wait=wait)
    protocol = find_protocol(args.protocol, extractor=args.extractor)
    extractor = protocol_extractor(protocol, weights=args.inception_weights, device=workers.device)
    source = open_source(
        args.path, channels=extractor.channels, split=args.split, size=args.image_size, limit=args.num_images
    )
    folder = Path(f"{args.out}.features")
    if rank == 0:
        begin(folder, source, extractor, extractor.resize, spatial=protocol.spatial)
    wait()
    measured = measure(source, extractor, folder=folder, batch_size=args.batch_size, examples=0, workers=workers)
    if rank > 0:
        return 0
    save_statistics(
        args.out,
        measured.sums(),
        extractor,
        str(source.about.get("data") or args.path),
        spatial=measured.sums("spatial") if protocol.spatial else None,
        features=measured.spread(args.features) if args.features else None,
        prepared=str(source.about.get("prepared", "")),
    )
    remove_features(folder)
    print(f"{source.count} images, protocol {protocol.name} ({extractor.resize})", file=sys.stderr)
    print(args.out)
    return 0
