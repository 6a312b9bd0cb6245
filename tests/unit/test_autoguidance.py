"""Autoguidance: another model in the place of the null class, on every trunk and head, with every kind of reuse."""

import copy
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from mgen.bench.benchmark import RandomPipeline
from mgen.bench.flops import Counts, count_run
from mgen.generators import Cascade, build_model, guided
from mgen.heads import PerCodebookHead, WindowHead
from mgen.heads.logit_filter import choose
from mgen.nn.halves import join
from mgen.samplers import ParallelSampler
from mgen.utils.errors import MgenError
from tests.helpers import (
    tiny_cascade_config,
    tiny_config,
    tiny_generator,
    tiny_himar,
    tiny_mar,
    tiny_pipeline,
    tiny_tokens,
)

VECTORS, CHANNELS = tiny_tokens("vector"), tiny_tokens("multi-index")
LARGE: dict[str, Any] = {"tokens": tiny_tokens(side=8), "windows": {"side": 2}}
MIXED = tiny_tokens(side=3, global_tokens=7)
DIFFUSION = {"type": "diffusion", "width": 32, "depth": 2}
FLOW = {"type": "flow", "width": 32, "depth": 2}
JOINT = {"type": "diffusion-transformer", "width": 32, "depth": 2, "heads": 2}
SLOTS = {"type": "channels", "width": 32, "depth": 1, "heads": 2}
HALVES = dict(encoder_depth=1, encoder_heads=2, decoder_depth=1, decoder_heads=2)
SMALL = {**HALVES, "encoder_dim": 32, "decoder_dim": 32}
MADE: dict[str, tuple[str, dict[str, Any]]] = {
    "uvit": ("uvit", {}),
    "bert": ("bert", {"depth": 1}),
    "mage": ("mage", SMALL),
    "adaln": ("adaln", {"depth": 1}),
    "enat": ("enat", {"encoder_depth": 1, "decoder_depth": 1}),
    "mae, diffusion": ("mae", {**SMALL, "decoder_depth": 2, "tokens": VECTORS, "head": DIFFUSION}),
    "mae, flow": ("mae", {**SMALL, "tokens": VECTORS, "head": FLOW}),
    "mae, joint": ("mae", {**SMALL, "tokens": VECTORS, "head": JOINT}),
    "mae, channels": ("mae", {**SMALL, "tokens": CHANNELS, "head": SLOTS}),
    "uvit, windows": ("uvit", LARGE),
    "mae, windows of vectors": ("mae", {**SMALL, "tokens": tiny_tokens("vector", side=8), "windows": {"side": 2}}),
    "uvit, global tokens": ("uvit", {"tokens": MIXED}),
    "causal": ("causal", {"depth": 1}),
    "causal, global tokens": ("causal", {"depth": 1, "tokens": MIXED}),
    "permuted": ("permuted", {"depth": 1}),
    "block-causal": ("block-causal", {"tokens": VECTORS}),
}
OTHER_SIZES = {"dim": 48, "heads": 3, "encoder_dim": 48, "decoder_dim": 16, "decoder_heads": 1, "hidden": 40}


def lively(net: Any, seed: int, classes: float = 3.0) -> Any:
    """Random weights everywhere, since new models have zeros; `classes`: the spread of class vectors."""
    rng = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            scale = classes if "classes." in name else 1.0 if name == "embedder.table.weight" else 0.2
            parameter.copy_(scale * torch.randn(parameter.shape, generator=rng))
    return net.eval()


def make(name: str, seed: int = 1, *, other: bool = False) -> Any:
    """A small model; `other`: one of the same tokens with other widths, depths and heads."""
    trunk, sections = MADE[name]
    if trunk == "block-causal":
        own = {"type": trunk, "dim": 32, **HALVES, "hidden": 48, "attn_dropout": 0.0, "dropout": 0.0, "size": [2, 2]}
        config = {"tokens": VECTORS, "classes": {"count": 3}, "trunk": own, "head": {"type": "velocity"}}
    else:
        config = tiny_config(trunk, **sections)
    if other:
        config["classes"] = {**config["classes"], "null_class": False}
        config["trunk"] |= {key: value for key, value in OTHER_SIZES.items() if key in config["trunk"]}
        config["head"] |= {
            key: value for key, value in {"width": 24, "heads": 2, "depth": 1}.items() if key in config["head"]
        }
    return lively(build_model(config), seed, 0.2 if trunk == "permuted" else 3.0)


