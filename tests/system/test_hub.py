"""Models by "owner/name": uploaded to a hub on this machine, loaded from there in every way, and clear errors without it."""

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

import mgen
from mgen.utils.errors import MgenError
from mgen.utils.hub import is_hub_id
from tests.forks import Forks
from tests.local_hub import BROKEN, GATED, PRIVATE, TOKEN, LocalHub

ROOT = Path(__file__).resolve().parents[2]
MODEL = "owner/shirts"
pytestmark = pytest.mark.slow
FORKS: Forks


@pytest.fixture(scope="module")
def hub() -> Iterator[LocalHub]:
    with LocalHub() as running:
        yield running


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("hub-cache")


@pytest.fixture(scope="module", autouse=True)
def forks() -> Iterator[None]:
    """Processes that have imported torch, but nothing that looks for a hub."""
    global FORKS
    with Forks("torch", "torchvision") as FORKS:
        yield


def run(code: str, hub: LocalHub | str, cache: Path, *, cwd: Path, offline: bool = False) -> str:
    """The output of Python code in a process that takes `hub` for the Hugging Face hub."""
    env = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "HUGGING"))}
    env |= {"HF_ENDPOINT": hub if isinstance(hub, str) else hub.url, "HF_HOME": str(cache), "HF_HUB_DISABLE_XET": "1"}
    env |= {"HF_HUB_OFFLINE": str(int(offline)), "PYTHONPATH": str(ROOT), "DIFFUSERS_VERBOSITY": "error"}
    done = FORKS.run(code, cwd=cwd, env=env)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


IMAGES = "print(float(pipe([1, 2], seed=3, num_inference_steps=2, output_type='pt', progress=False).images.sum()))\n"
PUSH = f"""
import mgen
pipe = mgen.load("fmnist-maskgit")
{IMAGES}
info = pipe.push_to_hub({MODEL!r}, token={TOKEN!r}, commit_message="first")
print(info.oid)
pipe.transformer.push_to_hub("owner/network", token={TOKEN!r})
pipe.save_pretrained("kept/half", variant="fp16", push_to_hub=True, repo_id={PRIVATE!r}, token={TOKEN!r})
"""


