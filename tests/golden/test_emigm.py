"""eMIGM: trunk, head, singlestep solver, masks and losses with gradients, complete sampling with random counts in a guidance interval."""

import json
import re
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from mgen.convert import convert
from mgen.convert.convert import Conversion
from mgen.convert.readers import emigm
from mgen.generators import Generator
from mgen.generators.presets import model_name
from mgen.heads import HeadNoise
from mgen.heads.chains import ChainSettings, Tables, cosine_betas
from mgen.heads.singlestep import SinglestepChain
from mgen.samplers import Noise, ParallelSampler, per_step
from mgen.samplers.binomial import reveal_shares
from mgen.samplers.schedule import masking_times
from mgen.tokenizers.kl import patchify, unpatchify
from mgen.training.config import MaskConfig, OptimConfig
from mgen.training.masking import (
    curve_fraction,
    curve_weight,
    known_from_count,
    mask_fraction_from_uniform,
    masked_counts,
    masking_time,
)
from mgen.training.trainer import decay_groups
from tests.golden import harness
from tests.golden.harness import Case
from tests.golden.test_mar import patches, recipe_weights
from tests.official_settings import EMIGM_CURVES, emigm_settings

# Ten times the reference's own fp32–fp64 difference: trunk 2.0e-6, head 1.5e-6 (time embedding 7.0e-6), loss 1.3e-5 per row.
TRUNK, HEAD, ROWS, GRADIENT = 2e-5, 1.5e-5, 1.3e-4, 1e-6
# The reference keeps its solver's schedule in fp32, which moves a token by up to 6.3e-4 and a context after it by 2.1e-4: ten times as
# much. The float64 outputs are those of the same code without that: compared as complete runs are everywhere.
COARSE, COARSE_CONTEXT = 6.3e-3, 2.1e-3


def conversion(case: Case, name: str = "emigm") -> Conversion:
    c = case.config
    return convert(
        name,
        case.folder / "weights.safetensors",
        tokens={"scale": c["vae_scale_factor"]},
        trunk={
            "encoder_heads": c["encoder_num_heads"],
            "decoder_heads": c["decoder_num_heads"],
            "attn_dropout": c["attn_dropout"],
            "dropout": c["proj_dropout"],
            "mlp_ratio": c["mlp_ratio"],
            "drop_masked": c["use_mae"],
        },
    )


def model(case: Case) -> Generator:
    net = conversion(case).model
    assert (net.classes.config.null_class == "mask") == case.config["use_unsup_cfg"]
    return net


def labels(case: Case, net: Generator, count: int) -> Tensor:
    return case.inputs.get("labels", torch.full((count,), net.null_class))


@torch.inference_mode()
def forward(case: Case) -> None:
    net = model(case)
    b = len(case.outputs["z"])
    tokens = case.inputs.get("tokens", torch.zeros(b, net.tokens.length, net.tokens.channels))
    known = case.inputs["mask"] == 0 if "mask" in case.inputs else torch.zeros(tokens.shape[:2], dtype=torch.bool)
    features, positions, readable = net.trunk.encode(net.rows(tokens, known), net.classes(labels(case, net, b)))
    case.check("encoder_out", features, atol=case.near("encoder_out", TRUNK))
    case.check("z", net.trunk.decode(features, positions, readable), atol=case.near("z", TRUNK))


@torch.inference_mode()
def head(case: Case) -> None:
    net, i = model(case).head, case.inputs
    case.check("out", net(i["x"], i["t"], i["c"]), atol=case.near("out", HEAD))
    case.check("time_embed", net.time(i["t"]), atol=case.near("time_embed", 7e-5))


@torch.inference_mode()
def head_loss(case: Case) -> None:
    net, i = model(case).head, case.inputs
    loss, mse = net.loss(i["c"], i["target"], noise=HeadNoise(i["t"], i["noise"]))
    signal, noise = (torch.from_numpy(x)[i["t"]].float().unsqueeze(-1) for x in (net.tables.signal, net.tables.noise))
    case.check("x_t", signal * i["target"] + noise * i["noise"], atol=2e-6)
    case.check("loss", loss, atol=case.near("loss", ROWS))
    case.check("mse", mse, atol=case.near("mse", 1.3e-5))
    case.check("vb", loss - mse, atol=case.near("vb", ROWS))


