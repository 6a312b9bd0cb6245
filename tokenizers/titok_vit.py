"""The networks of TiTok's tokenizers (titok.py): two vision transformers, and the heads that make images.

Yu et al., arXiv 2406.07550, §3.2. Notation: B batch, C image channels, N latent tokens, D width of a transformer, d numbers of a code,
P = h·w patches, p their side, Q codes of the VQGAN.
"""

from typing import Literal

import torch
from diffusers.configuration_utils import FrozenDict
from torch import Tensor, nn

from mgen.nn import Blocks, PreNormBlock, run_blocks
from mgen.tokenizers import vqgan
from mgen.tokenizers.base import Widths
from mgen.utils.fitting import DataRows, Rows
from mgen.utils.schema import Depth, Layers, Natural, Size, schema


@schema
class PixelDecoder:
    """Decoder and codes of the VQGAN that makes the image; arguments as of VQGAN, defaults those of MaskGIT's."""

    channels: Size = 128
    multipliers: Widths = (1, 1, 2, 2, 4)
    blocks: Layers = 2
    mid_blocks: Depth = 2
    latent: Size = 256
    vocab_size: Size = 1024
    norm_groups: Natural = 32
    shortcut: Literal["output", "input"] = "output"


class Patches(nn.Module):
    """What both transformers share: blocks between two norms over [class token, patches, latent tokens], and the tables.

    Args:
        dim, depth, heads: D, layers, heads. side: h = w. latent_tokens: N.
    """

    def __init__(self, *, dim: int, depth: int, heads: int, side: int, latent_tokens: int) -> None:
        super().__init__()
        self.side, self.latent_tokens = side, latent_tokens
        self.class_token = nn.Parameter(dim**-0.5 * torch.randn(1, dim))
        self.position = nn.Parameter(dim**-0.5 * torch.randn(1 + side * side, dim))
        self.latent_position = nn.Parameter(dim**-0.5 * torch.randn(latent_tokens, dim))
        self.norm_in = nn.LayerNorm(dim)
        self.blocks = Blocks(PreNormBlock(dim, heads) for _ in range(depth))
        self.norm_out = nn.LayerNorm(dim)

    def run(self, patches: Tensor, latents: Tensor, read: slice) -> Tensor:
        """Rows `read` of the output, for patches (B, P, D) and latents (B, N, D), neither with positions yet.

        Only these rows pass the end of the last block.
        """
        front = self.class_token.expand(len(patches), -1, -1)
        x = torch.cat([front, patches], dim=1) + self.position  # (B, 1 + P, D)
        x = self.norm_in(torch.cat([x, latents + self.latent_position], dim=1))  # (B, 1 + P + N, D)
        return self.norm_out(run_blocks(self.blocks, x, read, lambda i: {}))

    def data_rows(self, name: str) -> DataRows:
        """See Model.data_rows; `name`: of this part."""
        grid = Rows("patches", (self.side, self.side), "interpolated")
        latents = (Rows("latent tokens", (self.latent_tokens,)),)
        return {f"{name}.position": {0: (Rows("class token", (1,)), grid)}, f"{name}.latent_position": {0: latents}}


class Encoder(Patches):
    """Images (B, C, H, W) in [0, 1] → latents (B, N, out).

    Args:
        scrambled: the latent tokens (B, N, D) are reshaped to (B, D, N), and the last layer mixes the D numbers that come to stand in
            a column, which belong to several tokens. So it is in the published tokenizers of two stages, and their weights need it.
    """

    def __init__(self, *, in_channels: int, patch: int, out: int, scrambled: bool, dim: int, **shared: int) -> None:
        super().__init__(dim=dim, **shared)
        self.scrambled = scrambled
        self.patch_embed = nn.Conv2d(in_channels, dim, patch, patch)
        self.latents = nn.Parameter(dim**-0.5 * torch.randn(self.latent_tokens, dim))
        self.out = nn.Linear(dim, out)

    def data_rows(self, name: str) -> DataRows:
        latents = (Rows("latent tokens", (self.latent_tokens,)),)
        return super().data_rows(name) | {f"{name}.latents": {0: latents}}

    def forward(self, images: Tensor) -> Tensor:
        x = self.patch_embed(images).flatten(2).transpose(1, 2)  # (B, P, D)
        x = self.run(x, self.latents.expand(len(x), -1, -1), slice(-self.latent_tokens, None))  # (B, N, D)
        if self.scrambled:
            x = x.reshape(len(x), x.shape[2], x.shape[1]).transpose(1, 2)
        return self.out(x)


