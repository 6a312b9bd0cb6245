"""Hi-MAR: both stages of the trunk, both heads, training losses with gradients, and complete runs of pivots and tokens."""

import json
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from mgen.convert import convert, himar
from mgen.convert.convert import Conversion
from mgen.convert.himar import himar_settings
from mgen.data.pivots import shrink
from mgen.generators import HiMAR
from mgen.generators.himar import Stage
from mgen.samplers import Noise, ParallelSampler
from mgen.tokenizers.kl import patchify, unpatchify
from tests.golden import harness, himar_head
from tests.golden.harness import Case

# Ten times the reference's own fp32–fp64 difference: trunk 3.6e-6, MLP head 2.1e-6.
TRUNK, HEAD = 3e-5, 2e-5


def conversion(case: Case) -> Conversion:
    c = case.config
    return convert(
        "himar",
        case.folder / "weights.safetensors",
        heads=c["encoder_num_heads"],
        decoder_heads=c["decoder_num_heads"],
        head_heads=c["head"],
        scale=c["vae_scale_factor"],
        attn_dropout=c["attn_dropout"],
        dropout=c["proj_dropout"],
    )


def model(case: Case) -> HiMAR:
    net = conversion(case).model
    assert isinstance(net, HiMAR)
    return net


def complete(stage: Stage, features: Tensor, places: Tensor, readable: Tensor | None) -> Tensor:
    """Context (B, S + L, D) at the places of both stages; a run reads its own stage's only."""
    net = stage.trunk
    pivots, length = net.pivot_spec.length, net.spec.length
    first = 0 if stage.index == 0 else -pivots
    positions = torch.arange(first, first + pivots + length).expand(len(features), -1)
    table, stage.head_table = stage.head_table, torch.cat([net.head_position[-first:], net.head_position[:-first]])
    z = stage.decode(features, places, readable, positions)
    stage.head_table = table
    return z


@torch.inference_mode()
def eval_phase1(case: Case) -> None:
    net, i = model(case), case.inputs
    pivots = net.pivot_spec.length
    assert i["mask"][:, pivots:].all(), "a dense token is visible in the first stage"
    stage = net.first()
    features, places, readable = stage.encode(i["small_tokens"], i["mask"][:, :pivots] == 0, i["labels"])
    case.check("encoder", features, atol=case.near("encoder", TRUNK))
    z = complete(stage, features, places, readable)
    case.check("z", z, atol=case.near("z", TRUNK))
    own = stage.decode(features, places, readable)
    assert (own - z[:, :pivots]).abs().max() < 1e-5


@torch.inference_mode()
def eval_phase2(case: Case) -> None:
    net, i = model(case), case.inputs
    pivots = net.pivot_spec.length
    assert not i["mask"][:, :pivots].any(), "a pivot is masked in the second stage"
    for name, labels in (("z", i["labels"]), ("z_uncond", torch.full_like(i["labels"], net.null_class))):
        stage = net.second(i["small_z"])
        features, places, readable = stage.encode(i["dense_tokens"], i["mask"][:, pivots:] == 0, labels)
        if name == "z":
            case.check("encoder", features, atol=case.near("encoder", TRUNK))
        case.check(name, complete(stage, features, places, readable), atol=case.near(name, TRUNK))


@torch.inference_mode()
def mlp_head(case: Case) -> None:
    i = case.inputs
    case.check("out", model(case).pivot_head(i["x"], i["t"], i["z"]), atol=case.near("out", HEAD))


