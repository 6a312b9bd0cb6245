"""Reverse chains of the diffusion head: from Gaussian noise to a token in N steps, given the network's answers.

Nichol & Dhariwal, "Improved Denoising Diffusion Probabilistic Models" (2021, arXiv 2102.09672): cosine schedule, learned
variance, respacing; DDIM (arXiv 2010.02502); DPM-Solver++ (arXiv 2211.01095). Tables are float64.

The ancestral chain is our own: diffusers' DDPMScheduler is the same mathematics (and the oracle of its test), but rounds its
tables to fp32, takes neither noise nor a temperature, keeps other timesteps for 278 of the 1000 possible step counts and looks
its place up on the device in every step. Its DDIM and DPM-Solver++ fit once they are given the respaced schedule.
"""

import math
from collections.abc import Sequence
from dataclasses import field
from itertools import accumulate
from typing import Annotated, Literal

import numpy as np
import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler
from pydantic import Field
from torch import Tensor

from mgen.heads.cache import HeadCache
from mgen.heads.head import HeadSettings
from mgen.utils.errors import MgenError
from mgen.utils.schema import schema

# The cosine schedule's last λ = log(signal / noise) are far apart (−9.9 at the top): those below are left out by the fast solvers.
LEAST_SNR = -5.1
LEAST_LINEAR = 20  # steps of the linear schedule at which its last β would be 1
TrainSteps = Annotated[int, Field(ge=1, le=100_000)]  # of a full diffusion, and at most so many are drawn with


@schema
class ChainSettings(HeadSettings):
    """How a token is drawn by a diffusion head.

    Args:
        chain: "ancestral" (the published one), "ddim", "dpm-solver++" (second order, multistep), or "dpm-solver++1s", "…2s", "…3s"
            (of that order, singlestep: see mgen.heads.singlestep).
        steps: N, calls of the network, 1 … number of training steps.
        clip: |x0| is held below this in every step; None: not, as published. Tokens have about unit variance: 5 is wide.
        spacing: timesteps from the first to the last ("ends"), or every n-th from the first on ("stride": the official codes' "ddimN",
            which names a spacing and no chain). DPM-Solver++ has a spacing of its own.
        max_timestep: timesteps above it become this one, once, so that a chain of N steps may call the network fewer times (DiSA,
            arXiv 2505.20297: 950). The start is still Gaussian noise. None: not. For "ancestral" and "ddim".
        cache: what calls of a denoising MLP use of those before (LazyMAR), see mgen.heads.cache.
    """

    chain: Literal["ancestral", "ddim", "dpm-solver++", "dpm-solver++1s", "dpm-solver++2s", "dpm-solver++3s"] = (
        "ancestral"
    )
    steps: TrainSteps = 100
    clip: Annotated[float, Field(gt=0, le=1e6)] | None = None
    spacing: Literal["ends", "stride"] = "ends"
    max_timestep: Annotated[int, Field(ge=0, le=100_000)] | None = None
    cache: HeadCache = field(default_factory=HeadCache)

    def __post_init__(self) -> None:
        if self.steps == 1 and self.chain in ("ddim", "dpm-solver++"):
            raise MgenError(f"steps is 1: the chain {self.chain!r} needs at least 2")
        if self.max_timestep is not None and self.chain not in ("ancestral", "ddim"):
            raise MgenError(f"max_timestep is for the chains ancestral and ddim: leave it out with {self.chain!r}")

    @property
    def order(self) -> int:
        """The order of a singlestep chain; 0 of the others."""
        return int(self.chain[-2]) if self.chain.endswith("s") else 0

    @property
    def noise_count(self) -> int:
        """Gaussian draws per token: the start, and one after every step but the last of a chain that adds noise."""
        return self.steps if self.chain == "ancestral" else 1


def cosine_betas(steps: int = 1000) -> np.ndarray:
    """β of ᾱ(t) = cos²((t + 0.008) / 1.008 · π/2), held below 0.999 (arXiv 2102.09672, eq. 17)."""

    def alpha_bar(t: float) -> float:
        return math.cos((t + 0.008) / 1.008 * math.pi / 2) ** 2

    return np.array([min(1 - alpha_bar((i + 1) / steps) / alpha_bar(i / steps), 0.999) for i in range(steps)])


