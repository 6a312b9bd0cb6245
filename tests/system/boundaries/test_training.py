"""Training: settings out of range, checkpoints that were changed, data and weights that don't fit, runs that are stopped or diverge."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from mgen.cli import main
from mgen.training.config import train_config
from mgen.training.loop import train
from mgen.utils.config import read_config
from tests.system.boundaries.harness import Parts, Refused, row

LONG = "a" * 300
# What a generator's settings are replaced by, for the other tasks.
VQGAN = {
    "class": "VQGAN",
    "image_size": 32,
    "in_channels": 1,
    "channels": 8,
    "multipliers": [1, 1, 2],
    "blocks": 1,
    "norm_groups": 0,
}
VQGAN |= {"mid_blocks": 1, "latent": 4, "vocab_size": 64}
CNN = {"class": "FashionCNN", "widths": [8, 8, 16], "features": 8, "num_classes": 3}


def settings_of(parts: Parts, task: str = "generator", **sections: Any) -> dict[str, Any]:
    """Settings of a small run on `images`, into the folder `trained`."""
    settings = read_config(parts["config"]) | {"task": task}
    if task != "generator":
        settings |= {"model": VQGAN if task == "tokenizer" else CNN, "objective": {}}
    return {**settings, **sections}


def written(settings: dict[str, Any], name: str = "own.yaml") -> str:
    """A file of these settings in the test's folder."""
    Path(name).write_text(yaml.safe_dump(settings))
    return name


# -- settings ----------------------------------------------------------------------------------------------------------------

