"""The tab that samples with two settings from the same noise: A is the main panel, B a panel of its own."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import gradio as gr

from mgen.demo import markup
from mgen.demo.controls import Control
from mgen.demo.frames import Frame
from mgen.demo.panel import Panel
from mgen.demo.runs import Result, differing, sample
from mgen.demo.session import ONE, QUICK, Session, Sidebar, Updates, told
from mgen.pipelines.pipeline import MaskedPipeline


class CompareTab:
    """The settings of B, the images of both, and a table."""

    def __init__(self, controls: dict[str, Control]) -> None:
        gr.HTML(
            '<p class="mg-about">A: the main settings. B: those below. Classes and seed are the same, so that image by image the random '
            "numbers are, too.</p>"
        )
        self.panel = Panel(controls, "b", wide=True)
        with gr.Row():
            self.go = gr.Button("Compare", variant="primary", elem_id="compare", scale=3, min_width=120)
            self.copy = gr.Button("Copy A to B", elem_id="copy", scale=1, min_width=80)
            self.stop = gr.Button("Stop", interactive=False, elem_id="compare-stop", scale=1, min_width=80)
        with gr.Row():
            self.boards = [self._side("A"), self._side("B")]
        self.table = gr.HTML("", elem_id="table")
        self.results = gr.State(None)

    def _side(self, name: str) -> Any:
        with gr.Column(min_width=290):
            gr.HTML(f'<p class="mg-about"><strong>{name}</strong></p>')
            return gr.HTML(markup.empty_board(f"images of {name}"), elem_id=f"board-{name.lower()}")

    def cleared(self) -> Updates:
        """The updates after another model was chosen."""
        return {
            **{b: markup.empty_board(f"images of {n}") for n, b in zip("AB", self.boards)},
            self.table: "",
            self.results: None,
        }

    def connect(self, session: Session, sidebar: Sidebar, status: Any) -> None:
        @told(
            status,
            first={self.go: gr.update(interactive=False), self.stop: gr.update(interactive=True), self.table: ""},
            last={self.go: gr.update(interactive=True), self.stop: gr.update(interactive=False)},
        )
        def run(visitor: gr.Request, *inputs: Any) -> Iterator[Updates]:
            number = len(self.panel.components)
            pipe, one = session.request(*inputs[:-number])
            _, two = session.request(*inputs[:4], *inputs[-number:])
            yield {board: markup.empty_board("waiting") for board in self.boards} | {self.results: None}
            made: list[Result] = []
            stop = session.begin(visitor)
            for request, board in zip((one, two), self.boards):
                steps = sample(pipe, request, stop)
                try:
                    while True:
                        yield {board: self._board(pipe, next(steps), request.classes)}
                except StopIteration as end:
                    made.append(end.value)
                    yield {board: self._board(pipe, end.value.frames[-1], request.classes)}
                stop = session.begin(visitor)
            texts = [f"{n} differ" for n in differing(*made)]
            yield {
                self.boards[1]: self._board(pipe, made[1].frames[-1], one.classes, texts),
                self.table: markup.comparison(made[0], made[1], (None, None)),
                self.results: [replace(r, frames=[]) for r in made],
            }

        def count_operations(made: list[Result] | None) -> Any:
            if made is None:
                return gr.skip()
            pipe = session.models.get(made[0].request.model)
            costs = [session.costs.tflops(pipe, r.request) for r in made]
            return markup.comparison(made[0], made[1], costs)

        outputs = [*self.boards, self.table, self.results, self.go, self.stop, status]
        done = self.go.click(run, [*sidebar.inputs, *self.panel.components], outputs, **ONE)
        done.then(count_operations, self.results, self.table, **ONE)
        self.stop.click(session.stop, None, None, **QUICK)
        own, others = sidebar.panel.components, self.panel.components
        self.copy.click(lambda *values: list(values), own, others, **QUICK)

    def _board(
        self, pipe: MaskedPipeline, frame: Frame, classes: tuple[int | None, ...], texts: list[str] | None = None
    ) -> str:
        side = int(pipe.tokenizer.config.image_size)
        return markup.board(frame.pictures, texts or markup.captions(pipe, classes), side, small=True)
