"""What differs between training a generator, a tokenizer and a classifier: how it is built, previewed and exported."""

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from mgen.samplers import ParallelSampler
from mgen.tokenizers.kl import KLTokenizer, estimate_scale
from mgen.tokenizers.quantizers import VectorQuantizer
from mgen.tokenizers.vision import give_vision
from mgen.training.adversarial import Adversary, Discriminator, PerceptualDistance
from mgen.training.config import TokenizerObjectiveConfig, TrainConfig, build_model
from mgen.training.data import make_dataset
from mgen.training.dino_discriminator import FILE, DinoDiscriminator
from mgen.training.objectives import ClassifierObjective, GeneratorObjective, Objective, TokenizerObjective
from mgen.training.pivots import PivotObjective
from mgen.utils import seeds
from mgen.utils.errors import MgenError
from mgen.utils.files import read_json, read_tensors


class Task:
    """Everything the loop needs to know about one run, apart from how to run it."""

    def __init__(self, config: TrainConfig) -> None:
        self.config = config
        self.tokenizer: Any = None
        self.discriminator: Adversary | None = None
        model = build_model(config.model)
        if config.init:
            model = initialise(model, config.init)
        make: dict[str, Callable[[Any], Objective]] = {
            "classifier": lambda m: ClassifierObjective(m, config.data, config.objective),
            "generator": self._generator,
            "tokenizer": self._tokenizer,
        }
        self.objective = make[config.task](model)
        # A KL tokenizer without a scale gets the one of these data, measured anew for the weights of each export.
        self.measure_scale = isinstance(model, KLTokenizer) and model.config.scale is None
        fingerprint = None
        if self.tokenizer is not None and config.data.kind == "cache":
            from mgen.data import tokenizer_fingerprint

            fingerprint = tokenizer_fingerprint(self.tokenizer)
        self.train_data = make_dataset(config.data, split="train", fingerprint=fingerprint)
        self.val_data = make_dataset(config.data, split="test", fingerprint=fingerprint)
        for parameter_name, parameter in model.named_parameters():
            if parameter_name.startswith(tuple(config.optim.freeze)) and config.optim.freeze:
                parameter.requires_grad_(False)
        self._check_data(model)
        if isinstance(getattr(model, "quantize", None), VectorQuantizer) and not config.init:
            rows = range(0, len(self.train_data), max(1, len(self.train_data) // 64))[:64]
            images, rng = self.train_data.__getitems__(list(rows))["image"], seeds.generator(config.seed, "codebook")
            model.initialize_codebooks(images, rng)
        conditional = config.task == "generator" and model.config.num_classes
        if conditional and model.config.class_names is None and self.train_data.class_names != ("",):
            model.register_to_config(class_names=tuple(self.train_data.class_names))

    def _generator(self, model: Any) -> Objective:
        c = self.config.objective
        if c.tokenizer:
            from mgen.pipelines.pipeline import load_tokenizer

            self.tokenizer = load_tokenizer(c.tokenizer).eval().requires_grad_(False)
            give_vision(self.tokenizer, c.vision_weights)
            spec = self.tokenizer.spec
            if spec.kind != "index" and model.config.get("scale", 1.0) is None:
                model.register_to_config(scale=spec.scale)
            spec.require(model.spec, by=type(model).__name__)
            order = self.tokenizer.config.get("channel_order")
            if order is not None and spec.kind == "multi-index" and model.config.channel_order is None:
                raise MgenError(
                    f"the tokenizer names a channel_order, the model draws its channels in ascending order: set model.channel_order="
                    f"{list(order)}, or write the ascending one out"
                )
        elif self.config.data.kind != "cache" or model.spec.kind != "index":
            raise MgenError(
                "a generator trained on images or moments needs objective.tokenizer: a folder or a name from mgen zoo"
            )
        ParallelSampler.suited(model, c.sampler, "objective.sampler").check(model)
        kind = PivotObjective if model.staged else GeneratorObjective
        return kind(model, self.config.data, c, self.tokenizer)

    def _tokenizer(self, model: Any) -> Objective:
        c = self.config.objective
        perceptual = PerceptualDistance(c.perceptual_model) if c.perceptual and c.perceptual_model else None
        if c.adversarial:
            self.discriminator = make_discriminator(c, model.config.in_channels)
        give_vision(model, c.vision_weights)
        return TokenizerObjective(model, self.config.data, c, perceptual=perceptual, discriminator=self.discriminator)

    def _check_data(self, model: Any) -> None:
        data, task = self.train_data, self.config.task
        takes = self.tokenizer if task == "generator" else model
        if "image" in (batch := data.__getitems__([0])):
            channels, side = batch["image"].shape[1:3]
            if (channels, side) != (takes.config.in_channels, takes.config.image_size):
                raise MgenError(
                    f"the data has {channels}×{side}×{side} images, the {type(takes).__name__} takes {takes.config.in_channels}×"
                    f"{takes.config.image_size}×{takes.config.image_size}: set data.image_size and data.channels, or another model"
                )
        elif task != "generator":
            raise MgenError(f"task {task!r} trains on images: data.kind=cache holds tokens only")
        if task == "generator":
            for named in (data, self.val_data):
                self._check_pivots(model, named)
            if hasattr(data, "spec") and (data.name == "tokens" or not hasattr(self.tokenizer, "moments")):
                data.spec.require(model.spec, by=type(model).__name__)
            elif hasattr(data, "spec"):
                _, h, w = self.tokenizer.noise_shape()
                stored = tuple(batch["moments"].shape[-2:])
                if stored != (h, w):
                    raise MgenError(
                        f"{self.config.data.path} holds moments of {stored[0]}×{stored[1]} places, the tokenizer of this run makes "
                        f"{h}×{w}: write the cache with the tokenizer's own image size"
                    )
            if model.config.num_classes and data.num_classes > model.config.num_classes:
                raise MgenError(
                    f"the data has {data.num_classes} classes, model.num_classes is {model.config.num_classes}"
                )

    def _check_pivots(self, model: Any, data: Any) -> None:
        if not model.staged or data is None or "image" in (batch := data.__getitems__([0])):
            return
        path = self.config.data.path if data is self.train_data else self.config.data.val_path
        name, side = f"pivot_{data.name}", model.pivot_spec.grid[0]
        pixels = self.tokenizer.config.image_size * side // model.spec.grid[0] if self.tokenizer is not None else "N"
        if name not in batch:
            raise MgenError(
                f"{path} holds no pivots, which {type(model).__name__} is trained on: write a cache with mgen cache "
                f"--pivot-size {pixels}"
            )
        places = batch[name].shape[2] if name == "pivot_tokens" else batch[name][0, 0, 0].numel()
        patch = 1 if self.tokenizer is None else self.tokenizer.config.get("patch", 1)
        if places != (side * (patch if name == "pivot_moments" else 1)) ** 2:
            raise MgenError(
                f"{path} holds {places} places per smaller image, model.pivot_side is {side}: write a cache with "
                f"mgen cache --pivot-size {pixels}, or train another model.pivot_side"
            )

    @torch.inference_mode()
    def preview(self, device: torch.device) -> Tensor | None:
        """A grid as uint8 (C, H, W): samples of a generator, originals above reconstructions of a tokenizer."""
        from torchvision.utils import make_grid

        model = self.objective.model
        if self.config.task == "tokenizer":
            data = self.val_data if self.val_data is not None else self.train_data
            images = data.__getitems__(range(min(16, len(data))))["image"].to(device)
            images = torch.cat([images, model(images)[0].clamp(-1, 1)])
            return make_grid(((images + 1) * 127.5).round().to(torch.uint8), nrow=len(images) // 2)
        if self.config.task == "generator" and self.tokenizer is not None:
            pipe = self.pipeline()
            classes = list(itertools.islice(itertools.cycle(range(model.num_classes)), 40))[:40]
            images = pipe(classes, seed=self.config.seed, output_type="uint8", progress=False).images
            return make_grid(images, nrow=min(10, model.num_classes) if model.config.num_classes else 10)
        return None

    def pipeline(self) -> Any:
        from mgen.pipelines.pipeline import MaskedPipeline

        model = self.objective.model
        sampler = ParallelSampler.suited(model, self.config.objective.sampler, "objective.sampler")
        return MaskedPipeline(tokenizer=self.tokenizer, generator=model, sampler=sampler)

    def export(self, folder: Path) -> None:
        """The model as users load it: a pipeline where there is a tokenizer, else the model's own folder."""
        if self.config.task == "generator" and self.tokenizer is not None:
            self.pipeline().save_pretrained(folder)
            return
        model = self.objective.model
        if isinstance(model, KLTokenizer) and self.measure_scale:
            count = len(self.train_data)
            rows = range(0, count, max(1, count // 2048))[:2048]
            parts = (self.train_data.__getitems__(rows[i : i + 64])["image"] for i in range(0, len(rows), 64))
            model.register_to_config(scale=estimate_scale(model, parts))
        model.save_pretrained(folder)


def make_discriminator(c: TokenizerObjectiveConfig, channels: int) -> Adversary:
    """The discriminator of a tokenizer's objective, for images of so many channels."""
    if c.discriminator == "dino":
        if c.discriminator_weights is None:
            raise MgenError(f"objective.discriminator=dino needs objective.discriminator_weights: DINO's file {FILE}")
        if c.r1:
            raise MgenError("objective.r1 is for discriminator=patch: with discriminator=dino, set it to 0")
        return DinoDiscriminator(c.discriminator_weights, loss=c.adversarial_loss, weight=c.discriminator_weight)
    if c.discriminator_weights is not None:
        raise MgenError("objective.discriminator_weights is for discriminator=dino: leave it out")
    return Discriminator(
        in_channels=channels,
        channels=c.discriminator_channels,
        layers=c.discriminator_layers,
        loss=c.adversarial_loss,
        r1=c.r1,
        weight=c.discriminator_weight,
        norm=c.discriminator_norm,
    )


def initialise(model: Any, folder: str) -> Any:
    """`model` with the weights of `folder`, which must fit exactly."""
    path = Path(folder)
    if (path / "generator").is_dir() and (path / "model_index.json").is_file():
        path = path / "generator"
    files = sorted(path.glob("*.safetensors"))
    if not files or not (path / "config.json").is_file():
        raise MgenError(f"init: no saved model in {folder} (expected config.json and safetensors)")
    saved = read_json(path / "config.json").get("_class_name")
    if saved != type(model).__name__:
        raise MgenError(f"init: {folder} holds a {saved}, the run trains a {type(model).__name__}")
    state: dict[str, Tensor] = {}
    for file in files:
        state.update(read_tensors(file)[0])
    try:
        model.load_state_dict({k: v.float() for k, v in state.items()})
    except (RuntimeError, SafetensorError) as error:
        raise MgenError(
            f"init: the weights in {folder} do not fit the model: {str(error).splitlines()[1].strip()[:160]}"
        ) from error
    return model
