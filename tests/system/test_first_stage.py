"""Two stages: what the second sees of the first, given and absent first stages, training of both, caches of two resolutions."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor

from mgen.bench.flops import count_run
from mgen.cli import main
from mgen.data import FashionMNIST, TokenCache, write_cache
from mgen.data.first_stage import shrink
from mgen.generators import Cascade
from mgen.pipelines.editing import box_mask, edit
from mgen.pipelines.pipeline import MaskedPipeline, load
from mgen.samplers import ParallelSampler
from mgen.training.cascade import CascadeObjective
from mgen.training.config import train_config
from mgen.training.loop import train
from mgen.training.noise import Augmentation
from mgen.training.trainer import Trainer
from mgen.utils.errors import MgenError
from tests.helpers import (
    tiny_cascade_config,
    tiny_himar,
    tiny_kl,
    tiny_mar,
    tiny_tokenizer,
    tiny_tokens,
    write_idx,
)
from tests.processes import together
from tests.system.test_training import losses

VECTORS: dict[str, Any] = {
    "steps": 4,
    "order": "random",
    "guidance": 2.0,
    "head": {"steps": 4, "clip": 4.0},
    "first_stage": {"steps": 6, "order": "random", "guidance": 3.0, "head": {"steps": 4, "clip": 4.0}},
}
IDS: dict[str, Any] = {"steps": 4, "guidance": 2.0, "first_stage": {"steps": 5, "guidance": 2.0}}


def run(net: Cascade, settings: dict[str, Any], seeds: list[int], **given: Any) -> tuple[Tensor, Tensor | None]:
    """Tokens of the second and of the first stage of a run."""
    sampler = ParallelSampler(**settings)
    sampler.check(net)
    label, first, tokens = torch.tensor(seeds) % 3, None, None
    for step in sampler(net, label, noise=sampler.make_noise(net, seeds), **given):
        if step.first_stage:
            assert tokens is None, "the first stage after the second"
            first = step.tokens.clone()
        else:
            tokens = step.tokens.clone()
    assert tokens is not None
    return tokens, first


@pytest.mark.parametrize("kind", ["vector", "index"])
def test_both_stages_of_an_image_depend_on_its_seed_alone(kind: str) -> None:
    net, settings = tiny_himar(kind=kind), VECTORS if kind == "vector" else IDS
    tokens, first = run(net, settings, [4, 5, 6])
    again, first_again = run(net, settings, [5])
    assert first is not None and first_again is not None
    assert tokens.shape[:2] == (3, 64) and first.shape[:2] == (3, 16)
    if tokens.is_floating_point():
        assert (tokens[1] - again[0]).abs().max() < 1e-4 and (first[1] - first_again[0]).abs().max() < 1e-4
    else:
        assert torch.equal(tokens[1], again[0]) and torch.equal(first[1], first_again[0])
    other, _ = run(net, {**settings, "first_stage": {**settings["first_stage"], "guidance": 5.0}}, [4, 5, 6])
    assert not torch.allclose(tokens, other), "the first stage makes no difference"


def test_features_are_those_of_the_step_that_revealed_a_token(monkeypatch: pytest.MonkeyPatch) -> None:
    """Replayed from the outside: each step's context at what it reveals, from the tokens known before it."""
    net = tiny_himar()
    sampler, prefix = ParallelSampler(**VECTORS), net.prefix
    assert sampler.first_stage is not None
    handed: list[Tensor] = []

    def noting(features: Tensor, shown: Tensor | None = None, **others: Any) -> Tensor:
        handed.append(features)
        return prefix(features, shown, **others)

    monkeypatch.setattr(net, "prefix", noting)
    label, noise = torch.tensor([0, 1]), sampler.make_noise(net, [1, 2])
    steps = []
    for step in sampler(net, label, noise=noise, complete_first_stage=True):
        if step.first_stage:
            steps.append((step.tokens.clone(), step.known.clone()))
    (features,) = handed
    expected = torch.zeros_like(features)
    known = torch.zeros(2, 16, dtype=torch.bool)
    tokens = torch.zeros_like(steps[0][0])
    with torch.no_grad():
        for tokens_after, known_after in steps:
            z = net.first.context(tokens, known, label)
            fresh = known_after & ~known
            expected[fresh] = z[fresh]
            tokens, known = tokens_after, known_after
    assert (features - expected).abs().max() < 1e-5


