"""The two transformers of a Hita tokenizer: one gathers an image into holistic tokens, the other spreads them over its patches.

Zheng et al., "Holistic Tokenizer for Autoregressive Image Generation" (ICCV 2025, arXiv 2507.02358), §3.

Notation: B batch, S holistic tokens, h × w grid, N = h·w patches, V vision tokens of width W, D width, F hidden width of the MLPs.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mgen.nn.attention import Attention
from mgen.nn.dropout import dropout
from mgen.nn.modulated import GatedMLP


@dataclass(frozen=True, kw_only=True)
class Stack:
    """Size of a stack of transformer blocks and of its tables."""

    dim: int  # D
    depth: int  # blocks
    heads: int
    hidden: int  # F
    holistic: int  # S
    side: int  # h = w of the position table
    dropout: float  # see FusionBlock

    def blocks(self, inner: int | None = None) -> nn.ModuleList:
        """The blocks; for `inner` see FusionBlock."""
        return nn.ModuleList(FusionBlock(self, inner) for _ in range(self.depth))

    def table(self, *rows: int) -> nn.Parameter:
        """A table of `rows` embeddings of width D, or a single one."""
        return nn.Parameter(torch.randn(*rows, self.dim) * self.dim**-0.5)


class FusionBlock(nn.Module):
    """x += attn(LN(x)); x += mlp(LN(x)). Positions are added before the first block only.

    Args:
        inner: heads times head width, with q, k and v without biases and dropout on the attention's output, as published; None: D,
            with biases, and dropout on the attention probabilities.
    """

    def __init__(self, stack: Stack, inner: int | None = None) -> None:
        super().__init__()
        dim, heads, drop = stack.dim, stack.heads, stack.dropout
        self.norm1 = nn.LayerNorm(dim)
        if inner is None:
            self.attn = Attention(dim, heads, bias=True, dropout=drop, out_dropout=0.0)
        else:
            self.attn = Attention(dim, heads, head_dim=inner // heads, bias=False, dropout=0.0, out_dropout=drop)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = GatedMLP(dim, stack.hidden, bias=True)

    def forward(self, x: Tensor, *, causal: bool = False, readable: Tensor | None = None) -> Tensor:
        """(B, L, D) → (B, L, D), causally or not; `readable`: bool (L, L), True where a query may attend to a key."""
        attn = self.attn
        q, k, v = attn.project(self.norm1(x), 0, 3)  # (B, H, L, d) each
        rate = attn.dropout if self.training else 0.0
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=readable, is_causal=causal, dropout_p=rate)
        out = attn.proj(out.transpose(1, 2).flatten(2))  # (B, L, D)
        x = x + dropout(out, attn.out_dropout, self.training)
        return x + self.mlp(self.norm2(x))


def positions_of(table: Tensor, grid: tuple[int, int]) -> Tensor:
    """Position embeddings (h·w, D) of a grid (h, w), from a table (n², D) of a square one.

    On another grid the official code resamples the table by the factors (h + 0.1) / n and (w + 0.1) / n, which also shift the sample
    points. We keep this because the weights were always used this way; the clean values are h / n and w / n.
    """
    n = round(len(table) ** 0.5)
    if grid == (n, n):
        return table
    square = table.T.unflatten(1, (n, n)).unsqueeze(0)  # (1, D, n, n)
    factors = [(side + 0.1) / n for side in grid]
    return F.interpolate(square, scale_factor=factors, mode="bicubic")[0].flatten(1).T  # (h·w, D)


class Gathering(nn.Module):
    """Features of the patches → holistic tokens and patches, both informed by the whole image.

    The first stack is bidirectional and includes the vision tokens; the second is causal, with the holistic tokens first.

    Args:
        stack: size of both stacks. inner: heads times head width of the first. vision: W; None without vision tokens.
    """

    def __init__(self, stack: Stack, *, inner: int, vision: int | None) -> None:
        super().__init__()
        dim = stack.dim
        self.holistic, self.position = stack.table(stack.holistic), stack.table(stack.side**2)
        self.project: nn.Module | None = None
        if vision is not None:
            first, second = nn.Linear(vision, dim, bias=False), nn.Linear(dim, dim, bias=False)
            self.project = nn.Sequential(first, nn.LayerNorm(dim), nn.ReLU(), second, nn.LayerNorm(dim))
        self.norm1 = nn.LayerNorm(dim)
        self.blocks1 = stack.blocks(inner)
        self.norm2 = nn.LayerNorm(dim)
        self.blocks2 = stack.blocks()

    def forward(self, features: Tensor, vision: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Holistic tokens (B, S, D) and patches (B, D, h, w) of features (B, D, h, w) and, if used, vision tokens (B, V, W)."""
        b, _, h, w = features.shape
        patches = features.flatten(2).transpose(1, 2) + positions_of(self.position, (h, w))  # (B, N, D)
        carriers = self.holistic.expand(b, -1, -1)  # (B, S, D)
        s = carriers.shape[1]
        seen = [carriers, patches] if self.project is None else [carriers, self.project(vision), patches]
        x = self.norm1(torch.cat(seen, dim=1))  # (B, S + V + N, D)
        for block in self.blocks1:
            x = block(x)
        x = self.norm2(torch.cat([x[:, :s], x[:, -h * w :]], dim=1))  # (B, S + N, D)
        for block in self.blocks2:
            x = block(x, causal=True)
        return x[:, :s], x[:, s:].transpose(1, 2).unflatten(2, (h, w))


