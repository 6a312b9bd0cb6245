"""LlamaGen's tokenizer: encoding, decoding, reconstruction, and a training step with its losses and gradients."""

import math
import re
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from mgen.convert import convert
from mgen.convert.convert import Conversion
from mgen.tokenizers import LlamaGenVQ
from mgen.training.adversarial import Discriminator
from mgen.training.companions import Companions
from mgen.training.config import TokenizerObjectiveConfig
from mgen.training.noise import AugmentationNoise, TokenizerNoise
from mgen.training.objective import StepOptions
from mgen.training.tokenizer_objective import TokenizerObjective
from tests.golden import harness
from tests.golden.harness import Case

# Ten times the reference's own fp32–fp64 difference: features 2.3e-6, codes 1e-7, images 6.7e-6, margins 1.7e-6, losses 3.5e-8.
FEATURES, CODES, IMAGE, MARGIN, LOSS = 2.3e-5, 1e-6, 6.7e-5, 1.7e-5, 3.5e-7


def conversion(case: Case, image_size: int) -> Conversion:
    path, normalized = case.folder / "weights.safetensors", case.config["vq_model"]["codebook_l2_norm"]
    return convert("llamagen-vq", path, image_size=image_size, normalized=normalized)


def model(case: Case) -> LlamaGenVQ:
    net = conversion(case, case.config["image_size"]).model
    assert isinstance(net, LlamaGenVQ)
    return net


def margin(quantizer: Any, z: Tensor) -> Tensor:
    """Second smallest minus smallest squared distance of each vector of z (B, d, h, w)."""
    best = quantizer.distances(z).topk(2, largest=False).values
    return (best[..., 1] - best[..., 0]).flatten()


@torch.inference_mode()
def encode(case: Case) -> None:
    net, images = model(case), case.inputs["image"]
    z = net.latents(images)
    case.check("encoder_out", net.vq.encoder(images), atol=case.near("encoder_out", FEATURES))
    case.check("prequant", z, atol=case.near("prequant", FEATURES))
    case.check("indices", net.encode(images).flatten())
    case.check("margin", margin(net.quantize, z), atol=case.near("margin", MARGIN))
    case.check("quant", net.quantize(z).values, atol=case.near("quant", CODES))


@torch.inference_mode()
def decode(case: Case) -> None:
    b, _, h, w = case.inputs["shape"].tolist()
    image = model(case).decode(case.inputs["indices"].view(b, -1), (h, w))
    case.check("image", image, atol=case.near("image", IMAGE))


@torch.inference_mode()
def reconstruct(case: Case) -> None:
    images = case.inputs.get("image")
    if images is None:  # those of the encoding case
        cases = {other.name: other for other in harness.read_cases(case.system)}
        images = cases[case.name.replace("reconstruct", "encode")].inputs["image"]
    case.check("image", model(case)(images)[0], atol=case.near("image", IMAGE))


def form(official: str) -> tuple[str, float]:
    """The form of the tokenizer's adversarial loss by its official name, and by how much the official value is larger.

    LlamaGen's non-saturating loss has the arguments of the cross entropy the wrong way round, which leaves −logits and a constant.
    """
    if official == "non-saturating":
        return "mean", 1 + math.log1p(math.exp(-1))
    known = [ours for word, ours in (("hinge", "mean"), ("softplus", "softplus")) if word in official]
    assert known, f"unknown adversarial loss of the tokenizer: {official!r}"
    return known[0], 0.0


def discriminator(case: Case, settings: dict[str, Any]) -> Discriminator:
    """The official discriminator in training mode: batch statistics. Official losses of it are halved."""
    assert settings.get("disc_type", "patchgan") == "patchgan"
    loss = {"hinge": "half-hinge", "vanilla": "non-saturating"}[settings.get("disc_loss", "hinge")]
    net = Discriminator(
        in_channels=case.inputs["image"].shape[1],
        channels=settings["disc_dim"],
        layers=settings["disc_num_layers"],
        loss=loss,
        weight=settings["disc_weight"] / (1 if loss == "half-hinge" else 2),
        norm="batch",
        form=form(settings.get("gen_loss", "hinge"))[0],
    )
    state = load_file(case.folder / "weights_disc.safetensors")
    net.load_state_dict({re.sub("^main", "net", name): value for name, value in state.items()})
    return net.train()


def objective_config(vq: dict[str, Any], loss: dict[str, Any], *, times: float = 1.0) -> TokenizerObjectiveConfig:
    """Ours of the official options; `times`: how often the official code adds the reconstruction term.

    On images in [0, 1], the squared error on [-1, 1] is 4 times as much, the absolute one twice. LPIPS is replaced by zero in the sets,
    and the official code ignores codebook_weight.
    """
    amount = times * loss.get("reconstruction_weight", 1.0)
    l1 = loss.get("reconstruction_loss", "l2") == "l1"
    return TokenizerObjectiveConfig(
        l2=0.0 if l1 else 4.0 * amount,
        l1=2.0 * amount if l1 else 0.0,
        commitment=vq["commit_loss_beta"],
        entropy=vq["entropy_loss_ratio"],
        adversarial=loss["disc_weight"],
        adversarial_adaptive=loss.get("disc_adaptive_weight", False),
    )


