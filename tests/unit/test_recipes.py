"""Shipped recipes: their settings are what the official arguments give, they fit the generators they name, and say how to evaluate."""

import dataclasses
import importlib.util
import json
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import yaml

from mgen import create_model
from mgen.convert.formats import FORMATS
from mgen.evaluation.recipe import evaluation_settings, parse_evaluation
from mgen.samplers import ParallelSampler
from mgen.utils.config import read_config
from mgen.utils.errors import MgenError
from mgen.utils.folders import embedded, part
from mgen.zoo.recipes import find_recipe, recipe_names, recipe_settings
from tests import official_settings as official

FOLDER = part("configs") / "recipes"
Row = tuple[str, dict[str, Any] | None]


def of_halton(name: str, w: float) -> Row:
    return f"halton-{name}", official.halton_settings(step=32, w=w, temp_warmup=1)


def of_recap(steps: int, first: int, samp_temp: float, cached: int = 1) -> Row:
    return "maskgit-r-l", official.recap_maskgit_settings(
        gen_step=steps, pre_full_iters=first, num_cache_iters=cached, samp_temp=samp_temp, conf_temp=5.5
    )


def of_recap_mar(name: str, steps: int, cfg: float) -> Row:
    return f"mar-{name}", official.recap_mar_settings(
        num_iter=steps, cfg=cfg, pre_full_iters=steps // 2, num_cache_iters=1, diff_fast_ratio=0.4
    )


def of_disa(size: str, cfg: float) -> Row:
    return f"mar-{size}", official.disa_settings(num_iter=64, cfg=cfg, upper=50, lower=5)


def of_causal(name: str, cfg: float, side: int = 21) -> Row:
    tokens = 128 + side**2 if name.startswith("hita") else side**2
    return name, official.generate_settings(cfg_scale=cfg, tokens=tokens)


def of_rar(size: str, scale: float, power: float, temperature: float) -> Row:
    return f"rar-{size}", official.rar_settings(
        guidance_scale=scale, guidance_scale_pow=power, randomize_temperature=temperature
    )


def of_titok(name: str, steps: int, temperature: float, scale: float, decay: str) -> Row:
    return f"titok-{name}", official.titok_settings(
        guidance_scale=scale,
        guidance_decay=decay,
        guidance_scale_pow=3.0,
        randomize_temperature=temperature,
        softmax_temperature_annealing=True,
        num_sample_steps=steps,
    )


# Guided intervals of masking time of the published runs: in few steps, and in many.
EMIGM_FEW = dict.fromkeys("xs s b l".split(), (0.1, 0.3)) | {"h": (0.2, 0.4)}
EMIGM_MANY = dict.fromkeys("xs s l".split(), (0.18, 0.6)) | {"b": (0.05, 0.4), "h": (0.3, 0.7)}


def of_emigm(model: str, steps: int, calls: int, interval: tuple[float, float]) -> Row:
    own: dict[str, Any] = {"sampling_algo": "dpm-solver", "num_sampling_steps": str(calls)}
    own |= {"cfg_t_min": interval[0], "cfg_t_max": interval[1]}
    return f"emigm-{model}", official.emigm_settings(num_iter=steps, cfg=4.0, **own)


