"""What must be checked and measured on a GPU, in one command: the tests marked `gpu`, sampling and training speed at paper size.

    python -m tools.gpu_check --help

Writes OUT/report.md, a page with tables, the card, the versions and every command. Each run is a process of its own; its numbers are in
OUT/rows.json as soon as it has ended. A run that fails is told in the page and by exit status 1, and the others go on. Rerun the same
command to resume: runs that are done stay, failed ones are run again.
"""

import argparse
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mgen.cli import resumable, run
from mgen.cli.parser import Formatter, whole
from mgen.utils.compiling import MODES
from mgen.utils.errors import MgenError, check_choice
from mgen.utils.files import check_writable, write_json, write_text
from mgen.utils.reading import read_json

ROOT = Path(__file__).resolve().parents[1]
PARTS = ("tests", "bench", "training")
DTYPES = ("fp32", "bf16")
# Architecture and recipe of the models whose sampling is timed.
SAMPLED = {
    "autonat-l": ("maskgit-r-l", "autonat-l-imagenet256"),
    "mar-b": ("mar-b", "mar-b-imagenet256"),
    "enat-l": ("enat-l", "enat-l-imagenet256"),
    "llamagen-b": ("llamagen-b", "llamagen-b-imagenet256"),
    "tokenbridge-l": ("tokenbridge-l", "tokenbridge-l-imagenet256"),
    "himar-b": ("himar-b", "himar-b-imagenet256"),
}
TRAINED = ("mar-b", "maskgit-r-l")
SMALL = ("fmnist-maskgit", "fmnist-mar")  # the embedded models
EXAMPLES = """examples:
  python -m tools.gpu_check --out gpu-check                          everything
  python -m tools.gpu_check --only bench --models mar-b,himar-b --dtypes bf16 --compile off,regional,full
  python -m tools.gpu_check --device cpu --small --out try           the same with tiny sizes, on a CPU, to try this tool"""


@dataclass(frozen=True, kw_only=True)
class Job:
    """A run: a command, and the file in which it leaves its numbers."""

    part: str
    name: str
    command: list[str]
    result: Path
    environment: dict[str, str]

    @property
    def line(self) -> str:
        """The command as it is typed."""
        changed = [f"{key}={shlex.quote(value)}" for key, value in self.environment.items()]
        return (
            shlex.join(["python", *self.command[1:]])
            if not changed
            else f"{' '.join(changed)} {shlex.join(['python', *self.command[1:]])}"
        )


def jobs(args: argparse.Namespace, out: Path) -> list[Job]:
    """All runs that the options ask for, in order."""
    found: list[Job] = []
    files = out / "files"

    def add(part: str, name: str, command: list[str], kind: str = "json", **environment: str) -> None:
        result = files / f"{part}-{name.replace(' ', '-')}.{kind}"
        filled = [str(result) if word == "RESULT" else word.replace("RESULT", str(result)) for word in command]
        found.append(
            Job(part=part, name=name, command=[sys.executable, *filled], result=result, environment=environment)
        )

    if "tests" in args.only:
        chosen = ["tests/gpu/test_networks.py", "-k", "TiTok"] if args.small else ["tests"]
        pytest = ["-m", "pytest", "-m", "gpu", "-n", "0", *chosen, "--junitxml=RESULT"]
        add("tests", "gpu", pytest, "xml", **({} if args.device == "cuda" else {"MGEN_TEST_DEVICE": args.device}))
    for model in args.models if "bench" in args.only else ():
        arch = (
            ["--model", model, "--steps", "2"]
            if args.small
            else ["--arch", SAMPLED[model][0], "--recipe", SAMPLED[model][1]]
        )
        for dtype in args.dtypes:
            for mode in args.compile:
                command = ["-m", "mgen", "bench", *arch, "--device", args.device, "--dtype", dtype]
                command += ["--batch-size", str(args.batch_size), "--repeats", str(args.repeats), "--json", "RESULT"]
                add("bench", f"{model} {dtype} {mode}", command + ([] if mode == "off" else ["--compile", mode]))
    for model in (SMALL if args.small else TRAINED) if "training" in args.only else ():
        for dtype in args.dtypes:
            for mode in args.compile:
                device = ["--device", "cpu"] if args.device == "cpu" else []
                command = ["tools/training_speed.py", "--models", model, "--precision", dtype, *device]
                command += [
                    "--batch-size",
                    str(args.batch_size),
                    "--steps",
                    "1" if args.small else "20",
                    "--out",
                    "RESULT",
                ]
                command += ["--rounds", "1"] if args.small else []
                add(
                    "training",
                    f"{model} {dtype} {mode}",
                    command + ([] if mode == "off" else ["--compile", mode]),
                )
    return found


def execute(job: Job, limit: float) -> dict[str, Any]:
    """Run a job; its row, with `error` if it failed: what it said last."""
    job.result.parent.mkdir(parents=True, exist_ok=True)
    job.result.unlink(missing_ok=True)
    log = job.result.with_suffix(".log")
    row: dict[str, Any] = {"part": job.part, "name": job.name, "command": job.line}
    began = time.perf_counter()
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **job.environment}
    with log.open("w", encoding="utf-8") as file:
        try:
            done = subprocess.run(
                job.command, cwd=ROOT, env=environment, stdout=file, stderr=subprocess.STDOUT, timeout=limit
            )
            status = f"exit status {done.returncode}" if done.returncode else ""
        except subprocess.TimeoutExpired:
            status = f"stopped after {limit:g} s"
    row["seconds"] = round(time.perf_counter() - began, 1)
    try:
        row["result"] = read_tests(job.result) if job.part == "tests" else read_json(job.result)
    except (MgenError, OSError, ValueError) as error:
        status = status or f"no numbers: {error}"
    if status:
        lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        row["error"] = f"{status}: {' / '.join(line.strip() for line in lines[-3:])[-600:]}"
    return row


