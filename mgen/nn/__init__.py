"""Layers shared by the generators: attention, transformer blocks, embeddings, and what a run keeps between evaluations."""

from mgen.nn.attention import Attention, Keys, Rows, attend, gather_rows, take
from mgen.nn.blocks import MLP, Blocks, PostNormBlock, PreNormBlock, ScaledBlock, run_blocks
from mgen.nn.cache import Cache, CachedStep, KVCache, LazyStep, Pruning, span
from mgen.nn.sizes import Epsilon, Ratio, check_heads
from mgen.nn.windows import Entities, TokenShuffle, TokenUnshuffle, Windows

__all__ = [
    "MLP",
    "Attention",
    "Blocks",
    "Cache",
    "CachedStep",
    "Entities",
    "KVCache",
    "Epsilon",
    "Keys",
    "LazyStep",
    "PostNormBlock",
    "PreNormBlock",
    "Pruning",
    "Ratio",
    "Rows",
    "ScaledBlock",
    "TokenShuffle",
    "TokenUnshuffle",
    "Windows",
    "attend",
    "check_heads",
    "gather_rows",
    "run_blocks",
    "span",
    "take",
]
