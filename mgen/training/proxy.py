"""The first of TiTok's two stages of training: the decoder predicts the ids that a frozen VQGAN gives the image's patches.

Yu et al., arXiv 2406.07550, §3.3 ("proxy codes"). The second stage continues from such weights and is an ordinary training on pixels with
`optim.freeze`.
"""

from mgen.pipelines.saved import load_tokenizer
from mgen.tokenizers import TiTok
from mgen.tokenizers.base import Tokenizer
from mgen.tokenizers.vqgan import VQGAN
from mgen.utils.errors import MgenError


def load_proxy(model: Tokenizer, path: str | None, *, anew: bool) -> VQGAN | None:
    """The frozen VQGAN of `objective.proxy_tokenizer`, whose ids `model` is to predict; None without one.

    Its decoder and codes become those of the model, which are not trained in this stage.

    Args:
        anew: the model has no trained weights yet, so that the VQGAN's decoder is to be copied.

    Raises:
        MgenError: the model predicts no codes, or those of another VQGAN.
    """
    if path is None:
        return None
    if not isinstance(model, TiTok) or not model.predicts_codes:
        raise MgenError(
            "objective.proxy_tokenizer is for a TiTok of two stages, with model.pixel_decoder: leave it out for other tokenizers"
        )
    teacher = load_tokenizer(path)
    if not isinstance(teacher, VQGAN):
        raise MgenError(f"objective.proxy_tokenizer {path} is a {type(teacher).__name__}: a VQGAN is needed")
    teacher = teacher.at_size(model.config.image_size).eval().requires_grad_(False)
    model.use_pixels(teacher, copy=anew)
    return teacher
