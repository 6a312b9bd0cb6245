"""What a reader says of an official layout, and the registry of formats by name."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from mgen.convert.reading import Renamed, State
from mgen.utils.config import Settings
from mgen.utils.errors import MgenError


@dataclass(frozen=True, kw_only=True)
class Format:
    """How one official layout is read.

    Attributes:
        model: name of our class. trunk: of a generator, the type of its trunk.
        config: shapes → configuration, as far as shapes tell; the rest are the published values.
        notes: final arguments → lines that the user should read.
        locate: path as given → the file of the weights, or its folder. beside: that file → arguments from a file next to it, of a
            generator sections that are laid over those of `config`.
        rename: official state → ours, with what became of every name; it may take the final configuration as `config`.
        extra: settings of a conversion that are no arguments of the class. prepare: settings as given and the arguments that `config` found
            → settings in which arguments stand in their place.
        tokenizer: of a generator, the format of the tokenizer it was published with.
        tokenizer_inside: how the names of that tokenizer begin, where the generator's file holds it too.
        keys: where official files hold the weights, beside the places that all formats share. ema: where they hold an EMA, if the
            official scripts prefer it.
        buffers: tensors that only the weights without EMA hold, because nothing averages them.
    """

    config: Callable[[State], Settings]
    rename: Callable[..., Renamed]
    model: str = "Generator"
    trunk: str | None = None
    keys: tuple[str, ...] = ("model",)
    ema: str | None = None
    buffers: tuple[str, ...] = ()
    notes: Callable[[Settings], list[str]] = lambda config: []
    locate: Callable[[Path], Path] = Path
    beside: Callable[[Path], Settings] | None = None
    extra: tuple[str, ...] = ()
    prepare: Callable[[Settings, Settings], Settings] | None = None
    tokenizer: str | None = None
    tokenizer_inside: str | None = None


REGISTERED: dict[str, Format] = {}


def register_format(name: str, layout: Format) -> None:
    """Make a layout known to `mgen convert` as `name`; mgen.zoo.formats holds its line of help."""
    if name in REGISTERED:
        raise MgenError(f"format {name!r} is registered twice: choose another name")
    REGISTERED[name] = layout
