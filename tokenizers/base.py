"""The contract of tokenizers, image ⇄ tokens, and their registry.

Notation: B batch, C image channels, H × W pixels, L tokens, K numbers or ids of a token; c, h, w channels and sides of a latent.

Who calls what, in which order:

| caller | calls |
|---|---|
| training of a tokenizer | `initialize_codebooks(images, rng)` once, then `corruption(…)` and `forward(images)`; `measure` at the end |
| a token cache | `fingerprint()`, then `moments` (tokenizers with a posterior) or `encode` |
| training of a generator | `spec`; `encode(images)`, or `tokens(moments, noise)` of cached moments |
| sampling | `spec`, `unused_tail`, `fuse()` once, `decode(tokens)` |
| evaluation of reconstructions | `noise_shape()`, `encode(images, noise=…)`, `decode(tokens)` |
"""

import hashlib
import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Self, TypeVar

import torch
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from pydantic import Field
from torch import Tensor

from mgen.tokenizers.corruption import Corruption, make_corruption
from mgen.tokenizers.quantizers import Quantized, VectorQuantizer, codebook_usage
from mgen.tokens import TokenSpec, has_values
from mgen.utils.errors import MgenError, shown
from mgen.utils.fitting import DataRows, Rows, below
from mgen.utils.modeling import Model, public
from mgen.utils.schema import Listed, Size

if TYPE_CHECKING:
    from mgen.tokenizers.vision import VisionEncoder

T = TypeVar("T", bound="type[Tokenizer]")
TOKENIZERS: dict[str, "type[Tokenizer]"] = {}
LARGEST_VALUE = 10.0  # of an image; by far more than bicubic resizing adds to [-1, 1]
# Arguments that the convolutional sizes for Fashion-MNIST share.
FMNIST: dict[str, object] = dict(image_size=32, in_channels=1, layers=1, norm_groups=8)
# Widths of the levels of a convolutional network, finest first.
Widths = Listed[Annotated[tuple[Size, ...], Field(min_length=1, max_length=16)]]


def check_convolutions(
    *, image_size: int, widths: tuple[int, ...], norm_groups: int, stem: int | None = None, patch: int = 1
) -> None:
    """Raise MgenError unless the groups of the norms divide all widths, and the downsampling the image.

    Args:
        widths: of every level, each half the side of the one before; stem: in front of them. norm_groups: 0 for none.
        patch: side of the patches that are joined behind the last level.
    """
    wide = widths if stem is None else (stem, *widths)
    if norm_groups and (odd := [width for width in wide if width % norm_groups]):
        raise MgenError(f"norm_groups is {norm_groups}: it must divide the width of every level, and {odd[0]} is one")
    stride = 2 ** (len(widths) - 1)
    if image_size % (stride * patch):
        behind = f" times patch {patch}" if patch > 1 else ""
        raise MgenError(
            f"image_size {image_size} is not a multiple of {stride * patch}, the downsampling of {len(widths)} levels{behind}"
        )
    if image_size > 1024 * stride * patch:
        side = image_size // (stride * patch)
        raise MgenError(
            f"image_size {image_size} makes {side}×{side} tokens of an image: at most 1024×1024 are allowed"
        )


def register_tokenizer(cls: T) -> T:
    """Add a tokenizer to `TOKENIZERS` under its class name and make it public as `mgen.<Class>`."""
    TOKENIZERS[cls.__name__] = cls
    return public(cls)


