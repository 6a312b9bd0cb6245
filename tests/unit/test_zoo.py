"""The zoo: what it lists, how it finds models on this machine, what it says of names that it does not know."""

import json
from pathlib import Path
from typing import Any

import pytest

from mgen import zoo
from mgen.cli import main
from mgen.cli.zoo import full, row_named, rows, table
from mgen.generators import list_models
from mgen.utils.errors import MgenError
from mgen.utils.files import write_json
from mgen.utils.folders import embedded
from mgen.zoo.recipes import recipe_names

NAME = "mar-l-imagenet256"


@pytest.fixture(scope="module")
def every() -> list[dict[str, Any]]:
    return rows()


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory and no $MGEN_MODELS."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MGEN_MODELS", raising=False)
    return tmp_path


def make_model(folder: Path) -> None:
    folder.mkdir(parents=True)
    write_json(folder / "model_index.json", {})


def test_table_lists_all_in_120_columns(every: list[dict[str, Any]]) -> None:
    lines = table(every, verbose=False)
    assert max(map(len, lines)) <= 120
    listed = [line.split()[0] for line in lines if line.startswith("  ") and line.split()[0] != "name"]
    assert sorted(listed) == sorted({*recipe_names(), "fmnist-cnn", "fmnist-classifier"})
    assert listed[:4] == ["fmnist-mar", "fmnist-maskgit", "fmnist-classifier", "fmnist-cnn"]
    line = next(line for line in lines if line.split()[:1] == [NAME])
    assert line.split()[1:5] == ["478.3", "M", "256", f"{row_named(NAME)['tflops']:.3g}"]
    assert line.split()[5:8] == ["1.78", "296.0", "torch-fidelity"]
    order = [
        listed.index(f"{name}-imagenet256") for name in ("maskgit", "autonat-l", "mar-b", "mar-l", "mar-h", "himar-b")
    ]
    assert order == sorted(order)
    assert "32+4" in next(line for line in lines if "himar-b" in line)
    assert "5.41" in next(line for line in lines if "fmnist-maskgit " in line)


def test_every_row_is_shown_in_full(every: list[dict[str, Any]]) -> None:
    for row in every:
        lines = full(row)
        assert max(len(line) for line in lines) <= 120, row["name"]
        assert lines[0].startswith(row["name"])
        if "sampler" in row:
            assert f"  mgen eval --recipe {row['name']}" in lines


