"""Remasking (`remask:`): the published chain draw for draw, its laws, kept counts; and what it goes with."""

import copy
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mgen.bench.flops import count_run
from mgen.bench.proxy import Proxy
from mgen.generators import guided
from mgen.heads.logit_filter import keep_likeliest
from mgen.samplers import Noise, ParallelSampler
from mgen.samplers.remask import Remask, make_path
from mgen.utils.errors import MgenError
from tests.helpers import tiny_generator, tiny_himar, tiny_mar, tiny_net, tiny_pipeline, tiny_tokens

LENGTH, V = 16, 16
KINDS = ("cap", "rescale", "conf", "loop", "forward-backward")
ETA: dict[str, dict[str, float]] = {
    "cap": {"eta": 0.2},
    "rescale": {"eta": 0.3},
    "conf": {"eta": 1.0},
    "loop": {"eta": 0.1},
}
FREE: dict[str, Any] = {"order": "random", "schedule": "linear", "reuse": {"features": False}}


def sharp_net() -> Any:
    """A small generator whose distributions are far from uniform, and depend on known tokens and class."""
    net, rng = tiny_net("uvit"), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            if parameter.ndim == 2:
                scale = 2.0 if "classes." in name else 0.3
                parameter.copy_(scale * torch.randn(parameter.shape, generator=rng))
    return net


def free(kind: str, steps: int = 12, **settings: Any) -> ParallelSampler:
    remask = {"kind": kind, "counts": "free", **ETA.get(kind, {})}
    return ParallelSampler(**{"steps": steps, **FREE, "remask": remask, **settings})


def kept(kind: str, order: Any = "random", steps: int = 12, **settings: Any) -> ParallelSampler:
    remask = {"kind": kind, **ETA.get(kind, {})}
    return ParallelSampler(
        **{"steps": steps, "order": order, "reuse": {"features": False}, "remask": remask, **settings}
    )


