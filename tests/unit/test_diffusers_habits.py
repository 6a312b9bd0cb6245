"""What users of diffusers expect: the table of docs/diffusers.md line by line, and that each habit means what it means there."""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from torch import Tensor

import mgen
from mgen.pipelines.pipeline import MaskedPipeline
from mgen.utils.errors import MgenError
from mgen.utils.folders import embedded
from tests.helpers import tiny_continuous, tiny_generator, tiny_himar, tiny_kl, tiny_net, tiny_pipeline, tiny_tokenizer

ROOT = Path(__file__).resolve().parents[2]


def table() -> list[tuple[str, str]]:
    """Habit and mgen's code of every row."""
    text = (ROOT / "docs" / "diffusers.md").read_text(encoding="utf-8")
    rows = re.findall(r"(?m)^\| ([^|]+) \| `[^|]+` \| `([^|`]+)` \|$", text)
    lines = [line for line in text.splitlines() if line.startswith("| ")]
    assert len(rows) == len(lines) - 1, "a row has no code"  # the head of the table
    return rows


def test_every_row_of_the_table_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    page = (ROOT / "docs" / "diffusers.md").read_text(encoding="utf-8")
    exec(page.partition("```python\n")[2].partition("```")[0], names)
    for habit, code in table():
        try:
            exec(code, names)
        except Exception as error:
            raise AssertionError(f"{habit}: {code}") from error
    assert (tmp_path / "bag.png").is_file() and names["array"].shape == (1, 32, 32, 1)
    assert names["half"].dtype == torch.bfloat16 and names["tokens"].shape == (1, 64)


@pytest.fixture(scope="module")
def pipe() -> MaskedPipeline:
    made = tiny_pipeline()
    made = MaskedPipeline(made.tokenizer, made.transformer, made.sampler, class_names=["bag", "coat", "dress"])
    made.set_progress_bar_config(disable=True)
    return made


def tokens(pipe: MaskedPipeline, *args: Any, **options: Any) -> Tensor:
    return pipe(*args, output_type="tokens", **options).tokens


# -- the call --------------------------------------------------------------------------------------------------------------


def test_both_names_of_a_setting_mean_the_same(pipe: MaskedPipeline) -> None:
    short = tokens(pipe, [0, 1], steps=3, guidance=4.0)
    assert torch.equal(short, tokens(pipe, class_labels=[0, 1], num_inference_steps=3, guidance_scale=4.0))
    assert not torch.equal(short, tokens(pipe, [0, 1]))


def test_one_class_is_one_image(pipe: MaskedPipeline) -> None:
    for single in (1, "coat", "COAT", np.int64(1), torch.tensor(1)):
        assert torch.equal(tokens(pipe, single), tokens(pipe, [1]))
    free = MaskedPipeline(tiny_tokenizer(), tiny_generator(classes={"count": 0}), pipe.sampler.override(guidance=1.0))
    assert torch.equal(tokens(free, progress=False), tokens(free, [None], progress=False))


def test_images_of_one_class_stand_together(pipe: MaskedPipeline) -> None:
    made = pipe(["dress", 0], num_images_per_prompt=2, output_type="tokens")
    assert made.classes == [2, 2, 0, 0] and torch.equal(made.tokens, tokens(pipe, [2, 2, 0, 0]))
    assert not torch.equal(made.tokens[0], made.tokens[1])


def test_a_generator_gives_the_images_of_its_state(pipe: MaskedPipeline) -> None:
    rng = torch.Generator().manual_seed(5)
    first, second = tokens(pipe, [0, 0, 1], generator=rng), tokens(pipe, [0, 0, 1], generator=rng)
    assert not torch.equal(first, second) and not torch.equal(first[0], first[1])
    rng.manual_seed(5)
    assert torch.equal(tokens(pipe, [0, 0, 1], generator=rng, batch_size=2), first)
    part = tokens(pipe, [1], generator=rng.manual_seed(5), indices=[2])
    assert torch.equal(part[0], first[2])


def test_a_generator_for_each_image(pipe: MaskedPipeline) -> None:
    def rngs(*seeds: int) -> list[torch.Generator]:
        return [torch.Generator().manual_seed(s) for s in seeds]

    both = tokens(pipe, [0, 1], generator=rngs(1, 2))
    assert torch.equal(both[1:], tokens(pipe, [1], generator=rngs(2)))
    four = tokens(pipe, [0, 1], num_images_per_prompt=2, generator=rngs(1, 7, 8, 2))
    assert torch.equal(four[[0, 3]], both)


