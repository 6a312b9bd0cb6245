"""Projects: what a look at a folder of images finds, and the rules by which settings are filled in."""

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mgen.data.folder import ImageFolder
from mgen.project import rules
from mgen.project.files import all_files
from mgen.project.records import Records
from mgen.project.report import labels_like, validation_images
from mgen.project.settings import Project
from mgen.project.stages import run_project
from mgen.project.start import InitRequest, init
from mgen.project.summary import summary
from mgen.project.survey import survey
from mgen.training.config import train_config
from mgen.training.model_settings import model_settings
from mgen.training.resume import may_change
from mgen.utils.config import read_config
from mgen.utils.errors import MgenError
from tests.helpers import tiny_tokenizer


def picture(
    file: Path, *, size: tuple[int, int] = (32, 32), color: tuple[int, int, int] = (200, 30, 30), mode: str = "RGB"
) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(abs(hash(file.name)) % 2**32)
    noise = rng.integers(0, 40, (size[1], size[0], 1)).repeat(3, 2)
    image = Image.fromarray(np.clip(np.array(color) + noise, 0, 255).astype(np.uint8))
    (image if mode == "RGB" else image.convert(mode)).save(file)


def classes(root: Path, counts: dict[str, int], **settings: object) -> Path:
    for name, number in counts.items():
        for i in range(number):
            picture(root / name / f"{i}.png", **settings)  # type: ignore[arg-type]
    return root


# -- the survey --------------------------------------------------------------------------------------------------------------


def test_a_survey_counts_classes_sizes_and_colors(tmp_path: Path) -> None:
    root = classes(tmp_path / "photos", {"cats": 3, "dogs": 25})
    picture(root / "dogs" / "wide.png", size=(90, 30))
    found = survey(root, progress=False)
    assert found.counts == {"cats": 3, "dogs": 26} and found.count == 29 and found.classes == 2 and found.has_classes
    assert found.side == 32 and found.sides[0] == 30 and found.long == 1 and found.color and not found.transparent
    text = "\n".join(summary(found, 32))
    for words in (
        "29 images, 2 classes: cats 3, dogs 26",
        "29 PNG; color",
        "uneven classes: dogs has 26, cats 3",
        "fewer than 20 images: cats",
    ):
        assert words in text, text


def test_gray_transparent_and_deep_images_are_told_apart(tmp_path: Path) -> None:
    root = classes(tmp_path / "gray", {"a": 5, "b": 5}, mode="L")
    picture(root / "a" / "as-rgb.png", color=(90, 90, 90))  # gray, though stored in three channels
    Image.fromarray(np.full((32, 32), 40000, np.uint16)).save(root / "b" / "deep.png")
    found = survey(root, progress=False)
    assert not found.color and found.deep == 1
    picture(root / "a" / "transparent.png", mode="RGBA")
    found = survey(root, progress=False)
    assert found.color and found.transparent == 1
    assert "1 image with an alpha channel: put on white" in summary(found, 32)


def test_copies_and_classes_of_nearly_one_name_are_noticed(tmp_path: Path) -> None:
    root = classes(tmp_path / "photos", {"Cat": 3, "cat": 3})
    (root / "cat" / "copy.png").write_bytes((root / "Cat" / "0.png").read_bytes())
    text = "\n".join(summary(survey(root, progress=False), 32))
    assert "with the contents of another file" in text and "differ in case" in text


def test_names_with_commas_blanks_and_unicode_are_kept_and_shown_in_one_line(tmp_path: Path) -> None:
    names = {"a, b": 10, "grün": 10, "new\nline": 10}
    found = survey(classes(tmp_path / "odd", names), progress=False)
    assert found.counts == names
    assert all("\n" not in line for line in summary(found, 32))


def test_links_to_folders_and_files_are_followed(tmp_path: Path) -> None:
    real = classes(tmp_path / "real", {"cats": 6, "dogs": 6})
    linked = tmp_path / "linked"
    (linked / "birds").mkdir(parents=True)
    for name in ("cats", "dogs"):
        os.symlink(real / name, linked / name)
    os.symlink(real / "cats" / "0.png", linked / "birds" / "0.png")
    assert survey(linked, progress=False).counts == {"birds": 1, "cats": 6, "dogs": 6}


def test_nested_folders_belong_to_the_class_above(tmp_path: Path) -> None:
    picture(tmp_path / "cats" / "2020" / "summer" / "0.png")
    picture(tmp_path / "dogs" / "0.png")
    assert survey(tmp_path, progress=False).counts == {"cats": 1, "dogs": 1}


def test_images_without_folders_are_one_class(tmp_path: Path) -> None:
    for i in range(3):
        picture(tmp_path / f"{i}.png")
    found = survey(tmp_path, progress=False)
    assert found.count == 3 and found.classes == 1 and not found.has_classes
    assert "no class folders" in summary(found, 32)[0]


