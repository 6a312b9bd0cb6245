"""Fuzzing for as long as one likes: settings and files in memory, and commands on damaged files.

    python tools/fuzz.py --minutes 60
    python tools/fuzz.py --list
    python tools/fuzz.py --target cache-index.json --seed 17        one round again

A round draws some hundred inputs for one target from a seed. Whatever comes out but success or one line of refusal, and whatever takes
more than a minute or 2 GB, is a fault: the smallest input that shows it is printed, with the command that draws it again. The strategies
are those of tests/fuzzing.py, which tests/unit/test_fuzz.py draws from for some seconds.
"""

import argparse
import contextlib
import io
import os
import resource
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import yaml
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from mgen.cli import main as mgen  # noqa: E402
from mgen.utils.reading import parse_json  # noqa: E402
from tests import fuzzing  # noqa: E402
from tests.system.boundaries.harness import Parts  # noqa: E402

MOST_SECONDS = 60
MOST_BYTES = 2 * 2**30
DEVICE = ["--device", "cpu"]
SAMPLE = ["sample", "--num-images", "6", *DEVICE]
MEASURE = ["--reference", "@statistics", "--protocol", "fmnist-cnn", "--bootstrap", "0", "--out", "measured", *DEVICE]
ON_CACHE = ["train", "--config", "@cached"]
# Part, file in it, and the command that reads it; {} is the damaged copy of the part.
FILES: dict[str, tuple[str, str, list[str]]] = {
    "pipeline-model_index.json": ("pipeline", "model_index.json", [*SAMPLE, "--model", "{}"]),
    "pipeline-config.json": ("pipeline", "transformer/config.json", [*SAMPLE, "--model", "{}"]),
    "pipeline-tokenizer.json": ("pipeline", "tokenizer/config.json", [*SAMPLE, "--model", "{}"]),
    "pipeline-sampler.json": ("pipeline", "sampler/sampler_config.json", [*SAMPLE, "--model", "{}"]),
    "pipeline-weights": ("pipeline", "transformer/diffusion_pytorch_model.safetensors", [*SAMPLE, "--model", "{}"]),
    "run-run.json": ("run", "run.json", [*SAMPLE, "--model", "@pipeline", "--out", "{}"]),
    "run-image": ("run", "000000_class-0000.png", [*SAMPLE, "--model", "@pipeline", "--out", "{}"]),
    "run-measured-run.json": ("run", "run.json", ["eval", "{}", *MEASURE]),
    "images-image": ("images", "bag/0.png", ["eval", "{}", *MEASURE]),
    "images-trained": ("images", "bag/0.png", ["train", "--config", "@config", "data.path={}"]),
    "statistics": ("statistics", "", ["eval", "@images", *MEASURE, "--reference", "{}"]),
    "cache-index.json": ("cache", "index.json", [*ON_CACHE, "data.path={}"]),
    "cache-shard": ("cache", "shard-00000.safetensors", [*ON_CACHE, "data.path={}"]),
    "idx-images": (
        "idx",
        "train-images-idx3-ubyte.gz",
        ["cache", "--data", "fmnist", "--data-path", "{}", "--tokenizer", "@pipeline"],
    ),
    "idx-labels": (
        "idx",
        "train-labels-idx1-ubyte.gz",
        ["cache", "--data", "fmnist", "--data-path", "{}", "--tokenizer", "@pipeline"],
    ),
    "config-config.yaml": ("config", "", ["train", "--config", "{}"]),
    "result-result.json": ("result", "result.json", ["report", "{}"]),
}

Edit = tuple[str, float, Any]


def edits() -> st.SearchStrategy[list[Edit]]:
    """Changes of a file's bytes: what is done, where in it (0 to 1), and with what."""
    where = st.floats(0, 1) | st.sampled_from([0.0, 0.001, 0.01, 0.02, 0.05, 0.99, 1.0])
    data = st.binary(max_size=8) | st.sampled_from(
        [b"\xff" * 8, b"\0" * 8, b"{", b'"', b"99999999999999999999", b"-1", b"null", b"NaN", b"[" * 2000]
    )
    one = st.one_of(
        st.tuples(st.sampled_from(["put", "insert"]), where, data),
        st.tuples(st.just("cut"), where, st.none()),
        st.tuples(st.just("remove"), where, st.integers(1, 64)),
    )
    return st.lists(one, min_size=1, max_size=3)


def edited(data: bytes, changes: list[Edit]) -> bytes:
    for kind, where, value in changes:
        at = int(where * len(data))
        match kind:
            case "cut":
                data = data[:at]
            case "remove":
                data = data[:at] + data[at + value :]
            case "insert":
                data = data[:at] + value + data[at:]
            case _:
                data = data[:at] + value + data[at + len(value) :]
    return data


