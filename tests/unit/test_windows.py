"""Token-Shuffle: the layout, the pair around a trunk, windows under every trunk, and their cost."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from mgen.bench.flops import count_run
from mgen.bench.savings import prepare, savings
from mgen.bench.standin import StandIn
from mgen.cli import main
from mgen.convert.shuffle import shuffled
from mgen.generators import ENAT, MAGE, MAR, CausalGenerator, MaskGIT
from mgen.nn import TokenShuffle, TokenUnshuffle, Windows
from mgen.nn.windows import ResidualMLP
from mgen.samplers import ParallelSampler
from mgen.samplers.values import per_step
from mgen.utils.errors import MgenError

SHARED: dict[str, Any] = dict(side=4, num_classes=3, dropout=0.0)
HALVES = dict(encoder_dim=32, encoder_depth=1, encoder_heads=2, decoder_dim=16, decoder_depth=1, decoder_heads=2)
ROWS = dict(buffer=2, attn_dropout=0.0)
MADE: dict[str, Any] = {
    "MaskGIT": lambda **s: MaskGIT(codes=16, dim=32, depth=2, heads=2, **SHARED, **s),
    "MAGE": lambda **s: MAGE(codes=16, **HALVES, **SHARED, **s),
    "ENAT": lambda **s: ENAT(codes=16, dim=32, encoder_depth=2, decoder_depth=1, heads=2, **SHARED, **s),
    "MAR": lambda **s: MAR(channels=3, scale=1.0, head_width=16, head_depth=1, **HALVES, **ROWS, **SHARED, **s),
    "MAR, ids": lambda **s: MAR(head_kind="categorical", codes=16, **HALVES, **ROWS, **SHARED, **s),
    "CausalGenerator": lambda **s: CausalGenerator(codes=16, dim=32, depth=2, heads=2, hidden=64, **SHARED, **s),
}


def make(name: str, **settings: Any) -> Any:
    torch.manual_seed(0)
    return MADE[name](**settings).eval()


def tokens_of(net: Any, count: int = 2) -> Tensor:
    rng, spec = torch.Generator().manual_seed(5), net.spec
    if spec.kind == "vector":
        return torch.randn(count, *spec.shape, generator=rng)
    return torch.randint(spec.vocab_size, (count, *spec.shape), generator=rng)


def run(net: Any, **settings: Any) -> Any:
    head = {"head": {"steps": 4, "clip": 4.0}} if net.spec.kind == "vector" else {}
    steps = {} if net.causal else {"steps": 3}
    sampler = ParallelSampler.suited(net, {**steps, "guidance": 2.0, **head, **settings})
    steps = sampler(net, torch.tensor([0, 1]), noise=sampler.make_noise(net, [1, 2]))
    return [replace(step, known=step.known.clone(), tokens=step.tokens.clone()) for step in steps]


def test_the_layout_and_its_inverse() -> None:
    windows, ids = Windows((4, 6), 2), torch.arange(24).unsqueeze(0)
    folded = windows.fold(ids)
    assert folded.shape == (1, 6, 4)
    assert folded[0, 0].tolist() == [0, 1, 6, 7] and folded[0, 4].tolist() == [14, 15, 20, 21]
    assert torch.equal(windows.unfold(folded), ids)
    assert torch.equal(windows.places(torch.arange(6).unsqueeze(0)), folded)
    vectors = torch.randn(2, 24, 3)
    assert windows.fold(vectors).shape == (2, 6, 12) and torch.equal(windows.unfold(windows.fold(vectors)), vectors)
    known = torch.ones(1, 24, dtype=torch.bool)
    known[0, 7] = False
    assert windows.whole(known)[0].tolist() == [False, True, True, True, True, True]


def test_the_pair_gives_back_what_its_numbers_can_hold() -> None:
    """New residual blocks do nothing; compress and expand are each other's transpose with orthogonal rows."""
    torch.manual_seed(0)
    join, split = TokenShuffle(32, 2), TokenUnshuffle(32, 2)
    join.reset_parameters()
    split.reset_parameters(join)
    x = torch.randn(5, 4, 8) @ join.compress.weight  # of the 8 directions that are kept
    torch.testing.assert_close(split(join(x)), x, atol=1e-5, rtol=1e-5)
    block, x = ResidualMLP(8), x[..., :8]
    assert not torch.equal(block(x), x)
    block.reset_parameters()
    assert torch.equal(block(x), x)


