"""The continuous line as a whole: sampling vectors, pipelines, editing, training from moments, official checkpoints."""

import argparse
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

import mgen
from mgen.cli import main
from mgen.convert import convert
from mgen.data import FashionMNIST, write_cache
from mgen.samplers import ORDERS, ParallelSampler, remaining_counts
from mgen.samplers.order import RANKED
from mgen.samplers.sequences import halton
from mgen.training.config import train_config
from mgen.training.loop import train
from mgen.utils.config import apply_overrides, read_config
from mgen.utils.errors import MgenError
from mgen.utils.folders import part
from tests.helpers import tiny_config, tiny_continuous, tiny_kl, tiny_mar, tiny_tokenizer, tiny_tokens, write_idx
from tests.processes import together

NET = tiny_mar()
SETS = Path(__file__).parents[1] / "golden" / "sets"
LENGTH = NET.tokens.length
HEAD = {"steps": 8, "clip": 4.0}
SHUFFLED = torch.randperm(LENGTH, generator=torch.Generator().manual_seed(0)).tolist()
FIXED = [name for name in ORDERS if name not in RANKED]


def run(sampler: ParallelSampler, labels: list[int], seeds: list[int], **given: Any) -> list[Any]:
    noise = sampler.make_noise(NET, seeds)
    return list(sampler(NET, torch.tensor(labels), noise=noise, **given))


@pytest.mark.parametrize("order", [*FIXED, SHUFFLED], ids=[*FIXED, "explicit"])
@pytest.mark.parametrize("schedule", ["cosine", "arccos", "linear", [0.9, 0.5, 0.45, 0.2, 0.1]], ids=str)
def test_any_order_and_schedule_draws_every_vector_once(order: Any, schedule: Any) -> None:
    sampler = ParallelSampler(steps=6, order=order, schedule=schedule, guidance=1.5, head=HEAD)
    steps = run(sampler, [0, 2], [1, 2])
    assert [(LENGTH - s.known.sum(1)).tolist() for s in steps[-1:]] == [[0, 0]]
    assert sum(s.positions.shape[1] for s in steps) == LENGTH  # a fixed order draws each position once
    assert torch.isfinite(steps[-1].tokens).all() and steps[-1].tokens.shape == (2, LENGTH, 4)


def test_explicit_and_named_orders_reveal_what_they_say() -> None:
    def revealed(order: Any) -> list[int]:
        sampler, seen = ParallelSampler(steps=LENGTH, order=order, head={"steps": 2, "clip": 4.0}), []
        for step in sampler(NET, torch.tensor([0]), noise=sampler.make_noise(NET, [1])):
            seen += step.positions[0].tolist()
        return seen

    assert revealed(SHUFFLED) == SHUFFLED
    assert revealed("raster") == list(range(LENGTH))
    assert revealed("halton") == list(halton(8, 8))


def test_halton_visits_every_cell_far_from_the_last() -> None:
    for rows, columns in ((8, 8), (16, 16), (24, 24), (64, 64), (4, 6)):
        assert sorted(halton(rows, columns)) == list(range(rows * columns))
    # radical inverses of 1, 2, 3 … in bases 2 and 3: (1/2, 1/3), (1/4, 2/3), (3/4, 1/9)
    assert halton(8, 8)[:3] == (4 * 8 + 2, 2 * 8 + 5, 6 * 8 + 0)


@pytest.mark.parametrize("order", [*FIXED, SHUFFLED], ids=[*FIXED, "explicit"])
def test_known_vectors_never_change(order: Any) -> None:
    given = torch.randn(3, LENGTH, 4, generator=torch.Generator().manual_seed(1))
    known = torch.rand(3, LENGTH, generator=torch.Generator().manual_seed(2)) < torch.tensor([[0.2], [0.7], [1.0]])
    before = given.clone()
    sampler = ParallelSampler(steps=5, order=order, guidance=3.0, head=HEAD)
    last = None
    for step in sampler(
        NET, torch.tensor([0, 1, 2]), noise=sampler.make_noise(NET, [1, 2, 3]), tokens=given, known=known
    ):
        assert torch.equal(step.tokens[known], before[known]) and bool(step.known[known].all())
        if last is not None:
            assert torch.equal(step.tokens[last[1]], last[0][last[1]]), "a revealed vector changed"
        last = step.tokens.clone(), step.known.clone()
        assert torch.equal(step.draft[step.known], step.tokens[step.known])
    assert bool(step.known.all()) and torch.equal(given, before)


