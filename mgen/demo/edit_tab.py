"""The tab that masks tokens of an image and samples them again."""

from collections.abc import Iterator
from typing import Annotated, Any

import gradio as gr
from pydantic import Field

from mgen.demo import markup
from mgen.demo.frames import pictures
from mgen.demo.models import class_choices
from mgen.demo.runs import Result, edit, unchanged
from mgen.demo.sample_tab import SampleTab
from mgen.demo.session import ONE, QUICK, Session, Sidebar, Updates, told
from mgen.demo.style import EDITOR_SCRIPT
from mgen.pipelines.editing import check_editable
from mgen.pipelines.pipeline import MaskedPipeline
from mgen.utils.errors import MgenError
from mgen.utils.schema import build, schema

HINT = "Sample images first, then click the one to edit."
SAME = -2  # the class stays


@schema(extra=True)
class Painted:
    """What the token editor sends: the masked places of the grid."""

    masked: Annotated[tuple[int, ...], Field(max_length=2**20)] = ()


class EditTab:
    """The token grid of an image, the class and seed of what is sampled again, the image before."""

    def __init__(self, pipe: MaskedPipeline) -> None:
        self.index = gr.State(0)
        with gr.Row():
            with gr.Column(scale=3, min_width=300):
                self.editor = gr.HTML(
                    self.closed(pipe), html_template="${value.html}", js_on_load=EDITOR_SCRIPT, elem_id="editor"
                )
            with gr.Column(scale=2, min_width=240):
                gr.HTML(
                    '<p class="mg-about">Click or drag over tokens to mask them (orange). They are sampled again with the main '
                    "settings; all others stay exactly as they are.</p>"
                )
                choices = self._classes(pipe)
                self.chosen = gr.Dropdown(
                    choices, value=SAME, label="Class", visible=pipe.conditional, elem_id="edit-class"
                )
                self.seed = gr.Number(1, label="Seed", info="goes up by 1 each time", precision=0, elem_id="edit-seed")
                self.go = gr.Button("Sample masked tokens again", variant="primary", elem_id="resample")
                with gr.Row():
                    self.undo = gr.Button("Undo", interactive=False, elem_id="undo", min_width=80)
                    self.stop = gr.Button("Stop", interactive=False, elem_id="edit-stop", min_width=80)
                self.facts = gr.HTML("", elem_id="edit-facts")
                self.before = gr.HTML("", elem_id="before", elem_classes=["mg-before"])

    def _classes(self, pipe: MaskedPipeline) -> list[tuple[str, int]]:
        return [("as it is", SAME), *class_choices(pipe)[1:]]

    def closed(self, pipe: MaskedPipeline) -> dict[str, Any]:
        """The editor without an image: what to do, or why this model can't edit."""
        try:
            check_editable(pipe)
        except MgenError as error:
            return markup.no_editor(f"Editing is off for this model: {error}")
        return markup.no_editor(HINT)

    def cleared(self, pipe: MaskedPipeline) -> Updates:
        """The updates after another model was chosen."""
        choices = self._classes(pipe)
        return {
            self.editor: self.closed(pipe),
            self.chosen: gr.update(choices=choices, value=SAME, visible=pipe.conditional),
            self.undo: gr.update(interactive=False),
            self.facts: "",
            self.before: "",
        }

    def connect(
        self, session: Session, sidebar: Sidebar, tabs: Any, samples: SampleTab, result: Any, status: Any
    ) -> None:
        """Connect the tab's parts with what they do."""

        # Longer than 60 lines since gradio's events are functions that close over the parts; each of the three is short.
        def pick(made: Result | None, event: gr.EventData) -> Updates:
            number = event._data.get("index") if isinstance(event._data, dict) else None
            if made is None or type(number) is not int or not 0 <= number < len(made.images):
                return {}
            pipe = session.models.get(made.request.model)
            opened = {self.index: number, self.facts: "", self.before: "", tabs: gr.update(selected="edit")}
            return {**opened, self.editor: self._open(pipe, made, number)}

        @told(
            status,
            first={self.go: gr.update(interactive=False), self.stop: gr.update(interactive=True)},
            last={self.go: gr.update(interactive=True), self.stop: gr.update(interactive=False)},
        )
        def run(
            visitor: gr.Request,
            made: Result | None,
            index: int,
            value: Any,
            chosen: int | None,
            seed: float | None,
            *inputs: Any,
        ) -> Iterator[Updates]:
            pipe, request = session.request(*inputs)
            grid = check_editable(pipe)
            if made is None:
                raise MgenError("there is no image yet: press Sample, then click an image")
            masked = list(build(Painted, value, "masked: ").masked)
            side = int(pipe.tokenizer.config.image_size)
            steps = edit(
                pipe,
                made,
                index,
                masked,
                seed=int(seed or 0),
                stop=session.begin(visitor),
                sampler=request.sampler,
                chosen=None if chosen in (None, SAME) else chosen,
            )
            try:
                while True:
                    frame = next(steps)
                    shown = markup.editor(frame.pictures[0], side, grid, (), "the image so far")
                    yield {self.editor: {**shown, "masked": masked}, self.facts: markup.facts([frame.caption])}
            except StopIteration as end:
                new: Result = end.value
            others = grid[0] * grid[1] - len(masked)
            kept = f"{unchanged(made, new, index, masked)} of the {others} others are the same as before"
            yield {
                result: new,
                **samples.finished(pipe, new),
                self.editor: self._open(pipe, new, index, masked),
                self.facts: markup.facts([f"{len(masked)} tokens sampled again", kept]),
                self.before: self._before(pipe, made, index),
                self.seed: int(seed or 0) + 1,
                self.undo: gr.update(interactive=True),
            }

        def undo(made: Result | None, index: int) -> Updates:
            if made is None or made.before is None:
                return {self.undo: gr.update(interactive=False)}
            old, pipe = made.before, session.models.get(made.request.model)
            return {
                result: old,
                **samples.finished(pipe, old),
                self.editor: self._open(pipe, old, index),
                self.facts: "",
                self.before: "",
                self.undo: gr.update(interactive=old.before is not None),
            }

        shared = [samples.board, samples.caption, samples.step, samples.facts, samples.links]
        own = [self.editor, self.facts, self.before, self.undo, result]
        samples.board.pick(pick, result, [self.index, self.editor, self.facts, self.before, tabs], **QUICK)
        inputs = [result, self.index, self.editor, self.chosen, self.seed, *sidebar.inputs]
        self.go.click(run, inputs, [*own, self.go, self.stop, self.seed, status, *shared], **ONE)
        self.undo.click(undo, [result, self.index], [*own, *shared], **QUICK)
        self.stop.click(session.stop, None, None, **QUICK)

    def _open(self, pipe: MaskedPipeline, made: Result, index: int, masked: list[int] | None = None) -> dict[str, Any]:
        try:
            grid = check_editable(pipe)
        except MgenError:
            return self.closed(pipe)
        side, title = int(pipe.tokenizer.config.image_size), f"image {index + 1}"
        return markup.editor(made.frames[-1].pictures[index], side, grid, masked or (), title, done=masked is not None)

    def _before(self, pipe: MaskedPipeline, made: Result, index: int) -> str:
        picture = pictures(made.images[index : index + 1])
        return markup.board(picture, ["before"], int(pipe.tokenizer.config.image_size), small=True)
