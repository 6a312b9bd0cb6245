"""Reuse: exact where everything is computed anew, valid for every policy, and nothing is cached that nobody reads."""

from typing import Any

import pytest
import torch
from torch import Tensor

import mgen
from mgen.bench.flops import count_run
from mgen.bench.standin import StandIn
from mgen.generators import ENAT, MAGE, HaltonMaskGIT, MaskGITBert
from mgen.generators.base import Generator
from mgen.nn import Local
from mgen.samplers import ParallelSampler
from mgen.samplers.reuse import Reuse
from mgen.utils.errors import MgenError
from tests.helpers import tiny_generator, tiny_himar, tiny_mar

SHARED: dict[str, Any] = dict(side=4, num_classes=3, dropout=0.0)
HALVES = dict(encoder_dim=32, encoder_depth=2, encoder_heads=2, decoder_dim=32, decoder_depth=2, decoder_heads=2)
MADE = {
    "MaskGIT": lambda: tiny_generator(side=4, codes=16),
    "MaskGITBert": lambda: MaskGITBert(codes=16, dim=32, depth=2, heads=2, hidden=64, null_class=True, **SHARED),
    "MAGE": lambda: MAGE(codes=16, **HALVES, **SHARED),
    "HaltonMaskGIT": lambda: HaltonMaskGIT(codes=16, dim=32, depth=2, heads=2, hidden=64, **SHARED),
    "ENAT": lambda: ENAT(codes=16, dim=32, encoder_depth=2, decoder_depth=2, heads=2, **SHARED),
    "MAR": lambda: tiny_mar(side=4),
    "MAR over channels": lambda: tiny_mar(side=4, head_kind="channels", levels=8, head_heads=2),
    "MaskGIT, windows": lambda: tiny_generator(side=8, codes=16, shuffle=2),
    "MaskGIT, global_tokens": lambda: tiny_generator(side=3, global_tokens=7, codes=16),
    "MAGE, windows": lambda: MAGE(codes=16, shuffle=2, **HALVES, **{**SHARED, "side": 8}),
    "ENAT, windows": lambda: ENAT(
        codes=16, dim=32, encoder_depth=2, decoder_depth=2, heads=2, shuffle=2, **{**SHARED, "side": 8}
    ),
    "MAR, windows": lambda: tiny_mar(side=8, shuffle=2),
    "MAR, global_tokens": lambda: tiny_mar(side=3, global_tokens=7, head_kind="categorical", codes=16),
    "HiMAR": lambda: tiny_himar(side=4, pivot_side=2),
    "HiMAR, MLP head": lambda: tiny_himar(side=4, pivot_side=2, head_kind="mlp"),
    "HiMAR, ids": lambda: tiny_himar(side=4, pivot_side=2, head_kind="categorical", codes=16),
}
LENGTH = 16


def make(name: str) -> Any:
    torch.manual_seed(0)
    net = MADE[name]().eval()
    with torch.no_grad():  # adaptive norms start at zero, small weights near ties
        for key, parameter in net.named_parameters():
            if "adaln" in key and not key.startswith("head."):
                parameter.normal_(std=0.3)
            elif "embed" in key and "join" not in key:
                parameter.mul_(20.0)
    return net


@pytest.fixture(params=sorted(MADE))
def net(request: pytest.FixtureRequest) -> Any:
    return make(request.param)


def random_tokens(net: Any, count: int) -> Tensor:
    rng = torch.Generator().manual_seed(3)
    shape = (count, *net.unit_spec.shape)
    if net.spec.kind == "vector":
        return torch.randn(shape, generator=rng)
    return torch.randint(net.spec.vocab_size, shape, generator=rng)


