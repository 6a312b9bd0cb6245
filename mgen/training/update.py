"""What is done with the gradient of a step: AdamW, unless the gradient is not finite, and the averaged weights.

Nothing here waits for a GPU: whether a gradient is finite stays on the device, AdamW's fused form reads it there, and skipped steps are
counted there, to be read when values are logged.
"""

from typing import Literal

import torch
from diffusers.training_utils import EMAModel
from torch import Tensor

from mgen.training.config import EMAConfig, OptimConfig
from mgen.training.tensors import Diverged

# How a run rounds. 1: AdamW by foreach, averages as diffusers computes them. 2: AdamW fused, averages by one lerp. A resumed run keeps
# the one that it was begun with (state.json), so that it repeats its losses exactly.
Numerics = Literal[1, 2]
NUMERICS: Numerics = 2
FUSED = ("cpu", "cuda", "xpu", "mps")  # devices that have the fused form
MOST_SKIPPED_IN_A_ROW = 50


class Skips:
    """Steps that were skipped because their gradient was not finite, counted on the device."""

    def __init__(self, device: torch.device) -> None:
        # In all, in a row up to now, and in the longest row.
        self.counts = torch.zeros(3, dtype=torch.int64, device=device)

    def add(self, finite: Tensor) -> None:
        """Count a step, given whether its gradient was finite, bool ()."""
        bad = (~finite).long()
        total, row, longest = self.counts.unbind()
        row = (row + bad) * bad
        self.counts = torch.stack([total + bad, row, torch.maximum(longest, row)])

    def set(self, total: int) -> None:
        """Continue from a checkpoint after which so many steps were skipped."""
        self.counts = torch.tensor([total, 0, 0], device=self.counts.device)

    def read(self) -> int:
        """How many were skipped in all; waits for the device.

        Raises:
            Diverged: too many in a row.
        """
        total, _, longest = self.counts.tolist()
        if longest >= MOST_SKIPPED_IN_A_ROW:
            raise Diverged(
                f"{MOST_SKIPPED_IN_A_ROW} steps in a row had a gradient that is not finite: the run has diverged; "
                "resume from a checkpoint with a smaller optim.lr or with optim.clip"
            )
        return int(total)


class AdamW(torch.optim.AdamW):
    """AdamW that skips a step on the device.

    Args:
        groups: of parameters, with their weight decay. device: of the parameters.
    """

    def __init__(self, groups: list[dict[str, object]], config: OptimConfig, device: torch.device) -> None:
        super().__init__(groups, lr=config.lr, betas=config.betas, eps=config.eps, foreach=True)
        self.can_fuse = device.type in FUSED
        self.use_numerics(NUMERICS)

    def use_numerics(self, version: Numerics) -> None:
        """The form for this version of NUMERICS; before the first step."""
        fused = version > 1 and self.can_fuse
        for group in self.param_groups:
            group["fused"], group["foreach"] = fused, not fused
        self._step_supports_amp_scaling = fused  # what a GradScaler asks

    @property
    def fused(self) -> bool:
        return bool(self.param_groups[0]["fused"])

    def skip_unless(self, finite: Tensor) -> None:
        """Let the next step do nothing unless `finite`, bool (), is True."""
        self.grad_scale, self.found_inf = None, (~finite).float()


class Average(EMAModel):
    """The averaged weights, diffusers' with one pass over the weights in place of three.

    Args:
        parameters: to average.
    """

    def __init__(self, parameters: list[Tensor], config: EMAConfig) -> None:
        # diffusers' ramp is min(decay, (1 + t) / (10 + t)); min_decay lifts it to a constant.
        super().__init__(parameters, decay=config.decay, min_decay=0.0 if config.warmup else config.decay, foreach=True)
        self.numerics: Numerics = NUMERICS

    @torch.no_grad()
    def step(self, parameters: list[Tensor]) -> None:
        """Take in the weights after a step, of a skipped one too: then they have not changed."""
        if self.numerics == 1:
            super().step(parameters)
            return
        self.optimization_step += 1
        self.cur_decay_value = self.get_decay(self.optimization_step)
        torch._foreach_lerp_(self.shadow_params, list(parameters), 1 - self.cur_decay_value)
