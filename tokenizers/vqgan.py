"""VQGAN of the MaskGIT line: one convolutional tokenizer for MaskGIT, MAGE, AutoNAT, ENAT, ReCAP and RAR.

Architecture of google-research/maskgit (Chang et al., "MaskGIT", CVPR 2022, arXiv 2202.04200) after Esser et al., "Taming
Transformers" (arXiv 2012.09841): no attention, average pooling on the way down, no biases in most convolutions.
Parameter names are those of the PyTorch checkpoint `vqgan_jax_strongaug.ckpt`.

Notation: B batch, C image channels, H = W image side, h = w = H / 2^(levels-1) token grid, L = h·w.

| size | channels | multipliers | blocks | codes × dim | parameters |
|---|---|---|---|---|---|
| maskgit-f16 (256 and 512 px) | 128 | 1 1 2 2 4 | 2 | 1024 × 256 | 54.5 M |
"""

from collections import OrderedDict
from typing import Literal

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import FrozenDict, register_to_config
from diffusers.models.upsampling import Upsample2D
from torch import Tensor, nn

from mgen.tokenizers.base import CodebookTokenizer, Widths, check_convolutions, register_tokenizer
from mgen.tokenizers.quantizers import FSQ, FSQLevels, VectorQuantizer
from mgen.utils.estimates import checked_network
from mgen.utils.schema import Depth, Layers, Natural, Size