class Decoder(Patches):
    """Codes (B, N, d) → features of patches (B, P, D), and by a head images in [0, 1]."""

    def __init__(self, *, latent: int, head: "PixelHead | CodeHead", dim: int, **shared: int) -> None:
        super().__init__(dim=dim, **shared)
        self.embed = nn.Linear(latent, dim)
        self.mask = nn.Parameter(dim**-0.5 * torch.randn(1, dim))
        self.head = head

    def features(self, codes: Tensor) -> Tensor:
        """(B, P, D) of codes (B, N, d)."""
        masked = self.mask.expand(len(codes), self.side**2, -1)
        return self.run(masked, self.embed(codes), slice(1, 1 + self.side**2))

    def forward(self, codes: Tensor) -> Tensor:
        out: Tensor = self.head(self.features(codes), self.side)
        return out


class PixelHead(nn.Module):
    """Features (B, P, D) → images (B, C, H, W): a patch of each, then a convolution over all."""

    def __init__(self, dim: int, patch: int, channels: int) -> None:
        super().__init__()
        self.patch, self.channels = patch, channels
        self.patches = nn.Linear(dim, patch * patch * channels)
        self.conv_out = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor, side: int) -> Tensor:
        p, c = self.patch, self.channels
        x = self.patches(x).view(len(x), side, side, p, p, c)  # (B, h, w, p, p, C)
        return self.conv_out(x.permute(0, 5, 1, 3, 2, 4).reshape(len(x), c, side * p, side * p))

    def data_rows(self, name: str) -> DataRows:
        image = (Rows("image channels", (self.patch, self.patch, self.channels)),)
        channels = (Rows("image channels", (self.channels,)),)
        ends: DataRows = {f"{name}.patches.{key}": {0: image} for key in ("weight", "bias")}
        return ends | {f"{name}.conv_out.weight": {0: channels, 1: channels}}


class CodeHead(nn.Module):
    """Features (B, P, D) → images (B, C, H, W): a distribution over the VQGAN's codes, the expected code, the VQGAN's decoder."""

    def __init__(self, dim: int, settings: PixelDecoder, channels: int) -> None:
        super().__init__()
        self.hidden = nn.Linear(dim, 2 * dim)
        self.out = nn.Linear(2 * dim, settings.vocab_size)
        self.codes = nn.Embedding(settings.vocab_size, settings.latent)
        config = {**{key: getattr(settings, key) for key in settings.__dataclass_fields__}, "in_channels": channels}
        self.pixels = vqgan.Decoder(FrozenDict(config), settings.latent)

    def logits(self, x: Tensor) -> Tensor:
        """Over the codes, (B, P, Q), of features (B, P, D)."""
        return self.out(torch.tanh(self.hidden(x)))

    def forward(self, x: Tensor, side: int) -> Tensor:
        expected = self.logits(x).softmax(-1) @ self.codes.weight  # (B, P, dim)
        return self.pixels(expected.transpose(1, 2).unflatten(2, (side, side)))

    def data_rows(self, name: str) -> DataRows:
        """The last layer alone depends on the channels of images, see Tokenizer.data_rows."""
        return {}


def initial_values(module: nn.Module) -> None:
    """Truncated normal of 0.02 for linear layers and patches, biases 0. Convolutions that make images keep torch's."""
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.trunc_normal_(module.weight, std=0.02)
    elif isinstance(module, Encoder):
        nn.init.trunc_normal_(module.patch_embed.weight, std=0.02)
        if module.patch_embed.bias is not None:
            nn.init.zeros_(module.patch_embed.bias)
    if isinstance(module, nn.Linear):
        nn.init.zeros_(module.bias)
