"""l-DeTok: tokenizers `detok-BB-….pth` (weights under `model_ema` and `model`), the statistics of their latents `stats.pt`, and the
MAR that is trained on them, `mar_base.pth` and `mar_large.pth`, in MAR's own layout."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from mgen.convert.format import Format, register_format
from mgen.convert.readers import mar
from mgen.convert.reading import Renamed, State, by_rules, count, untold
from mgen.utils.config import Settings
from mgen.utils.errors import MgenError, first_line, shown
from mgen.utils.reading import check_file
from mgen.utils.weights import check_archive, only_globals

PUBLISHED = "detok-BB-gamm3.0-m0.7"  # the entry of stats.pkl that both published tokenizers use
MOST_STATISTICS = 2**24  # bytes of a file of statistics
RULES = (
    (r"^(encoder|decoder)\.(?:positional_embedding)$", r"\1.position"),
    (r"^(encoder|decoder)\.ln_pre\.", r"\1.norm_in."),
    (r"^(encoder|decoder)\.ln_post\.", r"\1.norm_out."),
    (r"^(encoder|decoder)\.transformer\.", r"\1.blocks."),
    (r"\.mlp\.w12\.", ".mlp.fc1."),
    (r"\.mlp\.w3\.", ".mlp.fc2."),
    (r"^encoder\.patch_embed\.0\.", "encoder.embed."),
    (r"^encoder\.latent_head\.", "encoder.head."),
    (r"^decoder\.decoder_embed\.", "decoder.embed."),
    (r"^decoder\.ffn\.1\.", "decoder.pixels."),
)


def config(state: State) -> Settings:
    """Constructor arguments that the shapes tell; heads (64 numbers each, 72 at width 1152) follow the published sizes."""
    embed = state["encoder.patch_embed.0.weight"]
    positions, patch = state["encoder.positional_embedding"].shape[1], embed.shape[2]
    out: Settings = {
        "image_size": round(positions**0.5) * patch,
        "in_channels": embed.shape[1],
        "patch": patch,
        "latent_channels": state["encoder.latent_head.weight"].shape[0] // 2,
    }
    for half in ("encoder", "decoder"):
        dim = state[f"{half}.positional_embedding"].shape[2]
        depth = count(state, rf"{half}\.transformer\.(\d+)\.")
        out |= {f"{half}_dim": dim, f"{half}_depth": depth, f"{half}_heads": heads(dim)}
    return out


def heads(dim: int) -> int:
    return 16 if dim == 1152 else max(1, dim // 64)


def notes(config: Settings) -> list[str]:
    """What a user should know of a conversion."""
    out = []
    if config.get("latents_mean") is None:
        out.append(
            "no statistics of the latents, without which no generator can use it: convert it with stats=stats.pt, or measure them "
            "(mgen cache … --measure-scale 2000)"
        )
    for half in ("encoder", "decoder"):
        if (dim := config[f"{half}_dim"]) not in (512, 768, 1024, 1152):
            out.append(untold(f"{half}_heads={config[f'{half}_heads']} for width {dim}", f"{half}_heads=N"))
    return out


def rename(state: State) -> Renamed:
    """Our names; tables lose their leading 1, the 1×1 convolution behind the decoder becomes a linear layer."""
    out = Renamed()
    for name, value in state.items():
        if name.endswith(".positional_embedding"):
            value = value.flatten(0, -2)
        elif name == "decoder.mask_token":
            value = value.flatten()
        elif name == "decoder.ffn.1.weight":
            value = value.flatten(1)
        out.put(name, by_rules(name, RULES), value)
    return out


# -- statistics --------------------------------------------------------------------------------------------------------


def with_statistics(settings: Settings, found: Settings) -> Settings:
    """Settings of a conversion in which `stats`, a file, stands as the numbers of its entry `stats_key`."""
    rest = {key: value for key, value in settings.items() if key not in ("stats", "stats_key")}
    path, key = settings.get("stats"), settings.get("stats_key")
    if path is None:
        if key is not None:
            raise MgenError(f"stats_key is {shown(key)}, but there is no stats=FILE: give both, or neither")
        return rest
    if not isinstance(path, str):
        raise MgenError(f"stats is {shown(path)}: expected the path of stats.pt")
    mean, std = read_statistics(path, key)
    channels = found["latent_channels"]
    if min(len(mean), len(std)) < channels:
        raise MgenError(f"{path} has statistics of {len(mean)} channels: this tokenizer has {channels}")
    return {"latents_mean": mean[:channels], "latents_std": std[:channels], **rest}


def read_statistics(path: str | Path, key: object = None) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel from an official file of statistics, means of moments first.

    Args:
        key: the entry; None: that of the published tokenizers, or the only one.

    Raises:
        MgenError: no such file or entry, or it holds other things than numbers.
    """
    data = _load(check_file(Path(path)))
    key = key if key is not None else (PUBLISHED if PUBLISHED in data or len(data) != 1 else next(iter(data)))
    if key not in data:
        raise MgenError(f"{path} has no entry {shown(key)}: choose stats_key from {', '.join(map(shown, data))}")
    entry = data[key]
    pair = entry.get("channel") if isinstance(entry, Mapping) else None
    if not isinstance(pair, tuple | list) or len(pair) != 2:
        raise MgenError(f"{path}: the entry {shown(key)} has no 'channel' with a mean and a standard deviation")
    try:
        mean, std = (torch.as_tensor(part, dtype=torch.float32).flatten() for part in pair)
    except (TypeError, ValueError, RuntimeError) as error:
        raise MgenError(f"{path}: the statistics of {shown(key)} are no numbers ({first_line(error, 80)})") from error
    if len(mean) != len(std) or not bool(torch.isfinite(mean).all() and (std >= 0).all()):
        raise MgenError(
            f"{path}: the statistics of {shown(key)} are not one mean and one standard deviation for each channel"
        )
    return tuple(mean.tolist()), tuple(std.tolist())


