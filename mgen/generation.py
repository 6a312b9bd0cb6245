"""Runs of many images: a plan of classes, files named by index and class, resumable, shared between processes.

Image i of a run is a function of (settings, seed, i) alone. A run writes `run.json` first; going on with other settings in
the same folder is refused. Images are written under a temporary name and renamed, so what is there is whole.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from tqdm import tqdm

from mgen.errors import MgenError
from mgen.files import atomic_path, read_json, write_json
from mgen.pipeline import MaskedPipeline, to_pil


def image_name(index: int, label: int | None) -> str:
    """File name of an image: `000012_class-0003.png`, or `000012.png` without a class."""
    return f"{index:06d}.png" if label is None else f"{index:06d}_class-{label:04d}.png"


def chosen_classes(text: str | None, pipe: MaskedPipeline) -> Sequence[int | None]:
    """Class ids from "0,3,7-9" or names ("bag,dress"), all classes for None; one None for an unconditional model.

    Raises:
        MgenError: see parse_classes; or classes of an unconditional model.
    """
    if pipe.conditional:
        return parse_classes(text, pipe.generator.num_classes, pipe.class_names)
    if text is not None:
        raise MgenError(f"--classes {text}: this model is unconditional and has no classes: leave the option out")
    return [None]


def parse_classes(text: str | None, count: int, names: Sequence[str] = ()) -> list[int]:
    """Class ids from "0,3,7-9" or names ("bag,dress"); all classes for None.

    Raises:
        MgenError: not a number, a range or a name, or out of range.
    """
    if text is None:
        return list(range(count))
    out: list[int] = []
    lookup = {name.lower(): i for i, name in enumerate(names)}
    for part in text.split(","):
        part = part.strip()
        first, dash, last = part.partition("-")
        if part.lower() in lookup:
            out.append(lookup[part.lower()])
        elif first.isdigit() and (last.isdigit() or not dash):
            out += range(int(first), int(last or first) + 1)
        else:
            raise MgenError(
                f"--classes: {part!r} is neither a class id, a range like 0-9, nor a class name of this model"
            )
    for c in out:
        if not 0 <= c < count:
            raise MgenError(f"class {c} is out of range: this model has classes 0 … {count - 1}")
    if not out:
        raise MgenError("--classes names no class")
    return out


def begin_run(out: Path, settings: dict[str, Any]) -> None:
    """Create the folder and write run.json, or check that the one there is the same run.

    Raises:
        MgenError: the folder holds images of another run.
    """
    file = out / "run.json"
    settings = json.loads(json.dumps(settings))
    if file.is_file():
        there = read_json(file)
        # The same weights may lie at another path, and a run may be prolonged.
        differs = [
            k
            for k in settings.keys() | there.keys()
            if settings.get(k) != there.get(k) and k not in ("num_images", "model")
        ]
        if differs:
            key = sorted(differs)[0]
            raise MgenError(
                f"{out} holds a run with {key}={there.get(key)}, now {settings.get(key)}: choose another --out, or remove it"
            )
    write_json(file, settings)


def run_images(
    pipe: MaskedPipeline,
    out: Path,
    *,
    count: int,
    classes: Sequence[int | None],
    seed: int,
    batch_size: int,
    dtype: str = "fp32",
    rank: int = 0,
    world: int = 1,
) -> int:
    """Draw the images of this process that are not there yet; returns how many were drawn.

    Image i is of class classes[i mod len(classes)]; process `rank` of `world` draws i = rank, rank + world, ….
    """
    plan = [(i, classes[i % len(classes)]) for i in range(rank, count, world)]
    todo = [(i, c) for i, c in plan if not (out / image_name(i, c)).is_file()]
    with tqdm(total=len(plan), initial=len(plan) - len(todo), unit="img", desc="sampling", disable=rank > 0) as bar:
        for start in range(0, len(todo), batch_size):
            part = todo[start : start + batch_size]
            images = pipe(
                [c for _, c in part],
                indices=[i for i, _ in part],
                seed=seed,
                dtype=dtype,
                output_type="uint8",
                progress=False,
            ).images
            for (i, c), image in zip(part, to_pil(images)):
                save_png(image, out / image_name(i, c))
            bar.update(len(part))
    return len(todo)


def save_png(image: Image.Image, path: Path) -> None:
    """Write a PNG whole or not at all."""
    with atomic_path(path) as temporary:
        image.save(temporary, format="PNG")


def read_back(
    out: Path, *, count: int, classes: Sequence[int | None], most_per_class: int = 10, most_classes: int = 20
) -> tuple[torch.Tensor, list[int]]:
    """The images of a run that a grid shows: uint8 (n, C, H, W) and their classes, -1 for none."""
    from mgen.data import load_image

    chosen: dict[int | None, list[int]] = {}
    for i in range(count):
        label = classes[i % len(classes)]
        if label in chosen or len(chosen) < most_classes:
            most = most_classes * most_per_class if label is None else most_per_class
            if len(chosen.setdefault(label, [])) < most:
                chosen[label].append(i)
    pairs = [(i, label) for label, indices in chosen.items() for i in indices]
    with Image.open(out / image_name(*pairs[0])) as first:
        channels = 1 if first.mode == "L" else 3
    return torch.stack([load_image(out / image_name(i, c), channels=channels) for i, c in pairs]), [
        -1 if c is None else c for _, c in pairs
    ]
