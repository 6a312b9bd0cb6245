"""TokenBridge's tokenizer: a KL autoencoder whose latent numbers are quantized one by one after training.

Wang et al., "Bridging Continuous and Discrete Tokens for Autoregressive Visual Generation" (2025, arXiv 2503.16430), §3.2. Nothing
is trained: any KLTokenizer works. The levels come from mgen/nn/levels.py.

Notation: B batch, L tokens of C numbers each, Q levels; c, h, w channels and sides of the latent (C = c·p² for a patch p).

| made of | C | Q | range | form |
|---|---|---|---|---|
| kl16 (published) | 16 | 64 | -5 … 5 | published |
"""

from typing import Annotated, Any

from diffusers.configuration_utils import register_to_config
from pydantic import Field
from torch import Tensor

from mgen.nn.levels import dequantize, gaussian_levels, quantize
from mgen.tokenizers.base import PosteriorTokenizer, Tokenizer, register_tokenizer
from mgen.tokenizers.kl import KLTokenizer
from mgen.tokens import Bound, Form, LevelSpec, Span, TokenSpec, check_range
from mgen.utils.errors import MgenError
from mgen.utils.estimates import checked_network
from mgen.utils.fitting import DataRows, Rows, below
from mgen.utils.modeling import check_keys, constructor_keys
from mgen.utils.schema import Listed, Natural, Size


@register_tokenizer
class QuantizedKL(PosteriorTokenizer):
    """Image ⇄ ids (B, L, C), one of Q per number of a token. Images are (B, C, H, W) in [-1, 1].

    Args:
        kl: constructor arguments of the inner KLTokenizer, `continuous`; its scale must be set.
        image_size: in pixels, if it differs from that of `kl`. in_channels: those of `kl`, repeated for readers of the configuration.
        levels: Q. low, high: the range of scaled latents that the levels cover; values outside get the outermost level.
        span, form: of the levels, see `gaussian_levels`.
        channel_order: the C channels in the order a generator should predict them; the tokenizer ignores it.
    """

    @register_to_config
    @checked_network
    def __init__(
        self,
        *,
        kl: dict[str, Any],
        image_size: Size | None = None,
        in_channels: Size | None = None,
        levels: Annotated[int, Field(ge=2, le=2**16)] = 64,
        low: Bound = -5.0,
        high: Bound = 5.0,
        span: Span = 3.0,
        form: Form = "published",
        channel_order: Listed[tuple[Natural, ...]] | None = None,
    ) -> None:
        super().__init__()
        check_keys(kl, constructor_keys(KLTokenizer), "kl.")
        check_range(low, high)
        try:
            self.continuous = KLTokenizer(**{**kl, **({} if image_size is None else {"image_size": image_size})})
        except MgenError as error:
            raise MgenError(f"kl: {error}") from error
        own = self.continuous.config
        if own.scale is None:
            raise MgenError(
                "the KL tokenizer has no scale: measure it with mgen cache --data DATA --tokenizer DIR --measure-scale 2000"
            )
        if in_channels not in (None, own.in_channels):
            raise MgenError(f"in_channels is {in_channels} but kl has {own.in_channels}: leave in_channels out")
        self.register_to_config(image_size=own.image_size, in_channels=own.in_channels)
        self.stride, self.factor = self.continuous.stride, self.continuous.factor
        if channel_order is not None and sorted(channel_order) != list(range(self.spec.channels)):
            raise MgenError(
                f"channel_order {list(channel_order)} is not a permutation of the channels 0 … {self.spec.channels - 1}"
            )
        # Saved with the weights, so that a checkpoint keeps its levels to the last bit.
        self.register_buffer("level_values", gaussian_levels(levels, span=span, form=form)[0])
        self.level_values: Tensor

    @classmethod
    def wrap(cls, tokenizer: KLTokenizer, **settings: object) -> "QuantizedKL":
        """A quantized tokenizer with a copy of the weights of `tokenizer`; `settings` are the other constructor arguments."""
        kl = {k: v for k, v in tokenizer.config.items() if k in constructor_keys(KLTokenizer)}
        made = cls(kl=kl, **settings)
        made.continuous.load_state_dict(tokenizer.state_dict())
        return made.to(tokenizer.device).train(tokenizer.training)

    def data_rows(self) -> DataRows:
        levels = Rows("levels", tuple(self.level_values.shape), "computed")
        return below("continuous", self.continuous.data_rows()) | {"level_values": {0: (levels,)}}

    @property
    def spec(self) -> TokenSpec:
        c, own = self.config, self.continuous.config
        side = c.image_size // self.factor
        return TokenSpec(
            kind="multi-index",
            length=side * side,
            grid=(side, side),
            vocab_size=c.levels,
            channels=own.latent_channels * own.patch**2,
            scale=own.scale,
            levels=LevelSpec(form=c.form, **self._range()),
        )

    def _range(self) -> dict[str, float]:
        return {name: self.config[name] for name in ("low", "high", "span")}

    def moments(self, images: Tensor) -> Tensor:
        """Mean and log-variance (B, 2c, h, w) of the inner KL tokenizer's posterior."""
        return self.continuous.moments(images)

    def tokens(self, moments: Tensor, noise: Tensor | None = None) -> Tensor:
        """Ids (B, L, C) int64 in 0 … Q-1 of moments (B, 2c, h, w): of the mean, or of a sample with `noise` (B, c, h, w)."""
        return quantize(self.continuous.tokens(moments, noise), self.level_values, **self._range())

    def values(self, ids: Tensor) -> Tensor:
        """Scaled latents (B, L, C) fp32 of ids (B, L, C)."""
        return dequantize(ids, self.level_values, **self._range())

    def decode(self, ids: Tensor, grid: tuple[int, int] | None = None) -> Tensor:
        """Images of ids (B, L, C) in 0 … Q-1; `grid` (rows, columns) if it is not square."""
        return self.continuous.decode(self.values(ids), self.grid_of(ids, grid))

    def noise_shape(self) -> tuple[int, ...]:
        """Shape (c, h, w) of the posterior's noise for one image of `image_size`."""
        side = self.config.image_size // self.stride
        return self.continuous.config.latent_channels, side, side

    def fingerprint(self) -> str:
        """The fingerprint of the inner KL tokenizer: a cache of moments works for both and for any levels."""
        return self.continuous.fingerprint()

    def forward(self, images: Tensor) -> tuple[Tensor, dict[str, Tensor], dict[str, Tensor]]:
        """Raise MgenError: there is nothing to train."""
        raise MgenError("a QuantizedKL is not trained: train its KLTokenizer, then run mgen convert quantize")


def kl_tokenizer(tokenizer: Tokenizer, option: str) -> KLTokenizer:
    """The KL tokenizer that a tokenizer is or holds; MgenError, naming the option that needs one, for others."""
    found = tokenizer.continuous if isinstance(tokenizer, QuantizedKL) else tokenizer
    if not isinstance(found, KLTokenizer):
        raise MgenError(f"{option} is for KL tokenizers: a {type(tokenizer).__name__} makes ids")
    return found


def measurable(tokenizer: Tokenizer, option: str) -> PosteriorTokenizer:
    """The tokenizer whose latents can be measured that a tokenizer is or holds; MgenError, naming the option, for others."""
    if isinstance(tokenizer, PosteriorTokenizer) and tokenizer.spec.kind == "vector":
        return tokenizer
    return kl_tokenizer(tokenizer, option)
