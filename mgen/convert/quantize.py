"""A KL tokenizer with levels (TokenBridge): settings from the command line, and the tokenizer from a folder, a name or an official file."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from mgen.convert.convert import convert
from mgen.nn.levels import PUBLISHED_ORDER, best_range
from mgen.pipelines.saved import load_tokenizer
from mgen.tokenizers import KLTokenizer, QuantizedKL
from mgen.utils.config import Settings
from mgen.utils.errors import MgenError
from mgen.utils.schema import Natural, Positive, Size, build, schema


@schema
class LevelSettings:
    """What `mgen convert quantize` takes; see mgen.tokenizers.QuantizedKL."""

    image_size: Size | None = None
    levels: Annotated[int, Field(ge=2, le=65536)] = 64
    low: float = -5.0
    high: float = 5.0
    span: Positive = 3.0
    form: Literal["published", "clean"] = "published"
    channel_order: tuple[Natural, ...] | Literal["published"] | None = None


def quantized(source: str, settings: Settings) -> tuple[QuantizedKL, str]:
    """The KL tokenizer of `source` with levels (folder, name of a model, or official file), and the report.

    Raises:
        MgenError: `source` holds no KL tokenizer, or the settings do not fit it.
    """
    chosen = build(LevelSettings, settings)
    given: Settings = {name: getattr(chosen, name) for name in settings}
    if given.get("channel_order") == "published":
        given["channel_order"] = PUBLISHED_ORDER
    found: object = convert("kl16", source).model if Path(source).is_file() else load_tokenizer(source)
    found = getattr(found, "continuous", found)
    if not isinstance(found, KLTokenizer):
        raise MgenError(f"{source} holds a {type(found).__name__}: quantize takes a KL tokenizer")
    made = QuantizedKL.wrap(found, **given)
    spec, c = made.spec, made.config
    best = best_range(c.levels, span=c.span, form=c.form)
    return made, (
        f"QuantizedKL of {source}: {spec.sizes()}, {spec.levels}\n"
        f"  note: for latents of unit variance these levels err least in [{-best:.2f}, {best:.2f}]; measure others with mgen eval --levels"
    )
