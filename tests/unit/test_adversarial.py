"""The adversarial term of a tokenizer: its adaptive weight and forms; and codes that are compared by distance."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from mgen.convert import convert
from mgen.pipelines.saved import load_tokenizer
from mgen.tokenizers import HitaTokenizer, LlamaGenVQ
from mgen.tokenizers.sphere import PlainQuantizer
from mgen.training.adversarial import Discriminator
from mgen.training.balance import factor
from mgen.training.companions import Companions
from mgen.training.config import TokenizerObjectiveConfig, train_config
from mgen.training.data import BatchOrder, batches
from mgen.training.noise import AugmentationNoise, TokenizerNoise
from mgen.training.objective import StepOptions
from mgen.training.tokenizer_objective import TokenizerObjective
from mgen.training.trainer import Trainer
from mgen.utils.errors import MgenError
from tests.golden import harness
from tests.helpers import HITA, write_idx

VQ: dict[str, Any] = dict(image_size=16, in_channels=1, channels=(8, 8), layers=1, norm_groups=4)
SMALL = VQ | dict(z_channels=8, latent=4, vocab_size=16)
NOISE = TokenizerNoise(augmentation=AugmentationNoise())


def tiny_vq(**settings: Any) -> LlamaGenVQ:
    torch.manual_seed(0)
    return LlamaGenVQ(**{**SMALL, **settings})


def pictures(count: int = 4) -> Tensor:
    return torch.rand(count, 1, 16, 16, generator=torch.Generator().manual_seed(1)) * 2 - 1


def objective_of(net: LlamaGenVQ, **settings: Any) -> TokenizerObjective:
    torch.manual_seed(3)
    discriminator = Discriminator(in_channels=1, channels=8, layers=1, loss="half-hinge")
    config = TokenizerObjectiveConfig(**{"adversarial": 0.5, "adversarial_adaptive": True, **settings})
    return TokenizerObjective(net, config, Companions(discriminator=discriminator))


# -- the adaptive weight -----------------------------------------------------------------------------------------------


def test_the_adaptive_weight_is_the_quotient_of_the_gradients_at_the_last_layer() -> None:
    net = tiny_vq()
    objective, images = objective_of(net, l2=4.0, l1=0.5), pictures()
    loss, logs, _ = objective({"image": images}, NOISE, StepOptions(adversarial=True))
    loss.backward()
    got = {name: p.grad.clone() for name, p in net.named_parameters() if p.grad is not None}
    # The same by hand: reconstruction and adversarial term, differentiated one after the other.
    last, discriminator = net.vq.decoder.conv_out.weight, objective.companions.discriminator
    assert discriminator is not None
    out, terms, _ = net(images)
    beside = F.mse_loss(out, images) + 0.5 * F.l1_loss(out, images) / 2
    adversarial = -discriminator.scores(out).mean()
    (a,), (b,) = (torch.autograd.grad(term, last, retain_graph=True) for term in (beside, adversarial))
    weight = (a.norm() / (b.norm() + 1e-4)).item()
    assert weight > 1.2 and logs["adversarial_factor"].item() == pytest.approx(weight, rel=1e-5)
    whole = beside + terms["codebook"] + 0.25 * terms["commitment"] + 0.5 * weight * adversarial
    assert loss.item() == pytest.approx(whole.item(), rel=1e-5)
    assert not logs["adversarial_factor"].requires_grad
    net.zero_grad()
    whole.backward()
    for name, p in net.named_parameters():
        assert p.grad is not None and torch.allclose(got[name], p.grad, rtol=1e-3, atol=1e-6), name


def test_the_weight_has_bounds_and_counts_in_training_alone() -> None:
    assert factor(torch.tensor([[3.0, 4.0], [0.0, 0.0]])).item() == 1e4  # 5 / 1e-4 is more than allowed
    assert factor(torch.tensor([[3.0, 4.0], [0.6, 0.8]])).item() == pytest.approx(5 / 1.0001)
    assert factor(torch.tensor([[0.0, 0.0], [1.0, 0.0]])).item() == 0
    objective, options = objective_of(tiny_vq()), StepOptions(adversarial=True)
    plain = objective_of(tiny_vq(), adversarial_adaptive=False).eval()
    with torch.inference_mode():  # validation must not depend on how it is cut into batches
        loss, logs, _ = objective.eval()({"image": pictures()}, NOISE, options)
        assert loss.item() == plain({"image": pictures()}, NOISE, options)[0].item()
    assert "adversarial_factor" not in logs and "adversarial" in logs


def settings_of(output: Path, data: Path) -> dict[str, Any]:
    adversarial = {"adversarial": 0.5, "adversarial_adaptive": True, "adversarial_loss": "hinge"}
    return {
        "task": "tokenizer",
        "output": str(output),
        "steps": 2,
        "batch_size": 6,
        "model": {"class": "LlamaGenVQ", **SMALL, "image_size": 32, "channels": [8, 8, 8]},
        "data": {"kind": "fmnist", "path": str(data)},
        "objective": {"l2": 4.0, **adversarial, "discriminator_channels": 8, "discriminator_layers": 2},
        "optim": {"lr": 1e-3, "clip": 1.0},
        "log": {"tensorboard": False},
    }


def test_pieces_of_a_batch_train_like_the_whole_one(tmp_path: Path) -> None:
    """Two processes of two pieces each: tests/system/test_training.py."""
    data, logs = write_idx(tmp_path), dict[str, list[dict[str, float]]]()
    for name, changes in {"one": {}, "three": {"accumulate": 3}, "bf16": {"precision": "bf16"}}.items():
        trainer = Trainer(train_config({**settings_of(tmp_path / name, data), **changes}))
        order = BatchOrder(trainer.config, data=trainer.task.train_data, rank=0, world=1, start=0)
        loader = batches(trainer.task.train_data, order)
        for trainer.step in range(2):
            made = trainer.train_step(loader, order)
            logs.setdefault(name, []).append({key: value.item() for key, value in made.items()})
    for one, three, rough in zip(*logs.values()):
        for key in ("loss", "adversarial_factor", "grad_norm", "discriminator"):
            assert one[key] == pytest.approx(three[key], rel=1e-3), key
        assert one["adversarial_factor"] != 1 and rough["loss"] == pytest.approx(one["loss"], rel=0.05)


def test_the_last_layer_must_be_trained(tmp_path: Path) -> None:
    settings = settings_of(tmp_path / "run", write_idx(tmp_path))
    with pytest.raises(MgenError, match="vq.decoder.conv_out.weight, which optim.freeze keeps as it is"):
        Trainer(train_config({**settings, "optim": {"freeze": ["vq.decoder"]}}))
    with pytest.raises(MgenError, match="adversarial_adaptive is true, but adversarial is 0"):
        TokenizerObjectiveConfig(adversarial_adaptive=True)


# -- the form of the term ----------------------------------------------------------------------------------------------


def test_the_tokenizers_loss_has_a_form_of_its_own() -> None:
    torch.manual_seed(0)
    fake = pictures()
    for loss, usual in (("half-hinge", "mean"), ("non-saturating", "softplus"), ("half-hinge-softplus", "softplus")):
        for form in ("mean", "softplus", None):
            torch.manual_seed(1)
            net = Discriminator(in_channels=1, channels=8, layers=1, loss=loss, form=form)
            logits = net.scores(fake)
            expected = -logits.mean() if (form or usual) == "mean" else torch.log(1 + torch.exp(-logits)).mean()
            assert net.generator_loss(fake).item() == pytest.approx(expected.item(), rel=1e-5), (loss, form)
    with pytest.raises(MgenError, match="adversarial_form"):
        Discriminator(in_channels=1, loss="hinge", form="hinge")


# -- codes that keep their length --------------------------------------------------------------------------------------


def test_codes_without_normalization_are_compared_by_distance() -> None:
    torch.manual_seed(0)
    net = PlainQuantizer(vocab_size=9, dim=3)
    torch.nn.init.normal_(net.embedding.weight)
    z, rows = torch.randn(2, 3, 2, 2, requires_grad=True), net.embedding.weight
    flat = z.permute(0, 2, 3, 1).reshape(-1, 3)
    distances = torch.stack([((flat - row) ** 2).sum(1) for row in rows], dim=1)  # (8, 9)
    found = net(z)
    assert found.ids.flatten().tolist() == distances.argmin(1).tolist()
    codes = rows[distances.argmin(1)].detach()
    assert torch.allclose(found.values.permute(0, 2, 3, 1).reshape(-1, 3), codes, atol=1e-6)
    assert torch.allclose(net.lookup(found.ids).permute(0, 2, 3, 1).reshape(-1, 3), codes)
    squared = ((flat - codes) ** 2).mean().item()
    assert {name: v.item() for name, v in found.losses.items()} == pytest.approx(dict.fromkeys(found.losses, squared))
    assert found.losses.keys() == {"codebook", "commitment"}
    net.entropy = True
    p = torch.softmax(-distances / 0.01, dim=1)
    mean = p.mean(0)
    by_hand = -(p * (p + 1e-12).log()).sum(1).mean() + (mean * (mean + 1e-5).log()).sum()
    assert net(z).losses["entropy"].item() == pytest.approx(by_hand.item(), abs=1e-4)
    net.entropy = False
    (grad,) = torch.autograd.grad(net(z).values.sum(), z)
    assert torch.equal(grad, torch.ones_like(z))  # straight through


@pytest.mark.parametrize("cls", [LlamaGenVQ, HitaTokenizer])
def test_the_option_is_saved_where_it_matters(cls: Any, tmp_path: Path) -> None:
    """At its default it is not: folders, caches and checkpoints of before it existed stay valid."""
    torch.manual_seed(0)
    sizes = SMALL if cls is LlamaGenVQ else HITA
    unit = cls(**sizes)
    assert "normalized" not in unit.config
    unit.save_pretrained(tmp_path / "unit")
    assert "normalized" not in json.loads((tmp_path / "unit" / "config.json").read_text())
    plain = cls(**sizes, normalized=False)
    plain.load_state_dict(unit.state_dict())
    plain.save_pretrained(tmp_path / "plain")
    again = load_tokenizer(tmp_path / "plain")
    assert again.config.normalized is False and isinstance(again.quantize, PlainQuantizer)
    assert again.fingerprint() == plain.fingerprint() != unit.fingerprint()
    with torch.no_grad():
        again.quantize.embedding.weight.mul_(3)
        unit.quantize.embedding.weight.mul_(3)
    ids = torch.zeros(1, 2, 2, dtype=torch.int64)
    assert torch.allclose(again.quantize.lookup(ids).norm(dim=1), torch.full((1, 2, 2), 3.0))
    assert torch.allclose(unit.quantize.lookup(ids).norm(dim=1), torch.ones(1, 2, 2))


def test_conversion_keeps_the_length_of_such_codes(tmp_path: Path) -> None:
    path = harness.root() / "llamagen" / "weights.safetensors"
    unit, plain = (convert("llamagen-vq", path, image_size=24, normalized=n) for n in (True, False))
    assert any("codebook_l2_norm" in note for note in unit.notes) and not plain.notes
    rows = [made.model.quantize.embedding.weight for made in (unit, plain)]
    assert torch.allclose(F.normalize(rows[1], dim=1), rows[0], atol=1e-6)
    assert torch.allclose(rows[0].norm(dim=1), torch.ones(len(rows[0])))
    state = {name: value * (2.0 if "embedding" in name else 1.0) for name, value in harness.load_file(path).items()}
    save_file(state, tmp_path / "double.safetensors")
    double = convert("llamagen-vq", tmp_path / "double.safetensors", image_size=24, normalized=False)
    assert torch.equal(double.model.quantize.embedding.weight, 2 * rows[1])
    assert math.prod(double.model.spec.shape) == 36
