"""How much of an image a tokenizer keeps: reconstructions against the very images they were made of.

Notation: N images, B of a batch, L tokens of C ids or numbers each, Q ids.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from mgen import seeds
from mgen.errors import MgenError, check_choice
from mgen.evaluation.evaluate import metric_names
from mgen.evaluation.extractors import Extractor
from mgen.evaluation.frechet import frechet_distance
from mgen.evaluation.pixels import psnr, ssim
from mgen.evaluation.sources import Batch, Source
from mgen.evaluation.statistics import FeatureSums
from mgen.pipeline import to_uint8

POSTERIOR = ("mean", "sample")


def posterior_noise(tokenizer: Any, posterior: str, seed: int, indices: Sequence[int]) -> dict[str, Tensor]:
    """The argument `noise` of `encode` for these images: of every image its own, whatever else is in the batch; none for the mean.

    Raises:
        MgenError: a sample is asked of a tokenizer without a posterior.
    """
    if check_choice("posterior", posterior, POSTERIOR) == "mean":
        return {}
    if (shape := tokenizer.noise_shape()) is None:
        raise MgenError(f"posterior sample: a {type(tokenizer).__name__} has none, only KL tokenizers do; leave it out")
    noise = [torch.randn(shape, generator=seeds.generator(seed, "posterior", i)) for i in indices]
    return {"noise": torch.stack(noise).to(tokenizer.device)}


def distance_name(extractor: Extractor, count: int) -> str:
    """Only Inception features make an rFID; the distance is that to the originals of the same images."""
    name = metric_names(extractor, count)[0]
    return f"r{name}" if name.startswith("FID") else f"{name} to the originals"


class Nearness:
    """Running means of PSNR and SSIM, and how often each id was used."""

    def __init__(self) -> None:
        self.count, self.psnr, self.ssim = 0, 0.0, 0.0
        self.used: Tensor | None = None
        self.kind = "channels"  # what the rows of `used` are

    def update(self, originals: Tensor, images: Tensor) -> None:
        """uint8 (B, C, H, W) both."""
        self.count += len(images)
        self.psnr += psnr(originals, images).sum().item()
        self.ssim += ssim(originals, images).sum().item()

    def count_ids(self, ids: Tensor, vocab: int, holistic: int = 0) -> None:
        """Ids (B, L) or (B, L, C) in 0 … vocab-1; the first `holistic` tokens are of a codebook of their own."""
        if holistic:
            self.kind = "codebooks"
            groups = [part.flatten() for part in ids.tensor_split([holistic], dim=1)]
        else:
            groups = list(ids.flatten(0, 1).T) if ids.ndim == 3 else [ids.flatten()]
        one = torch.stack([torch.bincount(group, minlength=vocab) for group in (g.cpu() for g in groups)])  # (C, Q)
        self.used = one if self.used is None else self.used + one

    def entropy(self) -> float:
        """Of the ids in bits, mean over the C channels."""
        assert self.used is not None
        share = self.used.double() / self.used.sum(1, keepdim=True)
        return torch.special.entr(share).sum(1).mean().item() / torch.log(torch.tensor(2.0)).item()

    def metrics(self) -> dict[str, float]:
        out = {"PSNR in dB, mean over images": self.psnr / self.count, "SSIM, mean over images": self.ssim / self.count}
        if self.used is not None:
            channels, vocab = self.used.shape
            mean = f", mean over {channels} {self.kind}" if channels > 1 else ""
            out[f"ids used of {vocab}{mean}"] = (self.used > 0).sum(1).double().mean().item()
            out[f"entropy of the ids in bits{mean}"] = self.entropy()
        return out


def reconstructions(
    dataset: Any,
    tokenizer: Any,
    extractor: Extractor,
    *,
    name: str,
    rows: Sequence[int],
    batch_size: int,
    posterior: str = "mean",
    seed: int = 0,
) -> Source:
    """The images `rows` of `dataset` as `tokenizer` gives them back; the originals are measured on the way."""
    near, originals = Nearness(), FeatureSums(extractor.length)

    @torch.inference_mode()
    def batches() -> Iterator[Batch]:
        for start in range(0, len(rows), batch_size):
            indices = rows[start : start + batch_size]
            batch = dataset.__getitems__(indices)
            noise = posterior_noise(tokenizer, posterior, seed, indices)
            tokens = tokenizer.encode(batch["image"].to(tokenizer.device), **noise)
            images, truth = to_uint8(tokenizer.decode(tokens)).cpu(), to_uint8(batch["image"])
            near.update(truth, images)
            if (vocab := tokenizer.spec.vocab) is not None:
                near.count_ids(tokens, vocab, tokenizer.spec.holistic)
            originals.update(extractor(truth)[0])
            yield images, batch["label"]

    def more(sums: FeatureSums) -> dict[str, float]:
        distance = frechet_distance(*sums.finish(), *originals.finish())
        return {distance_name(extractor, len(rows)): distance, **near.metrics()}

    about = {"kind": "reconstruction", "data": name, "quantisation": "round"}
    if tokenizer.noise_shape() is not None:
        about["posterior"] = posterior if posterior == "mean" else f"{posterior}, seed {seed}"
    return Source(count=len(rows), about=about, batches=batches(), more=more)
