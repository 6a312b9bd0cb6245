"""Generators: one class composed of an embedder, a trunk, a head and classes; presets of published systems."""

from mgen.generators.build import build_model
from mgen.generators.cascade import Cascade
from mgen.generators.generator import Generator
from mgen.generators.guided import guided
from mgen.generators.losses import LossOptions
from mgen.generators.presets import list_models, model_config
from mgen.generators.trunk import Capabilities, Layout, Trunk, register_trunk

__all__ = [
    "Capabilities",
    "Cascade",
    "Generator",
    "Layout",
    "LossOptions",
    "Trunk",
    "build_model",
    "guided",
    "list_models",
    "model_config",
    "register_trunk",
]
