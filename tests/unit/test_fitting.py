"""Weights of one model in another: what fits is copied, positions are interpolated, the rest starts anew and is listed."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from mgen import create_model
from mgen.evaluation.cnn import ImageClassifier
from mgen.generators import build_model
from mgen.pipelines.pipeline import MaskedPipeline
from mgen.pipelines.pretrained import load_weights
from mgen.samplers import ParallelSampler
from mgen.tokenizers import VQGAN, HitaTokenizer, KLTokenizer, LDeTok, QuantizedKL, TiTok, TiTokKL
from mgen.utils.errors import MgenError
from mgen.utils.fitting import Rows, fit, interpolate
from mgen.utils.modeling import Model
from mgen.zoo import recipe
from tests.helpers import (
    HITA,
    KL,
    LDETOK,
    TITOK,
    TOKENIZER,
    TRUNKS,
    tiny_cascade_config,
    tiny_config,
    tiny_net,
    tiny_tokenizer,
    tiny_tokens,
)

# -- every architecture ------------------------------------------------------------------------------------------------------

IDS = {"type": "categorical"}
KINDS: dict[str, dict[str, Any]] = {trunk: tiny_config(trunk) for trunk in TRUNKS}
KINDS |= {
    "mae of vectors": tiny_config("mae", tokens=tiny_tokens("vector")),
    "mae of channels": tiny_config("mae", tokens=tiny_tokens("multi-index")),
    "uvit of vectors": tiny_config("uvit", tokens=tiny_tokens("vector")),
    "bert, classes of their own": tiny_config("bert", classes={"table": "own"}),
    "adaln, mask drawn": tiny_config("adaln"),
    "global tokens": tiny_config("uvit", tokens=tiny_tokens(global_tokens=3)),
    "global tokens, own table": tiny_config("uvit", tokens=tiny_tokens(global_tokens=3), head={"table": "own"}),
    "causal with global tokens": tiny_config("causal", tokens=tiny_tokens(global_tokens=3)),
    "windows of ids": tiny_config("uvit", windows={"side": 2}),
    "windows of ids, causal": tiny_config("causal", windows={"side": 2}),
    "windows of vectors": tiny_config("mae", tokens=tiny_tokens("vector"), windows={"side": 2}),
    "tokens in windows": tiny_config("uvit", windows={"side": 2, "unit": "token"}),
    "transformer head": tiny_config(
        "mae", tokens=tiny_tokens("vector"), head={"type": "diffusion-transformer", "width": 32, "depth": 2, "heads": 2}
    ),
    "cascade of vectors": tiny_cascade_config(side=4),
    "cascade of ids": tiny_cascade_config("index", side=4),
}


def with_tokens(config: dict[str, Any], **settings: Any) -> dict[str, Any]:
    """A configuration with other tokens, in both stages of a cascade; `side`: of the grid, of a first stage half of it."""
    out = dict(config)
    for name, part in (("first", 2), ("second", 1), (None, 1)):
        section = out if name is None else dict(out.get(name, {}))
        if "tokens" not in section:
            continue
        tokens = section["tokens"] | {k: v for k, v in settings.items() if k != "side" and k in section["tokens"]}
        if "side" in settings:
            side = settings["side"] // part
            tokens |= {"grid": [side, side], "length": side * side + tokens.get("global_tokens", 0)}
        section["tokens"] = tokens
        if name is not None:
            out[name] = section
    return out


def scrambled(model: Model) -> Model:
    """The model with random values everywhere, so that none equals an initial one by chance."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_()
    return model


def moved(
    tmp_path: Path, old: Model, new: Model
) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Tensor], Any]:
    """The tensors of the old model, of the new one before and after it was given those, and what did not fit."""
    scrambled(old).save_pretrained(tmp_path / "old")
    fresh = {k: v.clone() for k, v in new.state_dict().items()}
    start = load_weights(new, tmp_path / "old")
    return old.state_dict(), fresh, new.state_dict(), start


def check_untouched(before: dict[str, Tensor], after: dict[str, Tensor], start: Any) -> None:
    """Everything that is not listed is as it was."""
    listed = {change.tensor for change in start.fitted.changes}
    assert listed and listed <= after.keys()
    for name in after.keys() - listed:
        assert torch.equal(after[name], before[name]), name


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_settings_copy_everything(tmp_path: Path, kind: str) -> None:
    before, _, after, start = moved(tmp_path, build_model(KINDS[kind]), build_model(KINDS[kind]))
    assert not start.lines()
    assert all(torch.equal(after[name], before[name]) for name in after)


