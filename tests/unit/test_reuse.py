"""Reuse: exact where everything is computed anew, valid for every policy, and nothing is cached that nobody reads."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from mgen.bench.flops import count_run
from mgen.bench.proxy import Proxy
from mgen.generators import Cascade, Generator
from mgen.generators.trunk import TRUNKS
from mgen.generators.trunks.two_stage import Stage
from mgen.nn.cache import Cache, CachedStep
from mgen.samplers import ParallelSampler
from mgen.samplers.reuse import Reuse
from mgen.utils.errors import MgenError
from tests.helpers import tiny_generator, tiny_himar, tiny_mar, tiny_net, tiny_tokens

LENGTH = 16
IDS, VECTORS, CHANNELS = (tiny_tokens(kind) for kind in ("index", "vector", "multi-index"))
MIXED = tiny_tokens(side=3, global_tokens=7)
WINDOWS: dict[str, Any] = {"tokens": tiny_tokens(side=8), "windows": {"side": 2}}
MADE = {
    "uvit": lambda: tiny_generator(tokens=IDS),
    "bert": lambda: tiny_net("bert"),
    "mage": lambda: tiny_net("mage"),
    "adaln": lambda: tiny_net("adaln"),
    "enat": lambda: tiny_net("enat"),
    "mae": lambda: tiny_mar(tokens=VECTORS),
    "mae, channels": lambda: tiny_mar(tokens=CHANNELS),
    "uvit, windows": lambda: tiny_generator(**WINDOWS),
    "uvit, global tokens": lambda: tiny_generator(tokens=MIXED),
    "mage, windows": lambda: tiny_net("mage", **WINDOWS),
    "enat, windows": lambda: tiny_net("enat", **WINDOWS),
    "mae, windows": lambda: tiny_mar(tokens=tiny_tokens("vector", side=8), windows={"side": 2}),
    "mae, global tokens": lambda: tiny_mar(tokens=MIXED),
    "cascade": lambda: tiny_himar(side=4),
    "cascade, head by token": lambda: tiny_himar(side=4, head="diffusion"),
    "cascade, ids": lambda: tiny_himar(kind="index", side=4),
}
TABLES = ("table.weight", "position.weight", "token_norm.weight", "vectors.weight", "decoder_embed.weight")


def make(name: str) -> Any:
    torch.manual_seed(0)
    net = MADE[name]()
    with torch.no_grad():  # adaptive norms start at zero, small weights near ties
        for key, parameter in net.named_parameters():
            if "adaln" in key and "head." not in key:
                parameter.normal_(std=0.3)
            elif key.endswith(TABLES) and "head." not in key:
                parameter.mul_(20.0)
    return net


@pytest.fixture(params=sorted(MADE))
def net(request: pytest.FixtureRequest) -> Any:
    return make(request.param)


def last_stage(net: Any) -> tuple[Generator, dict[str, Tensor]]:
    """The generator that draws the image's tokens, and what a run of it starts with: rows of a first stage that drew nothing."""
    return (net.second, {"prefix": net.prefix()}) if isinstance(net, Cascade) else (net, {})


def with_spies(net: Any, **replaced: Any) -> Proxy:
    """`net` with methods of its last stage replaced."""
    return Proxy(net, second=Proxy(net.second, **replaced)) if isinstance(net, Cascade) else Proxy(net, **replaced)


def random_tokens(net: Any, count: int) -> Tensor:
    rng = torch.Generator().manual_seed(3)
    shape = (count, *net.units.shape)
    if net.tokens.kind == "vector":
        return torch.randn(shape, generator=rng)
    return torch.randint(net.tokens.vocab_size, shape, generator=rng)


