"""Token-Shuffle: the layout, the pair around a trunk, windows under every trunk, and their cost."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from mgen.bench.benchmark import RandomPipeline
from mgen.bench.flops import Counts, count_run
from mgen.bench.proxy import Proxy
from mgen.cli import main
from mgen.convert.shuffle import shuffled
from mgen.generators import Generator
from mgen.generators.trunks.causal import CausalCache
from mgen.heads import HeadNoise
from mgen.nn import TokenShuffle, TokenUnshuffle, Windows
from mgen.nn.windows import ResidualMLP
from mgen.samplers import ParallelSampler
from mgen.samplers.values import per_step
from mgen.utils.errors import MgenError
from tests.helpers import head_table, tiny_net, tiny_tokens
from tools.ablations import ablations, prepare

SMALL = dict(encoder_depth=1, decoder_dim=16, decoder_depth=1)
VECTORS: dict[str, Any] = dict(tokens=tiny_tokens("vector", channels=3), head=dict(width=16, depth=1))
MADE: dict[str, tuple[str, dict[str, Any]]] = {
    "uvit": ("uvit", {}),
    "mage": ("mage", SMALL),
    "enat": ("enat", dict(decoder_depth=1)),
    "mae": ("mae", {**SMALL, **VECTORS}),
    "mae, ids": ("mae", SMALL),
    "causal": ("causal", {}),
}


def make(name: str, **sections: Any) -> Any:
    trunk, own = MADE[name]
    return tiny_net(trunk, **{**own, **sections})


def joined(name: str) -> Any:
    """With windows of 2×2 tokens that are masked and drawn as one."""
    return make(name, windows={"side": 2})


def counted(net: Any) -> Counts:
    """The operations of one image in one step."""
    sampler = ParallelSampler(steps=1, order="halton")
    return count_run(RandomPipeline(net, None, sampler), sampler)


def is_causal(net: Any) -> bool:
    return net.capabilities.order == "causal"


def tokens_of(net: Any, count: int = 2) -> Tensor:
    rng, spec = torch.Generator().manual_seed(5), net.tokens
    if spec.kind == "vector":
        return torch.randn(count, *spec.shape, generator=rng)
    return torch.randint(spec.vocab_size, (count, *spec.shape), generator=rng)


def run(net: Any, **settings: Any) -> Any:
    head = {"head": {"steps": 4, "clip": 4.0}} if net.tokens.kind == "vector" else {}
    steps = {} if is_causal(net) else {"steps": 3}
    sampler = ParallelSampler.suited(net, {**steps, "guidance": 2.0, **head, **settings})
    steps = sampler(net, torch.tensor([0, 1]), noise=sampler.make_noise(net, [1, 2]))
    return [replace(step, known=step.known.clone(), tokens=step.tokens.clone()) for step in steps]


def test_the_layout_and_its_inverse() -> None:
    windows, ids = Windows((4, 6), 2), torch.arange(24).unsqueeze(0)
    folded = windows.to_windows(ids)
    assert folded.shape == (1, 6, 4)
    assert folded[0, 0].tolist() == [0, 1, 6, 7] and folded[0, 4].tolist() == [14, 15, 20, 21]
    assert torch.equal(windows.to_tokens(folded), ids)
    assert torch.equal(windows.positions(torch.arange(6).unsqueeze(0)), folded)
    vectors = torch.randn(2, 24, 3)
    assert windows.to_windows(vectors).shape == (2, 6, 12)
    assert torch.equal(windows.to_tokens(windows.to_windows(vectors)), vectors)
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
    plain, one = make(name), make(name, windows={"side": 1, "blocks": 5})
    assert plain.state_dict().keys() == one.state_dict().keys() and one.windows is None
    a, b = run(plain), run(one)
    assert torch.equal(a[-1].tokens, b[-1].tokens)


@pytest.mark.parametrize("name", sorted(MADE))
def test_windows_are_drawn_whole(name: str) -> None:
    """In every step a window is known or not as a whole; all are in the end; tokens have the tokenizer's shape."""
    net = joined(name)
    assert net.units.length == 4 and net.tokens.length == 16
    steps = run(net)
    for step in steps:
        folded = net.windows.gather(step.known)
        assert torch.equal(folded.all(-1), folded.any(-1))
    assert steps[-1].known.all() and steps[-1].tokens.shape == (2, *net.tokens.shape)
    assert len(steps) == (4 if is_causal(net) else 3)
    shown = steps[0]
    at = shown.positions[0]
    if is_causal(net):
        assert at.tolist() == [0, 1, 4, 5]
    revealed = shown.known[0][at]
    assert torch.equal(shown.tokens[0][at][revealed], shown.drawn[0][revealed])


