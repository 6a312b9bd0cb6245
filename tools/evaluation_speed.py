"""Speed and memory of the evaluation compared with torch-fidelity's own loop, on the same images in one run.

    python tools/evaluation_speed.py --num-images 200 --repeats 3

PNG images of 256 px pass through Inception (random weights unless --inception-weights is given). Reported are images per second of
mgen's `measure`, with features, logits and sums, and of torch-fidelity on the same folder, with statistics and score; the matrix root,
which both compute once, is left out. The two take turns, and the fastest repeat counts. Then a cheap extractor shows how much memory a
pass over N and over 8 N images adds.
"""

import argparse
import json
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from PIL import Image


def random_inception(path: Path) -> Path:
    """A weights file of torch-fidelity's Inception with random weights; like the official one, without num_batches_tracked."""
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    real, load_state = torch.load, FeatureExtractorInceptionV3.load_state_dict
    torch.load, FeatureExtractorInceptionV3.load_state_dict = (lambda *a, **k: {}), (lambda self, state: None)  # type: ignore[assignment]
    try:
        made: Any = FeatureExtractorInceptionV3("inception-v3-compat", ["2048"], feature_extractor_weights_path="none")
    finally:
        torch.load, FeatureExtractorInceptionV3.load_state_dict = real, load_state  # type: ignore[assignment]
    rng = torch.Generator().manual_seed(0)
    state = {
        k: torch.randn(v.shape, generator=rng) * (2 / v[0].numel()) ** 0.5 if v.ndim > 1 else v
        for k, v in made.state_dict().items()
        if "num_batches" not in k
    }
    torch.save(state, path)
    return path


def write_images(folder: Path, count: int, side: int) -> None:
    """Smooth random RGB images as PNG files."""
    rng = torch.Generator().manual_seed(0)
    for i in range(count):
        coarse = torch.rand(1, 3, 8, 8, generator=rng)
        image = torch.nn.functional.interpolate(coarse, (side, side), mode="bicubic").clamp(0, 1)[0]
        array = (image * 255).to(torch.uint8).permute(1, 2, 0).numpy()
        Image.fromarray(array).save(folder / f"{i:06d}_class-{i % 10:04d}.png")


def ours(folder: Path, weights: Path, batch_size: int, kept: dict[str, Any]) -> float:
    from mgen.evaluation.extractors import make_extractor
    from mgen.evaluation.folder_source import from_folder
    from mgen.evaluation.measure import measure
    from mgen.evaluation.protocols import find_protocol
    from mgen.evaluation.scores import class_score, split_of

    extractor = kept.setdefault("extractor", make_extractor("inception", weights=weights))
    start = time.perf_counter()
    source = from_folder(folder)
    measured = measure(source, extractor, batch_size=batch_size, progress=False)
    measured.sums().finish()
    class_score(measured.blocks("logits"), split_of(source.count, find_protocol("torch-fidelity")))
    return time.perf_counter() - start


def theirs(folder: Path, weights: Path, batch_size: int, kept: dict[str, Any]) -> float:
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
    from torch_fidelity.metric_fid import fid_features_to_statistics
    from torch_fidelity.metric_isc import isc_features_to_metric
    from torch_fidelity.utils import get_featuresdict_from_dataset, prepare_input_from_descriptor

    layers = ["2048", "logits_unbiased"]
    if "model" not in kept:
        kept["model"] = FeatureExtractorInceptionV3(
            "inception-v3-compat", layers, feature_extractor_weights_path=str(weights)
        )
    options = {"samples_find_deep": True, "verbose": False, "cache": False, "cuda": False}
    start = time.perf_counter()
    images = prepare_input_from_descriptor({"input": str(folder)}, **options)
    features = get_featuresdict_from_dataset(images, kept["model"], batch_size, False, False, False)
    fid_features_to_statistics(features["2048"])
    isc_features_to_metric(features["logits_unbiased"], splits=min(10, len(features["2048"])))
    return time.perf_counter() - start


MEMORY = """
import resource, sys, torch
sys.path.insert(0, {root!r})
from mgen.evaluation.extractors import make_extractor
from mgen.evaluation.measure import measure
from mgen.evaluation.protocols import find_protocol
from mgen.evaluation.scores import class_score, split_of
from mgen.evaluation.source import Batch, Source
torch.set_num_threads(1)
images = torch.randint(0, 256, (100, 1, 32, 32), dtype=torch.uint8)
read = lambda a, b: Batch(images=images[: b - a].clone(), labels=torch.zeros(b - a, dtype=torch.int64))
extractor = make_extractor("fmnist-cnn")
def run(count):
    measured = measure(Source(count=count, about={{}}, read=read), extractor, examples=0, progress=False)
    measured.sums().finish(), class_score(measured.blocks("logits"), split_of(count, find_protocol("fmnist-cnn")))
run(500)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
run({count})
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
"""


def added_memory(count: int) -> float:
    """MiB that a pass over `count` small images adds to the peak of a pass over 500, in a separate process."""
    code = MEMORY.format(root=str(Path(__file__).resolve().parents[1]), count=count)
    return float(subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num-images", type=int, default=200)
    parser.add_argument("--image-size", type=int, default=256)
    parser.add_argument("--batch-size", type=int, default=50)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--memory-images", type=int, default=4000, help="N of the memory test")
    parser.add_argument("--inception-weights", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    best: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "images"
        folder.mkdir()
        write_images(folder, args.num_images, args.image_size)
        weights = args.inception_weights or random_inception(Path(name) / "inception.pth")
        kept: dict[str, Any] = {}
        for _ in range(args.repeats):
            for way in (ours, theirs):
                seconds = way(folder, weights, args.batch_size, kept)
                best[way.__name__] = min(best.get(way.__name__, float("inf")), seconds)
    rates = {way: args.num_images / seconds for way, seconds in best.items()}
    memory = {count: added_memory(count) for count in (args.memory_images, 8 * args.memory_images)}
    outcome = {
        "images_per_second": rates,
        "ratio": rates["ours"] / rates["theirs"],
        "added_mebibytes_by_images": memory,
        "threads": args.threads,
        "machine": platform.processor() or platform.machine(),
    }
    print(json.dumps(outcome, indent=2))


if __name__ == "__main__":
    main()
