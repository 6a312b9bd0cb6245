"""What each policy of the sampler saves, alone and together, and at what quality: docs/experiments/less_compute.md.

    python -m tools.less_compute fmnist-mar --images 2000 --seeds 0 1 2      operations and distances of rows that lack them
    python -m tools.less_compute fmnist-mar mar-b --time --rounds 3          seconds
    python -m tools.less_compute fmnist-mar --rows "best combination" --images 500
    python -m tools.less_compute --render                                    the tables of the page from the file of results

Trunks and rows are those of tools/less_compute_rows.py. Per row:

* TFLOPs of an image, decoding included, as `mgen bench` counts them.
* distance: Fréchet distance (fmnist-cnn) of --images images for each of --seeds, labels balanced, as `mgen eval` measures it. All rows of a
  trunk use the same seeds. Features are kept under --work: an interrupted run resumes, and more images add to those there are.
* seconds (--time): CPU time of one thread per image, decoding included. All rows and the plain run advance in turn, step by step, in one
  process, so that all see the same machine; --rounds times, of which the median of the ratios counts. The plain form, where there is one,
  is the generator as the published code computes it (tools/ablations). With --every N, runs without reuse and stages compute
  every N-th step alone, which counts N times.

The file of results is written after every number. A row whose settings or model have changed is measured anew.
"""

import argparse
import hashlib
import json
import statistics
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mgen.bench.flops import count_run
from mgen.evaluation.extractors import Extractor, make_extractor
from mgen.evaluation.frechet import frechet_distance
from mgen.evaluation.measure import features_of
from mgen.evaluation.sources import from_model
from mgen.evaluation.statistics import FeatureSums, builtin_file, load_statistics
from mgen.samplers import ParallelSampler
from mgen.utils.errors import MgenError, check_choice
from mgen.utils.files import write_json, write_tensors, write_text
from mgen.utils.reading import read_json, read_tensors
from tools.less_compute_rows import PLAIN, TRUNKS, Trunk
from tools.less_compute_table import filled, table
from tools.less_compute_time import batch_of, in_turn
from tools.recipe_costs import Remembered

RESULTS, PAGE = Path("docs/experiments/data/less_compute.json"), Path("docs/experiments/less_compute.md")
FORM = "plain form"
PART = 100  # images of a file of features
Row = dict[str, Any]


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("trunks", nargs="*", metavar="TRUNK", help=f"of {', '.join(TRUNKS)}")
    parser.add_argument("--rows", nargs="+", metavar="NAME", help="these and the plain run; default: all")
    parser.add_argument("--images", type=int, default=2000, help="per seed")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--time", action="store_true", help="measure seconds instead of distances")
    parser.add_argument("--rounds", type=int, default=3, help="of --time")
    parser.add_argument(
        "--every", type=int, default=1, help="time every N-th step of runs that keep nothing between steps"
    )
    parser.add_argument("--redo", action="store_true", help="time rows that have seconds again")
    parser.add_argument("--no-form", action="store_true", help="leave the plain form out of --time")
    parser.add_argument("--batch-size", type=int, default=100, help="of sampling for distances")
    parser.add_argument("--work", type=Path, default=Path("runs/less-compute"), help="folder of features")
    parser.add_argument("--out", type=Path, default=RESULTS, help="the file of results")
    parser.add_argument("--render", action="store_true", help="fill the tables of the page")
    parser.add_argument("--page", type=Path, default=PAGE)
    args = parser.parse_args(argv)
    if not args.trunks and not args.render:
        parser.error("give trunks to measure, or --render")
    torch.set_num_threads(1)
    try:
        for trunk in args.trunks:
            check_choice("TRUNK", trunk, TRUNKS)
            for row in args.rows or ():
                check_choice("--rows", row, (PLAIN, *TRUNKS[trunk].rows))
        for trunk in args.trunks:
            names = [PLAIN, *(row for row in TRUNKS[trunk].rows if not args.rows or row in args.rows)]
            results = Results(args.out, trunk, TRUNKS[trunk])
            count_all(results, names)
            if args.time:
                time_all(results, names, rounds=args.rounds, form=not args.no_form, redo=args.redo, every=args.every)
            elif TRUNKS[trunk].trained:
                measure_all(results, names, args.seeds, args.images, args.batch_size, args.work)
        if args.render:
            render(args.out, args.page)
    except MgenError as error:
        parser.error(str(error))
    return 0


class Results:
    """The rows of a trunk in the file of results: `row(name)` is a mapping, `save()` writes the file."""

    def __init__(self, file: Path, name: str, trunk: Trunk) -> None:
        self.file, self.trunk = file, trunk
        self.all: dict[str, dict[str, Row]] = read_json(file) if file.is_file() else {}
        self.rows = self.all.setdefault(name, {})

    def row(self, name: str) -> Row:
        """What is known of a row as it is now; nothing if its settings or the model have changed."""
        facts = {"model": self.trunk.identity, "sampler": given(self.trunk.sampler(name))}
        kept = self.rows.get(name, {})
        if any(kept.get(key) != value for key, value in facts.items()):
            self.rows[name] = {"set": list(self.trunk.rows.get(name, self.trunk.base)), **facts}
        return self.rows[name]

    def save(self) -> None:
        self.all = {name: self.all[name] for name in TRUNKS if name in self.all}
        write_json(self.file, self.all)


def given(sampler: ParallelSampler) -> Row:
    """Settings that are not the default, as JSON gives them back: a new setting leaves those of before as they are."""
    usual = ParallelSampler().settings
    return json.loads(json.dumps({key: value for key, value in sampler.settings.items() if value != usual[key]}))


