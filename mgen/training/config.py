"""Settings of a training run. Every key of a file in configs/train/ is a field of these classes, which say what its values may be."""

import json
from dataclasses import field, fields
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias

from pydantic import AfterValidator, BeforeValidator, Field

from mgen.utils.compiling import Compile
from mgen.utils.errors import MgenError, check_choice, shown
from mgen.utils.schema import PathText, Positive, PositiveShare, Rate, Share, Size, Text, build, path_text, schema
from mgen.utils.tar_paths import PIPE

if TYPE_CHECKING:
    from mgen.utils.modeling import Model

MOST_STEPS = 10**9
POLYNOMIAL_END = 1e-7  # the learning rate that diffusers' polynomial schedule falls to
Steps = Annotated[int, Field(ge=1, le=MOST_STEPS)]
Every = Annotated[int, Field(ge=0, le=MOST_STEPS)]  # steps between events; 0: only at the end
LearningRate = Annotated[float, Field(ge=0, le=1000)]
Weight = Annotated[float, Field(ge=0, le=1e6)]  # of a term of a loss
Betas: TypeAlias = tuple[Rate, Rate]
# A path, or a command that writes tars, which stands as it is.
DataPath = Annotated[
    str, Field(min_length=1), AfterValidator(lambda value: value if value.startswith(PIPE) else path_text(value))
]
Shape = Annotated[float, Field(ge=1e-6, le=1e6)]  # of a beta distribution
# `off` is false in YAML, and `on` is true.
CompileMode = Annotated[
    Compile,
    BeforeValidator(
        lambda value: {False: "off", True: "regional"}.get(value, value) if isinstance(value, bool) else value
    ),
]


@schema
class DataConfig:
    kind: Literal["fmnist", "folder", "cache", "webdataset"] = "fmnist"
    # folder; of a webdataset also tars as in mgen.utils.tar_paths; None: Fashion-MNIST is looked for in its usual places, or downloaded
    path: DataPath | None = None
    val_path: DataPath | None = (
        None  # the same of the validation data; None: Fashion-MNIST's test split, else no validation
    )
    image_size: Size = 256  # pixels, for "folder" and "webdataset"
    channels: Literal[1, 3] = 3  # for these: 3 RGB, 1 gray
    held_out: Rate = 0.0  # for "folder": share of each class that is kept for validation, instead of a val_path
    classes: Literal["folders", "none"] = "folders"  # "none": images in no class folders, which all are of one class
    num_classes: Annotated[int, Field(ge=1, le=10**6)] | None = None  # of a webdataset; None: largest label + 1
    index: PathText | None = None  # folder of the indexes of a webdataset; None: beside its tars
    # Of images: "skip" leaves out samples without a valid label; the next image takes the place of one that can't be read
    on_error: Literal["raise", "skip"] = "raise"
    keep: bool = False  # for "folder": keep the images in memory once they are read (with workers, in each of them)
    flip: bool = False  # horizontal flips, each with probability 1/2
    shift: Annotated[int, Field(ge=0, le=2**20)] = 0  # random shifts by up to this many pixels in both directions
    workers: Annotated[int, Field(ge=0, le=256)] = 0  # loader processes
    # "full": each epoch is a permutation of all images. "shards": shards are read one after another in a random order, and images are
    # shuffled within `buffer` of them; for caches and tars that are too large, or lie too far away, for reads in any order.
    shuffle: Literal["full", "shards"] = "full"
    buffer: Annotated[int, Field(ge=1, le=2**40)] = 65536  # images, of all streams together
    streams: Annotated[int, Field(ge=1, le=2**16)] = 1  # sequences of shards whose images make up a batch

    def __post_init__(self) -> None:
        if self.kind != "webdataset" and (self.num_classes is not None or self.index is not None):
            raise MgenError(f"num_classes and index are for kind=webdataset, this is {self.kind}: leave them out")
        if self.num_classes is not None and self.classes == "none":
            raise MgenError(
                f"num_classes is {self.num_classes}, but with classes=none all images are of one class: leave one of them out"
            )
        if self.kind == "cache":
            self._check_tokens()
        if self.held_out and self.kind == "fmnist":
            raise MgenError(
                f"held_out is {self.held_out:g}, but Fashion-MNIST has a test split for validation: leave it out, or set held_out=0"
            )
        if self.held_out and self.val_path is not None:
            raise MgenError(
                f"held_out is {self.held_out:g}, but val_path has the images for validation: leave one of them out, or set held_out=0"
            )
        if self.on_error == "skip" and self.kind in ("fmnist", "cache"):
            raise MgenError(
                f"on_error=skip is for images in files (kind=folder, webdataset), this is {self.kind}: leave it out; "
                "mgen cache has --on-error"
            )
        if self.kind == "webdataset" and self.shuffle == "full" and (self.path or "").startswith(PIPE):
            raise MgenError("path has a command (pipe:…), whose output is read from front to back: set shuffle=shards")
        if self.shuffle == "full" and (self.buffer, self.streams) != (65536, 1):
            raise MgenError("buffer and streams are for shuffle=shards: set that too, or leave them out")

    def _check_tokens(self) -> None:
        """Raise MgenError for a setting of images, which tokens in a cache can't follow any more."""
        defaults = {one.name: one.default for one in fields(self)}
        for name, kinds in OF_IMAGES.items():
            if (given := getattr(self, name)) != defaults[name]:
                default = json.dumps(defaults[name]).strip('"')
                raise MgenError(
                    f"{name} is {shown(given)}, but it is for kind={kinds}, and a cache holds tokens: leave it out, "
                    f"or set {name}={default}"
                )


