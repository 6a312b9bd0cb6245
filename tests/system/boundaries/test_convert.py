"""mgen convert: checkpoints that hold something else, settings and folders that it refuses; wrappers and layouts that it reads."""

import argparse
import json
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL
from safetensors.torch import load_file, save_file
from torch import Tensor

from mgen.cli import main
from mgen.convert import convert
from mgen.convert.convert import Conversion
from mgen.utils.errors import MgenError
from mgen.utils.weights import read_state_dict
from tests.golden import harness
from tests.helpers import tiny_generator, tiny_kl
from tests.system.boundaries.harness import Copied, Raises, Refused, fifo, row

State = dict[str, Tensor]
HEADS = {"trunk": {"heads": 4}}
HALVES = {"trunk": {"encoder_heads": 4, "decoder_heads": 4}}
# Format → weights in the golden sets, and settings that the shapes don't tell.
FORMATS: dict[str, tuple[str, dict[str, Any]]] = {
    "enat": ("enat/weights", {"trunk": {"heads": 4, "encoder_depth": 3, "decoder_depth": 2}}),
    "halton": ("halton/weights", HEADS),
    "himar": ("himar/weights", {}),
    "hita": ("hita/weights", {"heads": 2}),
    "hita-gpt": ("hita_ar/weights", {"trunk": {"heads": 2}}),
    "kl16": ("kl16/weights", {}),
    "llamagen": ("llamagen/weights_gpt", {"trunk": {"heads": 2}}),
    "llamagen-vq": ("llamagen/weights", {}),
    "mage": ("mage/weights", {"trunk": {"encoder_heads": 4, "decoder_heads": 2}}),
    "mar": ("mar/weights", HALVES),
    "maskgit": ("maskgit/weights", HEADS),
    "maskgit-jax": ("maskgit_jax/weights", {"tokens": {"vocab_size": 64}, "classes": {"count": 20}}),
    "maskgit-vqgan": ("maskgit_vqgan/weights", {}),
    "tokenbridge": ("tokenbridge/weights", HALVES),
}


def official(name: str = "maskgit") -> State:
    return load_file(harness.root() / f"{FORMATS[name][0]}.safetensors")


def converted(name: str, path: Path, **more: Any) -> Conversion:
    return convert(name, path, **FORMATS[name][1], **more)


def saved(value: object, path: Path) -> Path:
    torch.save(value, path)
    return path


def same(a: Conversion, b: Conversion) -> bool:
    first, second = a.model.state_dict(), b.model.state_dict()
    return first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)


# -- wrappers ----------------------------------------------------------------------------------------------------------------


def prefixed(prefix: str) -> Callable[[State], object]:
    return lambda state: {prefix + name: value for name, value in state.items()}


WRAPPERS: dict[str, tuple[Callable[[State], object], str]] = {
    "module.": (prefixed("module."), "module. removed"),
    "_orig_mod.": (prefixed("_orig_mod."), "_orig_mod. removed"),
    "_orig_mod.module.": (prefixed("_orig_mod.module."), "module. removed"),
    "module._orig_mod.": (prefixed("module._orig_mod."), "_orig_mod. removed"),
    "ema": (lambda state: {"ema": state}, "'ema'"),
    "module": (lambda state: {"module": state, "epoch": 3}, "'module'"),
    "state_dict": (lambda state: {"state_dict": state}, "'state_dict'"),
    "state_dict of model": (lambda state: {"state_dict": {"model": state}}, "'state_dict' → 'model'"),
    "ema of module.": (lambda state: {"ema": prefixed("module.")(state)}, "module. removed"),
    "averaged model": (
        lambda state: {**State(prefixed("module.")(state)), "n_averaged": torch.tensor(9)},
        "n_averaged",
    ),  # type: ignore[call-overload]
}


@pytest.mark.parametrize("name", FORMATS)
def test_wrappers_are_taken_off_and_told_in_every_format(name: str, here: Path) -> None:
    state = official(name)
    bare = converted(name, saved(state, here / "bare.pt"))
    chosen = WRAPPERS if name == "maskgit" else ("module.", "_orig_mod.", "module", "ema of module.")
    for wrap, note in (WRAPPERS[key] for key in chosen):
        made = converted(name, saved(wrap(state), here / "wrapped.pt"))
        assert same(bare, made) and note in made.report(), (note, made.report())
    save_file({f"module.{k}": v for k, v in state.items()}, here / "wrapped.safetensors")
    assert same(bare, converted(name, here / "wrapped.safetensors"))


