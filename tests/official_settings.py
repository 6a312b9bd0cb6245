"""Settings of our samplers from the arguments of the official scripts, under their official names and with their quirks.

ReCAP uses the base models' weights: Liu et al. (arXiv 2505.19089), `cache_decoding.py` of its MaskGIT and its MAR example.
"""

from typing import Any

from mgen.utils.config import Settings
from mgen.utils.errors import MgenError, check_choice


def generate_settings(
    *,
    cfg_scale: float = 1.0,
    cfg_interval: int = -1,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    sample_logits: bool = True,
    tokens: int,
) -> Settings:
    """Settings of a ParallelSampler from the arguments of the official `generate`, under their official names.

    Args:
        cfg_interval: last number k of the steps with guidance: the tokens 0 … k + 1 are guided; −1: all.
        sample_logits: False takes the likeliest id. tokens: those of an image, S + N.
    """
    guidance: Any = cfg_scale if cfg_scale > 1 else 1.0  # as there: no guidance up to 1
    if cfg_interval >= 0 and cfg_scale > 1:
        guidance = [cfg_scale if t <= cfg_interval + 1 else 1.0 for t in range(tokens)]
    filters = ({"top_k": top_k} if top_k > 0 else {}) | ({"top_p": top_p} if top_p < 1 else {})
    head = filters if sample_logits else {"top_k": 1}
    return {
        "steps": tokens,
        "order": "raster",
        "schedule": "single",
        "guidance": guidance,
        "temperature": temperature,
        **({"head": head} if head else {}),
    }


def rar_settings(
    *, guidance_scale: float, randomize_temperature: float = 1.0, guidance_scale_pow: float = 0.0, tokens: int = 256
) -> Settings:
    """Settings of a ParallelSampler from the arguments of RAR's official `generate`, under their official names.

    A scale of 0 leaves the null class out, the power 0 makes the scale constant. `tokens`: those of an image.
    """
    guidance: Any = 1.0 if guidance_scale == 0 else guidance_scale
    if guidance != 1 and guidance_scale_pow:
        guidance = {
            "kind": "power-cosine",
            "start": 1.0,
            "end": guidance_scale,
            "power": guidance_scale_pow,
            "at": "start",
        }
    return {
        "steps": tokens,
        "order": "raster",
        "schedule": "single",
        "guidance": guidance,
        "temperature": randomize_temperature,
    }


def halton_settings(
    *,
    step: int = 64,
    w: float = 4.0,
    sm_temp_min: float = 1.0,
    sm_temp_max: float = 1.0,
    temp_pow: float = 1.0,
    temp_warmup: int = 0,
    top_k: int = -1,
    randomize: bool = False,
    sched_pow: float = 2.5,
) -> Settings:
    """Settings of a ParallelSampler from the arguments of the official HaltonSampler, under their official names.

    Its temperature multiplies the logits; ours divides them. `sched_pow` is accepted and never used, as in the official code.
    """
    if min(sm_temp_min, sm_temp_max) <= 0:
        raise MgenError(f"sm_temp_min {sm_temp_min}, sm_temp_max {sm_temp_max}: factors of the logits must be positive")
    factors = [sm_temp_min + (sm_temp_max - sm_temp_min) * t / max(1, step - 1) for t in range(step)]
    temperatures = [1 / (f**temp_pow * (0.5 if t < temp_warmup else 1.0)) for t, f in enumerate(factors)]
    constant = len(set(temperatures)) == 1
    return {
        "steps": step,
        "order": "halton-rolled" if randomize else "halton",
        "schedule": "arccos",
        "counts": "halton",
        "guidance": 1.0 + w,
        "temperature": temperatures[0] if constant else temperatures,
        **({"head": {"top_k": top_k}} if top_k > 0 else {}),
    }