@pytest.mark.parametrize("name", sorted(MADE))
def test_windows_of_one_token_are_the_plain_trunk(name: str) -> None:
    plain, one = make(name), make(name, shuffle=1, shuffle_blocks=5)
    assert plain.state_dict().keys() == one.state_dict().keys() and one.unit is None
    a, b = run(plain), run(one)
    assert torch.equal(a[-1].tokens, b[-1].tokens)


@pytest.mark.parametrize("name", sorted(MADE))
def test_windows_are_drawn_whole(name: str) -> None:
    """In every step a window is known or not as a whole; all are in the end; tokens have the tokenizer's shape."""
    net = make(name, shuffle=2)
    assert net.unit_spec.length == 4 and net.spec.length == 16
    steps = run(net)
    for step in steps:
        folded = net.unit.gather(step.known)
        assert torch.equal(folded.all(-1), folded.any(-1))
    assert steps[-1].known.all() and steps[-1].tokens.shape == (2, *net.spec.shape)
    assert len(steps) == (4 if net.causal else 3)
    shown = steps[0]
    at = shown.positions[0]
    if net.causal:
        assert at.tolist() == [0, 1, 4, 5]
    revealed = shown.known[0][at]
    assert torch.equal(shown.tokens[0][at][revealed], shown.drawn[0][revealed])


@pytest.mark.parametrize("name", sorted(MADE))
def test_given_windows_stay_and_half_given_ones_are_refused(name: str) -> None:
    net = make(name, shuffle=2)
    tokens, known, whole = tokens_of(net), torch.zeros(2, 16, dtype=torch.bool), [0, 1, 4, 5]
    known[:, whole] = True
    head = {"head": {"steps": 4, "clip": 4.0}} if net.spec.kind == "vector" else {}
    sampler = ParallelSampler.suited(net, {**({} if net.causal else {"steps": 3}), **head})
    noise, label = sampler.make_noise(net, [1, 2]), torch.tensor([0, 1])
    *_, end = sampler(net, label, noise=noise, tokens=tokens, known=known)
    assert torch.equal(end.tokens[:, whole], tokens[:, whole]) and end.known.all()
    known[1, 6] = True  # a token of the second window
    with pytest.raises(MgenError, match="all tokens of a window or none"):
        list(sampler(net, label, noise=noise, tokens=tokens, known=known))


def test_savings_of_a_diffusion_head_on_windows() -> None:
    net = make("MAR", shuffle=2)
    sampler = prepare(net, ParallelSampler.suited(net, {"steps": 2, "head": {"steps": 2}}))
    rows = savings(net, sampler, batch_size=1, repeats=1)
    assert len(rows) > 4 and all(row.get("difference", 0) < 1e-4 for row in rows)


def test_the_width_of_the_head_must_fit_the_windows_too() -> None:
    with pytest.raises(MgenError, match="the width 18 is no multiple"):
        MAGE(codes=16, **{**HALVES, "decoder_dim": 18}, **SHARED, shuffle=2)


def test_masking_by_token_takes_any_mask_and_masking_by_window_does_not_mix() -> None:
    net = make("MaskGIT", shuffle=2, mask_unit="token")
    assert net.unit is None and net.unit_spec == net.spec
    steps = run(net, order="halton", steps=5)
    counts = [int(step.known[0].sum()) for step in steps]
    assert counts[-1] == 16 and any(n % 4 for n in counts)
    # What is asked for is what a full evaluation has there.
    tokens, known, label = (
        tokens_of(net),
        torch.rand(2, 16, generator=torch.Generator().manual_seed(1)) < 0.5,
        torch.tensor([0, 1]),
    )
    every, asked = net.context(tokens, known, label), torch.tensor([[3, 8, 0], [15, 2, 7]])
    some = net.context(tokens, known, label, positions=asked)
    torch.testing.assert_close(some, every.gather(1, asked.unsqueeze(-1).expand(-1, -1, 32)))
    with pytest.raises(MgenError, match="no cached steps"):
        run(net, reuse={"cached": 1})