def downsample(case: Case) -> None:
    image = case.inputs["image"]
    case.check("half", shrink(image, image.shape[-1] // 2), atol=1e-6)


def train_loss(case: Case) -> None:
    made, i, c = conversion(case), case.inputs, case.config
    net = made.model.train()
    assert isinstance(net, HiMAR)
    b, pivots, channels = len(i["labels"]), net.pivot_spec.length, net.spec.channels
    masks = [i[f"mask_phase{p}"] == 0 for p in (1, 2)]
    labels = [torch.where(i[f"label_dropped_phase{p}"] > 0, net.null_class, i["labels"]) for p in (1, 2)]
    copies = len(i["t_dense"]) // b
    # Copies stand block after block there, image after image here.
    small = i["t_small"].view(copies, b, pivots), i["noise_small"].view(copies, b, pivots, channels)
    dense = i["t_dense"].view(copies, b), patchify(i["noise_dense"], 1).unflatten(0, (copies, b))
    out = net(
        patchify(i["latents"], 1),
        patchify(i["small_latents"], 1),
        labels[1],
        labels[0],
        masks[1][:, pivots:],
        masks[0][:, :pivots],
        i["pivot_dropped"] > 0,
        chain=dict(zip(("t", "noise"), (x.transpose(0, 1) for x in dense))),
        pivot_chain=dict(zip(("t", "noise"), (x.transpose(0, 1) for x in small))),
    )
    first = 2 * out["pivot_loss"].sum() / (~masks[0][:, :pivots]).sum()
    second = 0.75 * out["loss"].mean()
    total = 64 / 320 * first + 256 / 320 * second
    case.check("loss1_x2", first, atol=3e-6, rtol=3e-6)
    case.check("loss2_x0p75", second, atol=3e-7, rtol=1e-6)
    case.check("total", total, atol=1.8e-6)
    total.backward()
    parameters = dict(net.named_parameters())
    norms = [parameters[made.mapped[name]].grad.norm() for name in c["grad_norm_names"]]  # type: ignore[union-attr]
    case.check("grad_norm", torch.stack(norms), atol=case.near("grad_norm", 3.6e-6))
    grad = parameters["pivot_default"].grad
    assert grad is not None and net.fake_latent.grad is not None
    case.check("grad_cond_tokens", grad.unsqueeze(0), atol=case.near("grad_cond_tokens", 1e-8, 2e-5))
    case.check("grad_fake_latent", net.fake_latent.grad, atol=case.near("grad_fake_latent", 3.2e-8, 3e-5))
    with torch.no_grad():
        stage = net.first()
        z = stage.context(patchify(i["small_latents"], 1), masks[0][:, :pivots], labels[0])
        case.check("z_small", z, atol=case.near("z_small", TRUNK))
        shown = masks[0][:, :pivots] | (i["pivot_dropped"] > 0).unsqueeze(1)
        z = net.second(z, shown).context(patchify(i["latents"], 1), masks[1][:, pivots:], labels[1])
        case.check("z_dense", z, atol=case.near("z_dense", TRUNK))


def run(case: Case, settings: dict[str, Any], noise: Noise) -> None:
    """A complete run; everything the set recorded on the way is compared."""
    net, sampler = model(case), ParallelSampler(**settings)
    labels, b = case.inputs["labels"], len(case.inputs["labels"])
    features: list[Tensor] = []
    second = net.second

    def spy(z: Tensor, shown: Tensor | None) -> Stage:
        features.append(z)
        return second(z, shown)

    net.second = spy  # type: ignore[method-assign, assignment]
    # Without noise the untrained heads' numbers reach thousands, of which the reference's own fp32 run misses 1.6e-5: ten times that.
    share = 1e-5 if settings["temperature"] else 1.6e-4
    at = {True: torch.full((b, net.pivot_spec.length), -1), False: torch.full((b, net.spec.length), -1)}
    drafts, last = [], {}
    for step in sampler(net, labels, noise=noise, complete_first_stage=True):
        place = at[step.first_stage]
        place[step.known & (place < 0)] = step.index
        last[step.first_stage] = step.tokens.clone()
        if not step.first_stage:
            drafts.append(step.draft.clone())
    sides = net.config.pivot_side, net.config.side
    for name, tokens, side in (("small_latents", last[True], sides[0]), ("latents", last[False], sides[1])):
        case.check(name, unpatchify(tokens, 1, (side, side)), atol=case.near(name, 1e-5, share), rtol=1e-4)
    case.check("small_predicted_at_step", at[True])
    case.check("dense_predicted_at_iter", at[False])
    case.check("small_z", features[0], atol=case.near("small_z", 3.5e-5 if settings["temperature"] else 1.1e-4))
    if "tokens_after_iter" in case.outputs:
        got = torch.stack(drafts[:-1])
        case.check("tokens_after_iter", got, atol=case.near("tokens_after_iter", 1e-5, share), rtol=1e-4)
    if "dense_z_iter0" in case.outputs:
        twice = len(case.outputs["dense_z_iter0"]) == 2 * b
        both = torch.cat([labels, torch.full_like(labels, net.null_class)]) if twice else labels
        empty = torch.zeros(len(both), net.spec.length, dtype=torch.bool)
        stage = second(features[0])
        encoded = stage.encode(torch.zeros(len(both), *net.spec.shape), empty, both)
        case.check("dense_z_iter0", complete(stage, *encoded), atol=case.near("dense_z_iter0", 3.2e-5))


def arguments(case: Case) -> dict[str, Any]:
    own = next(s for s in case.config["sampling_cases"] if s["name"] == case.name)
    return dict(
        num_iter=own["num_iter"],
        cfg=own["cfg"],
        re_cfg=own["re_cfg"],
        cond_scale=case.config["cond_scale"],
        cfg_schedule=own["sched"],
        temperature=own["temp"],
        num_sampling_steps=own["steps_small"],
        dense_sampling_steps=own["steps_dense"],
    )


@torch.inference_mode()
def sample(case: Case) -> None:
    settings, i = himar_settings(**arguments(case)), case.inputs
    pivots = case.config["cond_scale"] ** 2
    counts = settings["first_stage"]["head"]["steps"], settings["head"]["steps"]
    b, steps = len(i["labels"]), settings["steps"]
    chain = torch.zeros(counts[0], *i["small_init_noise"].shape)
    chain[0] = i["small_init_noise"]
    start = patchify(i["dense_init_noise"].flatten(0, 1), 1).unflatten(0, (steps, b))
    maps = torch.zeros(steps, counts[1], *start.shape[1:])
    maps[:, 0] = start
    if "small_step_noise" in i:  # temperature 0 has none
        chain[1:] = i["small_step_noise"][:-1]
        more = patchify(i["dense_step_noise"].flatten(0, 2), 1).unflatten(0, i["dense_step_noise"].shape[:3])
        maps[:, 1:] = more[:, :-1]
    # The official code decodes from the end of its permutation.
    first = Noise(order=i["orders"][:, :pivots].argsort(1).float(), chain=chain)
    run(case, settings, Noise(order=i["orders"][:, pivots:].argsort(1).float(), maps=maps, first_stage=first))


@torch.inference_mode()
def sample_seeded(case: Case) -> None:
    """The official run without injected noise: its order of draws, replayed into tables by position."""
    # The public set says these in words only; params as in the other runs.
    steps, cfg, re_cfg, temperature, small, dense = case.inputs.get(
        "params", torch.tensor([2, 2, 2.5, 1, 5, 5])
    ).tolist()
    settings = himar_settings(
        num_iter=int(steps),
        cfg=round(cfg, 6),
        re_cfg=round(re_cfg, 6),
        cond_scale=case.config["cond_scale"],
        temperature=round(temperature, 6),
        num_sampling_steps=f"ddim{int(small)}",
        dense_sampling_steps=f"ddim{int(dense)}",
    )
    net, b = model(case), len(case.inputs["labels"])
    seed = int(case.inputs["seed"])
    np.random.seed(seed)
    torch.manual_seed(seed)
    pivots, length, channels = net.pivot_spec.length, net.spec.length, net.spec.channels
    orders = shuffled(b, pivots, length)
    count = settings["first_stage"]["head"]["steps"]
    chain = torch.zeros(count + 1, b, pivots, channels)
    sampler = ParallelSampler(**settings)
    assert sampler.first_stage is not None
    left = [pivots, *sampler.first_stage.remaining(unknown=pivots, length=pivots)]
    for many, few in zip(left, left[1:]):
        here = torch.zeros(b, pivots, dtype=torch.bool).scatter_(1, orders[:, few:many], True)
        n = int(here.sum())
        chain[0][here] = torch.randn(n, channels)
        for j in range(count):
            chain[j + 1][here] = torch.randn((2 if re_cfg != 1 else 1) * n, channels)[:n]
    side, count = net.config.side, settings["head"]["steps"]
    maps = torch.zeros(settings["steps"], count + 1, b, length, channels)
    for t in range(settings["steps"]):
        maps[t, 0] = patchify(torch.randn(b, channels, side, side), 1)
        for j in range(count):
            rows = 2 * b if cfg != 1 else b
            torch.randn(rows, channels, side, side)  # drawn there and never read
            maps[t, j + 1] = patchify(torch.randn(rows, channels, side, side)[:b], 1)
    first = Noise(order=orders[:, :pivots].argsort(1).float(), chain=chain[:-1])
    run(case, settings, Noise(order=orders[:, pivots:].argsort(1).float(), maps=maps[:, :-1], first_stage=first))


def shuffled(count: int, pivots: int, length: int) -> Tensor:
    """Permutations as numpy's global generator shuffles them: of each image's pivots, then of its tokens."""
    rows = []
    for _ in range(count):
        small, dense = np.arange(pivots), np.arange(pivots, pivots + length)
        np.random.shuffle(small)
        np.random.shuffle(dense)
        rows.append(torch.from_numpy(np.concatenate([small, dense])))
    return torch.stack(rows)


def orders_seeded(case: Case) -> None:
    np.random.seed(int(case.inputs["seed"]))
    pivots = case.config["cond_scale"] ** 2
    count, places = case.outputs["orders"].shape
    case.check("orders", shuffled(count, pivots, places - pivots))


def schedule(case: Case) -> None:
    for name in case.outputs:
        m = re.fullmatch(r"phase([12])_(tokens|cfg|still_masked)_iter(\d+)_cfg([\d.]+)_re([\d.]+)", name)
        assert m, f"schedule tensor {name} is of no known form"
        sampler = ParallelSampler(**himar_settings(num_iter=int(m[3]), cfg=float(m[4]), re_cfg=float(m[5])))
        length = 256
        if m[1] == "1":
            assert sampler.first_stage is not None
            sampler, length = sampler.first_stage, 64
        left = [length, *sampler.remaining(unknown=length, length=length)]
        if m[2] == "cfg":
            case.check(name, torch.tensor(sampler.values("guidance", length)), atol=2e-6)
        elif m[2] == "tokens":
            case.check(name, torch.tensor(left).diff().neg())
        else:
            case.check(name, torch.tensor(left[:-1]))


FAMILIES: dict[str, Callable[[Case], None]] = {
    **himar_head.FAMILIES,
    "eval_phase1.*": eval_phase1,
    "eval_phase2.*": eval_phase2,
    "mlp_head.*": mlp_head,
    "downsample.*": downsample,
    "train_loss.*": train_loss,
    "sample_seeded.*": sample_seeded,
    "sample_.*": sample,
    "orders_seeded.*": orders_seeded,
    "schedule.*": schedule,
}


@harness.parametrize("himar")
def test_himar_gives_the_official_numbers(case: Case) -> None:
    harness.run(case, FAMILIES)


def test_published_sizes_have_the_official_keys() -> None:
    for name, shapes in json.loads((harness.root() / "himar" / "official_keys.json").read_text()).items():
        state = {key: torch.empty(shape, device="meta") for key, shape in shapes.items()}
        with torch.device("meta"):
            net = HiMAR(**himar.config(state))
        assert {k: tuple(v.shape) for k, v in himar.rename(state).state.items()} == {
            k: tuple(v.shape) for k, v in net.state_dict().items()
        }
        table = {"himar_base": "B", "himar_large": "L", "himar_huge": "H"}[name]
        assert {k: net.config[k] for k in HiMAR.SIZES[table]} == HiMAR.SIZES[table]
        assert not himar.notes(himar.config(state))


def recipe_weights(key: str, shape: list[int], salt: int) -> Tensor:
    """Weights of the full-size check, made from the key's name as the set's README says."""
    w = harness.recipe_draw(key, shape, salt)
    if len(shape) == 1:
        return 1 + 0.1 * w if key.endswith("weight") and ("norm" in key or "_ln." in key) else 0.05 * w
    if key.endswith(".weight") and not any(part in key for part in ("class_emb", "token_embeddings", "task_emb")):
        return w * (0.3 if "adaLN" in key else 1) / shape[1] ** 0.5
    return 0.5 * w


@pytest.mark.slow
@torch.inference_mode()
def test_himar_base_full_size() -> None:
    folder = harness.root() / "himar"
    salt = json.loads((folder / "config.json").read_text()).get("full_size_recipe_salt", 0)
    shapes = json.loads((folder / "official_keys.json").read_text())["himar_base"]
    state = {key: recipe_weights(key, shape, salt) for key, shape in shapes.items()}
    with torch.device("meta"):
        net = HiMAR(**himar.config(state))
    renamed = himar.rename(state).state
    renamed["head.position"] = HiMAR(**{**himar.config(state), "encoder_depth": 1, "decoder_depth": 1}).head.position
    net.load_state_dict(renamed, assign=True)
    net.eval()
    cases = load_file(folder / "full_size.safetensors")
    i = {k.rsplit("/", 1)[1]: v for k, v in cases.items() if "/in/" in k}
    out = {k.rsplit("/", 1)[1]: v for k, v in cases.items() if "/out/" in k}
    pivots, side = net.pivot_spec.length, net.config.side
    first = net.first()
    z1 = complete(first, *first.encode(i["small_tokens"], i["mask_phase1"][:, :pivots] == 0, i["labels"]))
    assert (z1[:, ::8, ::8] - out["z1_slice"]).abs().max() < 2.9e-5
    second = net.second(z1[:, :pivots])
    z2 = complete(second, *second.encode(i["dense_tokens"], i["mask_phase2"][:, pivots:] == 0, i["labels"]))
    assert (z2[:, ::8, ::8] - out["z2_slice"]).abs().max() < 3e-5
    assert (net.pivot_head(i["mlp_x"], i["mlp_t"], z1[0, :8]) - out["mlp_head"]).abs().max() < 1.1e-5
    eps = net.head(patchify(i["dit_x"], 1), i["dit_t"], z2[:, pivots:])
    assert (unpatchify(eps, 1, (side, side)) - out["dit_head"]).abs().max() < 2.1e-5