class Spreading(nn.Module):
    """Holistic tokens and patches → features of the patches, causally; also predicts vision tokens from the holistic ones.

    The feature of patch i is read `shift` positions before patch i, so the first features come from holistic tokens, and the last
    `shift` patches influence nothing and are not computed.

    Args:
        stack: its size. vision: W of the predicted vision tokens; None: predict none.
    """

    def __init__(self, stack: Stack, *, shift: int, vision: int | None) -> None:
        super().__init__()
        self.shift = shift
        self.holistic_position, self.position = stack.table(stack.holistic), stack.table(stack.side**2)
        self.norm = nn.LayerNorm(stack.dim)
        self.blocks = stack.blocks()
        if vision is not None:
            self.query = stack.table()
            self.vision_norm = nn.LayerNorm(stack.dim)
            self.vision_out = nn.Linear(stack.dim, vision)
        self.apply(_initialize)

    def forward(self, holistic: Tensor, patches: Tensor) -> Tensor:
        """Features (B, D, h, w) for the CNN decoder, of holistic tokens (B, S, D) and patches (B, D, h, w)."""
        grid = (patches.shape[2], patches.shape[3])
        s, n = holistic.shape[1], grid[0] * grid[1]
        local = patches.flatten(2).transpose(1, 2) + positions_of(self.position, grid)  # (B, N, D)
        read = s + n - self.shift
        x = self.norm(torch.cat([holistic + self.holistic_position, local], dim=1)[:, :read])  # (B, S + N - shift, D)
        for block in self.blocks:
            x = block(x, causal=True)
        return x[:, s - self.shift :].transpose(1, 2).unflatten(2, grid)

    def vision_tokens(self, holistic: Tensor, side: int) -> Tensor:
        """Predicted vision tokens (B, side², W) of holistic tokens (B, S, D), by the same blocks; used by a training loss only."""
        b, s, _ = holistic.shape
        queries = (self.query + positions_of(self.position, (side, side))).expand(b, -1, -1)  # (B, side², D)
        x = self.vision_norm(torch.cat([holistic, queries], dim=1))
        length = x.shape[1]
        # Holistic tokens attend causally and to no query; queries attend to everything.
        readable = torch.ones(length, length, dtype=torch.bool, device=x.device).tril()
        readable[s:] = True
        for block in self.blocks:
            x = block(x, readable=readable)
        return self.vision_out(x[:, s:])


def _initialize(module: nn.Module) -> None:
    """Xavier-uniform weights and zero biases; q, k and v are initialized separately, as published."""
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    if isinstance(module, Attention):
        for part in module.qkv.weight.data.chunk(3):
            nn.init.xavier_uniform_(part)
