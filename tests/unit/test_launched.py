"""The number of a process by the environment, and errors that name a setting."""

from pathlib import Path

import pytest
from PIL import Image

from mgen.cli import main
from mgen.utils.errors import MgenError, naming
from mgen.utils.launched import is_first, launched


@pytest.mark.parametrize(
    ("rank", "world", "expected"),
    [
        ("3", "8", (3, 8)),
        ("0", "1", (0, 1)),
        (None, None, (0, 1)),
        ("x", "2", (0, 1)),
        ("1", "0", (0, 1)),
        ("1", "", (0, 1)),
        ("²", "3", (0, 1)),
        ("7", "2", (0, 1)),
    ],
)
def test_number_of_a_process(
    rank: str | None, world: str | None, expected: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (("RANK", rank), ("WORLD_SIZE", world)):
        if value is None:
            monkeypatch.delenv(name, raising=False)
        else:
            monkeypatch.setenv(name, value)
    assert launched() == expected and is_first() == (expected[0] == 0)


def test_what_was_given_stands_in_front() -> None:
    with pytest.raises(MgenError, match=r"^data\.val_path: no such folder$"), naming("data.val_path"):
        raise MgenError("no such folder")
    with pytest.raises(KeyError), naming("data.val_path"):
        raise KeyError("another error stays what it is")


def test_a_missing_tokenizer_and_missing_validation_data_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("a", "b"):
        (tmp_path / "images" / name).mkdir(parents=True)
        Image.new("L", (32, 32)).save(tmp_path / "images" / name / "0.png")
    own = ["data.kind=folder", f"data.path={tmp_path}/images", f"data.val_path={tmp_path}/no", f"output={tmp_path}/out"]
    for tokenizer, named in ((f"{tmp_path}/none", "objective.tokenizer"), ("fmnist-maskgit", "data.val_path")):
        assert main(["train", "--config", "fmnist-maskgit", f"objective.tokenizer={tokenizer}", *own]) == 2
        assert f"error: {named}: " in capsys.readouterr().err