@torch.inference_mode()
@pytest.mark.parametrize("done", [0, 1, 9])
def test_local_with_every_position_anew_is_a_full_evaluation(net: Any, done: int) -> None:
    """Whatever the memory held: with all positions in the group nothing of it is read."""
    tokens, label = random_tokens(net, 2), torch.tensor([0, 2])
    group = torch.stack([torch.randperm(LENGTH, generator=torch.Generator().manual_seed(i)) for i in range(2)])
    memory = net.memory(label)
    memory.keep, memory.room = True, done
    unknown = torch.zeros(2, LENGTH, dtype=torch.bool)
    net.context(tokens, unknown, label, memory=memory)
    step = Local(group=group, done=done, fresh=(0, LENGTH), asked=(done, LENGTH))
    got = net.local(tokens, label, memory, step)
    known = unknown.scatter(1, group[:, :done], True)
    expected = net.context(tokens, known, label, positions=group[:, done:])
    assert (got - expected).abs().max() < 2e-5 * expected.abs().max()
    # Not because nothing matters: another token, where there is one, changes the answer.
    if done:
        other = tokens.scatter(
            1, group[:, :1, None].expand(-1, -1, tokens.shape[2]) if tokens.ndim == 3 else group[:, :1], 0
        )
        assert (net.context(other, known, label, positions=group[:, done:]) - expected).abs().max() > 1e-3


@torch.inference_mode()
def test_a_local_evaluation_writes_in_place_and_elsewhere_nothing_changes(net: Any) -> None:
    tokens, label = random_tokens(net, 1), torch.tensor([1])
    known = torch.zeros(1, LENGTH, dtype=torch.bool)
    known[:, 10:] = True
    memory = net.memory(label)
    memory.keep, memory.room = True, 1
    net.context(tokens, known, label, memory=memory)
    layers = {name: (kv.k, kv.k.clone()) for name, kv in memory._layers.items()}
    assert memory.bytes() > 0
    group = torch.tensor([[4, 7]])
    net.local(tokens, label, memory, Local(group=group, done=1, fresh=(0, 2), asked=(1, 2), prefix=False))
    changed = 0
    for name, (k, before) in layers.items():
        assert memory.layer(name).k.data_ptr() == k.data_ptr(), f"{name} was copied"
        rows = (k != before).any(-1).any(1)[0]  # by row; room is not initialised, so its first content may be anything
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
    continuous = {"head": {"steps": 4, "clip": 4.0}} if net.spec.kind == "vector" else {}
    guidance = {"kind": "linear", "start": 1.0, "end": 3.0, "at": "start"}
    return ParallelSampler.suited(net, {"steps": steps, "guidance": guidance, **continuous, **settings})


def draw(net: Any, sampler: ParallelSampler, seeds: list[int], **given: Tensor) -> list[Tensor]:
    """The known masks after every step, then the tokens; all by window, where there are windows."""
    label, unit = torch.tensor(seeds) % 3, net.unit
    if unit is not None and given:
        every = given["known"].unsqueeze(-1).expand(-1, -1, unit.side**2)
        given = {"tokens": unit.unfold(given["tokens"]), "known": unit.scatter(every)}
    masks = []
    for step in sampler(net, label, noise=sampler.make_noise(net, seeds), **given):
        masks.append(step.known.clone() if unit is None else unit.whole(step.known))
    return [*masks, step.tokens if unit is None else unit.fold(step.tokens)]


@pytest.mark.parametrize("policy", POLICIES, ids=str)
def test_every_policy_is_valid(net: Any, policy: dict[str, Any]) -> None:
    """Each position is revealed once, as many in a step as the schedule says, given ones never change, and an image depends on
    its own seed alone."""
    orders = ["halton"] if net.spec.kind == "vector" else ["confidence", "halton"]
    for order in orders:
        sampler = sampler_for(net, order=order, reuse=policy)
        given = torch.zeros(1, LENGTH, dtype=torch.bool)
        given[:, [2, 11]] = True
        tokens, known = random_tokens(net, 3), given.expand(3, -1)
        *masks, end = draw(net, sampler, [5, 6, 7], tokens=tokens, known=known)
        counts = sampler.remaining(unknown=LENGTH - 2, length=LENGTH)
        if net.unit_spec.global_tokens:  # 7 of them, one of which is given: they come first
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
    net = net.second() if net.staged else net
    seen: list[str] = []

    def context(*args: Any, memory: Any, **kwargs: Any) -> Tensor:
        seen.append("stored" if memory.keep else "plain")
        memory._layers.clear()
        z = net.context(*args, memory=memory, **kwargs)
        assert (memory.bytes() > 0) == memory.keep
        return z

    def near(*args: Any) -> Tensor:
        seen.append("cached")
        return net.local(*args)

    sampler = sampler_for(net, reuse={"cached": cached, "full_first": 2})
    list(sampler(StandIn(net, context=context, local=near), torch.tensor([0]), noise=sampler.make_noise(net, [1])))
    planned, border = [], sampler.phases(LENGTH, net.unit_spec.global_tokens)[0].steps
    groups = [([t for t in g if t < border], [t for t in g if t >= border]) for g in sampler.groups()]
    for group in (part for pair in groups for part in pair if part):  # no group holds steps of two phases
        planned += ["stored" if len(group) > 1 else "plain"] + ["cached"] * (len(group) - 1)
    assert seen == planned
    kinds = ["cached" if what == "cached" else "full" for what in planned]
    assert [step.kind for step in sampler.plan(net).steps] == kinds