SETTINGS: list[tuple[str, str]] = [
    ("steps=0", "at least 1"),
    ("steps=-5", "at least 1"),
    ("steps=1.5", "whole number"),
    ("steps=true", "whole number"),
    ("steps='2'", "whole number"),
    ("steps=null", "whole number"),
    ("steps=[2]", "whole number"),
    ("steps=1000000000000", "at most 1000000000"),
    (f"steps={10**30}", "64 bits"),
    ("steps=.nan", "finite"),
    ("batch_size=0", "at least 1"),
    ("batch_size=-4", "at least 1"),
    ("batch_size=1000000", "batch_size 1000000"),
    ("batch_size=1000000000000", "batch_size 1000000000000"),
    ("batch_size=9007199254740993", "lower batch_size"),
    ("accumulate=0", "at least 1"),
    ("accumulate=3", "not a multiple"),
    ("accumulate=1000000000000", "not a multiple"),
    ("seed=1.5", "whole number"),
    ("seed=x", "whole number"),
    ("precision=fp8", "bf16"),
    ("precision=null", "precision"),
    ("resume=maybe", "true or false"),
    ("processes=0", "at least 1"),
    ("processes=2", "asks for 2 processes"),
    ("init=", "has no value"),
    ("init=''", "not empty"),
    ("init=5", "text"),
    ("init=[a]", "text"),
    ("init=nothing-here", "no saved model"),
    ("output=", "has no value"),
    ("output=''", "not empty"),
    ('output="\\u0020"', "no path"),
    (f"output={LONG}", "255 bytes"),
    (f"output={'a/' * 2500}x", "4095"),
    ('output="a\\0b"', "no path"),
    ("output=/proc/nothing/here", "cannot write"),
    ("output=/dev/null", "cannot write"),
    ("task=", "has no value"),
    ("task=generators", "generator"),
    ("model={}", "changes nothing"),
    ("model=5", "model"),
    ("model=null", "model"),
    ("model=''", "unknown model"),
    ("model=[a]", "model"),
    ("model=maskgit-r-1", "did you mean"),
    ("model.class=null", "unknown model.class"),
    ("model.class=5", "unknown model.class"),
    ("model.class=[MaskGIT]", "unknown model.class"),
    ("model.class={}", "unknown model.class"),
    ("model.class=VQGAN", "unknown key"),
    ("model.size=L", "unknown key 'model.size'"),
    ("model.size=5", "unknown key 'model.size'"),
    ("model.dim=-32", "unknown key 'model.dim'"),
    ("model.side=-8", "unknown key 'model.side'"),
    ("model.class_names=5", "unknown key 'model.class_names'"),
    ("model.class_names=[a]", "unknown key 'model.class_names'"),
    ("model.dropout=.nan", "finite"),
    ("model.trunk.dropout=.nan", "finite"),
    ("model.trunk.type=uvvit", "uvit"),
    ("model.classes.count=2", "3 classes, but model.classes.count is 2"),
    ("model.classes.count=5", "3 classes, but model.classes.count is 5"),
    ("model.classes.count=-1", "count"),
    ("model.classes.count=x", "count"),
    ("optim.lr=.inf", "finite"),
    ("optim.lr=-1", "at least 0"),
    ("optim.lr=fast", "a number"),
    ("optim.lr=null", "a number"),
    ("optim.betas=[-1,0.9]", "at least 0"),
    ("optim.betas=[.nan,0.9]", "finite"),
    ("optim.betas=[0.9,1.0]", "less than 1"),
    ("optim.betas=[0.9]", "more values"),
    ("optim.betas=[0.9,0.9,0.9]", "2 values"),
    ("optim.betas=0.9", "list"),
    ("optim.eps=-1", "at least 0"),
    ("optim.weight_decay=-1", "at least 0"),
    ("optim.clip=0", "more than 0"),
    ("optim.clip=-1", "more than 0"),
    ("optim.clip=''", "a number"),
    ("optim.schedule=exponential", "cosine"),
    ("optim.warmup=-1", "at least 0"),
    ("optim.freeze=[nonsense]", "no parameter's name starts with it"),
    ("optim.freeze=['']", "not empty"),
    ("optim.freeze=trunk", "list"),
    ("optim.freeze=[trunk,head,embedder,classes]", "no parameter to train"),
    ("optim.no_decay=['']", "not empty"),
    ("optim.no_decay=[3]", "text"),
    ("optim=5", "mapping"),
    ("optim=[]", "mapping"),
    ("ema.decay=2", "at most 1"),
    ("ema.decay=x", "a number"),
    ("ema=5", "mapping"),
    ("log.every=0", "at least 1"),
    ("log.keep=0", "at least 1"),
    ("log.checkpoint_every=-1", "at least 0"),
    ("log.checkpoint_every=0.5", "whole number"),
    ("log.tensorboard=2", "true or false"),
    ("data=null", "data"),
    ("data.kind=folders", "folder"),
    ("data.path=null", "data.path"),
    ("data.path=''", "not empty"),
    ("data.path=nowhere", "nowhere"),
    ("data.val_path=nowhere", "nowhere"),
    ("data.channels=2", "channels"),
    ("data.channels=3", "data.channels"),
    ("data.image_size=0", "at least 1"),
    ("data.image_size=16", "data.image_size"),
    ("data.image_size=1000000", "data.image_size"),
    (f"data.image_size={10**12}", "at most"),
    ("data.shift=-1", "at least 0"),
    ("data.workers=-1", "at least 0"),
    ("data.workers=100000", "at most 256"),
    ("data.classes=all", "folders"),
    ("objective=null", "objective.tokenizer"),
    ("objective=3", "mapping"),
    ("objective=[]", "mapping"),
    ("objective.tokenizer=''", "not empty"),
    ("objective.tokenizer=nowhere", "nowhere"),
    ("objective.label_drop=1.5", "at most 1"),
    ("objective.label_smoothing=-0.1", "at least 0"),
    ("objective.l2=1", "unknown key 'objective.l2'"),
    ("objective.mask.distribution=cosines", "did you mean 'cosine'"),
    ("objective.mask.low=0.9 objective.mask.high=0.5", "low must lie below high"),
    ("objective.mask.low=-0.5", "at least 0"),
    ("objective.mask.std=0", "at least"),
    ("objective.mask.alpha=0", "at least"),
    ("objective.mask.beta=1.0e300", "at most"),
    ("objective.mask.visible=64", "at most 63"),
    ("objective.mask.visible=-1", "at least 0"),
    ("objective.mask.global_share=2", "at most 1"),
    ("objective.mask=5", "mapping"),
    ("objective.reuse=0.5", "carry features"),
    ("objective.diffusion_batch_mul=0", "at least 1"),
    ("objective.diffusion_batch_mul=1000000000", "at most"),
    ("objective.sampler=5", "mapping"),
    ("objective.sampler.steps=0", "steps"),
    ("objective.sampler.stepz=3", "did you mean 'steps'"),
    ("optim={}", "changes nothing"),
    ("nothing=5", "unknown key 'nothing'"),
    ("stepz=5", "did you mean 'steps'"),
    ("optim.lrr=5", "did you mean 'lr'"),
    ("=5", "key.sub=value"),
    ("steps", "key.sub=value"),
    ("steps=!!int abc", "steps"),
    ("optim={5: 3}", "no text"),
    ("optim={null: 3}", "no text"),
]


