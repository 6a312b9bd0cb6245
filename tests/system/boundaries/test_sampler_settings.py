"""Settings of samplers, in Python and by --set: types, ranges, rules between them."""

from typing import Any

import pytest

from mgen.samplers import ParallelSampler
from mgen.utils.errors import MgenError
from tests.system.boundaries.harness import Raises, Refused, row

INF = float("inf")
SETTINGS = [
    row("unknown", dict(foo=1), "unknown key 'sampler.foo'"),
    row("unknown, near", dict(guidence=1), "did you mean 'guidance'"),
    row("steps text", dict(steps="8"), "steps", "whole number"),
    row("steps true", dict(steps=True), "steps", "whole number"),
    row("steps null", dict(steps=None), "steps"),
    row("steps 8.0", dict(steps=8.0), "steps"),
    row("steps 0", dict(steps=0), "at least 1"),
    row("steps 10**12", dict(steps=10**12), "at most"),
    row("steps 400 digits", dict(steps=10**400), "64 bits"),
    row("start -1", dict(start=-1), "start"),
    row("start beyond", dict(start=8), "start is 8"),
    row("start 1.0", dict(start=1.0), "start"),
    row("schedule null", dict(schedule=None), "schedule"),
    row("schedule empty", dict(schedule=""), "schedule"),
    row("schedule pow1e400", dict(schedule="pow1e400"), "at most 1000"),
    row("schedule pow0", dict(schedule="pow0"), "above 0"),
    row("schedule pow-1", dict(schedule="pow-1"), "pow2.5"),
    row("schedule pow²", dict(schedule="pow²"), "pow2.5"),
    row("schedule pow1_0", dict(schedule="pow1_0"), "pow2.5"),
    row("schedule pownan", dict(schedule="pownan"), "pow2.5"),
    row("schedule of texts", dict(schedule=["a"] * 7), "schedule"),
    row("schedule infinite", dict(schedule=[INF] * 7), "finite"),
    row("schedule mapping", dict(schedule={}), "schedule"),
    row("counts number", dict(counts=5), "counts"),
    row("guidance null", dict(guidance=None), "guidance"),
    row("guidance text", dict(guidance="3"), "guidance"),
    row("guidance true", dict(guidance=True), "guidance"),
    row("guidance set", dict(guidance={1, 2}), "guidance"),
    row("guidance nan", dict(guidance=float("nan")), "finite"),
    row("guidance 51 digits", dict(guidance=int("1" * 51)), "64 bits"),
    row("guidance 1e300", dict(guidance=1e300), "10,000"),
    row("guidance of texts", dict(guidance=["x"] * 8), "guidance"),
    row("guidance nested", dict(guidance=[[1.0]] * 8), "guidance"),
    row("curve empty", dict(guidance={}), "guidance.kind"),
    row("curve of another kind", dict(guidance={"kind": "linar"}), "did you mean 'linear'"),
    row("curve kind number", dict(guidance={"kind": 5}), "guidance.kind"),
    row("curve start text", dict(guidance={"kind": "linear", "start": "a"}), "guidance.start"),
    row("curve power infinite", dict(guidance={"kind": "power", "power": INF}), "guidance.power"),
    row("curve power -1", dict(guidance={"kind": "power", "power": -1}), "guidance.power"),
    row("curve power of linear", dict(guidance={"kind": "linear", "power": 2.0}), "power"),
    row("curve left of power", dict(guidance={"kind": "power", "left": 1}), "left"),
    row("curve left text", dict(guidance={"kind": "linear", "left": "1"}), "guidance.left"),
    row("curve end 1e300", dict(guidance={"kind": "linear", "end": 1e300}), "guidance.end"),
    row("temperature -1", dict(temperature=-1), "temperature is -1"),
    row("temperatures -1", dict(temperature=[-1] * 8), "temperature is -1"),
    row("temperature to -1", dict(temperature={"kind": "linear", "end": -1.0}), "temperature.end"),
    row("confidence -1", dict(confidence_temperature=-1), "confidence_temperature is -1"),
    row("order number", dict(order=5), "order is 5"),
    row("order null", dict(order=None), "order is None"),
    row("order twice the same", dict(order=[0, 0]), "each once"),
    row("order empty", dict(order=[]), "each once"),
    row("order mixed", dict(order=[0, "a"]), "each once"),
    row("order of truths", dict(order=[False, True]), "each once"),
    row("order without a name", dict(order={"redraw": True}), "order.name"),
    row("order redraw 5", dict(order={"name": "confidence", "redraw": 5}), "true or false"),
    row("order redraw text", dict(order={"name": "confidence", "redraw": "maybe"}), "true or false"),
    row("order redraw mapping", dict(order={"name": "confidence", "redraw": {}}), "true or false"),
    row("reuse list", dict(reuse=[]), "reuse", "mapping"),
    row("reuse 1.5", dict(reuse={"cached": 1.5}), "reuse.cached"),
    row("reuse 10**30", dict(reuse={"cached": 10**30}), "reuse.cached"),
    row("reuse share inf", dict(reuse={"head_share": INF}), "reuse.head_share"),
    row("reuse features 1", dict(reuse={"features": 1}), "true or false"),
    row("head list", dict(head=[]), "head", "mapping"),
    row("head key number", dict(head={1: 2}), "text"),
    row("head steps text", dict(head={"steps": "5"}), "head.steps"),
    row("head clip -1", dict(head={"clip": -1}), "head.clip"),
    row("head chain number", dict(head={"chain": 5}), "head.chain"),
    row("first_stage list", dict(first_stage=[]), "first_stage"),
    row("first_stage steps", dict(first_stage={"steps": -1}), "first_stage", "steps"),
    row("first_stage twice", dict(first_stage={"first_stage": {}}), "nested"),
    row("first_stage unknown", dict(first_stage={"foo": 1}), "first_stage.foo"),
    row("global_steps 0", dict(global_steps=0), "global_steps"),
    row("global_steps true", dict(global_steps=True), "global_steps"),
    row("global_steps all", dict(global_steps=8), "global_steps"),
]


