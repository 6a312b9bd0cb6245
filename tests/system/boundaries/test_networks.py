"""Configurations of networks: every setting of every part, in Python; sizes beyond the machine."""

import dataclasses
from collections.abc import Callable, Iterator
from types import NoneType
from typing import Any, get_args, get_type_hints

import pytest

import mgen
from mgen import create_model
from mgen.evaluation.cnn import ImageClassifier
from mgen.generators import Cascade, Generator, LossOptions, build_model
from mgen.generators.build import WindowsConfig
from mgen.generators.classes import ClassesConfig
from mgen.generators.embedder import EMBEDDERS
from mgen.generators.presets import complete, model_config
from mgen.generators.trunk import TRUNKS
from mgen.generators.trunks.two_stage import TwoStageMAEConfig
from mgen.heads import HEADS, ChainSettings, ChannelSettings, DrawSettings, check_draw
from mgen.tokenizers import (
    DCAE,
    FSQ,
    VQGAN,
    HitaTokenizer,
    KLTokenizer,
    LDeTok,
    LlamaGenVQ,
    QuantizedKL,
    TiTok,
    TiTokKL,
)
from mgen.tokens import LevelSpec, TokenSpec
from mgen.utils.errors import MgenError
from mgen.utils.schema import build
from tests.helpers import DC_AE, HITA, KL, LDETOK, TITOK, TOKENIZER, tiny_config, tiny_tokens

from tests.system.boundaries.harness import Raises, row  # isort: skip

SETTINGS: dict[str, type] = {
    **{f"trunk {name}": TRUNKS.get(name).Config for name in TRUNKS.names()},
    **{f"head {name}": HEADS.get(name).Config for name in HEADS.names()},
    "embedder lookup": EMBEDDERS.get("lookup").Config,
    "trunk mae-two-stage": TwoStageMAEConfig,
    "classes": ClassesConfig,
    "windows": WindowsConfig,
    "tokens": TokenSpec,
    "levels": LevelSpec,
    "loss": LossOptions,
    "draw of ids": DrawSettings,
    "draw by a chain": ChainSettings,
    "draw of channels": ChannelSettings,
}
GIVEN = {TokenSpec: {"kind": "multi-index", "length": 4, "vocab_size": 4}}
WRONG: tuple[Any, ...] = (
    "32",
    "",
    None,
    [[1]],
    {"a": 1},
    -3,
    1.5,
    10**30,
    float("inf"),
    float("nan"),
    True,
    1,
    object(),
)
# What a type takes of WRONG.
RIGHT: dict[object, tuple[object, ...]] = {
    int: (1,),
    float: (1, 1.5),
    bool: (True,),
    NoneType: (None,),
}


def wrong_values() -> Iterator[Any]:
    """Every field of every schema, with every value of WRONG that is of another type, or of its type and never allowed."""
    for name, cls in SETTINGS.items():
        hints = get_type_hints(cls)
        for field in dataclasses.fields(cls):
            types = set(get_args(hints[field.name])) & {*RIGHT} or {hints[field.name]}
            taken = [value for kind in types for value in RIGHT.get(kind, ())]
            for i, value in enumerate(WRONG):
                if not any(value is v or (type(value) is type(v) and value == v) for v in taken):
                    yield pytest.param(cls, field.name, value, id=f"{name} {field.name} {i}")


@pytest.mark.parametrize(("cls", "name", "value"), wrong_values())
def test_a_setting_of_another_type_is_told(cls: type, name: str, value: object) -> None:
    """In Python and from a file, with the name of the field; numbers out of range too, where they can be none of its values."""
    if value == -3 and name in ("low", "high"):
        return
    given = {**GIVEN.get(cls, {}), name: value}
    with pytest.raises(MgenError, match=name):
        cls(**given)
    with pytest.raises(MgenError, match=rf"a/config\.json: .*{name}|a/config\.json: {name}"):
        build(cls, given, "a/config.json: ")


