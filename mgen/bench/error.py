"""What a run in bf16 or fp16 changes: the context and the logits of one pass, and the tokens of a whole run with the same noise."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mgen.bench.benchmark import make_noise, run_batch
from mgen.bench.proxy import AnyGenerator, proxy
from mgen.generators.cascade import Cascade
from mgen.generators.generator import Generator
from mgen.heads import CategoricalHead, ChannelHead
from mgen.nn import take
from mgen.nn.precision import computing
from mgen.samplers import ParallelSampler
from mgen.utils.modeling import DTYPES


@dataclass(frozen=True, kw_only=True)
class RunError:
    """Differences to fp32; None where a generator has no such part.

    Args:
        context, logits: of the pass halfway through the run in fp32, root mean square over that of the values.
        likeliest: share of the positions of that pass whose likeliest id is the same.
        equal: share of the ids of whole runs that are the same. vectors: of whole runs of vectors, as `logits`.
    """

    context: float | None
    logits: float | None
    likeliest: float | None
    equal: float | None
    vectors: float | None


@torch.inference_mode()
def run_error(generator: AnyGenerator, sampler: ParallelSampler, *, batch_size: int, dtype: str) -> RunError:
    """Compare a batch in `dtype` with the same one in fp32."""
    calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
    starts: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
    watched = generator
    if isinstance(generator, Generator):
        watched = proxy(generator, context=_noted(generator.context, calls), start=_noted(generator.start, starts))
    noise = make_noise(generator, sampler, batch_size)
    exact, rough = (run_batch(net, sampler, noise, name) for net, name in ((watched, "fp32"), (generator, dtype)))
    ids = not exact.is_floating_point()
    equal, vectors = ((exact == rough).float().mean().item(), None) if ids else (None, relative(rough, exact))
    if isinstance(generator, Cascade) or not calls:
        return RunError(context=None, logits=None, likeliest=None, equal=equal, vectors=vectors)
    (args, options), (start_args, start_options) = calls[len(calls) // 2], starts[-1]
    asked = {key: value for key, value in options.items() if key in ("positions", "visible")}
    found = []
    for name in ("fp32", dtype):
        with computing(generator, DTYPES[name], generator.device):
            cache = generator.start(*start_args, **start_options)
            z = generator.context(*args, **asked, cache=cache)
            found.append((z, _logits(generator, z, exact, asked.get("positions"))))
    (z, logits), (rough_z, rough_logits) = found
    answer, likeliest = None, None
    if logits is not None and rough_logits is not None:
        answer = relative(rough_logits, logits)
        likeliest = (rough_logits.argmax(-1) == logits.argmax(-1)).float().mean().item()
    return RunError(
        context=relative(rough_z, z),
        logits=answer,
        likeliest=likeliest,
        equal=equal,
        vectors=vectors,
    )


def relative(rough: Tensor, exact: Tensor) -> float:
    """Root mean square of the difference over that of the values."""
    difference = rough.double() - exact.double()
    return (difference.square().mean() / exact.double().square().mean()).sqrt().item()


def _noted(function: Callable[..., Any], calls: list[tuple[tuple[Any, ...], dict[str, Any]]]) -> Callable[..., Any]:
    """The function, which notes a copy of its arguments; the cache is passed on alone."""

    def call(*args: Any, **options: Any) -> Any:
        kept = {key: value for key, value in options.items() if key != "cache"}
        calls.append((tuple(x.clone() if isinstance(x, Tensor) else x for x in args), kept))
        return function(*args, **options)

    return call


def _logits(generator: Generator, z: Tensor, tokens: Tensor, positions: Tensor | None) -> Tensor | None:
    """Of context z (R, M, D) at positions (R, M), None of heads without logits; of channels given the ids (B, L, C) of the run."""
    head = generator.head
    if isinstance(head, CategoricalHead):
        return head.logits(z).float()
    if isinstance(head, ChannelHead) and positions is not None:
        return head.forced(z, take(tokens.repeat(-(-len(z) // len(tokens)), 1, 1)[: len(z)], positions), sampling=True)
    return None


def error_lines(error: RunError, dtype: str) -> list[str]:
    """For a person."""
    parts = [
        f"{name} {value:.2%}"
        for name, value in (("context", error.context), ("logits", error.logits))
        if value is not None
    ]
    if error.likeliest is not None:
        parts.append(f"same likeliest id {error.likeliest:.1%}")
    run = f"{error.equal:.1%} of the ids are equal" if error.equal is not None else f"{error.vectors or 0:.2%}"
    title = f"error of {dtype}, one pass"
    return [*([f"{title:<33}{', '.join(parts)}"] if parts else []), f"{f'error of {dtype}, whole run':<33}{run}"]
