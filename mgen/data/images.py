"""Images by name, as a tokenizer takes them."""

from mgen.data.base import StampedData
from mgen.data.fashion_mnist import FashionMNIST
from mgen.data.folder import ClassRule, ImageFolder
from mgen.data.unreadable import OnError
from mgen.data.webdataset import TarImages
from mgen.tokenizers.base import Tokenizer
from mgen.utils.errors import MgenError
from mgen.utils.tar_paths import names_tars, public_name


def open_images(
    name: str,
    tokenizer: Tokenizer,
    *,
    path: str | None = None,
    split: str = "test",
    image_size: int | None = None,
    classes: ClassRule = "any",
    index: str | None = None,
    on_error: OnError = "raise",
) -> tuple[StampedData, str]:
    """The images of `fmnist` (`path`: folder of its files), of a folder or of tars, sized for a tokenizer, and a short description.

    Args:
        image_size: of a folder or tars, in pixels; None: the tokenizer's. classes: of these, see ImageFolder. index, on_error: see
            TarImages.
    """
    channels, factor = tokenizer.config.in_channels, tokenizer.factor
    size = 32 if name == "fmnist" else image_size or tokenizer.config.image_size
    if image_size not in (None, size):
        raise MgenError(f"image size {image_size} is for folders: fmnist has images of 32 px")
    if not tokenizer.ANY_SIZE and size != tokenizer.config.image_size:
        raise MgenError(
            f"image size {size}: the {type(tokenizer).__name__} takes images of {tokenizer.config.image_size} pixels alone"
        )
    if size % factor:
        raise MgenError(
            f"image size {size} is not a multiple of {factor}, the downsampling of the {type(tokenizer).__name__}"
        )
    if name == "fmnist" and channels != 1:
        raise MgenError(f"fmnist has images of 1 channel, but the tokenizer takes {channels}: choose another tokenizer")
    if name == "fmnist":
        data: StampedData = FashionMNIST(root=path, split=split)
    else:
        if size // factor > 2**10:
            raise MgenError(
                f"image size {size} is too large: the {type(tokenizer).__name__} makes (size / {factor})² tokens, at most 2²⁰"
            )
        if names_tars(name):
            data = TarImages(name, image_size=size, channels=channels, classes=classes, index=index, on_error=on_error)
        else:
            data = ImageFolder(root=name, image_size=size, channels=channels, classes=classes, on_error=on_error)
    tokenizer.register_to_config(image_size=size)  # the weights work at any size; the spec follows this one
    return data, f"fmnist {split}" if name == "fmnist" else f"{public_name(name)} at {size} px"
