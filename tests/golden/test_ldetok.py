"""l-DeTok's tokenizer: both transformers, their rotary map, the posterior, corruption, losses with gradients, statistics."""

import json
import math
import random
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from mgen.convert import convert
from mgen.convert.convert import Conversion
from mgen.nn.attention import gather_rows
from mgen.pipelines.pixels import to_uint8
from mgen.tokenizers import LDeTok
from mgen.tokenizers.corruption import Corruption, mask_ratio, visible_count
from mgen.tokenizers.kl import patchify, unpatchify
from mgen.tokenizers.rotary_vit import mix_pairs, mixing_table
from mgen.training.adversarial import Discriminator
from mgen.training.config import OptimConfig, TokenizerObjectiveConfig
from mgen.training.noise import AugmentationNoise, TokenizerNoise
from mgen.training.tokenizer_objective import TokenizerObjective
from mgen.training.trainer import decay_groups, make_schedule
from tests.golden import harness
from tests.golden.harness import Case
from tests.official_settings import ldetok_decay, ldetok_schedule

# Ten times the reference's own fp32–fp64 difference, relative to the largest value.
NETWORK, GRADIENT = 1.5e-5, 2e-5


def conversion(case: Case, **settings: Any) -> Conversion:
    c = case.config
    sizes = c["size_dict"]
    heads = {
        f"{half}_heads": sizes[c[f"vit_{name}_model_size"]]["heads"]
        for half, name in (("encoder", "enc"), ("decoder", "dec"))
    }
    return convert("ldetok", case.folder / "weights.safetensors", scale=c["scale_factor"], **heads, **settings)


def model(case: Case, **settings: Any) -> LDeTok:
    """The tokenizer, with the statistics of the case, or with 0 and 1."""
    channels = case.config["token_channels"]
    given = {"latents_mean": (0.0,) * channels, "latents_std": (1.0,) * channels}
    for ours, theirs in (("latents_mean", "mean"), ("latents_std", "std")):
        if theirs in case.inputs:
            given[ours] = tuple(case.inputs[theirs].expand(channels).tolist())
    made = conversion(case, **{**given, **settings}).model
    assert isinstance(made, LDeTok)
    return made


def near(case: Case, name: str, value: Tensor, share: float = NETWORK) -> None:
    """Compare within `share` of the largest value, at least of 1."""
    expected = case.outputs.get(name)
    if expected is not None:
        case.check(name, value, atol=share * max(1.0, expected.abs().max().item()))


def levels(case: Case, images: Tensor) -> None:
    """Truncated levels: equal but where 255 · x lies within rounding of a whole number."""
    if (expected := case.outputs.get("image_uint8")) is None:
        return
    got = to_uint8(images, quantization="truncate").int()
    differs = got != expected.int()
    exact = 255 * case.outputs["image01"]
    assert bool(((exact - exact.round()).abs()[differs] < 5e-3).all()) and (got - expected.int()).abs().max() <= 1
    case.compared["image_uint8"] = (float(differs.sum()), 0.0)


def visible(restore: Tensor, count: int) -> Tensor:
    """Positions (B, K) of the visible tokens in their shuffled order, from the official table of the way back."""
    return restore.argsort(dim=1)[:, :count]


def at_places(rows: Tensor, places: Tensor, length: int) -> Tensor:
    """Rows (B, K, c) of visible tokens as a map (B, c, L, 1), zero elsewhere."""
    whole = rows.new_zeros(len(rows), length, rows.shape[-1])
    return whole.scatter(1, places.unsqueeze(-1).expand_as(rows), rows)


def as_map(net: LDeTok, rows: Tensor) -> Tensor:
    return unpatchify(rows, 1, net.decoder.grid)


def rows_of(latents: Tensor) -> Tensor:
    return patchify(latents, 1)


@torch.inference_mode()
def encode(case: Case) -> None:
    net, x = model(case), case.inputs["x"]
    embedded = net.encoder.rows(x)
    near(case, "embed", embedded)
    near(case, "hidden", net.encoder.run(embedded))
    moments = net.moments(x)
    near(case, "moments", rows_of(moments))
    near(case, "moments_flip", rows_of(net.moments(x.flip(-1))))
    posterior = net.posterior(moments)
    for name in ("mean", "std", "logvar"):
        near(case, name, rows_of(getattr(posterior, name)))
    near(case, "kl", posterior.kl(), 5e-6)
    noise = as_map(net, case.inputs["sample_noise"])
    near(case, "sample", rows_of(posterior.mean + posterior.std * noise))
    near(case, "latents", as_map(net, net.encode(x)))
    near(case, "latents_sampled", as_map(net, net.encode(x, noise=noise)))