def run(net: Any, sampler: ParallelSampler, seeds: list[int], **given: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Tokens and known positions after every step."""
    label = torch.tensor(seeds) % 3
    steps = sampler(net, label, noise=sampler.make_noise(net, seeds), **given)
    return [(step.tokens.clone(), step.known.clone()) for step in steps]


# -- the published algorithm, written down a second time -----------------------------------------------------------------


def published_sigma(kind: str, t: float, s: float, confidence: Tensor) -> tuple[Tensor | float, float, float]:
    """σ, α at t, α at s; for the loop α is what it replaces 1 − t by."""
    before, after = 1 - t, 1 - s
    most = 1.0 if before == 0 else min(1.0, (1 - after) / before)
    if kind == "loop":
        if t > 0.55:
            return 0.0, (1 - t) * 0.9 / 0.45, (1 - s) * 0.9 / 0.45
        if t <= 0.05:
            return 0.0, 1 - t * 0.1 / 0.05, 1 - s * 0.1 / 0.05
        return ETA["loop"]["eta"], 0.9, 0.9
    if kind == "conf":
        return (most * (-confidence).softmax(-1)).nan_to_num(0.0), before, after  # NaN where nothing is decoded
    if kind == "forward-backward":
        return 1.0 if before == 0 else min(1.0, (after - before) / before), before, after
    return {"cap": min(ETA["cap"]["eta"], most), "rescale": ETA["rescale"]["eta"] * most}[kind], before, after


@torch.no_grad()
def published(net: Any, kind: str, gumbel: Tensor, nucleus: float) -> tuple[list[Tensor], Tensor]:
    """The chain with one joint draw of id or mask by Gumbel (T, B, L, V + 1): ids after each step (V is the mask), then cleaned.

    Also the uniform numbers (T, B, L) by which the same draws are two: whether a position changes, and which id it gets.
    """
    steps, b = gumbel.shape[:2]
    x, confidence = torch.full((b, LENGTH), V), torch.full((b, LENGTH), torch.inf, dtype=torch.float64)
    times, states, uniform = torch.linspace(1, 1e-5, steps + 1).tolist(), [], []

    def probabilities() -> Tensor:
        known = x != V
        z = net.context(x.clamp(max=V - 1), known, torch.arange(b) % 3)
        p = net.head.logits(z).double().softmax(-1)
        ordered, where = p.sort(dim=-1, descending=True)
        keep = (ordered.cumsum(-1) <= nucleus) | (nucleus == 1)
        keep[..., 0] = True
        p = p * torch.zeros_like(keep).scatter(-1, where, keep)
        return p / p.sum(-1, keepdim=True)

    for t, s, g in zip(times, times[1:], gumbel):
        p, masked = probabilities(), x == V
        sigma, before, after = published_sigma(kind, t, s, confidence)
        sigma = torch.as_tensor(sigma, dtype=torch.float64).expand(b, LENGTH)
        apart = torch.zeros_like(sigma) if kind == "conf" else sigma
        reveal = ((after - (1 - apart) * before) / (1 - before)).clamp(0, 1).unsqueeze(-1)
        fresh = torch.cat([p * reveal, 1 - reveal], dim=-1)
        stays = torch.cat([F.one_hot(x.clamp(max=V - 1), V) * (1 - sigma).unsqueeze(-1), sigma.unsqueeze(-1)], dim=-1)
        drawn = (torch.where(masked.unsqueeze(-1), fresh, stays).log() + g).argmax(-1)
        best = (p.log() + g[..., :V]).amax(-1)
        own = g.gather(-1, x.clamp(max=V - 1).unsqueeze(-1)).squeeze(-1)
        uniform.append(torch.where(masked, g[..., V] - best, own - g[..., V]).sigmoid())
        chosen = p.gather(-1, drawn.clamp(max=V - 1).unsqueeze(-1)).squeeze(-1)
        confidence = torch.where(masked & (drawn != V), chosen, confidence)
        confidence = confidence.masked_fill(drawn == V, torch.inf)
        x = drawn
        states.append(x)
    return [*states, torch.where(x == V, probabilities().argmax(-1), x)], torch.stack(uniform)


@pytest.mark.parametrize("nucleus", [1.0, 0.8])
@pytest.mark.parametrize("kind", KINDS)
def test_free_counts_are_the_published_chain(kind: str, nucleus: float) -> None:
    """Given its Gumbel noise, every state is the same; the chain ends with masks that the last evaluation fills."""
    net, steps, b = sharp_net(), 12, 8
    gumbel = (
        -torch.empty(steps, b, LENGTH, V + 1, dtype=torch.float64)
        .exponential_(generator=torch.Generator().manual_seed(1))
        .log()
    )
    states, uniform = published(net, kind, gumbel, nucleus)
    sampler = free(kind, steps, head={"top_p": nucleus, "crossing": False, "score": "drawn"})
    noise = Noise(order=torch.rand(b, LENGTH), tokens=gumbel[..., :V].float(), remask=uniform)
    for state, step in zip(states, sampler(net, torch.arange(b) % 3, noise=noise), strict=True):
        assert torch.equal(torch.where(step.known, step.tokens, V), state), step.index
        assert step.count == steps + 1
    taken = sum(int(((before != V) & (after == V)).sum()) for before, after in zip(states, states[1:]))
    assert taken > (0 if kind == "conf" else 5) and not (states[-1] == V).any()
    assert len({tuple(row) for row in states[-1].tolist()}) > 4


# -- laws ----------------------------------------------------------------------------------------------------------------


def moves(settings: dict[str, Any], *, steps: int, images: int, length: int = 64) -> tuple[Any, Any]:
    remask = Remask.of({"counts": "free", **settings})
    assert remask is not None
    rates = remask.rates("linear", steps=steps, length=length)
    uniform = torch.rand(steps, images, length, generator=torch.Generator().manual_seed(0))
    given = torch.zeros(images, length, dtype=torch.bool)
    return rates, make_path(rates, uniform, given, conf=remask.kind == "conf")


@pytest.mark.parametrize("kind", ["cap", "rescale", "loop", "forward-backward"])
def test_as_many_tokens_are_decoded_as_without_remasking(kind: str) -> None:
    """The share decoded at time s is 1 − s, of the loop what it says; forward-backward can't hold it in the last step."""
    steps, images, length = 64, 2000, 64
    _, path = moves({"kind": kind}, steps=steps, images=images, length=length)
    share = 1 - path.left.double().mean(1) / length
    times = torch.linspace(1, 1e-5, steps + 1, dtype=torch.float64)[1:]
    expected = 1 - times
    if kind == "loop":  # steps do not end at 0.55 and 0.05: the first stage goes a little too far
        expected = torch.where(times > 0.55, (1 - times) * 0.9 / 0.45, 0.9)
        expected = torch.where(times < 0.05, 1 - times * 0.1 / 0.05, expected)
        within = (times > 0.55) | (times < 0.03)
    else:
        within = torch.ones(steps, dtype=torch.bool)
    error = (share[:-1] - expected).abs()
    if kind == "forward-backward":
        within[-1] = False
        assert abs(share[-2] - (1 - 1 / steps)) < 0.002
    assert (error / (expected * (1 - expected) / (images * length)).sqrt().clamp(min=1e-4))[within].max() < 4.5
    assert path.left[-1].max() == 0 and path.taken[-1].max() == 0


def test_confidence_takes_back_as_many_tokens_as_published() -> None:
    """Where all tokens are as likely: σ_max = min(1, s / (1 − t)) tokens a step, wherever any is decoded."""
    net, images, steps = uniform_net(), 3000, 8
    seen = run(net, free("conf", steps), [*range(images)])
    known = torch.stack([torch.zeros(images, LENGTH, dtype=torch.bool), *(known for _, known in seen)]).sum(-1).double()
    times = torch.linspace(1, 1e-5, steps + 1, dtype=torch.float64)
    for k in range(steps):
        t, s = times[k], times[k + 1]
        most = min(1.0, float(s / (1 - t))) if k else 1.0
        shown = (LENGTH - known[k]) * (t - s) / t
        got, wanted = known[k + 1] - known[k], shown - most * (known[k] > 0)
        assert abs((got - wanted).mean()) < 4.5 * (got - wanted).std().clamp(min=0.02) / images**0.5, k


@pytest.mark.parametrize(("kind", "factor"), [("cap", 1.24), ("rescale", 1.23)])
def test_ids_drawn_in_a_run(kind: str, factor: float) -> None:
    """Published constants, 64 steps: L (1 + Σ α σ)."""
    rates, path = moves({"kind": kind}, steps=64, images=2000)
    times = torch.linspace(1, 1e-5, 65).tolist()
    counted = 1 + sum((1 - t) * rate.back for t, rate in zip(times, rates))
    assert abs(counted - factor) < 0.01
    assert abs(path.reveal.double().sum() / path.reveal[0].numel() - counted) < 0.005


def uniform_net() -> Any:
    """A generator whose ids are all as likely, whatever it sees."""
    net = tiny_net("uvit")
    return Proxy(net, context=lambda tokens, *_, positions, **__: torch.zeros(*positions.shape, 32))


# -- kept counts ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "order", ["random", "confidence", "halton", "moment", {"name": "confidence", "redraw": True}], ids=str
)
@pytest.mark.parametrize("kind", ["cap", "rescale", "conf", "forward-backward"])
@pytest.mark.parametrize("schedule", ["cosine", "single"])
def test_kept_counts_are_those_of_the_schedule(schedule: str, kind: str, order: Any) -> None:
    """As many tokens are known after every step as without remasking, though some were taken back: n σ, rounded over the steps."""
    net, seeds = sharp_net(), [3, 4, 5]
    sampler = kept(kind, order, counts="enat", steps=20, schedule=schedule)
    plain = sampler.remaining(unknown=LENGTH, length=LENGTH)
    seen, before, taken = run(net, sampler, seeds), torch.zeros(3, LENGTH, dtype=torch.bool), []
    due = 0.0
    for left, (_, known) in zip(plain, seen, strict=True):
        assert ((~known).sum(1) == left).all()
        lost = (before & ~known).sum(1)
        n, share = int(before[0].sum()), 1 - left / LENGTH
        most = min(1.0, left / n) if n else 0.0
        if kind == "conf":
            wanted = min(1.0, most) if n else 0.0
        else:
            sigma = {"cap": min(0.2, most), "rescale": 0.3 * most}.get(
                kind, min(1.0, (share - n / LENGTH) / (n / LENGTH)) if n else 0
            )
            wanted = n * min(sigma, most)
        due += wanted
        assert (lost == min(int(due + 0.5), left)).all()
        due = min(1.0, due - int(lost[0]))
        taken.append(int(lost[0]))
        before = known
    assert sum(taken) > 1
    printed = [line.split() for line in str(sampler.plan(net)).splitlines()]
    assert [int(row[4]) for row in printed[1:]] == taken


