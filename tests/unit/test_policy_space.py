"""The space of policies: what axes mean, which points are samplers, what a budget is, and that costs are counted right."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mgen.bench.benchmark import RandomPipeline
from mgen.bench.flops import count_run
from mgen.bench.repeats import Repeats
from mgen.samplers import ParallelSampler
from mgen.tune.axes import Axis, base_value, read_space, replaced, resolved
from mgen.tune.budget import Budget, Operations, Seconds, key_of
from mgen.tune.policies import Policies
from mgen.tune.strategies import own_settings
from mgen.utils.errors import MgenError
from mgen.utils.schema import build
from tests.helpers import (
    tiny_architecture,
    tiny_himar,
    tiny_net,
    tiny_pipeline,
    tiny_tokens,
)
from tests.spaces import AXES, GENERATOR, MAR, space

# -- the space ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "settings, changes, result",
    [
        ({"steps": 8}, {"steps": 4}, {"steps": 4}),
        ({"guidance": 3.0}, {"guidance.end": 2.0}, {"guidance": {"kind": "constant", "end": 2.0}}),
        ({"guidance": 3.0}, {"guidance.interval": [0, 0.5]}, {"guidance": {"kind": "constant", "end": 3.0, "interval": [0, 0.5]}}),
        ({"guidance": {"kind": "linear", "end": 3}}, {"guidance.end": 2.0}, {"guidance": {"kind": "linear", "end": 2.0}}),
        ({"guidance": {"kind": "linear", "end": 3}}, {"guidance": 2.0}, {"guidance": 2.0}),
        ({"head": None}, {"head.steps": 4, "head.chain": "ddim"}, {"head": {"steps": 4, "chain": "ddim"}}),
        ({"reuse": {"cached": 1}}, {"reuse.full_first": 0.5}, {"reuse": {"cached": 1, "full_first": 0.5}}),
        ({"reuse": {"cached": 1}}, {"reuse": None}, {"reuse": None}),
    ],
    ids=str,
)  # fmt: skip
def test_overrides_replace_what_was_there(settings: Any, changes: Any, result: Any) -> None:
    before = json.dumps(settings)
    assert replaced(settings, changes) == result and json.dumps(settings) == before


def test_what_cannot_hold_a_part_raises() -> None:
    for settings, key in (({"guidance": [1.0, 2.0]}, "guidance.end"), ({"steps": 4}, "steps.end")):
        with pytest.raises(MgenError, match=f"{key} can't be set"):
            replaced(settings, {key: 2.0})


@pytest.mark.parametrize(
    "start, key, value, result",
    [
        ({"steps": 8}, "steps", "0.25x", 2),
        ({"steps": 8}, "steps", "0.01x", 1),
        ({"guidance": 3.0}, "guidance.end", "2x", 6.0),
        ({"guidance": {"start": 1.0, "end": 3.5}}, "guidance.end", "2x", 7.0),
        ({"temperature": [0.5, 0.7]}, "temperature", "0.5x", 0.35),
        ({"head": None}, "head.steps", {"kind": "linear", "start": "1x", "end": "0.1x"}, {"kind": "linear", "start": 100, "end": 10}),
        ({"head": {"steps": {"start": 50, "end": 5}}}, "head.steps", "0.5x", 25),
        ({"order": "random"}, "order", "halton", "halton"),
    ],
    ids=str,
)  # fmt: skip
def test_multiples_are_of_the_number_that_is_there(start: Any, key: str, value: Any, result: Any) -> None:
    assert resolved(value, base_value(start, key, 100), key) == result


@pytest.mark.parametrize(
    "settings, words",
    [
        ({"name": "a"}, "choices"),
        ({"name": "a", "choices": [{"steps": 1}], "range": {"key": "steps", "low": 1, "high": 2}}, "choices"),
        ({"name": "A b", "choices": [{"steps": 1}]}, "name"),
        ({"name": "a", "choices": [{}]}, "choices"),
        ({"name": "a", "choices": [{"steps": 1}], "needs": ["wings"]}, "wings"),
        ({"name": "a", "choices": [{"steps": 1}], "cost": True}, "cost"),
        ({"name": "a", "choices": [{"steps..x": 1}]}, "no setting"),
        (
            {"name": "a", "choices": [{"steps": 1}], "when": {"ordr": ["confidence"]}},
            "when names 'ordr': .*did you mean 'order'",
        ),
        (
            {"name": "a", "choices": [{"steps": 1}], "when": {"reuse.cashed": [1]}},
            "when names 'reuse.cashed': .*did you mean 'cached'",
        ),
        ({"name": "a", "choices": [{"steps": 1}], "when": {"first_stage.ordr": [1]}}, "did you mean 'order'"),
        ({"name": "a", "choices": [{"steps": 1}], "when": {"reuse.tokens.kep": [1]}}, "did you mean 'keep'"),
        ({"name": "a", "choices": [{"steps": 1}], "when": {"steps.end": [1]}}, "steps has no parts: give steps"),
        ({"name": "a", "choices": [{"steps": 1}], "when": {"reuse.cached.x": [1]}}, "reuse.cached has no parts"),
        ({"name": "a", "range": {"key": "steps", "low": "two x", "high": 2}}, "low"),
        ({"name": "a", "range": {"key": "steps", "low": 1}}, "high"),
        ({"name": "a", "choices": [{"steps": 1}], "chioces": 1}, "chioces"),
    ],
    ids=str,
)
def test_a_bad_axis_raises(settings: Any, words: str, tmp_path: Path) -> None:
    with pytest.raises(MgenError, match=words):
        build(Axis, settings)
    (tmp_path / "space.yaml").write_text(json.dumps({"axes": [settings]}))
    with pytest.raises(MgenError, match="space.yaml"):
        read_space(str(tmp_path / "space.yaml"))


def test_conditions_of_an_axis_may_name_every_setting() -> None:
    keys = (
        "steps order order.name guidance.kind temperature.times.end reuse.condition.every reuse.tokens.keep remask.kind"
    )
    for key in (*keys.split(), "head.chain", "head.steps.end", "first_stage.head.top_k", "first_stage.reuse.cached"):
        assert build(Axis, {"name": "a", "choices": [{"steps": 1}], "when": {key: [1]}}).when == {key: (1,)}


def test_axes_are_chosen_by_name_or_by_what_is_before_the_dot(tmp_path: Path) -> None:
    names = [one.name for one in read_space("default", ["head", "reuse.cached"])]
    assert names == [
        name for name in (one.name for one in read_space()) if name.startswith("head.") or name == "reuse.cached"
    ]
    with pytest.raises(MgenError, match="guidance"):
        read_space("default", ["guidence"])
    with pytest.raises(MgenError, match="names no axis"):
        read_space("default", [])
    (tmp_path / "s.yaml").write_text("axes: [{name: a, choices: [{steps: 1}]}, {name: a, choices: [{steps: 2}]}]")
    with pytest.raises(MgenError, match="twice"):
        read_space(str(tmp_path / "s.yaml"))


@pytest.mark.parametrize(
    "generator, start, has, lacks",
    [
        (GENERATOR, {}, "steps schedule order guidance.scale reuse.cached", "head.steps head.chain first_stage.steps"),
        (MAR, {"order": "random"}, "steps order head.steps head.anneal head.chain reuse.head_share", "head.top_p head.solver"),
        (tiny_net("causal"), None, "guidance.scale temperature", "steps order schedule reuse.cached"),
        (tiny_himar(), None, "first_stage.steps head.steps", "head.top_p"),
    ],
    ids=["ids", "vectors", "causal", "cascade"],
)  # fmt: skip
def test_points_of_the_shipped_space_are_samplers_or_refused(generator: Any, start: Any, has: str, lacks: str) -> None:
    sampler = ParallelSampler.suited(generator, start)
    policies = Policies(sampler, generator, read_space())
    names = {one.name for one in policies.axes}
    assert set(has.split()) <= names and not set(lacks.split()) & names
    assert all(any(left.startswith(name) for left in policies.left_out) for name in lacks.split())
    assert policies.changes(policies.origin) == {}
    made = 0
    rng = np.random.default_rng(0)
    for point in policies.spread(24, rng):
        changes = policies.changes(point)
        assert all(own_settings(sampler).get(key, ...) != value for key, value in changes.items())
        try:
            policies.sampler(point).plan(generator)
            made += 1
        except MgenError:
            pass
    assert made >= 6
    for place in policies.child([policies.origin], rng):
        assert place is None or place >= 0


def test_axes_without_an_effect_change_nothing() -> None:
    given = [
        AXES[3],
        {"name": "first", "range": {"key": "reuse.full_first", "low": 0.0, "high": 1.0}, "when": {"reuse.cached": [1]}},
    ]
    policies = space(axes=given)
    assert policies.changes((None, 0.5)) == {} and policies.changes((1, 0.5)) == {"reuse.cached": 2}
    assert policies.sampler((0, 0.5)).reuse.full_first == 4  # a share of the steps
    halved = space(axes=[AXES[0]], reuse={"cached": 1, "full_first": 4}).sampler((0.5,))
    assert halved.config.steps == 4 and halved.reuse.full_first == 2
    stages = {"steps": None, "stages": [{"tokens": 0.5, "steps": "0.5x"}, {"steps": "0.25x"}]}
    staged = space(
        axes=[{"name": "a", "choices": [stages], "of": "steps"}], reuse={"cached": 1, "full_first": 4}
    ).sampler((0,))
    assert (staged.config.steps, staged.reuse.full_first) == (6, 3)
    lists = {"name": "a", "choices": [{"guidance": ["1x", "0.5x", *[2.0] * 6]}], "of": "steps"}
    assert space(axes=[lists]).changes((0,)) == {"guidance": [8, 4, *[2.0] * 6]}
    off = space(axes=[{"name": "a", "choices": [{"reuse.cached": 0}, {"reuse.cached": 1}]}])
    assert len(off.values[0].choices) == 1  # the other is as in the start


# -- the budget --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text, measure, amount, relative",
    [
        ("0.25x", "flops", 0.25, True),
        ("2x seconds", "seconds", 2.0, True),
        ("12 GFLOPs", "flops", 12e9, False),
        ("1.5TFLOP", "flops", 1.5e12, False),
        ("0.8s", "seconds", 0.8, False),
        ("800 ms", "seconds", 0.8, False),
    ],
)
def test_budgets(text: str, measure: str, amount: float, relative: bool) -> None:
    budget = Budget.of(text)
    assert (budget.measure, budget.amount, budget.relative) == (measure, pytest.approx(amount), relative)
    assert budget.limit(10.0) == pytest.approx(10 * amount if relative else amount)


@pytest.mark.parametrize(
    "text", ["", "x", "0x", "-1x", "0.25", "12", "12 G", "1e3x", "nan s", "0s", "1 hour", "9" * 100 + "x"]
)
def test_bad_budgets_raise(text: str) -> None:
    with pytest.raises(MgenError, match="--budget"):
        Budget.of(text)


def test_costs_are_those_of_a_counted_run_and_are_kept() -> None:
    pipe, kept = tiny_pipeline(), {}
    cost, one = Operations(pipe), ParallelSampler(steps=2)
    for sampler in (one, ParallelSampler(steps=3, guidance=2.0)):
        assert cost(sampler) == count_run(pipe, sampler).total
    seconds = Seconds(pipe, {}, kept.__setitem__, "fp32")
    assert seconds(one) == seconds(one) == kept[key_of(own_settings(one))] > 0
    assert Seconds(pipe, {key_of(own_settings(one)): 7.0}, kept.__setitem__, "fp32")(one) == 7.0


@pytest.mark.parametrize(
    "generator, runs",
    [
        (GENERATOR, [{"guidance": 2.0}, {"reuse": {"cached": 1}}]),
        (tiny_net("enat", decoder_depth=1), [{"guidance": 2.0}]),
        (MAR, [{"guidance": 2.0, "head": {"steps": 3}}, {"head": {"steps": 4}, "reuse": {"cached": 2}}]),
        (
            tiny_himar(),
            [{"guidance": 2.0, "steps": 3, "head": {"steps": 3}, "first_stage": {"steps": 2, "head": {"steps": 2}}}],
        ),
        (tiny_net("causal", tokens=tiny_tokens(side=2)), [{}, {"guidance": 2.0}]),
        (tiny_architecture("fmnist-xar"), [{"guidance": 2.0, "head": {"steps": 3}}]),
    ],
    ids=["uvit", "enat", "mar", "himar", "causal", "xar"],
)
def test_counting_a_block_once_changes_no_count(generator: Any, runs: list[dict[str, Any]]) -> None:
    repeats = Repeats()
    for settings in runs:
        sampler = ParallelSampler.suited(
            generator, {**({"steps": 4} if not generator.capabilities.one_by_one else {}), **settings}
        )
        pipe = RandomPipeline(generator, None, sampler)
        whole = count_run(pipe, sampler, repeats=Repeats(active=False))
        quick = count_run(pipe, sampler, repeats=repeats)
        assert quick.flops == whole.flops and quick.passes == whole.passes and quick.total > 0
    assert repeats.known or generator.capabilities.one_by_one
