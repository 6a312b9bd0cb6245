"""ENAT-L: `nnet_ema.pth` (256 px) and `nnet_ema_512.pth`, bare state dicts of 358 fp32 tensors."""

import re
from typing import Any

from mgen.convert.reading import Renamed, State
from mgen.utils.errors import MgenError

PUBLISHED = {1024: (2, 16)}  # by width: decoder blocks, heads
RULES = (
    (r"^x_embedder\.word_embeddings\.", "token_embed.word."),
    (r"^x_embedder\.position_embeddings\.", "token_embed.position."),
    (r"^x_embedder\.LayerNorm\.", "token_embed.norm."),
    (r"^y_embedder\.embedding_table\.", "class_embed."),
    (r"^prev_proj\.norm\.", "carry_norm."),
    (r"^prev_proj\.mlp\.", "carry_mlp."),
    (r"\.attn\.q\.", ".q."),
    (r"\.attn\.kv\.A\.", ".kv_context."),
    (r"\.attn\.kv\.B\.", ".kv."),
    (r"\.attn\.proj\.", ".proj."),
    (r"\.adaLN_modulation\.1\.", ".adaln."),
    (r"^mlm_layer\.fc\.", "head.fc."),
    (r"^mlm_layer\.ln\.", "head.norm."),
    (r"^mlm_layer\.bias$", "head.bias"),
)


def config(state: State) -> dict[str, Any]:
    """Constructor arguments that the shapes tell; the split of the blocks and the heads are those of the published size."""
    state = {name.removeprefix("module."): value for name, value in state.items()}
    rows, dim = state["x_embedder.word_embeddings.weight"].shape
    blocks = 1 + max(int(m[1]) for name in state if (m := re.match(r"blocks\.(\d+)\.", name)))
    decoder, heads = PUBLISHED.get(dim, (2, max(1, dim // 64)))
    return {
        "side": round(state["x_embedder.position_embeddings.weight"].shape[0] ** 0.5),
        "codes": rows - 1,
        "dim": dim,
        "encoder_depth": blocks - decoder,
        "decoder_depth": decoder,
        "heads": heads,
        "num_classes": state["y_embedder.embedding_table.weight"].shape[0] - 1,  # the last row is the null class
    }


def notes(config: dict[str, Any]) -> list[str]:
    """What a user should know of a conversion."""
    if config["dim"] in PUBLISHED:
        return []
    return [
        f"heads={config['heads']}, {config['encoder_depth']} + {config['decoder_depth']} blocks: weights do not tell; give heads=N, "
        "encoder_depth=N and decoder_depth=N if the model was trained otherwise"
    ]


def rename(state: State, *, encoder_depth: int | None = None) -> Renamed:
    """Our names: the blocks are one list in the file, the first `encoder_depth` of them are the encoder's."""
    out = Renamed()
    encoder = config(state)["encoder_depth"] if encoder_depth is None else encoder_depth
    for name, value in state.items():
        new = name.removeprefix("module.")
        if new.startswith("prev_embedder."):
            out.ignored[name] = "never read by the published model"
            continue
        for pattern, ours in RULES:
            new = re.sub(pattern, ours, new)
        if m := re.match(r"blocks\.(\d+)\.(.*)", new):
            i = int(m[1])
            new = f"encoder_blocks.{i}.{m[2]}" if i < encoder else f"decoder_blocks.{i - encoder}.{m[2]}"
        out.put(name, new, value.flatten() if new == "head.bias" else value)
    return out


def official(name: str, encoder_depth: int) -> str:
    """The official name of one of our parameters."""
    for part, first in (("encoder_blocks", 0), ("decoder_blocks", encoder_depth)):
        if m := re.match(rf"{part}\.(\d+)\.(.*)", name):
            rest = m[2]
            for theirs, ours in (("attn.q.", "q."), ("attn.kv.A.", "kv_context."), ("attn.kv.B.", "kv.")):
                rest = re.sub(rf"^{re.escape(ours)}", theirs, rest)
            rest = re.sub(r"^proj\.", "attn.proj.", rest)
            return f"blocks.{int(m[1]) + first}.{re.sub(r'^adaln.', 'adaLN_modulation.1.', rest)}"
    for pattern, ours in RULES:
        if name.startswith(ours):
            return re.sub(r"\\|\^|\$", "", pattern) + name[len(ours) :]
    return name


def sampler_settings(*, sample_steps: int, cfg_scale: float, mask_temp: float, samp_temp: float) -> dict[str, Any]:
    """Settings of a ParallelSampler from the official arguments.

    Guidance c + w·(c − u) with w = cfg_scale · t / T at step t, 0 in the first; both temperatures fall as 1 − (t + 1) / T. That of
    the draw stays at or above 1e-3.
    """
    if sample_steps < 1:
        raise MgenError(f"sample_steps is {sample_steps}: at least 1 is needed")
    return {
        "steps": sample_steps,
        "order": "confidence",
        "schedule": "cosine",
        "counts": "enat",
        "guidance": {"kind": "linear", "start": 1.0, "end": 1.0 + cfg_scale, "at": "start"},
        "temperature": {"kind": "linear", "start": samp_temp, "end": 0.0, "at": "end", "least": 1e-3},
        "confidence_temperature": {"kind": "linear", "start": mask_temp, "end": 0.0, "at": "end"},
    }
