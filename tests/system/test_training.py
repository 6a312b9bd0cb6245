"""Training: exact resume, process and accumulation independence, safety nets, configuration errors."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from mgen.generators import Cascade
from mgen.samplers import ParallelSampler
from mgen.training import parallel
from mgen.training.cascade import CascadeObjective
from mgen.training.config import MaskConfig, train_config
from mgen.training.from_data import fill_from_data
from mgen.training.generator_objective import GeneratorObjective
from mgen.training.loop import run, train
from mgen.training.masking import known_from_uniform, mask_fraction_from_uniform
from mgen.training.noise import Augmentation
from mgen.training.objective import StepOutput
from mgen.training.parts import check_prefixes
from mgen.training.trainer import Trainer
from mgen.utils.config import apply_overrides, read_config
from mgen.utils.errors import MgenError
from mgen.utils.schema import build
from tests.helpers import TOKENIZER, tiny_config, tiny_tokenizer, tiny_tokens, write_idx
from tests.processes import launch, together
from tests.system.boundaries.training import folders

TOKENS = tiny_tokens(side=8, vocab_size=64)


@pytest.fixture(scope="module")
def idx(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_idx(tmp_path_factory.mktemp("idx"))


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    tiny_tokenizer().save_pretrained(folder)
    return folder


def generator_run(idx: Path, tokenizer: Path, output: Path, **settings: Any) -> dict[str, Any]:
    base = {
        "task": "generator",
        "output": str(output),
        "steps": 6,
        "batch_size": 12,
        "model": tiny_config("uvit", tokens=TOKENS, classes={"count": 10}, dropout=0.1),
        "data": {"kind": "fmnist", "path": str(idx), "shift": 1},
        "objective": {"tokenizer": str(tokenizer), "sampler": {"steps": 2}},
        "optim": {"lr": 3e-3, "schedule": "cosine", "warmup": 1, "clip": 1.0},
        "ema": {"decay": 0.9},
        "log": {"every": 1, "checkpoint_every": 3, "tensorboard": False},
    }
    return apply_overrides(base, [f"{k}={json.dumps(v)}" for k, v in settings.items()])


def losses(output: Path) -> dict[int, float]:
    lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    return {line["step"]: line["loss"] for line in lines if "loss" in line}


def weights(output: Path, name: str = "model") -> dict[str, torch.Tensor]:
    return load_file(output / name / "transformer" / "diffusion_pytorch_model.safetensors")


def test_resumed_run_repeats_the_uninterrupted_one(idx: Path, tokenizer: Path, tmp_path: Path) -> None:
    whole = generator_run(idx, tokenizer, tmp_path / "whole")
    train(train_config(whole))
    # Stop after 4 of 6 steps by force: the newest checkpoint is that of step 3.
    trainer = Trainer(train_config({**whole, "output": str(tmp_path / "cut")}))
    real = trainer.train_step

    def stop_at_four(*args: Any) -> Any:
        if trainer.step == 4:
            raise KeyboardInterrupt
        return real(*args)

    trainer.train_step = stop_at_four  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        run(trainer)
    assert sorted(losses(tmp_path / "cut")) == [1, 2, 3, 4]
    train(train_config({**whole, "output": str(tmp_path / "cut")}))
    assert losses(tmp_path / "cut") == losses(tmp_path / "whole")
    for name in ("model", "model-raw"):
        a, b = weights(tmp_path / "whole", name), weights(tmp_path / "cut", name)
        assert all(torch.equal(a[k], b[k]) for k in a)
    assert not torch.equal(
        weights(tmp_path / "whole")["trunk.norm.weight"], weights(tmp_path / "whole", "model-raw")["trunk.norm.weight"]
    )


def test_accumulation_computes_the_same_gradient(idx: Path, tokenizer: Path, tmp_path: Path) -> None:
    runs = {}
    for pieces in (1, 3):
        config = generator_run(
            idx, tokenizer, tmp_path / str(pieces), accumulate=pieces, **{"model.trunk.dropout": 0.0, "steps": 3}
        )
        train(train_config(config))
        runs[pieces] = losses(tmp_path / str(pieces)), weights(tmp_path / str(pieces), "model-raw")
    assert runs[1][0] == pytest.approx(runs[3][0], rel=1e-4)
    for k, v in runs[1][1].items():
        assert torch.allclose(v, runs[3][1][k], atol=2e-4), k


@pytest.mark.parametrize("trunk", ["uvit", "weighted", "causal", "permuted"])
def test_two_processes_train_like_one(trunk: str, idx: Path, tokenizer: Path, tmp_path: Path) -> None:
    import yaml

    # 96 images a step: the 48 validation images are one batch, fewer than there are processes.
    config = generator_run(
        idx, tokenizer, tmp_path / "one", **{"model.trunk.dropout": 0.0, "steps": 4, "batch_size": 96}
    )
    if trunk == "weighted":  # visible tokens count too, and the processes have other numbers of them
        config["objective"] |= {"loss_tokens": "all", "known_weight": 0.1}
    elif trunk != "uvit":
        config |= {"model": tiny_config(trunk, tokens=TOKENS, classes={"count": 10})}
        config |= {"objective": {"tokenizer": str(tokenizer)}}
    if trunk == "permuted":  # some images of a step are permuted, others are not
        config["objective"]["permutation"] = {"start": 0, "end": 6}
    train(train_config(config))
    (tmp_path / "c.yaml").write_text(yaml.safe_dump({**config, "output": str(tmp_path / "two")}))
    arguments = ["--config", str(tmp_path / "c.yaml"), "processes=2"]
    if trunk == "uvit":
        done = launch(["--multi_gpu", "--num_processes", "2", "--main_process_port", "0"], *arguments)
        assert done.returncode == 0, done.stderr[-2000:]
    else:
        together("train", *arguments, log=tmp_path / "log")
    assert losses(tmp_path / "one") == pytest.approx(losses(tmp_path / "two"), rel=1e-4)
    one, two = weights(tmp_path / "one"), weights(tmp_path / "two")
    assert all(torch.allclose(one[k], two[k], atol=2e-4) for k in one)


def test_steps_that_are_not_finite_are_skipped_and_counted(idx: Path, tokenizer: Path, tmp_path: Path) -> None:
    trainer = Trainer(train_config(generator_run(idx, tokenizer, tmp_path / "run")))
    real = trainer.objective.forward
    before: dict[str, torch.Tensor] = {}

    def poison(batch: Any, noise: Any, options: Any) -> StepOutput:
        out = real(batch, noise, options)
        if trainer.step == 2 and trainer.objective.training:
            before.update({k: v.clone() for k, v in trainer.objective.state_dict().items()})
            return out._replace(loss=out.loss * float("nan"))
        if trainer.step == 3 and before and trainer.objective.training:
            after = trainer.objective.state_dict()
            assert all(torch.equal(after[k], v) for k, v in before.items()), (
                "a step with a NaN gradient changed the weights"
            )
            before.clear()
        return out

    trainer.objective.forward = poison  # type: ignore[method-assign]
    run(trainer)
    assert not before
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["skipped"] for line in lines if "skipped" in line] == [0, 0, 1, 1, 1, 1]


def test_old_checkpoints_are_removed_after_the_new_one_is_complete(idx: Path, tokenizer: Path, tmp_path: Path) -> None:
    train(train_config(generator_run(idx, tokenizer, tmp_path / "run", **{"log.checkpoint_every": 1, "log.keep": 2})))
    assert sorted(p.name for p in (tmp_path / "run").glob("checkpoint-*")) == [
        "checkpoint-0000005",
        "checkpoint-0000006",
    ]


def test_a_failed_checkpoint_leaves_the_old_ones(
    idx: Path, tokenizer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = generator_run(idx, tokenizer, tmp_path / "run", **{"log.checkpoint_every": 1, "log.keep": 1})
    trainer = Trainer(train_config(config))
    real = parallel.write_tensors

    def full(path: Path, tensors: dict[str, torch.Tensor]) -> None:
        if trainer.step == 3 and path.name == "optimizer.safetensors":
            path.write_bytes(b"half")
            raise OSError(28, "No space left on device")
        real(path, tensors)

    monkeypatch.setattr(parallel, "write_tensors", full)
    with pytest.raises(MgenError, match="free space"):
        run(trainer)
    assert [p.name for p in (tmp_path / "run").glob("*checkpoint-*")] == ["checkpoint-0000002"]


@pytest.mark.parametrize("name", ["model", "optimizer", "ema", "state"])
def test_a_damaged_checkpoint_falls_back_to_the_one_before(
    name: str, idx: Path, tokenizer: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    config = generator_run(idx, tokenizer, run, **{"steps": 3, "log.checkpoint_every": 1, "log.keep": 3})
    train(train_config(config))
    whole = losses(run), weights(run)
    files = [
        run / f"checkpoint-{n:07d}" / (f"{name}.safetensors" if name != "state" else "state.json") for n in (3, 2, 1)
    ]
    for file in files[:2]:
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.warns(UserWarning, match=r"checkpoint-0000003 is damaged.*resuming from checkpoint-0000001"):
        train(train_config(config))
    assert losses(run) == whole[0] and all(torch.equal(whole[1][k], v) for k, v in weights(run).items())
    for file in files:
        file.write_bytes(b"")
    with pytest.raises(MgenError, match="cannot resume: .*checkpoint-0000003 is damaged.*remove it"):
        train(train_config(config))


def test_resume_false_never_mixes_runs_and_the_batch_stays(idx: Path, tokenizer: Path, tmp_path: Path) -> None:
    config = generator_run(idx, tokenizer, tmp_path / "run", **{"steps": 2, "log.checkpoint_every": 1})
    train(train_config(config))
    with pytest.raises(MgenError, match="holds checkpoints"):
        train(train_config({**config, "resume": False}))
    with pytest.raises(MgenError, match="batch_size was 12, now it is 6"):
        train(train_config({**config, "batch_size": 6}))


def test_training_lowers_the_loss_and_writes_grids(idx: Path, tokenizer: Path, tmp_path: Path) -> None:
    config = generator_run(
        idx,
        tokenizer,
        tmp_path / "run",
        **{"steps": 40, "log.preview_every": 20, "log.checkpoint_every": 0, "precision": "bf16"},
    )
    train(train_config(config))
    found = losses(tmp_path / "run")
    assert sum(found[s] for s in range(36, 41)) < 0.9 * sum(found[s] for s in range(1, 6))
    names = sorted(p.name for p in (tmp_path / "run" / "previews").iterdir())
    assert names == ["0000020-ema.png", "0000020-raw.png", "0000040-ema.png", "0000040-raw.png"]


@pytest.mark.parametrize(
    "extra",
    [
        {},
        {
            "objective": {
                "adversarial": 0.1,
                "adversarial_start": 2,
                "r1": 1.0,
                "discriminator_channels": 8,
                "entropy": 0.1,
            }
        },
    ],
)
def test_tokenizers_train(idx: Path, tmp_path: Path, extra: dict) -> None:
    config = {
        "task": "tokenizer",
        "output": str(tmp_path / "run"),
        "steps": 40,
        "batch_size": 16,
        "model": {"class": "VQGAN", **TOKENIZER, "latent": 4, "vocab_size": 64},
        "data": {"kind": "fmnist", "path": str(idx)},
        "optim": {"lr": 3e-3},
        "log": {"every": 1, "checkpoint_every": 5},
        **extra,
    }
    train(train_config(config))
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert lines[39]["l2"] < 0.6 * lines[0]["l2"]
    assert {"usage", "perplexity", "psnr", "codebook", "commitment"} <= lines[0].keys()
    assert any(name.startswith("val_") for name in lines[-1])
    if extra:
        assert "discriminator" not in lines[1] and "discriminator" in lines[2]


def test_classifier_learns_and_serves_as_extractor_and_perceptual_model(idx: Path, tmp_path: Path) -> None:
    base = {"batch_size": 32, "data": {"kind": "fmnist", "path": str(idx)}, "log": {"every": 5, "checkpoint_every": 0}}
    config = {
        "task": "classifier",
        "output": str(tmp_path / "cnn"),
        "steps": 40,
        "model": {"class": "ImageClassifier", "widths": [8, 8, 16], "features": 8},
        "optim": {"lr": 1e-2},
        "ema": None,
    }
    train(train_config({**base, **config}))
    last = json.loads((tmp_path / "cnn" / "metrics.jsonl").read_text().splitlines()[-1])
    assert last["val_accuracy"] > 0.9
    tokenizer = {
        "task": "tokenizer",
        "output": str(tmp_path / "tok"),
        "steps": 3,
        "model": {"class": "VQGAN", **TOKENIZER, "fsq_levels": [4, 4, 4]},
        "objective": {"perceptual": 0.5, "perceptual_model": str(tmp_path / "cnn" / "model")},
        "optim": {"freeze": ["encoder"]},
    }
    trainer = Trainer(train_config({**base, **tokenizer}))
    before = {k: v.clone() for k, v in trainer.objective.model.state_dict().items()}
    run(trainer)
    after = trainer.objective.model.state_dict()
    changed = {k.split(".")[0] for k in before if not torch.equal(before[k], after[k])}
    assert changed == {"decoder"}


@pytest.mark.parametrize("distribution", ["cosine", "arccos", "beta", "truncated-gaussian", "uniform"])
def test_mask_fractions_have_the_stated_distribution(distribution: str) -> None:
    u = torch.rand(20000, generator=torch.Generator().manual_seed(0))
    r = mask_fraction_from_uniform(u, MaskConfig(distribution=distribution))  # type: ignore[arg-type]
    mean = {"cosine": 2 / torch.pi, "arccos": 2 / torch.pi, "beta": 0.8, "truncated-gaussian": 0.8656, "uniform": 0.5}[
        distribution
    ]
    assert abs(r.mean().item() - mean) < 0.01
    assert r.min() >= 0 and r.max() <= 1
    if distribution == "truncated-gaussian":
        assert r.min() >= 0.7


def test_masks_hide_the_rounded_number_of_tokens() -> None:
    fraction = torch.tensor([0.0, 0.3, 0.5, 1.0], dtype=torch.float64)
    hidden = (~known_from_uniform(fraction, torch.rand(4, 9))).sum(1).tolist()
    assert hidden == [1, 3, 4, 9]  # at least one; 4.5 rounds to even
    assert (~known_from_uniform(fraction, torch.rand(4, 9), "ceil")).sum(1).tolist() == [1, 3, 5, 9]


def test_configuration_errors_name_the_nearest_key(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text(
        "task: classifier\noutput: out\nsteps: 5\nmodel: {class: ImageClassifier}\noptim: {lr: 1e-4}\n"
    )
    (tmp_path / "c.yaml").write_text("extends: base.yaml\noptim: {warmup: 3}\n")
    data = read_config(tmp_path / "c.yaml")
    config = train_config(data)
    assert (config.optim.lr, config.optim.warmup) == (1e-4, 3)
    for override, words in [
        ("optim.lrr=1", "unknown key 'optim.lrr': did you mean 'lr'"),
        ("optim.lr=fast", "'optim.lr' takes a number, got 'fast'"),
        ("task=generater", "generator"),
        ("objective.label_smothing=0", "label_smoothing"),
        ("data.kind=fminst", "fmnist"),
        ("steps=0", "allowed is at least 1"),
        ("log.every=0", "allowed is at least 1"),
        ("optim.lr=-1", "allowed is at least 0"),
        ("objective=3", "expected a mapping"),
        ("steps", "key.sub=value"),
        ("optim.betas=[0.9]", "takes more values"),
    ]:
        with pytest.raises(MgenError, match=words.replace("[", r"\[")):
            train_config(apply_overrides(data, [override]))
    with pytest.raises(MgenError, match="did you mean 'widths'"):
        from mgen.training.config import build_model

        build_model({"class": "ImageClassifier", "width": [8]})
    for model, words in (
        ({"class": "MaskGIT", "size": "L"}, "unknown model.class 'MaskGIT'.*A generator has no class"),
        ({"class": "Generator", "trunk": {}}, "model.class is 'Generator'.*A generator has no class"),
        (3, "model is 3: expected a name of a model, or a mapping"),
        ({}, "missing section 'model.head'"),
    ):
        with pytest.raises(MgenError, match=words):
            build_model(model)  # type: ignore[arg-type]
    assert build(MaskConfig, {"mean": 1}).mean == 1.0


@pytest.mark.parametrize("key", ["freeze", "no_decay"])
def test_a_prefix_without_parameters_names_the_nearest(key: str, idx: Path, tokenizer: Path, tmp_path: Path) -> None:
    def error(*prefixes: str) -> str:
        config = generator_run(idx, tokenizer, tmp_path / "run", **{f"optim.{key}": list(prefixes)})
        with pytest.raises(MgenError) as found:
            Trainer(train_config(config))
        return str(found.value)

    nearest = {"norm.weight": "trunk.norm.weight", "haed.bias": "head.bias", "trunk.postion": "trunk.position"}
    for prefix, name in nearest.items():
        text = error("head.", prefix)
        assert f"optim.{key} has '{prefix}'" in text and name in text and "classes, embedder, head, trunk" in text


def test_prefixes_choose_what_is_frozen_and_what_does_not_decay(idx: Path, tokenizer: Path, tmp_path: Path) -> None:
    settings = {"optim.freeze": ["trunk.in_blocks"], "optim.no_decay": ["head.", "embedder"], "optim.weight_decay": 0.1}
    trainer = Trainer(train_config(generator_run(idx, tokenizer, tmp_path / "run", **settings)))
    decay = {id(p): group["weight_decay"] for group in trainer.optimizer.param_groups for p in group["params"]}
    for name, parameter in trainer.objective.model.named_parameters():
        frozen, exempt = name.startswith("trunk.in_blocks"), name.startswith(("head.", "embedder"))
        assert parameter.requires_grad != frozen
        assert decay.get(id(parameter)) == (None if frozen else 0.0 if exempt else 0.1), name


def test_a_model_is_named_named_with_changes_or_written_out() -> None:
    from mgen.generators import model_config
    from mgen.training.config import build_model

    changes = {"trunk": {"dim": 48, "heads": 3}, "classes": {"count": 4}}
    with torch.device("meta"):
        named, changed = build_model("fmnist-maskgit"), build_model({"name": "fmnist-maskgit", **changes})
        written = build_model(model_config("fmnist-maskgit", **changes))
    assert named.config != changed.config and changed.config == written.config
    assert (changed.trunk.width, changed.num_classes) == (48, 4)
    cascade = {"name": "fmnist-himar", "first": {"head": {"depth": 1}}}
    with torch.device("meta"):
        depths = [len(build_model(settings).first.head.blocks) for settings in ("fmnist-himar", cascade)]
    assert depths[1] == 1 < depths[0]


def test_every_shipped_config_is_valid(tmp_path: Path) -> None:
    from mgen.training.config import build_model
    from mgen.utils.folders import part

    files = sorted((part("configs") / "train").glob("*.yaml"))
    assert len(files) >= 5
    for file in files:
        settings = read_config(file)
        if settings.get("data", {}).get("held_out"):  # for own images, which say the rest
            settings["data"]["path"] = str(folders(str(tmp_path / file.stem), cat=2, dog=2))
        config = train_config(fill_from_data(settings))
        with torch.device("meta"):
            model = build_model(config.model)
        for key in ("freeze", "no_decay"):
            check_prefixes(model, getattr(config.optim, key), f"{file}: optim.{key}")
        if config.task == "generator":
            ParallelSampler.suited(model, config.objective.sampler, f"{file}: objective.sampler").check(model)
            kind = CascadeObjective if isinstance(model, Cascade) else GeneratorObjective
            objective = kind(model, config.objective)
            # Masks that suit the model, in the published rounding.
            objective.make_noise(2, torch.Generator(), augmentation=Augmentation())


def test_data_and_model_must_fit(idx: Path, tokenizer: Path, tmp_path: Path) -> None:
    for overrides, words in [
        ({"model.classes.count": 3}, "10 classes, but model.classes.count is 3"),
        ({"model.tokens.vocab_size": 32}, "tokenizer"),
        ({"model.classes.null_class": False}, "null class"),
        ({"objective.tokenizer": None}, "objective.tokenizer"),
        ({"batch_size": 7, "accumulate": 2}, "not a multiple"),
        ({"objective.sampler": {"stepz": 3}}, "did you mean 'steps'"),
        ({"objective.sampler": {"guidance": "high"}}, "expected a number"),
        ({"model.trunk.heads": 5}, "heads 5 does not divide"),
        ({"model.trunk.dropuot": 0.1}, "unknown key 'model.trunk.dropuot': did you mean 'dropout'"),
        ({"model.dropout": 0.1}, "unknown key 'model.dropout'"),
        ({"model": "fmnist-maskgti"}, "did you mean 'fmnist-maskgit'"),
        ({"init": str(tmp_path)}, "no saved model"),
    ]:
        with pytest.raises(MgenError, match=words):
            train(train_config(generator_run(idx, tokenizer, tmp_path / "run", **overrides)))
