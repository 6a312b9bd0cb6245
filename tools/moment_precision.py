"""What is lost when moments of a KL tokenizer are cached in fp16 instead of fp32.

    python tools/moment_precision.py --tokenizer fmnist-mar --data fmnist --num-images 2000

The posterior's means and standard deviations of the images are rounded to fp16 as `mgen cache --dtype fp16` stores them. Reported are the
error of the mean against the posterior's own standard deviation (the noise that training adds anyway), the relative error of the standard
deviation, and the largest and the root mean square difference of the decoded pixels in gray levels of 0 … 255.
"""

import argparse
import json
import sys
from collections.abc import Sequence

import torch

from mgen.cli import run
from mgen.cli.parser import Parser, whole


@torch.inference_mode()
def command(argv: Sequence[str] | None = None) -> None:
    """Measure and print; see --help."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokenizer", default="fmnist-mar", help="a KL tokenizer, by name or folder")
    parser.add_argument("--data", default="fmnist", help="as of mgen cache")
    parser.add_argument("--num-images", type=whole(1), default=2000)
    parser.add_argument("--batch-size", type=whole(1), default=50)
    args = parser.parse_args(argv)
    from mgen.data.images import open_images
    from mgen.pipelines.saved import load_tokenizer
    from mgen.tokenizers.bridge import kl_tokenizer

    tokenizer = load_tokenizer(args.tokenizer)
    kl = kl_tokenizer(tokenizer, "--tokenizer")
    data, _ = open_images(args.data, tokenizer)
    rows = range(0, len(data), max(1, len(data) // args.num_images))[: args.num_images]
    sums = dict.fromkeys(("mean", "noise", "std", "pixels", "images"), 0.0)
    worst = {"mean": 0.0, "pixels": 0.0}
    for first in range(0, len(rows), args.batch_size):
        images = data.__getitems__(rows[first : first + args.batch_size])["image"]
        exact = kl.moments(images)
        rounded = exact.half().float()
        a, b = kl.posterior(exact), kl.posterior(rounded)
        error = (a.mean - b.mean) / a.std
        levels = 127.5 * (kl.decode(kl.tokens(exact, None)) - kl.decode(kl.tokens(rounded, None))).clamp(-2, 2)
        sums["mean"] += float(error.square().mean()) * len(images)
        sums["std"] += float((b.std / a.std - 1).square().mean()) * len(images)
        sums["pixels"] += float(levels.square().mean()) * len(images)
        sums["images"] += len(images)
        worst["mean"] = max(worst["mean"], float(error.abs().max()))
        worst["pixels"] = max(worst["pixels"], float(levels.abs().max()))
    count = sums["images"]
    result = {
        "tokenizer": args.tokenizer,
        "images": int(count),
        "error_of_mean_in_posterior_std_rms": (sums["mean"] / count) ** 0.5,
        "error_of_mean_in_posterior_std_largest": worst["mean"],
        "relative_error_of_std_rms": (sums["std"] / count) ** 0.5,
        "pixel_levels_rms": (sums["pixels"] / count) ** 0.5,
        "pixel_levels_largest": worst["pixels"],
    }
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    sys.exit(run(command))
