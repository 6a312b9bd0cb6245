"""Pictures of many images: rows with their names on the left, captions below, a title above.

    labeled_grid(images, labels, names)                            one row per class
    captioned_grid(images, captions, columns=8, title="…")         a caption below each image
    compared_grid({"original": a, "reconstruction": b})            the same images in several versions, below each other

All take uint8 tensors (N, C, H, W) of one or three channels and return an RGB picture. Small images are enlarged by a whole factor
without smoothing, large ones shrunk. `draw_grid` draws rows of any tiles.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache

from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torchvision.transforms.functional import to_pil_image

MARGIN, GAP = 4, 12  # pixels between tiles, and more between groups of rows
LEAST, MOST = 64, 256  # pixels: the side of a tile
LABEL_WIDTH = 180  # pixels that a row's label takes at most
INK, MARK = "#16191d", "#c4231c"
SIZES = {"title": 15, "label": 14, "caption": 11}  # of the font, in pixels

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


@dataclass(frozen=True, kw_only=True)
class Tile:
    """An image with lines of text below it. marked: with a red frame and red text."""

    image: Image.Image
    caption: str = ""
    marked: bool = False


@dataclass(frozen=True, kw_only=True)
class Row:
    """Tiles of one size beside each other, and what stands on their left. apart: with more room above."""

    tiles: Sequence[Tile]
    label: str = ""
    apart: bool = False


def draw_grid(rows: Sequence[Row], *, title: str = "") -> Image.Image:
    """Rows below each other, their tiles in common columns; text that is too long is cut."""
    tiles = [tile for row in rows for tile in row.tiles]
    w = max((tile.image.width for tile in tiles), default=LEAST)
    left = max((_width(row.label, "label") for row in rows), default=0)
    left = min(left, LABEL_WIDTH) + 3 * MARGIN if left else MARGIN
    head = _height("title") + 2 * MARGIN if title else 0
    wide = left + max((len(row.tiles) for row in rows), default=1) * (w + MARGIN)
    heights = [max((_tile_height(tile) for tile in row.tiles), default=0) for row in rows]
    gaps = [GAP if row.apart else 0 for row in rows]
    grid = Image.new("RGB", (max(wide, 200 if title else 0), head + MARGIN + sum(heights) + sum(gaps)), "white")
    draw = ImageDraw.Draw(grid)
    _write(draw, (MARGIN, MARGIN), title, "title", grid.width - 2 * MARGIN)
    top = head + MARGIN
    for row, height, gap in zip(rows, heights, gaps):
        top += gap
        middle = max((tile.image.height for tile in row.tiles), default=0) // 2 - SIZES["label"] // 2 - 1
        _write(draw, (MARGIN, top + middle), row.label, "label", left - 2 * MARGIN)
        for column, tile in enumerate(row.tiles):
            _draw_tile(grid, draw, tile, left + column * (w + MARGIN), top)
        top += height
    return grid


def _draw_tile(grid: Image.Image, draw: ImageDraw.ImageDraw, tile: Tile, x: int, y: int) -> None:
    grid.paste(tile.image, (x, y))
    w, h = tile.image.size
    if tile.marked:
        draw.rectangle((x - 2, y - 2, x + w + 1, y + h + 1), outline=MARK, width=2)
    for i, line in enumerate(tile.caption.splitlines()):
        top = y + h + 2 + i * _height("caption")
        _write(draw, (x, top), line, "caption", w, MARK if tile.marked else INK)


def _tile_height(tile: Tile) -> int:
    lines = len(tile.caption.splitlines())
    return tile.image.height + MARGIN + (lines * _height("caption") + 2 if lines else 0)


# -- text --------------------------------------------------------------------------------------------------------------


@cache
def font(kind: str) -> Font:
    """Pillow's own font, in the size of a "title", "label" or "caption"."""
    return ImageFont.load_default(size=SIZES[kind])


def _width(text: str, kind: str) -> int:
    return int(font(kind).getlength(_plain(text))) + 1 if text else 0


def _height(kind: str) -> int:
    """Of a line."""
    return SIZES[kind] + 4


def _plain(text: str) -> str:
    """One printable line; names of classes may be any text."""
    return "".join(c if c.isprintable() else " " for c in text[:200])


def fitted(text: str, kind: str, width: int) -> str:
    """The text, cut with an ellipsis to a width in pixels."""
    text = _plain(text)
    if font(kind).getlength(text) <= width:
        return text
    while text and font(kind).getlength(f"{text}…") > width:
        text = text[:-1]
    return f"{text.rstrip()}…"


