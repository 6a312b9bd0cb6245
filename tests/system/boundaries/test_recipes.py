"""Recipes, strategy files, model files and sweep files: what they hold is checked before it is used."""

from pathlib import Path
from typing import Any

import pytest

from mgen import create_model
from mgen.cli import main
from mgen.evaluation.recipe import evaluation_settings
from mgen.zoo import recipe
from mgen.zoo.recipes import read_recipe, recipe_names, recipe_settings
from tests.system.boundaries.harness import Raises, Refused, fifo, row


def bomb(levels: int = 9) -> str:
    """Nine aliases in each of some lists: 9**levels values."""
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, levels)]
    return "\n".join(lines) + "\n"


def nested(levels: int, value: str = "1") -> str:
    return "[" * levels + value + "]" * levels


# Contents of a file for `mgen sample --recipe`.
RECIPES: list[Any] = [
    row("empty", "", "no settings"),
    row("a text", "hello", "no settings"),
    row("a list", "[1, 2]", "no settings"),
    row("null", "null", "no settings"),
    row("a number", "5", "no settings"),
    row("no yaml", "a: [", "YAML"),
    row("tabs", "sampler:\n\tsteps: 4", "YAML"),
    row("not utf-8", b"sampler: {order: \xff\xfe}", "UTF-8"),
    row("null characters", b"sampler: {order: \x00}", "YAML"),
    row("a python object", "sampler: !!python/object/apply:os.system [true]", "YAML"),
    row("two documents", "sampler: {steps: 4}\n---\nsampler: {steps: 5}", "YAML"),
    row("3 MiB", "# " + "x" * 3 * 2**20, "larger than"),
    row("neither section nor lists", "system: mine", "sampler"),
    row("unknown key", "sampler: {steps: 4}\nsamplers: {steps: 5}", "samplers", "sampler"),
    row("setting outside the section", "sampler: {steps: 4}\nguidance: 3", "unknown key", "guidance"),
    row("alias bomb", bomb() + "sampler: {steps: 4}", "values"),
    row("alias bomb as sampler", bomb() + "sampler: *a8", "values"),
    row("alias bomb as steps", bomb() + "sampler: {steps: *a8}", "values"),
    row("alias bomb as order", bomb() + "sampler: {order: *a8}", "values"),
    row("alias bomb as reuse", bomb() + "sampler: {reuse: *a8}", "values"),
    row("small alias bomb", bomb(4) + "sampler: {steps: *a3}", "unknown key"),
    row("alias of itself", "sampler: &a {steps: *a}", "deep"),
    row("list of itself", "sampler: {order: &a [*a]}", "deep"),
    row("merge key", "base: &b {steps: 4}\nsampler: {<<: *b}", "unknown key"),
    row("deep", f"sampler: {{order: {nested(100)}}}", "levels deep"),
    row("deep 5000", f"sampler: {nested(5000)}", "levels deep"),
    row("deep open", "sampler: " + "[" * 5000, "r.yaml"),
    row("extends itself", "extends: r.yaml", "extends itself"),
    row("extends in a circle", "extends: ./../here/r.yaml", "extends itself"),
    row("extends list", "extends: [r.yaml]", "extends"),
    row("extends number", "extends: 5", "extends"),
    row("extends true", "extends: true", "extends"),
    row("extends mapping", "extends: {a: b}", "extends"),
    row("extends empty", "extends: ''", "extends"),
    row("extends a device", "extends: /dev/zero", "/dev/zero"),
    row("extends a folder", "extends: /tmp", "/tmp"),
    row("extends null character", 'extends: "a\\0b"', "extends"),
    row("extends long", f"extends: {'a' * 5000}", "too long"),
    row("extends nowhere", "extends: nowhere.yaml", "nowhere.yaml"),
    row("bad timestamp", "sampler: {steps: 2024-99-99}", "steps"),
    row("date", "sampler: {steps: 2024-01-01}", "steps"),
    row("huge int", f"sampler: {{steps: {'9' * 5000}}}", "r.yaml"),
    row("10**30", f"sampler: {{steps: {10**30}}}", "steps"),
    row("10**12", "sampler: {steps: 1000000000000}", "steps"),
    row("int keys", "sampler: {1: 2}", "no text"),
    row("int keys at the top", "1: 2\nsampler: {steps: 4}", "no text"),
    row("null key", "sampler: {~: 2}", "no text"),
    row("date key", "sampler: {2024-01-01: 2}", "2024-01-01"),
    row("list as key", "sampler: {? [a] : 2}", "r.yaml"),
    row("true as key", "sampler: {true: 2}", "no text"),
    row("key twice", "sampler: {steps: 4, steps: 6}", "twice"),
    row("section twice", "sampler: {steps: 4}\nsampler: {steps: 6}", "twice"),
    row("sampler a list", "sampler: [1]", "takes a mapping"),
    row("sampler a text", "sampler: fast", "takes a mapping"),
    row("sampler null", "sampler:", "takes a mapping"),
    row("sampler a number", "sampler: 5", "takes a mapping"),
    row("steps a text", "sampler: {steps: a}", "steps"),
    row("steps a list", "sampler: {steps: [4]}", "steps"),
    row("steps true", "sampler: {steps: true}", "steps"),
    row("steps 0", "sampler: {steps: 0}", "steps"),
    row("steps -4", "sampler: {steps: -4}", "steps"),
    row("steps 1.5", "sampler: {steps: 1.5}", "steps"),
    row("steps null", "sampler: {steps: null}", "steps"),
    row("order a number", "sampler: {order: 5}", "order"),
    row("order of texts", "sampler: {order: [a, b]}", "order"),
    row("order too short", "sampler: {order: [0, 1]}", "order"),
    row("order a mapping", "sampler: {order: {nom: confidence}}", "order"),
    row("guidance nan", "sampler: {guidance: .nan}", "guidance"),
    row("guidance inf", "sampler: {guidance: .inf}", "guidance"),
    row("guidance a text", "sampler: {guidance: a}", "guidance"),
    row("guidance of texts", "sampler: {steps: 2, guidance: [a, b]}", "guidance"),
    row("guidance kind", "sampler: {guidance: {kind: fast}}", "guidance"),
    row("temperature negative", "sampler: {temperature: -1}", "temperature"),
    row("schedule a number", "sampler: {schedule: 5}", "schedule"),
    row("counts a list", "sampler: {counts: [maskgit]}", "counts"),
    row("head a list", "sampler: {head: [1]}", "head"),
    row("reuse a text", "sampler: {reuse: all}", "reuse"),
    row("reuse full_first inf", "sampler: {reuse: {full_first: .inf}}", "full_first"),
    row("first stage true", "sampler: {first_stage: true}", "first_stage"),
    row("system a number", "system: 5\nsampler: {steps: 4}", "system", "text"),
    row("folder a list", "folder: [a]\nsampler: {steps: 4}", "folder", "text"),
    row("tflops a text", "tflops: many\nsampler: {steps: 4}", "tflops"),
    row("evaluation a text", "evaluation: mine\nsampler: {steps: 4}", "evaluation", "mapping"),
]

