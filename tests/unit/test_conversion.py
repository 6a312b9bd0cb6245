"""Converted systems as a user meets them: one command makes a folder that samples, also for a model without classes."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from mgen.cli import main
from mgen.convert import convert
from mgen.convert.reading import mlp_ratio
from mgen.pipelines.pipeline import load
from mgen.utils.errors import MgenError
from tests.golden import harness

VQGAN = harness.root() / "maskgit_vqgan" / "weights.safetensors"
# Format → golden set, key of the weights in the official file, tokenizer, settings that shapes do not tell, recipe.
SYSTEMS: dict[str, tuple[str, str | None, Path | None, list[str], str]] = {
    "mage": ("mage", "model", None, ["trunk.encoder_heads=4", "trunk.decoder_heads=2"], "mage-b-imagenet256"),
    "halton": (
        "halton",
        "model_state_dict",
        harness.root() / "halton" / "tokenizer_weights.safetensors",
        ["trunk.heads=4"],
        "halton-base-imagenet256",
    ),
    "enat": (
        "enat",
        None,
        VQGAN,
        ["trunk.heads=4", "trunk.encoder_depth=3", "trunk.decoder_depth=2"],
        "enat-l-imagenet256",
    ),
}


def converted(name: str, out: Path) -> Path:
    """A pipeline made by the command line from a file laid out like the official one."""
    system, key, tokenizer, settings, recipe = SYSTEMS[name]
    state = load_file(harness.root() / system / "weights.safetensors")
    file = out.with_suffix(".pth")
    torch.save(state if key is None else {key: state}, file)
    extra = ["--tokenizer", str(tokenizer)] if tokenizer is not None else []
    assert main(["convert", name, str(file), *extra, "--recipe", recipe, "--out", str(out), *settings]) == 0
    return out


@pytest.mark.parametrize("name", SYSTEMS)
def test_converted_pipeline_samples(name: str, tmp_path: Path) -> None:
    model = converted(name, tmp_path / "model")
    pipe = load(model)
    assert pipe.tokenizer.spec.length == pipe.transformer.tokens.length
    assert pipe.tokenizer.config.image_size == pipe.tokenizer.factor * pipe.transformer.tokens.side
    assert main(["sample", "--model", str(model), "--num-images", "2", "--out", str(tmp_path / "s")]) == 0
    ending = "" if name == "mage" else "_class-{:04d}"
    names = [f"{i:06d}{ending.format(i)}.png" for i in range(2)]
    images = [np.asarray(Image.open(tmp_path / "s" / n)) for n in names]
    assert not np.array_equal(*images) and len(list((tmp_path / "s").glob("*.png"))) == 3


@pytest.fixture(scope="module")
def unconditional(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return converted("mage", tmp_path_factory.mktemp("mage") / "model")


def test_unconditional_model_in_every_command(unconditional: Path, tmp_path: Path) -> None:
    model = ["--model", str(unconditional)]
    args = ["sample", *model, "--num-images", "12", "--steps", "2", "--out", str(tmp_path / "s")]
    assert main([*args, "--animation", str(tmp_path / "a.gif")]) == 0
    side = load(unconditional).tokenizer.config.image_size
    scale = max(1, 64 // side)
    assert Image.open(tmp_path / "s" / "grid.png").size == (4 + 10 * (side * scale + 4), 4 + 2 * (side * scale + 4))
    assert main([*args, "--batch-size", "5"]) == 0  # again: everything is there
    source = str(tmp_path / "s" / "000000.png")
    edited = ["edit", source, *model, "--box", "0,0,8,8", "--num-images", "2", "--steps", "2"]
    assert main([*edited, "--out", str(tmp_path / "d")]) == 0
    assert sorted(p.name for p in (tmp_path / "d").iterdir()) == ["edit-000000.png", "edit-000001.png", "grid.png"]
    drawn = np.asarray(Image.open(tmp_path / "d" / "edit-000001.png"))
    assert np.array_equal(drawn[8:], np.asarray(Image.open(source))[8:])
    measured = ["--extractor", "fmnist-cnn", "--reference", "none", "--classifier", "none", "--steps", "2"]
    assert main(["eval", str(unconditional), "--num-images", "4", *measured, "--out", str(tmp_path / "e")]) == 0
    assert main(["eval", str(tmp_path / "s"), *measured[:6], "--out", str(tmp_path / "f")]) == 0


@pytest.mark.parametrize("command", ["sample", "edit", "eval"])
def test_unconditional_model_refuses_guidance_and_classes(
    command: str, unconditional: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    Image.new("RGB", (16, 16)).save(tmp_path / "in.png")
    args = {
        "sample": ["sample", "--model", str(unconditional)],
        "edit": ["edit", str(tmp_path / "in.png"), "--model", str(unconditional), "--box", "0,0,8,8"],
        "eval": ["eval", str(unconditional), "--num-images", "2"],
    }[command]
    assert main([*args, "--guidance", "3", "--out", str(tmp_path / "o")]) == 2
    assert "use guidance 1" in capsys.readouterr().err
    if command != "eval":
        assert main([*args, "--classes", "0", "--out", str(tmp_path / "o")]) == 2
        assert "unconditional" in capsys.readouterr().err
    assert not (tmp_path / "o").exists()


def test_pipeline_of_an_unconditional_model_takes_none(unconditional: Path) -> None:
    pipe = load(unconditional)
    assert not pipe.conditional and not pipe.class_names
    tokens = pipe([None, None], steps=2, output_type="tokens", progress=False).tokens
    assert tokens.shape == (2, pipe.transformer.tokens.length)
    with pytest.raises(MgenError, match="out of range"):
        pipe([1], steps=2, progress=False)


def test_generator_without_its_tokenizer_in_the_file_is_converted_alone(tmp_path: Path) -> None:
    state = load_file(harness.root() / "mage" / "weights.safetensors")
    torch.save({"model": {k: v for k, v in state.items() if not k.startswith("vqgan.")}}, tmp_path / "m.pth")
    args = ["convert", "mage", str(tmp_path / "m.pth"), "--out", str(tmp_path / "m"), *SYSTEMS["mage"][3]]
    assert main(args) == 0
    assert (tmp_path / "m" / "config.json").is_file() and not (tmp_path / "m" / "model_index.json").exists()


def test_many_tensors_ignored_for_one_reason_are_told_in_one_line(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    folder = converted("mage", tmp_path / "m")
    told = capsys.readouterr().out
    assert len(told.splitlines()) < 30
    assert (
        "  ignored 65 tensors from vqgan.decoder.conv_in.bias to vqgan.quantize.embedding.weight: the tokenizer" in told
    )
    assert "  ignored cls_token: never read" in told
    assert "vqgan.encoder.conv_in.weight ignored" in (folder / "conversion.txt").read_text().splitlines()


def test_mar_without_a_grid_has_the_length_that_its_tables_tell(tmp_path: Path) -> None:
    """48 positions fill no square: their tables alone tell that there is no grid."""
    state = load_file(harness.root() / "ldetok_mar" / "weights.safetensors")
    places, buffer = state["diffusion_pos_embed_learned"], state["encoder_pos_embed_learned"].shape[1]
    buffer -= places.shape[1]
    state["diffusion_pos_embed_learned"] = places[:, :48].contiguous()
    for half in ("encoder", "decoder"):
        name = f"{half}_pos_embed_learned"
        state[name] = state[name][:, : buffer + 48].contiguous()
    save_file(state, tmp_path / "mar.safetensors")
    heads = {"trunk": {"encoder_heads": 4, "decoder_heads": 4}}
    made = convert("ldetok-mar", tmp_path / "mar.safetensors", **heads).model
    assert made.tokens.grid is None and made.tokens.length == 48


def test_the_ratio_of_an_mlp_is_never_a_unit_short() -> None:
    assert int(176 * (469 / 176)) == 468  # what a product of floats makes of it
    for width in range(8, 400, 8):
        for hidden in range(width // 2, 5 * width, 7):
            assert int(width * mlp_ratio(hidden, width)) == hidden


def test_rows_of_two_tables_are_added_in_full_precision(tmp_path: Path) -> None:
    """ImageBert's positions and token types, from a file in half precision."""
    state = load_file(harness.root() / "titok_imagebert" / "weights.safetensors")
    halves = {name: value.half() for name, value in state.items()}
    save_file(halves, tmp_path / "bert.safetensors")
    made = convert("titok-generator", tmp_path / "bert.safetensors", trunk={"heads": 4}).model
    tables = [halves[f"model.embeddings.{name}_embeddings.weight"].float() for name in ("position", "token_type")]
    assert torch.equal(made.trunk.position.weight, tables[0] + tables[1][:1])
