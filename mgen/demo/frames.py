"""A step of the sampler as pictures: what is known so far, with the unknown tokens veiled. Notation: B images, L tokens, grid h × w."""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate

from mgen.generators import Cascade
from mgen.pipelines.pipeline import MaskedPipeline
from mgen.pipelines.pixels import to_pil, to_uint8
from mgen.samplers import Step

GRAY = 127.0
DRAFT = 0.4  # how much of a draft that isn't known yet shows through the veil


@dataclass(frozen=True, kw_only=True)
class Frame:
    """The images after a step.

    Args:
        pictures: of the images, as data URLs. step, steps: number of the step from 1 on, and of the last. known, total: tokens of an
            image that are known, on average, and in all. first_stage: it shows the tokens of a first stage.
    """

    pictures: tuple[str, ...]
    step: int
    steps: int
    known: float
    total: int
    first_stage: bool = False

    @property
    def caption(self) -> str:
        stage = "first stage, " if self.first_stage else ""
        return f"{stage}step {self.step} of {self.steps}: {self.known:.3g} of {self.total} tokens known"


@torch.inference_mode()
def frame(pipe: MaskedPipeline, step: Step) -> Frame:
    """The frame of a step: known tokens as they are, this step's other draws faintly, gray where nothing is drawn yet."""
    net, draft = pipe.transformer, step.draft
    spec = net.first_stage_spec if step.first_stage and isinstance(net, Cascade) else net.tokens
    if spec.vocab_size is not None:
        draft = draft.clamp(max=spec.vocab_size - 1)  # a drawn mask
    with torch.autocast(net.device.type, enabled=False):
        images = to_uint8(pipe.decode(draft)).float()
    if spec.grid is not None:
        drawn = step.known.scatter(1, step.positions, True) if step.map is None else torch.ones_like(step.known)
        known, drawn = (_to_pixels(mask, spec.grid, images) for mask in (step.known, drawn))
        faint = torch.where(drawn, DRAFT * images + (1 - DRAFT) * GRAY, torch.full_like(images, GRAY))
        images = torch.where(known, images, faint)
    return Frame(
        pictures=pictures(images.round().to(torch.uint8)),
        step=step.index + 1,
        steps=step.count,
        known=step.known.sum().item() / len(step.known),
        total=step.known.shape[1],
        first_stage=step.first_stage,
    )


def _to_pixels(mask: Tensor, grid: tuple[int, int], images: Tensor) -> Tensor:
    """bool (B, L) of tokens as bool (B, 1, H, W) of pixels; global tokens, which come first, have no place in the image."""
    cells = mask[:, mask.shape[1] - grid[0] * grid[1] :].reshape(-1, 1, *grid).float()
    return interpolate(cells, images.shape[-2:]) > 0.5


def pictures(images: Tensor) -> tuple[str, ...]:
    """uint8 (B, C, H, W) as data URLs of PNGs."""
    return tuple(data_url(png(image), "image/png") for image in to_pil(images))


def png(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, format="PNG", compress_level=1)
    return file.getvalue()


def data_url(data: bytes, kind: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def thinned(steps: int, numbers: int, most: int = 2**26) -> int:
    """Every which step is kept, so that the frames of `steps` steps of `numbers` pixel values stay below `most`."""
    return max(1, -(-steps * numbers // most))


def last_of(frames: Sequence[Frame], images: Tensor) -> list[Frame]:
    """The frames with the finished images in the place of the last one's."""
    return [*frames[:-1], Frame(**{**vars(frames[-1]), "pictures": pictures(images)})]