def sampler_of(net: Any, **settings: Any) -> ParallelSampler:
    able, own = net.capabilities, {}
    if not able.one_by_one:
        own = {"steps": 4}
    if net.head.settings.get("mask_drawn"):
        own["head"] = {"mask": False}
    if not able.log_prob:
        flow = net.head.settings["type"] in ("flow", "velocity")
        own["head"] = {"steps": 3} if flow else {"steps": 3, "clip": 3.0}
    return ParallelSampler.suited(net, {**own, **settings})


def draw(net: Any, seeds: tuple[int, ...] = (1, 2), given: dict[str, Any] | None = None, **settings: Any) -> Tensor:
    sampler = sampler_of(net, **settings)
    *_, end = sampler(net, torch.tensor(seeds) % 3, noise=sampler.make_noise(net, list(seeds)), **(given or {}))
    return end.tokens


def blind(net: Any) -> Any:
    """A guide that answers for every class as `net` does for its null class: it guides as the null class does."""
    guide = copy.deepcopy(net)
    with torch.no_grad():
        classes = guide.classes
        table = classes._shared[0].weight if classes.config.table == "shared" else classes.vectors.weight
        table[classes.first : classes.first + classes.count] = table[classes.first + classes.null_class].clone()
    return guide


def same(a: Tensor, b: Tensor) -> None:
    if a.is_floating_point():
        torch.testing.assert_close(a, b, atol=2e-4, rtol=2e-4)
    else:
        assert torch.equal(a, b)


INTERVAL = {"kind": "constant", "end": 4.0, "interval": [0.2, 0.9], "interval_of": "tokens"}


# -- what it equals -------------------------------------------------------------------------------------------------------


@torch.inference_mode()
@pytest.mark.parametrize("name", sorted(MADE))
def test_a_guide_that_knows_no_class_guides_as_the_null_class(name: str) -> None:
    """Every path of the null rows: full passes, cached steps of both kinds, carried features, tokens one by one, entities."""
    net = make(name)
    pair, own = guided(net, blind(net)), {"head": {"guide": "logits"}} if "channels" in name else {}
    runs: list[dict[str, Any]] = [{"guidance": 4.0}, {"guidance": INTERVAL}]
    if net.capabilities.cached_steps:
        runs += [
            {"guidance": 4.0, "reuse": {"cached": 2}},
            {"guidance": INTERVAL, "reuse": {"cached": 2, "refresh": "latest"}},
        ]
        runs += [{"guidance": [4.0, 1.0, 4.0, 1.0], "reuse": {"cached": 1}}]  # nothing is kept of null rows
    if net.capabilities.lazy_layers and not net.capabilities.joint:
        tokens = {"every": 2, "layer": 0, "keep": 0.5, "extra": 0}
        runs += [{"guidance": g, "order": "random", "reuse": {"tokens": tokens}} for g in (4.0, [4.0, 1.0, 4.0, 1.0])]
    for settings in runs:
        same(draw(pair, **own, **settings), draw(net, **own, **settings))
    assert not torch.equal(draw(pair, **own, guidance=99.0), draw(pair, **own, guidance=1.0))


@torch.inference_mode()
@pytest.mark.parametrize("name", sorted(MADE))
def test_a_model_that_guides_itself_is_not_guided(name: str) -> None:
    net = make(name)
    same(draw(guided(net, net), guidance=4.0), draw(net, guidance=1.0))


# -- the formula ----------------------------------------------------------------------------------------------------------


def answers(head: Any, z: Tensor, x: Tensor, time: Tensor) -> Tensor:
    """The numbers of a diffusion's or a flow's network that guidance mixes, and of a diffusion its variances."""
    return head(x.float(), time.expand(x.shape[:-1] if not head.joint else len(x)), z).float()


