"""TokenBridge: trunk on quantised tokens, head in its training and sampling forms, loss with gradients, complete runs."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from mgen.convert import convert
from mgen.convert.convert import Conversion
from mgen.convert.readers import tokenbridge
from mgen.generators import Generator
from mgen.generators.presets import model_name
from mgen.nn.levels import dequantize, quantize
from mgen.samplers import Noise, ParallelSampler, per_step, remaining_counts
from mgen.tokenizers.kl import patchify, unpatchify
from mgen.utils.errors import MgenError
from tests.golden import harness, tokenbridge_tokens
from tests.golden.harness import Case
from tests.golden.test_mar import class_rows, shuffled
from tests.official_settings import tokenbridge_settings

# Ten times the reference's own fp32–fp64 difference: trunk 2.6e-6, logits 9.8e-6, log-probabilities 1.4e-5, gradients 4.8e-7.
TRUNK, LOGITS, LOG_PROBS, GRADIENT = 2.6e-5, 1e-4, 1.4e-4, 5e-6


def conversion(case: Case) -> Conversion:
    c = case.config
    return convert(
        "tokenbridge",
        case.folder / "weights.safetensors",
        tokens={
            "scale": c["vae_scale_factor"],
            "levels": {"low": c["quant_min"], "high": c["quant_max"], "span": c["std_range"]},
        },
        trunk={
            "encoder_heads": c["encoder_num_heads"],
            "decoder_heads": c["decoder_num_heads"],
            "attn_dropout": c["attn_dropout"],
            "dropout": c["proj_dropout"],
        },
        head={"order": tuple(c["channel_order"])},
    )


def model(case: Case) -> Generator:
    net = conversion(case).model
    assert net.head.config.heads == case.config["channel_heads"]
    assert net.head.config.mlp_ratio == net.trunk.config.mlp_ratio == case.config["mlp_ratio"]
    return net


def labels(case: Case, net: Generator, count: int) -> Tensor:
    return case.inputs.get("labels", torch.full((count,), net.null_class))


def span(net: Generator) -> dict[str, float]:
    return {name: getattr(net.tokens.levels, name) for name in ("low", "high", "span")}


def by_channel(net: Generator, ids: Tensor) -> Tensor:
    """Slots (…, C) put in the tokenizer's order of channels."""
    return ids[..., torch.tensor(net.head.order).argsort()]


def channels(net: Generator, values: Tensor) -> Tensor:
    """The same for noise (B, L, C, Q)."""
    return values[:, :, torch.tensor(net.head.order).argsort()]


def latents(net: Generator, ids: Tensor) -> Tensor:
    side = net.tokens.side
    return unpatchify(dequantize(ids, net.embedder.level_values, **span(net)), 1, (side, side))


@torch.inference_mode()
def eval_forward(case: Case) -> None:
    net, i = model(case), case.inputs
    ids, known = quantize(i["x"], net.embedder.level_values, **span(net)), i["mask"] == 0
    assert torch.allclose(dequantize(ids, net.embedder.level_values, **span(net)), i["x"], atol=5e-6)
    own = labels(case, net, len(ids))
    for suffix, label in (("", own), ("_uncond", torch.full_like(own, net.null_class))):
        features, positions, readable = net.trunk.encode(net.rows(ids, known), net.classes(label))
        case.check(f"encoder{suffix}", features, atol=case.near(f"encoder{suffix}", TRUNK))
        z = net.trunk.decode(features, positions, readable)
        case.check(f"decoder{suffix}", z, atol=case.near(f"decoder{suffix}", TRUNK))
        if not suffix and "targets_ar_order" in i:
            target = by_channel(net, i["targets_ar_order"])
            logits = net.head.forced(z[~known], target[~known])
            case.check("channel_logits", logits, atol=case.near("channel_logits", LOGITS))


@torch.inference_mode()
def sampler_logits(case: Case) -> None:
    net, i = model(case), case.inputs
    logits = net.head.forced(i["features"], by_channel(net, i["tokens_ar_order"]), sampling=True)
    case.check("log_probs", logits.log_softmax(-1), atol=case.near("log_probs", LOG_PROBS))