@pytest.mark.parametrize("name", sorted(MADE))
def test_given_windows_stay_and_half_given_ones_are_refused(name: str) -> None:
    net = joined(name)
    tokens, known, whole = tokens_of(net), torch.zeros(2, 16, dtype=torch.bool), [0, 1, 4, 5]
    known[:, whole] = True
    head = {"head": {"steps": 4, "clip": 4.0}} if net.tokens.kind == "vector" else {}
    sampler = ParallelSampler.suited(net, {**({} if is_causal(net) else {"steps": 3}), **head})
    noise, label = sampler.make_noise(net, [1, 2]), torch.tensor([0, 1])
    *_, end = sampler(net, label, noise=noise, tokens=tokens, known=known)
    assert torch.equal(end.tokens[:, whole], tokens[:, whole]) and end.known.all()
    known[1, 6] = True  # a token of the second window
    with pytest.raises(MgenError, match="all tokens of a window or none"):
        list(sampler(net, label, noise=noise, tokens=tokens, known=known))


def test_ablations_of_a_diffusion_head_on_windows() -> None:
    net = joined("mae")
    sampler = prepare(net, ParallelSampler.suited(net, {"steps": 2, "head": {"steps": 2}}))
    rows = ablations(net, sampler, batch_size=1, repeats=1)
    assert len(rows) > 4 and all(row.get("difference", 0) < 1e-4 for row in rows)


def test_the_width_of_the_head_must_fit_the_windows_too() -> None:
    with pytest.raises(MgenError, match="the width 18 is not a multiple"):
        make("mage", windows={"side": 2}, decoder_dim=18)


def test_masking_by_token_takes_any_mask_and_masking_by_window_does_not_mix() -> None:
    net = make("uvit", windows={"side": 2, "unit": "token"})
    assert net.windows is None and net.units == net.tokens
    steps = run(net, order="halton", steps=5)
    counts = [int(step.known[0].sum()) for step in steps]
    assert counts[-1] == 16 and any(n % 4 for n in counts)
    # What is asked for is what a full pass has there.
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
    net = joined(name).train()
    tokens, known = net.windows.to_windows(tokens_of(net)), torch.zeros(2, 4, dtype=torch.bool)
    options: dict[str, Any] = {}
    if name == "mage":
        options["trunk_noise"] = torch.tensor([[True, True, False, False]] * 2)
    elif not is_causal(net):
        known[:, 0] = True
    if net.tokens.kind == "vector":
        made = net.head.training_noise(4, 2, torch.Generator().manual_seed(0))
        options["noise"] = HeadNoise(torch.stack([made.t, made.t]), torch.stack([made.noise, made.noise]))
        torch.nn.init.normal_(net.head.inner.out.weight)
        torch.nn.init.normal_(net.head.inner.out_adaln.weight)
    else:
        torch.nn.init.normal_(head_table(net).weight)
    losses, _ = net(tokens, torch.tensor([0, 1]), known, **options)
    losses.mean().backward()
    join = next(m for m in net.modules() if isinstance(m, TokenShuffle))
    assert losses.isfinite().all() and join.compress.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("name", sorted(MADE))
