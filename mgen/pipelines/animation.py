"""Animations of sampling: a square grid of images, step after step; what is not known yet is drawn as empty token cells."""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate

from mgen.generators import Cascade
from mgen.pipelines.pipeline import MaskedPipeline
from mgen.pipelines.pixels import to_uint8
from mgen.pipelines.run_file import ANIMATIONS
from mgen.samplers import Step
from mgen.utils.files import atomic_path
from mgen.utils.grids import Row, Tile, draw_grid, to_tiles

MOST_IMAGES = 100
MOST_FRAMES = 100  # of a run of more steps, evenly spread ones are shown
EMPTY, EDGE = (96, 112, 138), (126, 141, 165)  # color of an unknown token, and of its edge
LEAST, MOST = 96, 128  # pixels: the side of an image
HOLD = 3000  # milliseconds for which the last frame is shown


def animate(pipe: MaskedPipeline, labels: Sequence[int | None], file: Path, *, seed: int, dtype: str = "fp32") -> int:
    """Sample images, the first ones of a run with this seed, and write every step as a frame; returns the number of frames.

    Args:
        labels: class ids; None of an unconditional model. file: .gif, .png (APNG) or .webp.
    """
    film = Film(pipe, labels)
    pipe(labels, seed=seed, dtype=dtype, output_type="tokens", progress=False, callback=film)
    with atomic_path(file) as path:
        save_animation(film.frames, path, file.suffix)
    return len(film.frames)


class Film:
    """A callback of a pipeline that draws a frame for every step."""

    def __init__(self, pipe: MaskedPipeline, labels: Sequence[int | None]) -> None:
        self.pipe, self.frames = pipe, list[Image.Image]()
        self.columns = math.ceil(math.sqrt(len(labels)))
        names = pipe.class_names
        self.captions = ["" if c is None else names[c] if c < len(names) else f"class {c}" for c in labels]
        self.parts = 0  # stages begun

    def __call__(self, step: Step) -> None:
        first = step.index == 0 or not self.frames
        stride = math.ceil(step.count / MOST_FRAMES)
        if not (first or step.index % stride == 0 or step.index + 1 == step.count):
            return
        grid, images = self._decode(step)
        known = step.known[:, step.known.shape[1] - grid[0] * grid[1] :].reshape(-1, *grid)  # without global tokens
        if self.pipe.transformer.tokens.grid is None:
            known = torch.ones_like(known)
        stage = "first stage, " if step.first_stage else ""
        if first:
            self.frames.append(self._draw(images, torch.zeros_like(known), f"{stage}step 0 of {step.count}"))
        self.frames.append(self._draw(images, known, f"{stage}step {step.index + 1} of {step.count}"))

    @torch.inference_mode()
    def _decode(self, step: Step) -> tuple[tuple[int, int], Tensor]:
        """The token grid, (1, 1) for tokens without one, and images uint8 (B, C, H, W) of the draft.

        Those of a first stage are made as large as the others.
        """
        net, spec = self.pipe.transformer, self.pipe.transformer.tokens
        grid = (net.first_stage_spec if step.first_stage and isinstance(net, Cascade) else spec).grid
        with torch.autocast(net.device.type, enabled=False):
            draft = step.draft if spec.vocab_size is None else step.draft.clamp(max=spec.vocab_size - 1)  # a mask
            images = self.pipe.decode(draft)
        if grid is None or spec.grid is None:  # a token is everywhere in the image: the draft is shown as it is
            return (1, 1), to_uint8(images).cpu()
        if step.first_stage:
            images = interpolate(images, [n * images.shape[-1] // grid[1] for n in spec.grid])
        return grid, to_uint8(images).cpu()

    def _draw(self, images: Tensor, known: Tensor, title: str) -> Image.Image:
        """A frame: images (B, C, H, W) where `known` (B, h, w) says so."""
        tiles = [
            Tile(image=covered(image, shown.cpu().numpy()), caption=caption)
            for image, shown, caption in zip(to_tiles(images, least=LEAST, most=MOST), known, self.captions)
        ]
        rows = [Row(tiles=tiles[i : i + self.columns]) for i in range(0, len(tiles), self.columns)]
        return draw_grid(rows, title=title)


def covered(image: Image.Image, known: np.ndarray) -> Image.Image:
    """The picture with cells (h, w) that are not known drawn as empty ones, with edges if there is room for them."""
    pixels, (h, w) = np.array(image), known.shape
    rows, columns = (np.arange(size) * cells // size for size, cells in zip(pixels.shape[:2], (h, w)))
    unknown = ~known[rows[:, None], columns[None]].astype(bool)  # (H, W)
    edge = np.zeros_like(unknown)
    if min(pixels.shape[0] // h, pixels.shape[1] // w) >= 4:
        edge[1:] |= (np.diff(rows) > 0)[:, None]
        edge[:, 1:] |= (np.diff(columns) > 0)[None]
    pixels[unknown] = EMPTY
    pixels[unknown & edge] = EDGE
    return Image.fromarray(pixels)


def save_animation(frames: Sequence[Image.Image], file: Path, suffix: str) -> None:
    """Write frames, at most four a second and as many as take about eight seconds; the last one is held."""
    each = max(40, min(250, 8000 // len(frames)))
    times = [each] * (len(frames) - 1) + [HOLD]
    more = {"lossless": True} if suffix == ".webp" else {}
    frames[0].save(
        file, format=ANIMATIONS[suffix], save_all=True, append_images=list(frames[1:]), duration=times, loop=0, **more
    )