def linear_betas(steps: int = 1000) -> np.ndarray:
    """β that rise in equal steps from 1e-4 to 0.02 at 1000 steps, and faster at fewer (arXiv 2006.11239, §4)."""
    return np.linspace(0.1 / steps, LEAST_LINEAR / steps, steps, dtype=np.float64)


BETAS = {"cosine": cosine_betas, "linear": linear_betas}


def kept_timesteps(count: int, of: int = 1000) -> list[int]:
    """The `count` timesteps of a respaced chain, ascending, first and last included; Python's rounding, as published."""
    if count == 1:
        return [0]
    # Strides are added up in floats, as published: a product would round other ties.
    return [round(place) for place in accumulate([(of - 1) / (count - 1)] * (count - 1), initial=0.0)]


def strided_timesteps(count: int, of: int = 1000) -> list[int]:
    """`count` timesteps 0, s, 2s, … by the smallest whole stride s that gives so many; MgenError if none does."""
    for stride in range(1, of + 1):
        if len(kept := list(range(0, of, stride))) == count:
            return kept
    raise MgenError(f"head.spacing stride: no whole stride leaves {count} of {of} timesteps: use another head.steps")


def snr_timesteps(count: int, tables: "Tables") -> list[int]:
    """`count` timesteps about evenly spaced in λ = log(signal / noise), ascending, for DPM-Solver++ (arXiv 2211.01095, §5).

    The cosine schedule's last λ are far apart (−9.9 at the top), where a second-order step means nothing and errors are
    magnified 20,000 times: they are left out, as diffusers advises for this schedule (its lambda_min_clipped = −5.1).
    """
    snr = np.log(tables.signal / tables.noise)
    goals = np.linspace(snr[0], max(snr[-1], LEAST_SNR), count)
    kept = {int(np.abs(snr - goal).argmin()) for goal in goals}
    spare = (t for t in range(len(snr)) if t not in kept)
    while len(kept) < count:  # more steps than there are distinct places: fill up from the clean end
        kept.add(next(spare))
    return sorted(kept)


class Tables:
    """Coefficients of a diffusion with the given betas, float64 arrays by timestep.

    `signal`, `noise`: x_t = signal · x_0 + noise · ε. `recip`, `recipm1`: x_0 = recip · x_t − recipm1 · ε.
    `coef1`, `coef2`: mean of q(x_{t−1} | x_t, x_0). `log_low`, `log_high`: smallest and largest log-variance of a step.
    `log_fixed`: that of a network that has no say in it, the largest but for the cleanest step (FIXED_LARGE as published).
    """

    def __init__(self, betas: np.ndarray) -> None:
        self.betas = betas
        alphas = 1 - betas
        self.alpha_bar = np.cumprod(alphas)
        before = np.append(1.0, self.alpha_bar[:-1])
        self.signal, self.noise = np.sqrt(self.alpha_bar), np.sqrt(1 - self.alpha_bar)
        self.recip, self.recipm1 = np.sqrt(1 / self.alpha_bar), np.sqrt(1 / self.alpha_bar - 1)
        variance = betas * (1 - before) / (1 - self.alpha_bar)
        # The first step has variance 0; its logarithm is replaced by that of the second, as published.
        self.log_low = np.log(np.append(variance[1], variance[1:]) if len(betas) > 1 else betas)
        self.log_high = np.log(betas)
        self.log_fixed = np.append(self.log_low[0], self.log_high[1:])
        self.coef1 = betas * np.sqrt(before) / (1 - self.alpha_bar)
        self.coef2 = (1 - before) * np.sqrt(alphas) / (1 - self.alpha_bar)

    def respace(self, timesteps: list[int]) -> "Tables":
        """The diffusion that visits only `timesteps`, with the same ᾱ there."""
        return Tables.of(self.alpha_bar[timesteps])

    @classmethod
    def of(cls, alpha_bar: np.ndarray) -> "Tables":
        """The diffusion with these ᾱ, descending."""
        return cls(1 - alpha_bar / np.append(1.0, alpha_bar[:-1]))


