"""The original MaskGIT transformer, read from flax msgpack and from safetensors, with its loss, schedules and decoding."""

import re

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from mgen.convert import convert
from mgen.generators import Generator
from mgen.samplers import Noise, ParallelSampler, mask_fraction
from tests.golden import harness
from tests.golden.harness import Case

FORWARD = 5e-5  # stated: a float64 re-computation differs by 4.7e-6


def model(case: Case, file: str = "weights.safetensors") -> Generator:
    config = case.config
    return convert(
        "maskgit-jax",
        case.folder / file,
        tokens={"vocab_size": config["codebook_size"]},
        classes={"count": config["num_class"]},
    ).model


def split(case: Case, ids: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Class labels, tokens and known mask of official sequences [codes + label, tokens …] with -1 for unknown."""
    return ids[:, 0].long() - case.config["codebook_size"], ids[:, 1:].long().clamp(min=0), ids[:, 1:] >= 0


@torch.inference_mode()
def forward(case: Case) -> None:
    net = model(case)
    label, tokens, known = split(case, case.inputs["ids"])
    # Position -1 is the class token in front of the image: the official output has it, though nothing reads it.
    positions = torch.arange(-1, tokens.shape[1]).expand(len(tokens), -1)
    z = net.context(tokens, known, label, positions=positions)
    case.check("logits_full_vocab", net.head.logits(z, net.head.loss_rows), atol=FORWARD)


def loss(case: Case) -> None:
    """The published loss: per-sample weighted mean with label smoothing over the whole vocabulary, then batch mean."""
    forward_case = next(c for c in harness.read_cases("maskgit_jax") if c.name.startswith("forward"))
    net = model(case)
    label, tokens, known = split(case, forward_case.inputs["ids"])
    with torch.inference_mode():
        z = net.context(tokens, known, label)
        each, _ = net.head.loss(
            z, case.inputs["labels"].long(), label_smoothing=float(case.config.get("label_smoothing", 0.1))
        )
    weights = case.inputs["weights"].float()
    value = ((each * weights).sum(1) / (weights.sum(1) + 1e-8)).mean()
    case.check("loss_full_vocab", value.view(case.outputs["loss_full_vocab"].shape), atol=5e-5)


def schedule(case: Case) -> None:
    length = int(case.config.get("schedule_length", 256))
    for name in case.outputs:
        ours = {"uniform": "linear"}.get(name, name)
        values = [mask_fraction(ours, r, length=length, dtype=np.float32) for r in case.inputs["ratio"].tolist()]
        case.check(name, torch.tensor(values), atol=2e-6)


@torch.inference_mode()
def decode(case: Case) -> None:
    net = model(case)
    run = case.config.get("runs", {}).get(case.name, {})
    known_keys = {
        "num_iter",
        "choice_temperature",
        "start_iter",
        "editing",
        "mask_scheduling_method",
        "method",
        "schedule",
        "seed",
    }
    assert run.keys() <= known_keys, f"{case.name}: settings nobody reads: {sorted(run.keys() - known_keys)}"
    named = re.search(r"(uniform|cosine|log|exp|pow[\d.]+)", case.name)
    steps = run.get("num_iter") or case.number(r"T(\d+)") or case.outputs["final_seqs"].shape[1]
    start = run.get("start_iter", case.number(r"start(\d+)") or 0)
    method = (
        run.get("mask_scheduling_method")
        or run.get("method")
        or run.get("schedule")
        or (named[1] if named else "cosine")
    )
    hot = re.search(r"(?:temp|choice)([\d.]+)", case.name)
    choice = float(run.get("choice_temperature", hot[1] if hot else 4.5))
    label, tokens, known = split(case, case.inputs["input_tokens"])
    sampler = ParallelSampler(
        steps=steps,
        start=start,
        schedule="linear" if method == "uniform" else method,
        counts="maskgit-float32",
        confidence_temperature={"kind": "linear", "start": choice, "end": 0.0},
    )
    ahead = torch.zeros(start, *case.inputs["choice_gumbel"].shape[1:])  # the sets hold the steps that are run
    noise = Noise(
        tokens=torch.cat(
            [ahead.unsqueeze(-1).expand(-1, -1, -1, net.tokens.vocab_size), case.inputs["categorical_gumbel"].float()]
        )[:, :, 1:],
        confidence=torch.cat([ahead, case.inputs["choice_gumbel"]])[:, :, 1:],
        order=torch.zeros(len(label), net.tokens.length),
    )
    state = case.inputs["input_tokens"].long()
    before, drafts = [], [state] * start  # the official record of steps before the start is the input itself
    head = state[:, :1]
    for step in sampler(net, label, noise=noise, tokens=tokens, known=known):
        before.append(state)
        state = torch.cat([head, torch.where(step.known, step.tokens, -1)], dim=1)
        draft = step.draft
        if (
            not step.positions.numel()
        ):  # the last unknown token waits for the last step, and is drawn in each all the same
            z = net.context(step.tokens, step.known, label)
            drawn = (net.head.logits(z, net.tokens.vocab_size) + noise.tokens[step.index]).argmax(-1)
            draft = torch.where(step.known, step.tokens, drawn)
        drafts.append(torch.cat([head, draft], dim=1))
    case.check("ids_before_step", torch.stack(before))
    case.check("final_tokens", state[:, 1:])
    case.check("final_seqs", torch.stack(drafts, dim=1))


@harness.parametrize("maskgit_jax")
def test_jax_maskgit_gives_the_official_numbers(case: Case) -> None:
    harness.run(case, {"forward.*": forward, "loss.*": loss, "schedule.*": schedule, r".*T\d+.*": decode})


def test_flax_msgpack_holds_the_same_weights() -> None:
    case = harness.read_cases("maskgit_jax")[0]
    a, b = model(case).state_dict(), model(case, "checkpoint.msgpack").state_dict()
    assert a.keys() == b.keys()
    assert all(torch.equal(a[k], b[k]) for k in a)
    assert F.cosine_similarity(a["head.bias"], b["head.bias"], dim=0) > 0.999
