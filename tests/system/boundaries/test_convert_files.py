"""Checkpoints that mgen convert refuses for what they hold: values, files and flax trees."""

import argparse
import json
import struct
import traceback
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import pytest
import torch
from torch import Tensor

from tests.system.boundaries.conversion import State, converted, official, same, saved
from tests.system.boundaries.harness import Refused, fifo, row

# -- contents ----------------------------------------------------------------------------------------------------------------

FIRST = "mid_block.attn.qkv.weight"  # a weight of the official file


def changed(value: Callable[[Tensor], object]) -> Callable[[State], object]:
    """The official state with another value for one of its weights."""
    return lambda state: {**state, FIRST: value(state[FIRST])}


def with_nan(x: Tensor) -> Tensor:
    x = x.clone()
    x.view(-1)[3] = float("nan")
    return x


def per_channel(x: Tensor) -> Tensor:
    return torch.quantize_per_channel(x, torch.ones(len(x)), torch.zeros(len(x)), 0, torch.qint8)


def circle() -> dict[str, object]:
    out: dict[str, object] = {}
    out["model"] = out
    return out


CONTENTS: list[Any] = [
    row("int keys", lambda s: dict(enumerate(s.values())), "name 0 is no text"),
    row("tuple keys", lambda s: {(k, 1): v for k, v in s.items()}, "no text"),
    row("none key", lambda s: {**s, None: torch.zeros(1)}, "name None is no text"),
    row("bytes key", lambda s: {**s, b"a": torch.zeros(1)}, "no text"),
    row("float key", lambda s: {**s, 1.5: torch.zeros(1)}, "no text"),
    row("true as key", lambda s: {**s, True: torch.zeros(1)}, "no text"),
    row("key with newline", lambda s: {**s, "a\nmgen: error": torch.zeros(1)}, "cannot be printed"),
    row("key with escape", lambda s: {**s, "\x1b[2J": torch.zeros(1)}, "cannot be printed"),
    row("key of 10**6", lambda s: {**s, "a" * 10**6: torch.zeros(1)}, "not expected"),
    row("int keys inside", lambda s: {"model": dict(enumerate(s.values()))}, "no text"),
    row("complex", changed(lambda x: x.to(torch.complex64)), FIRST, "complex64"),
    row("complex double", changed(lambda x: x.to(torch.complex128)), FIRST, "complex128"),
    row("fp64 1e300", changed(lambda x: torch.full_like(x, 1e300, dtype=torch.float64)), "beyond fp32"),
    row("fp64 -1e39", changed(lambda x: torch.full_like(x, -1e39, dtype=torch.float64)), "beyond fp32"),
    row("nan", changed(with_nan), FIRST.split(".")[0], "NaN"),
    row("infinite", changed(lambda x: x / 0), "infinity"),
    row("nan in half", changed(lambda x: with_nan(x.half())), "NaN"),
    row("quantized", changed(lambda x: torch.quantize_per_tensor(x, 0.1, 0, torch.qint8)), "quantized"),
    row("quantized per channel", changed(lambda x: per_channel(x)), "quantized"),
    row("integers", changed(lambda x: (x * 100).to(torch.int8)), "whole numbers"),
    row("int64", changed(lambda x: (x * 100).long()), "whole numbers"),
    row("bools", changed(lambda x: x > 0), "whole numbers"),
    row("meta", changed(lambda x: x.to("meta")), "meta"),
    row("all meta", lambda s: {k: v.to("meta") for k, v in s.items()}, "meta"),
    row("sparse", changed(lambda x: x.to_sparse()), "sparse"),
    row("sparse csr", changed(lambda x: x.to_sparse_csr()), FIRST, "sparse"),
    row("nested", changed(lambda x: torch.nested.nested_tensor([x, x[:1]])), ""),
    row("expanded to 10**12", changed(lambda x: torch.zeros(1).expand(10**6, 10**6)), "repeats"),
    row("expanded to its shape", changed(lambda x: torch.zeros(1).expand(x.shape)), "repeats"),
    row("a number", changed(lambda x: 3), "is a int"),
    row("a text", changed(lambda x: "x"), "is a str"),
    row("a list", changed(lambda x: x[0].tolist()), "is a list"),
    row("none", changed(lambda x: None), "NoneType"),
    row("a mapping", changed(lambda x: {"a": x}), "is a dict"),
    row("scalar", changed(lambda x: torch.tensor(1.0)), "another shape"),
    row("transposed", changed(lambda x: x.T.contiguous()), "another shape"),
    row("one axis more", changed(lambda x: x[None]), "another shape"),
    row("empty tensor", changed(lambda x: torch.zeros(0, 0)), "shape"),
    row("missing", lambda s: {k: v for k, v in s.items() if k != FIRST}, "missing"),
    row("unheard of", lambda s: {**s, "unheard.of": torch.zeros(1)}, "unheard.of"),
    row("a layer 10**6", lambda s: {**s, "in_blocks.1000000.norm1.weight": torch.zeros(1)}, "some are missing"),
    row("a layer of 5000 digits", lambda s: {**s, f"in_blocks.{'9' * 5000}.a": torch.zeros(1)}, "another system"),
    row("duplicate after module.", lambda s: {**s, f"module.{FIRST}": s[FIRST] + 1}, "duplicate after removing", "module."),
    row("duplicate of two wrappers", lambda s: {f"{p}{k}": v for k, v in s.items() for p in ("module.", "_orig_mod.")}, "duplicate"),
    row("duplicate inside", lambda s: {"ema": {**s, f"_orig_mod.{FIRST}": s[FIRST]}}, "duplicate"),
    row("list", lambda s: list(s.values()), "it is a list"),
    row("tensor", lambda s: torch.zeros(3), "it is a Tensor"),
    row("number", lambda s: 5, "it is a int"),
    row("none at all", lambda s: None, "NoneType"),
    row("a namespace", lambda s: argparse.Namespace(model=s), "Namespace"),
    row("empty", lambda s: {}, "nothing in it"),
    row("empty inside", lambda s: {"model": {}}, "no state dict"),
    row("model is a list", lambda s: {"model": list(s)}, "no state dict"),
    row("circle", lambda s: circle(), "mappings"),
    row("nine wrappers", lambda s: {"model": {"model": {"model": {"model": {"model": {"model": s}}}}}}, "mappings"),
    row("another system", lambda s: {"a.weight": torch.zeros(3)}, "not of format 'maskgit'"),
    row("ordered of texts", lambda s: OrderedDict.fromkeys(s, "x"), "is a str"),
    row("an object", lambda s: {"model": s, "fn": torch.nn.Linear(1, 1)}, "never runs code"),
    row("a numpy array", changed(lambda x: x.numpy()), "never runs code"),
    row("a numpy scalar", lambda s: {"model": s, "epoch": np.float64(3)}, "never runs code"),
]  # fmt: skip