@pytest.mark.parametrize("chain", ["ancestral", "ddim", "dpm-solver++"])
def test_an_image_depends_on_its_seed_not_on_its_batch(chain: str) -> None:
    """Also where rows know different numbers of tokens, which fills the shorter ones up."""
    sampler = ParallelSampler(steps=5, order="random", guidance=2.0, head={**HEAD, "chain": chain})
    tokens = torch.randn(3, LENGTH, 4, generator=torch.Generator().manual_seed(1))
    known = torch.rand(3, LENGTH, generator=torch.Generator().manual_seed(2)) < torch.tensor([[0.1], [0.6], [0.9]])
    together = run(sampler, [0, 1, 2], [5, 6, 7], tokens=tokens, known=known)[-1].tokens
    for i in range(3):
        alone = run(sampler, [i], [5 + i], tokens=tokens[i : i + 1], known=known[i : i + 1])[-1].tokens
        assert torch.allclose(alone[0], together[i], atol=1e-4)
    other = run(sampler, [0], [6], tokens=tokens[:1], known=known[:1])[-1].tokens
    assert not torch.allclose(other[0], together[0], atol=1e-2)


def test_what_stands_at_unknown_positions_is_never_read() -> None:
    tokens, known = torch.randn(2, LENGTH, 4), torch.rand(2, LENGTH) < torch.tensor([[0.3], [0.6]])
    label = torch.tensor([0, NET.null_class])
    z = NET.context(tokens, known, label)
    assert torch.equal(NET.context(torch.where(known.unsqueeze(-1), tokens, 9.0), known, label), z)
    positions = torch.tensor([[3, 0], [15, 7]])
    some = NET.context(tokens, known, label, positions=positions)
    assert torch.allclose(some, z.gather(1, positions.unsqueeze(-1).expand(-1, -1, 32)), atol=1e-5)
    for row in range(2):  # rows that know fewer tokens are filled up; that changes nothing
        alone = NET.context(tokens[row : row + 1], known[row : row + 1], label[row : row + 1])
        assert torch.allclose(alone[0], z[row], atol=1e-5)


@pytest.mark.parametrize(
    "settings, words",
    [
        ({"steps": LENGTH + 1}, f"this model has {LENGTH} tokens"),
        ({"order": "confidence"}, "order random"),
        ({"order": [0, 1, 2]}, "lists 3 positions"),
        ({"order": [0, 0, 1]}, "each once"),
        ({"head": {"chain": "dimm"}}, "ddim"),
        ({"head": {"steps": 1001}}, "at most 1000"),
        ({"head": 5}, "takes a mapping, got 5"),
    ],
)
def test_settings_that_vectors_do_not_take(settings: dict, words: str) -> None:
    with pytest.raises(MgenError, match=words):
        sampler = ParallelSampler(**{"steps": 4, "order": "random", **settings})
        list(sampler(NET, torch.tensor([0]), noise=sampler.make_noise(NET, [1])))


def test_the_cosine_of_mar_loses_a_token_where_its_code_does() -> None:
    """Two thirds of the steps done: its order of operations falls just below one half."""
    official = remaining_counts("cosine", steps=39, unknown=256, length=256, counts="mar")
    assert official[25] == 127 and remaining_counts("cosine", steps=39, unknown=256, length=256)[25] == 128


def test_temperature_needs_a_chain_with_noise() -> None:
    sampler = ParallelSampler(order="random", temperature=0.9, head={"chain": "ddim", "steps": 5})
    with pytest.raises(MgenError, match="does not add"):
        sampler.check(NET)
    sampler.override(head={"chain": "ancestral", "steps": 5}).check(NET)


def test_linear_guidance_counts_tokens() -> None:
    curve = {"kind": "linear", "start": 1.0, "end": 3.0, "at": "tokens"}
    sampler = ParallelSampler(steps=4, order="random", guidance=curve)
    left = sampler.remaining(unknown=LENGTH, length=LENGTH)
    assert sampler.values("guidance", LENGTH) == pytest.approx([1 + 2 * (LENGTH - n) / LENGTH for n in left])
    official = ParallelSampler(steps=4, order="random", guidance={**curve, "left": 1})
    assert official.values("guidance", LENGTH)[-1] == pytest.approx(1 + 2 * (LENGTH - 1) / LENGTH)
    assert official.override(guidance=5.0, head_steps=7, chain="ddim").config.head == {"steps": 7, "chain": "ddim"}


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pipe") / "tiny"
    tiny_continuous().save_pretrained(folder)
    return folder