# Settings of images that have no effect on a cache of tokens, and the kinds of data that they are for.
OF_IMAGES = {
    "image_size": "folder or webdataset",
    "channels": "folder or webdataset",
    "classes": "folder or webdataset",
    "keep": "folder",
    "shift": "fmnist, folder or webdataset",
}


def without_unused(data: dict[str, Any]) -> dict[str, Any]:
    """A `data` section without the settings of images that its kind of data or its val_path leaves no use for.

    Earlier versions took them without a word, so that checkpoints may hold them.
    """
    unused = set(OF_IMAGES) if data.get("kind") == "cache" else set()
    if data.get("val_path") is not None or data.get("kind", "fmnist") == "fmnist":
        unused.add("held_out")
    return {key: value for key, value in data.items() if key not in unused}


@schema
class OptimConfig:
    lr: LearningRate = 1e-4
    betas: Betas = (0.9, 0.999)
    eps: Annotated[float, Field(ge=1e-30, le=1)] = 1e-8
    weight_decay: Weight = 0.0
    # polynomial: a line as linear, but down to 1e-7 instead of to 0
    schedule: Literal["constant", "constant_with_warmup", "linear", "cosine", "cosine_with_restarts", "polynomial"] = (
        "constant"
    )
    warmup: Every = 0  # steps of linear warm-up
    hold: Share = 0.0  # share of the run up to which the learning rate stays, before the schedule falls
    least_lr: LearningRate = 0.0  # to which the schedule falls after the warm-up instead of to 0
    clip: Positive | None = None  # largest gradient norm; None: no clipping
    decay_all: bool = True  # False: no weight decay on vectors (biases, norms)
    no_decay: tuple[Text, ...] = ()  # no weight decay on parameters whose names start with one of these
    freeze: tuple[Text, ...] = ()  # parameters whose names start with one of these are not trained

    def __post_init__(self) -> None:
        if self.least_lr > self.lr:
            raise MgenError(
                f"least_lr is {self.least_lr:g}, lr {self.lr:g}: the schedule falls from lr to least_lr, at most lr"
            )
        if self.schedule.startswith("constant") and (self.hold or self.least_lr):
            raise MgenError(
                f"hold and least_lr are of a falling schedule, {self.schedule} is none: choose another, such as cosine, or set them to 0"
            )
        if self.schedule == "polynomial" and self.lr <= POLYNOMIAL_END:
            raise MgenError(
                f"lr is {self.lr:g}, but the schedule polynomial falls to {POLYNOMIAL_END:g}: give a larger lr, or set schedule to linear, "
                "which falls to 0"
            )


@schema
class EMAConfig:
    decay: Share = 0.9999
    warmup: bool = (
        True  # the decay rises as (1 + t) / (10 + t) to `decay`; False: it is `decay` from the second step on
    )


