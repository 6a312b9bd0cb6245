"""What a generator takes: MgenErrors for settings of a sampler that do not go with it or its kind of tokens.

For settings that exclude each other whatever the generator see mgen.samplers.excluded.
"""

from typing import TYPE_CHECKING

from mgen.generators import Capabilities, Cascade, Generator
from mgen.samplers.sequences import ON_GRID
from mgen.tokens import TokenSpec
from mgen.utils.errors import MgenError

if TYPE_CHECKING:
    from mgen.samplers.settings import SamplerSettings

STEPS_PER_TOKEN = 16


def check_generator(settings: "SamplerSettings", generator: Generator | Cascade) -> None:
    """Raise MgenError for settings that this generator or its kind of tokens does not take; those of a first stage are not looked at."""
    able, units, name = generator.capabilities, generator.units, type(generator).__name__
    if settings.first_stage is not None and not isinstance(generator, Cascade):
        raise MgenError(f"{name} has no first stage: leave the sampler's first_stage out")
    _check_steps(settings, able, units, name)
    if any(settings.guided(units.length, units.global_tokens)[settings.config.start :]) and able.guided_by is None:
        raise unguided(settings, name)
    _check_order(settings, generator, name)
    _check_reuse(settings, able, name)
    if settings.remask is not None:
        _check_remasking(settings, able, units, name)
    _check_number_of_steps(settings, able, units)
    _check_head(settings, generator, name)


def unguided(settings: "SamplerSettings", name: str) -> MgenError:
    """The error for guidance of a generator without a null class."""
    return MgenError(
        f"guidance {settings.config.guidance} needs a null class, this {name} has none: use guidance 1, or another model as guide"
    )


def _check_order(settings: "SamplerSettings", generator: Generator | Cascade, name: str) -> None:
    able, units, order = generator.capabilities, generator.units, settings.order
    if order.positions and len(order.positions) != units.length:
        raise MgenError(f"order lists {len(order.positions)} positions, this model has {units.length}")
    if order.name in ON_GRID and units.grid is None:
        raise MgenError(f"order '{order.name}' needs tokens with a position in the image: use random, raster or a list")
    if able.carried_features and settings.reuse.features and order.name == "remasking":
        raise MgenError(
            "order remasking changes known tokens, whose features this model carries on: set reuse.features=false"
        )
    if order.name == "moment" and able.log_prob and not generator.head.has_moments:
        raise MgenError(
            f"order moment needs the probabilities of all tokens at a position, which the head of this {name} draws part by part: use "
            "order confidence"
        )
    if not able.log_prob and order.ranked:
        raise MgenError(f"order '{order.name}' ranks draws by probability, which vectors don't have: use order random")


def _check_reuse(settings: "SamplerSettings", able: Capabilities, name: str) -> None:
    reuse = settings.reuse
    if reuse.cached and not able.cached_steps:
        raise MgenError(f"{name} has no cached steps: set reuse.cached=0")
    if reuse.tokens.lazy:
        _check_lazy(settings, able, name)
    if reuse.condition.every > 1 and (able.one_by_one or (able.carried_features and reuse.features)):
        unless = "set reuse.features=false or " if able.carried_features else ""
        raise MgenError(
            f"reuse.condition.every is {reuse.condition.every}, but in this {name} later passes read the null rows of earlier ones: "
            f"{unless}set reuse.condition.every=1"
        )
    if reuse.condition.every > 1 and able.guided_by == "guide":
        raise MgenError(
            f"reuse.condition.every is {reuse.condition.every}, which keeps what the null class changes in the context, but a guide's "
            "context is another model's: set reuse.condition.every=1"
        )


def _check_number_of_steps(settings: "SamplerSettings", able: Capabilities, units: TokenSpec) -> None:
    c = settings.config
    if not able.log_prob and c.steps > units.length and not settings.random_counts:
        raise MgenError(f"steps is {c.steps}, this model has {units.length} tokens: at most one step per token")
    if c.steps > STEPS_PER_TOKEN * units.length:  # some rules reveal nothing in a step, or draw tokens again
        raise MgenError(
            f"steps is {c.steps}, this model has {units.length} tokens: at most {STEPS_PER_TOKEN} steps for each"
        )


