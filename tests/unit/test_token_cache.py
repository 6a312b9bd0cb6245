"""The token cache (LazyMAR, arXiv 2503.12450, §3.2): which steps are lazy, and what they compute, against a plain transcription."""

from itertools import pairwise
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mgen.bench.benchmark import RandomPipeline
from mgen.bench.flops import count_run
from mgen.bench.proxy import Proxy
from mgen.generators import guided
from mgen.nn import Cache
from mgen.samplers import ParallelSampler
from mgen.samplers.token_cache import TokenCache
from mgen.utils.errors import MgenError
from tests.helpers import tiny_himar, tiny_net, tiny_tokens
from tools.ablations import ablations

PUBLISHED = [[0.3125, 0.6], [0.328125, 0.5], [0.390625, 0.4], [0.46875, 0.15], [0.546875, 0.12], [0.625, 0.05]]
RATIOS = [1.0] * 20 + [0.6] + [0.5] * 4 + [0.4] * 5 + [0.15] * 5 + [0.12] * 5 + [0.05] * 24
SIDE = 5
LENGTH = SIDE * SIDE


def make(kind: str = "vector", trunk: str = "mae", std: float = 0.1, **sections: Any) -> Any:
    own = {"prefix_length": 4, "decoder_depth": 4, "encoder_depth": 3} if trunk == "mae" else {}
    classes = {"count": 3, "null_class": True}
    net = tiny_net(trunk, tokens=tiny_tokens(kind, side=SIDE), classes=classes, **{**own, **sections})
    for i, (name, parameter) in enumerate(net.named_parameters()):  # heads start as zero functions
        if not (name.endswith("weight") and parameter.ndim == 1):
            torch.nn.init.normal_(parameter, std=std, generator=torch.Generator().manual_seed(i))
    return net


def settings(net: Any, **own: Any) -> ParallelSampler:
    order = {} if net.capabilities.log_prob else {"order": "random", "head": {"steps": 3, "clip": 3.0}}
    return ParallelSampler(**{"steps": 10, "guidance": 3.0, "counts": "mar", **order, **own})


def run(net: Any, sampler: ParallelSampler, seeds: list[int] = [0, 1], **given: Tensor) -> Tensor:  # noqa: B006
    label = torch.tensor(seeds) % 3
    *_, last = sampler(net, label, noise=sampler.make_noise(net, seeds), **given)
    return last.tokens


def kinds(sampler: ParallelSampler, net: Any) -> list[str]:
    return [step.kind for step in sampler.plan(net).steps]


# -- a plain transcription: one image, one half of the guidance, explicit stores ------------------------------------------


