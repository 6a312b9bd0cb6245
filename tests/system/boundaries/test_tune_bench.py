"""mgen tune and mgen bench: bad options, traces and sweeps, and sizes that cannot fit, end before the work."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from mgen.bench import sweep
from mgen.bench.benchmark import bench, random_pipeline
from mgen.cli import main
from mgen.generators.presets import model_config
from mgen.samplers import ParallelSampler
from mgen.tune.strategies import Space
from mgen.tune.tuning import Trace, search
from tests.helpers import tiny_generator
from tests.system.boundaries.harness import Parts, Raises, Refused, fifo, row

HUGE = str(10**30)
TUNE = ["tune", "--model", "@pipeline", "--data-path", "@idx", "--device", "cpu", "--out", "o", "--steps", "3"]
BENCH = ["bench", "--arch", "fmnist-maskgit", "--tokenizer", "none", "--steps", "2"]


def numbers(option: str, low: int) -> list[Any]:
    """Rows of values that are no whole number from `low` on."""
    values = ["", " ", "a", "1.5", "²", "٣", "1e3", "nan", "-1", str(low - 1), HUGE, "9" * 5000, "[1]", "0x10", "1,2"]
    return [row(f"{option}={value[:8]!r}", [f"{option}={value}"], option) for value in dict.fromkeys(values)]


TUNE_OPTIONS: list[Any] = [
    *numbers("--steps", 1),
    *numbers("--knots", 1),
    *numbers("--trials", 2),
    *numbers("--max-passes-per-image", 1),
    *numbers("--num-images", 2),
    *numbers("--test-images", 2),
    *numbers("--batch-size", 1),
    row("start empty", ["--start="], "--start", "empty"),
    row("start of a device", ["--start=/dev/zero"], "no recipe"),
    row("start of a folder", ["--start=@images"], "no recipe"),
    row("start long", [f"--start={'a' * 5000}"], "too long"),
    row("model empty", ["--model="], "--model", "empty"),
    row("model null", ["--model=a\0b"], "null"),
    row("model nowhere", ["--model=nowhere"], "nowhere"),
    row("out empty", ["--out="], "--out", "empty"),
    row("out long", [f"--out={'a' * 300}"], "too long"),
    row("out in proc", ["--out=/proc/x"], "cannot write"),
    row("search empty", ["--search="], "empty"),
    row("search commas", ["--search=,"], "nothing to search"),
    row("search unknown", ["--search=guidence"], "guidance"),
    row("seed text", ["--seed=a"], "--seed"),
    row("seed huge", [f"--seed={HUGE}"], "--seed"),
    row("seeds equal", ["--seed=1"], "both 1"),
    row("extractor empty", ["--extractor="], "empty"),
    row("extractor unknown", ["--extractor=vgg"], "vgg"),
    row("inception weights without it", ["--inception-weights=x.pth"], "--extractor inception"),
    row("reference empty", ["--reference-search=", "--reference-test=b"], "empty"),
    row("reference alone", ["--reference-search=a"], "go together"),
    row("data path empty", ["--data-path="], "empty"),
    row("data path nowhere", ["--data-path=nowhere"], "no such folder"),
    row("device meta", ["--device=meta"], "meta"),
    row("device empty", ["--device="], "empty"),
    row("device cpu:7", ["--device=cpu:7"], "cpu:7"),
    row("dtype", ["--dtype=fp8"], "bf16"),
    row("dtype empty", ["--dtype="], "empty"),
    row("batch of 10**12", ["--batch-size=1000000000000"], "memory"),
    row("10**13 images", ["--num-images=10000000000000"], "years"),
    row("10**13 test images", ["--test-images=10000000000000"], "at least"),
    row("10**13 trials", ["--trials=10000000000000"], "years"),
]


@pytest.mark.parametrize(("options", "words"), TUNE_OPTIONS)
def test_options_of_tune(options: list[str], words: list[str], refused: Refused) -> None:
    refused([*TUNE, *options], *words)


POLICIES: list[Any] = [
    *(
        row(f"budget {value[:8]!r}", [f"--budget={value}"], "--budget")
        for value in ("0x", "x", "nanx", "-1s", "12", "1e9x", "9" * 5000)
    ),
    row("budget too small", ["--budget=1 FLOP", "--axes=steps"], "within the budget"),
    row("axes commas", ["--axes=,"], "names no axis"),
    row("axes unknown", ["--axes=step"], "steps"),
    row("axes of another kind", ["--axes=head.chain"], "nothing to search"),
    row("space nowhere", ["--space=nowhere"], "nowhere"),
    row("space of a folder", ["--space=@images"], "images"),
    row("space of another file", ["--space=@config"], "axes"),
    *(
        row(f"rungs {value[:8]!r}", ["--budget=1x", f"--rungs={value}"], "--rungs")
        for value in ("a", "1", "5,5", "9,3", ",", "2,", "9" * 5000)
    ),
    row("rungs 10**13", ["--budget=1x", "--rungs=10000000000000"], "years"),
    row("seeds of the search in the test", ["--budget=1x", "--seed=3", "--test-seeds=5"], "3 and 1 … 5"),
    row("lists", ["--budget=1x", "--search=guidance"], "--search"),
    row("knots", ["--axes=steps", "--knots=2"], "--knots"),
    row("no policies", ["--finalists=2"], "--budget"),
]


@pytest.mark.parametrize(("options", "words"), POLICIES)
def test_options_of_policies(options: list[str], words: list[str], refused: Refused) -> None:
    refused([*TUNE, *options], *words)


def test_own_data_are_not_compared_with_fashion_mnist_by_default(refused: Refused) -> None:
    argv = ["--model", "@pipeline", "--device", "cpu", "--out", "o"]
    refused(["tune", *argv, "--steps", "3"], "not known to be trained on Fashion-MNIST", "--reference-search")
    sweep_argv = ["bench", *argv, "--sweep", "fmnist-maskgit", "--num-images", "4"]
    refused(sweep_argv, "not known to be trained on Fashion-MNIST", "--reference")


# -- traces ------------------------------------------------------------------------------------------------------------------


def trial(**changed: object) -> dict[str, Any]:
    whole = {
        "key": "0123456789abcdef",
        "side": "search",
        "distance": 3.5,
        "passes_per_image": 6,
        "seconds": 0.25,
        "strategy": {"guidance": [1.0, 2.0]},
    }
    return {name: value for name, value in {**whole, **changed}.items() if value is not ...}


TRACES: list[Any] = [
    row("distance nan", '{"key": "a", "distance": NaN}', "line 1"),
    row("distance nan in whole", json.dumps(trial(distance=float("nan"))), "line 1"),
    row("distance infinite", json.dumps(trial(distance=float("inf"))), "line 1"),
    row("distance text", json.dumps(trial(distance="3.5")), "distance"),
    row("distance null", json.dumps(trial(distance=None)), "distance"),
    row("distance missing", json.dumps(trial(distance=...)), "distance"),
    row("distance true", json.dumps(trial(distance=True)), "distance"),
    row("distance 1e400", json.dumps(trial()).replace("3.5", "1e400"), "line 1"),
    row("key number", json.dumps(trial(key=5)), "key"),
    row("key list", json.dumps(trial(key=["a"])), "key"),
    row("key short", json.dumps(trial(key="abc")), "key"),
    row("key missing", json.dumps(trial(key=...)), "key"),
    row("side", json.dumps(trial(side="other")), "side"),
    row("side missing", json.dumps(trial(side=...)), "side"),
    row("strategy list", json.dumps(trial(strategy=[1])), "strategy"),
    row("strategy of texts", json.dumps(trial(strategy={"guidance": ["a"]})), "strategy"),
    row("strategy null", json.dumps(trial(strategy=None)), "strategy"),
    row("strategy missing", json.dumps(trial(strategy=...)), "strategy"),
    row("passes 0", json.dumps(trial(passes_per_image=0)), "passes_per_image"),
    row("passes text", json.dumps(trial(passes_per_image="6")), "passes_per_image"),
    row("seconds negative", json.dumps(trial(seconds=-1)), "seconds"),
    row("unknown key", json.dumps(trial(distanze=1)), "distanze"),
    row("list", "[1]", "line 1"),
    row("number", "5", "line 1"),
    row("null", "null", "line 1"),
    row("deep", "[" * 100_000, "line 1"),
    row("deep object", '{"a":' * 100_000, "line 1"),
    row("deep closed", "[" * 100 + "]" * 100, "line 1"),
    row("no json", "hello", "line 1"),
    row("half a line", json.dumps(trial())[:40], "line 1"),
    row("second line", json.dumps(trial()) + "\n{}", "line 2"),
    row("empty line", "\n" + json.dumps(trial()), "line 1"),
    row("not utf-8", b"\xff\xfe", "UTF-8"),
]


@pytest.mark.parametrize(("data", "words"), TRACES)
def test_traces(data: str | bytes, words: list[str], here: Path, raises: Raises) -> None:
    (here / "trace.jsonl").write_bytes(data.encode() if isinstance(data, str) else data)
    raises(lambda: Trace(path=here / "trace.jsonl"), "trace.jsonl", *words)


def test_a_trace_in_the_output_is_read_before_the_work(here: Path, refused: Refused) -> None:
    (here / "o").mkdir()
    (here / "o" / "trace.jsonl").write_text(json.dumps(trial(distance=None)))
    refused(TUNE, "trace.jsonl, line 1")
    (here / "o" / "trace.jsonl").unlink()
    fifo(here / "o" / "trace.jsonl")
    refused(TUNE, "no regular file")


def test_a_trial_of_another_strategy_than_its_key_says_is_noticed(here: Path, raises: Raises) -> None:
    space = Space(ParallelSampler(steps=3), tiny_generator())
    search(space, lambda sampler: 1.0, Trace(path=here / "t.jsonl"), trials=2, progress=False)
    first, *rest = (here / "t.jsonl").read_text().splitlines()
    record = json.loads(first)
    record["strategy"]["schedule"] = [0.5, 0.25]
    (here / "t.jsonl").write_text("\n".join([json.dumps(record), *rest]) + "\n")
    again = Trace(path=here / "t.jsonl")
    raises(lambda: search(space, lambda sampler: 1.0, again, trials=2, progress=False), "another strategy")


# -- bench -------------------------------------------------------------------------------------------------------------------


def model(*settings: str) -> list[str]:
    return [part for setting in settings for part in ("--model-set", setting)]


BENCH_OPTIONS: list[Any] = [
    *numbers("--batch-size", 1),
    *numbers("--repeats", 1),
    *numbers("--threads", 1),
    row("batch of 10**12", ["--batch-size=1000000000000"], "memory"),
    row("10**13 repeats", ["--repeats=10000000000000"], "years"),
    row("steps 10**12", ["--steps=1000000000000"], "steps"),
    row("device meta", ["--device=meta"], "meta"),
    row("device empty", ["--device="], "empty"),
    row("device cuda:99", ["--device=cuda:99"], "cuda:99"),
    row("dtype", ["--dtype=fp64"], "bf16"),
    row("class empty", ["--class="], "--class"),
    row("json empty", ["--json="], "--json", "empty"),
    row("json a folder", ["--json=."], "folder"),
    row("json below a file", ["--json=/etc/passwd/x"], "cannot write"),
    row("json long", [f"--json={'a' * 300}"], "too long"),
    row("json with a sweep", ["--json=x.json", "--sweep=fmnist-maskgit"], "--sweep"),
    row("arch empty", ["--arch="], "empty"),
    row("arch unknown", ["--arch=mar-bb"], "mar-b"),
    row("arch a folder", ["--arch=@images"], "model"),
    row("config and arch", ["--config=fmnist-mar"], "give one of them"),
    row("config empty", ["--config="], "empty"),
    row("tokenizer unknown", ["--tokenizer=vq99"], "vq16"),
    row("tokenizer empty", ["--tokenizer="], "empty"),
    row("dim 0", model("trunk.dim=0"), "dim"),
    row("dim -32", model("trunk.dim=-32"), "dim"),
    row("dim text", model("trunk.dim='32'"), "dim"),
    row("dim 32.0", model("trunk.dim=32.0"), "dim"),
    row("dim null", model("trunk.dim=null"), "dim"),
    row("dim true", model("trunk.dim=true"), "dim"),
    row("dim 10**10", model("trunk.dim=10000000000"), "dim"),
    row("dim 10**6", model("trunk.dim=1000000", "trunk.heads=1000"), "memory"),
    row("dim 10**30", model(f"trunk.dim={HUGE}"), "dim"),
    row("depth -1", model("trunk.depth=-1"), "depth"),
    row("depth 10**9", model("trunk.depth=1000000000"), "depth"),
    row("heads 7", model("trunk.heads=7"), "heads"),
    row("heads 0", model("trunk.heads=0"), "heads"),
    row("heads list", model("trunk.heads=[4]"), "heads"),
    row("dropout nan", model("trunk.dropout=.nan"), "dropout"),
    row("dropout 5", model("trunk.dropout=5"), "dropout"),
    row("length 10**9", model("tokens.length=1000000000"), "length"),
    row("length alone", model("tokens.length=16"), "length"),
    row("windows side 3", model("windows.side=3"), "3"),
    row("windows side -2", model("windows.side=-2"), "side"),
    row("windows side text", model("windows.side=a"), "side"),
    row("classes -1", model("classes.count=-1"), "count"),
    row("classes 10**15", model("classes.count=1000000000000000"), "count"),
    row("head type", model("head.type=logits"), "head"),
    row("head type list", model("head.type=[a]"), "head"),
    row("trunk a list", model("trunk=[1]"), "trunk"),
    row("twice", model("trunk.depth=2", "trunk.depth=4"), "twice"),
    row("unknown", model("trunk.width=2"), "trunk.width"),
    row("no equals", model("trunk.dim"), "key.sub=value"),
    row("no key", model("=3"), "key.sub=value"),
    row("empty", ["--model-set="], "empty"),
    row("images without a sweep", ["--num-images=5"], "--sweep"),
    row("retime without a sweep", ["--retime"], "--sweep"),
    row("reference without a sweep", ["--reference=a.npz"], "--sweep"),
    row("seed without a sweep", ["--seed=0"], "--seed is for --sweep"),
    row("extractor without a sweep", ["--extractor=nowhere"], "--extractor is for --sweep"),
    row("folder without a sweep", ["--out=made"], "--out is for --sweep"),
    row("sweep empty", ["--sweep="], "empty"),
    row("sweep unknown", ["--sweep=nowhere"], "nowhere"),
    row("sweep of a path", ["--sweep=../models/mar-b"], "no such file"),
]


@pytest.mark.parametrize(("options", "words"), BENCH_OPTIONS)
def test_options_of_bench(options: list[str], words: list[str], refused: Refused) -> None:
    argv = [part for part in BENCH if not (part == "none" and options[0].startswith("--tokenizer"))]
    argv = [part for part in argv if not (part == "--tokenizer" and options[0].startswith("--tokenizer"))]
    refused([*argv, *options], *words)


def test_options_without_effect_on_a_saved_model(refused: Refused) -> None:
    argv = ["bench", "--model", "@pipeline"]
    refused([*argv, "--model-set", "trunk.dim=8"], "--arch or --config")
    refused([*argv, "--tokenizer", "vq16"], "--arch or --config")
    refused([*argv, "--sweep", "fmnist-maskgit"], "--num-images")
    refused([*argv, "--sweep", "fmnist-maskgit", "--num-images", "1"], "--num-images")
    inception = ["--num-images", "4", "--inception-weights", "x.pth"]
    refused([*argv, "--sweep", "fmnist-maskgit", *inception], "--extractor inception")


SWEEPS: list[Any] = [
    row("list", [1], "no settings"),
    row("empty", {}, "base"),
    row("base list", {"base": ["all"]}, "base", "text"),
    row("base dict", {"base": {"a": 1}}, "base", "text"),
    row("base null", {"base": None}, "base", "text"),
    row("base another", {"base": "none"}, "one of the methods"),
    row("base missing", {"base": ...}, "base"),
    row("methods list", {"methods": ["all"]}, "methods"),
    row("methods empty", {"methods": {}}, "one of the methods"),
    row("methods null", {"methods": None}, "methods"),
    row("methods text", {"methods": "all"}, "methods"),
    row("method list", {"methods": {"all": [1]}}, "methods.all"),
    row("method text", {"methods": {"all": "fast"}}, "methods.all"),
    row("method unknown key", {"methods": {"all": {"step": [3]}}}, "step"),
    row("method steps number", {"methods": {"all": {"steps": 3}}}, "steps", "list"),
    row("method steps empty", {"methods": {"all": {"steps": []}}}, "steps"),
    row("method steps texts", {"methods": {"all": {"steps": ["3"]}}}, "steps"),
    row("method steps null in list", {"methods": {"all": {"steps": [None]}}}, "steps"),
    row("steps number", {"steps": 3}, "steps", "list"),
    row("steps null", {"steps": None}, "steps"),
    row("steps 0", {"steps": [0]}, "steps"),
    row("steps true", {"steps": [True]}, "steps"),
    row("steps 1.5", {"steps": [1.5]}, "steps"),
    row("steps 10**12", {"steps": [10**12]}, "steps"),
    row("sampler list", {"sampler": [1]}, "sampler", "mapping"),
    row("sampler text", {"sampler": "fast"}, "sampler", "mapping"),
    row("sampler unknown", {"sampler": {"orders": 1}}, "orders"),
    row("full_first 1e300", {"methods": {"all": {"reuse": {"cached": 1, "full_first": 1e300}}}}, "full_first"),
    row("full_first -0.5", {"methods": {"all": {"reuse": {"cached": 1, "full_first": -0.5}}}}, "full_first"),
    row("full_first 1.5", {"methods": {"all": {"reuse": {"cached": 1, "full_first": 1.5}}}}, "full_first"),
    row("unknown key", {"method": {}}, "method"),
]
SWEEP_TEXTS: list[Any] = [
    row("full_first inf", "base: a\nsteps: [3]\nmethods: {a: {reuse: {full_first: .inf}}}", "full_first"),
    row("full_first nan", "base: a\nsteps: [3]\nmethods: {a: {reuse: {full_first: .nan}}}", "full_first"),
    row("method int key", "base: 1\nsteps: [3]\nmethods: {1: {}}", "no text"),
    row("setting int key", "base: a\nsteps: [3]\nmethods: {a: {1: 2}}", "no text"),
    row("null key", "base: a\nsteps: [3]\nmethods: {~: {}}", "no text"),
    row("no yaml", "base: [", "YAML"),
    row("extends itself", "extends: s.yaml", "extends itself"),
    row("null", "null", "no settings"),
]


def sweep_text(changed: object) -> str:
    if not isinstance(changed, dict):
        return json.dumps(changed)
    whole = {"base": "all", "steps": [2], "methods": {"all": {}}} if changed else {}
    return json.dumps({key: value for key, value in {**whole, **changed}.items() if value is not ...})


@pytest.mark.parametrize(("changed", "words"), [*SWEEPS, *SWEEP_TEXTS])
def test_sweep_files(changed: object, words: list[str], here: Path, refused: Refused) -> None:
    (here / "s.yaml").write_text(changed if isinstance(changed, str) else sweep_text(changed))
    refused([*BENCH, "--sweep", "s.yaml", "--out", "o"], *words)


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A sweep.json that a command wrote."""
    folder = tmp_path_factory.mktemp("swept")
    (folder / "s.yaml").write_text(sweep_text({"steps": [2]}))
    before = Path.cwd()
    os.chdir(folder)
    try:
        assert main([*BENCH, "--batch-size=1", "--sweep", "s.yaml", "--out", "o"]) == 0
    finally:
        os.chdir(before)
    return (folder / "o" / "sweep.json").read_text()


