"""Generators trained with more than a mask: ENAT's earlier step, MAGE's dropped tokens, Halton-MaskGIT's loss on all tokens."""

from pathlib import Path
from typing import Any

import pytest
import torch

from mgen.generators import Generator, LossOptions, build_model
from mgen.generators import losses as generator_losses
from mgen.generators.losses import flat_positions, image_losses, masked_tokens
from mgen.generators.trunks.enat import ENAT
from mgen.heads import HeadNoise
from mgen.training.carried import encode_features
from mgen.training.config import GeneratorObjectiveConfig, MaskConfig, train_config
from mgen.training.generator_objective import GeneratorObjective, RowNoise
from mgen.training.loop import train
from mgen.training.masking import known_before
from mgen.training.noise import Augmentation, AugmentationNoise, map_tensors, stack
from mgen.training.trainer import Trainer
from mgen.utils import seeds
from mgen.utils.errors import MgenError
from tests.helpers import tiny_config, tiny_net, tiny_tokenizer, tiny_tokens, write_idx
from tests.system.test_training import losses

TOKENS, CLASSES = tiny_tokens(side=8, vocab_size=64), {"count": 10}
MODELS: dict[str, dict[str, Any]] = {
    "enat": tiny_config("enat", tokens=TOKENS, classes=CLASSES, decoder_depth=1),
    "mage": tiny_config("mage", tokens=TOKENS, classes=CLASSES, encoder_depth=1, decoder_depth=1),
    "adaln": tiny_config("adaln", tokens=TOKENS, classes=CLASSES),
}
MASKS: dict[str, dict[str, Any]] = {
    "enat": {"per": "batch", "visible": 1},
    "mage": {"distribution": "truncated-gaussian", "mean": 0.55, "low": 0.5, "per": "batch", "rounding": "ceil"},
    "adaln": {"distribution": "arccos", "rounding": "bernoulli"},
}
MORE: dict[str, dict[str, Any]] = {
    "enat": {"reuse": 0.5, "reuse_label_drop": 0.1},
    "mage": {},
    "adaln": {"loss_tokens": "all"},
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("data")
    tiny_tokenizer().save_pretrained(folder / "tokenizer")
    return {"idx": str(write_idx(folder / "idx")), "tokenizer": str(folder / "tokenizer")}


def settings(data: dict[str, str], output: Path, name: str, **changes: Any) -> dict[str, Any]:
    mask, more = changes.pop("mask", MASKS[name]), changes.pop("more", MORE[name])
    return {
        "task": "generator",
        "output": str(output),
        "steps": 4,
        "batch_size": 12,
        "model": MODELS[name],
        "data": {"kind": "fmnist", "path": data["idx"]},
        "objective": {
            "mask": mask,
            "label_smoothing": 0.0,
            "tokenizer": data["tokenizer"],
            "sampler": {"steps": 2},
            **more,
        },
        "optim": {"lr": 1e-2},
        "ema": {"decay": 0.5},
        "log": {"every": 1, "checkpoint_every": 2, "tensorboard": False},
        **changes,
    }


@pytest.mark.parametrize("name", sorted(MODELS))
def test_a_resumed_or_accumulated_run_is_the_same(name: str, data: dict[str, str], tmp_path: Path) -> None:
    train(train_config(settings(data, tmp_path / "whole", name)))
    train(train_config(settings(data, tmp_path / "cut", name, steps=2)))
    train(train_config(settings(data, tmp_path / "cut", name)))
    assert losses(tmp_path / "cut") == losses(tmp_path / "whole")
    train(train_config(settings(data, tmp_path / "pieces", name, accumulate=3)))
    assert losses(tmp_path / "pieces") == pytest.approx(losses(tmp_path / "whole"), rel=1e-4)


def test_the_earlier_step_is_encoded_with_the_ema_weights_without_dropout(data: dict[str, str], tmp_path: Path) -> None:
    trainer = Trainer(train_config(settings(data, tmp_path / "run", "enat")))
    net = trainer.objective.model
    assert trainer.ema is not None and isinstance(net, Generator) and isinstance(net.trunk, ENAT)
    rng = seeds.generator(0, "test")
    tokens, label = torch.randint(64, (2, 64), generator=rng), torch.tensor([0, 1])
    known = torch.zeros(2, 64, dtype=torch.bool)
    known[:, :9] = True
    before = encode_features(net, tokens, label, known).carried.features
    with torch.no_grad():
        for weight in net.parameters():
            weight.mul_(1.5)
    weights = trainer.step_options(0).ema_weights
    kept = encode_features(net, tokens, label, known, weights).carried.features
    assert torch.equal(kept, before)  # the EMA weights are those of the start
    assert not torch.allclose(encode_features(net, tokens, label, known).carried.features, before)
    assert not kept.requires_grad


def test_noise_is_cut_by_rows_and_augments_images() -> None:
    rng = seeds.generator(0, "test")
    noise = Augmentation(flip=True, shift=2).make_noise(6, rng)
    assert noise.flip is not None and noise.shift is not None and noise.shift.abs().max() <= 2
    images = torch.rand(6, 1, 8, 8, generator=rng)
    whole = noise.apply(images)
    pieces = [noise.rows(rows).apply(images[rows]) for rows in (slice(0, 2), slice(2, 6))]
    assert torch.equal(whole, torch.cat(pieces)) and not torch.equal(whole, images)
    # What a shift uncovers repeats the border.
    shifted = AugmentationNoise(shift=torch.tensor([[2, -1]])).apply(images[:1])[0, 0]
    assert torch.equal(shifted[:6, 1:], images[0, 0, 2:, :-1])
    assert torch.equal(shifted[6:], shifted[5:6].expand(2, -1)) and torch.equal(shifted[:, 0], shifted[:, 1])
    assert torch.equal(AugmentationNoise().apply(images), images)


def test_noise_of_images_is_stacked_and_mapped_with_its_parts() -> None:
    rows = [RowNoise(head=HeadNoise(t=torch.tensor([i]), noise=torch.zeros(2))) for i in range(3)]
    whole = stack(rows)
    assert whole.posterior is None and whole.head is not None and whole.head.t.tolist() == [[0], [1], [2]]
    double = map_tensors(lambda value: value * 2, whole)
    assert double.head is not None and double.head.t.tolist() == [[0], [2], [4]] and whole.head.t.tolist()[2] == [2]


def test_what_was_known_before_is_a_part_of_what_is_known_now() -> None:
    rng = torch.Generator().manual_seed(0)
    known = torch.rand(5, 40, generator=rng) < 0.6
    for share in (0.0, 0.3, 1.0):
        before = known_before(known, torch.tensor([share]), torch.rand(5, 40, generator=rng))
        assert not (before & ~known).any()
        assert torch.equal(before.sum(1), known.sum(1) - (known.sum(1) * share).round().long())


def test_masks_with_global_tokens_are_those_of_the_two_phases() -> None:
    torch.manual_seed(0)
    net = tiny_net("uvit", tokens=tiny_tokens(global_tokens=9), dim=16)

    def masks(config: GeneratorObjectiveConfig) -> torch.Tensor:
        rng = torch.Generator().manual_seed(0)
        return GeneratorObjective(net, config).make_noise(400, rng, augmentation=Augmentation()).known

    known = masks(GeneratorObjectiveConfig())
    whole, grid = known[:, :9].all(1), known[:, 9:]
    assert 160 < int(whole.sum()) < 240
    assert not grid[~whole].any(), "the grid is sampled after the global tokens"
    masked = (~grid[whole]).sum(1)
    assert masked.min() >= 1 and len(masked.unique()) > 8
    assert len((~known[~whole, :9]).sum(1).unique()) == 9
    mixed = masks(GeneratorObjectiveConfig(mask=MaskConfig(global_share=None)))
    assert (mixed[:, :9].any(1) & mixed[:, 9:].any(1) & ~mixed[:, :9].all(1)).any()
    with pytest.raises(MgenError, match="visible is 9"):
        masks(GeneratorObjectiveConfig(mask=MaskConfig(visible=9)))


def test_losses_weigh_global_tokens_and_the_grid_alike() -> None:
    torch.manual_seed(0)
    net = tiny_net("uvit", tokens=tiny_tokens(global_tokens=9), dim=16)
    tokens, condition = torch.randint(16, (2, 25)), torch.tensor([0, 2])
    known = torch.zeros(2, 25, dtype=torch.bool)
    losses, _ = net(tokens, condition, known)
    z = net.context(tokens, known, condition)
    first = net.head.parts[0].loss(z[:, :9], tokens[:, :9])[0].mean()
    rest = net.head.parts[1].loss(z[:, 9:], tokens[:, 9:])[0].mean()
    torch.testing.assert_close(losses.mean(), first + rest)
    known[:, :9] = True  # the factors do not depend on the mask
    torch.testing.assert_close(net(tokens, condition, known)[0].mean() * 16 / 25, _grid_loss(net, tokens, condition))


@pytest.mark.parametrize("counts", [(5, 5, 5), (5, 12, 7)])
def test_masks_are_looked_at_once(counts: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    """What `masked_tokens` finds, of a mask in host memory, is all that the losses need; with and without equal numbers."""
    torch.manual_seed(0)
    net = tiny_net("uvit", tokens=tiny_tokens(global_tokens=9), dim=16)
    tokens, condition = torch.randint(16, (3, 25)), torch.tensor([0, 2, 1])
    known = torch.stack([torch.randperm(25) < count for count in counts])
    masked, expected = masked_tokens(known), net(tokens, condition, known)[0]
    assert torch.equal(masked.flat, flat_positions(known)) and (masked.where is None) == (len(set(counts)) > 1)
    plain, ids = tiny_net("uvit", tokens=tiny_tokens(side=5), dim=16), LossOptions()
    z = plain.context(tokens, known, condition)
    sums = image_losses(plain.head, z, tokens, known, None, noise=None, options=ids)[0]
    assert torch.allclose(sums[1], plain.head.loss(z[1], tokens[1])[0][~known[1]].sum())

    def again(known: torch.Tensor) -> torch.Tensor:
        raise AssertionError("a GPU would be waited for")

    monkeypatch.setattr(generator_losses, "flat_positions", again)
    assert torch.equal(net(tokens, condition, known, masked=masked)[0], expected)
    found = image_losses(plain.head, z, tokens, known, masked.where, noise=None, options=ids, flat=masked.flat)
    assert torch.equal(found[0], sums)


def _grid_loss(net: Generator, tokens: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
    known = (torch.arange(25) < 9).expand(2, 25)
    z = net.context(tokens, known, condition)
    return net.head.parts[1].loss(z[:, 9:], tokens[:, 9:])[0].mean()


@pytest.mark.parametrize("table", ["tied-detached", "tied"])
def test_the_head_trains_the_token_table_only_if_tied_with_gradient(table: str) -> None:
    torch.manual_seed(0)
    net = tiny_net("uvit", head={"table": table}, dim=16)
    tokens = torch.full((2, 16), 5)
    net(tokens, torch.tensor([0, 1]), torch.zeros(2, 16, dtype=torch.bool))[0].mean().backward()
    grad = net.embedder.table.weight.grad
    assert grad[16].any(), "the row of the mask token, which is an input"
    assert bool(grad[:16].any()) == (table == "tied"), "rows that only the head uses"


def test_mage_never_shows_the_encoder_what_it_drops() -> None:
    torch.manual_seed(0)
    net = build_model(MODELS["mage"]).eval()
    rank = torch.stack([torch.randperm(64) for _ in range(2)])
    known = rank >= 40
    dropped = net.trunk.training_noise(rank, known)
    assert (dropped.sum(1) == 32).all() and not (dropped & known).any()
    tokens, label = torch.randint(64, (2, 64)), torch.tensor([0, 3])
    classes = net.classes(label)
    features, _, given = net.trunk.encode_kept(net.rows(tokens, known), classes, dropped)
    assert features.shape[1] == 1 + 32 and given.sum() == known.sum()
    other = torch.where(dropped, (tokens + 1) % 64, tokens)
    assert torch.equal(net.trunk.encode_kept(net.rows(other, known), classes, dropped)[0], features)
    with pytest.raises(MgenError, match="drops 50%"):
        net.trunk.training_noise(rank, rank >= 20)


def test_the_loss_of_halton_maskgit_can_count_every_token() -> None:
    torch.manual_seed(0)
    net = build_model(MODELS["adaln"]).eval()
    tokens, known = torch.randint(64, (2, 64)), torch.rand(2, 64) < 0.7
    label, both = torch.tensor([0, 1]), (LossOptions(tokens="all"), LossOptions())
    all_, masked = (net(tokens, label, known, options=options)[0] for options in both)
    assert all_.shape == (128,) and torch.allclose(all_[~known.flatten()], masked)


@pytest.mark.parametrize(
    ("name", "changes", "words"),
    [
        ("mage", {"more": {"reuse": 0.5}}, "for models that carry features"),
        ("enat", {"mask": {"rounding": "bernoulli"}}, "may mask no token"),
        ("mage", {"mask": {"distribution": "cosine"}}, "drops 50%"),
        ("enat", {"more": {"reuse": 1.5}}, "objective.reuse"),
    ],
)
def test_settings_that_do_not_fit(name: str, changes: dict, words: str, data: dict[str, str], tmp_path: Path) -> None:
    with pytest.raises(MgenError, match=words):
        train(train_config(settings(data, tmp_path / "run", name, **changes)))
