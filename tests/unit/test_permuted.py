"""The permuted causal trunk (RAR): any settled order, its cache, given tokens, editing, and the orders of training."""

from typing import Any

import pytest
import torch
from torch import Tensor

from mgen.bench.benchmark import RandomPipeline
from mgen.bench.flops import count_run
from mgen.pipelines.editing import edit
from mgen.pipelines.pipeline import MaskedPipeline
from mgen.pipelines.resample import resample
from mgen.samplers import ParallelSampler
from mgen.training.config import GeneratorObjectiveConfig, MaskConfig, PermutationConfig
from mgen.training.generator_objective import GeneratorObjective
from mgen.training.noise import Augmentation
from mgen.utils.errors import MgenError
from tests.helpers import tiny_net, tiny_tokenizer, tiny_tokens
from tools.ablations import ablations, prepare

KINDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "spare rows": {"spare_rows": True},
    "without a grid": {"tokens": {"kind": "index", "length": 12, "vocab_size": 16}},
    "global tokens": {"tokens": tiny_tokens(global_tokens=5)},
    "windows": {"windows": {"side": 2}},
}


def tiny(**sections: Any) -> Any:
    net, rng = tiny_net("permuted", **sections), torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in net.parameters():  # modulations and output table start at zero
            parameter.copy_(0.2 * torch.randn(parameter.shape, generator=rng))
    return net


def some_tokens(net: Any, count: int = 2) -> Tensor:
    return torch.randint(16, (count, *net.units.shape), generator=torch.Generator().manual_seed(3))


def random_orders(net: Any, count: int = 2) -> Tensor:
    """Orders (B, L), global tokens first."""
    rank = torch.rand(count, net.units.length, generator=torch.Generator().manual_seed(4))
    rank[:, : net.units.global_tokens] -= 1
    return rank.argsort(1)


def draw(
    net: Any, order: Any = "random", seeds: tuple[int, ...] = (1, 2), given: Any = None, **settings: Any
) -> Tensor:
    sampler = ParallelSampler.suited(net, {"guidance": 2.0, "order": order, **settings})
    tokens, known = given or (None, None)
    noise = sampler.make_noise(net, list(seeds))
    *_, end = sampler(net, torch.tensor(seeds) % 3, noise=noise, tokens=tokens, known=known)
    return end.tokens