LISTS: dict[str, object] = {
    "manual_ratios": [0.9, 0.5, 0.2],
    "manual_temp": [1.0, 1.0, 1.0],
    "manual_samp_temp": [1.0, 1.0, 1.0, 1.0],
    "manual_cfg": [0.1, 0.2, 0.3, 0.4],
}


def strategy(**changed: object) -> str:
    return "".join(f"{name}: {value}\n" for name, value in {**LISTS, **changed}.items())


RECIPES += [
    row("strategy of texts", strategy(manual_cfg=["a", "b"]), "manual_cfg"),
    row("strategy with a text", strategy(manual_cfg="[0.1, a, 0.2, 0.3]"), "manual_cfg"),
    row("strategy cfg a text", strategy(manual_cfg="high"), "manual_cfg", "list"),
    row("strategy cfg null", strategy(manual_cfg="[0.1, null, 0.2, 0.3]"), "manual_cfg"),
    row("strategy cfg null at all", strategy(manual_cfg="null"), "manual_cfg"),
    row("strategy cfg list", strategy(manual_cfg=[[0.1], [0.2]]), "manual_cfg"),
    row("strategy cfg true", strategy(manual_cfg="[true, true, true, true]"), "manual_cfg"),
    row("strategy cfg empty", strategy(manual_cfg=[]), "manual_cfg"),
    row("strategy cfg nan", strategy(manual_cfg="[.nan, 0, 0, 0]"), "manual_cfg"),
    row("strategy temperatures a mapping", strategy(manual_temp="{a: 1}"), "manual_temp"),
    row("strategy of another length", strategy(manual_temp=[1.0]), "confidence_temperature"),
    row("strategy short of ratios", strategy(manual_ratios=[0.5]), "schedule"),
    row("strategy incomplete", "manual_cfg: [0.1]\nmanual_temp: [1.0]", "manual_cfg"),
]