class Tokenizer(Model):
    """A network that turns images (B, C, H, W) in [-1, 1] into tokens and tokens into images.

    Subclasses set `factor` and implement `spec`, `encode`, `decode` and `forward`; the rest has defaults. Their configuration has
    `image_size` (H = W in pixels, a multiple of `factor`) and `in_channels` (C).
    """

    factor: int  # pixels per grid cell and axis
    # Constructor arguments of the sizes in the module's table.
    SIZES: ClassVar[dict[str, dict[str, object]]] = {}
    # Configuration keys that do not change what a token cache stores of an image.
    CACHE_NEUTRAL: ClassVar[tuple[str, ...]] = ("image_size",)
    # Arguments that came after models had been saved, with the values that stand for what those do. At these values they stay out of
    # the configuration: saved models, token caches and checkpoints of before remain what they are.
    LATER: ClassVar[dict[str, object]] = {}
    # Names of weights that only decoding uses begin with these: a new decoder leaves a token cache valid.
    DECODER_WEIGHTS: ClassVar[tuple[str, ...]] = ()
    # Whether the weights work at other image sizes than `image_size`.
    ANY_SIZE: ClassVar[bool] = True
    # The convolutions that take images and make them.
    ENDS: ClassVar[tuple[str, str]] = ("encoder.conv_in", "decoder.conv_out")
    # What of a CorruptionConfig it can be trained with.
    CORRUPTIONS: ClassVar[tuple[str, ...]] = ()

    @property
    def ends(self) -> tuple[str, str]:
        """Names of the layers that take images and make them."""
        return self.ENDS

    def register_to_config(self, **kwargs: Any) -> None:
        """See diffusers' ConfigMixin; leaves out what `LATER` says."""
        later = self.LATER
        super().register_to_config(**{k: v for k, v in kwargs.items() if k not in later or v != later[k]})

    @property
    def spec(self) -> TokenSpec:
        """The tokens of one image of `image_size` pixels."""
        raise NotImplementedError

    @property
    def unused_tail(self) -> int:
        """The number of last tokens that `decode` ignores, so that samplers can skip them."""
        return 0

    def encode(self, images: Tensor) -> Tensor:
        """Tokens of images (B, C, H, W) in [-1, 1]: ids (B, L) or (B, L, K) int64, or vectors (B, L, K), row by row.

        Raises an MgenError for what is no batch of such images, see `prepared`.
        """
        raise NotImplementedError

    def decode(self, tokens: Tensor, grid: tuple[int, int] | None = None) -> Tensor:
        """Images (B, C, H, W), about [-1, 1] and not clamped; `grid` (rows, columns) if it is not square."""
        raise NotImplementedError

    def forward(self, images: Tensor) -> tuple[Tensor, dict[str, Tensor], dict[str, Tensor]]:
        """For training: reconstructions (B, C, H, W), unweighted loss terms (scalars), and metrics to log (scalars)."""
        raise NotImplementedError

    def initialize_codebooks(self, images: Tensor, rng: torch.Generator) -> None:
        """Place codebook rows on the latents of images (B, C, H, W). Nothing to do without a learned codebook."""

    def noise_shape(self) -> tuple[int, ...] | None:
        """Shape (c, h, w) of the noise that samples the posterior of one image; None if encoding is deterministic."""
        return None

    def corruption(
        self, count: int, rng: torch.Generator, *, noise: float = 0.0, form: str = "interpolated", mask: float = 0.0
    ) -> Corruption | None:
        """How the latents of `count` images are corrupted in a step of training; None: not at all.

        Args:
            noise: γ, the standard deviation of the noise at level 1; 0: none. Every image has its own level t, uniform in [0, 1].
            form: "interpolated": (1 − t)·z + t·γ·ε; "additive": z + t·γ·ε.
            mask: M; the share of patches that the encoder does not see is max(0, U(−0.1, M)), one for the batch. 0: it sees all.

        Raises:
            MgenError: this tokenizer can't be trained like that.
        """
        for name, value in (("noise", noise), ("mask", mask)):
            if value and name not in self.CORRUPTIONS:
                able = sorted(n for n, cls in TOKENIZERS.items() if name in cls.CORRUPTIONS)
                raise MgenError(
                    f"objective.corruption.{name} is {value:g}, but a {type(self).__name__} cannot be trained with it: set it to 0, or "
                    f"use {' or '.join(able)}"
                )
        shape = self.noise_shape()
        if shape is None or not (noise or mask):
            return None
        return make_corruption(count, shape, rng, noise=noise, form=form, mask=mask, patches=self.spec.length)

    @property
    def unmeasured(self) -> bool:
        """Whether its tokens still lack what `measure` gives, so that no generator can be trained on them."""
        return False

    def measure(self, batches: Iterable[Tensor]) -> dict[str, object]:
        """Entries of its configuration that bring the tokens of image batches (B, C, H, W) in [-1, 1] to unit variance."""
        raise MgenError(f"a {type(self).__name__} has nothing to measure: its tokens are ids")

    def fuse(self) -> Self:
        """Fold what can be folded, for faster decoding. A fused tokenizer cannot be saved. Nothing to fold by default."""
        return self

    def at_size(self, image_size: int) -> Self:
        """A tokenizer with these weights for images of another side in pixels; MgenError for a side that it can't have."""
        if image_size == self.config.image_size:
            return self
        if not self.ANY_SIZE:
            raise MgenError(
                f"image_size is {image_size}: the weights of this {type(self).__name__} are for images of "
                f"{self.config.image_size} pixels alone"
            )
        config = {k: v for k, v in self.config.items() if not k.startswith("_")}
        try:
            made = type(self).from_config({**config, "image_size": image_size})
        except MgenError as error:
            raise MgenError(f"the tokenizer has no images of {image_size} pixels: {error}") from error
        made.load_state_dict(self.state_dict())
        return made.to(self.device, self.dtype).train(self.training)

    def side_for(self, tokens: TokenSpec) -> int:
        """Side in pixels of the images that `tokens` describe; MgenError for tokens that this tokenizer can't have."""
        return self.factor * tokens.side if self.ANY_SIZE else int(self.config.image_size)

    def use_vision(self, source: "VisionEncoder | str | Path", *, heads: int | None = None) -> Self:
        """Attach a frozen vision encoder, or load it from a local file; MgenError except for Hita tokenizers that take one."""
        raise MgenError(f"a {type(self).__name__} takes no vision encoder: leave the vision weights out")

    def data_rows(self) -> DataRows:
        """See Model.data_rows: the channels of images, in the convolutions at both ends; those with codebooks add them."""
        channels = (Rows("image channels", (self.config.in_channels,)),)
        first, last = self.ends
        return {f"{first}.weight": {1: channels}, f"{last}.weight": {0: channels}, f"{last}.bias": {0: channels}}

    def fingerprint(self) -> str:
        """SHA-256 of the configuration and weights that decide an image's ids or moments; the decoder's are left out."""
        config = {k: v for k, v in dict(self.config).items() if not k.startswith("_") and k not in self.CACHE_NEUTRAL}
        digest = hashlib.sha256(json.dumps(config, sort_keys=True, default=list).encode())
        for name, value in sorted(self.state_dict().items()):
            if not name.startswith(self.DECODER_WEIGHTS):
                digest.update(name.encode())
                digest.update(value.detach().cpu().float().contiguous().numpy().tobytes())
        return digest.hexdigest()

    def prepared(self, images: Tensor, *, values: bool = False) -> Tensor:
        """Images (B, C, H, W) in the precision of the weights.

        Args:
            values: also look at the values. They may leave [-1, 1] by some, as resized images do, but not lie in 0 … 255.

        Raises:
            MgenError: these are no images of this tokenizer.
        """
        wanted = f"a {type(self).__name__} takes float images (B, {self.config.in_channels}, H, W) in [-1, 1]"
        if not isinstance(images, Tensor):
            raise MgenError(f"images are a {type(images).__name__}: {wanted}")
        if not images.is_floating_point():
            raise MgenError(
                f"images are of type {str(images.dtype)[6:]}: {wanted}; for 0 … 255 that is images / 127.5 - 1"
            )
        if images.ndim != 4 or images.shape[1] != self.config.in_channels or not images.numel():
            raise MgenError(f"images are of shape {tuple(images.shape)}: {wanted}")
        if any(side % self.factor for side in images.shape[-2:]):
            raise MgenError(
                f"image size {tuple(images.shape[-2:])} is not a multiple of {self.factor}: resize or crop it first"
            )
        if values and not has_values(images):
            raise MgenError(f"images are {shown(images)}: {wanted}")
        if values and not (most := images.detach().abs().amax().item()) <= LARGEST_VALUE:
            what = "not finite" if not math.isfinite(most) else f"up to {most:g}"
            raise MgenError(f"values of images are {what}: {wanted}; for 0 … 255 that is images / 127.5 - 1")
        return images.to(self.dtype)

    def grid_of(self, tokens: Tensor, grid: tuple[int, int] | None) -> tuple[int, int]:
        """Rows and columns of tokens (B, L) or (B, L, C): `grid`, or a square; of tokens without a place in the image, one row.

        MgenError for what is no tokens of this tokenizer.
        """
        spec = self.spec
        wanted = (
            f"a {type(self).__name__} decodes tokens {'(B, L)' if spec.kind == 'index' else f'(B, L, {spec.channels})'}"
        )
        if not isinstance(tokens, Tensor):
            raise MgenError(f"tokens are a {type(tokens).__name__}: {wanted}")
        fits = tokens.is_floating_point() if spec.kind == "vector" else tokens.dtype in (torch.int64, torch.int32)
        if not fits:
            raise MgenError(
                f"tokens are of type {str(tokens.dtype)[6:]}: {wanted} of {'real numbers' if spec.kind == 'vector' else 'int64'}"
            )
        shape = tuple(tokens.shape)
        if len(shape) != 1 + len(spec.shape) or shape[2:] != spec.shape[1:] or not tokens.numel():
            raise MgenError(f"tokens are of shape {shape}: {wanted}")
        count = shape[1] - spec.global_tokens
        if spec.grid is None and (count != spec.length or grid not in (None, (1, count), [1, count])):
            where = f" on a grid {shown(grid)}" if grid is not None else ""
            raise MgenError(
                f"tokens are of shape {shape}{where}: {wanted} with L = {spec.length}, which have no place in the image; give all of "
                "them, and no grid"
            )
        side = math.isqrt(max(0, count))
        if grid is not None and not (isinstance(grid, tuple | list) and [type(n) for n in grid] == [int, int]):
            raise MgenError(f"grid is {shown(grid)}: expected (rows, columns), or None for a square")
        rows, columns = grid or ((side, side) if spec.grid is not None else (1, count))
        if rows < 1 or rows * columns != count:
            what = f"{shape[1]} {'tokens' if spec.kind == 'vector' else 'ids'}"
            after = f" after {spec.global_tokens} global ones" if spec.global_tokens else ""
            raise MgenError(
                f"{what} make no grid of {rows}×{columns}{after}: give all of them, and grid=(rows, columns)"
            )
        if spec.vocab_size is not None and not tokens.is_meta:
            low, high = (int(v) for v in tokens.aminmax())
            if low < 0 or high >= spec.vocab_size:
                raise MgenError(f"tokens are from {low} to {high}: {wanted} of 0 … {spec.vocab_size - 1}")
        return rows, columns


