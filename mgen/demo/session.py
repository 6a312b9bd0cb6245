"""What the handlers of the page share: models, costs, runs that can be stopped, and errors as one message."""

import functools
import sys
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from threading import Event
from typing import Any, ParamSpec

import gradio as gr

from mgen.demo import markup
from mgen.demo.models import Models, classes_of
from mgen.demo.panel import Panel, read_values
from mgen.demo.runs import Costs, Request, Stopped
from mgen.demo.settings import sampler_of
from mgen.pipelines.pipeline import MaskedPipeline
from mgen.utils.errors import MgenError, first_line

P = ParamSpec("P")
Updates = dict[Any, Any]
# One run at a time, whoever asks for it: they share the processor and the models.
ONE: dict[str, Any] = {
    "concurrency_limit": 1,
    "concurrency_id": "model",
    "show_progress": "hidden",
    "api_visibility": "private",
}
COUNT = {**ONE, "concurrency_id": "count"}  # beside a run
QUICK: dict[str, Any] = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}


@dataclass
class Session:
    """Models and costs of the page, and by visitor the run in progress and the request whose images are shown."""

    models: Models
    costs: Costs = field(default_factory=Costs)
    running: dict[str, Event] = field(default_factory=dict)
    latest: dict[str, Request] = field(default_factory=dict)

    def begin(self, visitor: gr.Request) -> Event:
        """The event that stops a new run."""
        self.running[str(visitor.session_hash)] = stop = Event()
        self.latest.pop(str(visitor.session_hash), None)
        return stop

    def show(self, visitor: gr.Request, request: Request) -> None:
        """Note whose images are shown."""
        self.latest[str(visitor.session_hash)] = request

    def shows(self, visitor: gr.Request, request: Request) -> bool:
        return self.latest.get(str(visitor.session_hash)) is request

    def stop(self, visitor: gr.Request) -> None:
        """Stop the visitor's run after its present step."""
        if (event := self.running.get(str(visitor.session_hash))) is not None:
            event.set()

    def request(self, *inputs: Any) -> tuple[MaskedPipeline, Request]:
        """The pipeline and the request of what the sidebar says (`Sidebar.inputs`); MgenError for settings that do not fit."""
        model, chosen, count, seed, *values = inputs
        pipe = self.models.get(model)
        sampler = sampler_of(pipe.sampler, read_values(values))
        sampler.check(pipe.transformer)
        classes = classes_of(pipe, chosen, int(count))
        return pipe, Request(model=model, classes=tuple(classes), seed=int(seed or 0), sampler=sampler)


@dataclass(frozen=True)
class Sidebar:
    """The controls on the left, which say what is sampled."""

    model: Any
    chosen: Any
    count: Any
    seed: Any
    panel: Panel

    @property
    def inputs(self) -> list[Any]:
        return [self.model, self.chosen, self.count, self.seed, *self.panel.components]


def told(
    status: Any, *, first: Updates | None = None, last: Updates | None = None
) -> Callable[[Callable[P, Iterator[Updates]]], Callable[P, Iterator[Updates]]]:
    """Decorator of handlers that yield updates: an error becomes one line in `status`, never a trace on the page.

    Args:
        first, last: updates before and after, whatever happens.
    """

    def decorate(handler: Callable[P, Iterator[Updates]]) -> Callable[P, Iterator[Updates]]:
        @functools.wraps(handler)
        def call(*args: P.args, **kwargs: P.kwargs) -> Iterator[Updates]:
            yield {status: "", **(first or {})}
            try:
                yield from handler(*args, **kwargs)
            except Stopped:
                yield {status: markup.message("stopped")}
            except Exception as error:
                yield {status: markup.message(explained(error), error=True)}
            if last:
                yield last

        return call

    return decorate


def explained(error: Exception) -> str:
    """An error in one line; of an unforeseen one the trace goes to the terminal."""
    if isinstance(error, MgenError):
        return str(error)
    if type(error).__name__ == "OutOfMemoryError" or "DefaultCPUAllocator" in str(error):  # of torch
        return f"out of memory ({first_line(error)}): ask for fewer images"
    traceback.print_exception(error, file=sys.stderr)
    return f"internal error: {type(error).__name__}: {first_line(error)}; the trace is on the terminal"
