"""The picture of an edit: the original and its marked mask come first, then the results by class."""

import numpy as np
import torch
from PIL import Image

from mgen.pipelines.edit_grid import COLUMNS, LEAST, OUTLINE, edit_grid, marked
from mgen.utils.grids import MARGIN


def test_the_mask_is_outlined_and_hatched_and_nothing_else_changes() -> None:
    mask = torch.zeros(32, 32, dtype=torch.bool)
    mask[8:24, 16:32] = True
    pixels = np.asarray(marked(Image.new("RGB", (96, 96), (80, 80, 80)), mask))
    inside = np.zeros((96, 96), bool)
    inside[24:72, 48:96] = True
    assert (pixels[~inside] == 80).all()
    for edge in (pixels[24:26, 48:], pixels[70:72, 48:], pixels[24:72, 48:50], pixels[24:72, 94:]):
        assert (edge == OUTLINE).all()
    within = pixels[26:70, 50:94]
    striped = (within != 80).any(-1).mean()
    assert 0.2 < striped < 0.3 and not (within == OUTLINE).all(-1).any()  # the picture shows through


def test_the_original_is_first_and_each_class_has_its_rows() -> None:
    original = torch.full((1, 32, 32), 50, dtype=torch.uint8)
    results = torch.arange(100, 112, dtype=torch.uint8)[:, None, None, None].expand(-1, 1, 32, 32)
    mask = torch.ones(32, 32, dtype=torch.bool)
    pixels = np.asarray(edit_grid(original, mask, results, ["bag"] * 10 + ["coat"] * 2))

    def place(level: int) -> tuple[int, int]:
        rows, columns = np.nonzero((pixels == level).all(-1))
        return int(columns.min()), int(rows.min())

    left, top = place(50)
    assert top == MARGIN and tuple(pixels[top, left + LEAST + MARGIN]) == OUTLINE
    x, y = place(100)
    assert x == left and y > top + LEAST + 15
    assert [place(100 + i) for i in range(COLUMNS)] == [(x + i * (LEAST + MARGIN), y) for i in range(COLUMNS)]
    assert place(108) == (x, y + LEAST + MARGIN) and place(110) == (x, y + 2 * (LEAST + MARGIN))
    label = pixels[y : y + LEAST, : x - MARGIN]
    assert (label < 128).any() and not (pixels[y + LEAST + MARGIN : y + 2 * LEAST, : x - MARGIN] < 128).any()
