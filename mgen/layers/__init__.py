"""Layers shared by the generators: attention, transformer blocks, embeddings."""

from mgen.layers.attention import Attention, attend
from mgen.layers.blocks import MLP, PostNormBlock, PreNormBlock
from mgen.layers.embedding import TokenEmbedding

__all__ = ["MLP", "Attention", "PostNormBlock", "PreNormBlock", "TokenEmbedding", "attend"]
