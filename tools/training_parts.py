"""Parts of a training step in two forms, which take turns on one thread: attention, dropout, and the update of the weights.

    python tools/training_parts.py --repeats 4 --out parts.json

Attention: forward and backward pass of the fused kernel (scaled_dot_product_attention) over those of explicit attention. Dropout: the
same of torch's over those of mgen.nn.dropout, in an MLP of MAR-B's decoder. Update: AdamW and
the averaged weights in the form of earlier versions over today's (mgen/training/update.py). The fastest repeat counts, in CPU seconds.
"""

import argparse
import itertools
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mgen.cli import run
from mgen.cli.parser import Parser, whole
from mgen.nn.attention import explicit_with_gradient
from mgen.nn.dropout import dropout
from mgen.training.config import EMAConfig, OptimConfig
from mgen.training.update import AdamW, Average, Numerics
from mgen.utils.files import check_writable, write_json

# Images, heads, tokens, numbers of a head: the embedded models, encoder and decoder of MAR-B, MaskGIT-L, and 576 tokens.
SHAPES = {
    "fmnist": (64, 8, 49, 32),
    "MAR-B encoder": (4, 12, 100, 64),
    "MaskGIT-L": (4, 8, 257, 96),
    "MAR-B decoder": (4, 12, 320, 64),
    "576 tokens": (2, 12, 576, 64),
}


def in_turns(forms: Mapping[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """CPU seconds of the fastest repeat of each form."""
    best = dict.fromkeys(forms, float("inf"))
    for _ in range(repeats):
        for name, form in forms.items():
            start = time.process_time()
            form()
            best[name] = min(best[name], time.process_time() - start)
    return best


def fused(q: Tensor, k: Tensor, v: Tensor, rate: float) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v, dropout_p=rate)


def attention(shape: tuple[int, int, int, int], dtype: torch.dtype, rate: float, repeats: int) -> dict[str, float]:
    b, h, length, d = shape
    x = torch.randn(b, length, 3, h, d).to(dtype).requires_grad_()

    def run(form: Callable[[Tensor, Tensor, Tensor, float], Tensor]) -> None:
        q, k, v = x.permute(2, 0, 3, 1, 4).unbind(0)
        form(q, k, v, rate).transpose(1, 2).flatten(2).sum().backward()

    return in_turns({"explicit": lambda: run(explicit_with_gradient), "fused": lambda: run(fused)}, repeats)


def dropouts(dtype: torch.dtype, repeats: int) -> dict[str, float]:
    x = torch.randn(4, 320, 3072).to(dtype).requires_grad_()

    def run(form: Callable[[Tensor, float, bool], Tensor]) -> None:
        form(x, 0.1, True).sum().backward()

    return in_turns({"ours": lambda: run(dropout), "torch's": lambda: run(F.dropout)}, repeats)


def update(version: Numerics, blocks: int) -> dict[str, Callable[[], object]]:
    """A step of AdamW and of the averages, of so many MLPs of a block of width 768."""
    weights = [nn.Parameter(torch.randn(shape)) for _ in range(blocks) for shape in ((3072, 768), (768, 3072))]
    adamw = AdamW([{"params": weights, "weight_decay": 0.02}], OptimConfig(), torch.device("cpu"))
    average = Average(weights, EMAConfig())
    adamw.use_numerics(version)
    average.numerics = version
    for weight in weights:
        weight.grad = torch.randn_like(weight)
    return {f"AdamW {version}": adamw.step, f"averages {version}": lambda: average.step(weights)}


def command(argv: Sequence[str] | None = None) -> None:
    """Measure and print; see --help."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=whole(1), default=4)
    parser.add_argument("--blocks", type=whole(1), default=6, help="MLPs of width 768 that are updated")
    parser.add_argument("--out", type=Path, metavar="FILE")
    args = parser.parse_args(argv)
    if args.out is not None:
        check_writable(args.out.parent)
    torch.set_num_threads(1)
    found: dict[str, float] = {}
    for (name, shape), dtype, rate in itertools.product(SHAPES.items(), (torch.bfloat16, torch.float32), (0.0, 0.1)):
        took = attention(shape, dtype, rate, args.repeats)
        found[f"{name}, {str(dtype)[6:]}, dropout {rate}"] = took["fused"] / took["explicit"]
    for dtype in (torch.bfloat16, torch.float32):
        took = dropouts(dtype, args.repeats)
        found[f"dropout, {str(dtype)[6:]}"] = took["torch's"] / took["ours"]
    took = in_turns({**update(1, args.blocks), **update(2, args.blocks)}, args.repeats)
    for part in ("AdamW", "averages"):
        found[part] = took[f"{part} 1"] / took[f"{part} 2"]
    for name, ratio in found.items():
        print(f"{name:45} {ratio:.2f}x")
    if args.out is not None:
        write_json(args.out, found)


if __name__ == "__main__":
    sys.exit(run(command))