def _check_head(settings: "SamplerSettings", generator: Generator | Cascade, name: str) -> None:
    able, units = generator.capabilities, generator.units
    if able.log_prob and settings.reuse.head_share != 1:
        raise MgenError(f"reuse.head_share is {settings.reuse.head_share}: only a diffusion head has steps to share")
    temperatures = settings.values("temperature", units.length, units.global_tokens)
    if settings.selections and (able.log_prob or able.joint or able.denoises):
        why = "has no chain of steps" if able.log_prob else "draws all tokens of a step together"
        raise MgenError(
            f"stages: select gives some tokens another chain, but the head of this {name} {why}: leave it out"
        )
    chains = {count for pair in settings.chain_steps(units.length, units.global_tokens) for count in pair}
    chains |= {count for select in settings.selections for count in settings.selected_steps(select)}
    for count in chains:
        generator.guided_head.check(settings.head(count), temperatures=temperatures)


def _check_lazy(settings: "SamplerSettings", able: Capabilities, name: str) -> None:
    """Raise MgenError unless the generator has lazy steps as `reuse.tokens` asks for."""
    tokens, layers = settings.reuse.tokens, able.lazy_layers
    if not layers:
        raise MgenError(
            f"{name} has no lazy steps, which an encoder of the known tokens alone makes possible (trunk mae, the first stage of "
            "mae-two-stage): set reuse.tokens.every=1"
        )
    if able.joint:
        raise MgenError(
            f"the head of this {name} reads the context of all positions, a lazy step computes it at few: set reuse.tokens.every=1"
        )
    if tokens.layer >= layers and min(tokens.shares(settings.config.steps)) < 1:
        raise MgenError(
            f"reuse.tokens.layer is {tokens.layer}, this {name} has a decoder of {layers + 1} blocks, and the last one computes the "
            f"positions drawn alone: allowed is 0 … {layers - 1}, or keep 1"
        )


def _check_steps(settings: "SamplerSettings", able: Capabilities, units: TokenSpec, name: str) -> None:
    """Raise MgenError unless the steps fit tokens that are drawn one after the other, or global ones first."""
    c, order = settings.config, settings.order
    free = able.order == "sequential"
    settled = not order.ranked if free else order.name == "raster"
    single = settled and c.schedule == "single" and c.steps == units.length and not c.start
    unit = "entity" if able.denoises else "token"
    if able.one_by_one and able.joint:
        raise MgenError(f"{name} draws one token after the other, its head all of them together: use another head")
    if able.one_by_one and not single:
        which = "an order that is settled before the run (raster, random, halton, a list)" if free else "order raster"
        raise MgenError(
            f"{name} draws one {unit} after the other: it needs steps {units.length}, {which} and schedule single, not "
            f"steps {c.steps}, order {c.order} and schedule {c.schedule}"
            + (f" from step {c.start} on" if c.start else "")
        )
    if (stages := settings.stages) is not None:
        if units.global_tokens and c.global_steps is None:
            raise MgenError(
                "stages are of the tokens after global ones, which need steps of their own: set global_steps"
            )
        stages.ends(units.length - units.global_tokens)
    if not units.global_tokens:
        if c.global_steps is not None:
            raise MgenError(f"{name} has no global tokens: leave global_steps out")
        return
    if c.steps < 2:
        raise MgenError("global tokens are drawn before the others: at least 2 steps are needed")
    if c.start or order.name == "remasking" or not isinstance(c.schedule, str):
        raise MgenError("start, order remasking and listed schedules don't work with global tokens: leave them out")


def _check_remasking(settings: "SamplerSettings", able: Capabilities, units: TokenSpec, name: str) -> None:
    """Raise MgenError if this generator cannot take known tokens back."""
    if able.one_by_one:
        raise MgenError(f"{name} draws each token from those before it, which must stay: leave remask out")
    if not able.log_prob:
        raise MgenError(
            "remask draws a token more than once, but vectors are drawn by a chain whose noise is made once: leave remask out"
        )
    if units.global_tokens:
        raise MgenError("remask knows one kind of tokens, this model has global ones too: leave remask out")
    if able.carried_features and settings.reuse.features:
        raise MgenError("remask takes tokens back whose features this model carries on: set reuse.features=false")
