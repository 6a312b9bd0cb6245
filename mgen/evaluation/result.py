"""The result of an evaluation, as it is written to result.json (format 2) and read by reports."""

from typing import NotRequired, TypedDict

FORMAT = 2
Facts = dict[str, object]  # settings and other facts for the reader of a result, ready for JSON


class NearImage(TypedDict):
    """An image as a data URI, its class id (-1: unknown) and name, if its data has names, and its distance to the sampled image."""

    image: str
    label: int
    distance: float
    name: NotRequired[str]


class NearRow(NearImage):
    """A sampled image with its nearest training images, the nearest first."""

    neighbors: list[NearImage]


class NearestImages(TypedDict):
    """The nearest training images of some sampled ones; `typical` is such a distance between training images."""

    data: str
    count: int
    rows: list[NearRow]
    typical: float
    note: str


class PublishedRow(TypedDict):
    """A published value of a metric beside the measured one."""

    metric: str
    published: float
    tolerance: float | None
    measured: float | None
    verdict: str


class PublishedTable(TypedDict):
    """What a recipe says was published, compared with a result."""

    recipe: str
    rows: list[PublishedRow]
    note: str


class Result(TypedDict):
    """Metrics with everything that determines them.

    Keys: `deviations`: standard deviations of metrics. `better`: "lower" or "higher" for each metric that has a direction.
    `missing`: metrics that can't be computed, with the reason. `by_class`: column → class id → number. `images`: what was evaluated
    and how it was sampled. `note`: what to know before comparing, separated by semicolons.
    """

    format: int
    title: str
    command: str
    created: str
    metrics: dict[str, float]
    deviations: dict[str, float]
    better: dict[str, str]
    missing: dict[str, str]
    by_class: dict[str, dict[str, float]]
    class_names: list[str]
    count: int
    images: Facts
    protocol: Facts
    extractor: Facts
    reference: Facts | None
    classifier: Facts | None
    bootstrap: Facts | None
    cost: Facts | None
    nearest: NearestImages | None
    note: str
    versions: dict[str, str]
    published: NotRequired[PublishedTable]
