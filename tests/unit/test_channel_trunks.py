"""The trunks `mae` and `uvit` with a channel head: they train, sample in every order, edit, reuse, and are saved."""

from typing import Any

import pytest
import torch
from torch import Tensor

from mgen.convert.readers.tokenbridge import quantized_for
from mgen.nn.cache import CachedStep
from mgen.samplers import ParallelSampler
from mgen.utils.errors import MgenError
from tests.helpers import tiny_config, tiny_generator, tiny_kl, tiny_net, tiny_tokens
from tests.unit.test_channels import lively
from tools.ablations import ablations


def tiny(trunk: str, side: int = 4) -> Any:
    net = tiny_net(trunk, 1, tokens=tiny_tokens("multi-index", side=side), head={"order": (2, 0, 3, 1)})
    if trunk == "uvit":  # small weights, by which tokens hardly see each other
        with torch.no_grad():
            for part in (net.trunk.in_blocks, net.trunk.mid_block, net.trunk.out_blocks):
                for parameter in part.parameters():
                    parameter.mul_(4.0)
    lively(net.head)
    return net.eval()


@pytest.fixture(params=["mae", "uvit"])
def net(request: pytest.FixtureRequest) -> Any:
    return tiny(request.param)


def tokens_of(net: Any, count: int = 2) -> Tensor:
    return torch.randint(16, (count, *net.tokens.shape), generator=torch.Generator().manual_seed(5))


def run(net: Any, seeds: list[int], *, given: dict[str, Tensor] | None = None, **settings: Any) -> Tensor:
    sampler = ParallelSampler(**{"steps": 6, "guidance": 2.0, **settings})
    label = torch.tensor(seeds) % 3
    *_, last = sampler(net, label, noise=sampler.make_noise(net, seeds), **(given or {}))
    assert last.known.all()
    return last.tokens


def test_trunk_learns(net: Any) -> None:
    torch.manual_seed(0)
    net.train()
    tokens, label = tokens_of(net, 4), torch.tensor([0, 1, 2, 0])
    known = torch.rand(4, 16, generator=torch.Generator().manual_seed(6)) < 0.3
    optimizer = torch.optim.AdamW(net.parameters(), lr=2e-3)
    losses = []
    for _ in range(12):
        loss, hit = net(tokens, label, known)
        assert loss.shape == hit.shape == ((~known).sum(),)
        optimizer.zero_grad()
        loss.mean().backward()
        optimizer.step()
        losses.append(loss.mean().item())
    assert losses[-1] < 0.8 * losses[0]
    assert all(p.grad is not None and p.grad.any() for p in net.parameters())


@pytest.mark.parametrize("order", ["random", "confidence", "halton", "raster"])
def test_runs_do_not_depend_on_the_batch(net: Any, order: str) -> None:
    if order == "confidence":
        assert net.head.has_log_prob
    together = run(net, [0, 1, 2], order=order)
    assert together.shape == (3, 16, 4) and together.dtype == torch.int64
    assert together.min() >= 0 and together.max() < 16 and len(together.unique()) > 8
    alone = torch.cat([run(net, [seed], order=order) for seed in (0, 1, 2)])
    assert torch.equal(together, alone)
    assert not torch.equal(together, run(net, [3, 4, 5], order=order))


def test_given_tokens_never_change(net: Any) -> None:
    given = {"tokens": tokens_of(net), "known": torch.arange(16).expand(2, -1) % 3 == 0}
    for order in ("random", "confidence"):
        drawn = run(net, [0, 1], order=order, given=given)
        assert torch.equal(drawn[given["known"]], given["tokens"][given["known"]])


@torch.inference_mode()
def test_the_surest_tokens_are_revealed_first(net: Any) -> None:
    """Without noise on the confidences, the revealed positions have the largest joint log-probabilities of their channels."""
    sampler = ParallelSampler(steps=4, order="confidence", confidence_temperature=0.0, schedule="linear")
    label, noise = torch.tensor([0, 1]), sampler.make_noise(net, [0, 1])
    first = next(sampler(net, label, noise=noise))
    unknown = torch.zeros(2, 16, dtype=torch.bool)
    z = net.context(torch.zeros(2, 16, 4, dtype=torch.int64), unknown, label)
    drawn, score = net.head.sample(z, noise=noise.at(0, torch.arange(16).expand(2, -1)))
    best = score.topk(4, dim=1).indices
    assert torch.equal(unknown.scatter(1, best, True), first.known)
    assert torch.equal(first.tokens[first.known], drawn[first.known])


@torch.inference_mode()
def test_masked_tokens_are_not_read(net: Any) -> None:
    tokens, label, known = tokens_of(net), torch.tensor([0, 2]), torch.arange(16).expand(2, -1) % 2 == 0
    z = net.context(tokens, known, label)
    hidden = torch.where(known.unsqueeze(-1), tokens, 0)
    assert torch.equal(net.context(hidden, known, label), z)
    other = tokens.clone()
    other[:, 0, 0] = (other[:, 0, 0] + 5) % 16
    assert (net.context(other, known, label) - z).abs().max() > 1e-3


