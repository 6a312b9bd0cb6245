"""The package is what its tree says, and does not get in the way of others."""

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import mgen
from mgen.utils.folders import embedded, part

ROOT = Path(__file__).resolve().parents[2]


def test_every_package_is_listed() -> None:
    listed = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"])
    tree = {"mgen", "mgen.tokenizers", "mgen.samplers", "mgen.configs"}
    tree |= {".".join(p.parent.relative_to(ROOT).parts) for p in (ROOT / "mgen").glob("**/__init__.py")}
    assert listed == tree


def test_top_level_folders_are_not_packages() -> None:
    for name in ("tokenizers", "samplers"):
        assert not (ROOT / name / "__init__.py").exists()
        assert not (ROOT / name / "tests").exists()


@pytest.mark.parametrize("where", ["root", "elsewhere"])
def test_import_tokenizers_is_never_ours(where: str, tmp_path: Path) -> None:
    """The well-known package of that name, which peft brings along, is what `import tokenizers` gives."""
    code = (
        "import mgen.tokenizers, mgen.samplers, tokenizers\n"
        "assert tokenizers.Encoding\n"
        "assert mgen.tokenizers.VQGAN.__name__ == 'VQGAN' and mgen.tokenizers is not tokenizers\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT if where == "root" else tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


def test_public_names_exist() -> None:
    for name in mgen.__all__:
        assert getattr(mgen, name) is not None
    with pytest.raises(AttributeError):
        mgen.nothing  # noqa: B018


def test_configs_and_weights_are_found() -> None:
    assert (part("configs") / "train" / "fmnist-maskgit.yaml").is_file()
    assert (embedded("fmnist-maskgit") / "model_index.json").is_file()
    sizes = {
        folder.name: sum(p.stat().st_size for p in folder.rglob("*") if p.is_file()) for folder in embedded().iterdir()
    }
    assert sizes.pop("fmnist-mar") <= 10 * 2**20  # the continuous demo has a budget of its own
    assert sum(sizes.values()) <= 16 * 2**20


def test_files_stay_readable() -> None:
    for folder in ("mgen", "tokenizers", "samplers", "tools", "tests"):
        for file in (ROOT / folder).rglob("*.py"):
            assert len(file.read_text().splitlines()) <= 500, file
