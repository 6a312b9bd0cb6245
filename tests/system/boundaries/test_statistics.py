"""Statistics that mgen eval compares with: whatever a file holds, it raises an error in words before it can do harm, or it is right."""

import io
import json
import os
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.numpy import save_file

from mgen.cli import main
from mgen.evaluation.extractors import InceptionExtractor, download_inception
from mgen.evaluation.frechet import frechet_distance
from mgen.evaluation.npz import NpzImages
from mgen.evaluation.statistics import FeatureSums, load_statistics, save_statistics
from mgen.utils.arrays import read_header
from tests.evaluation import Plain
from tests.system.boundaries.harness import Raises, Refused, fifo, row

F = 12
ROWS = np.random.default_rng(0).normal(size=(50, F))
MEAN, COV = ROWS.mean(0), np.cov(ROWS, rowvar=False)
CROOKED, NEGATIVE = COV.copy(), -COV
CROOKED[0, 1] += 5
ABOUT = {"extractor": "plain", "extractor_sha256": "0" * 64, "resize": Plain.resize, "count": "50"}

Arrays = dict[str, Any]


def npz(path: Path, arrays: Arrays, about: dict[str, str]) -> None:
    np.savez(path, **arrays, **{name: np.array(text) for name, text in about.items()})


def safetensors(path: Path, arrays: Arrays, about: dict[str, str]) -> None:
    save_file({name: np.ascontiguousarray(a) for name, a in arrays.items()}, path, about)


def pt(path: Path, arrays: Arrays, about: dict[str, str]) -> None:
    torch.save({name: torch.from_numpy(np.ascontiguousarray(a)) for name, a in arrays.items()}, path)


def numpy_pt(path: Path, arrays: Arrays, about: dict[str, str]) -> None:
    torch.save(arrays, path)


WRITERS = {"r.npz": npz, "r.safetensors": safetensors, "r.pt": pt, "numpy.pt": numpy_pt}
WRONG_ARRAYS: list[tuple[str, Arrays, str]] = [
    ("no sigma", {"mu": MEAN}, "no mu and sigma"),
    ("an extra axis", {"mu": MEAN[None], "sigma": COV}, "mu has shape (1, 12)"),
    ("another length", {"mu": MEAN[:5], "sigma": COV[:5, :5]}, "mu has shape (5,)"),
    ("sigma of a vector", {"mu": MEAN, "sigma": COV[0]}, "sigma has shape (12,)"),
    ("sigma of another length", {"mu": MEAN, "sigma": COV[:5, :5]}, "sigma has shape (5, 5)"),
    ("a number", {"mu": np.array(0.0), "sigma": COV}, "mu has shape ("),
    ("empty", {"mu": MEAN[:0], "sigma": COV[:0, :0]}, "mu has shape (0,)"),
    ("mu NaN", {"mu": MEAN * np.nan, "sigma": COV}, "mu holds NaN"),
    ("sigma infinite", {"mu": MEAN, "sigma": COV * np.inf}, "sigma holds NaN or infinity"),
    ("mu 1e308", {"mu": np.full(F, 1e308), "sigma": COV}, "mu holds 1e+308"),
    ("sigma 1e300", {"mu": MEAN, "sigma": COV * 1e300}, "sigma holds"),
    ("crooked", {"mu": MEAN, "sigma": CROOKED}, "no covariance"),
    ("negative", {"mu": MEAN, "sigma": NEGATIVE}, "no covariance"),
    ("features of a vector", {"mu": MEAN, "sigma": COV, "features": MEAN}, "features has shape (12,)"),
    ("features too short", {"mu": MEAN, "sigma": COV, "features": ROWS[:, :3]}, "features has shape (50, 3)"),
    ("no features", {"mu": MEAN, "sigma": COV, "features": ROWS[:0]}, "features are of 0 images"),
    ("features NaN", {"mu": MEAN, "sigma": COV, "features": ROWS * np.nan}, "features holds NaN"),
    ("features 1e30", {"mu": MEAN, "sigma": COV, "features": ROWS * 1e30}, "features holds"),
    ("nothing", {"other": MEAN}, "no mu and sigma"),
]
WRONG_TYPES: list[tuple[str, Arrays, str]] = [
    ("mu complex", {"mu": MEAN.astype(np.complex128), "sigma": COV}, "real numbers"),
    ("sigma complex", {"mu": MEAN, "sigma": COV.astype(np.complex64)}, "real numbers"),
    ("mu bool", {"mu": MEAN > 0, "sigma": COV}, "real numbers"),
]