@pytest.mark.parametrize("kind", KINDS)
def test_other_classes(tmp_path: Path, kind: str) -> None:
    config = KINDS[kind]
    new = build_model({**config, "classes": {**config["classes"], "count": 5}})
    before, fresh, after, start = moved(tmp_path, build_model(config), new)
    check_untouched(before, after, start)
    assert {c.of for c in start.fitted.changes} == {"classes"} and "classes 3 → 5: starts anew" in start.lines()[0]
    for name in start.fitted.anew:
        assert after[name].shape == fresh[name].shape


@pytest.mark.parametrize("kind", KINDS)
def test_another_grid(tmp_path: Path, kind: str) -> None:
    config = KINDS[kind]
    new = build_model(with_tokens(config, side=8))
    if not any(rows for rows in new.data_rows().values() if "positions" in str(rows)):
        pytest.skip("rotary positions are no part of the weights")
    before, fresh, after, start = moved(tmp_path, build_model(config), new)
    if not kind.startswith("causal") and "causal" not in kind:
        check_untouched(before, after, start)
        assert {c.of.removeprefix("first-stage ") for c in start.fitted.changes} - {"places in the order"} == {
            "positions"
        }
        assert not start.fitted.anew
    assert all(after[name].shape == fresh[name].shape for name in after)


@pytest.mark.parametrize("kind", KINDS)
def test_another_vocabulary_or_other_channels(tmp_path: Path, kind: str) -> None:
    config = KINDS[kind]
    new = build_model(with_tokens(config, vocab_size=24, channels=6))
    before, fresh, after, start = moved(tmp_path, build_model(config), new)
    check_untouched(before, after, start)
    whole = {c.tensor for c in start.fitted.changes if c.of in ("ids", "channels", "ids of channels")}
    assert whole
    for name in whole:  # such as a head's table: no row of it is an old one
        if not before[name].shape[1:] or before[name].shape[1:] != after[name].shape[1:]:
            continue
        rows = min(len(after[name]), 16)
        if new.data_rows()[name].keys() == {0} and new.data_rows()[name][0][0].of in ("ids", "channels"):
            assert torch.equal(after[name][:rows], fresh[name][:rows])


@pytest.mark.parametrize("trunk", ["bert", "mage"])
def test_a_shared_table_keeps_what_is_not_of_classes(tmp_path: Path, trunk: str) -> None:
    old, new = (build_model(tiny_config(trunk, classes={"count": n})) for n in (3, 1))
    before, _, after, _ = moved(tmp_path, old, new)
    name = "embedder.table.weight"
    assert torch.equal(after[name][:16], before[name][:16])
    assert torch.equal(after[name][17:], before[name][19:])  # the null class, and the mask where there is one


def test_an_unconditional_model_gives_its_row_to_the_null_class(tmp_path: Path) -> None:
    old = build_model(tiny_config("mage", classes={"count": 0, "rows": 9, "row": 4}))
    before, _, after, start = moved(tmp_path, old, build_model(tiny_config("mage")))
    assert torch.equal(after["embedder.table.weight"][16 + 3], before["embedder.table.weight"][16 + 4])
    assert "init: classes 3: starts anew (embedder.table.weight, head.bias)" in start.lines()


def test_class_ids_and_grid_may_change_together(tmp_path: Path) -> None:
    config = tiny_config("uvit")
    new = build_model(with_tokens({**config, "classes": {"count": 2}}, side=6, vocab_size=20))
    _, _, after, start = moved(tmp_path, build_model(config), new)
    assert len(start.lines()) == 3
    images = torch.zeros(2, 36, dtype=torch.int64), torch.zeros(2, 36, dtype=torch.bool), torch.tensor([0, 1])
    assert torch.isfinite(new.eval().context(*images)).all()


# -- what is no fine-tuning --------------------------------------------------------------------------------------------------

OTHERS: list[tuple[dict[str, Any], str]] = [
    ({"trunk": {"dim": 48}}, "trunk.dim was 32, now it is 48"),
    ({"trunk": {"depth": 4}}, "trunk.depth was 2, now it is 4"),
    ({"head": {"transform": False}}, "head.transform was True, now it is False"),
    ({"classes": {"null_class": False}}, "classes.null_class"),
    ({"windows": {"side": 2}}, "windows"),
]


