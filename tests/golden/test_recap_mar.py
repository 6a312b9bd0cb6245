"""ReCAP on MAR: a local pass against the keys and values of a full one, schedules, complete grouped sampling."""

import re
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mgen.generators.trunk import PassOptions
from mgen.nn import CachedStep
from mgen.samplers import Noise, ParallelSampler
from tests.golden import harness
from tests.golden.harness import Case
from tests.golden.test_mar import TRUNK, model, run, shuffled
from tests.official_settings import recap_mar_settings


@torch.inference_mode()
def local_step(case: Case) -> None:
    net = model(case)
    shared = [c for c in harness.read_cases(case.system) if c.name.startswith("local_step") and "tokens" in c.inputs]
    i = case.inputs if "tokens" in case.inputs else shared[0].inputs
    tokens, known, label, done = i["tokens"], i["mask"] == 0, i["labels"], int(i["s"])
    group = i["group"].nonzero()[:, 1].view(len(tokens), -1)
    case.check("group_positions", group)
    before = tokens
    tokens = tokens.scatter(1, group[:, :done, None].expand(-1, -1, tokens.shape[2]), i["decoded"])
    if not case.name.endswith("nocfg"):
        before, tokens, known, group = (
            before.repeat(2, 1, 1),
            tokens.repeat(2, 1, 1),
            known.repeat(2, 1),
            group.repeat(2, 1),
        )
        label = torch.cat([label, torch.full_like(label, net.null_class)])
    cache, trunk, classes = net.start(label), net.trunk, net.classes(label)
    options = PassOptions(cache=cache, keep=done)
    features, positions, readable = trunk.encode(net.rows(before, known), classes, options)
    z = trunk.decode(features, positions, readable, options)
    seen = features.shape[1]  # behind these is room for the group
    last = len(trunk.encoder_blocks) - 1, len(trunk.decoder_blocks) - 1
    for name, got in {
        "full_encoder_out": features,
        "full_z": z,
        "enc_k0": cache.layer("encoder.0").k[:, :, :seen],
        "enc_v_last": cache.layer(f"encoder.{last[0]}").v[:, :, :seen],
        "dec_k0": cache.layer("decoder.0").k,
        "dec_v_last": cache.layer(f"decoder.{last[1]}").v,
    }.items():
        case.check(name, got, atol=case.near(name, TRUNK))
    whole = (0, group.shape[1])
    step = CachedStep(group=group, done=done, fresh=whole, asked=whole, prefix="cached_buffer" not in case.name)
    out = trunk.encode_step(net.rows(tokens, known, sampling=True), classes, cache, step)
    case.check("local_encoder_out", out, atol=case.near("local_encoder_out", TRUNK))
    case.check("local_z", net.cached_step(tokens, label, cache, step), atol=case.near("local_z", TRUNK))


def arguments(case: Case, **more: Any) -> dict[str, Any]:
    own = {**case.config["sampling_cases"].get(case.name, {}), **more}
    fast = "true_fast" in case.name
    return {"num_sampling_steps": case.config["num_sampling_steps"], **own, "true_fast_ratio": fast}


@torch.inference_mode()
def sample(case: Case) -> None:
    shared = next(c for c in harness.read_cases(case.system) if c.name == "noise").inputs
    settings = recap_mar_settings(**arguments(case))
    chain = torch.cat([shared["init"].unsqueeze(0), shared["steps"][: settings["head"]["steps"] - 1]])
    noise = Noise(order=shared["orders"].argsort(1).float(), chain=chain)
    case.inputs.setdefault("labels", shared["labels"])
    run(case, settings, noise)


@torch.inference_mode()
def sample_seeded(case: Case) -> None:
    """The official run without injected noise: its order of draws, replayed into tables by position."""
    own = dict(case.config["seeded_case"])
    seed = own.pop("seed")
    settings = recap_mar_settings(**arguments(case, **own))
    net, b = model(case), len(case.outputs["latents"])
    length, channels = net.tokens.length, net.tokens.channels
    np.random.seed(seed)
    rng = torch.Generator().manual_seed(seed)
    orders = shuffled(b, length)
    sampler = ParallelSampler(**settings)
    heads = map(sampler.head, sampler.chain_steps(length)[0])
    full, local = (len(net.head.plan(head).chain.timesteps) for head in heads)
    chain = torch.zeros(full + 1, b, length, channels)
    left = [length, *sampler.remaining(unknown=length, length=length)]
    for group in sampler.groups():
        first, last = group[0], group[-1]
        members = orders[:, left[last + 1] : left[first]].sort(dim=1).values  # row by row
        for t in group:
            part = members[:, left[first] - left[t] : left[first] - left[t + 1]]
            here = torch.zeros(b, length, dtype=torch.bool).scatter_(1, part, True)
            n, steps = int(here.sum()), full if t == first else local
            chain[0][here] = torch.randn(n, channels, generator=rng)
            for j in range(steps):
                rows = 2 * n if own.get("cfg", 1.0) != 1.0 else n
                chain[j + 1][here] = torch.randn(rows, channels, generator=rng)[:n]
    shared = next(c for c in harness.read_cases(case.system) if c.name == "noise").inputs
    case.inputs["labels"] = shared["labels"]
    run(case, settings, Noise(order=orders.argsort(1).float(), chain=chain[:-1]))


def schedule(case: Case) -> None:
    for name, expected in case.outputs.items():
        m = re.fullmatch(r"L(\d+)_iter(\d+)_pre(\d+)_cache(\d+)_cfg([\d.]+)_(cfg|is_local|tokens)", name)
        assert m, f"schedule tensor {name} is of no known form"
        length, steps, first, local = (int(x) for x in m.groups()[:4])
        settings = recap_mar_settings(num_iter=steps, pre_full_iters=first, num_cache_iters=local, cfg=float(m[5]))
        sampler = ParallelSampler(**settings)
        got: Tensor
        if m[6] == "is_local":
            got = torch.tensor([t != group[0] for group in sampler.groups() for t in group])
        elif m[6] == "tokens":
            got = torch.tensor([length, *sampler.remaining(unknown=length, length=length)]).diff().neg()
        else:
            got = torch.tensor(sampler.values("guidance", length))
        case.check(name, got, atol=2e-6 * float(expected.abs().max()))


def noise_tables(case: Case) -> None:
    assert not case.outputs


@harness.parametrize("recap_mar")
def test_recap_mar_gives_the_official_numbers(case: Case) -> None:
    families = {
        "local_step.*": local_step,
        "sample_seeded.*": sample_seeded,
        "sample.*": sample,
        "schedule.*": schedule,
        "noise": noise_tables,
    }
    harness.run(case, families)
