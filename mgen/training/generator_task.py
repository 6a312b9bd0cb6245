"""Training of a generator: its tokenizer, checks of the data, sample grids, the exported pipeline."""

import itertools
from pathlib import Path

import torch
from torch import Tensor

from mgen.data import TokenCache, tokenizer_fingerprint
from mgen.generators.base import Generator
from mgen.pipelines.pipeline import MaskedPipeline, load_tokenizer
from mgen.samplers import ParallelSampler
from mgen.tokenizers.vision import give_vision
from mgen.training import generator_calls as calls
from mgen.training.cascade import CascadeObjective
from mgen.training.config import GeneratorObjectiveConfig, TrainConfig
from mgen.training.objectives import GeneratorObjective
from mgen.training.parts import check_images, freeze, make_data, make_model
from mgen.training.token_source import SMALL
from mgen.utils.errors import MgenError
from mgen.utils.modeling import Model


class GeneratorTask:
    """Train a generator on the tokens of a cache, or of images."""

    def __init__(self, config: TrainConfig) -> None:
        settings, model = config.objective, make_model(config)
        assert isinstance(settings, GeneratorObjectiveConfig)
        if not isinstance(model, Generator):
            raise MgenError(f"model.class={type(model).__name__} is not a generator: set task, or choose another class")
        self.config, self.settings, self.model = config, settings, model
        self.tokenizer = self._load_tokenizer()
        self.sampler = ParallelSampler.suited(model, settings.sampler, "objective.sampler")
        self.sampler.check(model)
        kind = CascadeObjective if calls.is_cascade(model) else GeneratorObjective
        self.objective: CascadeObjective | GeneratorObjective = kind(model, settings, self.tokenizer)
        cached = self.tokenizer is not None and config.data.kind == "cache"
        self.train_data, self.val_data = make_data(
            config, fingerprint=tokenizer_fingerprint(self.tokenizer) if cached else None
        )
        freeze(model, config.optim.freeze)
        self._check_data()
        calls.name_classes(model, self.train_data.class_names)

    def _load_tokenizer(self) -> Model | None:
        settings = self.settings
        if settings.tokenizer:
            tokenizer: Model = load_tokenizer(settings.tokenizer).eval().requires_grad_(False)
            give_vision(tokenizer, settings.vision_weights)
            calls.adopt_tokenizer(self.model, tokenizer)
            return tokenizer
        if self.config.data.kind != "cache" or calls.token_spec(self.model).kind != "index":
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
            if calls.is_cascade(model) and isinstance(some, TokenCache):
                self._check_small_images(some, path)
        if isinstance(data, TokenCache):
            self._check_cache(data)
        if calls.class_count(model) and data.num_classes > calls.class_count(model):
            raise MgenError(
                f"the data has {data.num_classes} classes, but model.num_classes is {calls.class_count(model)}: raise it"
            )

    def _check_cache(self, data: TokenCache) -> None:
        """Raise MgenError unless the tokens or moments of the cache are those that the model is trained on."""
        if data.name == "tokens" or not hasattr(self.tokenizer, "moments"):
            data.spec.require(calls.token_spec(self.model), by=type(self.model).__name__)
            return
        assert self.tokenizer is not None
        _, h, w = self.tokenizer.noise_shape()
        rows, columns = data.__getitems__([0])["moments"].shape[-2:]
        if (rows, columns) != (h, w):
            raise MgenError(
                f"{self.config.data.path} holds moments on a {rows}×{columns} grid, but the tokenizer of this run makes "
                f"{h}×{w}: write the cache with the tokenizer's own image size"
            )

    def _check_small_images(self, data: TokenCache, path: str | None) -> None:
        """Raise MgenError unless the cache holds smaller images for the first stage, and of its size."""
        batch, name = data.__getitems__([0]), f"{SMALL}{data.name}"
        spec, first = calls.token_spec(self.model), calls.first_stage_spec(self.model)
        assert spec.grid is not None and first.grid is not None
        side = first.grid[0]
        pixels = self.tokenizer.config.image_size * side // spec.grid[0] if self.tokenizer is not None else "N"
        if name not in batch:
            raise MgenError(
                f"{path} holds no smaller images, on which the first stage of {type(self.model).__name__} is trained: write a "
                f"cache with mgen cache --pivot-size {pixels}"
            )
        found = batch[name].shape[2] if data.name == "tokens" else batch[name][0, 0, 0].numel()
        patch = 1 if self.tokenizer is None else self.tokenizer.config.get("patch", 1)
        if found != (side * (patch if data.name == "moments" else 1)) ** 2:
            raise MgenError(
                f"{path} holds {found} positions per smaller image, but the first stage of the model has a {side}×{side} grid: "
                f"write a cache with mgen cache --pivot-size {pixels}, or change the model's first stage"
            )

    @torch.inference_mode()
    def preview(self, device: torch.device) -> Tensor | None:
        """Samples of all classes in turn, as one image uint8 (C, H, W); None without a tokenizer."""
        from torchvision.utils import make_grid

        if self.tokenizer is None:
            return None
        count = self.model.num_classes
        classes = list(itertools.islice(itertools.cycle(range(count)), 40))
        images = self._pipeline()(classes, seed=self.config.seed, output_type="uint8", progress=False).images
        return make_grid(images, nrow=min(10, count) if calls.class_count(self.model) else 10)

    def export(self, folder: Path) -> None:
        """Write a pipeline, or the model alone if there is no tokenizer."""
        (self.model if self.tokenizer is None else self._pipeline()).save_pretrained(folder)

    def _pipeline(self) -> MaskedPipeline:
        return MaskedPipeline(tokenizer=self.tokenizer, generator=self.model, sampler=self.sampler)