def test_one_recipe_in_full(elsewhere: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(["zoo", NAME]) == 0
    shown = capsys.readouterr().out
    for words in (
        "mar-l-imagenet256: MAR (NeurIPS 2024)",
        "arXiv 2406.11838",
        "478.3 M",
        "not here: neither models/mar-l nor",
        "recap-mar-l-96-imagenet256",
        "pretrained_models/mar/mar_large/checkpoint-last.pth",
        "mgen convert mar checkpoint-last.pth --tokenizer kl16.ckpt",
        "  mgen sample --model models/mar-l\n",
        "  mgen eval --recipe mar-l-imagenet256\n",
        "50,000 images, labels sorted, seed 0, protocol torch-fidelity",
        "reference: VIRTUAL_imagenet256_labeled.npz",
        "https://openaipublic.blob.core.windows.net",
        "1.78 ± 0.1",
        "296 ± 6",
        "head: {chain: ancestral, steps: 100}",
    ):
        assert words in shown, words
    assert main(["zoo", "enat-l-imagenet512"]) == 0
    assert "nothing published for this setting" in capsys.readouterr().out


def test_json(every: list[dict[str, Any]], elsewhere: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(["zoo", NAME, "--json"]) == 0
    one = json.loads(capsys.readouterr().out)
    assert one["evaluation"]["published"]["FID"] == 1.78 and one["evaluation"]["labels"] == "sorted"
    assert one["path"] is None and one["folder"] == "models/mar-l" and one["sampler"]["steps"] == 256
    assert one == json.loads(json.dumps(next(row for row in every if row["name"] == NAME)))
    assert len({row["name"] for row in every}) == len(every) == len(recipe_names()) + 2
    mine = next(row for row in every if row["name"] == "fmnist-maskgit")
    assert mine["embedded"] and Path(mine["path"]).is_dir() and mine["measured"]["samples_2000"]


def test_architectures_are_listed_with_what_their_files_say(capsys: pytest.CaptureFixture) -> None:
    assert main(["zoo", "--models"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list_models() and max(map(len, lines)) <= 120
    assert all(len(line.split()) > 2 for line in lines), "a file of configs/models has no comment at its head"
    assert main(["zoo", "--models", "mar-*", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert list(found) == ["mar-b", "mar-h", "mar-l"] and found["mar-l"].startswith("MAR-L (arXiv 2406.11838)")
    assert main(["zoo", "--models", "mr-l"]) == 2 and "did you mean 'mar-l'" in capsys.readouterr().err
    assert main(["zoo", NAME, "--models"]) == 2 and "leave out the name" in capsys.readouterr().err


def test_verbose_says_how_to_get_them(every: list[dict[str, Any]]) -> None:
    lines = table(every, verbose=True)
    assert max(map(len, lines)) <= 120
    text = " ".join(" ".join(lines).split())
    assert "get: nnet_ema_512.pth and vqgan_jax_strongaug.ckpt, linked from the README of LeapLabTHU/ENAT" in text
    assert "run: mgen convert enat nnet_ema_512.pth" in text


def test_models_are_found_here_and_under_mgen_models(elsewhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert zoo.local_folder(zoo.recipe(NAME)) is None
    (elsewhere / "models" / "mar-l").mkdir(parents=True)
    assert zoo.local_folder(zoo.recipe(NAME)) is None, "a folder without a pipeline in it"
    store = elsewhere / "store"
    monkeypatch.setenv("MGEN_MODELS", str(store))
    assert zoo.local_folder(zoo.recipe(NAME)) is None
    make_model(store / "models" / "mar-l")
    assert zoo.local_folder(zoo.recipe(NAME)) == store / "models" / "mar-l"
    make_model(store / "mar-l")
    assert zoo.local_folder(zoo.recipe(NAME)) == store / "mar-l"
    write_json(elsewhere / "models" / "mar-l" / "model_index.json", {})
    assert zoo.local_folder(zoo.recipe(NAME)) == zoo.recipe(NAME).folder == Path("models/mar-l")
    line = next(line for line in table([row_named(NAME)], verbose=False) if NAME in line)
    assert line.endswith("here")
    assert "  on this machine  models/mar-l" in full(row_named(NAME))
    with pytest.raises(MgenError, match="its model is in models/mar-l"):
        zoo.resolve(NAME)


def test_embedded_models_are_found(elsewhere: Path) -> None:
    assert zoo.local_folder(zoo.recipe("fmnist-maskgit")) == embedded("fmnist-maskgit")
    for entry in zoo.embedded_entries():
        assert zoo.local_folder(entry) == entry.folder == embedded(entry.name)


def test_recipe_of_ones_own(elsewhere: Path) -> None:
    (elsewhere / "mine.yaml").write_text("sampler: {steps: 4}\n")
    entry = zoo.recipe("mine.yaml")
    assert (entry.name, entry.facts["folder"], entry.folder) == ("mine", "models/mine", None)


def test_same_weights() -> None:
    alike = {other.name for other in zoo.same_weights(zoo.recipe("autonat-l-imagenet256"), zoo.recipe_entries())}
    assert {"autonat-heuristic-8", "maskgit-r-imagenet256", "recap-maskgit-32-imagenet256"} <= alike
    assert "maskgit-imagenet256" not in alike and "autonat-l-imagenet256" not in alike


def test_unknown_names(elsewhere: Path, capsys: pytest.CaptureFixture) -> None:
    for given, near in {"mar-l": "mar-l-imagenet256", "fmnist-maskgut": "fmnist-maskgit"}.items():
        assert main(["zoo", given]) == 2
        error = capsys.readouterr().err
        assert f"the zoo has no {given!r}: did you mean" in error and near in error
    with pytest.raises(MgenError, match="did you mean .*mar-h-imagenet256"):
        zoo.recipe("mar-h-imagenet25")
    with pytest.raises(MgenError, match="published but not on this machine"):
        zoo.resolve(NAME)
