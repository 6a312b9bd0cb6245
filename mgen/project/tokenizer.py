"""The tokenizer of a project, its own or one that was there before."""

from mgen.pipelines.saved import load_tokenizer
from mgen.project.settings import Project
from mgen.tokenizers.base import Tokenizer
from mgen.utils.errors import MgenError


def open_tokenizer(project: Project, device: str = "cpu") -> Tokenizer:
    """The project's tokenizer; MgenError unless it is for its images."""
    tokenizer = load_tokenizer(project.tokenizer, device=device)
    data = project.settings.data
    own, images = (tokenizer.config.in_channels, tokenizer.config.image_size), (data.channels, data.image_size)
    if own != images:
        raise MgenError(
            f"the tokenizer in {project.tokenizer} is for images of {own[1]} px and {own[0]} channels, but data of project.yaml has "
            f"image_size {images[1]} and channels {images[0]}: change these, or choose another tokenizer"
        )
    return tokenizer