# -- schedules and masks -----------------------------------------------------------------------------------------------


def schedule_train(case: Case) -> None:
    for name, expected in case.outputs.items():
        m = re.fullmatch(r"(.+)_clamp([\d.]+)_(time|prob|weight)", name)
        assert m, f"schedule tensor {name} is of no known form"
        curve, p = EMIGM_CURVES[m[1]], masking_time(case.inputs["t"], float(m[2]))
        got = {"time": p, "prob": curve_fraction(curve, p), "weight": curve_weight(curve, p)}[m[3]]
        # Weights reach 1000 where the time is small: the reference's fp32 is off by 3.4e-6 of one.
        wide = 3.5e-5 if m[3] == "weight" else 1e-6
        case.check(name, got, atol=1e-6 if expected.abs().max() < 10 else 0, rtol=wide)


def schedule_reveal(case: Case) -> None:
    for name in case.outputs:
        if m := re.fullmatch(r"iter(\d+)_times", name):
            case.check(name, torch.tensor(masking_times(int(m[1]))), atol=4e-7)
            continue
        m = re.fullmatch(r"(.+)_iter(\d+)_reveal", name)
        assert m, f"schedule tensor {name} is of no known form"
        shares = reveal_shares(EMIGM_CURVES[m[1]], steps=int(m[2]), length=case.config["img_size"])
        case.check(name, torch.tensor(shares), atol=3.5e-6)


def schedule_interval(case: Case) -> None:
    for name in case.outputs:
        m = re.fullmatch(r"iter(\d+)_min([\d.]+)_max([\d.]+)_guided", name)
        assert m, f"schedule tensor {name} is of no known form"
        curve = {"kind": "constant", "end": 2.0, "interval": [float(m[2]), float(m[3])]}
        case.check(name, torch.tensor(per_step(curve, int(m[1]), name="guidance")) > 1)


def mask_config(strategy: str, clamp: float, weighted: bool = False) -> MaskConfig:
    own = {"distribution": "masked-diffusion", "curve": EMIGM_CURVES[strategy], "clamp": clamp}
    return MaskConfig(**own, weighted=weighted, per="batch", rounding="binomial")


def masked(config: MaskConfig, times: Tensor, numbers: Tensor, perm: Tensor) -> tuple[Tensor, Tensor]:
    """The uniform number (1,) of the time that counts, and the mask (B, L), from recorded draws."""
    draws: Iterator[tuple[Tensor, Tensor]] = iter([(t.view(1), u.view(1, -1)) for t, u in zip(times, numbers)])
    last: list[Tensor] = []

    def draw(count: int) -> tuple[Tensor, Tensor]:
        assert count == 1
        time, row = next(draws)
        last[:] = [row[0]]
        return time, row

    time, count = masked_counts(config, 1, draw)
    assert not list(draws), "the official code drew again, ours did not"
    ranks = last[0][perm].argsort(dim=1).argsort(dim=1)  # the smallest numbers are masked
    return time, ~known_from_count(count, ranks.argsort(dim=1).float())


def masking(case: Case) -> None:
    i = case.inputs
    strategy, clamp = case.config["masking_cases"][case.name]
    config = mask_config(strategy, clamp)
    time, mask = masked(config, i["t"], i["u"], i["perm"])
    case.check("mask", mask.float())
    case.check("count", mask.sum(1))
    case.check("time", masking_time(time, clamp).expand(len(mask)), atol=1e-6)
    case.check("prob", mask_fraction_from_uniform(time, config)[0], atol=1e-6)


