"""Names of classes: ImageNet's table, synonyms, and the pipelines that get its names."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torchvision.models import ResNet18_Weights

import mgen
from mgen.cli import main
from mgen.pipelines.classes import class_ids, read_classes
from mgen.utils.errors import MgenError
from mgen.zoo.imagenet import aliases, folded, imagenet_classes, imagenet_names, nearest_classes
from tests.golden import harness

NAMES = imagenet_names()
WORDNET = [found.wordnet for found in imagenet_classes()]


def test_the_table_is_imagenets() -> None:
    """1,000 classes in the order of their WordNet ids; the names to show are torchvision's, but for three that are ambiguous there."""
    assert len(NAMES) == 1000 and WORDNET == sorted(set(WORDNET))
    theirs = ResNet18_Weights.IMAGENET1K_V1.meta["categories"]
    assert [i for i in range(1000) if NAMES[i] != theirs[i]] == [264, 517, 638]
    assert len({folded(name) for name in NAMES}) == 1000 and not any(c in name for name in NAMES for c in ',/"\\;')
    assert max(map(len, NAMES)) < 32 and all(name.isascii() and name.strip() == name for name in NAMES)


@pytest.mark.parametrize(
    ("text", "ids"),
    [
        ("golden retriever,tabby", [207, 281]),
        ("GOLDEN Retriever", [207]),
        ("tabby cat", [281]),
        ("tabby_cat", [281]),
        ("n02123045", [281]),
        ("rooster, jack o lantern", [7, 607]),
        ("potters wheel,yellow lady's slipper", [739, 986]),
        ("crane bird,construction crane", [134, 517]),
        ("cardigan,Cardigan Welsh corgi", [474, 264]),
        ("sunglass,sunglasses", [836, 837]),
        ("0-2,goldfish", [0, 1, 2, 1]),
    ],
)
def test_names_synonyms_and_wordnet_ids(text: str, ids: list[int]) -> None:
    assert read_classes(text, NAMES, "--classes") == ids


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("crane", ("134 (crane bird)", "517 (construction crane)", "give the id")),
        ("maillot", ("638 (maillot tights)", "639 (maillot tank suit)")),
        ("panda", ("387 (lesser panda)", "388 (giant panda)")),
        ("golden retriver", ("207 (golden retriever)",)),
        ("retriever", ("207 (golden retriever)", "208 (Labrador retriever)")),
        ("terier", ("terrier",)),
        ("xyzzyxyzzy", ("ids are 0 … 999",)),
        ("n00000001", ("neither a class id",)),
    ],
)
def test_names_that_mean_no_class_or_several(text: str, words: tuple[str, ...]) -> None:
    with pytest.raises(MgenError) as error:
        read_classes(text, NAMES, "--classes")
    assert all(word in str(error.value) for word in words), error.value
    with pytest.raises(MgenError):
        class_ids([text], NAMES, 1000, True)


def test_synonyms_are_of_imagenets_names_or_folders_alone() -> None:
    """Folders called by WordNet ids, any part of them, have synonyms; 1,000 other names don't, nor names changed in one place."""
    folders = ["n02123045", "n02099601"]
    assert read_classes("golden retriever,tabby cat", folders, "") == [1, 0]
    assert not aliases(["n02123045", "n99999999"]) and not aliases([f"{i:04d}" for i in range(1000)])
    assert not aliases([*NAMES[:-1], "other"]) and not aliases(())
    assert nearest_classes("tabby", folders) == [0]


def vqgan(folder: Path) -> str:
    torch.save(
        {"state_dict": load_file(harness.root() / "maskgit_vqgan" / "weights.safetensors")}, folder / "vqgan.ckpt"
    )
    return str(folder / "vqgan.ckpt")


def convert(folder: Path, *more: str, format: str = "maskgit") -> Path:
    weights = str(harness.root() / "maskgit" / "weights.safetensors")
    argv = [
        "convert",
        format,
        weights,
        "trunk.heads=4",
        "--tokenizer",
        vqgan(folder),
        "--out",
        str(folder / "made"),
        *more,
    ]
    assert main(argv) == 0
    return folder / "made"


def saved_names(folder: Path) -> list[str] | None:
    names = json.loads((folder / "model_index.json").read_text())["class_names"]
    return None if names is None else [names[str(i)] for i in range(len(names))]


def test_a_converted_model_of_imagenet_has_its_names(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    made = convert(tmp_path, "--recipe", "autonat-l-imagenet256")
    assert saved_names(made) == list(NAMES) and "ImageNet-1k" in (made / "conversion.txt").read_text()
    pipe = mgen.load(made)
    out = pipe(["golden retriever", "tabby cat"], output_type="tokens", progress=False)
    assert out.classes == [207, 281]
    run = ["sample", "--model", str(made), "--classes", "potter's wheel", "--num-images", "1"]
    assert main([*run, "--out", str(tmp_path / "run")]) == 0
    assert (tmp_path / "run" / "000000_class-0739.png").is_file(), "file names hold ids, not names"
    joined = [
        "convert",
        "pipeline",
        str(made / "transformer"),
        "--tokenizer",
        str(made),
        "--out",
        str(tmp_path / "joined"),
    ]
    assert main(joined) == 0 and saved_names(tmp_path / "joined") == list(NAMES), (
        "the names of the pipeline it was a part of"
    )
    assert main(["zoo", str(made), "--classes", "tabby"]) == 0
    assert "281  tabby, tabby cat, n02123045" in capsys.readouterr().out


def test_other_models_of_1000_classes_have_no_names(tmp_path: Path) -> None:
    """Neither a size that nobody published, nor one that was converted before and doesn't say that it is a published one."""
    made = convert(tmp_path)
    assert saved_names(made) is None and mgen.load(made).class_names[5] == "0005"
    text = (made / "conversion.txt").read_text()
    assert "note: model: none of configs/models" in text
    # An earlier version converted a published model without names; its report says which one it is.
    (made / "conversion.txt").write_text(
        text.replace("model: none of configs/models has these sizes", "model: maskgit-r-l (mgen zoo)")
    )
    assert mgen.load(made).class_names[207] == "golden retriever"


def test_own_names_of_a_converted_model(tmp_path: Path) -> None:
    file = tmp_path / "names.txt"
    file.write_text("\n".join(f"kind {i}" for i in range(1000)) + "\n")
    made = convert(tmp_path, "--class-names", str(file), "--recipe", "autonat-l-imagenet256")
    assert mgen.load(made).check_classes(["kind 7"]) == [7]
    assert saved_names(convert(tmp_path, "--class-names", "none", "--recipe", "autonat-l-imagenet256")) is None
    assert saved_names(convert(tmp_path, "--class-names", "imagenet")) == list(NAMES)


def test_python_takes_imagenets_names_by_their_name(tmp_path: Path) -> None:
    parts = mgen.load(convert(tmp_path))
    named = mgen.MaskedPipeline(parts.tokenizer, parts.transformer, parts.sampler, class_names="imagenet")
    assert tuple(named.class_names) == NAMES and named.check_classes(["tabby cat", None]) == [281, 1000]
