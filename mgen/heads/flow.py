"""Flow-matching heads: context → real token along a learned velocity.

`flow` draws one token after the other, by a small network of its own, from the context of any trunk: MAR's or MaskGIT's. `velocity`
is the last layer of a trunk that reads the noisy tokens itself (Ren et al., "Beyond Next-Token: Next-X Prediction for Autoregressive
Visual Generation", xAR, arXiv 2502.20388, §3.3). Objective: mean squared error of the velocity e − x at a time that is a sigmoid of a
normal number. The solvers are in mgen.heads.flows.

Notation: B batch, M positions, D width of the context, C numbers of a token, K copies of a token in training, R rows.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn

from mgen.heads.cache import CachePlan, HeadCache, keep_difference
from mgen.heads.diffusion import DenoisingMLP
from mgen.heads.flows import Flow, FlowSettings, Times, time_index
from mgen.heads.head import DenoisingHead, Draw, Head, HeadInputs, HeadNoise, NoiseSpec, register_head
from mgen.nn.denoising import Denoiser, Network
from mgen.nn.halves import by_halves, networks_by_halves, separate, sharing
from mgen.utils.config import Settings
from mgen.utils.errors import MgenError
from mgen.utils.fitting import DataRows, Rows
from mgen.utils.schema import Depth, Size, schema


@dataclass(frozen=True)
class FlowPlan:
    """A solver, what the time embedding takes at its steps (n,), and which calls use what others computed; made once per run."""

    flow: Flow
    times: Tensor
    cache: CachePlan | None = None


class FlowMatching(Head[FlowPlan]):
    """What both heads share: the objective, and the settings of a draw."""

    token_kinds = ("vector",)
    metric = "mse"
    has_log_prob = False  # a continuous draw has no probability to rank positions by
    channels: int

    def training_noise(self, length: int, copies: int, rng: torch.Generator) -> HeadNoise:
        """Times (K, L) in (0, 1), sigmoids of normal numbers, and noise (K, L, C) for the loss of one image."""
        t = torch.randn(copies, length, generator=rng, device=rng.device).sigmoid()
        return HeadNoise(t, torch.randn(copies, length, self.channels, generator=rng, device=rng.device))

    def noisy(self, target: Tensor, noise: HeadNoise | None) -> tuple[Tensor, Tensor]:
        """Noisy tokens (…, C) and what the time embedding takes (…), of clean ones and the noise of a loss; shapes broadcast."""
        if noise is None:
            raise MgenError(f"the loss of a flow needs noise: see {type(self).__name__}.training_noise")
        t = noise.t.unsqueeze(-1)
        return (1 - t) * target + t * noise.noise, time_index(noise.t, self.config.times)

    def error(self, v: Tensor, target: Tensor, noise: HeadNoise) -> tuple[Tensor, Tensor]:
        """Loss and metric (…) of velocities v (…, C): the mean squared error, twice."""
        mse = (v.float() - (noise.noise - target)).square().mean(-1)
        return mse, mse

    def check(self, settings: Settings, *, temperatures: Sequence[float]) -> None:
        flow = FlowSettings.of(settings)
        self.cache_plan(flow.cache, flow.steps)
        if flow.solver == "euler" and any(t != 1 for t in temperatures):
            raise MgenError(
                f"temperature {temperatures[0]} scales noise that the solver 'euler' does not add: use temperature 1 or "
                "solver euler-maruyama"
            )

    def noise_spec(self, settings: Settings) -> NoiseSpec:
        """The start, and what the steps add."""
        return NoiseSpec(True, (FlowSettings.of(settings).noise_count, self.channels))

    def plan(self, settings: Settings) -> FlowPlan:
        flow = Flow(FlowSettings.of(settings))
        times = flow.asked(self.config.times).to(next(self.parameters()).device)
        return FlowPlan(flow, times, self.cache_plan(flow.settings.cache, len(times)))

    def cache_plan(self, cache: HeadCache, calls: int) -> CachePlan | None:
        """The calls of a chain that use what others computed; MgenError where this head has no such cache."""
        cache.refuse(self.settings["type"], "its network is the trunk")
        return None


@schema
class FlowConfig:
    """Settings. width: W. depth: residual blocks. times: what the time embedding takes, see mgen.heads.flows.time_index."""

    width: Size = 1024
    depth: Depth = 6
    times: Times = "truncated"


@register_head("flow", FlowConfig)
class FlowHead(DenoisingMLP[FlowPlan], FlowMatching):
    """p(token | context) as a flow."""

    most_times = 1001

    def __init__(self, config: FlowConfig, inputs: HeadInputs) -> None:
        super().__init__(inputs, width=config.width, depth=config.depth)
        self.config = config

    def loss(
        self, z: Tensor, target: Tensor, *, noise: HeadNoise | None = None, label_smoothing: float = 0.0
    ) -> tuple[Tensor, Tensor]:
        """Squared error of the velocity, twice, for context z (…, D), clean tokens (…, C), times (…) and noise (…, C)."""
        x, t = self.noisy(target, noise)
        assert noise is not None
        return self.error(self(x, t, z), target, noise)

    def conditioned(self, z: Tensor, plan: FlowPlan, *, null_rows: bool = False) -> Network:
        """The network of a draw, given its context (n, D); null_rows: the second half of the rows is of the null class."""
        return self.network(z, self.time(plan.times), cache=plan.cache, null_rows=null_rows)

    def guided_by(self, guide: Head[Any]) -> Self:
        self.check_guide(guide, "times")
        assert isinstance(guide, FlowHead)
        own = self

        def conditioned(z: Tensor, plan: FlowPlan, *, null_rows: bool = False) -> Network:
            first, second = separate(z, own.width, guide.width)
            others = plan.cache and plan.cache.whole  # the guide is asked in refresh calls alone
            networks = own.conditioned(first, plan), guide.network(second, guide.time(plan.times), cache=others)
            return keep_difference(
                networks_by_halves(*networks, rows=len(first)), networks[0], plan.cache, rows=len(first)
            )

        return sharing(self, conditioned=conditioned)

    def sample(
        self,
        z: Tensor,
        *,
        noise: Tensor,
        plan: FlowPlan,
        temperature: float = 1.0,
        guidance: float | Tensor | None = None,
    ) -> Draw:
        """Draw a token at each position; arguments as in Head, noise and temperature as in Flow.run."""
        b, m = noise.shape[1:3]
        network = self.conditioned(z.flatten(0, 1), plan, null_rows=guidance is not None)  # of (n, C), n = R·M
        x = plan.flow.run(network, noise.flatten(1, 2), temperature=temperature, guidance=guidance)
        return Draw(x.unflatten(0, (b, m)), None)  # (B, M, C)


@schema
class VelocityConfig:
    """Settings. times: what the trunk's time embedding takes, see mgen.heads.flows.time_index."""

    times: Times = "truncated"


