"""`mgen train`: train what a configuration describes."""

from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mgen.cli import resumable, run
from mgen.cli.parser import add_vision, data_path, make_parser, path
from mgen.utils.errors import MgenError, suggestion

if TYPE_CHECKING:
    from mgen.utils.config import Settings

EXAMPLES = """  mgen train --project my-project                         own images, from tokenizer to report (see mgen init)
  mgen train --project my-project --stage generator
  mgen train --config configs/train/fmnist-maskgit.yaml
  mgen train --config fmnist-vqgan steps=200 output=runs/try
  mgen train --config classifier --data photos            a small classifier of your images, to measure samples with
  accelerate launch --multi_gpu --num_processes 2 -m mgen.train --config fmnist-maskgit

The flag --multi_gpu also starts several processes on a CPU. Rerun the command to resume from the newest checkpoint."""


def command(argv: Sequence[str] | None = None) -> int:
    parser = make_parser("train", "Train a generator, a tokenizer or a classifier.", EXAMPLES)
    option = parser.add_argument
    option("--config", metavar="FILE", type=path, help="a YAML file, or the name of one in configs/train")
    option("--project", metavar="DIR", type=path, help="run the stages of a project that mgen init made")
    option(
        "--stage",
        metavar="NAME,…",
        help="with --project: only these of classifier, tokenizer, check, cache, generator, report",
    )
    option("--redo", action="store_true", help="with --stage: do these stages anew; what they had written is removed")
    option(
        "--accept-tokenizer",
        action="store_true",
        help="with --project: go on with a tokenizer that the check finds too poor",
    )
    option(
        "--data",
        metavar="DATA",
        type=data_path,
        help="train on this folder of images (classes are the subfolders), these tars ('shard-{000..146}.tar') or this cache, in place of "
        "the file's",
    )
    option(
        "--out", metavar="DIR", type=path, help="folder of the run; default: the file's, with --data runs/CONFIG-DATA"
    )
    option("overrides", nargs="*", metavar="key=value", help="dotted settings that override the file")
    add_vision(parser)
    args = parser.parse_args(argv)
    if args.project is not None:
        return train_project(args)
    if args.config is None:
        raise MgenError("--config FILE or --project DIR is missing: mgen init makes a project of a folder of images")
    if useless := [name for name in ("stage", "redo", "accept_tokenizer") if getattr(args, name)]:
        raise MgenError(f"--{useless[0].replace('_', '-')} is for --project DIR: leave it out")

    settings = given_settings(args)
    from mgen.training.config import train_config

    if "model" in settings and not isinstance(settings.get("steps"), dict):  # nothing that the data have to say
        train_config(settings)
    from mgen.training.from_data import fill_from_data

    config = train_config(fill_from_data(settings))
    from mgen.training.loop import train
    from mgen.utils.launched import is_first

    model = train(config)
    if is_first():
        print(model)
    return 0


def given_settings(args: Namespace) -> "Settings":
    """The settings of the file, with what options and overrides put in their place."""
    from mgen.utils.config import merge, read_config

    file = find_config(args.config)
    settings = read_config(file)
    check_once(args.overrides, "--data", args.data, ("data.kind", "data.path"))
    check_once(args.overrides, "--out", args.out, ("output",))
    if args.data:
        settings = with_data(settings, args.data, file.stem)
    if args.out:
        settings = merge(settings, {"output": args.out})
    settings = with_overrides(settings, args.overrides)
    if args.vision_weights:
        settings = merge(settings, {"objective": {"vision_weights": args.vision_weights}})
    return settings


def with_overrides(settings: "Settings", overrides: Sequence[str]) -> "Settings":
    """Settings of a file with overrides in their place; images for validation that they name take the place of the file's held_out."""
    from mgen.utils.config import apply_overrides

    data, given = settings.get("data"), apply_overrides({}, overrides).get("data")
    named = isinstance(given, dict) and given.get("val_path") is not None
    if named and isinstance(data, dict) and data.get("val_path") is None:
        settings = {**settings, "data": {key: value for key, value in data.items() if key != "held_out"}}
    return apply_overrides(settings, overrides)


def train_project(args: Namespace) -> int:
    """Run the stages of a project."""
    for name in ("config", "data", "out", "vision_weights"):
        if getattr(args, name) is not None:
            raise MgenError(f"--{name.replace('_', '-')} has no effect with --project: leave it out")
    if args.overrides:
        raise MgenError(
            f"{args.overrides[0]!r} has no effect with --project: write it into the settings files in {args.project}"
        )
    stages = [] if args.stage is None else [name.strip() for name in args.stage.split(",")]

    from mgen.cli.early import check_there

    check_there("--project", args.project, "folder")

    from mgen.project.stages import run_project

    with resumable("the same command goes on"):
        print(run_project(args.project, stages, redo=args.redo, accept_tokenizer=args.accept_tokenizer))
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


def check_once(overrides: Sequence[str], option: str, value: str | None, keys: Sequence[str]) -> None:
    """Raise MgenError if an option is given and a setting that it stands for as well."""
    given = [text.partition("=")[0] for text in overrides]
    if value is not None and (twice := [key for key in keys if key in given]):
        raise MgenError(f"{option} and {twice[0]}=… are both given: leave one out")


def with_data(settings: "Settings", data: str, name: str) -> "Settings":
    """The settings of the file `name` with these images (`fmnist` or a folder), or this cache, in place of its own data."""
    from mgen.data.record import folder_name
    from mgen.training.config import OF_IMAGES
    from mgen.utils.tar_paths import find_tars, names_tars, set_name

    kind = "fmnist" if data == "fmnist" else "cache" if (Path(data) / "index.json").is_file() else "folder"
    tars = kind == "folder" and names_tars(data)
    old = settings.get("data")
    own = {key: value for key, value in (old if isinstance(old, dict) else {}).items() if key != "val_path"}
    called = data if kind == "fmnist" else folder_name(Path(data)).replace("/", "-")
    if tars:
        kind, called = "webdataset", set_name(find_tars(data))
    path = None if kind == "fmnist" else data
    # What the file says of its own images is not about these data, which don't take it.
    unused = {"folder": (), "cache": (*OF_IMAGES, "held_out")}.get(kind, ("held_out",))
    own = {key: value for key, value in own.items() if key not in unused}
    return {**settings, "output": f"runs/{name}-{called}", "data": own | {"kind": kind, "path": path}}


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of `python -m mgen.train`."""
    return run(command, argv)