def test_unreadable_images_are_all_counted_in_the_error(tmp_path: Path) -> None:
    root = classes(tmp_path / "photos", {"cats": 4})
    for name in ("x.png", "y.png"):
        (root / "cats" / name).write_bytes((root / "cats" / "0.png").read_bytes()[:60])
    with pytest.raises(MgenError, match=r"cannot read image .*x\.png.* \(and 1 more, such as .*y\.png"):
        survey(root, progress=False)


# -- rules -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("side", "gpu", "size"),
    [
        (28, True, 32),
        (64, False, 64),
        (60, True, 64),
        (50, True, 32),
        (110, True, 128),
        (500, True, 256),
        (500, False, 64),
        (5, True, 32),
    ],
)
def test_image_size_is_the_largest_that_enlarges_little(side: int, gpu: bool, size: int) -> None:
    assert rules.image_size(side, gpu=gpu) == size


def test_steps_are_passes_over_the_data_between_bounds() -> None:
    passes = rules.Passes(passes=10, least=6400, most=64_000)
    assert [passes.steps(images, 64) for images in (100, 3200, 10**6)] == [100, 500, 1000]
    assert passes.steps(3200, 32) == 1000  # the same number of images


@pytest.mark.parametrize(("images", "batch"), [(10, 4), (100, 8), (300, 32), (520, 64), (10**6, 64)])
def test_batches_are_at_most_an_eighth_of_the_data(images: int, batch: int) -> None:
    assert rules.batch_size(images) == batch


def test_learning_rates_follow_the_square_root_of_the_batch() -> None:
    assert rules.scaled_lr(1e-3, 64) == 1e-3 and rules.scaled_lr(1e-3, 16) == 5e-4


@pytest.mark.parametrize("size", rules.SIZES)
@pytest.mark.parametrize("kind", ["index", "vector"])
def test_the_networks_of_every_preset_fit_each_other(size: int, kind: rules.Kind) -> None:
    import torch

    preset = rules.PRESETS[size]
    name, own = ("VQGAN", preset.ids) if kind == "index" else ("KLTokenizer", preset.vectors | {"scale": 1.0})
    data = {"kind": "folder", "path": "none", "image_size": size, "channels": 3}
    settings = {"task": "tokenizer", "output": "none", "steps": 1, "model": {"class": name, **own}, "data": data}
    from mgen.generators import build_model as build_generator
    from mgen.training.config import build_model

    with torch.device("meta"):
        tokens = build_model(model_settings(train_config(settings))).spec
        model = build_generator(
            {
                "tokens": tokens.to_dict(),
                "classes": {"count": 3},
                "trunk": preset.trunks[kind],
                "head": preset.heads[kind],
            }
        )
    assert model.tokens.length == tokens.length == (64 if size <= 64 else 256)


# -- the files ---------------------------------------------------------------------------------------------------------------


def made(tmp_path: Path, counts: dict[str, int] | None = None, **options: object) -> Project:
    data = classes(tmp_path / "photos", counts or {"cats": 20, "dogs": 20})
    init(InitRequest(data=str(data), out=str(tmp_path / "project"), timed=False, **options))  # type: ignore[arg-type]
    return Project(tmp_path / "project")


@pytest.mark.parametrize("generator", [None, "mar", "fmnist-maskgit"])
def test_files_hold_everything_that_follows_from_the_data(tmp_path: Path, generator: str | None) -> None:
    project = made(tmp_path, generator=generator)
    tokenizer = project.tokenizer_config()
    model = model_settings(tokenizer)
    assert (model["image_size"], model["in_channels"]) == (32, 3)
    assert tokenizer.batch_size == 4 and tokenizer.optim.lr == pytest.approx(2.5e-4) and tokenizer.data.held_out == 0.1
    assert len(project.train_images) == 36 and project.val_images is not None and len(project.val_images) == 4
    classifier = project.classifier_config(1)
    assert classifier.seed == 1 and classifier.model["num_classes"] == 2
    assert project.stages == ["classifier", "tokenizer", "check", "cache", "generator", "report"]


def test_values_have_their_reasons_beside_them(tmp_path: Path) -> None:
    project = made(tmp_path)
    text = (project.folder / "tokenizer.yaml").read_text()
    assert "40 passes over 36 images, but between" in text and "at most an eighth of the images" in text
    assert (
        max(map(len, (line for file in project.folder.glob("*.yaml") for line in file.read_text().splitlines()))) < 180
    )