def train(case: Case) -> None:
    made, i, c = conversion(case), case.inputs, case.config
    net = made.model
    strategy, clamp, weighted = c["train_cases"][case.name]
    config = mask_config(strategy, clamp, weighted)
    tokens = patchify(i["latents"], c["patch_size"])
    b, length, channels = tokens.shape
    time, mask = masked(config, i["time"].view(1), i["u"].view(1, -1), i["perm"])
    p = masking_time(time, clamp)
    case.check("mask", mask.float())
    case.check("masking_time", p[0], atol=1e-6)
    case.check("masking_prob", mask_fraction_from_uniform(time, config)[0], atol=1e-6)
    label = labels(case, net, b)
    if "drop_u" in i:
        label = torch.where(i["drop_u"] < c["label_drop_prob"], net.null_class, label)
    copies = c["diffusion_batch_mul"]
    t = i["t"].view(copies, b, length).transpose(0, 1)  # (B, K, L)
    noise = i["noise"].view(copies, b, length, channels).transpose(0, 1)
    losses, _ = net(tokens, label, ~mask, noise=HeadNoise(t, noise))
    loss = losses.mean() * (curve_weight(config.curve, p)[0].float() if weighted else 1.0)
    case.check("loss", loss.detach(), atol=6e-6, rtol=1e-6)
    loss.backward()
    parameters, norms = dict(net.named_parameters()), []
    names = {**made.mapped, "fake_latent": made.mapped["mask_token"]} if c["use_unsup_cfg"] else made.mapped
    for official in c["param_order"]:
        grad = parameters[names[official]].grad
        if not c["use_unsup_cfg"] and official in ("fake_latent", "class_emb.weight") and grad is not None:
            grad = grad[-1:] if official == "fake_latent" else grad[:-1]
        key = f"grad/{official}"
        if key in case.outputs:
            assert grad is not None
            largest = case.outputs[key].abs().max().item()
            case.check(key, grad.view(case.outputs[key].shape), atol=max(GRADIENT, 5e-6 * largest))
        norms.append(torch.tensor(0.0) if grad is None else grad.norm())
    expected, got = case.outputs["grad_norm_per_param"], torch.stack(norms)
    assert (got[expected < 0] == 0).all()
    case.check("grad_norm_per_param", torch.where(expected < 0, expected, got), atol=1e-5, rtol=2e-6)
    case.check("grad_norm_total", got.norm(), atol=1e-5, rtol=2e-6)


# -- the solver --------------------------------------------------------------------------------------------------------


def solver_tables(case: Case) -> None:
    tables = Tables(cosine_betas())
    full = SinglestepChain(ChainSettings(chain="dpm-solver++3s", steps=8), tables).full
    case.check("total", torch.tensor(full.total))
    case.check("log_alpha", torch.from_numpy(full.log_signal), atol=2.1e-6)
    case.check("half_log_snr_ends", torch.from_numpy(full.snr[[-1, 0]]), atol=2.6e-3)
    errors = {"outer_t": 4.3e-4, "t": 4.3e-4, "model_t": 0.43, "alpha": 4.7e-4, "sigma": 5.5e-4, "lambda": 2.6e-3}
    for name in case.outputs.keys() - {"total", "log_alpha", "half_log_snr_ends"}:
        m = re.fullmatch(r"(.+)_s(\d+)_o(\d)(_float64)?", name)
        assert m, f"table {name} is of no known form"
        chain = SinglestepChain(ChainSettings(chain=f"dpm-solver++{m[3]}s", steps=int(m[2])), tables)
        if m[1] == "orders":
            case.check(name, torch.tensor(chain.orders))
            continue
        signal, noise = chain.tables.signal[::-1], chain.tables.noise[::-1]
        got: dict[str, Any] = {
            "outer_t": chain.outer_times,
            "t": chain.times,
            "model_t": np.array(chain.timesteps),
            "alpha": signal,
            "sigma": noise,
            "lambda": np.log(signal / noise),
        }
        exact = m[4] is not None
        case.check(name, torch.from_numpy(got[m[1]].copy()), atol=1e-9 if exact else errors[m[1]])


@torch.inference_mode()
def solver(case: Case) -> None:
    calls, order, cfg = case.config["solver_cases"][case.name]
    net, i = model(case).head, case.inputs
    plan = net.plan({"chain": f"dpm-solver++{order}s", "steps": calls})
    chain = plan.chain
    assert isinstance(chain, SinglestepChain)
    after: list[Tensor] = []
    step = chain.step
    chain.step = lambda j, *args: after.append(step(j, *args)) or after[-1]  # type: ignore[func-returns-value,method-assign]
    z = torch.cat([i["c"], i["c_null"]]) if "c_null" in i else i["c"]
    n = len(i["c"])
    z = z.unflatten(0, (-1, 1, n)).flatten(0, 1)  # (1 or 2, n, D): one image of n positions
    drawn = net.sample(z, noise=i["noise"].view(1, 1, n, -1), plan=plan, guidance=cfg if "c_null" in i else None).tokens
    ends = np.cumsum(chain.orders) - 1
    got = {
        "sample": drawn[0],
        "x_after_step": torch.stack([after[j] for j in ends]),
        "model_t": torch.tensor(chain.timesteps, dtype=torch.float64),
    }
    for name, value in got.items():
        coarse, fine = (0.43, 1e-9) if name == "model_t" else (COARSE, near_float64(case, name, calls))
        case.check(name, value, atol=coarse)
        case.check(f"{name}_float64", value, atol=fine)