class ResBlock(nn.Module):
    """Two 3×3 convolutions, pre-norm. `shortcut="output"` keeps the official quirk where the channel count changes."""

    def __init__(self, c_in: int, c_out: int, groups: int, shortcut: str) -> None:
        super().__init__()
        self.norm1 = norm(c_in, groups)
        self.conv1 = nn.Conv2d(c_in, c_out, 3, padding=1, bias=groups == 0)
        self.norm2 = norm(c_out, groups)
        self.conv2 = nn.Conv2d(c_out, c_out, 3, padding=1, bias=groups == 0)
        self.shortcut = shortcut
        if c_in != c_out:
            self.nin_shortcut: nn.Module = nn.Conv2d(c_out if shortcut == "output" else c_in, c_out, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        h = self.conv2(F.silu(self.norm2(h)))
        if not hasattr(self, "nin_shortcut"):
            return x + h
        if self.shortcut == "fused":
            return h
        # Official code applies the 1×1 shortcut to the block's own output and drops x; "input" is the clean residual.
        return h + self.nin_shortcut(h if self.shortcut == "output" else x)

    def fuse(self) -> None:
        """Fold h + W·h, h = conv2(…), into one convolution with kernel (I + W)·conv2: saves the 1×1, equal up to rounding."""
        if not hasattr(self, "nin_shortcut") or self.shortcut != "output":
            return
        assert isinstance(self.nin_shortcut, nn.Conv2d)
        mix = self.nin_shortcut.weight.data[:, :, 0, 0]
        mix = mix + torch.eye(len(mix), dtype=mix.dtype, device=mix.device)
        self.conv2.weight.data = torch.einsum("oi,ichw->ochw", mix, self.conv2.weight.data)
        if self.conv2.bias is not None:
            self.conv2.bias.data = mix @ self.conv2.bias.data
        self.nin_shortcut = nn.Identity()
        self.shortcut = "fused"


def norm(channels: int, groups: int) -> nn.Module:
    return nn.GroupNorm(groups, channels, eps=1e-6) if groups else nn.Identity()


class Level(nn.Sequential):
    """The blocks of one resolution; in the decoder, all levels but the finest end with an upsampling."""

    def __init__(self, c_in: int, c_out: int, blocks: int, groups: int, shortcut: str, upsample: bool = False) -> None:
        super().__init__()
        self.block = nn.Sequential(*(ResBlock(c_out if b else c_in, c_out, groups, shortcut) for b in range(blocks)))
        if upsample:
            self.upsample = Upsample2D(c_out, use_conv=True)


def middle(channels: int, blocks: int, groups: int, shortcut: str) -> nn.Sequential:
    made = (ResBlock(channels, channels, groups, shortcut) for _ in range(blocks))
    return nn.Sequential(OrderedDict((f"block_{b}", block) for b, block in enumerate(made, start=1)))


class Encoder(nn.Module):
    def __init__(self, config: FrozenDict, latent: int) -> None:
        super().__init__()
        c, form = config, (config.norm_groups, config.shortcut)
        wide = [c.channels, *(c.channels * m for m in c.multipliers)]
        self.conv_in = nn.Conv2d(c.in_channels, c.channels, 3, padding=1, bias=False)
        self.down = nn.ModuleList(Level(a, b, c.blocks, *form) for a, b in zip(wide, wide[1:]))
        self.mid = middle(wide[-1], c.mid_blocks, *form)
        self.norm_out = norm(wide[-1], c.norm_groups)
        self.conv_out = nn.Conv2d(wide[-1], latent, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_in(x)
        for i, level in enumerate(self.down):
            x = level(x if i == 0 else F.avg_pool2d(x, 2))
        return self.conv_out(F.silu(self.norm_out(self.mid(x))))  # (B, z, h, w)


class Decoder(nn.Module):
    def __init__(self, config: FrozenDict, latent: int) -> None:
        super().__init__()
        c, form = config, (config.norm_groups, config.shortcut)
        wide = [c.channels * m for m in (*c.multipliers, c.multipliers[-1])]
        self.conv_in = nn.Conv2d(latent, wide[-1], 3, padding=1)
        self.mid = middle(wide[-1], c.mid_blocks, *form)
        # Stored finest level first, as in the checkpoint; run from the coarsest.
        levels = enumerate(zip(wide[1:], wide))
        self.up = nn.ModuleList(Level(a, b, c.blocks, *form, upsample=i > 0) for i, (a, b) in levels)
        self.norm_out = norm(wide[0], c.norm_groups)
        self.conv_out = nn.Conv2d(wide[0], c.in_channels, 3, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        x = self.mid(self.conv_in(z))
        for level in reversed(self.up):
            x = level(x)
        return self.conv_out(F.silu(self.norm_out(x)))  # (B, C, H, W)


@register_tokenizer
class VQGAN(CodebookTokenizer):
    """Image ⇄ ids. Images are (B, C, H, W) in [-1, 1]; the network works on [0, 1], like the official one.

    Args:
        image_size: H = W in pixels, a multiple of 2^(levels - 1). The weights work at any such size. in_channels: C.
        channels, multipliers: base width and its factor per level. blocks, mid_blocks: residual blocks per level and in the middle.
        latent: channels of a code vector. vocab_size: codebook rows. `fsq_levels` overrides both.
        norm_groups: groups of the GroupNorms; 0 drops the norms and gives the convolutions biases (small models).
        shortcut: "output" (official, see ResBlock) or "input" (an ordinary residual).
        fsq_levels: use finite scalar quantization with these levels instead of a codebook.
    """

    SIZES = {"maskgit-f16": dict(channels=128, multipliers=(1, 1, 2, 2, 4), blocks=2, latent=256, vocab_size=1024)}
    DECODER_WEIGHTS = ("decoder.",)

    @register_to_config
    @checked_network
    def __init__(
        self,
        *,
        image_size: Size = 256,
        in_channels: Size = 3,
        channels: Size = 128,
        multipliers: Widths = (1, 1, 2, 2, 4),
        blocks: Layers = 2,
        mid_blocks: Depth = 2,
        latent: Size = 256,
        vocab_size: Size = 1024,
        norm_groups: Natural = 32,
        shortcut: Literal["output", "input"] = "output",
        fsq_levels: FSQLevels | None = None,
    ) -> None:
        super().__init__()
        wide = tuple(channels * factor for factor in multipliers)
        check_convolutions(image_size=image_size, widths=wide, stem=channels, norm_groups=norm_groups)
        self.factor = 2 ** (len(multipliers) - 1)
        latent = len(fsq_levels) if fsq_levels else latent
        self.encoder, self.decoder = Encoder(self.config, latent), Decoder(self.config, latent)
        self.quantize: FSQ | VectorQuantizer
        self.quantize = FSQ(levels=fsq_levels) if fsq_levels else VectorQuantizer(vocab_size=vocab_size, dim=latent)

    def latents(self, images: Tensor) -> Tensor:
        return self.encoder((self.prepared(images) + 1) / 2)

    def decode_latents(self, z: Tensor) -> Tensor:
        return self.decoder(z) * 2 - 1

    def fuse(self) -> "VQGAN":
        """Fold the official shortcuts into their convolutions for inference. A fused model cannot be saved."""
        for module in self.modules():
            if isinstance(module, ResBlock):
                module.fuse()
        return self