def drawn(file: Path) -> st.SearchStrategy[Any]:
    """Changes of a file: of its bytes, or, of JSON and YAML, of its values."""
    if file.suffix == ".json":
        return edits() | fuzzing.damaged(parse_json(file.read_text(), "x")).map(lambda value: ("values", value))
    if file.suffix == ".yaml":
        return edits() | fuzzing.damaged(yaml.safe_load(file.read_text())).map(lambda value: ("values", value))
    return edits()


def on_files(parts: Parts, name: str, change: Any) -> None:
    """Damage a copy of a part, and run the command that reads it."""
    part, inside, argv = FILES[name]
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        copy = parts.copy(part, Path(folder))
        file = copy / inside if inside else copy
        if isinstance(change, tuple):
            write = fuzzing.as_yaml if file.suffix == ".yaml" else fuzzing.as_json
            file.write_text(write(change[1]), errors="replace")
        else:
            file.write_bytes(edited(file.read_bytes(), change))
        argv = [parts.fill(word.replace("{}", str(copy))) for word in argv]
        run([*argv, "--out", "made"] if argv[0] == "cache" else argv)


def run(argv: list[str]) -> None:
    """Run a command; AssertionError unless it succeeds or ends with one line of error."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            status: object = mgen(argv)
        except SystemExit as stop:
            status = stop.code
    said = [line for line in err.getvalue().splitlines() if "mgen: " in line]
    if status == 70:
        trace = Path(said[-1].split("the trace is in ")[1].split(";")[0])
        text = trace.read_text()
        trace.unlink()
        raise AssertionError(f"{' '.join(argv)}: internal error\n{text}")
    assert status in (0, 2), f"{' '.join(argv)}: status {status}"
    assert status == 0 or (said and said[-1].lstrip("\r ").startswith("mgen: error: ")), f"{' '.join(argv)}: {said}"


@contextlib.contextmanager
def bounded() -> Iterator[None]:
    """Raise AssertionError in the body after a minute, or where it took 2 GB more memory."""

    def late(number: int, frame: object) -> NoReturn:
        raise AssertionError(f"still running after {MOST_SECONDS} s")

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    signal.signal(signal.SIGALRM, late)
    signal.alarm(MOST_SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
    added = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    assert added < MOST_BYTES, f"took {added / 2**30:.1f} GB"


def targets(parts: Parts) -> dict[str, tuple[st.SearchStrategy[Any], Callable[[Any], object]]]:
    """All targets by name: what is drawn, and what reads it."""
    found = {name: (draw, partial(fuzzing.outcome, read)) for name, (draw, read) in fuzzing.targets().items()}
    found["plan"] = (fuzzing.samplers(), partial(fuzzing.outcome, check_plan))
    for name, (part, inside, _) in FILES.items():
        file = parts[part] / inside if inside else parts[part]
        found[name] = (drawn(file), partial(on_files, parts, name))
    return found


def check_plan(value: dict[str, Any]) -> None:
    revealed = fuzzing.plan(value)
    assert revealed == 16, f"{revealed} of 16 tokens are revealed"


def round_of(name: str, draw: st.SearchStrategy[Any], read: Callable[[Any], object], number: int, examples: int) -> str:
    """One round; returns the trace of a fault with the smallest input, "" if there is none."""

    @seed(number)
    @settings(
        max_examples=examples, deadline=None, database=None, suppress_health_check=list(HealthCheck), print_blob=False
    )
    @given(value=draw)
    def check(value: Any) -> None:
        with bounded():
            read(value)

    told = io.StringIO()
    try:
        with contextlib.redirect_stdout(told):
            check()
    except (Exception, ExceptionGroup) as error:
        notes = "\n".join(getattr(error, "__notes__", []))
        return f"{''.join(traceback.format_exception(error))[-3000:]}\n{told.getvalue()}{notes}"
    return ""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--target", action="append", help="repeatable; default: all in turn")
    parser.add_argument("--seed", type=int, help="draw one round of each target from this seed")
    parser.add_argument("--examples", type=int, default=100, help="inputs of a round")
    parser.add_argument("--list", action="store_true", help="print the names of the targets")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            every = targets(Parts(Path(folder)))
        if args.list:
            print("\n".join(every))
            return 0
        chosen = {name: every[name] for name in args.target or every}
        end, number, faults, rounds = time.monotonic() + 60 * args.minutes, args.seed or 0, Counter[str](), 0
        while True:
            for name, (draw, read) in chosen.items():
                if args.seed is None and time.monotonic() > end:
                    print(f"{rounds} rounds of {args.examples} inputs, faults: {dict(faults) or 'none'}")
                    return bool(faults)
                rounds += 1
                if fault := round_of(name, draw, read, number, args.examples):
                    faults[name] += 1
                    again = f"python tools/fuzz.py --target {name!r} --seed {number} --examples {args.examples}"
                    print(f"-- {name} --\n{fault}\nagain: {again}\n", flush=True)
            if args.seed is not None:
                print(f"{rounds} rounds of {args.examples} inputs, faults: {dict(faults) or 'none'}")
                return bool(faults)
            number += 1


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    sys.exit(main())