def test_tokens_of_the_last_step_of_the_first_stage_are_drawn_only_if_asked_for() -> None:
    net = tiny_himar()
    tokens, first = run(net, VECTORS, [1, 2])
    same, whole = run(net, VECTORS, [1, 2], complete_first_stage=True)
    assert torch.equal(tokens, same), "what nobody reads changed the image"
    assert first is not None and whole is not None
    undrawn = (first != whole).any(-1)
    left = ParallelSampler(**VECTORS["first_stage"]).remaining(unknown=16, length=16)[-2]
    assert undrawn.sum(1).tolist() == [left, left]


def test_without_the_first_stage_the_second_runs_on_default_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    net = tiny_himar()
    settings = {**VECTORS, "first_stage": None}
    tokens, first = run(net, settings, [1, 2])
    assert first is None
    sampler, second = ParallelSampler(**settings), net.second
    start = second.start
    monkeypatch.setattr(second, "start", lambda ids, prefix, **others: start(ids, prefix=net.prefix(), **others))
    *_, step = sampler(second, torch.tensor([1, 2]), noise=sampler.make_noise(second, [1, 2]))
    assert torch.equal(tokens, step.tokens)


def test_a_given_first_stage_is_replaced_by_default_rows_and_given_tokens_stay() -> None:
    net = tiny_himar()
    rng = torch.Generator().manual_seed(0)
    first, tokens = torch.randn(2, 16, 4, generator=rng), torch.randn(2, 64, 4, generator=rng)
    known, first_known = torch.zeros(2, 64, dtype=torch.bool), torch.zeros(2, 16, dtype=torch.bool)
    known[:, 8:24] = first_known[:, 4:8] = True
    drawn, end = run(net, VECTORS, [1, 2], tokens=tokens, known=known, first_stage=(first, first_known))
    assert end is not None
    assert torch.equal(drawn[known], tokens[known]) and torch.equal(end[first_known], first[first_known])
    # Given tokens without a first stage: none is drawn.
    assert run(net, VECTORS, [1, 2], tokens=tokens, known=known)[1] is None
    everything = torch.ones_like(first_known)
    alone, _ = run(net, VECTORS, [1, 2], tokens=tokens, known=known, first_stage=(first, everything))
    without, _ = run(net, {**VECTORS, "first_stage": None}, [1, 2], tokens=tokens, known=known)
    assert torch.equal(alone, without), "with the whole first stage given the second sees default rows alone"


@pytest.mark.parametrize("order", ["halton", "raster"])
def test_reuse_and_order_work_in_both_stages(order: str) -> None:
    net = tiny_himar()
    reuse = {"cached": 1, "full_first": 1}
    settings = {
        **VECTORS,
        "order": order,
        "reuse": reuse,
        "first_stage": {**VECTORS["first_stage"], "order": order, "reuse": reuse},
    }
    tokens, first = run(net, settings, [1, 2])
    plain, _ = run(net, {**settings, "reuse": None, "first_stage": {**settings["first_stage"], "reuse": None}}, [1, 2])
    assert torch.isfinite(tokens).all() and first is not None and not torch.equal(tokens, plain)
    parts: Any = SimpleNamespace(transformer=net, tokenizer=None)
    fewer, all_ = (count_run(parts, ParallelSampler(**s)) for s in (settings, {**VECTORS, "order": order}))
    assert (
        fewer.passes["cached"] == 2 * (2 + 1)
        and fewer.passes["full"] < all_.passes["full"]
        and fewer.flops["trunk"] < all_.flops["trunk"]
    )
    assert fewer.flops["head"] == all_.flops["head"] > 0


