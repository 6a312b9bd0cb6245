"""RAR: logits and loss in permuted orders, complete guided sampling."""

import torch
import torch.nn.functional as F
from torch import Tensor

from mgen.convert import convert
from mgen.generators import Generator
from mgen.nn.causal import RowSpan
from mgen.samplers import Noise, ParallelSampler
from tests.golden import harness
from tests.golden.harness import Case
from tests.official_settings import rar_settings

# Ten times the stated fp32–fp64 differences of the reference: logits 1.1e-6 … 1.4e-6, the loss 3.6e-7.
LOGITS, LOSS = 1.1e-5, 3.6e-6


def model(case: Case) -> Generator:
    net = convert("rar", case.folder / "weights.safetensors").model
    own = case.config["model"]["generator"]
    c = net.trunk.config
    assert (c.heads, c.depth, c.hidden) == (
        own["num_attention_heads"],
        own["num_hidden_layers"],
        own["intermediate_size"],
    )
    return net


def logits(net: Generator, code: Tensor, classes: Tensor, orders: Tensor) -> Tensor:
    """Logits (B, L + 1, V) in the order of prediction. The reference computes the row of the last token too, which predicts nothing."""
    trunk, vectors = net.trunk, net.classes(classes)
    at = RowSpan(0, code.shape[1] + 2)
    x = trunk.inputs(net.rows(code, torch.ones_like(code, dtype=torch.bool)), vectors, 0, orders, orders)
    return net.head.logits(trunk.run(x, trunk.modulation(trunk.conditions(vectors, at)), at, read=1))


@torch.inference_mode()
def loss(case: Case) -> None:
    net, code, orders = model(case), case.inputs["code"].flatten(1), case.inputs["orders"]
    classes = case.inputs["labels"].clone()
    classes[1:2] = net.null_class  # the README of the set: sample 1 is trained without its class
    whole = logits(net, code, classes, orders)
    case.check("logits", whole, atol=case.near("logits", LOGITS))
    case.check("labels_in_order", code.gather(1, orders))
    losses, _ = net(code, classes, torch.zeros_like(code, dtype=torch.bool), trunk_noise=orders)
    case.check("loss", losses.mean(), atol=case.near("loss", LOSS, share=1e-6))
    own = F.cross_entropy(whole[:, :-1].transpose(1, 2), code.gather(1, orders), reduction="none")
    place = orders.argsort(1)
    torch.testing.assert_close(losses.view_as(code), own.gather(1, place), atol=1e-5, rtol=1e-5)


@torch.inference_mode()
def sampling(case: Case) -> None:
    net, label, gumbel = model(case), case.inputs["labels"], case.inputs["gumbel"]
    length = net.tokens.length
    settings = rar_settings(**case.config["sampling"][case.name], tokens=length)
    raster = torch.arange(length).expand(len(label), -1)
    orders = case.inputs.get("orders", raster)
    assert (orders == orders[:1]).all(), "one order for all images is what a list can say"
    sampler = ParallelSampler(**{**settings, "order": orders[0].tolist()})
    if torch.equal(orders, raster):
        sampler = ParallelSampler(**settings)
    numbers = gumbel.unsqueeze(2).expand(-1, -1, length, -1)  # of step t whatever position it draws: (T, B, L, V)
    *_, step = sampler(net, label, noise=Noise(order=torch.zeros(len(label), length), tokens=numbers))
    case.check("tokens", step.tokens.gather(1, orders))
    case.check("logits_cond", logits(net, step.tokens, label, orders), atol=case.near("logits_cond", LOGITS))


@harness.parametrize("rar")
def test_rar_gives_the_official_numbers(case: Case) -> None:
    harness.run(case, {"loss.*": loss, "sampling.*": sampling})
