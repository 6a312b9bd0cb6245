"""The diffusion-transformer head: its chain, draws and training, and the same draws in the plain form."""

from typing import Any

import pytest
import torch
from diffusers import DDPMScheduler
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from mgen.heads import HeadInputs, HeadNoise
from mgen.heads.chains import Chain, ChainSettings, Tables, cosine_betas
from mgen.heads.diffusion_transformer import DiffusionTransformerConfig, DiffusionTransformerHead
from mgen.tokens import TokenSpec
from mgen.utils.errors import MgenError
from tools.ablations.compare import AblationTable
from tools.ablations.joint import PlainJointHead, add_rows, randomize

TABLES = Tables(cosine_betas())
B, L, C, D = 2, 24, 4, 16


def new_head(grid: tuple[int, int] = (4, 6), **settings: int) -> DiffusionTransformerHead:
    torch.manual_seed(0)
    tokens = TokenSpec(kind="vector", length=grid[0] * grid[1], grid=grid, channels=C)
    made = DiffusionTransformerHead(DiffusionTransformerConfig(**settings), HeadInputs(tokens=tokens, width=D))
    made.initialize(lambda module: None)
    return made


def head() -> DiffusionTransformerHead:
    made = new_head(width=32, depth=3, heads=4).eval()
    randomize(made)
    return made


def draw(
    net: DiffusionTransformerHead, settings: dict[str, Any], visible: int = 9, guided: bool = True
) -> dict[str, Any]:
    """Arguments of `sample` at random, `visible` of the tokens known in every row."""
    rng = torch.Generator().manual_seed(1)
    order = torch.rand(B, L, generator=rng).argsort(1)
    return {
        "z": torch.randn(2 * B if guided else B, L, D, generator=rng),
        "noise": torch.randn(net.noise_spec(settings).shape[0], B, L, C, generator=rng),
        "tokens": torch.randn(B, L, C, generator=rng).clamp(-2, 2),
        "known": torch.zeros(B, L, dtype=torch.bool).scatter_(1, order[:, :visible], True),
        "unknown": order[:, visible:].sort(1).values,
        "plan": net.plan(settings),
    }


def of_images(options: dict[str, Any], which: slice) -> dict[str, Any]:
    """Those of some images of an unguided draw."""
    cut = {k: options[k][which] for k in ("z", "tokens", "known", "unknown")}
    return {**options, **cut, "noise": options["noise"][:, which]}


def test_fixed_variance_is_that_of_diffusers() -> None:
    """DDPMScheduler with fixed_large variance, the same timesteps, its tables in float64 and the same noise."""
    steps = 25
    chain = Chain(ChainSettings(steps=steps), TABLES)
    oracle = DDPMScheduler(beta_schedule="squaredcos_cap_v2", variance_type="fixed_large", clip_sample=False)
    oracle.alphas_cumprod, oracle.one = torch.from_numpy(TABLES.alpha_bar), torch.tensor(1.0, dtype=torch.float64)
    oracle.set_timesteps(timesteps=chain.timesteps)
    x = y = torch.randn(3, C, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for j, t in enumerate(chain.timesteps):
        noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(j), dtype=torch.float64)
        x = chain.step(j, x, 0.9 * x, None, noise if j + 1 < steps else None, 1.0)
        y = oracle.step(0.9 * y, t, y, generator=torch.Generator().manual_seed(j)).prev_sample
    assert torch.allclose(x, y, rtol=1e-9)


def test_the_cleanest_step_has_the_variance_of_the_next() -> None:
    tables = TABLES.respace([0, 400, 999])
    assert tables.log_fixed[0] == tables.log_low[1] and (tables.log_fixed[1:] == tables.log_high[1:]).all()


@pytest.mark.parametrize("visible", [0, 9, L - 1])
@pytest.mark.parametrize("guidance", [None, 3.0])
@pytest.mark.parametrize(
    "settings",
    [{}, {"chain": "ddim"}, {"chain": "dpm-solver++"}],
    ids=["ancestral", "ddim", "dpm"],
)
def test_the_draw_is_that_of_the_plain_form(settings: dict[str, Any], guidance: float | None, visible: int) -> None:
    net = head()
    options = draw(net, {"steps": 12, "clip": 3.0, **settings}, visible, guidance is not None)
    with torch.inference_mode():
        ours, _ = net.sample(**options, guidance=guidance, temperature=0.9)
        plain, _ = PlainJointHead(net).sample(**options, guidance=guidance, temperature=0.9)
        full, _ = net.sample(**{**options, "unknown": None}, guidance=guidance, temperature=0.9)
    assert torch.allclose(ours, plain, atol=1e-4) and torch.allclose(full, plain, atol=1e-4)
    assert (ours[~options["known"]].abs() < 2.99).float().mean() > 0.8, (
        "draws at the bound agree whatever the head computes"
    )
    assert torch.equal(ours[options["known"]], options["tokens"][options["known"]])