# Recipe → model, and settings from the official arguments (None: the recipe is the source itself).
RECIPES: dict[str, Row] = {
    "autonat-heuristic-8": ("maskgit-r-l", None),
    "autonat-l-imagenet256": ("maskgit-r-l", None),
    "enat-l-imagenet256": (
        "enat-l",
        official.enat_settings(sample_steps=8, cfg_scale=2.5, mask_temp=1.5, samp_temp=6.0),
    ),
    "enat-l-imagenet512": (
        "enat-l-512",
        official.enat_settings(sample_steps=8, cfg_scale=3.5, mask_temp=1.5, samp_temp=4.0),
    ),
    **{f"emigm-{k}-imagenet256": of_emigm(k, 128, 14, own) for k, own in EMIGM_MANY.items()},
    **{f"emigm-{k}-16-imagenet256": of_emigm(k, 16, 8, own) for k, own in EMIGM_FEW.items()},
    **{f"emigm-{k}-imagenet512": of_emigm(f"{k}-512", 64, 14, (0.25, 0.5)) for k in "xs s b l".split()},
    **{f"emigm-{k}-16-imagenet512": of_emigm(f"{k}-512", 16, 8, (0.15, 0.35)) for k in "xs s b l".split()},
    "halton-base-confidence-imagenet256": ("halton-base", official.confidence_settings()),
    "himar-b-imagenet256": ("himar-b", official.himar_settings(num_iter=4, cfg=2.5, re_cfg=2.7)),
    "himar-l-imagenet256": ("himar-l", official.himar_settings(num_iter=4, cfg=3.5, re_cfg=3.5)),
    "himar-h-imagenet256": ("himar-h", official.himar_settings(num_iter=12, cfg=3.2, re_cfg=5.5)),
    "himar-b-unguided-imagenet256": ("himar-b", official.himar_settings(num_iter=4, re_cfg=2.7)),
    "himar-l-unguided-imagenet256": ("himar-l", official.himar_settings(num_iter=4, re_cfg=3.5)),
    "himar-h-unguided-imagenet256": ("himar-h", official.himar_settings(num_iter=12, re_cfg=5.5)),
    **{
        f"mar-{k}-unguided-imagenet256": (
            f"mar-{k}",
            official.mar_settings(num_iter=256, num_sampling_steps="100", temperature=0.95),
        )
        for k in "blh"
    },
    "tokenbridge-l-imagenet256": (
        "tokenbridge-l",
        official.tokenbridge_settings(num_iter=256, cfg=3.1, temperature=0.96),
    ),
    "tokenbridge-h-imagenet256": (
        "tokenbridge-h",
        official.tokenbridge_settings(num_iter=256, cfg=3.45, temperature=0.91),
    ),
    "halton-tiny-imagenet256": of_halton("tiny", 1.5),
    "halton-small-imagenet256": of_halton("small", 1.0),
    "halton-base-imagenet256": of_halton("base", 0.7),
    "halton-small-imagenet384": of_halton("small-384", 1.0),
    "halton-base-imagenet384": of_halton("base-384", 0.7),
    "halton-large-imagenet384": of_halton("large-384", 0.5),
    "llamagen-b-imagenet256": of_causal("llamagen-b", 2.0, side=16),
    "llamagen-l-imagenet256": of_causal("llamagen-l", 2.0, side=16),
    "llamagen-b-imagenet384": of_causal("llamagen-b-384", 2.0, side=24),
    "llamagen-l-imagenet384": of_causal("llamagen-l-384", 2.0, side=24),
    "llamagen-xl-imagenet384": of_causal("llamagen-xl", 1.75, side=24),
    "llamagen-xxl-imagenet384": of_causal("llamagen-xxl", 1.75, side=24),
    "llamagen-3b-imagenet384": of_causal("llamagen-3b", 1.65, side=24),
    "hita-b-imagenet256": of_causal("hita-b", 2.0),
    "hita-l-imagenet256": of_causal("hita-l", 2.0),
    "hita-xl-imagenet256": of_causal("hita-xl", 1.75),
    "hita-xxl-imagenet256": of_causal("hita-xxl", 1.75),
    "hita-2b-imagenet256": of_causal("hita-2b", 1.65),
    "mage-b-imagenet256": ("mage-b", official.mage_settings(num_iter=20, temp=6.0)),
    "mage-l-imagenet256": ("mage-l", official.mage_settings(num_iter=20, temp=6.0)),
    "mar-b-imagenet256": ("mar-b", official.mar_settings(num_iter=256, cfg=2.9)),
    "mar-l-imagenet256": ("mar-l", official.mar_settings(num_iter=256, cfg=3.0)),
    "mar-h-imagenet256": ("mar-h", official.mar_settings(num_iter=256, cfg=3.2)),
    "rar-b-imagenet256": of_rar("b", 16.0, 2.75, 1.0),
    "rar-l-imagenet256": of_rar("l", 15.5, 2.5, 1.02),
    "rar-xl-imagenet256": of_rar("xl", 6.9, 1.5, 1.02),
    "rar-xxl-imagenet256": of_rar("xxl", 8.0, 1.2, 1.02),
    "xar-b-imagenet256": ("xar-b", official.xar_settings(num_steps=40, cfg=2.7)),
    "xar-l-imagenet256": ("xar-l", official.xar_settings(num_steps=50, cfg=2.3)),
    "xar-h-imagenet256": ("xar-h", official.xar_settings(num_steps=50, cfg=2.2)),
    "ldetok-mar-b-imagenet256": ("ldetok-mar-b", official.mar_settings(num_iter=256, cfg=3.9)),
    "ldetok-mar-l-imagenet256": ("ldetok-mar-l", official.mar_settings(num_iter=256, cfg=3.4)),
    "ldetok-mar-b-unguided-imagenet256": ("ldetok-mar-b", official.mar_settings(num_iter=256, temperature=0.95)),
    "ldetok-mar-l-unguided-imagenet256": ("ldetok-mar-l", official.mar_settings(num_iter=256, temperature=0.97)),
    "maskgit-imagenet256": ("maskgit-imagenet256", None),
    "maskgit-imagenet512": ("maskgit-imagenet512", None),
    "titok-l32-imagenet256": of_titok("l32", 8, 9.5, 4.5, "linear"),
    "titok-b64-imagenet256": of_titok("b64", 8, 11.0, 3.0, "linear"),
    "titok-s128-imagenet256": of_titok("s128", 64, 2.8, 6.9, "power-cosine"),
    "maskgit-r-imagenet256": of_recap(32, 0, 0.75, cached=0),
    "recap-maskgit-32-imagenet256": of_recap(32, 12, 0.75),
    "recap-maskgit-24-imagenet256": of_recap(24, 10, 0.72),
    "recap-maskgit-20-imagenet256": of_recap(20, 10, 0.68),
    "recap-maskgit-16-imagenet256": of_recap(16, 8, 0.65),
    "recap-maskgit-16-grouped-imagenet256": of_recap(16, 0, 0.65),
    **{f"recap-mar-l-{t}-imagenet256": of_recap_mar("l", t, 3.0) for t in (96, 84, 56, 36)},
    **{f"recap-mar-h-{t}-imagenet256": of_recap_mar("h", t, 3.2) for t in (128, 96, 48)},
    **{f"lazymar-mar-{size}-imagenet256": (f"mar-{size}", official.lazymar_settings()) for size in "blh"},
    **{f"disa-mar-{size}-imagenet256": of_disa(size, cfg) for size, cfg in (("b", 2.9), ("l", 3.0), ("h", 3.3))},
    "gtr-mar-h-imagenet256": ("mar-h", None),  # a reading of a paper, no official code exists
}


