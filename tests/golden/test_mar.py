"""MAR: trunk, diffusion head, training loss with gradients, reverse chain and complete guided sampling."""

import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from mgen.convert import convert
from mgen.convert.convert import Conversion
from mgen.generators import Generator, LossOptions
from mgen.generators.presets import model_name
from mgen.heads import HeadNoise
from mgen.heads.chains import Chain, ChainSettings, Tables, cosine_betas, kept_timesteps
from mgen.samplers import Noise, ParallelSampler, per_step, remaining_counts
from mgen.tokenizers.kl import patchify, unpatchify
from mgen.training.config import MaskConfig, OptimConfig
from mgen.training.masking import known_from_uniform, mask_fraction_from_uniform
from mgen.training.trainer import decay_groups
from tests.golden import harness
from tests.golden.harness import Case
from tests.official_settings import mar_settings

# Ten times the reference's own fp32–fp64 difference: trunk 1.9e-6, head 2.0e-6 (time embedding 9.3e-6), loss 2.1e-5 per row.
TRUNK, HEAD, ROWS, GRADIENT = 2e-5, 2e-5, 2e-4, 1e-6


def conversion(case: Case) -> Conversion:
    c = case.config
    return convert(
        c.get("format", "mar"),
        case.folder / "weights.safetensors",
        tokens={"scale": c["vae_scale_factor"], **c.get("tokens", {})},
        trunk={
            "encoder_heads": c["encoder_num_heads"],
            "decoder_heads": c["decoder_num_heads"],
            "attn_dropout": c["attn_dropout"],
            "dropout": c["proj_dropout"],
            "mlp_ratio": c["mlp_ratio"],
            **c.get("trunk", {}),
        },
        head=c.get("head", {}),
    )


def model(case: Case) -> Generator:
    return conversion(case).model


def labels(case: Case, net: Generator, count: int) -> Tensor:
    return case.inputs.get("labels", torch.full((count,), net.null_class))