def train_loss(case: Case) -> None:
    made, i, c = conversion(case), case.inputs, case.config
    net = made.model
    net.train()
    ids = quantize(patchify(i["latents"], 1), net.embedder.level_values, **span(net))
    case.check("targets_ar_order", net.head.by_slot(ids))
    known, label = i["mask"] == 0, labels(case, net, len(ids))
    if "label_dropped" in i:
        label = torch.where(i["label_dropped"] > 0, net.null_class, label)
    loss = net(ids, label, known)[0].mean()
    case.check("loss", loss.detach(), atol=5e-6)
    loss.backward()
    with torch.no_grad():
        z = net.context(ids, known, label)
        case.check("decoder", z, atol=case.near("decoder", TRUNK))
        case.check("channel_logits", net.head.forced(z[~known], ids[~known]), atol=case.near("channel_logits", LOGITS))
    norms = torch.stack([gradient(made, name).norm() for name in c["grad_norm_names"]])
    case.check("grad_norm", norms, atol=GRADIENT, rtol=2e-6)
    for key in [key for key in case.outputs if key.startswith("grad_") and key != "grad_norm"]:
        grad = gradient(made, key.removeprefix("grad_"))
        case.check(key, grad.view(case.outputs[key].shape), atol=case.near(key, 1e-6, 1e-6))


def gradient(made: Conversion, official: str) -> Tensor:
    """Of an official parameter; a slot's own table or layer is a part of ours."""
    grad = made.model.get_parameter(made.mapped[official]).grad
    assert grad is not None, f"{official} has no gradient"
    grad = class_rows(official, grad)
    assert grad is not None
    if m := re.fullmatch(r"(?:token_embeddings|channel_heads)\.(\d+)\.\w+", official):
        return grad.split(made.config["tokens"]["vocab_size"])[int(m[1])]
    return grad


def run(case: Case, net: Generator, settings: dict[str, Any], noise: Noise) -> None:
    """A complete sampling run; everything the set recorded on the way is compared."""
    b, length = noise.order.shape
    sampler = ParallelSampler(**settings)
    seen: list[Tensor] = []
    net.head.cond.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))  # what the head is given
    at, features = torch.full((b, length), -1), torch.zeros(b, length, net.head.width)
    for step in sampler(net, labels(case, net, b), noise=noise):
        at.scatter_(1, step.positions, step.index)
        features.scatter_(
            1, step.positions.unsqueeze(-1).expand(-1, -1, features.shape[-1]), seen[-1].view(b, -1, features.shape[-1])
        )
    assert len(seen) == sampler.config.steps, "the head takes guided vectors once per step"
    case.check("tokens", step.tokens)
    case.check("latents", latents(net, step.tokens), atol=5e-6)
    case.check("predicted_at_step", at)
    case.check("guided_features", features, atol=case.near("guided_features", 3.3e-5, 1e-5))


def arguments(params: Tensor) -> dict[str, Any]:
    """Settings by the recorded arguments: steps and guidance, then, where recorded, temperature and whether guidance is constant."""
    steps, cfg, *more = (round(value, 6) for value in params.tolist())
    temperature, constant = [*more, *(1.0, 0.0)[len(more) :]]
    return tokenbridge_settings(
        num_iter=int(steps), cfg=cfg, cfg_schedule="constant" if constant else "linear", temperature=temperature
    )


@torch.inference_mode()
def sample(case: Case) -> None:
    net, i = model(case), case.inputs
    settings = arguments(i["params"])
    b, length = i["orders"].shape
    if "exp_noise" in i:
        gumbel = -channels(net, i["exp_noise"]).log()
    else:
        assert settings["temperature"] == 0, "no noise, yet not greedy"
        gumbel = torch.zeros(b, length, net.tokens.channels, net.tokens.vocab_size)
    # The official code decodes from the end of its permutation.
    run(case, net, settings, Noise(order=i["orders"].argsort(1).float(), tokens=gumbel.unsqueeze(0)))