# -- rules of a part, and between parts ------------------------------------------------------------------------------------


def model(trunk: str = "uvit", **sections: Any) -> Callable[[], object]:
    return lambda: build_model(tiny_config(trunk, **sections))


def sections(**changed: Any) -> Callable[[], object]:
    return lambda: build_model({**tiny_config("uvit"), **changed})


def preset(name: str, **sections: Any) -> Callable[[], object]:
    return lambda: create_model(name, **sections)


IDS, VECTORS = tiny_tokens(), tiny_tokens("vector", channels=3)
MULTI = tiny_tokens("multi-index", channels=3)
CASCADE = model_config("fmnist-himar")

RULES = [
    row("uvit odd depth", model(depth=3), "model.trunk", "depth is 3", "even"),
    row("uvit heads", model(heads=3), "model.trunk", "heads 3 does not divide dim 32"),
    row("uvit heads more than dim", model(heads=64), "heads 64 does not divide"),
    row("bert heads", model("bert", heads=3), "heads 3 does not divide dim 32"),
    row("adaln heads", model("adaln", heads=64), "heads is 64"),
    row("enat heads", model("enat", heads=5), "heads 5 does not divide"),
    row("mae encoder heads", model("mae", tokens=VECTORS, encoder_heads=3), "encoder_heads 3", "encoder_dim 32"),
    row("mae decoder heads", model("mae", tokens=VECTORS, decoder_heads=3), "decoder_heads 3", "decoder_dim 32"),
    row("mae without prefix", model("mae", tokens=VECTORS, prefix_length=0), "model.trunk.prefix_length", "at least 1"),
    row("mage decoder heads", model("mage", decoder_heads=3), "decoder_heads 3"),
    row("mage drops all", model("mage", drop=1.0), "model.trunk.drop", "less than 1"),
    row("causal heads", model("causal", heads=3), "heads 3 does not divide"),
    row("causal odd heads", model("causal", heads=16), "heads of width 2", "multiple of 4"),
    row("causal base", model("causal", base=0.5), "model.trunk.base", "at least 1"),
    row("permuted heads", model("permuted", heads=3), "heads 3 does not divide dim 32"),
    row("permuted dropout", model("permuted", attn_dropout=1.0), "model.trunk.attn_dropout", "less than 1"),
    row("trunk without type", sections(trunk={"dim": 32}), "model.trunk", "`type`", "uvit"),
    row("trunk of a number", sections(trunk=5), "model.trunk", "mapping"),
    row("trunk null", sections(trunk=None), "model.trunk", "mapping"),
    row("trunk type list", sections(trunk={"type": ["uvit"]}), "trunk type", "uvit"),
    row("trunk type misspelled", sections(trunk={"type": "uvti"}), "did you mean 'uvit'"),
    row("trunk unknown key", model(widht=3), "model.trunk.widht", "Valid"),
    row("unknown section", sections(tronk={}), "model.tronk", "did you mean 'trunk'"),
    row("unknown section of no text", sections(**{"\x1b[1m": {}}), "unknown key"),
    row("no head", lambda: build_model({k: v for k, v in tiny_config("uvit").items() if k != "head"}), "model.head"),
    row("empty model", lambda: build_model({}), "model.head"),
    row("model of a list", lambda: build_model([1]), "expected a mapping"),  # type: ignore[arg-type]
    row("head of a text", sections(head="categorical"), "model.head", "mapping"),
    row("head null", sections(head=None), "model.head", "mapping"),
    row("head of vectors", sections(head={"type": "diffusion"}), "draws tokens of kind vector"),
    row("head of channels", sections(head={"type": "channels"}), "draws tokens of kind multi-index"),
    row("channel head heads", model("mae", tokens=MULTI, head={"heads": 3}), "heads 3 does not divide width 32"),
    row("channel head order", model("mae", tokens=MULTI, head={"order": [0, 1, 1]}), "head.order"),
    row("channel head order short", model("mae", tokens=MULTI, head={"order": [0]}), "head.order"),
    row("channel head order text", model("mae", tokens=MULTI, head={"order": "012"}), "model.head.order", "list"),
    row("joint head width", preset("fmnist-himar", second={"head": {"width": 30}}), "multiple of 4"),
    row("joint head heads", preset("fmnist-himar", second={"head": {"heads": 5}}), "heads 5 does not divide width 128"),
    row("joint head without layers", preset("fmnist-himar", second={"head": {"depth": 0}}), "depth", "at least 1"),
    row("diffusion steps", model("mae", tokens=VECTORS, head={"train_steps": 10**9}), "train_steps", "at most"),
    row("embedder of vectors", model(embedder={"type": "projection"}), "embedder 'projection'", "'index'"),
    row("embedder of a text", model(embedder="lookup"), "model.embedder", "mapping"),  # type: ignore[arg-type]
    row("dequantize without levels", model("mae", tokens={**MULTI, "levels": None}), "tokens.levels is missing"),
    row("tokens of a list", sections(tokens=[1]), "model.tokens", "mapping"),
    row("tokens without kind", sections(tokens={}), "model.tokens.kind"),
    row("tokens unknown kind", sections(tokens={**IDS, "kind": "indx"}), "did you mean 'index'"),
    row("tokens side -8", sections(tokens={**IDS, "grid": [-8, -8], "length": 64}), "model.tokens.grid.0", "-8"),
    row("tokens side text", sections(tokens={**IDS, "grid": ["8", "8"]}), "model.tokens.grid.0", "whole number"),
    row("tokens grid of one", sections(tokens={**IDS, "grid": [16]}), "model.tokens.grid"),
    row("tokens grid of three", sections(tokens={**IDS, "grid": [4, 4, 1]}), "model.tokens.grid", "2 values"),
    row("tokens grid and length", sections(tokens={**IDS, "length": 17}), "length is 17", "grid [4, 4]"),
    row("tokens without length", sections(tokens={"kind": "index", "vocab_size": 16}), "model.tokens.length"),
    row("tokens without ids", sections(tokens={**IDS, "vocab_size": None}), "vocab_size is None"),
    row("tokens of ids with channels", sections(tokens={**IDS, "channels": 3}), "channels is 3"),
    row("vectors with ids", model("mae", tokens={**VECTORS, "vocab_size": 3}), "vocab_size is 3"),
    row("vectors scale 0", model("mae", tokens={**VECTORS, "scale": 0}), "model.tokens.scale", "more than 0"),
    row("vectors scale nan", model("mae", tokens={**VECTORS, "scale": float("nan")}), "model.tokens.scale", "finite"),
    row("vectors scale text", model("mae", tokens={**VECTORS, "scale": "1"}), "model.tokens.scale", "number"),
    row("global tokens more than all", sections(tokens={**IDS, "global_tokens": 99}), "global_tokens 99"),
    row("levels low above high", model("mae", tokens={**MULTI, "levels": {"low": 5.0, "high": -5.0}}), "range [5, -5]"),
    row("levels span", model("mae", tokens={**MULTI, "levels": {"span": 0}}), "model.tokens.levels.span"),
    row("levels form", model("mae", tokens={**MULTI, "levels": {"form": "cleen"}}), "did you mean 'clean'"),
    row("levels of a list", model("mae", tokens={**MULTI, "levels": [1]}), "model.tokens.levels", "mapping"),
    row("one level", model("mae", tokens={**MULTI, "vocab_size": 1}), "at least 2 levels"),
    row("classes of a number", sections(classes=5), "model.classes", "mapping"),
    row("classes false", sections(classes=False), "model.classes", "mapping"),
    row("classes row", model(classes={"count": 0, "rows": 3, "row": 3}), "row is 3 of 3"),
    row("classes shared with vectors", model("mae", tokens=VECTORS, classes={"table": "shared"}), "classes.table"),
    row("windows of a number", sections(windows=2), "model.windows", "mapping"),
    row("windows side", model(windows={"side": 3}), "divides the token grid of 4×4"),
    row("windows side 0", model(windows={"side": 0}), "model.windows.side", "at least 1"),
    row("windows blocks", model(windows={"side": 2, "blocks": -1}), "model.windows.blocks"),
    row(
        "windows without grid",
        model(tokens={**IDS, "grid": None}, windows={"side": 2}),
        "windows join tokens of a grid",
    ),
    row("windows of channels", model("mae", tokens=MULTI, windows={"side": 2}), "quantized vectors"),
    row("windows and width", model(dim=18, windows={"side": 2}), "not a multiple"),
    row("cascade of another trunk", preset("fmnist-himar", trunk={"type": "mae"}), "mae-two-stage"),
    row("cascade heads", preset("fmnist-himar", trunk={"heads": 3}), "model.trunk", "heads 3"),
    row("cascade decoder heads", preset("fmnist-himar", trunk={"decoder_heads": 3}), "decoder_heads 3"),
    row("cascade first of a list", lambda: build_model({**CASCADE, "first": [1]}), "model.first", "mapping"),
    row(
        "cascade without second",
        lambda: build_model({k: v for k, v in CASCADE.items() if k != "second"}),
        "model.second",
    ),
    row("cascade unknown key", lambda: build_model({**CASCADE, "third": {}}), "model.third"),
    row(
        "cascade tokens", preset("fmnist-himar", first={"tokens": {"length": 15}}), "model.first.tokens", "length is 15"
    ),
    row("config of a number", lambda: Generator.from_config(5), "mapping"),  # type: ignore[arg-type]
    row("config dim text", lambda: Generator.from_config(tiny_config("uvit", dim="32")), "'trunk.dim'", "whole number"),
    row("config of a cascade", lambda: Generator.from_config(CASCADE), "unknown key"),
    row("config of a generator", lambda: Cascade.from_config(tiny_config("uvit")), "unknown key"),
    row("preset misspelled", lambda: create_model("fmnist-maskgti"), "did you mean 'fmnist-maskgit'"),
    row("preset number", lambda: create_model(5), "model is 5", "name of a model"),  # type: ignore[arg-type]
    row("preset file missing", lambda: create_model("nowhere.yaml"), "no such file"),
    row("preset section number", preset("fmnist-maskgit", trunk=5), "model.trunk", "mapping"),
    row("preset head type number", preset("fmnist-maskgit", head={"type": 5}), "head type", "categorical"),
    row("complete", lambda: complete({**tiny_config("uvit"), "head": {"type": "x"}}), "head type"),
    row("draw of a list", lambda: check_draw([1]), "mapping"),  # type: ignore[arg-type]
    row("draw mixed", lambda: check_draw({"chain": "ddim", "top_k": 3}), "mixes settings"),
    row("draw one step", lambda: check_draw({"chain": "ddim", "steps": 1}), "at least 2"),
    row("draw top_p 0", lambda: check_draw({"top_p": 0.0}), "head.top_p", "more than 0"),
    row("draw top_p 2", lambda: check_draw({"top_p": 2}), "head.top_p", "at most 1"),
    row("draw top_k 0", lambda: check_draw({"top_k": 0}), "head.top_k", "at least 1"),
    row("draw clip", lambda: check_draw({"clip": -1.0}), "head.clip", "more than 0"),
]