@pytest.mark.parametrize(("given", "words"), [row(given[:60], given, words) for given, words in SETTINGS])
def test_settings(refused: Refused, given: str, words: tuple[str, ...]) -> None:
    refused(
        [
            "train",
            "--config",
            "@config",
            *given.split(" objective")[:1],
            *(f"objective{rest}" for rest in given.split(" objective")[1:]),
        ],
        *words,
    )


OTHER_TASKS: list[tuple[str, dict[str, Any], str]] = [
    ("tokenizer", {"model": {**VQGAN, "size": "L"}}, "no named sizes"),
    ("tokenizer", {"model": {"class": "HitaTokenizer", "size": "L"}}, "unknown model.size 'L'"),
    ("tokenizer", {"model": {"class": "HitaTokenizer", "size": 5}}, "unknown model.size 5"),
    ("tokenizer", {"model": {"class": "HitaTokenizer", "size": ["V"]}}, "unknown model.size"),
    ("tokenizer", {"model": {**VQGAN, "class_names": ["a"]}}, "unknown key 'model.class_names'"),
    ("tokenizer", {"model": {**VQGAN, "class": None}}, "unknown model.class None"),
    ("tokenizer", {"model": {**VQGAN, "class": ["VQGAN"]}}, "unknown model.class"),
    ("tokenizer", {"model": {"latent": 4}}, "model.class"),
    ("tokenizer", {"model": "maskgit-r-l"}, "model.class"),
    ("tokenizer", {"model": CNN}, "no tokenizer"),
    ("tokenizer", {"objective": {"l2": -1}}, "at least 0"),
    ("tokenizer", {"objective": {"l3": 1}}, "unknown key 'objective.l3'"),
    ("tokenizer", {"objective": {"perceptual": 1}}, "objective.perceptual_model"),
    ("tokenizer", {"objective": {"perceptual": 1, "perceptual_model": "nowhere"}}, "nowhere"),
    ("tokenizer", {"objective": {"adversarial": 1, "discriminator_channels": 6}}, "multiple of 4"),
    ("tokenizer", {"objective": {"adversarial": 1, "discriminator_layers": 99}}, "at most 10"),
    ("tokenizer", {"objective": {"adversarial": 1, "discriminator_layers": 6}}, "discriminator_layers"),
    ("tokenizer", {"objective": {"adversarial": 1, "discriminator_betas": [2, 0]}}, "less than 1"),
    ("tokenizer", {"objective": {"adversarial": 1, "discriminator": "dino"}}, "discriminator_weights"),
    ("tokenizer", {"objective": {"adversarial_loss": "wgan"}}, "hinge"),
    ("classifier", {"model": VQGAN}, "no classifier"),
    ("classifier", {"model": {**CNN, "num_classes": 2}}, "3 classes, but model.num_classes is 2"),
    ("classifier", {"model": {**CNN, "num_classes": 10}}, "3 classes, but model.num_classes is 10"),
    ("classifier", {"objective": {"label_drop": 0.1}}, "unknown key 'objective.label_drop'"),
]


@pytest.mark.parametrize(("task", "sections", "words"), OTHER_TASKS, ids=[f"{t}-{w}" for t, _, w in OTHER_TASKS])
def test_settings_of_tokenizers_and_classifiers(
    refused: Refused, parts: Parts, task: str, sections: dict[str, Any], words: str
) -> None:
    refused(["train", "--config", written(settings_of(parts, task, **sections))], words)


