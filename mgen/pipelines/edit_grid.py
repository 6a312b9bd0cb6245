"""The picture of an edit: the original, the same with what is regenerated marked, and the results by class."""

from collections.abc import Sequence

import numpy as np
from PIL import Image
from torch import Tensor

from mgen.utils.grids import Row, Tile, draw_grid, to_tiles

OUTLINE, HATCH = (255, 96, 0), 0.55  # color of the mark; how much of it is in a stripe
STRIPE = 8  # pixels from one stripe to the next
LEAST, MOST, COLUMNS = 96, 256, 8  # pixels of a tile's side; results in a row


def edit_grid(original: Tensor, mask: Tensor, results: Tensor, labels: Sequence[str]) -> Image.Image:
    """One row with the original and its mask, then rows of results.

    Args:
        original: uint8 (C, H, W). mask: bool (H, W), True where the picture is regenerated. results: uint8 (N, C, H, W).
        labels: of each result, such as its class; a row holds results of one.
    """
    first = to_tiles(original[None], least=LEAST, most=MOST)[0]
    rows = [
        Row(
            label="original",
            tiles=[Tile(image=first, caption="as given"), Tile(image=marked(first, mask), caption="mask")],
        )
    ]
    groups: dict[str, list[Image.Image]] = {}
    for label, tile in zip(labels, to_tiles(results, least=LEAST, most=MOST)):
        groups.setdefault(label, []).append(tile)
    for label, tiles in groups.items():
        for start in range(0, len(tiles), COLUMNS):
            row = [Tile(image=tile) for tile in tiles[start : start + COLUMNS]]
            rows.append(Row(label=label if start == 0 else "", tiles=row, apart=len(rows) == 1))
    return draw_grid(rows)


def marked(picture: Image.Image, mask: Tensor) -> Image.Image:
    """An RGB picture with the masked part (of any resolution) hatched and outlined."""
    inside = Image.fromarray(mask.cpu().numpy().astype(np.uint8) * 255).resize(picture.size, Image.Resampling.NEAREST)
    chosen, pixels = np.asarray(inside) > 0, np.array(picture)
    h, w = chosen.shape
    stripes = (np.arange(h)[:, None] + np.arange(w)) % STRIPE < 2
    hatched = chosen & stripes
    pixels[hatched] = (HATCH * np.array(OUTLINE) + (1 - HATCH) * pixels[hatched]).round().astype(np.uint8)
    padded = np.pad(chosen, 2)  # the edge of the picture is an edge of the mask too
    inner = np.ones_like(chosen)
    for dy in range(5):
        for dx in range(5):
            inner &= padded[dy : dy + h, dx : dx + w]
    pixels[chosen & ~inner] = OUTLINE
    return Image.fromarray(pixels)