def _write(
    draw: ImageDraw.ImageDraw, place: tuple[int, int], text: str, kind: str, width: int, color: str = INK
) -> None:
    if text:
        draw.text(place, fitted(text, kind, width), fill=color, font=font(kind))


# -- images ------------------------------------------------------------------------------------------------------------


def to_tiles(images: Tensor, *, least: int = LEAST, most: int = MOST) -> list[Image.Image]:
    """RGB pictures of images uint8 (N, C, H, W), at least `least` pixels wide and at most `most`."""
    return [sized(to_pil_image(image.cpu()).convert("RGB"), least=least, most=most) for image in images]


def sized(image: Image.Image, *, least: int = LEAST, most: int = MOST) -> Image.Image:
    """The picture enlarged by a whole factor, or shrunk if its longer side is more than `most`."""
    w, h = image.size
    if max(w, h) > most:
        share = most / max(w, h)
        return image.resize((max(1, round(w * share)), max(1, round(h * share))), Image.Resampling.LANCZOS)
    scale = max(1, least // w)
    return image.resize((w * scale, h * scale), Image.Resampling.NEAREST)


def spread(count: int, most: int) -> list[int]:
    """At most `most` of the numbers 0 … count − 1, evenly spread."""
    shown = min(count, most)
    return [i * count // shown for i in range(shown)]


# -- grids -------------------------------------------------------------------------------------------------------------


def labeled_grid(
    images: Tensor,
    labels: Sequence[int],
    names: Sequence[str],
    *,
    columns: int = 10,
    rows: int = 20,
    title: str = "",
    most: int = MOST,
) -> Image.Image:
    """One row per class, its name on the left; at most `rows` classes with `columns` images each.

    Args:
        images: uint8 (N, C, H, W). labels: class ids (N); −1 is unknown. names: of the classes, by id. most: pixels of a tile's side.
    """
    groups: dict[int, list[int]] = {}
    for i, label in enumerate(labels):
        groups.setdefault(int(label), []).append(i)
    if set(groups) == {-1}:  # no known classes: fill the rows in order
        everything = groups[-1]
        groups = {-1 - r: everything[r * columns : (r + 1) * columns] for r in range(-(-len(everything) // columns))}
    ordered = sorted(groups.items(), key=lambda g: (g[0] < 0, abs(g[0])))
    shown = [
        Row(
            label=names[label] if 0 <= label < len(names) else "",
            tiles=[Tile(image=tile) for tile in to_tiles(images[group[:columns]], most=most)],
        )
        for label, group in ordered[:rows]
    ]
    return draw_grid(shown, title=title)


def captioned_grid(
    images: Tensor,
    captions: Sequence[str],
    *,
    columns: int,
    title: str = "",
    marked: Sequence[bool] = (),
    least: int = LEAST,
    most: int = MOST,
) -> Image.Image:
    """Images in rows of `columns`, each with its caption of one or more lines below it.

    Args:
        images: uint8 (N, C, H, W). captions: N texts. marked: which get a red frame. least, most: pixels of a tile's side.
    """
    marks = list(marked) or [False] * len(captions)
    tiles = [
        Tile(image=image, caption=caption, marked=mark)
        for image, caption, mark in zip(to_tiles(images, least=least, most=most), captions, marks)
    ]
    return draw_grid([Row(tiles=tiles[i : i + columns]) for i in range(0, len(tiles), columns)], title=title)


def compared_grid(
    versions: Mapping[str, Tensor],
    *,
    captions: Mapping[str, Sequence[str]] | None = None,
    columns: int = 8,
    title: str = "",
    most: int = MOST // 2,
) -> Image.Image:
    """The same images in several versions: bands of `columns` images, in each a row per version with its name on the left.

    Args:
        versions: name → uint8 (N, C, H, W), such as {"original": …, "reconstruction": …}. captions: name → N texts below its images.
    """
    captions = captions or {}
    count = min((len(images) for images in versions.values()), default=0)
    rows = []
    for start in range(0, count, columns):
        part = slice(start, min(start + columns, count))
        for i, (name, images) in enumerate(versions.items()):
            texts = captions.get(name, [""] * count)[part]
            tiles = [Tile(image=t, caption=text) for t, text in zip(to_tiles(images[part], most=most), texts)]
            rows.append(Row(label=name, tiles=tiles, apart=start > 0 and i == 0))
    return draw_grid(rows, title=title)
