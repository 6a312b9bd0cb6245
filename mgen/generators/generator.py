"""The generator: an embedder, a trunk and a head around one kind of tokens. Every published system is a configuration of it.

Notation: B batch, L tokens, M positions asked for, D width of the context. Where windows of tokens are masked and drawn as one
(`windows`), "token" below is a window: L of them, each of s² ids or s²·C numbers.
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from functools import partial
from typing import Any, Self

import torch
from torch import Tensor, nn

from mgen.generators.adapters import Adapters
from mgen.generators.classes import Classes
from mgen.generators.denoising import DenoisingTrunk
from mgen.generators.embedder import Embedder, TokenRows
from mgen.generators.losses import LossOptions, Masked, masked_tokens, token_losses, token_weights
from mgen.generators.trunk import Capabilities, PassOptions, Trunk
from mgen.heads.head import DenoisingHead, Head, HeadNoise
from mgen.nn import Cache, CachedStep, Entities, LazyStep
from mgen.nn.causal import optimize_layout
from mgen.nn.checkpointing import checkpoint_blocks, is_checkpointed, keep_blocks
from mgen.nn.denoising import Denoiser
from mgen.tokens import TokenSpec
from mgen.utils.errors import MgenError
from mgen.utils.fitting import DataRows, below
from mgen.utils.modeling import Model, public


class Composed(Adapters, Model):
    """Base of the models that a nested configuration describes."""

    # What diffusers' `compile_repeated_blocks` compiles: the layers of trunks and heads.
    _repeated_blocks = [
        *(
            "PreNormBlock",
            "PostNormBlock",
            "ScaledBlock",
            "ModulatedBlock",
            "CausalBlock",
            "PermutedBlock",
            "ContextBlock",
        ),
        "EntityBlock",
        *("ResBlock", "MapBlock", "SlotBlock"),
    ]
    _supports_gradient_checkpointing = True
    classes: Classes

    def repeated_blocks(self) -> list[nn.Module]:
        """The layers of trunks and heads."""
        return [module for module in self.modules() if type(module).__name__ in self._repeated_blocks]

    def enable_gradient_checkpointing(self, gradient_checkpointing_func: Callable[..., Any] | None = None) -> None:
        """Compute what the layers of trunk and head make again in the backward pass: less memory, about a third more time.

        gradient_checkpointing_func: must be left out; diffusers' models take one.
        """
        if gradient_checkpointing_func is not None:
            raise MgenError("enable_gradient_checkpointing takes no function here: leave it out")
        checkpoint_blocks(self.repeated_blocks())

    def disable_gradient_checkpointing(self) -> None:
        """Keep everything for the backward pass, as by default."""
        keep_blocks(self.repeated_blocks())

    @property
    def is_gradient_checkpointing(self) -> bool:
        return any(map(is_checkpointed, self.repeated_blocks()))

    @classmethod
    def from_config(cls, config: Mapping[str, Any], **kwargs: object) -> Self:
        """One with random weights from a nested configuration, as in config.json; see mgen.generators.build."""
        from mgen.generators.build import build_model

        made = build_model(cls.own_config(config, "the configuration"), "")
        assert isinstance(made, cls)
        return made

    @property
    def null_class(self) -> int | None:
        """Class id that stands for "no class", or None if there is none."""
        return self.classes.null_class

    @property
    def num_classes(self) -> int:
        """Classes to choose from; an unconditional model has one, 0, that stands for everything."""
        return self.classes.count

    @property
    def conditional(self) -> bool:
        """Whether there are classes."""
        return self.classes.config.count > 0

    def stages(self) -> "list[Generator]":
        """The generators that draw: itself, or both of a cascade."""
        raise NotImplementedError

    def check_savable(self) -> None:
        """MgenError while adapters are loaded, which are saved apart or fused first."""
        if self.adapter_names:
            raise MgenError(
                f"adapters are loaded ({', '.join(self.adapter_names)}): save_lora_adapter saves them alone; to save the model with them, "
                "call fuse_lora() and unload_lora() first, on a pipeline unload_lora_weights()"
            )

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """Compile in place, with the arguments of torch.compile, what training and sampling compute.

        `torch.compile(generator)` alone compiles `forward`, which training calls and sampling does not.
        """
        super().compile(*args, **kwargs)
        self.compile_passes(partial(torch.compile, *args, **kwargs))

    def compile_passes(self, compiler: Callable[[Callable[..., Any]], Any]) -> None:
        """Replace the passes of trunk and head, which sampling calls, by what `compiler` makes of them."""
        for stage in self.stages():
            heads = [module for module in stage.head.modules() if isinstance(module, Head)]
            parts: list[tuple[nn.Module, tuple[str, ...]]] = [(stage.trunk, stage.trunk.passes)]
            for part, names in (*parts, *((head, head.passes) for head in heads)):
                for name in names:  # of the class: compiled once, however often this is called
                    setattr(part, name, compiler(getattr(type(part), name).__get__(part)))


@public
class Generator(Composed):
    """A masked or causal generator of the tokens that a tokenizer makes, built from parts that are built first.

    embedder: tokens → rows. trunk: rows → context. head: context → tokens. classes: class ids → class vectors.
    """

    def __init__(self, *, tokens: TokenSpec, embedder: Embedder, trunk: Trunk, head: Head, classes: Classes) -> None:
        super().__init__()
        self.tokens = tokens
        self.embedder, self.trunk, self.head, self.classes = embedder, trunk, head, classes
        self._note_config()
        embedder.apply(trunk.initialize)
        classes.apply(trunk.initialize)
        trunk.apply(trunk.initialize)
        head.initialize(trunk.initialize)
        embedder.reset_windows(head.unshuffle)

    def stages(self) -> "list[Generator]":
        return [self]

    def adaptable(self) -> tuple[str, nn.Module, tuple[str, ...]]:
        return "trunk", self.trunk, self.trunk.lora_targets

    @classmethod
    def config_keys(cls) -> set[str]:
        return {"tokens", "embedder", "trunk", "head", "classes", "windows"}

    def data_rows(self) -> DataRows:
        table, parts = self.embedder.table_rows(self.classes.shared), self.embedder.data_rows(self.classes.shared)
        out = below("embedder", parts) | below("trunk", self.trunk.data_rows())
        return out | below("head", self.head.data_rows(table)) | below("classes", self.classes.data_rows())

    def _note_config(self) -> None:
        """Write the configuration that builds this generator again where diffusers saves it from."""
        self.register_to_config(
            tokens=self.tokens.to_dict(),
            embedder=self.embedder.settings,
            trunk=self.trunk.settings,
            head=self.head.settings,
            classes=asdict(self.classes.config),
            windows=self.embedder.window_settings or self.trunk.window_settings,
        )

    # -- what it takes and makes ---------------------------------------------------------------------------------------

    @property
    def windows(self) -> Entities | None:
        """The windows or entities that are masked and drawn as one (Token-Shuffle, xAR); None: tokens are masked and drawn one by one."""
        return self.embedder.windows

    @property
    def units(self) -> TokenSpec:
        """What is masked and drawn as one: the tokens, or windows of them."""
        return self.embedder.units

    @property
    def capabilities(self) -> Capabilities:
        """What a sampler may ask."""
        head, windows = self.head, self.windows is not None
        made = replace(self.trunk.capabilities, log_prob=head.has_log_prob, joint=head.joint, windows=windows)
        return made if self.null_class is not None else replace(made, guided_by=None)

    @property
    def guided_head(self) -> Head[Any]:
        """The head of draws whose context has rows behind those of the images."""
        return self.head

    def set_scale(self, scale: float | None) -> None:
        """Note the scale of the latents that the generator is trained on."""
        self.tokens = replace(self.tokens, scale=scale)
        self._note_config()

    # -- sampling ------------------------------------------------------------------------------------------------------

    def null_ids(self, class_ids: Tensor) -> Tensor:
        """Class ids (B,) of the rows that stand behind those of the images (B,) under guidance."""
        return torch.full_like(class_ids, self.null_class or 0)

    def start(
        self, class_ids: Tensor, *, prefix: Tensor | None = None, carry: bool = False, null_rows: int = 0
    ) -> Cache:
        """An empty cache for a run on images of these classes (B,), with guidance `null_rows` others behind; see Trunk.start."""
        return self.trunk.start(self.classes(class_ids), prefix=prefix, carry=carry)

    def context(
        self,
        tokens: Tensor,
        known: Tensor,
        class_ids: Tensor,
        *,
        positions: Tensor | None = None,
        visible: tuple[int, int] | None = None,
        cache: Cache | None = None,
        keep: int | None = None,
        keep_images: int | None = None,
        finished: bool = True,
    ) -> Tensor:
        """Context vectors for the head: a full pass.

        Args:
            tokens: ids (B, L), vectors (B, L, C) or ids (B, L, C); whatever stands where `known` is False is ignored.
            known: bool (B, L), True where the token is given. class_ids: (B,) int64.
            positions: int64 (B, M), the positions wanted; None for all. Others: see PassOptions.

        Returns:
            (B, M, D), or (B, L, D).
        """
        rows = self.rows(tokens, known, sampling=cache is not None)
        options = PassOptions(
            positions=positions, visible=visible, cache=cache, keep=keep, keep_images=keep_images, finished=finished
        )
        return self.trunk(rows, self.classes(class_ids), options)

    def denoiser(
        self, tokens: Tensor, known: Tensor, class_ids: Tensor, *, visible: tuple[int, int] | None = None, cache: Cache
    ) -> Denoiser:
        """What a head calls to draw the first unknown entity, of a trunk that denoises; arguments as in `context`."""
        assert isinstance(self.trunk, DenoisingTrunk)
        rows = self.rows(tokens, known, sampling=True)
        return self.trunk.denoiser(rows, self.classes(class_ids), PassOptions(visible=visible, cache=cache))

    def cached_step(self, tokens: Tensor, class_ids: Tensor, cache: Cache, step: CachedStep) -> Tensor:
        """Context of the positions a cached step asks for, (B, asked, D); see Trunk.cached_step."""
        rows = self.rows(tokens, step.known, sampling=True)
        return self.trunk.cached_step(rows, self.classes(class_ids), cache, step)

    def lazy_step(self, tokens: Tensor, known: Tensor, class_ids: Tensor, cache: Cache, step: LazyStep) -> Tensor:
        """Context of the positions that a lazy step draws, (B, n, D); see Trunk.lazy_step."""
        rows = self.rows(tokens, known, sampling=True)
        return self.trunk.lazy_step(rows, self.classes(class_ids), cache, step)

    def to_context(self, x: Tensor, positions: Tensor | None = None) -> Tensor:
        """Context (B, M, D) at positions (B, M) of what a pass returns that is not finished; see Trunk.to_context."""
        return self.trunk.to_context(x, positions)

    def carry(
        self, tokens: Tensor, known: Tensor, class_ids: Tensor, *, visible: tuple[int, int] | None = None, cache: Cache
    ) -> None:
        """A carry-only step, of trunks that carry features: nothing is drawn; see Trunk.carry."""
        rows = self.rows(tokens, known, sampling=True)
        self.trunk.carry(rows, self.classes(class_ids), PassOptions(visible=visible, cache=cache))

    def rows(self, tokens: Tensor, known: Tensor, *, sampling: bool = False) -> TokenRows:
        """The tokens of a pass as the trunk reads them."""
        return TokenRows(self.embedder, tokens, known, sampling)

    def optimize_layout(self, images: int, *, guided: bool = False) -> None:
        """Lay weights out for passes of so many images, twice as many rows if guided: the same function, only faster."""
        if self.capabilities.one_by_one and not self.capabilities.denoises:  # those have many rows per image
            optimize_layout(self, images * (2 if guided else 1))

    # -- training ------------------------------------------------------------------------------------------------------

    def forward(
        self,
        tokens: Tensor,
        class_ids: Tensor,
        known: Tensor,
        *,
        options: LossOptions = LossOptions(),  # noqa: B008  (frozen)
        noise: HeadNoise | None = None,
        trunk_noise: Tensor | None = None,
        cache: Cache | None = None,
        masked: Masked | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Training: loss and metric of every token that counts, both flat; the mean is the published loss.

        Args:
            tokens, known, class_ids: as in `context`. noise: timesteps (B, K, L) and noise (B, K, L, C), see Head.training_noise.
            trunk_noise: see Trunk.training_noise. cache: with the features of an earlier pass, if one is simulated (ENAT).
            masked: what `known` says, where the caller has found it out; None: it is read back from the device.
        """
        if isinstance(self.trunk, DenoisingTrunk):
            return self._denoise(self.trunk, tokens, class_ids, noise)
        rows, classes = self.rows(tokens, known), self.classes(class_ids)
        if options.tokens == "all":
            z = self.trunk.training_context(rows, classes, PassOptions(cache=cache), noise=trunk_noise)
            losses, metric = self.head.loss(z.flatten(0, 1), tokens.flatten(), label_smoothing=options.label_smoothing)
            if options.known_weight == 1:
                return losses, metric
            weights = token_weights(known, options.known_weight).flatten()
            return losses * weights, metric * weights
        masked = masked_tokens(known) if masked is None else masked
        where = masked.where
        if self.tokens.global_tokens or self.head.joint or options.head_tokens == "all":
            where = None  # the head needs all positions, or to know which part a position belongs to
        asked = PassOptions(positions=where, visible=masked.visible, cache=cache)
        z = self.trunk.training_context(rows, classes, asked, noise=trunk_noise)
        s = self.tokens.global_tokens
        return token_losses(
            self.head,
            z,
            tokens,
            known,
            where,
            noise=noise,
            options=options,
            global_tokens=s,
            flat=masked.flat,
        )

    def _denoise(
        self, trunk: DenoisingTrunk, tokens: Tensor, class_ids: Tensor, noise: HeadNoise | None
    ) -> tuple[Tensor, Tensor]:
        """`forward` for a trunk that denoises: every entity (B, E) and copy (B, K, E) at a time of its own, all at once."""
        assert isinstance(self.head, DenoisingHead)
        x, times = self.head.noisy(tokens.unsqueeze(1), noise)  # (B, K, E, s·C), (B, K, E)
        classes = self.classes(class_ids).repeat_interleave(x.shape[1], dim=0)  # (B·K, D)
        x, times = x.flatten(0, 1), times.flatten(0, 1)
        known = torch.ones(times.shape, dtype=torch.bool, device=x.device)
        z = trunk.denoise(self.rows(x, known), classes, times)  # (B·K, E, s, D)
        losses, metric = self.head.loss(z.unflatten(0, (len(tokens), -1)), tokens.unsqueeze(1), noise=noise)
        return losses.flatten(), metric.flatten()
