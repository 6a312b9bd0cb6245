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
from typing import Literal

from mgen.generators.cascade import Cascade
from mgen.generators.classes import Classes, ClassesConfig
from mgen.generators.embedder import EMBEDDERS, Embedder, TableRows
from mgen.generators.embedders import Lookup, Windowed
from mgen.generators.generator import Generator
from mgen.generators.trunk import TRUNKS, Layout, Trunk
from mgen.generators.trunks.two_stage import Stage, TwoStageMAE, TwoStageMAEConfig
from mgen.generators.trunks.windowed import WindowedTrunk
from mgen.heads.categorical import CategoricalConfig, CategoricalHead
from mgen.heads.composite import PerCodebookHead, VectorWindowHead, WindowHead
from mgen.heads.head import HEADS, Head, HeadInputs, JointHead
from mgen.nn.windows import Windows
from mgen.tokens import TokenSpec
from mgen.utils.config import Settings
from mgen.utils.errors import MgenError, check_choice, suggestion
from mgen.utils.schema import build, schema

EMBEDDER_OF = {"index": "lookup", "vector": "projection", "multi-index": "dequantize"}


@schema
class WindowsConfig:
    """Windows of side × side tokens that the trunk computes as one row each (Token-Shuffle, arXiv 2504.17789).

    Args:
        side: s. blocks: residual MLPs on either side of the trunk.
        unit: what is masked and drawn as one: "window", or "token": any mask will do, but no cached steps.
    """

    side: int = 1
    blocks: int = 2
    unit: Literal["window", "token"] = "window"


def build_model(config: Settings, where: str = "model.") -> Generator | Cascade:
    """A generator, or a cascade where there are two stages; MgenError that names the key for anything wrong."""
    return build_cascade(config, where) if "first" in config or "second" in config else build_generator(config, where)


def build_generator(config: Settings, where: str = "model.") -> Generator:
    """A generator with random weights from its configuration."""
    _check_sections(config, Generator.config_keys(), {"tokens", "trunk", "head"}, where)
    tokens = _tokens(config["tokens"])
    chosen = TRUNKS.configure(config["trunk"], f"{where}trunk")
    classes_config = build(ClassesConfig, dict(config.get("classes") or {}), f"{where}classes.")
    settings = build(WindowsConfig, dict(config.get("windows") or {}), f"{where}windows.")
    windows, rows = None, tokens
    if settings.side != 1:
        if tokens.grid is None or tokens.global_tokens:
            raise MgenError("windows join tokens of a grid: these have none, or global tokens beside it")
        windows = Windows(tokens.grid, settings.side)
        rows = windows.spec(tokens)
    trunk = chosen.build(layout=Layout(length=rows.length, grid=rows.grid, global_tokens=rows.global_tokens))
    if windows is not None and settings.unit == "token":
        trunk = WindowedTrunk(trunk, windows, blocks=settings.blocks)
    embedder = _embedder(config.get("embedder"), tokens, trunk, classes_config, f"{where}embedder")
    if windows is not None and settings.unit == "window":
        embedder = Windowed(embedder, windows, blocks=settings.blocks)
    inner = embedder.inner if isinstance(embedder, Windowed) else embedder
    first = inner.ids if classes_config.table == "shared" and isinstance(inner, Lookup) else 0
    classes = Classes(classes_config, width=trunk.width, table=embedder.token_table, first=first)
    head = build_head(config["head"], tokens, trunk.context_width, embedder, settings, f"{where}head")
    return Generator(tokens=tokens, embedder=embedder, trunk=trunk, head=head, classes=classes)


