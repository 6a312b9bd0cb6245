"""Flow-matching heads under every trunk, and the block-causal trunk: entities, its cache, what a run may be given."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

from mgen.generators import build_model
from mgen.generators.presets import model_config
from mgen.heads import HeadNoise
from mgen.heads.flows import Flow, FlowSettings, time_index
from mgen.nn import Entities
from mgen.samplers import ParallelSampler
from mgen.utils.errors import MgenError
from tests.helpers import TRUNKS as TINY
from tests.helpers import tiny_config, tiny_tokens
from tests.unit.test_composition import two_steps
from tools.ablations import ablations

XAR: dict[str, Any] = dict(
    dim=32, encoder_depth=1, encoder_heads=2, decoder_depth=2, decoder_heads=2, hidden=48, attn_dropout=0.0, dropout=0.0
)
CELLS = {"entity": "cell", "size": [2, 4]}
RUN = {"solver": "euler-maruyama", "steps": 3}


def xar(
    seed: int = 0, *, tokens: dict[str, Any] | None = None, head: dict[str, Any] | None = None, **trunk: Any
) -> Any:
    torch.manual_seed(seed)
    tokens = tokens or tiny_tokens("vector")
    trunk = {"type": "block-causal", **XAR, **CELLS, **trunk}
    net = build_model(
        {"tokens": tokens, "classes": {"count": 3}, "trunk": trunk, "head": {"type": "velocity", **(head or {})}}
    )
    return net.eval()


def draw(net: Any, seeds: list[int], guidance: Any = 2.0, given: tuple[Tensor, Tensor] | None = None) -> Tensor:
    sampler = ParallelSampler.suited(net, {"guidance": guidance, "head": RUN})
    tokens, known = given or (None, None)
    noise = sampler.make_noise(net, seeds)
    *_, last = sampler(net, torch.tensor(seeds) % 3, noise=noise, tokens=tokens, known=known)
    assert last.known.all() and torch.isfinite(last.tokens).all()
    return last.tokens


# -- the head under other trunks ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("windows", [None, {"side": 2}], ids=["tokens", "windows"])
@pytest.mark.parametrize("trunk", sorted(TINY))
def test_the_flow_head_trains_and_samples_under_every_trunk(trunk: str, windows: Any) -> None:
    if windows and trunk in ("mage", "permuted"):
        pytest.skip("more tokens than this grid has, or no windows")
    torch.manual_seed(0)
    head = {"type": "flow", "width": 16, "depth": 1}
    net = build_model(tiny_config(trunk, tokens=tiny_tokens("vector"), head=head, windows=windows)).train()
    before, _, after = two_steps(net, torch.randn(4, 16, 4, generator=torch.Generator().manual_seed(1)))
    assert after < before
    torch.nn.init.normal_(next(m for n, m in net.head.named_modules() if n.split(".")[-1] == "out").weight)
    net.eval()
    with torch.inference_mode():
        for solver in ("euler", "euler-maruyama"):
            steps = {} if net.capabilities.one_by_one else {"steps": 4}
            sampler = ParallelSampler.suited(net, {**steps, "guidance": 2.0, "head": {"solver": solver, "steps": 3}})
            noise = sampler.make_noise(net, [1, 2])
            *_, both = sampler(net, torch.tensor([0, 2]), noise=noise)
            *_, one = sampler(net, torch.tensor([2]), noise=sampler.make_noise(net, [2]))
            assert torch.isfinite(both.tokens).all()
            torch.testing.assert_close(both.tokens[1:], one.tokens, atol=1e-4, rtol=1e-4)


def test_the_solvers_bring_a_gaussian_to_a_gaussian() -> None:
    """Of tokens N(0, 1/4) the velocity is known: both solvers must end with their variance."""
    start = torch.randn(64, 20_000, generator=torch.Generator().manual_seed(0))  # draws, tokens

    for solver in ("euler", "euler-maruyama"):
        flow = Flow(FlowSettings(solver=solver, steps=64))

        def velocity(x: Tensor, j: int, flow: Flow = flow) -> Tensor:
            t = flow.times[j]
            return x * (t - (1 - t) / 4) / (t**2 + (1 - t) ** 2 / 4)

        x = flow.run(velocity, start.unsqueeze(-1).unsqueeze(1), temperature=1.0, guidance=None)
        assert abs(x.std().item() - 0.5) < 0.02, solver


def test_times_are_truncated_in_float32() -> None:
    flow = Flow(FlowSettings(solver="euler-maruyama", steps=4))
    t = torch.tensor(flow.times[:-1], dtype=torch.float64)  # 1, 0.68, 0.36, 0.04
    assert time_index(t, "truncated").tolist() == flow.asked("truncated").tolist() == [1000, 680, 360, 40]
    assert (t * 1000).long().tolist() != [1000, 680, 360, 40]  # what float64 makes of them
    torch.testing.assert_close(time_index(t, "exact"), torch.tensor([1000.0, 680.0, 360.0, 40.0]))


# -- entities -------------------------------------------------------------------------------------------------------------

KINDS = [("cell", [2, 2]), ("cell", [2, 4]), ("subset", [2, 2]), ("subset", [1, 4]), ("image", [8, 8])]


@pytest.mark.parametrize(("entity", "size"), KINDS)
def test_entities_cover_the_grid(entity: str, size: list[int]) -> None:
    net = xar(entity=entity, size=size, tokens=tiny_tokens("vector"))
    own, x = net.windows, torch.arange(16).unsqueeze(0)
    assert own.count * own.parts == 16 and torch.equal(own.scatter(own.gather(x)), x)
    assert torch.equal(own.positions(torch.arange(own.count).unsqueeze(0)), own.gather(x))
    first = {
        "cell": {(2, 2): [0, 1, 4, 5], (2, 4): [*range(8)]},
        "subset": {(2, 2): [0, 2, 8, 10], (1, 4): [0, 4, 8, 12]},
    }
    assert own.gather(x)[0, 0].tolist() == first.get(entity, {}).get(tuple(size), [*range(16)])


@torch.inference_mode()
@pytest.mark.parametrize(("entity", "size"), KINDS)
def test_each_entity_is_drawn_as_by_the_whole_network_from_clean_ones(entity: str, size: list[int]) -> None:
    """The cache is exact: the network of entity i gives what a pass over all of them gives, with those before at time 0."""
    net = xar(entity=entity, size=size)
    length, label = net.units.length, torch.tensor([1])
    clean = torch.randn(1, *net.units.shape, generator=torch.Generator().manual_seed(1))
    noisy = torch.randn(1, *net.units.shape, generator=torch.Generator().manual_seed(2))
    cache, every = net.start(label), torch.ones(1, length, dtype=torch.bool)
    for i in range(length):
        known = torch.arange(length).unsqueeze(0) < i
        network = net.denoiser(clean, known, label, visible=(i, i), cache=cache).at(torch.tensor([900, 500]))
        x = torch.cat([clean[:, :i], noisy[:, i : i + 1], torch.zeros_like(clean[:, i + 1 :])], dim=1)
        times = torch.tensor([[0] * i + [500] * (length - i)])
        whole = net.trunk.denoise(net.rows(x, every), net.classes(label), times)
        torch.testing.assert_close(network(noisy[:, i : i + 1], 1), whole[:, i : i + 1], atol=1e-5, rtol=1e-5)


@torch.inference_mode()
def test_images_do_not_depend_on_the_batch_nor_on_null_rows_that_are_left_out() -> None:
    net = xar()
    both = draw(net, [1, 2], {"kind": "linear", "start": 1.0, "end": 3.0, "at": "inclusive"})
    one = draw(net, [2], {"kind": "linear", "start": 1.0, "end": 3.0, "at": "inclusive"})
    torch.testing.assert_close(both[1:], one, atol=1e-5, rtol=1e-5)
    lists = [[2.0, 1.0], [2.0, 1 + 2.0**-50]]  # of two cells; the second computes null rows in both
    torch.testing.assert_close(*(draw(net, [1], guidance) for guidance in lists), atol=1e-5, rtol=1e-5)
    net = xar(entity="cell", size=[1, 4])
    late = [[2.0, 1.0, 1.0, 3.0], [2.0, 1 + 2.0**-50, 1 + 2.0**-50, 3.0]]  # null rows of two cells are made up for
    torch.testing.assert_close(*(draw(net, [1], guidance) for guidance in late), atol=1e-5, rtol=1e-5)


@torch.inference_mode()
def test_given_cells_go_on_as_in_the_run_that_drew_them() -> None:
    net = xar(entity="cell", size=[2, 2])
    whole = draw(net, [1, 2])
    known = net.windows.expand(torch.tensor([[True, True, False, False]] * 2))
    torch.testing.assert_close(draw(net, [1, 2], given=(whole, known)), whole, atol=1e-5, rtol=1e-5)
    with pytest.raises(MgenError, match="cells of 2×2 tokens are drawn as one: give all tokens of a cell or none"):
        draw(net, [1], given=(whole[:1], torch.arange(16).unsqueeze(0) < 3))
    with pytest.raises(MgenError, match="given tokens must be the first ones"):
        draw(net, [1], given=(whole[:1], net.windows.expand(torch.tensor([[False, True, False, False]]))))


def test_every_cell_has_a_time_of_its_own_and_copies_are_a_mean() -> None:
    net = xar().train()
    noise = net.head.training_noise(net.units.length, 2, torch.Generator().manual_seed(0))
    assert noise.t.shape == (2, 2) and len(noise.t.unique()) == 4 and (0 < noise.t).all() and (noise.t < 1).all()
    tokens, label = torch.randn(1, *net.units.shape), torch.tensor([1])
    known = torch.zeros(1, 2, dtype=torch.bool)

    def loss(*copies: int) -> Tensor:
        own = HeadNoise(noise.t[list(copies)].unsqueeze(0), noise.noise[list(copies)].unsqueeze(0))
        return net(tokens, label, known, noise=own)[0].mean()

    torch.testing.assert_close(loss(0, 1), (loss(0) + loss(1)) / 2)
    before, _, after = two_steps(xar(), torch.randn(4, 16, 4, generator=torch.Generator().manual_seed(1)))
    assert after < before


def test_rotary_positions_by_place_in_the_sequence_are_other_ones() -> None:
    by_grid, by_place = (xar(rotary=name, size=[2, 2]).trunk.encoder_rotary for name in ("grid", "sequence"))
    assert torch.equal(by_grid, Entities((4, 4), (2, 2)).gather(by_place.unsqueeze(0))[0].flatten(0, 1))
    assert not torch.equal(by_grid, by_place)


@torch.inference_mode()
def test_complete_runs_are_those_of_the_plain_and_of_the_published_form() -> None:
    net = xar(size=[2, 2])
    guidance = {"kind": "linear", "start": 1.0, "end": 3.0, "at": "inclusive"}
    sampler = ParallelSampler.suited(net, {"guidance": guidance, "head": {"steps": 5}})
    rows = ablations(net, sampler, batch_size=2, repeats=1)
    assert len(rows) == 6 and all(row["difference"] < 1e-4 for row in rows)


# -- what is not allowed --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"size": [3, 2]}, "trunk.size is 3×2: whole numbers that divide the token grid of 4×4"),
        ({"entity": "row"}, "trunk.entity"),
        ({"decoder_heads": 3}, "decoder_heads 3 does not divide"),
        ({"head": {"type": "diffusion"}}, "head.type is 'diffusion', but trunk 'block-causal' reads noisy tokens itself: use velocity"),
    ],
)  # fmt: skip
def test_wrong_configurations_say_what_is_allowed(change: dict[str, Any], text: str) -> None:
    with pytest.raises(MgenError, match=text):
        xar(**change)


def test_parts_that_do_not_fit() -> None:
    with pytest.raises(MgenError, match="'velocity', but trunk 'mae' reads no noisy tokens: use "):
        build_model(tiny_config("mae", tokens=tiny_tokens("vector"), head={"type": "velocity"}))
    cascade = copy.deepcopy(model_config("fmnist-himar"))
    cascade["second"]["head"] = {"type": "velocity"}
    with pytest.raises(MgenError, match="second.head.type is 'velocity', but trunk 'mae-two-stage' reads no noisy"):
        build_model(cascade)
    with pytest.raises(MgenError, match="leave windows out"):
        net = xar().config
        build_model({**{k: net[k] for k in ("tokens", "trunk", "head")}, "windows": {"side": 2}})
    sampler = ParallelSampler.suited(xar(), {"head": {"solver": "euler", "steps": 1}})
    sampler.check(xar())
    for settings, text in (
        ({"head": {"solver": "euler-maruyama", "steps": 1}}, "needs at least 2"),
        ({"head": {"solver": "heun"}}, "head.solver"),
        ({"head": {"solver": "euler", "steps": 2}, "temperature": 0.5}, "temperature 0.5 scales noise"),
        ({"head": {"chain": "ddim"}}, "unknown key 'head.chain'"),
        ({"steps": 3}, "it needs steps 2, order raster and schedule single"),
        ({"reuse": {"cached": 1}}, "no cached steps"),
    ):
        with pytest.raises(MgenError, match=text):
            ParallelSampler.suited(xar(), settings).check(xar())