def test_a_loop_holds_its_share() -> None:
    left = kept("loop", steps=40).remaining(unknown=100, length=100)
    times = torch.linspace(1, 1e-5, 41)[1:]
    assert all(n == 10 for n, t in zip(left, times) if 0.05 < t <= 0.55) and left[-1] == 0
    assert [n for n, t in zip(left, times) if t > 0.55] == [int(100 - 200 * (1 - float(t))) for t in times if t > 0.55]
    net = sharp_net()
    seen = run(net, kept("loop", steps=40), [1, 2])
    lost = [int((a & ~b).sum()) for (_, a), (_, b) in zip(seen, seen[1:])]
    assert sum(lost) > 10 and seen[-1][1].all()


@torch.no_grad()
def test_the_least_confident_tokens_are_taken_back() -> None:
    net, sampler = sharp_net(), kept("conf", "confidence", steps=8, remask={"kind": "conf", "eta": 3.0})
    noise, label = sampler.make_noise(net, [1, 2]), torch.tensor([0, 1])
    known, tokens = torch.zeros(2, LENGTH, dtype=torch.bool), torch.zeros(2, LENGTH, dtype=torch.int64)
    confidence, checked = torch.zeros(2, LENGTH), 0
    for step in sampler(net, label, noise=noise):
        p = net.head.logits(net.context(tokens, known, label)).softmax(-1)
        for lost, stays, c in zip(known & ~step.known, known & step.known, confidence):
            if lost.any() and stays.any():
                assert c[lost].max() <= c[stays].min()
                checked += 1
        drawn = p.gather(-1, step.tokens.unsqueeze(-1)).squeeze(-1)
        confidence = torch.where(step.known & ~known, drawn, confidence)
        known, tokens = step.known.clone(), step.tokens.clone()
    assert checked > 4


