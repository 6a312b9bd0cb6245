"""Flow matching: from Gaussian noise to tokens along a velocity, in n steps, given the network's answers.

A token x on its way to noise e is x_t = (1 − t)·x + t·e with the velocity v = e − x (Lipman et al., arXiv 2210.02747; Liu et al.,
arXiv 2209.03003). The stochastic solver follows Ma et al. (SiT, arXiv 2401.08740, §2): with diffusion 2t the reverse process has the
drift v − t·s, where s = (−(1 − t)·v − x) / t is the score.

diffusers' FlowMatchEulerDiscreteScheduler takes other times and adds no noise that is handed in. The state is float64, as published:
in float32 the sum of many small steps loses digits that the next tokens see.
"""

from dataclasses import field
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from mgen.heads.cache import HeadCache
from mgen.heads.head import HeadSettings, mix
from mgen.nn.denoising import Network
from mgen.utils.errors import MgenError
from mgen.utils.schema import schema

LAST = 0.04  # where the stochastic solver stops adding noise; one step of the drift alone leads from there to 0
Times = Literal["truncated", "exact"]


@schema
class FlowSettings(HeadSettings):
    """How tokens are drawn along a flow.

    Args:
        solver: "euler-maruyama" adds noise in every step but the last (xAR), "euler" follows the velocity alone.
        steps: n, calls of the network; euler-maruyama needs 2.
        cache: what calls of a denoising MLP use of those before (LazyMAR), see mgen.heads.cache.
    """

    solver: Literal["euler", "euler-maruyama"] = "euler-maruyama"
    steps: Annotated[int, Field(ge=1, le=100_000)] = 100
    cache: HeadCache = field(default_factory=HeadCache)

    def __post_init__(self) -> None:
        if self.steps == 1 and self.solver == "euler-maruyama":
            raise MgenError("steps is 1: the solver 'euler-maruyama' needs at least 2, or use solver euler")

    @property
    def noise_count(self) -> int:
        """Gaussian draws per token: the start, and one after every step but the last of a solver that adds noise."""
        return self.steps if self.solver == "euler-maruyama" else 1


def time_index(t: Tensor, times: Times) -> Tensor:
    """What the time embedding takes for times t in [0, 1]: 1000·t, "truncated" to a whole number (int64) in float32, as published.

    One unit moves the published velocities by about 0.01, and other arithmetic gives other integers (0.68 becomes 679).
    """
    scaled = t.float() * 1000
    return scaled.long() if times == "truncated" else scaled


class Flow:
    """A solver with its times t_0 = 1 > … > t_n = 0; step j leads from t_j to t_{j+1}."""

    def __init__(self, settings: FlowSettings) -> None:
        n, self.settings = settings.steps, settings
        if settings.solver == "euler":
            t = torch.linspace(1, 0, n + 1, dtype=torch.float64)
        else:
            t = torch.cat([torch.linspace(1, LAST, n, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)])
        self.times: list[float] = t.tolist()

    def asked(self, times: Times) -> Tensor:
        """What the time embedding takes at each step (n,)."""
        return time_index(torch.tensor(self.times[:-1], dtype=torch.float64), times)

    def step(self, j: int, x: Tensor, v: Tensor, noise: Tensor | None, temperature: float) -> Tensor:
        """x after step j, for x and velocity v (…, C) in float64; noise: standard normal (…, C), None in the last step."""
        t, dt = self.times[j], self.times[j + 1] - self.times[j]
        if self.settings.solver == "euler":
            return x + v * dt
        score = (-(1 - t) * v - x) / t
        x = x + (v - t * score) * dt
        return x if noise is None else x + noise.double() * (temperature * (2 * t * -dt) ** 0.5)

    def run(self, network: Network, noise: Tensor, *, temperature: float, guidance: float | Tensor | None) -> Tensor:
        """Tokens (B, M, C) in float32.

        Args:
            network: noisy tokens in float32 and the step → velocity (B, M, C), or (2B, M, C) with null rows, if guided.
            noise: (draws, B, M, C): the start, then what each step but the last adds; more are ignored. temperature: of the latter.
        """
        x = noise[0].double()
        for j in range(self.settings.steps):
            state = x.float()
            v = network(state if guidance is None else torch.cat([state, state]), j).double()
            added = noise[j + 1] if len(noise) > 1 and j + 1 < self.settings.steps else None
            # The drift is linear in v, so guiding velocities guides the drifts.
            x = self.step(j, x, mix(v, guidance), added, temperature)
        return x.float()
