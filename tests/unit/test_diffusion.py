"""The diffusion head: chains against diffusers' schedulers, draws, training, and the same draws in the plain form."""

import math
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from mgen.heads import DiffusionHead, HeadInputs, HeadNoise
from mgen.heads.chains import Chain, ChainSettings, Tables, cosine_betas, kept_timesteps
from mgen.heads.diffusion import DiffusionConfig
from mgen.samplers import ParallelSampler
from mgen.tokens import TokenSpec
from mgen.utils.errors import MgenError
from tests.helpers import tiny_mar
from tools.ablations import ablations
from tools.ablations.diffusion import PlainGenerator, PlainHead, randomize

TABLES = Tables(cosine_betas())


def head(seed: int = 0) -> DiffusionHead:
    torch.manual_seed(seed)
    tokens = TokenSpec(kind="vector", length=5, channels=4)
    made = DiffusionHead(DiffusionConfig(width=32, depth=2), HeadInputs(tokens=tokens, width=16)).eval()
    made.initialize(lambda module: None)
    for layer in (made.out, made.out_adaln, *(block.adaln for block in made.blocks)):
        torch.nn.init.normal_(layer.weight, std=0.1)
    return made


def best_eps(x: Tensor, t: int) -> Tensor:
    """E[ε | x_t] of tokens that are N(0, 0.5²): a network that is right, so chains have a known answer."""
    signal, noise = TABLES.signal[t], TABLES.noise[t]
    return x * (noise / (signal**2 * 0.25 + noise**2))


def run(settings: ChainSettings, start: Tensor, temperature: float = 1.0, seed: int = 0) -> Tensor:
    chain, x = Chain(settings, TABLES), start
    rng = torch.Generator().manual_seed(seed)
    chain.begin()
    for j, t in enumerate(chain.timesteps):
        adds = settings.noise_count > 1 and j + 1 < settings.steps
        noise = torch.randn(x.shape, generator=rng, dtype=x.dtype) if adds else None
        x = chain.step(j, x, best_eps(x, t), torch.zeros_like(x), noise, temperature)
    return x


@pytest.mark.parametrize("count", [1, 2, 10, 21, 23, 25, 50, 100, 250, 999, 1000])
def test_kept_timesteps_are_spread_from_end_to_end(count: int) -> None:
    kept = kept_timesteps(count)
    assert len(set(kept)) == count and kept == sorted(kept) and kept[0] == 0
    assert count == 1 or kept[-1] == 999


def test_dpm_timesteps_leave_out_the_noisiest() -> None:
    for count in (2, 10, 20, 50, 1000):
        kept = Chain(ChainSettings(chain="dpm-solver++", steps=count), TABLES).timesteps
        assert len(set(kept)) == count and kept == sorted(kept, reverse=True)
        assert kept[-1] == 0 and (count == 1000 or TABLES.recip[kept[0]] < 200)


def test_ancestral_chain_is_that_of_diffusers() -> None:
    """DDPMScheduler with the same timesteps, its tables in float64 and the same noise."""
    steps, v = 25, 0.3
    chain = Chain(ChainSettings(steps=steps), TABLES)
    oracle = DDPMScheduler(beta_schedule="squaredcos_cap_v2", variance_type="learned_range", clip_sample=False)
    oracle.alphas_cumprod, oracle.one = torch.from_numpy(TABLES.alpha_bar), torch.tensor(1.0, dtype=torch.float64)
    oracle.set_timesteps(timesteps=chain.timesteps)
    start = torch.randn(6, 4, 3, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x = y = start
    for j, t in enumerate(chain.timesteps):
        noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(j), dtype=torch.float64)
        x = chain.step(j, x, best_eps(x, t), torch.full_like(x, v), noise if j + 1 < steps else None, 1.0)
        answer = torch.cat([best_eps(y, t), torch.full_like(y, v)], dim=1)
        y = oracle.step(answer, t, y, generator=torch.Generator().manual_seed(j)).prev_sample
    assert torch.allclose(x, y, atol=1e-9)