# Recipes of models inside the package, which have no official arguments; their largest measurement.
EMBEDDED = {"fmnist-maskgit": "samples_2000", "fmnist-mar": "samples_1000"}


def test_every_recipe_is_in_the_table() -> None:
    assert sorted([*RECIPES, *EMBEDDED]) == sorted(file.stem for file in FOLDER.glob("*.yaml")) == recipe_names()


@pytest.mark.parametrize("name", RECIPES)
def test_recipe(name: str) -> None:
    model, official = RECIPES[name]
    facts, (settings, where) = read_config(FOLDER / f"{name}.yaml"), recipe_settings(name)
    with torch.device("meta"):
        generator = create_model(model)
    sampler = ParallelSampler.suited(generator, settings, where)
    sampler.check(generator)
    if official is not None:
        assert dict(sampler.config) == dict(ParallelSampler(**official).config)
        assert settings == official, "the recipe says other things, or the same in other words"
    assert facts["parameters"] == f"{sum(p.numel() for p in generator.parameters()) / 1e6:.1f} M"
    assert FORMATS[facts["format"]].model == type(generator).__name__
    assert facts["model"] == model
    assert facts.get("published", "a metric"), "a recipe without published metrics has no such key"
    assert re.findall(r"--recipe (\S+)", facts["run"]) == [name]
    formats = re.findall(r"mgen convert (\S+)", facts["run"])  # the generator's is the last
    assert not formats or formats[-1] == facts["format"]


