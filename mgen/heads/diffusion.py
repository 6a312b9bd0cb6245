"""Diffusion head: context vector → real token, by a small denoising MLP with adaptive layer norm.

Li et al., "Autoregressive Image Generation without Vector Quantization" (MAR, arXiv 2406.11838, §3.2–3.3); training loss of
Nichol & Dhariwal (arXiv 2102.09672, §3.1): ε prediction plus the variational term of the learned variance.

Notation: B batch, M positions, D width of the context, C numbers of a token, W width of the MLP, N steps of the chain,
K copies of a token in training, n = B·M tokens, R rows of the network (n, or 2n under guidance).
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mgen.heads.cache import CachedNetwork, CachePlan, HeadCache, Kept, keep_difference
from mgen.heads.chains import BETAS, LEAST_LINEAR, Chain, ChainSettings, Tables, TrainSteps
from mgen.heads.head import Draw, Head, HeadInputs, HeadNoise, NoiseSpec, PlanT, mix, register_head
from mgen.heads.singlestep import make_chain
from mgen.nn.blocks import Blocks
from mgen.nn.denoising import Ahead, Network, TimeEmbedding
from mgen.nn.halves import networks_by_halves, separate, sharing
from mgen.utils.config import Settings
from mgen.utils.errors import MgenError
from mgen.utils.fitting import DataRows, Rows
from mgen.utils.schema import Depth, Size, schema

TABLES = ("signal", "noise", "recip", "recipm1", "coef1", "coef2", "log_low", "log_high")


class ResBlock(nn.Module):
    """h + gate · MLP(LN(h) · (1 + scale) + shift), with (shift, scale, gate) = adaln(SiLU(y))."""

    called_apart = ("adaln",)  # parts that others call, see mgen.training.sharded

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.fc1 = nn.Linear(width, width)
        self.fc2 = nn.Linear(width, width)
        self.adaln = nn.Linear(width, 3 * width)

    def forward(self, h: Tensor, modulation: Tensor) -> Tensor:
        """h (…, W), modulation (…, 3W)."""
        shift, scale, gate = modulation.chunk(3, dim=-1)
        return torch.addcmul(h, gate, self.mlp(h, shift, scale))

    def mlp(self, h: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
        """What the gate (…, W) is multiplied with."""
        x = torch.addcmul(shift, self.norm(h), 1 + scale)
        return self.fc2(F.silu(self.fc1(x)))

    def gate(self, y: Tensor) -> Tensor:
        """The gate alone (…, W), the last third of the modulation; y as `adaln` takes it."""
        first = 2 * self.fc2.out_features
        return F.linear(y, self.adaln.weight[first:], self.adaln.bias[first:])


@dataclass(frozen=True)
class ChainPlan:
    """What the draws of a run share, made once.

    Attributes:
        embedding: time embeddings (N, W) of the chain's steps. cache: which calls use what others computed; None: none.
        guide: the same of a head that guides.
    """

    chain: Chain
    embedding: Tensor
    cache: CachePlan | None = None
    guide: "ChainPlan | None" = None


class VectorHead(Head[PlanT]):
    """What heads share that denoise real vectors."""

    token_kinds = ("vector",)
    metric = "mse"
    has_log_prob = False  # a continuous draw has no probability to rank positions by
    channels: int
    time: TimeEmbedding
    input: nn.Linear

    def embed(self, x: Tensor) -> Tensor:
        """Rows (…, W) of noisy tokens (…, C), in the dtype of the weights: chains compute in fp32."""
        return self.input(x.to(self.input.weight.dtype))

    def initialize(self, default: Callable[[nn.Module], None]) -> None:
        """DiT's: linear layers Xavier, time embedding normal 0.02, modulations and output zero (arXiv 2212.09748)."""
        for name, module in self.named_modules():
            if not isinstance(module, nn.Linear):
                continue
            nn.init.zeros_(module.bias)
            if name.startswith("time."):
                nn.init.normal_(module.weight, std=0.02)
            elif name.rsplit(".", 1)[-1] in ("adaln", "out_adaln", "out"):
                nn.init.zeros_(module.weight)
            else:
                nn.init.xavier_uniform_(module.weight)