@torch.inference_mode()
@pytest.mark.parametrize("done", [0, 1, 9])
def test_cached_step_of_every_position_is_a_full_pass(net: Any, done: int) -> None:
    """Whatever the cache held: with all positions in the group nothing of it is read."""
    tokens, label = random_tokens(net, 2), torch.tensor([0, 2])
    group = torch.stack([torch.randperm(LENGTH, generator=torch.Generator().manual_seed(i)) for i in range(2)])
    net, begin = last_stage(net)
    cache = net.start(label, **begin)
    unknown = torch.zeros(2, LENGTH, dtype=torch.bool)
    net.context(tokens, unknown, label, cache=cache, keep=done)
    step = CachedStep(group=group, done=done, fresh=(0, LENGTH), asked=(done, LENGTH))
    got = net.cached_step(tokens, label, cache, step)

    def full(tokens: Tensor) -> Tensor:
        return net.context(tokens, known, label, positions=group[:, done:], cache=net.start(label, **begin))

    known = unknown.scatter(1, group[:, :done], True)
    expected = full(tokens)
    assert (got - expected).abs().max() < 2e-5 * expected.abs().max()
    # Not because nothing matters: another token, where there is one, changes the answer.
    if done:
        other = tokens.scatter(
            1, group[:, :1, None].expand(-1, -1, tokens.shape[2]) if tokens.ndim == 3 else group[:, :1], 0
        )
        assert (full(other) - expected).abs().max() > 1e-3


@torch.inference_mode()
def test_a_cached_step_writes_in_place_and_elsewhere_nothing_changes(net: Any) -> None:
    tokens, label = random_tokens(net, 1), torch.tensor([1])
    known = torch.zeros(1, LENGTH, dtype=torch.bool)
    known[:, 10:] = True
    net, begin = last_stage(net)
    cache = net.start(label, **begin)
    net.context(tokens, known, label, cache=cache, keep=1)
    layers = {name: (kv.k, kv.k.clone()) for name, kv in cache._layers.items()}
    assert cache.bytes() > 0
    group = torch.tensor([[4, 7]])
    net.cached_step(tokens, label, cache, CachedStep(group=group, done=1, fresh=(0, 2), asked=(1, 2), prefix=False))
    changed = 0
    for name, (k, before) in layers.items():
        assert cache.layer(name).k.data_ptr() == k.data_ptr(), f"{name} was copied"
        rows = (k != before).any(-1).any(1)[0]  # by row; room is not initialized, so its first content may be anything
        assert rows.sum() <= 2
        changed += int(rows.sum())
    assert changed


POLICIES: list[dict[str, Any]] = [
    {"cached": 1},
    {"cached": 1, "full_first": 3},
    {"cached": 3, "full_first": 1, "refresh": "latest"},
    {"cached": 2, "prefix": False},
    {"cached": 2, "inside": "raster", "late_guidance": True},
    {"cached": 7, "features": False},
    {"features": False},
]


def sampler_for(net: Any, steps: int = 8, **settings: Any) -> ParallelSampler:
    continuous: dict[str, Any] = {"head": {"steps": 4, "clip": 4.0}} if net.tokens.kind == "vector" else {}
    if continuous and isinstance(net, Cascade):
        continuous["first_stage"] = dict(continuous)
    guidance = {"kind": "linear", "start": 1.0, "end": 3.0, "at": "start"}
    return ParallelSampler.suited(net, {"steps": steps, "guidance": guidance, **continuous, **settings})


def draw(net: Any, sampler: ParallelSampler, seeds: list[int], **given: Tensor) -> list[Tensor]:
    """The known masks after every step, then the tokens; all by window, where there are windows."""
    label, windows = torch.tensor(seeds) % 3, net.windows
    if windows is not None and given:
        given = {"tokens": windows.to_tokens(given["tokens"]), "known": windows.expand(given["known"])}
    masks = []
    for step in sampler(net, label, noise=sampler.make_noise(net, seeds), **given):
        masks.append(step.known.clone() if windows is None else windows.whole(step.known))
    return [*masks, step.tokens if windows is None else windows.to_windows(step.tokens)]