FILES: list[tuple[str, str, str]] = [
    ("int keys", "5: 3", "no text"),
    ("null key", "null: 3", "no text"),
    ("extends list", "extends: [a]", "extends"),
    ("extends itself", "extends: own.yaml", "extends itself"),
    ("extends nothing", "extends: nothing.yaml", "no such file"),
    ("empty", "", "holds no settings"),
    ("a list", "- 1", "holds no settings"),
    ("no task", "output: trained\nsteps: 2\nmodel: a", "missing key 'task'"),
    ("no output", "task: generator\nsteps: 2\nmodel: a", "missing key 'output'"),
    ("no YAML", "task: [", "not valid YAML"),
    ("binary", "\0\1\2", "YAML"),
]


@pytest.mark.parametrize(("text", "words"), [row(name, text, words) for name, text, words in FILES])
def test_files_of_settings(refused: Refused, text: str, words: tuple[str, ...]) -> None:
    Path("own.yaml").write_text(text)
    refused(["train", "--config", "own.yaml"], *words)


# -- resuming ----------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def begun(parts: Parts, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of two steps, with checkpoints of both."""
    folder = tmp_path_factory.mktemp("begun") / "trained"
    settings = settings_of(parts) | {
        "output": str(folder),
        "log": {"every": 1, "checkpoint_every": 1, "tensorboard": False},
    }
    train(train_config(settings))
    return folder


@pytest.fixture
def trained(begun: Path, here: Path) -> Path:
    """A copy of it, where `@config` trains."""
    return Path(shutil.copytree(begun, here / "trained"))


def again(**changed: str) -> list[str]:
    """The command that resumes it."""
    return [
        "train",
        "--config",
        "@config",
        "steps=4",
        "log.checkpoint_every=1",
        *(f"{k}={v}" for k, v in changed.items()),
    ]


def change(folder: Path, **values: object) -> None:
    """Overwrite keys of the newest checkpoint's state.json; "-" removes one."""
    file = folder / "checkpoint-0000002" / "state.json"
    state = {**json.loads(file.read_text()), **values}
    file.write_text(json.dumps({k: v for k, v in state.items() if v != "-"}))


STATES: list[tuple[str, dict[str, object], str]] = [
    ("step null", {"step": None}, "'step' takes a whole number"),
    ("step -1", {"step": -1}, "'step' is -1"),
    ("step 10**9", {"step": 10**9}, "the folder's name says 2"),
    ("step 10**12", {"step": 10**12}, "at most"),
    ("step 10**30", {"step": 10**30}, "64 bits"),
    ("step 1.5", {"step": 1.5}, "whole number"),
    ("step 2.0", {"step": 2.0}, "whole number"),
    ("step true", {"step": True}, "whole number"),
    ("step text", {"step": "2"}, "whole number"),
    ("step 1", {"step": 1}, "the folder's name says 2"),
    ("step 3", {"step": 3}, "the folder's name says 2"),
    ("no step", {"step": "-"}, "missing key"),
    ("seconds text", {"seconds": "5"}, "'seconds' takes a number"),
    ("seconds null", {"seconds": None}, "'seconds' takes a number"),
    ("seconds negative", {"seconds": -1.0}, "'seconds' is -1"),
    ("seconds 1e300", {"seconds": 1e300}, "at most"),
    ("no seconds", {"seconds": "-"}, "missing key"),
    ("skipped -1", {"skipped": -1}, "at least 0"),
    ("skipped 5", {"skipped": 5}, "skipped is 5"),
    ("skipped text", {"skipped": "no"}, "whole number"),
    ("version 3", {"version": 3}, "'version' is 3"),
    ("unknown key", {"other": 3}, "unknown key"),
    ("settings null", {"settings": None}, "mapping"),
    ("settings list", {"settings": []}, "mapping"),
    ("settings empty", {"settings": {}}, "missing key"),
    ("model null", {"model": None}, "mapping"),
    ("model empty", {"model": {}}, "other settings"),
    ("data null", {"data": None}, "mapping"),
    ("data images text", {"data": {"images": "12", "class_names": [], "tokens": None}}, "whole number"),
    ("data images 0", {"data": {"images": 0, "class_names": [], "tokens": None}}, "at least 1"),
    ("data class names numbers", {"data": {"images": 12, "class_names": [1], "tokens": None}}, "text"),
    ("ema steps null", {"ema_steps": None}, "ema_steps"),
    ("ema steps -1", {"ema_steps": -1}, "at least 0"),
    ("ema steps 10**9", {"ema_steps": 10**9}, "ema_steps"),
    ("scaler list", {"scaler": []}, "mapping"),
    (
        "scaler of another run",
        {
            "scaler": {
                "scale": 1.0,
                "growth_factor": 2.0,
                "backoff_factor": 0.5,
                "growth_interval": 9,
                "growth_tracker": 1,
            }
        },
        "scaler",
    ),
]


