"""The command line as a user meets it: results, resuming, and one clear line for every kind of bad input."""

import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from mgen.cli import COMMANDS, main
from tests.golden import harness
from tests.helpers import tiny_pipeline, tiny_tokenizer, write_idx
from tests.processes import together


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cli") / "tiny"
    tiny_pipeline().save_pretrained(folder)
    return folder


def images(folder: Path) -> dict[str, np.ndarray]:
    return {p.name: np.asarray(Image.open(p)) for p in sorted(folder.glob("*0*.png"))}


def same(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> bool:
    return a.keys() == b.keys() and all(np.array_equal(a[k], b[k]) for k in a)


@pytest.mark.parametrize("name", COMMANDS)
def test_help_shows_examples(name: str, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as stop:
        main([name, "--help"])
    out = capsys.readouterr().out
    assert stop.value.code == 0 and "examples:" in out and f"mgen {name}" in out


def test_top_level_help_imports_nothing_heavy() -> None:
    code = "import sys; from mgen.cli import main; main([]); assert not {'torch', 'diffusers'} & set(sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert all(name in done.stdout for name in COMMANDS)


def test_sample_is_the_same_whatever_the_batch_size_and_goes_on_after_a_stop(model: Path, tmp_path: Path) -> None:
    base = ["sample", "--model", str(model), "--num-images", "7", "--seed", "5"]
    assert main([*base, "--batch-size", "7", "--out", str(tmp_path / "a")]) == 0
    assert main([*base, "--batch-size", "2", "--out", str(tmp_path / "b")]) == 0
    assert same(images(tmp_path / "a"), images(tmp_path / "b"))
    assert sorted(images(tmp_path / "a"))[:2] == ["000000_class-0000.png", "000001_class-0001.png"]
    lost = tmp_path / "b" / "000003_class-0000.png"
    kept = tmp_path / "b" / "000004_class-0001.png"
    stamp = kept.stat().st_mtime_ns
    lost.unlink()
    assert main([*base, "--batch-size", "3", "--out", str(tmp_path / "b")]) == 0
    assert same(images(tmp_path / "a"), images(tmp_path / "b")) and kept.stat().st_mtime_ns == stamp
    assert Image.open(tmp_path / "a" / "grid.png").size[0] > 32
    assert not list((tmp_path / "a").glob(".*"))


def test_two_processes_draw_the_images_of_one(model: Path, tmp_path: Path) -> None:
    base = ["sample", "--model", str(model), "--num-images", "5", "--batch-size", "2"]
    assert main([*base, "--out", str(tmp_path / "one")]) == 0
    together(*base, "--out", str(tmp_path / "two"), log=tmp_path / "log")
    assert same(images(tmp_path / "one"), images(tmp_path / "two"))


def test_sampling_options(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    args = [
        "sample",
        "--model",
        str(model),
        "--classes",
        "2,0-1",
        "--num-images",
        "3",
        "--steps",
        "3",
        "--guidance",
        "1.5",
    ]
    assert main([*args, "--order", "random", "--out", str(tmp_path / "o"), "--animation", str(tmp_path / "a.gif")]) == 0
    assert [n[13:17] for n in sorted(images(tmp_path / "o"))] == ["0002", "0000", "0001"]
    assert Image.open(tmp_path / "a.gif").n_frames == 4  # nothing yet, and three steps
    (tmp_path / "strategy.yaml").write_text(
        "manual_ratios: [0.7, 0.4]\nmanual_temp: [2.0, 1.0]\nmanual_samp_temp: [1.0, 1.1, 0.9]\nmanual_cfg: [0.0, 0.5, 1.0]\n"
    )
    published = ["--recipe", str(tmp_path / "strategy.yaml"), "--num-images", "1", "--out", str(tmp_path / "p")]
    assert main(["sample", "--model", str(model), *published]) == 0
    assert json.loads((tmp_path / "p" / "run.json").read_text())["sampler"]["guidance"] == [1.0, 1.5, 2.0]
    run = json.loads((tmp_path / "o" / "run.json").read_text())
    assert run["sampler"]["order"] == "random" and run["sampler"]["guidance"] == 1.5
    texts = [
        "reuse.cached=1",
        "reuse.full_first=2",
        "confidence_temperature={kind: linear, start: 2, end: 0}",
        "schedule=arccos",
    ]
    sets = [part for text in texts for part in ("--set", text)]
    base = ["--num-images", "2", "--steps", "5", *sets]
    assert main(["sample", "--model", str(model), *base, "--out", str(tmp_path / "s")]) == 0
    sampler = json.loads((tmp_path / "s" / "run.json").read_text())["sampler"]
    assert (sampler["steps"], sampler["schedule"]) == (5, "arccos")
    assert sampler["reuse"] == {"cached": 1, "full_first": 2} and sampler["confidence_temperature"]["start"] == 2
    assert (
        main(
            [
                "eval",
                str(model),
                *base,
                "--reference",
                "fmnist-train",
                "--order",
                "raster",
                "--temperature",
                "0.9",
                "--out",
                str(tmp_path / "e"),
            ]
        )
        == 0
    )
    sampler |= {"order": "raster", "temperature": 0.9}
    assert json.loads((tmp_path / "e" / "result.json").read_text())["images"]["sampler"] == sampler


def test_edit_keeps_every_pixel_outside_the_mask(model: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    picture = rng.integers(0, 256, (32, 32), dtype=np.uint8)
    Image.fromarray(picture).save(tmp_path / "in.png")
    mask = np.zeros((32, 32), np.uint8)
    mask[8:20, 4:28] = 255
    Image.fromarray(mask).save(tmp_path / "mask.png")
    base = ["edit", str(tmp_path / "in.png"), "--model", str(model), "--num-images", "2"]
    runs = {
        "mask": ["--mask", str(tmp_path / "mask.png"), "--class", "1"],
        "feather": ["--mask", str(tmp_path / "mask.png"), "--class", "1", "--feather", "2"],
        "box": ["--box", "4,8,28,20", "--class", "0,2"],
        "null": ["--box", "4,8,28,20"],
    }
    for name, options in runs.items():
        assert main([*base, *options, "--out", str(tmp_path / name)]) == 0
        results = images(tmp_path / name)
        assert len(results) == (4 if name == "box" else 2)
        for result in results.values():
            assert np.array_equal(result[mask == 0], picture[mask == 0])
            assert not np.array_equal(result[mask > 0], picture[mask > 0])
    assert main([*base, "--outpaint", "8,4,8,12", "--class", "1", "--out", str(tmp_path / "wide")]) == 0
    a, b = images(tmp_path / "wide").values()
    assert np.array_equal(a[4:20, 8:24], b[4:20, 8:24]) and not np.array_equal(a, b)


def test_cache_and_train_commands(tmp_path: Path) -> None:
    write_idx(tmp_path / "idx")
    tiny_tokenizer().save_pretrained(tmp_path / "tok")
    for split in ("train", "test"):
        args = [
            "cache",
            "--data",
            "fmnist",
            "--data-path",
            str(tmp_path / "idx"),
            "--split",
            split,
            "--tokenizer",
            str(tmp_path / "tok"),
        ]
        assert main([*args, "--out", str(tmp_path / split)]) == 0
    config = tmp_path / "c.yaml"
    config.write_text(
        f"task: generator\noutput: {tmp_path}/run\nsteps: 2\nbatch_size: 8\nmodel:\n"
        "  name: fmnist-maskgit\n  tokens: {vocab_size: 64}\n  classes: {table: shared}\n"
        "  trunk: {type: bert, dim: 16, depth: 1, heads: 2, hidden: 16}\n  head: {table: tied, loss_rows: table}\n"
        f"data: {{kind: cache, path: {tmp_path}/train, val_path: {tmp_path}/test}}\n"
        f"objective: {{tokenizer: {tmp_path}/tok}}\nlog: {{checkpoint_every: 1}}\n"
    )
    assert main(["train", "--config", str(config)]) == 0
    assert (
        main(["sample", "--model", str(tmp_path / "run" / "model"), "--num-images", "2", "--out", str(tmp_path / "s")])
        == 0
    )
    assert len(images(tmp_path / "s")) == 2


def test_eval_of_folder_npz_and_model(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(["sample", "--num-images", "20", "--steps", "2", "--out", str(tmp_path / "s")]) == 0
    assert main(["eval", str(tmp_path / "s"), "--out", str(tmp_path / "e1")]) == 0
    stacked = np.stack(list(images(tmp_path / "s").values()))[..., None]
    np.savez(tmp_path / "s.npz", arr_0=stacked, arr_1=np.arange(20) % 10)
    assert main(["eval", str(tmp_path / "s.npz"), "--out", str(tmp_path / "e2")]) == 0
    assert (
        main(
            [
                "eval",
                "fmnist-maskgit",
                "--num-images",
                "20",
                "--steps",
                "2",
                "--out",
                str(tmp_path / "e3"),
                "--batch-size",
                "7",
            ]
        )
        == 0
    )
    results = [json.loads((tmp_path / e / "result.json").read_text()) for e in ("e1", "e2", "e3")]
    for other in results[1:]:
        for name, value in results[0]["metrics"].items():
            assert other["metrics"][name] == pytest.approx(value, rel=1e-4), name
    r = results[2]
    assert (
        r["count"] == 20
        and r["extractor"]["sha256"]
        and r["reference"]["count"] == 60000
        and r["images"]["quantization"] == "round"
    )
    text = (tmp_path / "e3" / "report.md").read_text()
    assert "not an FID" in text and "fmnist-cnn" in text and (tmp_path / "e3" / "grid.png").exists()
    assert main(["eval", str(tmp_path / "s"), "--reference", str(tmp_path / "s"), "--out", str(tmp_path / "e4")]) == 0
    own = json.loads((tmp_path / "e4" / "result.json").read_text())["metrics"]["Fréchet distance (fmnist-cnn)"]
    assert own < 1e-3 < results[0]["metrics"]["Fréchet distance (fmnist-cnn)"]


def test_convert_makes_a_pipeline_that_samples(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    weights = harness.root() / "maskgit" / "weights.safetensors"
    tokenizer = harness.root() / "maskgit_vqgan" / "weights.safetensors"
    torch.save({"state_dict": load_file(tokenizer)}, tmp_path / "vqgan.ckpt")
    out = tmp_path / "autonat"
    args = [
        "convert",
        "maskgit",
        str(weights),
        "--tokenizer",
        str(tmp_path / "vqgan.ckpt"),
        "--out",
        str(out),
        "trunk.heads=4",
    ]
    assert main([*args, "--recipe", "autonat-l-imagenet256"]) == 0
    assert "tensors mapped" in capsys.readouterr().out
    text = (out / "conversion.txt").read_text()
    assert "token_emb.LayerNorm.weight -> trunk.token_norm.weight" in text and "quantize.embedding.weight ->" in text
    joined = ["convert", "pipeline", f"{out}/transformer", "--tokenizer", str(out), "--out", f"{tmp_path}/joined"]
    assert main(joined) == 0
    assert main(["sample", "--model", str(tmp_path / "joined"), "--num-images", "1", "--out", str(tmp_path / "j")]) == 0
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text("{}")
    assert main(["convert", "maskgit", str(weights), "--out", str(tmp_path / "run"), "trunk.heads=4"]) == 2
    assert [p.name for p in (tmp_path / "run").iterdir()] == ["config.json"], "a folder that is not ours was replaced"
    assert (
        main(["sample", "--model", str(out), "--num-images", "2", "--classes", "7,999", "--out", str(tmp_path / "s")])
        == 0
    )
    assert Image.open(tmp_path / "s" / "000001_class-0999.png").size == (64, 64)
    assert main([*args, "--recipe", "autonat-l-imagenet256"]) == 0  # again, over itself
    jax = harness.root() / "maskgit_jax" / "checkpoint.msgpack"
    config = json.loads((harness.root() / "maskgit_jax" / "config.json").read_text())
    settings = [f"tokens.vocab_size={config['codebook_size']}", f"classes.count={config['num_class']}"]
    assert main(["convert", "maskgit-jax", str(jax), "--out", str(tmp_path / "jax"), *settings]) == 0


def test_bench_and_zoo(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(["bench", "--model", str(model), "--batch-size", "2", "--json", str(tmp_path / "b.json")]) == 0
    numbers = json.loads((tmp_path / "b.json").read_text())
    assert all(numbers["seconds"][part] > 0 for part in ("trunk", "head", "decoder", "sampling"))
    assert 0 < numbers["share_of_peak"]["all"] < 1.5
    assert (
        main(["bench", "--config", "fmnist-maskgit", "--tokenizer", "none", "--batch-size", "1", "--steps", "2"]) == 0
    )
    capsys.readouterr()
    assert main(["zoo", "--json"]) == 0
    names = [row["name"] for row in json.loads(capsys.readouterr().out)]
    assert {"fmnist-maskgit", "fmnist-cnn", "autonat-l-imagenet256"} <= set(names)
    assert main(["zoo", "--verbose"]) == 0


class Dangerous:
    def __reduce__(self):
        return os.system, ("touch /tmp/mgen-was-here",)


def bad_inputs(tmp_path: Path, model: Path) -> dict[str, tuple[list[str], str]]:
    """Arguments and a word that the error must hold, by the kind of mistake."""
    weights = load_file(harness.root() / "maskgit" / "weights.safetensors")
    out = ["--out", str(tmp_path / "never")]
    files = {
        name: tmp_path / name
        for name in ("cut.safetensors", "wrong.safetensors", "nan.safetensors", "code.pth", "cut.pth", "text.bin")
    }
    save_file({**weights, "surplus": torch.zeros(1)}, files["wrong.safetensors"])
    save_file(
        {**weights, "norm.weight": torch.full_like(weights["norm.weight"], float("nan"))}, files["nan.safetensors"]
    )
    files["cut.safetensors"].write_bytes(files["wrong.safetensors"].read_bytes()[:3000])
    files["code.pth"].write_bytes(pickle.dumps({"model": Dangerous()}))
    torch.save(weights, files["cut.pth"])
    files["cut.pth"].write_bytes(files["cut.pth"].read_bytes()[:-5000])
    files["text.bin"].write_text("<html>not found</html>")
    (tmp_path / "empty").mkdir()
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nrubbish")
    Image.new("L", (40, 40)).save(tmp_path / "ok.png")
    (tmp_path / "typo.yaml").write_text("task: classifier\noutput: x\nstpes: 3\nmodel: {class: ImageClassifier}\n")
    (tmp_path / "file").write_text("")
    convert = ["convert", *out, "maskgit"]
    sample = ["sample", "--model", str(model), "--num-images", "2"]
    evaluate = ["eval", *out]
    return {
        "model missing": (["sample", "--model", "nowhere", *out], "nowhere"),
        "class out of range": ([*sample, "--classes", "3", *out], "0 … 2"),
        "class name unknown": ([*sample, "--classes", "unicorn", *out], "unicorn"),
        "no images": ([*sample[:-1], "0", *out], "at least 1"),
        "steps": ([*sample, "--steps", "0", *out], "at least 1"),
        "order": ([*sample, "--order", "rastr", *out], "raster"),
        "dtype": ([*sample, "--dtype", "fp8", *out], "bf16"),
        "device": ([*sample, "--device", "cuda:7", *out], "cuda:7"),
        "animation name": ([*sample, "--animation", "x.mp4", *out], ".gif"),
        "setting unknown": ([*sample, "--set", "stepz=3", *out], "did you mean 'steps'"),
        "setting of reuse unknown": ([*sample, "--set", "reuse.cachd=1", *out], "did you mean 'cached'"),
        "setting without value": ([*sample, "--set", "steps", *out], "key.sub=value"),
        "setting of another kind": ([*sample, "--set", "temperature=warm", *out], "temperature is 'warm'"),
        "setting for another head": (["eval", str(model), "--set", "reuse.head_share=0.5", *out], "diffusion head"),
        "chain of ids": (["eval", str(model), "--chain", "ddim", *out], "chain"),
        "recipe missing": ([*sample, "--recipe", "nothing", *out], "nothing"),
        "output in a place that takes none": ([*sample, "--out", "/proc/mgen-samples"], "cannot write"),
        "report below a file": (
            ["eval", str(tmp_path / "pictures"), "--out", str(tmp_path / "file" / "x")],
            "is a file",
        ),
        "output is a file": ([*sample, "--out", str(tmp_path / "file")], "cannot write"),
        "checkpoint missing": ([*convert, str(tmp_path / "no.pth")], "no such checkpoint"),
        "checkpoint truncated": ([*convert, str(files["cut.safetensors"])], "truncated"),
        "torch file truncated": ([*convert, str(files["cut.pth"])], "the end of a torch file is missing"),
        "checkpoint of wrong keys": ([*convert, str(files["wrong.safetensors"])], "surplus"),
        "checkpoint with NaN": ([*convert, str(files["nan.safetensors"])], "norm.weight"),
        "pickled code": ([*convert, str(files["code.pth"])], "never runs code"),
        "no checkpoint at all": ([*convert, str(files["text.bin"])], "neither"),
        "format unknown": (["convert", "maskgti", str(files["text.bin"]), *out], "maskgit"),
        "flax file of another system": (
            ["convert", "maskgit-vqgan", str(harness.root() / "maskgit_jax" / "checkpoint.msgpack"), *out],
            "another system",
        ),
        "format of another system": (["convert", "maskgit-vqgan", str(files["wrong.safetensors"]), *out], "lacks"),
        "heads that do not divide": (
            ["convert", "maskgit", str(files["wrong.safetensors"]), "trunk.heads=5", *out],
            "heads 5 does not divide",
        ),
        "unknown setting": (
            ["convert", "maskgit", str(files["wrong.safetensors"]), "trunk.heeds=4", *out],
            "did you mean 'heads'",
        ),
        "folder empty": ([*evaluate, str(tmp_path / "empty")], "no images"),
        "image unreadable": ([*evaluate, str(tmp_path / "pictures")], "broken.png"),
        "nothing to evaluate": ([*evaluate, str(tmp_path / "nowhere")], "is not a folder of images"),
        "inception weights missing": (
            [*evaluate, str(tmp_path), "--extractor", "inception", "--inception-weights", "no.pth"],
            "no.pth",
        ),
        "extractor unknown": ([*evaluate, str(tmp_path), "--extractor", "fmnist-cn"], "fmnist-cnn"),
        "reference missing": ([*evaluate, str(tmp_path / "pictures"), "--reference", "no.npz"], "no.npz"),
        "config typo": (["train", "--config", str(tmp_path / "typo.yaml")], "did you mean 'steps'"),
        "config missing": (["train", "--config", "no.yaml"], "no.yaml"),
        "config name": (["train", "--config", "fmnist-maskgti"], "fmnist-maskgit"),
        "cache of no images": (
            ["cache", "--data", str(tmp_path / "empty"), "--tokenizer", str(model), *out],
            "no images",
        ),
        "box outside": (
            ["edit", str(tmp_path / "ok.png"), "--model", str(model), "--box", "0,0,99,9", *out],
            "0,0,99,9",
        ),
        "box of letters": (
            ["edit", str(tmp_path / "ok.png"), "--model", str(model), "--box", "a,b", *out],
            "four whole numbers",
        ),
        "margins too wide": (
            ["edit", str(tmp_path / "ok.png"), "--model", str(model), "--outpaint", "16,0,16,0", *out],
            "leave no picture",
        ),
        "edited image missing": (
            ["edit", str(tmp_path / "no.png"), "--model", str(model), "--box", "0,0,9,9", *out],
            "no such image",
        ),
        "mask empty": (
            ["edit", str(tmp_path / "ok.png"), "--model", str(model), "--mask", str(tmp_path / "ok.png"), *out],
            "no pixel",
        ),
        "bench model": (["bench", "--arch", "fmnist-maskgti"], "did you mean 'fmnist-maskgit'"),
    }


def test_bad_input_is_one_line_status_two_and_leaves_nothing(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    wrong = []
    for name, (arguments, word) in bad_inputs(tmp_path, model).items():
        capsys.readouterr()
        before = sorted(tmp_path.rglob("*"))
        status = main(arguments)
        err = [line for line in capsys.readouterr().err.splitlines() if line.startswith("mgen: error:")]
        if status != 2 or len(err) != 1 or word not in err[0] or sorted(tmp_path.rglob("*")) != before:
            wrong.append((name, status, err, [str(p) for p in sorted(tmp_path.rglob("*")) if p not in before]))
    assert not wrong, "\n".join(map(str, wrong))
    assert not Path("/tmp/mgen-was-here").exists()


def test_another_run_in_the_same_folder_is_an_error(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    base = ["sample", "--model", str(model), "--num-images", "2", "--out", str(tmp_path)]
    assert main(base) == 0
    assert main([*base, "--seed", "1"]) == 2
    assert "seed was 0, now it is 1" in capsys.readouterr().err


def test_nan_weights_are_an_error_before_anything_is_written(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    import shutil

    shutil.copytree(model, tmp_path / "m")
    file = next((tmp_path / "m" / "transformer").glob("*.safetensors"))
    state = load_file(file)
    state["trunk.mid_block.mlp.fc1.weight"][0, 0] = float("inf")
    save_file(state, file)
    assert main(["sample", "--model", str(tmp_path / "m"), "--out", str(tmp_path / "out")]) == 2
    assert "trunk.mid_block.mlp.fc1.weight" in capsys.readouterr().err and not (tmp_path / "out").exists()


@pytest.mark.parametrize("command", ["sample", "cache", "convert", "train"])
def test_writing_past_the_limit_is_one_line_and_leaves_no_part(command: str, model: Path, tmp_path: Path) -> None:
    """A limit on file size stands in for a full disk: the system refuses the write in the middle of a file."""
    write_idx(tmp_path / "idx")
    data = ["--data", "fmnist", "--data-path", str(tmp_path / "idx")]
    weights = str(harness.root() / "maskgit" / "weights.safetensors")
    (tmp_path / "c.yaml").write_text(
        f"task: classifier\noutput: {tmp_path}/out\nsteps: 1\nbatch_size: 4\nema: null\n"
        f"model: {{class: ImageClassifier, widths: [8]}}\ndata: {{kind: fmnist, path: {tmp_path}/idx}}\nlog: {{tensorboard: false}}\n"
    )
    arguments, limit = {
        "sample": (["--model", str(model), "--num-images", "2", "--out", str(tmp_path / "out")], 100),
        "cache": ([*data, "--tokenizer", str(model), "--out", str(tmp_path / "out")], 2000),
        "convert": (["maskgit", weights, "--out", str(tmp_path / "out"), "trunk.heads=4"], 4000),
        "train": (["--config", str(tmp_path / "c.yaml")], 3000),
    }[command]
    code = (
        "import resource, sys\nfrom mgen.cli import main\n"
        f"resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))\nsys.exit(main(sys.argv[1:]))"
    )
    done = subprocess.run(
        [sys.executable, "-B", "-c", code, command, *arguments], capture_output=True, text=True, timeout=300
    )
    lines = [line for line in done.stderr.splitlines() if "mgen: error:" in line]
    assert done.returncode == 2 and len(lines) == 1 and "cannot write" in lines[0], done.stderr[-2000:]
    assert "Traceback" not in done.stderr
    left = [p for p in tmp_path.rglob("*") if p.is_file() and (tmp_path / "out") in p.parents]
    assert not [p for p in left if p.suffix in (".png", ".safetensors", ".pth", ".bin") or ".tmp" in str(p)], left


def test_full_disk_leaves_no_half_written_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mgen.utils.errors import MgenError
    from mgen.utils.files import atomic_path, write_tensors

    with pytest.raises(MgenError, match="free space"):
        with atomic_path(tmp_path / "x.bin") as path:
            path.write_bytes(b"half")
            raise OSError(28, "No space left on device")
    assert not list(tmp_path.iterdir())
    (tmp_path / "file").write_text("")
    with pytest.raises(MgenError, match="cannot write"):
        write_tensors(tmp_path / "file" / "x.safetensors", {"a": torch.zeros(1)})