@torch.inference_mode()
def encode_masked(case: Case) -> None:
    net, x, noise = model(case), case.inputs["x"], case.inputs["mask_noise"]
    ratio = float(case.name.rsplit("_m", 1)[1])
    seen = mask_order(noise)[:, : visible_count(noise.shape[1], ratio)]
    check_places(case, noise, seen.shape[1])
    near(case, "visible", net.encoder.rows(x, seen))
    near(case, "moments", net.encoder(x, seen))


def mask_order(noise: Tensor) -> Tensor:
    return noise.argsort(dim=1)


def check_places(case: Case, noise: Tensor, count: int) -> None:
    restore = mask_order(noise).argsort(dim=1)
    case.check("ids_restore", restore)
    case.check("mask", (restore >= count).float())


@torch.inference_mode()
def encode_noised(case: Case) -> None:
    net, i = model(case), case.inputs
    mean = rows_of(net.posterior(net.moments(i["x"])).mean)
    near(case, "mean", mean)
    fixed = case.name.rsplit("level", 1)[1] if "level" in case.name else None
    level = i["noise_level"].flatten() if fixed is None else torch.full((len(mean),), float(fixed))
    made = Corruption(strength=case.config["gamma"], additive="additive" in case.name, level=level)
    near(case, "z", made.add_noise(mean, i["latent_noise"]))


@torch.inference_mode()
def decode(case: Case) -> None:
    net, z = model(case), case.inputs["z"]
    at = visible(case.inputs["ids_restore"], z.shape[1]) if "ids_restore" in case.inputs else None
    hidden = net.decoder.hidden(z, at)
    near(case, "hidden", hidden)
    near(case, "before_conv_out", net.decoder.patches(hidden))
    near(case, "image", net.decoder(z, at))


@torch.inference_mode()
def detokenize(case: Case) -> None:
    images = model(case).decode(rows_of(case.inputs["latents"]))
    near(case, "image01", (images.clamp(-1, 1) + 1) / 2)
    levels(case, images)


@torch.inference_mode()
def tokenize(case: Case) -> None:
    net, i = model(case), case.inputs
    near(case, "latents", as_map(net, net.encode(i["x"])))
    near(case, "latents_sampled", as_map(net, net.encode(i["x"], noise=as_map(net, i["sample_noise"]))))


@torch.inference_mode()
def reconstruct(case: Case) -> None:
    net, x = model(case), case.inputs["x"]
    images = net.decode(net.encode(x))
    unit = (images.clamp(-1, 1) + 1) / 2
    near(case, "image01", unit)
    levels(case, images)
    near(case, "psnr", -10 * torch.log10((unit - (x + 1) / 2).square().mean((1, 2, 3))))


def normalise(case: Case) -> None:
    scale = case.name.rsplit("scale", 1)[1] if "scale" in case.name else case.config["scale_factor"]
    net, z = model(case), case.inputs["z"]
    net.register_to_config(scale=float(scale))
    made = net.normalize(z)
    near(case, "normalised", made, 1e-6)
    near(case, "back", net.denormalize(made), 1e-6)
    near(case, "denormalised", net.denormalize(z), 1e-6)


def sample_from_moments(case: Case) -> None:
    net, i = model(case), case.inputs
    moments, noise = as_map(net, i["moments"]), as_map(net, i["sample_noise"])
    near(case, "latents", as_map(net, net.tokens(moments, noise)))


def stats(case: Case) -> None:
    net = model(case)
    batches = case.inputs["x"].split(case.config["stats_batches"])
    found = net.measure(batches)
    channels = case.config["token_channels"]
    with torch.inference_mode():
        moments = rows_of(torch.cat([net.moments(batch) for batch in batches])).double().flatten(0, 1)
    # Log-variances have statistics too, which nothing uses.
    for name, key, unused in (
        ("channel_mean", "latents_mean", moments.mean(0)),
        ("channel_std", "latents_std", moments.std(0, correction=0)),
    ):
        values = torch.tensor(found[key])
        near(case, name, torch.cat([values, unused[channels:].float()]), 1e-5)
    case.check("single_mean", moments[:, :channels].mean().float(), atol=1e-5)
    case.check("single_std", moments[:, :channels].std(correction=0).float(), atol=1e-5)


