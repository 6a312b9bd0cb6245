"""One table of small models: quality, time and operations of an image, at what number of parameters and training images.

    python tools/frontier.py maskgit=runs/fmnist-maskgit mar=runs/fmnist-mar --num-images 2000 --out docs/experiments/data/frontier

Every NAME=FOLDER is a run of `mgen train` (its `model` is taken), a folder of a pipeline, or an embedded model. All draw the same number of
images from the same seed with the sampler that was saved with them, on one thread, and are compared with Fashion-MNIST's training images
in features of fmnist-cnn, as `mgen eval` does. In the same run:

* seconds: CPU time of sampling and decoding, per image, in batches of --batch-size; other jobs on the machine change it little.
* TFLOPs per image, decoding included, and passes of the trunk, as `mgen bench` counts them.
* the tokenizer's floor: test images through the tokenizer of the model, compared with the originals (`mgen eval --reconstruction`).

OUT.json is written after every model. A model whose files, sampler and settings are those of its row is skipped; --redo measures it anew.
"""

import argparse
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from mgen.bench.flops import count_run
from mgen.data.images import open_images
from mgen.evaluation.evaluate import result
from mgen.evaluation.extractors import Extractor, make_extractor
from mgen.evaluation.measure import measure
from mgen.evaluation.protocols import find_protocol
from mgen.evaluation.reconstruction import distance_name, reconstruction_metrics, reconstructions
from mgen.evaluation.source import Batch, Source
from mgen.evaluation.sources import from_model
from mgen.evaluation.statistics import builtin_file, load_statistics
from mgen.pipelines.pipeline import MaskedPipeline, load
from mgen.reports.training import read_training
from mgen.utils.errors import MgenError
from mgen.utils.files import write_json, write_text
from mgen.utils.reading import read_json
from mgen.zoo import resolve
from mgen.zoo.identity import identity
from mgen.zoo.trainings import find_training, is_training

