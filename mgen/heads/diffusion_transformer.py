"""Diffusion-transformer head: contexts of all positions → the whole token map, denoised together.

Zheng et al., "Hierarchical Masked Autoregressive Models with Low-Resolution Token Pivots" (Hi-MAR, arXiv 2505.20288); the
network is DiT (arXiv 2212.09748) with a condition of its own for every token. It predicts ε alone, the variance is fixed.

Notation: B batch, L positions of the map, D width of the context, C numbers of a token, W width of the network, N steps of the
chain, K copies of an image in training, M positions that are not known, R rows of the network (B, or 2B under guidance).
"""

import torch
import torch.nn.functional as F
from diffusers.models.embeddings import get_2d_sincos_pos_embed
from torch import Tensor, nn

from mgen.heads.chains import Tables, TrainSteps, cosine_betas
from mgen.heads.diffusion import ChainHead, ChainPlan
from mgen.heads.head import Draw, HeadInputs, HeadNoise, JointHead, mix, register_head
from mgen.nn.attention import Attention, gather_rows
from mgen.nn.blocks import MLP, Blocks
from mgen.nn.denoising import Network, TimeEmbedding
from mgen.nn.modulated import modulate
from mgen.nn.sizes import Ratio, check_heads
from mgen.utils.errors import MgenError
from mgen.utils.fitting import DataRows, Rows
from mgen.utils.schema import Layers, Size, schema


class MapBlock(nn.Module):
    """h += gate1 · attn(LN(h) · (1 + scale1) + shift1); h += gate2 · mlp(LN(h) · (1 + scale2) + shift2), modulated per token."""

    def __init__(self, width: int, heads: int, mlp_ratio: float) -> None:
        super().__init__()
        self.attn = Attention(width, heads)
        self.mlp = MLP(width, int(width * mlp_ratio), approximate="tanh")
        self.adaln = nn.Linear(width, 6 * width)

    def forward(self, h: Tensor, y: Tensor, positions: Tensor | None = None) -> Tensor:
        """(R, L, W) → (R, L, W), or (R, M, W) at `positions` (R, M). y (R, L, W): SiLU of time plus condition."""
        if positions is None:
            # One product per block and step: with a row per token it is bound by arithmetic, so joining products gains nothing.
            shift1, scale1, gate1, shift2, scale2, gate2 = self.adaln(y).chunk(6, dim=-1)  # (R, L, W) each
            h = torch.addcmul(h, gate1, self.attn(modulate(_norm(h), shift1, scale1)))
        else:  # keys and values are of all tokens, the rest is of the asked ones
            two = 2 * h.shape[-1]
            weight, bias = self.adaln.weight, self.adaln.bias
            shift1, scale1 = F.linear(y, weight[:two], bias[:two]).chunk(2, dim=-1)  # (R, L, W) each
            y = gather_rows(y, positions)
            gate1, shift2, scale2, gate2 = F.linear(y, weight[two:], bias[two:]).chunk(4, dim=-1)  # (R, M, W) each
            x = modulate(_norm(h), shift1, scale1)
            h = torch.addcmul(gather_rows(h, positions), gate1, self.attn(x, gather_rows(x, positions)))
        return torch.addcmul(h, gate2, self.mlp(modulate(_norm(h), shift2, scale2)))


@schema
class DiffusionTransformerConfig:
    """Settings; defaults are those of Hi-MAR-B.

    Args:
        width: W. depth: blocks. heads: of the attention. mlp_ratio: hidden width of the MLP over W. train_steps: of the full diffusion.
    """

    width: Size = 512
    depth: Layers = 6
    heads: Size = 8
    mlp_ratio: Ratio = 4.0
    train_steps: TrainSteps = 1000

    def __post_init__(self) -> None:
        if self.width % 4:
            raise MgenError(
                f"width is {self.width}: its position table needs a multiple of 4, such as {self.width + 4 - self.width % 4}"
            )
        check_heads(self.width, self.heads, width_name="width")


