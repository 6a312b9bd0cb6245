"""Adapters (LoRA) of every trunk: what they change, their files, fusing, and what raises an error."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from mgen.data import DataRecord
from mgen.generators import Cascade, build_model
from mgen.generators.adapter_file import FILE, About, find_adapter, read_adapter
from mgen.pipelines.pipeline import MaskedPipeline
from mgen.samplers import ParallelSampler
from mgen.utils.errors import MgenError
from tests.helpers import (
    TRUNKS,
    tiny_cascade_config,
    tiny_config,
    tiny_generator,
    tiny_net,
    tiny_pipeline,
    tiny_tokenizer,
    tiny_tokens,
)

pytest.importorskip("peft")

NETS: dict[str, dict[str, Any]] = {trunk: tiny_config(trunk) for trunk in TRUNKS}
NETS |= {
    "windows": tiny_config("uvit", windows={"side": 2, "unit": "token"}),
    "windows of ids": tiny_config("causal", windows={"side": 2}),
    "global tokens": tiny_config("causal", tokens=tiny_tokens(global_tokens=3)),
    "cascade": tiny_cascade_config("index", side=4),
}


def lively(config: dict[str, Any]) -> Any:
    """A model without zeros, so that every layer counts; the same every time."""
    torch.manual_seed(3)
    net = build_model(config).eval()
    with torch.no_grad():
        for parameter in net.parameters():
            if parameter.abs().max() == 0:
                parameter.normal_(std=0.1)
    return net


def adapted(net: Any, seed: int = 0, **settings: Any) -> Any:
    """The model with an adapter that changes something."""
    torch.manual_seed(seed)
    net.add_lora(**{"rank": 4, **settings})
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.05)
    return net


def drawn(net: Any, **settings: Any) -> Tensor:
    """Context vectors of all steps of a short run, which full passes and cached steps made."""
    found: list[Tensor] = []
    for stage in net.stages():
        kept = stage.head.sample if not hasattr(stage, "_sample") else stage._sample
        stage._sample = kept

        def note(z: Tensor, *args: Any, kept: Any = kept, **kwargs: Any) -> Any:
            found.append(z.flatten())
            return kept(z, *args, **kwargs)

        stage.head.sample = note
    first = {"first_stage": {"steps": 2}} if isinstance(net, Cascade) else {}
    sampler = (
        ParallelSampler.suited(net, {"guidance": 2.0, "order": "random", **first, **settings}) if settings else None
    )
    sampler = sampler or ParallelSampler.suited(net, {"guidance": 2.0, **first})
    with torch.inference_mode():
        *_, _last = sampler(net, torch.tensor([0, 1]), noise=sampler.make_noise(net, [1, 2]))
    for stage in net.stages():
        del stage.head.sample, stage._sample
    return torch.cat(found)


@pytest.mark.parametrize("kind", NETS)
def test_a_new_adapter_changes_nothing_and_is_all_that_is_trained(kind: str) -> None:
    net = lively(NETS[kind])
    before, names = drawn(net), {name for name, _ in net.named_parameters()}
    net.add_lora(rank=2, dropout=0.5)
    assert torch.allclose(drawn(net.eval()), before, atol=1e-5)
    trained = {name for name, p in net.named_parameters() if p.requires_grad}
    assert trained and all(".lora_" in name for name in trained)
    assert len({name.replace(".base_layer", "") for name, _ in net.named_parameters()} & names) == len(names)
    attention_and_mlp = {name.split(".lora_")[0].rsplit(".", 1)[-1] for name in trained}
    assert {"fc1", "fc2", "proj"} <= attention_and_mlp


@pytest.mark.parametrize("kind", NETS)
def test_fused_and_merged_weights_draw_the_same(kind: str) -> None:
    net = adapted(lively(NETS[kind]))
    plain, with_adapter = drawn(lively(NETS[kind])), drawn(net)
    assert not torch.allclose(with_adapter, plain, atol=1e-2)
    merged = net.merged()
    assert set(merged.state_dict()) == set(lively(NETS[kind]).state_dict())
    assert torch.allclose(drawn(merged), with_adapter, atol=2e-4)
    net.fuse_lora()
    assert net.fused and torch.allclose(drawn(net), with_adapter, atol=2e-4)
    net.unfuse_lora()
    assert torch.allclose(drawn(net), with_adapter, atol=2e-4)
    net.unload_lora()
    assert torch.allclose(drawn(net), plain, atol=2e-4) and not net.adapter_names


@pytest.mark.parametrize("trunk", ["uvit", "bert", "mae", "mage", "enat", "adaln"])
def test_cached_steps_see_the_adapter(trunk: str) -> None:
    """Queries, keys and values of cached steps are computed apart."""
    settings = {"steps": 6, "schedule": "linear", "reuse": {"cached": 1}}
    net = adapted(lively(NETS[trunk]))
    unfused = drawn(net, **settings)
    assert torch.allclose(drawn(net.merged(), **settings), unfused, atol=2e-4)
    assert not torch.allclose(drawn(lively(NETS[trunk]), **settings), unfused, atol=1e-2)


@pytest.mark.parametrize("kind", NETS)
def test_the_file_gives_the_adapter_back(tmp_path: Path, kind: str) -> None:
    net = adapted(lively(NETS[kind]), alpha=6.0)
    net.optimize_layout(1)
    net.save_lora_adapter(tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == [FILE]
    again = lively(NETS[kind])
    again.optimize_layout(1)
    again.load_lora_adapter(tmp_path)
    assert again.adapter_names == ("default_0",)
    assert torch.equal(drawn(again), drawn(net))
    again.save_lora_adapter(tmp_path / "again")
    assert (tmp_path / "again" / FILE).read_bytes() == (tmp_path / FILE).read_bytes()


def test_the_file_is_as_diffusers_has_it(tmp_path: Path) -> None:
    """diffusers' own method, without ours, loads the same adapter from it."""
    from diffusers.loaders import PeftAdapterMixin

    net = adapted(lively(NETS["uvit"]))
    net.save_lora_adapter(tmp_path)
    with safe_open(str(tmp_path / FILE), "pt") as file:
        names, settings = list(file.keys()), json.loads(file.metadata()["lora_adapter_metadata"])
    assert "transformer.trunk.mid_block.attn.qkv.lora_A.weight" in names
    assert (settings["transformer.r"], settings["transformer.lora_alpha"]) == (4, 16.0)
    again = lively(NETS["uvit"])
    PeftAdapterMixin.load_lora_adapter(again, str(tmp_path), weight_name=FILE)
    assert torch.equal(drawn(again), drawn(net))


