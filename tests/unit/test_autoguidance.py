"""Autoguidance: another model in the place of the null class, on every trunk and head, with every kind of reuse."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

from mgen.bench.flops import Counts, count_run
from mgen.bench.benchmark import RandomPipeline
from mgen.generators import Cascade, Generator, build_model, guided
from mgen.samplers import ParallelSampler
from mgen.utils.errors import MgenError
from tests.helpers import tiny_cascade_config, tiny_config, tiny_tokens

IDS, VECTORS, CHANNELS = (tiny_tokens(kind) for kind in ("index", "vector", "multi-index"))
LARGE = {"tokens": tiny_tokens(side=8)}
FLOW = {"type": "flow", "width": 32, "depth": 2}
JOINT = {"type": "diffusion-transformer", "width": 32, "depth": 2, "heads": 2}
XAR = dict(encoder_depth=1, encoder_heads=2, decoder_depth=1, decoder_heads=2, hidden=48, attn_dropout=0.0, dropout=0.0)
MADE: dict[str, tuple[str, dict[str, Any]]] = {
    "uvit": ("uvit", {}),
    "bert": ("bert", {}),
    "mage": ("mage", {}),
    "adaln": ("adaln", {}),
    "enat": ("enat", {}),
    "mae, ids": ("mae", {}),
    "mae, diffusion": ("mae", {"tokens": VECTORS}),
    "mae, flow": ("mae", {"tokens": VECTORS, "head": FLOW}),
    "mae, joint": ("mae", {"tokens": VECTORS, "head": JOINT}),
    "mae, channels": ("mae", {"tokens": CHANNELS}),
    "uvit, windows": ("uvit", {**LARGE, "windows": {"side": 2}}),
    "mae, windows of vectors": ("mae", {"tokens": tiny_tokens("vector", side=8), "windows": {"side": 2}}),
    "enat, diffusion": ("enat", {"tokens": VECTORS}),
    "uvit, global tokens": ("uvit", {"tokens": tiny_tokens(side=3, global_tokens=7)}),
    "causal": ("causal", {}),
    "causal, global tokens": ("causal", {"tokens": tiny_tokens(side=3, global_tokens=7)}),
    "causal, windows": ("causal", {**LARGE, "windows": {"side": 2}}),
    "causal, diffusion": ("causal", {"tokens": VECTORS}),
    "permuted": ("permuted", {}),
    "block-causal": ("block-causal", {"tokens": VECTORS}),
}
OTHER = {"uvit": dict(dim=48, depth=2, heads=3)}


def lively(net: Any, seed: int = 1) -> Any:
    """Random weights everywhere: new models have zeros."""
    rng = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            scale = 1.0 if "classes." in name or name.endswith("table.weight") else 0.2
            parameter.copy_(scale * torch.randn(parameter.shape, generator=rng))
    return net.eval()


def make(name: str, seed: int = 1, **changed: Any) -> Any:
    trunk, sections = MADE[name]
    if trunk == "block-causal":
        made = {"type": trunk, "dim": 32, **XAR, "entity": "cell", "size": [2, 2], **changed}
        config = {"tokens": VECTORS, "classes": {"count": 3}, "trunk": made, "head": {"type": "velocity"}}
    else:
        config = tiny_config(trunk, **{**sections, **changed})
    return lively(build_model(config), seed)


def draw(net: Any, seeds: tuple[int, ...] = (1, 2), given: dict[str, Any] | None = None, **settings: Any) -> Tensor:
    ids = torch.tensor(seeds) % 3
    sampler = sampler_of(net, **settings)
    *_, end = sampler(net, ids, noise=sampler.make_noise(net, list(seeds)), **(given or {}))
    return end.tokens


def sampler_of(net: Any, **settings: Any) -> ParallelSampler:
    able, own = net.capabilities, {}
    if not able.one_by_one:
        own = {"steps": 6}
    if not able.log_prob:
        own["head"] = {"steps": 4} if net.head.settings["type"] in ("flow", "velocity") else {"steps": 4, "clip": 3.0}
    return ParallelSampler.suited(net, {**own, **settings})


def blind(net: Any) -> Any:
    """A guide that answers every class as `net` answers its null class: guidance by it is that of the null class."""
    guide = copy.deepcopy(net)
    with torch.no_grad():
        classes = guide.classes
        if classes.config.table == "shared":
            table, first = classes._shared[0].weight, classes.first
        else:
            table, first = classes.vectors.weight, 0
        table[first : first + classes.count] = table[first + classes.null_class].clone()
    return guide


def same(a: Tensor, b: Tensor) -> None:
    if a.is_floating_point():
        torch.testing.assert_close(a, b, atol=2e-4, rtol=2e-4)
    else:
        assert torch.equal(a, b)


CURVES = [3.0, {"kind": "constant", "end": 3.0, "interval": [0.2, 0.8], "interval_of": "tokens"}]


@torch.inference_mode()
@pytest.mark.parametrize("curve", CURVES, ids=["everywhere", "interval"])
@pytest.mark.parametrize("name", sorted(MADE))
def test_a_guide_that_knows_no_class_guides_as_the_null_class(name: str, curve: Any) -> None:
    net = make(name)
    pair = guided(net, blind(net))
    head = {"head": {"guide": "logits"}} if "channels" in name else {}
    runs: list[dict[str, Any]] = [{"guidance": curve, **head}]
    if net.capabilities.cached_steps:
        runs += [
            {"guidance": curve, **head, "reuse": {"cached": 2, "full_first": 1, "refresh": how}}
            for how in ("group", "latest")
        ]
    for settings in runs:
        expected = draw(net, **settings)
        same(draw(pair, **settings), expected)
        if curve == 3.0:
            assert not torch.equal(expected, draw(net, **{**settings, "guidance": 1.0}))
