"""Training of the discriminator beside a tokenizer: its own optimizer, on the images that the tokenizer has just made."""

import contextlib
import math

import torch
from accelerate import Accelerator
from torch import Tensor

from mgen.training.adversarial import Adversary
from mgen.training.config import TokenizerObjectiveConfig
from mgen.training.objective import Compared


class DiscriminatorTrainer:
    """The discriminator's half of a step. `clip`: largest gradient norm; None leaves gradients as they are."""

    def __init__(
        self, discriminator: Adversary, config: TokenizerObjectiveConfig, accelerator: Accelerator, clip: float | None
    ) -> None:
        self.discriminator, self.accelerator, self.clip = discriminator, accelerator, clip or math.inf
        parameters, betas = discriminator.parameters(), config.discriminator_betas
        optimizer = torch.optim.AdamW(parameters, lr=config.discriminator_lr, betas=betas, weight_decay=0.0)
        self.wrapped, self.optimizer = accelerator.prepare(discriminator, optimizer)

    def backward(self, compared: Compared, pieces: int, *, last: bool) -> Tensor:
        """Add the gradient of one of `pieces` pieces of the batch; processes exchange gradients at the last."""
        with contextlib.nullcontext() if last else self.accelerator.no_sync(self.wrapped):
            loss: Tensor = self.wrapped(*compared)
            self.accelerator.backward(loss / pieces)
        return loss

    def step(self) -> None:
        """Clip the gradient and step, unless the gradient is not finite."""
        norm = self.accelerator.clip_grad_norm_(self.discriminator.parameters(), self.clip)
        if torch.isfinite(torch.as_tensor(norm)):
            self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
