"""Values of the page's controls ⇄ a sampler. A control that wasn't changed leaves the saved setting as it is, curves and lists too."""

from collections.abc import Mapping
from typing import Any

from mgen.samplers import ParallelSampler
from mgen.utils.config import Settings

# The controls, in the order in which the page passes their values.
NAMES = (
    "steps",
    "order",
    "schedule",
    "guidance_curve",
    "guidance",
    "temperature",
    "confidence_temperature",
    "cached",
    "full_first",
    "refresh",
    "features",
    "chain",
    "head_steps",
    "top_k",
    "top_p",
    "first_steps",
    "global_steps",
)
Values = dict[str, Any]
SAVED = "as saved"  # a list or a curve that the controls can't show
REDRAW = "confidence, drawn twice"
CONSTANT = "constant"


def shown_values(sampler: ParallelSampler) -> Values:
    """What the controls show for a sampler; None where it has a list or a curve that they can't show, or the setting is not its own."""
    c, reuse, head = sampler.config, sampler.reuse, sampler.longest_head
    order = sampler.order
    curve, strength = _shown_curve(c.guidance)
    return {
        "steps": c.steps,
        "order": SAVED if order.positions else REDRAW if order.redraw else order.name,
        "schedule": c.schedule if isinstance(c.schedule, str) else SAVED,
        "guidance_curve": curve,
        "guidance": strength,
        "temperature": _number(c.temperature),
        "confidence_temperature": (
            c.confidence_temperature.get("start", 1.0)
            if isinstance(c.confidence_temperature, Mapping)
            else _number(c.confidence_temperature)
        ),
        "cached": reuse.cached,
        "full_first": reuse.full_first,
        "refresh": reuse.refresh,
        "features": reuse.features,
        "chain": head.get("chain", "ancestral"),
        "head_steps": head.get("steps", 100),
        "top_k": head.get("top_k") or 0,
        "top_p": head.get("top_p") or 1.0,
        "first_steps": None if sampler.first_stage is None else sampler.first_stage.config.steps,
        "global_steps": c.global_steps or 0,
    }


def sampler_of(saved: ParallelSampler, values: Values) -> ParallelSampler:
    """The saved sampler with the controls that were changed; MgenError for settings that aren't allowed."""
    before, own = shown_values(saved), saved.settings
    new = {name: value for name, value in values.items() if value is not None and value != before[name]}
    changed: Settings = {name: new[name] for name in ("steps", "schedule", "temperature") if name in new}
    if "order" in new:
        changed["order"] = {"name": "confidence", "redraw": True} if new["order"] == REDRAW else new["order"]
    if {"guidance", "guidance_curve"} & new.keys():
        changed["guidance"] = _guidance(own["guidance"], values["guidance_curve"], values["guidance"])
    if "confidence_temperature" in new:
        curve = own["confidence_temperature"]
        start = new["confidence_temperature"]
        changed["confidence_temperature"] = {**curve, "start": start} if isinstance(curve, Mapping) else start
    if reuse := {name: new[name] for name in ("cached", "full_first", "refresh", "features") if name in new}:
        changed["reuse"] = {**(own["reuse"] or {}), **reuse}
    head = {key: new[name] for name, key in (("chain", "chain"), ("head_steps", "steps")) if name in new}
    head |= {name: new[name] or None for name in ("top_k", "top_p") if name in new}
    if head:
        merged = {**(own["head"] or {}), **head}
        changed["head"] = {key: value for key, value in merged.items() if value is not None}
    if "first_steps" in new and own["first_stage"]:  # a hidden slider sends its least value
        changed["first_stage"] = {**own["first_stage"], "steps": new["first_steps"]}
    if "global_steps" in new:
        changed["global_steps"] = new["global_steps"] or None
    changed = {name: value for name, value in changed.items() if value != SAVED}
    return ParallelSampler.from_settings({**own, **changed}, "sampler") if changed else saved


def _guidance(saved: Any, curve: str, strength: float | None) -> Any:
    """The setting `guidance` of a kind of curve and a strength: its constant value, or what it rises to."""
    if curve == SAVED:
        return saved
    strength = 1.0 if strength is None else strength
    if isinstance(saved, Mapping) and _shown_curve(saved)[0] == curve:  # with its interval and all else
        return {**saved, "end": strength}
    return strength if curve == CONSTANT else {"kind": curve, "start": 1.0, "end": strength}


def _shown_curve(value: Any) -> tuple[str, float | None]:
    if isinstance(value, Mapping):
        return value["kind"], value.get("end", 1.0)
    return (SAVED, None) if isinstance(value, list | tuple) else (CONSTANT, value)


def _number(value: Any) -> float | None:
    return None if isinstance(value, Mapping | list | tuple) else value
