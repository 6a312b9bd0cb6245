"""The schema of result.json (format 2), see `mgen.evaluation.result.Result` for what its keys mean.

NaN and infinity are written as null. Keys of later versions are passed over.
"""

from typing import Annotated, Any, Literal

from pydantic import Field

from mgen.utils.errors import MgenError, shown
from mgen.utils.schema import Natural, NonNegative, Text, schema

Number = float | int | None
Label = Annotated[int, Field(ge=-1, le=2**31)]
Name = Annotated[str, Field(max_length=10_000)]


@schema(extra=True)
class NearImage:
    image: str
    label: Label = -1
    distance: NonNegative
    name: Name | None = None


@schema(extra=True)
class NearRow(NearImage):
    neighbors: tuple[NearImage, ...]


@schema(extra=True)
class Nearest:
    data: Name = ""
    count: Natural = 0
    rows: tuple[NearRow, ...] = ()
    typical: NonNegative | None = None
    note: str | None = None


@schema(extra=True)
class PublishedRow:
    metric: Text
    published: Number = None
    tolerance: Number = None
    measured: Number = None
    verdict: str = ""


@schema(extra=True)
class Published:
    recipe: str = ""
    rows: tuple[PublishedRow, ...]
    note: str | None = None


@schema(extra=True)
class ResultFile:
    """A result as a report needs it."""

    format: int
    title: Name
    command: str
    created: str
    metrics: dict[Name, Number]
    deviations: dict[Name, NonNegative | None]
    better: dict[Name, Literal["lower", "higher"] | None]
    missing: dict[Name, str | None]
    by_class: dict[Name, dict[Name, Number]]
    class_names: tuple[Name | int, ...]
    count: Natural
    images: dict[str, Any]
    protocol: dict[str, Any]
    extractor: dict[str, Any]
    reference: dict[str, Any] | None
    classifier: dict[str, Any] | None
    bootstrap: dict[str, Any] | None
    cost: dict[str, Any] | None
    nearest: Nearest | None
    note: str | None
    versions: dict[str, Any]
    published: Published | None = None

    def __post_init__(self) -> None:
        sampler = self.images.get("sampler")
        if sampler is not None and not isinstance(sampler, dict):
            raise MgenError(f"'images.sampler' takes a mapping or null, got {shown(sampler)}")