def test_wrapped_parts_and_leaves_that_only_sound_like_one(here: Path) -> None:
    state = official()
    compiled = {name.replace("in_blocks.0.", "in_blocks.0._orig_mod."): value for name, value in state.items()}
    made = converted("maskgit", saved({"module": compiled}, here / "c.pt"))
    assert same(made, converted("maskgit", saved(state, here / "b.pt"))) and "_orig_mod. removed from " in made.report()
    assert read_state_dict(saved({"module": torch.ones(1)}, here / "d.pt")).keys() == {"module"}


def test_a_tokenizer_file_with_an_ema_gives_it_and_raw_on_request(here: Path, refused: Refused) -> None:
    raw = official("llamagen-vq")
    ema = {name: value + 1 if value.is_floating_point() else value for name, value in raw.items()}
    both = saved({"model": raw, "ema": ema, "optimizer": {}, "args": argparse.Namespace(lr=1)}, here / "vq.pt")
    taken, other = converted("llamagen-vq", both), converted("llamagen-vq", both, raw=True)
    assert torch.equal(taken.model.vq.quant_conv.bias, other.model.vq.quant_conv.bias + 1)
    assert "EMA weights taken; --raw" in taken.report() and "without EMA taken" in other.report()
    assert "no EMA" in converted("llamagen-vq", saved({"model": raw}, here / "one.pt")).report()
    refused(["convert", "llamagen-vq", str(here / "one.pt"), "--raw", "--out", "o"], "one set of weights")
    refused(["convert", "llamagen-vq", str(saved({"ema": ema}, here / "e.pt")), "--raw", "--out", "o"], "EMA", "alone")
    gpt = official("llamagen")
    made = converted("llamagen", saved({"ema": {k: v + 1 for k, v in gpt.items()}, "model": gpt}, here / "g.pt"))
    assert same(made, converted("llamagen", saved(gpt, here / "h.pt"))) and "EMA weights too" in made.report()


# -- layouts -----------------------------------------------------------------------------------------------------------------


def sharded(state: State, folder: Path, ending: str = "safetensors") -> Path:
    """Two shards and their index, as transformers writes them."""
    folder.mkdir()
    names, places = sorted(state), {}
    for i, part in enumerate((names[::2], names[1::2]), 1):
        file = f"model-{i:05d}-of-00002.{ending}"
        own = {name: state[name] for name in part}
        save_file(own, folder / file) if ending == "safetensors" else torch.save(own, folder / file)
        places |= dict.fromkeys(part, file)
    index = folder / f"model.{ending}.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": places}))
    return index


@pytest.mark.parametrize("ending", ["safetensors", "bin"])
def test_shards_are_read_by_folder_index_or_shard(ending: str, here: Path) -> None:
    state = official()
    index = sharded(state, here / "s", ending)
    whole = converted("maskgit", saved(state, here / "w.pt"))
    for path in (here / "s", index, here / "s" / f"model-00002-of-00002.{ending}"):
        assert same(whole, converted("maskgit", path)), path


def test_broken_shards_are_named(here: Path, refused: Refused) -> None:
    index = sharded(official(), here / "s")
    first, second = sorted(here.glob("s/*.safetensors"))
    argv, text = ["convert", "maskgit", str(here / "s"), "--out", "o"], index.read_text()
    kept = second.read_bytes()
    second.unlink()
    refused(argv, second.name, "missing")
    second.write_bytes(kept[:-100])
    refused(argv, second.name, "truncated")
    save_file({"other": torch.zeros(1)}, second)
    refused(argv, second.name, "do not belong together")
    second.write_bytes(kept)
    data = json.loads(text)
    for changed, words in (
        ([], "expected a mapping"),
        ({}, "weight_map"),
        ({"weight_map": []}, "weight_map"),
        ({"weight_map": {}}, "weight_map is empty"),
        ({"weight_map": {"a": 3}}, "takes a text"),
        ({"weight_map": {**data["weight_map"], "a": "../secret.safetensors"}}, "same folder"),
        ({"weight_map": {**data["weight_map"], "a": "/etc/passwd"}}, "same folder"),
        ({"weight_map": {**data["weight_map"], "unheard.of": first.name}}, "unheard.of"),
    ):
        index.write_text(json.dumps(changed))
        refused(argv, words)
    index.write_text("[" * 5000)
    refused(argv, index.name)
    index.unlink()
    refused(argv, "no weights in")
    refused(["convert", "maskgit", str(first), "--out", "o"], "one of 2 shards", index.name)


