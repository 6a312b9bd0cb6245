"""Tokens of images that exist are sampled again: the part of editing that needs no picture, only tokens and a mask of them."""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from mgen.pipelines.arguments import check_tokens
from mgen.pipelines.editing import check_editable, first_stage_of
from mgen.pipelines.pipeline import Classes, MaskedPipeline, decode_finite
from mgen.pipelines.pixels import to_uint8
from mgen.samplers import ParallelSampler, Step
from mgen.samplers.forward import whole_units
from mgen.utils.errors import MgenError, shown


@torch.inference_mode()
def resample(
    pipe: MaskedPipeline,
    tokens: Tensor,
    masked: Tensor,
    classes: Classes,
    *,
    seed: int = 0,
    indices: Sequence[int] | None = None,
    sampler: ParallelSampler | None = None,
    callback: Callable[[Step], None] | None = None,
) -> tuple[Tensor, Tensor]:
    """Images whose masked tokens are sampled again, as another class if wanted; all other tokens of the grid stay exactly as they are.

    Args:
        tokens: ids (B, L) or vectors (B, L, C), one row per entry of `classes`. masked: bool (B, h·w), places of the grid. Of windows
            of tokens the whole window is sampled; global tokens always are, for they describe the masked part too.
        seed, indices, sampler, callback: as of the pipeline's call.

    Returns:
        The tokens, and the images uint8 (B, C, H, W).

    Raises:
        MgenError: a causal generator, tokens without a place in the image, no token masked, shapes that do not fit.
    """
    grid, spec, device = check_editable(pipe), pipe.transformer.tokens, pipe.transformer.device
    shape = (len(tokens), grid[0] * grid[1]) if isinstance(tokens, Tensor) and tokens.ndim else ()
    if not isinstance(masked, Tensor) or masked.dtype != torch.bool or tuple(masked.shape) != shape:
        raise MgenError(
            f"masked is {shown(masked)}: a bool mask {shape} is needed, True for tokens that are sampled again"
        )
    if not masked.any(1).all():
        raise MgenError("no token is masked: choose at least one token of each image")
    known = whole_units(pipe.transformer, F.pad(~masked, (spec.global_tokens, 0)).to(device))
    stage = None
    if pipe.transformer.capabilities.two_stages:
        images = to_uint8(decode_finite(pipe.tokenizer, check_tokens(tokens, spec).to(device)))
        pixels = F.interpolate(masked.view(-1, 1, *grid).float(), images.shape[-2:]) > 0.5
        stages = [first_stage_of(pipe, image, mask[0].cpu(), 1, dilate=0) for image, mask in zip(images, pixels)]
        stage = torch.cat([s[0] for s in stages]), torch.cat([s[1] for s in stages])
    made = pipe(
        classes,
        seed=seed,
        indices=indices,
        sampler=sampler,
        tokens=tokens,
        known=known,
        first_stage=stage,
        output_type="uint8",
        progress=False,
        callback=callback,
    )
    return made.tokens, made.images
