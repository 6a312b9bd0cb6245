"""From a nested configuration to a generator: the parts are built one after the other and handed to the next.

    tokens: {kind: vector, length: 256, grid: [16, 16], channels: 16, scale: 0.2325}
    classes: {count: 1000}
    embedder: {type: projection}                     # default by the kind of tokens
    trunk: {type: mae, encoder_dim: 768, …}
    head: {type: diffusion, width: 1024, depth: 6}
    windows: {side: 2, unit: window}                 # optional (Token-Shuffle)

A cascade has `first:` and `second:` with tokens and head each, and one `trunk:` of type mae-two-stage.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Annotated, Any, Literal, TypeVar

from pydantic import Field

from mgen.generators.cascade import Cascade
from mgen.generators.classes import Classes, ClassesConfig
from mgen.generators.denoising import DenoisingTrunk
from mgen.generators.embedder import EMBEDDERS, Embedder, TableRows
from mgen.generators.embedders import Grouped, Lookup, Windowed
from mgen.generators.generator import Generator
from mgen.generators.trunk import TRUNKS, Layout, Trunk
from mgen.generators.trunks.two_stage import Stage, TwoStageMAE, TwoStageMAEConfig
from mgen.generators.trunks.windowed import WindowedTrunk
from mgen.heads.categorical import CategoricalConfig, CategoricalHead
from mgen.heads.composite import PerCodebookHead, VectorWindowHead, WindowHead
from mgen.heads.head import HEADS, DenoisingHead, Head, HeadInputs, JointHead
from mgen.nn.windows import Windows
from mgen.tokens import TokenSpec
from mgen.utils.config import Settings
from mgen.utils.errors import MgenError, check_choice, shown, suggestion
from mgen.utils.estimates import check_fits
from mgen.utils.registry import Choice
from mgen.utils.schema import Depth, build, schema

C = TypeVar("C")
EMBEDDER_OF = {"index": "lookup", "vector": "projection", "multi-index": "dequantize"}


@schema
class WindowsConfig:
    """Windows of side × side tokens that the trunk computes as one row each (Token-Shuffle, arXiv 2504.17789).

    Args:
        side: s. blocks: residual MLPs on either side of the trunk.
        unit: what is masked and drawn as one: "window", or "token": any mask will do, but no cached steps.
    """

    side: Annotated[int, Field(ge=1, le=64)] = 1
    blocks: Depth = 2
    unit: Literal["window", "token"] = "window"

    @property
    def joins(self) -> bool:
        """Whether windows are masked and drawn as one."""
        return self.side > 1 and self.unit == "window"


@dataclass(frozen=True, kw_only=True)
class StageParts:
    """What one set of tokens is built from, checked."""

    tokens: TokenSpec
    embedder: Choice[Embedder]
    head: Choice[Head]

    @property
    def settings(self) -> Settings:
        """The configuration with every default written out."""
        return {"tokens": asdict(self.tokens), "embedder": self.embedder.settings, "head": self.head.settings}


@dataclass(frozen=True, kw_only=True)
class GeneratorParts(StageParts):
    """What a generator is built from, checked. Nothing is built yet."""

    trunk: Choice[Trunk]
    classes: ClassesConfig
    windows: WindowsConfig

    @property
    def settings(self) -> Settings:
        own = {"trunk": self.trunk.settings, "classes": asdict(self.classes), "windows": asdict(self.windows)}
        return super().settings | own

    def make(self) -> Generator:
        """A generator with random weights."""
        tokens, own, windows, rows = self.tokens, self.windows, None, self.tokens
        if own.side != 1 and tokens.grid is not None:
            windows = Windows(tokens.grid, own.side)
            rows = windows.spec(tokens)
        trunk = self.trunk.build(layout=Layout(length=rows.length, grid=rows.grid, global_tokens=rows.global_tokens))
        if windows is not None and own.unit == "token":
            trunk = WindowedTrunk(trunk, windows, blocks=own.blocks)
        embedder = make_embedder(self, trunk, self.classes)
        if windows is not None and own.unit == "window":
            embedder = Windowed(embedder, windows, blocks=own.blocks)
        if isinstance(trunk, DenoisingTrunk):
            embedder = Grouped(embedder, trunk.entities)
        inner = embedder.inner if isinstance(embedder, Windowed) else embedder
        first = inner.ids if self.classes.table == "shared" and isinstance(inner, Lookup) else 0
        masks = embedder if trunk.masks_inputs else trunk
        classes = Classes(self.classes, width=trunk.width, table=embedder.token_table, first=first, masks=masks)
        head = make_head(self, trunk.context_width, embedder, own)
        return Generator(tokens=tokens, embedder=embedder, trunk=trunk, head=head, classes=classes)


@dataclass(frozen=True, kw_only=True)
class CascadeParts:
    """What a cascade is built from, checked. Nothing is built yet."""

    first: StageParts
    second: StageParts
    trunk: TwoStageMAEConfig
    classes: ClassesConfig

    @property
    def settings(self) -> Settings:
        """The configuration with every default written out."""
        trunk = {"type": TwoStageMAE.type_name, **asdict(self.trunk)}
        stages = {"first": self.first.settings, "second": self.second.settings}
        return {**stages, "trunk": trunk, "classes": asdict(self.classes)}

    def make(self) -> Cascade:
        """A cascade with random weights."""
        stages = self.first, self.second
        first, second = (Layout(length=stage.tokens.length, grid=stage.tokens.grid) for stage in stages)
        shared = TwoStageMAE(self.trunk, first=first, second=second)
        if self.classes.null_class == "mask":
            raise MgenError(
                "classes.null_class is mask, but a cascade has a mask token for every position: set it to true"
            )
        classes = Classes(self.classes, width=shared.config.dim)
        made = []
        for index, parts in enumerate(stages):
            trunk = Stage(shared, index)
            embedder = make_embedder(parts, trunk, self.classes)
            head = make_head(parts, trunk.context_width, embedder, WindowsConfig())
            made.append(Generator(tokens=parts.tokens, embedder=embedder, trunk=trunk, head=head, classes=classes))
        return Cascade(first=made[0], second=made[1])


def build_model(config: Settings, where: str = "model.") -> Generator | Cascade:
    """A generator, or a cascade where there are two stages, with random weights.

    Raises:
        MgenError: something is wrong, with the key, or the weights don't fit in memory, both before any is allocated.
    """
    parts = configure(config, where)
    check_fits(parts.make, parts.settings, "this model")
    return parts.make()


def configure(config: Settings, where: str = "model.") -> GeneratorParts | CascadeParts:
    """The parts of a model from its configuration; MgenError that names the key for anything wrong. Builds nothing."""
    if not isinstance(config, Mapping):
        raise MgenError(f"{where.rstrip('.: ') or 'the model'} is {shown(config)}: expected a mapping")
    if "first" in config or "second" in config:
        return _cascade_parts(config, where)
    return _generator_parts(config, where)


def _generator_parts(config: Settings, where: str) -> GeneratorParts:
    _check_sections(config, Generator.config_keys(), {"tokens", "trunk", "head"}, where)
    windows = _section(WindowsConfig, config, "windows", where)
    parts = GeneratorParts(
        **_stage(config, windows, where),
        trunk=TRUNKS.configure(config["trunk"], f"{where}trunk"),
        classes=_section(ClassesConfig, config, "classes", where),
        windows=windows,
    )
    if windows.side != 1:
        if parts.tokens.grid is None or parts.tokens.global_tokens:
            raise MgenError("windows join tokens of a grid: these have none, or global tokens beside it")
        Windows(parts.tokens.grid, windows.side)  # raises if they don't divide the grid
    denoises = issubclass(parts.trunk.cls, DenoisingTrunk)
    if denoises and windows.side != 1:
        raise MgenError(f"trunk {parts.trunk.cls.type_name!r} draws entities of its own: leave windows out")
    _check_denoising(denoises, parts.trunk.cls.type_name, parts.head.cls, f"{where}head.type")
    return parts


def _cascade_parts(config: Settings, where: str) -> CascadeParts:
    _check_sections(config, Cascade.config_keys(), {"first", "second", "trunk"}, where)
    trunk = dict(config["trunk"])
    check_choice(f"{where}trunk.type of a cascade", trunk.pop("type", None), (TwoStageMAE.type_name,))
    stages = {}
    for name in ("first", "second"):
        _check_sections(config[name], {"tokens", "embedder", "head"}, {"tokens", "head"}, f"{where}{name}.")
        stages[name] = StageParts(**_stage(config[name], WindowsConfig(), f"{where}{name}."))
        _check_denoising(False, TwoStageMAE.type_name, stages[name].head.cls, f"{where}{name}.head.type")
    if any(stage.tokens.grid is None for stage in stages.values()):
        raise MgenError(
            "a cascade draws the tokens of a smaller image first: tokens.grid is needed in both stages; for tokens without a grid use a "
            "generator of one stage"
        )
    classes = _section(ClassesConfig, config, "classes", where)
    return CascadeParts(**stages, trunk=build(TwoStageMAEConfig, trunk, f"{where}trunk."), classes=classes)


def _stage(config: Settings, windows: WindowsConfig, where: str) -> dict[str, Any]:
    """Tokens, embedder and head that fit together."""
    tokens = build(TokenSpec, config["tokens"], f"{where}tokens.")
    given = config.get("embedder")
    if isinstance(given, Mapping) or given is None:
        given = {"type": EMBEDDER_OF[tokens.kind], **(given or {})}
    embedder = EMBEDDERS.configure(given, f"{where}embedder")
    if tokens.kind != (kind := embedder.cls.kind):
        name = embedder.cls.type_name
        raise MgenError(f"embedder {name!r} takes tokens of kind {kind!r}, these are of kind {tokens.kind!r}")
    head = HEADS.configure(config["head"], f"{where}head")
    name = f"{where}head.type {head.cls.type_name!r}"
    if tokens.kind not in head.cls.token_kinds:
        kinds = " or ".join(head.cls.token_kinds)
        raise MgenError(f"{name} draws tokens of kind {kinds}, these are of kind {tokens.kind!r}")
    if windows.joins and tokens.kind == "multi-index":
        raise MgenError("windows join ids or vectors of a grid: they don't go with quantized vectors")
    if tokens.global_tokens and not isinstance(head.config, CategoricalConfig):
        raise MgenError(f"{where}head: global tokens have a codebook of their own, which only a categorical head draws")
    if windows.joins and issubclass(head.cls, JointHead):
        raise MgenError(f"{name} draws all positions together, windows are drawn one by one: use another head")
    return {"tokens": tokens, "embedder": embedder, "head": head}


def make_embedder(parts: StageParts, trunk: Trunk, classes: ClassesConfig) -> Embedder:
    """The embedder of these tokens for this trunk."""
    shared = classes.table_rows if classes.table == "shared" else 0
    rows = TableRows(classes=shared, mask=trunk.masks_inputs)
    return parts.embedder.build(tokens=parts.tokens, width=trunk.width, extra=rows)


def make_head(parts: StageParts, width: int, embedder: Embedder, windows: WindowsConfig) -> Head:
    """The head for these tokens; with two codebooks one for each, with windows one for a window."""
    grouped = isinstance(embedder, Grouped)
    drawn = embedder.units if (windows.joins or grouped) and parts.tokens.kind == "vector" else parts.tokens
    apart = embedder.windows.parts if isinstance(embedder, Grouped) else 1
    inputs = HeadInputs(tokens=drawn, width=width, table=embedder.token_table, parts=apart)
    if isinstance(config := parts.head.config, CategoricalConfig) and parts.tokens.global_tokens:
        return PerCodebookHead(config, inputs)
    head = parts.head.build(inputs=inputs)
    if not windows.joins:
        return head
    if isinstance(head, CategoricalHead):
        return WindowHead(head, side=windows.side, blocks=windows.blocks)
    return VectorWindowHead(head, blocks=windows.blocks)


def _check_denoising(denoises: bool, trunk: str, head: type[Head], where: str) -> None:
    """MgenError for a head whose network is the trunk on a trunk that gives contexts, and the other way round."""
    if denoises == issubclass(head, DenoisingHead):
        return
    kinds = [name for name in HEADS.names() if denoises == issubclass(HEADS.get(name), DenoisingHead)]
    what = "reads noisy tokens itself" if denoises else "reads no noisy tokens"
    raise MgenError(f"{where} is {head.type_name!r}, but trunk {trunk!r} {what}: use {' or '.join(kinds)}")


def _check_sections(config: Settings, allowed: set[str], needed: set[str], where: str) -> None:
    for key in config:
        if key not in allowed:
            raise MgenError(f"unknown key '{where}{shown(key)[1:-1]}': {suggestion(str(key), allowed)}")
    for key in sorted(needed):
        if key not in config:
            raise MgenError(f"missing section '{where}{key}': a model needs {', '.join(sorted(needed))}")
        if not isinstance(config[key], Mapping):
            raise MgenError(f"'{where}{key}' takes a mapping, got {shown(config[key])}")


def _section(cls: type[C], config: Settings, key: str, where: str) -> C:
    """The schema of a section that may be left out."""
    given = config.get(key)
    return build(cls, {} if given is None else given, f"{where}{key}.")
