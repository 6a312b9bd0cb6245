"""The embedded demo: it draws what it is asked for, and the figures beside it are what it gives."""

import json

import pytest
import torch

import mgen
from mgen._folders import embedded
from mgen.evaluation.evaluate import measure, result
from mgen.evaluation.extractors import make_extractor
from mgen.evaluation.sources import from_model
from mgen.evaluation.statistics import builtin_file, load_statistics


@pytest.fixture(scope="module")
def pipe() -> mgen.MaskedPipeline:
    return mgen.load("fmnist-maskgit").optimize()


def test_same_seed_same_image(pipe: mgen.MaskedPipeline) -> None:
    a = pipe([0, 9], seed=4, progress=False, output_type="uint8").images
    b = pipe([9], seed=4, indices=[1], progress=False, output_type="uint8").images
    assert torch.equal(a[1], b[0]) and not torch.equal(a[0], a[1])


def test_stated_figures_meet_the_aims() -> None:
    stated = json.loads((embedded("fmnist-maskgit") / "measured.json").read_text())
    distance = "Fréchet distance (fmnist-cnn)"
    assert stated["samples_2000"][distance] <= 4 * stated["reconstructions_test"][distance]
    assert stated["samples_2000"]["class accuracy (fmnist-judge)"] >= 0.9
    assert json.loads((embedded("fmnist-cnn") / "measured.json").read_text())["test_accuracy"] >= 0.925


def test_five_hundred_samples_are_as_good_as_measured(pipe: mgen.MaskedPipeline) -> None:
    extractor, judge = make_extractor("fmnist-cnn"), make_extractor("fmnist-judge")
    source = from_model(pipe, name="demo", count=500, batch_size=100, seed=0, steps=None, guidance=None, dtype="fp32")
    reference = load_statistics(builtin_file("fmnist-train"), extractor)
    metrics = result(measure(source, extractor, judge=judge), source, extractor, reference=reference, judge=judge)[
        "metrics"
    ]
    stated = json.loads((embedded("fmnist-maskgit") / "measured.json").read_text())["samples_500"]
    assert metrics["class accuracy (fmnist-judge)"] == pytest.approx(stated["class accuracy (fmnist-judge)"], abs=0.02)
    assert metrics["class accuracy (fmnist-judge)"] >= 0.9
    distance = "Fréchet distance (fmnist-cnn)"
    assert metrics[distance] == pytest.approx(stated[distance], rel=0.1)
