"""Settings of a training run. Every key of a file in configs/train/ is a field here; the defaults stand beside it."""

import math
from dataclasses import dataclass, field
from typing import Any, Literal

from mgen.utils.config import build
from mgen.utils.errors import MgenError, check_choice


@dataclass(kw_only=True)
class DataConfig:
    kind: Literal["fmnist", "folder", "cache"] = "fmnist"
    path: str | None = None  # folder; None lets Fashion-MNIST find itself
    val_path: str | None = None  # folder or cache of the validation data; None: Fashion-MNIST's test split, else none
    image_size: int = 256  # pixels, for "folder"
    channels: int = 3  # for "folder": 3 RGB, 1 grey
    flip: bool = False  # horizontal flips, each with probability 1/2
    shift: int = 0  # random shift by up to this many pixels in both directions
    workers: int = 0  # loader processes, for "folder"


@dataclass(kw_only=True)
class OptimConfig:
    lr: float = 1e-4
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.0
    schedule: Literal["constant", "constant_with_warmup", "linear", "cosine", "cosine_with_restarts", "polynomial"] = (
        "constant"
    )
    warmup: int = 0  # steps of linear warm-up
    clip: float | None = None  # largest gradient norm; None leaves gradients as they are
    decay_all: bool = True  # False: no weight decay on vectors (biases, norms)
    no_decay: tuple[str, ...] = ()  # nor on parameters whose names start with one of these
    freeze: tuple[str, ...] = ()  # parameters whose names start with one of these stay as they are


@dataclass(kw_only=True)
class EMAConfig:
    decay: float = 0.9999
    warmup: bool = True  # decay rises as (1 + t) / (10 + t) up to `decay`; False: `decay` from the second step on


@dataclass(kw_only=True)
class LogConfig:
    every: int = 50  # steps between lines of metrics.jsonl
    evaluate_every: int = 0  # steps between measurements on the validation data; 0: only at the end
    preview_every: int = 0  # steps between sample grids from raw and EMA weights; 0: only at the end
    checkpoint_every: int = 1000
    export_every: int = 0  # steps between writings of OUTPUT/model, ready for mgen sample; 0: only at the end
    keep: int = 2  # checkpoints kept; older ones are removed after a new one is complete
    tensorboard: bool = True  # used when the package is installed


@dataclass(kw_only=True)
class MaskConfig:
    """Distribution of the share of masked tokens: `r` for u uniform in [0, 1]."""

    distribution: Literal["cosine", "arccos", "beta", "truncated-gaussian", "uniform"] = "cosine"
    alpha: float = 12.0  # beta: AutoNAT's Beta(12, 3)
    beta: float = 3.0
    mean: float = 1.0  # truncated Gaussian: MAR's N(1, 0.25) cut to [0.7, 1]
    std: float = 0.25
    low: float = 0.7
    high: float = 1.0
    per: Literal["sample", "batch"] = "sample"  # one share for each image, or one for the whole batch (MAR)
    rounding: Literal["round", "ceil", "floor", "bernoulli"] = (
        "round"  # of length · r to a count; "bernoulli": of each token alone
    )
    visible: int = 0  # at least so many tokens stay visible
    # Share of the images in which r is that of the global tokens and all of the grid is masked; the others see all global
    # tokens and r is that of the grid, as in the two phases of sampling. None: r is of all tokens alike.
    global_share: float | None = 0.5


@dataclass(kw_only=True)
class PivotConfig:
    """Training of a generator that draws low-resolution pivots first (HiMAR)."""

    mask: MaskConfig = field(
        default_factory=lambda: MaskConfig(distribution="truncated-gaussian", per="batch", rounding="ceil")
    )
    keep: float = 0.25  # share of the images whose tokens are trained with pivots, the others without
    warmup: int = 0  # optimizer steps over which that share rises from 0 (published: those of 100 epochs)
    weight: float = 0.4  # of the pivots' loss: 64 of 320 places, times 2
    token_weight: float = 0.6  # of the tokens' loss: 256 of 320 places, times 0.75


