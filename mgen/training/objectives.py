"""Objectives: a model, the random draws of a step, and the loss they make, as one module (so DDP and autocast see it).

The draws of a step are made for the whole batch of all processes from (seed, step) and cut into pieces afterwards: one
process, several processes and gradient accumulation train on the same masks, drops and flips, and each piece is weighted
by its share of the masked tokens, so all of them compute the same gradient up to the order of summation.
"""

import inspect
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from mgen.tokenizers.sphere import SphereQuantizer
from mgen.training.config import (
    ClassifierObjectiveConfig,
    DataConfig,
    GeneratorObjectiveConfig,
    MaskConfig,
    TokenizerObjectiveConfig,
)
from mgen.training.masking import known_before, known_from_uniform, known_in_phases, mask_fraction_from_uniform
from mgen.utils import seeds
from mgen.utils.errors import MgenError

Logs = dict[str, Tensor]


class Look(nn.Module):
    """A generator's `look` as a module's forward, so that it can be run with other weights."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, *args: Tensor) -> Any:
        return self.model.look(*args)


class Objective(nn.Module):
    """Base: image augmentation. Subclasses add draws and define forward(batch, draws, train) → (loss, logs)."""

    def __init__(self, model: Any, data: DataConfig) -> None:
        super().__init__()
        self.model = model
        self.data = data
        self.step = 0  # of the optimizer, set by the loop before each one

    def draw(self, count: int, rng: torch.Generator) -> dict[str, Tensor]:
        """Random numbers of one step for `count` images; every tensor has that many rows."""
        draws = {}
        if self.data.flip:
            draws["flip"] = torch.rand(count, generator=rng) < 0.5
        if self.data.shift:
            s = self.data.shift
            draws["shift"] = torch.randint(-s, s + 1, (count, 2), generator=rng)
        return draws

    def draw_rows(self, rows: slice, *seed: int | str) -> dict[str, Tensor]:
        """Larger random tensors, made for some rows of the batch only: each row from its own seed, so any cut gives the same."""
        return {}

    def share(self, piece: dict[str, Tensor], whole: dict[str, Tensor]) -> float:
        """Weight of a piece of the batch in the mean over the whole batch, for a loss that is a mean over the piece."""
        return 1.0

    def augment(self, images: Tensor, draws: dict[str, Tensor]) -> Tensor:
        """Flipped and shifted images (B, C, H, W); what a shift uncovers repeats the border."""
        if "flip" in draws:
            images = torch.where(draws["flip"].view(-1, 1, 1, 1), images.flip(-1), images)
        if "shift" in draws:
            s, side = self.data.shift, torch.arange(images.shape[-1], device=images.device)
            padded = F.pad(images, (s, s, s, s), mode="replicate")
            rows = side + s + draws["shift"][:, :1]  # (B, H)
            cols = side + s + draws["shift"][:, 1:]  # (B, W)
            b = torch.arange(len(images), device=images.device).view(-1, 1, 1)
            images = padded[b, :, rows.unsqueeze(2), cols.unsqueeze(1)].permute(0, 3, 1, 2)  # (B, C, H, W)
        return images


class ClassifierObjective(Objective):
    """Cross entropy with label smoothing."""

    def __init__(self, model: Any, data: DataConfig, config: ClassifierObjectiveConfig) -> None:
        super().__init__(model, data)
        self.config = config

    def forward(self, batch: dict[str, Tensor], draws: dict[str, Tensor]) -> tuple[Tensor, Logs]:
        logits = self.model(self.augment(batch["image"], draws))[1].float()
        smoothing = self.config.label_smoothing if self.training else 0.0
        loss = F.cross_entropy(logits, batch["label"], label_smoothing=smoothing)
        return loss, {"accuracy": (logits.argmax(1) == batch["label"]).float().mean()}


class GeneratorObjective(Objective):
    """Predict masked tokens from the visible ones and the class."""

    def __init__(self, model: Any, data: DataConfig, config: GeneratorObjectiveConfig, tokenizer: Any = None) -> None:
        super().__init__(model, data)
        self.config = config
        self._tokenizer = [tokenizer]  # in a list: a frozen helper, neither trained nor saved with the model
        self._look = [Look(model)]  # likewise
        self.ema_weights: Callable[[], dict[str, Tensor]] | None = None  # "model.name" → EMA weight, set by the loop
        self._mask_options: tuple[str, ...] = ()
        if config.reuse and not model.carries:
            raise MgenError(f"objective.reuse is for models that carry features (ENAT), not for {type(model).__name__}")
        if config.loss_tokens == "all" and "loss_tokens" not in inspect.signature(model.forward).parameters:
            raise MgenError(f"objective.loss_tokens: {type(model).__name__} is trained on masked tokens only")
        if model.causal and config.mask != MaskConfig():
            raise MgenError(
                f"objective.mask is for masked generators: {type(model).__name__} predicts every token; leave it out"
            )
        least = model.unit_spec.length
        if self.in_phases:
            least = min(model.spec.global_tokens, least - model.spec.global_tokens)
        if config.mask.visible >= least:
            raise MgenError(f"objective.mask.visible is {config.mask.visible}: of {least} tokens some must be masked")
        if config.mask.rounding == "bernoulli" and config.loss_tokens != "all":
            raise MgenError("objective.mask.rounding=bernoulli may mask nothing: it needs objective.loss_tokens=all")
        if config.label_drop and model.null_class is None:
            raise MgenError(
                "objective.label_drop needs a model with a null class: set model.null_class=true or label_drop=0"
            )

    @property
    def in_phases(self) -> bool:
        """Whether global tokens are masked in a phase of their own."""
        return (
            bool(self.model.spec.global_tokens) and self.config.mask.global_share is not None and not self.model.causal
        )

    def draw(self, count: int, rng: torch.Generator) -> dict[str, Tensor]:
        draws = super().draw(count, rng)
        draws["known"], uniform = known, _ = self.draw_known(self.config.mask, count, self.model.unit_spec.length, rng)
        if self.model.causal:
            draws["known"] = known = torch.zeros_like(known)  # every token is predicted, from those before it
        draws["drop"] = torch.rand(count, generator=rng) < self.config.label_drop
        options = self.model.mask_draws(uniform.argsort(dim=1), known)
        self._mask_options = tuple(options)
        draws |= options
        if self.config.reuse and self.training:
            coin, share = torch.rand(2, generator=rng)
            draws["reuse"] = (coin < self.config.reuse).expand(count)
            draws["before"] = known_before(known, share[None], torch.rand(uniform.shape, generator=rng))
            draws["drop_again"] = torch.rand(count, generator=rng) < self.config.reuse_label_drop
        return draws

    def draw_known(self, mask: MaskConfig, count: int, length: int, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        """Which of `length` tokens of `count` images are visible, bool (B, L), and the uniform draws (B, L) that decided it."""
        one = mask.per == "batch" and self.training  # validation must not depend on how it is cut into batches
        fraction = mask_fraction_from_uniform(torch.rand(1 if one else count, generator=rng), mask)
        uniform = torch.rand(count, length, generator=rng)
        options: dict[str, Any] = {"rounding": mask.rounding, "visible": mask.visible}
        if self.in_phases:
            assert mask.global_share is not None
            first = torch.rand(len(fraction), generator=rng) < mask.global_share
            return known_in_phases(
                fraction, uniform, global_tokens=self.model.spec.global_tokens, first=first, **options
            ), uniform
        return known_from_uniform(fraction, uniform, **options), uniform

    def draw_rows(self, rows: slice, *seed: int | str) -> dict[str, Tensor]:
        made = [self.draw_row(seeds.generator(*seed, row)) for row in range(rows.start, rows.stop)]
        return {name: torch.stack([one[name] for one in made]) for name in (made[0] if made else {})}

    def draw_row(self, rng: torch.Generator) -> dict[str, Tensor]:
        """The draws of one image for a diffusion head's loss, and of its posterior for a tokenizer that has one."""
        head, draws = self.model.head, {}
        if hasattr(head, "draw"):
            draws = head.draw(self.model.unit_spec.length, self.config.diffusion_batch_mul, rng)
        if (shape := self.posterior_shape) is not None:
            draws["posterior"] = torch.randn(shape, generator=rng)
        return draws

    @property
    def posterior_shape(self) -> tuple[int, ...] | None:
        """Shape (c, h, w) of the noise for an image's posterior, None if the tokenizer has none."""
        return None if self._tokenizer[0] is None else self._tokenizer[0].noise_shape()

    def share(self, piece: dict[str, Tensor], whole: dict[str, Tensor]) -> float:
        """Masked tokens here over those an equal share would have: makes the whole a mean over all masked tokens."""
        if self.config.loss_tokens == "all":
            return 1.0
        here, all_ = (~piece["known"]).sum().item(), (~whole["known"]).sum().item()
        return here / all_ * len(whole["known"]) / len(piece["known"])

    def tokens(self, batch: dict[str, Tensor], draws: dict[str, Tensor], prefix: str = "") -> Tensor:
        """Tokens (B, L) or (B, L, C) of a batch; of its pivots with the prefix "pivot_"."""
        for name in (f"{prefix}tokens", f"{prefix}moments"):
            if name not in batch:
                continue
            views = batch[name]  # (B, V, …)
            flipped = draws["flip"] if "flip" in draws else torch.zeros(1, dtype=torch.bool, device=views.device)
            own = torch.where(flipped.view(-1, *[1] * (views.ndim - 2)), views[:, -1], views[:, 0])
            return own if name.endswith("tokens") else self._tokenizer[0].tokens(own, draws[f"{prefix}posterior"])
        # In fp32 whatever the precision of the run: rounding changes ids, and a cache holds those of fp32.
        with torch.no_grad(), torch.autocast(batch["image"].device.type, enabled=False):
            noise = {"noise": draws[f"{prefix}posterior"]} if f"{prefix}posterior" in draws else {}
            return self._tokenizer[0].encode(self.resized(self.augment(batch["image"], draws), prefix), **noise)

    def resized(self, images: Tensor, prefix: str) -> Tensor:
        """Images at the size of the tokens that `prefix` names: as they are."""
        return images

    def forward(self, batch: dict[str, Tensor], draws: dict[str, Tensor]) -> tuple[Tensor, Logs]:
        tokens = self.tokens(batch, draws)
        if self.model.unit is not None:
            tokens = self.model.unit.fold(tokens)
        label = batch["label"]
        if self.config.label_drop:
            label = torch.where(draws["drop"], self.model.null_class, label)
        options: dict[str, Any]
        if "t" in draws:
            options = {"t": draws["t"], "noise": draws["noise"], "head_tokens": self.config.head_tokens}
        else:
            options = {"label_smoothing": self.config.label_smoothing if self.training else 0.0}
        options |= {name: draws[name] for name in self._mask_options}
        if "loss_tokens" in inspect.signature(self.model.forward).parameters:
            options["loss_tokens"] = self.config.loss_tokens
        if "reuse" in draws:
            if draws["reuse"][0]:
                options["memory"] = self.earlier(tokens, label, draws["before"])
            label = torch.where(draws["drop_again"], self.model.null_class, label)
        losses, figure = self.model(tokens, label, draws["known"], **options)  # one value per masked token, both
        return losses.mean(), {self.model.head.figure: figure.mean()}

    @torch.no_grad()
    def earlier(self, tokens: Tensor, label: Tensor, known: Tensor) -> Any:
        """The features of an earlier step, in which `known` (B, L) was known: of the EMA weights if there are, without dropout."""
        weights = {} if self.ema_weights is None else self.ema_weights()
        training = self.model.training
        self.model.eval()
        try:
            return functional_call(self._look[0], weights, (tokens, label, known))
        finally:
            self.model.train(training)


