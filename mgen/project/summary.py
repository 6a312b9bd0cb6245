"""A survey in words: what there is, and what to look at before training."""

from collections.abc import Iterator, Sequence

from mgen.project.draft import Draft
from mgen.project.survey import FEW, Survey
from mgen.utils.errors import one_line
from mgen.utils.limits import in_gb, in_time

MOST_NAMES = 8  # classes that are named


def count(number: int, what: str) -> str:
    """A number of things: "1 image", "3,700 images", "2 classes"."""
    return f"{number:,} {what}{'' if number == 1 else 'es' if what.endswith('s') else 's'}"


def summary(found: Survey, image_size: int) -> list[str]:
    """The survey in a few lines, the plain facts first."""
    sides = found.sides
    spread = f"{sides[0]}" if sides[0] == sides[-1] else f"{sides[0]} to {sides[-1]}, median {found.side}"
    kinds = ", ".join(f"{number:,} {form}" for form, number in found.formats.most_common(4))
    looked = "" if found.seen == found.count else f"; looked at {found.seen:,} of them"
    lines = [
        f"{count(found.count, 'image')}, {_classes(found)}{looked}",
        f"{kinds}; {'color' if found.color else 'gray'}; shorter side {spread} px, used at {image_size} px",
        *notes(found, image_size),
    ]
    return [one_line(line) for line in lines]  # names of folders may hold anything


def estimates(draft: Draft) -> list[str]:
    """Time and memory of every stage, a line each."""
    rows = [
        f"{stage:<10} {in_time(3600 * hours):>12}"
        + (f", {in_gb(draft.memory[stage])} of memory" if stage in draft.memory else "")
        for stage, hours in draft.hours.items()
    ]
    return [*rows, f"{'together':<10} {in_time(3600 * sum(draft.hours.values())):>12}"] if rows else []


def closing(draft: Draft, folder: str) -> list[str]:
    """What to do next."""
    return [
        *estimates(draft),
        f"next: read and edit the files in {one_line(folder)}, then mgen train --project {one_line(folder)}",
    ]


def notes(found: Survey, image_size: int) -> Iterator[str]:
    """What is worth a look."""
    if found.transparent:
        yield f"{count(found.transparent, 'image')} with an alpha channel: put on white"
    if found.deep:
        yield f"{count(found.deep, 'image')} of 16 bits: rounded to 8"
    if small := sum(side < image_size for side in found.sides):
        yield f"{count(small, 'image')} smaller than {image_size} px: enlarged, which leaves them soft"
    if found.long:
        yield f"{count(found.long, 'image')} at least twice as long as wide, or the other way round: only the middle square is used"
    if found.copies:
        yield f"{count(found.copies, 'image')} with the contents of another file: copies weigh double, and may be in both parts of a split"
    yield from _notes_on_classes(found)


def _notes_on_classes(found: Survey) -> Iterator[str]:
    counts = found.counts
    if found.classes < 2:
        yield "a single class: the model samples without classes, and no classifier can be trained to measure it with"
        return
    most, least = max(counts, key=counts.__getitem__), min(counts, key=counts.__getitem__)
    if counts[most] >= 5 * counts[least]:
        yield f"uneven classes: {most} has {counts[most]:,}, {least} {counts[least]:,}; rare classes are learned less well"
    if few := [name for name, number in counts.items() if number < FEW]:
        yield f"{count(len(few), 'class')} with fewer than {FEW} images: {names(few)}"
    lowered = [name.casefold().strip() for name in counts]
    if twins := [name for name in counts if lowered.count(name.casefold().strip()) > 1]:
        yield f"classes whose names differ in case or blanks alone: {names(twins)}"


def _classes(found: Survey) -> str:
    if not found.has_classes:
        return "no class folders: all are one class"
    return f"{count(found.classes, 'class')}: " + names([f"{name} {number:,}" for name, number in found.counts.items()])


def names(some: Sequence[str], most: int = MOST_NAMES) -> str:
    """A list of names that ends with how many more there are."""
    more = len(some) - most
    return ", ".join(some[:most]) + (f" and {more:,} more" if more > 0 else "")