def test_evaluations_of_recap() -> None:
    """Full and cached steps of the settings of the published scripts."""
    for name, counts in {
        "recap-maskgit-32": (22, 10),
        "recap-maskgit-24": (17, 7),
        "recap-maskgit-20": (15, 5),
        "recap-maskgit-16": (12, 4),
        "recap-maskgit-16-grouped": (8, 8),
        "recap-mar-l-84": (63, 21),
        "recap-mar-h-128": (96, 32),
    }.items():
        groups = ParallelSampler(**recipe_settings(f"{name}-imagenet256")[0]).groups()
        assert (len(groups), sum(len(group) - 1 for group in groups)) == counts, name


def test_first_step_of_halton_is_drawn_at_temperature_2() -> None:
    sampler = ParallelSampler(**recipe_settings("halton-base-imagenet256")[0])
    assert sampler.values("temperature", 256) == [2.0] + [1.0] * 31


@pytest.mark.parametrize("name", EMBEDDED)
def test_recipe_of_an_embedded_model_is_that_models_own(name: str) -> None:
    """Its sampler is the one saved with the weights, its metrics are the measured ones, of as many images."""
    facts, evaluation = read_config(FOLDER / f"{name}.yaml"), evaluation_settings(name)
    sampler = ParallelSampler(**recipe_settings(name)[0])
    stored = json.loads((embedded(name) / "sampler" / "sampler_config.json").read_text())
    given = {key: value for key, value in dict(sampler.config).items() if not key.startswith("_")}
    assert {key: given[key] for key in stored if not key.startswith("_")} == {
        key: value for key, value in stored.items() if not key.startswith("_")
    }
    measured = json.loads((embedded(name) / "measured.json").read_text())
    assert facts["parameters"] == f"{measured['parameters']['generator'] / 1e6:.1f} M"
    assert facts["folder"] == name and evaluation is not None
    largest = max((key for key in measured if key.startswith("samples_")), key=lambda key: int(key.split("_")[1]))
    assert largest == EMBEDDED[name] == f"samples_{evaluation.count}"
    assert len(evaluation.published) == 3
    for metric, value in evaluation.published.items():
        assert value == float(f"{measured[largest][metric]:.3g}"), metric


@pytest.mark.parametrize("name", [*RECIPES, *EMBEDDED])
def test_recipe_says_where_its_model_lies_and_how_it_is_evaluated(name: str) -> None:
    own, facts = yaml.safe_load((FOLDER / f"{name}.yaml").read_text()), read_config(FOLDER / f"{name}.yaml")
    assert re.search(rf"--(out|model) {re.escape(facts['folder'])}(\s|$)", own["run"]), "run: does not name folder:"
    assert own["folder"] == facts["folder"] and own["tflops"] > 0, "inherited from another recipe"
    found = evaluation_settings(name)
    assert found is not None and found.reference_get
    assert found.note or found.protocol == "fmnist-cnn" or name.startswith("llamagen")
    size = re.search(r"imagenet(\d+)$", name)
    if found.protocol in ("adm", "torch-fidelity") and "mage" not in name:
        expected = "VIRTUAL_imagenet512.npz" if size and size[1] == "512" else "VIRTUAL_imagenet256_labeled.npz"
        assert found.reference == expected and found.reference_get.endswith(expected)
    if found.published:  # merging `extends:` merges metrics too: those of another setting must not slip in
        for key in ("published", "tolerance"):
            assert own["evaluation"][key].keys() == getattr(found, key).keys()
        assert found.source
    assert all(found.tolerance[metric] < 0.2 * value for metric, value in found.published.items())
    assert not {"published", "labels"} & own.keys(), "these stand in evaluation:"