def test_groups_are_those_of_the_published_scripts() -> None:
    """MAR-L at 84 steps with 42 full ones first: 63 full, 21 local; MaskGIT-r at 32 with 12: 22 + 10."""
    for steps, first, full in ((84, 42, 63), (32, 12, 22), (16, 0, 8)):
        groups = Reuse(cached=1, full_first=first).groups(0, steps)
        assert len(groups) == full and sum(map(len, groups)) == steps
    assert Reuse(cached=1, full_first=1).groups(2, 6) == [[2], [3, 4], [5]]
    assert Reuse(cached=2, full_first=9).groups(0, 4) == [[0], [1], [2], [3]]


@pytest.mark.slow
def test_carried_features_save_operations_and_first_appear_in_the_third_step() -> None:
    deep, net = ENAT(codes=16, dim=32, encoder_depth=10, decoder_depth=2, heads=2, **SHARED), make("ENAT")
    with torch.no_grad():
        net.carry_mlp.fc2.weight.mul_(30.0)  # so that carrying makes a difference that ids show
    carried, fresh = (sampler_for(net, counts="enat", reuse={"features": on}) for on in (True, False))
    parts = StandIn(deep, generator=deep, tokenizer=None)
    assert count_run(parts, carried).flops["trunk"] < 0.8 * count_run(parts, fresh).flops["trunk"]
    # Nothing is visible in the first step, and nothing has features in the second.
    a, b = (draw(net, s, [1, 2]) for s in (carried, fresh))
    assert torch.equal(a[1], b[1]) and not torch.equal(a[-1], b[-1])