@pytest.mark.parametrize("policy", POLICIES, ids=str)
def test_every_policy_is_valid(net: Any, policy: dict[str, Any]) -> None:
    """Each position is revealed once, as many in a step as the schedule says, given ones never change, and an image depends on
    its own seed alone."""
    orders = ["halton"] if net.tokens.kind == "vector" else ["confidence", "halton"]
    for order in orders:
        sampler = sampler_for(net, order=order, reuse=policy)
        given = torch.zeros(1, LENGTH, dtype=torch.bool)
        given[:, [2, 11]] = True
        tokens, known = random_tokens(net, 3), given.expand(3, -1)
        *masks, end = draw(net, sampler, [5, 6, 7], tokens=tokens, known=known)
        counts = sampler.remaining(unknown=LENGTH - 2, length=LENGTH)
        if net.units.global_tokens:  # 7 of them, one of which is given: they come first
            first, second = sampler.phases(LENGTH, 7)
            counts = [*(left + 8 for left in sampler.left(first, 6)), *sampler.left(second, 8)]
        before = known
        for mask, left in zip(masks, counts):
            assert (mask | ~before).all() and ((~mask).sum(1) == left).all()
            before = mask
        assert torch.equal(end[known], tokens[known])
        *_, alone = draw(net, sampler, [6], tokens=tokens[1:2], known=given)
        if end.is_floating_point():
            assert (alone[0] - end[1]).abs().max() < 1e-3
        else:
            assert torch.equal(alone[0], end[1])


def test_without_cached_steps_nothing_changes(net: Any) -> None:
    plain = draw(net, sampler_for(net), [1, 2])[-1]
    for policy in (
        {"cached": 0, "full_first": 4},
        {"cached": 3, "full_first": 8},
        {"refresh": "latest", "prefix": False},
    ):
        assert torch.equal(draw(net, sampler_for(net, reuse=policy), [1, 2])[-1], plain)


def test_with_one_cached_step_both_refresh_rules_are_the_same(net: Any) -> None:
    a, b = (draw(net, sampler_for(net, reuse={"cached": 1, "refresh": r}), [1, 2])[-1] for r in ("group", "latest"))
    assert torch.equal(a, b)


@pytest.mark.parametrize("cached", [0, 1, 3])
def test_passes_and_cache_are_what_the_policy_says(net: Any, cached: int) -> None:
    """Full and cached steps as planned; keys are stored only where a cached step follows."""
    stage, _ = last_stage(net)
    seen: list[str] = []

    def context(*args: Any, cache: Cache, keep: int | None, **kwargs: Any) -> Tensor:
        seen.append("plain" if keep is None else "stored")
        cache._layers.clear()
        z = stage.context(*args, cache=cache, keep=keep, **kwargs)
        assert (cache.bytes() > 0) == (keep is not None)
        return z

    def cached_step(*args: Any) -> Tensor:
        seen.append("cached")
        return stage.cached_step(*args)

    sampler = sampler_for(net, reuse={"cached": cached, "full_first": 2}, first_stage=None)
    spied = with_spies(net, context=context, cached_step=cached_step)
    list(sampler(spied, torch.tensor([0]), noise=sampler.make_noise(net, [1])))
    planned, border = [], sampler.phases(LENGTH, net.units.global_tokens)[0].steps
    groups = [([t for t in g if t < border], [t for t in g if t >= border]) for g in sampler.groups()]
    for group in (part for pair in groups for part in pair if part):  # no group holds steps of two phases
        planned += ["stored" if len(group) > 1 else "plain"] + ["cached"] * (len(group) - 1)
    assert seen == planned
    kinds = ["cached" if what == "cached" else "full" for what in planned]
    assert [step.kind for step in sampler.plan(net).steps] == kinds


def test_groups_are_those_of_the_published_scripts() -> None:
    """MAR-L at 84 steps with 42 full ones first: 63 full, 21 cached; MaskGIT-r at 32 with 12: 22 + 10."""
    for steps, first, full in ((84, 42, 63), (32, 12, 22), (16, 0, 8)):
        groups = Reuse(cached=1, full_first=first).groups(0, steps)
        assert len(groups) == full and sum(map(len, groups)) == steps
    assert Reuse(cached=1, full_first=1).groups(2, 6) == [[2], [3, 4], [5]]
    assert Reuse(cached=2, full_first=9).groups(0, 4) == [[0], [1], [2], [3]]


