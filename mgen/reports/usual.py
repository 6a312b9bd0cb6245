"""Is a run normal? Its curves beside those of another training, by one rule, and the settings in which the two differ."""

import json
from dataclasses import dataclass

from mgen.reports.data import number, plain
from mgen.reports.training import Points, Training, smooth, value_at
from mgen.utils.logged import in_order, logged

RULE = (
    "A value is in the usual range if its smoothed curve lies, on average over the last third of the images that both runs have seen, "
    "within ±10 % of the other's (PSNR ±5 %, gradient norm ±50 %, learning rate ±1 %). Curves are smoothed over a 15th of their values; "
    "values of single batches are compared once both runs have five over the same images."
)
LEAST = 5  # values of single batches, below which they are too noisy to compare
SCALE = ("task", "kind of tokens", "vocabulary, ids", "head")  # of `about`: what decides the scale of a loss


@dataclass(frozen=True, kw_only=True)
class Difference:
    """A setting of a run and of the one it is compared with."""

    setting: str
    run: object
    other: object

    @property
    def text(self) -> str:
        return f"{self.setting} {plain(self.run)} (here), {plain(self.other)} (there)"


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """Whether one value of a run is in the usual range; None: not compared, and the text says why. difference: a share."""

    metric: str
    text: str
    usual: bool | None
    value: float | None = None
    other: float | None = None
    difference: float | None = None


def differences(run: Training, other: Training) -> list[Difference]:
    """The settings that both know and that differ, those of the model and the data first."""
    found: list[Difference] = []
    for mine, theirs in ((run.about, other.about), (run.settings, other.settings)):
        for key in mine:
            known = key in theirs and key not in [d.setting for d in found]
            if known and not _same(mine[key], theirs[key]):
                found.append(Difference(setting=key, run=mine[key], other=theirs[key]))
    return found


def _same(a: object, b: object) -> bool:
    return json.dumps(a, sort_keys=True, default=str) == json.dumps(b, sort_keys=True, default=str) or a == b


def verdicts(run: Training, other: Training) -> list[Verdict]:
    """A sentence for each value that both runs have."""
    found = differences(run, other)
    task = [d for d in found if d.setting == "task"]
    objective = [d for d in found if d.setting in SCALE or d.setting.startswith("objective.")]
    return [
        _verdict(name, run, other, task or (objective if logged(name).objective else []))
        for name in in_order(set(run.curves) & set(other.curves))
    ]


def _verdict(name: str, run: Training, other: Training, barriers: list[Difference]) -> Verdict:
    mine, theirs = (smooth(training.over_images(name), name) for training in (run, other))
    title, band = short_title(name), logged(name).band
    title = title[0].upper() + title[1:]
    pairs = shared(mine, theirs)
    if not pairs:
        text = f"{title}: {_range(mine)} here and {_range(theirs)} of {other.name} have nothing in common."
        return Verdict(metric=name, text=text, usual=None)
    few = min(_within(mine, theirs), _within(theirs, mine)) < LEAST
    if few and logged(name).noisy and not name.startswith("val_"):
        text = f"{title}: fewer than {LEAST} values of both runs over the same images so far."
        return Verdict(metric=name, text=text, usual=None)
    value, expected = (sum(pair[i] for pair in pairs) / len(pairs) for i in (1, 2))
    difference = (value - expected) / abs(expected) if expected else 0.0 if value == expected else float("inf")
    size = (
        "the same as" if abs(difference) < 5e-4 else f"{_percent(difference)} {'above' if difference > 0 else 'below'}"
    )
    told = f"{title}: {number(value)}, {size} {other.name}'s {number(expected)}"
    facts = dict(value=value, other=expected, difference=difference)
    if band is None:
        why = (
            "it depends on the machine"
            if name in ("images_per_second", "mfu", "data_wait")
            else "it has no usual range"
        )
        return Verdict(metric=name, text=f"{told}; {why}.", usual=None, **facts)
    if barriers:
        why = ", ".join(d.setting for d in barriers[:3]) + (" and more" if len(barriers) > 3 else "")
        differ = "differs" if len(barriers) == 1 else "differ"
        return Verdict(metric=name, text=f"{told}; not comparable, since {why} {differ}.", usual=None, **facts)
    usual = abs(difference) <= band
    where = "in" if usual else "outside"
    return Verdict(metric=name, text=f"{told}: {where} the usual range (±{100 * band:g} %).", usual=usual, **facts)


def _within(points: Points, others: Points) -> int:
    """How many points of a curve lie in the range of another."""
    return sum(1 for x, _ in points if others[0][0] <= x <= others[-1][0])


def short_title(name: str) -> str:
    """The title of a value without its unit."""
    return logged(name).title.partition(",")[0]


def sentences(found: list[Verdict]) -> list[Verdict]:
    """The verdicts as one reads them: those for which it is too early, because the runs share no images yet, as one."""
    early = [verdict for verdict in found if verdict.value is None]
    rest = [verdict for verdict in found if verdict.value is not None]
    if not early:
        return rest
    names = ", ".join(short_title(verdict.metric) for verdict in early)
    reason = f" ({early[0].text.partition(': ')[2].rstrip('.')})"
    return [*rest, Verdict(metric="", text=f"Too early to say: {names}{reason}.", usual=None)]


def shared(mine: Points, theirs: Points) -> list[tuple[float, float, float]]:
    """(images, own value, other value) where both curves are, over the last third of what they share."""
    pairs = [(x, y, z) for x, y in mine if (z := value_at(theirs, x)) is not None]
    if not pairs:  # such as two values here between two there
        pairs = [(x, y, z) for x, z in theirs if (y := value_at(mine, x)) is not None]
    return [pair for pair in pairs if pair[0] >= pairs[0][0] + (pairs[-1][0] - pairs[0][0]) * 2 / 3]


def summary(found: list[Verdict], other: str) -> str:
    """All verdicts on a run in one sentence."""
    names = {
        kind: [logged(v.metric).title.partition(",")[0] for v in found if v.usual is kind] for kind in (True, False)
    }
    if not names[True] and not names[False]:
        return f"Nothing can be compared with {other}, for the reasons below."
    parts = [f"in the usual range of {other}: {', '.join(names[True])}"] if names[True] else []
    parts += [f"outside: {', '.join(names[False])}"] if names[False] else []
    text = "; ".join(parts)
    return f"{text[0].upper()}{text[1:]}."


def _percent(share: float) -> str:
    value = abs(100 * share)
    return f"{value:.1f} %" if value < 10 else f"{value:,.0f} %"


def _range(points: Points) -> str:
    first, last = points[0][0], points[-1][0]
    return f"{first:,.0f} images" if first == last else f"{first:,.0f} … {last:,.0f} images"