@register_head("velocity", VelocityConfig)
class VelocityHead(FlowMatching, DenoisingHead[FlowPlan]):
    """The velocity of the tokens of an entity, each by one linear layer from its context."""

    def __init__(self, config: VelocityConfig, inputs: HeadInputs) -> None:
        super().__init__()
        self.config, self.width, self.channels = config, inputs.width, inputs.tokens.channels
        self.out = nn.Linear(self.width, self.channels // inputs.parts)

    def initialize(self, default: Callable[[nn.Module], None]) -> None:
        self.apply(default)

    def data_rows(self, table: tuple[Rows, ...] = ()) -> DataRows:
        rows = (Rows("channels", (self.out.out_features,)),)
        return {"out.weight": {0: rows}, "out.bias": {0: rows}}

    def guided_by(self, guide: Head[Any]) -> Self:
        self.check_guide(guide, "times")
        assert isinstance(guide, VelocityHead)
        return sharing(self, forward=by_halves(self.forward, guide.forward, widths=(self.width, guide.width)))

    def forward(self, z: Tensor) -> Tensor:
        """Velocities (…, C) of entities, from the contexts (…, s, D) of their s tokens."""
        return self.out(z).flatten(-2)

    def loss(
        self, z: Tensor, target: Tensor, *, noise: HeadNoise | None = None, label_smoothing: float = 0.0
    ) -> tuple[Tensor, Tensor]:
        """Squared error of the velocity, twice, for contexts z (…, s, D) of the noisy entities, clean ones (…, C), and noise."""
        assert noise is not None  # `noisy` has read it
        return self.error(self(z), target, noise)

    def denoise(
        self,
        denoiser: Denoiser,
        *,
        noise: Tensor,
        plan: FlowPlan,
        temperature: float = 1.0,
        guidance: float | Tensor | None = None,
    ) -> Draw:
        network = denoiser.at(plan.times)
        x = plan.flow.run(
            lambda x, j: self(network(x, j)), noise, temperature=temperature, guidance=guidance
        )  # (B, M, C)
        return Draw(x, None)