@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.parametrize(("arrays", "words"), [row(n, a, w) for n, a, w in WRONG_ARRAYS])
def test_arrays(raises: Raises, here: Path, name: str, arrays: Arrays, words: tuple[str]) -> None:
    WRITERS[name](here / name, arrays, ABOUT)
    if name == "numpy.pt" and not all(a.size for a in arrays.values()):  # pickled in another way
        words = ("Python objects",)
    raises(lambda: load_statistics(here / name, Plain()), name, *words)


@pytest.mark.parametrize("name", ["r.npz", "r.pt"])
@pytest.mark.parametrize(("arrays", "words"), [row(n, a, w) for n, a, w in WRONG_TYPES])
def test_types(raises: Raises, here: Path, name: str, arrays: Arrays, words: tuple[str]) -> None:
    WRITERS[name](here / name, arrays, ABOUT)
    raises(lambda: load_statistics(here / name, Plain()), name, *words)


def test_complex_safetensors(raises: Raises, here: Path) -> None:
    from safetensors.torch import save_file as save_torch

    save_torch({"mu": torch.from_numpy(MEAN).cfloat(), "sigma": torch.from_numpy(COV)}, here / "r.safetensors")
    raises(lambda: load_statistics(here / "r.safetensors", Plain()), "mu", "real numbers")


@pytest.mark.parametrize("name", WRITERS)
def test_right_ones_are_read(here: Path, name: str) -> None:
    for kind in (np.float32, np.float64):
        WRITERS[name](here / name, {"mu": MEAN.astype(kind), "sigma": np.asfortranarray(COV.astype(kind))}, ABOUT)
        found = load_statistics(here / name, Plain())
        assert np.allclose(found.mean, MEAN, atol=1e-6) and np.allclose(found.cov, COV, atol=1e-5)
        assert found.described == (name in ("r.npz", "r.safetensors")) and found.count in (50, None)


WRONG_ABOUT: list[tuple[str, dict[str, str], str]] = [
    ("count superscript", {"count": "²"}, "'count'"),
    ("count of 5000 digits", {"count": "1" * 5000}, "'count'"),
    ("count of 10**20", {"count": "1" + "0" * 20}, "'count'"),
    ("count Arabic", {"count": "٥٠"}, "'count'"),
    ("count negative", {"count": "-50"}, "'count'"),
    ("count a fraction", {"count": "50.5"}, "'count'"),
    ("count empty", {"count": ""}, "'count'"),
    ("count one", {"count": "1"}, "at least 2"),
    ("sha without name", {"extractor": ""}, "extractor"),
    ("sha of letters", {"extractor_sha256": "hello"}, "extractor_sha256"),
    ("sha empty", {"extractor_sha256": ""}, "extractor_sha256"),
    ("another extractor", {"extractor_sha256": "f" * 64}, "not with the weights of 'plain'"),
    ("another resize", {"resize": "nearest"}, "with the resize 'nearest'"),
    ("a source of 10**4 letters", {"source": "x" * 10**4}, "source"),
]


@pytest.mark.parametrize("name", ["r.npz", "r.safetensors"])
@pytest.mark.parametrize(("about", "words"), [row(n, a, w) for n, a, w in WRONG_ABOUT])
def test_what_a_file_says_of_itself(
    raises: Raises, here: Path, name: str, about: dict[str, str], words: tuple[str]
) -> None:
    WRITERS[name](here / name, {"mu": MEAN, "sigma": COV}, {**ABOUT, **about})
    raises(lambda: load_statistics(here / name, Plain()), name, *words)