@pytest.mark.parametrize("name", sorted(MADE))
def test_training_reaches_the_pair(name: str) -> None:
    net = make(name, shuffle=2).train()
    tokens, known = net.unit.fold(tokens_of(net)), torch.zeros(2, 4, dtype=torch.bool)
    options: dict[str, Any] = {}
    if name == "MAGE":
        options["dropped"] = torch.tensor([[True, True, False, False]] * 2)
    elif not net.causal:
        known[:, 0] = True
    if hasattr(net.head, "draw"):
        made = net.head.draw(4, 2, torch.Generator().manual_seed(0))
        options |= {k: torch.stack([v, v]) for k, v in made.items()}
        torch.nn.init.normal_(net.head.out.weight)
        torch.nn.init.normal_(net.head.out_adaln.weight)
    else:
        torch.nn.init.normal_(
            next(p for n, p in net.named_parameters() if "output" in n or "word" in n or "token_proj" in n)
        )
    losses, _ = net(tokens, torch.tensor([0, 1]), known, **options)
    losses.mean().backward()
    join = next(m for m in net.modules() if isinstance(m, TokenShuffle))
    assert losses.isfinite().all() and join.compress.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("name", sorted(MADE))
def test_a_shuffled_copy_starts_from_the_weights_of_the_plain_model(name: str) -> None:
    plain = make(name)
    same, share = shuffled(plain, shuffle=1)
    assert share == 1 and torch.equal(run(same)[-1].tokens, run(plain)[-1].tokens)
    made, share = shuffled(plain, shuffle=2)
    assert 0.25 < share <= 1 + 1e-6 and run(made)[-1].known.all()
    own = dict(made.named_parameters())
    kept = [n for n, p in plain.named_parameters() if n in own and own[n].shape == p.shape]
    assert len(kept) > 0.5 * len(list(plain.named_parameters())) and all(
        torch.equal(own[n], p) for n, p in plain.named_parameters() if n in kept
    )
    with pytest.raises(MgenError, match="windows of 2 already"):
        shuffled(made, shuffle=2)


def test_embeddings_in_few_directions_pass_the_pair_unchanged() -> None:
    """The paper's premise: where embeddings have at most D / s² directions, nothing is lost between the two layers."""
    plain = make("CausalGenerator")
    with torch.no_grad():
        low = torch.randn(16, 6, generator=torch.Generator().manual_seed(0)) @ torch.randn(6, 32)
        plain.token_embed.weight.copy_(low)
    made, share = shuffled(plain, shuffle=2)
    assert share > 1 - 1e-6
    x = made.token_embed(torch.arange(16).view(4, 4))
    torch.testing.assert_close(made.head.unshuffle(made.join(x)), x, atol=1e-4, rtol=1e-4)