class TokenizerObjective(Objective):
    """Reconstruction, the tokenizer's own losses (quantizer, KL, vision), and optional perceptual and adversarial terms.

    `discriminator` and `perceptual` are helpers outside the module tree: the first has its own optimizer, the second is
    frozen. While `adversarial_on` is False the adversarial term is left out.
    """

    def __init__(
        self,
        model: Any,
        data: DataConfig,
        config: TokenizerObjectiveConfig,
        *,
        perceptual: nn.Module | None = None,
        discriminator: nn.Module | None = None,
    ) -> None:
        super().__init__(model, data)
        self.config = config
        self._helpers = [perceptual, discriminator]
        self.adversarial_on = False
        if config.perceptual and perceptual is None:
            raise MgenError(
                "objective.perceptual needs objective.perceptual_model: a FashionCNN folder or VGG16 weights file"
            )
        for module in model.modules():
            if isinstance(module, SphereQuantizer):
                module.entropy = config.entropy > 0

    def draw(self, count: int, rng: torch.Generator) -> dict[str, Tensor]:
        draws = super().draw(count, rng)
        if (shape := self.model.noise_shape()) is not None:
            draws["posterior"] = torch.randn(count, *shape, generator=rng)
        discriminator: Any = self._helpers[1]
        if discriminator is not None and self.training:  # validation must not depend on how it is cut into batches
            draws |= discriminator.draw(count, rng)
        return draws

    def forward(self, batch: dict[str, Tensor], draws: dict[str, Tensor]) -> tuple[Tensor, Logs]:
        c = self.config
        images = self.augment(batch["image"], draws)
        out, own, figures = self.model(images, draws["posterior"]) if "posterior" in draws else self.model(images)
        out = out.float()
        # Pixel errors are reported on images in [0, 1].
        terms = {"l2": F.mse_loss(out, images) / 4, "l1": F.l1_loss(out, images) / 2, **own}
        perceptual: Any
        discriminator: Any
        perceptual, discriminator = self._helpers
        if perceptual is not None and c.perceptual:
            terms["perceptual"] = perceptual(out, images)
        crop = [draws["crop"]] if "crop" in draws else []
        if discriminator is not None and self.adversarial_on:
            terms["adversarial"] = discriminator.generator_loss(out, *crop)
        loss = sum(getattr(c, name) * value for name, value in terms.items())
        psnr = -10 * torch.log10((out.clamp(-1, 1) - images).square().mean((1, 2, 3)) / 4).mean()
        self.last = (images.detach(), out.detach(), *crop)  # what the discriminator's step compares
        return loss, {**{k: v.detach() for k, v in terms.items()}, **figures, "psnr": psnr.detach()}