@pytest.mark.parametrize(("sections", "words"), OTHERS)
def test_another_architecture_raises(tmp_path: Path, sections: dict[str, Any], words: str) -> None:
    tiny_net("uvit").save_pretrained(tmp_path / "old")
    config = tiny_config("uvit")
    for name, section in sections.items():
        config[name] = {**config.get(name, {}), **section}
    with pytest.raises(MgenError, match="another configuration.*") as error:
        load_weights(build_model(config), tmp_path / "old")
    assert words in str(error.value)


def test_other_kinds_of_tokens_and_global_tokens_raise(tmp_path: Path) -> None:
    tiny_net("mae").save_pretrained(tmp_path / "old")
    with pytest.raises(MgenError, match="another configuration"):
        load_weights(build_model(tiny_config("mae", tokens=tiny_tokens("vector"))), tmp_path / "old")
    with pytest.raises(MgenError, match="global_tokens"):
        load_weights(build_model(tiny_config("mae", tokens=tiny_tokens(global_tokens=2))), tmp_path / "old")


@pytest.mark.parametrize("count", [3, 5])
def test_a_tensor_too_few_or_too_many_raises(tmp_path: Path, count: int) -> None:
    tiny_net("uvit").save_pretrained(tmp_path / "old")
    file = next((tmp_path / "old").glob("*.safetensors"))
    tensors = load_file(file)
    config = tiny_config("uvit", classes={"count": count})
    for changed, words in (
        ({k: v for k, v in tensors.items() if k != "trunk.norm.bias"}, "'trunk.norm.bias' is missing"),
        (tensors | {"trunk.extra": torch.zeros(1)}, "'trunk.extra' is not of this model"),
        (tensors | {"trunk.norm.bias": torch.zeros(5)}, "'trunk.norm.bias' is of shape (5,), expected is (32,)"),
        (tensors | {"classes.vectors.weight": torch.zeros(9, 32)}, "'classes.vectors.weight' is of shape (9, 32)"),
        (tensors | {"trunk.norm.bias": torch.full((32,), torch.nan)}, "NaN"),
    ):
        save_file(changed, file)
        with pytest.raises(MgenError) as error:
            load_weights(build_model(config), tmp_path / "old")
        assert words in str(error.value)


# -- positions ---------------------------------------------------------------------------------------------------------------


def waves(h: int, w: int) -> Tensor:
    """A smooth table (h·w, 6) of the coordinates of the cells' centers, which don't depend on how many there are."""
    y, x = ((torch.arange(n).float() + 0.5) / n for n in (h, w))
    y, x = y[:, None].expand(h, w), x[None].expand(h, w)
    parts = [f(math.pi * k * v) for v in (y, x) for k, f in ((1, torch.cos), (2, torch.cos))]
    return torch.stack([*parts, y * (1 - y), x * y], dim=-1).flatten(0, 1)


@pytest.mark.parametrize(("old", "new"), [((16, 16), (32, 32)), ((16, 16), (24, 8)), ((32, 32), (16, 16))])
def test_interpolation_of_a_smooth_table_is_the_table_of_the_other_grid(
    old: tuple[int, int], new: tuple[int, int]
) -> None:
    made = interpolate(waves(*old), Rows("positions", old), Rows("positions", new), 0)
    error = (made - waves(*new)).abs().unflatten(0, new)
    assert (
        error[2:-2, 2:-2].max() < 5e-3
    )  # bicubic: of the fourth order in the width of a cell, or antialiased over two
    assert error.max() < 0.03  # at the edges, where cells outside are missing


def test_interpolation_of_other_dimensions_and_of_lines() -> None:
    table = waves(4, 4)
    rows = Rows("positions", (4, 4)), Rows("positions", (8, 8))
    straight = interpolate(table, *rows, 0)
    across = interpolate(torch.stack([table, -table]), *rows, 1)
    assert torch.equal(across[0], straight) and torch.equal(across[1], -straight)
    line = interpolate(torch.linspace(0, 1, 8).unsqueeze(1), Rows("p", (8,)), Rows("p", (16,)), 0)
    assert (line[3:-3, 0].diff() - 1 / 14).abs().max() < 2e-3
    with pytest.raises(MgenError, match="one is a grid"):
        interpolate(table, Rows("positions", (16,)), Rows("positions", (8, 8)), 0)