@pytest.mark.parametrize(("make", "words"), RULES)
def test_a_rule_that_is_broken_is_told(raises: Raises, make: Callable[[], object], words: list[str]) -> None:
    raises(make, *words)


# -- tokenizers and the classifier -----------------------------------------------------------------------------------------

NETWORKS: dict[type, dict[str, Any]] = {
    VQGAN: {**TOKENIZER, "latent": 4, "vocab_size": 64},
    KLTokenizer: {**KL, "scale": 1.0},
    LlamaGenVQ: {
        **{k: KL[k] for k in ("image_size", "in_channels", "channels", "layers", "norm_groups")},
        "z_channels": 8,
    },
    HitaTokenizer: HITA,
    TiTok: {**TITOK, "vocab_size": 16},
    TiTokKL: TITOK,
    DCAE: DC_AE,
    LDeTok: LDETOK,
    QuantizedKL: {"kl": {**KL, "scale": 1.0}},
    ImageClassifier: {"widths": (4, 8), "features": 4},
}


def arguments() -> Iterator[Any]:
    """Every argument of every network, of another type."""
    for cls, given in NETWORKS.items():
        hints = get_type_hints(cls.__init__)
        for name, hint in hints.items():
            if name == "return":
                continue
            for i, value in enumerate(("32", [["a"]], {"a": 1}, -1, 10**30, float("inf"), object())):
                free = (name == "kl" and i == 2) or (
                    i == 3 and name in ("low", "high", "shift") and cls is not HitaTokenizer
                )
                if not free or (name == "kl"):
                    yield pytest.param(cls, {**given, name: value}, name, id=f"{cls.__name__} {name} {i}")
            if NoneType not in get_args(hint):
                yield pytest.param(cls, {**given, name: None}, name, id=f"{cls.__name__} {name} null")


