"""The page: what is sampled on the left, and tabs to sample, edit and compare."""

from typing import Any

import gradio as gr

from mgen.demo import markup
from mgen.demo.compare_tab import CompareTab
from mgen.demo.controls import controls, is_ranked
from mgen.demo.edit_tab import EditTab
from mgen.demo.models import Models, about, class_choices
from mgen.demo.panel import Panel
from mgen.demo.sample_tab import SampleTab
from mgen.demo.session import QUICK, Session, Sidebar, Updates, explained
from mgen.pipelines.pipeline import MaskedPipeline

MOST_IMAGES = 32  # at once; a batch of mgen sample holds 40, so that a recipe's images come from the same batch
HEAD = (
    '<div class="mg-head"><h1>mgen demo</h1><p>Masked image generation, step by step: sample, mask tokens and sample them again, '
    "compare settings.</p></div>"
)


def build_page(models: Models) -> gr.Blocks:
    """The page for these models; the first one is chosen at first."""
    # Longer than 60 lines since the page is read from top to bottom: its parts in their places, then what moves between them, in
    # functions that close over the parts.
    session, name = Session(models), models.names[0]
    pipe = models.get(name)
    own = controls(pipe)
    with gr.Blocks(title="mgen demo", analytics_enabled=False, fill_width=True) as page:
        gr.HTML(HEAD)
        result = gr.State(None)
        with gr.Row(elem_id="main"):
            with gr.Column(scale=1, min_width=310):
                with gr.Group():
                    model = gr.Dropdown(models.names, value=name, label="Model", info=about(pipe), elem_id="model")
                    chosen = gr.Dropdown(**_classes(pipe), label="Class", elem_id="class")
                    with gr.Row():
                        most: dict[str, Any] = {"minimum": 1, "maximum": MOST_IMAGES}
                        count = gr.Number(8, label="Images", precision=0, **most, elem_id="count", min_width=100)
                        seed = gr.Number(0, label="Seed", precision=0, elem_id="seed", min_width=100)
                panel = Panel(own, "a")
                with gr.Accordion("What every step does", open=False):
                    plan = gr.Textbox(
                        str(pipe.sampler.plan(pipe.transformer)),
                        show_label=False,
                        lines=8,
                        max_lines=20,
                        elem_classes=["mg-plan"],
                    )
            with gr.Column(scale=3, min_width=310):
                status = gr.HTML("", elem_id="status")
                with gr.Tabs(selected="sample") as tabs:
                    with gr.Tab("Sample", id="sample"):
                        samples = SampleTab(session)
                    with gr.Tab("Edit tokens", id="edit"):
                        editing = EditTab(pipe)
                    with gr.Tab("Compare", id="compare"):
                        comparing = CompareTab(own)
        sidebar = Sidebar(model, chosen, count, seed, panel)
        samples.connect(sidebar, result, status)
        editing.connect(session, sidebar, tabs, samples, result, status)
        comparing.connect(session, sidebar, status)
        panels = [panel, comparing.panel]

        def change_model(name: str) -> Updates:
            try:
                pipe = models.get(name)
            except Exception as error:
                return {status: markup.message(explained(error), error=True)}
            new = controls(pipe)
            settings = {out: update for p in panels for out, update in zip(p.outputs, p.updates(new))}
            return {
                **settings,
                **samples.cleared(),
                **editing.cleared(pipe),
                **comparing.cleared(),
                model: gr.update(info=about(pipe)),
                chosen: gr.update(**_classes(pipe)),
                plan: str(pipe.sampler.plan(pipe.transformer)),
                result: None,
                status: "",
            }

        def show_plan(*inputs: Any) -> Updates:
            try:
                pipe, request = session.request(*inputs)
                return {plan: str(request.sampler.plan(pipe.transformer)), status: ""}
            except Exception as error:
                return {status: markup.message(explained(error), error=True)}

        def confidence(model: str, order: str) -> Any:
            return gr.update(interactive=is_ranked(order, models.get(model).sampler))

        cleared = [
            *samples.cleared(),
            *editing.cleared(pipe),
            *comparing.cleared(),
            model,
            chosen,
            plan,
            result,
            status,
        ]
        outputs = [*panel.outputs, *comparing.panel.outputs, *cleared]
        model.input(change_model, model, outputs, api_visibility="private", concurrency_limit=1, concurrency_id="model")
        gr.on([*panel.changed()], show_plan, sidebar.inputs, [plan, status], trigger_mode="always_last", **QUICK)
        for each in panels:
            each.order.input(confidence, [model, each.order], each.confidence, **QUICK)
    return page


def _classes(pipe: MaskedPipeline) -> dict[str, Any]:
    choices = class_choices(pipe)
    return {"choices": choices, "value": choices[0][1] if choices else None, "visible": bool(choices)}
