"""Layers shared by the generators: attention, transformer blocks, embeddings, and what a run keeps between evaluations."""

from mgen.layers.attention import Attention, attend, gather_rows, masked, take
from mgen.layers.blocks import MLP, PostNormBlock, PreNormBlock, ScaledBlock
from mgen.layers.embedding import TokenEmbedding, WindowEmbedding, token_embedding
from mgen.layers.memory import KeyValues, Local, Memory, slot, span
from mgen.layers.windows import TokenShuffle, TokenUnshuffle, Windows

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
    "TokenShuffle",
    "TokenUnshuffle",
    "WindowEmbedding",
    "Windows",
    "attend",
    "gather_rows",
    "masked",
    "slot",
    "span",
    "take",
    "token_embedding",
]
