"""Shared by the tokenizers of the LlamaGen line: codes compared by angle or by distance, inside the convolutions of diffusers' VQModel.

Low-dimensional codes of unit length: ViT-VQGAN (Yu et al., arXiv 2110.04627, §3.2), LlamaGen (Sun et al., arXiv 2406.06525, §3.1).
Notation: B batch, C image channels, H = W image side, d numbers of a code, h = w = H / 2^(levels-1).
"""

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, VQModel
from diffusers.configuration_utils import FrozenDict
from diffusers.models.resnet import ResnetBlock2D
from torch import Tensor, nn

from mgen.tokenizers.base import check_convolutions
from mgen.tokenizers.quantizers import VectorQuantizer


class PlainQuantizer(VectorQuantizer):
    """Nearest code by distance, with the entropy term where the objective asks for it."""

    entropy = False

    def normalize(self) -> None:
        """Nothing to do: the length of a code matters."""


class SphereQuantizer(PlainQuantizer):
    """Nearest code by angle: latents and codes are normalized before they are compared, looked up and trained."""

    def __init__(self, *, vocab_size: int, dim: int) -> None:
        super().__init__(vocab_size=vocab_size, dim=dim)
        self.normalize()

    @torch.no_grad()
    def normalize(self) -> None:
        """Normalize the stored rows. Training changes their length, which matters to other readers of the weights only."""
        self.embedding.weight.copy_(F.normalize(self.embedding.weight, dim=-1))

    def scaled(self, vectors: Tensor, dim: int) -> Tensor:
        return F.normalize(vectors, dim=dim)

    def initialize(self, z: Tensor, rng: torch.Generator) -> None:
        """See VectorQuantizer.initialize."""
        super().initialize(z, rng)
        self.normalize()


def code_quantizer(*, vocab_size: int, dim: int, normalized: bool) -> PlainQuantizer:
    """The quantizer of a tokenizer of this line; without `normalized`, codes and latents keep their lengths."""
    return (SphereQuantizer if normalized else PlainQuantizer)(vocab_size=vocab_size, dim=dim)


def set_stem(vae: VQModel | AutoencoderKL, stem: int | None) -> None:
    """Give the first convolution of diffusers' encoder `stem` channels, if it has another number; None leaves it."""
    c = vae.config
    if stem is not None and stem != c.block_out_channels[0]:
        vae.encoder.conv_in = nn.Conv2d(c.in_channels, stem, 3, padding=1)
        vae.encoder.down_blocks[0].resnets[0] = ResnetBlock2D(
            in_channels=stem,
            out_channels=c.block_out_channels[0],
            temb_channels=None,
            groups=c.norm_num_groups,
            eps=1e-6,
        )


def sphere_vq(config: FrozenDict, *, z_channels: int, normalized: bool) -> VQModel:
    """diffusers' VQModel with attention at the last level and in the middle, and a quantizer of this line.

    Args:
        config: of a LlamaGenVQ, or of a HitaTokenizer. z_channels: width around the 1×1 convolutions.
        normalized: whether codes are compared by angle, see `code_quantizer`.
    """
    channels, vocab_size, latent = tuple(config.channels), config.vocab_size, config.latent
    plain = len(channels) - 1
    check_convolutions(image_size=config.image_size, widths=channels, stem=config.stem, norm_groups=config.norm_groups)
    vq = VQModel(
        in_channels=config.in_channels,
        out_channels=config.in_channels,
        down_block_types=("DownEncoderBlock2D",) * plain + ("AttnDownEncoderBlock2D",),
        up_block_types=("AttnUpDecoderBlock2D",) + ("UpDecoderBlock2D",) * plain,
        block_out_channels=channels,
        layers_per_block=config.layers,
        latent_channels=z_channels,
        sample_size=config.image_size,
        num_vq_embeddings=vocab_size,
        norm_num_groups=config.norm_groups,
        vq_embed_dim=latent,
        lookup_from_codebook=True,
    )
    # diffusers' quantizer neither normalizes nor has these losses; the names of the weights stay the same.
    vq.quantize = code_quantizer(vocab_size=vocab_size, dim=latent, normalized=normalized)
    set_stem(vq, config.stem)
    return vq