class ChainHead(VectorHead[ChainPlan]):
    """What heads that draw by a reverse chain share."""

    tables: Tables
    _coefficients: Tensor | None = None  # (8, steps): TABLES in fp32 on the device of the loss, moved once

    def training_noise(self, length: int, copies: int, rng: torch.Generator) -> HeadNoise:
        """Timesteps (K, L), of a joint head (K,), and noise (K, L, C) for the loss of one image."""
        shape, where = (copies,) if self.joint else (copies, length), rng.device
        t = torch.randint(self.config.train_steps, shape, generator=rng, device=where)
        return HeadNoise(t, torch.randn(copies, length, self.channels, generator=rng, device=where))

    def coefficients(self, noise: HeadNoise | None, device: torch.device) -> tuple[HeadNoise, dict[str, Tensor]]:
        """The noise, and TABLES at its timesteps t (…), (…, 1) each; MgenError without noise."""
        if noise is None:
            raise MgenError(f"the loss of a diffusion head needs noise: see {type(self).__name__}.training_noise")
        if self._coefficients is None or self._coefficients.device != device:
            stacked = torch.stack([torch.from_numpy(getattr(self.tables, name)) for name in TABLES])
            self._coefficients = stacked.to(device, torch.float32)
        return noise, dict(zip(TABLES, self._coefficients[:, noise.t].unsqueeze(-1)))

    def check(self, settings: Settings, *, temperatures: Sequence[float]) -> None:
        made = make_chain(ChainSettings.of(settings), self.tables)  # raises for too many steps
        self.cache_plan(made.settings.cache, len(made.timesteps))
        chain = made.settings
        if chain.chain != "ancestral" and any(t != 1 for t in temperatures):
            raise MgenError(
                f"temperature {temperatures[0]} scales noise that the chain {chain.chain!r} does not add: use temperature 1 or "
                "the ancestral chain"
            )

    def noise_spec(self, settings: Settings) -> NoiseSpec:
        """The start of the chain and what its steps add; fresh in every step where all positions go through the chain again."""
        return NoiseSpec(True, (ChainSettings.of(settings).noise_count, self.channels), every_step=self.joint)

    def plan(self, settings: Settings) -> ChainPlan:
        chain = make_chain(ChainSettings.of(settings), self.tables)
        embedding = self.time(torch.tensor(chain.timesteps, device=self.input.weight.device))
        return ChainPlan(chain, embedding, self.cache_plan(chain.settings.cache, len(chain.timesteps)))

    def cache_plan(self, cache: HeadCache, calls: int) -> CachePlan | None:
        """The calls of a chain that use what others computed; MgenError where this head has no such cache."""
        cache.refuse(self.settings["type"], "its blocks attend to all tokens together")
        return None

    def conditioned(
        self, z: Tensor, plan: ChainPlan, positions: Tensor | None = None, *, null_rows: bool = False
    ) -> Network:
        """The network of a draw, given its context.

        positions: of a joint head, those that it answers for. null_rows: the second half of the rows is of the null class.
        """
        raise NotImplementedError

    def guided_by(self, guide: Head[Any]) -> Self:
        self.check_guide(guide, *({"train_steps", "noise_schedule"} & self.settings.keys()))
        assert isinstance(guide, ChainHead)
        own = self

        def plan(settings: Settings) -> ChainPlan:
            made, others = own.plan(settings), {key: value for key, value in settings.items() if key != "cache"}
            # With a cache the guide is asked in refresh calls alone, and only for these it makes modulations.
            return replace(made, guide=replace(guide.plan(others), cache=made.cache and made.cache.whole))

        def conditioned(
            z: Tensor, plan: ChainPlan, positions: Tensor | None = None, *, null_rows: bool = False
        ) -> Network:
            assert plan.guide is not None
            rows = (None, None) if positions is None else positions.chunk(2)
            first, second = separate(z, own.width, guide.width)
            networks = own.conditioned(first, plan, rows[0]), guide.conditioned(second, plan.guide, rows[1])
            return keep_difference(
                networks_by_halves(*networks, rows=len(first)), networks[0], plan.cache, rows=len(first)
            )

        return sharing(self, plan=plan, conditioned=conditioned)


