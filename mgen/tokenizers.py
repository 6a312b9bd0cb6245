"""Tokenizers, image ⇄ tokens: the public interface of the folder `tokenizers/`. The contract is in `tokenizers/base.py`."""

from mgen.utils.folders import part as _part

# In a checkout the folder lies outside the package: this path makes `mgen.tokenizers.<module>` importable.
__path__ = [str(_part("tokenizers"))]

from mgen.tokenizers.base import (  # noqa: E402
    TOKENIZERS,
    PosteriorTokenizer,
    Tokenizer,
    estimate_scale,
    register_tokenizer,
)
from mgen.tokenizers.bridge import QuantizedKL  # noqa: E402
from mgen.tokenizers.dc_ae import DCAE  # noqa: E402
from mgen.tokenizers.hita import HitaTokenizer  # noqa: E402
from mgen.tokenizers.kl import KLTokenizer  # noqa: E402
from mgen.tokenizers.ldetok import LDeTok  # noqa: E402
from mgen.tokenizers.llamagen import LlamaGenVQ  # noqa: E402
from mgen.tokenizers.quantizers import FSQ, VectorQuantizer  # noqa: E402
from mgen.tokenizers.titok import TiTok, TiTokKL  # noqa: E402
from mgen.tokenizers.vqgan import VQGAN  # noqa: E402

__all__ = [
    "DCAE",
    "FSQ",
    "TOKENIZERS",
    "VQGAN",
    "HitaTokenizer",
    "KLTokenizer",
    "LDeTok",
    "LlamaGenVQ",
    "PosteriorTokenizer",
    "QuantizedKL",
    "TiTok",
    "TiTokKL",
    "Tokenizer",
    "VectorQuantizer",
    "estimate_scale",
    "register_tokenizer",
]
