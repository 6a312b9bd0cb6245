"""TiTok's two generators, ImageBert and UViTBert: logits, the training loss, complete sampling."""

import torch
from torch import Tensor

from mgen.convert import convert
from mgen.generators import Generator, LossOptions
from mgen.samplers import Noise, ParallelSampler
from mgen.training.config import MaskConfig
from mgen.training.masking import known_from_uniform, mask_fraction_from_uniform
from tests.golden import harness
from tests.golden.harness import Case
from tests.official_settings import titok_settings

# About ten times the reference's own fp32–fp64 differences: logits 2.8e-6, loss 2.5e-7; the accuracy is a ratio of whole numbers.
LOGITS, LOSS, ACCURACY = 2.5e-5, 2.5e-6, 1e-6
TRUNKS = {"titok_imagebert": "bert", "titok_uvit": "uvit"}


def model(case: Case) -> Generator:
    net = convert("titok-generator", case.folder / "weights.safetensors").model
    assert isinstance(net, Generator)
    official = case.config["model"]["generator"]
    assert net.trunk.type_name == TRUNKS[case.system]
    assert net.trunk.config.heads == official["num_attention_heads"]
    assert (net.tokens.length, net.num_classes) == (official["image_seq_len"], official["condition_num_classes"])
    assert net.tokens.vocab_size == case.config["model"]["vq_model"]["codebook_size"] and net.tokens.grid is None
    return net


def mask_id(net: Generator) -> int:
    """The official id of the mask, behind the codes."""
    assert net.tokens.vocab_size is not None
    return net.tokens.vocab_size


def null(net: Generator, like: Tensor) -> Tensor:
    assert net.null_class is not None
    return torch.full_like(like, net.null_class)


@torch.inference_mode()
def forward(case: Case) -> None:
    net, tokens, labels = model(case), case.inputs["tokens"], case.inputs["labels"]
    known = tokens != mask_id(net)
    for name, classes in (("logits_cond", labels), ("logits_null", null(net, labels))):
        logits = net.head.logits(net.context(tokens, known, classes))
        case.check(name, logits, atol=case.near(name, LOGITS))


def loss(case: Case) -> None:
    net, i, settings = model(case), case.inputs, case.config["losses"]
    code, labels = i["code"], torch.where(i["label_uniform"] < 0.1, null(net, i["labels"]), i["labels"])
    fraction = mask_fraction_from_uniform(i["t"], MaskConfig(distribution="arccos"))
    known = known_from_uniform(fraction, i["token_uniform"])
    case.check("mask", ~known)
    case.check("masked_tokens", code.masked_fill(~known, mask_id(net)))
    with torch.inference_mode():
        logits = net.head.logits(net.context(code, known, labels))
        case.check("logits", logits, atol=case.near("logits", LOGITS))
        right = (logits.argmax(-1) == code) & ~known
        case.check("correct_tokens", (right.sum(1) / (~known).sum(1)).mean(), atol=ACCURACY)
    options = LossOptions(
        label_smoothing=settings["label_smoothing"],
        tokens="all",
        known_weight=settings["loss_weight_unmasked_token"],
    )
    losses, _ = net(code, labels, known, options=options)
    case.check("loss", losses.mean(), atol=case.near("loss", LOSS, share=6e-7))


def gumbel(uniform: Tensor) -> Tensor:
    return -torch.log((-torch.log(uniform.clamp(min=1e-20))).clamp(min=1e-20))


@torch.inference_mode()
def sampling(case: Case) -> None:
    net, i = model(case), case.inputs
    sampler = ParallelSampler(**titok_settings(**case.config["sampling"][case.name]))
    order = torch.zeros(len(i["labels"]), net.tokens.length)
    noise = Noise(tokens=gumbel(i["u_tokens"]), confidence=gumbel(i["u_conf"]), order=order)
    fed = [torch.full(order.shape, mask_id(net))]
    picks = case.outputs["step_picks"].clone()
    for step in sampler(net, i["labels"], noise=noise):
        unknown = fed[-1] == mask_id(net)
        drawn = torch.zeros_like(unknown).scatter_(1, step.positions, True)
        after = step.tokens.masked_fill(~step.known, mask_id(net))
        # The reference draws at known positions too, and in steps that reveal nothing: nothing reads either.
        assert torch.equal(drawn, unknown) or torch.equal(after, fed[-1])
        picks[step.index].scatter_(1, step.positions, step.drawn)
        fed.append(after)
    case.check("step_input_tokens", torch.stack(fed[:-1]))
    case.check("step_picks", picks)
    case.check("tokens", step.tokens)


FAMILIES = {"forward.*": forward, "loss.*": loss, "sampling.*": sampling}


@harness.parametrize("titok_imagebert")
def test_imagebert_gives_the_official_numbers(case: Case) -> None:
    harness.run(case, FAMILIES)


@harness.parametrize("titok_uvit")
def test_uvitbert_gives_the_official_numbers(case: Case) -> None:
    harness.run(case, FAMILIES)