def _load(path: Path) -> Mapping[Any, Any]:
    """The contents of a file that torch.save wrote, without running anything in it."""
    if path.stat().st_size > MOST_STATISTICS:
        raise MgenError(f"{path} is larger than {MOST_STATISTICS // 2**20} MiB: statistics are a few numbers")
    with path.open("rb") as file:
        zipped = file.read(2) == b"PK"
    if not zipped:
        raise MgenError(
            f"{path} was not written by torch.save, and mgen reads no other pickles, which can run code: if you trust it, write it "
            """again by python -c "import pickle, torch; torch.save(pickle.load(open('stats.pkl', 'rb')), 'stats.pt')\""""
        )
    try:
        check_archive(path)
        with only_globals([]):
            data = torch.load(path, map_location="cpu", weights_only=True)
    except MgenError:
        raise
    except (
        Exception
    ) as error:  # a crafted file can make the unpickler raise anything; its text says how to run the code
        raise MgenError(
            f"cannot read {path}: expected tensors alone, as torch.save writes l-DeTok's statistics, no other Python objects"
        ) from error
    if not isinstance(data, Mapping):
        raise MgenError(f"{path} holds no mapping from names to statistics: it is a {type(data).__name__}")
    return data


# -- generators --------------------------------------------------------------------------------------------------------


def generator_config(state: State) -> Settings:
    """As of MAR, for tokens that are normalized channel by channel, and without dropout in the MLPs.

    A patch of a 2-D model and a sequence without a grid have the same names and shapes; the published models have a grid.
    """
    out = mar.config(state)
    return out | {
        "tokens": {**out["tokens"], "scale": 1.0},
        "trunk": {**out["trunk"], "mlp_dropout": 0.0},
    }


register_format(
    "ldetok",
    Format(
        model="LDeTok",
        config=config,
        notes=notes,
        rename=rename,
        ema="model_ema",
        extra=("stats", "stats_key"),
        prepare=with_statistics,
    ),
)

register_format(
    "ldetok-mar",
    Format(
        trunk="mae",
        config=generator_config,
        notes=mar.notes,
        rename=mar.rename,
        ema="model_ema",
        tokenizer="ldetok",
    ),
)
