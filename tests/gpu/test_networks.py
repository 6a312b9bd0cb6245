"""Every architecture on a GPU as on the CPU: sampling, losses and gradients in fp32, and how far bf16 is from it."""

from typing import Any

import pytest
import torch
from torch import Tensor

import mgen
from mgen.generators.presets import model_config
from mgen.nn.precision import computing
from mgen.samplers import ParallelSampler
from tests.helpers import tiny_architecture
from tests.training_steps import training_step
from tests.unit.test_dtypes import short, tokenizers


def kinds() -> list[str]:
    """One published architecture of each kind of trunk, head, windows and tokens."""
    found: dict[tuple[object, ...], str] = {}
    for name in mgen.list_models():
        config = model_config(name)
        stages = [config[key] for key in ("first", "second") if key in config] or [config]
        parts = [(stage["head"]["type"], stage["tokens"].get("global_tokens", 0) > 0) for stage in stages]
        found.setdefault((config["trunk"]["type"], *parts, config.get("windows") is None), name)
    return list(found.values())


def sampled(net: Any, dtype: torch.dtype = torch.float32, **settings: Any) -> Tensor:
    """Tokens of two images on the network's device, from the same random numbers on every device."""
    chain = {"head": short(net.head)} if net.head.noise_spec({}).normal else {}
    first = {"first_stage": {"steps": 2, **chain}} if net.capabilities.two_stages else {}
    steps = {} if net.capabilities.one_by_one else {"steps": 4}
    guidance = {} if net.null_class is None else {"guidance": 2.0}
    sampler = ParallelSampler.suited(net, {**steps, **guidance, **chain, **first, **settings})
    labels = torch.tensor([0, net.num_classes - 1], device=net.device)
    noise = sampler.make_noise(net, [1, 2]).to(net.device)
    with torch.inference_mode(), computing(net, dtype, net.device):
        *_, last = sampler(net, labels, noise=noise)
    assert last.tokens.device == net.device
    return last.tokens.cpu()


def differing(a: Tensor, b: Tensor) -> float:
    """Share of ids that differ; of vectors the mean difference over the mean size."""
    if not a.is_floating_point():
        return (a != b).float().mean().item()
    return ((a - b).abs().mean() / b.abs().mean()).item()


@pytest.mark.parametrize("name", kinds())
def test_samples_are_those_of_the_cpu(name: str, device: torch.device) -> None:
    """The same seed gives the same image on every device: near ties alone may fall otherwise."""
    net = tiny_architecture(name)
    expected = sampled(net)
    assert differing(sampled(net.to(device)), expected) <= 0.02


@pytest.mark.parametrize("name", kinds())
def test_cached_steps_are_those_of_the_cpu(name: str, device: torch.device) -> None:
    net = tiny_architecture(name)
    if not net.capabilities.cached_steps or net.capabilities.one_by_one:
        pytest.skip("has no cached steps")
    expected = sampled(net, reuse={"cached": 1})
    assert differing(sampled(net.to(device), reuse={"cached": 1}), expected) <= 0.02


@pytest.mark.parametrize("name", [name for name in kinds() if "first" not in model_config(name)])
def test_losses_and_gradients_are_those_of_the_cpu(name: str, device: torch.device) -> None:
    net = tiny_architecture(name)
    loss, gradients = training_step(net, masked=10)
    again, on_device = training_step(net.to(device), masked=10)
    assert torch.allclose(again.cpu(), loss, rtol=1e-4, atol=1e-6)
    assert torch.allclose(on_device.cpu(), gradients, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("name", kinds())
def test_bf16_stays_near_fp32(name: str, device: torch.device) -> None:
    """Bounds as of the tests on the CPU: 2 % of a vector's size, a quarter of the ids (later ones of a causal model go on from them)."""
    net = tiny_architecture(name).to(device)
    exact, rough = sampled(net), sampled(net, torch.bfloat16)
    assert torch.isfinite(rough.float()).all()
    if exact.is_floating_point() or not net.capabilities.one_by_one:
        assert differing(rough.float() if exact.is_floating_point() else rough, exact) <= (
            0.02 if exact.is_floating_point() else 0.25
        )


@pytest.mark.parametrize("name", list(tokenizers()))
def test_tokenizers_are_those_of_the_cpu(name: str, device: torch.device) -> None:
    """Tokens of images, and images of these tokens."""
    tokenizer = tokenizers()[name].eval()
    images = torch.rand(2, 1, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.inference_mode():
        tokens = tokenizer.encode(images)
        expected = tokenizer.decode(tokens)
        tokenizer.to(device)
        assert differing(tokenizer.encode(images.to(device)).cpu(), tokens) <= 0.02
        assert (tokenizer.decode(tokens.to(device)).cpu() - expected).abs().mean() <= 1e-4


@pytest.mark.parametrize("name", ["fmnist-maskgit", "fmnist-mar"])
def test_embedded_images_are_those_of_the_cpu(name: str, device: torch.device) -> None:
    """In bytes: a pixel may differ by one level here and there, an id that comes out otherwise in one image."""
    settings: dict[str, Any] = dict(seed=3, output_type="uint8", progress=False)
    expected = mgen.load(name)([0, 3, 8, 9], **settings).images
    found = mgen.load(name, device=device)([0, 3, 8, 9], **settings).images.cpu()
    assert ((found.int() - expected.int()).abs() > 1).float().mean() <= 0.02
    halves = mgen.load(name, device=device)([0, 3, 8, 9], batch_size=2, **settings).images.cpu()
    assert ((found.int() - halves.int()).abs() > 1).float().mean() <= 0.02