@pytest.mark.parametrize(("make", "words"), CONTENTS)
@pytest.mark.filterwarnings("ignore")
def test_contents_that_are_no_weights(make: Any, words: list[str], here: Path, refused: Refused) -> None:
    saved(make(official()), here / "x.pt")
    refused(["convert", "maskgit", "x.pt", "trunk.heads=4", "--out", "o"], *words)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_are_read(dtype: torch.dtype, here: Path) -> None:
    state = {name: value.to(dtype) for name, value in official().items()}
    made = converted("maskgit", saved(state, here / "x.pt"))
    expected = converted("maskgit", saved({k: v.float() for k, v in state.items()}, here / "y.pt"))
    assert same(made, expected)


def test_what_other_libraries_let_torch_load_is_refused(here: Path, refused: Refused) -> None:
    class Frame:
        def __reduce__(self) -> Any:
            return traceback.FrameSummary, ("pipe", 1, "f")  # which opens the file "pipe"

    fifo(here / "pipe")
    with torch.serialization.safe_globals([traceback.FrameSummary]):
        refused(["convert", "maskgit", str(saved({"a": Frame()}, here / "m.pt")), "--out", "o"], "Python objects")
        assert traceback.FrameSummary in torch.serialization.get_safe_globals()


def test_weights_that_share_memory_and_views_are_read(here: Path) -> None:
    state = official("halton")
    state["head.weight"] = state["tok_emb.weight"]
    assert "same tensor" in converted("halton", saved(state, here / "x.pt")).ignored["head.weight"]
    views = {name: torch.stack([value, value])[1] for name, value in official().items()}
    assert same(
        converted("maskgit", saved(views, here / "v.pt")), converted("maskgit", saved(official(), here / "w.pt"))
    )


# -- files -------------------------------------------------------------------------------------------------------------------


def zipped(folder: Path, entries: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> None:
    with zipfile.ZipFile(folder / "x.pt", "w", compression) as archive:
        for name, data in entries.items():
            archive.writestr(name, data)


def recompressed(folder: Path) -> None:
    saved(official(), folder / "a.pt")
    with zipfile.ZipFile(folder / "a.pt") as archive:
        zipped(folder, {name: archive.read(name) for name in archive.namelist()}, zipfile.ZIP_DEFLATED)
    (folder / "a.pt").unlink()


def cut(folder: Path, share: float, legacy: bool = False) -> None:
    torch.save(official(), folder / "x.pt", _use_new_zipfile_serialization=not legacy)
    data = (folder / "x.pt").read_bytes()
    (folder / "x.pt").write_bytes(data[: int(len(data) * share)])


def described(**changed: object) -> bytes:
    """The header of a safetensors file with one tensor and no numbers."""
    return json.dumps({"a": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0], **changed}}).encode()


