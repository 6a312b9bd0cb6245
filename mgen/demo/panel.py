"""The controls of a sampler in gradio. Their values are passed in the order of settings.NAMES."""

from collections.abc import Sequence
from typing import Any

import gradio as gr

from mgen.demo.controls import Control
from mgen.demo.settings import NAMES, Values

MAIN = (
    ("steps",),
    ("order", "schedule"),
    ("guidance_curve", "guidance"),
    ("temperature", "confidence_temperature"),
    ("first_steps", "global_steps"),
)
WIDE = (
    ("steps", "order", "schedule"),
    ("guidance_curve", "guidance", "temperature", "confidence_temperature"),
    ("first_steps", "global_steps"),
)
BOXES = {
    "Reuse between steps": ("cached", "full_first", "refresh", "features"),
    "Sampling of a token": ("chain", "head_steps", "top_k", "top_p"),
}
LABELS = {
    "steps": ("Steps", ""),
    "order": ("Order", ""),
    "schedule": ("Schedule", ""),
    "guidance_curve": ("Guidance", ""),
    "guidance": ("Strength", ""),
    "temperature": ("Temperature", ""),
    "confidence_temperature": ("Confidence temp.", ""),
    "cached": ("Cached steps after each full one", "ReCAP; 0: every step is full"),
    "full_first": ("Full steps at the start", "before the first cached one"),
    "refresh": ("Computed in a cached step", "the whole group, or its latest tokens"),
    "features": ("Carry features to the next full step", "ENAT"),
    "chain": ("Chain of the diffusion head", ""),
    "head_steps": ("Steps of the chain", ""),
    "top_k": ("Top k", "0: all ids"),
    "top_p": ("Top p", "1: all ids"),
    "first_steps": ("First-stage steps", ""),
    "global_steps": ("Global-token steps", "0: in proportion"),
}
SLIDERS = {"steps": 1, "cached": 0, "full_first": 0, "head_steps": 1, "top_k": 0, "first_steps": 1, "global_steps": 0}


class Panel:
    """The controls of one sampler; `name` tells the panels of a page apart. `wide`: in rows for half a page."""

    def __init__(self, controls: dict[str, Control], name: str, *, wide: bool = False) -> None:
        self.name = name
        made: dict[str, Any] = {}

        def add(*names: str) -> None:
            with gr.Row():
                for key in names:
                    made[key] = self._component(key, controls[key])

        with gr.Group():
            for names in WIDE if wide else MAIN:
                add(*names)
        self.boxes: list[gr.Accordion] = []
        for title, names in BOXES.items():
            with gr.Accordion(title, open=False, visible=_any(controls, names)) as box:
                for part in [names] if wide else [(key,) for key in names]:
                    add(*part)
            self.boxes.append(box)
        self.components = [made[key] for key in NAMES]
        self.order, self.confidence = made["order"], made["confidence_temperature"]

    @property
    def outputs(self) -> list[Any]:
        """What `updates` sets."""
        return [*self.components, *self.boxes]

    def updates(self, controls: dict[str, Control]) -> list[Any]:
        """The updates of `outputs` for another model."""
        boxes = [gr.update(visible=_any(controls, names)) for names in BOXES.values()]
        return [*(gr.update(**_state(key, controls[key])) for key in NAMES), *boxes]

    def changed(self) -> Sequence[Any]:
        """The events that say that the user has changed a control."""
        return [
            component.release if isinstance(component, gr.Slider) else component.input for component in self.components
        ]

    def _component(self, key: str, control: Control) -> Any:
        label, info = LABELS[key]
        usual = {
            "label": label,
            "info": info or None,
            "elem_id": f"{self.name}-{key}",
            "min_width": 120,
            **_state(key, control),
        }
        if key in SLIDERS:
            return gr.Slider(minimum=SLIDERS[key], step=1, buttons=[], **usual)
        if key == "top_p":
            return gr.Slider(minimum=0.01, step=0.01, buttons=[], **usual)
        if key == "features":
            return gr.Checkbox(**usual)
        return gr.Dropdown(**usual) if control.choices else gr.Number(**usual)


def read_values(values: Sequence[Any]) -> Values:
    """The values of a panel by name; numbers of sliders are whole."""
    found = dict(zip(NAMES, values, strict=True))
    return {key: int(v) if key in SLIDERS and v is not None else v for key, v in found.items()}


def _state(key: str, control: Control) -> dict[str, Any]:
    state = {"value": control.value, "visible": control.visible, "interactive": control.enabled}
    if control.choices:
        state["choices"] = list(control.choices)
    if key in SLIDERS:
        state["maximum"] = max(control.most, SLIDERS[key] + 1)
    elif key == "top_p":
        state["maximum"] = 1.0
    return state


def _any(controls: dict[str, Control], names: Sequence[str]) -> bool:
    return any(controls[name].visible for name in names)
