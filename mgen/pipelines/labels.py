"""Label plans: which class each image of a run has.

    balanced   class i mod C: all classes in turn, so that every part of a run is balanced
    sorted     class ⌊i·C / N⌋: class by class (MAR), so that the class depends on N
    random     uniform, from (seed, i) alone (ADM, LlamaGen)

The order matters for metrics that read images in file order: ADM's evaluator splits them this way for the Inception Score.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from mgen.utils import seeds
from mgen.utils.errors import MgenError, check_choice

PLANS = ("balanced", "sorted", "random")


@dataclass(frozen=True, kw_only=True)
class LabelPlan:
    """The class of image i is `plan(i)`; made by `label_plan`.

    Attributes:
        name: balanced, sorted or random. classes: class ids, or one None for a model without classes.
        count: images of the run. seed: of the run.
    """

    name: str
    classes: Sequence[int | None]
    count: int
    seed: int

    def __call__(self, index: int) -> int | None:
        """Class id of image `index` (0 … count - 1), None without classes."""
        if not 0 <= index < self.count:
            raise IndexError(f"image {index} of {self.count}")
        if self.name == "sorted":
            return self.classes[index * len(self.classes) // self.count]
        if self.name == "random":
            return self.classes[seeds.fold(self.seed, "label", index) % len(self.classes)]
        return self.classes[index % len(self.classes)]


def label_plan(name: str, *, classes: Sequence[int | None], count: int, seed: int) -> LabelPlan:
    """The plan of this name for images of `classes`, the random one from `seed`; MgenError: unknown name, no classes, or no images."""
    check_choice("--labels", name, PLANS)
    if not classes or count < 1:
        raise MgenError(f"a label plan of {count} images and {len(classes)} classes: at least one of each is needed")
    return LabelPlan(name=name, classes=classes, count=count, seed=seed)