@pytest.mark.parametrize(("cls", "given", "name"), arguments())
def test_an_argument_of_another_type_is_told(cls: Any, given: dict[str, Any], name: str) -> None:
    with pytest.raises(MgenError, match=f"'{name}|{name}|kl"):
        cls(**given)


def network(cls: Any, **changed: Any) -> Callable[[], object]:
    return lambda: cls(**{**NETWORKS[cls], **changed})


ARGUMENTS = [
    row("no name", lambda: VQGAN(32), "by name"),  # type: ignore[call-arg,misc]
    row("unknown", network(VQGAN, chanels=3), "unknown key 'chanels'", "channels"),
    row("multipliers empty", network(VQGAN, multipliers=[]), "multipliers", "at least 1"),
    row("channels empty", network(KLTokenizer, channels=[]), "channels", "at least 1"),
    row("widths empty", network(ImageClassifier, widths=()), "widths", "at least 1"),
    row("vqgan norm groups", network(VQGAN, norm_groups=3), "norm_groups is 3", "divide"),
    row("kl norm groups", network(KLTokenizer, norm_groups=3), "norm_groups is 3", "divide"),
    row("kl no norm groups", network(KLTokenizer, norm_groups=0), "norm_groups", "at least 1"),
    row("kl stem", network(KLTokenizer, stem=6), "norm_groups is 4", "6 is one"),
    row("llamagen norm groups", network(LlamaGenVQ, norm_groups=3), "norm_groups is 3"),
    row("hita norm groups", network(HitaTokenizer, norm_groups=3), "norm_groups is 3"),
    row("vqgan image size", network(VQGAN, image_size=30), "image_size 30", "multiple of 4"),
    row("kl image size", network(KLTokenizer, image_size=30), "image_size 30", "multiple of 4"),
    row("kl patch", network(KLTokenizer, patch=3), "multiple of 12", "patch 3"),
    row("llamagen image size", network(LlamaGenVQ, image_size=30), "multiple of 4"),
    row("hita image size", network(HitaTokenizer, image_size=30), "multiple of 4"),
    row("image size of a million", network(VQGAN, image_size=10**6), "image_size 1000000", "at most 1024"),
    row("kl attention beyond", network(KLTokenizer, encoder_attention=[9]), "level 9", "3 levels"),
    row("kl z_channels", network(KLTokenizer, z_channels=8, quant_conv=False), "quant_conv"),
    row("vqgan shortcut", network(VQGAN, shortcut="imput"), "did you mean 'input'"),
    row("fsq two levels", network(VQGAN, fsq_levels=[2, 5]), "fsq_levels.0", "at least 3"),
    row("fsq no levels", network(VQGAN, fsq_levels=[]), "fsq_levels"),
    row("fsq too many ids", network(VQGAN, fsq_levels=[4096] * 8), "FSQ levels", "at most"),
    row("fsq module", lambda: FSQ(levels=(2,)), "levels.0", "at least 3"),
    row("ldetok image size", network(LDeTok, image_size=30), "image_size is 30", "multiple of patch 4"),
    row("ldetok heads", network(LDeTok, decoder_heads=3), "decoder_heads 3 does not divide decoder_dim 16"),
    row("ldetok head width", network(LDeTok, encoder_heads=8), "width 2", "multiple of 4"),
    row("ldetok mean alone", network(LDeTok, latents_std=None), "latents_mean and latents_std belong together"),
    row("ldetok channels", network(LDeTok, latents_std=[1.0]), "latents_std has 1 numbers", "expected 4"),
    row("ldetok std of zero", network(LDeTok, latents_std=[0.0] * 4), "latents_std", "more than 0"),
    row("hita heads", network(HitaTokenizer, heads=3), "heads 3 does not divide dim 16"),
    row("hita inner", network(HitaTokenizer, inner=5), "heads 2 does not divide inner 5"),
    row("titok encoder heads", network(TiTok, encoder_heads=3), "encoder_heads 3 does not divide encoder_dim 16"),
    row("titok decoder heads", network(TiTokKL, decoder_heads=3), "decoder_heads 3 does not divide decoder_dim 16"),
    row("titok patch", network(TiTok, patch=5), "image_size 32", "multiple of patch 5"),
    row("titok decoder patch", network(TiTok, decoder_patch=5), "multiple of decoder_patch 5"),
    row(
        "titok pixel decoder",
        network(TiTok, pixel_decoder={"norm_groups": 4}),
        "decoder_patch is 8",
        "5 levels",
        "16 pixels",
    ),
    row("hita shift", network(HitaTokenizer, shift=7), "shift is 7", "0 to 6"),
    row("hita vision loss", network(HitaTokenizer, vision_loss=True), "vision_loss"),
    row("bridge without scale", network(QuantizedKL, kl=KL | {"scale": None}), "no scale"),
    row("bridge of bad kl", network(QuantizedKL, kl={**KL, "patch": 0}), "kl: 'patch' is 0"),
    row("bridge of misspelled kl", network(QuantizedKL, kl={"chanels": (8,)}), "kl.chanels"),
    row("bridge range", network(QuantizedKL, low=6.0), "range [6, 5]"),
    row("bridge levels", network(QuantizedKL, levels=10**10), "levels", "at most 65536"),
    row("bridge one level", network(QuantizedKL, levels=1), "levels", "at least 2"),
    row("bridge order", network(QuantizedKL, channel_order=[0, 1, 1, 2]), "permutation"),
    row("cnn too small", network(ImageClassifier, image_size=1), "image_size 1 is too small"),
]