@pytest.mark.slow
def test_cached_steps_save_operations(net: Any) -> None:
    parts = StandIn(net, generator=net, tokenizer=None)
    base, recap = (count_run(parts, sampler_for(net, reuse={"cached": n, "features": False})) for n in (0, 1))
    kept = count_run(parts, sampler_for(net, reuse={"cached": 1, "features": False, "prefix": False}))
    assert recap.local > 0 and recap.full < base.full and base.local == 0
    assert kept.flops["trunk"] <= recap.flops["trunk"] < base.flops["trunk"]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"reuse": {"cached": -1}}, "reuse.cached is -1"),
        ({"reuse": {"caches": 1}}, "unknown key 'reuse.caches'"),
        ({"reuse": {"refresh": "all"}}, "reuse.refresh"),
        ({"reuse": 3}, "expected a mapping"),
        ({"reuse": {"prefix": 7}}, "reuse.prefix is 7"),
        ({"head": {"mask": "no"}}, "head.mask is 'no'"),
        ({"head": {"top_k": 0}}, "head.top_k is 0"),
        ({"head": {"top_k": 3, "steps": 5}}, "mixes settings"),
        ({"reuse": {"head_share": 0.0}}, "reuse.head_share is 0.0"),
        ({"order": "remasking", "reuse": {"cached": 1}}, "remasking draws known tokens again"),
        ({"order": {"name": "halton", "redraw": True}}, "true for confidence only"),
        ({"order": {"name": "confidence", "redrawn": True}}, "unknown key 'order.redrawn'"),
        ({"counts": "maskgt"}, "did you mean 'maskgit'"),
    ],
)
def test_bad_settings_raise_errors(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(MgenError, match=words):
        ParallelSampler(**{"steps": 8, **settings})


def test_what_does_not_fit_the_model_raises_an_error() -> None:
    enat, ids = make("ENAT"), make("MaskGIT")
    cases: list[tuple[Any, dict[str, Any], str]] = [
        (enat, {"order": "remasking"}, "features this model carries on"),
        (ids, {"reuse": {"head_share": 0.5, "cached": 1}}, "only a diffusion head"),
        (ids, {"head": {"chain": "ddim"}}, "is for a diffusion head"),
        (make("MAR"), {"head": {"top_k": 3}}, "top_k"),
        (ids, {"schedule": "pow2.5", "counts": "maskgit-r", "steps": 15}, "too few of the 16 tokens are left"),
        (StandIn(ids, evaluates_locally=False), {"reuse": {"cached": 1}}, "no cached steps"),
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
    """Each image is what it is alone, though its neighbours have more or fewer tokens given."""
    net = make("ENAT")
    tokens, known = random_tokens(net, 3), torch.zeros(3, LENGTH, dtype=torch.bool)
    known[1, :5] = known[2, ::3] = True
    sampler = sampler_for(net)
    together = draw(net, sampler, [4, 5, 6], tokens=tokens, known=known)[-1]
    for i in range(3):
        alone = draw(net, sampler, [4 + i], tokens=tokens[i : i + 1], known=known[i : i + 1])[-1]
        assert torch.equal(alone[0], together[i])


def test_remasking_keeps_given_tokens_and_ends_with_ids() -> None:
    net = make("HaltonMaskGIT")
    sampler = sampler_for(
        net, order="remasking", counts="halton-confidence", schedule="arccos", head={"tempered": True}
    )
    tokens, known = random_tokens(net, 2), torch.zeros(2, LENGTH, dtype=torch.bool)
    known[:, 3:6] = True
    end = draw(net, sampler, [1, 2], tokens=tokens, known=known)[-1]
    assert torch.equal(end[known], tokens[known]) and int(end.max()) < net.spec.vocab_size


def test_every_trunk_is_here() -> None:
    """A generator that a configuration can name and that is missing above would go untested."""
    trunks = {name: getattr(mgen, name) for name in mgen.MODELS if issubclass(getattr(mgen, name), Generator)}
    classes = {
        name for name, cls in trunks.items() if not cls.causal
    }  # one token at a time: nothing to reuse (test_causal.py)
    assert {type(make(name)).__name__ for name in MADE} == classes


def test_row_by_row_groups_leave_given_tokens_alone() -> None:
    """Rows that know different numbers of tokens: a row with less to reveal is filled up, and the fillers are never written."""
    net = make("MaskGIT")
    tokens, known = random_tokens(net, 2), torch.zeros(2, LENGTH, dtype=torch.bool)
    known[1, :9] = True
    sampler = sampler_for(net, order="random", steps=4, reuse={"inside": "raster"})
    *masks, end = draw(net, sampler, [1, 2], tokens=tokens, known=known)
    assert masks[-1].all() and torch.equal(end[known], tokens[known])


def test_null_rows_stay_fresh_when_guidance_goes_off_and_on_within_a_group(net: Any) -> None:
    """With the latest rows alone refreshed, an unguided step must not leave the null rows behind that a guided one reads."""
    if net.null_class is None or net.unit_spec.global_tokens:
        pytest.skip("no guidance, or no group of four steps")
    net = net.second() if net.staged else net
    seen: list[int] = []

    def near(tokens: Tensor, *args: Any) -> Tensor:
        seen.append(len(tokens))
        return net.local(tokens, *args)

    reuse = {"cached": 3, "refresh": "latest"}
    sampler = sampler_for(net, steps=4, guidance=[3.0, 1.0, 1.0, 3.0], reuse=reuse)
    list(sampler(StandIn(net, local=near), torch.tensor([0]), noise=sampler.make_noise(net, [1])))
    assert seen == [2, 2, 2]


def test_kept_keys_hold_no_queries_and_are_freed_after_their_group() -> None:
    net = make("MaskGIT")
    runs: list[Any] = []

    def memory(condition: Tensor) -> Any:
        runs.append(net.memory(condition))
        return runs[-1]

    sampler = sampler_for(net, steps=7, reuse={"cached": 2})
    sizes = []
    for step in sampler(StandIn(net, memory=memory), torch.tensor([0]), noise=sampler.make_noise(net, [1])):
        if step.index == 0:
            kv = runs[0].layer("in.0")
            assert kv.k.untyped_storage().nbytes() == 2 * kv.k.numel() * kv.k.element_size()  # keys and values, packed
        sizes.append(runs[0].bytes())
    assert sizes[0] > 0 and sizes == [sizes[0]] * 6 + [0]
