"""Fine-tuning: other classes and grids, adapters of every trunk, their files, resuming."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

import mgen
from mgen.cli import main
from mgen.generators import build_model
from mgen.generators.adapter_file import FILE
from mgen.pipelines.pipeline import MaskedPipeline, load
from mgen.samplers import ParallelSampler
from mgen.training.config import train_config
from mgen.training.loop import run, train
from mgen.training.trainer import Trainer
from mgen.utils.errors import MgenError
from tests.helpers import TRUNKS, tiny_cascade_config, tiny_config, tiny_kl, tiny_tokenizer, tiny_tokens, write_idx
from tests.processes import together
from tests.system.test_training import losses

pytest.importorskip("peft")
TOKENS = tiny_tokens(side=8, vocab_size=64)
SETTINGS = {"rank": 2, "alpha": 8.0}


@pytest.fixture(scope="module")
def idx(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_idx(tmp_path_factory.mktemp("idx"))


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes of eight gray images, of 64 pixels."""
    folder = tmp_path_factory.mktemp("images")
    for place, name in enumerate(("mug", "plate")):
        (folder / name).mkdir()
        for i in range(8):
            image = Image.new("L", (64, 64), 20 * i)
            image.paste(250, (8 + 20 * place, 8, 28 + 20 * place, 56))
            image.save(folder / name / f"{i}.png")
    return folder


def base_model(folder: Path, config: dict[str, Any], *, continuous: bool = False) -> Path:
    """A pipeline of a generator with 10 classes and a tokenizer, without weights that are zero."""
    torch.manual_seed(7)
    net = build_model({**config, "classes": {**config["classes"], "count": 10}})
    with torch.no_grad():
        for parameter in net.parameters():
            if parameter.abs().max() == 0:
                parameter.normal_(std=0.05)
    sampler = ParallelSampler.suited(net, {"guidance": 2.0})
    tokenizer = tiny_kl() if continuous else tiny_tokenizer()
    MaskedPipeline(tokenizer=tokenizer, transformer=net, sampler=sampler).save_pretrained(folder)
    return folder


