"""What differs between training a generator, a tokenizer and a classifier: how it is built, previewed and exported."""

from pathlib import Path

import torch
from PIL.Image import Image

from mgen.data import spread_batches
from mgen.evaluation.cnn import ImageClassifier
from mgen.tokenizers.base import Tokenizer
from mgen.tokenizers.vision import give_vision
from mgen.training.adversarial import Adversary, Discriminator, PerceptualDistance
from mgen.training.companions import Companions
from mgen.training.config import ClassifierObjectiveConfig, TokenizerObjectiveConfig, TrainConfig
from mgen.training.dino_discriminator import FILE, DinoDiscriminator
from mgen.training.generator_task import GeneratorTask
from mgen.training.logits import LogitDistance
from mgen.training.parts import Task, check_images
from mgen.training.previews import predictions, reconstructions
from mgen.training.proxy import load_proxy
from mgen.training.tokenizer_objective import ClassifierObjective, TokenizerObjective
from mgen.utils import seeds
from mgen.utils.errors import MgenError


class ClassifierTask(Task):
    """Train a classifier of images."""

    def __init__(self, config: TrainConfig) -> None:
        super().__init__(config)
        assert isinstance(config.objective, ClassifierObjectiveConfig)
        if not isinstance(self.model, ImageClassifier):
            raise MgenError(
                f"model.class={type(self.model).__name__} is no classifier: use ImageClassifier, or another task"
            )
        self.objective = ClassifierObjective(self.model, config.objective)
        self.load_data()
        check_images(self.train_data, self.model, task=config.task)
        self.check_classes(self.model.config.num_classes, "model.num_classes")

    def preview(self, device: torch.device, title: str) -> Image:
        """Images with their true and predicted classes."""
        assert isinstance(self.model, ImageClassifier)
        data = self.val_data if self.val_data is not None else self.train_data
        return predictions(self.model, data, device=device, title=title)

    def export(self, folder: Path) -> None:
        self.model.save_pretrained(folder)
        self.write_data(folder, accuracy=self.validated[1].get("val_accuracy"))


class TokenizerTask(Task):
    """Train a tokenizer to reconstruct images."""

    def __init__(self, config: TrainConfig) -> None:
        super().__init__(config)
        settings = config.objective
        assert isinstance(settings, TokenizerObjectiveConfig)
        if not isinstance(self.model, Tokenizer):
            raise MgenError(f"model.class={type(self.model).__name__} is no tokenizer: use VQGAN, or another task")
        path = settings.perceptual_model if settings.perceptual else None
        perceptual = PerceptualDistance(path) if path else None
        logits = LogitDistance.from_file(settings.logits_model) if settings.logits and settings.logits_model else None
        adversarial = (
            make_discriminator(settings, channels=self.model.config.in_channels, side=self.model.config.image_size)
            if settings.adversarial
            else None
        )
        give_vision(self.model, settings.vision_weights)
        proxy = load_proxy(self.model, settings.proxy_tokenizer, anew=self.start is None)
        companions = Companions(perceptual=perceptual, logits=logits, discriminator=adversarial, proxy=proxy)
        self.objective = TokenizerObjective(self.model, settings, companions)
        self.load_data()
        check_images(self.train_data, self.model, task=config.task)
        if settings.adversarial_adaptive:
            self.objective.last_weight()
        # A KL tokenizer without a scale gets the one of these data, measured anew for the weights of each export.
        self.measures = self.model.unmeasured
        anew = self.start is not None and any(c.of.endswith("ids") for c in self.start.fitted.changes)
        if self.start is None or anew:
            images = next(spread_batches(self.train_data, 64, 64, progress=False))
            self.model.initialize_codebooks(images, seeds.generator(config.seed, "codebook"))

    def preview(self, device: torch.device, title: str) -> Image:
        """Originals above their reconstructions."""
        assert isinstance(self.model, Tokenizer)
        data = self.val_data if self.val_data is not None else self.train_data
        return reconstructions(self.model, data, device=device, title=title)

    def export(self, folder: Path) -> None:
        if self.measures:
            assert isinstance(self.model, Tokenizer)
            parts = spread_batches(self.train_data, 2048, 64, progress=False)
            self.model.register_to_config(**self.model.measure(parts))
        super().export(folder)


TASKS: dict[str, type[Task]] = {"generator": GeneratorTask, "tokenizer": TokenizerTask, "classifier": ClassifierTask}


def make_discriminator(config: TokenizerObjectiveConfig, *, channels: int, side: int) -> Adversary:
    """The discriminator of a tokenizer's objective, for images with this number of channels and this side."""
    if config.discriminator == "dino":
        if config.discriminator_weights is None:
            raise MgenError(
                f"objective.discriminator=dino needs objective.discriminator_weights: give the path of DINO's file {FILE}"
            )
        if config.r1:
            raise MgenError("objective.r1 is for discriminator=patch: with discriminator=dino, set it to 0")
        return DinoDiscriminator(
            config.discriminator_weights,
            loss=config.adversarial_loss,
            weight=config.discriminator_weight,
            form=config.adversarial_form,
        )
    if config.discriminator_weights is not None:
        raise MgenError("objective.discriminator_weights is for discriminator=dino: leave it out")
    layers = config.discriminator_layers
    # The published network ends with two kernels of 4, which take a pixel each.
    if side >> (layers + (config.discriminator_norm == "group")) < (1 if config.discriminator_norm == "group" else 3):
        raise MgenError(
            f"objective.discriminator_layers is {layers}: too many halvings for images of {side} pixels; use fewer"
        )
    return Discriminator(
        in_channels=channels,
        channels=config.discriminator_channels,
        layers=config.discriminator_layers,
        loss=config.adversarial_loss,
        r1=config.r1,
        weight=config.discriminator_weight,
        norm=config.discriminator_norm,
        form=config.adversarial_form,
        unit_range=config.discriminator_unit_range,
    )