def posterior(case: Case) -> None:
    net, i = model(case), case.inputs
    lines = {name: i[name].transpose(1, 2).unsqueeze(-1) for name in i}  # (B, n, L, 1)
    own, other = net.posterior(lines["moments"]), net.posterior(lines["other_moments"])
    for name in ("mean", "std", "logvar", "var"):
        case.check(name, getattr(own, name).squeeze(-1).transpose(1, 2), rtol=1e-5, atol=1e-6)
    sample = own.mean + own.std * lines["sample_noise"]
    case.check("sample", sample.squeeze(-1).transpose(1, 2), rtol=1e-5, atol=1e-5)
    case.check("kl", own.kl(), rtol=1e-5)
    case.check("kl_to_other", own.kl(other), rtol=1e-5)
    case.check("nll", own.nll(lines["nll_at"]), rtol=1e-5)


def rope(case: Case) -> None:
    dim, height, width = (case.number(rf"_{letter}(\d+)") for letter in "dhw")
    assert dim and height and width
    table = mixing_table((height, width), dim)
    case.check("table", table.flatten(1), atol=4e-5)
    if "x" in case.inputs:
        near(case, "rotated", mix_pairs(case.inputs["x"], table), 3e-5)


def ratio(case: Case) -> None:
    most = float(case.name.rsplit("_m", 1)[1])
    if "seed" in case.inputs:
        draws = random.Random(int(case.inputs["seed"]))
        got = [mask_ratio(draws.random(), most) for _ in range(16)]
        case.check("ratio16", torch.tensor(got, dtype=torch.float64))
        return
    got = [mask_ratio(u, most) for u in case.inputs["u"].tolist()]
    case.check("ratio", torch.tensor(got, dtype=torch.float64))
    for name in case.outputs:
        if name.startswith("num_visible_of_"):
            case.check(name, torch.tensor([visible_count(int(name.rsplit("_", 1)[1]), r) for r in got]))


# -- training ----------------------------------------------------------------------------------------------------------


def discriminator(case: Case) -> Discriminator:
    own = case.config["discriminator"]
    made = Discriminator(
        in_channels=3, channels=own["ndf"], layers=own["n_layers"], loss="half-hinge", norm="batch", unit_range=True
    )
    state = load_file(case.folder / "weights_disc.safetensors")
    prefix = "discriminator.main."
    found = {f"net.{key[len(prefix) :]}": value for key, value in state.items() if key.startswith(prefix)}
    made.load_state_dict({k: v for k, v in made.state_dict().items() if k.endswith("num_batches_tracked")} | found)
    return made.train()


def corruption(case: Case, net: LDeTok, own: dict[str, Any]) -> tuple[Corruption, Tensor]:
    """The corruption of a step, and the posterior's noise (B, c, h, w)."""
    i, length = case.inputs, net.spec.length
    count = visible_count(length, mask_ratio(float(i["mask_u"]), own["mask_ratio"]))
    order = mask_order(i["mask_noise"])
    spread = {
        name: as_map(net, at_places(i[name], order[:, :count], length))
        for name in ("sample_noise", "latent_noise")
        if name in i
    }
    made = Corruption(
        strength=own["gamma"],
        additive=own["use_additive_noise"],
        level=i["noise_level"].flatten() if "noise_level" in i else None,
        noise=spread.get("latent_noise"),
        order=order,
        visible=count,
    )
    return made, spread["sample_noise"]


