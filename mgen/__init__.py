"""mgen: masked generative image synthesis on one small set of parts.

    tokenizer × generator (trunk + head) × order × schedule × guidance × reuse

Everything below is imported on first use, so `import mgen` is fast. `mgen.load("name or folder")` gives a pipeline.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from diffusers import ModelMixin, SchedulerMixin

    from mgen.evaluation.cnn import FashionCNN
    from mgen.generators.bert import MaskGITBert
    from mgen.generators.causal import CausalGenerator
    from mgen.generators.enat import ENAT
    from mgen.generators.halton import HaltonMaskGIT
    from mgen.generators.himar import HiMAR
    from mgen.generators.mage import MAGE
    from mgen.generators.mar import MAR
    from mgen.generators.maskgit import MaskGIT
    from mgen.pipelines.pipeline import MaskedPipeline, load
    from mgen.samplers.parallel import ParallelSampler
    from mgen.tokenizers.bridge import QuantizedKL
    from mgen.tokenizers.hita import HitaTokenizer
    from mgen.tokenizers.kl import KLTokenizer
    from mgen.tokenizers.llamagen import LlamaGenVQ
    from mgen.tokenizers.vqgan import VQGAN
    from mgen.tokens import TokenSpec
    from mgen.utils.errors import MgenError

__version__ = "0.1.0"

# Public name → module that defines it. Saved pipelines name their parts "mgen.<Class>"; diffusers then looks for the base
# classes ModelMixin and SchedulerMixin here too.
_WHERE = {
    "CausalGenerator": "mgen.generators.causal",
    "ENAT": "mgen.generators.enat",
    "FashionCNN": "mgen.evaluation.cnn",
    "HaltonMaskGIT": "mgen.generators.halton",
    "HiMAR": "mgen.generators.himar",
    "HitaTokenizer": "mgen.tokenizers.hita",
    "KLTokenizer": "mgen.tokenizers.kl",
    "LlamaGenVQ": "mgen.tokenizers.llamagen",
    "MAGE": "mgen.generators.mage",
    "MAR": "mgen.generators.mar",
    "MaskGIT": "mgen.generators.maskgit",
    "MaskGITBert": "mgen.generators.bert",
    "MaskedPipeline": "mgen.pipelines.pipeline",
    "MgenError": "mgen.utils.errors",
    "ModelMixin": "diffusers",
    "ParallelSampler": "mgen.samplers.parallel",
    "QuantizedKL": "mgen.tokenizers.bridge",
    "SchedulerMixin": "diffusers",
    "TokenSpec": "mgen.tokens",
    "VQGAN": "mgen.tokenizers.vqgan",
    "load": "mgen.pipelines.pipeline",
}
# Classes that a training configuration may name.
MODELS = (
    "CausalGenerator",
    "ENAT",
    "FashionCNN",
    "HaltonMaskGIT",
    "HiMAR",
    "HitaTokenizer",
    "KLTokenizer",
    "LlamaGenVQ",
    "MAGE",
    "MAR",
    "MaskGIT",
    "MaskGITBert",
    "QuantizedKL",
    "VQGAN",
)

__all__ = [
    "CausalGenerator",
    "ENAT",
    "FashionCNN",
    "HaltonMaskGIT",
    "HiMAR",
    "HitaTokenizer",
    "KLTokenizer",
    "LlamaGenVQ",
    "MAGE",
    "MAR",
    "MaskGIT",
    "MaskGITBert",
    "MaskedPipeline",
    "MgenError",
    "ModelMixin",
    "ParallelSampler",
    "QuantizedKL",
    "SchedulerMixin",
    "TokenSpec",
    "VQGAN",
    "load",
]


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'mgen' has no attribute {name!r}")
    value = getattr(importlib.import_module(_WHERE[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_WHERE})
