"""Checks of a sampler's settings against the generator and the tokens at hand; incompatible settings raise an error that says why."""

from typing import TYPE_CHECKING

from torch import Tensor

from mgen.generators import Capabilities, Cascade, Generator
from mgen.samplers.plan import Plan
from mgen.tokens import TokenSpec
from mgen.utils.errors import MgenError

if TYPE_CHECKING:
    from mgen.samplers.settings import SamplerSettings


def check_fits(settings: "SamplerSettings", generator: Generator | Cascade) -> None:
    """Raise MgenError for settings that this generator or its kind of tokens does not take."""
    c, order, reuse = settings.config, settings.order, settings.reuse
    able, units, name = generator.capabilities, generator.units, type(generator).__name__
    if settings.first_stage is not None:
        if not isinstance(generator, Cascade):
            raise MgenError(f"{name} has no first stage: leave the sampler's first_stage out")
        check_fits(settings.first_stage, generator.first)
    _check_steps(settings, able, units, name)
    if any(settings.guided(units.length, units.global_tokens)[c.start :]) and generator.null_class is None:
        raise MgenError(f"guidance {c.guidance} needs a null class, this {name} has none: use guidance 1")
    if order.positions and len(order.positions) != units.length:
        raise MgenError(f"order lists {len(order.positions)} positions, this model has {units.length}")
    if order.name.startswith("halton") and units.grid is None:
        raise MgenError("order 'halton' needs tokens with a position in the image: use random, raster or a list")
    if reuse.cached and not able.cached_steps:
        raise MgenError(f"{name} has no cached steps: set reuse.cached=0")
    if able.carried_features and reuse.features and order.name == "remasking":
        raise MgenError(
            "order remasking changes known tokens, whose features this model carries on: set reuse.features=false"
        )
    if not able.log_prob:
        if order.ranked:
            raise MgenError(
                f"order '{order.name}' ranks draws by probability, which vectors don't have: use order random"
            )
        if c.steps > units.length:
            raise MgenError(f"steps is {c.steps}, this model has {units.length} tokens: at most one step per token")
    elif reuse.head_share != 1:
        raise MgenError(f"reuse.head_share is {reuse.head_share}: only a diffusion head has steps to share")
    temperatures = settings.values("temperature", units.length, units.global_tokens)
    for head in (c.head or {}, settings.cached_head or c.head or {}):
        generator.head.check(head, temperatures=temperatures)


def _check_steps(settings: "SamplerSettings", able: Capabilities, units: TokenSpec, name: str) -> None:
    """Raise MgenError unless the steps fit tokens that are drawn one after the other, or global ones first."""
    c, order = settings.config, settings.order
    single = order.name == "raster" and c.schedule == "single" and c.steps == units.length and not c.start
    if able.order == "causal" and not single:
        raise MgenError(
            f"{name} draws one token after the other: it needs steps {units.length}, order raster and schedule single, not "
            f"steps {c.steps}, order {c.order} and schedule {c.schedule}"
            + (f" from step {c.start} on" if c.start else "")
        )
    if not units.global_tokens:
        if c.global_steps is not None:
            raise MgenError(f"{name} has no global tokens: leave global_steps out")
        return
    if c.steps < 2:
        raise MgenError("global tokens are drawn before the others: at least 2 steps are needed")
    if c.start or order.name == "remasking" or not isinstance(c.schedule, str):
        raise MgenError("start, order remasking and listed schedules don't work with global tokens: leave them out")


def check_given(able: Capabilities, known: Tensor) -> None:
    """Raise MgenError unless given tokens, known (B, L), are the first ones where tokens are drawn one after the other."""
    if able.order == "causal" and bool((known[:, 1:] & ~known[:, :-1]).any()):
        raise MgenError("tokens are drawn one after the other: given tokens must be the first ones of an image")


def check_rows(settings: "SamplerSettings", plan: Plan) -> None:
    """Raise MgenError for cached steps of images that are given different numbers of tokens."""
    if settings.reuse.cached and any(step.visible[0] != step.visible[1] for step in plan.steps):
        raise MgenError(
            "cached steps need as many given tokens in every image of a batch: use batch_size 1, or reuse.cached=0"
        )