def by_hand(
    nets: tuple[Any, Any], contexts: tuple[Tensor, Tensor], noise: Any, s: float, index: int, ids: Tensor
) -> Tensor:
    """Tokens of all positions, mixed from the answers of both: u + s (c − u). `ids`: of a channel head, those that were drawn."""
    heads = [net.head for net in nets]
    where = torch.arange(nets[0].units.length).expand(len(contexts[0]), -1)
    kind = heads[0].settings["type"]

    def mixed(own: Tensor, guide: Tensor) -> Tensor:
        return guide + s * (own - guide)

    if isinstance(heads[0], PerCodebookHead):
        numbers = noise.at(index, where)
        parts = [choose(mixed(*(h.parts[i].logits(z) for h, z in zip(heads, contexts))), numbers) for i in (0, 1)]
        return torch.where(where < nets[0].units.global_tokens, *parts)
    if isinstance(heads[0], WindowHead):
        return choose(mixed(*(h.inner.logits(h.split(z)) for h, z in zip(heads, contexts))), noise.at(index, where))
    if kind == "categorical":
        return choose(mixed(*(h.logits(z) for h, z in zip(heads, contexts))), noise.at(index, where))
    if kind == "channels":
        return choose(
            mixed(*(h.forced(z, ids, sampling=True) for h, z in zip(heads, contexts))), noise.at(index, where)
        )
    plan = heads[0].plan({"steps": 3} if kind == "flow" else {"steps": 3, "clip": 3.0})
    numbers = noise.maps[index] if heads[0].joint else noise.at(index, where)
    x = numbers[0].double() if kind == "flow" else numbers[0]
    if kind != "flow":
        plan.chain.begin()
    for j in range(3):
        time = plan.times[j] if kind == "flow" else torch.tensor(plan.chain.timesteps[j])
        own, guide = (answers(h, z, x, time) for h, z in zip(heads, contexts))
        added = numbers[j + 1] if j < 2 else None
        if kind == "flow":
            x = plan.flow.step(j, x, mixed(own, guide).double(), added, 1.0)
        elif kind == "diffusion":
            c = x.shape[-1]
            x = plan.chain.step(j, x, mixed(own[..., :c], guide[..., :c]), own[..., c:], added, 1.0)
        else:
            x = plan.chain.step(j, x, mixed(own, guide), None, added, 1.0)
    return x.float()


REPLAYED = [name for name in sorted(MADE) if name not in ("block-causal", "mae, windows of vectors")]


@torch.inference_mode()
@pytest.mark.parametrize("name", REPLAYED)
def test_tokens_are_mixed_from_two_models_of_other_sizes(name: str) -> None:
    """Every revealed token is the one that passes of the two models on their own give, mixed by hand."""
    nets = make(name), make(name, 2, other=True)
    assert nets[0].head.width != nets[1].head.width
    ids, pair, joint = torch.tensor([1, 2]), guided(*nets), nets[0].capabilities.joint
    sampler = sampler_of(pair, guidance=3.0, **({"steps": 1} if joint else {}), reuse={"features": False})
    noise, windows = sampler.make_noise(pair, [1, 2]), nets[0].windows
    gather, whole = (windows.to_windows, windows.whole) if windows else (lambda x: x, lambda x: x)
    known, tokens = (
        torch.zeros(2, nets[0].units.length, dtype=torch.bool),
        torch.zeros(2, *nets[0].units.shape, dtype=nets[0].units.dtype),
    )
    for step in sampler(pair, ids, noise=noise):
        contexts = [net.context(tokens, known, ids) for net in nets]
        drawn, now = gather(step.tokens), whole(step.known)
        expected, new = by_hand(nets, contexts, noise, 3.0, step.index, drawn), now & ~known
        assert new.any()
        same(drawn[new], expected[new])
        known, tokens = now.clone(), drawn.clone()


