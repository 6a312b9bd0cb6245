"""How long the stages of a project will take, and how much memory: real steps of every training, on untrained networks."""

import copy
import sys
import time

from tqdm import tqdm

from mgen.data import write_cache
from mgen.project.settings import Project
from mgen.project.timing import Timed, time_training
from mgen.project.tokenizer import open_tokenizer
from mgen.project.work import generator_config
from mgen.training.config import TrainConfig, build_model
from mgen.training.generator_task import GeneratorTask
from mgen.training.model_settings import model_settings
from mgen.utils.devices import check_device

CACHED, SAMPLED = 64, 8  # images that are tokenized and sampled


def time_project(project: Project) -> tuple[dict[str, Timed], dict[str, float]]:
    """The timed trainings of a project by stage, and the estimated seconds of the other stages. Fills the project's folder."""
    trainings = [stage for stage in ("classifier", "tokenizer", "generator") if stage in project.stages]
    with tqdm(trainings, desc="timing steps", unit="training", delay=2.0, leave=False, file=sys.stderr) as bar:
        return _timed(project, bar)


def _timed(project: Project, bar: "tqdm[str]") -> tuple[dict[str, Timed], dict[str, float]]:
    """See time_project."""
    timed: dict[str, Timed] = {}
    if "classifier" in project.stages:
        timed["classifier"] = time_training(project.classifier_config(0))
        bar.update()
        build_model(model_settings(project.classifier_config(1))).save_pretrained(project.classifier(1) / "model")
    if "tokenizer" in project.stages:
        config = project.tokenizer_config()
        timed["tokenizer"] = time_training(config)
        bar.update()
        tokenizer = build_model(model_settings(config))
        if tokenizer.config.get("scale", 1.0) is None:
            tokenizer.register_to_config(scale=1.0)
        tokenizer.save_pretrained(project.folder / "tokenizer" / "model")
    each = _time_cache(project)
    config = generator_config(project)
    timed["generator"] = time_training(config)
    bar.update()
    images = len(project.train_images)
    count = project.settings.report.images
    return timed, {
        "check": 2 * each * min(images, project.settings.check.images),
        "cache": (2 if project.settings.data.flip else 1) * each * images,
        "report": _time_sampling(config) * count + each * (images + count),
    }


def _time_cache(project: Project) -> float:
    """Seconds to tokenize an image; caches of a few images are left in the project."""
    images = project.train_images
    few = copy.copy(images)
    rows = range(0, len(images), max(1, len(images) // CACHED))[:CACHED]
    few.files, few.labels, few._kept = [images.files[i] for i in rows], images.labels[list(rows)], None
    tokenizer = open_tokenizer(project, check_device("auto"))
    write_cache(few, tokenizer, project.cache("val"), flips=project.settings.data.flip, progress=False)
    began = time.perf_counter()
    write_cache(few, tokenizer, project.cache("train"), flips=project.settings.data.flip, progress=False)
    return (time.perf_counter() - began) / len(few)


def _time_sampling(config: TrainConfig) -> float:
    """Seconds to sample an image, by a small batch of an untrained model."""
    pipe = GeneratorTask(config).pipeline().to(check_device("auto"))
    began = time.perf_counter()
    pipe([0 if pipe.conditional else None] * SAMPLED, seed=0, progress=False, output_type="uint8")
    return (time.perf_counter() - began) / SAMPLED
