"""Quantizers: real latents ⇄ ids. Both work on channel-first maps z (B, C, h, w) and return ids (B, h, w).

`VectorQuantizer`: nearest row of a learned codebook (van den Oord et al., "Neural Discrete Representation Learning", 2017,
arXiv 1711.00937, eq. 1–3), with the entropy term of MaskGIT's training configuration.
`FSQ`: rounding each bounded channel to a few levels (Mentzer et al., "Finite Scalar Quantization: VQ-VAE Made Simple",
2023, arXiv 2309.15505): no codebook to learn, no dead codes.
"""

import math
from typing import Annotated, NamedTuple

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from mgen.utils.errors import MgenError
from mgen.utils.fitting import DataRows, Rows
from mgen.utils.schema import Listed, checked

# Levels of every channel of finite scalar quantization.
FSQLevels = Listed[Annotated[tuple[Annotated[int, Field(ge=3, le=2**12)], ...], Field(min_length=1, max_length=64)]]


class Quantized(NamedTuple):
    """values (B, C, h, w) with straight-through gradient, ids (B, h, w) int64, loss terms (scalars, unweighted)."""

    values: Tensor
    ids: Tensor
    losses: dict[str, Tensor]


class VectorQuantizer(nn.Module):
    """Nearest row of a codebook of `vocab_size` rows of length `dim`, the channels of z."""

    entropy = True  # whether to compute the entropy term, whose gradients take a number per vector and code

    def __init__(self, *, vocab_size: int, dim: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocab_size, dim)
        nn.init.uniform_(self.embedding.weight, -1 / vocab_size, 1 / vocab_size)

    @property
    def vocab_size(self) -> int:
        return self.embedding.num_embeddings

    def data_rows(self, ids: str = "ids") -> DataRows:
        """See Model.data_rows; `ids`: what this codebook's are called."""
        return {"embedding.weight": {0: (Rows(ids, (self.vocab_size,)),)}}

    def scaled(self, vectors: Tensor, dim: int) -> Tensor:
        """Vectors along `dim` as they are compared, looked up and trained."""
        return vectors

    def distances(self, z: Tensor) -> Tensor:
        """Squared distances (B, h, w, vocab_size) of z (B, C, h, w) to every code, in fp32 because rounding changes ids."""
        flat = self.scaled(z.float(), 1).permute(0, 2, 3, 1)  # (B, h, w, C)
        table = self.scaled(self.embedding.weight.float(), -1)
        return flat.square().sum(-1, keepdim=True) + table.square().sum(-1) - 2 * flat @ table.T

    @torch.no_grad()
    def initialize(self, z: Tensor, rng: torch.Generator) -> None:
        """Place the rows on random vectors of z (B, C, h, w) with a little jitter, so that no code starts out of reach."""
        vectors = self.scaled(z, 1).permute(0, 2, 3, 1).flatten(0, 2)  # (N, C)
        rows = torch.randint(len(vectors), (self.vocab_size,), generator=rng)
        jitter = torch.randn(self.vocab_size, vectors.shape[1], generator=rng) * (0.01 * vectors.std().cpu())
        self.embedding.weight.copy_(vectors[rows.to(z.device)] + jitter.to(z.device))

    def ids(self, z: Tensor) -> Tensor:
        with torch.autocast(z.device.type, enabled=False):
            return self.distances(z).argmin(-1)  # (B, h, w)

    def lookup(self, ids: Tensor) -> Tensor:
        """Rows of the codebook as a map (B, C, h, w) for ids (B, h, w)."""
        return self.scaled(self.embedding(ids).permute(0, 3, 1, 2), 1)

    def forward(self, z: Tensor) -> Quantized:
        """Quantize z (B, C, h, w); losses: "codebook" |e - sg(z)|², "commitment" |z - sg(e)|², "entropy" if enabled."""
        with torch.autocast(z.device.type, enabled=False):
            z = self.scaled(z.float(), 1)
            distances = self.distances(z if self.entropy else z.detach())
            ids = distances.argmin(-1)  # (B, h, w)
            rows = self.lookup(ids).float()
            losses = {"codebook": F.mse_loss(rows, z.detach()), "commitment": F.mse_loss(z, rows.detach())}
            if self.entropy:
                losses["entropy"] = entropy_loss(distances)
            return Quantized(z + (rows - z).detach(), ids, losses)


def entropy_loss(distances: Tensor, temperature: float = 0.01) -> Tensor:
    """Mean entropy of the soft assignment minus the entropy of its mean: low for sharp choices and evenly used codes.

    Args:
        distances: squared, (…, vocab_size). temperature: of the softmax over -distance (MaskGIT's configuration: 0.01).
    """
    log_p = F.log_softmax(-distances.flatten(0, -2) / temperature + 1e-5, dim=-1)  # (N, vocab_size)
    p = log_p.exp()
    mean = p.mean(0)
    return -(p * log_p).sum(-1).mean() + (mean * torch.log(mean + 1e-5)).sum()


class FSQ(nn.Module):
    """Finite scalar quantization. `levels`: of each channel, at least 3; their product is the vocabulary size."""

    sizes: Tensor
    strides: Tensor

    @checked
    def __init__(self, *, levels: FSQLevels) -> None:
        super().__init__()
        if math.prod(levels) > 2**20:
            raise MgenError(f"FSQ levels {list(levels)} make {math.prod(levels):,} ids: at most {2**20:,} are allowed")
        strides = torch.cumprod(torch.tensor((1, *levels[:-1])), 0)
        self.register_buffer("sizes", torch.tensor(levels).view(-1, 1, 1), persistent=False)
        self.register_buffer("strides", strides.view(-1, 1, 1), persistent=False)
        self.vocab_size = math.prod(levels)

    def bound(self, z: Tensor) -> Tensor:
        """Squash z so that rounding gives exactly `levels` integers per channel (arXiv 2309.15505, appendix A.1)."""
        half = (self.sizes - 1) * (1 - 1e-3) / 2
        offset = torch.where(self.sizes % 2 == 1, 0.0, 0.5)
        return torch.tanh(z + torch.atanh(offset / half)) * half - offset

    def _split(self, rounded: Tensor) -> tuple[Tensor, Tensor]:
        half = self.sizes // 2
        ids = ((rounded + half).long() * self.strides).sum(1)
        return rounded / half, ids

    def ids(self, z: Tensor) -> Tensor:
        with torch.autocast(z.device.type, enabled=False):
            return self._split(self.bound(z.float()).round())[1]  # (B, h, w)

    def lookup(self, ids: Tensor) -> Tensor:
        """Values in [-1, 1] as a map (B, C, h, w) for ids (B, h, w)."""
        half = self.sizes // 2
        levels = ids.unsqueeze(1) // self.strides % self.sizes  # (B, C, h, w)
        return (levels - half) / half

    def forward(self, z: Tensor) -> Quantized:
        """Quantize z (B, C, h, w); FSQ has nothing to learn and therefore no losses."""
        with torch.autocast(z.device.type, enabled=False):
            bounded = self.bound(z.float())
            rounded = bounded + (bounded.round() - bounded).detach()
            values, ids = self._split(rounded)
            return Quantized(values, ids, {})


def codebook_usage(ids: Tensor, vocab_size: int) -> dict[str, Tensor]:
    """Share of the vocabulary that occurs in `ids` (0 … 1), and perplexity exp(entropy) of its distribution (1 … vocab_size)."""
    p = torch.bincount(ids.flatten(), minlength=vocab_size).float() / ids.numel()
    return {"usage": (p > 0).float().mean(), "perplexity": torch.special.entr(p).sum().exp()}