def test_a_copy_with_windows_starts_from_the_weights_of_the_plain_model(name: str) -> None:
    plain = make(name)
    same, share = shuffled(plain, {"side": 1})
    assert share == 1 and torch.equal(run(same)[-1].tokens, run(plain)[-1].tokens)
    made, share = shuffled(plain, {"side": 2})
    assert 0.25 < share <= 1 + 1e-6 and run(made)[-1].known.all()
    own = {name.replace(".inner.", "."): parameter for name, parameter in made.named_parameters()}
    kept = [n for n, p in plain.named_parameters() if n in own and own[n].shape == p.shape]
    assert len(kept) > 0.5 * len(list(plain.named_parameters())) and all(
        torch.equal(own[n], p) for n, p in plain.named_parameters() if n in kept
    )
    with pytest.raises(MgenError, match="windows of 2 already"):
        shuffled(made, {"side": 2})


def test_embeddings_in_few_directions_pass_the_pair_unchanged() -> None:
    """The paper's premise: where embeddings have at most D / s² directions, nothing is lost between the two layers."""
    plain = make("causal")
    with torch.no_grad():
        low = torch.randn(16, 6, generator=torch.Generator().manual_seed(0)) @ torch.randn(6, 32)
        plain.embedder.table.weight.copy_(low)
    made, share = shuffled(plain, {"side": 2})
    assert share > 1 - 1e-6
    x = made.embedder.inner.table(torch.arange(16).view(4, 4))
    torch.testing.assert_close(made.head.unshuffle(made.embedder.join(x)), x, atol=1e-4, rtol=1e-4)