def test_tokens_enter_a_random_order_anywhere() -> None:
    """A token that was taken back is as likely to come next as any other unknown one, and so it is in the plain order's own way."""
    images, steps = 4000, 8
    sampler = kept("cap", steps=steps, schedule="linear", remask={"kind": "cap", "eta": 0.3})
    seen = [
        torch.zeros(images, LENGTH, dtype=torch.bool),
        *(known for _, known in run(uniform_net(), sampler, [*range(images)])),
    ]
    for before, now, after in zip(seen[2:], seen[3:], seen[4:]):
        taken = before & ~now
        if taken.any():
            came, among = (taken & after).sum() / taken.sum(), (~now & after).sum() / (~now).sum()
            assert abs(came - among) < 4.5 * (among * (1 - among) / taken.sum()).sqrt() + 1e-6


SAME: dict[str, Any] = {
    "ids": sharp_net,
    "ids of channels": lambda: tiny_mar(tokens=tiny_tokens("multi-index")),
    "windows": lambda: tiny_generator(tokens=tiny_tokens(side=8), windows={"side": 2}),
}


@pytest.mark.parametrize("kind", SAME)
@pytest.mark.parametrize(
    "order", ["random", "raster", "halton", "checkerboard", [*range(15, -1, -1)], "confidence", "moment"], ids=str
)
def test_without_any_token_taken_back_it_is_the_plain_sampler(order: Any, kind: str) -> None:
    """η = 0, and for ids an η so small that no step takes a token back."""
    net = SAME[kind]()
    if order == "moment" and kind == "ids of channels":
        return
    plain = ParallelSampler(steps=6, order=order, guidance=2.0)
    expected = run(net, plain, [1, 2])
    for eta in (0.0, 1e-3) if kind == "ids" else (0.0,):
        made = run(net, plain.override(remask={"kind": "cap", "eta": eta}), [1, 2])
        assert all(torch.equal(a, b) for pair in zip(expected, made, strict=True) for a, b in zip(*pair))


# -- what it goes with ----------------------------------------------------------------------------------------------------

NETS: dict[str, Any] = {
    **{name: partial(tiny_net, name) for name in ("uvit", "bert", "mage", "enat", "adaln", "mae")},
    "mae, channels": lambda: tiny_mar(tokens=tiny_tokens("multi-index", side=4)),
    "uvit, windows": lambda: tiny_generator(tokens=tiny_tokens(side=8), windows={"side": 2}),
    "cascade": lambda: tiny_himar(kind="index", side=4),
}