# The trackers of accelerate.
Tracker = Literal["tensorboard", "wandb", "trackio", "aim", "clearml", "comet_ml", "dvclive", "mlflow", "swanlab"]


@schema
class LogConfig:
    every: Steps = 50  # steps between lines of metrics.jsonl
    evaluate_every: Every = 0  # steps between evaluations on the validation data; 0: only at the end
    preview_every: Every = 0  # steps between sample grids from raw and EMA weights; 0: only at the end
    checkpoint_every: Every = 1000  # steps between checkpoints; 0: only at the end
    export_every: Every = 0  # steps between exports of OUTPUT/model, ready for mgen sample; 0: only at the end
    keep: Annotated[int, Field(ge=1)] = (
        2  # how many checkpoints are kept; older ones are removed once a new one is complete
    )
    tensorboard: bool = True  # if the package is installed, and there is no list of `trackers`
    trackers: tuple[Tracker, ...] | None = None  # beside metrics.jsonl; None: TensorBoard, see above
    project: Text = "mgen"  # in which trackers put the run


@schema
class MaskConfig:
    """Which tokens are masked: the distribution of r, the share of masked tokens, and how r becomes a mask."""

    distribution: Literal["cosine", "arccos", "beta", "truncated-gaussian", "uniform", "masked-diffusion"] = "cosine"
    alpha: Shape = 12.0  # beta: AutoNAT's Beta(12, 3)
    beta: Shape = 3.0
    mean: Annotated[float, Field(ge=-100, le=100)] = 1.0  # truncated Gaussian: MAR's N(1, 0.25) cut to [0.7, 1]
    std: Annotated[float, Field(ge=1e-6, le=1e6)] = 0.25
    low: Share = 0.7
    high: Share = 1.0
    # Masked diffusion: r = γ(p) at p = 0.999 max(t, clamp) + 0.001 for a uniform time t (eMIGM: exp5, clamped at 0.2).
    curve: Literal["linear", "cosine", "sqrt", "exp5", "log5"] = "exp5"
    clamp: Share = 0.0
    weighted: bool = False  # the loss of each image times γ'(p) / γ(p), the bound of masked diffusion
    per: Literal["sample", "batch"] = "sample"  # r for each image, or one for the whole batch (MAR)
    # How length · r becomes a number of masked tokens; "bernoulli": each token is masked with probability r;
    # "binomial": as many tokens as that would mask, drawn again (with r) if they are fewer than `fewest`; with per: batch one number for
    # all images (eMIGM).
    rounding: Literal["round", "ceil", "floor", "bernoulli", "binomial"] = "round"
    fewest: Annotated[int, Field(ge=1)] = 2
    visible: Annotated[int, Field(ge=0)] = 0  # at least this many tokens stay visible
    # For tokenizers with global tokens: in this share of the images r applies to the global tokens and the whole grid is
    # masked; in the others all global tokens are visible and r applies to the grid, as in the two phases of sampling.
    # None: r applies to all tokens together.
    global_share: Share | None = 0.5

    def __post_init__(self) -> None:
        if not self.low < self.high:
            raise MgenError(f"low is {self.low}, high {self.high}: low must lie below high")
        if self.weighted and self.distribution != "masked-diffusion":
            raise MgenError(
                f"weighted is true, but the distribution {self.distribution} has no time to weight: use masked-diffusion"
            )


@schema
class PermutationConfig:
    """In which order the tokens of an image are predicted, of trunks that take any (RAR, arXiv 2411.00776, §3.3).

    The share of images in a random order is 1 up to step `start` and falls linearly to 0 at step `end`; the others are predicted as they
    stand. end None: it is 1 in all steps.
    """

    start: Every = 0
    end: Every | None = None

    def __post_init__(self) -> None:
        if self.end is not None and self.start > self.end:
            raise MgenError(
                f"start is {self.start}, end {self.end}: the share falls from start on to end, give start ≤ end"
            )

    def share(self, step: int) -> float:
        """Probability that an image is permuted in `step`."""
        if self.end is None:
            return 1.0
        return min(1.0, max(0, self.end - step) / max(1, self.end - self.start))