@pytest.mark.parametrize("name", ["r.npz", "r.safetensors"])
@pytest.mark.parametrize("lacking", ["extractor", "resize", "count"])
def test_a_hash_alone(raises: Raises, here: Path, name: str, lacking: str) -> None:
    WRITERS[name](here / name, {"mu": MEAN, "sigma": COV}, {k: v for k, v in ABOUT.items() if k != lacking})
    raises(lambda: load_statistics(here / name, Plain()), name, f"no {lacking}")


# -- files that are something else -----------------------------------------------------------------------------------------------


def zip_of(path: Path, members: dict[str, bytes], method: int = zipfile.ZIP_STORED) -> None:
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, data in members.items():
            archive.writestr(name, data)


def header(shape: str, descr: str = "'<f8'", data: bytes = b"", **more: str) -> bytes:
    """A .npy file with any header."""
    text = f"{{'descr': {descr}, 'fortran_order': {more.get('order', 'False')}, 'shape': {shape}}}".encode()
    return (
        b"\x93NUMPY" + more.get("version", "\x01\x00").encode("latin1") + len(text).to_bytes(2, "little") + text + data
    )


HEADERS: list[tuple[str, bytes, str]] = [
    ("shape lies", header("(1000000000,)"), "mu has shape (1000000000,)"),
    ("shape 10**15", header("(1000000000000000,)"), "shape"),
    ("shape 10**40", header(f"(1{'0' * 40},)"), "shape"),
    ("shape negative", header("(-12,)"), "shape"),
    ("shape true", header("(True,)"), "shape"),
    ("shape a text", header("'12'"), "shape"),
    ("shape right, nothing behind", header("(12,)"), "ends 96 bytes early"),
    ("objects", header("(12,)", "'|O'"), "not of numbers"),
    ("fields", header("(12,)", "[('a', '<f8')]"), "several fields"),
    ("dates", header("(12,)", "'<M8[s]'"), "not of numbers"),
    ("void", header("(12,)", "'|V8'"), "not of numbers"),
    ("no type", header("(12,)", "'nonsense'"), "cannot read"),
    ("type a number", header("(12,)", "8"), "several fields"),
    ("deep", header("(" * 3000 + ")" * 3000), "cannot read"),
    ("version 9", header("(12,)", version="\x09\x00"), "version (9, 0)"),
    ("no header", b"\x93NUMPY", "cannot read"),
    ("cut header", header("(12,)")[:20], "cannot read"),
    ("long header", b"\x93NUMPY\x02\x00\xff\xff\xff\x7f{", "header of"),
    ("other keys", b"\x93NUMPY\x01\x00\x08\x00{'a': 1}", "without dtype"),
    ("a call", b"\x93NUMPY\x01\x00\x10\x00__import__('os')", "cannot read"),
    ("no array", b"hello", "no array"),
    ("empty", b"", "no array"),
]


@pytest.mark.parametrize(("data", "words"), [row(n, d, w) for n, d, w in HEADERS])
def test_npz_headers(raises: Raises, here: Path, data: bytes, words: tuple[str]) -> None:
    sigma = io.BytesIO()
    np.save(sigma, COV)
    zip_of(here / "r.npz", {"mu.npy": data, "sigma.npy": sigma.getvalue()}, zipfile.ZIP_DEFLATED)
    raises(lambda: load_statistics(here / "r.npz", Plain()), "r.npz", *words)


@pytest.mark.parametrize(("data", "words"), [row(n, d, w) for n, d, w in HEADERS])
def test_npz_of_images(raises: Raises, here: Path, data: bytes, words: tuple[str]) -> None:
    zip_of(here / "x.npz", {"arr_0.npy": data}, zipfile.ZIP_DEFLATED)
    raises(lambda: NpzImages(here / "x.npz"), "x.npz")


