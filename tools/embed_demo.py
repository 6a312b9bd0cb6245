"""Put the trained demo under mgen/embedded: weights, recipe, logs and measured figures.

    python tools/embed_demo.py --tokenizer runs/fmnist-vqgan-decoder/model --generator runs/fmnist-maskgit/model \\
        --extractor runs/fmnist-cnn/model --judge runs/fmnist-judge/model --logs runs

Every figure in measured.json comes from `mgen eval` runs that this script makes, with the command beside it.
"""

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

from mgen._folders import embedded, part
from mgen.evaluation.cnn import FashionCNN
from mgen.files import atomic_folder, read_json, write_json
from mgen.pipeline import MaskedPipeline, load, load_tokenizer

EVALUATIONS = {
    "test_images": ["fmnist", "--split", "test"],
    "reconstructions_test": ["fmnist", "--split", "test", "--reconstruction", "fmnist-maskgit"],
    "samples_500": ["fmnist-maskgit", "--num-images", "500"],
    "samples_2000": ["fmnist-maskgit", "--num-images", "2000"],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokenizer", required=True)
    parser.add_argument("--generator", required=True, help="pipeline folder of the trained generator")
    parser.add_argument("--extractor", required=True)
    parser.add_argument("--judge", required=True)
    parser.add_argument("--logs", required=True, help="folder with the runs' metrics.jsonl and config.json")
    parser.add_argument(
        "--guidance", type=float, help="end of the guidance curve, if the trained pipeline's is not the best"
    )
    parser.add_argument("--confidence-temperature", type=float, help="start of the confidence temperature, likewise")
    args = parser.parse_args()
    runs = Path(args.logs)
    for name, source in (("fmnist-cnn", args.extractor), ("fmnist-judge", args.judge)):
        if Path(source).resolve() != embedded(name).resolve():
            model = FashionCNN.from_pretrained(source)
            with atomic_folder(embedded(name)) as folder:
                model.save_pretrained(folder)
                copy_logs(runs / name, folder)
    for split in ("train", "test"):
        file = str(embedded("fmnist-cnn") / f"statistics-{split}.safetensors")
        evaluate(["fmnist", "--split", split, "--reference", "none", "--judge", "none", "--save-statistics", file])
    pipe = load(args.generator)
    sampler = pipe.sampler.override(guidance=args.guidance)
    if args.confidence_temperature is not None:
        curve = {**sampler.config.confidence_temperature, "start": args.confidence_temperature}
        sampler = sampler.override(confidence_temperature=curve)
    pipe = MaskedPipeline(tokenizer=load_tokenizer(args.tokenizer), generator=pipe.generator, sampler=sampler)
    pipe.generator.half()  # stored in half the bytes; loading makes fp32 of it, and the figures below are those of what is stored
    with atomic_folder(embedded("fmnist-maskgit")) as folder:
        pipe.save_pretrained(folder)
        for name in ("fmnist-vqgan", "fmnist-vqgan-decoder", "fmnist-maskgit"):
            copy_logs(runs / name, folder / "training" / name)
        shutil.copy(part("configs") / "train" / "fmnist-maskgit.yaml", folder / "training")
    measured: dict[str, object] = {
        "about": "MaskGIT on 8×8 FSQ tokens of Fashion-MNIST, 32×32 grey, 10 classes",
        "parameters": {
            "generator": sum(p.numel() for p in pipe.generator.parameters()),
            "tokenizer": sum(p.numel() for p in pipe.tokenizer.parameters()),
        },
        "torch": torch.__version__,
    }
    for name, arguments in EVALUATIONS.items():
        outcome = evaluate(arguments)
        measured[name] = {"command": outcome["command"], **outcome["metrics"]}
    write_json(embedded("fmnist-maskgit") / "measured.json", measured)
    for name in ("fmnist-cnn", "fmnist-judge"):
        last = json.loads((embedded(name) / "metrics.jsonl").read_text().splitlines()[-1])
        role = "extractor" if name == "fmnist-cnn" else "independent judge of classes"
        about = f"classifier of Fashion-MNIST, {role}; test accuracy {last['val_accuracy']:.2%}"
        write_json(embedded(name) / "measured.json", {"about": about, "test_accuracy": last["val_accuracy"]})
    print(json.dumps(measured, indent=2, ensure_ascii=False))


def copy_logs(run: Path, folder: Path) -> None:
    """The log and the settings of a training run."""
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copy(run / "metrics.jsonl", folder / "metrics.jsonl")
    shutil.copy(run / "config.json", folder / "training.json")


def evaluate(arguments: list[str]) -> dict:
    with tempfile.TemporaryDirectory() as out:
        subprocess.run([sys.executable, "-m", "mgen", "eval", *arguments, "--out", out], check=True)
        outcome = read_json(Path(out) / "result.json")
    outcome["command"] = " ".join(["mgen eval", *arguments])
    return outcome


if __name__ == "__main__":
    main()