class DenoisingMLP(VectorHead[PlanT]):
    """A residual MLP per token with adaptive layer norm: noisy token, time and context in, `outputs` · C numbers out."""

    passes = ("modulations", "some_modulations", "answer", "remembered", "shortened")
    outputs = 1
    most_times: int  # whole times that there are: where more tokens are asked for, each time is embedded once

    def __init__(self, inputs: HeadInputs, *, width: int, depth: int) -> None:
        super().__init__()
        self.width, self.channels = inputs.width, inputs.tokens.channels
        self.time = TimeEmbedding(width)
        self.cond = nn.Linear(self.width, width)
        self.input = nn.Linear(self.channels, width)
        self.blocks = Blocks(ResBlock(width) for _ in range(depth))
        self.out_adaln = nn.Linear(width, 2 * width)
        self.out = nn.Linear(width, self.outputs * self.channels)

    def data_rows(self, table: tuple[Rows, ...] = ()) -> DataRows:
        out = (Rows("channels", (self.outputs, self.channels) if self.outputs > 1 else (self.channels,)),)
        inside = {1: (Rows("channels", (self.channels,)),)}
        return {"input.weight": inside, "out.weight": {0: out}, "out.bias": {0: out}}

    def modulations(self, y: Tensor) -> list[Tensor]:
        """Of every block (…, 3W), then of the output (…, 2W), for time plus condition y (…, W)."""
        y = F.silu(y)
        return [*(block.adaln(y) for block in self.blocks), self.out_adaln(y)]

    def answer(self, h: Tensor, modulations: list[Tensor]) -> Tensor:
        """The answer (…, outputs · C) for embedded tokens h (…, W)."""
        for block, modulation in zip(self.blocks, modulations):
            h = block(h, modulation)
        return self.output(h, modulations[-1])

    def output(self, h: Tensor, modulation: Tensor) -> Tensor:
        """The answer (…, outputs · C) for what the last block makes (…, W)."""
        shift, scale = modulation.chunk(2, dim=-1)
        return self.out(torch.addcmul(shift, F.layer_norm(h, h.shape[-1:], eps=1e-6), 1 + scale))

    def forward(self, x: Tensor, t: Tensor, z: Tensor) -> Tensor:
        """The answer (…, outputs · C) for noisy tokens x (…, C) at times t (…), given the context z (…, D)."""
        if t.numel() > self.most_times and not t.is_floating_point():  # fewer timesteps than tokens: embed each once
            time = F.embedding(t, self.time(torch.arange(self.most_times, device=t.device)))
        else:
            time = self.time(t)
        return self.answer(self.embed(x), self.modulations(time + self.cond(z)))

    def network(
        self, z: Tensor, embedding: Tensor, *, cache: CachePlan | None = None, null_rows: bool = False
    ) -> Network:
        """The network of a chain, given the context z (R, D) and the time embeddings (N, W) of its steps.

        It takes noisy tokens (n, C). One state may serve both halves of the guidance: n may be R / 2.

        Args:
            cache: which calls use what others computed; None: none. null_rows: whether the second half of the rows is of the null class.
        """
        if cache is not None:
            rows = len(z) // (2 if null_rows else 1)
            cached = CachedNetwork(self, z, embedding, cache, rows=rows)
            return keep_difference(cached, cached, cache, rows=rows) if null_rows else cached
        cond = self.cond(z)  # (R, W)
        # Modulations know nothing of x: those of many steps are one matrix product, ahead of the steps.
        ahead: Ahead[Tensor] = Ahead(
            lambda part: self.modulations(embedding[part].unsqueeze(1) + cond), count=len(embedding), rows=len(cond)
        )

        def network(x: Tensor, j: int) -> Tensor:
            h, (group, place) = self.embed(x), ahead(j)  # modulations (steps, R, 3W)
            h = h if len(h) == len(cond) else h.repeat(2, 1)
            return self.answer(h, [part[place] for part in group])

        return network

    # -- calls of a chain with a cache, see mgen.heads.cache -----------------------------------------------------------

    def cache_plan(self, cache: HeadCache, calls: int) -> CachePlan | None:
        return cache.plan(calls, depth=len(self.blocks), device=self.input.weight.device)

    def some_modulations(self, y: Tensor, *, skipped: range, gates: bool) -> list[Tensor]:
        """As `modulations`, without the blocks that are skipped; of the others the gates alone (…, W), if so asked."""
        y, own = F.silu(y), [block for i, block in enumerate(self.blocks) if i not in skipped]
        return [*(block.gate(y) if gates else block.adaln(y) for block in own), self.out_adaln(y)]

    def remembered(self, h: Tensor, modulations: list[Tensor], *, skipped: range, rows: int) -> tuple[Tensor, Kept]:
        """As `answer` for h (R, W), and what later calls use of the first `rows` rows."""
        outputs, before, change = [], h, h
        for i, (block, modulation) in enumerate(zip(self.blocks, modulations)):
            if i == skipped[0]:
                before = h
            if i in skipped:
                h = block(h, modulation)
            else:
                shift, scale, gate = modulation.chunk(3, dim=-1)
                out = block.mlp(h, shift, scale)
                outputs.append(out[:rows])
                h = torch.addcmul(h, gate, out)
            if i == skipped[-1]:
                change = h[:rows] - before[:rows]
        return self.output(h, modulations[-1]), Kept(change, outputs)

    def shortened(
        self, h: Tensor, modulations: list[Tensor], *, kept: Kept, skipped: range, gates: bool
    ) -> tuple[Tensor, Kept]:
        """As `answer` for h (n, W) with what was kept, and what is kept then. modulations: as `some_modulations` makes them."""
        outputs: list[Tensor] = []
        for i, block in enumerate(self.blocks):
            if i in skipped:
                h = h + kept.change if i == skipped[0] else h
                continue
            place = len(outputs)
            if gates:
                gate, out = modulations[place], kept.outputs[place]
            else:
                shift, scale, gate = modulations[place].chunk(3, dim=-1)
                out = block.mlp(h, shift, scale)
            outputs.append(out)
            h = torch.addcmul(h, gate, out)
        return self.output(h, modulations[-1]), Kept(kept.change, outputs)