def test_prefix_rows_are_kept_and_the_grid_is_interpolated(tmp_path: Path) -> None:
    for trunk, front, name in (
        ("bert", 1, "trunk.position.weight"),
        ("mae", 2, "trunk.encoder_position"),
        ("mage", 1, "trunk.decoder_position"),
    ):
        new = build_model(tiny_config(trunk, tokens=tiny_tokens(side=8)))
        before, _, after, _ = moved(tmp_path, build_model(tiny_config(trunk)), new)
        assert torch.equal(after[name][:front], before[name][:front])
        rows = Rows("p", (4, 4)), Rows("p", (8, 8))
        assert torch.equal(after[name][front:], interpolate(before[name][front:], *rows, 0))


def test_computed_positions_are_those_of_the_grid(tmp_path: Path) -> None:
    config = KINDS["transformer head"]
    new = build_model(with_tokens(config, side=8))
    _, fresh, after, start = moved(tmp_path, build_model(config), new)
    assert torch.equal(after["head.position"], fresh["head.position"])
    assert "init: positions 4×4 → 8×8: computed anew (head.position)" in start.lines()
    causal = [build_model(tiny_config("causal", tokens=tiny_tokens(side=side))) for side in (4, 8)]
    before, _, after, start = moved(tmp_path, *causal)  # type: ignore[arg-type]
    assert not start.lines() and all(torch.equal(after[name], before[name]) for name in after)


def test_a_network_on_another_grid_sees_an_even_image_alike(tmp_path: Path) -> None:
    """With smooth positions, the context of an image of one id alone is that of the smaller grid, between its cells."""
    old, new = (build_model(tiny_config("uvit", tokens=tiny_tokens(side=side))).eval() for side in (8, 16))
    with torch.no_grad():
        old.trunk.position.weight.copy_(waves(8, 8).repeat(1, 6)[:, :32])
    old.save_pretrained(tmp_path / "old")
    load_weights(new, tmp_path / "old")
    contexts = []
    for model in (old, new):
        n = model.tokens.length
        ids, known = torch.full((1, n), 3), torch.ones(1, n, dtype=torch.bool)
        side = model.tokens.side
        contexts.append(model.context(ids, known, torch.tensor([1]))[0].T.unflatten(1, (side, side)))
    small = torch.nn.functional.avg_pool2d(contexts[1].unsqueeze(0), 2)[0]
    away = (small - contexts[0])[:, 1:-1, 1:-1].square().mean().sqrt()
    assert away < 0.05 * contexts[0].std(), away


def test_sampling_on_a_larger_grid(tmp_path: Path) -> None:
    """As from 256 to 512 pixels: generator and tokenizer at twice the side."""
    small = tiny_tokenizer()
    old = tiny_net("uvit", tokens=tiny_tokens(side=8, vocab_size=64))
    sampler = ParallelSampler(steps=4, guidance=2.0)
    MaskedPipeline(tokenizer=small, transformer=old, sampler=sampler).save_pretrained(tmp_path / "small")
    settings = tmp_path / "tiny.yaml"
    settings.write_text(json.dumps(tiny_config("uvit", tokens=tiny_tokens(side=8, vocab_size=64))))
    with pytest.warns(UserWarning, match=r"positions 8×8 → 16×16: interpolated \(trunk.position.weight\)"):
        net = create_model(
            settings, pretrained=tmp_path / "small", tokens=dict(length=256, grid=[16, 16], kind="index", vocab_size=64)
        )
    tokenizer = VQGAN.from_pretrained(tmp_path / "small" / "tokenizer", image_size=64)
    pipe = MaskedPipeline(tokenizer=tokenizer, transformer=net, sampler=sampler)
    assert pipe([0, 1], progress=False).images[0].size == (64, 64)
    pipe.save_pretrained(tmp_path / "large")
    again = MaskedPipeline.from_pretrained(tmp_path / "large")
    assert torch.equal(again([2], progress=False).tokens, pipe([2], progress=False).tokens)


# -- tokenizers and classifiers ----------------------------------------------------------------------------------------------

