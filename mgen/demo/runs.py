"""Sampling, editing and comparing, as streams of frames. A run computes in a thread of its own, so that it can be watched and stopped."""

import json
import queue
import time
from collections.abc import Callable, Collection, Generator
from dataclasses import dataclass, field, replace
from threading import Event, Thread
from typing import Any, TypeVar

import torch
from torch import Tensor

from mgen.bench.flops import count_run
from mgen.demo.frames import Frame, frame, last_of, pictures, thinned
from mgen.pipelines.editing import check_editable
from mgen.pipelines.pipeline import MaskedPipeline
from mgen.pipelines.resample import resample
from mgen.samplers import ParallelSampler, Step
from mgen.utils.errors import MgenError

R = TypeVar("R")
MOST_COUNTED = 10**9  # parameters of a model whose operations are counted, for which it is copied once
ALIKE = 1e-3  # vectors, of unit variance, that differ by less count as equal


class Stopped(Exception):
    """The user has stopped a run."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """What a run is asked for: a model by name, a class for each image (None: the model has none), a seed and a sampler."""

    model: str
    classes: tuple[int | None, ...]
    seed: int
    sampler: ParallelSampler


@dataclass(frozen=True, kw_only=True)
class Result:
    """A finished run.

    Args:
        tokens: ids (B, L) or vectors (B, L, C). images: uint8 (B, C, H, W). classes: of the images, which edits change.
        frames: of the steps, the last one with the finished images. seconds: without drawing. passes: forward passes of an image.
        cells: tokens of the grid.
        edited: images that were edited. before: the result before the last edit.
    """

    request: Request
    tokens: Tensor
    images: Tensor
    classes: tuple[int | None, ...]
    frames: list[Frame] = field(repr=False)
    seconds: float
    passes: int
    cells: int
    edited: frozenset[int] = frozenset()
    before: "Result | None" = field(default=None, repr=False)


def sample(pipe: MaskedPipeline, request: Request, stop: Event) -> Generator[Frame, None, Result]:
    """Sample the images of a request, frame by frame.

    Raises:
        MgenError: settings that do not fit. Stopped: `stop` was set.
    """
    plan = request.sampler.plan(pipe.transformer)
    size, frames = pipe.tokenizer.config.image_size, []
    steps = plan.count + (plan.first_stage.count if plan.first_stage else 0)
    every = thinned(steps, len(request.classes) * int(pipe.tokenizer.config.in_channels) * size**2)

    def work(callback: Callable[[Step], None]) -> Any:
        return pipe(
            request.classes,
            seed=request.seed,
            sampler=request.sampler,
            output_type="uint8",
            progress=False,
            callback=callback,
        )

    def show(step: Step) -> Frame | None:
        return frame(pipe, step) if step.index % every == 0 or step.index == step.count - 1 else None

    run = _streamed(work, show, stop)
    try:
        while True:
            if (shown := next(run)) is not None:
                frames.append(shown)
                yield shown
    except StopIteration as end:
        made, seconds = end.value
    images = made.images.cpu()
    return Result(
        request=request,
        tokens=made.tokens.cpu().clone(),
        images=images,
        classes=request.classes,
        frames=last_of(frames, images),
        seconds=seconds,
        passes=plan.forward_passes,
        cells=pipe.transformer.tokens.length - pipe.transformer.tokens.global_tokens,
    )


def edit(
    pipe: MaskedPipeline,
    result: Result,
    index: int,
    masked: list[int],
    *,
    seed: int,
    stop: Event,
    sampler: ParallelSampler | None = None,
    chosen: int | None = None,
) -> Generator[Frame, None, Result]:
    """Sample some tokens of image `index` again, frame by frame.

    Args:
        masked: their places in the grid, row by row. sampler: default: that of the result. chosen: another class; None: as it is.

    Raises:
        MgenError: a model that can't edit, no or unknown places. Stopped: `stop` was set.
    """
    grid = check_editable(pipe)
    count = grid[0] * grid[1]
    if any(type(place) is not int or not 0 <= place < count for place in masked):
        raise MgenError(f"the masked tokens must be numbers of places, 0 … {count - 1}")
    mask = torch.zeros(1, count, dtype=torch.bool)
    mask[0, masked] = True
    label = result.classes[index] if chosen is None else chosen
    tokens = result.tokens[index : index + 1]

    def work(callback: Callable[[Step], None]) -> tuple[Tensor, Tensor]:
        chosen = sampler or result.request.sampler
        return resample(pipe, tokens, mask, [label], seed=seed, indices=[index], sampler=chosen, callback=callback)

    (new, image), _ = yield from _streamed(work, lambda step: frame(pipe, step), stop)
    tokens, images = result.tokens.clone(), result.images.clone()
    tokens[index], images[index] = new[0].cpu(), image[0].cpu()
    last = list(result.frames[-1].pictures)
    last[index] = pictures(image.cpu())[0]
    return replace(
        result,
        tokens=tokens,
        images=images,
        classes=tuple(label if i == index else old for i, old in enumerate(result.classes)),
        frames=[*result.frames[:-1], replace(result.frames[-1], pictures=tuple(last))],
        edited=result.edited | {index},
        before=result,
    )


def differing(one: Result, two: Result) -> list[int]:
    """How many tokens of each image differ between two runs of the same model."""
    a, b = one.tokens, two.tokens
    apart = (a - b).abs() > ALIKE if a.is_floating_point() else a != b
    return [int(n) for n in apart.flatten(2).any(-1).sum(1)] if apart.ndim > 2 else [int(n) for n in apart.sum(1)]


def unchanged(old: Result, new: Result, index: int, masked: Collection[int]) -> int:
    """How many tokens of image `index` an edit left as they were, of those in the grid that were not masked."""
    same = old.tokens[index] == new.tokens[index]
    same = same if same.ndim == 1 else same.all(-1)
    cells = same[len(same) - new.cells :].tolist()  # global tokens come first
    return sum(cell for place, cell in enumerate(cells) if place not in masked)


class Costs:
    """TFLOPs of an image by model and settings, each counted once; None for models that are too large to count on the side."""

    def __init__(self) -> None:
        self._known: dict[tuple[str, str], float] = {}

    def known(self, request: Request) -> float | None:
        """Those of a request, if they have been counted."""
        return self._known.get(self._key(request))

    def _key(self, request: Request) -> tuple[str, str]:
        return request.model, json.dumps(request.sampler.settings, default=dict, sort_keys=True)

    def tflops(self, pipe: MaskedPipeline, request: Request) -> float | None:
        """Those of a request, which may take seconds."""
        if (key := self._key(request)) not in self._known:
            if sum(parameter.numel() for parameter in pipe.transformer.parameters()) > MOST_COUNTED:
                return None
            self._known[key] = count_run(pipe, request.sampler).total / 1e12
        return self._known[key]


def _streamed(
    work: Callable[[Callable[[Step], None]], R], show: Callable[[Step], Any], stop: Event
) -> Generator[Any, None, tuple[R, float]]:
    """Run `work` in a thread and yield what `show` makes of its steps; returns what `work` returns, and its seconds without `show`.

    Raises what `work` raises, and Stopped after the step in which `stop` was set, or at once if the caller goes away.
    """
    done: queue.SimpleQueue[tuple[str, Any]] = queue.SimpleQueue()
    drawing = 0.0

    def callback(step: Step) -> None:
        nonlocal drawing
        if stop.is_set():
            raise Stopped
        began = time.perf_counter()
        done.put(("step", show(step)))
        drawing += time.perf_counter() - began

    def run() -> None:
        began = time.perf_counter()
        try:
            made = work(callback)
            done.put(("end", (made, time.perf_counter() - began - drawing)))
        except BaseException as error:
            done.put(("error", error))

    Thread(target=run, daemon=True, name="mgen-demo-run").start()
    try:
        while True:
            kind, value = done.get()
            if kind == "error":
                raise value
            if kind == "end":
                return value  # type: ignore[no-any-return]
            yield value
    finally:
        stop.set()