@pytest.mark.parametrize("name", NETS)
def test_every_trunk(name: str) -> None:
    """All is drawn, given tokens never change, and an image does not depend on its batch."""
    net = NETS[name]()
    cascade: dict[str, Any] = {"first_stage": {"steps": 2}} if name == "cascade" else {}
    # A drawn mask id stays a mask in no order but remasking.
    more: dict[str, Any] = {"guidance": 2.0, "head": {"mask": False} if name == "adaln" else None, **cascade}
    samplers = [free(kind, 6, **more) for kind in ("loop", "conf")]
    samplers += [
        kept(kind, order, 6, **more) for kind, order in (("cap", "random"), ("conf", "confidence"), ("cap", "raster"))
    ]
    tokens = torch.randint(net.tokens.vocab_size, (3, *net.tokens.shape), generator=torch.Generator().manual_seed(1))
    known = torch.zeros(3, net.tokens.length, dtype=torch.bool)
    known[:, : net.tokens.length // 4] = True
    if net.tokens.length == LENGTH and not cascade:
        known[0, :2] = False
    for sampler in samplers:
        together = run(net, sampler, [7, 8, 9], tokens=tokens, known=known)
        for made, shown in together:
            assert torch.equal(made[known], tokens[known]) and bool(shown[known].all())
        assert bool(together[-1][1].all()) and int(together[-1][0].max()) < net.tokens.vocab_size
        alone = run(net, sampler, [8], tokens=tokens[1:2], known=known[1:2])
        assert torch.equal(alone[-1][0], together[-1][0][1:2])
    whole = run(net, samplers[0], [7, 8])[-1][0]
    assert not torch.equal(whole[0], whole[1])


def test_a_guide_in_the_place_of_the_null_class() -> None:
    """A guide that answers as the null class does makes the same images, with remasking and with order moment."""
    net = sharp_net()
    guide = copy.deepcopy(net)
    with torch.no_grad():
        guide.classes.vectors.weight.copy_(
            net.classes.vectors.weight[net.null_class].expand_as(net.classes.vectors.weight)
        )
    both = guided(net, guide)
    for sampler in (
        free("conf", guidance=2.0),
        kept("cap", guidance=2.0),
        ParallelSampler(steps=6, order="moment", guidance=2.0),
    ):
        made, expected, plain = (
            run(model, sampler.override(guidance=s), [1, 2])[-1][0]
            for model, s in ((both, 2.0), (net, 2.0), (net, 1.0))
        )
        assert torch.equal(made, expected) and not torch.equal(made, plain)


@pytest.mark.parametrize("kind", ["cap", "conf"])
def test_a_later_start(kind: str) -> None:
    net = sharp_net()
    for sampler in (free(kind, start=5), kept(kind, start=5)):
        seen = run(net, sampler, [1, 2])
        assert len(seen) == (8 if sampler.remask.free else 7) and seen[-1][1].all()


def test_operations_are_counted() -> None:
    """The trunk has a pass for every step that draws; the head draws a token as often as it is revealed."""
    pipe = tiny_pipeline(guidance=1.0)
    plain = ParallelSampler(steps=6, order="random", schedule="linear")
    expected = count_run(pipe, plain, decode=False)
    sampler = plain.override(remask={"kind": "cap", "eta": 0.2})
    drawn = sum(step.count for step in sampler.plan(pipe.transformer).steps)
    made = count_run(pipe, sampler, decode=False)
    assert made.passes == expected.passes and drawn > 64
    assert made.flops["head"] * 64 == expected.flops["head"] * drawn
    # The last layer of the trunk computes the positions that are drawn.
    more = count_run(pipe, plain.override(remask={"kind": "cap", "eta": 0.4}), decode=False)
    again = (more.flops["head"] - made.flops["head"]) * 64 // expected.flops["head"]
    each, rest = divmod(made.flops["trunk"] - expected.flops["trunk"], drawn - 64)
    assert again > 0 and each > 0 and rest == 0 and more.flops["trunk"] - made.flops["trunk"] == each * again
    counts = [len(step.positions[0]) for step in run_steps(pipe.transformer, free("cap", 6))]
    made = count_run(pipe, free("cap", 6), decode=False)
    assert made.flops["head"] * 64 == expected.flops["head"] * sum(counts)
    assert made.passes["full"] == sum(map(bool, counts))


def run_steps(net: Any, sampler: ParallelSampler) -> list[Any]:
    return list(sampler(net, torch.zeros(1, dtype=torch.int64), noise=sampler.make_noise(net, [0])))


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"remask": {"kind": "cut"}}, "remask.kind"),
    ({"remask": {"kind": "cap", "eta": 2.0}}, "at most 1"),
    ({"remask": {"kind": "forward-backward", "eta": 0.1}}, "has none"),
    ({"remask": {"kind": "cap", "share": 0.5}}, "for the kind loop"),
    ({"remask": {"kind": "loop", "start": 0.2, "stop": 0.3}}, "stop < start"),
    ({"remask": {"kind": "cap", "etta": 0.1}}, "etta"),
    ({"reuse": {"cached": 1}}, "reuse.cached=0"),
    ({"reuse": {"tokens": {"every": 3}}}, "reuse.tokens.every=1"),
    (
        {
            "remask": {"kind": "cap", "counts": "free"},
            "order": "random",
            "guidance": {"kind": "constant", "end": 2.0, "interval": [0.1, 0.9], "interval_of": "tokens"},
        },
        "leave interval_of out",
    ),
    ({"reuse": {"condition": {"every": 3}}}, "condition.every=1"),
    ({"order": "remasking"}, "draws known tokens again"),
    ({"counts": "binomial", "order": "random"}, "remask.counts=free"),
    ({"remask": {"kind": "cap", "counts": "free"}, "order": "confidence"}, "use order random"),
    ({"remask": {"kind": "cap", "counts": "free"}, "order": "random", "schedule": "single"}, "schedule linear"),
    ({"remask": {"kind": "cap", "counts": "free"}, "order": "random", "counts": "halton"}, "counts maskgit"),
    (
        {
            "remask": {"kind": "cap", "counts": "free"},
            "order": "random",
            "guidance": {"kind": "linear", "at": "tokens"},
        },
        "at: end",
    ),
    ({"remask": {"kind": "conf"}, "head": {"score": "logit"}}, "score is logit"),
    ({"first_stage": {"remask": {"kind": "cap"}}, "remask": None}, "has been read"),
]


