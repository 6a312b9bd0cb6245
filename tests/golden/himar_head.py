"""Hi-MAR's joint head: the network, alone and guided, and the tables of its chain."""

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mgen.convert import convert
from mgen.heads.chains import Tables, cosine_betas, kept_timesteps
from mgen.heads.diffusion_transformer import DiffusionTransformerHead
from tests.golden.harness import Case

# Ten times the reference's own fp32–fp64 difference: 1.6e-6, guided 4.3e-6.
EPS, GUIDED = 1.6e-5, 4.3e-5


def map_head(case: Case) -> DiffusionTransformerHead:
    c = case.config
    sizes: dict[str, Any] = dict(trunk={"heads": c["encoder_num_heads"]}, second={"head": {"heads": c["head"]}})
    head: Any = convert("himar", case.folder / "weights.safetensors", **sizes).model.head
    assert isinstance(head, DiffusionTransformerHead)
    return head


def rows(maps: Tensor) -> Tensor:
    """(B, C, H, W) → (B, L, C)."""
    return maps.flatten(2).transpose(1, 2)


@torch.inference_mode()
def dit_head(case: Case) -> None:
    net, i = map_head(case), case.inputs
    x, z = rows(i["x"]), rows(i["z"])

    def check(name: str, eps: Tensor, least: float) -> None:
        case.check(name, eps.transpose(1, 2).unflatten(2, net.grid), atol=case.near(name, least))

    check("eps", net(x, i["t"], z), EPS)
    conditional, null = net(x.repeat(2, 1, 1), i["t"].repeat(2), torch.cat([z, z.flip(0)])).chunk(2)
    for name in case.outputs:
        if m := re.fullmatch(r"eps_cfg(\d+(?:[.p]\d+)?)_first_half", name):
            check(name, torch.lerp(null, conditional, float(m[1].replace("p", "."))), GUIDED)


TABLES: dict[str, Callable[[Tables], np.ndarray]] = {
    "alphas_cumprod": lambda t: t.alpha_bar,
    "betas": lambda t: t.betas,
    "dit_fixed_large_log_variance": lambda t: t.log_fixed,
    "posterior_mean_coef1": lambda t: t.coef1,
    "posterior_mean_coef2": lambda t: t.coef2,
    "posterior_variance": lambda t: np.append(0.0, np.exp(t.log_low[1:])),
}


def diffusion_tables(case: Case) -> None:
    for name in case.outputs:
        kind, count = name.rsplit("_", 1)
        kept = kept_timesteps(int(count))
        if kind == "timesteps":
            case.check(name, torch.tensor(kept))
            continue
        assert kind in TABLES, f"table {name} is of no known kind"
        table = TABLES[kind](Tables(cosine_betas()).respace(kept))
        case.check(name, torch.from_numpy(table), rtol=1e-6, atol=1e-7)


FAMILIES: dict[str, Callable[[Case], None]] = {"dit_head.*": dit_head, "diffusion_tables.*": diffusion_tables}