@torch.inference_mode()
def sample_seeded(case: Case) -> None:
    """The official run without injected noise: its order of draws, replayed into tables by position."""
    net, seed, b = model(case), int(case.inputs["seed"]), len(case.outputs["latents"])
    length, count, levels = net.tokens.length, net.tokens.channels, net.tokens.vocab_size
    settings = arguments(case.inputs.get("params", torch.tensor([3, 2.0])))
    np.random.seed(seed)
    orders = shuffled(b, length)
    rng = torch.Generator().manual_seed(seed)
    noise = torch.zeros(b, length, count, levels)
    left = [length, *ParallelSampler(**settings).remaining(unknown=length, length=length)]
    for many, few in zip(left, left[1:]):
        here = torch.zeros(b, length, dtype=torch.bool).scatter_(1, orders[:, few:many], True)
        # One multinomial draw per slot: argmax(p / q) with q exponential.
        drawn = [torch.empty(int(here.sum()), levels).exponential_(generator=rng) for _ in range(count)]
        noise[here] = torch.stack(drawn, dim=1)
    run(case, net, settings, Noise(order=orders.argsort(1).float(), tokens=-channels(net, noise).log().unsqueeze(0)))


def orders_seeded(case: Case) -> None:
    np.random.seed(int(case.inputs["seed"]))
    case.check("orders", shuffled(*case.outputs["orders"].shape))


def schedule(case: Case) -> None:
    length = 256
    for name, expected in case.outputs.items():
        m = re.fullmatch(r"(tokens|cfg)_iter(\d+)_cfg([\d.]+)", name)
        assert m, f"schedule tensor {name} is of no known form"
        steps = int(m[2])
        left = remaining_counts("cosine", steps=steps, unknown=length, length=length, counts="mar")
        if m[1] == "tokens":
            case.check(name, torch.tensor([length, *left]).diff().neg())
        else:
            curve = tokenbridge_settings(num_iter=steps, cfg=float(m[3]))["guidance"]
            values = per_step(curve, steps, unknown=left, length=length)
            case.check(name, torch.tensor(values), atol=2e-6 * float(expected.abs().max()))


FAMILIES = {
    **tokenbridge_tokens.FAMILIES,
    "eval_forward.*": eval_forward,
    "sampler_logits.*": sampler_logits,
    "train_loss.*": train_loss,
    "sample_seeded.*": sample_seeded,
    "sample_.*": sample,
    "orders_seeded.*": orders_seeded,
    "schedule.*": schedule,
}


@harness.parametrize("tokenbridge")
def test_tokenbridge_gives_the_official_numbers(case: Case) -> None:
    harness.run(case, FAMILIES)


def official_keys() -> dict[str, dict[str, list[int]]]:
    return json.loads((harness.root() / "tokenbridge" / "official_keys.json").read_text())


@pytest.mark.parametrize("name", sorted(official_keys()))
def test_published_sizes_have_the_official_keys(name: str) -> None:
    state = {key: torch.empty(shape, device="meta") for key, shape in official_keys()[name].items()}
    config = tokenbridge.config(state)
    with torch.device("meta"):
        net = Generator.from_config(config)
    renamed = tokenbridge.rename(state, config)
    assert {k: tuple(v.shape) for k, v in renamed.state.items()} == {
        k: tuple(v.shape) for k, v in net.state_dict().items()
    }
    assert renamed.names.keys() | renamed.ignored.keys() == state.keys()
    size = {"base": "b", "large": "l", "huge": "h"}[name.removeprefix("tokenbridge_")]
    assert model_name(config) == f"tokenbridge-{size}"


def official_file(folder: Path, **parts: dict[str, Tensor]) -> Path:
    """A training script's file: several state dicts and what else it leaves there."""
    path = folder / "checkpoint-last.pth"
    torch.save({**parts, "epoch": 3, "optimizer": {"state": {}}}, path)
    return path