@pytest.mark.parametrize("kind", ["ddim", "dpm-solver++"])
def test_fast_chains_reach_what_many_steps_of_their_ode_reach(kind: str) -> None:
    """Without noise both follow one ordinary differential equation; its flow for N(0, 0.5²) is x ↦ x/2."""
    start = torch.randn(64, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    few = run(ChainSettings(chain=kind, steps=20), start)
    many = run(ChainSettings(chain=kind, steps=500), start)
    assert torch.allclose(many, start / 2, atol=2e-2)
    assert (few - many).abs().max() < (0.15 if kind == "ddim" else 0.03)


def test_ddim_and_dpm_are_those_of_diffusers_on_the_respaced_schedule() -> None:
    start = torch.randn(8, 4, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    for kind, cls, extra in (
        ("ddim", DDIMScheduler, {"clip_sample": False, "timestep_spacing": "leading"}),
        ("dpm-solver++", DPMSolverMultistepScheduler, {"final_sigmas_type": "zero", "timestep_spacing": "trailing"}),
    ):
        chain = Chain(ChainSettings(chain=kind, steps=10), TABLES)
        oracle = cls(num_train_timesteps=10, trained_betas=chain.tables.betas, prediction_type="epsilon", **extra)
        oracle.set_timesteps(10)
        assert oracle.timesteps.tolist() == list(range(9, -1, -1))
        chain.begin()
        x = y = start
        for j, t in enumerate(chain.timesteps):
            x = chain.step(j, x, best_eps(x, t), torch.zeros_like(x), None, 1.0)
            y = oracle.step(best_eps(y, t), oracle.timesteps[j], y).prev_sample
        assert torch.allclose(x, y, atol=3e-3)  # theirs rounds its tables to fp32, which the first steps magnify


def test_chains_draw_the_distribution() -> None:
    """With the right network the ancestral chain draws N(0, 0.5²); temperature narrows it; DDIM adds none of its own."""
    start = torch.randn(4000, 1, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    assert run(ChainSettings(steps=100), start).std().item() == pytest.approx(0.5, abs=0.03)
    assert run(ChainSettings(steps=100), start, temperature=0.5).std().item() < 0.35
    quiet = run(ChainSettings(chain="ddim", steps=50), start)
    assert quiet.std().item() == pytest.approx(0.5, abs=0.05)
    assert torch.equal(quiet, run(ChainSettings(chain="ddim", steps=50), start, temperature=0.5))


def test_clip_bounds_the_answer() -> None:
    for bound in (None, 1.5):
        chain = Chain(ChainSettings(steps=10, clip=bound), TABLES)
        wrong = chain.step(0, torch.full((2, 3), 3.0), torch.zeros(2, 3), torch.zeros(2, 3), None, 1.0)
        assert (wrong.abs().max() > 100) == (bound is None)  # the noisiest step magnifies an error of ε


@pytest.mark.parametrize(
    "settings, words",
    [
        ({"chain": "dimm"}, "ddim"),
        ({"steps": 0}, "at least 1"),
        ({"steps": 2000}, "at most 1000"),
        ({"clip": -1.0}, "allowed is more than 0"),
        ({"eta": 0.5}, "unknown key 'head.eta'"),
        ({"stepz": 5}, "did you mean 'steps'"),
    ],
)
def test_bad_chain_settings_are_named(settings: dict, words: str) -> None:
    with pytest.raises(MgenError, match=words):
        head().plan(settings)


def test_the_variational_term_trains_the_variance_alone() -> None:
    net = head()
    rng = torch.Generator().manual_seed(0)
    target, z = torch.randn(50, 4, generator=rng), torch.randn(50, 16, generator=rng)
    t, noise = torch.randint(1000, (50,), generator=rng), torch.randn(50, 4, generator=rng)
    loss, mse = net.loss(z, target, noise=HeadNoise(t, noise))
    assert loss.shape == mse.shape == (50,) and (loss >= mse - 1e-5)[t > 0].all()  # the rest is a divergence
    (grad_mse,) = torch.autograd.grad(mse.sum(), net.out.weight, retain_graph=True)
    (grad_all,) = torch.autograd.grad(loss.sum(), net.out.weight)
    assert torch.allclose(grad_all[:4], grad_mse[:4], atol=1e-5), "the variational term reached ε"
    assert grad_all[4:].abs().sum() > 0 and not grad_mse[4:].any()


def test_repeated_timesteps_share_one_embedding() -> None:
    net = head()
    x, z = torch.randn(1500, 4), torch.randn(1500, 16)
    t = torch.arange(1500) % 1000
    whole = net(x, t, z)
    assert torch.allclose(whole[:900], net(x[:900], t[:900], z[:900]), atol=1e-5)


@pytest.mark.parametrize("guidance", [None, 1.0, 3.0])
@pytest.mark.parametrize("chain", ["ancestral", "ddim", "dpm-solver++"])
def test_the_draw_is_that_of_the_plain_form(guidance: float | None, chain: str) -> None:
    net = head()
    rng = torch.Generator().manual_seed(0)
    z = torch.randn(2 if guidance is None else 4, 5, 16, generator=rng)
    settings = {"chain": chain, "steps": 12, "clip": 3.0}
    noise = torch.randn(ChainSettings.of(settings).noise_count, 2, 5, 4, generator=rng)
    with torch.inference_mode():
        plan = net.plan(settings)
        draw = dict(noise=noise, plan=plan, guidance=guidance, temperature=0.9)
        ours, _ = net.sample(z, **draw)
        assert torch.allclose(ours, PlainHead(net).sample(z, **draw)[0], atol=1e-4)
        if guidance == 1.0:
            alone, _ = net.sample(z[:2], noise=noise, plan=plan, temperature=0.9)
            assert torch.allclose(ours, alone, atol=1e-4)
        if guidance == 3.0:
            assert not torch.allclose(ours, net.sample(z, **{**draw, "guidance": 1.0})[0], atol=1e-2)


def test_a_complete_run_is_that_of_the_plain_form() -> None:
    net = tiny_mar()
    assert isinstance(net.head, DiffusionHead)
    randomize(net.head)
    sampler = ParallelSampler(steps=5, order="random", guidance=2.0, head={"steps": 10, "clip": 3.0})
    label, noise = torch.tensor([0, 2]), sampler.make_noise(net, [7, 8])
    *_, ours = sampler(net, label, noise=noise)
    *_, plain = sampler(PlainGenerator(net), label, noise=noise)
    assert torch.allclose(ours.tokens, plain.tokens, atol=1e-4)
    assert (ours.tokens.abs() < 2.99).float().mean() > 0.9, "draws at the bound would agree whatever the head computes"
    rows = ablations(net, sampler, batch_size=2, repeats=1, dtype="bf16")
    assert len({row["ablation"] for row in rows}) == 10
    assert all(row.get("difference", 0.0) < 1e-4 for row in rows[:-1])
    assert 0 < rows[-1]["difference"] < 0.5 and "bf16" in rows[-1]["ablation"]


def test_tokens_out_of_all_proportion_are_announced() -> None:
    net = tiny_mar()
    with pytest.warns(UserWarning, match="undertrained"):
        sampler = ParallelSampler(steps=2, order="random", head={"steps": 4})
        list(sampler(net, torch.tensor([0]), noise=sampler.make_noise(net, [1])))


def test_time_embedding_is_cos_then_sin() -> None:
    net = head()
    angles = 7.0 * torch.exp(-math.log(10000) * torch.arange(128) / 128)
    waves = torch.cat([angles.cos(), angles.sin()])
    expected = net.time.fc2(torch.nn.functional.silu(net.time.fc1(waves)))
    assert torch.allclose(net.time(torch.tensor(7)), expected, atol=1e-5)


class NoReadBack(TorchDispatchMode):
    """Fails on the operations that wait for a device: values brought to Python, and shapes that depend on values."""

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert function.overloadpacket.__name__ not in (
            "_local_scalar_dense",
            "nonzero",
            "masked_select",
            "is_nonzero",
        ), function
        return function(*args, **(kwargs or {}))


def test_the_step_loop_never_waits_for_the_device() -> None:
    net = tiny_mar()
    sampler = ParallelSampler(steps=5, order="random", guidance=2.0, head={"steps": 6, "clip": 3.0})
    run = sampler(net, torch.tensor([0, 2]), noise=sampler.make_noise(net, [7, 8]))
    next(run)  # counts are read once, before the first step
    with NoReadBack():
        for _ in range(4):
            next(run)
    with pytest.raises(AssertionError), NoReadBack():
        torch.ones(3).nonzero()
