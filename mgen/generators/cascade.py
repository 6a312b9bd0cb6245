"""Cascade: the tokens of a smaller image first, then those of the image, which see the first stage's context vectors.

Zheng et al., "Hierarchical Masked Autoregressive Models with Low-Resolution Token Pivots" (Hi-MAR, ICML 2025, arXiv 2505.20288).
Both stages are generators on one trunk; "features" are the context vectors of the first stage, not its tokens.

Notation: B batch, S tokens of the first stage, L of the second, C numbers of a token, D width, K copies of a token in the loss.
"""

from dataclasses import asdict, replace
from typing import Any, Self

import torch
from torch import Tensor, nn

from mgen.generators.generator import Composed, Generator
from mgen.generators.losses import LossOptions, Masked, image_losses, masked_tokens
from mgen.generators.trunk import Capabilities, PassOptions, initialize_layer, table
from mgen.generators.trunks.two_stage import Stage
from mgen.heads.head import Head, HeadNoise
from mgen.nn.windows import Windows
from mgen.tokens import TokenSpec
from mgen.utils.errors import MgenError
from mgen.utils.fitting import DataRows, Rows, below
from mgen.utils.modeling import public


@public
class Cascade(Composed):
    """Two generators that share a trunk; the second reads the first's context.

    Args:
        first: draws the tokens of the smaller image. second: draws the tokens of the image; their trunks are the two stages of one
            TwoStageMAE, and they have the same classes.
    """

    def __init__(self, *, first: Generator, second: Generator) -> None:
        super().__init__()
        one, two = first.trunk, second.trunk
        if (
            not (isinstance(one, Stage) and isinstance(two, Stage) and one.shared is two.shared)
            or one.index == two.index
        ):
            raise MgenError("the generators of a cascade need the two stages of one two-stage trunk")
        if first.classes is not second.classes:
            raise MgenError("the generators of a cascade need the same classes object")
        self.shared, self.classes = one.shared, first.classes
        self.shared.apply(initialize_layer)
        # Registered part by part, so that shared weights are saved once.
        self.first_embedder, self.first_head = first.embedder, first.head
        self.second_embedder, self.second_head = second.embedder, second.head
        self._stages = [first, second]
        width = self.shared.config.dim
        # What the second stage reads where there is no feature: ids as rows, vectors as tokens that the first embedder projects.
        numbers = width if first.tokens.kind == "index" else first.tokens.channels
        self.default_tokens = table(first.tokens.length, numbers)
        self.feature_proj = nn.Linear(width, width)
        initialize_layer(self.feature_proj)
        self._note_config()

    def stages(self) -> list[Generator]:
        return self._stages

    def adaptable(self) -> tuple[str, nn.Module, tuple[str, ...]]:
        return "shared", self.shared, self.shared.lora_targets

    @classmethod
    def config_keys(cls) -> set[str]:
        return {"first", "second", "trunk", "classes"}

    def data_rows(self) -> DataRows:
        first = self.first
        out = below("shared", self.shared.data_rows()) | below("classes", self.classes.data_rows())
        for name, stage in (("first", first), ("second", self.second)):
            table = stage.embedder.table_rows(self.classes.shared)
            out |= below(f"{name}_embedder", stage.embedder.data_rows(self.classes.shared))
            out |= below(f"{name}_head", stage.head.data_rows(table))
        channels = {} if first.tokens.kind == "index" else {1: (Rows("channels", (first.tokens.channels,)),)}
        return out | {"default_tokens": {0: self.shared.layouts[0].rows, **channels}}

    def _note_config(self) -> None:
        stages = {
            name: {"tokens": stage.tokens.to_dict(), "embedder": stage.embedder.settings, "head": stage.head.settings}
            for name, stage in (("first", self.first), ("second", self.second))
        }
        self.register_to_config(**stages, trunk=self.shared.settings, classes=asdict(self.classes.config))

    # -- what it takes and makes ---------------------------------------------------------------------------------------

    @property
    def first(self) -> Generator:
        """The generator of the smaller image's tokens."""
        return self._stages[0]

    @property
    def second(self) -> Generator:
        """The generator of the image's tokens; its runs start with `prefix`."""
        return self._stages[1]

    @property
    def tokens(self) -> TokenSpec:
        return self.second.tokens

    @property
    def first_stage_spec(self) -> TokenSpec:
        """The tokens of the smaller image."""
        return self.first.tokens

    @property
    def units(self) -> TokenSpec:
        return self.second.units

    @property
    def windows(self) -> Windows | None:
        return None

    @property
    def head(self) -> Head:
        return self.second.head

    @property
    def guided_head(self) -> Head[Any]:
        """See Generator.guided_head; of the second stage."""
        return self.second.guided_head

    @property
    def capabilities(self) -> Capabilities:
        return replace(self.second.capabilities, two_stages=True)

    def set_scale(self, scale: float | None) -> None:
        """Note the scale of the latents that both stages are trained on."""
        for stage in self._stages:
            stage.tokens = replace(stage.tokens, scale=scale)
        self._note_config()

    def optimize_layout(self, images: int, *, guided: bool = False) -> None:
        """Nothing to lay out; see Generator.optimize_layout."""

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        for stage in self._stages:  # their modules are registered here part by part, they themselves are not
            stage.train(mode)
        return self

    def prefix(self, features: Tensor | None = None, shown: Tensor | None = None, *, guided: bool = False) -> Tensor:
        """The rows (B or 1, S, D) that the second stage reads of the first, for `second.start`.

        Args:
            features: context vectors (B, S, D) of the first stage, of the class's rows; None: there was no first stage, and all rows
                are the learned default.
            shown: bool (B, S), True where the default takes the place of a feature; None: nowhere.
            guided: the second stage is; rows of the null class read those of the images.
        """
        default = self.default_tokens
        rows = default.unsqueeze(0)  # (1, S, D)
        if self.first.tokens.kind != "index":
            rows = self.first_embedder(rows.clone())  # torch's counter of FLOPs can't take a view of a parameter
        if features is None:
            return rows
        projected = self.feature_proj(features)
        return projected if shown is None else torch.where(shown.unsqueeze(-1), rows.to(projected.dtype), projected)

    # -- training ------------------------------------------------------------------------------------------------------

    def forward(
        self,
        tokens: tuple[Tensor, Tensor],
        class_ids: tuple[Tensor, Tensor],
        known: tuple[Tensor, Tensor],
        dropped: Tensor,
        *,
        options: LossOptions = LossOptions(),  # noqa: B008  (frozen)
        noise: tuple[HeadNoise | None, HeadNoise | None] = (None, None),
        masked: tuple[Masked | None, Masked | None] = (None, None),
    ) -> dict[str, Tensor]:
        """Training of both stages; no gradient passes from the second to the first through the features.

        Args:
            tokens, class_ids, known, noise, masked: of the first and of the second stage, see Generator.forward; the labels of the two are
                dropped independently.
            dropped: bool (B,), images whose second stage sees no features.

        Returns:
            per image (B,): "loss" and "metric" of the second stage, "first_stage_loss" and "first_stage_metric". Of a joint head
            the mean over all elements, otherwise the sum over masked tokens.
        """
        a, b = (own if own is not None else masked_tokens(k) for own, k in zip(masked, known))
        z = self.first.context(tokens[0], known[0], class_ids[0], visible=a.visible)  # (B, S, D)
        first = image_losses(
            self.first.head, z, tokens[0], known[0], a.where, noise=noise[0], options=options, flat=a.flat
        )
        prefix = self.prefix(z.detach(), known[0] | dropped.unsqueeze(1))
        rows, classes = self.second.rows(tokens[1], known[1]), self.classes(class_ids[1])
        cache = self.second.trunk.start(classes, prefix=prefix)
        z = self.second.trunk(rows, classes, PassOptions(visible=b.visible, cache=cache))  # (B, L, D)
        second = image_losses(
            self.second.head, z, tokens[1], known[1], b.where, noise=noise[1], options=options, flat=b.flat
        )
        return {"loss": second[0], "metric": second[1], "first_stage_loss": first[0], "first_stage_metric": first[1]}