def refused_file(refused: Refused, here: Path, data: str | bytes, argv: list[str], words: list[str]) -> None:
    (here / "r.yaml").write_bytes(data.encode() if isinstance(data, str) else data)
    refused([*argv, "r.yaml"], *words)


@pytest.mark.parametrize(("data", "words"), RECIPES)
def test_recipes_of_ones_own(data: str | bytes, words: list[str], here: Path, refused: Refused) -> None:
    refused_file(refused, here, data, ["sample", "--model", "@pipeline", "--out", "o", "--recipe"], words)


def test_strategy_files_of_autonat_are_read_with_what_else_they_hold(here: Path) -> None:
    (here / "r.yaml").write_text(strategy(seed=5, name="x"))
    settings, _ = recipe_settings("r.yaml")
    assert settings["steps"] == 4 and settings["guidance"] == [1.1, 1.2, 1.3, 1.4]


def test_files_that_are_no_recipes(here: Path, refused: Refused) -> None:
    argv = ["sample", "--model", "@pipeline", "--out", "o", "--recipe"]
    fifo(here / "fifo")
    (here / "link").symlink_to("nowhere")
    (here / "folder").mkdir()
    for name in ("fifo", "link", "folder", "/dev/zero", "nowhere", "../models/mar-b", "a" * 254, "a" * 255):
        refused([*argv, name], "no recipe and no file")
    refused([*argv, ""], "empty")
    refused([*argv, "mar-b-imagenet25"], "mar-b-imagenet256")


# Of the section that mgen eval reads.
EVALUATIONS: list[Any] = [
    row("a list", "[1]", "mapping"),
    row("empty", "{}", "protocol"),
    row("published int key", "{protocol: adm, reference: a, published: {1: 2}, tolerance: {1: 2}}", "no text"),
    row("published unknown", "{protocol: adm, reference: a, published: {FIDD: 2}, tolerance: {FIDD: 2}}", "FID"),
    row("published a list", "{protocol: adm, reference: a, published: [1]}", "published"),
    row("published a text", "{protocol: adm, reference: a, published: {FID: a}, tolerance: {FID: 1}}", "FID"),
    row("published nan", "{protocol: adm, reference: a, published: {FID: .nan}, tolerance: {FID: 1}}", "FID"),
    row("reference a number", "{protocol: adm, reference: 5}", "reference"),
    row("reference a list", "{protocol: adm, reference: [a]}", "reference"),
    row("protocol a list", "{protocol: [adm], reference: a}", "protocol"),
    row("protocol unknown", "{protocol: admm, reference: a}", "adm"),
    row("count a text", "{protocol: adm, reference: a, count: many}", "count"),
    row("count 1", "{protocol: adm, reference: a, count: 1}", "count"),
    row("count 10**30", f"{{protocol: adm, reference: a, count: {10**30}}}", "count"),
    row("image size -1", "{protocol: adm, reference: a, image_size: -1}", "image_size"),
    row("labels", "{protocol: adm, reference: a, labels: all}", "labels", "balanced"),
    row("unknown", "{protocol: adm, reference: a, counts: 5}", "count"),
]


