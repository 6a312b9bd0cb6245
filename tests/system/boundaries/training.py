"""Settings and folders of the smallest trainings."""

from pathlib import Path
from typing import Any

import yaml
from PIL import Image

from mgen.utils.config import read_config
from tests.system.boundaries.harness import Parts

# What a generator's settings are replaced by, for the other tasks.
VQGAN = {
    "class": "VQGAN",
    "image_size": 32,
    "in_channels": 1,
    "channels": 8,
    "multipliers": [1, 1, 2],
    "blocks": 1,
    "norm_groups": 0,
}
VQGAN |= {"mid_blocks": 1, "latent": 4, "vocab_size": 64}
CNN = {"class": "ImageClassifier", "widths": [8, 8, 16], "features": 8, "num_classes": 3}


def settings_of(parts: Parts, task: str = "generator", **sections: Any) -> dict[str, Any]:
    """Settings of a small run on `images`, into the folder `trained`."""
    settings = read_config(parts["config"]) | {"task": task}
    if task != "generator":
        settings |= {"model": VQGAN if task == "tokenizer" else CNN, "objective": {}}
    return {**settings, **sections}


def written(settings: dict[str, Any], name: str = "own.yaml") -> str:
    """A file of these settings in the test's folder."""
    Path(name).write_text(yaml.safe_dump(settings))
    return name


def folders(root: str, **classes: int) -> Path:
    """A folder of class folders with so many gray images each."""
    for name, count in classes.items():
        (Path(root) / name).mkdir(parents=True)
        for i in range(count):
            Image.new("L", (32, 32), 40 * i).save(Path(root) / name / f"{i}.png")
    return Path(root)
