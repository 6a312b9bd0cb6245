"""Comparison of levels for a KL tokenizer's latents: how many, of which form, over which range (see mgen/nn/levels.py).

Notation: N images, B of a batch, L tokens of C numbers each.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor
from tqdm import tqdm

from mgen.data import ImageData
from mgen.evaluation.extractors import Extractor
from mgen.evaluation.frechet import frechet_distance
from mgen.evaluation.pixels import psnr, ssim
from mgen.evaluation.reconstruction import count_ids, entropy, posterior_noise
from mgen.evaluation.statistics import FeatureSums
from mgen.nn.levels import FORMS, best_range, dequantize, gaussian_levels, quantize
from mgen.pipelines.pixels import to_uint8
from mgen.tokenizers.kl import KLTokenizer
from mgen.utils.markdown import words

SPAN = 3.0  # of the levels, see mgen.nn.levels


@dataclass(kw_only=True)
class LevelRow:
    """One choice of levels and its cost. `levels` is None for unquantized latents.

    Attributes:
        range: r of [-r, r]. squared_error: mean over scaled latents. entropy: bits per number, mean over channels.
        outside: share of the numbers outside the range. distance: Fréchet distance to the originals.
    """

    levels: int | None = None
    form: str = ""
    range: float | None = None
    squared_error: float = 0.0
    entropy: float | None = None
    outside: float | None = None
    psnr: float = 0.0
    ssim: float = 0.0
    distance: float = 0.0


class LevelSums:
    """Running sums behind one row."""

    def __init__(self, length: int, row: LevelRow) -> None:
        self.row, self.sums, self.used, self.numbers = row, FeatureSums(length), torch.zeros(1), 0
        if row.levels is not None and row.range is not None:
            self.values = gaussian_levels(row.levels, span=SPAN, form=row.form)[0]
            self.range = {"low": -row.range, "high": row.range, "span": SPAN}

    def apply(self, tokens: Tensor) -> Tensor:
        """Quantize and dequantize tokens (B, L, C), and count what is lost."""
        if self.row.levels is None or self.row.range is None:
            return tokens
        values = self.values.to(tokens.device)
        ids = quantize(tokens, values, **self.range)
        self.used = self.used + count_ids(ids, self.row.levels)
        out = dequantize(ids, values, **self.range)
        self.row.squared_error += (out - tokens).double().square().sum().item()
        self.row.outside = (self.row.outside or 0) + (tokens.abs() > self.row.range).sum().item()
        self.numbers += tokens.numel()
        return out

    def update(self, truth: Tensor, images: Tensor, features: Tensor) -> None:
        """Add originals and reconstructions, uint8 (B, C, H, W), and features (B, F) of the reconstructions."""
        self.sums.update(features)
        self.row.psnr += psnr(truth, images).sum().item()
        self.row.ssim += ssim(truth, images).sum().item()

    def finish(self, originals: FeatureSums) -> LevelRow:
        """The row, compared with the features of the originals."""
        row = self.row
        row.psnr, row.ssim = row.psnr / self.sums.count, row.ssim / self.sums.count
        row.distance = frechet_distance(*self.sums.finish(), *originals.finish())
        if row.outside is not None:
            row.entropy, row.outside = entropy(self.used), row.outside / self.numbers
            row.squared_error /= self.numbers
        return row


@torch.inference_mode()
def compare_levels(
    dataset: ImageData,
    tokenizer: KLTokenizer,
    extractor: Extractor,
    *,
    rows: Sequence[int],
    batch_size: int,
    levels: Sequence[int],
    ranges: Sequence[float | str],
    posterior: str,
    seed: int,
) -> list[LevelRow]:
    """Every number of levels × form × range on the images `rows`, which are encoded once. The first row has no levels.

    A range is r of [-r, r], or "best", see mgen.nn.levels.best_range.
    """
    choices = [LevelSums(extractor.length, LevelRow())]
    for number, form, wanted in product(levels, FORMS, ranges):
        r = best_range(number, span=SPAN, form=form) if wanted == "best" else float(wanted)
        choices.append(LevelSums(extractor.length, LevelRow(levels=number, form=form, range=r)))
    originals = FeatureSums(extractor.length)
    with tqdm(total=len(rows), unit="img", desc="comparing levels", delay=1) as bar:
        for start in range(0, len(rows), batch_size):
            indices = rows[start : start + batch_size]
            images = dataset.__getitems__(indices)["image"]
            noise = posterior_noise(tokenizer, posterior, seed, indices)
            tokens, truth = tokenizer.encode(images.to(tokenizer.device), **noise), to_uint8(images)
            originals.update(extractor(truth).features)
            for choice in choices:
                made = to_uint8(tokenizer.decode(choice.apply(tokens))).cpu()
                choice.update(truth, made, extractor(made).features)
            bar.update(len(images))
    return [choice.finish(originals) for choice in choices]


def levels_markdown(rows: Sequence[LevelRow], *, title: str, notes: Sequence[str], distance: str) -> str:
    """The comparison in Markdown, with how it was made."""
    head = [
        "levels",
        "form",
        "range",
        "squared error",
        "entropy, bits/number",
        "outside, %",
        "PSNR, dB",
        "SSIM",
        distance,
    ]
    lines = ["# Levels", "", f"    {' '.join(title.split())}", "", *(f"{words(note)}  " for note in notes), ""]
    lines += ["**What the latents lose by levels**: the first row has none", ""]
    lines += ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for row in rows:
        cells = ["none", "", "", "0", "", ""]
        if row.levels is not None:
            cells = [str(row.levels), row.form, f"±{row.range:.2f}", f"{row.squared_error:.2e}"]
            cells += [f"{row.entropy:.2f}", f"{100 * (row.outside or 0):.2f}"]
        cells += [f"{row.psnr:.2f}", f"{row.ssim:.4f}", f"{row.distance:.4f}"]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join([*lines, ""])
