"""The head cache (LazyMAR, arXiv 2503.12450): which calls refresh, draws against a direct transcription, operations, and errors."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mgen.bench.flops import count_run
from mgen.heads import Head, HeadInputs
from mgen.heads.cache import HeadCache
from mgen.heads.diffusion import DiffusionConfig, DiffusionHead
from mgen.heads.flow import FlowConfig, FlowHead
from mgen.samplers import ParallelSampler
from mgen.tokens import TokenSpec
from mgen.utils.errors import MgenError
from tests.helpers import tiny_himar, tiny_mar, tiny_net, tiny_tokens
from tools.ablations import ablations
from tools.ablations.diffusion import randomize

PUBLISHED = {"every": 7, "blocks": [1, 4], "warm": 0.1}
DEPTH, WIDTH, CHANNELS, CONTEXT = 6, 32, 4, 16


def head(kind: str = "diffusion", dtype: torch.dtype = torch.float64) -> Any:
    torch.manual_seed(0)
    inputs = HeadInputs(tokens=TokenSpec(kind="vector", length=5, channels=CHANNELS), width=CONTEXT)
    made = (
        DiffusionHead(DiffusionConfig(width=WIDTH, depth=DEPTH), inputs)
        if kind == "diffusion"
        else FlowHead(FlowConfig(width=WIDTH, depth=DEPTH), inputs)
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


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize(("cache", "chain", "guidance"), CASES)
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


# -- in a sampler ------------------------------------------------------------------------------------------------------

SIX_BLOCKS = {"type": "diffusion", "width": WIDTH, "depth": DEPTH}


def mar(**sections: Any) -> Any:
    return tiny_mar(tokens=tiny_tokens("vector"), classes={"count": 3, "null_class": True}, **sections)


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


@pytest.mark.parametrize("cache", [{}, PUBLISHED, {"every": 7}])
@pytest.mark.parametrize("guided", [True, False])
def test_operations(cache: dict[str, Any], guided: bool) -> None:
    """Of 100 calls 16 are refreshes, 6 compute blocks 0 and 5 of the class's row, 78 their gates: as many products as that, no more."""
    net = mar(head=SIX_BLOCKS)
    guidance = 2.0 if guided else 1.0
    sampler = ParallelSampler(steps=4, order="random", guidance=guidance, head={"steps": 100, "cache": cache})
    counted = count_run(SimpleNamespace(transformer=net, tokenizer=None), sampler).flops["head"]
    rows, w = 2 if guided else 1, WIDTH**2
    ends = CHANNELS * WIDTH, 2 * w + 2 * CHANNELS * WIDTH  # input; final modulation and output
    whole = ends[0] + rows * (6 * 5 * w + ends[1])
    calls = {(): 100 * whole, (1, 4): 16 * whole + 6 * (sum(ends) + 2 * 5 * w) + 78 * (sum(ends) + 2 * w)}
    products = calls[tuple(cache.get("blocks", ()))]
    if cache == {"every": 7}:
        products = 16 * whole + 84 * (sum(ends) + 6 * 5 * w)
    assert counted == 2 * net.units.length * (products + rows * net.head.width * WIDTH)
    if cache == PUBLISHED and guided:
        assert 100 * whole / products > 4


def test_compiled() -> None:
    net = mar(head=SIX_BLOCKS)
    sampler = ParallelSampler(
        steps=2, order="random", guidance=2.0, head={"steps": 16, "clip": 3.0, "cache": PUBLISHED}
    )
    with torch.inference_mode():
        plain = run(net, sampler)
        net.compile(backend="eager")
        torch.testing.assert_close(run(net, sampler), plain, atol=1e-4, rtol=1e-4)


def test_rows_of_the_ablations() -> None:
    net = mar(head=SIX_BLOCKS)
    assert isinstance(net.head, DiffusionHead)
    randomize(net.head)
    sampler = ParallelSampler(
        steps=4, order="random", guidance=2.0, head={"steps": 16, "clip": 3.0, "cache": PUBLISHED}
    )
    rows = ablations(net, sampler, batch_size=1, repeats=1)
    lazy = [row for row in rows if "head cache" in row["ablation"]]
    assert [row["ablation"] for row in lazy][:2] == [f"head cache, not exact: {n} tokens" for n in (4, 8)]
    assert all(1e-6 < row["difference"] for row in lazy)
    assert all(row.get("difference", 0) < 1e-4 for row in rows if row not in lazy)


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
        (lambda: tiny_net("uvit"), {"cache": {"every": 7}}, "for a diffusion head"),
        (lambda: tiny_net("mae", tokens=tiny_tokens("multi-index")), {"cache": {"every": 7}}, "'head.cache'"),
    ],
)
def test_heads_without_a_cache(make: Any, own: dict[str, Any], said: str) -> None:
    with pytest.raises(MgenError, match=said):
        ParallelSampler(order="random", head=own).check(make())


def test_the_last_layer_of_a_trunk_has_none() -> None:
    from mgen.heads.flow import VelocityConfig, VelocityHead

    made: Head = VelocityHead(
        VelocityConfig(), HeadInputs(tokens=TokenSpec(kind="vector", length=4, channels=4), width=8)
    )
    made.note_settings({"type": "velocity"}) if hasattr(made, "note_settings") else None
    with pytest.raises(MgenError, match="network is the trunk"):
        made.check({"cache": {"every": 2}}, temperatures=[1.0])
    made.check({"cache": {"every": 1}}, temperatures=[1.0])