@torch.inference_mode()
def test_velocities_of_two_trunks_are_mixed() -> None:
    nets = make("block-causal"), make("block-causal", 2, other=True)
    pair, ids = guided(*nets), torch.tensor([1, 2])
    sampler = sampler_of(pair, guidance=3.0)
    noise = sampler.make_noise(pair, [1, 2])
    entities, plan = nets[0].windows, nets[0].head.plan({"steps": 3})
    known, tokens = torch.zeros(2, 4, dtype=torch.bool), torch.zeros(2, *nets[0].units.shape)
    for step in sampler(pair, ids, noise=noise):
        networks = [net.denoiser(tokens, known, ids, cache=net.start(ids)).at(plan.times) for net in nets]
        numbers = noise.at(step.index, torch.full((2, 1), step.index))
        x = numbers[0].double()
        for j in range(3):
            c, u = (net.head(network(x.float(), j)) for net, network in zip(nets, networks))
            x = plan.flow.step(j, x, (u + 3.0 * (c - u)).double(), numbers[j + 1] if j < 2 else None, 1.0)
        tokens, known = entities.to_windows(step.tokens).clone(), entities.whole(step.known)
        same(tokens[:, step.index], x[:, 0].float())


# -- two stages -----------------------------------------------------------------------------------------------------------


def cascade(seed: int, *, head: str = "diffusion-transformer", **trunk: Any) -> Any:
    config = tiny_cascade_config(side=4, head=head)
    config["trunk"] |= {"encoder_depth": 1, "decoder_depth": 1, **trunk}
    return lively(build_model(config), seed)


def cascade_run(net: Any, first: Any, second: Any, **more: Any) -> tuple[Tensor, Tensor]:
    head = {"steps": 2, "clip": 3.0}
    stage = {"steps": 2, "order": "random", "guidance": first, "head": head}
    sampler = ParallelSampler.suited(net, {"steps": 3, "guidance": second, "head": head, "first_stage": stage, **more})
    steps = sampler(net, torch.tensor([1, 2]), noise=sampler.make_noise(net, [1, 2]), complete_first_stage=True)
    ends = {step.first_stage: step.tokens.clone() for step in steps}
    return ends.get(True, torch.zeros(0)), ends[False]


@torch.inference_mode()
@pytest.mark.parametrize("head", ["diffusion-transformer", "diffusion"])
def test_both_stages_of_a_cascade_are_guided(head: str) -> None:
    net, other = cascade(1, head=head), cascade(2, head=head, dim=48, heads=3)
    plain = cascade_run(net, 1.0, 1.0)
    for first, second in ((3.0, 3.0), (1.0, 3.0), (3.0, 1.0), ([1.0, 3.0], [3.0, 1.0, 3.0])):
        for made, expected in zip(cascade_run(guided(net, net), first, second), plain):
            same(made, expected)
    pair = guided(net, other)
    assert not torch.equal(cascade_run(pair, 3.0, 1.0)[0], plain[0])
    assert torch.equal(cascade_run(pair, 1.0, 3.0)[0], plain[0])
    assert not torch.equal(cascade_run(pair, 1.0, 3.0)[1], plain[1])
    # Without a first stage, and in the first stage, a guide that knows no class is the null class.
    for more in ({}, {"reuse": {"cached": 1}}):
        for i, settings in ((0, more), (1, {**more, "first_stage": None})):
            same(
                cascade_run(guided(net, blind(net)), 3.0, 3.0, **settings)[i], cascade_run(net, 3.0, 3.0, **settings)[i]
            )


@torch.inference_mode()
def test_the_second_stage_of_a_guide_reads_its_own_first_stage() -> None:
    """Its rows are the context that the guide alone has of every token at the step that revealed it."""
    nets = cascade(1), cascade(2, dim=48, heads=3)
    pair, ids, seen = guided(*nets), torch.tensor([1, 2]), []
    assert isinstance(pair, Cascade)
    start = pair.second.start
    pair.second.start = lambda *args, **kwargs: (seen.append(kwargs["prefix"]), start(*args, **kwargs))[1]  # type: ignore[method-assign]
    sampler = ParallelSampler.suited(pair, {"steps": 3, "guidance": [1.0, 3.0, 1.0], "head": {"steps": 2}})
    sampler = sampler.override(first_stage={"steps": 3, "guidance": [1.0, 2.0, 1.0], "head": {"steps": 2, "clip": 3.0}})
    known, tokens = torch.zeros(2, 4, dtype=torch.bool), torch.zeros(2, 4, 4)
    features = [torch.zeros(2, 4, width) for width in (32, 48)]
    for step in sampler(pair, ids, noise=sampler.make_noise(pair, [1, 2]), complete_first_stage=True):
        if not step.first_stage:
            break
        new = step.known & ~known
        for net, rows in zip(nets, features):
            rows[new] = net.first.context(tokens, known, ids, cache=net.first.start(ids))[new]
        known, tokens = step.known.clone(), step.tokens.clone()
    (prefix,) = seen
    same(prefix, join(*(net.prefix(rows) for net, rows in zip(nets, features))))


