"""Training of generators in two stages: pivots of a lower resolution, then tokens that see their features.

Zheng et al., "Hierarchical Masked Autoregressive Models with Low-Resolution Token Pivots" (Hi-MAR, arXiv 2505.20288, §3). The two
stages have masks and label drops of their own; the features reach the second without a gradient, and not for all images.
"""

from typing import Any

import torch
from torch import Tensor

from mgen.data.pivots import shrink
from mgen.training.config import DataConfig, GeneratorObjectiveConfig
from mgen.training.objectives import GeneratorObjective, Logs
from mgen.utils.errors import MgenError


class PivotObjective(GeneratorObjective):
    """weight · loss of the pivots + token_weight · loss of the tokens."""

    def __init__(self, model: Any, data: DataConfig, config: GeneratorObjectiveConfig, tokenizer: Any = None) -> None:
        super().__init__(model, data, config, tokenizer)
        for mask, spec, name in (
            (config.mask, model.spec, "mask"),
            (config.pivots.mask, model.pivot_spec, "pivots.mask"),
        ):
            if mask.rounding == "bernoulli" or mask.visible >= spec.length:
                raise MgenError(f"objective.{name} must mask at least one of {spec.length} tokens of every image")

    def draw(self, count: int, rng: torch.Generator) -> dict[str, Tensor]:
        draws, p = super().draw(count, rng), self.config.pivots
        draws["pivot_known"], _ = self.draw_known(p.mask, count, self.model.pivot_spec.length, rng)
        draws["pivot_drop"] = torch.rand(count, generator=rng) < self.config.label_drop
        ready = min(1.0, self.step / p.warmup) if p.warmup and self.training else 1.0
        draws["without"] = torch.rand(count, generator=rng) >= p.keep * ready
        # So that a mean over images, of any piece of the batch, is the mean over masked tokens of the whole.
        whole = getattr(self.model.head, "whole", False)
        draws["weight"] = torch.ones(count) if whole else _per_token(draws["known"])
        draws["pivot_weight"] = _per_token(draws["pivot_known"])
        return draws

    def draw_row(self, rng: torch.Generator) -> dict[str, Tensor]:
        draws, head, spec = super().draw_row(rng), self.model.pivot_head, self.model.pivot_spec
        if hasattr(head, "draw"):
            own = head.draw(spec.length, self.config.diffusion_batch_mul, rng)
            draws |= {f"pivot_{name}": value for name, value in own.items()}
        if (shape := self.posterior_shape) is not None:
            side, small = self.model.config.side, self.model.config.pivot_side
            draws["pivot_posterior"] = torch.randn(shape[0], *(n * small // side for n in shape[1:]), generator=rng)
        return draws

    def share(self, piece: dict[str, Tensor], whole: dict[str, Tensor]) -> float:
        return 1.0  # the weights of the images see to it

    def resized(self, images: Tensor, prefix: str) -> Tensor:
        c = self.model.config
        return shrink(images, images.shape[-1] * c.pivot_side // c.side) if prefix else images

    def forward(self, batch: dict[str, Tensor], draws: dict[str, Tensor]) -> tuple[Tensor, Logs]:
        tokens, pivots = (self.tokens(batch, draws, prefix) for prefix in ("", "pivot_"))
        label = batch["label"]
        labels = [
            torch.where(draws[name], self.model.null_class, label) if self.config.label_drop else label
            for name in ("drop", "pivot_drop")
        ]
        options: dict[str, Any] = {"label_smoothing": self.config.label_smoothing if self.training else 0.0}
        for prefix, name in (("", "chain"), ("pivot_", "pivot_chain")):
            if f"{prefix}t" in draws:
                options[name] = {"t": draws[f"{prefix}t"], "noise": draws[f"{prefix}noise"]}
        known = draws["known"], draws["pivot_known"]
        out = self.model(tokens, pivots, *labels, *known, draws["without"], **options)
        means = {
            name: (value * draws["pivot_weight" if name.startswith("pivot") else "weight"]).mean()
            for name, value in out.items()
        }
        p = self.config.pivots
        loss = p.weight * means["pivot_loss"] + p.token_weight * means["loss"]
        heads = {"": self.model.head, "pivot_": self.model.pivot_head}
        logs = {"token_loss": means["loss"], "pivot_loss": means["pivot_loss"]}
        return loss, logs | {f"{prefix}{head.figure}": means[f"{prefix}figure"] for prefix, head in heads.items()}


def _per_token(known: Tensor) -> Tensor:
    """The weight of each image's sum over masked tokens (B,)."""
    return (1 / (~known).sum(1).float().mean()).expand(len(known))