def test_a_second_folder_is_the_validation_data(tmp_path: Path) -> None:
    val = classes(tmp_path / "val", {"dogs": 3})
    project = made(tmp_path, val=str(val))
    assert len(project.train_images) == 40 and project.val_images is not None and len(project.val_images) == 3
    assert "val_path" in (project.folder / "project.yaml").read_text()


def test_a_single_class_is_trained_without_classes(tmp_path: Path) -> None:
    project = made(tmp_path, {"all": 20})
    assert project.stages == ["tokenizer", "check", "cache", "generator", "report"]
    assert read_config(project.folder / "generator.yaml")["model"]["classes"] == {"count": 0}
    assert project.tokenizer_config().objective.perceptual == 0.0  # type: ignore[union-attr]
    assert not (project.folder / "classifier.yaml").exists()


def test_a_trained_tokenizer_takes_the_place_of_the_training(tmp_path: Path) -> None:
    tiny_tokenizer(in_channels=3).save_pretrained(tmp_path / "vq")
    project = made(tmp_path, tokenizer=str(tmp_path / "vq"))
    assert "tokenizer" not in project.stages and project.tokenizer == tmp_path / "vq"
    with pytest.raises(MgenError, match="takes tokens of kind 'vector'"):
        init(
            InitRequest(
                data=str(tmp_path / "photos"),
                out=str(tmp_path / "b"),
                tokenizer=str(tmp_path / "vq"),
                generator="mar",
                timed=False,
            )
        )


def test_settings_that_differ_from_the_data_name_both(tmp_path: Path) -> None:
    project = made(tmp_path)
    file = project.folder / "tokenizer.yaml"
    file.write_text(file.read_text().replace("  class: VQGAN\n", "  class: VQGAN\n  image_size: 64\n"))
    from mgen.training.trainer import Trainer

    with pytest.raises(MgenError, match="3×32×32 images, but the VQGAN is for 3×64×64"):
        config = project.tokenizer_config()
        config.objective = train_config(
            {"task": "tokenizer", "output": "x", "steps": 1, "model": {"class": "VQGAN"}}
        ).objective
        Trainer(config)


def test_labels_of_samples_are_as_frequent_as_in_the_data(tmp_path: Path) -> None:
    data = ImageFolder(root=classes(tmp_path, {"a": 30, "b": 10}), image_size=32)
    labels = labels_like(data, 20)
    assert sorted(labels) == [0] * 15 + [1] * 5 and labels != sorted(labels)


def test_a_draft_writes_the_same_files_again(tmp_path: Path) -> None:
    data = classes(tmp_path / "photos", {"cats": 20, "dogs": 20})
    draft, out = init(InitRequest(data=str(data), out=str(tmp_path / "project"), timed=False))
    for name, text in all_files(draft, str(out)).items():
        assert (out / name).read_text() == text


def test_validation_images_of_the_report_are_of_all_classes_and_have_the_ids_of_training(tmp_path: Path) -> None:
    val = classes(
        tmp_path / "val", {"birds": 6, "dogs": 6}
    )  # no cats: dogs are class 1 here, and class 2 of the training images
    project = made(tmp_path, {"birds": 10, "cats": 10, "dogs": 10}, val=str(val))
    source = validation_images(project, 4)
    assert source is not None and source.count == 4 and source.read(0, 4).labels.tolist() == [0, 0, 2, 2]
    assert list(source.class_names) == ["birds", "cats", "dogs"]


def test_redo_removes_nothing_that_a_link_leads_to(tmp_path: Path) -> None:
    project = made(tmp_path)
    elsewhere = tmp_path / "disk"
    elsewhere.mkdir()
    (elsewhere / "mine.txt").write_text("mine")
    os.symlink(elsewhere, project.folder / "generator")
    with pytest.raises(MgenError, match="generator is a link"):
        run_project(project.folder, ["generator"], redo=True)
    assert (elsewhere / "mine.txt").read_text() == "mine"


# -- records ---------------------------------------------------------------------------------------------------------------


def test_a_project_that_was_moved_has_the_same_settings(tmp_path: Path) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    old.mkdir()

    def settings(folder: Path) -> dict[str, object]:
        return {"output": str(folder / "generator"), "data": {"path": str(folder / "cache/train")}, "steps": 3}

    Records.read(old).begin("generator", settings(old), {"data": "1"})
    old.rename(new)
    records = Records.read(new)
    assert records.changed("generator", settings(new), {"data": "1"}) == ([], [])
    assert records.changed("generator", settings(tmp_path), {"data": "2"})[1] == ["data"]
    records.stages["generator"].settings = settings(new)  # as earlier versions wrote them
    assert records.changed("generator", settings(new), {"data": "1"}) == ([], [])


def test_a_training_goes_on_whether_images_are_kept_in_memory_or_not() -> None:
    assert may_change("data.keep") and not may_change("data.flip")