def confidence_settings(
    *,
    step: int = 12,
    w: float = 3.0,
    sm_temp: float = 1.0,
    r_temp: float = 4.5,
    randomize: str = "linear",
    sched_mode: str = "arccos",
) -> Settings:
    """Settings of a ParallelSampler from the arguments of the official ConfidenceSampler, under their official names.

    Every step draws all positions, known ones too, and ranks by the probability at the temperature of the draw. With `randomize` "random"
    all steps rank by uniform numbers, with "warm_up" the first two; other words than these and "linear" are plain confidence.
    """
    check_choice("sched_mode", sched_mode, ("arccos", "cosine", "linear", "square", "root"))
    at_random = {"random": step, "warm_up": 2}.get(randomize, 0)
    if sm_temp <= 0:
        raise MgenError(f"sm_temp is {sm_temp}: a factor of the logits must be positive")
    linear = {"kind": "linear", "start": r_temp, "end": 0.0, "at": "inclusive"}
    return {
        "steps": step,
        "order": {"name": "remasking", "random_steps": at_random} if at_random else "remasking",
        "schedule": "pow0.5" if sched_mode == "root" else sched_mode,
        "counts": "halton-confidence",
        "guidance": {"kind": "linear", "start": 1.0, "end": 1.0 + w, "at": "inclusive"},
        "temperature": 1 / sm_temp,
        "confidence_temperature": linear if randomize == "linear" else 0.0,
        "head": {"tempered": True},
    }


def enat_settings(*, sample_steps: int, cfg_scale: float, mask_temp: float, samp_temp: float) -> Settings:
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


def mage_settings(*, num_iter: int = 12, temp: float = 4.5, mask_schedule: str = "cosine") -> Settings:
    """Settings of a ParallelSampler from the arguments of the official gen_img_uncond.py, under their official names."""
    check_choice("mask_schedule", mask_schedule, ("cosine",))
    return {
        "steps": num_iter,
        "order": "confidence",
        "schedule": "cosine",
        "temperature": 1.0,
        "confidence_temperature": {"kind": "linear", "start": temp, "end": 0.0, "at": "end"},
    }


def mar_settings(
    *,
    num_iter: int,
    cfg: float = 1.0,
    cfg_schedule: str = "linear",
    temperature: float = 1.0,
    num_sampling_steps: str = "100",
) -> Settings:
    """Settings of a ParallelSampler from the arguments of the official evaluation, under their official names.

    Args:
        num_sampling_steps: the respacing text: "" for all steps, "100", or "ddim50" for every 20th timestep.
    """
    check_choice("cfg_schedule", cfg_schedule, ("linear", "constant"))
    linear = {"kind": "linear", "start": 1.0, "end": cfg, "at": "tokens", "left": 1}
    spacing = {"spacing": "stride"} if num_sampling_steps.startswith("ddim") else {}
    return {
        "steps": num_iter,
        "order": "random",
        "schedule": "cosine",
        "counts": "mar",
        "guidance": linear if cfg_schedule == "linear" and cfg != 1.0 else cfg,
        "temperature": temperature,
        "head": {"chain": "ancestral", "steps": int(num_sampling_steps.removeprefix("ddim") or 1000), **spacing},
    }


def disa_settings(
    *,
    num_iter: int,
    cfg: float = 1.0,
    strategy: str = "linear",
    upper: int = 25,
    lower: int = 5,
    temperature: float = 1.0,
) -> Settings:
    """Settings of a ParallelSampler for DiSA on MAR; strategy "linear", "cosine", "two-stage" or "constant"; defaults are the CLI's."""
    steps: Settings | int = {
        "linear": {"kind": "linear", "start": upper, "end": lower, "at": "inclusive"},
        "cosine": {"kind": "power-cosine", "start": upper, "end": lower},
        "two-stage": {"kind": "step", "start": upper, "end": lower},
        "constant": lower,
    }[strategy]
    base = mar_settings(num_iter=num_iter, cfg=cfg, temperature=temperature)
    return {**base, "head": {"chain": "ancestral", "steps": steps, "max_timestep": 950}}


# Of the decoder's rows, the share that passes its later blocks: from so many steps on.
LAZYMAR_RATIOS = ((20, 0.6), (21, 0.5), (25, 0.4), (30, 0.15), (35, 0.12), (40, 0.05))


def lazymar_settings(*, num_iter: int = 64, cfg: float = 3.25, temperature: float = 1.0) -> Settings:
    """Settings of a ParallelSampler for LazyMAR on MAR; the table of shares goes by the number of the step, of which it has 64."""
    if num_iter > 64:
        raise MgenError(f"num_iter is {num_iter}: the published table of shares ends after 64 steps")
    period = {"every": 9, "first": 5}
    keep = [[step / num_iter, share] for step, share in LAZYMAR_RATIOS if step < num_iter] or 1.0
    base = mar_settings(num_iter=num_iter, cfg=cfg, temperature=temperature)
    cache = {"every": 7, "blocks": [1, 4], "warm": 0.1}
    tokens = {**period, "layer": 3, "keep": keep, "extra": 15}
    return {**base, "head": {**base["head"], "cache": cache}, "reuse": {"condition": period, "tokens": tokens}}