@pytest.mark.slow
def test_carried_features_save_operations_and_first_appear_in_the_third_step() -> None:
    deep, net = tiny_net("enat", encoder_depth=10), make("enat")
    with torch.no_grad():
        net.trunk.carry_mlp.fc2.weight.mul_(30.0)  # so that carrying makes a difference that ids show
    carried, fresh = (sampler_for(net, counts="enat", reuse={"features": on}) for on in (True, False))
    parts = Proxy(deep, transformer=deep, tokenizer=None)
    assert count_run(parts, carried).flops["trunk"] < 0.8 * count_run(parts, fresh).flops["trunk"]
    # Nothing is visible in the first step, and nothing has features in the second.
    a, b = (draw(net, s, list(range(16))) for s in (carried, fresh))
    assert torch.equal(a[1], b[1]) and not torch.equal(a[-1], b[-1])


@pytest.mark.slow
def test_cached_steps_save_operations(net: Any) -> None:
    parts = Proxy(net, transformer=net, tokenizer=None)
    base, recap = (count_run(parts, sampler_for(net, reuse={"cached": n, "features": False})) for n in (0, 1))
    kept = count_run(parts, sampler_for(net, reuse={"cached": 1, "features": False, "prefix": False}))
    assert recap.passes["cached"] > 0 and recap.passes["full"] < base.passes["full"] and base.passes["cached"] == 0
    assert kept.flops["trunk"] <= recap.flops["trunk"] < base.flops["trunk"]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"reuse": {"cached": -1}}, "reuse.cached' is -1: allowed is at least 0"),
        ({"reuse": {"caches": 1}}, "unknown key 'reuse.caches'"),
        ({"reuse": {"refresh": "all"}}, "reuse.refresh"),
        ({"reuse": 3}, "expected a mapping"),
        ({"reuse": {"prefix": 7}}, "reuse.prefix' takes true or false, got 7"),
        ({"head": {"mask": "no"}}, "head.mask' takes true or false, got 'no'"),
        ({"head": {"top_k": 0}}, "head.top_k' is 0: allowed is at least 1"),
        ({"head": {"top_k": 3, "steps": 5}}, "mixes settings"),
        ({"reuse": {"head_share": 0.0}}, "reuse.head_share' is 0.0: allowed is more than 0"),
        ({"order": "remasking", "reuse": {"cached": 1}}, "remasking draws known tokens again"),
        ({"order": {"name": "halton", "redraw": True}}, "redraw is true with halton: it is for confidence only"),
        ({"order": {"name": "confidence", "redrawn": True}}, "unknown key 'order.redrawn'"),
        ({"counts": "maskgt"}, "did you mean 'maskgit'"),
    ],
)
def test_bad_settings_raise_errors(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(MgenError, match=words):
        ParallelSampler(**{"steps": 8, **settings})


def test_what_does_not_fit_the_model_raises_an_error() -> None:
    enat, ids = make("enat"), make("uvit")
    cases: list[tuple[Any, dict[str, Any], str]] = [
        (enat, {"order": "remasking"}, "features this model carries on"),
        (ids, {"reuse": {"head_share": 0.5, "cached": 1}}, "only a diffusion head"),
        (ids, {"head": {"chain": "ddim"}}, "is for a diffusion head"),
        (make("mae"), {"head": {"top_k": 3}}, "top_k"),
        (ids, {"schedule": "pow2.5", "counts": "maskgit-r", "steps": 15}, "too few of the 16 tokens are left"),
        (
            Proxy(ids, capabilities=replace(ids.capabilities, cached_steps=False)),
            {"reuse": {"cached": 1}},
            "no cached steps",
        ),
    ]
    for net, settings, words in cases:
        with pytest.raises(MgenError, match=words):
            ParallelSampler.suited(net, {"steps": 8, **settings}).check(net)
    known = torch.zeros(2, LENGTH, dtype=torch.bool)
    known[0, :3] = True
    sampler = sampler_for(ids, reuse={"cached": 1})
    with pytest.raises(MgenError, match="as many given tokens"):
        draw(ids, sampler, [1, 2], tokens=random_tokens(ids, 2), known=known)


def test_enat_takes_rows_with_different_numbers_of_given_tokens() -> None:
    """Each image is what it is alone, though its neighbors have more or fewer tokens given."""
    net = make("enat")
    tokens, known = random_tokens(net, 3), torch.zeros(3, LENGTH, dtype=torch.bool)
    known[1, :5] = known[2, ::3] = True
    sampler = sampler_for(net)
    together = draw(net, sampler, [4, 5, 6], tokens=tokens, known=known)[-1]
    for i in range(3):
        alone = draw(net, sampler, [4 + i], tokens=tokens[i : i + 1], known=known[i : i + 1])[-1]
        assert torch.equal(alone[0], together[i])


def test_remasking_keeps_given_tokens_and_ends_with_ids() -> None:
    net = make("adaln")
    sampler = sampler_for(
        net, order="remasking", counts="halton-confidence", schedule="arccos", head={"tempered": True}
    )
    tokens, known = random_tokens(net, 2), torch.zeros(2, LENGTH, dtype=torch.bool)
    known[:, 3:6] = True
    end = draw(net, sampler, [1, 2], tokens=tokens, known=known)[-1]
    assert torch.equal(end[known], tokens[known]) and int(end.max()) < net.tokens.vocab_size


def test_every_trunk_is_here() -> None:
    """A trunk that a configuration can name and that is missing above would go untested."""
    made = {type(last_stage(make(name))[0].trunk) for name in MADE}
    # One token at a time: nothing to reuse (test_causal.py).
    trunks = {cls for cls in map(TRUNKS.get, TRUNKS.names()) if cls.capabilities.order == "any"}
    assert made == {*trunks, Stage}


def test_row_by_row_groups_leave_given_tokens_alone() -> None:
    """Rows that know different numbers of tokens: a row with less to reveal is filled up, and the fillers are never written."""
    net = make("uvit")
    tokens, known = random_tokens(net, 2), torch.zeros(2, LENGTH, dtype=torch.bool)
    known[1, :9] = True
    sampler = sampler_for(net, order="random", steps=4, reuse={"inside": "raster"})
    *masks, end = draw(net, sampler, [1, 2], tokens=tokens, known=known)
    assert masks[-1].all() and torch.equal(end[known], tokens[known])


def test_null_rows_stay_fresh_when_guidance_goes_off_and_on_within_a_group(net: Any) -> None:
    """With the latest rows alone refreshed, an unguided step must not leave the null rows behind that a guided one reads."""
    if net.null_class is None or net.units.global_tokens:
        pytest.skip("no guidance, or no group of four steps")
    stage, _ = last_stage(net)
    seen: list[int] = []

    def cached_step(tokens: Tensor, *args: Any) -> Tensor:
        seen.append(len(tokens))
        return stage.cached_step(tokens, *args)

    reuse = {"cached": 3, "refresh": "latest"}
    sampler = sampler_for(net, steps=4, guidance=[3.0, 1.0, 1.0, 3.0], reuse=reuse, first_stage=None)
    spied = with_spies(net, cached_step=cached_step)
    list(sampler(spied, torch.tensor([0]), noise=sampler.make_noise(net, [1])))
    assert seen == [2, 2, 2]


def test_kept_keys_hold_no_queries_and_are_freed_after_their_group() -> None:
    net = make("uvit")
    runs: list[Cache] = []

    def start(class_ids: Tensor, **options: Any) -> Cache:
        runs.append(net.start(class_ids, **options))
        return runs[-1]

    sampler = sampler_for(net, steps=7, reuse={"cached": 2})
    sizes = []
    for step in sampler(Proxy(net, start=start), torch.tensor([0]), noise=sampler.make_noise(net, [1])):
        if step.index == 0:
            kv = runs[0].layer("in.0")
            assert kv.k.untyped_storage().nbytes() == 2 * kv.k.numel() * kv.k.element_size()  # keys and values, packed
        sizes.append(runs[0].bytes())
    assert sizes[0] > 0 and sizes == [sizes[0]] * 6 + [0]
