"""Quality and time of a generator with a diffusion head, by sampler of the head (chain) and decoding steps.

    python tools/chain_table.py --model fmnist-mar --num-images 500 --jobs 2 --out docs/chains

Every cell uses the same seeds, the model's guidance and, for the ancestral chain, its temperature, and is compared with Fashion-MNIST's
training images in features of fmnist-cnn. Finished cells (OUT.json) are kept, so an interrupted run resumes. Seconds are wall seconds
per image of one job on one thread, in batches of 100, with `--jobs` jobs in parallel.
"""

import argparse
import multiprocessing
from pathlib import Path
from typing import Any

import torch

from mgen.evaluation.evaluate import result
from mgen.evaluation.extractors import make_extractor
from mgen.evaluation.measure import measure
from mgen.evaluation.protocols import find_protocol
from mgen.evaluation.sources import from_model
from mgen.evaluation.statistics import builtin_file, load_statistics
from mgen.pipelines.pipeline import load
from mgen.utils.files import write_json, write_text
from mgen.utils.reading import read_json

CHAINS = (("ancestral", 100), ("ancestral", 50), ("ancestral", 25), ("ddim", 50), ("ddim", 25))
CHAINS += (("dpm-solver++", 20), ("dpm-solver++", 10))
STEPS = (8, 16, 32, 64)
DISTANCE, ACCURACY = "Fréchet distance (fmnist-cnn)", "class accuracy (fmnist-classifier)"


def cell(task: tuple[str, int, str, int, int]) -> tuple[str, dict[str, Any]]:
    """Sample and measure one setting."""
    model, count, chain, head_steps, steps = task
    torch.set_num_threads(1)
    pipe = load(model).optimize()
    quiet = {} if chain == "ancestral" else {"temperature": 1.0}  # the other chains add no noise to scale
    pipe.sampler = pipe.sampler.override(steps=steps, chain=chain, head_steps=head_steps, **quiet)
    extractor, classifier = make_extractor("fmnist-cnn"), make_extractor("fmnist-classifier")
    batch = min(100, count)
    pipe(list(range(10)), seed=1, progress=False)  # warm
    source = from_model(pipe, name=model, count=count, batch_size=batch, seed=0)
    measured = measure(source, extractor, classifier=classifier)
    reference = load_statistics(builtin_file("fmnist-train"), extractor)
    outcome = result(
        measured, source, extractor, protocol=find_protocol("fmnist-cnn"), reference=reference, classifier=classifier
    )
    metrics, seconds = outcome["metrics"], measured.total("seconds").item() / count
    found = {"distance": metrics[DISTANCE], "accuracy": metrics[ACCURACY], "seconds_per_image": seconds}
    return f"{chain} {head_steps} × {steps}", found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="fmnist-mar")
    parser.add_argument("--num-images", type=int, default=500)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--out", default="chains", help="name of the two files, without .json and .md")
    args = parser.parse_args()
    file = Path(f"{args.out}.json")
    about = {"model": args.model, "num_images": args.num_images, "jobs": args.jobs, "torch": torch.__version__}
    cells: dict[str, Any] = read_json(file)["cells"] if file.is_file() and read_json(file)["about"] == about else {}
    tasks = [(args.model, args.num_images, c, n, s) for c, n in CHAINS for s in STEPS]
    tasks = [task for task in tasks if f"{task[2]} {task[3]} × {task[4]}" not in cells]
    with multiprocessing.get_context("spawn").Pool(args.jobs) as pool:
        for name, found in pool.imap_unordered(cell, tasks):
            cells[name] = found
            write_json(file, {"about": about, "cells": cells})
            print(name, found, flush=True)
    write_text(f"{args.out}.md", table(cells))
    print(table(cells))


def table(cells: dict[str, Any]) -> str:
    """Markdown with a row for each chain: distance and seconds per image for each number of decoding steps."""
    lines = ["| head chain | " + " | ".join(f"{s} steps" for s in STEPS) + " |", "|---" * (1 + len(STEPS)) + "|"]
    for chain, count in CHAINS:
        found = [cells[f"{chain} {count} × {s}"] for s in STEPS]
        texts = [f"{f['distance']:.2f} · {f['seconds_per_image']:.3f} s" for f in found]
        lines.append(f"| {chain} {count} | " + " | ".join(texts) + " |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
