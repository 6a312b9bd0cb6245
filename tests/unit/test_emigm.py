"""Masked diffusion's parts, as eMIGM has them: mask curves, random counts, guidance intervals, singlestep chains, the null class as
mask token, encoders that see masks."""

from typing import Any

import numpy as np
import pytest
import torch

from mgen.generators import Generator
from mgen.heads.chains import ChainSettings, Tables, cosine_betas
from mgen.heads.head import mix
from mgen.heads.singlestep import make_chain, outer_orders
from mgen.samplers import ParallelSampler, mask_fraction, per_step
from mgen.samplers.binomial import random_left, reveal_shares
from mgen.training.config import GeneratorObjectiveConfig, MaskConfig
from mgen.training.generator_objective import GeneratorObjective
from mgen.training.masking import curve_fraction, curve_weight, masked_counts, masking_time
from mgen.training.noise import Augmentation
from mgen.utils.errors import MgenError
from tests.helpers import tiny_generator, tiny_mar
from tests.unit.test_diffusion import TABLES, run

BINOMIAL = dict(order="random", schedule="exp5", counts="binomial")


# -- curves ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("curve", ["linear", "cosine", "sqrt", "exp5", "log5"])
def test_training_and_sampling_have_the_same_curves(curve: str) -> None:
    p = torch.linspace(0.001, 1, 50, dtype=torch.float64, requires_grad=True)
    fraction = curve_fraction(curve, p)
    assert fraction.tolist() == pytest.approx([mask_fraction(curve, 1 - x, length=64) for x in p.tolist()], abs=1e-9)
    (slope,) = torch.autograd.grad(fraction.log().sum(), p)
    assert torch.allclose(curve_weight(curve, p), slope, rtol=1e-9)


def test_a_clamped_time_is_a_mass_and_no_cut() -> None:
    p = masking_time(torch.linspace(0, 1, 101), 0.2)
    assert (p == p.min()).sum() == 21 and p.min().item() == pytest.approx(0.2008) and p.max().item() == 1.0


# -- random counts -----------------------------------------------------------------------------------------------------


def test_random_counts_reveal_what_the_shares_say_and_one_at_least() -> None:
    shares, rng = reveal_shares("linear", steps=4, length=1000), torch.Generator().manual_seed(0)
    left = random_left(shares, torch.tensor([1000, 1000, 3, 0]), torch.rand(4, 4, 1000, generator=rng))
    assert (left[-1] == 0).all()
    assert left[:, 0].tolist() == pytest.approx([750, 500, 250, 0], abs=60) and left[0, 0] != left[0, 1]
    before = torch.cat([torch.tensor([[1000, 1000, 3, 0]]), left[:-1]])
    assert ((before - left >= 1) | (before == 0)).all()
    forced = random_left([0.0, 0.0, 1.0], torch.tensor([5]), torch.rand(3, 1, 5, generator=rng))
    assert forced.tolist() == [[4], [3], [0]]


@pytest.mark.parametrize("net, settings", [
    (tiny_mar(), dict(head={"chain": "dpm-solver++3s", "steps": 2})),
    (tiny_generator(), {}),
    (tiny_generator(), dict(order="confidence")),
], ids=["vectors", "ids", "ranked ids"])  # fmt: skip
def test_images_with_random_counts_do_not_depend_on_their_batch(net: Generator, settings: dict[str, Any]) -> None:
    curve = {"kind": "linear", "start": 1.0, "end": 3.0, "at": "tokens", "interval": [0.0, 0.6]}
    sampler = ParallelSampler(**{**BINOMIAL, "steps": 5, "guidance": curve, **settings})
    ids = torch.tensor([0, 1, 0])

    def drawn(rows: list[int]) -> torch.Tensor:
        noise = sampler.make_noise(net, [10 + row for row in rows])
        *_, step = sampler(net, ids[rows], noise=noise)
        assert step.known.all()
        return step.tokens

    together = drawn([0, 1, 2])
    for row in range(3):
        alone = drawn([row])[0]
        assert torch.allclose(alone.float(), together[row].float(), atol=1e-4)


