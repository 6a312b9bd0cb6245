"""The contract of trunks that read noisy tokens, and entities of them that are drawn as one, each from those before it (xAR).

Who calls what:

1. a sampler: `start` once, then `denoiser` for every entity; the head calls what it gives at every step of its chain;
2. training: `denoise` once per step, on entities that all have noise of their own.

Notation: B batch, R rows of a pass (B, or 2B with null rows), E entities at hand, s tokens of one, D width.
"""

from torch import Tensor

from mgen.generators.embedder import TokenRows
from mgen.generators.trunk import FULL, Capabilities, PassOptions, Trunk
from mgen.nn import Entities
from mgen.nn.denoising import Denoiser
from mgen.utils.errors import MgenError


class DenoisingTrunk(Trunk):
    """Base of the trunks that denoise. `entities`: what is drawn as one; the `TokenRows` that it reads are of entities."""

    capabilities = Capabilities(order="causal", cached_steps=False, denoises=True)
    masks_inputs = False
    entities: Entities

    def forward(self, rows: TokenRows, classes: Tensor, options: PassOptions = FULL) -> Tensor:
        raise MgenError(
            f"trunk {self.type_name!r} reads noisy tokens at a time: call its denoiser, or denoise in training"
        )

    def denoiser(self, rows: TokenRows, classes: Tensor, options: PassOptions) -> Denoiser:
        """The network of the first unknown entity, given those before it; its context is (R, 1, s, D).

        Args:
            rows: of the state: entities (R, E) in all. classes: class vectors (R, D). options: `visible` and `cache` of the run.
        """
        raise NotImplementedError

    def denoise(self, rows: TokenRows, classes: Tensor, times: Tensor) -> Tensor:
        """Context (B, E, s, D) of all noisy entities, each at its time (B, E), as its time embedding takes it."""
        raise NotImplementedError
