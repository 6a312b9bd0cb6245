"""Label plans: which class each image of a run has.

    balanced   class i mod C: all classes in turn, so that every part of a run is balanced
    sorted     class ⌊i·C / N⌋: class by class (MAR), so that the class depends on N
    random     uniform, from (seed, i) alone (ADM, LlamaGen)

The order matters for metrics that read images in file order: ADM's evaluator splits them this way for the Inception Score.
"""

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass

from mgen.utils import seeds
from mgen.utils.errors import MgenError, check_choice

PLANS = ("balanced", "sorted", "random")


@dataclass(frozen=True)
class LabelPlan:
    """The class of image i is `plan(i)`.

    Attributes:
        name: balanced, sorted or random. classes: class ids, or one None for a model without classes.
        count: images of the run. seed: of the run, for the random plan.

    Raises:
        MgenError: unknown name, no classes, or no images.
    """

    name: str
    _: KW_ONLY
    classes: Sequence[int | None]
    count: int
    seed: int

    def __post_init__(self) -> None:
        check_choice("--labels", self.name, PLANS)
        if not self.classes or self.count < 1:
            raise MgenError(
                f"a label plan of {self.count} images and {len(self.classes)} classes: at least one of each is needed"
            )

    def __call__(self, index: int) -> int | None:
        """Class id of image `index` (0 … count - 1), None without classes."""
        if not 0 <= index < self.count:
            raise IndexError(f"image {index} of {self.count}")
        if self.name == "sorted":
            return self.classes[index * len(self.classes) // self.count]
        if self.name == "random":
            return self.classes[seeds.fold(self.seed, "label", index) % len(self.classes)]
        return self.classes[index % len(self.classes)]
