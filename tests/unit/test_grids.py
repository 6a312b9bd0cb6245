"""Grids: where images, labels, captions and marks are in the picture."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from mgen.utils.grids import (
    GAP,
    LABEL_WIDTH,
    MARGIN,
    Row,
    Tile,
    captioned_grid,
    compared_grid,
    draw_grid,
    fitted,
    font,
    labeled_grid,
    spread,
    to_tiles,
)

RED = (196, 35, 28)


def flat(*levels: int, side: int = 32, channels: int = 1) -> Tensor:
    """Images of one gray level each."""
    return torch.tensor(levels, dtype=torch.uint8)[:, None, None, None].repeat(1, channels, side, side)


def boxes(picture: Image.Image, level: int) -> list[int]:
    """Left, top, right, bottom of all pixels of a gray level."""
    rows, columns = np.nonzero((np.asarray(picture) == level).all(-1))
    return [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]


def ink(picture: Image.Image, box: tuple[int, int, int, int]) -> int:
    """How many pixels of a part are not white."""
    return int((np.asarray(picture.crop(box)) < 128).any(-1).sum())


def test_a_row_of_each_class_with_its_name() -> None:
    picture = labeled_grid(flat(10, 20, 30, 40), [1, 0, 1, 0], ["bag", "coat"])
    left = picture.width - 2 * (64 + MARGIN)
    assert boxes(picture, 20) == [left, MARGIN, left + 64, MARGIN + 64]  # class 0 above, in the order given
    assert boxes(picture, 40)[0] == left + 64 + MARGIN
    assert boxes(picture, 10)[:2] == [left, 2 * MARGIN + 64] and boxes(picture, 30)[1] == 2 * MARGIN + 64
    for row in (0, 1):
        top = MARGIN + row * (64 + MARGIN)
        assert ink(picture, (0, top + 20, left - MARGIN, top + 44)) > 20, "no name beside the row"


def test_without_names_there_is_no_room_for_them_and_unknown_images_fill_rows() -> None:
    picture = labeled_grid(flat(*range(1, 13)), [-1] * 12, [])
    assert picture.size == (MARGIN + 10 * (64 + MARGIN), MARGIN + 2 * (64 + MARGIN))
    assert boxes(picture, 11)[:2] == [MARGIN, 2 * MARGIN + 64]


def test_rows_and_columns_are_bounded() -> None:
    picture = labeled_grid(flat(*[9] * 60), [i // 2 for i in range(60)], [], rows=5, columns=1)
    assert picture.size == (64 + 2 * MARGIN, MARGIN + 5 * (64 + MARGIN))


def test_captions_stand_below_and_marks_around() -> None:
    picture = captioned_grid(flat(50, 60, 70), ["first", "second\nline", ""], columns=2, marked=[False, True, False])
    step = 64 + MARGIN
    assert boxes(picture, 50) == [MARGIN, MARGIN, MARGIN + 64, MARGIN + 64]
    assert boxes(picture, 60)[:2] == [MARGIN + step, MARGIN]
    assert boxes(picture, 70)[0] == MARGIN and boxes(picture, 70)[1] > MARGIN + 64 + 30  # below two lines of text
    pixels = np.asarray(picture)
    assert tuple(pixels[MARGIN - 1, MARGIN + step + 5]) == RED and tuple(pixels[MARGIN - 1, MARGIN + 5]) != RED
    below = [(MARGIN + i * step, MARGIN + 66, MARGIN + i * step + 60, MARGIN + 82) for i in (0, 1)]
    assert ink(picture, below[0]) > 10 and ink(picture, below[1]) > 10
    second = picture.crop((MARGIN + step, MARGIN + 82, MARGIN + step + 60, MARGIN + 97))
    assert (np.asarray(second)[..., 0].astype(int) - np.asarray(second)[..., 1] > 100).any(), "no red text"


def test_versions_stand_below_each_other_in_bands() -> None:
    picture = compared_grid({"original": flat(10, 20, 30), "made": flat(110, 120, 130)}, columns=2)
    places = {level: boxes(picture, level) for level in (10, 20, 30, 110, 120, 130)}
    assert places[10][0] == places[110][0] == places[30][0] and places[20][0] == places[120][0]
    tops = [places[level][1] for level in (10, 110, 30, 130)]
    assert tops == [MARGIN + i * (64 + MARGIN) + (GAP if i > 1 else 0) for i in range(4)]
    captioned = compared_grid({"a": flat(10), "b": flat(20)}, captions={"b": ["27.1 dB"]})
    assert (
        boxes(captioned, 20)[1] == boxes(captioned, 10)[3] + MARGIN and captioned.height > boxes(captioned, 20)[3] + 12
    )


def test_a_title_is_above_everything() -> None:
    plain, titled = (captioned_grid(flat(50), [""], columns=1, title=title) for title in ("", "step 20, EMA weights"))
    assert boxes(titled, 50)[1] > boxes(plain, 50)[1] and titled.width >= 200
    assert ink(titled, (0, 0, 200, boxes(titled, 50)[1])) > 50


def test_small_images_are_enlarged_and_large_ones_shrunk() -> None:
    sizes = [to_tiles(flat(1, side=side))[0].size for side in (8, 30, 64, 200, 600)]
    assert sizes == [(64, 64), (60, 60), (64, 64), (200, 200), (256, 256)]
    checks = (torch.arange(4).view(1, 1, 1, 4) % 2 * 255).expand(1, 3, 4, 4).to(torch.uint8)
    assert set(np.unique(np.asarray(to_tiles(checks)[0]))) == {0, 255}, "enlarging must not smooth"


@pytest.mark.parametrize("text", ["a\nb\tc", "x" * 500, "\u202eabc", "\ud800", "犬", ""])
def test_odd_text_takes_one_line_of_limited_width(text: str) -> None:
    picture = draw_grid([Row(tiles=[Tile(image=Image.new("RGB", (64, 64)), caption=text)], label=text)], title=text)
    assert picture.width <= max(200, LABEL_WIDTH + 64 + 5 * MARGIN)
    assert font("caption").getlength(fitted(text, "caption", 64)) <= 64


def test_long_text_is_cut_with_an_ellipsis() -> None:
    assert fitted("a long name of a class", "caption", 60).endswith("…") and fitted("short", "caption", 60) == "short"


def test_numbers_are_spread_evenly() -> None:
    assert spread(3, 16) == [0, 1, 2]
    assert spread(1000, 16)[:3] == [0, 62, 125] and len(spread(1000, 16)) == 16 and spread(1000, 16)[-1] < 1000