@schema
class FirstStageConfig:
    """Training of a cascade, whose first stage samples the tokens of a smaller image (Hi-MAR)."""

    mask: MaskConfig = field(
        default_factory=lambda: MaskConfig(distribution="truncated-gaussian", per="batch", rounding="ceil")
    )
    keep: Share = 0.25  # share of the images whose second stage is trained with features of the first
    warmup: Every = 0  # optimizer steps over which that share rises from 0 (published: those of 100 epochs)
    weight: Weight = 0.4  # of the first stage's loss: 64 of 320 positions, times 2
    token_weight: Weight = 0.6  # of the second stage's loss: 256 of 320 positions, times 0.75


@schema
class GeneratorObjectiveConfig:
    mask: MaskConfig = field(default_factory=MaskConfig)
    permutation: PermutationConfig = field(default_factory=PermutationConfig)
    first_stage: FirstStageConfig = field(default_factory=FirstStageConfig)
    label_drop: Share = 0.1  # probability that the class is replaced by the null class
    label_smoothing: Share = 0.1  # of a cross entropy
    diffusion_batch_mul: Annotated[int, Field(ge=1, le=1024)] = (
        4  # copies of each masked token in the loss of a diffusion head, each with its own noise
    )
    head_tokens: Literal["masked", "all"] = "masked"  # "all": a diffusion head sees visible tokens too, as published
    loss_tokens: Literal["masked", "all"] = "masked"  # tokens in the loss; Halton-MaskGIT is trained on all
    known_weight: PositiveShare = 1.0  # with "all", weight of a visible token against 1 of a masked one (TiTok: 0.1)
    reuse: Share = (
        0.0  # share of steps that continue from a simulated earlier one, for models that carry features (ENAT)
    )
    reuse_label_drop: Share = 0.0  # probability that the label is dropped in the step, though not in the earlier one
    tokenizer: PathText | None = None  # folder or name; needed to train on images, and to sample grids
    image_size: Size | None = (
        None  # side of the tokenizer's images in pixels, at which its weights are used; None: its own
    )
    vision_weights: PathText | None = None  # file of the tokenizer's frozen vision encoder (Hita), to train on images
    sampler: dict[str, Any] = field(default_factory=dict)  # settings of the sample grids and of the exported pipeline


@schema
class CorruptionConfig:
    """What happens to a tokenizer's latents in training, though not in validation (l-DeTok); see Tokenizer.corruption."""

    noise: Weight = (
        0.0  # γ, the standard deviation of the noise at level 1; each image has its own level, uniform in [0, 1]
    )
    form: Literal["interpolated", "additive"] = "interpolated"  # (1 − t)·z + t·γ·ε, or z + t·γ·ε
    mask: Share = 0.0  # M: in each batch the encoder does not see a share max(0, U(−0.1, M)) of the patches


