"""Training of a generator: its tokenizer, checks of the data, sample grids, the exported pipeline."""

from dataclasses import replace
from pathlib import Path

import torch
from PIL.Image import Image

from mgen.data import TokenCache, record_of
from mgen.generators import Cascade, Generator
from mgen.generators.adapter_file import FILE, About
from mgen.pipelines.pipeline import MaskedPipeline
from mgen.pipelines.pretrained import Start
from mgen.pipelines.saved import load_tokenizer
from mgen.samplers import ParallelSampler
from mgen.tokenizers.base import Tokenizer
from mgen.tokenizers.vision import give_vision
from mgen.tokens import TokenSpec
from mgen.training.cascade import CascadeObjective
from mgen.training.config import GENERATORS, GeneratorObjectiveConfig, LoRAConfig, TrainConfig
from mgen.training.generator_objective import GeneratorObjective
from mgen.training.parts import Task, check_images
from mgen.training.previews import class_samples
from mgen.training.token_source import SMALL
from mgen.utils.changes import plain
from mgen.utils.errors import MgenError, naming
from mgen.utils.modeling import Model


class GeneratorTask(Task):
    """Train a generator on the tokens of a cache, or of images."""

    def __init__(self, config: TrainConfig) -> None:
        super().__init__(config)
        settings, model = config.objective, self.model
        assert isinstance(settings, GeneratorObjectiveConfig)
        if not isinstance(model, Generator | Cascade):
            raise MgenError(
                f"model.class={type(model).__name__} is not a generator: set task to tokenizer or classifier. {GENERATORS}"
            )
        self.settings, self.model = settings, model
        if config.lora is not None:
            add_adapters(model, config.lora, self.start)
        self.tokenizer = self._load_tokenizer()
        self.sampler = ParallelSampler.suited(model, settings.sampler, "objective.sampler")
        self.sampler.check(model)
        self.objective: CascadeObjective | GeneratorObjective
        if isinstance(model, Cascade):
            self.objective = CascadeObjective(model, settings, self.tokenizer)
        else:
            self.objective = GeneratorObjective(model, settings, self.tokenizer)
        self.tokens_fingerprint = None if self.tokenizer is None else self.tokenizer.fingerprint()
        self.load_data(fingerprint=self.tokens_fingerprint if config.data.kind == "cache" else None)
        if isinstance(self.train_data, TokenCache):
            self.tokens_fingerprint = self.train_data.index.fingerprint
        self._check_data()
        names = tuple(self.train_data.class_names)
        self.class_names = names if model.conditional else None

    def _load_tokenizer(self) -> Tokenizer | None:
        settings = self.settings
        if settings.tokenizer:
            with naming("objective.tokenizer"):
                tokenizer = load_tokenizer(settings.tokenizer)
            tokenizer = (
                tokenizer.at_size(settings.image_size or tokenizer.config.image_size).eval().requires_grad_(False)
            )
            give_vision(tokenizer, settings.vision_weights)
            adopt_tokenizer(self.model, tokenizer)
            return tokenizer
        if settings.image_size:
            raise MgenError(
                f"objective.image_size is {settings.image_size}, but there is no objective.tokenizer: leave it out"
            )
        if self.config.data.kind != "cache" or self.model.tokens.kind != "index":
            raise MgenError(
                "a generator trained on images or moments needs objective.tokenizer: a folder, or a name from mgen zoo"
            )
        return None

    def _check_data(self) -> None:
        data, model = self.train_data, self.model
        if not isinstance(data, TokenCache):
            assert self.tokenizer is not None
            check_images(data, self.tokenizer, task="generator")
        for some, path in ((data, self.config.data.path), (self.val_data, self.config.data.val_path)):
            if isinstance(model, Cascade) and isinstance(some, TokenCache):
                self._check_small_images(some, path)
        if isinstance(data, TokenCache):
            self._check_cache(data)
            if isinstance(self.val_data, TokenCache):
                self._check_cache(self.val_data)
        if model.conditional:
            self.check_classes(model.num_classes, "model.classes.count")

    def _check_cache(self, data: TokenCache) -> None:
        """Raise MgenError unless the tokens or moments of the cache are those that the model is trained on."""
        shape = None if self.tokenizer is None else self.tokenizer.noise_shape()
        if data.name == "tokens" or shape is None:
            data.spec.require(self.model.tokens, by=type(self.model).__name__)
            return
        _, h, w = shape
        rows, columns = data.__getitems__([0])["moments"].shape[-2:]
        if (rows, columns) != (h, w):
            raise MgenError(
                f"{self.config.data.path} holds moments on a {rows}×{columns} grid, but the tokenizer of this run makes "
                f"{h}×{w}: write the cache with the tokenizer's own image size"
            )

    def _check_small_images(self, data: TokenCache, path: str | None) -> None:
        """Raise MgenError unless the cache holds smaller images for the first stage, and of its size."""
        batch, name = data.__getitems__([0]), f"{SMALL}{data.name}"
        assert isinstance(self.model, Cascade)
        spec, first = self.model.tokens, self.model.first_stage_spec
        assert spec.grid is not None and first.grid is not None
        side = first.grid[0]
        pixels = self.tokenizer.config.image_size * side // spec.grid[0] if self.tokenizer is not None else "N"
        if name not in batch:
            raise MgenError(
                f"{path} holds no smaller images, on which the first stage of {type(self.model).__name__} is trained: write a "
                f"cache with mgen cache --first-stage-size {pixels}"
            )
        found = batch[name].shape[2] if data.name == "tokens" else batch[name][0, 0, 0].numel()
        patch = 1 if self.tokenizer is None else self.tokenizer.config.get("patch", 1)
        if found != (side * (patch if data.name == "moments" else 1)) ** 2:
            raise MgenError(
                f"{path} holds {found} positions per smaller image, but the first stage of the model has a {side}×{side} grid: "
                f"write a cache with mgen cache --first-stage-size {pixels}, or change the model's first stage"
            )

    def preview(self, device: torch.device, title: str) -> Image | None:
        """Samples of the classes; None without a tokenizer."""
        if self.tokenizer is None:
            return None
        return class_samples(self.pipeline(), seed=self.config.seed, title=title)

    def export(self, folder: Path) -> None:
        """Write a pipeline, or the model alone if there is no tokenizer."""
        model = self.model if self.config.lora is None else self.model.merged()
        if self.tokenizer is None:
            model.save_pretrained(folder)
            self.write_data(folder)
        else:
            self.pipeline(model).save_pretrained(folder)

    def export_adapter(self, folder: Path) -> None:
        assert self.start is not None
        tables = sorted(self.start.fitted.anew)
        changed = bool(self.start.fitted.changes)
        about = About(
            config=plain(self.model.config) if changed else None, class_names=self.class_names, base=self.config.init
        )
        replace(self.model.adapter(tables=tables), about=about).save(folder / FILE)

    def pipeline(self, model: Generator | Cascade | None = None) -> MaskedPipeline:
        """The pipeline of the model as it is."""
        assert self.tokenizer is not None  # callers have checked
        return MaskedPipeline(
            tokenizer=self.tokenizer,
            transformer=model or self.model,
            sampler=self.sampler,
            class_names=self.class_names,
            data=record_of(self.train_data),
        )


def add_adapters(model: Generator | Cascade, settings: LoRAConfig, start: Start | None) -> None:
    """Give the model adapters and freeze all else but tensors with rows that start anew."""
    model.add_lora(rank=settings.rank, alpha=settings.alpha, targets=settings.targets, dropout=settings.dropout)
    for name in () if start is None else start.fitted.anew:
        model.get_parameter(name).requires_grad_(True)


def adopt_tokenizer(model: Generator | Cascade, tokenizer: Model) -> None:
    """Take over the tokenizer's scale if the model has none.

    Raises:
        MgenError: tokens or channel order of the tokenizer are not those of the model.
    """
    spec: TokenSpec = tokenizer.spec
    if spec.kind != "index" and model.tokens.scale is None:
        model.set_scale(spec.scale)
    spec.require(model.tokens, by=type(model).__name__)
    order = tokenizer.config.get("channel_order")
    if order is not None and spec.kind == "multi-index" and model.head.settings["order"] is None:
        raise MgenError(
            "the tokenizer has a channel_order, but the model draws channels in ascending order: set "
            f"model.head.order={list(order)}, or write out the ascending order"
        )