EMIGM_CURVES = {
    "linear": "linear",
    "cosine": "cosine",
    "poly-0.5": "sqrt",
    "exp": "exp5",
    "log": "log5",
    "log-exp": "log5",
}


def emigm_settings(
    *,
    num_iter: int = 64,
    cfg: float = 1.0,
    cfg_schedule: str = "constant",
    cfg_t_min: float = 0.0,
    cfg_t_max: float = 1.0,
    mask_strategy: str = "exp",
    sampling_algo: str = "ddpm",
    num_sampling_steps: str = "100",
    order: int = 3,
    temperature: float = 1.0,
) -> Settings:
    """Settings of a ParallelSampler from the arguments of the official evaluation, under their official names.

    Args:
        num_sampling_steps: calls of the network with the dpm-solver, of `order`, which ignores the temperature; else as of MAR.
    """
    check_choice("sampling_algo", sampling_algo, ("ddpm", "dpm-solver"))
    kinds: dict[str, Settings] = {
        "constant": {"kind": "constant"},
        "linear": {"kind": "linear", "at": "tokens"},
        "power": {"kind": "power", "power": 2.0, "at": "tokens"},
        "cubic": {"kind": "power", "power": 3.0, "at": "tokens"},
        "exp": {"kind": "exponential", "at": "tokens"},
        "cosine": {"kind": "sine", "at": "tokens"},
    }
    curve = kinds[check_choice("cfg_schedule", cfg_schedule, kinds)]
    solver = sampling_algo == "dpm-solver"
    if solver:
        head: Settings = {"chain": f"dpm-solver++{order}s", "steps": int(num_sampling_steps)}
    else:
        head = mar_settings(num_iter=num_iter, num_sampling_steps=num_sampling_steps)["head"]
    return {
        "steps": num_iter,
        "order": "random",
        "schedule": EMIGM_CURVES[check_choice("mask_strategy", mask_strategy, EMIGM_CURVES)],
        "counts": "binomial",
        "guidance": 1.0 if cfg == 1 else {**curve, "end": cfg, "interval": [cfg_t_min, cfg_t_max]},
        "temperature": 1.0 if solver else temperature,
        "head": head,
    }


def himar_settings(
    *,
    num_iter: int,
    cfg: float = 1.0,
    re_cfg: float = 1.0,
    cond_scale: int = 8,
    cfg_schedule: str = "linear",
    temperature: float = 1.0,
    num_sampling_steps: str = "100",
    dense_sampling_steps: str = "250",
) -> Settings:
    """Settings of a ParallelSampler from the arguments of the official evaluation, under their official names.

    Args:
        num_iter, cfg: of the tokens. re_cfg, num_sampling_steps: of the first stage, which takes 4 · cond_scale steps.
        dense_sampling_steps: of the transformer head, a constant in the official code.
    """
    common: Settings = dict(cfg_schedule=cfg_schedule, temperature=temperature)
    first = mar_settings(num_iter=4 * cond_scale, cfg=re_cfg, num_sampling_steps=num_sampling_steps, **common)
    dense = mar_settings(num_iter=num_iter, cfg=cfg, num_sampling_steps=dense_sampling_steps, **common)
    return {**dense, "first_stage": first}


def tokenbridge_settings(
    *, num_iter: int = 256, cfg: float = 1.0, cfg_schedule: str = "linear", temperature: float = 1.0
) -> Settings:
    """Settings of a ParallelSampler from the arguments of the official evaluation, under their official names.

    The schedule of tokens and of guidance is MAR's, whose guidance is constant with any word but "linear". Guidance mixes the vectors
    that the head takes.
    """
    schedule = "linear" if cfg_schedule == "linear" else "constant"
    settings = mar_settings(num_iter=num_iter, cfg=cfg, cfg_schedule=schedule, temperature=temperature)
    return {**settings, "head": {"guide": "context"}}


