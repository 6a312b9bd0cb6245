"""Both trunks with a head over channels: they train, sample in every order, edit, reuse, and are saved."""

from typing import Any

import pytest
import torch
from torch import Tensor

from mgen.bench.savings import savings
from mgen.convert.tokenbridge import quantized_for
from mgen.generators import MAR, MaskGIT
from mgen.nn import Local
from mgen.samplers import ParallelSampler
from mgen.utils.errors import MgenError
from tests.helpers import tiny_generator, tiny_kl
from tests.unit.test_channels import lively

HEAD: dict[str, Any] = dict(head_kind="channels", channels=4, levels=16, channel_order=(2, 0, 3, 1), scale=1.0)
SIZES: dict[str, Any] = {
    "MAR": dict(
        **{f"{part}_{k}": v for part in ("encoder", "decoder") for k, v in (("dim", 32), ("depth", 2), ("heads", 2))},
        buffer=2,
        attn_dropout=0.0,
    ),
    "MaskGIT": dict(dim=32, depth=2, heads=2),
}


def tiny(name: str, **settings: Any) -> Any:
    torch.manual_seed(1)
    shared = dict(side=4, num_classes=3, dropout=0.0, head_width=32, head_depth=2, head_heads=2)
    net = {"MAR": MAR, "MaskGIT": MaskGIT}[name](**{**SIZES[name], **shared, **HEAD, **settings})
    if name == "MaskGIT":  # small weights, by which tokens hardly see each other
        with torch.no_grad():
            for part in (net.in_blocks, net.mid_block, net.out_blocks):
                for parameter in part.parameters():
                    parameter.mul_(4.0)
    lively(net.head)
    return net.eval()


@pytest.fixture(params=["MAR", "MaskGIT"])
def net(request: pytest.FixtureRequest) -> Any:
    return tiny(request.param)


def tokens_of(net: Any, count: int = 2) -> Tensor:
    return torch.randint(16, (count, *net.spec.shape), generator=torch.Generator().manual_seed(5))


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
    assert {name for name, p in net.named_parameters() if p.grad is None or not p.grad.any()} <= {"fake_latent"}


@pytest.mark.parametrize("order", ["random", "confidence", "halton", "raster"])
def test_runs_do_not_depend_on_the_batch(net: Any, order: str) -> None:
    if order == "confidence":
        assert net.head.ranks
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
def test_local_with_every_position_anew_is_a_full_evaluation(net: Any, done: int) -> None:
    tokens, label = tokens_of(net), torch.tensor([0, 2])
    group = torch.stack([torch.randperm(16, generator=torch.Generator().manual_seed(i)) for i in range(2)])
    memory = net.memory(label)
    memory.keep, memory.room = True, done
    unknown = torch.zeros(2, 16, dtype=torch.bool)
    net.context(tokens, unknown, label, memory=memory)
    step = Local(group=group, done=done, fresh=(0, 16), asked=(done, 16))
    got = net.local(tokens, label, memory, step)
    known = unknown.scatter(1, group[:, :done], True)
    expected = net.context(tokens, known, label, positions=group[:, done:])
    assert (got - expected).abs().max() < 2e-5 * expected.abs().max()


@pytest.mark.parametrize("order", ["random", "confidence"])
def test_runs_with_local_steps(net: Any, order: str) -> None:
    plain = run(net, [0, 1], order=order)
    assert torch.equal(run(net, [0, 1], order=order, reuse={"cached": 0}), plain)
    local = run(net, [0, 1], order=order, reuse={"cached": 1, "full_first": 2})
    assert local.shape == plain.shape and not torch.equal(local, plain)


def test_levels_are_saved_and_read_back(net: Any, tmp_path: Any) -> None:
    net.levels_table.mul_(1.01)  # a checkpoint's own, not what the configuration would give
    net.save_pretrained(tmp_path)
    again = type(net).from_pretrained(tmp_path)
    assert torch.equal(again.levels_table, net.levels_table)
    assert torch.equal(run(again.eval(), [0, 1], order="random"), run(net, [0, 1], order="random"))


def test_spec_fits_the_quantised_tokenizer(net: Any) -> None:
    generator = tiny(type(net).__name__, side=8)
    generator.levels_table.mul_(1.01)
    made = quantized_for(generator, tiny_kl())
    made.spec.require(generator.spec, by="test")
    assert made.spec.kind == "multi-index" and made.config.channel_order == (2, 0, 3, 1)
    assert torch.equal(made.level_values, generator.levels_table)
    assert quantized_for(generator, made) is made


def test_the_categorical_trunk_keeps_its_names() -> None:
    names = set(MaskGIT(side=4, codes=16, dim=32, depth=2, heads=2).state_dict())
    assert names >= {
        "token_embed.word.weight",
        "token_embed.position.weight",
        "token_embed.norm.weight",
        "head.fc.weight",
        "head.bias",
    }
    assert not any("level" in name or "mask" in name for name in names)
    assert len(names) == 8 + 3 * 11 + 2 + 2 + 5  # embeddings, blocks, their skip, norm, head


@pytest.mark.parametrize("guide", ["context", "logits"])
def test_savings_draw_the_same_ids(net: Any, guide: str) -> None:
    sampler = ParallelSampler(steps=4, order="random", guidance=2.0, head={"guide": guide})
    rows = savings(net, sampler, batch_size=2, repeats=1)
    assert len(rows) == (5 if guide == "logits" else 4)
    assert all(row["difference"] == 0 and row["ratio"] > 0 for row in rows)


def test_a_head_refuses_the_settings_of_others(net: Any) -> None:
    for head in ({"steps": 10}, {"tempered": True}):
        with pytest.raises(MgenError, match="unknown key 'head."):
            run(net, [0], head=head)
    with pytest.raises(MgenError, match="guide"):
        ParallelSampler(head={"guide": "logits"}).check(MaskGIT(side=4, codes=16, dim=32, depth=2, heads=2))
    with pytest.raises(MgenError, match="head_kind"):
        MaskGIT(head_kind="channel")


def test_remasking_draws_known_tokens_again_channel_by_channel() -> None:
    net = tiny_generator(side=4, head_kind="channels", channels=3, levels=8, head_width=16, head_depth=1, head_heads=2)
    sampler = ParallelSampler(steps=4, order="remasking", counts="halton-confidence", schedule="arccos")
    tokens, known = torch.zeros(2, 16, 3, dtype=torch.int64), torch.zeros(2, 16, dtype=torch.bool)
    known[:, 3:6] = True
    *_, step = sampler(net, torch.tensor([0, 1]), noise=sampler.make_noise(net, [1, 2]), tokens=tokens, known=known)
    assert step.known.all() and not step.tokens[known].any() and step.tokens[~known].any()


def test_a_benchmark_finds_a_tokenizer_for_quantised_tokens() -> None:
    from mgen.bench.benchmark import random_pipeline

    sizes = dict(encoder_dim=32, encoder_depth=1, encoder_heads=2, decoder_dim=32, decoder_depth=1, decoder_heads=2)
    settings = {
        "class": "MAR",
        "head_kind": "channels",
        "side": 2,
        "head_width": 16,
        "head_heads": 2,
        "buffer": 2,
        **sizes,
    }
    parts = random_pipeline(settings, "auto")
    assert parts.tokenizer.decode(torch.zeros(1, 4, 16, dtype=torch.int64)).shape == (1, 3, 32, 32)