# -- what it costs --------------------------------------------------------------------------------------------------------


def cost(net: Any, sampler: ParallelSampler) -> Counts:
    return count_run(RandomPipeline(net, None, sampler), sampler)


@pytest.mark.parametrize("name", ["uvit", "mae, channels", "block-causal"])
def test_both_models_are_counted_where_they_are_computed(name: str) -> None:
    net, guide = make(name), make(name, 2, other=True)
    pair = guided(net, guide)
    order = {} if net.capabilities.one_by_one else {"order": "raster", "steps": 2}
    sampler = partial(sampler_of, net, **order, reuse={"features": False})
    alone, other, both = (cost(x, sampler(guidance=s)) for x, s in ((net, 1.0), (guide, 1.0), (pair, 3.0)))
    assert cost(pair, sampler(guidance=1.0)).flops == alone.flops
    for part in ("trunk", "head"):
        assert both.flops[part] == alone.flops[part] + other.flops[part]
    assert both.passes["full"] == 2 * alone.passes["full"]


def test_guide_passes_are_left_out_outside_the_interval() -> None:
    net, guide = make("uvit"), make("uvit", 2, other=True)
    pair = guided(net, guide)
    sampler = partial(sampler_of, net, order="raster", steps=6)
    plan = sampler(guidance=INTERVAL).plan(pair)
    guided_steps = [step for step in plan.steps if step.null_rows]
    assert [step.null_rows for step in plan.steps] == [0.2 < step.unknown / 16 <= 0.9 for step in plan.steps]
    assert 0 < len(guided_steps) < 6 and "full + guide" in str(plan) and "null class" not in str(plan)
    rest = [1.0 if step.null_rows else 3.0 for step in plan.steps]
    alone, some, others, both = (cost(pair, sampler(guidance=g)) for g in (1.0, INTERVAL, rest, 3.0))
    assert some.passes["full"] == 6 + len(guided_steps) and alone.total < some.total < both.total
    assert some.total - alone.total == both.total - others.total


@torch.inference_mode()
@pytest.mark.parametrize("name", ["uvit", "enat", "mae, diffusion", "causal"])
def test_steps_without_guidance_are_those_of_a_run_that_computes_the_guide_everywhere(name: str) -> None:
    """1 + 1e-12 is no guidance in float32, but its passes are computed."""
    pair = guided(make(name), make(name, 2, other=True))
    count = sampler_of(pair).config.steps
    off, barely = ([3.0 if t % 3 else other for t in range(count)] for other in (1.0, 1.0 + 1e-12))
    skipped, full = (
        sum(step.null_rows for step in sampler_of(pair, guidance=g).plan(pair).steps) for g in (off, barely)
    )
    assert full == count and (skipped < count or name in ("enat", "causal"))
    same(draw(pair, guidance=off), draw(pair, guidance=barely))


# -- pipelines and errors -------------------------------------------------------------------------------------------------


def test_a_pipeline_takes_a_guide() -> None:
    pipe, other = tiny_pipeline(guidance=3.0), tiny_pipeline()
    other.transformer = tiny_generator(seed=5, dim=16, heads=1, classes={"null_class": False})
    run = partial(pipe, [0, 1], seed=0, output_type="tokens", progress=False)
    plain, by_class = run(guidance=1.0).tokens, run().tokens
    assert torch.equal(run(guide=pipe).tokens, plain)
    made = run(guide=other).tokens
    assert not torch.equal(made, plain) and not torch.equal(made, by_class)
    pipe.guide = other
    assert pipe.guide is other.transformer and torch.equal(run().tokens, made)
    assert torch.equal(run(guide=pipe).tokens, plain)
    counts = [count_run(x, pipe.sampler, decode=False).total for x in (pipe, tiny_pipeline())]
    assert counts[0] < counts[1]
    with pytest.raises(MgenError, match="class None is the null class, which the guide doesn't have"):
        pipe([None], progress=False)
    pipe.guide = None
    assert torch.equal(run().tokens, by_class)
    nobody = partial(pipe, [None], output_type="tokens", progress=False)
    assert torch.equal(nobody(guide=pipe).tokens, nobody(guidance=1.0).tokens)