RESULTS: list[Any] = [
    row("null", "null", "mapping"),
    row("list", "[]", "mapping"),
    row("number", "5", "mapping"),
    row("deep", "[" * 100_000, "sweep.json"),
    row("no json", "{", "sweep.json"),
    row("empty", "{}", "about"),
    row("about list", {"about": []}, "about"),
    row("rows null", {"rows": None}, "rows"),
    row("rows mapping", {"rows": {}}, "rows"),
    row("rows of lists", {"rows": [[]]}, "rows.0"),
    row("row empty", {"rows": [{}]}, "method"),
    row("base missing", {"base": None}, "base"),
    row("seconds 0", {"seconds": 0}, "seconds"),
    row("seconds null", {"seconds": None}, "seconds"),
    row("seconds text", {"seconds": "1"}, "seconds"),
    row("tflops negative", {"tflops": -1}, "tflops"),
    row("steps text", {"steps": "2"}, "steps"),
    row("full -1", {"full": -1}, "full"),
    row("distance of random weights", {"distance": 3.0}, "distance"),
    row("unknown in a row", {"second": 3.0}, "second"),
    row("other settings", {"about": {"command": "x"}}, "other settings"),
]


@pytest.mark.parametrize(("changed", "words"), RESULTS)
def test_results_of_an_earlier_sweep(
    changed: object, words: list[str], swept: str, here: Path, refused: Refused
) -> None:
    (here / "s.yaml").write_text(sweep_text({"steps": [2]}))
    (here / "o").mkdir()
    data = json.loads(swept)
    if isinstance(changed, dict):
        for key, value in changed.items():
            (data if key in data else data["rows"][0])[key] = value
    (here / "o" / "sweep.json").write_text(changed if isinstance(changed, str) else json.dumps(data))
    refused([*BENCH, "--batch-size=1", "--sweep", "s.yaml", "--out", "o"], *words)


def test_functions_of_python_say_the_same(raises: Raises) -> None:
    pipe = random_pipeline(model_config("fmnist-maskgit"), None)
    settings: dict[str, Any] = {"model": "m", "repeats": 1, "dtype": "fp32"}
    raises(lambda: bench(pipe, pipe.sampler, batch_size=10**12, **settings), "memory")
    raises(lambda: random_pipeline({"trunk": 5}, None), "")
    raises(lambda: random_pipeline(model_config("fmnist-maskgit"), "vq99"), "vq16")
    raises(lambda: Space(ParallelSampler(steps=3), pipe.transformer, knots=0), "knots")
    raises(lambda: sweep.read_sweep("nowhere", pipe.sampler, pipe.transformer), "no such file")


def test_the_tiny_pipeline_is_really_timed(parts: Parts, here: Path) -> None:
    assert main(["bench", "--model", str(parts["pipeline"]), "--batch-size=1", "--json=b.json", "--repeats=1"]) == 0
    assert json.loads((here / "b.json").read_text())["batch_size"] == 1