def test_an_adapter_that_peft_saved_without_settings(tmp_path: Path) -> None:
    """Without metadata, alpha is the rank, as diffusers has it; names may have a prefix or not; ranks may differ."""
    net = adapted(lively(NETS["uvit"]), alpha=4.0)
    net.save_lora_adapter(tmp_path)
    bare = {k.removeprefix("transformer."): v for k, v in load_file(tmp_path / FILE).items()}
    save_file(bare, tmp_path / "bare.safetensors")
    for source in (tmp_path / "bare.safetensors", bare):
        again = lively(NETS["uvit"])
        again.load_lora_adapter(source)
        assert torch.allclose(drawn(again), drawn(net), atol=1e-6)
    name = "trunk.mid_block.mlp.fc1"
    bare[f"{name}.lora_A.weight"] = bare[f"{name}.lora_A.weight"][:1].contiguous()
    bare[f"{name}.lora_B.weight"] = bare[f"{name}.lora_B.weight"][:, :1].contiguous()
    again = lively(NETS["uvit"])
    again.load_lora_adapter(bare)
    delta = bare[f"{name}.lora_B.weight"] @ bare[f"{name}.lora_A.weight"]
    merged, plain = again.merged(), lively(NETS["uvit"])
    assert torch.allclose(
        merged.trunk.mid_block.mlp.fc1.weight, plain.trunk.mid_block.mlp.fc1.weight + delta, atol=1e-6
    )


def test_several_adapters_and_scales(tmp_path: Path) -> None:
    plain = drawn(lively(NETS["uvit"]))
    for i in range(2):
        adapted(lively(NETS["uvit"]), seed=i).save_lora_adapter(tmp_path / str(i))
    net = lively(NETS["uvit"])
    net.load_lora_adapter(tmp_path / "0", adapter_name="a")
    one = drawn(net)
    net.load_lora_adapter(tmp_path / "1", adapter_name="b")
    net.set_adapters(["a", "b"], [1.0, 0.0])
    assert torch.allclose(drawn(net), one, atol=1e-5)
    net.set_adapters(["a", "b"], [0.0, 0.0])
    assert torch.allclose(drawn(net), plain, atol=1e-5)
    with pytest.raises(MgenError, match="adapter_name is None, but there are a, b"):
        net.save_lora_adapter(tmp_path / "x")
    with pytest.raises(MgenError, match="'a', which is loaded already"):
        net.load_lora_adapter(tmp_path / "1", adapter_name="a")


