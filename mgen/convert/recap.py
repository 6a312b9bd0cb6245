"""ReCAP's two published samplers, from the arguments of their scripts, including their quirks. ReCAP uses the base models' weights.

Liu et al., "ReCAP" (arXiv 2505.19089); `cache_decoding.py` of its MaskGIT and its MAR example.
"""

from typing import Any

from mgen.convert import mar
from mgen.utils.config import Settings


def maskgit_settings(
    *,
    gen_step: int = 8,
    pre_full_iters: int = 0,
    num_cache_iters: int = 0,
    samp_temp: float = 0.7,
    conf_temp: float = 5.5,
    cfg: bool = False,
) -> Settings:
    """Settings of a ParallelSampler for MaskGIT-r (num_cache_iters 0: the base) and ReCAP on it.

    A first sample at temperature 1 decides the positions of a group, a second one its tokens. Steps that would reveal nothing borrow from
    the last one. The noise on confidences decreases by group. With `cfg`, w rises from 0.05 to 0.1 and lags by one in cached steps.
    """
    guidance: Any = {"kind": "linear", "start": 1.05, "end": 1.1, "at": "inclusive"} if cfg else 1.0
    reuse = {"cached": num_cache_iters, "full_first": pre_full_iters, "late_guidance": True}
    return {
        "steps": gen_step,
        "order": {"name": "confidence", "redraw": True},
        "schedule": "pow2.5",
        "counts": "maskgit-r",
        "guidance": guidance,
        "temperature": {"kind": "power", "start": 1.0, "end": samp_temp, "power": 0.5, "at": "inclusive"},
        "confidence_temperature": {"kind": "linear", "start": conf_temp, "end": 0.0, "at": "group"},
        # Without cached steps there are no groups: pre_full_iters then changes nothing.
        **({"reuse": reuse} if num_cache_iters else {}),
    }


def mar_settings(
    *,
    num_iter: int = 64,
    cfg: float = 1.0,
    cfg_schedule: str = "linear",
    temperature: float = 1.0,
    num_sampling_steps: str = "100",
    pre_full_iters: int = 0,
    num_cache_iters: int = 1,
    cache_buffer: bool = False,
    diff_fast_ratio: float = 0.5,
    true_fast_ratio: bool = False,
) -> Settings:
    """Settings of a ParallelSampler for ReCAP on MAR.

    A group is decoded row by row, and guidance reaches its end in the last step. `diff_fast_ratio` has no effect in the published code,
    where chains in cached steps always have half the steps; `true_fast_ratio` applies it.
    """
    chain: Settings = dict(temperature=temperature, num_sampling_steps=num_sampling_steps)
    base = mar.sampler_settings(num_iter=num_iter, cfg=cfg, cfg_schedule=cfg_schedule, **chain)
    if isinstance(base["guidance"], dict):
        del base["guidance"]["left"]
    reuse = {
        "cached": num_cache_iters,
        "full_first": pre_full_iters,
        "inside": "raster",
        "prefix": not cache_buffer,
        "head_share": diff_fast_ratio if true_fast_ratio else 0.5,
    }
    return {**base, "reuse": reuse}
