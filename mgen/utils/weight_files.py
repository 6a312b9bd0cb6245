"""The weight files of a network in a folder, as diffusers names them: one, or shards with an index."""

import os
import re
from pathlib import Path

from mgen.utils.errors import MgenError
from mgen.utils.files import atomic_path
from mgen.utils.reading import check_file, read_json
from mgen.utils.schema import build, schema
from mgen.utils.weights import ShardIndex, read_state_dict

STEM = "diffusion_pytorch_model"
LAYOUTS = ("safetensors", "bin")


@schema(extra=True)
class OwnIndex(ShardIndex):
    """diffusion_pytorch_model.safetensors.index.json, whose metadata diffusers reads."""

    metadata: dict[str, int | float | str | None]


def check_weights(folder: Path, variant: object = None) -> bool:
    """Whether the weights in a folder are safetensors, else torch files; MgenError if there are none, or files that can't be weights."""
    ending = f".{variant}" if variant else ""
    for layout in LAYOUTS:
        # diffusers takes an index before a single file.
        index, single = folder / f"{STEM}.{layout}.index{ending}.json", folder / f"{STEM}{ending}.{layout}"
        if index.exists() or index.is_symlink():
            shards = build(OwnIndex, read_json(index), f"{index}: ").weight_map.values()
            files = [folder / name for name in sorted(set(shards))]
        elif single.exists() or single.is_symlink():
            files = [single]
        else:
            continue
        for file in files:
            check_file(file)
            if layout == "bin":
                read_state_dict(file)  # raises for pickled objects and for anything but a state dict
        return layout == "safetensors"
    raise MgenError(
        f"the weights are missing from {folder}: expected {STEM}{ending}.safetensors, as save_pretrained and mgen convert write"
    )


def move_weights(new: Path, folder: Path, variant: object = None) -> None:
    """Move what a save wrote into the folder `new` to `folder`, file by file, and remove weights of earlier saves there.

    They would be loaded in place of the new ones, or with them. Weights of another variant stay.
    """
    ending = re.escape(f".{variant}" if variant else "")
    ours = re.compile(
        rf"{STEM}{ending}(-\d+-of-\d+)?\.({'|'.join(LAYOUTS)})|{STEM}\.({'|'.join(LAYOUTS)})\.index{ending}\.json"
    )
    names = {file.name for file in new.iterdir()}
    for name in sorted(names):
        with atomic_path(folder / name) as temporary:
            os.replace(new / name, temporary)
    if any(map(ours.fullmatch, names)):
        for file in folder.iterdir():
            if ours.fullmatch(file.name) and file.name not in names:
                file.unlink()