def vae_folder(folder: Path) -> tuple[AutoencoderKL, Path]:
    torch.manual_seed(0)
    kinds = dict(down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2)
    vae = AutoencoderKL(block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4, **kinds).eval()
    vae.save_pretrained(folder)
    return vae, folder


def test_folders_of_diffusers_in_half_precision_and_as_bin(here: Path, refused: Refused) -> None:
    vae, folder = vae_folder(here / "vae")
    settings: dict[str, Any] = {"image_size": 32, "patch": 2}
    whole = convert("diffusers-vae", folder, **settings)
    file = folder / "diffusion_pytorch_model.safetensors"
    state = load_file(file)
    file.unlink()
    refused(["convert", "diffusers-vae", "vae", "--out", "o"], "no weights in vae", "fp16.safetensors", ".bin")
    torch.save(state, folder / "diffusion_pytorch_model.bin")
    made = convert("diffusers-vae", folder, **settings)
    assert same(whole, made) and "diffusion_pytorch_model.bin" in made.report()
    (folder / "diffusion_pytorch_model.bin").unlink()
    save_file({k: v.half() for k, v in state.items()}, folder / "diffusion_pytorch_model.fp16.safetensors")
    half = convert("diffusers-vae", folder, **settings)
    assert "fp16" in half.report()
    weights, exact = half.model.state_dict(), whole.model.state_dict()
    assert all(torch.equal(weights[k], exact[k].half().float()) for k in exact)


CONFIGS: list[Any] = [
    row("list", [], "expected a mapping"),
    row("null", None, "expected a mapping"),
    row("number", 5, "expected a mapping"),
    row("another class", {"_class_name": "AutoencoderTiny"}, "AutoencoderTiny"),
    row("class is a list", {"_class_name": []}, "class_name"),
    row("channels missing", {"block_out_channels": None}, "block_out_channels"),
    row("channels text", {"block_out_channels": "8"}, "block_out_channels", "takes a list"),
    row("channels empty", {"block_out_channels": []}, "block_out_channels"),
    row("channels negative", {"block_out_channels": [8, -16]}, "at least 1"),
    row("channels 10**30", {"block_out_channels": [8, 10**30]}, "block_out_channels"),
    row("channels of 60 levels", {"block_out_channels": [8] * 60}, "block_out_channels"),
    row("types number", {"down_block_types": 5}, "down_block_types"),
    row("types of numbers", {"up_block_types": [1, 2]}, "up_block_types"),
    row("types fewer", {"up_block_types": ["UpDecoderBlock2D"]}, "differ in length"),
    row("layers text", {"layers_per_block": "1"}, "whole number"),
    row("groups 0", {"norm_num_groups": 0}, "at least 1"),
    row("attention 1", {"mid_block_add_attention": 1}, "true or false"),
    row("scaling negative", {"scaling_factor": -1}, "more than 0"),
    row("scaling text", {"scaling_factor": "a"}, "scaling_factor"),
    row("shift text", {"shift_factor": "a"}, "shift_factor"),
    row("quant differs", {"use_quant_conv": False}, "differ"),
    row("relu", {"act_fn": "relu"}, "act_fn"),
]


