"""`mgen edit`: boxes, masks, photos and sizes."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mgen.cli import main
from mgen.data import load_image
from mgen.pipelines.editing import load_mask
from tests.system.boundaries.harness import Copied, Parts, Refused, fifo, row

EDIT = ["edit", "@images/bag/0.png", "--model", "@pipeline", "--device", "cpu"]
BOX = ["--box", "0,0,5,5"]
OPTIONS = [
    row("box empty", ["--box", ""], "--box", "empty"),
    row("box ²", ["--box", "²,0,5,5"], "four whole numbers"),
    row("box --1", ["--box=--1,0,5,5"], "four whole numbers"),
    row("box of 5000 digits", ["--box", "9" * 5000 + ",0,5,5"], "four whole numbers"),
    row("box of 20 digits", ["--box", "9" * 20 + ",0,5,5"], "four whole numbers"),
    row("box of three", ["--box", "0,0,5"], "four whole numbers"),
    row("box of many", ["--box", ",".join(["1"] * 9999)], "four whole numbers"),
    row("box of floats", ["--box", "0,0,5.5,5"], "four whole numbers"),
    row("box +5", ["--box", "0,0,+5,5"], "four whole numbers"),
    row("box outside", ["--box", "0,0,99,5"], "does not lie in the image"),
    row("box negative", ["--box=-1,0,5,5"], "does not lie in the image"),
    row("outpaint ²", ["--outpaint", "²,1,1,1"], "four whole numbers"),
    row("outpaint too much", ["--outpaint", "16,16,16,16"], "leave no picture"),
    row("outpaint negative", ["--outpaint=-1,0,0,0"], "leave no picture"),
    row("feather 1e9", [*BOX, "--feather", "1e9"], "feather", "32 pixels"),
    row("feather -1", [*BOX, "--feather", "-1"], "--feather", "at least 0"),
    row("feather nan", [*BOX, "--feather", "nan"], "--feather"),
    row("dilate -1", [*BOX, "--dilate", "-1"], "--dilate", "at least 0"),
    row("num-images 0", [*BOX, "--num-images", "0"], "--num-images"),
    row("num-images 10**12", [*BOX, "--num-images", "1" + "0" * 12], "GB of memory"),
    row("batch-size 0", [*BOX, "--batch-size", "0"], "--batch-size"),
    row("device", [*BOX, "--device", "meta"], "device"),
    row("dtype", [*BOX, "--dtype", "fp8"], "dtype"),
    row("class", [*BOX, "--class", "bog"], "--class", "bog"),
    row("class beyond", [*BOX, "--class", "0-99999999999"], "0 … 2"),
    row("steps", [*BOX, "--steps", "1" + "0" * 12], "steps"),
    row("temperature", [*BOX, "--temperature", "-1"], "--temperature"),
    row("out long", [*BOX, "--out", "a" * 300], "too long"),
    row("out empty", [*BOX, "--out", ""], "empty"),
    row("out in /proc", [*BOX, "--out", "/proc/mgen"], "/proc"),
    row("out a run", [*BOX, "--out", "@run"], "holds a run"),
    row("mask missing", ["--mask", "nowhere.png"], "nowhere.png"),
    row("mask a folder", ["--mask", "@images"], "folder"),
    row("mask empty", ["--mask", ""], "empty"),
    row("style of a tokenizer without", ["--style", "@images/bag/0.png"], "global tokens"),
    row("no place", [], "--box"),
    row("two places", [*BOX, "--outpaint", "1,1,1,1"], "--outpaint"),
]


@pytest.mark.parametrize(("options", "words"), OPTIONS)
def test_options(refused: Refused, options: list[str], words: list[str]) -> None:
    refused([*EDIT, *options], *words)


@pytest.mark.parametrize("kind", ["bomb", "fifo", "text", "empty", "link"])
@pytest.mark.parametrize("use", ["image", "mask"])
def test_files(refused: Refused, here: Path, use: str, kind: str) -> None:
    file = here / "x.png"
    if kind == "bomb":
        Image.new("1", (20_000, 20_000)).save(file)
    elif kind == "fifo":
        fifo(file)
    elif kind == "link":
        file.symlink_to("nowhere")
    else:
        file.write_text("text" if kind == "text" else "")
    argv = [EDIT[0], "x.png", *EDIT[2:], *BOX] if use == "image" else [*EDIT, "--mask", "x.png"]
    refused(argv, "x.png", *(["megapixels"] if kind == "bomb" else []))


def test_photos_and_masks_are_turned_upright(here: Path) -> None:
    bright = np.zeros((32, 32), np.uint8)
    bright[:8] = 255  # of the stored picture; turned by 90 degrees, these are the right columns
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(bright).save(here / "x.png", exif=exif)
    upright = torch.zeros(32, 32, dtype=torch.bool)
    upright[:, -8:] = True
    assert torch.equal(load_mask(here / "x.png", 32), upright)
    assert torch.equal(load_image(here / "x.png", size=32, channels=1, upright=True)[0] > 128, upright)


def test_strokes_on_a_transparent_layer_are_the_mask(here: Path) -> None:
    expected = torch.zeros(32, 32, dtype=torch.bool)
    expected[4:9] = True
    alpha = expected.numpy().astype(np.uint8) * 255
    white, black = np.full((32, 32), 255, np.uint8), np.zeros((32, 32), np.uint8)
    Image.fromarray(np.dstack([white] * 3 + [alpha])).save(here / "white.png")
    Image.fromarray(np.dstack([black] * 3 + [alpha])).save(here / "black.png")
    Image.fromarray(np.dstack([white, alpha]), "LA").save(here / "gray.png")
    Image.fromarray(np.dstack([alpha] * 3 + [white])).save(here / "opaque.png")
    Image.fromarray(alpha).save(here / "plain.png")
    for name in ("white", "black", "gray", "opaque", "plain"):
        assert torch.equal(load_mask(here / f"{name}.png", 32), expected), name


def test_an_edit_without_a_class_has_none_in_its_name(parts: Parts, here: Path, copied: Copied) -> None:
    command = [*map(parts.fill, EDIT), *BOX, "--num-images", "1", "--dilate", str(10**12)]
    assert main([*command, "--out", "a"]) == 0 and main([*command, "--class", "2", "--out", "b"]) == 0
    assert sorted(p.name for p in Path("a").iterdir()) == ["edit-000000.png", "grid.png"]
    assert sorted(p.name for p in Path("b").iterdir()) == ["edit-000000_class-0002.png", "grid.png"]