def test_a_refused_call_leaves_the_generator_alone(pipe: MaskedPipeline) -> None:
    rng = torch.Generator().manual_seed(5)
    before = rng.get_state()
    for wrong in (dict(steps=-1), dict(class_labels=[7]), dict(batch_size=0), dict(indices=[0, 1])):
        with pytest.raises(MgenError):
            pipe(**{"class_labels": [0], "generator": rng, **wrong})
    assert torch.equal(rng.get_state(), before)


def test_output_types(pipe: MaskedPipeline) -> None:
    tensor = pipe([0], output_type="pt").images
    array = pipe([0], output_type="np").images
    assert array.shape == (1, 32, 32, 1) and array.dtype == np.float32 and 0 <= array.min() <= array.max() <= 1
    assert np.array_equal(array, tensor.permute(0, 2, 3, 1).numpy())
    latent = pipe([0], output_type="latent")
    assert latent.images is latent.tokens and pipe([0], output_type="tokens").images is None
    images, ids, classes = pipe([0], output_type="pt", return_dict=False)
    assert torch.equal(images, tensor) and torch.equal(ids, latent.tokens) and classes == [0]
    output = pipe([0], output_type="pt")
    assert torch.equal(output[0], tensor) and torch.equal(output["images"], tensor)


def test_torch_types_name_a_precision(pipe: MaskedPipeline) -> None:
    assert torch.equal(tokens(pipe, [0], dtype=torch.bfloat16), tokens(pipe, [0], dtype="bf16"))


def test_the_bar_is_the_pipelines(capsys: pytest.CaptureFixture[str]) -> None:
    made = tiny_pipeline(steps=2)
    made.set_progress_bar_config(desc="drawing", leave=True)
    made([0])
    assert "drawing: 100%" in capsys.readouterr().err
    made([0], progress=False)
    made.set_progress_bar_config(disable=True)
    made([0])
    assert not capsys.readouterr().err


# -- after every step ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch_size", [None, 1])
def test_a_callback_sees_every_step(pipe: MaskedPipeline, batch_size: int | None) -> None:
    seen = []

    def watch(given: Any, index: int, timestep: int, kwargs: dict[str, Tensor]) -> dict[str, Tensor]:
        assert given is pipe and list(kwargs) == ["tokens", "known"]
        seen.append((index, timestep, int(kwargs["known"].sum())))
        return kwargs

    plain = tokens(pipe, [0, 1])
    inputs = ["tokens", "known"]
    found = tokens(
        pipe, [0, 1], callback_on_step_end=watch, callback_on_step_end_tensor_inputs=inputs, batch_size=batch_size
    )
    assert torch.equal(found, plain)
    assert [s[:2] for s in seen] == [(i, 5 - i) for i in range(6)] * (2 if batch_size else 1)


@pytest.mark.parametrize("windows", [None, {"side": 2}])
def test_tokens_that_a_callback_returns_are_taken_over(windows: dict[str, int] | None) -> None:
    made = MaskedPipeline(tiny_tokenizer(), tiny_generator(windows=windows), tiny_pipeline(steps=4).sampler)
    made.set_progress_bar_config(disable=True)
    kept: list[Tensor] = []

    def change(pipe: Any, index: int, timestep: int, kwargs: dict[str, Tensor]) -> dict[str, Tensor]:
        if index == 1:
            kept.append(kwargs["known"].clone())
            return {"tokens": torch.full_like(kwargs["tokens"], 7)}
        return {}

    inputs = ["tokens", "known"]
    found = tokens(made, [0, 1], callback_on_step_end=change, callback_on_step_end_tensor_inputs=inputs)
    known = kept[0]
    assert known.any() and not known.all() and (found[known] == 7).all() and not (found[~known] == 7).all()
    assert not torch.equal(found[~known], tokens(made, [0, 1])[~known])  # they were read


def test_a_causal_model_has_read_its_tokens() -> None:
    net = tiny_net("causal", tokens={"kind": "index", "length": 64, "grid": [8, 8], "vocab_size": 64})
    made = MaskedPipeline(tiny_tokenizer(), net, mgen.ParallelSampler.suited(net))
    with pytest.raises(MgenError, match="has read the earlier ones"):
        made([0], callback_on_step_end=lambda *a: {"tokens": a[3]["tokens"] + 1 - 2 * a[3]["tokens"].clamp(max=1)})


def interrupt(after: int) -> Any:
    return lambda pipe, index, timestep, kwargs: setattr(pipe, "_interrupt", index >= after)


