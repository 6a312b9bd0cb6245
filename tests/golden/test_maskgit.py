"""The PyTorch MaskGIT (AutoNAT U-ViT): forward, training objective with gradients, sampling with published strategies."""

import torch
import torch.nn.functional as F

from mgen import create_model
from mgen.convert import Conversion, convert
from mgen.generators import Generator, LossOptions
from mgen.samplers import Noise, ParallelSampler
from mgen.training.masking import known_from_uniform
from mgen.zoo.recipes import autonat_settings
from tests.golden import harness
from tests.golden.harness import Case

LOGITS, IMAGE, LOSS = 3e-5, 5e-5, 1e-5  # as the set's README asks; stated fp32–fp64 differences: 9e-6, 1.7e-6, 1e-6


def converted(case: Case) -> Conversion:
    heads = case.config["nnet"]["num_heads"]
    return convert("maskgit", case.folder / "weights.safetensors", trunk={"heads": heads})


def model(case: Case) -> Generator:
    return converted(case).model


@torch.inference_mode()
def forward(case: Case) -> None:
    net, ids = model(case), case.inputs["ids"]
    known = ids != net.embedder.mask_id
    for name, label in (("logits_cond", "context"), ("logits_null", "null_context")):
        if name in case.outputs:
            z = net.context(ids, known, case.inputs[label].flatten())
            case.check(name, net.head.logits(z), atol=LOGITS)


def train(case: Case) -> None:
    conversion, x0, label = converted(case), case.inputs["x0"], case.inputs["context"].flatten()
    net, official = conversion.model, {ours: name for name, ours in conversion.mapped.items()}
    known = known_from_uniform(case.inputs["mask_prob"], case.inputs["perm_uniform"])
    case.check("masked_ids", x0.masked_fill(~known, net.embedder.mask_id))
    case.check("labels", x0.masked_fill(known, -1))
    smoothing = float(case.config.get("label_smoothing", 0.1))
    z = net.context(x0, known, label)
    if "logits" in case.outputs:
        case.check("logits", net.head.logits(z).detach(), atol=LOGITS)
    loss = net(x0, label, known, options=LossOptions(label_smoothing=smoothing))[0].mean()  # the training path
    case.check("loss", loss.detach(), atol=LOSS)
    loss.backward()
    for name, grad in harness.gradients(net):
        key = f"grad/{official[name]}"
        if key in case.outputs:
            case.check(key, grad.view(case.outputs[key].shape), atol=LOSS)


@torch.inference_mode()
def sample(case: Case) -> None:
    net = model(case)
    label = case.inputs["context"].flatten()
    steps = len(case.inputs["categorical_gumbel"])
    published = case.config.get("strategies", {}).get(case.name)
    names = ("manual_ratios", "manual_temp", "manual_samp_temp", "manual_cfg")
    lists = published or {name: case.inputs[name].tolist() for name in names if name in case.inputs}
    lists = {"manual_cfg": [0.0] * steps, "manual_samp_temp": [1.0] * steps, **lists}
    sampler = ParallelSampler(**autonat_settings(lists))
    noise = Noise(
        tokens=case.inputs["categorical_gumbel"],
        confidence=case.inputs["confidence_gumbel"],
        order=torch.zeros(len(label), net.tokens.length),
    )
    before, state = [], torch.full((len(label), net.tokens.length), net.embedder.mask_id)
    for step in sampler(net, label, noise=noise):
        before.append(state)
        state = torch.where(step.known, step.tokens, net.embedder.mask_id)
    case.check("ids_before_step", torch.stack(before))
    case.check("final_ids", state.view(case.outputs["final_ids"].shape))
    if "image" in case.outputs:
        tokenizer = convert("maskgit-vqgan", harness.root() / "maskgit_vqgan" / "weights.safetensors").model
        case.check("image", (tokenizer.decode(state) + 1) / 2, atol=IMAGE)  # the official decoder does not clamp


@harness.parametrize("maskgit")
def test_maskgit_gives_the_official_numbers(case: Case) -> None:
    harness.run(case, {"forward.*": forward, "train.*": train, r".*T\d+.*": sample})


def test_guidance_forms_agree() -> None:
    """Official c + w·(c − u) equals ours u + s·(c − u) with s = 1 + w."""
    c, u = torch.randn(2, 50, generator=torch.Generator().manual_seed(0)).double()
    for w in (0.0, 1e-4, 0.9, 4.0):
        s = autonat_settings({"manual_ratios": [], "manual_temp": [], "manual_samp_temp": [1.0], "manual_cfg": [w]})[
            "guidance"
        ][0]
        assert torch.allclose(torch.lerp(u, c, s), c + w * (c - u), atol=1e-12)


def test_head_sends_no_gradient_into_the_tied_table() -> None:
    tokens = {"length": 4, "grid": [2, 2], "vocab_size": 8}
    net = create_model("maskgit-r-l", tokens=tokens, trunk={"dim": 16, "depth": 2, "heads": 2}, classes={"count": 3})
    net.head.logits(torch.randn(1, 4, 16)).square().sum().backward()
    assert net.embedder.table.weight.grad is None
    assert F.softmax(net.head.logits(torch.zeros(1, 1, 16)), -1).shape == (1, 1, 8)
