"""What the page offers to download: the settings as a recipe, and the images as PNGs."""

import io
import json
import shlex
import zipfile
from typing import Any

import yaml

from mgen.demo.frames import png
from mgen.demo.runs import Request, Result
from mgen.pipelines.classes import read_classes
from mgen.pipelines.pipeline import MaskedPipeline
from mgen.pipelines.pixels import to_pil
from mgen.pipelines.runs import image_name
from mgen.utils.errors import MgenError
from mgen.utils.grids import labeled_grid

RECIPE = "recipe.yaml"


def recipe(pipe: MaskedPipeline, request: Request) -> str:
    """The settings of a run as a recipe, for `mgen sample --recipe`; its `run:` makes the images of the page again."""
    settings = json.loads(json.dumps(request.sampler.settings, default=dict))  # plain lists and mappings
    about = f"{request.model}: settings of a run of mgen demo. The command under `run:` makes its images again."
    contents: dict[str, Any] = {"run": command(pipe, request), "sampler": settings}
    text = yaml.safe_dump(contents, sort_keys=False, allow_unicode=True, default_flow_style=None, width=1000)
    return f"# {about}\n{text}"


def command(pipe: MaskedPipeline, request: Request) -> str:
    """The command that makes the images of a run again from its recipe."""
    words = ["mgen", "sample", "--model", request.model, "--recipe", RECIPE]
    chosen = {c for c in request.classes if c is not None}
    if chosen and len(chosen) < len(pipe.class_names):  # without the option all classes, in turn
        words += ["--classes", ",".join(_written(pipe, c) for c in dict.fromkeys(request.classes) if c is not None)]
    words += ["--num-images", str(len(request.classes)), "--seed", str(request.seed), "--out", "samples"]
    return shlex.join(words)


def _written(pipe: MaskedPipeline, class_id: int) -> str:
    """A class as --classes takes it: by name where that is clear, else by id."""
    name = pipe.class_names[class_id]
    try:
        clear = not name.startswith("-") and "," not in name and read_classes(name, pipe.class_names, "") == [class_id]
    except MgenError:
        clear = False
    return name if clear else f"id:{class_id}"


def grid_png(pipe: MaskedPipeline, result: Result) -> bytes:
    """All images on one labeled picture."""
    labels = [-1 if c is None else c for c in result.classes]
    return png(labeled_grid(result.images, labels, pipe.class_names))


def images_zip(result: Result) -> bytes:
    """A PNG for each image, named as by mgen sample."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for i, (image, label) in enumerate(zip(to_pil(result.images), result.classes)):
            archive.writestr(image_name(i, label), png(image))
    return file.getvalue()
