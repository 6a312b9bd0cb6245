"""Grids of images labeled with their classes, and animations."""

from collections.abc import Sequence
from pathlib import Path
from typing import IO

from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torchvision.transforms.functional import to_pil_image

MARGIN = 4


def labeled_grid(
    images: Tensor, labels: Sequence[int], names: Sequence[str], *, columns: int = 10, rows: int = 20
) -> Image.Image:
    """One row per class, its name on the left; at most `rows` classes with `columns` images each.

    Args:
        images: uint8 (N, C, H, W). labels: class ids (N); −1 is unknown. names: of the classes, by id.
    """
    scale = max(1, 64 // images.shape[-1])
    w, h = images.shape[-1] * scale, images.shape[-2] * scale
    groups: dict[int, list[int]] = {}
    for i, label in enumerate(labels):
        groups.setdefault(int(label), []).append(i)
    if set(groups) == {-1}:  # no known classes: fill the rows in order
        everything = groups[-1]
        groups = {-1 - r: everything[r * columns : (r + 1) * columns] for r in range(-(-len(everything) // columns))}
    ordered = sorted(groups.items(), key=lambda g: (g[0] < 0, abs(g[0])))
    chosen = [(label, group[:columns]) for label, group in ordered[:rows]]
    wide = max(len(group) for _, group in chosen)
    font = ImageFont.load_default(size=14)
    text = {label: names[label] if 0 <= label < len(names) else "" for label, _ in chosen}
    left = max((int(font.getlength(t)) for t in text.values()), default=0)
    left = left + 3 * MARGIN if left else MARGIN
    grid = Image.new("RGB", (left + wide * (w + MARGIN), MARGIN + len(chosen) * (h + MARGIN)), "white")
    draw = ImageDraw.Draw(grid)
    for row, (label, group) in enumerate(chosen):
        top = MARGIN + row * (h + MARGIN)
        draw.text((MARGIN, top + h // 2), text[label], fill="black", font=font, anchor="lm")
        for column, i in enumerate(group):
            tile = to_pil_image(images[i]).convert("RGB").resize((w, h), Image.Resampling.NEAREST)
            grid.paste(tile, (left + column * (w + MARGIN), top))
    return grid


def save_animation(frames: Sequence[Image.Image], file: Path | IO[bytes], suffix: str) -> None:
    """Write frames as .gif or .png (APNG), four a second; the last one is shown for two seconds."""
    times = [250] * (len(frames) - 1) + [2000]
    kind = "GIF" if suffix == ".gif" else "PNG"
    frames[0].save(file, format=kind, save_all=True, append_images=list(frames[1:]), duration=times, loop=0)
