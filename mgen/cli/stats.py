"""`mgen stats`: reference statistics of any images, for any protocol."""

import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from pathlib import Path

from mgen.cli.overwrite import add_overwrite, overwriting
from mgen.cli.parser import make_parser, path, whole
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

    from mgen.cli.early import check_common, check_images
    from mgen.evaluation.protocols import check_weights, find_protocol

    if args.features and Path(args.out).suffix == ".npz":
        raise MgenError(f"--features {args.features}: features are stored in a .safetensors file, not in {args.out}")
    if args.split is not None and args.path != "fmnist":
        raise MgenError(f"--split {args.split} is for `fmnist`: {args.path} has no splits")
    check_common(args)
    check_weights(find_protocol(args.protocol, extractor=args.extractor), args.inception_weights)
    check_images(args.path)
    with overwriting(f"{args.out}.features", "stats", active=args.overwrite, inputs=(args.path, args.extractor)):
        return compute(args)


def add_options(parser: ArgumentParser) -> None:
    option = parser.add_argument
    option("path", type=path, help="folder of images, .npz (arr_0), .npy, or `fmnist`")
    option("--out", required=True, metavar="FILE", type=path, help=".safetensors, or .npz for other tools")
    add_overwrite(parser, "features of other images (OUT.features)")
    option(
        "--protocol",
        help="adm, torch-fidelity, clean, halton, reconstruction or fmnist-cnn, the default for Fashion-MNIST",
    )
    option(
        "--extractor", type=path, help="instead of --protocol: fmnist-cnn, inception, or a folder of an ImageClassifier"
    )
    option(
        "--inception-weights",
        metavar="FILE",
        type=path,
        help="torch-fidelity's Inception weights; downloaded if not given",
    )
    option(
        "--image-size",
        type=whole(1, 2**15),
        metavar="N",
        help="crop the middle square and resize it to N pixels, as ADM does; default: as stored",
    )
    option("--split", help="train or test, for fmnist; default: train")
    option("--num-images", type=whole(1), help="maximum number of images; default: all")
    option(
        "--features",
        type=whole(0, 10**7),
        default=0,
        metavar="N",
        help="also store features of N single images, for precision, recall and KID",
    )
    option("--batch-size", type=whole(1, 10**6), default=100)
    option("--device", default="auto")


def compute(args: Namespace) -> int:
    import torch

    from mgen.cli.sample import processes
    from mgen.evaluation.belonging import image_of, unsuited
    from mgen.evaluation.extractors import any_size, protocol_extractor
    from mgen.evaluation.fashion import MEASURE
    from mgen.evaluation.feature_files import begin, remove_features
    from mgen.evaluation.measure import Workers, measure
    from mgen.evaluation.protocols import check_weights, find_protocol
    from mgen.evaluation.sources import open_source
    from mgen.evaluation.statistics import check_statistics_name, save_statistics
    from mgen.utils.files import check_output

    folder = Path(f"{args.out}.features")
    check_statistics_name(args.out, "--out")
    check_output(args.out)
    check_output(folder / "features.json")
    rank, world, device, wait = processes(args.device)
    workers = Workers(rank=rank, world=world, device=torch.device(device), wait=wait)
    protocol = find_protocol(args.protocol, extractor=args.extractor)
    check_weights(protocol, args.inception_weights)
    extractor = protocol_extractor(protocol, weights=args.inception_weights, device=workers.device)
    source = open_source(
        args.path,
        channels=extractor.channels if extractor.channels > 1 else None,  # as stored, so that color is noticed
        split=args.split or "train",
        size=args.image_size,
        limit=args.num_images,
        any_size=any_size(extractor),
    )
    if args.protocol is None and args.extractor is None and not source.fashion:
        raise MgenError(f"nothing says that {args.path} holds images of Fashion-MNIST: {MEASURE}")
    warning = unsuited(extractor, *image_of(source)) if extractor.channels == 1 else ""
    made = begin(folder, source, extractor, extractor.resize, spatial=protocol.spatial) if rank == 0 else []
    wait()
    measured = measure(
        source, extractor, folder=folder, made=made, batch_size=args.batch_size, examples=0, workers=workers
    )
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
    if warning:
        print(warning, file=sys.stderr)
    print(f"{source.count} images, protocol {protocol.name} ({extractor.resize})", file=sys.stderr)
    print(args.out)
    return 0