def near_float64(case: Case, name: str, calls: int) -> float:
    """Ten times the reference's error with a network in fp32: 1.1e-5 of states up to 4; one or two calls magnify that of the network
    160 times, by 1 / alpha of the noisiest place."""
    return case.near(f"{name}_float64", 160 * HEAD) if calls <= 2 else case.near(f"{name}_float64", 1.1e-4, 2.5e-5)


# -- complete runs -----------------------------------------------------------------------------------------------------


def reveals(uniform: Tensor, forced: Tensor, shares: list[float]) -> tuple[Tensor, Tensor]:
    """The order and the counts of a recorded run, as `Noise` has them: (B, L) and (T, B, L).

    Args:
        uniform: (T, B, L), compared with the shares at masked positions. forced: (T, B), positions that are revealed if none falls below.
    """
    steps, b, length = uniform.shape
    mask, order, numbers = (
        torch.ones(b, length, dtype=torch.bool),
        torch.zeros(b, length),
        torch.zeros(steps, b, length),
    )
    for step in range(steps):
        numbers[step] = uniform[step].gather(1, (~mask).to(torch.uint8).argsort(dim=1, stable=True))
        now = mask & (uniform[step] < shares[step])
        for row in (mask.any(1) & ~now.any(1)).nonzero()[:, 0].tolist():
            now[row, forced[step, row]] = True
        order[now], mask = -step, mask & ~now
    return order, numbers


@torch.inference_mode()
def run(case: Case, settings: dict[str, Any], noise: Noise, coarse: float | None = None) -> None:
    """A complete sampling run; everything the set recorded on the way is compared. `coarse`: the reference's error, if it has its own."""
    net = model(case)
    sampler, calls, length = ParallelSampler(**settings), settings["head"]["steps"], net.tokens.length
    solver = settings["head"]["chain"] != "ancestral"
    assert noise.counts is not None
    b = noise.counts.shape[1]
    contexts, guidance = [], []
    context, draw = net.context, net.head.sample

    def spied_context(*args: Any, **kwargs: Any) -> Tensor:
        contexts.append(context(*args, **kwargs))
        return contexts[-1]

    def spied_draw(*args: Any, **kwargs: Any) -> Any:
        guidance.append(kwargs["guidance"])
        return draw(*args, **kwargs)

    net.context, net.head.sample = spied_context, spied_draw  # type: ignore[method-assign]
    placed = torch.zeros(2, b, length, net.trunk.context_width)
    states, positions, before = [], [], torch.zeros(b, length, dtype=torch.bool)
    for step in sampler(net, labels(case, net, b), noise=noise):
        now = step.known & ~before
        if not now.any():  # the official loop has ended
            assert before.all()
            continue
        states.append(step.tokens.clone())
        positions.append(now)
        before = step.known.clone()
        for half, z in zip(placed, contexts[-1].split(b)):
            half.scatter_(1, step.positions.unsqueeze(-1).expand_as(z), z)
    side = net.tokens.side
    shown = torch.stack(positions)
    latents = unpatchify(states[-1], case.config["patch_size"], (side, side))
    wide = coarse or (COARSE if solver else case.near("latents", 1e-5, 1e-5))
    exact = case.near("latents_float64", 160 * HEAD if calls <= 2 else 1e-5, 1e-5)
    case.check("positions", shown.to(torch.uint8))
    case.check("counts", shown[:, 0].sum(1))
    case.check("latents", latents, atol=wide, rtol=1e-4)
    case.check("latents_float64", latents, atol=exact, rtol=1e-4)
    case.check("tokens_after_call", torch.stack(states), atol=wide, rtol=1e-4)
    case.check("z_at_position", placed, atol=COARSE_CONTEXT if solver else case.near("z_at_position", TRUNK))
    case.check("cfg_per_call", torch.tensor([1.0 if s is None else s for s in guidance]), atol=2e-6, rtol=1e-6)
    case.check("guided", torch.tensor([len(z) == 2 * b for z in contexts]))
    shares = reveal_shares(settings["schedule"], steps=settings["steps"], length=length)
    case.check("reveal", torch.tensor(shares[: len(states)]), atol=3.5e-6)


