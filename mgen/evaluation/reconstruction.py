"""How well a tokenizer reconstructs images: reconstructions compared with their originals.

Notation: N images, B of a batch, L tokens of C ids or numbers each, Q ids.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from mgen.data import ImageData
from mgen.evaluation.evaluate import metric_names
from mgen.evaluation.extractors import Extractor
from mgen.evaluation.frechet import frechet_distance
from mgen.evaluation.measured import Measured
from mgen.evaluation.pixels import Lpips, psnr, ssim
from mgen.evaluation.result import Facts
from mgen.evaluation.source import Batch, Source
from mgen.pipelines.pixels import to_uint8
from mgen.tokenizers.base import Tokenizer
from mgen.utils import seeds
from mgen.utils.errors import MgenError, check_choice

POSTERIOR = ("mean", "sample")


def posterior_noise(tokenizer: Tokenizer, posterior: str, seed: int, indices: Sequence[int]) -> dict[str, Tensor]:
    """The argument `noise` of `encode` for these images, independent of the batch; empty for the posterior's mean.

    Raises:
        MgenError: a sample is requested from a tokenizer without a posterior.
    """
    if check_choice("posterior", posterior, POSTERIOR) == "mean":
        return {}
    if (shape := tokenizer.noise_shape()) is None:
        kind = type(tokenizer).__name__
        raise MgenError(f"posterior sample: a {kind} has no posterior, only KL tokenizers do; leave it out")
    noise = [torch.randn(shape, generator=seeds.generator(seed, "posterior", i)) for i in indices]
    return {"noise": torch.stack(noise).to(tokenizer.device)}


def distance_name(extractor: Extractor, count: int) -> str:
    """Name of the Fréchet distance to the originals: rFID with Inception features only."""
    name = metric_names(extractor, count)[0]
    return f"r{name}" if name.startswith("FID") else f"{name} to the originals"


def count_ids(ids: Tensor, vocab_size: int, global_tokens: int = 0) -> Tensor:
    """How often each id occurs, float64 (groups, Q), in ids (B, L) or (B, L, C) in 0 … Q-1.

    Groups are the C channels, or the codebooks: the first `global_tokens` tokens have their own.
    """
    if global_tokens:
        groups = [part.flatten() for part in ids.tensor_split([global_tokens], dim=1)]
    else:
        groups = list(ids.flatten(0, 1).T) if ids.ndim == 3 else [ids.flatten()]
    return torch.stack([torch.bincount(group.cpu(), minlength=vocab_size) for group in groups]).double()


def entropy(used: Tensor) -> float:
    """Entropy in bits of ids that occur `used` times (groups, Q), mean over the groups."""
    share = used.double() / used.sum(1, keepdim=True)
    return torch.special.entr(share).sum(1).mean().item() / torch.log(torch.tensor(2.0)).item()


def id_metrics(used: Tensor, kind: str) -> dict[str, float]:
    """How many ids occur, and their entropy. kind: "channels" or "codebooks", the meaning of the groups."""
    groups, vocab_size = used.shape
    mean = f", mean over {groups} {kind}" if groups > 1 else ""
    return {
        f"ids used of {vocab_size}{mean}": (used > 0).sum(1).double().mean().item(),
        f"entropy of the ids in bits{mean}": entropy(used),
    }


def reconstructions(
    dataset: ImageData,
    tokenizer: Tokenizer,
    *,
    name: str,
    rows: Sequence[int],
    posterior: str = "mean",
    seed: int = 0,
    lpips: Lpips | None = None,
) -> Source:
    """Reconstructions by `tokenizer` of the images `rows` of `dataset`, with the originals; `reconstruction_metrics` evaluates them."""
    check_choice("posterior", posterior, POSTERIOR)
    vocab_size, global_tokens = tokenizer.spec.vocab_size, tokenizer.spec.global_tokens

    @torch.inference_mode()
    def read(start: int, stop: int) -> Batch:
        indices = rows[start:stop]
        batch = dataset.__getitems__(indices)
        noise = posterior_noise(tokenizer, posterior, seed, indices)
        tokens = tokenizer.encode(batch["image"].to(tokenizer.device), **noise)
        images, truth = to_uint8(tokenizer.decode(tokens)).cpu(), to_uint8(batch["image"])
        columns = {"psnr": psnr(truth, images), "ssim": ssim(truth, images)}
        if lpips is not None:
            columns["lpips"] = lpips(truth, images)
        totals = {"used": count_ids(tokens, vocab_size, global_tokens)} if vocab_size is not None else {}
        return Batch(images=images, labels=batch["label"], originals=truth, columns=columns, totals=totals)

    about: Facts = {"kind": "reconstruction", "data": name, "quantization": "round"}
    if global_tokens:
        about["codebooks"] = "of global and of grid tokens"
    if tokenizer.noise_shape() is not None:
        about["posterior"] = posterior if posterior == "mean" else f"{posterior}, seed {seed}"
    if lpips is not None:
        about["lpips"] = lpips.about
    names = dataset.class_names
    return Source(count=len(rows), about=about, read=read, class_names=names, key=list(rows), ahead=False)


def reconstruction_metrics(measured: Measured, source: Source, extractor: Extractor) -> dict[str, float]:
    """Fréchet distance to the originals, PSNR, SSIM, LPIPS and usage of the ids."""
    distance = frechet_distance(*measured.sums().finish(), *measured.sums("original").finish())
    out = {distance_name(extractor, measured.count): distance}
    for column, title in {"psnr": "PSNR in dB", "ssim": "SSIM", "lpips": "LPIPS"}.items():
        if f"column.{column}" in measured.names:
            out[f"{title}, mean over images"] = measured.rows(f"column.{column}").double().mean().item()
    if "total.used" in measured.names:
        out |= id_metrics(measured.total("used"), "codebooks" if "codebooks" in source.about else "channels")
    return out
