"""Images by name, as a tokenizer takes them."""

from mgen.data.base import ImageData
from mgen.data.fashion_mnist import FashionMNIST
from mgen.data.folder import ImageFolder
from mgen.tokenizers.base import Tokenizer
from mgen.utils.errors import MgenError


def open_images(
    name: str, tokenizer: Tokenizer, *, path: str | None = None, split: str = "test", image_size: int | None = None
) -> tuple[ImageData, str]:
    """The images of `fmnist` (`path`: folder of its files) or of a folder, sized for a tokenizer, and a short description of them."""
    data: FashionMNIST | ImageFolder
    if name == "fmnist":
        data, source = FashionMNIST(root=path, split=split), f"fmnist {split}"
    else:
        size = image_size or tokenizer.config.image_size
        tokenizer.register_to_config(image_size=size)  # the weights work at any size; the spec follows this one
        data = ImageFolder(root=name, image_size=size, channels=tokenizer.config.in_channels)
        source = f"{name} at {size} px"
    channels, expected = data.__getitems__([0])["image"].shape[1], tokenizer.config.in_channels
    if channels != expected:
        raise MgenError(
            f"{name} has images of {channels} channel(s), but the tokenizer takes {expected}: choose another tokenizer"
        )
    return data, source
