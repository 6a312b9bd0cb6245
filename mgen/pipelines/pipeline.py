"""Tokenizer + generator + sampler = images: a diffusers DiffusionPipeline, and functions to load one."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self, TypeVar

import torch
from diffusers.utils import BaseOutput
from torch import Tensor

from mgen.data.record import DataRecord, read_record
from mgen.generators import Cascade, Generator
from mgen.nn.precision import computing
from mgen.pipelines.arguments import as_list, call_options, check_tokens, chosen_sampler, given_tokens, one_of
from mgen.pipelines.classes import class_ids
from mgen.pipelines.guide import GuidedPipeline
from mgen.pipelines.habits import DiffusersPipeline
from mgen.pipelines.image_seeds import image_seeds
from mgen.pipelines.lora import LoRAPipeline
from mgen.pipelines.pixels import as_output
from mgen.pipelines.saved import COMPONENTS, INDEX, checked_names, earlier_names, load_part, read_index
from mgen.pipelines.sizes import check_batch
from mgen.pipelines.step_callbacks import OnStepEnd, StepCallbacks
from mgen.samplers import ParallelSampler, Step
from mgen.tokenizers.base import Tokenizer
from mgen.utils.compiling import compile_network
from mgen.utils.devices import check_device
from mgen.utils.errors import MgenError, check_keys, shown
from mgen.utils.hub import HUB_KEYS, take_options
from mgen.utils.modeling import check_dtype, public
from mgen.zoo import DEFAULT, resolve

P = TypeVar("P", bound="MaskedPipeline")
Classes = Sequence[int | str | None]
# Of from_pretrained, beside the parts and the options of the hub.
NETWORK_OPTIONS = ("torch_dtype", "dtype", "variant", "use_safetensors")


@dataclass
class PipelineOutput(BaseOutput):
    """images: as asked for by `output_type`; tokens: ids (B, L) or vectors (B, L, C); classes: class ids."""

    images: Any
    tokens: Tensor
    classes: list[int]


@public
class MaskedPipeline(DiffusersPipeline, LoRAPipeline, GuidedPipeline):
    """Image synthesis, class-conditional or, with a generator that knows no classes, unconditional.

        pipe = mgen.load("fmnist-maskgit")
        pipe([0, 1, 2], seed=0, num_inference_steps=8, guidance_scale=3.0).images[0].save("shirt.png")

    Args:
        tokenizer: decodes tokens to images. transformer: the generator, which predicts tokens. sampler: decides how.
        class_names: names of the classes, for captions, as a list or as model_index.json has them, {"0": …, "1": …}; or "imagenet" for
            those of ImageNet-1k.
        data: what the model was trained on, a DataRecord or its entries; saved in model_index.json.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        transformer: Generator | Cascade,
        sampler: ParallelSampler,
        class_names: Sequence[str] | Mapping[str, str] | None = None,
        data: DataRecord | Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        transformer = _in_place(transformer)
        for part, kind in ((tokenizer, Tokenizer), (transformer, Generator | Cascade), (sampler, ParallelSampler)):
            if not isinstance(part, kind):
                raise MgenError(
                    f"a pipeline is made of a Tokenizer, a Generator or Cascade and a ParallelSampler, not {shown(part)}"
                )
        tokenizer.spec.require(transformer.tokens, by=type(transformer).__name__)
        self.register_modules(tokenizer=tokenizer, transformer=transformer, sampler=sampler)
        self.register_to_config(class_names=checked_names(class_names, transformer.num_classes))
        self.set_data(read_record(data, "data"))
        self.tokenizer: Tokenizer
        self.transformer: Generator | Cascade
        self.sampler: ParallelSampler

    def __setattr__(self, name: str, value: object) -> None:
        super().__setattr__(name, _in_place(value) if name == "transformer" else value)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **kwargs: Any) -> Self:
        """The pipeline of a folder, of an embedded model, or of a model on the hub, as `load`.

        Args:
            torch_dtype, dtype: of all weights, fp32 by default. variant: of the weight files, such as "fp16".
            tokenizer, transformer, sampler: take the place of the saved ones.
            revision, token, cache_dir, local_files_only, force_download: of a model on the hub. Arguments that are None count as absent.
        """
        options = {name: value for name, value in kwargs.items() if value is not None}
        check_keys(options, {*COMPONENTS, *NETWORK_OPTIONS, *HUB_KEYS}, "from_pretrained ")
        given = {part: options.pop(part) for part in COMPONENTS if part in options}
        hub = take_options(options)
        folder = resolve(pretrained_model_name_or_path, hub=hub, variant=options.get("variant"))
        return _build(cls, folder, given, options)

    @property
    def data(self) -> DataRecord | None:
        """What the model was trained on; None if that is not known, as for models of earlier versions and official checkpoints."""
        return self._data

    def set_data(self, data: DataRecord | None) -> None:
        """Note what the model was trained on."""
        self._data = data
        self.register_to_config(data=None if data is None else asdict(data))

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

    def compile(self, mode: str = "regional", **options: Any) -> "MaskedPipeline":
        """Compile the generator in place, and the guide if there is one: later batches of a long run are faster, the first one is slow.

        Args:
            mode: "regional", the repeated blocks of trunk and head, each kind once; or "full", whole passes of trunk and head.
            options: of torch.compile, such as dynamic=True.

        Raises:
            MgenError: unknown mode, or this machine can't compile.
        """
        for network in filter(None, (self.transformer, self.guide)):
            compile_network(network, mode, **options)
        return self

    def check_classes(self, classes: object, name: str = "classes") -> list[int]:
        """Class ids of ids, names and None, which is the null class (0 if there are no classes); MgenError for anything else.

        Args:
            classes: one for each image. name: of the argument, for error messages.
        """
        null = self.transformer.null_class if self.conditional else 0
        return class_ids(classes, self.class_names, null, self.conditional, name)

    @torch.inference_mode()
    def __call__(
        self,
        class_labels: Classes | int | str | None = None,
        *,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        num_images_per_prompt: int = 1,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: OnStepEnd | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("tokens",),
        steps: int | None = None,
        guidance: float | None = None,
        seed: int | None = None,
        indices: Sequence[int] | None = None,
        sampler: ParallelSampler | None = None,
        guide: GuidedPipeline | Generator | Cascade | None = None,
        batch_size: int | None = None,
        tokens: Tensor | None = None,
        known: Tensor | None = None,
        first_stage: tuple[Tensor, Tensor] | None = None,
        complete: bool = False,
        dtype: str | torch.dtype = "fp32",
        progress: bool = True,
        callback: Callable[[Step], None] | None = None,
    ) -> PipelineOutput:
        """Sample images: `num_images_per_prompt` for every entry of `class_labels`. docs/diffusers.md shows each habit of diffusers.

        Args:
            class_labels: class ids or names; None is the null class, and the only entry for an unconditional model. Or one of them.
            num_inference_steps, guidance_scale: replace the sampler's own; guidance is s in u + s·(c − u), 1 is none. Their short
                names, which the sampler's settings and the command line have, are steps and guidance.
            seed: of the run, 0 by default. generator: in its place a torch.Generator that the seed is drawn from, or one per image.
            indices: number of each image in the run (default 0, 1, 2 …); image i depends on (seed, i) alone.
            sampler: replaces the pipeline's sampler. guide: replaces the pipeline's guide: another model of the same tokens, or its
                pipeline, that takes the place of the null class.
            batch_size: images at a time (default: all).
            tokens, known: ids (B, L) or vectors (B, L, C), and a bool mask (B, L) of given ones, which stay as they are.
            first_stage: given tokens of the first stage, of a generator of two, and a bool mask, likewise.
            complete: sample tokens that reach no pixel too (of Hita's tokenizer the last ones), and first-stage tokens that nothing
                reads. A callback and output_type "tokens" imply it.
            dtype: "fp32", or "bf16" or "fp16" for the generator, see mgen.nn.precision; decoding is always in fp32.
            output_type: "pil"; images in [0, 1], "np" (B, H, W, C) or "pt" (B, C, H, W); (B, C, H, W) "uint8", or "raw" as the decoder
                returns them, about [-1, 1]; "latent", the tokens in the place of images, or "tokens" without images.
            return_dict: False: a tuple of images, tokens and classes.
            callback: called with every Step. callback_on_step_end: with (pipe, step_index, timestep, callback_kwargs), see StepCallbacks;
                it may set pipe._interrupt, which ends the run after this step with the images as they are.

        Raises:
            MgenError: class out of range, guidance without a null class, settings that do not fit.
        """
        # Longer than 60 lines since every option of a run is an argument, with its documentation; the work is the loop at the end.
        precision = check_dtype(dtype)
        callbacks = StepCallbacks(
            callback=callback, on_step_end=callback_on_step_end, tensors=callback_on_step_end_tensor_inputs
        )
        options = call_options(
            seed=seed,
            batch_size=batch_size,
            num_images_per_prompt=num_images_per_prompt,
            complete=complete,
            progress=progress,
            return_dict=return_dict,
            output_type=output_type,
        )
        labels = self.check_classes(as_list(class_labels, self.conditional), "class_labels")
        ids = [label for label in labels for _ in range(options.num_images_per_prompt)]
        net = self.sampled(guide, ids)
        given, stage = given_tokens(self.transformer, tokens, known, first_stage, len(ids))
        sampler = chosen_sampler(
            net,
            self.sampler,
            sampler,
            steps=one_of(steps, "steps", num_inference_steps, "num_inference_steps"),
            guidance=one_of(guidance, "guidance", guidance_scale, "guidance_scale"),
        )
        size, device = min(options.batch_size or len(ids), len(ids)), self.transformer.device
        check_batch(self, sampler, size, len(ids))
        seeds = image_seeds(options.seed, generator, indices, len(ids))
        decoded = output_type not in ("tokens", "latent")
        complete = complete or bool(callbacks) or not decoded
        unused_tail = 0 if complete else self.tokenizer.unused_tail
        guided = any(sampler.guided(net.units.length, net.units.global_tokens))  # twice as many rows
        net.optimize_layout(size, guided=guided)
        count = self._steps(sampler, unused_tail)
        parts: list[Tensor] = []
        images: list[Tensor] = []
        self._interrupt = False
        with self.progress_bar(total=-(-len(ids) // size) * count, disable=not progress) as bar:
            for first in range(0, len(ids), size):
                rows = slice(first, first + size)
                run = sampler(
                    net,
                    torch.tensor(ids[rows], device=device),
                    noise=sampler.make_noise(net, seeds[rows]).to(device),
                    tokens=None if given is None else given[0][rows],
                    known=None if given is None else given[1][rows],
                    first_stage=None if stage is None else (stage[0][rows], stage[1][rows]),
                    complete_first_stage=complete,
                    unused_tail=unused_tail,
                )
                with computing(net, precision, device):
                    for index, step in enumerate(run):
                        bar.update()
                        callbacks(self, step, index, count - 1 - index)
                        if self._interrupt and not step.first_stage:  # whose tokens make no image
                            break
                parts.append(self._draft(step) if self._interrupt else step.tokens)
                if decoded:
                    images.append(decode_finite(self.tokenizer, parts[-1]))
                if self._interrupt:
                    break
        made = torch.cat(parts)
        shown_as = as_output(torch.cat(images), output_type) if decoded else made if output_type == "latent" else None
        output = PipelineOutput(shown_as, made, ids[: len(made)])
        return output if options.return_dict else (output.images, output.tokens, output.classes)  # type: ignore[return-value]

    def _draft(self, step: Step) -> Tensor:
        """The tokens of a run that ends early: unknown ones as they were drawn last."""
        most = self.transformer.tokens.vocab_size
        return step.draft if most is None else step.draft.clamp(max=most - 1)  # a mask, where the head can draw one

    def _steps(self, sampler: ParallelSampler, unused_tail: int) -> int:
        """Steps of one batch."""
        stages = [s for s in (sampler, sampler.first_stage) if s is not None]
        skipped = unused_tail if self.transformer.capabilities.skips_tail else 0
        return sum(s.steps_shown for s in stages) - skipped

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


def decode_finite(tokenizer: Tokenizer, tokens: Tensor, grid: tuple[int, int] | None = None) -> Tensor:
    """What the decoder makes of tokens, in fp32; MgenError if it isn't finite."""
    images = tokenizer.decode(tokens, grid).float()
    if not torch.isfinite(images).all():
        raise MgenError("the decoder returned NaN or infinite pixels: the tokenizer's weights are damaged")
    return images


def load(
    name: str | Path = DEFAULT,
    *,
    device: str | torch.device = "cpu",
    dtype: str | torch.dtype = "fp32",
    **hub: Any,
) -> MaskedPipeline:
    """The pipeline of a folder (of `save_pretrained` or `mgen convert`), of an embedded model, or of a model on the hub.

    Args:
        name: path of the folder, name of the embedded model, or "owner/name".
        dtype: of all weights, fp32, bf16 or fp16. The option `dtype` of a call computes in bf16 or fp16 with weights in fp32.
        hub: revision, token, cache_dir, local_files_only, force_download.

    Raises:
        MgenError: the model is missing or damaged.
    """
    device = check_device(device)
    check_keys(hub, HUB_KEYS, "load ")
    return _build(MaskedPipeline, resolve(name, hub=take_options(hub)), {}, {"dtype": dtype}).to(device)


def _build(cls: type[P], folder: Path, given: dict[str, Any], options: dict[str, Any]) -> P:
    """The pipeline of a folder, with the parts that are given; `options` of Model.from_pretrained."""
    index = read_index(folder)
    parts = {part: given[part] if part in given else load_part(folder, part, index, options) for part in COMPONENTS}
    try:
        names = index.class_names or earlier_names(folder, parts["transformer"])
        pipe = cls(**parts, class_names=names, data=index.data)
    except MgenError as error:
        raise MgenError(f"{folder / INDEX}: {error}") from error
    pipe.tokenizer.eval()
    pipe.transformer.eval()
    return pipe