@schema
class DiffusionConfig:
    """Settings; defaults are those of MAR-B.

    Args:
        width: W. depth: residual blocks. train_steps: steps of the full diffusion. noise_schedule: its β, see mgen.heads.chains.
    """

    width: Size = 1024
    depth: Depth = 6
    train_steps: TrainSteps = 1000
    noise_schedule: Literal["cosine", "linear"] = "cosine"

    def __post_init__(self) -> None:
        if self.noise_schedule == "linear" and self.train_steps <= LEAST_LINEAR:
            raise MgenError(
                f"train_steps is {self.train_steps}: the linear noise schedule needs more than {LEAST_LINEAR}, where β would reach 1; "
                "take more, or noise_schedule cosine"
            )


@register_head("diffusion", DiffusionConfig)
class DiffusionHead(DenoisingMLP[ChainPlan], ChainHead):
    """p(token | context) as a diffusion. The network gives (ε, v), as (…, 2C)."""

    outputs = 2

    def __init__(self, config: DiffusionConfig, inputs: HeadInputs) -> None:
        super().__init__(inputs, width=config.width, depth=config.depth)
        self.config, self.most_times = config, config.train_steps
        self.tables = Tables(BETAS[config.noise_schedule](config.train_steps))

    # -- training ------------------------------------------------------------------------------------------------------

    def loss(
        self, z: Tensor, target: Tensor, *, noise: HeadNoise | None = None, label_smoothing: float = 0.0
    ) -> tuple[Tensor, Tensor]:
        """Loss and its ε part per token, both of the shape of the timesteps.

        Args:
            z: context (…, D). target: clean tokens (…, C). noise: timesteps (…) and noise (…, C). Leading shapes broadcast.

        The variational term is in bits per number, with ε detached: it trains the variance alone (arXiv 2102.09672, §3.1).
        """
        noise, at = self.coefficients(noise, target.device)
        t, eps_true = noise.t, noise.noise
        x = at["signal"] * target + at["noise"] * eps_true
        eps, v = self(x, t, z).float().chunk(2, dim=-1)
        mse = (eps_true - eps).square().mean(-1)

        x0 = at["recip"] * x - at["recipm1"] * eps.detach()
        mean, true_mean = at["coef1"] * x0 + at["coef2"] * x, at["coef1"] * target + at["coef2"] * x
        f = (v + 1) / 2
        log_variance = f * at["log_high"] + (1 - f) * at["log_low"]
        gap = at["log_low"] - log_variance
        kl = 0.5 * (-1 - gap + gap.exp() + (true_mean - mean).square() * (-log_variance).exp())
        bits = torch.where((t == 0).unsqueeze(-1), _decoder_nll(target, mean, 0.5 * log_variance), kl)
        return mse + bits.mean(-1) / math.log(2), mse

    # -- sampling ------------------------------------------------------------------------------------------------------

    def conditioned(
        self, z: Tensor, plan: ChainPlan, positions: Tensor | None = None, *, null_rows: bool = False
    ) -> Network:
        return self.network(z, plan.embedding, cache=plan.cache, null_rows=null_rows)

    def sample(
        self,
        z: Tensor,
        *,
        noise: Tensor,
        plan: ChainPlan,
        temperature: float = 1.0,
        guidance: float | Tensor | None = None,
    ) -> Draw:
        """Draw a token at each position; arguments as in Head, and:

        Args:
            noise: standard normal (draws, B, M, C): the start, then what each step but the last adds.
            temperature: factor of the noise that the steps add (not of the start).
            guidance: s in ε_u + s·(ε_c − ε_u), inside every step.

        Returns:
            tokens (B, M, C), and None: a continuous draw has no probability to rank positions by.
        """
        b, m = noise.shape[1:3]
        chain, count = plan.chain, len(plan.chain.timesteps)
        network = self.conditioned(z.flatten(0, 1), plan, null_rows=guidance is not None)
        draws = noise.flatten(1, 2)  # (draws, n, C)
        x = draws[0]
        chain.begin()
        for j in range(count):
            # One state serves both halves: the null half's own state is never read (checked against the official chain).
            eps, v = network(x, j).float().chunk(2, dim=-1)
            if guidance is not None:
                eps, v = mix(eps, guidance), v[: len(x)]
            added = draws[j + 1] if len(draws) > 1 and j + 1 < count else None
            x = chain.step(j, x, eps, v, added, temperature)
        return Draw(x.unflatten(0, (b, m)), None)  # (B, M, C)


def _decoder_nll(x: Tensor, mean: Tensor, log_scale: Tensor) -> Tensor:
    """−log of a Gaussian's mass in the bin x ± 1/255, open at ±0.999 (arXiv 2006.11239, eq. 13), with the tanh form of its cdf."""

    def cdf(u: Tensor) -> Tensor:
        return 0.5 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (u + 0.044715 * u**3)))

    inverse, centered = (-log_scale).exp(), x - mean
    above, below = cdf(inverse * (centered + 1 / 255)), cdf(inverse * (centered - 1 / 255))
    mass = torch.where(x < -0.999, above, torch.where(x > 0.999, 1 - below, above - below))
    return -mass.clamp(min=1e-12).log()
