"""Training: settings out of range, data and models that don't fit each other."""

import shutil
from pathlib import Path
from typing import Any

import pytest

from mgen.training.config import train_config
from mgen.training.trainer import Trainer
from tests.system.boundaries.harness import Parts, Refused, row
from tests.system.boundaries.training import CNN, VQGAN, folders, settings_of, written

LONG = "a" * 300


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
    ('output="a\\0b"', "null character"),
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
    ("optim.lr=1.0e+300", "at most 1000"),
    ("optim.eps=1.0e+300", "at most 1"),
    ("optim.eps=1.0e-300", "at least 1e-30"),
    ("optim.eps=0", "at least 1e-30"),
    ("optim.weight_decay=1.0e+300", "at most"),
    ("optim.lr=-1", "at least 0"),
    ("optim.lr=fast", "a number"),
    ("optim.lr=null", "a number"),
    ("optim.betas=[-1,0.9]", "at least 0"),
    ("optim.betas=[.nan,0.9]", "finite"),
    ("optim.betas=[0.9,1.0]", "less than 1"),
    ("optim.betas=[0.9]", "more values"),
    ("optim.betas=[0.9,0.9,0.9]", "2 values"),
    ("optim.betas=0.9", "list"),
    ("optim.eps=-1", "at least 1e-30"),
    ("optim.weight_decay=-1", "at least 0"),
    ("optim.clip=0", "more than 0"),
    ("optim.clip=-1", "more than 0"),
    ("optim.clip=''", "a number"),
    ("optim.schedule=exponential", "cosine"),
    ("optim={lr: 0,schedule: polynomial}", "set schedule to linear"),
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
    ("objective.mask.mean=1.0e+300", "at most 100"),
    ("objective.mask.std=1.0e+300", "at most"),
    ("objective.first_stage.keep=0.5", "for cascades"),
    ("objective.reuse=0.5", "carry features"),
    ("objective.diffusion_batch_mul=0", "at least 1"),
    ("objective.diffusion_batch_mul=1000000000", "at most"),
    ("objective.sampler=5", "mapping"),
    ("objective.sampler.steps=0", "steps"),
    ("objective.sampler.stepz=3", "did you mean 'steps'"),
    ("objective={}", "changes nothing"),
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
    ("tokenizer", {"model": {**VQGAN, "size": "L"}}, "unknown model.size"),
    ("tokenizer", {"model": {"class": "HitaTokenizer", "size": "L"}}, "unknown model.size 'L'"),
    ("tokenizer", {"model": {"class": "HitaTokenizer", "size": 5}}, "unknown model.size 5"),
    ("tokenizer", {"model": {"class": "HitaTokenizer", "size": ["V"]}}, "unknown model.size"),
    ("tokenizer", {"model": {**VQGAN, "class_names": ["a"]}}, "unknown key 'model.class_names'"),
    ("tokenizer", {"model": {**VQGAN, "class": None}}, "unknown model.class"),
    ("tokenizer", {"model": {**VQGAN, "class": ["VQGAN"]}}, "unknown model.class"),
    ("tokenizer", {"model": {"latent": 4}}, "model.class"),
    ("classifier", {"model": {**CNN, "size": "L"}}, "no named sizes"),
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
    ("tokenizer", {"objective": {"adversarial_form": "hinge"}}, "mean, softplus"),
    ("tokenizer", {"objective": {"adversarial_adaptive": True}}, "give the term a weight"),
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


# -- data --------------------------------------------------------------------------------------------------------------------


def test_validation_classes_have_the_numbers_of_the_training_classes(parts: Parts, refused: Refused) -> None:
    folders("val", coat=2, dress=1)
    settings = settings_of(parts, "classifier") | {"batch_size": 4}
    settings["data"] = {**settings["data"], "val_path": "val"}
    data = Trainer(train_config(settings)).task.val_data
    assert data is not None and list(data.class_names) == ["bag", "coat", "dress"] and data.num_classes == 3
    assert data.__getitems__([0, 1, 2])["label"].tolist() == [1, 1, 2]
    folders("val", Dress=1, zebra=1)
    refused(["train", "--config", written(settings)], "classes that the training data lack", "'Dress', 'zebra'")


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("workers", [0, 2])
def test_a_damaged_image_is_named(refused: Refused, parts: Parts, here: Path, workers: int, late: bool) -> None:
    data = Path(shutil.copytree(parts["images"], here / "images"))
    for file in sorted(data.rglob("*.png"))[1 if late else 0 :]:
        file.write_bytes(file.read_bytes()[:60])
    settings = settings_of(parts)
    settings["data"] = {**settings["data"], "path": "images", "workers": workers}
    line = refused(["train", "--config", written(settings)], ".png", "cannot read image")
    assert "Original" not in line and "worker" not in line


# -- classifiers of own images -----------------------------------------------------------------------------------------------

OWN = ["train", "--config", "classifier"]
OWN_DATA: list[tuple[str, list[str], tuple[str, ...]]] = [
    ("no data", [], ("data.path",)),
    ("no classes", ["--data", "@flat"], ("tell classes apart", "no class folders", "--extractor inception")),
    ("one class", ["--data", "one"], ("one class folder, cat", "at least two")),
    ("classes none", ["--data", "@images", "data.classes=none"], ("tell classes apart",)),
    ("a cache", ["--data", "@cache"], ("holds tokens", "trains on images")),
    ("data twice", ["--data", "@images", "data.path=x"], ("--data", "data.path", "leave one out")),
    ("kind twice", ["--data", "@images", "data.kind=fmnist"], ("--data", "data.kind", "leave one out")),
    ("out twice", ["--data", "@images", "--out", "a", "output=b"], ("--out", "output", "leave one out")),
    ("held out all", ["--data", "@images", "data.held_out=1"], ("held_out", "less than 1")),
    ("held out negative", ["--data", "@images", "data.held_out=-0.1"], ("held_out", "at least 0")),
    ("keep odd", ["--data", "@images", "data.keep=maybe"], ("keep", "true or false")),
    ("passes 0", ["--data", "@images", "steps.passes=0"], ("steps.passes", "more than 0")),
    ("passes x", ["--data", "@images", "steps.passes=x"], ("steps.passes",)),
    ("least 0", ["--data", "@images", "steps.least=0"], ("steps.least", "at least 1")),
    ("least above most", ["--data", "@images", "steps.least=9", "steps.most=3"], ("least must not be above most",)),
    ("steps unknown", ["--data", "@images", "steps.passs=2"], ("steps.passs", "passes")),
    ("batch size 0", ["--data", "@images", "batch_size=0"], ("batch_size", "at least 1")),
    ("wrong classes", ["--data", "@images", "model.num_classes=5"], ("3 classes", "model.num_classes=3")),
    ("wrong channels", ["--data", "@images", "data.channels=2"], ("data.channels",)),
]


@pytest.mark.parametrize(("argv", "words"), [row(name, argv, *words) for name, argv, words in OWN_DATA])
def test_classifiers_of_own_images(refused: Refused, argv: list[str], words: tuple[str, ...]) -> None:
    folders("one", cat=2)
    refused([*OWN, *argv], *words)


def test_images_that_cannot_be_held_out(refused: Refused) -> None:
    folders("single", cat=1, dog=1)
    cached = ["--config", "@cached", "data.held_out=0.5"]
    for argv, words in [
        ([*OWN, "--data", "single", "data.held_out=0.5"], ["one image in every class"]),
        (["train", *cached], ["data.held_out is for folders"]),
    ]:
        refused(argv, *words)
