"""Pipelines: saving, loading, sampling."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import mgen
from mgen.pipelines.pixels import QUANTIZATIONS, to_uint8
from mgen.utils.errors import MgenError
from tests.helpers import TRUNKS, tiny_generator, tiny_net, tiny_pipeline, tiny_tokenizer


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pipe") / "tiny"
    tiny_pipeline().save_pretrained(folder)
    return folder


def test_saved_pipeline_samples_the_same_images(saved: Path) -> None:
    a = tiny_pipeline()([0, 1, 2], seed=3, progress=False, output_type="uint8")
    b = mgen.load(saved)([0, 1, 2], seed=3, progress=False, output_type="uint8")
    c = mgen.MaskedPipeline.from_pretrained(saved)([0, 1, 2], seed=3, progress=False, output_type="uint8")
    assert torch.equal(a.tokens, b.tokens) and torch.equal(a.images, b.images)
    assert torch.equal(a.images, c.images)


@pytest.mark.parametrize(
    "model", [tiny_tokenizer(), tiny_tokenizer(fsq_levels=(4, 4, 4)), tiny_generator()], ids=["vq", "fsq", "maskgit"]
)
def test_models_survive_a_round_trip(model, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path)
    again.save_pretrained(tmp_path / "again")
    assert str(tmp_path) not in (tmp_path / "again" / "config.json").read_text()
    assert {k: v for k, v in again.config.items() if k[0] != "_"} == json.loads(
        json.dumps({k: v for k, v in model.config.items() if k[0] != "_"})
    )
    assert all(torch.equal(v, again.state_dict()[k]) for k, v in model.state_dict().items())


def test_batch_size_changes_nothing(saved: Path) -> None:
    pipe = mgen.load(saved)
    together = pipe([0, 1, 2, 0, 1], seed=1, progress=False, output_type="tokens").tokens
    for size in (1, 2, 4):
        assert torch.equal(
            pipe([0, 1, 2, 0, 1], seed=1, batch_size=size, progress=False, output_type="tokens").tokens, together
        )
    part = pipe([2, 0], seed=1, indices=[2, 3], progress=False, output_type="tokens").tokens
    assert torch.equal(part, together[2:4])
    assert not torch.equal(pipe([0], seed=2, progress=False, output_type="tokens").tokens, together[:1])


def test_output_types(saved: Path) -> None:
    pipe = mgen.load(saved)
    assert pipe([0], progress=False).images[0].size == (32, 32)
    assert pipe([0], progress=False, output_type="pt").images.min() >= 0
    assert pipe([0], progress=False, output_type="uint8").images.dtype == torch.uint8
    assert pipe([None], progress=False, guidance=1.0).classes == [3]
    with pytest.raises(MgenError, match="output_type"):
        pipe([0], progress=False, output_type="jpg")


def test_optimize_keeps_the_images() -> None:
    tokenizer = tiny_tokenizer()
    ids = torch.randint(0, 64, (2, 64))
    with torch.inference_mode():
        plain = tokenizer.decode(ids)
        fast = tokenizer.fuse().to(memory_format=torch.channels_last).decode(ids)
    assert (plain - fast).abs().max() < 1e-5


def test_class_out_of_range_raises_an_error(saved: Path) -> None:
    pipe = mgen.load(saved)
    for bad in ([3], [-1], [0, 99]):
        with pytest.raises(MgenError, match="out of range"):
            pipe(bad, progress=False)


def damage(saved: Path, tmp_path: Path, part: str, change) -> Path:
    import shutil

    shutil.copytree(saved, tmp_path / "damaged")
    file = next((tmp_path / "damaged" / part).glob("*.safetensors"))
    change(file)
    return tmp_path / "damaged"


def edit_weights(change):
    def apply(file: Path) -> None:
        state = load_file(file)
        change(state)
        save_file(state, file)

    return apply


def cut_in_half(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


@pytest.mark.parametrize(
    "change, words",
    [
        (edit_weights(lambda s: s.pop("trunk.norm.weight")), "trunk.norm.weight"),
        (edit_weights(lambda s: s.update(extra=torch.zeros(1))), "extra"),
        (edit_weights(lambda s: s.update({"trunk.norm.weight": torch.zeros(5)})), "trunk.norm.weight|fit"),
        (edit_weights(lambda s: s["trunk.norm.weight"].fill_(float("nan"))), "NaN"),
        (cut_in_half, "cannot read|fit"),
        (Path.unlink, "cannot read|missing"),
    ],
    ids=["missing", "extra", "shape", "nan", "truncated", "gone"],
)
def test_damaged_weights_raise_instead_of_loading(saved: Path, tmp_path: Path, change, words: str) -> None:
    with pytest.raises(MgenError, match=words):
        mgen.load(damage(saved, tmp_path, "transformer", change))


def test_unknown_configuration_key_raises_an_error(saved: Path, tmp_path: Path) -> None:
    def misspell(file: Path) -> None:
        config = file.parent / "config.json"
        config.write_text(config.read_text().replace('"depth"', '"dept"'))

    with pytest.raises(MgenError, match="did you mean 'depth'"):
        mgen.load(damage(saved, tmp_path, "transformer", misspell))


def test_missing_models_are_explained(tmp_path: Path) -> None:
    with pytest.raises(MgenError, match="did you mean 'fmnist-maskgit'"):
        mgen.load("fmnist-maskgi")
    with pytest.raises(MgenError, match="not on this machine"):
        mgen.load("autonat-l-imagenet256")
    with pytest.raises(MgenError, match="model_index.json"):
        mgen.load(tmp_path)


def test_tokenizer_and_generator_must_fit() -> None:
    with pytest.raises(MgenError, match="tokenizer"):
        mgen.MaskedPipeline(
            tokenizer=tiny_tokenizer(vocab_size=32), transformer=tiny_generator(), sampler=mgen.ParallelSampler()
        )


@pytest.mark.parametrize("trunk", [name for name in TRUNKS if name not in ("causal", "permuted")])
def test_generators_share_one_interface(trunk: str) -> None:
    model = tiny_net(trunk)
    tokens, known = torch.randint(0, 16, (2, 16)), torch.rand(2, 16) < 0.5
    label, positions = torch.tensor([0, model.null_class]), torch.tensor([[3, 0], [15, 7]])
    if model.capabilities.carried_features:
        known = known.scatter(1, positions, False)  # rows of known tokens hold their features and cannot be asked for
    whole = model.context(tokens, known, label)
    some = model.context(tokens, known, label, positions=positions)
    assert torch.allclose(some, whole.gather(1, positions.unsqueeze(-1).expand(-1, -1, 32)), atol=1e-5)
    hidden = torch.where(known, tokens, 5)  # what stands at unknown positions is never read
    assert torch.equal(model.context(hidden, known, label), whole)
    losses, hits = model(tokens, label, known)
    assert losses.shape == hits.shape == ((~known).sum(),)


def test_class_names_belong_to_the_pipeline(tmp_path: Path) -> None:
    names, parts = ("bag", "coat", "dress"), tiny_pipeline()
    named = mgen.MaskedPipeline(
        tokenizer=parts.tokenizer, transformer=parts.transformer, sampler=parts.sampler, class_names=names
    )
    named.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "model_index.json").read_text())["class_names"] == {
        "0": "bag",
        "1": "coat",
        "2": "dress",
    }
    assert "bag" not in (tmp_path / "transformer" / "config.json").read_text()
    for again in (mgen.load(tmp_path), mgen.MaskedPipeline.from_pretrained(tmp_path)):
        assert tuple(again.class_names) == names
    assert tuple(parts.class_names) == ("0000", "0001", "0002")
    with pytest.raises(MgenError, match="2 class names for 3 classes"):
        mgen.MaskedPipeline(
            tokenizer=parts.tokenizer, transformer=parts.transformer, sampler=parts.sampler, class_names=names[:2]
        )


def test_bytes_are_made_as_the_papers_make_them() -> None:
    unit = torch.tensor(
        [-1.5, -1.0, -1 + 0.4 / 127.5, -1 + 0.6 / 127.5, -1 + 0.5 / 127.5 + 1e-6, -1 + 1.9 / 127.5, 0.0, 1.0, 2.0]
    )
    made = {how: to_uint8(unit.view(1, 1, 1, -1), quantization=how).flatten().tolist() for how in QUANTIZATIONS}
    assert made["round"] == [0, 0, 0, 1, 1, 2, 128, 255, 255]
    assert made["half-up"] == [0, 0, 0, 1, 1, 2, 128, 255, 255]
    assert made["truncate"] == [0, 0, 0, 0, 0, 1, 127, 255, 255]
    with pytest.raises(MgenError, match="half-up, round, truncate"):
        to_uint8(unit, quantization="floor")