@pytest.mark.parametrize(("settings", "words"), SETTINGS)
def test_settings(raises: Raises, settings: dict[str, Any], words: list[str]) -> None:
    raises(lambda: ParallelSampler(**settings), *words)
    raises(lambda: ParallelSampler.from_settings(settings, "sampler"), *words)


def test_settings_go_by_name() -> None:
    with pytest.raises(MgenError, match="by name"):
        ParallelSampler(8)  # type: ignore[misc]
    ParallelSampler(guidance=-1, temperature=0, steps=20, schedule="pow:2.5", order=[1, 0])


OPTIONS = [
    row("steps=!!int abc", "steps=!!int abc", "not valid YAML"),
    row("steps text", "steps=abc", "steps"),
    row("schedule", "schedule=pow1e400", "at most 1000"),
    row("power", "guidance={kind: power, power: 1e999}", "finite"),
    row("51 digits", f"guidance={'1' * 51}", "51 digits"),
    row("unknown nan", "guidance_tolerance=.nan", "finite"),
    row("unknown", "guidance_tolerance=-1", "guidance_tolerance"),
    row("redraw", "redraw=maybe", "redraw"),
    row("revise", "revise=1", "revise"),
    row("temperature", "temperature=-1", "temperature"),
    row("head of vectors", "head.clip=-1", "head.clip"),
    row("no value", "steps", "key.sub=value"),
    row("alias bomb", "guidance=[&a [1,1,1], *a, *a]", "guidance"),
    row("deep", "guidance=" + "[" * 500 + "]" * 500, "guidance"),
]


@pytest.mark.parametrize(("option", "words"), OPTIONS)
def test_set(refused: Refused, option: str, words: list[str]) -> None:
    refused(["sample", "--model", "@pipeline", "--device", "cpu", "--set", option], *words)
