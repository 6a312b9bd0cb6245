"""Add a trained demo to mgen/zoo/embedded: weights, recipe, logs and measured metrics.

    python tools/embed_demo.py fmnist-maskgit --tokenizer runs/fmnist-vqgan-decoder/model --generator runs/fmnist-maskgit/model \\
        --extractor runs/fmnist-cnn/model --classifier runs/fmnist-classifier/model --logs runs \\
        sampler.guidance.end=3.5 sampler.confidence_temperature.start=6
    python tools/embed_demo.py fmnist-mar --tokenizer runs/fmnist-kl/model --generator runs/fmnist-mar/model --logs runs

Every number in measured.json comes from a run of `mgen eval` made here and is stored with its command.
"""

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from mgen.evaluation.cnn import ImageClassifier
from mgen.pipelines.pipeline import MaskedPipeline, load
from mgen.pipelines.saved import load_tokenizer
from mgen.samplers import ParallelSampler
from mgen.utils.config import apply_overrides
from mgen.utils.files import atomic_folder, write_json
from mgen.utils.folders import embedded, part
from mgen.utils.reading import read_json

# Description of each demo, its training runs whose settings and logs are copied (the generator's last), and the larger number of
# samples to measure.
DEMOS = {
    "fmnist-maskgit": (
        "MaskGIT on 8×8 FSQ tokens of Fashion-MNIST, 32×32 gray, 10 classes",
        ("fmnist-vqgan", "fmnist-vqgan-decoder", "fmnist-maskgit"),
        2000,
    ),
    "fmnist-mar": (
        "MAR on 8×8 KL tokens of 4 numbers, of Fashion-MNIST, 32×32 gray, 10 classes",
        ("fmnist-kl", "fmnist-mar"),
        1000,
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=DEMOS)
    parser.add_argument("--tokenizer", required=True)
    parser.add_argument("--generator", required=True, help="pipeline folder of the trained generator")
    parser.add_argument("--extractor", help="trained fmnist-cnn, to embed it again")
    parser.add_argument("--classifier", help="trained fmnist-classifier, to embed it again")
    parser.add_argument("--logs", required=True, help="folder with the runs' metrics.jsonl and config.json")
    parser.add_argument(
        "overrides", nargs="*", metavar="sampler.key=value", help="settings other than the trained ones"
    )
    args = parser.parse_intermixed_args()
    runs, (about, trained, most) = Path(args.logs), DEMOS[args.name]
    embed_classifiers(args, runs)
    pipe = load(args.generator)
    own = {key: value for key, value in pipe.sampler.config.items() if not key.startswith("_")}
    settings = apply_overrides({"sampler": own}, args.overrides)["sampler"]
    sampler = ParallelSampler.suited(pipe.transformer, settings)
    pipe = MaskedPipeline(
        tokenizer=load_tokenizer(args.tokenizer),
        transformer=pipe.transformer,
        sampler=sampler,
        class_names=pipe.config.class_names,
    )
    pipe.transformer.half()  # stored in fp16, loaded as fp32; the metrics below are of the stored weights
    with atomic_folder(embedded(args.name)) as folder:
        pipe.save_pretrained(folder)
        for name in trained:
            copy_logs(runs / name, folder / "training" / name)
        shutil.copy(part("configs") / "train" / f"{trained[-1]}.yaml", folder / "training")
    measured: dict[str, Any] = {
        "about": about,
        "parameters": {
            "generator": sum(p.numel() for p in pipe.transformer.parameters()),
            "tokenizer": sum(p.numel() for p in pipe.tokenizer.parameters()),
        },
        "torch": torch.__version__,
    }
    evaluations = {
        "test_images": ["fmnist", "--split", "test"],
        "reconstructions_test": ["fmnist", "--split", "test", "--reconstruction", args.name],
        **{f"samples_{n}": [args.name, "--num-images", str(n)] for n in (200, 500, most)},
    }
    for name, arguments in evaluations.items():
        outcome = evaluate(arguments)
        measured[name] = {"command": outcome["command"], **outcome["metrics"]}
    write_json(embedded(args.name) / "measured.json", measured)
    print(json.dumps(measured, indent=2, ensure_ascii=False))


def embed_classifiers(args: argparse.Namespace, runs: Path) -> None:
    """Embed extractor and classifier with their accuracies, and the extractor's statistics of the data."""
    for name, source in (("fmnist-cnn", args.extractor), ("fmnist-classifier", args.classifier)):
        if source:
            with atomic_folder(embedded(name)) as folder:
                ImageClassifier.from_pretrained(source).save_pretrained(folder)
                copy_logs(runs / name, folder)
                last = json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1])
                role = "for features" if name == "fmnist-cnn" else "for class accuracy"
                about = f"classifier of Fashion-MNIST, {role}; test accuracy {last['val_accuracy']:.2%}"
                write_json(folder / "measured.json", {"about": about, "test_accuracy": last["val_accuracy"]})
    for split in ("train", "test") if args.extractor else ():
        file = str(embedded("fmnist-cnn") / f"statistics-{split}.safetensors")
        line = ["stats", "fmnist", "--split", split, "--features", "10000", "--out", file]
        subprocess.run([sys.executable, "-m", "mgen", *line], check=True)


def copy_logs(run: Path, folder: Path) -> None:
    """Copy the log and the settings of a training run."""
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copy(run / "metrics.jsonl", folder / "metrics.jsonl")
    shutil.copy(run / "config.json", folder / "training.json")


def evaluate(arguments: list[str]) -> dict[str, Any]:
    """The result of mgen eval with these arguments, with the command."""
    with tempfile.TemporaryDirectory() as out:
        subprocess.run([sys.executable, "-m", "mgen", "eval", *arguments, "--out", out], check=True)
        outcome = read_json(Path(out) / "result.json")
    outcome["command"] = " ".join(["mgen eval", *arguments])
    return outcome


if __name__ == "__main__":
    main()
