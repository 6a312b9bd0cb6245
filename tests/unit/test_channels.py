"""The channel head: its fast draw is the plain one, and its loss and settings are what they say."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mgen.heads import ChannelHead, ChannelSettings, HeadInputs, check_draw
from mgen.heads import channels as module
from mgen.heads.channels import ChannelConfig
from mgen.heads.logit_filter import choose, keep_likeliest
from mgen.tokens import TokenSpec
from mgen.utils.errors import MgenError
from tools.ablations.channels import PlainChannelHead, randomize

C, Q, D, ORDER = 5, 7, 12, (3, 0, 4, 1, 2)


def lively(head: ChannelHead) -> ChannelHead:
    """With weights under which ids depend on contexts and on each other: new modulations do nothing."""
    randomize(head)
    with torch.no_grad():
        head.out.weight.mul_(2.5)
    return head.eval()


def new_head(channels: int = C, **settings: Any) -> ChannelHead:
    torch.manual_seed(0)
    tokens = TokenSpec(kind="multi-index", length=4, channels=channels, vocab_size=Q)
    config = ChannelConfig(**{"width": 16, "depth": 2, "heads": 2, **settings})
    made = ChannelHead(config, HeadInputs(tokens=tokens, width=D))
    made.initialize(lambda module: None)
    return made


def tiny_head(channels: int = C, **settings: Any) -> ChannelHead:
    return lively(new_head(channels, **{"order": ORDER, **settings}))


def contexts(b: int = 3, m: int = 4, *, guided: bool = False) -> Tensor:
    return torch.randn(2 * b if guided else b, m, D, generator=torch.Generator().manual_seed(2))


def uniform(b: int = 3, m: int = 4, *more: int) -> Tensor:
    return torch.rand(b, m, C, *more, generator=torch.Generator().manual_seed(3))


# -- the draw ----------------------------------------------------------------------------------------------------------


@torch.inference_mode()
@pytest.mark.parametrize("cuts", [{}, {"top_k": 3}, {"top_p": 0.8}, {"top_k": 4, "top_p": 0.5}])
@pytest.mark.parametrize("guide", ["context", "logits"])
@pytest.mark.parametrize("guidance", [None, 2.5])
@pytest.mark.parametrize("gumbel", [False, True])
def test_cached_draw_is_the_plain_one(gumbel: bool, guidance: float | None, guide: str, cuts: dict[str, Any]) -> None:
    head, z = tiny_head(), contexts(guided=guidance is not None)
    noise = -(-uniform(3, 4, Q).log()).log() if gumbel else uniform()
    draw: dict[str, Any] = dict(
        noise=noise, plan=head.plan({"guide": guide, **cuts}), temperature=0.8, guidance=guidance
    )
    ids, score = head.sample(z, **draw)
    plain, plain_score = PlainChannelHead(head).sample(z, **draw)
    assert torch.equal(ids, plain) and ids.dtype == torch.int64
    assert torch.allclose(score, plain_score, atol=1e-5)
    assert len(ids.unique()) > 3
    for switch in ("cached", "ahead", "together"):
        assert torch.equal(PlainChannelHead(head, **{switch: True}).sample(z, **draw)[0], ids)


@torch.inference_mode()
@pytest.mark.parametrize("first", ["published", "consistent"])
def test_score_is_the_teacher_forced_log_probability(first: str) -> None:
    """At temperature 1 and over all ids, whatever the draw was cut to."""
    head, z = tiny_head(first=first), contexts()
    ids, score = head.sample(z, noise=uniform(), temperature=0.7, plan=ChannelSettings(top_k=2))
    log = head.forced(z, ids, sampling=True).log_softmax(-1).gather(-1, head.by_slot(ids).unsqueeze(-1))
    assert torch.allclose(score, log.squeeze(-1).sum(-1), atol=1e-5)
    training = head.forced(z, ids)
    assert torch.equal(training, head.forced(z, ids, sampling=True)) == (first == "consistent")


@torch.inference_mode()
def test_guidance_of_logits_is_not_that_of_contexts() -> None:
    head, z = tiny_head(), contexts(guided=True)
    a, b = (
        head.sample(z, noise=uniform(), guidance=3.0, plan=ChannelSettings(guide=g))[0] for g in ("context", "logits")
    )
    assert not torch.equal(a, b)
    conditional, null = z.chunk(2)
    assert torch.equal(a, head.sample(torch.lerp(null, conditional, 3.0), noise=uniform())[0])


@torch.inference_mode()
def test_ids_and_noise_are_in_the_tokenizers_order() -> None:
    """The same weights with another order draw the same ids, written to other channels."""
    head, plain = tiny_head(), tiny_head(order=None)
    plain.load_state_dict(head.state_dict())
    z, noise = contexts(), uniform()
    ids, _ = head.sample(z, noise=noise)
    ids_in_order, _ = plain.sample(z, noise=noise[..., list(ORDER)])
    assert torch.equal(ids[..., list(ORDER)], ids_in_order)
    assert torch.equal(head.by_slot(ids), ids_in_order)


@torch.inference_mode()
@pytest.mark.parametrize("guide", ["context", "logits"])
def test_pieces_change_nothing(monkeypatch: pytest.MonkeyPatch, guide: str) -> None:
    head, z, noise = tiny_head(), contexts(guided=True), uniform()
    draw: dict[str, Any] = dict(noise=noise, guidance=2.0, plan=ChannelSettings(guide=guide))
    whole = head.sample(z, **draw)
    sizes, own = [], head._draw

    def counted(z: Tensor, noise: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
        sizes.append(len(noise))
        return own(z, noise, *rest)

    monkeypatch.setattr(head, "_draw", counted)
    monkeypatch.setattr(module, "PIECE", 5 * C * 16 * (6 * 2 + 2) * (2 if guide == "logits" else 1))
    pieces = head.sample(z, **draw)
    assert sizes == [4, 4, 4], "12 tokens, at most 5 at a time, in equal pieces"
    assert torch.equal(whole[0], pieces[0]) and torch.allclose(whole[1], pieces[1], atol=1e-5)


@torch.inference_mode()
def test_the_first_channel_follows_its_distribution() -> None:
    head, z, n = tiny_head(), contexts(1, 1), 2000
    noise = uniform(1, n)
    noise[0, :, ORDER[0]] = (torch.arange(n) + 0.5) / n
    ids, _ = head.sample(z.expand(1, n, D), noise=noise, temperature=1.5)
    share = (head.forced(z, ids[:, :1], sampling=True)[0, 0, 0] / 1.5).softmax(-1)
    counts = F.one_hot(ids[0, :, ORDER[0]], Q).sum(0)
    assert (counts - n * share).abs().max() <= 1.01
    assert 0.02 < share.max() < 0.98


@torch.inference_mode()
def test_low_temperature_and_one_candidate_are_greedy() -> None:
    head, z = tiny_head(), contexts()
    cold, _ = head.sample(z, noise=uniform(), temperature=0.0)
    one, _ = head.sample(z, noise=uniform(), plan=ChannelSettings(top_k=1))
    best = head.forced(z, cold, sampling=True).argmax(-1)
    assert torch.equal(head.by_slot(cold), best) and torch.equal(cold, one)


def test_top_p_keeps_the_fewest_ids_that_reach_it() -> None:
    logits = torch.tensor([[0.15, 0.5, 0.05, 0.3]]).log()
    for top_p, kept in (
        (0.4, [1]),
        (0.6, [1, 3]),
        (0.79, [1, 3]),
        (0.81, [0, 1, 3]),
        (0.96, [0, 1, 2, 3]),
        (1.0, [0, 1, 2, 3]),
    ):
        assert keep_likeliest(logits, top_p=top_p).isfinite()[0].nonzero().flatten().tolist() == kept
    # Of the two that top-k leaves, the likelier has 0.625 of the probability.
    assert keep_likeliest(logits, top_k=2, top_p=0.6).isfinite()[0].nonzero().flatten().tolist() == [1]
    cut = keep_likeliest(logits, top_p=0.6)
    points = (torch.arange(800) + 0.5) / 800
    assert choose(cut.expand(800, -1), points).bincount(minlength=4).tolist() == [0, 500, 0, 300]


@torch.inference_mode()
def test_runs_in_bf16() -> None:
    head, z, noise = tiny_head(), contexts(), uniform()
    with torch.autocast("cpu", torch.bfloat16):
        ids, score = head.sample(z, noise=noise)
    assert score.isfinite().all() and score.dtype == torch.float32
    assert (ids == head.sample(z, noise=noise)[0]).float().mean() > 0.5


# -- training ----------------------------------------------------------------------------------------------------------


def test_logits_see_earlier_ids_only() -> None:
    head, z = tiny_head(), contexts(1, 1)
    ids = torch.zeros(1, 1, C, dtype=torch.int64)
    base = head.forced(z, ids)
    for slot, channel in enumerate(ORDER):
        other = ids.clone()
        other[..., channel] = 5
        changed = (head.forced(z, other) - base).abs().amax(-1).flatten() > 1e-6
        assert changed.tolist() == [i > slot for i in range(C)]


def test_loss_is_the_mean_cross_entropy_of_the_channels() -> None:
    head, z = tiny_head(), contexts()
    ids = torch.randint(Q, (3, 4, C), generator=torch.Generator().manual_seed(4))
    log = head.forced(z, ids).log_softmax(-1)
    right = log.gather(-1, head.by_slot(ids).unsqueeze(-1)).squeeze(-1)
    loss, hit = head.loss(z, ids)
    assert loss.shape == hit.shape == (3, 4)
    assert torch.allclose(loss, -right.mean(-1), atol=1e-6)
    assert torch.allclose(hit, (right == log.amax(-1)).float().mean(-1))
    smooth, _ = head.loss(z, ids, label_smoothing=0.1)
    assert torch.allclose(smooth, -(0.9 * right + 0.1 * log.mean(-1)).mean(-1), atol=1e-6)
    loss.mean().backward()
    assert all(p.grad is not None and p.grad.any() for p in head.parameters())


def test_new_head_starts_as_published() -> None:
    """Modulations at zero: every block is the identity, and the output does not depend on the context."""
    head = new_head()
    ids = torch.zeros(2, C, dtype=torch.int64)
    logits = head.forced(torch.randn(2, D), ids)
    assert torch.equal(logits[0, 1:], logits[1, 1:]) and not torch.equal(logits[0, 0], logits[1, 0])
    assert 0.9 < head.tokens.weight.std() < 1.1
    bound = (6 / (16 + Q)) ** 0.5  # Xavier, of a layer per channel
    assert 0.9 * bound < head.out.weight.abs().max() <= bound


@torch.inference_mode()
def test_one_channel_is_a_categorical_head() -> None:
    head = tiny_head(channels=1, order=None)
    z, noise = contexts(), uniform()[..., :1]
    ids, score = head.sample(z, noise=noise)
    logits = head.forced(z, ids, sampling=True)[..., 0, :]
    assert torch.equal(ids[..., 0], choose(logits, noise[..., 0]))
    assert torch.allclose(score, logits.log_softmax(-1).gather(-1, ids).squeeze(-1), atol=1e-6)


# -- errors ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        (dict(order=(0, 1, 2, 3, 3)), r"head.order is \[0, 1, 2, 3, 3\]"),
        (dict(order=(0, 1)), "expected each of 0 … 4 once"),
        (dict(heads=3), "heads 3 does not divide width 16"),
        (dict(channels=0, order=None), "channels' is 0: allowed is at least 1"),
        (dict(first="other"), "first' is 'other'"),
    ],
)
def test_bad_sizes(settings: dict[str, Any], text: str) -> None:
    with pytest.raises(MgenError, match=text):
        tiny_head(**settings)


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"guide": "both"}, "'head.guide' is 'both'"),
        ({"top_p": 0.0}, "'head.top_p' is 0.0"),
        ({"top_p": 1.5}, "'head.top_p' is 1.5"),
        ({"top_k": 0}, "'head.top_k' is 0"),
        ({"guide": "logits", "chain": "ddim"}, "mixes settings"),
        ({"guid": "logits"}, "did you mean 'guide'"),
    ],
)
def test_bad_draws(settings: dict[str, Any], text: str) -> None:
    with pytest.raises(MgenError, match=text):
        check_draw(settings)
    with pytest.raises(MgenError):
        tiny_head().check(settings, temperatures=[1.0])