@register_head("diffusion-transformer", DiffusionTransformerConfig)
class DiffusionTransformerHead(ChainHead, JointHead[ChainPlan]):
    """p(map | contexts) as a diffusion of all tokens together."""

    passes = ("answer",)

    def __init__(self, config: DiffusionTransformerConfig, inputs: HeadInputs) -> None:
        super().__init__()
        c, tokens = config, inputs.tokens
        if tokens.grid is None:
            raise MgenError("head 'diffusion-transformer' draws the whole token grid: tokens.grid is needed")
        self.config, self.width, self.channels, self.grid = c, inputs.width, tokens.channels, tokens.grid
        self.input = nn.Linear(self.channels, c.width)
        self.time = TimeEmbedding(c.width)
        self.cond = nn.Linear(self.width, c.width)
        self.blocks = Blocks(MapBlock(c.width, c.heads, c.mlp_ratio) for _ in range(c.depth))
        self.out_adaln = nn.Linear(c.width, 2 * c.width)
        self.out = nn.Linear(c.width, self.channels)
        # Coordinates span 0 … 16 on every grid; columns come before rows, as published.
        position = get_2d_sincos_pos_embed(c.width, self.grid, base_size=16, output_type="pt").float()
        self.register_buffer("position", position)
        self.position: Tensor  # (L, W)
        self.tables = Tables(cosine_betas(c.train_steps))

    def data_rows(self, table: tuple[Rows, ...] = ()) -> DataRows:
        own = (Rows("channels", (self.channels,)),)
        grid = (Rows("positions", self.grid, "computed"),)
        return {"input.weight": {1: own}, "out.weight": {0: own}, "out.bias": {0: own}, "position": {0: grid}}

    # -- the network ---------------------------------------------------------------------------------------------------

    def embed(self, x: Tensor) -> Tensor:
        """(…, L, W) of noisy tokens (…, L, C)."""
        return super().embed(x) + self.position

    def answer(self, h: Tensor, y: Tensor, positions: Tensor | None = None) -> Tensor:
        """ε (R, L, C) of embedded tokens h (R, L, W) under time plus condition y (R, L, W), or (R, M, C) at `positions` (R, M).

        What is left out where nobody asks: queries and MLP of the last block, and the output. Its keys and values, and
        everything in the blocks before, are of all tokens.
        """
        y = F.silu(y)
        for block in self.blocks[:-1]:
            h = block(h, y)
        h = self.blocks[-1](h, y, positions)
        if positions is not None:
            y = gather_rows(y, positions)
        shift, scale = self.out_adaln(y).chunk(2, dim=-1)
        return self.out(modulate(_norm(h), shift, scale))

    def forward(self, x: Tensor, t: Tensor, z: Tensor) -> Tensor:
        """ε (B, L, C) of noisy maps x (B, L, C) at timesteps t (B,) in 0 … 999, given their contexts z (B, L, D)."""
        return self.answer(self.embed(x), self.time(t).unsqueeze(1) + self.cond(z))

    # -- training ------------------------------------------------------------------------------------------------------

    def loss(
        self,
        z: Tensor,
        target: Tensor,
        *,
        noise: HeadNoise | None = None,
        label_smoothing: float = 0.0,
        masked: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Loss per image and copy (B, K), and the same detached.

        Args:
            z: contexts (B, L, D), shared by the copies. target: clean tokens (B, L, C).
            noise: timesteps (B, K) and noise (B, K, L, C).
            masked: bool (B, L), True where the error counts, None: everywhere; all positions are noised, known ones as in sampling.

        The square error's mean is over all positions, not over the masked ones: an image counts by what it hides, as published.
        """
        noise, at = self.coefficients(noise, target.device)
        t, eps_true = noise.t, noise.noise
        x = at["signal"].unsqueeze(-1) * target.unsqueeze(1) + at["noise"].unsqueeze(-1) * eps_true  # (B, K, L, C)
        y = self.time(t).unsqueeze(2) + self.cond(z).unsqueeze(1)  # (B, K, L, W)
        eps = self.answer(self.embed(x).flatten(0, 1), y.flatten(0, 1)).float()  # (B·K, L, C)
        error = eps_true - eps.unflatten(0, t.shape)
        if masked is not None:
            error = error * masked[:, None, :, None]
        loss = error.square().mean((2, 3))  # (B, K)
        return loss, loss.detach()

    # -- sampling ------------------------------------------------------------------------------------------------------

    def conditioned(
        self, z: Tensor, plan: ChainPlan, positions: Tensor | None = None, *, null_rows: bool = False
    ) -> Network:
        """ε (R, L, C), or (R, M, C) at `positions` (R, M), of noisy maps (B, L, C) in a step, given contexts z (R, L, D)."""
        cond = self.cond(z)  # (R, L, W)

        def network(x: Tensor, j: int) -> Tensor:
            h = self.embed(x)
            # One state serves both halves: the null half's own state is never read.
            h = h if len(h) == len(cond) else h.repeat(2, 1, 1)
            return self.answer(h, plan.embedding[j] + cond, positions)

        return network

    def sample(
        self,
        z: Tensor,
        *,
        noise: Tensor,
        plan: ChainPlan,
        temperature: float = 1.0,
        guidance: float | Tensor | None = None,
        tokens: Tensor | None = None,
        known: Tensor | None = None,
        unknown: Tensor | None = None,
    ) -> Draw:
        """Draw the map, given its known tokens; arguments as in JointHead, and:

        Args:
            noise: standard normal (draws, B, L, C): the start n0, then what each step but the last adds.
            temperature: factor of the noise that the steps add (not of the start).
            guidance: s in ε_u + s·(ε_c − ε_u), inside every step.
            tokens: (B, L, C), read where `known` (B, L) is True: there the state is signal · token + noise · n0 before every
                step, with the same n0 each time. None: no token is known.
            unknown: (B, M), the positions that are not known; the last block then answers for these alone. Rows that know
                more than others fill up with known positions, each at most once. None: the same draw by more work.

        Returns:
            tokens (B, L, C): drawn where not known, the given ones where known; and None: a continuous draw has no
            probability to rank positions by.
        """
        chain, count = plan.chain, len(plan.chain.timesteps)
        draws, start = noise, noise[0]
        if tokens is None or known is None:
            tokens, known = torch.zeros_like(start), torch.zeros_like(start[..., 0], dtype=torch.bool)
        visible, asked = known.unsqueeze(-1), unknown
        if unknown is not None:
            # The state is kept at these positions alone; those of the batch lie in it as rows of a table.
            places = unknown.unsqueeze(-1).expand(-1, -1, self.channels)  # (B, M, C)
            draws = torch.gather(noise, 2, places.expand(len(noise), -1, -1, -1))  # (draws, B, M, C)
            asked = unknown if guidance is None else unknown.repeat(2, 1)  # (R, M)

        def complete(given: Tensor, x: Tensor) -> Tensor:
            """The map with `given` (B, L, C) where known and the state x elsewhere."""
            return torch.where(visible, given, x if unknown is None else given.scatter(1, places, x))

        network, x = self.conditioned(z, plan, asked), draws[0]
        chain.begin()
        for j in range(count):
            k = count - 1 - j
            state = complete(chain.tables.signal[k] * tokens + chain.tables.noise[k] * start, x)
            eps = mix(network(state, j).float(), guidance)  # (B, M, C)
            added = draws[j + 1] if len(draws) > 1 and j + 1 < count else None
            x = chain.step(j, x, eps, None, added, temperature)
        return Draw(complete(tokens, x), None)


def _norm(h: Tensor) -> Tensor:
    return F.layer_norm(h, h.shape[-1:], eps=1e-6)
