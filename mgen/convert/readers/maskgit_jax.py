"""google-research/maskgit's transformer: flax msgpack of {'params': …}, fp32, dense kernels (in, out)."""

import re

import torch

from mgen.convert.format import Format, register_format
from mgen.convert.reading import Renamed, State, count, ids
from mgen.utils.config import Settings

LAYER = {
    "Attention_0/attention_output_ln/scale": "norm1.weight",
    "Attention_0/attention_output_ln/bias": "norm1.bias",
    "Attention_0/self_attention/out/kernel": "attn.proj.weight",
    "Attention_0/self_attention/out/bias": "attn.proj.bias",
    "Mlp_0/intermediate_output/kernel": "mlp.fc1.weight",
    "Mlp_0/intermediate_output/bias": "mlp.fc1.bias",
    "Mlp_0/layer_output/kernel": "mlp.fc2.weight",
    "Mlp_0/layer_output/bias": "mlp.fc2.bias",
    "Mlp_0/layer_output_ln/scale": "norm2.weight",
    "Mlp_0/layer_output_ln/bias": "norm2.bias",
}
TOP = {
    "params/Embed_0/word_embeddings/embedding": "embedder.table.weight",
    "params/Embed_0/position_embeddings/embedding": "trunk.position.weight",
    "params/Embed_0/embeddings_ln/scale": "trunk.norm.weight",
    "params/Embed_0/embeddings_ln/bias": "trunk.norm.bias",
    "params/MlmLayer_0/mlm_dense/kernel": "head.fc.weight",
    "params/MlmLayer_0/mlm_dense/bias": "head.fc.bias",
    "params/MlmLayer_0/mlm_ln/scale": "head.norm.weight",
    "params/MlmLayer_0/mlm_ln/bias": "head.norm.bias",
    "params/MlmLayer_0/mlm_bias/bias": "head.bias",
}


def transformer_config(state: State) -> Settings:
    """The configuration as far as shapes tell it; the split of the vocabulary into codes and classes (published: 1024 and
    1000) they do not."""
    dim = state["params/Embed_0/word_embeddings/embedding"].shape[1]
    length = state["params/Embed_0/position_embeddings/embedding"].shape[0] - 1
    first = "params/TransformerLayer_0/"
    return {
        "tokens": ids(round(length**0.5), 1024),
        "classes": {"count": 1000, "null_class": False, "table": "shared"},
        "trunk": {
            "type": "bert",
            "dim": dim,
            "depth": count(state, r"params/TransformerLayer_(\d+)/"),
            "heads": state[first + "Attention_0/self_attention/query/kernel"].shape[1],
            "hidden": state[first + "Mlp_0/intermediate_output/kernel"].shape[1],
        },
        "head": {"type": "categorical", "table": "tied", "loss_rows": "table", "approximate": "tanh", "eps": 1e-12},
    }


def transformer(state: State) -> Renamed:
    """Our names: q, k and v packed into one projection, kernels transposed."""
    out = Renamed()
    for name, value in state.items():
        m = re.match(r"params/TransformerLayer_(\d+)/(.*)", name)
        block, rest = (f"trunk.blocks.{m[1]}", m[2]) if m else ("", "")
        if name in TOP or rest in LAYER:
            new = TOP[name] if name in TOP else f"{block}.{LAYER[rest]}"
            # Kernels are (in, out), that of the attention's output (H, d, D).
            out.put(name, new, value.flatten(0, -2).T if name.endswith("/kernel") else value)
        elif q := re.match(r"(Attention_0/self_attention/)(query|key|value)/(kernel|bias)$", rest):
            # Query, key and value one below the other: kernels (D, H, d) → (3 H·d, D), biases (H, d) → (3 H·d,).
            parts = [state[f"{name[: -len(rest)]}{q[1]}{part}/{q[3]}"] for part in ("query", "key", "value")]
            packed = [part.flatten(1).T if q[3] == "kernel" else part.flatten() for part in parts]
            out.put(name, f"{block}.attn.qkv.{'weight' if q[3] == 'kernel' else 'bias'}", torch.cat(packed))
        else:
            out.put(name, name, value)  # unknown: reported as not expected
    return out


register_format(
    "maskgit-jax",
    Format(
        trunk="bert",
        config=transformer_config,
        rename=transformer,
        tokenizer="maskgit-vqgan",
    ),
)