def count_all(results: Results, names: Iterable[str]) -> None:
    """Add the operations of rows that lack them."""
    pipe = results.trunk.pipe
    for name in names:
        row = results.row(name)
        if "tflops" not in row:
            with Remembered():
                counts = count_run(pipe, results.trunk.sampler(name))
            row["tflops"] = counts.total / 1e12
            row["tflops_by_part"] = {part: value / 1e12 for part, value in counts.flops.items()}
            row["passes"] = counts.passes
            results.save()
            say(f"{name}: {row['tflops']:.4f} TFLOPs")


def say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


# -- distances ---------------------------------------------------------------------------------------------------------


def measure_all(
    results: Results, names: Sequence[str], seeds: Iterable[int], images: int, batch_size: int, work: Path
) -> None:
    """Add the distances of rows that lack them, seed by seed."""
    extractor = make_extractor("fmnist-cnn")
    reference = load_statistics(builtin_file("fmnist-train"), extractor)
    for seed in seeds:
        for name in names:
            row = results.row(name)
            distances = row.setdefault("distances", {}).setdefault(str(images), {})
            if str(seed) in distances:
                continue
            sums = FeatureSums(extractor.length)
            sampler, folder = results.trunk.sampler(name), work / key(row) / str(seed)
            for part in features(results.trunk.pipe, sampler, extractor, seed, images, batch_size, folder):
                sums.update(part)
            distances[str(seed)] = frechet_distance(*sums.finish(), reference.mean, reference.cov)
            results.save()
            say(f"{name}, seed {seed}, {images} images: {distances[str(seed)]:.3f}")


def features(
    pipe: Any, sampler: ParallelSampler, extractor: Extractor, seed: int, images: int, batch_size: int, folder: Path
) -> Iterator[Tensor]:
    """Features (n, F) of the images of a seed, of at most 100 at a time, each part in a file of the folder once it is known."""
    pipe.sampler, usual = sampler, pipe.sampler
    try:
        source = from_model(pipe, name="", count=images, seed=seed, batch_size=batch_size)
        for start in range(0, images, PART):
            rows, file = min(PART, images - start), folder / f"{start:06d}.safetensors"
            kept = read_tensors(file)[0]["features"] if file.is_file() else None
            if kept is None or len(kept) < rows:
                kept = features_of(extractor, source.read(start, start + rows).images).features
                write_tensors(file, {"features": kept})
            yield kept[:rows]
    finally:
        pipe.sampler = usual


def key(row: Row) -> str:
    """The name of a folder for what depends on the model and the sampler of a row."""
    return hashlib.sha256(json.dumps([row["model"], row["sampler"]], sort_keys=True).encode()).hexdigest()[:16]


# -- seconds -----------------------------------------------------------------------------------------------------------


@torch.inference_mode()
def time_all(results: Results, names: Sequence[str], *, rounds: int, form: bool, redo: bool, every: int) -> None:
    """Time the rows that have no seconds, all together, beside the plain run and the plain form."""
    trunk, pipe, batch = results.trunk, results.trunk.pipe, results.trunk.batch_size
    with_form = form and trunk.form is not None
    wanted = "form_seconds" if with_form else "seconds"
    todo = [name for name in names if name != PLAIN and (redo or wanted not in results.row(name))]
    if not todo and wanted in results.row(PLAIN) and not redo:
        return
    pipe.transformer.optimize_layout(2 * batch)
    chosen = {name: (pipe.transformer, trunk.sampler(name)) for name in (PLAIN, *todo)}
    if with_form:
        assert trunk.form is not None
        chosen[FORM] = (trunk.form(pipe.transformer, batch), trunk.sampler(PLAIN))
    keeps = {name for name, (_, sampler) in chosen.items() if sampler.config.reuse or sampler.config.stages}
    strides = {name: 1 if name in keeps else every for name in chosen}
    for generator, sampler in chosen.values():
        next(batch_of(pipe, generator, sampler, batch))  # the first step of a process is slow
    found: dict[str, list[float]] = {name: [] for name in chosen}
    for _ in range(rounds):
        runs = {name: batch_of(pipe, *one, batch, strides[name]) for name, one in chosen.items()}
        lengths = {name: sampler.config.steps for name, (_, sampler) in chosen.items()}
        for name, seconds in in_turn(runs, lengths).items():
            found[name].append(seconds / batch)
        say(", ".join(f"{name} {seconds[-1]:.3f} s" for name, seconds in found.items()))
    for name in (PLAIN, *todo):
        row = results.row(name)
        row["seconds"] = statistics.median(found[name])
        row["time_ratio"] = statistics.median(own / plain for own, plain in zip(found[name], found[PLAIN]))
        if with_form:
            row["form_seconds"] = statistics.median(found[FORM])
            row["form_ratio"] = statistics.median(own / plain for own, plain in zip(found[name], found[FORM]))
        row["timing"] = {"batch": batch, "rounds": rounds, "every": strides[name], "torch": torch.__version__}
    results.save()


# -- the page ----------------------------------------------------------------------------------------------------------


def render(file: Path, page: Path) -> None:
    """Fill the tables of the page; MgenError if there are no results or no page."""
    if not file.is_file() or not page.is_file():
        raise MgenError(
            f"--render needs results and a page: {file} and {page}; measure first, or give --out and --page"
        )
    results: dict[str, dict[str, Row]] = read_json(file)
    tables = {
        name: table({row: rows[row] for row in (PLAIN, *TRUNKS[name].rows) if row in rows})
        for name, rows in results.items()
    }
    write_text(page, filled(page.read_text(encoding="utf-8"), tables))


if __name__ == "__main__":
    raise SystemExit(main())
