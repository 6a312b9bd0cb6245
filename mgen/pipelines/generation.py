"""Drawing many images: in parts, shared between processes, going on after an interruption.

Image i of a run is a function of (weights, settings, seed, i) alone: the number of processes and interruptions change nothing, the
batch size only how sums are rounded. The folder of a run, and what makes it resumable, is in mgen/runs.py.
"""

import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from mgen.pipelines.pipeline import MaskedPipeline
from mgen.pipelines.pixels import to_pil, to_uint8
from mgen.pipelines.runs import Run, begin_images, names_in, remove_leftovers
from mgen.pipelines.runs import begin_run as begin_run  # these two for mgen tune and mgen edit
from mgen.pipelines.runs import image_name as image_name
from mgen.pipelines.shards import SHARD, ShardFolder, write_npz
from mgen.utils.errors import MgenError
from mgen.utils.files import atomic_path


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


def complete_run(
    pipe: MaskedPipeline,
    run: Run,
    *,
    about: Mapping[str, Any],
    batch_size: int,
    rank: int = 0,
    world: int = 1,
    wait: Callable[[], Any] = lambda: None,
) -> int:
    """A run from beginning, or from where it stopped, to end; returns how many images this process drew.

    Args:
        about: see `begin_images`. rank, world: this process and how many there are. wait: a barrier of all of them.

    Raises:
        MgenError: the folder holds another run, a file cannot be written, or an image is missing at the end.
    """
    if rank == 0:
        begin_images(run, about)
    wait()
    drawn = run_images(pipe, run, batch_size=batch_size, rank=rank, world=world)
    wait()
    if rank == 0:
        check_complete(run)
    return drawn


def run_images(pipe: MaskedPipeline, run: Run, *, batch_size: int, rank: int = 0, world: int = 1) -> int:
    """Draw the images of this process that are not there yet; returns how many.

    Of PNGs the process draws batches rank, rank + world, … of the run, of npz such shards, and a batch always holds the same images:
    in one of another size arithmetic may round otherwise, and an interrupted run would not end with the same bytes.
    """
    work = _draw_pngs if run.format == "png" else _draw_shards
    return work(pipe, run, batch_size=batch_size, rank=rank, world=world)


