"""Token caches that are damaged, foreign or stale, and `mgen cache` with values it cannot use."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from mgen.cli import main
from mgen.data import ImageFolder, TokenCache, write_cache
from mgen.tokenizers.base import Tokenizer
from tests.helpers import tiny_kl, tiny_tokenizer
from tests.system.boundaries.harness import Copied, Parts, Raises, Refused, fifo, row

Damage = Callable[[Path], object]
Tensors = dict[str, Tensor]
DEEP = "[" * 5000 + "]" * 5000


def shard(folder: Path, number: int = 0) -> Path:
    return folder / f"shard-{number:05d}.safetensors"


def index(**changes: object) -> Damage:
    """Change keys of index.json; ... removes one."""

    def damage(folder: Path) -> None:
        data = json.loads((folder / "index.json").read_text()) | changes
        (folder / "index.json").write_text(json.dumps({k: v for k, v in data.items() if v is not ...}))

    return damage


def text(content: str) -> Damage:
    return lambda folder: (folder / "index.json").write_text(content)


def tensors(change: Callable[[Tensors], Any], number: int = 0, *, marked: bool = True) -> Damage:
    """Change tensors of a shard, which keeps its metadata."""

    def damage(folder: Path) -> None:
        path = shard(folder, number)
        with safe_open(path, "pt") as file:
            metadata = file.metadata()
        state = load_file(path)
        change(state)
        save_file({k: v.contiguous() for k, v in state.items()}, path, metadata if marked else None)

    return damage


def setting(name: str, place: tuple[int, ...], value: float) -> Damage:
    return tensors(lambda state: state[name].__setitem__(place, value))


def cast(name: str, dtype: torch.dtype) -> Damage:
    return tensors(lambda state: state.update({name: state[name].to(dtype)}))


def cut(name: str) -> Damage:
    return tensors(lambda state: state.update({name: state[name][:-1]}))


def truncated(folder: Path) -> None:
    shard(folder).write_bytes(shard(folder).read_bytes()[:-40])


def a_folder(folder: Path) -> None:
    shard(folder).unlink()
    shard(folder).mkdir()


def a_pipe(folder: Path) -> None:
    shard(folder).unlink()
    fifo(shard(folder))


def a_broken_link(folder: Path) -> None:
    shard(folder).unlink()
    shard(folder).symlink_to("/nowhere/at/all")


def a_device(folder: Path) -> None:
    shard(folder).unlink()
    shard(folder).symlink_to("/dev/zero")


def swapped(folder: Path) -> None:
    shard(folder, 0).rename(folder / "x")
    shutil.copy(shard(folder, 1), shard(folder, 0))
    (folder / "x").rename(shard(folder, 1))


def moved_rows(folder: Path) -> None:
    first, second = load_file(shard(folder, 0)), load_file(shard(folder, 1))
    tensors(lambda s: s.update({k: v[:-1] for k, v in s.items()}), 0)(folder)
    tensors(lambda s: s.update({k: torch.cat([first[k][-1:], second[k]]) for k in s}), 1)(folder)


SPEC = {"kind": "index", "length": 64, "grid": [8, 8], "vocab_size": 64}
DAMAGES = [
    row("index null", text("null"), "index.json", "mapping"),
    row("index a list", text("[]"), "index.json", "mapping"),
    row("index a number", text("5"), "index.json", "mapping"),
    row("index a string", text('"x"'), "index.json", "mapping"),
    row("index deep", text(DEEP), "index.json", "nested"),
    row("index deep object", text('{"a":' * 5000 + "1" + "}" * 5000), "index.json"),
    row("index empty", text(""), "index.json", "valid JSON"),
    row("index cut off", text('{"version": 2, "finger'), "index.json", "valid JSON"),
    row("index NaN", text('{"version": NaN}'), "index.json"),
    row("index not UTF-8", lambda f: (f / "index.json").write_bytes(b"\xff\xfe{}"), "index.json", "UTF-8"),
    row("index missing", lambda f: (f / "index.json").unlink(), "index.json is missing"),
    row("alien keys", text('{"a": 1}'), "unknown key", "index.json"),
    row("version 3", index(version=3), "version 3", "reads 1 and 2"),
    row("version text", index(version="2"), "version '2'"),
    row("version list", index(version=[2]), "version [2]"),
    row("fingerprint int", index(fingerprint=5), "fingerprint", "text"),
    row("fingerprint missing", index(fingerprint=...), "missing key", "fingerprint"),
    row("fingerprint short", index(fingerprint="abc"), "fingerprint"),
    row("fingerprint null", index(fingerprint=None), "fingerprint"),
    row("fingerprint of another", index(fingerprint="0" * 64), "another tokenizer"),
    row("count 0", index(count=0), "count", "at least 1"),
    row("count -1", index(count=-1), "count", "at least 1"),
    row("count text", index(count="12"), "count", "whole number"),
    row("count 1.5", index(count=1.5), "count", "whole number"),
    row("count true", index(count=True), "count", "whole number"),
    row("count 10**30", index(count=10**30), "count", "64 bits"),
    row("count larger", index(count=13), "shard-00001", "4", "5"),
    row("count much larger", index(count=10**15), "shard-00001"),
    row("count smaller", index(count=11), "shard-00001"),
    row("count of one shard", index(count=8), "shard 1", "8 images"),
    row("shard_size 0", index(shard_size=0), "shard_size", "at least 1"),
    row("shard_size -1", index(shard_size=-1), "shard_size", "at least 1"),
    row("shard_size text", index(shard_size="8"), "shard_size", "whole number"),
    row("shard_size null", index(shard_size=None), "shard_size"),
    row("shard_size other", index(shard_size=6), "shard-00000", "another cache"),
    row("spec missing", index(spec=...), "missing key", "spec"),
    row("spec null", index(spec=None), "spec"),
    row("spec list", index(spec=[]), "spec", "mapping"),
    row("spec text", index(spec="index"), "spec", "mapping"),
    row("spec unknown key", index(spec={**SPEC, "foo": 1}), "unknown key", "spec.foo"),
    row("spec kind unknown", index(spec={**SPEC, "kind": "indices"}), "spec.kind", "index"),
    row("spec length text", index(spec={**SPEC, "length": "64"}), "spec.length"),
    row("spec length other", index(spec={**SPEC, "length": 16, "grid": [4, 4]}), "shard-00000"),
    row("spec vocabulary other", index(spec={**SPEC, "vocab_size": 1024}), "shard-00000", "another cache"),
    row("spec vocabulary null", index(spec={**SPEC, "vocab_size": None}), "vocab_size"),
    row("spec of vectors", index(spec={"kind": "vector", "length": 64, "channels": 4}), "moments"),
    row("num_classes text", index(num_classes="3"), "num_classes", "whole number"),
    row("num_classes 0", index(num_classes=0), "num_classes", "at least 1"),
    row("num_classes 10**10", index(num_classes=10**10), "num_classes", "at most"),
    row("num_classes other", index(num_classes=4), "num_classes", "3 class_names"),
    row("class_names missing", index(class_names=...), "class_names"),
    row("class_names null", index(class_names=None), "class_names", "list"),
    row("class_names text", index(class_names="abc"), "class_names", "list"),
    row("class_names of numbers", index(class_names=[1, 2, 3]), "class_names.0", "text"),
    row("class_names of nulls", index(class_names=[None] * 3), "class_names.0", "text"),
    row("class_names twice", index(class_names=["a", "b", "a"]), "'a' twice"),
    row("class_names other", index(class_names=["a", "b", "c"]), "shard-00000", "another cache"),
    row("flips missing", index(flips=...), "flips"),
    row("flips text", index(flips="false"), "flips", "true or false"),
    row("flips 0", index(flips=0), "flips", "true or false"),
    row("flips on", index(flips=True), "shard-00000"),
    row("source number", index(source=5), "source", "text"),
    row("moments unknown", index(moments="bf16"), "moments", "fp16"),
    row("moments of ids", index(moments="fp32"), "moments"),
    row("first stage 0", index(first_stage_size=0), "first_stage_size"),
    row("first stage that is not there", index(first_stage_size=16), "shard-00000"),
    row("unknown key", index(fingerprnt="x"), "unknown key", "fingerprnt", "did you mean 'fingerprint'"),
    row("shard truncated", truncated, "shard-00000", "safetensors"),
    row("shard empty", lambda f: shard(f).write_bytes(b""), "shard-00000", "safetensors"),
    row("shard of zeros", lambda f: shard(f).write_bytes(bytes(4000)), "shard-00000"),
    row("shard of text", lambda f: shard(f).write_text("not tensors at all"), "shard-00000"),
    row("shard missing", lambda f: shard(f, 1).unlink(), "shard-00001", "not complete"),
    row("shard a folder", a_folder, "shard-00000", "folder"),
    row("shard a pipe", a_pipe, "shard-00000", "no regular file"),
    row("shard a broken link", a_broken_link, "shard-00000", "broken link"),
    row("shard a link to a device", a_device, "shard-00000", "no regular file"),
    row("shards swapped", swapped, "shard-00000", "shard 1"),
    row("shard copied over another", lambda f: shutil.copy(shard(f, 0), shard(f, 1)), "shard-00001", "shard 0"),
    row("a shard too many", lambda f: shutil.copy(shard(f, 1), shard(f, 2)), "shard 2", "last one is 1"),
    row("rows moved between shards", moved_rows, "shard-00000", "7", "8"),
    row("shard without its mark", tensors(lambda s: None, marked=False), "shard-00000", "not written by"),
    row("tokens missing", tensors(lambda s: s.pop("tokens")), "shard-00000", "without tokens"),
    row("labels missing", tensors(lambda s: s.pop("labels")), "shard-00000", "without labels"),
    row("no tensors", tensors(lambda s: s.clear()), "shard-00000", "without tokens"),
    row("ids beyond the codes", setting("tokens", (3, 0, 5), 64), "shard-00000", "64", "vocabulary"),
    row("ids in int64", cast("tokens", torch.int64), "shard-00000", "int64", "uint8"),
    row("ids negative, in int16", cast("tokens", torch.int16), "shard-00000", "int16"),
    row("ids in float", cast("tokens", torch.float32), "shard-00000", "float32"),
    row("labels in float", cast("labels", torch.float32), "shard-00000", "float32"),
    row("labels in int64", cast("labels", torch.int64), "shard-00000", "int64"),
    row("labels -1", setting("labels", (2,), -1), "shard-00000", "-1", "3 classes"),
    row("labels 3", setting("labels", (2,), 3), "shard-00000", "3 classes"),
    row("labels 2-d", tensors(lambda s: s.update(labels=s["labels"][:, None])), "shard-00000", "labels", "8×1"),
    row("labels a number", tensors(lambda s: s.update(labels=s["labels"][0])), "shard-00000", "labels"),
    row("fewer labels", cut("labels"), "shard-00000", "labels", "8 rows"),
    row("fewer tokens", cut("tokens"), "shard-00000", "tokens", "8 rows"),
    row("tokens shorter", tensors(lambda s: s.update(tokens=s["tokens"][..., :-1])), "shard-00000", "8×1×63"),
    row("tokens 2-d", tensors(lambda s: s.update(tokens=s["tokens"][:, 0])), "shard-00000", "8×64"),
    row("tokens 4-d", tensors(lambda s: s.update(tokens=s["tokens"][..., None])), "shard-00000", "8×1×64×1"),
    row("three views", tensors(lambda s: s.update(tokens=s["tokens"].expand(-1, 3, -1))), "shard-00000", "8×3×64"),
    row("no views", tensors(lambda s: s.update(tokens=s["tokens"][:, :0])), "shard-00000", "8×0×64"),
]


@pytest.mark.parametrize(("damage", "words"), DAMAGES)
def test_a_damaged_cache_is_refused(
    copied: Copied, parts: Parts, raises: Raises, damage: Damage, words: list[str]
) -> None:
    folder, fingerprint = copied("cache"), TokenCache(parts["cache"]).index.fingerprint
    damage(folder)
    raises(lambda: TokenCache(folder, fingerprint=fingerprint), *words)


@pytest.mark.parametrize(("damage", "words"), [d for d in DAMAGES if d.id in ("index deep", "labels -1", "count 1.5")])
def test_training_on_a_damaged_cache_is_refused(
    parts: Parts, copied: Copied, refused: Refused, damage: Damage, words: list[str]
) -> None:
    damage(copied("cache"))
    refused(["train", "--config", "@cached", "data.path=cache"], *words)


# What a second run mends: the index is written again if it is lost, counts something else or nothing, and missing shards are made.
MENDED = (
    "index missing",
    "index empty",
    "shard missing",
    "count larger",
    "count much larger",
    "count smaller",
    "count of one shard",
)


@pytest.mark.parametrize(("damage", "words"), DAMAGES)
def test_mgen_cache_goes_on_only_with_what_it_can_mend(
    parts: Parts,
    copied: Copied,
    raises: Raises,
    request: pytest.FixtureRequest,
    damage: Damage,
    words: list[str],
) -> None:
    folder, tokenizer = copied("cache"), tiny_tokenizer()
    damage(folder)
    if request.node.callspec.id in MENDED:
        again(parts, tokenizer, folder)
        assert len(TokenCache(folder, fingerprint=tokenizer.fingerprint(), full=True)) == 12
    else:
        raises(lambda: again(parts, tokenizer, folder), "cache")


def again(parts: Parts, tokenizer: Tokenizer, folder: Path) -> None:
    data = ImageFolder(root=parts["images"], image_size=32, channels=1)
    write_cache(data, tokenizer, folder, shard_size=8, progress=False)


@pytest.fixture(scope="module")
def moments(tmp_path_factory: pytest.TempPathFactory, parts: Parts) -> Path:
    data = ImageFolder(root=parts["images"], image_size=32, channels=1)
    out = tmp_path_factory.mktemp("moments") / "cache"
    return write_cache(
        data, tiny_kl(), out, shard_size=8, flips=True, first_stage_size=16, dtype="fp16", progress=False
    )


MOMENTS = [
    row("NaN", setting("moments", (1, 0, 0, 0, 0), float("nan")), "shard-00000", "not finite"),
    row("infinity", setting("moments", (7, 1, 2, 3, 3), float("inf")), "shard-00000", "not finite"),
    row(
        "small NaN", setting("first_stage_moments", (0, 0, 0, 0, 0), float("nan")), "first_stage_moments", "not finite"
    ),
    row("fp32", cast("moments", torch.float32), "float32", "float16"),
    row("one view", tensors(lambda s: s.update(moments=s["moments"][:, :1])), "2 views"),
    row("odd channels", tensors(lambda s: s.update(moments=s["moments"][:, :, :7])), "shape"),
    row("other side", tensors(lambda s: s.update(moments=s["moments"][..., :4])), "shape"),
    row("turned", tensors(lambda s: s.update(moments=s["moments"].reshape(8, 2, 8, 4, 16))), "shape"),
    row("small as large", tensors(lambda s: s.update(first_stage_moments=s["moments"].clone())), "first_stage_moments"),
    row("small missing", tensors(lambda s: s.pop("first_stage_moments")), "without first_stage_moments"),
    row("precision other", index(moments="fp32"), "shard-00000"),
    row("precision null", index(moments=None), "moments"),
    row("no first stage", index(first_stage_size=None), "shard-00000"),
]


@pytest.mark.parametrize(("damage", "words"), MOMENTS)
def test_damaged_moments_are_refused(
    moments: Path, here: Path, raises: Raises, damage: Damage, words: list[str]
) -> None:
    folder = Path(shutil.copytree(moments, here / "cache"))
    assert len(TokenCache(folder, full=True)) == 12
    damage(folder)
    raises(lambda: TokenCache(folder), *words)


def test_all_rows_are_checked_on_demand_and_ids_of_every_batch(
    copied: Copied,
    refused: Refused,
    raises: Raises,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = copied("cache")
    assert main(["cache", "--verify", "cache"]) == 0
    assert "12 images in 2 shards" in capsys.readouterr().out
    monkeypatch.setattr("mgen.data.cache_format.SAMPLED", 2)  # as if the cache were large: the first row and the last
    setting("tokens", (3, 0, 5), 70)(folder)
    cache = TokenCache(folder)
    raises(lambda: cache.__getitems__([1, 3]), "70", "mgen cache --verify")
    refused(["cache", "--verify", "cache"], "shard-00000", "70")
    setting("tokens", (3, 0, 5), 7)(folder)  # a valid id, but another
    refused(["cache", "--verify", "cache"], "shard-00000", "not those that were written")
    refused(["cache", "--verify", "cache", "--out", "x"], "--out", "no effect")
    refused(["cache", "--verify", "nowhere"], "no token cache in nowhere")


def test_a_cache_of_version_1_is_read_and_not_extended(copied: Copied, parts: Parts, raises: Raises) -> None:
    folder = copied("cache")
    index(version=1)(folder)
    for number in (0, 1):
        tensors(lambda s: None, number, marked=False)(folder)
    assert len(TokenCache(folder, full=True)) == 12
    raises(lambda: again(parts, tiny_tokenizer(), folder), "earlier version")
    setting("labels", (2,), 9)(folder)
    raises(lambda: TokenCache(folder), "labels")


CACHE = ["cache", "--data", "@images", "--tokenizer", "@pipeline"]
OPTIONS = [
    row("image size 31", [*CACHE, "--out", "o", "--image-size", "31"], "31", "multiple of 4"),
    row("image size 0", [*CACHE, "--out", "o", "--image-size", "0"], "--image-size", "at least 1"),
    row("image size 10**6", [*CACHE, "--out", "o", "--image-size", "1000000"], "1000000", "too large"),
    row("image size 12000", [*CACHE, "--out", "o", "--image-size", "12000"], "12000", "too large"),
    row("image size 10**30", [*CACHE, "--out", "o", "--image-size", str(10**30)], "--image-size", "no whole number"),
    row("image size 2**64", [*CACHE, "--out", "o", "--image-size", str(2**64)], "--image-size", "at most"),
    row("image size superscript", [*CACHE, "--out", "o", "--image-size", "³²"], "no whole number"),
    row("batch size 0", [*CACHE, "--out", "o", "--batch-size", "0"], "--batch-size", "at least 1"),
    row("shard size -1", [*CACHE, "--out", "o", "--shard-size", "-1"], "--shard-size", "at least 1"),
    row("first stage as large", [*CACHE, "--out", "o", "--first-stage-size", "32"], "must be smaller"),
    row("first stage 10", [*CACHE, "--out", "o", "--first-stage-size", "10"], "multiple of 4"),
    row("dtype of ids", [*CACHE, "--out", "o", "--dtype", "fp16"], "fp16", "moments"),
    row("dtype unknown", [*CACHE, "--out", "o", "--dtype", "bf16"], "--dtype", "fp16"),
    row("no out", CACHE, "--out is missing"),
    row("out empty", [*CACHE, "--out", ""], "--out", "empty"),
    row("out of spaces", [*CACHE, "--out", "  "], "--out", "empty"),
    row("out too long", [*CACHE, "--out", "a" * 300], "--out", "too long"),
    row("out below a file", [*CACHE, "--out", "@config/x"], "is a file"),
    row("out a file", [*CACHE, "--out", "@config"], "is a file"),
    row("out a device", [*CACHE, "--out", "/dev/null"], "/dev/null"),
    row("no data", ["cache", "--out", "o"], "--data is missing"),
    row("data empty", ["cache", "--data", "", "--out", "o"], "--data", "empty"),
    row("data missing", ["cache", "--data", "nowhere", "--out", "o"], "no such folder: nowhere"),
    row("data a file", ["cache", "--data", "@config", "--out", "o"], "no such folder"),
    row("data flat", ["cache", "--data", "@flat", "--tokenizer", "@pipeline", "--out", "o"], "--classes none"),
    row("classes unknown", [*CACHE, "--out", "o", "--classes", "some"], "--classes", "none"),
    row("tokenizer empty", ["cache", "--data", "@images", "--tokenizer", "", "--out", "o"], "--tokenizer", "empty"),
    row("split of a folder", [*CACHE, "--out", "o", "--split", "test"], "--split", "no effect"),
    row("files of a folder", [*CACHE, "--out", "o", "--data-path", "@idx"], "--data-path", "no effect"),
    row("image size of fmnist", ["cache", "--data", "fmnist", "--image-size", "64", "--out", "o"], "no effect"),
    row("scale and out", [*CACHE, "--out", "o", "--measure-scale", "5"], "--out", "no effect"),
    row("scale and order", [*CACHE, "--measure-order", "5", "--measure-scale", "5"], "not allowed with"),
    row("scale 0", [*CACHE, "--measure-scale", "0"], "--measure-scale", "at least 1"),
    row("scale of ids", [*CACHE, "--measure-scale", "5"], "--measure-scale", "KL"),
]


@pytest.mark.parametrize(("argv", "words"), OPTIONS)
def test_options_of_mgen_cache(refused: Refused, argv: list[str], words: list[str]) -> None:
    refused([*argv, "--device", "cpu"], *words)


def test_disk_and_memory_are_estimated_first(refused: Refused, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("shutil.disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 10**9, 100))  # type: ignore[attr-defined]
        refused([*CACHE, "--out", "o", "--device", "cpu"], "a cache of 12 images", "disk")
    monkeypatch.setattr("mgen.utils.limits.available_memory", lambda device: 1000)
    refused([*CACHE, "--out", "o", "--device", "cpu"], "tokenizing 12 images of 32×32", "--batch-size")


# -- data that change ------------------------------------------------------------------------------------------------------


@pytest.fixture
def cache_of(parts: Parts) -> Callable[..., int]:
    def run(data: str, *more: str) -> int:
        argv = ["cache", "--data", data, "--tokenizer", str(parts["pipeline"]), "--shard-size", "8", "--device", "cpu"]
        return main([*argv, "--out", "out", *more])

    return run


def renamed(folder: Path) -> None:
    (folder / "coat" / "1.png").rename(folder / "coat" / "9.png")


def in_another_class(folder: Path) -> None:
    (folder / "dress" / "0.png").rename(folder / "coat" / "7.png")


def replaced(folder: Path) -> None:
    Image.new("L", (32, 32), 7).save(folder / "bag" / "2.png")


def touched(folder: Path) -> None:
    os.utime(folder / "bag" / "2.png", (1, 1))


def removed(folder: Path) -> None:
    (folder / "bag" / "2.png").unlink()


def added(folder: Path) -> None:
    shutil.copy(folder / "bag" / "2.png", folder / "bag" / "20.png")


def a_new_class(folder: Path) -> None:
    (folder / "ankle boot").mkdir()
    shutil.copy(folder / "bag" / "2.png", folder / "ankle boot" / "0.png")


@pytest.mark.parametrize("change", [renamed, in_another_class, replaced, touched, removed, added, a_new_class])
def test_a_cache_of_images_that_changed_is_refused(
    copied: Copied, cache_of: Callable[..., int], capsys: pytest.CaptureFixture[str], change: Damage
) -> None:
    data = copied("images")
    assert cache_of("images") == 0
    before = {p: p.read_bytes() for p in Path("out").iterdir()}
    assert cache_of("images/") == 0 and cache_of("./images") == 0 and cache_of(str(data)) == 0  # one folder
    capsys.readouterr()
    change(data)
    assert cache_of("images") == 2
    line = capsys.readouterr().err.strip()
    assert "changed" in line or "other classes" in line, line
    assert {p: p.read_bytes() for p in Path("out").iterdir()} == before


def test_a_bad_file_is_named_and_after_its_removal_the_same_command_goes_on(
    copied: Copied, cache_of: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    data = copied("images")
    for bad, left in (("bag/0.png", []), ("dress/1.png", ["index.json", "shard-00000.safetensors"])):
        (data / bad).write_bytes((data / bad).read_bytes()[:100])
        assert cache_of("images") == 2
        assert bad in capsys.readouterr().err.splitlines()[-1]
        assert sorted(p.name for p in Path("out").glob("*")) == left
        (data / bad).unlink()
    stamp = shard(Path("out")).stat().st_mtime_ns
    assert cache_of("images") == 0
    cache = TokenCache("out", full=True)
    assert len(cache) == 10 and cache.labels.tolist() == [0, 0, 0, 1, 1, 1, 1, 2, 2, 2]
    assert shard(Path("out")).stat().st_mtime_ns == stamp


def test_a_lost_or_empty_index_is_written_again_and_takes_over_no_foreign_shard(
    copied: Copied, cache_of: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    data = copied("images")
    assert cache_of("images") == 0
    file = Path("out/index.json")
    whole = file.read_bytes()
    for lose in (file.unlink, lambda: file.write_text("")):
        lose()
        assert cache_of("images") == 0 and file.read_bytes() == whole
    file.unlink()
    for more in (["--flips"], ["--image-size", "64"], ["--classes", "none"], ["--shard-size", "6"]):
        assert cache_of("images", *more) == 2
        assert "shard-00000" in capsys.readouterr().err and not file.exists()
    replaced(data)
    assert cache_of("images") == 2 and "changed" in capsys.readouterr().err
    assert not file.exists()


def test_an_index_without_shards_blocks_nothing(copied: Copied, cache_of: Callable[..., int]) -> None:
    copied("images")
    assert cache_of("images", "--flips") == 0
    for path in Path("out").glob("shard-*"):
        path.unlink()
    assert cache_of("images") == 0 and len(TokenCache("out", full=True)) == 12


def test_images_that_are_added_behind_the_last_shard_extend_a_cache(
    copied: Copied, cache_of: Callable[..., int]
) -> None:
    data = copied("images")
    for i in range(4, 8):
        shutil.copy(data / "dress" / "0.png", data / "dress" / f"{i}.png")
    assert cache_of("images") == 0
    shutil.copy(data / "dress" / "0.png", data / "dress" / "8.png")
    assert cache_of("images") == 0
    assert len(TokenCache("out", full=True)) == 17


def test_shards_of_two_runs_are_the_same_bytes(copied: Copied, cache_of: Callable[..., int]) -> None:
    copied("images")
    assert cache_of("images") == 0
    before = {p: p.read_bytes() for p in Path("out").iterdir()}
    shutil.rmtree("out")
    assert cache_of("images") == 0
    assert {p: p.read_bytes() for p in Path("out").iterdir()} == before


def test_arguments_of_write_cache(parts: Parts, here: Path, raises: Raises) -> None:
    data = ImageFolder(root=parts["images"], image_size=32, channels=1)
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"batch_size": 0}, "batch_size"),
        ({"batch_size": "8"}, "batch_size"),
        ({"shard_size": 0}, "shard_size"),
        ({"shard_size": 2.5}, "shard_size"),
        ({"flips": 1}, "flips"),
        ({"dtype": "fp64"}, "fp16"),
        ({"first_stage_size": -4}, "first_stage_size"),
        ({"source": 5}, "source"),
    ]
    for settings, word in wrong:
        raises(
            lambda settings=settings: write_cache(data, tiny_tokenizer(), here / "x", progress=False, **settings), word
        )
    raises(lambda: write_cache(None, tiny_tokenizer(), here / "x"), "dataset")  # type: ignore[arg-type]
    raises(lambda: write_cache(data, None, here / "x"), "tokenizer")  # type: ignore[arg-type]
    raises(lambda: write_cache(data, tiny_tokenizer(), None), "out")  # type: ignore[arg-type]
    raises(lambda: write_cache(data, tiny_tokenizer(), ""), "out")
    raises(lambda: TokenCache(here), "no token cache")
    raises(lambda: TokenCache(None), "path")  # type: ignore[arg-type]
    raises(lambda: TokenCache(5), "path")  # type: ignore[arg-type]


def test_folders_with_names_that_are_no_text(here: Path, cache_of: Callable[..., int], raises: Raises) -> None:
    odd = os.fsdecode(b"d\xff")
    (here / odd / "bag").mkdir(parents=True)
    Image.new("L", (32, 32)).save(here / odd / "bag" / os.fsdecode(b"\xfe.png"))
    assert cache_of(odd) == 0 and len(TokenCache("out", full=True)) == 1
    (here / odd / "bag").rename(here / odd / os.fsdecode(b"\xfd"))
    raises(lambda: ImageFolder(root=odd, image_size=32), "UTF-8", "rename")


def test_a_path_of_many_folders(refused: Refused, here: Path) -> None:
    refused([*CACHE, "--out", "/".join("a" * 2500), "--device", "cpu"], "too long")
    deep = "/".join("b" * 1500)
    assert main(["cache", "--verify", deep]) == 2