OTHER_DATA: list[tuple[type[Model], dict[str, Any], dict[str, Any], str]] = [
    (VQGAN, {**TOKENIZER, "latent": 4, "vocab_size": 64}, {"vocab_size": 32}, "ids 64 → 32"),
    (VQGAN, {**TOKENIZER, "latent": 4, "vocab_size": 64}, {"in_channels": 3}, "image channels 1 → 3"),
    (VQGAN, {**TOKENIZER, "latent": 4, "vocab_size": 64}, {"image_size": 64}, ""),
    (KLTokenizer, KL, {"in_channels": 3}, "image channels 1 → 3"),
    (KLTokenizer, KL, {"image_size": 64}, ""),
    (LDeTok, LDETOK, {"in_channels": 3}, "image channels"),
    (
        LDeTok,
        LDETOK,
        {"image_size": 64, "latents_mean": None, "latents_std": None},
        "positions 8×8 → 16×16: interpolated",
    ),
    (HitaTokenizer, HITA, {"vocab_size": 16, "global_vocab_size": 8}, "global ids 32 → 8"),
    (HitaTokenizer, HITA, {"image_size": 64}, "positions 8×8 → 16×16"),
    (TiTok, {**TITOK, "vocab_size": 16}, {"vocab_size": 8}, "ids 16 → 8"),
    (TiTok, {**TITOK, "vocab_size": 16}, {"in_channels": 3}, "image channels 1 → 3"),
    (TiTokKL, TITOK, {"in_channels": 3}, "image channels 1 → 3"),
    (QuantizedKL, {"kl": {**KL, "scale": 1.0}}, {"levels": 16}, "levels 64 → 16: computed anew"),
    (ImageClassifier, {"widths": (8, 8), "features": 8}, {"num_classes": 3, "in_channels": 3}, "classes 10 → 3"),
]


@pytest.mark.parametrize(("cls", "settings", "changed", "words"), OTHER_DATA)
def test_tokenizers_and_classifiers_for_other_data(
    tmp_path: Path, cls: type[Model], settings: dict[str, Any], changed: dict[str, Any], words: str
) -> None:
    before, _, after, start = moved(tmp_path, cls(**settings), cls(**{**settings, **changed}))
    listed = {change.tensor for change in start.fitted.changes}
    assert words in "; ".join(start.lines())
    for name in after.keys() - listed:
        assert torch.equal(after[name], before[name]), name


# -- names -------------------------------------------------------------------------------------------------------------------


def test_names_and_folders_of_all_kinds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    net, tokenizer = tiny_net("uvit", tokens=tiny_tokens(side=8, vocab_size=64)), tiny_tokenizer()
    pipe = MaskedPipeline(tokenizer=tokenizer, transformer=net, sampler=ParallelSampler(steps=2))
    pipe.save_pretrained(tmp_path / "run" / "model")
    (tmp_path / "run" / "config.json").write_text("{}")  # the settings of the training
    for folder in ("run", "run/model", "run/model/transformer"):
        made = build_model(tiny_config("uvit", tokens=tiny_tokens(side=8, vocab_size=64)))
        load_weights(made, tmp_path / folder)
        assert torch.equal(made.trunk.position.weight, net.trunk.position.weight)
    for folder in ("run", "run/model/tokenizer"):
        again = tiny_tokenizer(seed=5)
        load_weights(again, tmp_path / folder)
        assert all(torch.equal(a, b) for a, b in zip(again.state_dict().values(), tokenizer.state_dict().values()))
    monkeypatch.setenv("MGEN_MODELS", str(tmp_path))
    (tmp_path / "run" / "model").rename(
        tmp_path / Path(recipe("maskgit-r-imagenet256").facts["folder"]).name
    )  # where a recipe's model is looked for
    with pytest.raises(MgenError, match="another configuration"):
        load_weights(create_model("fmnist-maskgit"), "maskgit-r-imagenet256")
    with pytest.raises(MgenError, match="no saved model 'nothing'"):
        load_weights(net, "nothing")
    assert not load_weights(create_model("fmnist-maskgit"), "fmnist-maskgit").lines()
    assert not load_weights(ImageClassifier(), "fmnist-cnn").lines()


def test_fit_takes_rows_by_what_they_stand_for() -> None:
    old = {"t": torch.arange(6.0).unsqueeze(1)}
    own = {"t": -torch.ones(7, 1)}
    was = {"t": {0: (Rows("a", (2,)), Rows("b", (3,)), Rows("c", (1,)))}}
    now = {"t": {0: (Rows("c", (1,)), Rows("b", (3,)), Rows("a", (3,)))}}
    fitted = fit(old, was, own, now)
    assert fitted.tensors["t"].flatten().tolist() == [5, 2, 3, 4, -1, -1, -1]
    assert fitted.lines() == ["a 2 → 3: starts anew (t)"]
