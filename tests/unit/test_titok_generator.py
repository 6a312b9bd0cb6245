"""TiTok's generators beyond the golden sets: options at their borders, files of the hub, sampling, the loss."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from mgen import create_model
from mgen.bench.benchmark import TOKENIZERS, WITHOUT_GRID, random_pipeline
from mgen.convert import convert
from mgen.generators import LossOptions, build_model
from mgen.generators.losses import token_weights
from mgen.heads.categorical import DrawSettings
from mgen.samplers import ParallelSampler
from mgen.samplers.values import per_step
from mgen.training.config import GeneratorObjectiveConfig, OptimConfig
from mgen.training.generator_objective import GeneratorObjective
from mgen.training.noise import Augmentation
from mgen.training.trainer import falls_to
from mgen.utils.errors import MgenError
from mgen.utils.files import write_json
from tests.golden import harness
from tests.helpers import tiny_config, tiny_net, tiny_tokens
from tests.official_settings import titok_settings
from tools.ablations import ablations

LINE = {"kind": "index", "length": 12, "vocab_size": 16}


@pytest.fixture
def net() -> Any:
    torch.manual_seed(0)
    made: Any = build_model(tiny_config("uvit", tokens=LINE, embed_norm=False))
    torch.nn.init.normal_(made.head.bias)
    return made.eval()


# -- sizes -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "millions"), [("titok-l32", 177.2), ("titok-b64", 177.2), ("titok-s128", 295.0)])
def test_published_sizes(name: str, millions: float) -> None:
    with torch.device("meta"):
        made = create_model(name)
    assert round(sum(p.numel() for p in made.parameters()) / 1e6, 1) == millions
    assert made.tokens.grid is None and f"{made.tokens.length}" in name


# -- the sampler's options ---------------------------------------------------------------------------------------------


def test_scores_are_logits_of_the_ids_drawn(net: Any) -> None:
    z, noise = torch.randn(2, 5, 32, generator=torch.Generator().manual_seed(1)), torch.full((2, 5), 0.7)
    plain = net.head.sample(z, noise=noise, temperature=2.0)
    scored = net.head.sample(z, noise=noise, temperature=2.0, plan=DrawSettings(score="logit"))
    assert torch.equal(plain.tokens, scored.tokens)
    logits = net.head.logits(z)
    assert torch.equal(scored.log_prob, logits.gather(-1, plain.tokens.unsqueeze(-1)).squeeze(-1))
    assert torch.allclose(plain.log_prob, scored.log_prob - logits.logsumexp(-1))


def test_temperature_zero_is_the_likeliest_id_whatever_the_noise(net: Any) -> None:
    """Logits that differ by less than 1e-4 times the noise would otherwise be confused."""
    z = torch.zeros(1, 1, 32)
    with torch.no_grad():
        net.head.bias.zero_()
        net.head.bias[3], net.head.bias[7] = 1.0, 1.0 - 1e-5
    gumbel = torch.zeros(1, 1, 16)
    gumbel[..., 7] = 5.0
    assert net.head.sample(z, noise=gumbel, temperature=0.0).tokens.item() == 3
    assert net.head.sample(z, noise=gumbel, temperature=1e-4).tokens.item() == 7
    assert net.head.sample(z, noise=torch.full((1, 1), 0.99), temperature=0.0).tokens.item() == 3


def test_curves_are_multiplied() -> None:
    fall: Any = {"kind": "linear", "start": 8.0, "end": 0.0, "at": "end"}
    made = per_step({**fall, "times": {"kind": "linear", "start": 1.3, "end": 0.5, "at": "end"}}, 4)
    assert made == pytest.approx([6 * 1.1, 4 * 0.9, 2 * 0.7, 0.0])
    for wrong, words in (
        ({"strat": 1.0}, r"temperature\.times\.kind|temperature\.times\.strat"),
        (3.0, r"'temperature\.times' takes a mapping"),
        ({"kind": "linear", "start": -1.0, "end": -1.0}, "allowed is 0"),
    ):
        with pytest.raises(MgenError, match=words):
            per_step({**fall, "times": wrong}, 4, name="temperature")


def official(u: Tensor, c: Tensor, t: int, *, scale: float, decay: str, power: float, steps: int) -> Tensor:
    """Guided logits of step t as the official code combines them."""
    if decay == "power-cosine":
        return u + ((scale - 1) * (1 - math.cos(math.pi * (t / steps) ** power)) / 2 + 1) * (c - u)
    weight = scale if decay == "constant" else scale * t / steps
    return c + weight * (c - u)


@pytest.mark.parametrize("annealed", [True, False])
@pytest.mark.parametrize(
    ("decay", "power"), [("linear", 3.0), ("constant", 3.0), ("power-cosine", 3.0), ("power-cosine", 0.0)]
)
@pytest.mark.parametrize("steps", [1, 5])
def test_settings_are_the_official_arguments(steps: int, decay: str, power: float, annealed: bool) -> None:
    """Draws and ranking of both are the same up to a factor, at every step."""
    sampler = ParallelSampler(
        **titok_settings(
            guidance_scale=4.5,
            guidance_decay=decay,
            guidance_scale_pow=power,
            randomize_temperature=9.5,
            softmax_temperature_annealing=annealed,
            num_sample_steps=steps,
        )
    )
    u, c, g = torch.randn(3, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    guidance, temperature = (sampler.values(name, 12) for name in ("guidance", "temperature"))
    assert temperature == sampler.values("confidence_temperature", 12) and temperature[-1] == 0
    for t in range(steps):
        left = 1 - (t + 1) / steps
        factor = 0.5 + 0.8 * left if annealed else 1.0
        theirs = official(u, c, t, scale=4.5, decay=decay, power=power, steps=steps) / factor + 9.5 * left * g
        assert torch.allclose(u + guidance[t] * (c - u) + temperature[t] * g, theirs * factor)


def test_more_steps_than_tokens_reveal_the_last_one_at_the_end(net: Any) -> None:
    sampler = ParallelSampler(**titok_settings(num_sample_steps=30, guidance_scale=1.0, randomize_temperature=1.0))
    assert sampler.remaining(unknown=12, length=12)[-5:] == [1, 1, 1, 1, 0]
    *_, last = sampler(net, torch.tensor([0, 1]), noise=sampler.make_noise(net, [1, 2]))
    assert last.known.all()


def test_images_depend_on_their_seeds_alone(net: Any) -> None:
    sampler = ParallelSampler(
        **titok_settings(num_sample_steps=4, guidance_decay="linear", softmax_temperature_annealing=True)
    )

    def drawn(seeds: list[int]) -> Tensor:
        *_, last = sampler(net, torch.tensor(seeds) % 3, noise=sampler.make_noise(net, seeds))
        return last.tokens

    assert torch.equal(drawn([5, 6, 7])[1:2], drawn([6])) and not torch.equal(drawn([5]), drawn([6]))


def test_two_passes_as_one_batch_draw_the_same_ids(net: Any) -> None:
    sampler = ParallelSampler(**titok_settings(num_sample_steps=4, guidance_decay="linear"))
    rows = ablations(net, sampler, batch_size=2, repeats=1)
    assert [row["ablation"].split(": ")[-1] for row in rows[:3]] == [
        "both halves of the guidance together",
        "last block at the unknown ones alone",
        "all of these",
    ]
    assert all(row["difference"] < 1e-5 for row in rows[:3]) and rows[3]["difference"] == 0
    with pytest.raises(MgenError, match=r"set reuse\.cached=0"):
        ablations(net, ParallelSampler(steps=4, reuse={"cached": 1}), batch_size=2, repeats=1)


# -- training ----------------------------------------------------------------------------------------------------------


def test_weight_of_visible_tokens(net: Any) -> None:
    tokens = torch.arange(24).view(2, 12) % 16
    known, labels = torch.arange(12).expand(2, -1) < torch.tensor([[3], [10]]), torch.tensor([0, 2])
    each, right = net(tokens, labels, known, options=LossOptions(tokens="all"))
    weights = torch.where(known, 0.1, 1.0).flatten()
    losses, metric = net(tokens, labels, known, options=LossOptions(tokens="all", known_weight=0.1))
    assert torch.allclose(losses.mean(), (each * weights).sum() / weights.sum())
    assert torch.allclose(metric.mean(), (right * weights).sum() / weights.sum())
    assert torch.allclose(token_weights(known, 0.1).mean(), torch.ones(()))


def test_pieces_of_a_batch_make_the_loss_of_the_whole(net: Any) -> None:
    settings = GeneratorObjectiveConfig(loss_tokens="all", known_weight=0.1, label_smoothing=0.1)
    objective = GeneratorObjective(net.train(), settings)
    rng = torch.Generator().manual_seed(3)
    noise = objective.make_noise(4, rng, augmentation=Augmentation())
    tokens = torch.randint(16, (4, 1, 12), generator=rng)
    batch = {"tokens": tokens, "label": torch.tensor([0, 1, 2, 0])}
    whole, parts = objective(batch, noise).loss, []
    for rows in (slice(0, 1), slice(1, 4)):
        piece = noise.rows(rows)
        loss = objective({key: value[rows] for key, value in batch.items()}, piece).loss
        parts.append(objective.share(piece, noise) * loss * len(piece.known) / 4)
    assert torch.allclose(sum(parts), whole)


def test_weight_of_visible_tokens_needs_them_in_the_loss(net: Any) -> None:
    with pytest.raises(MgenError, match=r"objective\.loss_tokens=all"):
        GeneratorObjective(net, GeneratorObjectiveConfig(known_weight=0.1))
    causal = tiny_net("causal", tokens=tiny_tokens())
    with pytest.raises(MgenError, match="no token is visible to a causal trunk"):
        GeneratorObjective(causal, GeneratorObjectiveConfig(loss_tokens="all", known_weight=0.1))


def test_learning_rate_falls_to_its_least() -> None:
    factor = falls_to(0.05, 10, lambda step: min(1.0, step / 10, (110 - step) / 100))
    assert [factor(5), factor(10), factor(60), factor(110)] == pytest.approx([0.5, 1.0, 0.05 + 0.95 * 0.5, 0.05])
    with pytest.raises(MgenError, match="at most lr"):
        OptimConfig(lr=1e-4, least_lr=1e-3)
    for own in ({"hold": 0.5}, {"least_lr": 1e-6}):
        with pytest.raises(MgenError, match="of a falling schedule, constant_with_warmup is none"):
            OptimConfig(lr=1e-4, schedule="constant_with_warmup", **own)


# -- files -------------------------------------------------------------------------------------------------------------


def state_of(name: str) -> dict[str, Tensor]:
    return load_file(harness.root() / name / "weights.safetensors")


def test_folder_of_the_hub_says_the_heads_and_a_bare_file_does_not(tmp_path: Path) -> None:
    state = state_of("titok_imagebert")
    save_file(state, tmp_path / "model.safetensors")
    section = {"num_attention_heads": 2, "hidden_size": 64, "model_type": "ViT"}
    write_json(tmp_path / "config.json", {"model": {"generator": section, "vq_model": {}}, "dataset": {}})
    made = convert("titok-generator", tmp_path)
    assert made.config["trunk"]["heads"] == 2
    (tmp_path / "bare").mkdir()
    old = {**state, "model.embeddings.position_ids": torch.arange(17).unsqueeze(0)}
    torch.save(old, tmp_path / "bare" / "generator.bin")
    bare = convert("titok-generator", tmp_path / "bare" / "generator.bin")
    assert bare.config["trunk"]["heads"] == 1 and any("trunk.heads=1" in note for note in bare.notes)
    assert bare.ignored == {"model.embeddings.position_ids": "a constant, not a weight"}
    for name, value in made.model.state_dict().items():
        assert torch.equal(value, bare.model.state_dict()[name])


def test_rows_of_the_table_are_put_in_our_order() -> None:
    state = state_of("titok_uvit")
    ours = convert("titok-generator", harness.root() / "titok_uvit" / "weights.safetensors").model.state_dict()
    theirs, table = state["embeddings.weight"], ours["embedder.table.weight"]
    codes = len(state["lm_head.weight"])
    assert torch.equal(table[:codes], theirs[:codes]) and torch.equal(table[-1], theirs[codes])
    assert torch.equal(table[codes:-1], theirs[codes + 1 :])


def test_wrong_files_are_named(tmp_path: Path) -> None:
    state = state_of("titok_uvit")
    few = tmp_path / "few.safetensors"
    save_file({**state, "embeddings.weight": state["embeddings.weight"][:41].clone()}, few)
    with pytest.raises(MgenError, match="no TiTok generator"):
        convert("titok-generator", few)
    whole = harness.root() / "titok_uvit" / "weights.safetensors"
    with pytest.raises(MgenError, match="with one token grid"):
        convert("titok-generator", whole, side=4)
    write_json(tmp_path / "config.json", {"model": {"generator": {"num_attention_heads": "many"}}})
    save_file(state, tmp_path / "model.safetensors")
    with pytest.raises(MgenError, match=r"model\.generator\.num_attention_heads"):
        convert("titok-generator", tmp_path)


def test_bench_has_no_tokenizer_for_other_numbers_of_tokens() -> None:
    with pytest.raises(MgenError, match="12 ids without a grid: give --tokenizer none"):
        random_pipeline(tiny_config("uvit", tokens=LINE), "auto")
    assert random_pipeline(tiny_config("uvit", tokens=LINE), None).tokenizer is None
    with pytest.raises(MgenError, match="without decoding: --tokenizer none"):  # as of DC-AE
        random_pipeline(tiny_config("mae", tokens={**tiny_tokens("vector"), "channels": 32}), "auto")
    for length, name in WITHOUT_GRID.items():
        assert TOKENIZERS[name].SIZES[name.removeprefix("titok-")]["latent_tokens"] == length