@pytest.mark.parametrize(("make", "words"), ARGUMENTS)
def test_a_rule_of_arguments_that_is_broken_is_told(
    raises: Raises, make: Callable[[], object], words: list[str]
) -> None:
    raises(make, *words)


# -- sizes beyond the machine ----------------------------------------------------------------------------------------------

SIZES = [
    row("dim 10**10", preset("fmnist-maskgit", trunk={"dim": 10**10}), "model.trunk.dim", "at most 1048576"),
    row("depth 10**6", preset("fmnist-maskgit", trunk={"depth": 10**6}), "model.trunk.depth", "at most 1000"),
    row("length 10**9", sections(tokens={**IDS, "length": 10**9, "grid": None}), "model.tokens.length", "at most"),
    row("uvit", preset("maskgit-r-l", trunk={"dim": 2**19}), "the weights of this model", "GB of memory", "smaller"),
    row("uvit deep and wide", preset("maskgit-r-l", trunk={"dim": 2**14, "depth": 1000}), "GB of memory"),
    row("bert", preset("maskgit-imagenet256", trunk={"dim": 2**18}), "GB of memory"),
    row("bert hidden", preset("maskgit-imagenet256", trunk={"hidden": 2**20, "dim": 2**14}), "GB of memory"),
    row("adaln", preset("halton-base", trunk={"dim": 2**20}), "GB of memory"),
    row("enat", preset("enat-l", trunk={"dim": 2**20}), "GB of memory"),
    row("causal", preset("llamagen-b", trunk={"dim": 12 * 2**14}), "GB of memory"),
    row("mae", preset("mar-b", trunk={"decoder_dim": 12 * 2**14}), "GB of memory"),
    row("mage", preset("mage-b", trunk={"encoder_dim": 12 * 2**14}), "GB of memory"),
    row("two stages", preset("himar-b", trunk={"dim": 12 * 2**14}), "GB of memory"),
    row(
        "positions", sections(tokens={**IDS, "length": 2**20, "grid": None}, trunk={"type": "uvit", "dim": 2**16}), "GB"
    ),
    row("ids", preset("fmnist-maskgit", tokens={"vocab_size": 2**20}, trunk={"dim": 6 * 2**13}), "GB of memory"),
    row("classes", preset("fmnist-maskgit", classes={"count": 2**20}, trunk={"dim": 6 * 2**13}), "GB of memory"),
    row("diffusion head", preset("mar-b", head={"width": 2**20}), "GB of memory"),
    row("joint head", preset("himar-b", second={"head": {"width": 2**18}}), "GB of memory"),
    row("channel head", preset("tokenbridge-b", head={"width": 2**19}), "GB of memory"),
    row("channel head levels", preset("tokenbridge-b", tokens={"vocab_size": 2**20}), "GB of memory"),
    row("windows", preset("mar-b", windows={"side": 2, "blocks": 1000}, trunk={"encoder_dim": 12288}), "GB of memory"),
    row("vqgan", network(VQGAN, channels=2**20), "the weights of this VQGAN", "GB of memory"),
    row("vqgan codes", network(VQGAN, latent=2**20, vocab_size=2**20), "GB of memory"),
    row("kl", network(KLTokenizer, channels=(2**14, 2**15, 2**15)), "the weights of this KLTokenizer", "GB of memory"),
    row("llamagen", network(LlamaGenVQ, channels=(2**15, 2**15, 2**15)), "GB of memory"),
    row("hita", network(HitaTokenizer, dim=2**20), "GB of memory"),
    row("bridge", network(QuantizedKL, kl={**KL, "scale": 1.0, "latent_channels": 2**20}), "GB of memory"),
    row("cnn", network(ImageClassifier, widths=(2**18, 2**18)), "the weights of this ImageClassifier", "GB of memory"),
]


@pytest.mark.parametrize(("make", "words"), SIZES)
def test_a_network_beyond_memory_is_refused_with_the_number(
    raises: Raises, make: Callable[[], object], words: list[str]
) -> None:
    raises(make, *words)


def test_what_is_right_still_works() -> None:
    """Whole numbers as floats' values, lists as tuples, edges of ranges; every preset."""
    assert create_model("fmnist-maskgit", trunk={"dropout": 0, "depth": 0}).trunk.config.depth == 0
    assert build_model(tiny_config("mae", tokens=MULTI, head={"order": [2, 0, 1]})).head.order == (2, 0, 1)
    assert VQGAN(**{**TOKENIZER, "multipliers": [1, 1, 2], "latent": 4, "vocab_size": 64}).factor == 4
    for name in mgen.list_models():
        assert complete(complete(model_config(name))) == complete(model_config(name))
