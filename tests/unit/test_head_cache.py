"""The head cache (LazyMAR, arXiv 2503.12450): which calls refresh, draws against a direct transcription, operations, and errors."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mgen.bench.flops import count_run
from mgen.generators import build_model
from mgen.heads import HeadInputs
from mgen.heads.cache import HeadCache
from mgen.heads.diffusion import DiffusionConfig, DiffusionHead
from mgen.heads.flow import FlowConfig, FlowHead
from mgen.samplers import ParallelSampler
from mgen.tokens import TokenSpec
from mgen.utils.errors import MgenError
from tests.helpers import tiny_himar, tiny_mar, tiny_net, tiny_tokens
from tools.ablations import ablations
from tools.ablations.diffusion import randomize
from tools.ablations.head_cache import rows

PUBLISHED = {"every": 7, "blocks": [1, 4], "warm": 0.1}
DEPTH, WIDTH, CHANNELS, CONTEXT = 6, 32, 4, 16


def head(kind: str = "diffusion", dtype: torch.dtype = torch.float64, depth: int = DEPTH) -> Any:
    torch.manual_seed(0)
    inputs = HeadInputs(tokens=TokenSpec(kind="vector", length=5, channels=CHANNELS), width=CONTEXT)
    made = (
        DiffusionHead(DiffusionConfig(width=WIDTH, depth=depth), inputs)
        if kind == "diffusion"
        else FlowHead(FlowConfig(width=WIDTH, depth=depth), inputs)
    ).eval()
    made.initialize(lambda module: None)
    for layer in (made.out, made.out_adaln, *(block.adaln for block in made.blocks)):
        nn.init.normal_(layer.weight, std=0.1)
    return made.requires_grad_(False).to(dtype)


def inputs(
    settings: dict[str, Any], *, guided: bool = True, images: int = 2, dtype: torch.dtype = torch.float64
) -> tuple[Tensor, Tensor]:
    rng = torch.Generator().manual_seed(1)
    z = torch.randn(2 if guided else 1, images, 5, CONTEXT, generator=rng, dtype=dtype).flatten(0, 1)
    return z, torch.randn(settings.get("steps", 100), images, 5, CHANNELS, generator=rng, dtype=dtype)


# -- the published algorithm, transcribed: two states, every tensor in a store of its own ------------------------------


class Transcription:
    """Answers of the network for the states x (2n, C) of both halves, or (n, C) without guidance."""

    def __init__(
        self, head: Any, z: Tensor, embedding: Tensor, *, guided: bool, every: int, skip: list[int], warm: float
    ) -> None:
        self.head, self.z, self.embedding, self.guided = head, z, embedding, guided
        self.every, self.skip, self.warm = every, skip, warm
        self.mlp_store: dict[int, Tensor] = {}
        self.block_store: dict[int, Tensor] = {}
        self.d = torch.empty(0)

    def __call__(self, x: Tensor, i: int) -> Tensor:
        n, calls, net = len(self.z) // (2 if self.guided else 1), len(self.embedding), self.head
        refresh = i == calls - 1 or i % self.every == 0
        warm = i > round(calls - self.warm * calls, 6)
        half = x[:n]
        rows = torch.cat([half, half]) if refresh and self.guided else half
        y = F.silu(self.embedding[calls - 1 - i] + net.cond(self.z[: len(rows)]))
        h = net.input(rows)
        for b, block in enumerate(net.blocks):
            shift, scale, gate = block.adaln(y).chunk(3, dim=-1)

            def mlp(h: Tensor, block: Any = block, shift: Tensor = shift, scale: Tensor = scale) -> Tensor:
                return block.fc2(F.silu(block.fc1(block.norm(h) * (1 + scale) + shift)))

            if b in self.skip:
                if refresh:
                    after = h + gate * mlp(h)
                    self.block_store[b] = after - h
                    h = after
                else:
                    h = h + self.block_store[b][:n]
            else:
                if refresh or warm or not self.skip:
                    self.mlp_store[b] = mlp(h)
                h = h + gate * self.mlp_store[b][: len(h)]
        shift, scale = net.out_adaln(y).chunk(2, dim=-1)
        out = net.out(F.layer_norm(h, (WIDTH,), eps=1e-6) * (1 + scale) + shift)
        if not self.guided:
            return out
        if refresh:
            self.d = (out[:n] - out[n:])[:, :CHANNELS]
            return out
        null = out.clone()  # its variance is the conditional one
        null[:, :CHANNELS] = out[:, :CHANNELS] - self.d
        return torch.cat([out, null])


def guide(eps: Tensor, s: Any, images: int) -> Tensor:
    """Both halves with the guided answer."""
    own, null = eps.chunk(2)
    s = torch.as_tensor(s, dtype=eps.dtype).expand(images).repeat_interleave(len(own) // images).unsqueeze(1)
    return (null + s * (own - null)).repeat(2, 1)


def transcribed(
    net: Any, z: Tensor, noise: Tensor, settings: dict[str, Any], guidance: Any, temperature: float
) -> Tensor:
    cache, images, guided = HeadCache(**settings["cache"]), noise.shape[1], guidance is not None
    plan = net.plan({key: value for key, value in settings.items() if key != "cache"})
    diffusion = isinstance(net, DiffusionHead)
    embedding = plan.embedding if diffusion else net.time(plan.times)
    skip = list(range(cache.blocks[0], cache.blocks[1] + 1)) if cache.blocks else []
    answers = Transcription(
        net, z.flatten(0, 1), embedding, guided=guided, every=cache.every, skip=skip, warm=cache.warm
    )
    draws = noise.flatten(1, 2).repeat(1, 2 if guided else 1, 1)
    x, calls = draws[0], len(embedding)
    if diffusion:
        plan.chain.begin()
    for j in range(calls):
        out, added = answers(x, calls - 1 - j), draws[j + 1] if j + 1 < calls else None
        eps = out[:, :CHANNELS]
        eps = guide(eps, guidance, images) if guided else eps
        if diffusion:
            x = plan.chain.step(j, x, eps, out[:, CHANNELS:], added, temperature)
        else:
            x = plan.flow.step(j, x, eps, added, temperature)
    return x[: images * noise.shape[2]].unflatten(0, noise.shape[1:3])


CASES: list[tuple[dict[str, Any], dict[str, Any], Any]] = [
    (PUBLISHED, {}, 3.0),
    (PUBLISHED, {}, None),
    (PUBLISHED, {"steps": 50}, torch.tensor([1.5, 3.0])),
    (PUBLISHED, {"steps": 50, "max_timestep": 950}, 3.0),
    (PUBLISHED, {"steps": 7}, 1.0),
    (PUBLISHED, {"steps": 1}, 3.0),
    ({"every": 5}, {"steps": 30}, 3.0),
    ({"every": 5, "blocks": []}, {"steps": 30}, None),
    ({"every": 4, "blocks": [0, 1]}, {"steps": 22, "chain": "ddim"}, 2.0),
    ({"every": 4, "blocks": [0, 5], "warm": 1.0}, {"steps": 22, "chain": "dpm-solver++"}, 2.0),
    ({"every": 3, "blocks": [5, 5], "warm": 0.25}, {"steps": 20, "chain": "dpm-solver++3s"}, 2.0),
    ({"every": 1000, "blocks": [2, 3], "warm": 0.5}, {"steps": 24}, 2.0),
]


@pytest.mark.parametrize(
    ("cache", "chain", "guidance", "dtype"),
    [*((*case, torch.float64) for case in CASES), *((*case, torch.float32) for case in CASES[3:9:3])],
)
def test_draws_are_those_of_the_transcription(
    cache: dict[str, Any], chain: dict[str, Any], guidance: Any, dtype: torch.dtype
) -> None:
    net, settings = head(dtype=dtype), {"clip": 3.0, **chain, "cache": cache}
    z, noise = inputs(settings, guided=guidance is not None, dtype=dtype)
    noise = noise if chain.get("chain", "ancestral") == "ancestral" else noise[:1]
    draw = {"noise": noise, "guidance": guidance, "temperature": 0.9 if len(noise) > 1 else 1.0}
    ours = net.sample(z, plan=net.plan(settings), **draw).tokens
    padded = noise.new_zeros(settings.get("steps", 100), *noise.shape[1:])
    padded[: len(noise)] = noise
    expected = transcribed(net, z, padded, settings, guidance, draw["temperature"])
    torch.testing.assert_close(ours, expected, atol=2e-5, rtol=2e-5)
    plain = net.sample(z, plan=net.plan({**settings, "cache": {}}), **draw).tokens
    changes = settings.get("steps") != 1 and (guidance is not None or cache.get("blocks"))
    assert bool((ours - plain).abs().max() > 1e-2) == bool(changes), "the cache must matter, where it does anything"


@pytest.mark.parametrize("solver", ["euler", "euler-maruyama"])
@pytest.mark.parametrize(("cache", "guidance"), [(PUBLISHED, 3.0), (PUBLISHED, None), ({"every": 4}, 2.0)])
def test_flows(cache: dict[str, Any], guidance: float | None, solver: str) -> None:
    net, settings = head("flow"), {"solver": solver, "steps": 40, "cache": cache}
    z, noise = inputs(settings, guided=guidance is not None)
    noise[1:] *= solver == "euler-maruyama"
    ours = net.sample(z, noise=noise, plan=net.plan(settings), guidance=guidance).tokens
    expected = transcribed(net, z, noise, settings, guidance, 1.0)
    torch.testing.assert_close(ours.double(), expected, atol=2e-5, rtol=2e-5)
    plain = net.sample(z, noise=noise, plan=net.plan({**settings, "cache": {}}), guidance=guidance).tokens
    assert (ours - plain).abs().max() > 1e-3


# -- the calls ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("calls", "refreshes", "warm"),
    [
        (100, [99, *range(98, -1, -7)], range(92, 98)),
        (50, range(49, -1, -7), [48, 47, 46]),
        (48, [47, *range(42, -1, -7)], [46, 45, 44]),
        (7, [6, 0], []),
        (1, [0], []),
    ],
)
def test_published_calls(calls: int, refreshes: Any, warm: Any) -> None:
    cache = HeadCache(**PUBLISHED)
    kinds = {i: cache.kind(i, calls) for i in range(calls)}
    assert {i for i in kinds if kinds[i] == "refresh"} == set(refreshes)
    assert {i for i in kinds if kinds[i] == "blocks"} == set(warm)
    if calls == 100:
        assert len(refreshes) == 16 and len(warm) == 6


@pytest.mark.parametrize("kind", ["diffusion", "flow"])
@pytest.mark.parametrize("guidance", [None, 3.0])
def test_every_one_is_the_plain_draw(kind: str, guidance: float | None) -> None:
    net = head(kind, torch.float32)
    z, noise = inputs({"steps": 20}, guided=guidance is not None, dtype=torch.float32)
    draws = [
        net.sample(z, noise=noise, plan=net.plan({"steps": 20, **cache}), guidance=guidance).tokens
        for cache in ({}, {"cache": {}}, {"cache": {"every": 1, "blocks": [1, 4], "warm": 0.3}})
    ]
    assert torch.equal(draws[0], draws[1]) and torch.equal(draws[0], draws[2])


def test_a_token_does_not_depend_on_its_batch() -> None:
    net, settings = head(), {"steps": 50, "clip": 3.0, "cache": PUBLISHED}
    z, noise = inputs(settings)
    s = torch.tensor([2.0, 4.0])
    both = net.sample(z, noise=noise, plan=net.plan(settings), guidance=s).tokens
    for i in range(2):
        alone = net.sample(z[i::2], noise=noise[:, i : i + 1], plan=net.plan(settings), guidance=s[i : i + 1]).tokens
        torch.testing.assert_close(both[i : i + 1], alone, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("kind", ["diffusion", "flow"])
@pytest.mark.parametrize("cache", [PUBLISHED, {"every": 7}])
def test_a_guide_is_asked_in_refresh_calls_alone(kind: str, cache: dict[str, Any]) -> None:
    net, other, settings = head(kind), head(kind), {"steps": 30, "cache": cache}
    z, noise = inputs(settings)
    own = net.sample(z, noise=noise, plan=net.plan(settings), guidance=2.0).tokens
    asked, modulated = [], []
    embed, made = other.embed, other.some_modulations
    other.embed = lambda x: asked.append(len(x)) or embed(x)
    other.some_modulations = lambda y, **k: modulated.append(len(y)) or made(y, **k)
    both = net.guided_by(other)
    torch.testing.assert_close(both.sample(z, noise=noise, plan=both.plan(settings), guidance=2.0).tokens, own)
    refreshes = len({29, *range(0, 30, 7)})
    assert asked == [len(z) // 2 * 5] * refreshes and sum(modulated) == refreshes


# -- in a sampler ------------------------------------------------------------------------------------------------------

SIX_BLOCKS = {"type": "diffusion", "width": WIDTH, "depth": DEPTH}


def mar(**sections: Any) -> Any:
    return tiny_mar(tokens=tiny_tokens("vector"), classes={"count": 3, "null_class": True}, **sections)


def xar() -> Any:
    halves = {"encoder_depth": 1, "encoder_heads": 2, "decoder_depth": 1, "decoder_heads": 2}
    trunk = {"type": "block-causal", "dim": 32, "hidden": 48, "entity": "cell", "size": [2, 4], **halves}
    return build_model(
        {"tokens": tiny_tokens("vector"), "classes": {"count": 3}, "trunk": trunk, "head": {"type": "velocity"}}
    )


def run(net: Any, sampler: ParallelSampler) -> Tensor:
    *_, last = sampler(net, torch.tensor([0, 2]), noise=sampler.make_noise(net, [0, 1]))
    return last.tokens


@pytest.mark.parametrize(
    "own",
    [
        {"head": {"type": "flow", "width": WIDTH, "depth": DEPTH}},
        {"windows": {"side": 2}, "head": SIX_BLOCKS},
        {"head": SIX_BLOCKS, "sampler": {"reuse": {"cached": 1, "head_share": 0.5}}},
        {"head": SIX_BLOCKS, "sampler": {"head": {"steps": [20, 12, 8, 3], "max_timestep": 950}}},
    ],
)
def test_the_index_is_over_each_chain(own: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    net = mar(**{key: value for key, value in own.items() if key != "sampler"})
    inner, seen = getattr(net.head, "inner", net.head), []
    made = inner.network

    def network(z: Tensor, embedding: Tensor, *, cache: Any, null_rows: bool) -> Any:
        seen.append((len(embedding), cache and [call.kind == "refresh" for call in cache.calls]))
        return made(z, embedding, cache=cache, null_rows=null_rows)

    monkeypatch.setattr(inner, "network", network)
    settings = {"steps": 4, "order": "random", "guidance": 2.0, **own.get("sampler", {})}
    plain = settings | {"head": {"steps": 20, **settings.get("head", {})}}
    sampler = ParallelSampler(**plain | {"head": plain["head"] | {"cache": PUBLISHED}})
    lazy, calls = run(net, sampler), [n for n, _ in seen]
    chains = [step.head_steps or 20 for step in sampler.plan(net).steps]
    assert calls == [n - (n == 20 and "max_timestep" in plain["head"]) for n in chains] or calls == chains
    for n, refreshes in seen:
        assert refreshes == [i in (n - 1, *range(0, n, 7)) for i in reversed(range(n))]
    assert not torch.allclose(lazy, run(net, ParallelSampler(**plain)), atol=1e-6)


def test_both_stages_of_a_cascade() -> None:
    net = tiny_himar(side=4, head="diffusion")
    lazy = {"steps": 8, "cache": {"every": 3, "blocks": [1, 1]}}
    own: dict[str, Any] = {"steps": 3, "order": "random", "guidance": 2.0, "head": lazy}
    assert run(net, ParallelSampler(**own, first_stage=own)).isfinite().all()


@pytest.mark.parametrize(
    ("steps", "cache", "guided", "calls"),
    [
        (3, {}, True, (3, 0, 0)),
        (9, {"every": 7}, True, (3, 6, 0)),
        (9, {**PUBLISHED, "every": 3, "warm": 0.25}, False, (4, 1, 4)),
        (30, {**PUBLISHED, "warm": 0.2}, True, (6, 3, 21)),
    ],
)
def test_operations(steps: int, cache: dict[str, Any], guided: bool, calls: tuple[int, int, int]) -> None:
    """As many products as refreshes, calls that compute blocks, and calls that compute the gates of blocks 0 and 5 alone need."""
    net, guidance = mar(head=SIX_BLOCKS), 2.0 if guided else 1.0
    sampler = ParallelSampler(steps=2, order="random", guidance=guidance, head={"steps": steps, "cache": cache})
    counted = count_run(SimpleNamespace(transformer=net, tokenizer=None, sampled=lambda: net), sampler).flops["head"]
    halves, w = 2 if guided else 1, WIDTH**2
    first, last = CHANNELS * WIDTH, 2 * w + 2 * CHANNELS * WIDTH  # input; final modulation and output
    blocks = 2 if cache.get("blocks") else 6
    of_calls = first + halves * (6 * 5 * w + last), first + blocks * 5 * w + last, first + 2 * w + last
    products = sum(n * each for n, each in zip(calls, of_calls)) + halves * net.head.width * WIDTH
    assert sum(calls) == steps and counted == 2 * net.units.length * products


@pytest.mark.slow
def test_compiled() -> None:
    cache = {"every": 4, "blocks": [1, 1], "warm": 0.5}
    net, settings = head(dtype=torch.float32, depth=2), {"steps": 9, "clip": 3.0, "cache": cache}
    z, noise = inputs(settings, dtype=torch.float32)
    draw: dict[str, Any] = {"noise": noise, "plan": net.plan(settings), "guidance": 2.0}
    with torch.inference_mode():
        plain = net.sample(z, **draw).tokens
        called = set()
        for name in net.passes:
            compiled = torch.compile(getattr(net, name), backend="eager", fullgraph=True)
            setattr(net, name, lambda *a, name=name, f=compiled, **k: called.add(name) or f(*a, **k))
        torch.testing.assert_close(net.sample(z, **draw).tokens, plain, atol=1e-4, rtol=1e-4)
    assert called == {*net.passes} - {"modulations"}  # which are those of a chain without a cache


def test_what_the_cache_saves_is_measured() -> None:
    net = mar(head=SIX_BLOCKS)
    assert isinstance(net.head, DiffusionHead)
    randomize(net.head)
    made = rows(net, ParallelSampler(steps=4, order="random", head={"steps": 16, "clip": 3.0}), repeats=1)
    assert [row["ablation"].split(",")[0] for row in made] == ["4 tokens"] * 3 + ["8 tokens"] * 3
    assert all(1e-6 < row["difference"] < 1 for row in made if "not guided" not in row["ablation"])


def test_the_ablations_of_exact_optimizations_leave_the_cache_out() -> None:
    net = mar(head=SIX_BLOCKS)
    assert isinstance(net.head, DiffusionHead)
    randomize(net.head)
    head = {"steps": 8, "clip": 3.0, "cache": PUBLISHED}
    made = ablations(net, ParallelSampler(steps=4, order="random", guidance=2.0, head=head), batch_size=1, repeats=1)
    assert all(row.get("difference", 0.0) < 1e-4 for row in made)


# -- errors ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cache", "said"),
    [
        ({"every": 0}, "head.cache.every"),
        ({"warm": 1.5}, "head.cache.warm"),
        ({"blocks": [1]}, "first and the last"),
        ({"blocks": [4, 1]}, "first and the last"),
        ({"blocks": [1, 2, 3]}, "first and the last"),
        ({"blocks": [-1, 2]}, "head.cache.blocks"),
        ({"blocks": 3}, "head.cache.blocks"),
        ({"evry": 7}, "did you mean 'every'"),
        (7, "head.cache"),
    ],
)
def test_bad_settings(cache: Any, said: str) -> None:
    with pytest.raises(MgenError, match=said):
        ParallelSampler(order="random", head={"cache": cache})


@pytest.mark.parametrize(
    ("make", "own", "said"),
    [
        (lambda: mar(), {"cache": {"every": 7, "blocks": [1, 4]}}, "2 blocks, 0 … 1"),
        (lambda: tiny_himar(side=4), {"cache": {"every": 7}}, "attend to all tokens together"),
        (xar, {"cache": {"every": 7}}, "network is the trunk"),
        (lambda: tiny_net("uvit"), {"cache": {"every": 7}}, "for a diffusion head"),
        (lambda: tiny_net("mae", tokens=tiny_tokens("multi-index")), {"cache": {"every": 7}}, "'head.cache'"),
    ],
)
def test_heads_without_a_cache(make: Any, own: dict[str, Any], said: str) -> None:
    with pytest.raises(MgenError, match=said):
        ParallelSampler.suited(net := make(), {"head": own}).check(net)
