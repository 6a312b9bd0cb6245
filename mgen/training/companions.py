"""Networks that a loss needs but the run neither trains with the model nor saves with it."""

from dataclasses import dataclass

from mgen.training.adversarial import Adversary, PerceptualDistance
from mgen.training.logits import LogitDistance
from mgen.utils.modeling import Model


@dataclass(frozen=True, kw_only=True)
class Companions:
    """The networks beside the model. A plain object, so that an objective that holds one does not register them as submodules."""

    tokenizer: Model | None = None  # frozen, makes the tokens that a generator is trained on
    perceptual: PerceptualDistance | None = None  # frozen, compares images in a tokenizer's loss
    logits: LogitDistance | None = None  # frozen, likewise
    proxy: Model | None = (
        None  # frozen, its ids are what a TiTok predicts in its first stage, see `mgen.training.proxy`
    )
    discriminator: Adversary | None = None  # trained by an optimizer of its own, see `mgen.training.discriminator`