@pytest.fixture(scope="module")
def pushed(hub: LocalHub, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Sum of two images, and the commit of MODEL, which is on the hub now; so are a network alone, and a variant of PRIVATE."""
    folder = tmp_path_factory.mktemp("push")
    return run(PUSH, hub, folder / "cache", cwd=folder).split()


def test_an_upload_holds_the_pipeline_and_a_card(hub: LocalHub, pushed: list[str]) -> None:
    files = hub.repos[MODEL].files("main")[1]
    assert {"model_index.json", "pipeline.py", "README.md", "transformer/config.json"} <= files.keys()
    card = files["README.md"].decode()
    assert card.startswith("---\nlibrary_name: mgen\ntags:\n- mgen\n") and f'mgen.load("{MODEL}")' in card
    assert "license" not in card and "10 classes: T-shirt, trouser" in card
    assert set(hub.repos["owner/network"].files("main")[1]) >= {"config.json", "diffusion_pytorch_model.safetensors"}


def test_a_card_that_is_there_stays(hub: LocalHub, pushed: list[str], tmp_path: Path) -> None:
    repo = hub.repos[MODEL]
    repo.add({"README.md": b"mine"})
    code = f'import mgen; mgen.load("fmnist-maskgit").push_to_hub({MODEL!r}, token={TOKEN!r})'
    run(code, hub, tmp_path, cwd=tmp_path)
    assert repo.files("main")[1]["README.md"] == b"mine"


WAYS = {
    "load": f'import mgen\npipe = mgen.load("{MODEL}")\n',
    "from_pretrained": f'import mgen\npipe = mgen.MaskedPipeline.from_pretrained("{MODEL}", revision="REVISION")\n',
    "diffusers": f'import mgen\nfrom diffusers import DiffusionPipeline\npipe = DiffusionPipeline.from_pretrained("{MODEL}")\n',
    "parts": "import mgen\n"
    f'net = mgen.Generator.from_pretrained("{MODEL}", subfolder="transformer")\n'
    f'pipe = mgen.MaskedPipeline.from_pretrained("fmnist-maskgit", transformer=net)\n',
    "network": "import mgen\n"
    'net = mgen.Generator.from_pretrained("owner/network")\n'
    'pipe = mgen.MaskedPipeline.from_pretrained("fmnist-maskgit", transformer=net)\n',
    "variant": f'import mgen\npipe = mgen.MaskedPipeline.from_pretrained("{PRIVATE}", variant="fp16", token="{TOKEN}")\n',
}


@pytest.fixture(scope="module")
def ways(hub: LocalHub, pushed: list[str], cache: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What every way of loading prints, one after the other in one process."""
    code = "import contextlib, io, json\nsaid = {}\n"
    for name, way in WAYS.items():
        lines = (way.replace("REVISION", pushed[1]) + IMAGES).splitlines()
        code += "with contextlib.redirect_stdout(io.StringIO()) as out:\n" + "".join(f"    {line}\n" for line in lines)
        code += f"said[{name!r}] = out.getvalue()\n"
    return json.loads(run(code + "print(json.dumps(said))", hub, cache, cwd=tmp_path_factory.mktemp("ways")))


@pytest.mark.parametrize("way", WAYS)
def test_every_way_of_loading_gives_the_same_images(ways: dict[str, str], pushed: list[str], way: str) -> None:
    assert ways[way].split() == pushed[:1]


def test_the_command_line(hub: LocalHub, pushed: list[str], cache: Path, tmp_path: Path) -> None:
    argv = ["sample", "--model", MODEL, "--classes", "1", "--num-images", "1", "--steps", "2", "--out", "made"]
    run(f"from mgen.cli import main; assert main({argv}) == 0", hub, cache, cwd=tmp_path)
    assert (tmp_path / "made" / "grid.png").is_file() and os.listdir(tmp_path) == ["made"]


def test_only_what_a_model_needs_is_fetched(hub: LocalHub, pushed: list[str], tmp_path: Path) -> None:
    files = hub.repos[MODEL].files("main")[1]
    more = dict.fromkeys(("transformer/diffusion_pytorch_model.bin", "x.pkl", "x.ckpt", "x.py", "samples/a.png"), b"0")
    more["transformer/diffusion_pytorch_model.fp16.safetensors"] = b"0"
    hub.repos["owner/more"] = (repo := type(hub.repos[MODEL])())
    repo.add({**files, **more})
    hub.asked.clear()
    code = 'import mgen; mgen.load("owner/more"); mgen.VQGAN.from_pretrained("owner/more", subfolder="tokenizer")'
    run(code, hub, tmp_path / "a", cwd=tmp_path)
    fetched = {line.rpartition("/")[2] for line in hub.asked if line.startswith("GET /owner/more/resolve")}
    names = {Path(name).name for name in files}
    assert fetched == {name for name in names if name.endswith((".json", ".safetensors", ".md"))} | {"pipeline.py"}
    hub.asked.clear()
    run(
        'import mgen; mgen.VQGAN.from_pretrained("owner/more", subfolder="tokenizer")',
        hub,
        tmp_path / "b",
        cwd=tmp_path,
    )
    asked = {line.partition("/resolve/")[2].partition("/")[2] for line in hub.asked if "/resolve/" in line}
    assert asked == {"tokenizer/config.json", "tokenizer/diffusion_pytorch_model.safetensors", "pipeline.py"}


def test_the_cache_serves_without_a_connection(hub: LocalHub, pushed: list[str], tmp_path: Path) -> None:
    load = WAYS["load"] + IMAGES
    assert run(load, hub, tmp_path / "c", cwd=tmp_path).split() == pushed[:1]
    count = len(hub.asked)
    assert run(load, hub, tmp_path / "c", cwd=tmp_path, offline=True).split() == pushed[:1]
    assert run(load, "http://127.0.0.1:9", tmp_path / "c", cwd=tmp_path).split() == pushed[:1]
    assert len(hub.asked) == count
    local = f'import mgen\npipe = mgen.load("{MODEL}", local_files_only=True)\n' + IMAGES
    assert run(local, hub, tmp_path / "c", cwd=tmp_path).split() == pushed[:1] and len(hub.asked) == count


ERRORS = {
    "no such model": (
        'mgen.load("owner/nothing")',
        ["'owner/nothing'", "neither a folder here nor on", "hf auth login"],
    ),
    "no such revision": (f'mgen.load("{MODEL}", revision="v9")', ["no revision 'v9'"]),
    "private": (f'mgen.load("{PRIVATE}")', ["private", "token"]),
    "gated": (f'mgen.load("{GATED}")', ["permission"]),
    "broken": (f'mgen.load("{BROKEN}")', ["answered 500"]),
    "not a pipeline": ('mgen.load("owner/network")', ["model_index.json is missing", "Generator alone"]),
    "not a network": (f'mgen.VQGAN.from_pretrained("{MODEL}")', ["no config.json"]),
    "push without a token": ('mgen.load().push_to_hub("owner/other")', ["lets you not write", "hf auth login"]),
    "push to no name": (f'mgen.load().push_to_hub("a/b/c", token="{TOKEN}")', ["can't be a name"]),
}


def test_errors_are_one_sentence(hub: LocalHub, pushed: list[str], cache: Path, tmp_path: Path) -> None:
    code = "import json, mgen\nsaid = {}\n"
    for name, (call, _) in ERRORS.items():
        code += f"try: {call}; said[{name!r}] = 'no error'\nexcept mgen.MgenError as e: said[{name!r}] = str(e)\n"
    said = json.loads(run(code + "print(json.dumps(said))", hub, cache, cwd=tmp_path))
    for name, (_, words) in ERRORS.items():
        assert all(word in said[name] for word in words) and len(said[name]) < 300, said[name]


@pytest.mark.parametrize(("where", "words"), [("offline", "switched off"), ("no answer", "cannot reach")])
def test_without_a_connection_an_error_comes_at_once(where: str, words: str, tmp_path: Path) -> None:
    code = "import time, mgen\nload = mgen.load\nstart = time.time()\n"
    code += "try: load('owner/nothing')\nexcept mgen.MgenError as e: print(e)\nprint(time.time() - start)"
    said = run(code, "http://127.0.0.1:9", tmp_path, cwd=tmp_path, offline=where == "offline")
    text, seconds = said.strip().splitlines()
    assert words in text and "owner/nothing" in text and float(seconds) < 15


def test_which_texts_are_names_on_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models").mkdir()
    assert is_hub_id("owner/name") and is_hub_id(Path("owner/name-1.0_b"))
    for text in (
        "name",
        "models/mine",
        "./owner/name",
        "../owner/name",
        "a/b/c",
        "owner/",
        "/owner/name",
        "~/name",
        "a b/c",
    ):
        assert not is_hub_id(text), text
    for text in ("models/mine", "./owner/name"):
        with pytest.raises(MgenError, match="neither a folder nor embedded"):
            mgen.load(text)