@pytest.mark.parametrize(("values", "words"), [row(name, values, words) for name, values, words in STATES])
def test_states_that_no_run_writes(
    refused: Refused, trained: Path, values: dict[str, object], words: tuple[str, ...]
) -> None:
    change(trained, **values)
    refused(again(), *words, "checkpoint-0000002")


@pytest.mark.parametrize("text", ["[]", "null", "5", '"a"', "[" * 50 + "]" * 50])
def test_states_that_are_no_mapping(refused: Refused, trained: Path, text: str) -> None:
    (trained / "checkpoint-0000002" / "state.json").write_text(text)
    refused(again(), "checkpoint-0000002", "expected a mapping")


CHANGED: list[tuple[str, str, str]] = [
    ("seed", "1", "seed was 0, now it is 1"),
    ("batch_size", "6", "batch_size was 4, now it is 6"),
    ("precision", "bf16", "precision"),
    ("model.trunk.heads", "4", "model.trunk.heads was 2, now it is 4"),
    ("model.trunk.dropout", "0.1", "model.trunk.dropout"),
    ("model.trunk.dim", "48", "model.trunk.dim"),
    ("data.flip", "true", "data.flip"),
    ("data.shift", "1", "data.shift"),
    ("data.kind", "fmnist data.path=@idx model.classes.count=10", "data.kind"),
    ("objective.label_drop", "0.5", "objective.label_drop"),
    ("objective.mask.distribution", "uniform", "objective.mask.distribution"),
    ("optim.betas", "[0.5,0.5]", "optim.betas"),
    ("optim.freeze", "[head]", "optim.freeze"),
    ("optim.decay_all", "false", "optim.decay_all"),
    ("ema", "null", "ema"),
    ("init", "@pipeline", "init"),
    ("steps", "1", "'steps' is 1"),
]


@pytest.mark.parametrize(("key", "value", "words"), [pytest.param(*c, id=c[0]) for c in CHANGED])
def test_settings_that_a_resumed_run_must_keep(
    refused: Refused, trained: Path, key: str, value: str, words: str
) -> None:
    command = [word for word in again() if not word.startswith(f"{key}=")]
    refused([*command, *f"{key}={value}".split(" ")], words)


APPLIED = [
    "optim.lr=0.5",
    "optim.weight_decay=0.5",
    "optim.clip=0.1",
    "ema.decay=0.1",
    "ema.warmup=false",
    "optim.schedule=cosine",
]


def test_settings_that_may_change_are_applied_and_told(
    trained: Path, begun: Path, parts: Parts, capsys: pytest.CaptureFixture[str]
) -> None:
    unchanged = shutil.copytree(begun, "unchanged")
    command = [word.replace("@config", str(parts["config"])) for word in again()]
    assert main([*command, f"output={unchanged}"]) == 0 and main([*command, "output=trained/", *APPLIED]) == 0
    said = capsys.readouterr().err
    kept, config = (
        (load_file(Path(p) / "checkpoint-0000004" / "ema.safetensors") for p in (unchanged, trained)),
        json.loads(Path("trained/config.json").read_text()),
    )
    a, b = kept
    assert not all(torch.equal(a[k], b[k]) for k in a)
    for word in ("optim.lr was 0.0001, now it is 0.5", "optim.weight_decay", "ema.decay"):
        assert word in said
    assert config["optim"]["lr"] == 0.5 and config["ema"] == {"decay": 0.1, "warmup": False} and config["steps"] == 4