def test_saved_pipeline_draws_the_same_images(saved: Path) -> None:
    a = tiny_continuous()([0, 1, 2], seed=3, progress=False, output_type="pt")
    b = mgen.load(saved)([0, 1, 2], seed=3, progress=False, output_type="pt")
    assert torch.equal(a.tokens, b.tokens) and torch.equal(a.images, b.images)
    c = mgen.load(saved)([0, 1, 2], seed=3, batch_size=2, progress=False, output_type="pt")
    assert torch.allclose(a.images, c.images, atol=1e-4)


def test_bf16_draws_nearly_the_same_picture(saved: Path) -> None:
    pipe = mgen.load(saved)
    exact = pipe([0, 1], seed=3, progress=False, output_type="pt").images
    rough = pipe([0, 1], seed=3, progress=False, output_type="pt", dtype="bf16")
    assert rough.tokens.dtype == torch.float32 and not torch.equal(rough.images, exact)
    assert (rough.images - exact).abs().mean() < 0.05


def test_a_tokenizer_of_another_scale_raises_an_error() -> None:
    sampler = ParallelSampler(order="random")
    with pytest.raises(MgenError, match="scale"):
        mgen.MaskedPipeline(tokenizer=tiny_kl(scale=0.9), transformer=tiny_mar(), sampler=sampler)
    with pytest.raises(MgenError, match="kind 'vector'"):
        mgen.MaskedPipeline(tokenizer=tiny_tokenizer(), transformer=tiny_mar(), sampler=sampler)
    mgen.MaskedPipeline(tokenizer=tiny_kl(scale=1.0001), transformer=tiny_mar(), sampler=sampler)


def test_commands_sample_and_edit(saved: Path, tmp_path: Path) -> None:
    """The given part of a picture stays; the rest is drawn; options of the head reach it."""
    out = tmp_path / "samples"
    arguments = ["--model", str(saved), "--num-images", "3", "--out", str(out)]
    assert main(["sample", *arguments, "--head-steps", "3", "--chain", "ddim", "--order", "halton"]) == 0
    assert json.loads((out / "run.json").read_text())["sampler"]["head"] == {"steps": 3, "clip": 4.0, "chain": "ddim"}
    picture = out / "000000_class-0000.png"
    edited = tmp_path / "edited"
    box = ["--box", "0,0,16,32", "--class", "1", "--num-images", "2"]
    assert main(["edit", str(picture), *box, "--model", str(saved), "--out", str(edited)]) == 0
    from mgen.data import load_image

    before = load_image(picture, channels=1)
    variants = [load_image(p, channels=1) for p in sorted(edited.glob("edit-*.png"))]
    assert len(variants) == 2
    for variant in variants:
        assert torch.equal(variant[..., 16:], before[..., 16:])
        assert not torch.equal(variant[..., :16], before[..., :16])