def read_tests(file: Path) -> dict[str, Any]:
    """Counts of pytest's XML, and the names of the tests that failed."""
    from xml.etree import ElementTree

    suites = list(ElementTree.parse(file).getroot().iter("testsuite"))
    counts = {
        key: sum(int(suite.get(key, 0)) for suite in suites) for key in ("tests", "failures", "errors", "skipped")
    }
    cases = [case for suite in suites for case in suite.iter("testcase")]
    failed = [
        f"{c.get('classname')}::{c.get('name')}"
        for c in cases
        if c.find("failure") is not None or c.find("error") is not None
    ]
    return {**counts, "failed": failed}


def machine(device: str) -> dict[str, str]:
    """The card, its driver and the versions."""
    import torch

    found = {"torch": torch.__version__, "python": sys.version.split()[0], "cuda": str(torch.version.cuda)}
    if device == "cpu":
        return {"card": f"none, a CPU with {torch.get_num_threads()} threads", "driver": "none", **found}
    about = torch.cuda.get_device_properties(device)
    card = f"{about.name}, {about.total_memory / 1e9:.0f} GB, compute capability {about.major}.{about.minor}"
    return {"card": card, "driver": _ask("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"), **found}


def _ask(*command: str) -> str:
    """The first line that a command prints; "unknown" without it."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=ROOT)
    except (OSError, subprocess.TimeoutExpired):
        return "unknown"
    return done.stdout.strip().splitlines()[0] if done.returncode == 0 and done.stdout.strip() else "unknown"


def words(option: str, text: str, allowed: Sequence[str]) -> list[str]:
    """The words of a comma-separated list, each of which must be allowed."""
    return [check_choice(option, word.strip(), allowed) for word in text.split(",")]


def read_options(argv: Sequence[str] | None) -> argparse.Namespace:
    """The options, checked; MgenError without a GPU."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.gpu_check", description=__doc__, epilog=EXAMPLES, formatter_class=Formatter
    )
    option = parser.add_argument
    option("--out", default="gpu-check", metavar="DIR", help="folder of the page, the numbers and the logs")
    option("--only", default=",".join(PARTS), metavar="PART,…", help="tests, bench and training")
    option("--models", metavar="NAME,…", help=f"of bench: {', '.join(SAMPLED)}; default: all")
    option("--dtypes", default=",".join(DTYPES), metavar="DTYPE,…", help="fp32 and bf16")
    option("--compile", default="off,regional", metavar="MODE,…", help="off, regional and full")
    option("--batch-size", type=whole(1), help="default: 64, with --small 2")
    option(
        "--repeats", type=whole(1), help="timed runs of bench, of which the fastest counts; default: 3, with --small 1"
    )
    option("--limit", type=whole(1), default=3600, metavar="SECONDS", help="of one run, which then counts as failed")
    option("--device", default="cuda", help="cuda, cuda:1, or cpu with --small")
    option("--small", action="store_true", help="the embedded models and few tests, to try this tool")
    option("--redo", action="store_true", help="run again what is done")
    args = parser.parse_args(argv)
    models = SMALL if args.small else tuple(SAMPLED)
    args.only = words("--only", args.only, PARTS)
    args.models = words("--models", args.models or ",".join(models), models)
    args.dtypes = words("--dtypes", args.dtypes, DTYPES)
    args.compile = words("--compile", args.compile, MODES)
    args.batch_size = args.batch_size or (2 if args.small else 64)
    args.repeats = args.repeats or (1 if args.small else 3)
    if args.device == "cpu" and not args.small:
        raise MgenError("--device cpu is for --small: paper-size runs take days on a CPU")
    import torch

    if args.device != "cpu" and not torch.cuda.is_available():
        raise MgenError(
            "this machine has no GPU that torch can use: to try the tool on a CPU give --device cpu --small"
        )
    from mgen.utils.devices import check_device

    args.device = check_device(args.device)
    return args


def command(argv: Sequence[str] | None = None) -> int:
    """Run what is left to do, and write the page; see --help."""
    args = read_options(argv)
    from tools.gpu_check_page import page

    out = Path(args.out).resolve()
    check_writable(out)
    file = out / "rows.json"
    known: dict[str, Any] = {}
    if file.is_file():
        known = {row["command"]: row for row in read_json(file)["rows"]}
    about = {**machine(args.device), "commit": _ask("git", "rev-parse", "--short", "HEAD")}
    line = shlex.join(["python", "-m", "tools.gpu_check", *(sys.argv[1:] if argv is None else argv)])
    todo = jobs(args, out)
    with resumable("the same command goes on with the next run"):
        for i, job in enumerate(todo):
            if args.redo or "error" in known.get(job.line, {"error": ""}):
                print(f"{i + 1} of {len(todo)}: {job.part} {job.name}", file=sys.stderr)
                known[job.line] = row = execute(job, args.limit)
                if "error" in row:
                    print(f"failed: {job.name}: {row['error']}", file=sys.stderr)
            write_json(file, {"rows": list(known.values())})
            write_text(out / "report.md", page(about, line, list(known.values())))
    print(out / "report.md")
    failed = [job.name for job in todo if "error" in known[job.line]]
    if failed:
        print(f"{len(failed)} of {len(todo)} runs failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(run(command))