IMAGES: list[tuple[str, Arrays, str]] = [
    ("no images", {"arr_0": np.zeros((0, 8, 8, 3), np.uint8)}, "no images"),
    ("no height", {"arr_0": np.zeros((2, 0, 8, 3), np.uint8)}, "1 … 65536 pixels"),
    ("no pixels", {"arr_0": np.zeros((2, 0, 0, 1), np.uint8)}, "1 … 65536 pixels"),
    ("floats", {"arr_0": np.zeros((2, 8, 8, 3), np.float32)}, "uint8"),
    ("two channels", {"arr_0": np.zeros((2, 8, 8, 2), np.uint8)}, "C = 1 or 3"),
    ("channels first", {"arr_0": np.zeros((2, 3, 8, 8), np.uint8)}, "C = 1 or 3"),
    ("no channels", {"arr_0": np.zeros((2, 8, 8), np.uint8)}, "C = 1 or 3"),
    ("by column", {"arr_0": np.asfortranarray(np.zeros((2, 8, 8, 3), np.uint8))}, "by column"),
    ("another name", {"images": np.zeros((2, 8, 8, 3), np.uint8)}, "no arr_0"),
    ("labels too few", {"arr_0": np.zeros((2, 8, 8, 3), np.uint8), "arr_1": np.zeros(1, np.int64)}, "arr_1 has shape"),
    ("labels 2**63", {"arr_0": np.zeros((1, 8, 8, 3), np.uint8), "arr_1": np.array([2**63], np.uint64)}, "class id"),
    ("labels negative", {"arr_0": np.zeros((1, 8, 8, 3), np.uint8), "arr_1": np.array([-2])}, "class id"),
    ("labels floats", {"arr_0": np.zeros((1, 8, 8, 3), np.uint8), "arr_1": np.zeros(1)}, "integers"),
    ("labels 8 GB", {"arr_0": np.zeros((1, 8, 8, 3), np.uint8), "arr_1": np.zeros((1, 1), np.int64)}, "arr_1"),
]


@pytest.mark.parametrize(("arrays", "words"), [row(n, a, w) for n, a, w in IMAGES])
def test_images_in_npz(raises: Raises, here: Path, arrays: Arrays, words: tuple[str]) -> None:
    np.savez(here / "x.npz", **arrays)
    raises(lambda: NpzImages(here / "x.npz"), "x.npz", *words)


def test_a_header_that_lies_about_images(raises: Raises, here: Path) -> None:
    zip_of(here / "x.npz", {"arr_0.npy": header("(1000000, 256, 256, 3)", "'|u1'")})
    raises(lambda: NpzImages(here / "x.npz"), "x.npz", "claims")
    (here / "x.npy").write_bytes(header("(1000000, 256, 256, 3)", "'|u1'"))
    raises(lambda: NpzImages(here / "x.npy"), "x.npy", "claims")
    with pytest.raises(ValueError, match="no array"):
        read_header(io.BytesIO(b"PK"))