def recap_maskgit_settings(
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


def recap_mar_settings(
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

    A group is decoded row by row, and guidance reaches its end in the last step; the cosine is that of (t + 1) / T times π/2, where
    MAR divides last. `diff_fast_ratio` has no effect in the published code,
    where chains in cached steps always have half the steps; `true_fast_ratio` applies it.
    """
    chain: Settings = dict(temperature=temperature, num_sampling_steps=num_sampling_steps)
    base = mar_settings(num_iter=num_iter, cfg=cfg, cfg_schedule=cfg_schedule, **chain)
    if isinstance(base["guidance"], dict):
        del base["guidance"]["left"]
    reuse = {
        "cached": num_cache_iters,
        "full_first": pre_full_iters,
        "inside": "raster",
        "prefix": not cache_buffer,
        "head_share": diff_fast_ratio if true_fast_ratio else 0.5,
    }
    return {**base, "counts": "maskgit", "reuse": reuse}


def xar_settings(*, num_steps: int = 40, cfg: float = 2.7, sampler: str = "sde") -> Settings:
    """Settings of a ParallelSampler from the arguments of the official evaluation of xAR, under their official names.

    Args:
        sampler: "sde", which `sample_tokens` calls, or "euler", which its code holds too.
    """
    check_choice("sampler", sampler, ("sde", "euler"))
    return {
        "steps": 4,  # cells
        "order": "raster",
        "schedule": "single",
        "guidance": {"kind": "linear", "start": 1.0, "end": max(1.0, cfg), "at": "inclusive"},  # up to 1 none, as there
        "head": {"solver": "euler-maruyama" if sampler == "sde" else "euler", "steps": num_steps},
    }


def titok_settings(
    *,
    guidance_scale: float = 3.0,
    guidance_decay: str = "constant",
    guidance_scale_pow: float = 3.0,
    randomize_temperature: float = 4.5,
    softmax_temperature_annealing: bool = False,
    num_sample_steps: int = 8,
) -> Settings:
    """Settings of a ParallelSampler from the arguments of TiTok's `generate`, under their official names.

    Logits are c + w·(c − u): with "constant" w = guidance_scale, with "linear" w = guidance_scale · t / T, both s = 1 + w here; with
    "power-cosine" they are u + s·(c − u). Annealing divides them by a_t = 0.5 + 0.8·(1 − r), the Gumbel noise of the draw and of the
    ranking has the factor τ_t = randomize_temperature · (1 − r). argmax(l / a + τ·g) is a draw at temperature a·τ, and l / a + τ·g ranks
    like l + a·τ·g: both temperatures are a·τ.
    """
    check_choice("guidance_decay", guidance_decay, ("linear", "constant", "power-cosine"))
    guidance: Any = {"kind": "linear", "start": 1.0, "end": 1.0 + guidance_scale, "at": "start"}
    if guidance_decay == "power-cosine":
        power = {"power": guidance_scale_pow, "at": "start"}
        guidance = {"kind": "power-cosine", "start": 1.0, "end": guidance_scale, **power}
        if guidance_scale_pow == 0:  # (s / T)^0 is 1
            guidance = guidance_scale
    elif guidance_decay == "constant":
        guidance = 1.0 + guidance_scale
    annealing = {"kind": "linear", "start": 1.3, "end": 0.5, "at": "end"}
    temperature: Settings = {"kind": "linear", "start": randomize_temperature, "end": 0.0, "at": "end"}
    if softmax_temperature_annealing:
        temperature["times"] = annealing
    return {
        "steps": num_sample_steps,
        "order": "confidence",
        "schedule": "arccos",
        "guidance": guidance,
        "temperature": temperature,
        "confidence_temperature": temperature,
        "head": {"score": "logit"},
    }


def ldetok_schedule(
    *, lr: float, min_lr: float, lr_sched: str, epochs: int, warmup_epochs: int, steps: int
) -> Settings:
    """Settings of `optim` from the arguments of l-DeTok's scripts, under their official names; `steps` of an epoch.

    `min_lr` counts for "cosine" alone; `epochs` is the length of the run.
    """
    check_choice("lr_sched", lr_sched, ("constant", "cosine"))
    kind = "cosine" if lr_sched == "cosine" else "constant_with_warmup" if warmup_epochs else "constant"
    least = {"least_lr": min_lr} if lr_sched == "cosine" else {}
    return {"lr": lr, "schedule": kind, "warmup": warmup_epochs * steps, **least}


def ldetok_decay(what: str) -> Settings:
    """Settings of `optim` that leave out of weight decay what l-DeTok's scripts do: by parts of names, such as embed, token and ln."""
    names = {
        "tokenizer": ("encoder.embed", "encoder.position", "decoder.embed", "decoder.position", "decoder.mask_token"),
        "generator": (
            *("head.", "trunk.mask_token", "trunk.decoder_embed"),
            *("trunk.encoder_position", "trunk.decoder_position", "trunk.head_position"),
        ),
    }
    return {"decay_all": False, "no_decay": names[what]}
