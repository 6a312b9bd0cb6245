"""Halton-MaskGIT and LlamaGen's tokenizer: image to ids and back, forward, training objective."""

import torch

from mgen.checkpoints import convert
from mgen.generators import HaltonMaskGIT
from mgen.tokenizers import LlamaGenVQ
from mgen.training.config import MaskConfig
from mgen.training.masking import known_from_uniform, mask_fraction_from_uniform
from tests.golden import harness
from tests.golden.harness import Case

# Ten times the stated fp32–fp64 differences of the reference (2.3e-6, 3.5e-6, 6.0e-8); the loss, where it states 6.1e-8, gets four
# units in the last place of a number near 3.4.
LOGITS, IMAGE, CODES, LOSS = 2.3e-5, 3.5e-5, 6e-7, 1e-6


def model(case: Case) -> HaltonMaskGIT:
    return convert("halton", case.folder / "weights.safetensors", heads=case.config["heads"]).model


def vq(case: Case) -> LlamaGenVQ:
    levels = len(case.config["tokenizer"]["ch_mult"])
    size = case.config["input_size"] * 2 ** (levels - 1)
    return convert("llamagen-vq", case.folder / "tokenizer_weights.safetensors", image_size=size).model


def classes(case: Case, net: HaltonMaskGIT) -> torch.Tensor:
    """The class ids, that of the null class where the label is dropped."""
    return torch.where(case.inputs["drop_label"], net.null_class, case.inputs["labels"])


@torch.inference_mode()
def tokenizer(case: Case) -> None:
    net, images = vq(case), case.inputs["images"]
    grid = tuple(case.outputs["indices"].shape[1:])
    ids = net.encode(images)
    case.check("indices", ids.unflatten(1, grid))
    case.check("quantized", net.quantize.lookup(ids.unflatten(1, grid)), atol=CODES)
    case.check("reconstruction", net.decode(ids, grid), atol=case.near("reconstruction", IMAGE))


@torch.inference_mode()
def forward(case: Case) -> None:
    net, tokens = model(case), case.inputs["tokens"].flatten(1)
    z = net.context(tokens, tokens != net.mask_id, classes(case, net))
    case.check("logits", net.head.logits(z, net.mask_id + 1), atol=case.near("logits", LOGITS, share=2.4e-6))


@torch.inference_mode()
def loss(case: Case) -> None:
    net, code = model(case), case.inputs["code"]
    share = mask_fraction_from_uniform(case.inputs["r"], MaskConfig(distribution="arccos"))
    known = known_from_uniform(share, case.inputs["token_uniform"].flatten(1), "bernoulli")
    case.check("mask", ~known.view(code.shape))
    case.check("masked_code", code.masked_fill(~known.view(code.shape), net.mask_id))
    losses, _ = net(code.flatten(1), classes(case, net), known, loss_tokens="all")
    case.check("loss", losses.mean(), atol=case.near("loss", LOSS, share=2.4e-7))


FAMILIES = {"tokenizer.*": tokenizer, "forward.*": forward, "loss.*": loss}


@harness.parametrize("halton")
def test_halton_gives_the_official_numbers(case: Case) -> None:
    harness.run(case, FAMILIES)