@dataclass(kw_only=True)
class GeneratorObjectiveConfig:
    mask: MaskConfig = field(default_factory=MaskConfig)
    pivots: PivotConfig = field(default_factory=PivotConfig)
    label_drop: float = 0.1  # probability that the class is replaced by the null class
    label_smoothing: float = 0.1  # of a categorical head
    diffusion_batch_mul: int = (
        4  # copies of each masked token, with noise of their own, in the loss of a diffusion head
    )
    head_tokens: Literal["masked", "all"] = (
        "masked"  # "all": pass visible tokens through a diffusion head too, as published
    )
    loss_tokens: Literal["masked", "all"] = "masked"  # tokens in the loss; Halton-MaskGIT is trained on all
    reuse: float = (
        0.0  # share of the steps in which a model that carries features (ENAT) continues from a simulated earlier step
    )
    reuse_label_drop: float = 0.0  # of the label, once more, for the trained model alone and not for that earlier step
    tokenizer: str | None = None  # folder or name; needed for image data, and to draw sample grids from a cache
    vision_weights: str | None = None  # file of the tokenizer's frozen vision encoder (Hita), for image data
    sampler: dict[str, Any] = field(default_factory=dict)  # of the sample grids and of the exported pipeline


@dataclass(kw_only=True)
class TokenizerObjectiveConfig:
    l2: float = 1.0
    l1: float = 0.0
    codebook: float = 1.0
    commitment: float = 0.25
    entropy: float = 0.0
    kl: float = 2e-8  # per latent number; LDM's 1e-6 weighs sums: at f16 with 16 channels this is 1e-6 · 4096 / 196608
    perceptual: float = 0.0
    perceptual_model: str | None = None  # folder of a FashionCNN, or a file of torchvision VGG16 weights
    adversarial: float = 0.0
    adversarial_start: int = 0  # step from which the discriminator takes part
    # "half-hinge": the discriminator's hinge loss times 1/2 (LlamaGen); "…-softplus": with the non-saturating loss of the tokenizer (Hita)
    adversarial_loss: Literal["hinge", "half-hinge", "half-hinge-softplus", "non-saturating"] = "non-saturating"
    r1: float = 0.0  # weight of the R1 penalty on real images (discriminator "patch")
    discriminator: Literal["patch", "dino"] = "patch"  # "dino": heads on a frozen DINO, for Hita-U
    discriminator_weights: str | None = None  # "dino": file of the frozen DINO, dino_deitsmall16_pretrain.pth
    discriminator_channels: int = 64  # "patch", as the next two
    discriminator_layers: int = 3  # times that the discriminator halves the side
    discriminator_norm: Literal["group", "batch"] = "group"  # "batch": the network as published
    discriminator_weight: float = 1.0  # factor of the discriminator's loss
    discriminator_lr: float = 1e-4
    discriminator_betas: tuple[float, float] = (0.0, 0.99)
    vision: float = 1.0  # of the vision tokens that Hita-U predicts from the global ones
    vision_weights: str | None = None  # file of the frozen vision encoder, for a Hita tokenizer that takes one


@dataclass(kw_only=True)
class ClassifierObjectiveConfig:
    label_smoothing: float = 0.02


OBJECTIVES: dict[str, type] = {
    "generator": GeneratorObjectiveConfig,
    "tokenizer": TokenizerObjectiveConfig,
    "classifier": ClassifierObjectiveConfig,
}


@dataclass(kw_only=True)
class TrainConfig:
    task: Literal["generator", "tokenizer", "classifier"]
    output: str  # folder of logs, checkpoints and the finished model
    steps: int  # optimizer steps
    model: dict[str, Any]  # `class`, optionally `size` (a row of the class's table), then constructor arguments
    batch_size: int = 64  # images per optimizer step, over all processes and accumulation steps
    accumulate: int = 1  # pieces a process cuts its share of the batch into
    seed: int = 0
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    resume: bool = True  # go on from the newest checkpoint in `output`
    init: str | None = None  # folder of weights to start from
    processes: int | None = None  # raise unless exactly so many processes take part
    data: DataConfig = field(default_factory=DataConfig)
    objective: Any = None
    optim: OptimConfig = field(default_factory=OptimConfig)
    ema: EMAConfig | None = field(default_factory=EMAConfig)
    log: LogConfig = field(default_factory=LogConfig)


