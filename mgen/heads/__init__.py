"""Heads: context vector → token; a loss for training and a draw for sampling."""

from mgen.heads.categorical import CategoricalHead
from mgen.heads.diffusion import DiffusionHead

__all__ = ["CategoricalHead", "DiffusionHead"]