@schema
class TokenizerObjectiveConfig:
    l2: Weight = 1.0
    l1: Weight = 0.0
    codebook: Weight = 1.0
    commitment: Weight = 0.25
    entropy: Weight = 0.0
    kl: Weight = 2e-8  # per latent number; LDM's 1e-6 is for sums: at f16 with 16 channels this is 1e-6 · 4096 / 196608
    perceptual: Weight = 0.0
    perceptual_model: PathText | None = None  # folder of an ImageClassifier, or a file of torchvision VGG16 weights
    logits: Weight = 0.0  # of the squared difference of a classifier's logits (l-DeTok)
    logits_model: PathText | None = None  # file of torchvision's ConvNeXt-S weights
    adversarial: Weight = 0.0
    adversarial_start: Every = 0  # step from which the discriminator takes part
    # "half-hinge": the discriminator's hinge loss times 1/2 (LlamaGen); "…-softplus": and the tokenizer's loss is non-saturating (Hita)
    adversarial_loss: Literal["hinge", "half-hinge", "half-hinge-softplus", "non-saturating"] = "non-saturating"
    # What the tokenizer minimizes: "mean" of −logits (the form of the hinge), or of "softplus" of −logits; None: see adversarial_loss
    adversarial_form: Literal["mean", "softplus"] | None = None
    # Scale the term so that its gradient at the last layer is as large as that of the pixel and perceptual terms (VQGAN, LlamaGen)
    adversarial_adaptive: bool = False
    r1: Weight = 0.0  # weight of the R1 penalty on real images (discriminator "patch")
    discriminator: Literal["patch", "dino"] = "patch"  # "dino": heads on a frozen DINO, for Hita-U
    discriminator_weights: PathText | None = None  # "dino": file of the frozen DINO, dino_deitsmall16_pretrain.pth
    discriminator_channels: Annotated[int, Field(ge=1, le=4096)] = 64  # "patch", like the next two
    discriminator_layers: Annotated[int, Field(ge=1, le=10)] = 3  # how often the discriminator halves the side
    discriminator_norm: Literal["group", "batch"] = "group"  # "batch": the published network
    discriminator_unit_range: bool = False  # "patch": it sees images in [0, 1] instead of [-1, 1]
    discriminator_weight: Weight = 1.0  # factor of the discriminator's loss
    discriminator_lr: LearningRate = 1e-4
    discriminator_betas: Betas = (0.0, 0.99)
    corruption: CorruptionConfig = field(default_factory=CorruptionConfig)  # of the latents in training (l-DeTok)
    proxy: Weight = 1.0  # of the ids that a TiTok predicts in the first of two stages
    proxy_tokenizer: PathText | None = (
        None  # the VQGAN that makes these ids; they take the place of the losses of pixels
    )
    vision: Weight = 1.0  # of the vision tokens that Hita-U predicts from the global tokens
    vision_weights: PathText | None = None  # file of the frozen vision encoder, for a Hita tokenizer that needs one

    def __post_init__(self) -> None:
        if self.adversarial_adaptive and not self.adversarial:
            raise MgenError(
                "adversarial_adaptive is true, but adversarial is 0: give the term a weight, or leave adversarial_adaptive out"
            )
        if self.proxy_tokenizer is not None and (self.perceptual or self.logits or self.adversarial):
            raise MgenError(
                "proxy_tokenizer takes the place of the losses of pixels: set perceptual, logits and adversarial to 0, or leave it out"
            )
        if self.discriminator == "patch" and self.discriminator_norm == "group" and self.discriminator_channels % 4:
            raise MgenError(
                f"discriminator_channels is {self.discriminator_channels}: group norm needs a multiple of 4"
            )


@schema
class ClassifierObjectiveConfig:
    label_smoothing: Share = 0.02


@schema
class LoRAConfig:
    """Low-rank adapters of the trunk: they alone are trained, and tables with rows that `init` could not fill."""

    rank: Size = 8
    alpha: Positive = 16.0  # the product of an adapter's matrices is scaled by alpha / rank
    targets: tuple[
        Text, ...
    ] = ()  # ends of the names of linear layers, such as attn.qkv; none: those of attention and MLP
    dropout: Rate = 0.0  # of an adapter's input


ObjectiveConfig: TypeAlias = GeneratorObjectiveConfig | TokenizerObjectiveConfig | ClassifierObjectiveConfig
OBJECTIVES: dict[str, type[ObjectiveConfig]] = {
    "generator": GeneratorObjectiveConfig,
    "tokenizer": TokenizerObjectiveConfig,
    "classifier": ClassifierObjectiveConfig,
}


@schema(frozen=False)
class TrainConfig:
    task: Literal["generator", "tokenizer", "classifier"]
    output: PathText  # folder of logs, checkpoints and the finished model
    steps: Steps  # optimizer steps
    model: Any  # a name of configs/models or a mapping, see `build_model`
    batch_size: Annotated[int, Field(ge=1)] = 64  # images per optimizer step, over all processes and accumulation steps
    accumulate: Annotated[int, Field(ge=1)] = 1  # pieces into which each process cuts its share of the batch
    seed: int = 0
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    compile: CompileMode = (
        "off"  # torch.compile of a generator: its repeated blocks ("regional"), or whole passes ("full")
    )
    gradient_checkpointing: bool = (
        False  # of a generator: compute blocks again in the backward pass; less memory, about a third more time
    )
    # Where the noise of each image (of a diffusion or flow head, of a posterior) is drawn, from a seed of its own. "host": the numbers are
    # the same on every device; "device": a GPU draws them itself, the same for any number of processes, and not those of a CPU.
    draws: Literal["host", "device"] = "host"
    resume: bool = True  # continue from the newest checkpoint in `output`
    init: PathText | None = None  # weights to start from: a name of `mgen zoo`, or a folder
    lora: LoRAConfig | None = None  # of a generator with `init`: train adapters alone; {} for the defaults
    processes: Annotated[int, Field(ge=1)] | None = None  # raise an error unless exactly this many processes take part
    # What each process holds of a generator: all of it ("ddp"), its part of weights, gradients, moments and averages ("fsdp"), or a part
    # within groups of hsdp_shards processes ("hsdp"; None: those of a node)
    parallel: Literal["ddp", "fsdp", "hsdp"] = "ddp"
    hsdp_shards: Size | None = None
    data: DataConfig = field(default_factory=DataConfig)
    objective: ObjectiveConfig = field(default_factory=GeneratorObjectiveConfig)  # that of the task
    optim: OptimConfig = field(default_factory=OptimConfig)
    ema: EMAConfig | None = field(default_factory=EMAConfig)
    log: LogConfig = field(default_factory=LogConfig)


