"""mgen convert: wrappers and layouts that it reads; settings and output folders that it refuses."""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL
from safetensors.torch import load_file, save_file

from mgen.cli import main
from mgen.convert import convert
from mgen.utils.errors import MgenError
from mgen.utils.weights import read_state_dict
from tests.golden import harness
from tests.helpers import tiny_generator, tiny_kl
from tests.system.boundaries.conversion import FORMATS, HEADS, State, converted, official, same, saved
from tests.system.boundaries.harness import Copied, Raises, Refused, row

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
    row("class names without a tokenizer", "maskgit $maskgit trunk.heads=4 --class-names imagenet", "--tokenizer"),
    row("class names of a tokenizer", "kl16 $kl16 --class-names none", "--tokenizer"),
    row("class names missing", "maskgit $maskgit --tokenizer $kl --class-names nowhere.txt", "nowhere.txt"),
    row("class names a folder", "maskgit $maskgit --tokenizer $kl --class-names $generator", "folder"),
    row("class names no text", "maskgit $maskgit --tokenizer $kl --class-names $maskgit", "UTF-8"),
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


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a\nb\n", ("2 names", "3 classes")),
        ("a\n\nc\n", ("line 2 is empty",)),
        ("", ("line 1 is empty",)),
        ("a\nb\0\nc\n", ("null",)),
        ("a\n" * 2**20, ("larger than",)),
    ],
)
def test_files_of_class_names(text: str, words: list[str], here: Path, refused: Refused) -> None:
    (here / "names.txt").write_text(text)
    argv = ["convert", "pipeline", "@pipeline/transformer", "--tokenizer", "@pipeline", "--out", "o"]
    refused([*argv, "--class-names", "names.txt"], *words)
