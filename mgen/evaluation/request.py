"""What to evaluate and how: the settings of one evaluation, checked for contradictions."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from mgen.evaluation.protocols import Protocol, check_weights, find_protocol
from mgen.pipelines.run_file import QUANTIZATIONS
from mgen.utils.errors import MgenError, check_choice, shown
from mgen.zoo import embedded_entries

SPLITS = ("train", "test")  # of Fashion-MNIST
LIMITS = {  # smallest and largest value
    "batch_size": (1, 10**6),
    "num_images": (2, 10**12),
    "image_size": (1, 2**15),
    "bootstrap": (0, 10**5),
    "seed": (-(2**63), 2**63 - 1),
}
# Settings that have no effect where levels are compared.
NOT_OF_LEVELS = ("classifier", "reference", "nearest", "save_statistics", "lpips_weights", "recipe", "bootstrap")
# Settings that have no effect where a tokenizer is checked.
NOT_OF_CHECK = (*NOT_OF_LEVELS, "protocol", "posterior", "levels", "ranges")
INCEPTION = ("inception", "inception-v3-compat")  # names of the extractor
# Settings that apply to sampled images only.
SAMPLED_ONLY = ("labels", "seed", "image_size", "quantization")


@dataclass(frozen=True, kw_only=True)
class EvalRequest:
    """One evaluation. None and empty values leave a setting to the recipe or to its default.

    Attributes:
        path: folder of images, .npz, model (folder or name) or `fmnist`. recipe: name or file that says how to evaluate.
        protocol, extractor, inception_weights, reference, classifier: see `mgen eval --help`.
        num_images: maximum number of images. labels, seed, image_size, quantization, dtype: of a model's images.
        compile: of a model, see MaskedPipeline.compile.
        sampling: options that change a model's sampler, as given; those not given are None or empty.
        bootstrap: replicates. nearest: training images to search for copies. save_statistics: file for mean and covariance.
        reconstruction: tokenizer whose reconstructions are evaluated. posterior, lpips_weights, vision_weights: of it.
        check: whether the tokenizer is good enough, in a report of its own.
        levels, ranges: of a KL tokenizer's quantization, to compare; ranges may contain "best".
        split: of fmnist; default: test. out: folder of the report. keep_features: keep the measured features.
    """

    path: str | None = None
    recipe: str | None = None
    protocol: str | None = None
    extractor: str | None = None
    inception_weights: str | None = None
    reference: str | None = None
    classifier: str | None = None
    num_images: int | None = None
    labels: str | None = None
    seed: int | None = None
    image_size: int | None = None
    quantization: str | None = None
    dtype: str = "fp32"
    compile: str | None = None
    sampling: Mapping[str, object] = field(default_factory=dict)
    bootstrap: int | None = None
    nearest: str | None = None
    save_statistics: str | None = None
    reconstruction: str | None = None
    posterior: str | None = None
    lpips_weights: str | None = None
    vision_weights: str | None = None
    check: bool = False
    levels: tuple[int, ...] = ()
    ranges: tuple[float | str, ...] = ()
    split: str | None = None
    batch_size: int = 100
    out: str | None = None
    keep_features: bool = False
    command: str = ""

    def __post_init__(self) -> None:
        """Raise MgenError for settings that contradict each other."""
        for name, (least, most) in LIMITS.items():
            if (value := getattr(self, name)) is None:
                continue
            if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
                limit = f"at most {most}" if isinstance(value, int) and value > most else f"at least {least}"
                raise MgenError(f"{_option(name)} is {shown(value)}: it must be {limit}")
        if self.bootstrap == 1:
            raise MgenError("--bootstrap 1: one replicate has no spread; give 0 for none, or at least 2")
        if self.split is not None:
            check_choice("--split", self.split, SPLITS)
        if self.reconstruction is None:
            if self.posterior or self.levels or self.ranges or self.vision_weights or self.check:
                raise MgenError(
                    "--check, --posterior, --levels, --ranges and --vision-weights need --reconstruction TOKENIZER"
                )
            if self.lpips_weights:
                raise MgenError(
                    "--lpips-weights needs --reconstruction TOKENIZER: LPIPS compares images with originals"
                )
        if self.ranges and not self.levels:
            raise MgenError("--ranges needs --levels: the numbers of levels to compare")
        self._check_effect()

    def _check_effect(self) -> None:
        """Raise MgenError for settings that would change nothing."""
        # A seed is also used for samples of a posterior.
        given = [name for name in self.changes if name != "--seed" or self.reconstruction is None]
        given += ["--dtype"] * (self.dtype != "fp32") + ["--compile"] * (self.compile is not None)
        if self.reconstruction and self.seed is not None and self.posterior != "sample":
            raise MgenError("--seed has no effect on reconstructions without --posterior sample: leave it out")
        if given and not self.samples:
            raise MgenError(
                f"{', '.join(given)}: for models only; stored and reconstructed images are measured as they are"
            )
        if self.recipe and not self.samples:
            raise MgenError(
                f"--recipe {self.recipe}: for models only; name the recipe's --protocol and --reference instead (see mgen zoo)"
            )
        if self.split is not None and self.path not in (None, "fmnist"):
            raise MgenError(f"--split {self.split} is for `fmnist`: {self.path} has no splits")
        if self.levels and (useless := [_option(n) for n in NOT_OF_LEVELS if getattr(self, n) is not None]):
            raise MgenError(f"{', '.join(useless)}: without effect where --levels are compared; leave it out")

        if self.check and (useless := [_option(n) for n in NOT_OF_CHECK if getattr(self, n) not in (None, ())]):
            raise MgenError(f"{', '.join(useless)}: without effect in a --check of a tokenizer; leave it out")
        if self.check and self.path is None:
            raise MgenError("--check needs images: name a folder of them, or `fmnist`")
        if self.check and self.inception_weights and self.extractor not in INCEPTION:
            raise MgenError(
                "--inception-weights has no effect in a --check without --extractor inception: leave it out"
            )

    @property
    def samples(self) -> bool:
        """Whether the images are sampled from a model."""
        return self.reconstruction is None and (self.path is None or is_model(self.path))

    @property
    def changes(self) -> list[str]:
        """Options given that change what a recipe describes."""
        given = {**self.sampling, **{name: getattr(self, name) for name in SAMPLED_ONLY}}
        return [_option(name) for name, value in given.items() if value not in (None, [])]

    @property
    def folder(self) -> Path:
        """Where the report goes."""
        return Path(self.out or f"eval-{Path(self.path or 'images').stem or 'images'}")

    def find_protocol(self) -> Protocol:
        """The protocol that name, extractor, image size and quantization select."""
        if self.quantization is not None:
            check_choice("--quantization", self.quantization, QUANTIZATIONS)
        name = self.protocol
        if name is None and self.reconstruction and self.extractor in INCEPTION:
            name = "reconstruction"
        found = find_protocol(
            name, extractor=self.extractor, image_size=self.image_size, quantization=self.quantization
        )
        check_weights(found, self.inception_weights)
        return found


def _option(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def is_model(path: str) -> bool:
    """Whether this is a pipeline's folder or the name of an embedded model, not images."""
    return (Path(path) / "model_index.json").is_file() or path in [entry.name for entry in embedded_entries()]
