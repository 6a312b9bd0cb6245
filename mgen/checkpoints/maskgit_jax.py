"""google-research/maskgit's transformer: flax msgpack of {'params': …}, fp32, dense kernels (in, out)."""

import re
from typing import Any

import torch

from mgen.checkpoints.reading import State

LAYER = {
    "Attention_0/attention_output_ln/scale": "norm1.weight",
    "Attention_0/attention_output_ln/bias": "norm1.bias",
    "Attention_0/self_attention/out/bias": "attn.proj.bias",
    "Mlp_0/intermediate_output/bias": "mlp.fc1.bias",
    "Mlp_0/layer_output/bias": "mlp.fc2.bias",
    "Mlp_0/layer_output_ln/scale": "norm2.weight",
    "Mlp_0/layer_output_ln/bias": "norm2.bias",
}
TOP = {
    "params/Embed_0/word_embeddings/embedding": "embed.word.weight",
    "params/Embed_0/position_embeddings/embedding": "embed.position.weight",
    "params/Embed_0/embeddings_ln/scale": "embed.norm.weight",
    "params/Embed_0/embeddings_ln/bias": "embed.norm.bias",
    "params/MlmLayer_0/mlm_dense/bias": "head.fc.bias",
    "params/MlmLayer_0/mlm_ln/scale": "head.norm.weight",
    "params/MlmLayer_0/mlm_ln/bias": "head.norm.bias",
    "params/MlmLayer_0/mlm_bias/bias": "head.bias",
}
DENSE = {
    "Mlp_0/intermediate_output/kernel": "mlp.fc1.weight",
    "Mlp_0/layer_output/kernel": "mlp.fc2.weight",
}


def transformer_config(state: State) -> dict[str, Any]:
    """Constructor arguments that the shapes tell; the split of the vocabulary into codes and classes (published: 1024 and
    1000) they do not."""
    dim = state["params/Embed_0/word_embeddings/embedding"].shape[1]
    length = state["params/Embed_0/position_embeddings/embedding"].shape[0] - 1
    layers = {int(m[1]) for name in state if (m := re.match(r"params/TransformerLayer_(\d+)/", name))}
    first = "params/TransformerLayer_0/"
    return {
        "side": round(length**0.5),
        "dim": dim,
        "depth": len(layers),
        "heads": state[first + "Attention_0/self_attention/query/kernel"].shape[1],
        "hidden": state[first + "Mlp_0/intermediate_output/kernel"].shape[1],
    }


def transformer(state: State) -> tuple[State, dict[str, str]]:
    """Our names: q, k and v packed into one projection, kernels transposed."""
    out: State = {}
    for name, value in state.items():
        if name in TOP:
            out[TOP[name]] = value
        elif name == "params/MlmLayer_0/mlm_dense/kernel":
            out["head.fc.weight"] = value.T
        elif m := re.match(r"params/TransformerLayer_(\d+)/(.*)", name):
            block, rest = f"blocks.{m[1]}", m[2]
            if rest in LAYER:
                out[f"{block}.{LAYER[rest]}"] = value
            elif rest in DENSE:
                out[f"{block}.{DENSE[rest]}"] = value.T
            elif rest == "Attention_0/self_attention/out/kernel":
                out[f"{block}.attn.proj.weight"] = value.flatten(0, 1).T  # (H, d, D) → (D, D)
            elif rest.startswith("Attention_0/self_attention/query/"):
                out |= _packed(
                    state, f"params/TransformerLayer_{m[1]}/Attention_0/self_attention/", f"{block}.attn.qkv."
                )
            elif not re.match(r"Attention_0/self_attention/(key|value)/", rest):
                out[name] = value  # unknown: reported as not expected
        else:
            out[name] = value
    return {name: value.contiguous() for name, value in out.items()}, {}


def _packed(state: State, prefix: str, new: str) -> State:
    parts = ("query", "key", "value")
    kernels = [state[f"{prefix}{p}/kernel"].flatten(1).T for p in parts]  # (D, H, d) → (H·d, D)
    return {
        f"{new}weight": torch.cat(kernels),
        f"{new}bias": torch.cat([state[f"{prefix}{p}/bias"].flatten() for p in parts]),
    }
