"""Images by name, as a tokenizer takes them."""

from mgen.data.base import StampedData
from mgen.data.fashion_mnist import FashionMNIST
from mgen.data.folder import ClassRule, ImageFolder
from mgen.tokenizers.base import Tokenizer
from mgen.utils.errors import MgenError


def open_images(
    name: str,
    tokenizer: Tokenizer,
    *,
    path: str | None = None,
    split: str = "test",
    image_size: int | None = None,
    classes: ClassRule = "any",
) -> tuple[StampedData, str]:
    """The images of `fmnist` (`path`: folder of its files) or of a folder, sized for a tokenizer, and a short description of them.

    Args:
        image_size: of a folder, in pixels; None: the tokenizer's. classes: of a folder, see ImageFolder.
    """
    data: FashionMNIST | ImageFolder
    expected = tokenizer.config.in_channels
    if name == "fmnist":
        if image_size not in (None, 32):
            raise MgenError(f"image size {image_size} is for folders: fmnist has images of 32 px")
        data, source = FashionMNIST(root=path, split=split), f"fmnist {split}"
    else:
        size = image_size or tokenizer.config.image_size
        if size % tokenizer.factor:
            raise MgenError(
                f"image size {size} is not a multiple of {tokenizer.factor}, the downsampling of the {type(tokenizer).__name__}"
            )
        data = ImageFolder(root=name, image_size=size, channels=expected, classes=classes)
        tokenizer.register_to_config(image_size=size)  # the weights work at any size; the spec follows this one
        source = f"{name} at {size} px"
    channels = data.__getitems__([0])["image"].shape[1]
    if channels != expected:
        raise MgenError(
            f"{name} has images of {channels} channel(s), but the tokenizer takes {expected}: choose another tokenizer"
        )
    return data, source