@pytest.fixture(scope="module")
def a_vae(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return vae_folder(tmp_path_factory.mktemp("vae") / "vae")[1]


@pytest.mark.parametrize(("changed", "words"), CONFIGS)
def test_configs_of_diffusers(changed: Any, words: list[str], a_vae: Path, here: Path, refused: Refused) -> None:
    config = json.loads((a_vae / "config.json").read_text())
    (here / "vae").mkdir()
    (here / "vae" / "diffusion_pytorch_model.safetensors").symlink_to(a_vae / "diffusion_pytorch_model.safetensors")
    whole = {**config, **changed} if isinstance(changed, dict) else changed
    (here / "vae" / "config.json").write_text(json.dumps(whole))
    refused(["convert", "diffusers-vae", "vae", "--out", "o"], *words)


@pytest.mark.parametrize("text", ["[" * 3000, '{"a": ' * 3000, "{", "", "NaN", '{"scaling_factor": NaN}'])
def test_configs_of_diffusers_that_are_no_json(text: str, a_vae: Path, here: Path, refused: Refused) -> None:
    (here / "vae").mkdir()
    (here / "vae" / "diffusion_pytorch_model.safetensors").symlink_to(a_vae / "diffusion_pytorch_model.safetensors")
    (here / "vae" / "config.json").write_text(text)
    refused(["convert", "diffusers-vae", "vae", "--out", "o"], "config.json")


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
    row("missing", lambda f: None, "no such checkpoint file"),
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


# -- settings and output -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Saved networks and official files that the rows name."""
    folder = tmp_path_factory.mktemp("sources")
    tiny_kl().save_pretrained(folder / "kl")
    tiny_generator().save_pretrained(folder / "generator")
    saved(official(), folder / "maskgit.pt")
    files = {name: str(harness.root() / f"{FORMATS[name][0]}.safetensors") for name in ("hita", "kl16", "mar")}
    return {**files, **{n: str(folder / n) for n in ("kl", "generator")}, "maskgit": str(folder / "maskgit.pt")}


SETTINGS: list[Any] = [
    row("heads true", "maskgit $maskgit trunk.heads=true", "trunk.heads", "whole number"),
    row("heads text", "maskgit $maskgit trunk.heads=a", "trunk.heads"),
    row("heads 0", "maskgit $maskgit trunk.heads=0", "heads"),
    row("heads 3", "maskgit $maskgit trunk.heads=3", "heads"),
    row("heads -4", "maskgit $maskgit trunk.heads=-4", "heads"),
    row("heads 10**30", f"maskgit $maskgit trunk.heads={10**30}", "heads"),
    row("heads list", "maskgit $maskgit trunk.heads=[4]", "trunk.heads"),
    row("heads null", "maskgit $maskgit trunk.heads=null", "trunk.heads"),
    row("heads twice", "maskgit $maskgit trunk.heads=2 trunk.heads=4", "twice"),
    row("dropout text", "maskgit $maskgit trunk.heads=4 trunk.dropout=a", "trunk.dropout"),
    row("dropout nan", "maskgit $maskgit trunk.heads=4 trunk.dropout=.nan", "trunk.dropout"),
    row("unknown", "maskgit $maskgit trunk.head=4", "trunk.head", "heads"),
    row("unknown section", "maskgit $maskgit trunks.heads=4", "trunk"),
    row("trunk a number", "maskgit $maskgit trunk=5", "trunk"),
    row("classes a number", "maskgit $maskgit trunk.heads=4 classes=5", "classes"),
    row("tokens a list", "maskgit $maskgit trunk.heads=4 tokens=[1]", "tokens"),
    row("head a text", "maskgit $maskgit trunk.heads=4 head=a", "head"),
    row("head type a list", "maskgit $maskgit trunk.heads=4 head.type=[a]", "head"),
    row("trunk type a list", "maskgit $maskgit trunk.type=[bert]", "trunk"),
    row("side 0", "maskgit $maskgit trunk.heads=4 side=0", "side"),
    row("side -8", "maskgit $maskgit trunk.heads=4 side=-8", "side"),
    row("side text", "maskgit $maskgit trunk.heads=4 side=a", "side"),
    row("side true", "maskgit $maskgit trunk.heads=4 side=true", "side"),
    row("side 10**9", f"maskgit $maskgit trunk.heads=4 side={10**9}", "side"),
    row("no equals", "maskgit $maskgit trunk.heads", "key.sub=value"),
    row("empty setting", ["maskgit", "$maskgit", ""], "empty"),
    row("empty file", ["maskgit", ""], "empty"),
    row("empty tokenizer", ["maskgit", "$maskgit", "trunk.heads=4", "--tokenizer", ""], "empty"),
    row("empty recipe", ["maskgit", "$maskgit", "trunk.heads=4", "--recipe", ""], "empty"),
    row("unknown format", "maskgitt $maskgit", "maskgit"),
    row("long file", ["maskgit", "a" * 5000], "too long"),
    row("null in file", ["maskgit", "a\0b"], "null"),
    row("heads true of hita", "hita $hita heads=true", "heads"),
    row("heads text of hita", "hita $hita heads=a", "heads"),
    row("dropout text of hita", "hita $hita heads=2 dropout=a", "dropout"),
    row("dropout 5 of hita", "hita $hita heads=2 dropout=5", "dropout"),
    row("shift -1 of hita", "hita $hita heads=2 shift=-1", "shift"),
    row("image size text", "kl16 $kl16 image_size=a", "image_size"),
    row("image size -32", "kl16 $kl16 image_size=-32", "image_size"),
    row("image size 10**30", f"kl16 $kl16 image_size={10**30}", "image_size"),
    row("groups text", "kl16 $kl16 norm_groups=a", "norm_groups"),
    row("groups 0", "kl16 $kl16 norm_groups=0", "norm_groups"),
    row("scale text", "kl16 $kl16 scale=a", "scale"),
    row("scale nan", "kl16 $kl16 scale=.nan", "scale"),
    row("scale 0", "kl16 $kl16 scale=0", "scale"),
    row("patch list", "kl16 $kl16 patch=[2]", "patch"),
    row("mar scale text", "mar $mar tokens.scale=a", "scale"),
    row("mar scale nan", "mar $mar tokens.scale=.nan", "scale"),
    row("raw without one", "maskgit $maskgit trunk.heads=4 --raw", "--raw"),
    row("recipe without tokenizer", "maskgit $maskgit trunk.heads=4 --recipe autonat-l-imagenet256", "--tokenizer"),
    row("tokenizer for a tokenizer", "kl16 $kl16 --tokenizer $kl", "tokenizer itself"),
    row("tokenizer of another kind", "maskgit $maskgit trunk.heads=4 --tokenizer $kl", "tokens of kind"),
    row("quantize levels 10**10", "quantize $kl levels=10000000000", "levels", "at most"),
    row("quantize levels 1", "quantize $kl levels=1", "levels"),
    row("quantize levels -5", "quantize $kl levels=-5", "levels"),
    row("quantize levels text", "quantize $kl levels=a", "levels"),
    row("quantize levels 64.0", "quantize $kl levels=64.0", "levels"),
    row("quantize levels true", "quantize $kl levels=true", "levels"),
    row("quantize low nan", "quantize $kl low=.nan", "low"),
    row("quantize low inf", "quantize $kl low=-.inf", "low"),
    row("quantize low above high", "quantize $kl low=5 high=-5", "range"),
    row("quantize span 0", "quantize $kl span=0", "span"),
    row("quantize form", "quantize $kl form=best", "form", "clean"),
    row("quantize order number", "quantize $kl channel_order=3", "channel_order"),
    row("quantize order text", "quantize $kl channel_order=ascending", "channel_order"),
    row("quantize order short", "quantize $kl channel_order=[0,1]", "permutation"),
    row("quantize order texts", "quantize $kl channel_order=[a,b,c,d]", "channel_order"),
    row("quantize unknown", "quantize $kl level=64", "levels"),
    row("quantize kl", "quantize $kl kl={}", "kl"),
    row("quantize a generator", "quantize $generator levels=8", "tokenizer"),
    row("quantize raw", "quantize $kl --raw", "--raw"),
    row("quantize image size 0", "quantize $kl image_size=0", "image_size"),
    row("shuffle blocks -1", "shuffle $generator blocks=-1", "blocks"),
    row("shuffle blocks text", "shuffle $generator blocks=a", "blocks"),
    row("shuffle blocks 10**9", "shuffle $generator blocks=1000000000", "blocks"),
    row("shuffle side 0", "shuffle $generator side=0", "side"),
    row("shuffle side -2", "shuffle $generator side=-2", "side"),
    row("shuffle side 3", "shuffle $generator side=3", "3"),
    row("shuffle side text", "shuffle $generator side=a", "side"),
    row("shuffle side 2.0", "shuffle $generator side=2.0", "side"),
    row("shuffle side 10**30", f"shuffle $generator side={10**30}", "side"),
    row("shuffle unit", "shuffle $generator unit=tokens", "unit", "token"),
    row("shuffle unit number", "shuffle $generator unit=5", "unit"),
    row("shuffle unknown", "shuffle $generator size=2", "side"),
    row("shuffle of a tokenizer", "shuffle $kl", "one stage"),
    row("shuffle of nothing", "shuffle nowhere", "nowhere"),
    row("shuffle of empty", ["shuffle", ""], "empty"),
    row("pipeline alone", "pipeline $generator", "--tokenizer"),
    row("pipeline of a file", "pipeline $maskgit --tokenizer $kl", "config.json"),
    row("pipeline settings", "pipeline $generator side=3 --tokenizer $kl", "no settings"),
    row("pipeline of a tokenizer", "pipeline $kl --tokenizer $kl", "tokenizer itself"),
]  # fmt: skip


@pytest.mark.parametrize(("argv", "words"), SETTINGS)
def test_settings(argv: str | list[str], words: list[str], sources: dict[str, str], refused: Refused) -> None:
    parts = argv.split() if isinstance(argv, str) else argv
    filled = [sources.get(part[1:], part) if part.startswith("$") else part for part in parts]
    refused(["convert", *filled, "--out", "o"], *words)


@pytest.mark.parametrize(
    "text", ["[]", "null", "5", '"a"', "[" * 3000, "{", '{"_class_name": 5}', '{"_class_name": []}', "{}"]
)
@pytest.mark.parametrize("kind", ["pipeline", "shuffle"])
def test_saved_generators_with_another_config(
    kind: str, text: str, copied: Copied, here: Path, refused: Refused, sources: dict[str, str]
) -> None:
    (here / "g").mkdir()
    (here / "g" / "config.json").write_text(text)
    more = ["--tokenizer", sources["kl"]] if kind == "pipeline" else []
    refused(["convert", kind, "g", *more, "--out", "o"], "config.json")


def test_output_folders_are_checked_before_the_work(
    here: Path, refused: Refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    def reads(*args: object, **kwargs: object) -> None:
        pytest.fail("the file was read first")

    saved(official(), here / "m.pt")
    argv = ["convert", "maskgit", "m.pt", "trunk.heads=4", "--out"]
    (here / "used").mkdir()
    (here / "used" / "mine.txt").write_text("mine")
    (here / "link").symlink_to("nowhere")
    with monkeypatch.context() as patch:
        patch.setattr("mgen.utils.weights.Checkpoint.__init__", reads)
        refused([*argv, "m.pt"], "m.pt is a file")
        refused([*argv, "m.pt/below"], "is a file")
        refused([*argv, "used"], "no converted model")
        refused([*argv, "link"], "broken link")
        refused([*argv, "."], "working directory")
        refused([*argv, "a" * 300], "too long")
        refused([*argv, "b/" * 3000 + "c"], "too long")
        refused([*argv, ""], "empty")
        refused([*argv, "/proc/mgen"], "/proc")
        refused([*argv, "/dev/null"], "/dev/null")
        refused([*argv, "x\0y"], "null")


def test_a_conversion_replaces_itself_and_nothing_else(here: Path, refused: Refused, capsys: Any) -> None:
    saved(official(), here / "m.pt")
    argv = ["convert", "maskgit", "m.pt", "trunk.heads=4", "--out"]
    (here / "real").mkdir()
    (here / "link").symlink_to("real")
    for _ in range(2):  # into an empty folder behind a link, then in the place of the first
        assert main([*argv, "link"]) == 0
    assert (here / "link").is_symlink() and (here / "real" / "conversion.txt").is_file()
    assert sorted(p.name for p in here.iterdir()) == ["link", "m.pt", "real"]
    (here / "real" / "notes.txt").write_text("mine")
    refused([*argv, "real"], "notes.txt")
    (here / "real" / "notes.txt").unlink()
    (here / "m.pt").rename(here / "real" / "generator")
    argv[2] = "real/generator"
    refused([*argv, "real"], "lies in --out")


def test_functions_of_python_say_the_same(here: Path, raises: Raises) -> None:
    file = saved(official(), here / "m.pt")
    raises(lambda: convert("maskgit", file, trunk=5), "trunk")
    raises(lambda: convert("maskgit", file, trunk={"heads": "4"}), "heads")
    raises(lambda: convert("maskgit", file, trunk={3: 4}), "trunk")
    raises(lambda: convert("maskgit", file, side=object()), "side")
    raises(lambda: convert("maskgit", file, classes=object()), "classes")
    raises(lambda: convert("maskgit", file, head=torch.zeros(2)), "head")
    raises(lambda: convert(5, file), "format")  # type: ignore[arg-type]
    raises(lambda: convert("maskgit", None), "")  # type: ignore[arg-type]
    raises(lambda: read_state_dict(here / "nowhere"), "no such checkpoint file")


def test_what_a_bomb_would_need_is_estimated_first(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mgen.utils.limits.available_memory", lambda device="cpu": 1000)
    with pytest.raises(MgenError, match="of memory"):
        convert("maskgit", saved(official(), here / "m.pt"), **HEADS)
