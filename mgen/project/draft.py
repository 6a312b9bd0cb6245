"""What `mgen init` has decided about a project, from the survey, the options and the rules; the files are written from it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from mgen.project import rules
from mgen.project.rules import Kind, Preset
from mgen.project.survey import Survey


@dataclass(frozen=True, kw_only=True)
class Draft:
    """A project that is about to be written.

    Attributes:
        data, val: folders of the images; val: None: a share of `data` is held out. found: the survey of `data`.
        image_size, kind: of the images as they are trained on, and of the tokens. sized: whether the user gave the image size.
        tokenizer: name or folder of a trained one; None: one is trained. model: name in configs/models of the generator; None: the
            preset's. preset: the networks. gpu: whether there is one.
        stretch: factor of the steps by the rules, from `--hours`. accumulate: pieces of a batch by stage, so that it fits in memory.
        hours: estimated duration by stage. memory: estimated bytes by stage.
    """

    data: Path
    val: Path | None
    found: Survey
    image_size: int
    sized: bool
    kind: Kind
    preset: Preset
    gpu: bool
    tokenizer: str | None = None
    model: str | None = None
    stretch: float = 1.0
    accumulate: Mapping[str, int] = field(default_factory=dict)
    hours: Mapping[str, float] = field(default_factory=dict)
    memory: Mapping[str, float] = field(default_factory=dict)

    @property
    def channels(self) -> int:
        return 3 if self.found.color else 1

    @property
    def held_out(self) -> float:
        """Share of the images for validation, if there is no second folder."""
        return rules.held_out(self.found.count)

    @property
    def images(self) -> int:
        """Images to train on."""
        count = self.found.count
        return count if self.val is not None else count - round(self.held_out * count)

    @property
    def batch(self) -> int:
        return rules.batch_size(self.images, self.preset.batch)

    @property
    def conditional(self) -> bool:
        return self.found.classes > 1

    @property
    def keep(self) -> bool:
        """Whether all images fit in memory as they are trained on."""
        return self.found.count * self.channels * self.image_size**2 <= rules.KEPT

    @property
    def precision(self) -> str:
        return "bf16" if self.gpu and self.preset.large else "fp32"

    @property
    def grid(self) -> int:
        """Side of the grid of tokens that the preset's tokenizer makes."""
        networks = self.preset.ids["multipliers"] if self.kind == "index" else self.preset.vectors["channels"]
        return self.image_size // 2 ** (len(networks) - 1)

    def steps(self, stage: str) -> int:
        """Steps of the tokenizer's or the generator's training."""
        passes = self.preset.tokenizer if stage == "tokenizer" else self.preset.generator
        return max(10, round(self.stretch * passes.steps(self.images, self.batch)))

    def lr(self, stage: str) -> float:
        return rules.scaled_lr(
            self.preset.lr_tokenizer if stage == "tokenizer" else self.preset.lr_generator, self.batch
        )