# Smallest and largest value of settings that would otherwise fail late or quietly do nothing.
LIMITS: dict[str, tuple[float, float]] = {
    "steps": (1, math.inf),
    "batch_size": (1, math.inf),
    "accumulate": (1, math.inf),
    "data.image_size": (1, math.inf),
    "data.channels": (1, 3),
    "data.shift": (0, math.inf),
    "data.workers": (0, math.inf),
    "objective.label_drop": (0, 1),
    "objective.label_smoothing": (0, 1),
    "objective.reuse": (0, 1),
    "objective.reuse_label_drop": (0, 1),
    "objective.mask.visible": (0, math.inf),
    "objective.pivots.keep": (0, 1),
    "objective.pivots.warmup": (0, math.inf),
    "objective.pivots.weight": (0, math.inf),
    "objective.pivots.token_weight": (0, math.inf),
    "objective.diffusion_batch_mul": (1, math.inf),
    "objective.discriminator_layers": (1, math.inf),
    "objective.discriminator_channels": (1, math.inf),
    "objective.mask.std": (1e-6, math.inf),
    "objective.mask.alpha": (1e-6, math.inf),
    "objective.mask.beta": (1e-6, math.inf),
    "objective.mask.low": (0, 1),
    "objective.mask.high": (0, 1),
    "objective.mask.global_share": (0, 1),
    "optim.lr": (0, math.inf),
    "optim.eps": (0, math.inf),
    "optim.warmup": (0, math.inf),
    "optim.weight_decay": (0, math.inf),
    "optim.clip": (1e-12, math.inf),
    "ema.decay": (0, 1),
    "log.every": (1, math.inf),
    "log.evaluate_every": (0, math.inf),
    "log.preview_every": (0, math.inf),
    "log.checkpoint_every": (0, math.inf),
    "log.export_every": (0, math.inf),
    "log.keep": (1, math.inf),
}


def train_config(data: dict[str, Any]) -> TrainConfig:
    """A checked TrainConfig; the keys allowed under `objective` depend on the task."""
    config = build(TrainConfig, data)
    objective = data.get("objective") or {}
    if not isinstance(objective, dict):
        raise MgenError(f"'objective' is {objective!r}: expected a mapping")
    config.objective = build(OBJECTIVES[config.task], objective, "objective.")
    if "class" not in config.model:
        raise MgenError("missing key 'model.class': the name of a model class, such as MaskGIT, VQGAN or FashionCNN")
    for name, (low, high) in LIMITS.items():
        value: Any = config
        for part in name.split("."):
            value = getattr(value, part, None)
        if value is not None and not low <= value <= high:
            raise MgenError(f"'{name}' is {value}: allowed are {low} … {high if high < math.inf else 'any more'}")
    mask = getattr(config.objective, "mask", None)
    if mask is not None and not mask.low < mask.high:
        raise MgenError(
            f"'objective.mask.low' is {mask.low}, 'objective.mask.high' {mask.high}: low must lie below high"
        )
    return config


def model_named(name: str, where: str = "model.") -> Any:
    """The class of a `model:` section."""
    import mgen

    return getattr(mgen, check_choice(f"{where}class", name, mgen.MODELS))


def build_model(settings: dict[str, Any], where: str = "model.") -> Any:
    """The model that a `model:` section describes: `class`, optionally `size`, then constructor arguments."""
    from mgen.utils.modeling import check_keys, constructor_keys

    settings = dict(settings)
    name = settings.pop("class")
    cls = model_named(name, where)
    sizes: dict[str, dict[str, Any]] = getattr(cls, "SIZES", {})
    size = settings.pop("size", None)
    base = sizes[check_choice(f"{where}size", size, sizes)] if size is not None else {}
    check_keys(settings, constructor_keys(cls), where)
    try:
        return cls(**{**base, **settings})
    except (TypeError, ValueError) as error:
        raise MgenError(f"{where.rstrip('.') or name}: {error}") from error