def settings_of(base: Path, output: Path, config: dict[str, Any], data: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {
        "task": "generator",
        "output": str(output),
        "steps": 2,
        "batch_size": 4,
        "model": config,
        "init": str(base),
        "data": data,
        "objective": {"tokenizer": str(base), "label_drop": 0.1, "sampler": {"guidance": 2.0}},
        "optim": {"lr": 1e-2},
        "ema": {"decay": 0.5},
        "log": {"every": 1, "checkpoint_every": 1, "tensorboard": False},
        **more,
    }


def of_classes(config: dict[str, Any], count: int) -> dict[str, Any]:
    return {**config, "classes": {**config["classes"], "count": count}}


def weights(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / "transformer" / "diffusion_pytorch_model.safetensors")


KINDS: dict[str, dict[str, Any]] = {trunk: tiny_config(trunk, tokens=TOKENS) for trunk in TRUNKS}
KINDS |= {
    "mae of vectors": tiny_config("mae", tokens=tiny_tokens("vector", side=8)),
    "windows": tiny_config("uvit", tokens=TOKENS, windows={"side": 2}),
    "tokens in windows": tiny_config("uvit", tokens=TOKENS, windows={"side": 2, "unit": "token"}),
    "cascade": tiny_cascade_config("vector", side=8),
}


def objective(kind: str) -> dict[str, Any]:
    """What the objective of a trunk needs."""
    mage = {"mask": {"low": 0.6, "distribution": "truncated-gaussian", "rounding": "ceil"}} if kind == "mage" else {}
    return mage | ({"reuse": 0.5} if kind == "enat" else {})


@pytest.mark.parametrize("kind", KINDS)
def test_every_trunk_trains_adapters(tmp_path: Path, idx: Path, kind: str) -> None:
    config, vectors = of_classes(KINDS[kind], 10), "vector" in kind or kind == "cascade"
    base = base_model(tmp_path / "base", config, continuous=vectors)
    settings = settings_of(base, tmp_path / "run", config, {"kind": "fmnist", "path": str(idx)}, lora=SETTINGS)
    settings["objective"] |= objective(kind)
    train(train_config(settings))
    before, after, raw = weights(base), weights(tmp_path / "run/model"), weights(tmp_path / "run/model-raw")
    assert before.keys() == after.keys() == raw.keys()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    prefix = "shared." if kind == "cascade" else "trunk."
    assert changed and all(name.startswith(prefix) and name.endswith(".weight") for name in changed)
    assert any(not torch.equal(after[name], raw[name]) for name in changed)
    # The adapter on the model that it started from draws what the merged model does.
    pipe, merged = load(base), load(tmp_path / "run/model")
    pipe.load_lora_weights(tmp_path / "run")
    steps = {} if kind in ("causal", "permuted") else {"steps": 2}
    one, two = (p([1, 2], output_type="tokens", progress=False, **steps).tokens for p in (pipe, merged))
    assert torch.allclose(one.float(), two.float(), rtol=1e-3, atol=1e-3)


def test_new_classes_are_trained_with_the_adapters(
    tmp_path: Path, images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = KINDS["uvit"]
    base, data = base_model(tmp_path / "base", config), {"kind": "folder", "path": str(images)}
    data |= {"image_size": 32, "channels": 1}
    settings = settings_of(base, tmp_path / "run", of_classes(config, 2), data, lora={})
    train(train_config(settings))
    line = "init: classes 10 → 2: starts anew (classes.vectors.weight)"
    assert line in capsys.readouterr().err.splitlines()
    start = json.loads((tmp_path / "run/init.json").read_text())
    assert [c["tensor"] for c in start["changes"]] == ["classes.vectors.weight"] and start["copied"] > 20
    assert Path(start["from"]) == base / "transformer"
    before, after = weights(base), weights(tmp_path / "run/model")
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert "classes.vectors.weight" in changed
    assert all(".attn." in name or ".mlp." in name for name in changed - {"classes.vectors.weight"})
    # On the base model, adapter and classes come together.
    pipe, merged = load(base), load(tmp_path / "run/model")
    assert (tmp_path / "run/lora").is_dir() and not list((tmp_path / "run/model").glob("*lora*"))
    pipe.load_lora_weights(tmp_path / "run/lora")
    assert pipe.class_names == merged.class_names == ("mug", "plate")
    one, two = (p(["mug", "plate"], output_type="tokens", progress=False).tokens for p in (pipe, merged))
    assert torch.equal(one, two)


def test_a_run_that_could_not_begin_leaves_no_list(tmp_path: Path, images: Path) -> None:
    config = KINDS["uvit"]
    base = base_model(tmp_path / "base", config)
    data = {"kind": "folder", "path": str(images), "image_size": 32, "channels": 1}
    settings = settings_of(base, tmp_path / "run", of_classes(config, 3), data)
    with pytest.raises(MgenError, match="2 classes, but model.classes.count is 3"):
        train(train_config(settings))
    assert not (tmp_path / "run").exists()


def test_resuming_adapters_repeats_the_uninterrupted_run(tmp_path: Path, images: Path) -> None:
    config = KINDS["uvit"]
    base = base_model(tmp_path / "base", config)
    data = {"kind": "folder", "path": str(images), "image_size": 32, "channels": 1, "flip": True}
    lora = {**SETTINGS, "dropout": 0.1}
    whole = settings_of(base, tmp_path / "whole", of_classes(config, 2), data, steps=5, lora=lora)
    whole["log"]["checkpoint_every"] = 2
    train(train_config(whole))
    trainer = Trainer(train_config({**whole, "output": str(tmp_path / "cut")}))
    real = trainer.train_step

    def stop_at_three(*args: Any) -> Any:
        if trainer.step == 3:
            raise KeyboardInterrupt
        return real(*args)

    trainer.train_step = stop_at_three  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        run(trainer)
    train(train_config({**whole, "output": str(tmp_path / "cut")}))
    assert losses(tmp_path / "cut") == losses(tmp_path / "whole")
    for name in ("model", "model-raw"):
        a, b = weights(tmp_path / "whole" / name), weights(tmp_path / "cut" / name)
        assert all(torch.equal(a[k], b[k]) for k in a)
    assert (tmp_path / "cut/lora" / FILE).read_bytes() == (tmp_path / "whole/lora" / FILE).read_bytes()
    with pytest.raises(MgenError, match=r"lora.rank was 2, now it is 3"):
        train(train_config({**whole, "lora": {**lora, "rank": 3}}))


def test_a_larger_grid_with_the_tokenizer_at_its_size(
    tmp_path: Path, images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = KINDS["uvit"]
    base = base_model(tmp_path / "base", config)
    large = {**of_classes(config, 2), "tokens": tiny_tokens(side=16, vocab_size=64)}
    data = {"kind": "folder", "path": str(images), "image_size": 64, "channels": 1}
    settings = settings_of(base, tmp_path / "run", large, data)
    settings["objective"]["image_size"] = 64
    train(train_config(settings))
    assert "init: positions 8×8 → 16×16: interpolated (trunk.position.weight)" in capsys.readouterr().err
    pipe = load(tmp_path / "run/model")
    assert pipe(["mug"], progress=False, steps=2).images[0].size == (64, 64)
    settings["objective"]["image_size"] = 66
    with pytest.raises(MgenError, match="no images of 66 pixels"):
        train(train_config({**settings, "output": str(tmp_path / "other")}))


def test_a_tokenizer_for_another_vocabulary_gets_a_codebook_of_the_data(tmp_path: Path, images: Path) -> None:
    tiny_tokenizer().save_pretrained(tmp_path / "old")
    config = {"class": "VQGAN", **tiny_tokenizer(vocab_size=16).config}
    config = {k: list(v) if isinstance(v, tuple) else v for k, v in config.items() if not k.startswith("_")}
    data = {"kind": "folder", "path": str(images), "image_size": 32, "channels": 1}
    settings = {"task": "tokenizer", "output": str(tmp_path / "run"), "steps": 1, "batch_size": 4, "model": config}
    trainer = Trainer(train_config({**settings, "init": str(tmp_path / "old"), "data": data, "objective": {}}))
    model: Any = trainer.objective.model
    assert model.quantize.embedding.weight.shape == (16, 4)
    usage = model.forward(trainer.task.train_data.__getitems__(range(8))["image"])[2]["usage"]
    assert usage > 2 / 16  # rows lie on vectors of these images
    assert torch.equal(model.encoder.conv_in.weight.cpu(), tiny_tokenizer().encoder.conv_in.weight)


def test_the_commands(tmp_path: Path, images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = KINDS["uvit"]
    base = base_model(tmp_path / "base", config)
    data = {"kind": "folder", "path": str(images), "image_size": 32, "channels": 1}
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own.yaml").write_text(yaml.safe_dump(settings_of(base, Path("run"), of_classes(config, 2), data)))
    assert main(["train", "--config", "own.yaml", "lora.rank=2", "lora.targets=[attn.qkv]"]) == 0
    common = ["sample", "--model", "base", "--num-images", "4", "--device", "cpu"]
    assert main([*common, "--lora", "run", "--out", "with"]) == 0
    assert main(["sample", "--model", "run/model", "--num-images", "4", "--device", "cpu", "--out", "merged"]) == 0
    names = sorted(p.name for p in (tmp_path / "with").glob("0*.png"))
    assert len(names) == 4
    for name in names:
        assert (tmp_path / "with" / name).read_bytes() == (tmp_path / "merged" / name).read_bytes()
    about = json.loads((tmp_path / "with/run.json").read_text())
    assert [scale for _, scale in about["lora"]] == [1.0]
    assert main([*common, "--lora", "run/lora:0.5", "--out", "with"]) == 2  # another run
    assert main([*common, "--lora", f"run/lora/{FILE}:0.5", "--out", "half"]) == 0
    assert main(["edit", "with/" + names[0], *common[1:], "--box", "0,0,8,8", "--lora", "run", "--class", "mug"]) == 0


@pytest.mark.slow
def test_two_processes_train_adapters_like_one(tmp_path: Path, images: Path) -> None:
    config = KINDS["uvit"]
    base = base_model(tmp_path / "base", config)
    data = {"kind": "folder", "path": str(images), "image_size": 32, "channels": 1}
    settings = settings_of(base, tmp_path / "one", of_classes(config, 2), data, steps=3, lora=SETTINGS)
    train(train_config(settings))
    (tmp_path / "c.yaml").write_text(yaml.safe_dump({**settings, "output": str(tmp_path / "two")}))
    said = together("train", "--config", str(tmp_path / "c.yaml"), "processes=2", log=tmp_path / "log")
    assert said.count("init: classes 10 → 2") == 1
    assert losses(tmp_path / "one") == pytest.approx(losses(tmp_path / "two"), rel=1e-4)
    one, two = (load_file(tmp_path / name / "lora" / FILE) for name in ("one", "two"))
    assert all(torch.allclose(one[k], two[k], atol=2e-3) for k in one)


@pytest.mark.slow
def test_the_embedded_model_learns_other_classes(tmp_path: Path, idx: Path) -> None:
    """By its name; adapters alone lower the loss on three classes of made-up bars."""
    folder = tmp_path / "bars"
    from mgen.data.fashion_mnist import FashionMNIST

    data: Any = FashionMNIST(root=idx, split="train")
    for i in range(24):
        batch = data.__getitems__([i])
        target = folder / f"bar-{int(batch['label'][0])}" / f"{i}.png"
        target.parent.mkdir(parents=True, exist_ok=True)
        pixels = ((batch["image"][0, 0] + 1) * 127.5).round().byte().numpy()
        Image.fromarray(pixels).save(target)
    settings = {
        "task": "generator",
        "output": str(tmp_path / "run"),
        "steps": 30,
        "batch_size": 12,
        "model": {"name": "fmnist-maskgit", "classes": {"count": 3}},
        "init": "fmnist-maskgit",
        "lora": {},
        "data": {"kind": "folder", "path": str(folder), "image_size": 32, "channels": 1},
        "objective": {"tokenizer": "fmnist-maskgit"},
        "optim": {"lr": 3e-3},
        "log": {"every": 1, "checkpoint_every": 0, "tensorboard": False},
    }
    train(train_config(settings))
    found = losses(tmp_path / "run")
    assert sum(found[s] for s in range(26, 31)) < 0.9 * sum(found[s] for s in range(1, 6))
    pipe = mgen.load("fmnist-maskgit")
    pipe.load_lora_weights(tmp_path / "run")
    assert list(pipe.class_names) == ["bar-0", "bar-1", "bar-2"]
