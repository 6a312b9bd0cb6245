"""Shipped recipes: their settings are what the official arguments give, and they fit the generators they name."""

import re
from typing import Any

import pytest
import torch

from mgen._folders import part
from mgen.checkpoints import causal, enat, halton, himar, mage, mar, recap, tokenbridge
from mgen.checkpoints.convert import FORMATS
from mgen.checkpoints.recipes import recipe_settings
from mgen.config import read_config
from mgen.samplers import ParallelSampler
from mgen.training.config import build_model

FOLDER = part("configs") / "recipes"
MASKGIT, ENAT_L = {"class": "MaskGIT", "size": "L"}, {"class": "ENAT", "size": "L"}

Row = tuple[dict[str, Any], dict[str, Any] | None]


def size(cls: str, name: str, **settings: Any) -> dict[str, Any]:
    return {"class": cls, "size": name, **settings}


def of_halton(name: str, w: float, side: int = 16) -> Row:
    return size("HaltonMaskGIT", name, side=side), halton.halton_settings(step=32, w=w, temp_warmup=1)


def of_recap(steps: int, first: int, samp_temp: float, local: int = 1) -> Row:
    return MASKGIT, recap.maskgit_settings(
        gen_step=steps, pre_full_iters=first, num_cache_iters=local, samp_temp=samp_temp, conf_temp=5.5
    )


def of_recap_mar(name: str, steps: int, cfg: float) -> Row:
    return size("MAR", name), recap.mar_settings(
        num_iter=steps, cfg=cfg, pre_full_iters=steps // 2, num_cache_iters=1, diff_fast_ratio=0.4
    )


def of_causal(name: str, cfg: float, side: int = 21) -> Row:
    settings = {} if name.startswith("hita") else {"side": side}
    tokens = 128 + side**2 if name.startswith("hita") else side**2
    return size("CausalGenerator", name, **settings), causal.generate_settings(cfg_scale=cfg, tokens=tokens)


