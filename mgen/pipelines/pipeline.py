"""Tokenizer + generator + sampler = images: a diffusers DiffusionPipeline, and functions to load one."""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, TypeVar

import torch
from diffusers import DiffusionPipeline
from torch import Tensor
from tqdm import tqdm

from mgen.generators import Cascade, Generator
from mgen.pipelines.arguments import call_options, check_callback, check_given, check_indices, check_tokens, number
from mgen.pipelines.classes import class_ids
from mgen.pipelines.pixels import to_pil, to_uint8
from mgen.pipelines.saved import COMPONENTS, INDEX, earlier_names, load_part, read_index
from mgen.pipelines.sizes import check_batch
from mgen.samplers import ParallelSampler, Step, image_seed
from mgen.samplers.parallel import Given
from mgen.tokenizers.base import Tokenizer
from mgen.utils.devices import check_device
from mgen.utils.errors import MgenError, check_choice, shown
from mgen.utils.files import check_writable
from mgen.utils.modeling import DTYPES, public
from mgen.utils.reading import check_path, read_mapping
from mgen.zoo import DEFAULT, resolve
from mgen.zoo.imagenet import NAME as IMAGENET
from mgen.zoo.imagenet import imagenet_names

P = TypeVar("P", bound="MaskedPipeline")
Classes = Sequence[int | str | None]


@dataclass
class PipelineOutput:
    """images: as asked for by `output_type`; tokens: ids (B, L) or vectors (B, L, C); classes: class ids."""

    images: Any
    tokens: Tensor
    classes: list[int]