def test_models_without_a_null_class_can_be_guided() -> None:
    net = tiny_generator(classes={"null_class": False}, tokens=tiny_tokens())
    pair = guided(net, tiny_generator(seed=4, tokens=tiny_tokens()))
    with pytest.raises(
        MgenError, match="needs a null class, this Generator has none: use guidance 1, or another model as guide"
    ):
        draw(net, guidance=3.0)
    assert not torch.equal(draw(pair, guidance=3.0), draw(net, guidance=1.0))
    with pytest.raises(MgenError, match="saved as two models"):
        pair.save_pretrained("nowhere")


WRONG: list[tuple[str, Any, Any, str]] = [
    ("vocabulary", {}, {"tokens": tiny_tokens(vocab_size=32)}, "16 tokens of 32 ids .* this model 16 tokens of 16 ids"),
    ("length", {}, {"tokens": tiny_tokens(side=2)}, "draws 4 tokens"),
    ("kind", {}, {"tokens": VECTORS, "head": DIFFUSION}, r"\(vector, .*\(index, "),
    ("grid", {}, {"tokens": {"kind": "index", "length": 16, "vocab_size": 16}}, "grid None"),
    ("classes", {}, {"classes": {"count": 4}}, "has 4 classes, this model 3"),
    ("no classes", {}, {"classes": {"count": 0}}, "has 0 classes, this model 3"),
    ("windows", {"tokens": tiny_tokens(side=8)}, LARGE, "windows of 2×2 tokens, this model tokens one by one"),
    ("head", {"tokens": VECTORS, "head": DIFFUSION}, {"tokens": VECTORS, "head": FLOW}, "head is 'flow', this model's is 'diffusion'"),
    ("schedule", {"tokens": VECTORS, "head": DIFFUSION}, {"tokens": VECTORS, "head": {**DIFFUSION, "train_steps": 500}}, "train_steps 500"),
    ("scale", {"tokens": VECTORS, "head": DIFFUSION}, {"tokens": {**VECTORS, "scale": 0.5}, "head": DIFFUSION}, "latents times 0.5"),
    ("order", {"tokens": CHANNELS, "head": SLOTS}, {"tokens": CHANNELS, "head": {**SLOTS, "order": [3, 2, 1, 0]}}, r"order \[3, 2, 1, 0\]"),
]  # fmt: skip


@pytest.mark.parametrize(("own", "other", "text"), [row[1:] for row in WRONG], ids=[row[0] for row in WRONG])
def test_a_guide_of_something_else_is_an_error(own: Any, other: Any, text: str) -> None:
    nets = [build_model(tiny_config("uvit", **sections)) for sections in (own, other)]
    with pytest.raises(MgenError, match=text):
        guided(*nets)


def test_a_guide_that_is_sampled_in_another_way_is_an_error() -> None:
    net = build_model(tiny_config("uvit"))
    for trunk, text in (("causal", "causal"), ("enat", "features")):
        with pytest.raises(MgenError, match=text):
            guided(net, build_model(tiny_config(trunk)))
    with pytest.raises(MgenError, match="2 stages, this model 1"):
        guided(tiny_mar(), tiny_himar())
    pair = guided(make("mae, channels"), make("mae, channels", 2, other=True))
    with pytest.raises(MgenError, match="head.guide is context"):
        draw(pair, guidance=3.0, head={"guide": "context"})
    pair = guided(tiny_generator(), tiny_generator(seed=2))
    with pytest.raises(MgenError, match="set reuse.condition.every=1"):
        draw(pair, guidance=3.0, reuse={"condition": {"every": 2}})
    pipe = tiny_pipeline()
    for wrong in (3, "fmnist-maskgit", torch.nn.Linear(1, 1)):
        with pytest.raises(MgenError, match="expected a pipeline"):
            pipe.guide = wrong