def build_cascade(config: Settings, where: str = "model.") -> Cascade:
    """A cascade with random weights from its configuration."""
    _check_sections(config, Cascade.config_keys(), {"first", "second", "trunk"}, where)
    trunk = dict(config["trunk"])
    check_choice(f"{where}trunk.type of a cascade", str(trunk.pop("type", None)), (TwoStageMAE.type_name,))
    stages = [dict(config[name]) for name in ("first", "second")]
    specs = [_tokens(stage.get("tokens") or {}) for stage in stages]
    first, second = (Layout(length=spec.length, grid=spec.grid) for spec in specs)
    shared = TwoStageMAE(build(TwoStageMAEConfig, trunk, f"{where}trunk."), first=first, second=second)
    settings = build(ClassesConfig, dict(config.get("classes") or {}), f"{where}classes.")
    classes = Classes(settings, width=shared.config.dim)
    made = []
    for index, (name, stage, tokens) in enumerate(zip(("first", "second"), stages, specs)):
        _check_sections(stage, {"tokens", "embedder", "head"}, {"tokens", "head"}, f"{where}{name}.")
        part = Stage(shared, index)
        embedder = _embedder(stage.get("embedder"), tokens, part, classes.config, f"{where}{name}.embedder")
        head = build_head(stage["head"], tokens, part.context_width, embedder, WindowsConfig(), f"{where}{name}.head")
        made.append(Generator(tokens=tokens, embedder=embedder, trunk=part, head=head, classes=classes))
    return Cascade(first=made[0], second=made[1])


def build_head(
    settings: Settings, tokens: TokenSpec, width: int, embedder: Embedder, windows: WindowsConfig, where: str
) -> Head:
    """The head for these tokens; with two codebooks one for each, with windows one for a window."""
    chosen = HEADS.configure(settings, where)
    cls, config = chosen
    if tokens.kind not in cls.token_kinds:
        raise MgenError(
            f"{where}.type {cls.type_name!r} draws tokens of kind {' or '.join(cls.token_kinds)}, these are of kind {tokens.kind!r}"
        )
    joined = windows.side > 1 and windows.unit == "window"
    if joined and (tokens.global_tokens or tokens.kind == "multi-index"):
        raise MgenError(
            "windows join ids or vectors of a grid: they go neither with global tokens nor with quantized vectors"
        )
    drawn = embedder.units if joined and tokens.kind == "vector" else tokens
    inputs = HeadInputs(tokens=drawn, width=width, table=embedder.token_table)
    if tokens.global_tokens:
        if not isinstance(config, CategoricalConfig):
            raise MgenError(f"{where}: global tokens have a codebook of their own, which only a categorical head draws")
        return PerCodebookHead(config, inputs)
    head = chosen.build(inputs=inputs)
    if not joined:
        return head
    if isinstance(head, JointHead):
        raise MgenError(
            f"{where}.type {cls.type_name!r} draws all positions together, windows are drawn one by one: use another head"
        )
    if isinstance(head, CategoricalHead):
        return WindowHead(head, side=windows.side, blocks=windows.blocks)
    return VectorWindowHead(head, blocks=windows.blocks)


def _check_sections(config: Settings, allowed: set[str], needed: set[str], where: str) -> None:
    for key in config:
        if key not in allowed:
            raise MgenError(f"unknown key '{where}{key}': {suggestion(str(key), allowed)}")
    if missing := sorted(key for key in needed if not isinstance(config.get(key), Mapping)):
        raise MgenError(f"missing section '{where}{missing[0]}': a model needs {', '.join(sorted(needed))}")


def _tokens(settings: Settings) -> TokenSpec:
    tokens = TokenSpec.from_dict(settings)
    if tokens.kind != "vector" and (tokens.vocab_size or 0) < 1:
        raise MgenError(f"tokens.vocab_size is {tokens.vocab_size}: tokens of kind {tokens.kind!r} need at least 1")
    rows = tokens.length - tokens.global_tokens
    if tokens.length < 1 or rows < 0 or (tokens.grid is not None and tokens.grid[0] * tokens.grid[1] != rows):
        raise MgenError(
            f"tokens.length is {tokens.length}, tokens.grid {tokens.grid}, tokens.global_tokens {tokens.global_tokens}: rows times "
            "columns of the grid must be length − global_tokens"
        )
    return tokens


def _embedder(
    settings: Settings | None, tokens: TokenSpec, trunk: Trunk, classes: ClassesConfig, where: str
) -> Embedder:
    chosen = EMBEDDERS.configure({"type": EMBEDDER_OF[tokens.kind], **(settings or {})}, where)
    if tokens.kind != (kind := chosen.cls.kind):
        name = chosen.cls.type_name
        raise MgenError(f"embedder {name!r} takes tokens of kind {kind!r}, these are of kind {tokens.kind!r}")
    shared = classes.table_rows if classes.table == "shared" else 0
    return chosen.build(tokens=tokens, width=trunk.width, extra=TableRows(classes=shared, mask=trunk.masks_inputs))
