"""Objectives of classifiers and tokenizers."""

from dataclasses import asdict

import torch
import torch.nn.functional as F
from torch import Tensor

from mgen.tokenizers.base import Tokenizer
from mgen.tokenizers.sphere import PlainQuantizer
from mgen.training.balance import factor, slopes
from mgen.training.companions import Companions
from mgen.training.config import (
    ClassifierObjectiveConfig,
    TokenizerObjectiveConfig,
)
from mgen.training.noise import Augmentation, ClassifierNoise, TokenizerNoise
from mgen.training.objective import DEFAULT_OPTIONS, Compared, Logs, Objective, StepOptions, StepOutput
from mgen.training.token_source import Batch
from mgen.utils import seeds
from mgen.utils.errors import MgenError
from mgen.utils.modeling import Model


class ClassifierObjective(Objective[ClassifierNoise]):
    """Cross entropy with label smoothing."""

    def __init__(self, model: Model, config: ClassifierObjectiveConfig) -> None:
        super().__init__(model)
        self.config = config

    def make_noise(
        self, count: int, rng: torch.Generator, *, augmentation: Augmentation, step: int = 0
    ) -> ClassifierNoise:
        return ClassifierNoise(augmentation=augmentation.make_noise(count, rng))

    def forward(self, batch: Batch, noise: ClassifierNoise, options: StepOptions = DEFAULT_OPTIONS) -> StepOutput:
        logits = self.model(noise.augmentation.apply(batch["image"]))[1].float()
        smoothing = self.config.label_smoothing if self.training else 0.0
        loss = F.cross_entropy(logits, batch["label"], label_smoothing=smoothing)
        return StepOutput(loss, {"accuracy": (logits.argmax(1) == batch["label"]).float().mean()})


class TokenizerObjective(Objective[TokenizerNoise]):
    """Reconstruction, the tokenizer's own losses (quantizer, KL, vision), and optional perceptual and adversarial terms."""

    def __init__(self, model: Model, config: TokenizerObjectiveConfig, companions: Companions | None = None) -> None:
        super().__init__(model, companions)
        self.config = config
        if config.perceptual and self.companions.perceptual is None:
            raise MgenError(
                "objective.perceptual needs objective.perceptual_model: the folder of an ImageClassifier or the file of VGG16's weights"
            )
        if config.logits and self.companions.logits is None:
            raise MgenError("objective.logits needs objective.logits_model: the file of ConvNeXt-S's weights")
        # Raises for what the tokenizer can't be trained with.
        model.corruption(1, seeds.generator(0), **asdict(config.corruption))
        for module in model.modules():
            if isinstance(module, PlainQuantizer):
                module.entropy = config.entropy > 0

    def make_noise(
        self, count: int, rng: torch.Generator, *, augmentation: Augmentation, step: int = 0
    ) -> TokenizerNoise:
        augmented, shape = augmentation.make_noise(count, rng), self.model.noise_shape()
        posterior = None if shape is None else torch.randn(count, *shape, generator=rng)
        discriminator, crop = self.companions.discriminator, None
        if discriminator is not None and self.training:  # validation must not depend on how it is cut into batches
            crop = discriminator.crop_noise(count, rng)
        corruption = self.model.corruption(count, rng, **asdict(self.config.corruption)) if self.training else None
        return TokenizerNoise(augmentation=augmented, posterior=posterior, crop=crop, corruption=corruption)

    def forward(self, batch: Batch, noise: TokenizerNoise, options: StepOptions = DEFAULT_OPTIONS) -> StepOutput:
        config = self.config
        if self.companions.proxy is not None:
            return self._imitation(noise.augmentation.apply(batch["image"]), self.companions.proxy)
        images, out, terms, metrics = self._terms(batch, noise, options)
        weights = {name: getattr(config, name) for name in terms}
        if "adversarial" in terms and config.adversarial_adaptive and self.training:
            found = options.adversarial_factor
            metrics = metrics | {"adversarial_factor": factor(self._slopes(terms)) if found is None else found}
            weights["adversarial"] = config.adversarial * metrics["adversarial_factor"]
        loss = sum((weights[name] * value for name, value in terms.items()), images.new_zeros(()))
        psnr = -10 * torch.log10((out.clamp(-1, 1) - images).square().mean((1, 2, 3)) / 4).mean()
        logs = {name: value.detach() for name, value in terms.items()} | metrics | {"psnr": psnr.detach()}
        return StepOutput(loss, logs, Compared(images.detach(), out.detach(), noise.crop))

    def slopes(self, batch: Batch, noise: TokenizerNoise, options: StepOptions) -> Tensor:
        """What `mgen.training.balance.factor` makes the adaptive weight of, for a piece of the batch."""
        return self._slopes(self._terms(batch, noise, options)[2])

    def _slopes(self, terms: Logs) -> Tensor:
        images = [terms[name] * getattr(self.config, name) for name in ("l2", "l1", "perceptual") if name in terms]
        return slopes((torch.stack(images).sum(), terms["adversarial"]), self.last_weight())

    def last_weight(self) -> Tensor:
        """The weight of the layer that makes images, where gradients are compared; MgenError if it is not trained."""
        assert isinstance(self.model, Tokenizer)
        name = f"{self.model.ends[1]}.weight"
        weight = self.model.get_parameter(name)
        if not weight.requires_grad:
            raise MgenError(
                f"objective.adversarial_adaptive compares gradients at {name}, which optim.freeze keeps as it is: train it, or set "
                "objective.adversarial_adaptive=false"
            )
        return weight

    def _terms(
        self, batch: Batch, noise: TokenizerNoise, options: StepOptions
    ) -> tuple[Tensor, Tensor, Logs, dict[str, Tensor]]:
        """Images, reconstructions, terms of the loss without their weights, and values to log."""
        config, beside = self.config, self.companions
        images = noise.augmentation.apply(batch["image"])
        drawn = {"noise": noise.posterior, "corruption": noise.corruption}
        made = self.model(images, **{name: value for name, value in drawn.items() if value is not None})
        out, own_terms, metrics = made[0].float(), made[1], made[2]
        # Pixel errors are reported on images in [0, 1].
        terms: Logs = {"l2": F.mse_loss(out, images) / 4, "l1": F.l1_loss(out, images) / 2, **own_terms}
        if beside.perceptual is not None and config.perceptual:
            terms["perceptual"] = beside.perceptual(out, images)
        if beside.logits is not None and config.logits:
            terms["logits"] = beside.logits(out, images)
        if beside.discriminator is not None and options.adversarial:
            terms["adversarial"] = beside.discriminator.generator_loss(out, noise.crop)
        return images, out, terms, metrics

    def _imitation(self, images: Tensor, proxy: Model) -> StepOutput:
        """The step of a tokenizer that predicts the ids of another one, and makes no image."""
        with torch.no_grad(), torch.autocast(images.device.type, enabled=False):
            ids = proxy.encode(images)
        terms, metrics = self.model.imitate(images, ids)
        loss = sum((getattr(self.config, name) * value for name, value in terms.items()), images.new_zeros(()))
        return StepOutput(loss, {name: value.detach() for name, value in terms.items()} | metrics)
