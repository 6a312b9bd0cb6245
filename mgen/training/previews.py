"""The pictures by which one follows a run: samples of each class, reconstructions, predictions. The same images every time."""

from collections.abc import Sequence

import torch
from PIL import Image
from torch import Tensor

from mgen.data import ImageData
from mgen.evaluation.cnn import ImageClassifier
from mgen.pipelines.pipeline import MaskedPipeline
from mgen.pipelines.pixels import to_uint8
from mgen.tokenizers.base import Tokenizer
from mgen.utils.grids import captioned_grid, compared_grid, labeled_grid, spread

MOST_CLASSES = 16  # in a preview of samples; of more, these many evenly spread
SAMPLES = 40  # images of such a preview, about
COMPARED, CLASSIFIED = 16, 24  # images of the others
TILE = 128  # pixels: the largest side of an image


def class_samples(pipe: MaskedPipeline, *, seed: int, title: str) -> Image.Image:
    """Samples of all classes, or of 16 evenly spread ones: a row per class. Without classes 32 samples, in rows of 8."""
    if not pipe.conditional:
        images = pipe([None] * 32, seed=seed, output_type="uint8", progress=False).images
        return labeled_grid(images, [-1] * 32, [], columns=8, title=title, most=TILE)
    count = pipe.transformer.num_classes
    shown = spread(count, MOST_CLASSES)
    each = max(2, min(8, SAMPLES // len(shown)))
    # Sample k of all classes before k + 1: which image a class gets does not depend on how many each has.
    labels = [label for _ in range(each) for label in shown]
    images = pipe(labels, seed=seed, output_type="uint8", progress=False).images
    names = [name_of(pipe.class_names, c) for c in range(count)]
    if len(shown) < count:
        title += f" ({len(shown)} of {count:,} classes)"
    return labeled_grid(images, labels, names, columns=each, title=title, most=TILE)


@torch.inference_mode()
def reconstructions(model: Tokenizer, data: ImageData, *, device: torch.device, title: str) -> Image.Image:
    """Images above their reconstructions, with their classes and the PSNR of each."""
    images, labels = some_images(data, COMPARED)
    made = model(images.to(device))[0].float().clamp(-1, 1).cpu()
    psnr = -10 * torch.log10((made - images).square().mean((1, 2, 3)).clamp(min=1e-10) / 4)  # (N,)
    captions = {
        "original": [name_of(data.class_names, c) for c in labels],
        "reconstruction": [f"{value:.1f} dB" for value in psnr.tolist()],
    }
    title += f": mean PSNR {psnr.mean():.1f} dB"
    versions = {"original": to_uint8(images), "reconstruction": to_uint8(made)}
    return compared_grid(versions, captions=captions, title=title, most=TILE)


@torch.inference_mode()
def predictions(model: ImageClassifier, data: ImageData, *, device: torch.device, title: str) -> Image.Image:
    """Images with their class above the predicted one and its probability; wrong ones are marked."""
    images, labels = some_images(data, CLASSIFIED)
    shares, found = model(images.to(device))[1].float().softmax(1).max(1)  # (N,)
    names = [[name_of(data.class_names, c) for c in ids] for ids in (labels, found.tolist())]
    captions = [f"{true}\n{100 * p:.0f} % {name}" for true, name, p in zip(*names, shares.tolist())]
    wrong = [a != b for a, b in zip(labels, found.tolist())]
    title += f": {len(wrong) - sum(wrong)} of {len(wrong)} right; class, and the predicted one with its probability"
    return captioned_grid(to_uint8(images), captions, columns=8, title=title, marked=wrong, least=96, most=TILE)


def some_images(data: ImageData, most: int) -> tuple[Tensor, list[int]]:
    """Images (N, C, H, W) in [-1, 1] and their classes, evenly spread over the data."""
    batch = data.__getitems__(spread(len(data), most))
    return batch["image"], batch["label"].tolist()


def name_of(names: Sequence[str], label: int) -> str:
    """The name of a class, or its id if it has none."""
    return names[label] if 0 <= label < len(names) and names[label] else f"class {label}"