@public
class MaskedPipeline(DiffusionPipeline):
    """Image synthesis, class-conditional or, with a generator that knows no classes, unconditional.

        pipe = mgen.load("fmnist-maskgit")
        pipe([0, 1, 2], seed=0, steps=8, guidance=3.0).images[0].save("shirt.png")

    Args:
        tokenizer: decodes tokens to images. transformer: the generator, which predicts tokens. sampler: decides how.
        class_names: names of the classes, for captions, or "imagenet" for those of ImageNet-1k; saved in model_index.json.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        transformer: Generator | Cascade,
        sampler: ParallelSampler,
        class_names: Sequence[str] | None = None,
    ) -> None:
        super().__init__()
        transformer = _in_place(transformer)
        for part, kind in ((tokenizer, Tokenizer), (transformer, Generator | Cascade), (sampler, ParallelSampler)):
            if not isinstance(part, kind):
                raise MgenError(
                    f"a pipeline is made of a Tokenizer, a Generator or Cascade and a ParallelSampler, not {shown(part)}"
                )
        if isinstance(class_names, str) and class_names == IMAGENET:
            class_names = imagenet_names()
        tokenizer.spec.require(transformer.tokens, by=type(transformer).__name__)
        if class_names is not None and (
            isinstance(class_names, str)
            or not isinstance(class_names, Sequence)
            or not all(isinstance(name, str) and name.strip() for name in class_names)
        ):
            raise MgenError(f"class_names is {shown(class_names)}: expected a list of texts that are not empty")
        if class_names is not None and len(class_names) != transformer.num_classes:
            raise MgenError(f"{len(class_names)} class names for {transformer.num_classes} classes: give one for each")
        self.register_modules(tokenizer=tokenizer, transformer=transformer, sampler=sampler)
        self.register_to_config(class_names=None if class_names is None else tuple(class_names))
        self.tokenizer: Tokenizer
        self.transformer: Generator | Cascade
        self.sampler: ParallelSampler

    def __setattr__(self, name: str, value: object) -> None:
        super().__setattr__(name, _in_place(value) if name == "transformer" else value)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **kwargs: Any) -> Self:
        """The pipeline of a folder or of an embedded model, as `load`.

        Args:
            torch_dtype, dtype: of all weights, fp32 by default. tokenizer, transformer, sampler: take the place of the saved ones. Other
                keyword arguments go to the networks.
        """
        folder = resolve(pretrained_model_name_or_path)
        given = {part: kwargs.pop(part) for part in COMPONENTS if kwargs.get(part) is not None}
        return _build(cls, folder, given, kwargs)

    @property
    def conditional(self) -> bool:
        """Whether the generator knows classes; without, every entry of `classes` is None."""
        return self.transformer.conditional

    @property
    def class_names(self) -> Sequence[str]:
        """Names of the classes, or their numbers; empty for an unconditional model."""
        if not self.conditional:
            return ()
        return self.config.class_names or [f"{i:04d}" for i in range(self.transformer.num_classes)]

    def optimize(self) -> "MaskedPipeline":
        """Make decoding faster, with equal images up to rounding; the tokenizer can then no longer be saved."""
        self.tokenizer.fuse().to(memory_format=torch.channels_last)
        return self

    def check_classes(self, classes: Classes) -> list[int]:
        """Class ids of ids, names and None, which is the null class (0 if there are no classes); MgenError for anything else."""
        null = self.transformer.null_class if self.conditional else 0
        return class_ids(classes, self.class_names, null, self.conditional)

    @torch.inference_mode()
    def __call__(
        self,
        classes: Classes,
        *,
        seed: int = 0,
        indices: Sequence[int] | None = None,
        steps: int | None = None,
        guidance: float | None = None,
        sampler: ParallelSampler | None = None,
        batch_size: int | None = None,
        tokens: Tensor | None = None,
        known: Tensor | None = None,
        first_stage: tuple[Tensor, Tensor] | None = None,
        complete: bool = False,
        dtype: str = "fp32",
        output_type: str = "pil",
        progress: bool = True,
        callback: Callable[[Step], None] | None = None,
    ) -> PipelineOutput:
        """Sample one image per entry of `classes`.

        Args:
            classes: class ids or names; None is the null class, and the only entry for an unconditional model.
            seed: of the run. indices: number of each image in the run (default 0, 1, 2 …); image i depends on (seed, i) alone.
            steps, guidance: replace the sampler's own; guidance is s in u + s·(c − u), 1 is none.
            sampler: replaces the pipeline's sampler. batch_size: images at a time (default: all).
            tokens, known: ids (B, L) or vectors (B, L, C), and a bool mask (B, L) of given ones, which stay as they are.
            first_stage: given tokens of the first stage, of a generator of two, and a bool mask, likewise.
            complete: sample tokens that reach no pixel too (of Hita's tokenizer the last ones), and first-stage tokens that nothing
                reads. A callback and output_type "tokens" imply it.
            dtype: "fp32", or "bf16" or "fp16" for the generator under autocast; decoding is always in fp32.
            output_type: "pil", "tokens" (no decoding), or images (B, C, H, W): "pt" in [0, 1], "uint8", or "raw" as the decoder
                returns them, about [-1, 1]. callback: called with every Step.

        Raises:
            MgenError: class out of range, guidance without a null class, settings that do not fit.
        """
        # Longer than 60 lines since every option of a run is an argument, with its documentation; the work is the loop at the end.
        check_choice("dtype", dtype, DTYPES)
        check_callback(callback)
        options = call_options(
            seed=seed, batch_size=batch_size, complete=complete, progress=progress, output_type=output_type
        )
        ids = self.check_classes(classes)
        seeds = [image_seed(options.seed, i) for i in check_indices(indices, len(ids))]
        given, stage = self._given(tokens, known, first_stage, len(ids))
        sampler = self._sampler(sampler, steps, guidance)
        size, device = min(options.batch_size or len(ids), len(ids)), self.transformer.device
        check_batch(self, sampler, size, len(ids))
        complete = complete or callback is not None or output_type == "tokens"
        unused_tail = 0 if complete else self.tokenizer.unused_tail
        units = self.transformer.units
        guided = any(sampler.guided(units.length, units.global_tokens))  # twice as many rows
        self.transformer.optimize_layout(size * (2 if guided else 1))
        total = -(-len(ids) // size) * self._steps(sampler, unused_tail)
        parts, images = [], []
        with tqdm(total=total, unit="step", disable=not progress, desc="sampling", leave=False) as bar:
            for first in range(0, len(ids), size):
                rows = slice(first, first + size)
                run = sampler(
                    self.transformer,
                    torch.tensor(ids[rows], device=device),
                    noise=sampler.make_noise(self.transformer, seeds[rows]).to(device),
                    tokens=None if given is None else given[0][rows],
                    known=None if given is None else given[1][rows],
                    first_stage=None if stage is None else (stage[0][rows], stage[1][rows]),
                    complete_first_stage=complete,
                    unused_tail=unused_tail,
                )
                with nullcontext() if dtype == "fp32" else torch.autocast(device.type, DTYPES[dtype]):
                    for step in run:
                        bar.update()
                        if callback is not None:
                            callback(step)
                parts.append(step.tokens)
                if output_type != "tokens":
                    images.append(decode_finite(self.tokenizer, step.tokens))
        return PipelineOutput(_output(torch.cat(images), output_type) if images else None, torch.cat(parts), ids)

    def _sampler(self, sampler: ParallelSampler | None, steps: int | None, guidance: float | None) -> ParallelSampler:
        """The sampler of a call; MgenError unless it fits the generator."""
        if sampler is not None and not isinstance(sampler, ParallelSampler):
            raise MgenError(
                f"sampler is {shown(sampler)}: expected a ParallelSampler, such as pipe.sampler.override(…)"
            )
        chosen = (sampler or self.sampler).override(steps=number(steps), guidance=number(guidance))  # type: ignore[arg-type]
        chosen.check(self.transformer)
        return chosen

    def _given(
        self, tokens: Tensor | None, known: Tensor | None, first_stage: object, count: int
    ) -> list[Given | None]:
        """The given tokens of a call, of the image and of its first stage, on the generator's device."""
        found = [check_given(tokens, known, self.transformer.tokens, count), None]
        if first_stage is not None:
            if not isinstance(self.transformer, Cascade):
                raise MgenError(f"{type(self.transformer).__name__} has no first stage: leave first_stage out")
            if not isinstance(first_stage, tuple | list) or len(first_stage) != 2:
                raise MgenError(
                    f"first_stage is {shown(first_stage)}: expected its tokens and a bool mask of given ones"
                )
            names = ("first_stage[0]", "first_stage[1]")
            found[1] = check_given(first_stage[0], first_stage[1], self.transformer.first_stage_spec, count, names)
        device = self.transformer.device
        return [None if pair is None else (pair[0].to(device), pair[1].to(device)) for pair in found]

    def _steps(self, sampler: ParallelSampler, unused_tail: int) -> int:
        """Steps of one batch, for the progress bar."""
        stages = [s for s in (sampler, sampler.first_stage) if s is not None]
        skipped = unused_tail if self.transformer.capabilities.skips_tail else 0
        return sum(s.config.steps - s.config.start for s in stages) - skipped

    def save_pretrained(self, save_directory: str | Path, **kwargs: Any) -> None:
        """Write the parts and model_index.json into a folder; MgenError if it cannot be written."""
        check_writable(check_path(save_directory, "save_directory"))
        super().save_pretrained(str(save_directory), **kwargs)

    def decode(self, tokens: Tensor) -> Tensor:
        """Images (B, C, H, W) in [-1, 1] of ids (B, L) or vectors (B, L, C).

        Raises:
            MgenError: tokens of another shape or type, ids outside of the vocabulary, a decoder whose output isn't finite.
        """
        return decode_finite(self.tokenizer, check_tokens(tokens, self.tokenizer.spec)).clamp(-1, 1)


def _in_place(generator: Any) -> Any:
    """A generator that torch.compile wrapped, itself, with its passes compiled the same way: sampling doesn't call the wrapper."""
    if type(generator).__name__ != "OptimizedModule":  # whose import takes a second
        return generator
    generator._orig_mod.compile_passes(generator.dynamo_ctx)
    return generator._orig_mod


def _output(images: Tensor, output_type: str) -> Any:
    match output_type:
        case "raw":
            return images
        case "pt":
            return (images.clamp(-1, 1) + 1) / 2
        case "uint8":
            return to_uint8(images)
    return to_pil(to_uint8(images))


def decode_finite(tokenizer: Tokenizer, tokens: Tensor, grid: tuple[int, int] | None = None) -> Tensor:
    """What the decoder makes of tokens, in fp32; MgenError if it isn't finite."""
    images = tokenizer.decode(tokens, grid).float()
    if not torch.isfinite(images).all():
        raise MgenError("the decoder returned NaN or infinite pixels: the tokenizer's weights are damaged")
    return images


def load(
    name: str | Path = DEFAULT, *, device: str | torch.device = "cpu", dtype: str | torch.dtype = "fp32"
) -> MaskedPipeline:
    """The pipeline of a folder (of `save_pretrained` or `mgen convert`) or of an embedded model; MgenError if it is missing or damaged.

    Args:
        dtype: of all weights, fp32, bf16 or fp16. The option `dtype` of a call computes in bf16 or fp16 with weights in fp32.
    """
    device = check_device(device)
    return _build(MaskedPipeline, resolve(name), {}, {"dtype": dtype}).to(device)


def _build(cls: type[P], folder: Path, given: dict[str, Any], options: dict[str, Any]) -> P:
    """The pipeline of a folder, with the parts that are given; `options` of Model.from_pretrained."""
    if not (folder / INDEX).is_file():
        what, config = (
            "expected a folder written by save_pretrained, mgen train or mgen convert",
            folder / "config.json",
        )
        if config.is_file():
            name = shown(read_mapping(config).get("_class_name")).strip("'")
            what = f"it holds a {name} alone; join it with a tokenizer by mgen convert pipeline"
        raise MgenError(f"{folder} is no pipeline (model_index.json is missing): {what}")
    index = read_index(folder)
    parts = {part: given.get(part) or load_part(folder, part, index, options) for part in COMPONENTS}
    try:
        pipe = cls(**parts, class_names=index.class_names or earlier_names(folder, parts["transformer"]))
    except MgenError as error:
        raise MgenError(f"{folder / INDEX}: {error}") from error
    pipe.tokenizer.eval()
    pipe.transformer.eval()
    return pipe
