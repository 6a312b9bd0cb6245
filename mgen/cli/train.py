"""`mgen train`: train what a configuration describes."""

from collections.abc import Sequence
from pathlib import Path

from mgen.cli import run
from mgen.cli.parser import add_vision, make_parser, path
from mgen.utils.errors import MgenError, suggestion

EXAMPLES = """  mgen train --config configs/train/fmnist-maskgit.yaml
  mgen train --config fmnist-vqgan steps=200 output=runs/try
  accelerate launch --multi_gpu --num_processes 2 -m mgen.train --config fmnist-maskgit

The flag --multi_gpu also starts several processes on a CPU. Rerun the command to resume from the newest checkpoint."""


def command(argv: Sequence[str] | None = None) -> int:
    parser = make_parser("train", "Train a generator, a tokenizer or a classifier.", EXAMPLES)
    option = parser.add_argument
    option(
        "--config", required=True, metavar="FILE", type=path, help="a YAML file, or the name of one in configs/train"
    )
    option("overrides", nargs="*", metavar="key=value", help="dotted settings that override the file")
    add_vision(parser)
    args = parser.parse_args(argv)

    from mgen.utils.config import apply_overrides, merge, read_config

    settings = apply_overrides(read_config(find_config(args.config)), args.overrides)
    if args.vision_weights:
        settings = merge(settings, {"objective": {"vision_weights": args.vision_weights}})

    from mgen.training.config import train_config

    config = train_config(settings)
    from mgen.training.loop import train

    print(train(config))
    return 0


def find_config(name: str) -> Path:
    """The file at this path, or the shipped configuration of this name."""
    from mgen.utils.folders import part, shipped

    if Path(name).suffix in (".yaml", ".yml"):
        if not Path(name).is_file() and (part("configs").parent / name).is_file():
            return part("configs").parent / name  # configs/train/x.yaml, named from anywhere
        return Path(name)
    known = shipped("train")
    if name not in known:
        raise MgenError(f"no config {name!r}: {suggestion(name, known)}")
    return known[name]


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of `python -m mgen.train`."""
    return run(command, argv)