def test_operations_are_those_of_the_formula() -> None:
    """MaskGIT, 64 tokens, s = 2: blocks on a quarter of the rows, compress and expand, 2n fusion MLPs, an unchanged head."""
    dim, depth, codes, blocks, n, side = 48, 4, 32, 2, 64, 8
    sizes = dict(side=side, codes=codes, dim=dim, depth=depth, heads=4, num_classes=3, skip=False)

    def flops(**more: Any) -> dict[str, int]:
        net = MaskGIT(**sizes, **more)
        sampler = ParallelSampler(steps=1, order="halton")
        return count_run(StandIn(net, generator=net, tokenizer=None), sampler).flops

    def trunk(rows: int) -> int:  # multiply-adds of depth + 1 blocks on the rows and the class token
        rows += 1
        # The class row of the last block is not read: no query, no sum over values, no MLP for it.
        return (depth + 1) * (12 * rows * dim**2 + 2 * rows**2 * dim) - 10 * dim**2 - 2 * rows * dim

    plain, joined = flops(), flops(shuffle=2, shuffle_blocks=blocks)
    fusion = n // 4 * blocks * 8 * dim**2
    head = n * (dim * dim + dim * codes)
    assert plain == {"trunk": 2 * trunk(n), "head": 2 * head, "decoder": 0}
    shuffles = n * dim * dim // 4 + fusion  # of one side
    assert joined == {"trunk": 2 * (trunk(n // 4) + shuffles), "head": 2 * (head + shuffles), "decoder": 0}


def test_half_linear_guidance() -> None:
    """1 + (w − 1) · min(1, 2 k / K) for k = 0 … K − 1 ; by decoded tokens for masked generators."""
    assert per_step({"kind": "half-linear", "end": 7.5}, 8) == [1.0, 2.625, 4.25, 5.875, 7.5, 7.5, 7.5, 7.5]
    by_tokens = {"kind": "half-linear", "end": 3.0, "at": "tokens"}
    assert per_step(by_tokens, 3, unknown=[12, 8, 0], length=16) == [2.0, 3.0, 3.0]
    net = make("CausalGenerator", shuffle=2)
    torch.nn.init.normal_(net.output.weight)
    curve = {"kind": "half-linear", "end": 4.0}
    assert run(net, guidance=curve)[-1].known.all()  # unguided at first: the null rows go along from the beginning


def test_bad_windows_are_refused() -> None:
    cases: list[tuple[Any, dict[str, Any], str]] = [
        ("MaskGIT", {"shuffle": 3}, "divides the token grid of 4×4"),
        ("MaskGIT", {"shuffle": 2, "global_tokens": 4}, "neither with global tokens"),
        ("MaskGIT", {"shuffle": 2, "mask_unit": "row"}, "mask_unit"),
        ("ENAT", {"shuffle": 2, "mask_unit": "token"}, "use mask_unit window"),
        ("MAGE", {"shuffle": 2, "mask_unit": "token"}, "use mask_unit window"),
        ("MAR", {"shuffle": 2, "mask_unit": "token"}, "use mask_unit window"),
        ("MAR", {"global_tokens": 4}, "global tokens are ids"),
        ("CausalGenerator", {"shuffle": 2, "global_tokens": 4}, "have no place in it"),
    ]
    for name, settings, words in cases:
        with pytest.raises(MgenError, match=words):
            make(name, **settings)
    with pytest.raises(MgenError, match="no multiple"):
        MaskGIT(**{**SHARED, "side": 4}, codes=16, dim=18, depth=2, heads=2, shuffle=2)


def test_at_1024_tokens_the_saving_is_the_predicted_one() -> None:
    """The formula of the cost (blocks 12 L N C² + 2 L N² C, pair 2 N C² / s² + 16 n (N / s²) C²) against what is executed."""
    dim, depth, blocks, n, s = 768, 24, 2, 1024, 2
    with torch.device("meta"):
        nets = [MaskGIT(side=32, codes=1024, dim=dim, depth=depth, heads=8, shuffle=side) for side in (1, s)]
    sampler = ParallelSampler(steps=1, order="halton")
    trunk = [count_run(StandIn(net, generator=net, tokenizer=None), sampler).total for net in nets]

    def cost(rows: int) -> float:
        return 12 * depth * rows * dim**2 + 2 * depth * rows**2 * dim

    head = n * 1024 * dim
    predicted = (cost(n) + head) / (cost(n // s**2) + 2 * n * dim**2 / s**2 + 16 * blocks * n / s**2 * dim**2 + head)
    assert trunk[0] / trunk[1] == pytest.approx(predicted, rel=0.15) and predicted > 4


def test_a_long_sequence_keeps_little() -> None:
    """1024 tokens as 256 windows: a uniform number for each token in all, and keys and values of 256 rows."""
    torch.manual_seed(0)
    net = CausalGenerator(side=32, codes=16, dim=16, depth=1, heads=2, hidden=32, num_classes=3, shuffle=2).eval()
    sampler = ParallelSampler.suited(net)
    noise = sampler.make_noise(net, [1])
    assert noise.tokens is not None and noise.tokens.shape == (1, 1, 256, 4) and noise.confidence is None
    memories: list[Any] = []

    def memory(condition: Tensor) -> Any:
        memories.append(net.memory(condition))
        return memories[-1]

    *_, end = sampler(StandIn(net, memory=memory), torch.tensor([0]), noise=noise)
    assert end.known.all() and end.tokens.shape == (1, 1024)
    assert memories[0].values["layers"][0].k.shape == (1, 2, 256, 8)


def test_the_benchmark_takes_windows(tmp_path: Path) -> None:
    out = tmp_path / "bench.json"
    line = ["bench", "--class", "CausalGenerator", "--size", "fmnist", "--tokenizer", "none", "--batch-size", "1"]
    assert main([*line, "--model-set", "shuffle=2", "--json", str(out)]) == 0
    assert json.loads(out.read_text())["steps"] == 16
    assert main(["bench", "--model-set", "shuffle=2"]) == 2  # of a saved model the configuration is fixed


def test_the_start_of_a_fine_tuning_from_the_command_line(tmp_path: Path) -> None:
    plain = make("MaskGIT")
    plain.save_pretrained(tmp_path / "plain")
    assert main(["convert", "shuffle", str(tmp_path / "plain"), "--out", str(tmp_path / "windows"), "shuffle=2"]) == 0
    made = MaskGIT.from_pretrained(tmp_path / "windows")
    assert made.config.shuffle == 2 and torch.equal(made.norm.weight, plain.norm.weight)
    for settings in (["shuffle=3"], ["shuffel=2"], ["dim=8"]):
        assert main(["convert", "shuffle", str(tmp_path / "plain"), "--out", str(tmp_path / "no"), *settings]) == 2
    assert not (tmp_path / "no").exists()
