"""Which controls a model can use, found by asking the sampler's own check, and their ranges."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mgen.demo.settings import CONSTANT, REDRAW, SAVED, shown_values
from mgen.pipelines.pipeline import MaskedPipeline
from mgen.samplers import ParallelSampler
from mgen.utils.errors import MgenError

ORDERS = ("confidence", "remasking", "moment", "random", "raster", "halton", "halton-rolled", "checkerboard")
RANKED = ("confidence", REDRAW, "remasking", "moment")
SCHEDULES = ("cosine", "arccos", "linear", "square", "exp", "log", "pow0.5", "pow2.5")
CURVES = (CONSTANT, "linear", "half-linear", "power-cosine")
CHAINS = ("ancestral", "ddim", "dpm-solver++", "dpm-solver++3s")
MOST_STEPS = 256  # of a slider, unless the model was saved with more


@dataclass(frozen=True, kw_only=True)
class Control:
    """How the page shows a setting.

    Args:
        value: at first. visible: whether the model has it. enabled: whether it can be changed. choices: of a list. most: of a slider.
    """

    value: Any
    visible: bool = True
    enabled: bool = True
    choices: tuple[str, ...] = ()
    most: float = 1.0


def controls(pipe: MaskedPipeline) -> dict[str, Control]:
    """The controls of a model, by name."""
    net, values = pipe.transformer, shown_values(pipe.sampler)
    able, length = net.capabilities, net.units.length
    free = not able.one_by_one
    orders = [name for name in ORDERS if _fits(pipe, order=name)]
    if "confidence" in orders:
        orders.insert(1, REDRAW)
    most = max(values["steps"], min(length, MOST_STEPS))
    cached, guided = free and _fits(pipe, reuse={"cached": 1}), _fits(pipe, guidance=2.0)
    chain, filtered = _fits(pipe, head={"chain": "ddim", "steps": 10}), _fits(pipe, head={"top_k": 2})
    trained = int(net.stages()[-1].head.settings.get("train_steps", 1000))
    first = values["first_steps"]

    def pick(name: str, known: list[str] | tuple[str, ...], visible: bool = True, enabled: bool = True) -> Control:
        choices = tuple(dict.fromkeys([*known, values[name]]))  # the model's own comes last if it is another one
        return Control(value=values[name], choices=choices, visible=visible, enabled=enabled and len(choices) > 1)

    def slide(name: str, most: float, visible: bool = True, enabled: bool = True) -> Control:
        return Control(value=values[name], most=max(most, values[name] or 0), visible=visible, enabled=enabled)

    return {
        "steps": slide("steps", most, enabled=free),
        "order": pick("order", orders),
        "schedule": pick("schedule", SCHEDULES, visible=free, enabled=free),
        "guidance_curve": pick("guidance_curve", CURVES, visible=guided),
        "guidance": Control(value=values["guidance"], visible=guided),
        "temperature": Control(value=values["temperature"], visible=_fits(pipe, temperature=0.9)),
        "confidence_temperature": Control(
            value=values["confidence_temperature"],
            visible=free and any(name in RANKED for name in orders),
            enabled=values["order"] in RANKED,
        ),
        "cached": slide("cached", min(8, most), cached),
        "full_first": slide("full_first", most, cached),
        "refresh": pick("refresh", ("group", "latest"), cached),
        "features": Control(value=values["features"], visible=able.carried_features),
        "chain": pick("chain", CHAINS, chain),
        "head_steps": slide("head_steps", min(250, trained), _fits(pipe, head={"steps": 10})),
        "top_k": slide("top_k", min(net.tokens.vocab_size or 1, 4096), filtered),
        "top_p": slide("top_p", 1.0, filtered),
        "first_steps": slide("first_steps", _first_length(pipe), first is not None),
        "global_steps": slide("global_steps", max(1, most - 1), bool(net.units.global_tokens) and free),
    }


def _fits(pipe: MaskedPipeline, **changed: Any) -> bool:
    """Whether the model takes a setting, beside defaults that suit it."""
    plain = _plain(pipe)
    try:
        ParallelSampler.from_settings({**plain.settings, **changed}, "sampler").check(pipe.transformer)
    except MgenError:
        return False
    return True


def _plain(pipe: MaskedPipeline) -> ParallelSampler:
    """A sampler with few steps that suits the model; the saved settings may exclude others."""
    steps = {} if pipe.transformer.capabilities.one_by_one else {"steps": min(8, pipe.transformer.units.length)}
    plain = ParallelSampler.suited(pipe.transformer, steps)
    head = pipe.sampler.config.head
    own = {key: head[key] for key in ("clip",) if isinstance(head, Mapping) and key in head}
    return ParallelSampler.from_settings({**plain.settings, "head": own or None}, "sampler")


def _first_length(pipe: MaskedPipeline) -> int:
    return pipe.transformer.stages()[0].units.length


def is_ranked(order: str, saved: ParallelSampler) -> bool:
    """Whether an order ranks positions, so that the confidence temperature matters."""
    return order in RANKED or (order == SAVED and saved.order.ranked)