@torch.inference_mode()
@pytest.mark.parametrize("done", [0, 1, 9])
def test_a_cached_step_of_every_position_is_a_full_pass(net: Any, done: int) -> None:
    tokens, label = tokens_of(net), torch.tensor([0, 2])
    group = torch.stack([torch.randperm(16, generator=torch.Generator().manual_seed(i)) for i in range(2)])
    cache = net.start(label)
    unknown = torch.zeros(2, 16, dtype=torch.bool)
    net.context(tokens, unknown, label, cache=cache, keep=done)
    step = CachedStep(group=group, done=done, fresh=(0, 16), asked=(done, 16))
    got = net.cached_step(tokens, label, cache, step)
    known = unknown.scatter(1, group[:, :done], True)
    expected = net.context(tokens, known, label, positions=group[:, done:])
    assert (got - expected).abs().max() < 2e-5 * expected.abs().max()


@pytest.mark.parametrize("order", ["random", "confidence"])
def test_runs_with_cached_steps(net: Any, order: str) -> None:
    plain = run(net, [0, 1], order=order)
    assert torch.equal(run(net, [0, 1], order=order, reuse={"cached": 0}), plain)
    cached = run(net, [0, 1], order=order, reuse={"cached": 1, "full_first": 2})
    assert cached.shape == plain.shape and not torch.equal(cached, plain)


def test_levels_are_saved_and_read_back(net: Any, tmp_path: Any) -> None:
    net.embedder.level_values.mul_(1.01)  # a checkpoint's own, not what the configuration would give
    net.save_pretrained(tmp_path)
    again = type(net).from_pretrained(tmp_path)
    assert torch.equal(again.embedder.level_values, net.embedder.level_values)
    assert torch.equal(run(again.eval(), [0, 1], order="random"), run(net, [0, 1], order="random"))


def test_tokens_fit_the_quantized_tokenizer(net: Any) -> None:
    generator = tiny(net.trunk.type_name, side=8)
    generator.embedder.level_values.mul_(1.01)
    made = quantized_for(generator, tiny_kl())
    made.spec.require(generator.tokens, by="test")
    assert made.spec.kind == "multi-index" and made.config.channel_order == (2, 0, 3, 1)
    assert torch.equal(made.level_values, generator.embedder.level_values)
    assert quantized_for(generator, made) is made


def test_names_of_the_weights_of_a_generator_of_ids() -> None:
    names = set(tiny_net("uvit").state_dict())
    assert names >= {
        "embedder.table.weight",
        "trunk.position.weight",
        "trunk.token_norm.weight",
        "head.fc.weight",
        "head.bias",
    }
    assert not any("level" in name or "mask" in name for name in names)
    assert len(names) == 8 + 3 * 11 + 2 + 2 + 5  # embeddings, blocks, their skip, norm, head


@pytest.mark.parametrize("guide", ["context", "logits"])
def test_ablations_draw_the_same_ids(net: Any, guide: str) -> None:
    sampler = ParallelSampler(steps=4, order="random", guidance=2.0, head={"guide": guide})
    rows = ablations(net, sampler, batch_size=2, repeats=1)
    assert len(rows) == (5 if guide == "logits" else 4)
    assert all(row["difference"] == 0 and row["ratio"] > 0 for row in rows)


def test_a_head_refuses_the_settings_of_others(net: Any) -> None:
    for head in ({"steps": 10}, {"tempered": True}):
        with pytest.raises(MgenError, match="unknown key 'head."):
            run(net, [0], head=head)
    with pytest.raises(MgenError, match="guide"):
        ParallelSampler(head={"guide": "logits"}).check(tiny_net("uvit"))
    with pytest.raises(MgenError, match="did you mean 'channels'"):
        tiny_net("uvit", head={"type": "channel"})


def test_remasking_draws_known_tokens_again_channel_by_channel() -> None:
    tokens = tiny_tokens("multi-index", channels=3, vocab_size=8)
    net = tiny_generator(tokens=tokens, head={"width": 16, "depth": 1})
    sampler = ParallelSampler(steps=4, order="remasking", counts="halton-confidence", schedule="arccos")
    tokens, known = torch.zeros(2, 16, 3, dtype=torch.int64), torch.zeros(2, 16, dtype=torch.bool)
    known[:, 3:6] = True
    *_, step = sampler(net, torch.tensor([0, 1]), noise=sampler.make_noise(net, [1, 2]), tokens=tokens, known=known)
    assert step.known.all() and not step.tokens[known].any() and step.tokens[~known].any()


def test_a_benchmark_finds_a_tokenizer_for_quantized_tokens() -> None:
    from mgen.bench.benchmark import random_pipeline

    tokens = tiny_tokens("multi-index", side=2, channels=16, vocab_size=64) | {"scale": None}
    parts = random_pipeline(tiny_config("mae", tokens=tokens), "auto")
    assert parts.tokenizer is not None
    assert parts.tokenizer.decode(torch.zeros(1, 4, 16, dtype=torch.int64)).shape == (1, 3, 32, 32)
