"""Layers shared by the generators: attention, transformer blocks, embeddings, and what a run keeps between evaluations."""

from mgen.nn.attention import Attention, attend, gather_rows, masked, take
from mgen.nn.blocks import MLP, PostNormBlock, PreNormBlock, ScaledBlock
from mgen.nn.embedding import TokenEmbedding, WindowEmbedding, token_embedding
from mgen.nn.memory import KeyValues, Local, Memory, slot, span
from mgen.nn.windows import TokenShuffle, TokenUnshuffle, Windows

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
