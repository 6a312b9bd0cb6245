"""mgen: masked generative image synthesis on one small set of parts.

    tokenizer × generator (trunk + head) × order × schedule × guidance × reuse

Everything below is imported on first use, so `import mgen` is fast. `mgen.load("name or folder")` gives a pipeline.
"""

import importlib
from typing import TYPE_CHECKING

from mgen.utils.diffusers_names import register

if TYPE_CHECKING:
    from diffusers import ModelMixin, SchedulerMixin

    from mgen.evaluation.cnn import ImageClassifier
    from mgen.generators.cascade import Cascade
    from mgen.generators.generator import Generator
    from mgen.generators.presets import list_models
    from mgen.pipelines.pipeline import MaskedPipeline, load
    from mgen.pipelines.pretrained import create_model
    from mgen.samplers.parallel import ParallelSampler
    from mgen.tokenizers.bridge import QuantizedKL
    from mgen.tokenizers.dc_ae import DCAE
    from mgen.tokenizers.hita import HitaTokenizer
    from mgen.tokenizers.kl import KLTokenizer
    from mgen.tokenizers.ldetok import LDeTok
    from mgen.tokenizers.llamagen import LlamaGenVQ
    from mgen.tokenizers.titok import TiTok, TiTokKL
    from mgen.tokenizers.vqgan import VQGAN
    from mgen.tokens import TokenSpec
    from mgen.utils.errors import MgenError

__version__ = "0.1.0"

# Public name → module that defines it. Saved pipelines name their parts "mgen.<Class>"; diffusers then looks for the base
# classes ModelMixin and SchedulerMixin here too.
_WHERE = {
    "Cascade": "mgen.generators.cascade",
    "DCAE": "mgen.tokenizers.dc_ae",
    "Generator": "mgen.generators.generator",
    "HitaTokenizer": "mgen.tokenizers.hita",
    "ImageClassifier": "mgen.evaluation.cnn",
    "KLTokenizer": "mgen.tokenizers.kl",
    "LDeTok": "mgen.tokenizers.ldetok",
    "LlamaGenVQ": "mgen.tokenizers.llamagen",
    "MaskedPipeline": "mgen.pipelines.pipeline",
    "MgenError": "mgen.utils.errors",
    "ModelMixin": "diffusers",
    "ParallelSampler": "mgen.samplers.parallel",
    "QuantizedKL": "mgen.tokenizers.bridge",
    "SchedulerMixin": "diffusers",
    "TiTok": "mgen.tokenizers.titok",
    "TiTokKL": "mgen.tokenizers.titok",
    "TokenSpec": "mgen.tokens",
    "VQGAN": "mgen.tokenizers.vqgan",
    "create_model": "mgen.pipelines.pretrained",
    "list_models": "mgen.generators.presets",
    "load": "mgen.pipelines.pipeline",
}

__all__ = [
    "Cascade",
    "DCAE",
    "Generator",
    "HitaTokenizer",
    "ImageClassifier",
    "KLTokenizer",
    "LDeTok",
    "LlamaGenVQ",
    "MaskedPipeline",
    "MgenError",
    "ModelMixin",
    "ParallelSampler",
    "QuantizedKL",
    "SchedulerMixin",
    "TiTok",
    "TiTokKL",
    "TokenSpec",
    "VQGAN",
    "create_model",
    "list_models",
    "load",
]


def __getattr__(name: str) -> object:
    if name not in _WHERE:
        raise AttributeError(f"module 'mgen' has no attribute {name!r}")
    value = getattr(importlib.import_module(_WHERE[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_WHERE})


register()