def sample(case: Case) -> None:
    i, settings = case.inputs, emigm_settings(**case.config["sampling_cases"][case.name])
    shared = next(c for c in harness.read_cases(case.system) if c.name == "noise").inputs
    draws = ChainSettings.of(settings["head"]).noise_count
    chain = torch.cat([shared["init"].unsqueeze(0), shared["steps"][: draws - 1]])
    steps, length = settings["steps"], i["uniform"].shape[-1]
    order, counts = reveals(i["uniform"], i["forced"], reveal_shares(settings["schedule"], steps=steps, length=length))
    filled = torch.cat([counts, torch.zeros(steps - len(counts), *counts.shape[1:])])  # of steps after the end
    run(case, settings, Noise(order=order, chain=chain, counts=filled))


def sample_seeded(case: Case) -> None:
    """The official run without injected noise: its order of draws, replayed into tables by position."""
    own = dict(case.config["seeded_case"])
    rng = torch.Generator().manual_seed(own.pop("seed"))
    settings = emigm_settings(**own)
    net, b = model(case), len(case.outputs["latents"])
    length, channels, steps = net.tokens.length, net.tokens.channels, settings["steps"]
    shares = reveal_shares(settings["schedule"], steps=steps, length=length)
    guided = [value != 1 for value in ParallelSampler(**settings).values("guidance", length)]
    draws = ChainSettings.of(settings["head"]).noise_count
    mask, chain = torch.ones(b, length, dtype=torch.bool), torch.zeros(draws + 1, b, length, channels)
    uniform, forced = torch.ones(steps, b, length), torch.full((steps, b), -1)
    for step in range(steps):
        if not mask.any():
            break
        uniform[step, 0] = torch.rand(length, generator=rng)
        for _ in range(b - 1):
            torch.randperm(length, generator=rng)
        first, left = mask[0].nonzero()[:, 0], int(mask[0].sum())
        for row in range(1, b):
            torch.randperm(length - left, generator=rng)
            own_places = mask[row].nonzero()[:, 0][torch.randperm(left, generator=rng)]
            uniform[step, row, own_places] = uniform[step, 0, first]
        now = mask & (uniform[step] < shares[step])
        if not now.any():
            for row in range(b):
                which = int(torch.randint(0, left, (1,), generator=rng)) if left > 1 else 0
                forced[step, row] = mask[row].nonzero()[which, 0]
                now[row, forced[step, row]] = True
        n = int(now.sum())
        chain[0][now] = torch.randn(n, channels, generator=rng)
        for j in range(draws if draws > 1 else 0):  # of both halves, after every step of the ancestral chain
            chain[j + 1][now] = torch.randn(2 * n if guided[step] else n, channels, generator=rng)[:n]
        mask &= ~now
    order, counts = reveals(uniform, forced, shares)
    # Ten times the error that the set states for this case, 1e-3: fp32 tables and a run that differs in its draws' last digits.
    run(case, settings, Noise(order=order, chain=chain[:draws], counts=counts), coarse=1e-2)


FAMILIES: dict[str, Callable[[Case], None]] = {
    "patchify.*": patches,
    "forward.*": forward,
    "head_loss.*": head_loss,
    "head.*": head,
    "schedule_train.*": schedule_train,
    "schedule_reveal.*": schedule_reveal,
    "schedule_interval.*": schedule_interval,
    "masking.*": masking,
    "train.*": train,
    "solver_tables.*": solver_tables,
    "solver_.*": solver,
    "noise": lambda case: None,  # tables that the sampling cases share; it has no outputs
    "sample_seeded.*": sample_seeded,
    "sample.*": sample,
}


@harness.parametrize("emigm")
def test_emigm_gives_the_official_numbers(case: Case) -> None:
    harness.run(case, FAMILIES)


