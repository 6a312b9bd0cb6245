"""`mgen init`: settings files for training on own images."""

import sys
from argparse import ArgumentParser
from collections.abc import Sequence

from mgen.cli.parser import make_parser, number, path, whole
from mgen.utils.errors import MgenError

EXAMPLES = """  mgen init --data photos --out my-project                  one folder per class; then: mgen train --project my-project
  mgen init --data photos/train --val photos/val --out my-project --hours 2
  mgen init --data photos --out my-project --generator mar  real vectors and MAR instead of ids and MaskGIT
  mgen init --data photos --out my-project --tokenizer models/llamagen-vq16 --generator halton-small

Looks at the images, times some steps of every training on this machine, and writes project.yaml, classifier.yaml, tokenizer.yaml and
generator.yaml, in which every value is explained. Edit them, then run mgen train --project."""


def command(argv: Sequence[str] | None = None) -> int:
    parser = make_parser("init", "Write the settings of a project that trains on a folder of images.", EXAMPLES)
    add_options(parser)
    args = parser.parse_args(argv)

    from mgen.cli.early import check_there

    for option in ("data", "val"):
        if getattr(args, option) not in (None, "fmnist"):
            check_there(f"--{option}", getattr(args, option), "folder")

    from mgen.project.start import InitRequest, init
    from mgen.project.summary import closing, summary

    request = InitRequest(
        data=args.data,
        out=args.out,
        val=args.val,
        image_size=args.image_size,
        tokenizer=args.tokenizer,
        generator=args.generator,
        hours=args.hours,
        classes=args.classes,
        timed=not args.no_timing,
    )
    if args.hours is not None and args.no_timing:
        raise MgenError("--hours needs timed steps: leave --no-timing out")
    draft, out = init(request)
    print("\n".join(summary(draft.found, draft.image_size)), file=sys.stderr)
    print("\n".join(closing(draft, args.out)), file=sys.stderr)
    print(out)
    return 0


def add_options(parser: ArgumentParser) -> None:
    option = parser.add_argument
    option("--data", required=True, metavar="FOLDER", type=path, help="images to train on; every subfolder is a class")
    option("--out", required=True, metavar="DIR", type=path, help="folder of the project, which must be new or empty")
    option(
        "--val",
        metavar="FOLDER",
        type=path,
        help="validation images, in the same subfolders; default: a share of every class is held out",
    )
    option("--image-size", type=whole(8, 4096), metavar="N", help="pixels; default: 32, 64, 128 or 256, by the images")
    option(
        "--tokenizer", metavar="NAME", type=path, help="a trained tokenizer, by name or folder; default: one is trained"
    )
    option(
        "--generator",
        metavar="NAME",
        help="maskgit (ids), mar (vectors), or a name of mgen zoo --models; default: maskgit",
    )
    option(
        "--hours",
        type=number(0.01, 10000),
        metavar="H",
        help="time for all stages: more or fewer steps than by the rules",
    )
    option(
        "--classes",
        choices=("any", "folders", "none"),
        default="any",
        help="folders: images outside of class folders raise an error; none: all images are of one class; any: folders if there are any",
    )
    option("--no-timing", action="store_true", help="time no steps, and write no estimates")