def test_a_run_on_a_device_reads_no_counts_back() -> None:
    noise = ParallelSampler(**BINOMIAL).make_noise(tiny_mar(), [0, 1]).to("meta")
    assert noise.chain.is_meta and noise.counts.device.type == "cpu"


def test_more_steps_than_tokens_end_early() -> None:
    net = tiny_mar()
    sampler = ParallelSampler(**BINOMIAL, steps=2 * net.tokens.length, head={"chain": "ancestral", "steps": 2})
    steps = [int(s.known.sum()) for s in sampler(net, torch.tensor([0]), noise=sampler.make_noise(net, [0]))]
    assert steps[net.tokens.length - 1] == net.tokens.length == steps[-1]


@pytest.mark.parametrize("settings, words", [
    (dict(schedule="single"), "schedule single"),
    (dict(reuse={"cached": 1}), "reuse.cached=0"),
    (dict(temperature={"kind": "linear", "end": 0.5, "at": "tokens"}), "at: end"),
])  # fmt: skip
def test_what_random_counts_do_not_go_with(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(MgenError, match=words):
        ParallelSampler(**{**BINOMIAL, "steps": 4, **settings})


# -- guidance ----------------------------------------------------------------------------------------------------------


def test_an_interval_is_open_below_and_closed_above() -> None:
    curve = {"kind": "constant", "end": 4.0, "interval": [0.25, 0.5]}
    # Steps end a hair above 0.75, 0.5, 0.25 and at 1e-5.
    assert per_step(curve, 4, name="guidance") == [1, 1, 4, 1]
    assert per_step({**curve, "interval": [0, 1]}, 4, name="guidance") == [4] * 4
    assert per_step({**curve, "kind": "linear", "interval": [0, 0.5]}, 4, name="guidance") == [1, 1, 3.25, 4]
    for wrong, words in (({"interval": [0.5, 0.5]}, "must lie below"), ({"interval": [0, 2]}, "interval")):
        with pytest.raises(MgenError, match=words):
            per_step({**curve, **wrong}, 4, name="guidance")
    with pytest.raises(MgenError, match="is for guidance"):
        per_step(curve, 4, name="temperature")


def test_settings_that_a_curve_does_not_read_are_errors() -> None:
    with pytest.raises(MgenError, match="constant is its end in every step"):
        per_step({"kind": "constant", "start": 4.0}, 4, name="guidance")
    with pytest.raises(MgenError, match="at is not given: set at: tokens"):
        per_step({"kind": "linear", "end": 4.0, "left": 1}, 4, name="guidance")


def test_steps_outside_the_interval_skip_the_null_class() -> None:
    net = tiny_mar()
    own = {"steps": 8, "guidance": {"kind": "constant", "end": 4.0, "interval": [0.2, 0.4]}}
    plan = ParallelSampler(**BINOMIAL, **own, head={"steps": 2}).plan(net)
    assert [step.null_rows for step in plan.steps] == [step.guidance == 4.0 for step in plan.steps]
    assert sum(step.null_rows for step in plan.steps) == 2


def test_curves_count_revealed_tokens() -> None:
    left = {"unknown": [75, 0], "length": 100}
    for kind, middle in (("exponential", 1 - np.exp(-1.25)), ("sine", np.sin(np.pi / 8)), ("power", 0.25)):
        values = per_step({"kind": kind, "start": 1, "end": 3, "at": "tokens"}, 2, **left)
        assert values[0] == pytest.approx(1 + 2 * middle)
    with pytest.raises(MgenError, match="left counts tokens"):
        per_step({"kind": "linear", "left": 1, "at": "end"}, 2)


def test_guidance_by_image() -> None:
    x = torch.arange(8.0).view(4, 2).repeat(2, 1) * torch.tensor([1.0] * 4 + [2.0] * 4).unsqueeze(1)
    both = mix(x, torch.tensor([1.0, 3.0]))  # of two images, two rows each
    assert torch.equal(both, torch.cat([mix(x, 1.0)[:2], mix(x, 3.0)[2:]]))


# -- the solver --------------------------------------------------------------------------------------------------------


def test_outer_steps_add_up() -> None:
    assert outer_orders(8, 3) == [3, 3, 2] and outer_orders(9, 3) == [3, 3, 2, 1] and outer_orders(7, 3) == [3, 3, 1]
    assert outer_orders(1, 3) == [1] and outer_orders(2, 3) == [2] and outer_orders(3, 3) == [2, 1]
    assert all(sum(outer_orders(n, order)) == n for n in range(1, 30) for order in (1, 2, 3))


def test_singlestep_chains_approach_the_flow_faster_with_their_order() -> None:
    start = torch.randn(64, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    errors = [(singlestep(order, 48, start) - singlestep(3, 300, start)).abs().max() for order in (1, 2, 3)]
    assert errors[0] > 3 * errors[1] > 300 * errors[2] and errors[2] < 1e-3


def singlestep(order: int, calls: int, start: torch.Tensor) -> torch.Tensor:
    chain, x = make_chain(ChainSettings(chain=f"dpm-solver++{order}s", steps=calls), TABLES), start
    chain.begin()
    for j in range(calls):
        k = calls - 1 - j
        signal, noise = chain.tables.signal[k], chain.tables.noise[k]
        x = chain.step(j, x, x * (noise / (signal**2 * 0.25 + noise**2)), None, None, 1.0)
    return x


def test_singlestep_chains_add_no_noise() -> None:
    net = tiny_mar()
    settings = {"chain": "dpm-solver++3s", "steps": 1}
    net.head.check(settings, temperatures=[1.0])
    with pytest.raises(MgenError, match="temperature 0.9"):
        net.head.check(settings, temperatures=[0.9])
    with pytest.raises(MgenError, match="at least 2 training steps"):
        make_chain(ChainSettings(chain="dpm-solver++3s", steps=1), Tables(cosine_betas(1)))
    assert run(ChainSettings(steps=1), torch.zeros(1, 4)).shape == (1, 4)


# -- the model ---------------------------------------------------------------------------------------------------------


def test_one_vector_for_null_class_and_mask() -> None:
    net = tiny_mar(classes={"null_class": "mask"})
    ids = torch.tensor([0, net.null_class])
    assert torch.equal(net.classes(ids)[1], net.trunk.mask_token[0])
    assert len(net.classes.vectors.weight) == net.num_classes
    net.classes(ids)[1].sum().backward()
    assert (net.trunk.mask_token.grad == 1).all() and (net.classes.vectors.weight.grad == 0).all()
    again = Generator.from_config(net.config)
    again.load_state_dict(net.state_dict())
    assert torch.equal(again.classes(ids), net.classes(ids))
    shared = tiny_generator(classes={"null_class": "mask"})  # a trunk whose embedder holds the mask
    assert torch.equal(shared.classes(torch.tensor([shared.null_class]))[0], shared.embedder.mask)


@pytest.mark.parametrize("changes, words", [
    ({"classes": {"count": 0, "null_class": "mask"}}, "table of classes"),
    ({"classes": {"null_class": "mask"}, "decoder_dim": 16}, "equal widths"),
    ({"decoder_dim": 16, "drop_masked": False}, "equal widths"),
])  # fmt: skip
def test_models_that_cannot_share_the_vector(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(MgenError, match=words):
        tiny_mar(**changes)


def test_an_encoder_that_sees_masks_knows_nothing_of_what_is_hidden() -> None:
    net = tiny_mar(drop_masked=False).eval()
    assert not net.capabilities.cached_steps
    length, channels = net.tokens.length, net.tokens.channels
    known = torch.arange(length).expand(2, -1) % torch.tensor([[2], [3]]) == 0  # rows that know other numbers of tokens
    tokens, others = torch.randn(2, 2, length, channels)
    others = torch.where(known.unsqueeze(-1), tokens, others)
    ids = torch.tensor([0, 1])
    with torch.inference_mode():
        assert torch.equal(net.context(tokens, known, ids), net.context(others, known, ids))
        assert not torch.equal(net.context(tokens, known, ids), net.context(tokens, ~known, ids))


# -- training ----------------------------------------------------------------------------------------------------------


def objective(**mask: Any) -> GeneratorObjective:
    own = {"distribution": "masked-diffusion", "rounding": "binomial", **mask}
    return GeneratorObjective(tiny_mar(), GeneratorObjectiveConfig(mask=MaskConfig(**own), diffusion_batch_mul=2))


def test_a_batch_shares_one_count_and_validation_does_not() -> None:
    made = objective(per="batch", weighted=True)
    noise = made.make_noise(16, torch.Generator().manual_seed(0), augmentation=Augmentation())
    counts = (~noise.known).sum(1)
    assert (
        (counts == counts[0]).all()
        and not (noise.known == noise.known[0]).all()
        and len(set(noise.loss_weight.tolist())) == 1
    )
    alone = made.eval().make_noise(16, torch.Generator().manual_seed(0), augmentation=Augmentation())
    assert len(set((~alone.known).sum(1).tolist())) > 1 and len(set(alone.loss_weight.tolist())) == 16


def test_losses_are_weighted_image_by_image() -> None:
    made = objective(weighted=True)
    noise = made.make_noise(4, torch.Generator().manual_seed(0), augmentation=Augmentation())
    counts = (~noise.known).sum(1)
    got = made.weighted(torch.ones(2 * int(counts.sum())), noise)
    assert torch.equal(torch.stack([part[0] for part in got.split((2 * counts).tolist())]), noise.loss_weight)


def test_any_cut_of_a_batch_gives_the_same_loss() -> None:
    """So do several processes and pieces: images mask other numbers of tokens and have weights of their own."""
    made = objective(weighted=True)
    made.model.eval()  # no dropout
    whole = made.make_noise(5, torch.Generator().manual_seed(0), augmentation=Augmentation())
    whole = made.add_row_noise(whole, slice(0, 5), "row")
    assert len(set((~whole.known).sum(1).tolist())) > 1
    batch = {"tokens": torch.randn(5, 1, 64, 4), "label": torch.arange(5) % 3}
    total = made(batch, whole).loss
    parts = []
    for rows in (slice(0, 1), slice(1, 5)):
        piece = whole.rows(rows)
        loss = made({key: value[rows] for key, value in batch.items()}, piece).loss
        parts.append(loss * made.share(piece, whole) * len(piece.known) / 5)
    assert torch.allclose(sum(parts), total, rtol=1e-5)


def test_too_few_masked_tokens_are_drawn_again() -> None:
    draws = iter([(torch.tensor([0.5, 0.5]), torch.tensor([[0.9, 0.9, 0.0], [0.0, 0.0, 0.9]])),
                  (torch.tensor([0.25]), torch.tensor([[0.0, 0.0, 0.0]]))])  # fmt: skip
    config = MaskConfig(distribution="masked-diffusion", curve="linear", rounding="binomial")
    time, count = masked_counts(config, 2, lambda n: next(draws))
    assert time.tolist() == [0.25, 0.5] and count.tolist() == [3, 2]
    with pytest.raises(MgenError, match="hardly ever"):
        masked_counts(config, 1, lambda n: (torch.zeros(n), torch.ones(n, 3)))


@pytest.mark.parametrize("mask, words", [
    (dict(fewest=65), "fewest is 65"),
    (dict(distribution="uniform", weighted=True), "use masked-diffusion"),
])  # fmt: skip
def test_masks_that_cannot_be(mask: dict[str, Any], words: str) -> None:
    with pytest.raises(MgenError, match=words):
        objective(**mask)