DISTANCE, ACCURACY = "Fréchet distance (fmnist-cnn)", "class accuracy (fmnist-classifier)"
Row = dict[str, Any]


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", metavar="NAME=FOLDER")
    parser.add_argument("--num-images", type=int, default=2000)
    parser.add_argument("--batch-size", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--data-path", help="folder of Fashion-MNIST's files, for the tokenizer's floor")
    parser.add_argument("--redo", action="store_true", help="measure the given models anew")
    parser.add_argument("--out", default="frontier", help="name of the two files, without .json and .md")
    args = parser.parse_args(argv)
    models = {}
    for given in args.models:
        name, found, folder = given.partition("=")
        if not (name and found and folder):
            parser.error(f"{given!r}: expected NAME=FOLDER")
        models[name] = Path(folder)
    about = {"num_images": args.num_images, "batch_size": args.batch_size, "seed": args.seed}
    try:
        run(models, about=about, out=args.out, redo=args.redo, data_path=args.data_path)
    except MgenError as error:
        parser.error(str(error))
    return 0


def run(models: dict[str, Path], *, about: dict[str, int], out: str, redo: bool, data_path: str | None) -> None:
    """Measure what is not measured yet; rows of models that are not given now stay as they are."""
    file, threads = Path(f"{out}.json"), torch.get_num_threads()
    kept = read_json(file) if file.is_file() else {"about": about, "rows": {}}
    if kept["about"] != about:
        raise MgenError(f"{file} was made with {kept['about']}, not with {about}: use the same, or another --out")
    rows: dict[str, Row] = kept["rows"]
    known = {name: of_model(folder) for name, folder in models.items()}  # before hours of work, all of them
    torch.set_num_threads(1)
    try:
        for name in tqdm(known, unit="model", desc="models"):
            pipe, facts = known[name]
            if not redo and name in rows and all(rows[name].get(key) == value for key, value in facts.items()):
                tqdm.write(f"{name}: measured before")
                continue
            rows[name] = facts | measured_row(pipe, name, about, floors(rows, facts), data_path)
            write_json(file, {"about": about, "rows": rows})
            tqdm.write(line(name, rows[name]))
    finally:
        torch.set_num_threads(threads)
    write_text(f"{out}.md", table(rows))


def of_model(folder: Path) -> tuple[MaskedPipeline, Row]:
    """The pipeline of a run or a folder, and what it is before anything is measured."""
    model = folder / "model" if (folder / "model").is_dir() else folder
    pipe = load(model)
    images = None
    if is_training(folder):
        training = read_training(find_training(folder), str(folder))
        images = round(training.steps * training.batch)
    tokens = pipe.transformer.tokens
    return pipe, {
        "model": identity(resolve(model)).model_sha256,
        "tokenizer": pipe.tokenizer.fingerprint(),
        "sampler": pipe.sampler.settings,
        "parameters": sum(p.numel() for p in pipe.transformer.parameters()),
        "tokens": tokens.length,
        "kind": tokens.kind,
        "training_images": images,
    }


def floors(rows: dict[str, Row], facts: Row) -> Row | None:
    """The floor of the same tokenizer in another row."""
    same = [row["floor"] for row in rows.values() if row["tokenizer"] == facts["tokenizer"]]
    return same[0] if same else None


def measured_row(
    pipe: MaskedPipeline, name: str, about: dict[str, int], floor: Row | None, data_path: str | None
) -> Row:
    """What is measured of a model; `floor` if its tokenizer has been measured."""
    counts = count_run(pipe, pipe.sampler)
    floor = floor or floor_of(pipe, about, data_path)
    pipe = pipe.optimize()
    pipe(
        list(range(min(10, pipe.transformer.num_classes))), seed=1, progress=False
    )  # the first batch of a process is slow
    count, extractor, classifier = (
        about["num_images"],
        make_extractor("fmnist-cnn"),
        make_extractor("fmnist-classifier"),
    )
    batch = min(about["batch_size"], count)
    source = timed(from_model(pipe, name=name, count=count, batch_size=batch, seed=about["seed"]))
    measured = measure(source, extractor, classifier=classifier, batch_size=batch)
    reference = load_statistics(builtin_file("fmnist-train"), extractor)
    protocol = replace(find_protocol("fmnist-cnn"), neighbors=0, kid=0)  # the table has no metrics of single images
    outcome = result(measured, source, extractor, protocol=protocol, reference=reference, classifier=classifier)
    return {
        "distance": outcome["metrics"][DISTANCE],
        "accuracy": outcome["metrics"].get(ACCURACY),
        "cpu_seconds": measured.total("cpu").item() / count,
        "tflops": counts.total / 1e12,
        "tflops_by_part": {part: value / 1e12 for part, value in counts.flops.items()},
        "passes": counts.passes,
        "floor": floor,
        "torch": torch.__version__,
    }


def timed(source: Source) -> Source:
    """The source, counting the CPU seconds of every batch."""

    def read(start: int, stop: int, inner: Callable[[int, int], Batch] = source.read) -> Batch:
        began = time.process_time()
        batch = inner(start, stop)
        batch.totals["cpu"] = torch.tensor([time.process_time() - began], dtype=torch.float64)
        return batch

    return replace(source, read=read)


def floor_of(pipe: MaskedPipeline, about: dict[str, int], data_path: str | None) -> Row:
    """Test images through the tokenizer, compared with the originals."""
    data, title = open_images("fmnist", pipe.tokenizer, path=data_path, split="test")
    rows = range(min(about["num_images"], len(data)))
    extractor: Extractor = make_extractor("fmnist-cnn")
    source = reconstructions(data, pipe.tokenizer, name=title, rows=rows)
    measured = measure(source, extractor)
    metrics = reconstruction_metrics(measured, source, extractor)
    return {
        "images": len(rows),
        "distance": metrics[distance_name(extractor, measured.count)],
        "psnr": metrics["PSNR in dB, mean over images"],
    }


COLUMNS = (
    ("model", "tokens", "parameters, M", "training images", "passes per image")
    + ("Fréchet distance (fmnist-cnn)", "class accuracy", "CPU seconds per image", "TFLOPs per image")
    + ("tokenizer's floor: distance", "PSNR, dB")
)


def line(name: str, row: Row) -> str:
    """A row of the table."""
    full, cached = row["passes"]["full"], row["passes"]["cached"]
    cells = [
        name,
        f"{row['tokens']} {'ids' if row['kind'] == 'index' else row['kind']}",
        f"{row['parameters'] / 1e6:.2f}",
        "–" if row["training_images"] is None else f"{row['training_images']:,}",
        f"{full} + {cached}" if cached else f"{full}",
        f"{row['distance']:.2f}",
        "–" if row["accuracy"] is None else f"{row['accuracy']:.3f}",
        f"{row['cpu_seconds']:.3f}",
        f"{row['tflops']:.4f}",
        f"{row['floor']['distance']:.2f}",
        f"{row['floor']['psnr']:.1f}",
    ]
    return "| " + " | ".join(cells) + " |"


def table(rows: dict[str, Row]) -> str:
    """Markdown, the smallest distance first."""
    order = sorted(rows, key=lambda name: rows[name]["distance"])
    head = ["| " + " | ".join(COLUMNS) + " |", "|---" * len(COLUMNS) + "|"]
    return "\n".join(head + [line(name, rows[name]) for name in order]) + "\n"


if __name__ == "__main__":
    raise SystemExit(main())
