"""eMIGM: `eMIGM_{xsmall,small,base,large,huge}_{256,512}_checkpoint.pth`, fp32, in MAR's layout (`mgen.convert.readers.mar`).

The null class and the mask token are one vector, which files hold twice. The official EMA runs over parameters and not over names, so
`model_ema` has its average as `fake_latent` alone and the raw value as `mask_token`; loading copies both into the one parameter, the mask
token last. Official results therefore use `mask_token`, as `emigm` does; `emigm-ema` takes the average.
"""

from functools import partial

from mgen.convert.format import Format, register_format
from mgen.convert.readers import mar
from mgen.convert.reading import Renamed, State
from mgen.utils.config import Settings
from mgen.utils.errors import MgenError

# Numbers per token → factor that brings the latents of the published tokenizer to unit variance: KL16, DC-AE f32.
SCALES = {16: 0.2325, 32: 0.3189}
HEADS = {448: 8}  # of the width that has no multiple of 64 numbers per head


def tied(state: State) -> bool:
    """Whether null class and mask token are one vector (1, D): a mask token of its own has the shape (1, 1, D)."""
    if "fake_latent" not in state:
        raise MgenError("it lacks fake_latent")
    return state["mask_token"].ndim == 2


def config(state: State) -> Settings:
    """The configuration as far as shapes tell it."""
    one = tied(state)
    if one:
        state = {**state, "mask_token": state["mask_token"].unsqueeze(0)}
    out = mar.config(state)
    classes = {**out["classes"], "null_class": "mask"} if one else out["classes"]
    trunk = out["trunk"]
    own = {f"{half}_heads": HEADS[dim] for half in ("encoder", "decoder") if (dim := trunk[f"{half}_dim"]) in HEADS}
    tokens = {**out["tokens"], "scale": SCALES.get(out["tokens"]["channels"])}
    return {**out, "tokens": tokens, "classes": classes, "trunk": {**trunk, **own}}


def notes(config: Settings) -> list[str]:
    """What a user should know of a conversion."""
    published = {**config["trunk"]}
    if all(published[f"{half}_dim"] in (*HEADS, 512) for half in ("encoder", "decoder")):
        return []
    return mar.notes(config)


def rename(state: State, *, averaged: bool = False) -> Renamed:
    """Our names; of the two entries of a tied vector one is taken: mask_token, or fake_latent if `averaged`."""
    if not tied(state):
        return mar.rename(state)
    taken, left = ("fake_latent", "mask_token") if averaged else ("mask_token", "fake_latent")
    rest = {name: value for name, value in state.items() if name not in (taken, left, "class_emb.weight")}
    out = mar.rename(rest)
    out.put(taken, "trunk.mask_token", state[taken])
    out.put("class_emb.weight", "classes.vectors.weight", state["class_emb.weight"])
    why = "official loading overwrites it with mask_token" if left == "fake_latent" else "the vector without EMA"
    out.ignored[left] = f"one parameter with {taken}: {why}"
    return out


for _name, _averaged in (("emigm", False), ("emigm-ema", True)):
    register_format(
        _name,
        Format(
            trunk="mae",
            config=config,
            notes=notes,
            rename=partial(rename, averaged=_averaged),
            ema="model_ema",
            tokenizer="kl16",
        ),
    )