# Recipe → model, and settings from the official arguments (None: the recipe is the source itself).
RECIPES: dict[str, Row] = {
    "autonat-heuristic-8": (MASKGIT, None),
    "autonat-l-imagenet256": (MASKGIT, None),
    "enat-l-imagenet256": (
        ENAT_L,
        enat.sampler_settings(sample_steps=8, cfg_scale=2.5, mask_temp=1.5, samp_temp=6.0),
    ),
    "enat-l-imagenet512": (
        size("ENAT", "L-512"),
        enat.sampler_settings(sample_steps=8, cfg_scale=3.5, mask_temp=1.5, samp_temp=4.0),
    ),
    "halton-base-confidence-imagenet256": (size("HaltonMaskGIT", "base"), halton.confidence_settings()),
    "himar-b-imagenet256": (size("HiMAR", "B"), himar.himar_settings(num_iter=4, cfg=2.5, re_cfg=2.7)),
    "himar-l-imagenet256": (size("HiMAR", "L"), himar.himar_settings(num_iter=4, cfg=3.5, re_cfg=3.5)),
    "himar-h-imagenet256": (size("HiMAR", "H"), himar.himar_settings(num_iter=12, cfg=3.2, re_cfg=5.5)),
    "tokenbridge-l-imagenet256": (
        size("MAR", "bridge-L"),
        tokenbridge.tokenbridge_settings(num_iter=256, cfg=3.1, temperature=0.96),
    ),
    "tokenbridge-h-imagenet256": (
        size("MAR", "bridge-H"),
        tokenbridge.tokenbridge_settings(num_iter=256, cfg=3.45, temperature=0.91),
    ),
    "halton-tiny-imagenet256": of_halton("tiny", 1.5),
    "halton-small-imagenet256": of_halton("small", 1.0),
    "halton-base-imagenet256": of_halton("base", 0.7),
    "halton-small-imagenet384": of_halton("small", 1.0, side=24),
    "halton-base-imagenet384": of_halton("base", 0.7, side=24),
    "halton-large-imagenet384": of_halton("large", 0.5, side=24),
    "llamagen-b-imagenet256": of_causal("B", 2.0, side=16),
    "llamagen-l-imagenet256": of_causal("L", 2.0, side=16),
    "llamagen-b-imagenet384": of_causal("B", 2.0, side=24),
    "llamagen-l-imagenet384": of_causal("L", 2.0, side=24),
    "llamagen-xl-imagenet384": of_causal("XL", 1.75, side=24),
    "llamagen-xxl-imagenet384": of_causal("XXL", 1.75, side=24),
    "llamagen-3b-imagenet384": of_causal("3B", 1.65, side=24),
    "hita-b-imagenet256": of_causal("hita-B", 2.0),
    "hita-l-imagenet256": of_causal("hita-L", 2.0),
    "hita-xl-imagenet256": of_causal("hita-XL", 1.75),
    "hita-xxl-imagenet256": of_causal("hita-XXL", 1.75),
    "hita-2b-imagenet256": of_causal("hita-2B", 1.65),
    "mage-b-imagenet256": (size("MAGE", "B"), mage.sampler_settings(num_iter=20, temp=6.0)),
    "mage-l-imagenet256": (size("MAGE", "L"), mage.sampler_settings(num_iter=20, temp=6.0)),
    "mar-b-imagenet256": (size("MAR", "B"), mar.sampler_settings(num_iter=256, cfg=2.9)),
    "mar-l-imagenet256": (size("MAR", "L"), mar.sampler_settings(num_iter=256, cfg=3.0)),
    "mar-h-imagenet256": (size("MAR", "H"), mar.sampler_settings(num_iter=256, cfg=3.2)),
    "maskgit-imagenet256": (size("MaskGITBert", "imagenet256"), None),
    "maskgit-imagenet512": (size("MaskGITBert", "imagenet512"), None),
    "maskgit-r-imagenet256": of_recap(32, 0, 0.75, local=0),
    "recap-maskgit-32-imagenet256": of_recap(32, 12, 0.75),
    "recap-maskgit-24-imagenet256": of_recap(24, 10, 0.72),
    "recap-maskgit-20-imagenet256": of_recap(20, 10, 0.68),
    "recap-maskgit-16-imagenet256": of_recap(16, 8, 0.65),
    "recap-maskgit-16-grouped-imagenet256": of_recap(16, 0, 0.65),
    **{f"recap-mar-l-{t}-imagenet256": of_recap_mar("L", t, 3.0) for t in (96, 84, 56, 36)},
    **{f"recap-mar-h-{t}-imagenet256": of_recap_mar("H", t, 3.2) for t in (128, 96, 48)},
}


def test_every_recipe_is_in_the_table() -> None:
    assert sorted(RECIPES) == sorted(file.stem for file in FOLDER.glob("*.yaml"))


@pytest.mark.parametrize("name", RECIPES)
def test_recipe(name: str) -> None:
    model, official = RECIPES[name]
    facts, (settings, where) = read_config(FOLDER / f"{name}.yaml"), recipe_settings(name)
    with torch.device("meta"):
        generator = build_model(model)
    sampler = ParallelSampler.suited(generator, settings, where)
    sampler.check(generator)
    if official is not None:
        assert dict(sampler.config) == dict(ParallelSampler(**official).config)
        assert settings == official, "the recipe says other things, or the same in other words"
    assert facts["parameters"] == f"{sum(p.numel() for p in generator.parameters()) / 1e6:.1f} M"
    assert FORMATS[facts["format"]].model == model["class"]
    assert facts.get("published", "a figure"), "a recipe without a published figure has no such key"
    assert re.findall(r"--recipe (\S+)", facts["run"]) == [name]
    convert = re.search(r"mgen convert (\S+)", facts["run"])
    assert convert is None or convert[1] == facts["format"]


def test_evaluations_of_recap() -> None:
    """Full and local evaluations of the settings of the published scripts."""
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
