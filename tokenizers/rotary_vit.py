"""Transformers between image patches and latents, with the rotary map of l-DeTok.

Yang et al., "Latent Denoising Makes Good Visual Tokenizers" (l-DeTok, arXiv 2507.15856), appendix A: ViTs with RMSNorm and SwiGLU.

The map of queries and keys is no rotation. Each number is mixed with its neighbor by an angle of its own: numbers 2i and 2i + 1 have
the frequencies f_2i and f_2i+1, where a rotation has one for both, so lengths change. The weights were trained with it, so it stays.

Notation: B batch, C image channels, p side of a patch, N rows at hand, L patches of an image, D width, H heads, d width of a head,
F hidden width of the MLPs, c latent channels.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mgen.nn.attention import AttentionLayers, attend, gather_rows
from mgen.nn.blocks import Blocks
from mgen.nn.modulated import GatedMLP

EPS = 1e-6


def mixing_table(grid: tuple[int, int], head_dim: int) -> Tensor:
    """cos and sin (h·w, 2, d) of the angles of every cell, row by row, in fp32; d is a multiple of 4.

    Frequencies fall from 7 to 7e-4 turns over the image; rows and columns lie between 0 and 1, both ends included.
    """
    quarter = head_dim // 4
    steps = torch.arange(quarter, dtype=torch.float64) / max(1, quarter - 1)
    turns = 2 * math.pi * 7 * 1e4**-steps  # (d / 4,)
    rows, columns = (torch.linspace(0, 1, n, dtype=torch.float64).unsqueeze(1) * turns.repeat(2) for n in grid)
    h, w = grid
    both = [rows.unsqueeze(1).expand(h, w, -1), columns.unsqueeze(0).expand(h, w, -1)]
    angles = torch.cat(both, dim=-1).flatten(0, 1)  # (h·w, d), rows in the first half
    return torch.stack([angles.cos(), angles.sin()], dim=1).float()


def mix_pairs(x: Tensor, table: Tensor) -> Tensor:
    """x · cos + (−x_1, x_0, −x_3, x_2, …) · sin in fp32, for x (B, H, N, d) and a table (N, 2, d) or (B, N, 2, d)."""
    cos, sin = table.unsqueeze(-4).unbind(-2)  # (…, 1, N, d)
    values = x.float()
    a, b = values.unflatten(-1, (-1, 2)).unbind(-1)  # (B, H, N, d / 2)
    swapped = torch.stack([-b, a], dim=-1).flatten(-2)
    return (values * cos + swapped * sin).to(x.dtype)


class MixedAttention(AttentionLayers):
    """Self-attention of all rows to all, with `mix_pairs` on queries and keys. Arguments as for AttentionLayers."""

    def forward(self, x: Tensor, table: Tensor) -> Tensor:
        """(B, N, D) → (B, N, D); table as in mix_pairs."""
        q, k, v = self.project(x, 0, 3)  # (B, H, N, d) each
        out = attend(mix_pairs(q, table), mix_pairs(k, table), v)
        return self.proj(out.transpose(1, 2).flatten(2))


class MixedBlock(nn.Module):
    """x += attn(RMS(x)); x += mlp(RMS(x)), all layers with biases; F is 8/3 of D."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.norm1 = nn.RMSNorm(dim, eps=EPS)
        self.attn = MixedAttention(dim, heads)
        self.norm2 = nn.RMSNorm(dim, eps=EPS)
        self.mlp = GatedMLP(dim, int(2 / 3 * dim * 4), bias=True)

    def forward(self, x: Tensor, table: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x), table)
        return x + self.mlp(self.norm2(x))


class MixedTransformer(nn.Module):
    """Blocks on the patches of an image, between two norms. Args: `grid` of patches, D, number of blocks, H."""

    def __init__(self, grid: tuple[int, int], dim: int, depth: int, heads: int) -> None:
        super().__init__()
        self.position = nn.Parameter(torch.randn(grid[0] * grid[1], dim) * dim**-0.5)
        self.norm_in = nn.RMSNorm(dim, eps=EPS)
        self.blocks = Blocks(MixedBlock(dim, heads) for _ in range(depth))
        self.norm_out = nn.RMSNorm(dim, eps=EPS)
        self.register_buffer("table", mixing_table(grid, dim // heads), persistent=False)
        self.table: Tensor

    def run(self, x: Tensor, at: Tensor | None = None) -> Tensor:
        """Patches x (B, L, D), or those at places `at` (B, N), with their positions, after all blocks and norms."""
        table = self.table if at is None else self.table[at]  # (B, N, 2, d)
        x = self.norm_in(x)
        for block in self.blocks:
            x = block(x, table)
        return self.norm_out(x)


class PatchEncoder(MixedTransformer):
    """Images → mean and log-variance of the latent of each patch."""

    def __init__(
        self, grid: tuple[int, int], dim: int, depth: int, heads: int, *, patch: int, channels: int, latent: int
    ) -> None:
        super().__init__(grid, dim, depth, heads)
        self.embed = nn.Conv2d(channels, dim, patch, patch)
        self.head = nn.Linear(dim, 2 * latent)

    def rows(self, images: Tensor, at: Tensor | None = None) -> Tensor:
        """Embedded patches with their positions (B, L, D), or those at places `at` (B, N)."""
        x = self.embed(images).flatten(2).transpose(1, 2) + self.position  # (B, L, D)
        return x if at is None else gather_rows(x, at)

    def forward(self, images: Tensor, at: Tensor | None = None) -> Tensor:
        """Moments (B, N, 2c) of images (B, C, H, W), for the patches `at` (B, N) only if given: the encoder sees no others."""
        return self.head(self.run(self.rows(images, at), at))


class PatchDecoder(MixedTransformer):
    """Latents of patches → images. Positions without a latent hold the mask token."""

    def __init__(
        self, grid: tuple[int, int], dim: int, depth: int, heads: int, *, patch: int, channels: int, latent: int
    ) -> None:
        super().__init__(grid, dim, depth, heads)
        self.grid, self.patch = grid, patch
        self.embed = nn.Linear(latent, dim)
        self.mask_token = nn.Parameter(torch.randn(dim) * dim**-0.5)
        self.pixels = nn.Linear(dim, channels * patch**2)  # (row, column, channel)
        self.conv_out = nn.Conv2d(channels, channels, 3, padding=1)

    def hidden(self, z: Tensor, at: Tensor | None = None) -> Tensor:
        """Features (B, L, D) of latents z (B, L, c), or of those at places `at` (B, N)."""
        x = self.embed(z)
        if at is not None:
            masked = self.mask_token.to(x.dtype).expand(len(x), len(self.position), -1)
            x = masked.scatter(1, at.unsqueeze(-1).expand(-1, -1, x.shape[-1]), x)  # (B, L, D)
        return self.run(x + self.position)

    def patches(self, hidden: Tensor) -> Tensor:
        """Image (B, C, H, W) before the last convolution, of features (B, L, D)."""
        p = self.patch
        x = self.pixels(hidden).unflatten(2, (p * p, -1))  # (B, L, p², C)
        x = x.permute(0, 3, 2, 1).flatten(1, 2).unflatten(2, self.grid)  # (B, C·p², h, w)
        return F.pixel_shuffle(x, p)

    def forward(self, z: Tensor, at: Tensor | None = None) -> Tensor:
        """Images (B, C, H, W) of latents z (B, L, c), or of those at places `at` (B, N)."""
        return self.conv_out(self.patches(self.hidden(z, at)))
