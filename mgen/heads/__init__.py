"""Heads: context vector → token; a loss for training and a draw for sampling."""

from mgen.heads.categorical import CategoricalHead

__all__ = ["CategoricalHead"]