class CodebookTokenizer(Tokenizer):
    """A tokenizer whose tokens are the ids of one quantizer, `quantize`. Subclasses implement `latents` and `decode_latents`."""

    QUANTIZER: ClassVar[str] = "quantize"  # its name among the weights

    @property
    def spec(self) -> TokenSpec:
        side = self.config.image_size // self.factor
        return TokenSpec(kind="index", length=side * side, grid=(side, side), vocab_size=self.quantize.vocab_size)

    def data_rows(self) -> DataRows:
        quantizer = self.quantize
        own = below(self.QUANTIZER, quantizer.data_rows()) if isinstance(quantizer, VectorQuantizer) else {}
        return super().data_rows() | own

    def latents(self, images: Tensor) -> Tensor:
        """Features before quantization (B, d, h, w) of images (B, C, H, W) in [-1, 1]."""
        raise NotImplementedError

    def decode_latents(self, z: Tensor) -> Tensor:
        """Images (B, C, H, W), about [-1, 1] and not clamped, of code vectors z (B, d, h, w)."""
        raise NotImplementedError

    def encode(self, images: Tensor) -> Tensor:
        """Ids (B, L) int64, row by row, of images (B, C, H, W) in [-1, 1]."""
        return self.quantize.ids(self.latents(self.prepared(images, values=True))).flatten(1)  # (B, L)

    def decode(self, ids: Tensor, grid: tuple[int, int] | None = None) -> Tensor:
        """Images of ids (B, L) int64 in 0 … vocab_size − 1; `grid` (h, w) if it is not square."""
        grid = self.grid_of(ids, grid)
        values = self.quantize.lookup(ids.unflatten(1, grid))
        return self.decode_latents(values.to(self.dtype))

    @torch.no_grad()
    def initialize_codebooks(self, images: Tensor, rng: torch.Generator) -> None:
        """Place the codebook's rows on latents of these images (B, C, H, W); see VectorQuantizer.initialize."""
        if isinstance(self.quantize, VectorQuantizer):  # FSQ has nothing to initialize
            self.quantize.initialize(self.latents(images), rng)

    def forward(self, images: Tensor) -> tuple[Tensor, dict[str, Tensor], dict[str, Tensor]]:
        """For training: reconstructions (B, C, H, W), the quantizer's losses, usage and perplexity of the codebook."""
        quantized: Quantized = self.quantize(self.latents(images))
        usage = codebook_usage(quantized.ids, self.quantize.vocab_size)
        return self.decode_latents(quantized.values), quantized.losses, usage


