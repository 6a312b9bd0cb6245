"""Tokenizers: image ⇄ tokens. The public face of the modules in the folder `tokenizers/`."""

from mgen.utils.folders import part as _part

# This module stands for a folder that lies elsewhere in a checkout: its path makes `mgen.tokenizers.<module>` importable.
__path__ = [str(_part("tokenizers"))]

from mgen.tokenizers.bridge import QuantizedKL  # noqa: E402
from mgen.tokenizers.hita import HitaTokenizer  # noqa: E402
from mgen.tokenizers.kl import KLTokenizer, estimate_scale  # noqa: E402
from mgen.tokenizers.llamagen import LlamaGenVQ  # noqa: E402
from mgen.tokenizers.quantizers import FSQ, VectorQuantizer  # noqa: E402
from mgen.tokenizers.vqgan import VQGAN  # noqa: E402

__all__ = [
    "FSQ",
    "VQGAN",
    "HitaTokenizer",
    "KLTokenizer",
    "LlamaGenVQ",
    "QuantizedKL",
    "VectorQuantizer",
    "estimate_scale",
]