def training_step(
    case: Case, net: Any, config: TokenizerObjectiveConfig, discriminator: Discriminator, official_form: str = "hinge"
) -> dict[str, Tensor]:
    """Both losses of a step as our objective makes them, before and after the discriminator takes part, and its own; returns the terms."""
    net.train()
    objective = TokenizerObjective(net, config, Companions(discriminator=discriminator))
    batch, noise = {"image": case.inputs["image"]}, TokenizerNoise(augmentation=AugmentationNoise())
    with torch.no_grad():
        before, _, _ = objective(batch, noise)
    case.check("gen_loss_before_disc_start", before, atol=case.near("gen_loss_before_disc_start", LOSS, 1e-6))
    loss, terms, compared = objective(batch, noise, StepOptions(adversarial=True))
    loss.backward()
    weight = config.adversarial * terms.get("adversarial_factor", torch.ones(()))
    more = form(official_form)[1] * weight
    # An adaptive weight, a quotient of two norms, differs by up to 3e-7 of its size between fp32 and fp64.
    rounded = 3e-6 * float(weight * terms["adversarial"].abs()) if config.adversarial_adaptive else 0.0
    case.check("gen_loss", loss.detach() + more, atol=case.near("gen_loss", LOSS, 1e-6) + rounded)
    case.check("image", compared.fake, atol=case.near("image", IMAGE))
    with torch.no_grad():
        case.check("disc_loss", discriminator(*compared), atol=case.near("disc_loss", LOSS, 1e-6))
    none = torch.zeros(())
    case.check("vq_loss", config.codebook * terms["codebook"], atol=case.near("vq_loss", LOSS, 1e-6))
    case.check("commit_loss", config.commitment * terms["commitment"], atol=case.near("commit_loss", LOSS, 1e-6))
    case.check("entropy_loss", config.entropy * terms.get("entropy", none), atol=case.near("entropy_loss", LOSS, 1e-5))
    return terms


def gradients(case: Case, made: Conversion, config: TokenizerObjectiveConfig) -> None:
    """Norms of the gradients of official parameters, some of which are a part of ours."""
    # The rounding of an adaptive weight is in every gradient: up to 5e-6 of its size.
    share = 5e-5 if config.adversarial_adaptive else 1e-5
    # The temperature 0.01 of the entropy multiplies rounding by 100: norms in fp32 and fp64 differ by up to 7.7e-5 of their size.
    share = 7e-4 if config.entropy else share
    for key in [key for key in case.outputs if key.startswith("gradnorm.")]:
        official = key.removeprefix("gradnorm.")
        grad = made.model.get_parameter(made.mapped[official]).grad
        assert grad is not None, f"{official} has no gradient"
        if m := re.search(r"\.(?:to_([qkv])|([qkv])_proj)\.\w+$", official):
            grad = grad.chunk(3)["qkv".index(m[1] or m[2])]
        case.check(key, grad.norm(), atol=case.near(key, 2e-7, share))
    total = torch.stack([p.grad.norm() for p in made.model.parameters() if p.grad is not None]).norm()
    case.check("gradnorm_total", total, atol=case.near("gradnorm_total", 2e-7, share))


def history(case: Case, name: str, ids: Tensor) -> Tensor:
    """The official record of the last 65536 ids, from the weights' file, after a step with these; nothing here depends on it."""
    state = load_file(case.folder / "weights.safetensors")
    return torch.cat([state[name], ids.flatten().float()])[-len(state[name]) :]


def train(case: Case) -> None:
    c = case.config["vq_model"]
    made = conversion(case, case.inputs["image"].shape[-1])
    net = made.model
    official = load_file(case.folder / "weights.safetensors")["quantize.embedding.weight"]
    with (
        torch.no_grad()
    ):  # a conversion brings codes to length 1, which changes nothing but the length of their gradients
        net.quantize.embedding.weight.copy_(official)
    config = objective_config(c, c)
    training_step(case, net, config, discriminator(case, c), c.get("gen_loss", "hinge"))
    gradients(case, made, config)
    with torch.no_grad():
        used = history(case, "quantize.codebook_used", net.encode(case.inputs["image"]))
    case.check("codebook_used_tail", used[-256:])
    case.check("codebook_usage", torch.tensor(len(used.unique()) / c["codebook_size"]))


FAMILIES = {"vq_encode.*": encode, "vq_decode.*": decode, "vq_reconstruct.*": reconstruct, "vq_train.*": train}