def test_a_run_ends_where_it_is_interrupted(pipe: MaskedPipeline) -> None:
    made = pipe([0, 1, 2], callback_on_step_end=interrupt(2), output_type="pt", batch_size=2)
    assert pipe.interrupt and made.images.shape == (2, 1, 32, 32) and made.classes == [0, 1]
    assert not torch.equal(made.tokens, tokens(pipe, [0, 1]))
    assert tokens(pipe, [0]).shape == (1, 64) and not pipe.interrupt


def test_a_first_stage_makes_no_image() -> None:
    settings = {"steps": 3, "order": "random", "head": {"steps": 4, "clip": 4.0}}
    net = tiny_himar()
    made = MaskedPipeline(tiny_kl(), net, mgen.ParallelSampler.suited(net, {**settings, "first_stage": settings}))
    shapes = []

    def watch(pipe: Any, index: int, timestep: int, kwargs: dict[str, Tensor]) -> None:
        pipe._interrupt = True
        shapes.append((index, timestep, kwargs["tokens"].shape[1]))

    assert made([0], callback_on_step_end=watch, output_type="pt", progress=False).images.shape == (1, 1, 32, 32)
    assert shapes == [(0, 5, 16), (1, 4, 16), (2, 3, 16), (3, 2, 64)]


# -- loading and sharing ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def saved(pipe: MaskedPipeline, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("habits") / "tiny"
    pipe.save_pretrained(folder)
    return folder


def test_components_make_the_same_pipeline(pipe: MaskedPipeline) -> None:
    again = MaskedPipeline(**pipe.components)
    assert again.transformer is pipe.transformer and again.class_names == pipe.class_names
    assert pipe.device == torch.device("cpu") and pipe.dtype == torch.float32


def test_diffusers_loads_what_is_given(pipe: MaskedPipeline, saved: Path, tmp_path: Path) -> None:
    loaded = DiffusionPipeline.from_pretrained(
        saved, tokenizer=pipe.tokenizer, dtype=torch.float16, safety_checker=None
    )
    assert type(loaded) is MaskedPipeline and loaded.tokenizer is pipe.tokenizer
    assert loaded.transformer.dtype == torch.float16 and loaded.class_names == pipe.class_names
    loaded.save_pretrained(tmp_path)
    assert str(saved) not in (tmp_path / "model_index.json").read_text()
    ours = MaskedPipeline.from_pretrained(saved, tokenizer=pipe.tokenizer, torch_dtype=torch.float16, sampler=None)
    assert ours.tokenizer is pipe.tokenizer and ours.transformer.dtype == torch.float16


def test_variants_have_files_of_their_own(pipe: MaskedPipeline, tmp_path: Path) -> None:
    MaskedPipeline(**pipe.components).save_pretrained(tmp_path, variant="fp16")
    names = {file.name for file in (tmp_path / "transformer").iterdir()}
    assert names == {"config.json", "diffusion_pytorch_model.fp16.safetensors"}
    for cls in (MaskedPipeline, DiffusionPipeline):
        assert torch.equal(tokens(cls.from_pretrained(tmp_path, variant="fp16"), [0]), tokens(pipe, [0]))
    with pytest.raises(MgenError, match="weights are missing"):
        MaskedPipeline.from_pretrained(tmp_path)


def test_converting_says_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    made = tiny_continuous()
    for dtype in (torch.bfloat16, torch.float16):
        made.to("cpu", dtype)
    assert made.dtype == torch.float16 and not capfd.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("first", ["mgen", "diffusers", "diffusers alone"])
def test_a_fresh_process_loads_folders(first: str, saved: Path, tmp_path: Path) -> None:
    folders = [str(saved), *map(str, (embedded("fmnist-maskgit"), embedded("fmnist-mar")))]
    more = ", custom_pipeline=f, trust_remote_code=True" if first == "diffusers alone" else ""
    code = {
        "mgen": "import mgen, sys\nassert not {'torch', 'diffusers'} & sys.modules.keys()\nfrom diffusers import DiffusionPipeline\n",
        "diffusers": "from diffusers import DiffusionPipeline\nimport mgen\n",
        "diffusers alone": "from diffusers import DiffusionPipeline\n",
    }[first]
    code += f"for f in {folders}:\n    pipe = DiffusionPipeline.from_pretrained(f{more})\n"
    code += "    print(type(pipe).__name__, len(pipe(0, steps=2, guidance=1.0, progress=False).images))\n"
    code += "from diffusers import DDIMScheduler\nimport diffusers\nassert not hasattr(diffusers, 'NoSuchPipeline')\n"
    env = {**os.environ, "PYTHONPATH": str(ROOT), "HF_MODULES_CACHE": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.stdout.split() == ["MaskedPipeline", "1"] * 3, done.stderr[-2000:]