def test_the_chain_is_the_written_out_loop() -> None:
    """Equation by equation, with nothing but the network's forward: eq. 2–4 of DDPM (arXiv 2006.11239), ε guided inside."""
    net, steps, guidance, temperature = head(), 10, 2.0, 0.8
    options = draw(net, {"steps": steps})
    with torch.inference_mode():
        ours, _ = net.sample(**options, guidance=guidance, temperature=temperature)
        timesteps = options["plan"].chain.timesteps
        bars = [TABLES.alpha_bar[t] for t in timesteps] + [1.0]
        tokens, known, start = options["tokens"], options["known"], options["noise"][0]
        x = start.clone()
        for j, t in enumerate(timesteps):
            bar, before = bars[j], bars[j + 1]
            x[known] = bar**0.5 * tokens[known] + (1 - bar) ** 0.5 * start[known]
            c, u = (net(x, torch.full((B,), t), z) for z in options["z"].chunk(2))
            eps = u + guidance * (c - u)
            x0 = (x - (1 - bar) ** 0.5 * eps) / bar**0.5
            beta = 1 - bar / before
            x = (before**0.5 * beta * x0 + (1 - beta) ** 0.5 * (1 - before) * x) / (1 - bar)
            if j + 1 < steps:
                x = x + beta**0.5 * temperature * options["noise"][j + 1]
    scale = x[~known].abs().max()
    assert (ours - x)[~known].abs().max() < 1e-3 * scale


def test_the_draw_depends_on_everything_it_is_given() -> None:
    net = head()
    options = draw(net, {"steps": 12, "clip": 3.0})
    with torch.inference_mode():

        def at_unknown(**changed: Any) -> Tensor:
            return net.sample(**{**options, "guidance": 2.0, **changed})[0][~options["known"]]

        base = at_unknown()
        conditional, null = options["z"].chunk(2)
        for changed in (
            {"z": torch.cat([conditional.flip(1), null])},
            {"z": torch.cat([conditional, null.flip(1)])},
            {"guidance": 1.0},
            {"temperature": 0.5},
            {"tokens": options["tokens"].flip(2)},
            {"noise": options["noise"].flip(2)},
        ):
            assert (at_unknown(**changed) - base).abs().max() > 1e-2, changed.keys()
        hidden = torch.where(options["known"].unsqueeze(-1), options["tokens"], float("nan"))
        assert torch.equal(at_unknown(tokens=hidden), base), "tokens that are not known were read"


@pytest.mark.parametrize("chain", ["ancestral", "dpm-solver++"])
def test_images_do_not_know_of_each_other(chain: str) -> None:
    net = head()
    options = draw(net, {"chain": chain, "steps": 8, "clip": 3.0}, guided=False)
    with torch.inference_mode():
        both, _ = net.sample(**options)
        for i in range(B):
            alone, _ = net.sample(**of_images(options, slice(i, i + 1)))
            assert torch.allclose(alone[0], both[i], atol=1e-5)


def test_rows_that_know_more_fill_up_with_known_positions() -> None:
    net = head()
    options = draw(net, {"steps": 8, "clip": 3.0}, guided=False)
    first = options["unknown"][0, 0]
    options["known"][0, first] = True  # row 0 knows one more; its list of positions stays as long
    with torch.inference_mode():
        ours, _ = net.sample(**options)
        plain, _ = PlainJointHead(net).sample(**options)
    assert torch.allclose(ours, plain, atol=1e-4)
    assert torch.equal(ours[0, first], options["tokens"][0, first])


def test_one_step_jumps_to_the_answer() -> None:
    net = head()
    options = draw(net, {"steps": 1}, guided=False)
    with torch.inference_mode():
        ours, _ = net.sample(**options)
        known, start = options["known"].unsqueeze(-1), options["noise"][0]
        signal, spread = TABLES.signal[0], TABLES.noise[0]
        x = torch.where(known, signal * options["tokens"] + spread * start, start)
        x0 = (x - spread * net(x, torch.zeros(B, dtype=torch.long), options["z"])) / signal
    assert torch.allclose(ours, torch.where(known, options["tokens"], x0), atol=1e-5)


def test_a_new_head_predicts_zero() -> None:
    net = new_head((4, 4), width=32, depth=2, heads=4)
    assert not net(torch.randn(B, 16, C), torch.tensor([0, 999]), torch.randn(B, 16, D)).any()
    zero = {name for name, weight in net.named_parameters() if weight.ndim == 2 and not weight.any()}
    assert zero == {f"{name}.weight" for name in ("blocks.0.adaln", "blocks.1.adaln", "out_adaln", "out")}
    assert "position" in net.state_dict() and "position" not in dict(net.named_parameters())