class PosteriorTokenizer(Tokenizer):
    """A tokenizer whose encoder gives a Gaussian posterior: caches store its moments, so that training samples it afresh.

    Subclasses implement `moments`, `tokens` and `noise_shape`. A deterministic encoder has no variance (`has_variance`): its moments are
    the latents (B, c, h, w), and `noise_shape` is None.
    """

    has_variance: ClassVar[bool] = True

    def posterior(self, moments: Tensor) -> DiagonalGaussianDistribution:
        """The Gaussian q(z | image), with diffusers' mean, std, logvar clamped to [-30, 20], kl() and nll().

        Without a variance (`has_variance`) moments are its mean, and its standard deviation is 0.
        """
        if self.has_variance:
            return DiagonalGaussianDistribution(moments.float())
        both = torch.cat([moments, torch.zeros_like(moments)], dim=1)
        return DiagonalGaussianDistribution(both.float(), deterministic=True)

    def posterior_sample(self, moments: Tensor, noise: Tensor | None = None) -> Tensor:
        """The posterior's mean (B, c, h, w) of moments (B, 2c, h, w), or a sample with standard normal `noise` (B, c, h, w)."""
        posterior = self.posterior(moments)
        if noise is None:
            return posterior.mean
        fits = isinstance(noise, Tensor) and noise.shape == posterior.mean.shape and noise.is_floating_point()
        if not fits or noise.device != posterior.mean.device:
            raise MgenError(
                f"noise is {shown(noise)}: a float tensor {tuple(posterior.mean.shape)} is needed on {posterior.mean.device}"
            )
        return posterior.mean + posterior.std * noise

    def moments(self, images: Tensor) -> Tensor:
        """Mean and log-variance (B, 2c, h, w) of the posterior of images (B, C, H, W) in [-1, 1]."""
        raise NotImplementedError

    def tokens(self, moments: Tensor, noise: Tensor | None = None) -> Tensor:
        """Tokens (B, L, K) of moments (B, 2c, h, w): of the posterior's mean, or of a sample with standard normal `noise` (B, c, h, w)."""
        raise NotImplementedError

    def encode(self, images: Tensor, *, noise: Tensor | None = None) -> Tensor:
        """Tokens (B, L, K), row by row, of images (B, C, H, W) in [-1, 1]; `noise` as in `tokens`."""
        return self.tokens(self.moments(self.prepared(images, values=True)), noise)

    @property
    def unmeasured(self) -> bool:
        """Whether the scale of its latents is still to be measured."""
        return self.config.get("scale", 1.0) is None

    def measure(self, batches: Iterable[Tensor]) -> dict[str, object]:
        """The `scale` for these image batches, see `estimate_scale`."""
        return {"scale": estimate_scale(self, batches)}


@torch.inference_mode()
def estimate_scale(tokenizer: PosteriorTokenizer, batches: Iterable[Tensor]) -> float:
    """1 / standard deviation of the shifted latents of images, including the posterior's noise: the `scale` for these data.

    Args:
        batches: image batches (B, C, H, W) in [-1, 1]; a thousand images give three digits.

    Raises:
        MgenError: there are no images, or their latents are not finite or all equal.
    """
    count, first, second = 0, 0.0, 0.0  # numbers, their sum, sum of squares
    for images in batches:
        posterior = tokenizer.posterior(tokenizer.moments(images.to(tokenizer.device)))
        mean = posterior.mean.double() - tokenizer.config.get("shift", 0.0)
        count += mean.numel()
        first += mean.sum().item()
        second += (mean.square() + posterior.var.double()).sum().item()
    variance = second / count - (first / count) ** 2 if count else 0.0
    if not 0 < variance < float("inf"):
        raise MgenError(f"cannot estimate a scale from {count} latent numbers with variance {variance}")
    return variance**-0.5