def test_incompatible_settings_raise_errors() -> None:
    net = tiny_himar()
    for settings, words in (
        ({**VECTORS, "first_stage": {**VECTORS["first_stage"], "first_stage": {"steps": 2}}}, "nested first stages"),
        ({**IDS, "first_stage": {"steps": 4, "order": "remasking"}}, "whose context has been read"),
        ({**VECTORS, "first_stage": {"step": 4}}, "unknown key 'sampler.first_stage.step'"),
    ):
        with pytest.raises(MgenError, match=words):
            ParallelSampler(**settings)
    with pytest.raises(MgenError, match="has no first stage"):
        ParallelSampler(**VECTORS).check(tiny_mar())
    with pytest.raises(MgenError, match="steps is 17, this model has 16 tokens"):
        ParallelSampler(**{**VECTORS, "first_stage": {**VECTORS["first_stage"], "steps": 17}}).check(net)
    sampler = ParallelSampler(**VECTORS)
    with pytest.raises(MgenError, match="has no first stage"):
        MaskedPipeline(tokenizer=tiny_kl(), transformer=tiny_mar(), sampler=sampler)([0])
    assert sampler.override(first_stage=False).config.first_stage is None
    with pytest.raises(MgenError, match="'first_stage' takes a mapping, got 5"):
        sampler.override(first_stage=5)
    with pytest.raises(MgenError, match="must be smaller"):
        shrink(torch.zeros(1, 1, 8, 8), 8)


# -- training ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("data")
    write_idx(folder / "idx")
    tiny_kl().save_pretrained(folder / "kl")
    tiny_tokenizer().save_pretrained(folder / "vq")
    return {"idx": str(folder / "idx"), "kl": str(folder / "kl"), "vq": str(folder / "vq")}


def settings(made: dict[str, str], output: Path, kind: str = "kl", **changes: Any) -> dict[str, Any]:
    model = tiny_cascade_config("vector" if kind == "kl" else "index") | {"classes": {"count": 10}}
    if kind == "vq":
        for stage, side in (("first", 4), ("second", 8)):
            model[stage]["tokens"] = tiny_tokens(side=side, vocab_size=64)
    objective = {
        "mask": {"per": "batch", "rounding": "ceil"},
        "first_stage": {"keep": 0.5, "warmup": 2},
        "label_smoothing": 0.0,
        "diffusion_batch_mul": 2,
        "tokenizer": made[kind],
        "sampler": VECTORS if kind == "kl" else IDS,
    }
    return {
        "task": "generator",
        "output": str(output),
        "steps": 4,
        "batch_size": 12,
        "model": model,
        "data": {"kind": "fmnist", "path": made["idx"]},
        "objective": {**objective, **changes.pop("objective", {})},
        "optim": {"lr": 1e-2},
        "ema": {"decay": 0.5},
        "log": {"every": 1, "checkpoint_every": 2, "tensorboard": False},
        **changes,
    }


@pytest.mark.parametrize("kind", ["kl", "vq"])
@pytest.mark.parametrize("per", ["batch", "sample"])
def test_a_resumed_or_accumulated_run_is_the_same(kind: str, per: str, data: dict[str, str], tmp_path: Path) -> None:
    objective = {
        "mask": {"per": per},
        "first_stage": {"keep": 0.5, "warmup": 2, "mask": {"per": per, "low": 0.3, "mean": 0.5}},
    }
    train(train_config(settings(data, tmp_path / "whole", kind, objective=objective)))
    train(train_config(settings(data, tmp_path / "cut", kind, steps=2, objective=objective)))
    train(train_config(settings(data, tmp_path / "cut", kind, objective=objective)))
    assert losses(tmp_path / "cut") == losses(tmp_path / "whole")
    train(train_config(settings(data, tmp_path / "pieces", kind, accumulate=3, objective=objective)))
    assert losses(tmp_path / "pieces") == pytest.approx(losses(tmp_path / "whole"), rel=1e-4)
    assert load(tmp_path / "whole" / "model")([0], seed=0).images


def test_two_processes_train_like_one(data: dict[str, str], tmp_path: Path) -> None:
    config = settings(data, tmp_path / "one", batch_size=96, steps=3, objective={"mask": {"per": "sample"}})
    train(train_config(config))
    (tmp_path / "c.yaml").write_text(yaml.safe_dump({**config, "output": str(tmp_path / "two")}))
    together("train", "--config", str(tmp_path / "c.yaml"), "processes=2", log=tmp_path / "log")
    assert losses(tmp_path / "one") == pytest.approx(losses(tmp_path / "two"), rel=1e-4)