def test_weight_decay_reaches_the_official_parameters() -> None:
    case = harness.read_cases("emigm")[0]
    made = conversion(case)
    names = {id(p): n for n, p in made.model.named_parameters()}
    groups = decay_groups(made.model, OptimConfig(weight_decay=0.02, decay_all=False, no_decay=("head.",)))
    decayed = {names[id(p)] for group in groups if group["weight_decay"] for p in group["params"]}
    mapped = {**made.mapped, "fake_latent": made.mapped.get("fake_latent", made.mapped["mask_token"])}
    assert decayed == {mapped[official] for official in case.config["weight_decay_params"]}


def test_of_the_tied_vector_the_mask_token_is_taken() -> None:
    case = harness.read_cases("emigm")[0]
    if not case.config["use_unsup_cfg"]:
        pytest.skip("null class and mask token of this set are two vectors")
    state = load_file(case.folder / "weights.safetensors")
    assert not torch.equal(state["fake_latent"], state["mask_token"])
    for name, key in (("emigm", "mask_token"), ("emigm-ema", "fake_latent")):
        made = conversion(case, name)
        net = made.model
        assert torch.equal(net.trunk.mask_token, state[key])
        assert torch.equal(
            net.classes(torch.tensor([net.null_class, 3])), torch.cat([state[key], state["class_emb.weight"][3:4]])
        )
        assert list(made.ignored) == [{"mask_token": "fake_latent", "fake_latent": "mask_token"}[key]]
        assert sum(p.numel() for p in net.parameters()) == sum(v.numel() for v in state.values()) - state[key].numel()


SIZES = {"xsmall": "xs", "small": "s", "base": "b", "large": "l", "huge": "h"}


def test_published_sizes_have_the_official_keys() -> None:
    for name, shapes in json.loads((harness.root() / "emigm" / "official_keys.json").read_text()).items():
        state = {key: torch.empty(shape, device="meta") for key, shape in shapes.items()}
        with torch.device("meta"):
            net = Generator.from_config(emigm.config(state))
        assert {k: tuple(v.shape) for k, v in emigm.rename(state).state.items()} == {
            k: tuple(v.shape) for k, v in net.state_dict().items()
        }
        _, size, side = name.split("_")
        assert model_name(emigm.config(state)) == f"emigm-{SIZES[size]}" + ("-512" if side == "512" else "")
        assert net.tokens.scale == {"256": 0.2325, "512": 0.3189}[side]
        assert emigm.notes(emigm.config(state)) == []


@pytest.mark.slow
@torch.inference_mode()
def test_emigm_full_size() -> None:
    folder = harness.root() / "emigm"
    config = json.loads((folder / "config.json").read_text())
    salt, name = config.get("full_size_recipe_salt", 0), config["full_size_model"]
    shapes = json.loads((folder / "official_keys.json").read_text())[name]
    state = {key: recipe_weights(key, shape, salt) for key, shape in shapes.items()}
    with torch.device("meta"):
        net = Generator.from_config(emigm.config(state))
    net.load_state_dict(emigm.rename(state).state, assign=True)
    net.eval()
    cases = load_file(folder / "full_size.safetensors")
    i = {k.rsplit("/", 1)[1]: v for k, v in cases.items() if "/in/" in k}
    out = {k.rsplit("/", 1)[1]: v for k, v in cases.items() if "/out/" in k}
    rows = net.rows(i["tokens"], i["mask"] == 0)
    features, positions, readable = net.trunk.encode(rows, net.classes(i["labels"]))
    z = net.trunk.decode(features, positions, readable)
    null = net.trunk(rows, net.classes(torch.full_like(i["labels"], net.null_class)))
    assert (features[:, ::8, ::8] - out["encoder_out_slice"]).abs().max() < 2e-5
    assert (z[:, ::8, ::8] - out["z_slice"]).abs().max() < 2e-5
    assert (null[:, ::8, ::8] - out["z_null_slice"]).abs().max() < 2e-5
    c = z[0, i["order"][:16]]
    assert (net.head(i["head_x"], i["head_t"], c) - out["head_out"]).abs().max() < 4e-5
    loss, _ = net.head.loss(c, i["head_target"], noise=HeadNoise(i["head_loss_t"], i["head_noise"]))
    assert torch.allclose(loss, out["head_loss"], atol=7.9e-3, rtol=1e-6)