@pytest.mark.parametrize(("section", "words"), EVALUATIONS)
def test_evaluation_sections(section: str, words: list[str], here: Path, raises: Raises) -> None:
    (here / "r.yaml").write_text(f"sampler: {{steps: 4}}\nevaluation: {section}\n")
    raises(lambda: evaluation_settings("r.yaml"), "evaluation", *words)


@pytest.mark.parametrize(
    ("folder", "words"),
    [
        row("number", "5", "folder"),
        row("list", "[a]", "folder"),
        row("empty", "''", "folder"),
        row("long", "a" * 300, "folder"),
    ],
)
def test_folders_of_recipes(folder: str, words: list[str], here: Path, raises: Raises) -> None:
    (here / "r.yaml").write_text(f"folder: {folder}\nsampler: {{steps: 4}}\n")
    raises(lambda: recipe("r.yaml"), *words)


def test_every_shipped_recipe_fits_the_schema(here: Path) -> None:
    for name in recipe_names():
        assert recipe(name).facts["sampler"]
    (here / "r.yaml").write_text("folder:\nsampler: {steps: 4}\n")
    assert recipe("r.yaml").facts["folder"] == "models/r"
    assert read_recipe(here / "r.yaml")["sampler"] == {"steps": 4}


# Contents of a file for create_model and `mgen bench --arch`.
MODELS: list[Any] = [
    row("empty", "", "no settings"),
    row("a list", "[1]", "no settings"),
    row("no trunk", "tokens: {kind: index, length: 16, grid: [4, 4], vocab_size: 8}", "trunk"),
    row("extends itself", "extends: m.yaml", "extends itself"),
    row("int keys", "1: 2", "no text"),
    row("trunk a list", "tokens: {}\ntrunk: [1]\nhead: {}", "trunk"),
    row("trunk null", "tokens: {}\ntrunk:\nhead: {}", "trunk"),
    row("classes a number", "extends: {base}\nclasses: 5", "classes"),
    row("unknown section", "extends: {base}\nsampler: {{steps: 4}}", "sampler"),
    row("dim a text", "extends: {base}\ntrunk: {{dim: wide}}", "trunk.dim"),
    row("dim 10**10", "extends: {base}\ntrunk: {{dim: 10000000000}}", "trunk.dim"),
    row("vocabulary 0", "extends: {base}\ntokens: {{vocab_size: 0}}", "vocab_size"),
    row("grid that does not fit", "extends: {base}\ntokens: {{grid: [3, 4]}}", "grid"),
    row("grid a number", "extends: {base}\ntokens: {{grid: 4}}", "grid"),
    row("first alone", "extends: {base}\nfirst: {{}}", "second"),
    row("alias bomb", bomb() + "trunk: *a8", "values"),
]


@pytest.mark.parametrize(("text", "words"), MODELS)
def test_model_files(text: str, words: list[str], here: Path, refused: Refused, raises: Raises) -> None:
    from mgen.utils.folders import part

    base = part("configs") / "models" / "fmnist-maskgit.yaml"
    (here / "m.yaml").write_text(text.format(base=base) if "{base}" in text else text)
    raises(lambda: create_model("m.yaml"), *words)
    refused(["bench", "--arch", "m.yaml", "--tokenizer", "none"], *words)


def test_names_of_models(raises: Raises) -> None:
    for name in ("mar-bb", "", "../recipes/mar-b-imagenet256", "a" * 5000, "a\0b", None, 5, ["mar-b"], b"mar-b"):
        raises(lambda: create_model(name), "model")  # noqa: B023  # type: ignore[arg-type]
    for name in ("nowhere.yaml", "a" * 300 + ".yaml", "a\0.yaml"):
        raises(lambda: create_model(name), "")  # noqa: B023


def test_zoo_refuses_names_and_patterns(refused: Refused) -> None:
    refused(["zoo", "mar-b"], "did you mean")
    refused(["zoo", ""], "empty")
    refused(["zoo", "a" * 5000], "the zoo has no")
    refused(["zoo", "--models", ""], "empty")
    refused(["zoo", "--models", "["], "no architecture")
    refused(["zoo", "--models", "m" * 5000], "no architecture")
    assert main(["zoo", "mar-b-imagenet256"]) == 0
