"""Where the tokens of a batch come from: the images and a frozen tokenizer, or a cache."""

import torch
from torch import Tensor

from mgen.data.first_stage import shrink
from mgen.training.noise import AugmentationNoise
from mgen.utils.modeling import Model

Batch = dict[str, Tensor]
SMALL = "first_stage_"  # prefix of the entries of a cache that hold smaller copies of the images


class TokenSource:
    """Tokens of a batch, at the size of the images or of smaller copies.

    Args:
        tokenizer: frozen; None for batches that hold tokens.
        scale: (n, m) for copies of n / m times the size of the images; None: the images themselves.
    """

    def __init__(self, tokenizer: Model | None, *, scale: tuple[int, int] | None = None) -> None:
        self.tokenizer, self.scale = tokenizer, scale
        self.prefix = "" if scale is None else SMALL

    @property
    def posterior_shape(self) -> tuple[int, ...] | None:
        """Shape (c, h, w) of the noise for the posterior of one image; None for a tokenizer without a posterior."""
        shape = None if self.tokenizer is None else self.tokenizer.noise_shape()
        if shape is None or self.scale is None:
            return shape
        small, side = self.scale
        return (shape[0], *(n * small // side for n in shape[1:]))

    def tokens(self, batch: Batch, augmentation: AugmentationNoise, posterior: Tensor | None = None) -> Tensor:
        """Tokens (B, L) or (B, L, C).

        Args:
            batch: "tokens" (B, V, L), "moments" (B, V, 2c or c, h, w) or "image" (B, C, H, W); V views, the last one flipped.
            posterior: standard normal (B, c, h, w), for a tokenizer that samples its posterior.
        """
        for name in (f"{self.prefix}tokens", f"{self.prefix}moments"):
            if name in batch:
                views, flip = batch[name], augmentation.flip
                view = views[:, 0]
                if flip is not None:
                    view = torch.where(flip.view(-1, *[1] * (view.ndim - 1)), views[:, -1], view)
                if name.endswith("tokens"):
                    return view
                assert self.tokenizer is not None
                return self.tokenizer.tokens(view.float(), posterior)  # a cache may hold fp16
        assert self.tokenizer is not None
        # In fp32 whatever the precision of the run: rounding changes ids, and a cache holds those of fp32.
        with torch.no_grad(), torch.autocast(batch["image"].device.type, enabled=False):
            images = augmentation.apply(batch["image"])
            if self.scale is not None:
                small, side = self.scale
                images = shrink(images, images.shape[-1] * small // side)
            if posterior is None:
                return self.tokenizer.encode(images)
            return self.tokenizer.encode(images, noise=posterior)
