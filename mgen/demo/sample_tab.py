"""The tab that samples images and shows how their tokens appear."""

from collections.abc import Iterator
from typing import Any

import gradio as gr

from mgen.demo import downloads, markup
from mgen.demo.frames import Frame, data_url
from mgen.demo.runs import Request, Result, sample
from mgen.demo.session import COUNT, ONE, QUICK, Session, Sidebar, Updates, told
from mgen.demo.style import BOARD_SCRIPT
from mgen.pipelines.pipeline import MaskedPipeline

HINT = "Choose a class and press Sample: the tokens appear step by step."


class SampleTab:
    """Buttons, images, the slider over the steps, facts and downloads."""

    def __init__(self, session: Session) -> None:
        self.session = session
        with gr.Row():
            self.go = gr.Button("Sample", variant="primary", elem_id="sample", scale=3, min_width=120)
            self.stop = gr.Button("Stop", interactive=False, elem_id="stop", scale=1, min_width=80)
        self.board = gr.HTML(markup.empty_board(HINT), js_on_load=BOARD_SCRIPT, elem_id="board")
        self.caption = gr.HTML("", elem_id="caption")
        self.step = gr.Slider(1, 2, value=1, step=1, label="Step", visible=False, elem_id="step", buttons=[])
        self.facts = gr.HTML("", elem_id="facts")
        self.links = gr.HTML("", elem_id="links")

    def cleared(self) -> Updates:
        """The updates after another model was chosen."""
        return {
            self.board: markup.empty_board(HINT),
            self.caption: "",
            self.step: gr.update(visible=False),
            self.facts: "",
            self.links: "",
        }

    def connect(self, sidebar: Sidebar, result: Any, status: Any) -> Any:
        """Attach the events; returns the last one of a run."""
        session = self.session

        @told(
            status,
            first={self.go: gr.update(interactive=False), self.stop: gr.update(interactive=True)},
            last={self.go: gr.update(interactive=True), self.stop: gr.update(interactive=False)},
        )
        def run(visitor: gr.Request, *inputs: Any) -> Iterator[Updates]:
            pipe, request = session.request(*inputs)
            yield {self.step: gr.update(visible=False), self.caption: "", self.facts: "", self.links: "", result: None}
            made = sample(pipe, request, session.begin(visitor))
            try:
                while True:
                    yield self._shown(pipe, next(made), request)
            except StopIteration as end:
                session.show(visitor, request)
                yield {result: end.value, **self.finished(pipe, end.value)}

        def count_operations(visitor: gr.Request, made: Result | None) -> Any:
            if made is None:
                return gr.skip()
            tflops = session.costs.tflops(session.models.get(made.request.model), made.request)
            return markup.facts(markup.run_facts(made, tflops)) if session.shows(visitor, made.request) else gr.skip()

        def back(made: Result | None, number: float) -> Updates:
            if made is None:
                return {self.caption: ""}
            frame = made.frames[min(max(1, int(number)), len(made.frames)) - 1]
            pipe = session.models.get(made.request.model)
            return self._shown(pipe, frame, made.request, made)

        outputs = [self.board, self.caption, self.step, self.facts, self.links, self.go, self.stop, result, status]
        done = self.go.click(run, sidebar.inputs, outputs, **ONE)
        done = done.then(count_operations, result, self.facts, **COUNT)
        self.stop.click(session.stop, None, None, **QUICK)
        self.step.input(back, [result, self.step], [self.board, self.caption], trigger_mode="always_last", **QUICK)
        return done

    def _shown(self, pipe: MaskedPipeline, frame: Frame, request: Request, made: Result | None = None) -> Updates:
        classes = request.classes if made is None else made.classes
        last = made is not None and frame is made.frames[-1]
        texts = markup.captions(pipe, classes)
        side = int(pipe.tokenizer.config.image_size)
        marked = made.edited if made is not None and last else ()
        return {
            self.board: markup.board(frame.pictures, texts, side, clickable=made is not None, marked=marked),
            self.caption: markup.facts([frame.caption]),
        }

    def finished(self, pipe: MaskedPipeline, made: Result) -> Updates:
        """The updates that show a result, of a run or of an edit."""
        files = [
            ("grid.png", "images on one PNG", data_url(downloads.grid_png(pipe, made), "image/png")),
            ("images.zip", "images as PNGs (zip)", data_url(downloads.images_zip(made), "application/zip")),
            (
                downloads.RECIPE,
                "settings as a recipe",
                data_url(downloads.recipe(pipe, made.request).encode(), "text/yaml"),
            ),
        ]
        number = len(made.frames)
        return {
            **self._shown(pipe, made.frames[-1], made.request, made),
            self.step: gr.update(visible=number > 1, maximum=max(2, number), value=number),
            self.facts: markup.facts(markup.run_facts(made, self.session.costs.known(made.request))),
            self.links: markup.links(files),
        }
