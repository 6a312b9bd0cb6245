"""Layers shared by the generators: attention, transformer blocks, embeddings, and what a run keeps between evaluations."""

from mgen.layers.attention import Attention, attend, gather_rows
from mgen.layers.blocks import MLP, PostNormBlock, PreNormBlock, ScaledBlock
from mgen.layers.embedding import TokenEmbedding
from mgen.layers.memory import KeyValues, Local, Memory, slot, span

__all__ = [
    "MLP",
    "Attention",
    "KeyValues",
    "Local",
    "Memory",
    "PostNormBlock",
    "PreNormBlock",
    "ScaledBlock",
    "TokenEmbedding",
    "attend",
    "gather_rows",
    "slot",
    "span",
]