def project(block: Any, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """q, k, v (N, H, d) of x (N, D)."""
    q, k, v = block.attn.qkv(block.norm1(x)).chunk(3, dim=-1)
    return tuple(y.unflatten(-1, (block.attn.heads, -1)) for y in (q, k, v))  # type: ignore[return-value]


def attend(block: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    weights = (torch.einsum("qhd,khd->hqk", q, k) / q.shape[-1] ** 0.5).softmax(-1)
    return block.attn.proj(torch.einsum("hqk,khd->qhd", weights, v).flatten(1))


def with_mlp(block: Any, x: Tensor) -> Tensor:
    return x + block.mlp(block.norm2(x))


class Half:
    """What is kept of one image and one class."""

    def __init__(self, net: Any, label: int) -> None:
        self.net, self.trunk = net, net.trunk
        self.vector = net.classes(torch.tensor([label]))[0]
        self.s, self.encoder, self.decoder = net.trunk.prefix_length, {}, {}
        self.inputs = torch.empty(0)

    def embedded(self, tokens: Tensor, at: list[int]) -> Tensor:
        """Buffer and tokens as the encoder reads them."""
        t = self.trunk
        rows = self.net.embedder(tokens[None, at], None, torch.tensor([at]))[0]
        buffer = self.vector + t.encoder_position[: self.s]
        return t.token_norm(torch.cat([buffer, rows + t.encoder_position[[self.s + p for p in at]]]))

    def full(self, tokens: Tensor, visible: list[int]) -> Tensor:
        t = self.trunk
        x = self.embedded(tokens, visible)
        for i, block in enumerate(t.encoder_blocks):
            q, k, v = project(block, x)
            self.encoder[i] = [k, v]
            x = with_mlp(block, x + attend(block, q, k, v))
        rows = t.decoder_embed(t.encoder_norm(x))
        x = t.mask_token[0].repeat(self.s + LENGTH, 1)
        x[[*range(self.s), *(self.s + p for p in visible)]] = rows
        self.inputs = x = x + t.decoder_position
        for i, block in enumerate(t.decoder_blocks):
            q, k, v = project(block, x)
            self.decoder[i] = [k, v]
            x = with_mlp(block, x + attend(block, q, k, v))
        return x

    def lazy(self, tokens: Tensor, latest: list[int], drawn: list[int], layer: int, count: int) -> Tensor:
        t, s = self.trunk, self.s
        x = self.embedded(tokens, latest)
        for i, block in enumerate(t.encoder_blocks):
            q, k, v = project(block, x)
            for store, new in zip(self.encoder[i], (k, v)):
                store[:s] = new[:s]
            self.encoder[i] = [torch.cat([store, new[s:]]) for store, new in zip(self.encoder[i], (k, v))]
            x = with_mlp(block, x + attend(block, q, *self.encoder[i]))
        rows = t.decoder_embed(t.encoder_norm(x))
        at = [*range(s), *(s + p for p in latest)]
        self.inputs = self.inputs.clone()
        self.inputs[at] = rows + t.decoder_position[at]
        x, kept = self.inputs, list(range(s + LENGTH))
        for i, block in enumerate(t.decoder_blocks):
            q, k, v = project(block, x)
            before = self.decoder[i][1].clone()
            for store, new in zip(self.decoder[i], (k, v)):
                store[kept] = new
            x = x + attend(block, q, *self.decoder[i])
            if i == layer:
                score = F.cosine_similarity(v, before, dim=-1).mean(1)
                score[[s + p for p in (*drawn, *latest)]] = 0.0
                kept = score.sort().indices[:count].tolist()
                x = x[kept]
            x = with_mlp(block, x)
        assert {s + p for p in drawn} <= set(kept)
        out = torch.zeros(s + LENGTH, x.shape[-1])
        out[kept] = x
        return out


@torch.no_grad()
def reference(net: Any, sampler: ParallelSampler, seed: int, tokens: Tensor | None = None, known: int = 0) -> Tensor:
    """Tokens (L, C) of one image, of which the last `known` positions of the order are given."""
    own, head, order = sampler.reuse.tokens, net.head, list(sampler.order.positions)
    noise = sampler.make_noise(net, [seed])
    plan, lazily = head.plan(sampler.longest_head), sampler.reuse.condition.every > 1
    tokens = torch.zeros(LENGTH, 4) if tokens is None else tokens.clone()
    halves = [Half(net, seed % 3), Half(net, net.null_class)]
    difference = torch.empty(0)
    left = [LENGTH - known, *sampler.remaining(unknown=LENGTH - known, length=LENGTH)]
    guidance, shares = sampler.values("guidance", LENGTH), own.shares(sampler.config.steps)
    latest: list[int] = []
    for k, (before, after) in enumerate(pairwise(left)):
        visible = order[: LENGTH - known - before] + order[LENGTH - known :]
        drawn = order[LENGTH - known - before : LENGTH - known - after]
        if k < own.first or (k - own.first) % own.every == 0:
            out = [half.full(tokens, visible) for half in halves]
            difference = out[1] - out[0]
        else:
            rows = net.trunk.prefix_length + LENGTH
            count = max(len(drawn) + len(latest) + own.extra, int(rows * shares[k]))
            used = halves[:1] if lazily else halves
            out = [half.lazy(tokens, latest, drawn, own.layer, count) for half in used]
            out = [out[0], out[0] + difference] if lazily else out
        z = net.trunk.decoder_norm(torch.stack(out)[:, net.trunk.prefix_length :]) + net.trunk.head_position
        z = z[:, drawn] if guidance[k] != 1 else z[:1, drawn]
        scale = guidance[k] if guidance[k] != 1 else None
        tokens[drawn] = head.sample(z, noise=noise.at(k, torch.tensor([drawn])), plan=plan, guidance=scale).tokens[0]
        latest = drawn
    return tokens


ORDER = torch.randperm(LENGTH, generator=torch.Generator().manual_seed(3)).tolist()
STEPS = [1.0] * 3 + [0.5] * 3 + [0.3] * 4
LAZY: list[dict[str, Any]] = [
    {"every": 9, "first": 5, "keep": [[0.3, 0.6], [0.6, 0.2]], "layer": 2, "extra": 3},
    {"every": 3, "first": 0, "keep": 0.4, "layer": 1, "extra": 2},
    {"every": 5, "first": 2, "keep": STEPS, "layer": 1, "extra": 0},
    {"every": 100, "keep": 0.0, "layer": 1, "extra": 1},
    {"every": 4, "first": 1},
]


@pytest.mark.parametrize("own", LAZY, ids=str)
@pytest.mark.parametrize("condition", [False, True])
def test_against_a_plain_transcription(own: dict[str, Any], condition: bool) -> None:
    net = make()
    both = {"condition": {key: own[key] for key in ("every", "first") if key in own}} if condition else {}
    sampler = settings(
        net,
        order=ORDER,
        guidance={"kind": "linear", "start": 1, "end": 3, "at": "tokens", "left": 1},
        reuse={"tokens": own, **both},
    )
    got, plain = run(net, sampler), run(net, sampler.override(reuse={"tokens": {}, "condition": {}}))
    expected = torch.stack([reference(net, sampler, seed) for seed in (0, 1)])
    torch.testing.assert_close(got, expected, atol=2e-4, rtol=1e-3)
    assert (got - plain).abs().max() > 5e-3
    if own.get("keep"):
        unpruned = run(net, sampler.override(reuse={"tokens": {**own, "keep": 1.0}}))
        assert (got - unpruned).abs().max() > 1e-4


def test_given_tokens_and_single_images() -> None:
    """Against the transcription with given tokens, and an image is the same in any batch; unequal numbers raise an error."""
    net = make()
    sampler = settings(net, order=ORDER, reuse={"tokens": LAZY[1]})
    tokens, known = torch.randn(2, LENGTH, 4), torch.zeros(2, LENGTH, dtype=torch.bool)
    known[:, ORDER[-6:]] = True
    both = run(net, sampler, tokens=tokens, known=known)
    for seed in (0, 1):
        alone = run(net, sampler, [seed], tokens=tokens[seed : seed + 1], known=known[seed : seed + 1])[0]
        torch.testing.assert_close(alone, both[seed], atol=1e-4, rtol=1e-3)
        torch.testing.assert_close(alone, reference(net, sampler, seed, tokens[seed], 6), atol=2e-4, rtol=1e-3)
    assert torch.equal(both[known], tokens[known])
    known[0, ORDER[0]] = True
    with pytest.raises(MgenError, match=r"as many given tokens.*reuse\.tokens\.every=1"):
        run(net, sampler, tokens=tokens, known=known)


# -- which steps are lazy -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("steps", "full"), [(64, [*range(6), 14, 23, 32, 41, 50, 59]), (32, [*range(6), 14, 23])])
def test_published_steps(steps: int, full: list[int]) -> None:
    net = tiny_net(
        "mae", tokens=tiny_tokens("vector", side=16), classes={"count": 3, "null_class": True}, decoder_depth=5
    )
    period = {"every": 9, "first": 5}
    linear = {"kind": "linear", "start": 1, "end": 3.25, "at": "tokens", "left": 1}
    common: dict[str, Any] = dict(steps=steps, order="random", counts="mar", guidance=linear)
    sampler = ParallelSampler(
        **common, reuse={"condition": period, "tokens": {**period, "keep": PUBLISHED, "layer": 3, "extra": 15}}
    )
    plan = sampler.plan(net)
    assert [step.index for step in plan.steps if step.kind == "full"] == full
    for step in plan.steps:  # the class's rows alone are computed and kept in lazy steps
        assert step.null_rows == (step.kind == "full") and step.null_kept == (step.kind == "lazy")
        assert step.keeps_null == (not step.room)
    assert "lazy + kept null class" in str(plan)
    alone = ParallelSampler(**common, reuse={"tokens": period}).plan(net)
    assert all(step.null_rows and step.keeps_null for step in alone.steps)
    assert [step.kind for step in alone.steps] == [step.kind for step in plan.steps]


def test_kept_rows_of_the_published_setting() -> None:
    """320 × 20, 192, 160 × 4, 128 × 5, 48 × 5, 38 × 5, then those of two steps and 15 more."""
    assert TokenCache(keep=tuple(map(tuple, PUBLISHED))).shares(64) == RATIOS
    net = tiny_net("mae", tokens=tiny_tokens("vector", side=16), decoder_depth=5, prefix_length=64)
    keep = {"every": 9, "first": 5, "keep": PUBLISHED}
    sampler = ParallelSampler(steps=64, order="random", counts="mar", head={"steps": 2}, reuse={"tokens": keep})
    counts: dict[int, int] = {}
    spied = Proxy(
        net, lazy_step=lambda *args: counts.__setitem__(len(seen), args[-1].count(320)) or net.lazy_step(*args)
    )
    seen: list[int] = []
    for step in sampler(spied, torch.tensor([0]), noise=sampler.make_noise(net, [0])):
        seen.append(step.positions.shape[1])
    expected = [int(320 * ratio) for ratio in RATIOS[:40]]
    assert all(counts[k] == expected[k] for k in counts if k < 40)
    assert all(counts[k] == seen[k] + seen[k - 1] + 15 for k in counts if k >= 40) and len(counts) == 52
    assert {25, 28} >= {min(v for k, v in counts.items() if k > 40), max(v for k, v in counts.items() if k > 40)}


@pytest.mark.parametrize(("kind", "head"), [("vector", None), ("index", None), ("multi-index", None)])
@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_every_one_is_the_plain_run(kind: str, head: None, guidance: float) -> None:
    net = make(kind)
    sampler = settings(net, guidance=guidance)
    exact = sampler.override(reuse={"tokens": {"every": 1, "first": 2, "keep": 0.1, "layer": 1}})
    assert torch.equal(run(net, sampler), run(net, exact)) and {*kinds(exact, net)} == {"full"}
    lazy = run(net, sampler.override(reuse={"tokens": {"every": 4, "keep": 0.3, "layer": 1, "extra": 2}}))
    assert lazy.shape == run(net, sampler).shape and (not lazy.is_floating_point() or bool(lazy.isfinite().all()))


def test_extra_rows_or_shares_that_keep_all_prune_nothing() -> None:
    net = make()
    all_rows = [{"keep": 1}, {"keep": 0.2, "extra": 40}, {"keep": [1.0] * 10}, {"keep": 0.99}]
    runs = [run(net, settings(net, reuse={"tokens": {"every": 5, "layer": 1, **own}})) for own in all_rows]
    assert torch.equal(runs[0], runs[1]) and torch.equal(runs[0], runs[2]) and not torch.equal(runs[0], runs[3])


def test_null_rows_that_were_not_kept_make_a_step_full() -> None:
    """With guidance that goes off and on, and with another period of the condition."""
    net = make()
    lists = [1.0, 1.0, 2.0, 2.0, 1.0, 2.0, 2.0, 2.0, 2.0, 2.0]
    plan = settings(net, guidance=lists, reuse={"tokens": {"every": 10, "keep": 1}}).plan(net)
    assert [step.index for step in plan.steps if step.kind == "full"] == [0, 2, 5]
    reuse = {"tokens": {"every": 5, "keep": 1}, "condition": {"every": 3}}
    plan = settings(net, reuse=reuse).plan(net)
    assert [step.index for step in plan.steps if step.kind == "full"] == [0, 3, 5, 6, 9]
    assert all(not (step.kind == "lazy" and step.null_rows) for step in plan.steps)
    assert run(net, settings(net, reuse=reuse)).isfinite().all()


@pytest.mark.parametrize("order", ["confidence", {"name": "confidence", "redraw": True}, "moment", "halton"])
def test_ids_in_ranked_orders(order: Any) -> None:
    """All unknown positions are drawn, and those revealed in the step before are the latest ones."""
    net = make("index")
    seen: list[tuple[Tensor, Tensor]] = []
    sampler = settings(net, order=order, reuse={"tokens": {"every": 4, "keep": 0.2, "layer": 1, "extra": 1}})
    spied = Proxy(
        net, lazy_step=lambda *args: seen.append((args[-1].latest[:2], args[-1].drawn[:2])) or net.lazy_step(*args)
    )
    before = torch.zeros(2, LENGTH, dtype=torch.bool)
    lazy = iter(step.kind == "lazy" for step in sampler.plan(net).steps)
    masks = [before, before]
    for step in sampler(spied, torch.tensor([0, 1]), noise=sampler.make_noise(net, [0, 1])):
        if next(lazy):
            latest, drawn = seen[-1]
            assert torch.equal(before.scatter(1, latest, True), masks[-1] & ~masks[-2])
            if order != "halton":
                assert torch.equal(before.scatter(1, drawn, True), ~masks[-1])
        masks.append(step.known.clone())
    assert masks[-1].all() and len(seen) == 7


def test_first_stage_of_a_cascade() -> None:
    net = tiny_himar(side=4)
    chain = {"order": "random", "head": {"steps": 3}, "guidance": 2.0}
    own = {"tokens": {"every": 3, "layer": 0, "keep": 0.2, "extra": 1}}
    plain = ParallelSampler(**chain, steps=2, first_stage=chain | {"steps": 4})
    lazy = plain.override(first_stage={"reuse": own})
    assert [step.kind for step in lazy.plan(net).first_stage.steps] == ["full", "lazy", "lazy", "full"]  # type: ignore[union-attr]
    assert run(net, lazy).shape == run(net, plain).shape
    with pytest.raises(MgenError, match="reads the context of all positions"):
        plain.override(reuse=own).check(net)


def test_a_guide_is_computed_lazily_too() -> None:
    """A guide that is the model itself, on the image's class: guidance changes nothing, whatever it is."""
    net = make()
    own = {"tokens": {"every": 4, "keep": 0.3, "layer": 1, "extra": 1}}
    sampler = settings(net, reuse=own, guidance=[2.0] * 6 + [1.0] * 4)
    with_guide, alone = run(guided(net, make()), sampler), run(net, settings(net, reuse=own, guidance=1.0))
    assert "lazy + guide" in str(sampler.plan(guided(net, make())))
    torch.testing.assert_close(with_guide, alone, atol=1e-4, rtol=1e-3)


# -- what it costs --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("condition", [False, True])
def test_what_is_kept(condition: bool) -> None:
    """With the condition cache the class's keys alone, written in place; nothing after the last lazy step."""
    net, runs = make(), []

    def start(class_ids: Tensor, **options: Any) -> Cache:
        runs.append(net.start(class_ids, **options))
        return runs[-1]

    period = {"every": 4}
    reuse: dict[str, Any] = {"tokens": {**period, "keep": 0.2, "layer": 1, "extra": 1}}
    sampler = settings(net, steps=5, reuse=reuse | ({"condition": period} if condition else {}))
    sizes, places = [], []
    for step in sampler(Proxy(net, start=start), torch.tensor([0]), noise=sampler.make_noise(net, [1])):
        sizes.append(runs[0].bytes())
        if step.index < 3:
            layers = [runs[0].layer(name) for name in ("encoder.0", "decoder.3")]
            places.append([kv.k.data_ptr() for kv in layers])
            assert {len(kv.k) for kv in layers} == {1 if condition else 2}
            assert all(kv.v.untyped_storage().nbytes() <= 2 * kv.v.nbytes for kv in layers)
    assert places[0] == places[1] == places[2] and sizes[3] > 0 == sizes[4] and runs[0].inputs is None


def block(width: int, rows: int, queries: int, keys: int) -> int:
    """Operations of a block that computes keys and values of so many rows, and the rest for so many queries."""
    products = rows * width * 2 * width + queries * width * width * (1 + 1 + 8)
    return 2 * (products + 2 * queries * keys * width)


def test_operations() -> None:
    """The trunk's operations, by a formula."""
    net = make()
    own = {"every": 4, "first": 1, "keep": 0.4, "layer": 1, "extra": 2}
    sampler = settings(net, guidance=1.0, reuse={"tokens": own})
    counted = count_run(RandomPipeline(net, None, sampler), sampler)
    s, d, channels, rows = 4, 32, 4, 4 + LENGTH
    left = [LENGTH, *sampler.remaining(unknown=LENGTH, length=LENGTH)]
    total, p = 0, 0
    for k, (before, after) in enumerate(pairwise(left)):
        n, visible = before - after, LENGTH - before
        full = k < 1 or (k - 1) % 4 == 0
        new, seen = visible if full else p, s + visible
        kept = rows if full else max(n + p + 2, int(rows * 0.4))
        total += 2 * (new * channels * d + (s + new) * d * d)  # the embedder, decoder_embed
        total += 3 * block(d, s + new, s + new, seen)
        if full:
            total += 3 * block(d, rows, rows, rows) + block(d, rows, n, rows)
        else:
            total += block(d, rows, rows, rows) + block(d, rows, kept, rows) + block(d, kept, kept, rows)
            total += block(d, kept, n, rows)
        p = n
    assert counted.flops["trunk"] == total and counted.passes == {"full": 4, "cached": 6}


# -- settings that raise errors --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("trunk", "own", "more", "said"),
    [
        ("mae", {"every": 0}, {}, "every"),
        ("mae", {"evry": 2}, {}, "evry"),
        ("mae", {"every": 2, "keep": 1.5}, {}, "keep"),
        ("mae", {"every": 2, "keep": [0.5, 0.5]}, {}, "lists 2 shares for 10 steps"),
        ("mae", {"every": 2, "keep": [[0.5, 0.5], [0.5, 0.1]]}, {}, "must lie behind"),
        ("mae", {"every": 2, "keep": 0.5, "layer": 3}, {}, r"decoder of 4 blocks.*allowed is 0 … 2"),
        ("mae", {"every": 2}, {"reuse": {"cached": 1}}, "takes one kind"),
        ("mae", {"every": 2}, {"order": "remasking"}, r"reuse\.tokens\.every=1"),
        ("mae", {"every": 2}, {"counts": "binomial"}, r"reuse\.tokens\.every=1"),
        ("mae", {"every": 2}, {"remask": {"kind": "cap"}}, r"remask takes.*reuse\.tokens\.every=1"),
        ("uvit", {"every": 2}, {}, "has no lazy steps"),
        ("causal", {"every": 2}, {"steps": LENGTH, "order": "raster", "schedule": "single"}, "has no lazy steps"),
    ],
)
def test_errors(trunk: str, own: dict[str, Any], more: dict[str, Any], said: str) -> None:
    net = make("index", trunk)
    reuse = {"tokens": own, **more.pop("reuse", {})} if more else {"tokens": own}
    with pytest.raises(MgenError, match=said):
        settings(net, reuse=reuse, **more).check(net)


def test_ablations_of_lazy_steps() -> None:
    net = make()
    own = {"every": 4, "keep": 0.3, "layer": 1, "extra": 1}
    for reuse in ({"tokens": own}, {"tokens": own, "condition": {"every": 4}}):
        rows = ablations(net, settings(net, reuse=reuse), batch_size=2, repeats=1)
        assert [row["ablation"][:6] for row in rows] == ["trunk:"] * 3 + ["all ca"]
        assert all(row["seconds"] > 0 and "difference" not in row for row in rows)
