"""Parallel decoding: the loop that every generator here is sampled with, on ids or on vectors.

Chang et al., "MaskGIT" (arXiv 2202.04200), algorithm of §3.2, and Li et al., "MAR" (arXiv 2406.11838), §3.3. The plan (plan.py) says
what a step computes, how many tokens it reveals, and its guidance and temperatures; the order (order.py) which positions come next;
forward.py calls the trunk, and the head, which draws a token from its context vector.

Notation: B images, L positions, M positions computed in a step, G positions of a group, D width of a context vector.
"""

import warnings
from collections.abc import Iterator

import torch
from torch import Tensor

from mgen.generators import Generator
from mgen.samplers import forward
from mgen.samplers.forward import Drawn, TokenDraw
from mgen.samplers.order import Strategy, next_of
from mgen.samplers.plan import Plan, PlannedStep
from mgen.samplers.state import State

EXPLODED = 50.0  # tokens have unit variance; an undertrained head magnifies its errors in the noisiest steps


def decode(
    generator: Generator, plan: Plan, order: Strategy, draw: TokenDraw, state: State, *, collect: int = 0
) -> Iterator[tuple[PlannedStep, State, Tensor, Drawn]]:
    """Run the steps of a plan; yields each with the state after it, the positions (B, M) that it drew, and what it drew there.

    `collect`: keep the context of every token at the step that revealed it, in `State.features`, of so many rows of a pass: B, or 2B
    with those behind the images' own.
    """
    nothing = state.known[:, :0].long(), Drawn(state.tokens[:, :0])
    group = torch.empty(0)  # the positions of the last full or lazy step's group
    context: forward.Context = group  # and of that step
    for step in plan.steps:
        positions, drawn = nothing
        if step.kind == "carry":
            forward.carry(generator, state, step)
        elif step.kind in ("full", "lazy"):
            candidates = order.candidates(state, step)
            positions = candidates[:, : step.count] if order.settled else candidates
            if step.kind == "full":
                z = context = forward.full(generator, state, step, positions, order.ahead(candidates, step))
            else:
                z = forward.lazy_step(generator, state, step, positions, group)
            drawn = draw(z, state, step, positions, preview=order.redraw)
            choice = order.choose(state, step, candidates, drawn)
            if choice.rows is not None:  # the first draws settled the positions; their tokens are drawn a second time
                z = forward.at_rows(z, choice.rows)
                drawn = draw(z, state, step, choice.positions)
        elif step.kind == "cached":
            choice = next_of(group, step)
            z = forward.cached_step(generator, state, step, group, context)
            drawn = draw(z, state, step, choice.positions)
        if step.takes:
            state = order.take_back(state, step)
        if step.kind in ("full", "lazy", "cached"):
            positions, group = choice.positions, choice.group
            state = order.reveal(state, step, choice, drawn)
            if collect:
                z = forward.at_positions(generator, z, positions, rows=collect)
                state = state.collect(positions, z, choice.shown)
        yield step, state, positions, drawn
        if step.ends_group:
            state.cache.free()
    # One text for all batches, so that a long run says it once.
    if state.tokens.is_floating_point() and not state.tokens.abs().amax().item() <= EXPLODED:
        warnings.warn(
            f"drawn tokens pass {EXPLODED:.0f}, where trained ones stay near 1: the head is undertrained or its chain too "
            "coarse; try head.clip=5, more head steps, or the weights without EMA",
            stacklevel=2,
        )