def test_a_token_is_denoised_by_its_position() -> None:
    net, order = head(), torch.arange(L).roll(1)
    x, t, z = torch.randn(B, L, C), torch.tensor([5, 700]), torch.randn(B, L, D)
    with torch.inference_mode():
        moved = net(x[:, order], t, z[:, order])
        assert (moved - net(x, t, z)[:, order]).abs().max() > 1e-2
        net.position.zero_()
        assert torch.allclose(net(x[:, order], t, z[:, order]), net(x, t, z)[:, order], atol=1e-4)


def test_autocast_stays_near() -> None:
    net = head()
    options = draw(net, {"steps": 6, "clip": 3.0})
    with torch.inference_mode():
        full, _ = net.sample(**options, guidance=2.0)
        with torch.autocast("cpu", torch.bfloat16):
            half, _ = net.sample(**options, guidance=2.0)
    assert half.dtype == torch.float32 and 0 < (half - full).abs().mean() < 0.1


def test_the_loss_counts_masked_positions_and_averages_over_all() -> None:
    net, copies = head(), 3
    rng = torch.Generator().manual_seed(2)
    z, target = torch.randn(B, L, D, generator=rng), torch.randn(B, L, C, generator=rng)
    masked = torch.rand(B, L, generator=rng) < 0.4
    made = [net.training_noise(L, copies, rng) for _ in range(B)]
    t, noise = torch.stack([one.t for one in made]), torch.stack([one.noise for one in made])
    assert t.shape == (B, copies) and noise.shape == (B, copies, L, C)
    loss, mse = net.loss(z, target, masked=masked, noise=HeadNoise(t, noise))
    assert loss.shape == (B, copies) and torch.equal(loss.detach(), mse) and not mse.requires_grad
    for i in range(B):
        for k in range(copies):
            x = TABLES.signal[t[i, k]] * target[i] + TABLES.noise[t[i, k]] * noise[i, k]
            error = (noise[i, k] - net(x[None].float(), t[i, k][None], z[i][None])[0])[masked[i]]
            assert mse[i, k].item() == pytest.approx(error.square().sum().item() / (L * C), rel=1e-4)


def test_the_loss_trains_the_contexts() -> None:
    net = head()
    z = torch.randn(B, L, D, requires_grad=True)
    noise = HeadNoise(torch.tensor([[5], [700]]), torch.randn(B, 1, L, C))
    loss, _ = net.loss(z, torch.randn(B, L, C), masked=torch.ones(B, L, dtype=torch.bool), noise=noise)
    loss.sum().backward()
    assert z.grad is not None and (z.grad.abs().sum((1, 2)) > 0).all()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in net.parameters())


def test_every_step_needs_fresh_noise() -> None:
    net = head()
    assert net.joint and not net.has_log_prob and net.metric == "mse"
    for settings, count in (({"steps": 7}, 7), ({"chain": "ddim", "steps": 7}, 1)):
        spec = net.noise_spec(settings)
        assert spec.normal and spec.every_step and spec.shape == (count, C)


@pytest.mark.parametrize(
    "settings, temperatures, words",
    [
        ({"stepz": 5}, [1.0], "did you mean 'steps'"),
        ({"steps": 2000}, [1.0], "at most 1000"),
        ({"chain": "ddim", "steps": 5}, [0.9], "temperature"),
    ],
)
def test_bad_settings_are_named(settings: dict[str, Any], temperatures: list[float], words: str) -> None:
    with pytest.raises(MgenError, match=words):
        head().check(settings, temperatures=temperatures)
    head().check({"chain": "ddim", "steps": 5}, temperatures=[1.0])


def test_widths_that_do_not_fit_are_named() -> None:
    with pytest.raises(MgenError, match="multiple of 4, such as 32"):
        new_head((4, 4), width=30)
    with pytest.raises(MgenError, match="does not divide"):
        new_head((4, 4), width=32, heads=5)


class NoReadBack(TorchDispatchMode):
    """Fails on operations that wait for a device: values brought to Python, and shapes that depend on values."""

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = function.overloadpacket.__name__
        assert name not in ("_local_scalar_dense", "nonzero", "masked_select", "is_nonzero"), function
        by_mask = name.startswith("index") and isinstance(args[1], (list, tuple))
        assert not by_mask or all(i is None or i.dtype != torch.bool for i in args[1]), function
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("chain", ["ancestral", "ddim", "dpm-solver++"])
def test_the_chain_never_waits_for_the_device(chain: str) -> None:
    net = head()
    options = draw(net, {"chain": chain, "steps": 6, "clip": 3.0})
    with torch.inference_mode(), NoReadBack():
        net.sample(**options, guidance=2.0)
    with pytest.raises(AssertionError), torch.inference_mode(), NoReadBack():
        PlainJointHead(net).sample(**options, guidance=2.0)


def test_every_optimization_alone_gives_the_plain_numbers() -> None:
    table = AblationTable(torch.device("cpu"), 1)
    with torch.inference_mode():
        add_rows(table, head(), {"clip": 3.0}, 2)
    assert len(table.rows) == 6 and all(row["difference"] < 1e-4 for row in table.rows)