def test_label_plans_are_those_of_the_official_evaluations() -> None:
    plans = {name: evaluation_settings(name) for name in RECIPES}
    systems = {
        "sorted": ("mar", "disa-mar", "lazymar", "gtr-mar", "recap-mar", "himar", "tokenbridge", "enat", "emigm", "xar")
    }
    systems |= {"random": ("llamagen", "hita", "autonat", "maskgit-r", "recap-maskgit")}
    systems |= {"balanced": ("maskgit-imagenet", "halton", "mage", "rar", "titok", "ldetok")}
    for plan, prefixes in systems.items():
        assert {name for name, e in plans.items() if e.labels == plan} == {n for n in RECIPES if n.startswith(prefixes)}
    truncated = {name for name, e in plans.items() if e.quantization == "truncate"}
    systems_truncated = ("mage", "maskgit-r", "rar", "recap-maskgit", "titok", "ldetok")
    assert truncated == {name for name in RECIPES if name.startswith(systems_truncated)}
    halves = {name for name, e in plans.items() if e.quantization == "half-up"}
    assert halves == {name for name in RECIPES if name.startswith(("hita", "llamagen"))}
    shrunk = {name for name, e in plans.items() if e.image_size == 256}
    assert shrunk == {n for n in RECIPES if n.startswith("hita") or re.fullmatch(r"llamagen.*384", n)}


def test_evaluation_settings(tmp_path: Path) -> None:
    found = evaluation_settings("mar-l-imagenet256")
    assert found is not None and dataclasses.asdict(found) == {
        **dict(protocol="torch-fidelity", count=50000, labels="sorted", seed=0, quantization="round", image_size=None),
        "reference": "VIRTUAL_imagenet256_labeled.npz",
        "reference_get": found.reference_get,
        "published": {"FID": 1.78, "Inception Score": 296.0, "precision": 0.81, "recall": 0.6},
        "tolerance": {"FID": 0.1, "Inception Score": 6.0, "precision": 0.02, "recall": 0.02},
        "source": found.source,
        "note": found.note,
    }
    file = tmp_path / "mine.yaml"
    file.write_text("evaluation: {protocol: adm, reference: my.npz}\nsampler: {steps: 4}\n")
    mine = evaluation_settings(file)
    assert mine is not None and (mine.count, mine.labels, mine.published) == (50000, "balanced", {})
    assert recipe_settings(str(file))[0] == {"steps": 4}
    file.write_text("sampler: {steps: 4}\n")
    assert evaluation_settings(file) is None


GOOD = dict(protocol="adm", reference="a.npz", published={"FID": 2.0}, tolerance={"FID": 0.1})


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"protocoll": "adm"}, "'evaluation.protocoll': did you mean 'protocol'?"),
        ({"protocol": "amd"}, "did you mean 'adm'?"),
        ({"labels": "sort"}, "did you mean 'sorted'?"),
        ({"quantization": "floor"}, "half-up, round, truncate"),
        ({"published": {"IS": 1.0}}, "Inception Score"),
        ({"published": {"FID": "low"}}, "takes a number"),
        ({"published": {"FID": True}}, "takes a number"),
        ({"tolerance": {"FID": -0.1}}, "expected a number above zero"),
        ({"tolerance": {}}, "only in one: FID"),
        ({"published": 2.0}, "'evaluation.published' takes"),
        ({"count": 1}, "at least 2"),
        ({"count": "many"}, "'evaluation.count' takes a whole number"),
        ({"seed": -1}, "at least 0"),
        ({"image_size": 0}, "at least 1"),
        ({"reference": 3}, "'evaluation.reference' takes a text"),
    ],
)
def test_bad_evaluation_settings_are_named(change: dict[str, Any], words: str) -> None:
    assert parse_evaluation(GOOD, "file").published == {"FID": 2.0}
    with pytest.raises(MgenError, match="^here.yaml: ") as caught:
        parse_evaluation({**GOOD, **change}, "here.yaml")
    assert words in str(caught.value)