def header(folder: Path, text: bytes, size: int | None = None) -> None:
    (folder / "x.safetensors").write_bytes(struct.pack("<Q", len(text) if size is None else size) + text)


FILES: list[Any] = [
    row("empty", lambda f: (f / "x.pt").write_bytes(b""), "neither"),
    row("text", lambda f: (f / "x.pt").write_text("hello"), "neither"),
    row("zeros", lambda f: (f / "x.pt").write_bytes(bytes(100)), "neither"),
    row("html", lambda f: (f / "x.pt").write_text("<html>" * 99), "neither"),
    row("png", lambda f: (f / "x.pt").write_bytes(b"\x89PNG\r\n\x1a\n" * 9), "x.pt"),
    row("folder", lambda f: (f / "x.pt").mkdir(), "no weights in"),
    row("fifo", lambda f: fifo(f / "x.pt"), "no regular file"),
    row("device", lambda f: (f / "x.pt").symlink_to("/dev/zero"), "no regular file"),
    row("broken link", lambda f: (f / "x.pt").symlink_to("nowhere"), "broken link"),
    row("missing", lambda f: None, "no such checkpoint"),
    row("truncated", lambda f: cut(f, 0.7), "truncated"),
    row("truncated legacy", lambda f: cut(f, 0.7, legacy=True), "x.pt"),
    row("truncated legacy early", lambda f: cut(f, 0.001, legacy=True), "x.pt"),
    row("zip of something", lambda f: zipped(f, {"a.txt": b"x"}), "zip archive"),
    row("zip with a broken pickle", lambda f: zipped(f, {"x/data.pkl": b"\x80\x02}q", "x/version": b"3"}), "x.pt"),
    row("zip with nonsense", lambda f: zipped(f, {"x/data.pkl": b"nonsense", "x/version": b"3"}), "x.pt"),
    row("torchscript", lambda f: zipped(f, {"x/data.pkl": b"", "x/constants.pkl": b""}), "TorchScript"),
    row("compressed", recompressed, "compressed"),
    row("names bomb", lambda f: zipped(f, {"x/data.pkl": bytes(70 * 2**20)}, zipfile.ZIP_DEFLATED), "compressed"),
    row("pickle that runs", lambda f: (f / "x.pt").write_bytes(b"\x80\x02cos\nsystem\nX\x04\x00\x00\x00true\x85R."), "never runs code"),
    row("safetensors of nonsense", lambda f: (f / "x.safetensors").write_bytes(b"nonsense" * 9), "safetensors"),
    row("safetensors empty", lambda f: (f / "x.safetensors").write_bytes(b""), "safetensors"),
    row("safetensors header of 10**18", lambda f: header(f, b"{}", 10**18), "safetensors"),
    row("safetensors of nothing", lambda f: header(f, b"{}"), "nothing in it"),
    row("safetensors deep", lambda f: header(f, b'{"a":' * 9000), "safetensors"),
    row("safetensors shape lies", lambda f: header(f, described(shape=[10**9])), "safetensors"),
    row("safetensors dtype", lambda f: header(f, described(dtype="F3")), "safetensors"),
    row("safetensors overflow", lambda f: header(f, described(shape=[2**32, 2**32, 4])), "safetensors"),
    row("safetensors offsets swapped", lambda f: header(f, described(data_offsets=[4, 0])), "safetensors"),
]  # fmt: skip


@pytest.mark.parametrize(("make", "words"), FILES)
def test_files_that_are_no_checkpoints(make: Any, words: list[str], here: Path, refused: Refused) -> None:
    make(here)
    name = next((p.name for p in here.iterdir() if p.suffix in (".pt", ".safetensors")), "x.pt")
    refused(["convert", "maskgit", name, "trunk.heads=4", "--out", "o"], *words)


# -- flax --------------------------------------------------------------------------------------------------------------------


def leaf(shape: object = (2,), dtype: object = "float32", raw: object = bytes(8)) -> msgpack.ExtType:
    return msgpack.ExtType(1, msgpack.packb([shape, dtype, raw]))


def deep(levels: int) -> bytes:
    return b"\x81\xa1a" * levels + msgpack.packb(leaf())


def chunked(**parts: object) -> dict[str, object]:
    return {"params": {"a": {"__msgpack_chunked_array__": True, **parts}}}