class Constant(torch.nn.Module):
    """In the place of the perceptual networks: a recorded number."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.value = value

    def forward(self, out: Tensor, images: Tensor) -> Tensor:
        return out.new_tensor(self.value)


def train(case: Case) -> None:
    from mgen.training.companions import Companions
    from mgen.training.objective import StepOptions

    c, i = case.config, case.inputs
    own = c["train_cases"][case.name]
    made = conversion(case)
    net = made.model
    assert isinstance(net, LDeTok)
    net.train()
    if own["train_decoder_only"]:
        net.encoder.requires_grad_(False)
    numbers = net.spec.length * c["token_channels"]
    drawn, sample_noise = corruption(case, net, own)
    seen = drawn.seen
    assert seen is not None
    with torch.no_grad():
        rows = net.encoder(i["x"], seen)
        posterior = net.posterior(rows.transpose(1, 2).unsqueeze(-1))
        z = posterior.mean + posterior.std * gather_rows(rows_of(sample_noise), seen).transpose(1, 2).unsqueeze(-1)
        near(case, "moments", rows)
        near(case, "z_sampled", rows_of(z))
        noise = None if drawn.noise is None else gather_rows(rows_of(drawn.noise), seen).transpose(1, 2).unsqueeze(-1)
        near(case, "z_noisy", rows_of(drawn.add_noise(z, noise)))
    check_places(case, i["mask_noise"], seen.shape[1])

    beside, active = discriminator(case), own["epoch"] >= own["discriminator_start_epoch"]
    config = TokenizerObjectiveConfig(
        kl=c["kl_weight"] * numbers,
        perceptual=float(own["perceptual_weight"]),
        adversarial=c["discriminator_weight"],
    )
    perceptual: Any = Constant(float(i["perceptual"]))
    objective = TokenizerObjective(net, config, Companions(perceptual=perceptual, discriminator=beside)).train()
    noise_of_step = TokenizerNoise(augmentation=AugmentationNoise(), posterior=sample_noise, corruption=drawn)
    step = objective({"image": i["x"]}, noise_of_step, StepOptions(adversarial=active))
    assert step.compared is not None
    out, logs = step.compared.fake, step.logs
    near(case, "reconstruction", out)
    case.check("reconstruction_loss", logs["l2"], atol=2e-6)
    case.check("kl_loss", config.kl * logs["kl"], atol=1e-9, rtol=1e-5)
    case.check("perceptual_loss", config.perceptual * logs.get("perceptual", torch.zeros(())), atol=1e-6)
    zero = torch.zeros(())
    case.check("gan_loss", logs.get("adversarial", zero), atol=5e-6)
    case.check("weighted_gan_loss", config.adversarial * logs.get("adversarial", zero), atol=1e-6)
    case.check("total_loss", step.loss.detach(), atol=5e-6)
    case.check("psnr", -10 * torch.log10(logs["l2"]), atol=1e-5)
    step.loss.backward()
    parameters = dict(net.named_parameters())
    gradients(case, "grad", {official: parameters[made.mapped[official]].grad for official in c["param_order"]})
    if active:
        discriminator_step(case, beside, i["x"], out)


def gradients(case: Case, prefix: str, found: dict[str, Tensor | None]) -> None:
    """Compare chosen gradients, the norms of all in their order (−1: none), and their total."""
    for official, grad in found.items():
        name = f"{prefix}/{official}"
        if (expected := case.outputs.get(name)) is not None:
            assert grad is not None
            atol = max(1e-7, GRADIENT * expected.abs().max().item())
            case.check(name, grad.view(expected.shape), atol=atol)
    norms = torch.stack([torch.tensor(-1.0) if grad is None else grad.norm() for grad in found.values()])
    case.check(f"{prefix}_norm_per_param", norms, atol=2e-5, rtol=1e-5)
    case.check(f"{prefix}_norm_total", norms.clamp(min=0).norm(), atol=1e-5, rtol=1e-5)


def discriminator_step(case: Case, beside: Discriminator, real: Tensor, fake: Tensor) -> None:
    beside.zero_grad()
    with torch.no_grad():  # batch statistics alike; the running ones are those of a copy
        copy = discriminator(case)
        case.check("disc_logits_real", copy.scores(real).mean(), atol=5e-6)
        case.check("disc_logits_fake", copy.scores(fake).mean(), atol=5e-6)
    loss = beside(real, fake)
    case.check("disc_loss", loss.detach(), atol=5e-6)
    loss.backward()
    own = dict(beside.named_parameters())
    found = {name: own[ours(name)].grad for name in case.config["disc_param_order"]}
    gradients(case, "disc_grad", found)
    state = beside.state_dict()
    for name in case.outputs:
        if name.startswith("disc_after/"):
            near(case, name, state[ours(name.removeprefix("disc_after/"))].float(), 3e-6)


def ours(name: str) -> str:
    return name.replace("discriminator.main.", "net.")


def rates(case: Case) -> None:
    own = case.config["lr_cases"][case.name]
    steps = 1000  # of an epoch
    optim = OptimConfig(**ldetok_schedule(**own, steps=steps))
    weight = torch.nn.Parameter(torch.zeros(()))
    schedule = make_schedule(optim, torch.optim.SGD([weight], lr=optim.lr), own["epochs"] * steps)
    (factor,) = schedule.lr_lambdas
    got = [optim.lr * factor(epoch * steps) for epoch in case.inputs["frac_epoch"].tolist()]
    case.check("lr", torch.tensor(got, dtype=torch.float64), atol=1e-12, rtol=1e-9)


FAMILIES = {
    "encode_masked.*": encode_masked,
    "encode_noised.*": encode_noised,
    "encode.*": encode,
    "decode.*": decode,
    "detokenize.*": detokenize,
    "tokenize.*": tokenize,
    "reconstruct.*": reconstruct,
    "normalise.*": normalise,
    "sample_from_moments.*": sample_from_moments,
    "stats.*": stats,
    "posterior.*": posterior,
    "rope.*": rope,
    "mask_ratio.*": ratio,
    "train.*": train,
    "lr_.*": rates,
}


@harness.parametrize("ldetok")
def test_ldetok_gives_the_official_numbers(case: Case) -> None:
    harness.run(case, FAMILIES)


def test_weight_decay_reaches_the_official_parameters() -> None:
    case = harness.read_cases("ldetok")[0]
    made = conversion(case)
    names = {id(p): n for n, p in made.model.named_parameters()}
    groups = decay_groups(made.model, OptimConfig(weight_decay=1e-4, **ldetok_decay("tokenizer")))
    decayed = {names[id(p)] for group in groups if group["weight_decay"] for p in group["params"]}
    assert decayed == {made.mapped[official] for official in case.config["weight_decay_params"]}


def test_sizes_have_the_official_keys() -> None:
    from mgen.convert.readers import ldetok

    parameters = {"BB": 171_712_628, "SS": 51_502_100, "LL": 606_641_972, "XLXL": 895_033_076}
    for name, shapes in json.loads((harness.root() / "ldetok" / "official_keys.json").read_text()).items():
        state = {key: torch.empty(shape, device="meta") for key, shape in shapes.items()}
        size = name.removeprefix("detok_")
        with torch.device("meta"):
            net, named = LDeTok(**ldetok.config(state)), LDeTok(**LDeTok.SIZES[size])
        own = {k: tuple(v.shape) for k, v in net.state_dict().items()}
        assert {k: tuple(v.shape) for k, v in ldetok.rename(state).state.items()} == own
        assert {k: net.config[k] for k in ldetok.config(state)} == {k: named.config[k] for k in ldetok.config(state)}
        assert sum(p.numel() for p in net.parameters()) == parameters[size]


@pytest.mark.slow
@torch.inference_mode()
def test_base_full_size() -> None:
    from mgen.convert.readers import ldetok

    folder = harness.root() / "ldetok"
    salt = json.loads((folder / "config.json").read_text()).get("full_size_recipe_salt", 0)
    shapes = json.loads((folder / "official_keys.json").read_text())["detok_BB"]
    state = {key: recipe_weights(key, shape, salt) for key, shape in shapes.items()}
    net = LDeTok(**ldetok.config(state)).eval()
    net.load_state_dict(ldetok.rename(state).state)

    def draw(name: str, *shape: int) -> Tensor:
        return harness.recipe_draw(f"full_size/{name}", list(shape), salt)

    images, z = (0.5 * draw("x", 1, 3, 256, 256)).clamp(-1, 1), draw("z", 1, 256, 16)
    order = draw("mask_noise", 1, 256).argsort(dim=1)
    left = load_file(folder / "full_size.safetensors")
    for key, expected in left.items():
        name, out = key.split("/out/")
        ratio = float(name.split("_m")[-1]) if "_masked_m" in name else 0.7
        seen = order[:, : visible_count(256, ratio)] if "masked" in name else None
        if out == "ids_restore":
            assert torch.equal(order.argsort(dim=1), expected)
            continue
        if out == "moments":
            got = net.encoder(images, seen)
        else:
            assert out == "image_slice", f"{key} is of no known form"
            got = net.decoder(z if seen is None else z[:, : seen.shape[1]], seen)[:, :, ::4, ::4]
        assert (got - expected).abs().max() < 5e-5, key


def recipe_weights(key: str, shape: list[int], salt: int) -> Tensor:
    """Weights of the full-size check, made from the key's name as the set's README says."""
    w = harness.recipe_draw(key, shape, salt)
    if len(shape) == 1:
        return 0.05 * w if key.endswith("bias") else 1 + 0.1 * w
    return w / math.prod(shape[1:]) ** 0.5 if key.endswith(".weight") else 0.5 * w