GENERATORS = "A generator has no class: give a name of configs/models, such as maskgit-r-l, or its sections (tokens, trunk, head, …)"


def train_config(data: dict[str, Any]) -> TrainConfig:
    """A checked TrainConfig; which keys are allowed in `objective` depends on the task."""
    if not isinstance(data, dict):
        raise MgenError(f"the settings are {shown(data)}: expected a mapping, as in the files of configs/train")
    objective = {} if data.get("objective") is None else data["objective"]
    if not isinstance(objective, dict):
        raise MgenError(f"'objective' is {shown(objective)}: expected a mapping")
    config = build(TrainConfig, {key: value for key, value in data.items() if key != "objective"})
    if config.lora is not None and config.task != "generator":
        raise MgenError(f"lora is for task generator, this is {config.task}: leave lora out")
    if config.draws != "host" and config.task != "generator":
        raise MgenError(f"draws=device is for task generator, this is {config.task}: leave draws out")
    if config.compile != "off" and config.task != "generator":
        raise MgenError(f"compile is for task generator, this is {config.task}: leave compile off")
    if config.gradient_checkpointing and config.task != "generator":
        raise MgenError(
            f"gradient_checkpointing is for task generator, this is {config.task}: leave it out, or raise accumulate to save memory"
        )
    if config.lora is not None and config.init is None:
        raise MgenError("lora needs init: adapters are trained on a model's weights, give its name or folder")
    config.objective = build(OBJECTIVES[config.task], objective, "objective.")
    if config.task != "generator" and (not isinstance(config.model, dict) or "class" not in config.model):
        raise MgenError(
            "missing key 'model.class': give the name of a tokenizer or classifier, such as VQGAN or ImageClassifier"
        )
    return config


def build_model(settings: str | dict[str, Any], where: str = "model.") -> "Model":
    """The model that a `model:` section describes.

    Of a generator a name of configs/models, a mapping with `name` and overrides, or all its sections; of a tokenizer or classifier
    `class`, optionally `size` (a row of the class's table), then constructor arguments.
    """
    from mgen.generators import Cascade, Generator
    from mgen.generators.build import build_model as build_generator
    from mgen.generators.presets import named_config
    from mgen.utils.modeling import (  # diffusers, which reading settings can do without
        check_keys,
        constructor_keys,
        saved_class,
    )

    if not isinstance(settings, dict) or "class" not in settings:
        return build_generator(named_config(settings, where.rstrip(".") or "model"), where)
    rest = {key: value for key, value in settings.items() if key not in ("class", "size")}
    try:
        cls = saved_class(settings["class"], f"{where}class")
    except MgenError as error:
        raise MgenError(f"{error}. {GENERATORS}") from error
    if issubclass(cls, Generator | Cascade):
        raise MgenError(f"{where}class is {settings['class']!r}, but is for tokenizers and classifiers. {GENERATORS}")
    sizes: dict[str, dict[str, Any]] = getattr(cls, "SIZES", {})
    size = settings.get("size")
    if size is not None and not sizes:
        raise MgenError(f"{where}size is {shown(size)}, but {cls.__name__} has no named sizes: leave it out")
    base = sizes[check_choice(f"{where}size", size, sizes)] if size is not None else {}
    check_keys(rest, constructor_keys(cls), where)
    try:
        return cls(**{**base, **rest})
    except (TypeError, ValueError) as error:
        raise MgenError(f"{where.rstrip('.') or cls.__name__}: {error}") from error