def test_targets() -> None:
    net = lively(NETS["uvit"])
    net.add_lora(targets=["attn.qkv", "skip_linear"])
    names = {name.split(".lora_")[0].rsplit(".", 1)[-1] for name, p in net.named_parameters() if p.requires_grad}
    assert names == {"qkv", "skip_linear"}


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"targets": ["attn.q"]}, "'attn.q', but no linear layer of the trunk ends so: there are attn.proj, attn.qkv"),
        ({"targets": ["head.fc"]}, "no linear layer of the trunk"),
        ({"rank": 0}, "rank"),
        ({"rank": 33}, "use at most that"),
        ({"rank": 1.5}, "rank"),
        ({"alpha": 0}, "alpha"),
        ({"alpha": float("nan")}, "alpha"),
        ({"dropout": 1.0}, "dropout"),
        ({"adapter_name": "a.b"}, "letters, digits"),
    ],
)
def test_settings_that_raise(settings: dict[str, Any], words: str) -> None:
    net = lively(NETS["uvit"])
    with pytest.raises(MgenError) as error:
        net.add_lora(**settings)
    assert words in str(error.value)
    assert not net.adapter_names and not any(".lora_" in name for name, _ in net.named_parameters())


def damaged(tensors: dict[str, Tensor], case: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of a damaged file."""
    name = "transformer.trunk.mid_block.attn.qkv"
    match case:
        case "half an adapter":
            tensors.pop(f"{name}.lora_B.weight")
        case "another layer":
            tensors[f"{name[:-3]}k.lora_A.weight"] = torch.ones(4, 32)
            tensors[f"{name[:-3]}k.lora_B.weight"] = torch.ones(32, 4)
        case "another width":
            tensors[f"{name}.lora_A.weight"] = torch.ones(4, 16)
        case "no rank":
            tensors[f"{name}.lora_A.weight"], tensors[f"{name}.lora_B.weight"] = torch.ones(0, 32), torch.ones(96, 0)
        case "a number":
            tensors[f"{name}.lora_A.weight"] = torch.tensor(1.0)
        case "not a number":
            tensors[f"{name}.lora_A.weight"] = torch.full((4, 32), torch.nan)
        case "nothing":
            tensors = {"a": torch.ones(1)}
        case "other tensors":
            tensors["transformer.trunk.norm.weight"] = torch.ones(32)
        case "tables alone":
            tensors["tables.classes.vectors.weight"] = torch.ones(4, 32)
    metadata = {
        "settings": {"lora_adapter_metadata": "{"},
        "settings of a list": {"lora_adapter_metadata": "[]"},
        "alpha": {"lora_adapter_metadata": '{"transformer.lora_alpha": "x"}'},
        "dora": {"lora_adapter_metadata": '{"transformer.use_dora": true}'},
        "pattern": {"lora_adapter_metadata": '{"transformer.alpha_pattern": {"(a+)+": 1.0}}'},
        "about": {"mgen": '{"config": 5}'},
        "another model": {"mgen": json.dumps({"config": tiny_config("bert")})},
        "no model": {"mgen": json.dumps({"config": {"tokens": {}}})},
    }.get(case, {})
    return tensors, metadata


DAMAGE = [
    ("half an adapter", "lora_B.weight' is missing or no part"),
    ("another layer", "of another model: this one has no layer"),
    ("another width", "takes 32 numbers and makes 96"),
    ("no rank", "of another model"),
    ("a number", "of another model"),
    ("not a number", "NaN"),
    ("nothing", "holds no adapter"),
    ("other tensors", "no part of an adapter"),
    ("tables alone", "doesn't say of which model"),
    ("settings", "not valid JSON"),
    ("settings of a list", "expected a mapping"),
    ("alpha", "lora_alpha"),
    ("dora", "not supported"),
    ("pattern", "expected the name of a layer"),
    ("about", "config"),
    ("another model", "another configuration"),
    ("no model", "missing"),
]


@pytest.mark.parametrize(("case", "words"), DAMAGE)
def test_files_that_raise(tmp_path: Path, case: str, words: str) -> None:
    adapted(tiny_generator()).save_lora_adapter(tmp_path)
    tensors, metadata = damaged(load_file(tmp_path / FILE), case)
    save_file(tensors, tmp_path / FILE, metadata)
    pipe = tiny_pipeline()
    before = {name: value.clone() for name, value in pipe.transformer.state_dict().items()}
    with pytest.raises(MgenError) as error:
        pipe.load_lora_weights(tmp_path)
    assert words in str(error.value) and "\n" not in str(error.value)
    assert not pipe.transformer.adapter_names
    assert all(torch.equal(before[name], value) for name, value in pipe.transformer.state_dict().items())


def test_no_adapter_there(tmp_path: Path) -> None:
    for path, words in (
        (tmp_path, f"no {FILE} in it"),
        (tmp_path / "x", "no such folder"),
        (5, "folder of an adapter"),
    ):
        with pytest.raises(MgenError, match=words):
            find_adapter(path)  # type: ignore[arg-type]
    (tmp_path / FILE).write_bytes(b"\x00" * 20)
    with pytest.raises(MgenError, match="not a readable safetensors file"):
        tiny_generator().load_lora_adapter(tmp_path)


def test_without_peft_one_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("diffusers.utils.is_peft_available", lambda: False)
    pipe = tiny_pipeline()
    for call in (
        pipe.transformer.add_lora,
        lambda: pipe.load_lora_weights("x"),
        pipe.fuse_lora,
        pipe.unload_lora_weights,
        lambda: pipe.save_lora_weights("x"),
    ):
        with pytest.raises(MgenError, match=r'LoRA needs the package peft: pip install "mgen\[lora\]"'):
            call()


# -- pipelines ---------------------------------------------------------------------------------------------------------------


def tokens(pipe: MaskedPipeline, **settings: Any) -> Tensor:
    return pipe([0, 1, 2], progress=False, output_type="tokens", **settings).tokens


def saved(tmp_path: Path) -> Path:
    pipe = tiny_pipeline()
    adapted(pipe.transformer, alpha=64.0)
    pipe.save_lora_weights(tmp_path / "lora")
    return tmp_path / "lora"


def test_a_pipeline_by_diffusers_names(tmp_path: Path) -> None:
    folder, pipe = saved(tmp_path), tiny_pipeline()
    plain = tokens(pipe)
    pipe.load_lora_weights(folder, adapter_name="own")
    assert pipe.get_active_adapters() == ["own"] and pipe.get_list_adapters() == {"transformer": ["own"]}
    changed = tokens(pipe)
    assert not torch.equal(changed, plain)
    pipe.set_adapters("own", 0.0)
    assert torch.equal(tokens(pipe), plain)
    pipe.set_adapters(["own"], adapter_weights=[1.0])
    pipe.disable_lora()
    assert torch.equal(tokens(pipe), plain)
    pipe.enable_lora()
    pipe.fuse_lora()
    assert pipe.num_fused_loras == 1 and torch.equal(tokens(pipe), changed)
    pipe.unfuse_lora()
    assert torch.equal(tokens(pipe), changed)
    pipe.unload_lora_weights()
    assert torch.equal(tokens(pipe), plain)
    pipe.load_lora_weights(folder, scale=0.0)
    assert torch.equal(tokens(pipe), plain)


def test_an_adapter_for_other_classes_of_the_same_number_brings_their_names(tmp_path: Path) -> None:
    net = adapted(tiny_pipeline().transformer)
    replace(net.adapter(), about=About(class_names=("ant", "bee", "cow"))).save(tmp_path / FILE)
    pipe = tiny_pipeline()
    pipe.set_data(DataRecord(name="others", images=9, image_size=32, channels=1, digest="0" * 64))
    before = list(pipe.class_names)
    pipe.load_lora_weights(tmp_path)
    assert list(pipe.class_names) == ["ant", "bee", "cow"] and pipe.data is None
    pipe.save_lora_weights(tmp_path / "again")
    assert read_adapter(tmp_path / "again").about.class_names == ("ant", "bee", "cow")
    pipe.unload_lora_weights()
    assert list(pipe.class_names) == before and pipe.data is not None and pipe.data.name == "others"


def test_a_scale_is_that_of_the_new_adapter_alone(tmp_path: Path) -> None:
    folder, pipe = saved(tmp_path), tiny_pipeline()
    pipe.load_lora_weights(folder, adapter_name="one", scale=0.5)
    pipe.load_lora_weights(folder, adapter_name="two", scale=0.25)
    assert pipe.get_active_adapters() == ["two"]
    found = [layer.scaling for layer in pipe.transformer.modules() if getattr(layer, "scaling", None)]
    assert found and all(scaling == {"one": 8.0, "two": 4.0} for scaling in found)  # of alpha 64, rank 4


def test_saving_a_pipeline_with_adapters(tmp_path: Path) -> None:
    folder, pipe = saved(tmp_path), tiny_pipeline()
    pipe.load_lora_weights(folder)
    with pytest.raises(MgenError, match="adapters are loaded"):
        pipe.save_pretrained(tmp_path / "model")
    changed = tokens(pipe)
    pipe.fuse_lora()
    pipe.unload_lora_weights()
    pipe.save_pretrained(tmp_path / "model")
    assert torch.equal(tokens(MaskedPipeline.from_pretrained(tmp_path / "model")), changed)


def test_precisions_and_compilation(tmp_path: Path) -> None:
    folder = saved(tmp_path)
    pipe = tiny_pipeline()
    pipe.load_lora_weights(folder)
    changed = tokens(pipe)
    assert tokens(pipe, dtype="bf16").shape == changed.shape
    pipe.transformer.compile(backend="eager")
    assert torch.equal(tokens(pipe), changed)
    half = tiny_pipeline()
    half.transformer.to(torch.bfloat16)
    half.load_lora_weights(folder)
    assert {p.dtype for p in half.transformer.parameters()} == {torch.bfloat16}
    assert tokens(half).shape == changed.shape


def test_an_adapter_for_other_classes_brings_them(tmp_path: Path) -> None:
    """As a training on other classes writes it: the rows of the classes beside the adapter."""
    net = adapted(tiny_generator(classes={"count": 2}), alpha=64.0)
    about = About(config={k: v for k, v in net.config.items() if not k.startswith("_")}, class_names=("mug", "plate"))
    replace(net.adapter(tables=["classes.vectors.weight"]), about=about).save(tmp_path / "lora" / FILE)
    pipe = tiny_pipeline()
    plain, base = tokens(pipe), pipe.transformer
    pipe.load_lora_weights(tmp_path / "lora")
    assert pipe.class_names == ("mug", "plate") and pipe.transformer.num_classes == 2
    assert torch.equal(pipe.transformer.classes.vectors.weight[:2], net.classes.vectors.weight[:2])
    changed = pipe(["plate"], progress=False).tokens
    pipe.save_lora_weights(tmp_path / "again")
    assert (tmp_path / "again" / FILE).read_bytes() == (tmp_path / "lora" / FILE).read_bytes()
    pipe.unload_lora_weights()
    assert pipe.transformer is base and torch.equal(tokens(pipe), plain)
    pipe.add_adapters([(tmp_path / "lora", 1.0)])
    assert pipe.class_names == ("mug", "plate") and not pipe.transformer.adapter_names
    assert torch.equal(pipe(["plate"], progress=False).tokens, changed)
    pipe.save_pretrained(tmp_path / "model")
    assert MaskedPipeline.from_pretrained(tmp_path / "model").class_names == ("mug", "plate")


def test_an_adapter_for_another_tokenizer_raises(tmp_path: Path) -> None:
    net = adapted(tiny_generator(tokens=tiny_tokens(side=4, vocab_size=64)))
    about = About(config={k: v for k, v in net.config.items() if not k.startswith("_")})
    replace(net.adapter(), about=about).save(tmp_path / FILE)
    with pytest.raises(MgenError, match="the tokenizer makes 64 tokens"):
        tiny_pipeline().load_lora_weights(tmp_path)


def test_layers_are_those_of_the_trunk() -> None:
    net = tiny_net("uvit")
    assert all(isinstance(net.get_submodule(name), nn.Linear) for name in net.adaptable_layers())
    assert all(name.startswith("trunk.") for name in net.adaptable_layers())
    assert tiny_tokenizer() is not None