class Chain:
    """A reverse chain; step j = 0 … N − 1 from the noisiest. `timesteps[j]` is where the network is asked."""

    def __init__(self, settings: ChainSettings, tables: Tables) -> None:
        self.check_steps(settings, tables)
        most = len(tables.betas)
        if settings.chain == "dpm-solver++":
            kept = snr_timesteps(settings.steps, tables)
        else:
            pick = strided_timesteps if settings.spacing == "stride" else kept_timesteps
            kept = pick(settings.steps, most)
        if settings.max_timestep is not None:
            kept = sorted({min(t, settings.max_timestep) for t in kept})
        self.settings, self.tables = settings, tables.respace(kept)
        self.timesteps: Sequence[float] = kept[::-1]
        # diffusers' schedulers get the respaced betas, so that their steps are consecutive, and are asked with x0, clipped or not.
        betas = self.tables.betas
        made: DDIMScheduler | DPMSolverMultistepScheduler | None = None
        common = {"num_train_timesteps": len(kept), "trained_betas": betas, "prediction_type": "sample"}
        if settings.chain == "ddim":
            made = DDIMScheduler(**common, clip_sample=False, set_alpha_to_one=True, timestep_spacing="leading")
        elif settings.chain == "dpm-solver++":
            made = DPMSolverMultistepScheduler(**common, timestep_spacing="trailing", final_sigmas_type="zero")
        if made is not None:  # their ᾱ are rounded to fp32, which the noisiest steps magnify
            made.alphas_cumprod = torch.from_numpy(self.tables.alpha_bar)
        self.scheduler = made

    @staticmethod
    def check_steps(settings: ChainSettings, tables: Tables) -> None:
        """Raise MgenError for more steps than the head was trained with."""
        if settings.steps > (most := len(tables.betas)):
            raise MgenError(
                f"a step has a chain of {settings.steps} head steps: the head was trained with {most} steps, so at most {most}"
            )

    def clean(self, k: int, x: Tensor, eps: Tensor) -> Tensor:
        """x0 that the answer eps implies for the state x at place k (0 is the cleanest), clipped if the settings say so."""
        x0, bound = self.tables.recip[k] * x - self.tables.recipm1[k] * eps, self.settings.clip
        return x0 if bound is None else x0.clamp(-bound, bound)

    def begin(self) -> None:
        """Forget the previous chain (a multistep solver remembers its last answers)."""
        if self.scheduler is not None:
            self.scheduler.set_timesteps(len(self.timesteps))
            if isinstance(self.scheduler, DPMSolverMultistepScheduler):
                self.scheduler.set_begin_index(0)  # otherwise its first step looks its place up

    def step(
        self, j: int, x: Tensor, eps: Tensor, v: Tensor | None, noise: Tensor | None, temperature: float
    ) -> Tensor:
        """x after step j.

        Args:
            x: (…, C). eps, v: the network's answer for it; v None: the network gives none, the variance is fixed and large.
            noise: standard normal (…, C), None in the last step. temperature: factor of the noise.
        """
        k = len(self.timesteps) - 1 - j
        x0 = self.clean(k, x, eps)
        if self.settings.chain == "ancestral":
            mean, log_variance = self.moments(k, x, x0, v)
            return mean if noise is None else mean + (0.5 * log_variance).exp() * (noise * temperature)
        assert self.scheduler is not None
        return self.scheduler.step(x0, k, x).prev_sample

    def moments(self, k: int, x: Tensor, x0: Tensor, v: Tensor | None) -> tuple[Tensor, Tensor]:
        """Mean and log-variance of an ancestral step from place k (0 is the cleanest); v interpolates the variance, eq. 15."""
        tables = self.tables
        mean = tables.coef1[k] * x0 + tables.coef2[k] * x
        if v is None:
            return mean, x.new_full((), tables.log_fixed[k])  # written on the device, not brought there
        f = (v + 1) / 2
        return mean, f * tables.log_high[k] + (1 - f) * tables.log_low[k]