def test_a_deflate_bomb_of_labels(raises: Raises, here: Path) -> None:
    """Eight gigabytes of labels for one image: checked by the header, not read."""
    images = io.BytesIO()
    np.save(images, np.zeros((1, 8, 8, 3), np.uint8))
    with zipfile.ZipFile(here / "x.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("arr_0.npy", images.getvalue())
        with archive.open("arr_1.npy", "w") as member:
            member.write(header("(1000000000,)", "'<i8'"))
            member.write(bytes(2**24))
    raises(lambda: NpzImages(here / "x.npz"), "arr_1 has shape (1000000000,)")


OTHERS: list[tuple[str, str, Callable[[Path], object], str]] = [
    *(("missing", f"r{s}", lambda path: None, "no such file") for s in (".npz", ".pt", ".safetensors")),
    *(("a folder", f"r{s}", lambda path: path.mkdir(), "a folder") for s in (".npz", ".pt", ".safetensors")),
    *(("a pipe", f"r{s}", fifo, "no regular file") for s in (".npz", ".pt", ".safetensors")),
    *(("empty", f"r{s}", lambda path: path.write_bytes(b""), "cannot read") for s in (".npz", ".pt", ".safetensors")),
    *(
        ("text", f"r{s}", lambda path: path.write_text("x" * 99), "cannot read")
        for s in (".npz", ".pt", ".safetensors")
    ),
    *(
        ("a broken link", f"r{s}", lambda path: path.symlink_to("gone"), "broken link")
        for s in (".npz", ".pt", ".safetensors")
    ),
    ("a device", "r.npz", lambda path: path.symlink_to("/dev/zero"), "no regular file"),
    ("another suffix", "r.csv", lambda path: path.write_text("1,2"), "expected .safetensors, .npz or .pt"),
    ("no suffix", "r", lambda path: path.write_text("1,2"), "expected .safetensors, .npz or .pt"),
    ("a huge header", "r.safetensors", lambda path: path.write_bytes(b"\xff" * 8 + b"{}"), "cannot read"),
    ("an empty list", "r.pt", lambda path: torch.save([], path), "list"),
    ("a tensor", "r.pt", lambda path: torch.save(torch.zeros(3), path), "Tensor"),
    ("None", "r.pt", lambda path: torch.save(None, path), "NoneType"),
    ("a text for mu", "r.pt", lambda path: torch.save({"mu": "x", "sigma": "y"}, path), "mu is a str"),
    ("lists", "r.pt", lambda path: torch.save({"mu": [0.0] * F, "sigma": [0.0]}, path), "mu is a list"),
    (
        "sparse",
        "r.pt",
        lambda path: torch.save({"mu": torch.zeros(F).to_sparse(), "sigma": torch.eye(F)}, path),
        "mu is a",
    ),
    (
        "meta",
        "r.pt",
        lambda path: torch.save({"mu": torch.zeros(F, device="meta"), "sigma": torch.eye(F)}, path),
        "mu is a",
    ),
]


@pytest.mark.parametrize(("name", "make", "words"), [pytest.param(n, m, w, id=f"{i} {n}") for i, n, m, w in OTHERS])
def test_files(raises: Raises, here: Path, name: str, make: Callable[[Path], object], words: str) -> None:
    make(here / name)
    raises(lambda: load_statistics(here / name, Plain()), name, words)


# -- pickles -------------------------------------------------------------------------------------------------------------------


class Calls:
    """An object whose unpickling calls a function."""

    def __init__(self, function: Callable[..., object], *arguments: object) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> Any:
        return self.call


def rebuilt(shape: object, dtype: object, data: object, version: object = 1, order: object = False) -> object:
    """What numpy pickles an array as, with any contents."""
    reconstruct, arguments = np.zeros(0).__reduce__()[:2]  # type: ignore[index]

    class Crafted:
        def __reduce__(self) -> Any:
            return reconstruct, arguments, (version, shape, dtype, order, data)

    return Crafted()


TYPE = np.dtype("f8")
BYTES = MEAN.tobytes()
CRAFTED: list[tuple[str, object]] = [
    ("code", Calls(os.system, "touch pwned")),
    ("eval", Calls(eval, "1")),
    ("a negative shape", rebuilt((-1,), TYPE, BYTES)),
    ("a huge shape", rebuilt((2**62,), TYPE, BYTES)),
    ("a shape of texts", rebuilt(("a",), TYPE, BYTES)),
    ("fewer bytes", rebuilt((F,), TYPE, b"")),
    ("more bytes", rebuilt((F,), TYPE, BYTES * 2)),
    ("no bytes", rebuilt((F,), TYPE, None)),
    ("a list for bytes", rebuilt((F,), TYPE, [0.0] * F)),
    ("objects", rebuilt((F,), np.dtype("O"), BYTES)),
    ("a type of fields", rebuilt((F,), np.dtype([("a", "f8")]), BYTES)),
    ("no type", rebuilt((F,), 8, BYTES)),
    ("another byte order", rebuilt((F,), np.dtype(">f8"), BYTES)),
    ("texts", rebuilt((F,), np.dtype("U2"), BYTES)),
    ("an array for the type", rebuilt((F,), MEAN, BYTES)),
    ("a scalar of numpy", np.float64(3)),
    ("an array of objects", np.array([None] * F)),
    ("a masked array", np.ma.masked_array(MEAN)),
    ("bytes", bytearray(96)),
]


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("value", [pytest.param(value, id=name) for name, value in CRAFTED])
def test_crafted_pickles(raises: Raises, here: Path, value: object, zipped: bool) -> None:
    """Neither code nor numpy's own functions run, which would crash the interpreter on some of these."""
    data: Any = OrderedDict(mu=value, sigma=torch.eye(F))
    try:
        torch.save(data, here / "r.pt", _use_new_zipfile_serialization=zipped)
    except (pickle.PicklingError, AttributeError, TypeError, ValueError) as error:
        pytest.skip(str(error))
    raises(lambda: load_statistics(here / "r.pt", Plain()), "r.pt")
    assert not (here / "pwned").exists()


def test_a_pickle_without_torch(raises: Raises, here: Path) -> None:
    for protocol in range(2, 6):
        (here / "r.pt").write_bytes(pickle.dumps({"mu": MEAN, "sigma": COV}, protocol))
        raises(lambda: load_statistics(here / "r.pt", Plain()), "r.pt")


def test_a_compressed_pt(raises: Raises, here: Path) -> None:
    torch.save({"mu": torch.zeros(F), "sigma": torch.eye(F)}, here / "a.pt")
    with zipfile.ZipFile(here / "a.pt") as archive:
        zip_of(here / "r.pt", {n: archive.read(n) for n in archive.namelist()}, zipfile.ZIP_DEFLATED)
    raises(lambda: load_statistics(here / "r.pt", Plain()), "compressed")


# -- Inception weights -----------------------------------------------------------------------------------------------------------


def test_inception_weights_run_no_code(raises: Raises, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither from a given file nor from the one that a download left, which must be the published one."""
    device = torch.device("cpu")
    (here / "x.pth").write_bytes(pickle.dumps({"a": Calls(os.system, "touch pwned")}, 2))
    raises(lambda: InceptionExtractor(here / "x.pth", device), "x.pth", "never runs code")
    torch.save({"fc.weight": torch.zeros(3)}, here / "y.pth")
    raises(lambda: InceptionExtractor(here / "y.pth", device), "y.pth", "torch-fidelity")
    torch.save({"fc.weight": torch.full((3,), torch.nan)}, here / "z.pth")
    raises(lambda: InceptionExtractor(here / "z.pth", device), "z.pth", "no finite numbers")
    hub = here / "hub" / "checkpoints"
    hub.mkdir(parents=True)
    (hub / "weights-inception-2015-12-05-6726825d.pth").write_bytes((here / "x.pth").read_bytes())
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(hub.parent))
    raises(lambda: InceptionExtractor(None, device), "not the published file", "6726825d", "remove it")
    raises(download_inception, "not the published file")
    assert not (here / "pwned").exists()


# -- the distance ------------------------------------------------------------------------------------------------------------------

DISTANCES: list[tuple[str, tuple[Any, Any], str]] = [
    ("covariance negative", (MEAN, NEGATIVE), "no covariance"),
    ("covariance crooked", (MEAN, CROOKED), "no covariance"),
    ("covariance a vector", (MEAN, MEAN), "shape"),
    ("mean a matrix", (COV, COV), "shape"),
    ("complex", (MEAN.astype(complex), COV), "real numbers"),
    ("text", (np.array(["a"] * F), COV), "real numbers"),
    ("1e308", (MEAN + 1e308, COV), "1e+308"),
    ("lists", (MEAN.tolist(), COV), "numpy arrays"),
    ("tensors", (torch.zeros(F), torch.eye(F)), "numpy arrays"),
    ("None", (None, COV), "numpy arrays"),
    ("NaN", (MEAN * np.nan, COV), "NaN"),
]


@pytest.mark.parametrize(("given", "words"), [row(n, g, w) for n, g, w in DISTANCES])
def test_distance(raises: Raises, given: tuple[Any, Any], words: tuple[str]) -> None:
    raises(lambda: frechet_distance(*given, MEAN, COV), *words)
    raises(lambda: frechet_distance(MEAN, COV, *given), *words)


def test_distances_of_constant_features_are_finite() -> None:
    sums = FeatureSums(F)
    sums.update(torch.full((20, F), 3.7))
    assert 0 <= frechet_distance(*sums.finish(), MEAN, COV) < 1e3
    assert frechet_distance(*sums.finish(), *sums.finish()) < 1e-6


# -- writing -----------------------------------------------------------------------------------------------------------------------


def test_equal_statistics_make_equal_files(here: Path) -> None:
    sums = FeatureSums(F)
    sums.update(torch.from_numpy(ROWS))
    for name in "abcd":
        save_statistics(here / f"{name}.safetensors", sums, Plain(), "rows", features=torch.from_numpy(ROWS))
    first = (here / "a.safetensors").read_bytes()
    assert all((here / f"{name}.safetensors").read_bytes() == first for name in "bcd")
    keys = list(json.loads(first[8 : 8 + int.from_bytes(first[:8], "little")])["__metadata__"])
    assert keys == sorted(keys) and len(keys) == 6
    with safe_open(here / "a.safetensors", framework="np") as file:
        assert np.array_equal(file.get_tensor("features"), ROWS)


STATS: list[tuple[str, list[str], str]] = [
    ("image size 10**6", ["--image-size", "1000000"], "--image-size"),
    ("image size 30000", ["--protocol", "fmnist-cnn", "--image-size", "30000"], "megapixels"),
    ("image size 0", ["--image-size", "0"], "--image-size"),
    ("image size ²", ["--image-size", "²"], "--image-size"),
    ("device meta", ["--device", "meta"], "meta"),
    ("device cpu:7", ["--device", "cpu:7"], "cpu:7"),
    ("device empty", ["--device", ""], "empty"),
    ("features negative", ["--features", "-1"], "--features"),
    ("features 10**12", ["--features", "1000000000000"], "--features"),
    ("batch size 0", ["--batch-size", "0"], "--batch-size"),
    ("num images 0", ["--num-images", "0"], "--num-images"),
    ("split of a folder", ["--split", "train"], "no splits"),
    ("split empty", ["--split", ""], "empty"),
    ("protocol empty", ["--protocol", ""], "empty"),
    ("protocol unknown", ["--protocol", "fid"], "unknown --protocol"),
    ("weights without Inception", ["--inception-weights", "@config"], "no effect"),
    ("weights missing", ["--inception-weights", "x.pth"], "no such file"),
    ("extractor unknown", ["--extractor", "resnet"], "no extractor"),
    ("out empty", ["--out", ""], "empty"),
    ("out too long", ["--out", "a" * 300 + ".npz"], "too long"),
    ("out a folder", ["--out", "."], "must end in"),
    ("out .pt", ["--out", "x.pt"], "must end in"),
    ("out without room for features", ["--out", "a" * 245 + ".safetensors"], "long"),
]


@pytest.mark.parametrize(("options", "words"), [row(n, o, w) for n, o, w in STATS])
def test_stats(refused: Refused, options: list[str], words: tuple[str]) -> None:
    refused(["stats", "@images", "--device", "cpu", "--out", "s.safetensors", *options], *words)


def test_clean_resizes_each_image_by_itself(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Images of several sizes, as clean-fid takes them: as images, as reference and in statistics."""
    from PIL import Image

    from mgen.evaluation.folder_source import from_folder
    from mgen.evaluation.measure import features_of, measure

    for i, side in enumerate((32, 40, 32, 51)):
        Image.fromarray(np.full((side, side, 3), 50 * i, np.uint8)).save(here / f"{i}.png")

    class Clean(Plain):
        channels = 3

        def __call__(self, images: torch.Tensor) -> Any:
            return super().__call__(torch.nn.functional.interpolate(images[:, :1].float(), (32, 32)).byte())

    source, whole = from_folder(here, any_size=True), Clean()
    measured = measure(source, whole, progress=False, batch_size=3, examples=4)
    alone = [whole(from_folder(here, any_size=True).read(i, i + 1).images[0][None]).features for i in range(4)]
    assert torch.allclose(measured.rows("features"), torch.cat(alone))
    assert measured.examples()[0].shape == (4, 3, 256, 256)
    assert features_of(whole, source.read(0, 4).images).features.shape == (4, 12)
    assert main(["stats", str(here), "--protocol", "fmnist-cnn", "--out", "s.npz", "--device", "cpu"]) == 2
    assert "differs in size" in capsys.readouterr().err
