"""The guide of a pipeline: another model in the place of the null class (autoguidance, Karras et al., arXiv 2406.02507)."""

from collections.abc import Sequence
from typing import Any

from mgen.generators import Cascade, Generator, guided
from mgen.utils.errors import MgenError, shown


class GuidedPipeline:
    """What MaskedPipeline has for a guide of its transformer."""

    transformer: Generator | Cascade
    _guide: Generator | Cascade | None = None

    @property
    def guide(self) -> Generator | Cascade | None:
        """The generator that takes the place of the null class under guidance, None if there is none.

        `pipe.guide = mgen.load("runs/early/model")` sets it: a pipeline, or the transformer of one. It is not saved with the pipeline.
        """
        return self._guide

    @guide.setter
    def guide(self, guide: object) -> None:
        self._guide = self._as_guide(guide)

    def sampled(self, guide: object = None, class_ids: Sequence[int] = ()) -> Generator | Cascade:
        """What draws the tokens: the transformer, or the pair of it and its guide, which is brought to its device.

        Args:
            guide: replaces the pipeline's own. class_ids: of the images that will be sampled.

        Raises:
            MgenError: the guide doesn't fit the transformer, or has no null class where images are of it.
        """
        chosen = self._guide if guide is None else self._as_guide(guide)
        if chosen is None:
            return self.transformer
        if chosen.null_class is None and self.transformer.null_class in class_ids:
            raise MgenError(
                "class None is the null class, which the guide doesn't have: name classes, or leave the guide out"
            )
        return guided(self.transformer, chosen.to(self.transformer.device))

    def _as_guide(self, guide: Any) -> Generator | Cascade | None:
        """The generator of a guide; MgenError if it doesn't fit the transformer, or is no model."""
        found = guide.transformer if isinstance(guide, GuidedPipeline) else guide
        if found is None:
            return None
        if not isinstance(found, Generator | Cascade):
            raise MgenError(f"guide is {shown(guide)}: expected a pipeline, as mgen.load gives, or its transformer")
        guided(self.transformer, found)
        return found