def test_labels_and_the_first_stage_are_dropped_as_often_as_set(data: dict[str, str], tmp_path: Path) -> None:
    objective = Trainer(
        train_config(settings(data, tmp_path / "run", objective={"first_stage": {"keep": 0.25, "warmup": 100}}))
    ).objective
    assert isinstance(objective, CascadeObjective)
    shares = []
    for step in (0, 50, 100, 300):
        rng = torch.Generator().manual_seed(step)
        noise = objective.make_noise(4000, rng, augmentation=Augmentation(), step=step)
        shares.append(1 - noise.without_first.float().mean().item())
        both = (noise.label_drop & noise.first.label_drop).float().mean()
        assert abs(noise.label_drop.float().mean() - 0.1) < 0.03 and both < 0.03, "the two label drops are one"
    assert shares == pytest.approx([0, 0.125, 0.25, 0.25], abs=0.03)
    assert noise.first.known.shape == (4000, 16) and noise.known.shape == (4000, 64)
    assert len(set((~noise.first.known).sum(1).tolist())) == 1, "one ratio for the whole batch"


def test_the_second_stage_sends_no_gradient_to_the_first() -> None:
    net = tiny_himar(kind="index").train()
    rng = torch.Generator().manual_seed(0)
    tokens, first = torch.randint(16, (2, 64), generator=rng), torch.randint(16, (2, 16), generator=rng)
    label, known = torch.tensor([0, 1]), torch.rand(2, 64, generator=rng) < 0.5
    seen = torch.rand(2, 16, generator=rng) < 0.5
    for dropped in (False, True):
        net.zero_grad()
        out = net((first, tokens), (label, label), (seen, known), torch.full((2,), dropped))
        out["loss"].sum().backward()
        for name, weight in [*net.first_embedder.named_parameters(), *net.first_head.named_parameters()]:
            assert weight.grad is None or not weight.grad.any(), name
        assert net.feature_proj.weight.grad is not None
        assert bool(net.feature_proj.weight.grad.any()) != dropped, (
            "features reach the tokens where they are kept, only there"
        )


def test_a_cache_of_two_resolutions_holds_what_the_tokenizer_makes(data: dict[str, str], tmp_path: Path) -> None:
    for kind, tokenizer in (("vq", tiny_tokenizer()), ("kl", tiny_kl())):
        main(
            [
                "cache",
                "--data",
                "fmnist",
                "--data-path",
                data["idx"],
                "--tokenizer",
                data[kind],
                "--first-stage-size",
                "16",
                "--flips",
            ]
            + ["--out", str(tmp_path / kind)]
        )
        cache = TokenCache(tmp_path / kind, fingerprint=tokenizer.fingerprint())
        batch, images = cache.__getitems__([3, 7]), FashionMNIST(root=data["idx"]).__getitems__([3, 7])["image"]
        name = cache.name
        with torch.no_grad():
            expected = (tokenizer.encode if kind == "vq" else tokenizer.moments)(shrink(images.flip(-1), 16))
        got = batch[f"first_stage_{name}"][:, 1]
        assert torch.allclose(got.float(), expected.float(), atol=1e-5) and batch[name].shape[2:] != got.shape[1:]
        run_ = settings(
            data, tmp_path / f"run-{kind}", kind, data={"kind": "cache", "path": str(tmp_path / kind), "flip": True}
        )
        train(train_config(run_))
        assert len(losses(tmp_path / f"run-{kind}")) == 4
    write_cache(FashionMNIST(root=data["idx"]), tiny_kl(), tmp_path / "one", progress=False)
    with pytest.raises(MgenError, match="mgen cache --first-stage-size 16"):
        Trainer(train_config(settings(data, tmp_path / "x", data={"kind": "cache", "path": str(tmp_path / "one")})))
    with pytest.raises(MgenError, match="holds no smaller images"):  # nor may the validation data lack them
        paths = {"path": str(tmp_path / "kl"), "val_path": str(tmp_path / "one")}
        Trainer(train_config(settings(data, tmp_path / "z", data={"kind": "cache", **paths})))
    with pytest.raises(MgenError, match="must be smaller"):
        write_cache(FashionMNIST(root=data["idx"]), tiny_kl(), tmp_path / "bad", first_stage_size=64, progress=False)
    assert not (tmp_path / "bad" / "index.json").exists(), "an impossible size left an index in the folder"
    wrong = settings(data, tmp_path / "y", data={"kind": "cache", "path": str(tmp_path / "kl")})
    wrong["model"]["first"]["tokens"] = tiny_tokens("vector", side=2)
    wrong["objective"]["sampler"] = {"steps": 4, "order": "random"}
    with pytest.raises(MgenError, match="--first-stage-size 8"):
        Trainer(train_config(wrong))


