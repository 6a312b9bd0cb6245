"""Images, folders of images, IDX files and tensors for tokenizers that are not what they should be; and odd ones that are fine."""

import gzip
import socket
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from mgen.cli import main
from mgen.data import FashionMNIST, ImageFolder, list_images, load_image, open_image
from mgen.data.folder import sort_classes
from mgen.data.listing import image_suffixes
from mgen.utils.errors import MgenError
from tests.helpers import tiny_hita, tiny_kl, tiny_tokenizer
from tests.system.boundaries.harness import Copied, Parts, Raises, Refused, fifo, row

Make = Callable[[Path], object]


def picture(path: Path, size: tuple[int, int] = (32, 32), **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(len(path.name)).integers(0, 256, size[::-1], dtype=np.uint8)
    Image.fromarray(pixels).save(path, **options)
    return path


def claims(width: int, height: int) -> Make:
    """A PNG of a few bytes whose header names this size."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    data = b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b"")
    return lambda path: path.write_bytes(data)


def cut(path: Path) -> None:
    path.write_bytes(picture(path, (200, 200)).read_bytes()[:900])


def damaged(place: int) -> Make:
    def make(path: Path) -> None:
        data = bytearray(picture(path).read_bytes())
        data[place] ^= 0xFF
        path.write_bytes(data)

    return make


def a_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(path.name)


FILES: list[Any] = [
    row("400 megapixels", claims(20000, 20000), "400 megapixels", "limit of 179", "MGEN_MAX_PIXELS"),
    row("claims 60000×60000", claims(60000, 60000), "3,600 megapixels", "limit of 179"),
    row("claims 2**31-1", claims(2**31 - 1, 2**31 - 1), "megapixels", "limit of 179"),
    row("claims 13000×13000 of no data", claims(13000, 13000), "cannot read image", "x.png"),
    row("claims 0×0", claims(0, 0), "cannot read image"),
    row("1×65000", lambda p: Image.new("L", (1, 65000)).save(p), "1×65000", "limit of 179"),
    row("65000×1", lambda p: Image.new("L", (65000, 1)).save(p), "65000×1", "limit of 179"),
    row("empty", lambda p: p.write_bytes(b""), "cannot read image", "x.png"),
    row("text", lambda p: p.write_text("no image"), "cannot read image", "x.png"),
    row("zeros", lambda p: p.write_bytes(bytes(1000)), "cannot read image"),
    row("cut off", cut, "cannot read image", "truncated"),
    row("broken header", damaged(13), "cannot read image", "x.png"),
    row("broken size", damaged(17), "cannot read image", "x.png"),
    row("floats", lambda p: Image.new("F", (8, 8)).save(p, format="TIFF"), "floating-point"),
    row(
        "a program for Ghostscript",
        lambda p: p.write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"),
        "cannot",
    ),
    row("a folder", lambda p: p.mkdir(), "folder"),
    row("a pipe", fifo, "no regular file"),
    row("a socket", a_socket, "no regular file"),
    row("a device", lambda p: p.symlink_to("/dev/zero"), "no regular file"),
    row("a broken link", lambda p: p.symlink_to("/nowhere/at/all"), "broken link"),
    row("a link to itself", lambda p: p.symlink_to("x.png"), "x.png"),
    row("missing", lambda p: None, "no such image"),
]


@pytest.mark.parametrize(("make", "words"), FILES)
def test_a_file_that_is_no_image(here: Path, raises: Raises, make: Make, words: list[str]) -> None:
    make(here / "x.png")
    raises(lambda: load_image("x.png", size=256), *words)


COMMANDS: list[Any] = [
    row("eval", ["eval", "images", "--extractor", "fmnist-cnn", "--reference", "fmnist-train"]),
    row("stats", ["stats", "images", "--image-size", "256", "--extractor", "fmnist-cnn", "--out", "s.safetensors"]),
    row("edit", ["edit", "images/bag/x.png", "--model", "@pipeline", "--box", "0,0,9,9", "--out", "o"]),
    row("mask", ["edit", "images/bag/1.png", "--model", "@pipeline", "--mask", "images/bag/x.png", "--out", "o"]),
    row("cache", ["cache", "--data", "images", "--tokenizer", "@pipeline", "--out", "o"]),
    row("train", ["train", "--config", "@config", "data.path=images"]),
]
SOME = ("400 megapixels", "claims 60000×60000", "cut off", "a pipe", "a broken link")


@pytest.mark.parametrize(("make", "file_words"), [f for f in FILES if f.id in SOME])
@pytest.mark.parametrize(("argv", "words"), COMMANDS)
def test_a_file_that_is_no_image_is_named_by_commands(
    copied: Copied,
    parts: Parts,
    capsys: pytest.CaptureFixture[str],
    argv: list[str],
    words: list[str],
    make: Make,
    file_words: list[str],
) -> None:
    folder = copied("images")
    (folder / "bag" / "0.png").unlink()
    make(folder / "bag" / "x.png")
    filled = [parts.fill(word) for word in argv]
    capsys.readouterr()
    assert main(filled) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if "mgen:" in line]  # below a progress bar
    assert len(lines) == 1 and lines[0].startswith("mgen: error: ") and "bag/x.png" in lines[0], lines
    assert not (Path("o")).exists() and not Path("s.safetensors").exists()


LOAD: list[Any] = [
    row("None", lambda f: load_image(None), "path"),  # type: ignore[arg-type]
    row("a number", lambda f: load_image(5), "path"),  # type: ignore[arg-type]
    row("bytes", lambda f: load_image(b"x.png"), "path"),  # type: ignore[arg-type]
    row("size -1", lambda f: load_image(f, size=-1), "size", "at least 1"),
    row("size 0", lambda f: load_image(f, size=0), "size", "at least 1"),
    row("size text", lambda f: load_image(f, size="32"), "size", "whole number"),  # type: ignore[arg-type]
    row("size 10**30", lambda f: load_image(f, size=10**30), "size"),
    row("size 10**6", lambda f: load_image(f, size=10**6), "1,000,000 megapixels"),
    row("two channels", lambda f: load_image(f, channels=2), "channels"),
    row("channels text", lambda f: load_image(f, channels="3"), "channels"),  # type: ignore[arg-type]
    row("a null in the name", lambda f: load_image("x\0.png"), "no such image"),
    row("a terminal's code in the name", lambda f: load_image("x\033[31m.png"), "no such image"),
    row("a long name", lambda f: load_image("x" * 5000), "no such image"),
    row("a folder without a root", lambda f: ImageFolder(image_size=32), "root"),  # type: ignore[call-arg]
    row("a folder of size -1", lambda f: ImageFolder(root=f.parent, image_size=-1), "image_size"),
    row("a folder of no channels", lambda f: ImageFolder(root=f.parent, image_size=8, channels=0), "channels"),
    row("classes of another kind", lambda f: ImageFolder(root=f.parent, image_size=8, classes="x"), "none"),  # type: ignore[arg-type]
    row("list nowhere", lambda f: list_images("nowhere"), "no such folder: nowhere"),
    row("list None", lambda f: list_images(None), "root"),  # type: ignore[arg-type]
    row("fmnist of a number", lambda f: FashionMNIST(root=5), "root"),  # type: ignore[arg-type]
    row("fmnist of another split", lambda f: FashionMNIST(split="valid"), "train, test"),
    row("fmnist of no split", lambda f: FashionMNIST(split=None), "split"),  # type: ignore[arg-type]
]


@pytest.mark.parametrize(("call", "words"), LOAD)
def test_arguments_of_functions(here: Path, raises: Raises, call: Callable[[Path], object], words: list[str]) -> None:
    file = picture(here / "x.png")
    raises(lambda: call(file), *words)


def test_the_limit_on_pixels_can_be_moved(
    here: Path, raises: Raises, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("PIL.Image.MAX_IMAGE_PIXELS", 500)
    picture(here / "x.png", (40, 30))
    raises(lambda: load_image("x.png"), "MGEN_MAX_PIXELS=1200")
    monkeypatch.setenv("MGEN_MAX_PIXELS", "1200")
    assert load_image("x.png").shape == (3, 30, 40)
    for wrong in ("0", "-1", "many", "", "1e9", "²"):
        monkeypatch.setenv("MGEN_MAX_PIXELS", wrong)
        raises(lambda: load_image("x.png"), "MGEN_MAX_PIXELS")


def test_pixels_stand_upright_where_asked(here: Path) -> None:
    pixels = np.zeros((16, 32), dtype=np.uint8)
    pixels[:, :8] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90° clockwise to show
    Image.fromarray(pixels).save(here / "x.png", exif=exif)
    assert torch.equal(load_image(here / "x.png", channels=1)[0], torch.from_numpy(pixels))
    upright = load_image(here / "x.png", channels=1, upright=True)[0]
    assert upright.shape == (32, 16) and upright[:8].min() == 255 and upright[8:].max() == 0


def test_an_edited_photo_is_upright(here: Path, copied: Copied) -> None:
    copied("pipeline")
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(np.rot90(pixels).copy()).save(here / "x.png", exif=exif)
    argv = ["edit", "x.png", "--model", "pipeline", "--box", "0,0,16,32", "--class", "1", "--num-images", "1"]
    assert main([*argv, "--dilate", "0", "--out", "o"]) == 0
    (edited,) = (here / "o").glob("edit-*.png")
    assert np.array_equal(np.asarray(Image.open(edited))[:, 16:], pixels[:, 16:])


# -- folders ---------------------------------------------------------------------------------------------------------------


def test_formats_that_can_be_read_are_read_and_the_others_told(here: Path) -> None:
    for suffix in ("png", "gif", "pgm", "jfif", "bmp", "avif", "webp", "tiff", "jp2", "tga"):
        assert f".{suffix}" in image_suffixes()
        Image.new("RGB" if suffix == "avif" else "L", (32, 32), 99).save(
            here / f"{suffix}.{suffix}", format="JPEG" if suffix == "jfif" else None
        )
    for name in ("a.jxl", "b.JXL", "c.heic", "notes.txt", "labels.csv", ".hidden.png"):
        (here / name).write_bytes(b"x")
    (here / "UPPER.PNG").write_bytes((here / "png.png").read_bytes())
    with pytest.warns(UserWarning, match="passed over 1 .heic, 2 .jxl"):
        found = list_images(here)
    assert len(found) == 11 and all(load_image(file).shape == (3, 32, 32) for file in found)


def test_a_class_without_readable_images_is_told(here: Path) -> None:
    picture(here / "d" / "cats" / "0.gif")
    (here / "d" / "dogs").mkdir()
    (here / "d" / "dogs" / "0.jxl").write_bytes(b"x")
    (here / "d" / "empty").mkdir()
    with pytest.warns(UserWarning) as told:
        data = ImageFolder(root="d", image_size=32)
    assert data.class_names == ("cats",)
    text = " ".join(str(w.message) for w in told)
    assert "dogs, empty" in text and "1 .jxl" in text


def test_class_folders_can_be_links_and_hidden_ones_are_none(here: Path, raises: Raises) -> None:
    picture(here / "elsewhere" / "deep" / "0.png")
    picture(here / "d" / "cats" / "0.png")
    picture(here / "d" / ".git" / "0.png")
    picture(here / "d" / "cats" / ".thumbs" / "0.png")
    (here / "d" / "dogs").symlink_to(here / "elsewhere")
    (here / "d" / "cats" / "1.png").symlink_to(here / "elsewhere" / "deep" / "0.png")
    data = ImageFolder(root="d", image_size=32)
    assert data.class_names == ("cats", "dogs") and data.labels.tolist() == [0, 0, 1]
    (here / "d" / "dogs" / "loop").symlink_to(here / "d")
    raises(lambda: list_images("d"), "dogs/loop", "links to a folder that it is in")


def test_links_in_links_end(here: Path, raises: Raises) -> None:
    for number in range(8):
        (here / f"{number}").mkdir()
        for name in "abc":
            (here / f"{number}" / name).symlink_to(here / f"{number + 1}")
    picture(here / "8" / "0.png")
    raises(lambda: list_images("0"), "links to folders within each other")


def test_numbers_are_classes_in_the_order_of_numbers(here: Path) -> None:
    for number in range(12):
        picture(here / "d" / f"{number}" / "0.png")
    data = ImageFolder(root="d", image_size=32)
    assert data.class_names == tuple(str(n) for n in range(12))
    assert [data.class_names[label] for label in data.labels] == [file.parent.name for file in data.files]
    assert sort_classes({"10", "9", "cat"}) == ["10", "9", "cat"]
    assert sort_classes({"1", "01", "10", "2"}) == ["01", "1", "2", "10"]
    assert sort_classes({"²", "1"}) == ["1", "²"]
    for name in ("MixedCase", "mixedcase"):
        picture(here / "m" / name / "0.png")
    assert ImageFolder(root="m", image_size=32).class_names == ("MixedCase", "mixedcase")


def test_a_flat_folder_is_one_class_only_by_consent(here: Path, parts: Parts, copied: Copied, refused: Refused) -> None:
    copied("flat")
    copied("images")
    train = ["train", "--config", "@config", "data.path=flat"]
    refused(train, "class folders", "data.classes=none")
    (here / "images" / "stray.png").write_bytes((here / "flat" / "0.png").read_bytes())
    refused(["train", "--config", "@config", "data.path=images"], "1 images", "stray.png", "data.classes=none")
    refused([*train, "data.classes=maybe"], "data.classes", "none")
    train = [parts.fill(word) for word in train]
    assert main([*train, "data.classes=none", "model.classes.count=1"]) == 0
    argv = ["cache", "--data", "flat", "--tokenizer"]
    assert main([*argv, str(copied("pipeline")), "--classes", "none", "--out", "c"]) == 0
    assert ImageFolder(root="flat", image_size=32, classes="none").class_names == ("images",)


TRAIN: list[Any] = [
    row("missing", lambda f: None, "no such folder: d"),
    row("empty", lambda f: f.mkdir(), "no images"),
    row("a file", lambda f: f.write_text("x"), "no such folder"),
    row("of hidden files", lambda f: picture(f / ".git" / "x.png"), "no images"),
    row("of text", lambda f: ((f / "a").mkdir(parents=True), (f / "a" / "x.txt").write_text("x")), "no images"),
    row("a link to itself", lambda f: f.symlink_to("d"), "no such folder"),
    row("with a pipe", lambda f: (picture(f / "a" / "0.png"), fifo(f / "a" / "1.png")), "a/1.png", "no regular file"),
    row(
        "with a broken link",
        lambda f: (picture(f / "a" / "0.png"), (f / "a" / "1.png").symlink_to("gone")),
        "a/1.png",
        "broken link",
    ),
]


@pytest.mark.parametrize(("make", "words"), TRAIN)
def test_folders_that_hold_no_data(here: Path, refused: Refused, make: Make, words: list[str]) -> None:
    make(here / "d")
    refused(["train", "--config", "@config", "data.path=d"], *words)
    refused(["cache", "--data", "d", "--tokenizer", "@pipeline", "--out", "o"], *words)


# -- IDX files -------------------------------------------------------------------------------------------------------------

IMAGES, LABELS = "train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz"


def idx(name: str, shape: tuple[int, ...], data: bytes, *, magic: int | None = None, plain: bool = False) -> Make:
    def make(folder: Path) -> None:
        head = struct.pack(f">{1 + len(shape)}I", 0x800 + len(shape) if magic is None else magic, *shape)
        if plain:
            (folder / name).unlink()
            (folder / name.removesuffix(".gz")).write_bytes(head + data)
        else:
            (folder / name).write_bytes(gzip.compress(head + data, 1))

    return make


def raw(name: str, data: bytes) -> Make:
    return lambda folder: (folder / name).write_bytes(data)


def much(folder: Path) -> None:
    """2 GB of zeros in a few hundred parts of gzip, behind a right header."""
    head = gzip.compress(struct.pack(">4I", 0x803, 24, 28, 28))
    (folder / IMAGES).write_bytes(head + gzip.compress(bytes(2**23)) * 256)


PIXELS = bytes(24 * 784)
IDX: list[Any] = [
    row("fewer labels", idx(LABELS, (20,), bytes(20)), "24 images", "20 labels"),
    row("more labels", idx(LABELS, (30,), bytes(30)), "24 images", "30 labels"),
    row("0 images", idx(IMAGES, (0, 28, 28), b""), IMAGES, "0×28×28"),
    row("0 labels", idx(LABELS, (0,), b""), LABELS),
    row("labels to 10", idx(LABELS, (24,), bytes(23) + b"\x0a"), LABELS, "label 10", "0 … 9"),
    row("labels to 255", idx(LABELS, (24,), b"\xff" * 24), LABELS, "label 255"),
    row("images of 30 px", idx(IMAGES, (24, 30, 30), bytes(24 * 900)), IMAGES, "24×30×30"),
    row("images of 0 px", idx(IMAGES, (24, 0, 28), b""), IMAGES, "24×0×28"),
    row("images of 2 dimensions", idx(IMAGES, (24, 784), PIXELS), IMAGES, "3 dimensions"),
    row("images of 255 dimensions", raw(IMAGES, gzip.compress(b"\0\0\x08\xff" + bytes(2000))), IMAGES, "3 dimensions"),
    row("labels in the place of images", idx(IMAGES, (24,), bytes(24)), IMAGES, "3 dimensions"),
    row("images in the place of labels", idx(LABELS, (24, 28, 28), PIXELS), LABELS, "1 dimensions"),
    row("magic of floats", idx(IMAGES, (24, 28, 28), PIXELS, magic=0xD03), IMAGES, "not an IDX file"),
    row("magic 0", idx(IMAGES, (24, 28, 28), PIXELS, magic=0), IMAGES, "not an IDX file"),
    row("magic of another", raw(IMAGES, gzip.compress(b"\x89PNG" + bytes(100))), IMAGES, "not an IDX file"),
    row("2**32-1 images", idx(IMAGES, (2**32 - 1, 28, 28), PIXELS), IMAGES, "4294967295×28×28"),
    row("2**32-1 images of 2**32-1 px", idx(IMAGES, (2**32 - 1,) * 3, PIXELS), IMAGES),
    row("200000 images claimed", idx(IMAGES, (200000, 28, 28), PIXELS), IMAGES, "fewer bytes"),
    row("a byte too few", idx(IMAGES, (24, 28, 28), PIXELS[:-1]), IMAGES, "fewer bytes"),
    row("a byte too many", idx(IMAGES, (24, 28, 28), PIXELS + b"\0"), IMAGES, "more bytes"),
    row("2 GB in gzip", much, IMAGES, "more bytes"),
    row("plain, a byte too many", idx(IMAGES, (24, 28, 28), PIXELS + b"\0", plain=True), "images-idx3", "more bytes"),
    row("a header alone", raw(IMAGES, gzip.compress(b"\0\0\x08\x03")), IMAGES),
    row("nothing in gzip", raw(IMAGES, gzip.compress(b"")), IMAGES),
    row("an empty file", raw(IMAGES, b""), IMAGES),
    row("no gzip", raw(IMAGES, b"\0\0\x08\x03" + bytes(5000)), IMAGES, "gzip"),
    row("gzip cut off", raw(IMAGES, gzip.compress(bytes(5000))[:-9]), IMAGES),
    row("gzip damaged", raw(IMAGES, gzip.compress(bytes(5000))[:11] + b"\xff" * 40), IMAGES),
    row("labels missing", lambda f: (f / LABELS).unlink(), "lacks some of"),
    row("a folder", lambda f: ((f / LABELS).unlink(), (f / LABELS).mkdir()), "lacks some of"),
    row("a pipe", lambda f: ((f / LABELS).unlink(), fifo(f / LABELS)), "lacks some of"),
]


@pytest.mark.parametrize(("make", "words"), IDX)
def test_idx_files(copied: Copied, raises: Raises, make: Make, words: list[str]) -> None:
    folder = copied("idx")
    assert len(FashionMNIST(root=folder)) == 24
    make(folder)
    raises(lambda: FashionMNIST(root=folder), *words)


def test_idx_files_in_commands(copied: Copied, refused: Refused) -> None:
    idx(LABELS, (20,), bytes(20))(copied("idx"))
    refused(["train", "--config", "@config", "data={kind: fmnist, path: idx}"], "24 images", "20 labels")
    refused(["cache", "--data", "fmnist", "--data-path", "idx", "--out", "o"], "24 images", "20 labels")
    refused(["cache", "--data", "fmnist", "--data-path", "nowhere", "--out", "o"], "no such folder: nowhere")


# -- tensors for tokenizers ------------------------------------------------------------------------------------------------

GOOD = torch.zeros(2, 1, 32, 32)
TENSORS: list[Any] = [
    row("uint8 of 0 … 255", (GOOD + 200).to(torch.uint8), "uint8", "images / 127.5 - 1"),
    row("int64", GOOD.long(), "int64", "[-1, 1]"),
    row("bool", GOOD.bool(), "bool"),
    row("complex", GOOD.to(torch.complex64), "complex64"),
    row("float of 0 … 255", GOOD + 255, "up to 255", "images / 127.5 - 1"),
    row("NaN", GOOD * float("nan"), "not finite"),
    row("infinity", GOOD - float("inf"), "not finite"),
    row("one image without a batch", GOOD[0], "(1, 32, 32)", "(B, 1, H, W)"),
    row("rank 5", GOOD[None], "(1, 2, 1, 32, 32)"),
    row("a number", torch.tensor(0.5), "()"),
    row("3 channels", GOOD.expand(-1, 3, -1, -1), "(2, 3, 32, 32)", "(B, 1, H, W)"),
    row("channels last", GOOD.permute(0, 2, 3, 1), "(2, 32, 32, 1)"),
    row("no images", GOOD[:0], "(0, 1, 32, 32)"),
    row("no pixels", GOOD[..., :0], "(2, 1, 32, 0)"),
    row("30 pixels", GOOD[..., :30], "multiple of 4"),
    row("None", None, "NoneType"),
    row("a list", [[0.0]], "list"),
    row("an array", np.zeros((1, 1, 32, 32), np.float32), "ndarray"),
]


@pytest.mark.parametrize(("images", "words"), TENSORS)
@pytest.mark.parametrize("make", [tiny_tokenizer, tiny_kl, tiny_hita])
def test_tensors_that_are_no_images(raises: Raises, make: Callable[[], Any], images: Any, words: list[str]) -> None:
    tokenizer = make()
    raises(lambda: tokenizer.encode(images), *words)


IDS = torch.zeros(2, 64, dtype=torch.int64)
TOKENS: list[Any] = [
    row("None", None, "NoneType"),
    row("a list", [[1]], "list"),
    row("floats", IDS.float(), "float32", "int64"),
    row("bool", IDS.bool(), "bool"),
    row("negative", IDS - 1, "from -1", "0 … 63"),
    row("beyond the codes", IDS + 64, "to 64", "0 … 63"),
    row("rank 1", IDS[0], "(64,)", "(B, L)"),
    row("rank 3", IDS[..., None], "(2, 64, 1)"),
    row("nothing", IDS[:0], "(0, 64)"),
    row("63 of them", IDS[:, :63], "63 ids make no grid"),
]


@pytest.mark.parametrize(("ids", "words"), TOKENS)
def test_tensors_that_are_no_ids(raises: Raises, ids: Any, words: list[str]) -> None:
    tokenizer = tiny_tokenizer()
    raises(lambda: tokenizer.decode(ids), *words)
    raises(lambda: tokenizer.decode(IDS, grid=(5, 5)), "5×5")


def test_tensors_that_are_no_vectors(raises: Raises) -> None:
    tokenizer, tokens = tiny_kl(), torch.zeros(2, 64, 4)
    for wrong, word in (
        (tokens.long(), "int64"),
        (tokens[..., :3], "(B, L, 4)"),
        (tokens[:, :60], "60 tokens"),
        (None, "None"),
    ):
        raises(lambda wrong=wrong: tokenizer.decode(wrong), word)
    assert tokenizer.decode(tokens, (4, 16)).shape == (2, 1, 16, 64)


@pytest.mark.parametrize("make", [tiny_tokenizer, tiny_kl, tiny_hita])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_images_are_brought_to_the_precision_of_the_weights(make: Callable[[], Any], dtype: torch.dtype) -> None:
    tokenizer = make()
    images = torch.rand(2, 1, 32, 32, generator=torch.Generator().manual_seed(0)).to(dtype) * 2 - 1
    with torch.inference_mode():
        assert torch.equal(tokenizer.encode(images), tokenizer.encode(images.float()))


def test_what_cannot_be_opened_names_the_file(here: Path) -> None:
    picture(here / "x.png", (64, 64))
    with pytest.raises(MgenError, match="x.png"), open_image(here / "x.png") as image:
        image.seek(5)