FLAX: list[Any] = [
    *(row(f"deep {n}", deep(n), "levels deep" if n <= 1020 else "flax") for n in (40, 500, 900, 1000, 1020, 1100, 5000, 200_000)),
    row("list at the top", b"\x81\xa1a\x93\x01\x02\x03", "no state dict"),
    row("number", msgpack.packb({"params": 3}), "no state dict"),
    row("int keys", msgpack.packb({"params": {1: leaf()}}), "no text"),
    row("nil key", msgpack.packb({None: leaf()}), "no text"),
    row("list as key", b"\x81\x91\x01\x01", "no text"),
    row("key twice", b"\x82\xa1a\x01\xa1a\x02", "twice"),
    row("slash makes two", msgpack.packb({"a/b": leaf(), "a": {"b": leaf()}}), "a/b"),
    row("map of 4 billion", b"\xdf\xff\xff\xff\xff\xa1a", "flax"),
    row("text of 4 billion", b"\x81\xdb\xff\xff\xff\xffa", "flax"),
    row("bytes of 4 billion", b"\x81\xa1a\xc6\xff\xff\xff\xff", "flax"),
    row("list of 4 billion", b"\x81\xa1a\xdd\xff\xff\xff\xff", "flax"),
    row("extension of 4 billion", b"\x81\xa1a\xc9\xff\xff\xff\xff\x01", "flax"),
    row("extension type", msgpack.packb({"a": msgpack.ExtType(3, b"x")}), "extension type 3"),
    row("extension of nonsense", msgpack.packb({"a": msgpack.ExtType(1, b"x")}), "flax"),
    row("shape too large", msgpack.packb({"a": leaf((10**9,))}), "an array of shape"),
    row("shape of 10**12", msgpack.packb({"a": leaf((10**6, 10**6, 0, 10**12))}), "an array of shape"),
    row("shape negative", msgpack.packb({"a": leaf((-1,))}), "an array of shape"),
    row("shape of texts", msgpack.packb({"a": leaf(("2",))}), "an array of shape"),
    row("shape is a number", msgpack.packb({"a": leaf(2)}), "an array of shape"),
    row("dtype object", msgpack.packb({"a": leaf(dtype="object")}), "arrays of type"),
    row("dtype list", msgpack.packb({"a": leaf(dtype=["float32"])}), "flax"),
    row("half a number", msgpack.packb({"a": leaf(raw=bytes(7))}), "flax"),
    row("complex", msgpack.packb({"a": leaf(dtype="complex64")}), "complex64"),
    row("text as bytes", msgpack.packb({"a": leaf(raw="12345678")}), "flax"),
    row("chunks missing", msgpack.packb(chunked()), "chunked array"),
    row("chunks a number", msgpack.packb(chunked(chunks=3, shape={"0": 2})), "chunked array"),
    row("chunks not counted", msgpack.packb(chunked(chunks={"a": leaf()}, shape={"0": 2})), "chunked array"),
    row("chunks of numbers", msgpack.packb(chunked(chunks={"0": 1}, shape={"0": 2})), "no arrays"),
    row("chunks too few", msgpack.packb(chunked(chunks={"0": leaf()}, shape={"0": 99})), "flax"),
    row("truncated", msgpack.packb({"params": {"a": leaf()}})[:-3], "truncated"),
    row("more behind", msgpack.packb({"params": {"a": leaf()}}) + b"more", "flax"),
    row("no utf-8", b"\x81\xa2\xff\xfe\x01", "flax"),
    row("another system", msgpack.packb({"params": {"a": leaf()}}), "not of format 'maskgit-jax'"),
]  # fmt: skip


@pytest.mark.parametrize(("data", "words"), FLAX)
def test_flax_files(data: bytes, words: list[str], here: Path, refused: Refused) -> None:
    (here / "checkpoint").write_bytes(data)
    refused(["convert", "maskgit-jax", "checkpoint", "--out", "o"], "checkpoint", *words)


def test_flax_trees_are_unwrapped_too(here: Path) -> None:
    state = official("maskgit-jax")
    tree: dict[str, Any] = {}
    for name, value in state.items():
        *path, last = name.split("/")
        node = tree
        for part in path:
            node = node.setdefault(part, {})
        node[last] = leaf(list(value.shape), "float32", value.numpy().tobytes())
    bare = converted("maskgit-jax", saved(state, here / "bare.pt"))
    for wrapped in (tree, {"ema": tree}, {"model": {"module": tree}, "step": 3}):
        (here / "flax").write_bytes(msgpack.packb(wrapped))
        assert same(bare, converted("maskgit-jax", here / "flax"))