def test_operations_are_those_of_the_formula() -> None:
    """U-ViT, 64 tokens, s = 2: blocks on a quarter of the rows, compress and expand, 2n fusion MLPs, an unchanged head."""
    dim, depth, vocab_size, blocks, n = 48, 4, 32, 2, 64
    tokens = tiny_tokens(side=8, vocab_size=vocab_size)

    def flops(**windows: int) -> dict[str, int]:
        net = make("uvit", tokens=tokens, windows=windows, dim=dim, depth=depth, heads=4, skip=False)
        return counted(net).flops

    def trunk(rows: int) -> int:  # multiply-adds of depth + 1 blocks on the rows and the class token
        rows += 1
        # The class row of the last block is not read: no query, no sum over values, no MLP for it.
        return (depth + 1) * (12 * rows * dim**2 + 2 * rows**2 * dim) - 10 * dim**2 - 2 * rows * dim

    plain, joined = flops(), flops(side=2, blocks=blocks)
    fusion = n // 4 * blocks * 8 * dim**2
    head = n * (dim * dim + dim * vocab_size)
    assert plain == {"trunk": 2 * trunk(n), "head": 2 * head, "decoder": 0}
    shuffles = n * dim * dim // 4 + fusion  # of one side
    assert joined == {"trunk": 2 * (trunk(n // 4) + shuffles), "head": 2 * (head + shuffles), "decoder": 0}


def test_half_linear_guidance() -> None:
    """1 + (w − 1) · min(1, 2 k / K) for k = 0 … K − 1 ; by decoded tokens for masked generators."""
    assert per_step({"kind": "half-linear", "end": 7.5}, 8) == [1.0, 2.625, 4.25, 5.875, 7.5, 7.5, 7.5, 7.5]
    by_tokens = {"kind": "half-linear", "end": 3.0, "at": "tokens"}
    assert per_step(by_tokens, 3, unknown=[12, 8, 0], length=16) == [2.0, 3.0, 3.0]
    net = joined("causal")
    torch.nn.init.normal_(head_table(net).weight)
    curve = {"kind": "half-linear", "end": 4.0}
    assert run(net, guidance=curve)[-1].known.all()  # unguided at first: the null rows go along from the beginning


def test_bad_windows_are_refused() -> None:
    two = {"side": 2}
    mixed = tiny_tokens(global_tokens=4)
    cases: list[tuple[str, dict[str, Any], str]] = [
        ("uvit", {"windows": {"side": 3}}, "divides the token grid of 4×4"),
        ("uvit", {"windows": two, "tokens": mixed}, "or global tokens beside it"),
        ("uvit", {"windows": {**two, "unit": "row"}}, "model.windows.unit"),
        ("enat", {"windows": {**two, "unit": "token"}}, "use windows.unit window"),
        ("mage", {"windows": {**two, "unit": "token"}}, "use windows.unit window"),
        ("mae", {"windows": {**two, "unit": "token"}}, "use windows.unit window"),
        ("mae", {"tokens": {**tiny_tokens("vector"), "length": 20, "global_tokens": 4}}, "a codebook of their own"),
        ("causal", {"windows": two, "tokens": mixed}, "or global tokens beside it"),
        ("uvit", {"windows": two, "dim": 18}, "not a multiple"),
    ]
    for name, sections, words in cases:
        with pytest.raises(MgenError, match=words):
            make(name, **sections)


def test_with_1024_tokens_the_cost_falls_as_predicted() -> None:
    """The formula of the cost (blocks 12 L N C² + 2 L N² C, pair 2 N C² / s² + 16 n (N / s²) C²) against what is executed."""
    dim, depth, blocks, n, s = 768, 24, 2, 1024, 2
    sizes: dict[str, Any] = dict(tokens=tiny_tokens(side=32, vocab_size=1024), dim=dim, depth=depth, heads=8)
    with torch.device("meta"):
        nets = [make("uvit", **sizes, windows={"side": side}) for side in (1, s)]
    trunk = [counted(net).total for net in nets]

    def cost(rows: int) -> float:
        return 12 * depth * rows * dim**2 + 2 * depth * rows**2 * dim

    head = n * 1024 * dim
    predicted = (cost(n) + head) / (cost(n // s**2) + 2 * n * dim**2 / s**2 + 16 * blocks * n / s**2 * dim**2 + head)
    assert trunk[0] / trunk[1] == pytest.approx(predicted, rel=0.15) and predicted > 4


def test_a_long_sequence_has_little_noise_and_a_small_cache() -> None:
    """1024 tokens as 256 windows: a uniform number for each token in all, and keys and values of 256 rows."""
    sizes: dict[str, Any] = dict(tokens=tiny_tokens(side=32), dim=16, depth=1, hidden=32)
    net = make("causal", **sizes, windows={"side": 2})
    sampler = ParallelSampler.suited(net)
    noise = sampler.make_noise(net, [1])
    assert noise.tokens is not None and noise.tokens.shape == (1, 1, 256, 4) and noise.confidence is None
    caches: list[CausalCache] = []

    def start(class_ids: Tensor, **options: Any) -> CausalCache:
        caches.append(net.start(class_ids, **options))
        return caches[-1]

    *_, end = sampler(Proxy(net, start=start), torch.tensor([0]), noise=noise)
    assert end.known.all() and end.tokens.shape == (1, 1024)
    assert caches[0].live[0].k is not None and caches[0].live[0].k.shape == (1, 2, 256, 8)


def test_the_benchmark_takes_windows(tmp_path: Path) -> None:
    out = tmp_path / "bench.json"
    line = ["bench", "--arch", "fmnist-causal", "--tokenizer", "none", "--batch-size", "1"]
    assert main([*line, "--model-set", "windows.side=2", "--json", str(out)]) == 0
    assert json.loads(out.read_text())["steps"] == 16
    assert main(["bench", "--model-set", "windows.side=2"]) == 2  # of a saved model the configuration is fixed


def test_the_start_of_a_fine_tuning_from_the_command_line(tmp_path: Path) -> None:
    plain = make("uvit")
    plain.save_pretrained(tmp_path / "plain")
    assert main(["convert", "shuffle", str(tmp_path / "plain"), "--out", str(tmp_path / "windows"), "side=2"]) == 0
    made = Generator.from_pretrained(tmp_path / "windows")
    assert made.config["windows"]["side"] == 2 and torch.equal(made.trunk.norm.weight, plain.trunk.norm.weight)
    for settings in (["side=3"], ["sise=2"], ["dim=8"]):
        assert main(["convert", "shuffle", str(tmp_path / "plain"), "--out", str(tmp_path / "no"), *settings]) == 2
    assert not (tmp_path / "no").exists()