def test_bad_options_end_in_one_line(saved: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    for options, words in (
        (["--steps", "65"], "64 tokens"),
        (["--chain", "dimm"], "did you mean 'ddim'"),
        (["--order", "3,1"], "each once"),
        (["--order", "confidence"], "order random"),
    ):
        assert main(["sample", "--model", str(saved), "--out", str(tmp_path / "x"), *options]) == 2
        error = capsys.readouterr().err
        assert words in error and "Traceback" not in error


# -- training --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def moments(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """A made-up data set, a KL tokenizer of scale 1.3 and the cache of its moments, flips stored."""
    root = tmp_path_factory.mktemp("moments")
    idx, net = write_idx(root / "idx"), tiny_kl(scale=1.3)
    net.save_pretrained(root / "tokenizer")
    write_cache(FashionMNIST(root=idx), net, root / "cache", flips=True, shard_size=40, progress=False)
    return idx, root / "tokenizer", root / "cache"


def training(moments: tuple[Path, Path, Path], output: Path, **settings: Any) -> dict[str, Any]:
    base = {
        "task": "generator",
        "output": str(output),
        "steps": 6,
        "batch_size": 12,
        "model": tiny_config("mae", tokens=tiny_tokens("vector", side=8) | {"scale": None}, classes={"count": 10}),
        "data": {"kind": "cache", "path": str(moments[2]), "val_path": str(moments[2]), "flip": True},
        "objective": {
            "mask": {"distribution": "truncated-gaussian", "per": "batch", "rounding": "ceil"},
            "diffusion_batch_mul": 3,
            "tokenizer": str(moments[1]),
            "sampler": {"steps": 2, "order": "random", "head": {"steps": 3, "clip": 3.0}},
        },
        "optim": {
            "lr": 3e-3,
            "warmup": 1,
            "clip": 1.0,
            "weight_decay": 0.02,
            "decay_all": False,
            "no_decay": ["head."],
        },
        "ema": {"decay": 0.9},
        "log": {"every": 1, "checkpoint_every": 3, "tensorboard": False},
    }
    return apply_overrides(base, [f"{k}={json.dumps(v)}" for k, v in settings.items()])


def losses(output: Path) -> dict[int, float]:
    lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    return {line["step"]: line["loss"] for line in lines if "loss" in line}


def test_a_generator_learns_from_moments(moments: tuple[Path, Path, Path], tmp_path: Path) -> None:
    train(train_config(training(moments, tmp_path / "run", steps=60, **{"optim.lr": 1e-2})))
    seen = losses(tmp_path / "run")
    assert sum(seen[i] for i in range(51, 61)) < 0.8 * sum(seen[i] for i in range(1, 11))
    pipe = mgen.load(tmp_path / "run" / "model")
    assert pipe.transformer.tokens.scale == 1.3 and pipe.class_names[0] == "T-shirt"
    assert json.loads((tmp_path / "run" / "model" / "model_index.json").read_text())["class_names"]["0"] == "T-shirt"
    assert (tmp_path / "run" / "previews").is_dir()
    line = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[0])
    assert "mse" in line


@pytest.mark.parametrize("per", ["batch", "sample"])
def test_accumulation_and_passing_all_tokens_through_the_head_change_nothing(
    moments: tuple[Path, Path, Path], tmp_path: Path, per: str
) -> None:
    """Masks, timesteps, noise and posterior draws belong to the image, not to the piece of the batch it lies in."""
    runs = []
    for name, settings in (("one", {}), ("three", {"accumulate": 3}), ("all", {"objective.head_tokens": "all"})):
        config = training(moments, tmp_path / name, steps=3, **{"objective.mask.per": per}, **settings)
        train(train_config(config))
        runs.append(losses(tmp_path / name))
    assert runs[1] == pytest.approx(runs[0], rel=1e-4) and runs[2] == pytest.approx(runs[0], rel=1e-4)


def test_resumed_run_repeats_the_uninterrupted_one(moments: tuple[Path, Path, Path], tmp_path: Path) -> None:
    train(train_config(training(moments, tmp_path / "whole", **{"model.trunk.dropout": 0.1})))
    train(train_config(training(moments, tmp_path / "cut", steps=3, **{"model.trunk.dropout": 0.1})))
    train(train_config(training(moments, tmp_path / "cut", **{"model.trunk.dropout": 0.1})))
    assert losses(tmp_path / "cut") == losses(tmp_path / "whole")


def test_two_processes_train_like_one(moments: tuple[Path, Path, Path], tmp_path: Path) -> None:
    config = training(moments, tmp_path / "one", steps=3)
    train(train_config(config))
    (tmp_path / "c.yaml").write_text(yaml.safe_dump({**config, "output": str(tmp_path / "two")}))
    together("train", "--config", str(tmp_path / "c.yaml"), "processes=2", log=tmp_path / "log")
    assert losses(tmp_path / "one") == pytest.approx(losses(tmp_path / "two"), rel=1e-4)


def test_moments_need_their_tokenizer(moments: tuple[Path, Path, Path], tmp_path: Path) -> None:
    with pytest.raises(MgenError, match="on a 8×8 grid"):
        wide = tiny_kl(scale=1.3, image_size=64)
        wide.save_pretrained(tmp_path / "wide")
        settings = {
            "objective.tokenizer": str(tmp_path / "wide"),
            "model.tokens.length": 256,
            "model.tokens.grid": [16, 16],
        }
        train(train_config(training(moments, tmp_path / "c", **settings)))
    with pytest.raises(MgenError, match="kind 'index'"):
        config = training(moments, tmp_path / "d", **{"objective.tokenizer": None})
        config["objective"]["sampler"] = {}
        model = tiny_config("uvit", tokens=tiny_tokens(side=8, vocab_size=64), classes={"count": 10})
        train(train_config({**config, "model": model}))
    with pytest.raises(MgenError, match="low must lie below high"):
        train_config(training(moments, tmp_path / "e", **{"objective.mask.low": 0.9, "objective.mask.high": 0.5}))
    with pytest.raises(MgenError, match="objective.tokenizer"):
        train(train_config(training(moments, tmp_path / "a", **{"objective.tokenizer": None})))
    with pytest.raises(MgenError, match="scale"):
        train(train_config(training(moments, tmp_path / "b", **{"model.tokens.scale": 0.2})))