def patches(case: Case) -> None:
    patch, latents = case.config["patch_size"], case.inputs["latents"]
    tokens = patchify(latents, patch)
    case.check("tokens", tokens)
    grid = (latents.shape[2] // patch, latents.shape[3] // patch)
    case.check("latents_back", unpatchify(tokens, patch, grid))


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
    case.check("time_embed", net.time(i["t"]), atol=case.near("time_embed", 9.3e-5))


@torch.inference_mode()
def head_cfg(case: Case) -> None:
    net, i = model(case).head, case.inputs
    half = i["x"].chunk(2)[0]
    eps, v = net(torch.cat([half, half]), i["t"], i["c"]).chunk(2, dim=-1)
    conditional, null = eps.chunk(2)
    guided = torch.lerp(null, conditional, i["cfg_scale"].item())
    case.check("out", torch.cat([guided.repeat(2, 1), v], dim=-1), atol=case.near("out", 1e-5, 1e-5))


@torch.inference_mode()
def head_loss(case: Case) -> None:
    net, i = model(case).head, case.inputs
    loss, mse = net.loss(i["c"], i["target"], noise=HeadNoise(i["t"], i["noise"]))
    tables = net.tables
    signal, noise = (torch.from_numpy(table)[i["t"]].float().unsqueeze(-1) for table in (tables.signal, tables.noise))
    case.check("x_t", signal * i["target"] + noise * i["noise"], atol=2e-6)
    case.check("loss", loss, atol=case.near("loss", ROWS))
    case.check("mse", mse, atol=case.near("mse", 1.3e-5))
    case.check("vb", loss - mse, atol=case.near("vb", ROWS))


@torch.inference_mode()
def head_p_sample(case: Case) -> None:
    net, i = model(case).head, case.inputs
    settings = mar_settings(num_iter=1, num_sampling_steps=case.config["num_sampling_steps"])["head"]
    chain, temperature = Chain(ChainSettings.of(settings), net.tables), case.config.get("p_sample_temperature", 0.9)
    count = len(chain.timesteps)
    got: dict[str, list[Tensor]] = {name: [] for name in ("pred_xstart", "mean", "log_variance", "sample")}
    for k, x, c, noise in zip(i["step_index"].tolist(), i["x"], i["c"], i["noise"]):
        j = count - 1 - k
        eps, v = net(x[None], torch.tensor([chain.timesteps[j]]), c[None]).chunk(2, dim=-1)
        x0 = chain.tables.recip[k] * x - chain.tables.recipm1[k] * eps[0]
        mean, log_variance = chain.moments(k, x, x0, v[0])
        sample = chain.step(j, x[None], eps, v, noise[None] if k else None, temperature)[0]
        for name, value in zip(got, (x0, mean, log_variance, sample)):
            got[name].append(value)
    # The noisiest step alone: rounding of eps is multiplied by up to 2.0e4 in x0, and by what the mean takes of that.
    k = int(i["step_index"].max()) if "top" in case.name else 0
    magnified = 2e-6 * float(chain.tables.recipm1[k])
    least = {"pred_xstart": magnified, "mean": magnified * float(chain.tables.coef1[k])}
    least["sample"] = least["mean"]
    for name, values in got.items():
        atol = max(case.near(name, 1e-5, 1e-5), least.get(name, 0.0))
        case.check(name, torch.stack(values), atol=atol, rtol=1e-4)


DROPPED = ("attn.proj_drop", "mlp.drop1", "mlp.drop2")


def class_rows(official: str, grad: Tensor | None) -> Tensor | None:
    """The rows of the classes' table, or of the null class: official code has two parameters for them."""
    if grad is None or official not in ("class_emb.weight", "fake_latent"):
        return grad
    return grad[-1:] if official == "fake_latent" else grad[:-1]


def train(case: Case) -> None:
    made, i, c = conversion(case), case.inputs, case.config
    net = made.model
    tokens = i["tokens"] if "tokens" in i else patchify(i["latents"], c["patch_size"])
    b, length, channels = tokens.shape
    ratio = i["mask_ratio"].item()
    if i["mask_ratio"].dtype == torch.float32:  # 0.8 is not 0.80000001
        ratio = round(ratio, 7)
    fraction = torch.tensor([ratio], dtype=torch.float64)
    known = known_from_uniform(fraction, i["orders"].float(), "ceil")
    if "mask" in case.outputs:
        case.check("mask", (~known).float())
    label = labels(case, net, b)
    if "drop_u" in i:
        label = torch.where(i["drop_u"] < c["label_drop_prob"], net.null_class, label)
    copies = c["diffusion_batch_mul"]
    t = i["t"].view(copies, b, length).transpose(0, 1)  # (B, K, L)
    noise = i["noise"].view(copies, b, length, channels).transpose(0, 1)
    draws = HeadNoise(t, noise)
    everywhere = LossOptions(head_tokens="all")
    if c.get("dropout"):
        net.train()
        with dropped(case):  # ours drops nothing at rows that the last block leaves out
            loss = net(tokens, label, known, noise=draws, options=everywhere)[0].mean()
        return compare_training(case, made, loss)
    published = net(tokens, label, known, noise=draws, options=everywhere)[0].mean()
    loss = net(tokens, label, known, noise=draws)[0].mean()
    assert torch.isclose(
        loss, published, rtol=1e-6, atol=1e-6
    )  # the published detour over visible tokens changes nothing
    compare_training(case, made, loss)


@contextmanager
def dropped(case: Case) -> Iterator[None]:
    """Dropout that keeps what the set says, layer by layer in the order of the blocks."""
    names = [f"{half}_blocks.{n}.{part}" for half in ("encoder", "decoder") for n in range(1000) for part in DROPPED]
    kept = iter([case.inputs[f"keep/{name}"] for name in names if f"keep/{name}" in case.inputs])

    def keep(x: Tensor, p: float) -> Tensor:
        mask = next(kept)
        assert mask.shape == x.shape
        return mask

    def dropout(x: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
        return x * keep(x, p) / (1 - p) if p and training else x

    with mock.patch("mgen.nn.dropout.kept", keep), mock.patch.object(torch.nn.functional, "dropout", dropout):
        yield
    assert next(kept, None) is None


def compare_training(case: Case, made: Conversion, loss: Tensor) -> None:
    """The loss and the gradients of all parameters."""
    c = case.config
    case.check("loss", loss.detach(), atol=1.3e-6, rtol=1e-6)
    loss.backward()
    parameters = dict(made.model.named_parameters())
    norms = []
    for official in c["param_order"]:
        grad = class_rows(official, parameters[made.mapped[official]].grad)
        key = f"grad/{official}"
        if key in case.outputs:
            assert grad is not None
            case.check(
                key, grad.view(case.outputs[key].shape), atol=max(GRADIENT, 2e-6 * case.outputs[key].abs().max().item())
            )
        norms.append(torch.tensor(0.0) if grad is None else grad.norm())
    # A parameter outside the graph has no gradient there (-1); ours is always in the graph, with a gradient of zero.
    expected = case.outputs["grad_norm_per_param"]
    got = torch.stack(norms)
    assert (got[expected < 0] == 0).all()
    case.check("grad_norm_per_param", torch.where(expected < 0, expected, got), atol=2e-6, rtol=2e-6)
    case.check("grad_norm_total", got.norm(), atol=2e-6, rtol=2e-6)


def run(case: Case, settings: dict[str, Any], noise: Noise) -> None:
    """A complete sampling run; everything the set recorded on the way is compared."""
    net = model(case)
    b = noise.order.shape[0]
    label = labels(case, net, b)
    sampler = ParallelSampler(**settings)
    contexts: list[Tensor] = []
    is_local: list[bool] = []

    def spied(function: Callable[..., Tensor], local: bool) -> Callable[..., Tensor]:
        def spy(*args: Any, **kwargs: Any) -> Tensor:
            is_local.append(local)
            contexts.append(function(*args, **kwargs))
            return contexts[-1]

        return spy

    net.context, net.cached_step = spied(net.context, False), spied(net.cached_step, True)  # type: ignore[method-assign]
    placed = torch.zeros(2, b, net.tokens.length, net.trunk.context_width)
    states, positions, before = [], [], torch.zeros(b, net.tokens.length, dtype=torch.bool)
    for step in sampler(net, label, noise=noise):
        states.append(step.tokens.clone())
        positions.append((step.known & ~before).to(torch.uint8))
        before = step.known.clone()
        halves = contexts[-1].chunk(2) if len(contexts[-1]) == 2 * b else (contexts[-1],) * 2
        for half, z in zip(placed, halves):
            half.scatter_(1, step.positions.unsqueeze(-1).expand_as(z), z)
    outputs = case.outputs
    case.check("tokens", states[-1], atol=case.near("tokens", 1e-5, 1e-5), rtol=1e-4)
    if net.tokens.grid is not None:
        latents = unpatchify(states[-1], case.config["patch_size"], net.tokens.grid)
        case.check("latents", latents, atol=case.near("latents", 1e-5, 1e-5), rtol=1e-4)
    if "positions" in outputs:
        case.check("positions", torch.stack(positions))
    if "tokens_after_call" in outputs:
        case.check("tokens_after_call", torch.stack(states), atol=case.near("tokens_after_call", 1e-5, 1e-5), rtol=1e-4)
    if "z_at_position" in outputs:
        expected = outputs["z_at_position"]
        case.check("z_at_position", placed[: len(expected)], atol=case.near("z_at_position", TRUNK))
    if "cfg_per_call" in outputs:
        case.check("cfg_per_call", torch.tensor(sampler.values("guidance", net.tokens.length)), atol=2e-6, rtol=1e-6)
    if "diffusion_steps_per_call" in outputs:
        heads = map(sampler.head, sampler.chain_steps(net.tokens.length)[0])
        full, local = (len(net.head.plan(head).chain.timesteps) for head in heads)
        case.check("diffusion_steps_per_call", torch.tensor([local if flag else full for flag in is_local]))
    if "is_local" in outputs:
        case.check("is_local", torch.tensor(is_local))


def arguments(case: Case) -> dict[str, Any]:
    own = dict(case.config["sampling_cases"][case.name])
    return {"num_sampling_steps": case.config["num_sampling_steps"], **own}


@torch.inference_mode()
def sample(case: Case) -> None:
    shared = next(c for c in harness.read_cases(case.system) if c.name == "noise").inputs
    settings = mar_settings(**arguments(case))
    draws = ChainSettings.of(settings["head"]).noise_count
    chain = torch.cat([shared["init"].unsqueeze(0), shared["steps"][: draws - 1]])
    # The official code decodes from the end of its permutation.
    noise = Noise(order=shared["orders"].argsort(1).float(), chain=chain)
    run(case, settings, noise)


@torch.inference_mode()
def sample_seeded(case: Case) -> None:
    """The official run without injected noise: its order of draws, replayed into tables by position."""
    own = dict(case.config["seeded_case"])
    seed = own.pop("seed")
    settings = mar_settings(**{"num_sampling_steps": case.config["num_sampling_steps"], **own})
    net, b = model(case), len(case.outputs["latents"])
    length, channels, steps = net.tokens.length, net.tokens.channels, settings["head"]["steps"]
    np.random.seed(seed)
    rng = torch.Generator().manual_seed(seed)
    orders = shuffled(b, length)
    chain = torch.zeros(steps + 1, b, length, channels)
    left = [length, *ParallelSampler(**settings).remaining(unknown=length, length=length)]
    for many, few in zip(left, left[1:]):
        here = torch.zeros(b, length, dtype=torch.bool).scatter_(1, orders[:, few:many], True)
        n = int(here.sum())
        chain[0][here] = torch.randn(n, channels, generator=rng)
        for j in range(steps):
            rows = 2 * n if own.get("cfg", 1.0) != 1.0 else n
            chain[j + 1][here] = torch.randn(rows, channels, generator=rng)[:n]
    run(case, settings, Noise(order=orders.argsort(1).float(), chain=chain[:-1]))


def shuffled(count: int, length: int) -> Tensor:
    """Permutations as numpy's global generator shuffles them, one after the other."""
    orders = []
    for _ in range(count):
        order = np.arange(length)
        np.random.shuffle(order)
        orders.append(torch.from_numpy(order))
    return torch.stack(orders)


def orders_seeded(case: Case) -> None:
    np.random.seed(int(case.inputs["seed"]))
    case.check("orders", shuffled(*case.outputs["orders"].shape))


def mask_ratio(case: Case) -> None:
    config = MaskConfig(distribution="truncated-gaussian", low=case.config["mask_ratio_min"], rounding="ceil")
    ratio = mask_fraction_from_uniform(case.inputs["uniform"], config)
    case.check("ratio", ratio.float(), atol=1e-6)
    length = (case.config["img_size"] // case.config["vae_stride"] // case.config["patch_size"]) ** 2
    for name, tokens in (("num_masked", length), ("num_masked_of_256", 256)):
        known = known_from_uniform(ratio, torch.arange(tokens).expand(len(ratio), -1).float(), "ceil")
        case.check(name, (~known).sum(1))
    uniform = np.random.RandomState(int(case.inputs["seed"])).uniform(size=16)
    draws = mask_fraction_from_uniform(torch.from_numpy(uniform), config)
    case.check("rvs16_seeded", draws.float(), atol=1e-6)


def schedule(case: Case) -> None:
    for name, expected in case.outputs.items():
        m = re.fullmatch(r"L(\d+)_iter(\d+)_cfg([\d.]+)_(cfg|tokens)", name)
        assert m, f"schedule tensor {name} is of no known form"
        length, steps, cfg = int(m[1]), int(m[2]), float(m[3])
        left = remaining_counts("cosine", steps=steps, unknown=length, length=length, counts="mar")
        if m[4] == "tokens":
            case.check(name, torch.tensor([length, *left]).diff().neg())
        else:
            curve = mar_settings(num_iter=steps, cfg=cfg)["guidance"]
            values = per_step(curve, steps, unknown=left, length=length)
            case.check(name, torch.tensor(values), atol=2e-6 * float(expected.abs().max()))


TABLES: dict[str, Callable[[Tables], np.ndarray]] = {
    "alphas_cumprod": lambda t: t.alpha_bar,
    "alphas_cumprod_prev": lambda t: np.append(1.0, t.alpha_bar[:-1]),
    "alphas_cumprod_next": lambda t: np.append(t.alpha_bar[1:], 0.0),
    "betas": lambda t: t.betas,
    "log_one_minus_alphas_cumprod": lambda t: np.log(1 - t.alpha_bar),
    "posterior_log_variance_clipped": lambda t: t.log_low,
    "posterior_mean_coef1": lambda t: t.coef1,
    "posterior_mean_coef2": lambda t: t.coef2,
    "posterior_variance": lambda t: np.append(0.0, np.exp(t.log_low[1:])),
    "sqrt_alphas_cumprod": lambda t: t.signal,
    "sqrt_one_minus_alphas_cumprod": lambda t: t.noise,
    "sqrt_recip_alphas_cumprod": lambda t: t.recip,
    "sqrt_recipm1_alphas_cumprod": lambda t: t.recipm1,
}


def diffusion_tables(case: Case) -> None:
    for name, expected in case.outputs.items():
        kind, count = name.rsplit("_", 1)
        kept = kept_timesteps(int(count))
        if kind == "timesteps":
            case.check(name, torch.tensor(kept))
            continue
        assert kind in TABLES, f"table {name} is of no known kind"
        table = TABLES[kind](Tables(cosine_betas()).respace(kept))
        case.check(name, torch.from_numpy(table), rtol=1e-6, atol=1e-7 if expected.abs().max() < 100 else 0)


FAMILIES = {
    "patchify.*": patches,
    "forward.*": forward,
    "head_cfg.*": head_cfg,
    "head_loss.*": head_loss,
    "head_p_sample.*": head_p_sample,
    "head.*": head,
    "train.*": train,
    "noise": lambda case: None,  # tables that the sampling cases share; it has no outputs
    "sample_seeded.*": sample_seeded,
    "sample.*": sample,
    "orders_seeded.*": orders_seeded,
    "mask_ratio.*": mask_ratio,
    "schedule.*": schedule,
    "diffusion_tables.*": diffusion_tables,
}


@harness.parametrize("mar")
def test_mar_gives_the_official_numbers(case: Case) -> None:
    harness.run(case, FAMILIES)


def test_weight_decay_reaches_the_official_parameters() -> None:
    case = harness.read_cases("mar")[0]
    made = conversion(case)
    names = {id(p): n for n, p in made.model.named_parameters()}
    groups = decay_groups(made.model, OptimConfig(weight_decay=0.02, decay_all=False, no_decay=("head.",)))
    decayed = {names[id(p)] for group in groups if group["weight_decay"] for p in group["params"]}
    assert decayed == {made.mapped[official] for official in case.config["weight_decay_params"]}


def test_published_sizes_have_the_official_keys() -> None:
    from mgen.convert.readers import mar

    for name, shapes in json.loads((harness.root() / "mar" / "official_keys.json").read_text()).items():
        state = {key: torch.empty(shape, device="meta") for key, shape in shapes.items()}
        with torch.device("meta"):
            net = Generator.from_config(mar.config(state))
        assert {k: tuple(v.shape) for k, v in mar.rename(state).state.items()} == {
            k: tuple(v.shape) for k, v in net.state_dict().items()
        }
        assert model_name(mar.config(state)) == {"mar_base": "mar-b", "mar_large": "mar-l", "mar_huge": "mar-h"}[name]


def check_full_size(system: str, key: str, settings: Callable[[dict[str, Tensor]], Any]) -> None:
    """The published model `key` with weights by recipe; `settings`: official state → configuration."""
    from mgen.convert.readers import mar

    folder = harness.root() / system
    salt = json.loads((folder / "config.json").read_text()).get("full_size_recipe_salt", 0)
    shapes = json.loads((folder / "official_keys.json").read_text())[key]
    state = {key: recipe_weights(key, shape, salt) for key, shape in shapes.items()}
    with torch.device("meta"):
        net = Generator.from_config(settings(state))
    net.load_state_dict(mar.rename(state).state, assign=True)
    net.eval()
    cases = load_file(folder / "full_size.safetensors")
    i = {k.rsplit("/", 1)[1]: v for k, v in cases.items() if "/in/" in k}
    out = {k.rsplit("/", 1)[1]: v for k, v in cases.items() if "/out/" in k}
    known = i["mask"] == 0
    features, positions, readable = net.trunk.encode(net.rows(i["tokens"], known), net.classes(i["labels"]))
    z = net.trunk.decode(features, positions, readable)
    assert (features[:, ::8, ::8] - out["encoder_out_slice"]).abs().max() < 6e-5
    assert (z[:, ::8, ::8] - out["z_slice"]).abs().max() < 6e-5
    c = z[0, i["order"][:16]]
    assert (net.head(i["head_x"], i["head_t"], c) - out["head_out"]).abs().max() < 6e-5
    loss, _ = net.head.loss(c, i["head_target"], noise=HeadNoise(i["head_t"], i["head_noise"]))
    assert torch.allclose(loss, out["head_loss"], atol=2e-4, rtol=1e-5)


def recipe_weights(key: str, shape: list[int], salt: int) -> Tensor:
    """Weights of the full-size check, made from the key's name as the set's README says."""
    w = harness.recipe_draw(key, shape, salt)
    if len(shape) == 1:
        is_norm = any(part in key for part in ("norm", "z_proj_ln", "in_ln")) and key.endswith("weight")
        return 1 + 0.1 * w if is_norm else 0.05 * w
    if key.endswith(".weight") and key != "class_emb.weight":
        return w * (0.3 if "adaLN" in key else 1) / shape[1] ** 0.5
    return 0.5 * w


@pytest.mark.slow
@torch.inference_mode()
def test_mar_base_full_size() -> None:
    from mgen.convert.readers import mar

    check_full_size("mar", "mar_base", mar.config)
