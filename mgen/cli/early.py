"""What a command checks right after its options are read: names, choices and missing files, before anything heavy is imported.

Nothing here or in what it imports needs torch or diffusers, so a typo is answered at once; tests/system/test_early.py watches over it.
The parts of the library check again what they are given.
"""

import difflib
import os
from argparse import Namespace
from pathlib import Path

from mgen.pipelines.run_file import PRECISIONS
from mgen.utils.compiling import MODES
from mgen.utils.devices import check_kind
from mgen.utils.errors import MgenError, check_choice, shown, suggestion
from mgen.utils.folders import shipped


def check_common(args: Namespace) -> None:
    """--model, --guide, --recipe, --set, --device, --dtype, --compile and files of weights, where a command has them."""
    given = vars(args)
    for name in ("inception_weights", "lpips_weights", "vision_weights"):
        if given.get(name) is not None:
            check_there(f"--{name.replace('_', '-')}", given[name])
    if "dtype" in given and args.dtype is not None:
        check_choice("--dtype", args.dtype, PRECISIONS)
    if given.get("compile") is not None:
        check_choice("--compile", args.compile, MODES)
    if "device" in given and args.device != "auto":
        check_kind(args.device)
    if given.get("model") is not None:
        check_model(args.model)
    if given.get("guide") is not None:
        check_model(args.guide)
    if given.get("recipe") is not None:
        check_recipe(args.recipe)
    if given.get("set"):
        from mgen.utils.config import apply_overrides

        apply_overrides({}, args.set)


def check_model(name: str) -> None:
    """Raise MgenError unless there is a model of this name, or a folder."""
    from mgen.zoo import resolve

    resolve(name)


def check_recipe(name: str) -> None:
    """Raise MgenError unless there is a recipe of this name, or a file that can be one."""
    from mgen.zoo.recipes import find_recipe, read_recipe

    read_recipe(find_recipe(name))


def check_shipped(kind: str, what: str, name: str) -> None:
    """Raise MgenError unless configs/KIND has a file of this name, or it is one; `what` it is, for the message."""
    names = shipped(kind)
    if name not in names and not os.path.lexists(name):
        raise MgenError(f"no {what} {shown(name)}, and no such file: {suggestion(name, names)}")


def check_images(name: str) -> None:
    """Raise MgenError unless something of this name can hold images: a path, or `fmnist`."""
    from mgen.zoo.recipes import recipe_names

    if name == "fmnist" or os.path.lexists(name):
        return
    if name in recipe_names():
        raise MgenError(f"{name} is a recipe: mgen eval --recipe {name} samples and measures its model")
    raise MgenError(
        f"{shown(name)} is not a folder of images, an .npz, a .npy, `fmnist` or a model (mgen zoo lists the models)"
    )


def check_there(option: str, path: str, kind: str = "file or folder") -> None:
    """Raise MgenError if there is nothing at `path`; the nearest name in its folder is shown."""
    if os.path.lexists(path):
        return
    folder = Path(path).parent
    names = os.listdir(folder) if folder.is_dir() else []
    near = difflib.get_close_matches(Path(path).name[:100], names, n=1, cutoff=0.6)
    hint = f"; did you mean {str(folder / near[0])}?" if near else ""
    raise MgenError(f"{option}: no such {kind}: {path}{hint}")