# -- official checkpoints --------------------------------------------------------------------------------------------


def test_the_published_file_gives_ema_weights_and_raw_on_request(tmp_path: Path) -> None:
    """A self-trained file also holds optimizer, epoch and an argparse.Namespace, and is still read as plain data."""
    ema = load_file(SETS / "mar" / "weights.safetensors")
    raw = {name: value + 1 for name, value in ema.items()}
    rest = {"epoch": 3, "args": argparse.Namespace(lr=1e-4), "optimizer": {"state": {}}}
    torch.save({"model": raw, "model_ema": ema, **rest}, tmp_path / "checkpoint-last.pth")
    heads = {"trunk": {"encoder_heads": 4, "decoder_heads": 4}}
    a = convert("mar", tmp_path / "checkpoint-last.pth", **heads).model.state_dict()
    b = convert("mar", tmp_path / "checkpoint-last.pth", raw=True, **heads).model.state_dict()
    null_classes = [state["classes.vectors.weight"][-1:] for state in (a, b)]
    assert torch.equal(null_classes[0], ema["fake_latent"]) and torch.equal(null_classes[1], raw["fake_latent"])
    assert a["trunk.encoder_position"].shape == ema["encoder_pos_embed_learned"].shape[1:]
    with pytest.raises(MgenError, match="--raw"):
        convert("kl16", tmp_path / "checkpoint-last.pth", raw=True)
    with pytest.raises(MgenError, match="one set of weights"):
        convert("mar", SETS / "mar" / "weights.safetensors", raw=True, **heads)
    torch.save({"model": raw}, tmp_path / "no-ema.pth")
    assert "no EMA weights" in convert("mar", tmp_path / "no-ema.pth", **heads).report()
    assert "trunk.encoder_heads=1 for width 64" in convert("mar", SETS / "mar" / "weights.safetensors").report()


def test_official_files_become_a_pipeline(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """mgen convert mar FILE --tokenizer FILE --recipe NAME, then mgen sample."""
    root = SETS
    c = json.loads((root / "mar" / "config.json").read_text())
    kl = json.loads((root / "kl16" / "config.json").read_text())
    assert c["vae_embed_dim"] == kl["z_channels"]
    out, weights = tmp_path / "model", str(root / "kl16" / "weights.safetensors")
    settings = [f"trunk.{half}_heads={c[f'{half}_num_heads']}" for half in ("encoder", "decoder")] + [
        "tokens.scale=0.2325"
    ]
    recipe = read_config(part("configs") / "recipes" / "mar-b-imagenet256.yaml")
    recipe["sampler"]["steps"] = 8  # the published 256 need 256 tokens
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    arguments = ["convert", "mar", str(root / "mar" / "weights.safetensors"), "--recipe", str(tmp_path / "recipe.yaml")]
    assert main([*arguments, "--tokenizer", weights, "--out", str(out), *settings]) == 2
    assert "no scale" in capsys.readouterr().err  # it is not KL16
    assert main(["convert", "kl16", weights, "--out", str(tmp_path / "kl"), "scale=0.2325"]) == 0
    assert main([*arguments, "--tokenizer", str(tmp_path / "kl"), "--out", str(out), *settings]) == 0
    pipe = mgen.load(out)
    assert pipe.sampler.config.counts == "mar" and pipe.tokenizer.config.scale == 0.2325
    images = pipe([0], steps=3, progress=False, sampler=pipe.sampler.override(head_steps=5), output_type="pt").images
    side = pipe.transformer.tokens.side * pipe.tokenizer.factor
    assert images.shape == (1, 3, side, side)
    save_file({"x": torch.zeros(1)}, tmp_path / "other.safetensors")
    assert main(["convert", "mar", str(tmp_path / "other.safetensors"), "--out", str(tmp_path / "m")]) == 2
    assert not (tmp_path / "m").exists()