def test_evaluation_needs_a_protocol_and_a_mapping() -> None:
    with pytest.raises(MgenError, match=r"missing key 'evaluation\.protocol'"):
        parse_evaluation({"reference": "a.npz"}, "file")
    with pytest.raises(MgenError, match="not a mapping"):
        parse_evaluation([1], "file")


def test_unknown_recipe_names_the_nearest() -> None:
    for given, near in {
        "mar-l": "mar-l-imagenet256",
        "maskgit-imagnet256": "maskgit-imagenet256",
        "2b": "hita-2b",
    }.items():
        with pytest.raises(MgenError, match=f"did you mean .*{near}"):
            find_recipe(given)
    with pytest.raises(MgenError, match="no recipe and no file 'qqqq': `mgen zoo` lists all"):
        find_recipe("qqqq")


def costs() -> ModuleType:
    """The tool, which is no module of the package."""
    path = part("configs").parent / "tools" / "recipe_costs.py"
    if not path.is_file():
        pytest.skip("tools/ is not part of an installed package")
    spec = importlib.util.spec_from_file_location("recipe_costs", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["recipe_costs"] = module  # dataclasses look their own module up
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", ["halton-tiny-imagenet256", "maskgit-imagenet256", "fmnist-maskgit"])
def test_stated_tflops_are_those_counted(name: str) -> None:
    tool = costs()
    assert tool.stated(FOLDER / f"{name}.yaml") == f"{tool.cost(name).tflops:.4g}"


@pytest.mark.parametrize("name", ["autonat-l-imagenet256", "short-mar", "short-lazymar", "short-himar"])
def test_shallow_runs_tell_the_operations_of_deep_ones(name: str, tmp_path: Path) -> None:
    tool, recipe = costs(), name
    if name.startswith("short"):  # few steps, all parts: reuse, chains, two stages
        file = tmp_path / f"{name}.yaml"
        file.write_text(SHORT[name])
        recipe = str(file)
    assert tool.cost(recipe) == tool.cost(recipe, exact=True)


SHORT = {
    "short-mar": """
model: fmnist-mar
sampler: {steps: 6, order: random, guidance: 2.0, head: {steps: 4}, reuse: {cached: 1, full_first: 2}}
""",
    "short-lazymar": """
model: {name: fmnist-mar, trunk: {decoder_depth: 4}, head: {depth: 4}}
sampler:
  steps: 6
  order: random
  guidance: 2.0
  head: {steps: 8, cache: {every: 3, blocks: [1, 2], warm: 0.1}}
  reuse: {condition: {every: 4}, tokens: {every: 4, layer: 1, keep: 0.3}}
""",
    "short-himar": """
model: {name: fmnist-himar, first: {head: {depth: 3}}}
sampler: {steps: 2, order: random, head: {steps: 3}, first_stage: {steps: 3, order: random, head: {steps: 4}}}
""",
}


def test_cost_is_written_in_place(tmp_path: Path) -> None:
    tool, file = costs(), tmp_path / "a.yaml"
    file.write_text("# head\nparameters: 1.0 M  # here\nrun: |\n  mgen\n")
    tool.state(file, "1.5")
    tool.state(file, "2.5")
    assert (
        file.read_text()
        == "# head\nparameters: 1.0 M  # here\ntflops: 2.5  # network only, one image\nrun: |\n  mgen\n"
    )
    file.write_text("extends: b.yaml\nrun: |\n  mgen\n")
    tool.state(file, "3")
    assert tool.stated(file) == "3" and file.read_text().index("tflops") < file.read_text().index("run")
    file.write_text("extends: b.yaml\n")
    with pytest.raises(MgenError, match="has none of"):
        tool.state(file, "3")
