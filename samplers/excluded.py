"""Settings of a sampler that exclude each other: MgenErrors that say why, whatever the generator (for that see mgen.samplers.takes).

The table of docs/sampling.md, "Settings that exclude each other", is of both.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from mgen.samplers.order import OrderSettings
from mgen.samplers.remask import Remask
from mgen.samplers.reuse import Reuse
from mgen.samplers.stages import Stages
from mgen.samplers.values import by_tokens
from mgen.utils.errors import MgenError, shown

if TYPE_CHECKING:
    from mgen.samplers.settings import SamplerSettings


def check_order(order: OrderSettings, reuse: Reuse) -> None:
    """Raise MgenError for an order that changes what is kept between steps."""
    if order.name == "remasking" and reuse.equal_counts:
        raise MgenError(f"order remasking draws known tokens again in every step: set {reuse.off}")


def check_first_stage(settings: "SamplerSettings") -> None:
    """Raise MgenError for a first stage that changes tokens after the second stage has read their context."""
    if settings.order.name == "remasking":
        raise MgenError("first_stage: order remasking changes tokens whose context has been read: use confidence")
    if settings.remask is not None:
        raise MgenError(
            "first_stage: remask takes tokens back whose context has been read: leave first_stage.remask out"
        )


def check_stages(settings: "SamplerSettings", stages: Stages) -> None:
    """Raise MgenError for settings that are not those of the stages, or don't go with them."""
    c = settings.config
    if c.steps != (own := stages.steps + (c.global_steps or 0)):
        first = f"global_steps and stages take {own}" if c.global_steps else f"the stages take {own}"
        raise MgenError(f"steps is {c.steps}, but {first}: leave steps out (null), or change the steps of the stages")
    if c.start:
        raise MgenError(f"start is {c.start}: stages are for whole runs, leave start or stages out")
    if c.schedule == "single" or not isinstance(c.schedule, str):
        raise MgenError(
            f"schedule is {shown(c.schedule)}, a number of tokens for each step, which is what stages say: leave one of them out"
        )
    if settings.remask is not None:
        raise MgenError(
            "remask takes its probabilities from the schedule, in whose place stages stand: leave one of them out"
        )
    if settings.random_counts:
        raise MgenError(
            "counts binomial draws the number of tokens of each step, which stages settle: use counts maskgit"
        )


def check_random_counts(settings: "SamplerSettings") -> None:
    """Raise MgenError for settings that need every image to reveal as many tokens as the others."""
    if settings.reuse.equal_counts:
        raise MgenError(
            "counts binomial reveals other numbers of tokens in every image, cached and lazy steps need equal ones: set "
            f"{settings.reuse.off}, or counts maskgit"
        )
    _check_tokens_curves(settings, "counts binomial", ("temperature", "confidence_temperature"))


def check_remask(settings: "SamplerSettings", remask: Remask) -> None:
    """Raise MgenError for settings that remasking does not go with."""
    c, order = settings.config, settings.order.name
    if settings.reuse.equal_counts:
        raise MgenError(
            f"remask takes known tokens back, whose keys and values cached and lazy steps read: set {settings.reuse.off}"
        )
    if settings.reuse.condition.every > 1:
        raise MgenError(
            "remask draws tokens again that were known when the null class's difference was computed: set reuse.condition.every=1"
        )
    if order == "remasking":
        raise MgenError("order remasking draws known tokens again in every step: leave remask out, or use confidence")
    if remask.kind == "conf" and (c.head or {}).get("score") == "logit":
        raise MgenError(
            "remask conf compares probabilities, but head.score is logit: set head.score to log_prob or drawn"
        )
    if not remask.free:
        if settings.random_counts:
            raise MgenError("counts binomial are random, remask.counts kept needs settled ones: set remask.counts=free")
        return
    if order != "random":
        raise MgenError(
            f"remask.counts free reveals every position on its own, in no order: use order random, not {order}, or "
            "remask.counts=kept"
        )
    if c.schedule == "single" or c.counts not in ("maskgit", "binomial"):
        raise MgenError(
            f"remask.counts free draws the numbers of tokens from a mask fraction, which schedule {c.schedule} and counts {c.counts} "
            "don't give: use schedule linear (published) and counts maskgit, or remask.counts=kept"
        )
    _check_tokens_curves(settings, "remask.counts free", ("guidance", "temperature", "confidence_temperature"))
    if by_tokens(c.guidance, "interval_of"):
        raise MgenError(
            "guidance.interval_of is tokens, but with remask.counts free their number differs by image: leave interval_of out, or set "
            "remask.counts=kept"
        )


def _check_tokens_curves(settings: "SamplerSettings", setting: str, names: Sequence[str]) -> None:
    """Raise MgenError for values that count tokens, whose number differs by image with this setting."""
    for name in names:
        if by_tokens(settings.config[name], "at"):
            raise MgenError(
                f"{name}.at is tokens, but with {setting} their number differs by image: use at: end, or other counts"
            )