def _draw_pngs(pipe: MaskedPipeline, run: Run, *, batch_size: int, rank: int, world: int) -> int:
    there = names_in(run.out)
    batch_size = min(batch_size, -(-run.count // world))  # a small run is shared too
    mine = _parts(0, run.count, batch_size)[rank::world]
    missing = {span: [i for i in range(*span) if run.file(i, i + 1) not in there] for span in mine}
    left = sum(map(len, missing.values()))
    with _bar(mine, left, rank) as bar:
        for span, lost in missing.items():
            if lost:
                images = to_pil(draw(pipe, run, range(*span)))
                for i in lost:
                    save_png(images[i - span[0]], run.out / run.file(i, i + 1))
                bar.update(len(lost))
    return left


def _draw_shards(pipe: MaskedPipeline, run: Run, *, batch_size: int, rank: int, world: int) -> int:
    there, spans = names_in(run.out), run.spans
    if rank == 0 and world > len(spans):
        warnings.warn(f"{len(spans)} shards for {world} processes: give a smaller --shard-size", stacklevel=3)
    mine = spans[rank::world]
    todo = [span for span in mine if run.file(*span) not in there]
    left = sum(stop - start for start, stop in todo)
    with _bar(mine, left, rank) as bar:

        def images(start: int, stop: int) -> Iterator[Tensor]:
            for part in _parts(start, stop, batch_size):
                yield draw(pipe, run, range(*part))
                bar.update(part[1] - part[0])

        for span in todo:
            write_npz(run.out / run.file(*span), images(*span), labels=run.ids(*span))
            for shorter in there:  # the last shard of a run that is being prolonged
                if shorter.startswith(f"images-{span[0]:06d}-") and SHARD.fullmatch(shorter):
                    (run.out / shorter).unlink(missing_ok=True)
    return left


def _parts(start: int, stop: int, size: int) -> list[tuple[int, int]]:
    """start … stop - 1 in parts of `size`, the last one maybe smaller: first index of each, and the one after its last."""
    return [(first, min(first + size, stop)) for first in range(start, stop, size)]


def _bar(spans: Sequence[tuple[int, int]], left: int, rank: int) -> Any:
    """The progress of this process, shown by the first one."""
    total = sum(stop - start for start, stop in spans)
    return tqdm(total=total, initial=total - left, unit="img", desc="sampling", disable=rank > 0)


def draw(pipe: MaskedPipeline, run: Run, indices: Sequence[int]) -> Tensor:
    """Images of a run, uint8 (B, C, H, W).

    They are brought to `run.image_size` pixels first, if it is given, and then to bytes by `run.quantization`: see
    mgen.pipelines.pipeline.to_uint8.
    """
    plain = run.image_size is None and run.quantization == "round"
    images = pipe(
        [run.labels(i) for i in indices],
        indices=indices,
        seed=run.labels.seed,
        dtype=run.dtype,
        output_type="uint8" if plain else "raw",
        progress=False,
    ).images
    if plain:
        return images
    return to_uint8(images, size=run.image_size, quantization=run.quantization)


def check_complete(run: Run) -> None:
    """Raise MgenError unless every image of the run is there."""
    there = names_in(run.out)
    names = [run.file(*span) for span in run.spans]
    # A listing may lag behind what other machines wrote; a look for the file itself does not.
    missing = [name for name in names if name not in there and not (run.out / name).is_file()]
    if missing:
        raise MgenError(
            f"{len(missing)} of {len(names)} files are missing from {run.out}, the first is {missing[0]}: run the same command again; "
            "processes on several machines must share the folder"
        )
    if run.format == "npz" and not torch.equal(ShardFolder(run.out).labels(), torch.tensor(run.ids(0, run.count))):
        raise MgenError(f"the shards in {run.out} are not those of this run: remove them, or choose another --out")


def save_png(image: Image.Image, path: Path) -> None:
    """Write a PNG whole or not at all."""
    with atomic_path(path) as temporary:
        image.save(temporary, format="PNG")


def export_npz(run: Run, file: Path) -> None:
    """All images of a complete run in one npz as ADM's evaluator takes it: arr_0 (N, H, W, 3), grey repeated; arr_1 class ids."""
    from mgen.data import load_image

    def parts() -> Iterator[Tensor]:
        if run.format == "png":
            for span in run.spans:
                yield load_image(run.out / run.file(*span), channels=3)[None]
            return
        folder = ShardFolder(run.out)
        for start, stop in run.spans:
            for part in _parts(start, stop, 100):
                yield folder.read(*part)[0].expand(-1, 3, -1, -1)

    remove_leftovers(file.parent, re.escape(file.name))
    write_npz(file, tqdm(parts(), unit="part", desc=file.name, leave=False), labels=run.ids(0, run.count))


def read_back(run: Run, *, most_per_class: int = 10, most_classes: int = 20) -> tuple[Tensor, list[int]]:
    """The images of a run that a grid shows: uint8 (n, C, H, W) and their classes, -1 for none."""
    from mgen.data import load_image

    chosen: dict[int, list[int]] = {}
    for i, label in enumerate(run.ids(0, run.count)):
        if label in chosen or len(chosen) < most_classes:
            most = most_classes * most_per_class if label < 0 else most_per_class
            if len(chosen.setdefault(label, [])) < most:
                chosen[label].append(i)
    pairs = sorted((i, label) for label, indices in chosen.items() for i in indices)
    if run.format == "npz":
        folder = ShardFolder(run.out)
        images = [folder.read(i, i + 1)[0][0] for i, _ in pairs]
    else:
        with Image.open(run.out / run.file(0, 1)) as first:
            channels = 1 if first.mode == "L" else 3
        images = [load_image(run.out / run.file(i, i + 1), channels=channels) for i, _ in pairs]
    return torch.stack(images), [label for _, label in pairs]
