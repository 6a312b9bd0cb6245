"""Halton-MaskGIT's confidence sampler, step by step as its paper's code has it: known tokens are drawn again in every step."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from mgen.samplers import Noise, ParallelSampler
from mgen.samplers.order import OrderSettings
from mgen.utils.errors import MgenError
from tests.helpers import tiny_net
from tests.official_settings import confidence_settings

LENGTH, VOCAB, CLASSES = 16, 16, 3


def gumbel(*shape: int, seed: int) -> Tensor:
    uniform = torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return -torch.log(-torch.log(uniform)).float()


def plainly(
    net: Any, labels: Tensor, tokens: Tensor, ranking: Tensor, *, curve: str, randomize: str, **given: float
) -> list[Tensor]:
    """The ids (B, L) after every step, VOCAB where a mask is left. tokens: (T, B, L, V + 1), ranking: (T, B, L), Gumbel numbers."""
    steps, (b, length) = len(tokens), ranking.shape[1:]
    r = torch.linspace(0, 1, steps).double().numpy()
    code, states = torch.full((b, length), VOCAB), []
    for i in range(steps):
        known = code != VOCAB
        rows = (code.repeat(2, 1), known.repeat(2, 1), torch.cat([labels, torch.full_like(labels, net.null_class)]))
        conditional, null = net.head.logits(net.context(*rows), VOCAB + 1).chunk(2)
        w = given["w"] * i / (steps - 1)
        log_probs = (((1 + w) * conditional - w * null) * given["sm_temp"]).log_softmax(-1)
        picks = (log_probs + tokens[i]).argmax(-1)
        score = log_probs.gather(-1, picks.unsqueeze(-1)).squeeze(-1)
        if randomize == "linear":
            score = score + given["r_temp"] * (1 - i / (steps - 1)) * ranking[i]
        elif randomize == "random" or (randomize == "warm_up" and i < 2):
            score = ranking[i]
        share = {"linear": r[i], "root": math.sqrt(r[i]), "square": r[i] ** 2}[curve]
        shown = min(length, max(i + 1, int(length * share)))
        score = score.masked_fill(known, torch.inf)
        least = score.sort(dim=1, descending=True).values[:, shown - 1 : shown]
        code = torch.where(score >= least, picks, code)
        states.append(code.clone())
    return states


@pytest.mark.parametrize("randomize", ["linear", "random", "warm_up", "none"])
@pytest.mark.parametrize(("steps", "curve"), [(6, "linear"), (7, "square"), (11, "root"), (15, "root")])
def test_every_step_is_that_of_a_plain_loop(steps: int, curve: str, randomize: str) -> None:
    net = tiny_net("adaln")
    for parameter in net.parameters():  # so that ids depend on their neighbors
        torch.nn.init.normal_(parameter, std=0.3, generator=torch.Generator().manual_seed(parameter.numel()))
    settings: dict[str, Any] = dict(w=2.0, sm_temp=0.7, r_temp=4.5)
    labels, tokens, ranking = (
        torch.tensor([0, 2]),
        gumbel(steps, 2, LENGTH, VOCAB + 1, seed=1),
        gumbel(steps, 2, LENGTH, seed=2),
    )
    sampler = ParallelSampler(**confidence_settings(step=steps, sched_mode=curve, randomize=randomize, **settings))
    noise = Noise(order=torch.zeros(2, LENGTH), tokens=tokens, confidence=ranking)
    with torch.no_grad():
        wanted = plainly(net, labels, tokens, ranking, curve=curve, randomize=randomize, **settings)
    for step, expected in zip(sampler(net, labels, noise=noise), wanted, strict=True):
        if step.index < steps - 1:
            assert torch.equal(torch.where(step.known, step.tokens, VOCAB), expected), step.index
    assert torch.equal(step.tokens, expected.clamp(max=VOCAB - 1))


def test_a_step_that_reveals_no_token_draws_the_known_ones_again() -> None:
    """Of 15 steps by the root, some have the count of the step before."""
    sampler = ParallelSampler(**confidence_settings(step=15, sched_mode="root"))
    plan = sampler.plan(tiny_net("adaln"))
    assert any(step.count == 0 for step in plan.steps) and {step.kind for step in plan.steps} == {"full"}


def test_a_first_step_that_reveals_no_token_computes_nothing() -> None:
    sampler = ParallelSampler(steps=16, order="remasking", counts="enat", schedule=[1.0] * 4 + [0.5] * 11)
    kinds = [step.kind for step in sampler.plan(tiny_net("adaln")).steps]
    assert kinds == ["none"] * 4 + ["full"] * 12


def test_random_steps_are_of_order_remasking() -> None:
    assert OrderSettings.of({"name": "remasking", "random_steps": 2}).random_steps == 2
    with pytest.raises(MgenError, match="random_steps is 2 with confidence: it is for remasking only"):
        ParallelSampler(order={"name": "confidence", "random_steps": 2})
    with pytest.raises(MgenError, match="random_steps"):
        ParallelSampler(order={"name": "remasking", "random_steps": -1})
