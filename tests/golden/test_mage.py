"""MAGE: its tokenizer inside the checkpoint, one step of sampling, the training loss, complete sampling."""

import math

import torch

from mgen.convert import convert
from mgen.generators import Generator, LossOptions
from mgen.generators.trunks.mage import MAGE
from mgen.samplers import Noise, ParallelSampler
from mgen.tokenizers import VQGAN
from mgen.training.config import MaskConfig
from mgen.training.masking import mask_fraction_from_uniform
from tests.golden import harness
from tests.golden.harness import Case
from tests.official_settings import mage_settings

# About ten times the reference's own fp32–fp64 differences: encoder 1.9e-6, logits 6.8e-6, tokenizer 2.9e-6, image 1.6e-6, loss 3e-7.
FEATURES, LOGITS, IMAGE, LOSS = 2e-5, 5e-5, 3e-5, 3e-6


def model(case: Case) -> Generator:
    c = case.config
    net = convert(
        "mage",
        case.folder / "weights.safetensors",
        trunk={
            "encoder_heads": c["num_heads"],
            "decoder_heads": c["decoder_num_heads"],
            "drop": c["mask_ratio_min"],
        },
    ).model
    assert isinstance(net.trunk, MAGE) and net.embedder.mask_id == c["mask_token_label"]
    assert net.classes.rows(torch.zeros(1, dtype=torch.int64)).item() == c["fake_class_label"]
    return net


def vqgan(case: Case) -> VQGAN:
    image_size = case.config["img_size"]
    net = convert("maskgit-vqgan", case.folder / "weights.safetensors", image_size=image_size).model
    assert isinstance(net, VQGAN)
    return net


def images(case: Case) -> torch.Tensor:
    shared = case if "images" in case.inputs else next(c for c in harness.read_cases("mage") if "images" in c.inputs)
    return shared.inputs["images"] * 2 - 1  # the official network takes [0, 1]


@torch.inference_mode()
def tokenizer(case: Case) -> None:
    net = vqgan(case)
    z = net.latents(images(case))
    case.check("pre_quant", z, atol=case.near("pre_quant", FEATURES))
    ids = net.encode(images(case))
    case.check("indices", ids)
    quantized = net.quantize.lookup(ids.unflatten(1, z.shape[2:]))
    case.check("quantized", quantized, atol=1e-6)
    case.check("reconstruction", (net.decode_latents(quantized) + 1) / 2, atol=case.near("reconstruction", IMAGE))


@torch.inference_mode()
def loss(case: Case) -> None:
    net, tokens = model(case), vqgan(case).encode(images(case))
    case.check("gt_indices", tokens)
    length = net.tokens.length
    rank = case.inputs["mask_noise"].argsort(dim=1).argsort(dim=1)
    rate = round(case.inputs["mask_rate"].item(), 7)  # stored in fp32: 0.6 is not 0.60000002
    known = rank >= math.ceil(length * rate)
    dropped = net.trunk.training_noise(rank, known)
    front = torch.zeros(len(tokens), 1)
    case.check("token_all_mask", torch.cat([front, (~known).float()], dim=1))
    case.check("token_drop_mask", torch.cat([front, dropped.float()], dim=1))
    label = torch.zeros(len(tokens), dtype=torch.int64)
    features, positions, given = net.trunk.encode_kept(net.rows(tokens, known), net.classes(label), dropped)
    case.check("latent", features, atol=case.near("latent", FEATURES))
    z = net.trunk.decode(features, positions, given)
    case.check("logits_codebook", net.head.logits(z), atol=case.near("logits_codebook", LOGITS))
    case.check(
        "loss",
        net(tokens, label, known, trunk_noise=dropped, options=LossOptions(label_smoothing=0.1))[0].mean(),
        atol=LOSS,
    )


@torch.inference_mode()
def genstep(case: Case) -> None:
    net, tokens = model(case), case.inputs["tokens"]
    known, label = tokens != net.embedder.mask_id, torch.zeros(len(tokens), dtype=torch.int64)
    trunk = net.trunk
    features = trunk.encode(trunk.embed(net.classes(label), net.rows(tokens, known).masked()))
    case.check("encoder_out", features, atol=case.near("encoder_out", FEATURES))
    positions = torch.arange(net.tokens.length).expand_as(tokens)
    z = trunk.decode(features, positions, known)
    rows = case.config["vocab_size"]
    case.check("logits_sample0", net.head.logits(z[:1], rows), atol=case.near("logits_sample0", LOGITS))
    # The sampling path leaves out what it does not read.
    assert (net.context(tokens, known, label) - z[:, 1:]).abs().max() < FEATURES


@torch.inference_mode()
def sampling(case: Case) -> None:
    net, i = model(case), case.inputs
    sampler = ParallelSampler(**mage_settings(num_iter=int(i["num_iter"]), temp=float(i["temperature"])))
    b = i["gumbel_tokens"].shape[1]
    noise = Noise(tokens=i["gumbel_tokens"], confidence=i["gumbel_conf"], order=torch.zeros(b, net.tokens.length))
    picks, masked, left = [], [], []
    unknown = torch.ones(b, net.tokens.length, dtype=torch.bool)
    for step in sampler(net, torch.zeros(b, dtype=torch.int64), noise=noise):
        masked.append(unknown)
        picks.append(step.draft)
        unknown = ~step.known.clone()
        left.append(int(unknown[0].sum()))
    # The reference draws at known positions too and re-masks one token at the end; nothing reads either.
    expected = case.outputs["step_picks"]
    case.check("step_is_masked_before", torch.stack(masked))
    case.check("step_picks", torch.where(torch.stack(masked), torch.stack(picks), expected))
    case.check("mask_len", torch.tensor([*left[:-1], max(1, left[-1])]))
    case.check("tokens", step.tokens)
    case.check("image", (vqgan(case).decode(step.tokens) + 1) / 2, atol=case.near("image", IMAGE))


@harness.parametrize("mage")
def test_mage_gives_the_official_numbers(case: Case) -> None:
    families = {"tokenizer.*": tokenizer, "loss.*": loss, "genstep.*": genstep, "sampling.*": sampling}
    harness.run(case, families)


def test_mask_ratio_is_the_official_truncated_normal() -> None:
    """N(0.55, 0.25) cut to [0.5, 1], by inversion: its quantiles are those of scipy's truncnorm, which the official code draws from."""
    from scipy import stats

    config = MaskConfig(distribution="truncated-gaussian", mean=0.55, std=0.25, low=0.5, high=1.0)
    u = torch.rand(5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    law = stats.truncnorm(-0.05 / 0.25, 0.45 / 0.25, loc=0.55, scale=0.25)
    assert torch.allclose(torch.from_numpy(law.cdf(mask_fraction_from_uniform(u, config).numpy())), u, atol=1e-9)