def test_ema_weights_take_their_levels_from_the_others(tmp_path: Path) -> None:
    case = harness.read_cases("tokenbridge")[0]
    state = load_file(case.folder / "weights.safetensors")
    state["reconstruction_values"] = state["reconstruction_values"] + 1e-5
    ema = {name: value + 1 for name, value in state.items() if name not in tokenbridge.BUFFERS}
    path = official_file(tmp_path, model=state, model_ema=ema)
    c = case.config
    trunk = {"encoder_heads": c["encoder_num_heads"], "decoder_heads": c["decoder_num_heads"]}
    settings: dict[str, Any] = {"trunk": trunk, "tokens": {"levels": {"span": c["std_range"]}}}
    averaged, raw = convert("tokenbridge", path, **settings), convert("tokenbridge", path, raw=True, **settings)
    assert torch.equal(averaged.model.embedder.level_values, state["reconstruction_values"])
    assert torch.equal(averaged.model.head.cond.bias, raw.model.head.cond.bias + 1)
    assert not any("level" in note for note in averaged.notes)
    alone = convert("tokenbridge", official_file(tmp_path, model_ema=ema), **settings)
    assert torch.allclose(alone.model.embedder.level_values, state["reconstruction_values"], atol=2e-5)
    assert any("computed anew" in note for note in alone.notes)


def test_what_a_conversion_refuses(tmp_path: Path) -> None:
    case = harness.read_cases("tokenbridge")[0]
    state = load_file(case.folder / "weights.safetensors")
    values = state["reconstruction_values"]
    for changed, text in (
        ({"channel_mask": torch.zeros_like(state["channel_mask"])}, "not causal"),
        ({"reconstruction_values": values.flip(0)}, "ascending"),
        ({"reconstruction_values": values[:-1]}, "ascending numbers"),
        ({"unheard.of": values}, "not expected, e.g. unheard.of"),
    ):
        with pytest.raises(MgenError, match=text):
            convert("tokenbridge", official_file(tmp_path, model={**state, **changed}))
    stretched = official_file(tmp_path, model={**state, "reconstruction_values": 2 * values})
    assert any("taken from the file" in note for note in convert("tokenbridge", stretched).notes)
    del state["channel_heads.3.weight"]
    with pytest.raises(MgenError, match="of another shape"):
        convert("tokenbridge", official_file(tmp_path, model=state))
    with pytest.raises(MgenError, match="not of format 'tokenbridge': it lacks"):
        convert("tokenbridge", harness.root() / "mar" / "weights.safetensors")


def recipe_weights(key: str, shape: list[int], salt: int) -> Tensor:
    """Weights of the full-size check, made from the key's name as the set's README says."""
    w = harness.recipe_draw(key, shape, salt)
    if len(shape) == 1:
        return 1 + 0.1 * w if key.endswith("weight") and ("norm" in key or "_ln." in key) else 0.05 * w
    if key.endswith(".weight") and not re.match(r"class_emb|token_embeddings|task_emb", key):
        return w * (0.3 if "adaLN" in key else 1) / shape[1] ** 0.5
    return 0.5 * w


@pytest.mark.slow
@torch.inference_mode()
def test_tokenbridge_base_full_size() -> None:
    folder = harness.root() / "tokenbridge"
    salt = json.loads((folder / "config.json").read_text())["full_size_recipe_salt"]
    shapes = official_keys()["tokenbridge_base"]
    state = {key: recipe_weights(key, shape, salt) for key, shape in shapes.items() if key not in tokenbridge.BUFFERS}
    with torch.device("meta"):
        net = Generator.from_config(tokenbridge.config(state))
    net.load_state_dict(tokenbridge.rename(state, tokenbridge.config(state)).state, assign=True)
    net.eval()
    cases = load_file(folder / "full_size.safetensors")
    i = {k.rsplit("/", 1)[1]: v for k, v in cases.items() if "/in/" in k}
    out = {k.rsplit("/", 1)[1]: v for k, v in cases.items() if "/out/" in k}
    ids = quantize(patchify(i["latents"], 1), net.embedder.level_values, **span(net))
    assert torch.equal(ids, out["indices"])
    rows = net.rows(ids, i["mask"] == 0)
    features, positions, readable = net.trunk.encode(rows, net.classes(i["labels"]))
    z = net.trunk.decode(features, positions, readable)
    assert (features[:, ::8, ::8] - out["encoder_slice"]).abs().max() < 3e-5
    assert (z[:, ::8, ::8] - out["z_slice"]).abs().max() < 3e-5
    first = i["order"][:8].sort().values
    logits = net.head.forced(z[0, first], ids[0, first])
    assert (logits - out["channel_logits_first8"]).abs().max() < 3e-5