@pytest.mark.parametrize(("settings", "text"), REFUSED, ids=lambda value: "" if isinstance(value, str) else None)
def test_what_excludes_each_other(settings: dict[str, Any], text: str) -> None:
    with pytest.raises(MgenError, match=text):
        ParallelSampler(**{"steps": 6, "remask": {"kind": "cap"}, **settings})


@pytest.mark.parametrize(
    ("make", "settings", "text"),
    [
        (tiny_mar, {"order": "random"}, "drawn by a chain"),
        (partial(tiny_net, "causal"), {"steps": 16, "order": "raster", "schedule": "single"}, "must stay"),
        (partial(tiny_net, "permuted"), {"steps": 16, "order": "random", "schedule": "single"}, "must stay"),
        (partial(tiny_net, "enat"), {}, "reuse.features=false"),
        (lambda: tiny_generator(tokens=tiny_tokens(side=3, global_tokens=7)), {}, "global ones"),
    ],
)
def test_generators_without_remasking(make: Any, settings: dict[str, Any], text: str) -> None:
    net = make()
    with pytest.raises(MgenError, match=text):
        ParallelSampler(**{"steps": 6, "remask": {"kind": "cap"}, **settings}).check(net)


# -- which ids can be drawn ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("p", [0.05, 0.3, 0.6, 0.9, 0.999])
def test_the_published_nucleus(p: float) -> None:
    """Ids stay whose cumulative probability is at most p, and the likeliest always; with `crossing` the next one too."""
    logits = torch.randn(50, 12, generator=torch.Generator().manual_seed(0))
    ordered, where = logits.double().softmax(-1).sort(descending=True)
    keep = ordered.cumsum(-1) <= p
    wide = torch.cat([torch.ones(50, 1, dtype=torch.bool), keep[:, :-1]], dim=1)
    keep[:, 0] = True
    for crossing, expected in ((False, keep), (True, wide)):
        stays = keep_likeliest(logits, top_p=p, crossing=crossing) > -torch.inf
        assert torch.equal(stays, torch.zeros_like(keep).scatter(1, where, expected))


def test_scores_by_which_ids_were_drawn() -> None:
    net, z = sharp_net(), torch.randn(2, 5, 32, generator=torch.Generator().manual_seed(0))
    noise = torch.rand(2, 5, generator=torch.Generator().manual_seed(1))
    plan = net.head.plan({"score": "drawn", "top_k": 3})
    ids, score = net.head.sample(z, noise=noise, plan=plan, temperature=0.5)
    p = (net.head.logits(z) / 0.5).softmax(-1)
    p = torch.where(p >= p.topk(3).values[..., -1:], p, 0.0)
    p = p / p.sum(-1, keepdim=True)
    assert torch.allclose(score.exp(), p.gather(-1, ids.unsqueeze(-1)).squeeze(-1), atol=1e-6)
