"""Configurations of networks in saved folders and on the command line."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.system.boundaries.harness import Copied, Refused, row  # isort: skip

FILES = [
    row("generator list", ("transformer/config.json", [1]), "transformer/config.json", "mapping"),
    row("generator null", ("transformer/config.json", None), "transformer/config.json", "mapping"),
    row("generator without parts", ("transformer/config.json", {}), "transformer/config.json", "missing section"),
    row(
        "generator trunk null",
        ("transformer/config.json", "trunk", None),
        "transformer/config.json",
        "'trunk'",
        "mapping",
    ),
    row("generator dim text", ("transformer/config.json", "trunk.dim", "32"), "transformer/config.json", "'trunk.dim'"),
    row("generator dim null", ("transformer/config.json", "trunk.dim", None), "'trunk.dim'", "whole number"),
    row("generator dim list", ("transformer/config.json", "trunk.dim", [32]), "'trunk.dim'", "whole number"),
    row("generator dim -32", ("transformer/config.json", "trunk.dim", -32), "'trunk.dim'", "at least 1"),
    row("generator dim huge", ("transformer/config.json", "trunk.dim", 10**30), "trunk.dim", "64 bits"),
    row("generator dim beyond weights", ("transformer/config.json", "trunk.dim", 2**20), "config.json", "describes"),
    row("generator dim other", ("transformer/config.json", "trunk.dim", 64), "do not fit", "size mismatch"),
    row("generator depth 3", ("transformer/config.json", "trunk.depth", 3), "depth is 3", "even"),
    row("generator depth 1.5", ("transformer/config.json", "trunk.depth", 1.5), "'trunk.depth'", "whole number"),
    row(
        "generator depth 1000", ("transformer/config.json", "trunk.depth", 1000), "transformer/config.json", "describes"
    ),
    row("generator dropout", ("transformer/config.json", "trunk.dropout", 5), "'trunk.dropout'", "less than 1"),
    row("generator dropout -0.1", ("transformer/config.json", "trunk.dropout", -0.1), "'trunk.dropout'", "at least 0"),
    row("generator dropout text", ("transformer/config.json", "trunk.dropout", "a"), "'trunk.dropout'", "a number"),
    row("generator grid", ("transformer/config.json", "tokens.grid", [-8, 8]), "'tokens.grid.0'", "at least 1"),
    row("generator grid huge", ("transformer/config.json", "tokens.grid", [10**30, 8]), "tokens.grid.0", "64 bits"),
    row("generator length", ("transformer/config.json", "tokens.length", "64"), "'tokens.length'", "whole number"),
    row("generator unknown key", ("transformer/config.json", "trunk.foo", 1), "'trunk.foo'", "Valid"),
    row("generator head text", ("transformer/config.json", "head", "a"), "'head'", "mapping"),
    row("generator classes text", ("transformer/config.json", "classes.count", "3"), "'classes.count'", "whole number"),
    row("tokenizer list", ("tokenizer/config.json", [1]), "tokenizer/config.json", "mapping"),
    row("tokenizer latent text", ("tokenizer/config.json", "latent", "4"), "tokenizer/config.json", "'latent'"),
    row("tokenizer latent null", ("tokenizer/config.json", "latent", None), "'latent'", "whole number"),
    row("tokenizer latent huge", ("tokenizer/config.json", "latent", 2**20), "tokenizer/config.json", "describes"),
    row("tokenizer size text", ("tokenizer/config.json", "image_size", "32"), "'image_size'", "whole number"),
    row("tokenizer size -32", ("tokenizer/config.json", "image_size", -32), "'image_size'", "at least 1"),
    row("tokenizer size 31", ("tokenizer/config.json", "image_size", 31), "image_size 31", "multiple of 4"),
    row("tokenizer multipliers", ("tokenizer/config.json", "multipliers", []), "'multipliers'", "at least 1"),
    row("tokenizer multipliers text", ("tokenizer/config.json", "multipliers", "112"), "'multipliers'", "list"),
    row("tokenizer groups text", ("tokenizer/config.json", "norm_groups", "a"), "'norm_groups'", "whole number"),
    row("tokenizer blocks", ("tokenizer/config.json", "blocks", 10**9), "'blocks'", "at most 1000"),
    row("tokenizer shortcut", ("tokenizer/config.json", "shortcut", 5), "'shortcut'", "output or input"),
    row("tokenizer unknown key", ("tokenizer/config.json", "foo", 5), "foo", "Valid"),
]


def damage(folder: Path, change: tuple[Any, ...]) -> None:
    """Write a value in place of a configuration, or of one of its keys: (file, value) or (file, key.sub, value)."""
    file, value = folder / change[0], change[-1]
    if len(change) == 3:
        whole = inner = json.loads(file.read_text())
        *path, last = change[1].split(".")
        for key in path:
            inner = inner[key]
        inner[last] = value
        value = whole
    file.write_text(json.dumps(value))


@pytest.mark.parametrize(("change", "words"), FILES)
def test_a_saved_configuration_that_is_wrong_names_file_and_key(
    refused: Refused, copied: Copied, change: tuple[Any, ...], words: list[str]
) -> None:
    folder = copied("pipeline")
    damage(folder, change)
    refused(["sample", "--model", str(folder), "--out", "new", "--device", "cpu"], *words)


MODEL_SET = [
    row("dim 0", ["trunk.dim=0"], "trunk.dim", "at least 1"),
    row("dim text", ["trunk.dim='32'"], "trunk.dim", "whole number"),
    row("dim 10**10", ["trunk.dim=10000000000"], "trunk.dim", "at most"),
    row("dim beyond memory", ["trunk.dim=491520"], "GB of memory"),
    row("depth -1", ["trunk.depth=-1"], "trunk.depth", "at least 0"),
    row("depth 3", ["trunk.depth=3"], "depth is 3", "even"),
    row("heads 5", ["trunk.heads=5"], "heads 5 does not divide dim 192"),
    row("heads 0", ["trunk.heads=0"], "trunk.heads", "at least 1"),
    row("dropout", ["trunk.dropout=1"], "trunk.dropout", "less than 1"),
    row("dropout nan", ["trunk.dropout=.nan"], "trunk.dropout", "finite"),
    row("trunk null", ["trunk=null"], "trunk", "mapping"),
    row("trunk type", ["trunk.type=5"], "trunk type", "uvit"),
    row("head type", ["head.type=diffusion"], "draws tokens of kind vector"),
    row("tokens", ["tokens.length=-8"], "tokens.length", "at least 1"),
    row("classes", ["classes.count=a"], "classes.count", "whole number"),
    row("windows", ["windows.side=3"], "divides the token grid"),
    row("unknown", ["tronk.dim=3"], "tronk", "did you mean 'trunk'"),
    row("twice", ["trunk.dim=64", "trunk.dim=128"], "twice"),
]


@pytest.mark.parametrize(("given", "words"), MODEL_SET)
def test_settings_of_a_model_to_time(refused: Refused, given: list[str], words: list[str]) -> None:
    options = [part for setting in given for part in ("--model-set", setting)]
    refused(["bench", "--arch", "fmnist-maskgit", "--tokenizer", "none", "--device", "cpu", *options], *words)


TRAINED = [
    row("empty", ["model={}"], "model"),
    row("dim -32", ["model.trunk.dim=-32"], "model.trunk.dim", "at least 1"),
    row("dim 10**10", ["model.trunk.dim=10000000000"], "model.trunk.dim", "at most"),
    row("dim beyond memory", ["model.trunk.dim=524288"], "GB of memory"),
    row("dropout nan", ["model.trunk.dropout=.nan"], "model.trunk.dropout", "finite"),
    row("dropout 1", ["model.trunk.dropout=1.0"], "model.trunk.dropout", "less than 1"),
    row("grid", ["model.tokens.grid=[-8,-8]"], "model.tokens.grid.0", "at least 1"),
    row("type null", ["model.trunk.type=null"], "trunk type", "uvit"),
    row("type list", ["model.trunk.type=[uvit]"], "trunk type", "uvit"),
    row("unknown key", ["model.size=L"], "model.size", "Valid"),
    row("head null", ["model.head=null"], "model.head", "mapping"),
]


@pytest.mark.parametrize(("given", "words"), TRAINED)
def test_settings_of_a_model_to_train(refused: Refused, given: list[str], words: list[str]) -> None:
    refused(["train", "--config", "@config", *given], *words)