@pytest.mark.parametrize("kind", sorted(KINDS))
@pytest.mark.parametrize("few", [True, False])
def test_one_token_after_the_other_is_the_whole_sequence(kind: str, few: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """In random orders, with modulations made once or in every step, and begun behind given tokens."""
    net, label = tiny(**KINDS[kind]), torch.tensor([2, 2])
    tokens, order, length = some_tokens(net), random_orders(net), net.units.length
    whole = net.trunk.training_context(net.rows(tokens, None), net.classes(label), noise=order)

    def cached(first: int) -> list[Tensor]:
        cache, rows = net.start(label), []
        if not few:
            cache.modulations = None
        for i in range(first, length):
            known = torch.zeros(2, length, dtype=torch.bool).scatter(1, order[:, :i], True)
            at = order[:, i : i + 1]
            rows.append(net.context(tokens, known, label, positions=at, visible=(i, i), cache=cache))
        assert len(cache.classes) == 1, "both images are of one class"
        return rows

    rows = torch.cat(cached(0), dim=1)
    torch.testing.assert_close(rows, whole.gather(1, order.unsqueeze(-1).expand_as(whole)), atol=2e-5, rtol=1e-4)
    order[:, :3] = order[:, :3].sort(dim=1).values  # given tokens are read as they stand
    whole = net.trunk.training_context(net.rows(tokens, None), net.classes(label), noise=order)
    late = torch.cat(cached(3), dim=1)
    torch.testing.assert_close(late, whole.gather(1, order[:, 3:, None].expand_as(late)), atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_a_token_is_predicted_from_those_before_it_in_the_order(kind: str) -> None:
    net, label = tiny(**KINDS[kind]), torch.tensor([0])
    tokens, order = some_tokens(net, 1), random_orders(net, 1)
    changed, at = tokens.clone(), order[0, 2]
    changed[:, at] = (changed[:, at] + 1) % 16
    a, b = (net.trunk.training_context(net.rows(t, None), net.classes(label), noise=order) for t in (tokens, changed))
    same = (a == b).all(-1)[0]
    assert same[order[0, :3]].all() and not same[order[0, 3:]].any()
    other = order.roll(1, dims=1) if not net.units.global_tokens else order.flip(1)
    assert not torch.allclose(net.trunk.training_context(net.rows(tokens, None), net.classes(label), noise=other), a)


@pytest.mark.parametrize("order", ["raster", "random", "halton", "list"])
def test_an_image_depends_on_its_seed_alone(order: str) -> None:
    net = tiny()
    own: Any = list(range(15, -1, -1)) if order == "list" else order
    together = draw(net, own, seeds=(1, 2, 3))
    assert torch.equal(draw(net, own, seeds=(2,))[0], together[1]) and not torch.equal(together[0], together[1])
    assert order == "raster" or not torch.equal(draw(net, "raster", seeds=(1, 2, 3)), together)


def test_random_orders_differ_between_images() -> None:
    net = tiny()
    sampler = ParallelSampler.suited(net, {"order": "random"})
    drawn = [step.positions for step in sampler(net, torch.tensor([0, 1]), noise=sampler.make_noise(net, [1, 2]))]
    places = torch.cat(drawn, dim=1)
    assert torch.equal(places.sort(1).values, torch.arange(16).expand(2, 16)) and not torch.equal(places[0], places[1])


def test_given_tokens_may_be_anywhere_and_come_first() -> None:
    net, known = tiny(), torch.zeros(2, 16, dtype=torch.bool)
    tokens, known[:, [3, 8, 9]] = some_tokens(net), True
    end = draw(net, given=(tokens, known))
    assert torch.equal(end[known], tokens[known])
    assert torch.equal(draw(net, given=(end, known)), end), "what is not given is not read"
    changed = torch.where(known, (tokens + 1) % 16, tokens)
    assert not torch.equal(draw(net, given=(changed, known))[~known], end[~known])
    known[0, 0] = True
    with pytest.raises(MgenError, match="equally many given tokens"):
        draw(net, given=(tokens, known))


def test_a_part_of_an_image_can_be_edited() -> None:
    net = tiny(tokens=tiny_tokens(side=8, vocab_size=64))
    sampler = ParallelSampler.suited(net, {"order": "random"})
    pipe = MaskedPipeline(tokenizer=tiny_tokenizer(), transformer=net, sampler=sampler)
    image = torch.randint(256, (1, 32, 32), dtype=torch.uint8)
    mask = torch.zeros(32, 32, dtype=torch.bool)
    mask[:, :16] = True
    made = edit(pipe, image, mask, [0, 1], progress=False)
    assert torch.equal(made[:, :, :, 16:], image[:, :, 16:].expand(2, -1, -1, -1))
    masked = torch.arange(64).expand(2, -1) % 8 < 4
    tokens, _ = resample(pipe, some_tokens(net), masked, [0, 1])
    assert torch.equal(tokens[~masked], some_tokens(net)[~masked]) and not torch.equal(tokens[0], tokens[1])


def test_what_does_not_fit_is_refused() -> None:
    net = tiny()
    for settings in (
        {"steps": 8},
        {"order": "confidence"},
        {"order": "remasking"},
        {"schedule": "cosine"},
        {"start": 2},
    ):
        with pytest.raises(MgenError, match="needs steps 16, an order that is settled before the run"):
            ParallelSampler.suited(net, settings).check(net)
    with pytest.raises(MgenError, match="no cached steps"):
        ParallelSampler.suited(net, {"reuse": {"cached": 1}}).check(net)
    with pytest.raises(MgenError, match="objective.mask is for masked generators"):
        GeneratorObjective(net, GeneratorObjectiveConfig(mask=MaskConfig(distribution="uniform")))
    with pytest.raises(MgenError, match="objective.permutation is for trunks that take any order"):
        GeneratorObjective(tiny_net("causal"), GeneratorObjectiveConfig(permutation=PermutationConfig(end=3)))


def test_the_share_of_permuted_images_falls_from_start_to_end() -> None:
    published = PermutationConfig(start=125_000, end=187_500)
    shares = [published.share(step) for step in (0, 125_000, 156_250, 187_500, 250_000)]
    assert shares == [1.0, 1.0, 0.5, 0.0, 0.0]
    assert PermutationConfig().share(10**6) == 1.0
    assert [PermutationConfig(start=5, end=5).share(step) for step in (4, 5)] == [1.0, 0.0]
    with pytest.raises(MgenError, match="start is 7, end 3"):
        PermutationConfig(start=7, end=3)


def test_training_orders_follow_the_step_and_validation_the_end() -> None:
    net = tiny(**KINDS["global tokens"]).train()
    raster = torch.arange(21).expand(40, -1)

    def orders(step: int, training: bool = True, **settings: Any) -> Tensor:
        config = GeneratorObjectiveConfig(permutation=PermutationConfig(**settings), label_smoothing=0.0)
        objective = GeneratorObjective(net, config).train(training)
        rng = torch.Generator().manual_seed(0)
        made = objective.make_noise(40, rng, augmentation=Augmentation(), step=step).trunk
        assert made is not None and torch.equal(made.sort(1).values, raster)
        assert (made[:, :5] < 5).all(), "global tokens come first, as in sampling"
        return made

    unlike = [int((orders(step, start=10, end=20) != raster).any(1).sum()) for step in (0, 10, 15, 20)]
    assert unlike[0] == unlike[1] == 40 and 8 < unlike[2] < 32 and unlike[3] == 0
    assert torch.equal(orders(0, training=False, end=20), raster) and not torch.equal(orders(0, training=False), raster)


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_the_objective_predicts_every_token(kind: str) -> None:
    net = tiny(**KINDS[kind]).train()
    objective = GeneratorObjective(net, GeneratorObjectiveConfig(label_smoothing=0.0))
    noise = objective.make_noise(3, torch.Generator().manual_seed(0), augmentation=Augmentation())
    batch = {"tokens": torch.randint(16, (3, 1, net.tokens.length)), "label": torch.tensor([0, 1, 2])}
    loss = objective(batch, noise).loss
    loss.backward()
    assert loss.isfinite() and all(p.grad is not None for p in net.parameters())


def test_every_ablation_draws_the_same_ids() -> None:
    net = tiny()
    sampler = prepare(net, ParallelSampler.suited(net, {"guidance": 2.0}))
    rows = ablations(net, sampler, batch_size=2, repeats=1)
    assert len(rows) == 4 and all(row["difference"] == 0 for row in rows)


def test_operations_are_those_of_two_passes_over_the_sequence() -> None:
    """One image, guided: every row once for the class and once for the null class; the first pass has two rows."""
    net = tiny(tokens={"kind": "index", "length": 6, "vocab_size": 16})
    sampler = ParallelSampler.suited(net, {"guidance": 2.0})
    counts = count_run(RandomPipeline(net, None, sampler), sampler)
    layers = [m for m in net.trunk.modules() if isinstance(m, torch.nn.Linear)]
    products = 2 * 2 * 7 * sum(layer.weight.numel() for layer in layers)  # two passes, seven rows; a product is 2
    attention = 2 * 2 * 2 * 2 * 32 * (2 * 2 + 3 + 4 + 5 + 6 + 7)  # two passes, two blocks, scores and their use, D
    assert counts.flops["trunk"] == products + attention