# -- from the command line ---------------------------------------------------------------------------------------------


def test_pipelines_of_two_stages_sample_edit_and_show_how(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pipe = MaskedPipeline(tokenizer=tiny_kl(), transformer=tiny_himar(), sampler=ParallelSampler(**VECTORS))
    pipe.save_pretrained(tmp_path / "model")
    again = load(tmp_path / "model")
    assert torch.equal(
        pipe([0, 1], seed=3, output_type="uint8").images, again([0, 1], seed=3, output_type="uint8").images
    )
    image = torch.randint(0, 256, (1, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    mask = box_mask((8, 8, 24, 24), (32, 32))
    edited = edit(again, image, mask, [0, 1])
    assert torch.equal(edited[:, :, ~mask], image[None].expand(2, -1, -1, -1)[:, :, ~mask])
    out = tmp_path / "out"
    common = [
        "--model",
        str(tmp_path / "model"),
        "--out",
        str(out),
        "--num-images",
        "3",
        "--set",
        "first_stage.steps=3",
    ]
    assert main(["sample", *common, "--animation", str(tmp_path / "a.gif")]) == 0
    assert json.loads((out / "run.json").read_text())["sampler"]["first_stage"]["steps"] == 3
    from PIL import Image

    with Image.open(tmp_path / "a.gif") as gif:
        assert gif.n_frames >= 3 + 4 - 1  # equal neighbors are merged


def test_a_sweep_of_a_saved_model_is_measured_against_a_reference(tmp_path: Path) -> None:
    pipe = MaskedPipeline(tokenizer=tiny_kl(), transformer=tiny_himar(), sampler=ParallelSampler(**VECTORS))
    pipe.save_pretrained(tmp_path / "model")
    methods = {"with": {}, "without": {"first_stage": None}}
    (tmp_path / "s.yaml").write_text(yaml.safe_dump({"base": "with", "steps": [2], "methods": methods}))
    line = ["bench", "--sweep", str(tmp_path / "s.yaml"), "--model", str(tmp_path / "model"), "--num-images", "4"]
    line += ["--batch-size", "2", "--out", str(tmp_path / "sweep")]
    assert main(line) == 2, "its classes are not Fashion-MNIST's"
    assert main([*line, "--reference", "fmnist-train"]) == 0
    rows = json.loads((tmp_path / "sweep" / "sweep.json").read_text())["rows"]
    assert [row["method"] for row in rows] == ["with", "without"] and all(row["distance"] > 0 for row in rows)
    assert rows[0]["full"] > rows[1]["full"] and rows[0]["tflops"] > rows[1]["tflops"]


def test_a_saved_model_is_timed_by_part(tmp_path: Path) -> None:
    """Its weights take gradients, which the count of operations must not trip over."""
    pipe = MaskedPipeline(tokenizer=tiny_kl(), transformer=tiny_himar(), sampler=ParallelSampler(**VECTORS))
    pipe.save_pretrained(tmp_path / "model")
    line = ["bench", "--model", str(tmp_path / "model"), "--batch-size", "2", "--json", str(tmp_path / "bench.json")]
    assert main(line) == 0
    parts = json.loads((tmp_path / "bench.json").read_text())["tflops_per_image"]
    assert min(parts[name] for name in ("trunk", "head", "decoder")) > 0
