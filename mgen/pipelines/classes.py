"""Classes as users ask for them: by id, range or name, in a text or in Python."""

import csv
import re
from collections.abc import Sequence

import numpy as np
import torch

from mgen.tokens import has_values
from mgen.utils.errors import MgenError, shown, suggestion
from mgen.zoo.imagenet import aliases, folded, nearest_classes

MOST_TEXT = 2**20  # characters


def read_classes(text: str, names: Sequence[str], where: str) -> list[int]:
    """Class ids of a text such as "0,3,7-9" or "bag,dress".

    A name is taken as it is written first, then without regard to case; of ImageNet's classes synonyms and WordNet ids do too. The whole
    text may be one name, and a name with a comma may stand in quotes. "id:2" is an id and "name:2" a name, where one could mean the other.

    Args:
        names: of all classes, by id. where: the option, for error messages.

    Raises:
        MgenError: unknown names, ids out of range, or what could mean several classes; the message names them.
    """
    if text in names and not re.fullmatch("[0-9]+", text):
        return [_named(text, names, where)]
    if len(text) > MOST_TEXT:
        raise MgenError(f"{where}: {len(text):,} characters are too many: give ids, ranges like 0-9 or names")
    try:
        parts = next(csv.reader([text], skipinitialspace=True, strict=True), [])
    except csv.Error as error:
        raise MgenError(f"{where} {shown(text)}: {error}; put names with commas in double quotes") from error
    out: list[int] = []
    for part in parts:
        out += _part(part.strip(), names, where)
        if len(out) > 10 * len(names) + 1000:
            raise MgenError(
                f"{where} names more than {len(out) - 1} classes, this model has {len(names)}: name each once"
            )
    if not out:
        raise MgenError(f"{where} names no class")
    return out


def _part(part: str, names: Sequence[str], where: str) -> list[int]:
    kind = next((kind for kind in ("id", "name") if part.startswith(f"{kind}:") and part not in names), None)
    if kind == "name":
        return [_named(part.removeprefix("name:"), names, where)]
    match = re.fullmatch("([0-9]+)(-[0-9]+)?", part.removeprefix("id:") if kind else part)
    if not match:
        return [_named(part, names, where)]
    first, last = (int(n) if len(n) < 10 else 10**9 for n in (match[1], (match[2] or match[1]).lstrip("-")))
    if part in names:
        named = _named(part, names, where)
        if not match[2] and named != first < len(names):
            raise MgenError(
                f"{where}: {part} is the name of class {named} and the id of the class called {names[first]!r}: write name:{part} or "
                f"id:{part}"
            )
        return [named]
    if last >= len(names):
        raise MgenError(f"class {part[:60]} is out of range: this model has classes 0 … {len(names) - 1}")
    if first > last:
        raise MgenError(f"{where}: the range {part} is empty: give the smaller id first")
    for i, name in enumerate(names):
        if match[2] and not kind and re.fullmatch("[0-9]{1,9}", name) and first <= int(name) <= last and int(name) != i:
            raise MgenError(
                f"{where}: {part} could mean ids or names, and the class called {name} has id {i}: write id:{part}, or list the names"
            )
    return list(range(first, last + 1))


def _named(name: str, names: Sequence[str], where: str) -> int:
    """The class of that name, as it is written, without regard to case, or by a synonym; MgenError if there is none, or several."""
    found: Sequence[int] = [i for i, other in enumerate(names) if other == name]
    found = found or [i for i, other in enumerate(names) if other.casefold() == name.casefold()]
    found = found or aliases(names).get(folded(name), ())
    start = f"{where}: " if where else ""
    if not found:
        raise MgenError(
            f"{start}{shown(name)} is neither a class id, a range like 0-9, nor a class name of this model: {_some(name, names)}"
        )
    if len(found) > 1:
        raise MgenError(f"{start}{shown(name)} could be class {_listed(found, names)}: give the id")
    return found[0]


def _listed(ids: Sequence[int], names: Sequence[str]) -> str:
    return ", ".join(f"{i} ({names[i]})" for i in ids[:10])


def _some(name: str, names: Sequence[str]) -> str:
    """The nearest names, and all of them if they are few."""
    if len(names) <= 20:
        return suggestion(name, names)
    near = nearest_classes(name, names)
    return (f"did you mean {_listed(near, names)}? " if near else "") + f"ids are 0 … {len(names) - 1}"


def class_ids(
    classes: object, names: Sequence[str], null: int | None, conditional: bool, name: str = "classes"
) -> list[int]:
    """Class ids of what Python passes for images: ids, names and None, one per image, in a sequence or a tensor of ids.

    Args:
        names: of all classes, by id. null: id of the null class, which None stands for; None: there is none.
        name: of the argument, for error messages.

    Raises:
        MgenError: no sequence, no entries, entries of another type, unknown names, or ids out of range.
    """
    if isinstance(classes, torch.Tensor | np.ndarray):
        # Whole numbers stay whole, others raise an error below.
        classes = classes.tolist() if classes.ndim == 1 and has_values(classes) else classes
    if isinstance(classes, str | bytes) or not isinstance(classes, Sequence):
        raise MgenError(
            f"{name} is {shown(classes)}: expected a list with a class id, a class name or None for each image, such as [0, 1]"
        )
    if len(classes) == 0:
        raise MgenError(f"{name} is empty: give a class for each image, or None for the null class")
    return [_class_id(c, names, null, conditional, name) for c in classes]


def _class_id(c: object, names: Sequence[str], null: int | None, conditional: bool, name: str) -> int:
    if c is None:
        if null is None:
            raise MgenError("this generator has no null class: give a class for every image")
        return null
    if isinstance(c, str) and conditional:
        return _named(c, names, name)
    if isinstance(c, bool) or not isinstance(c, int | np.integer):
        raise MgenError(f"{name} holds {shown(c)}: expected class ids, class names or None")
    count = len(names) if conditional else 1
    if not 0 <= c < count:
        raise MgenError(f"class {shown(int(c))} is out of range: this model has classes 0 … {count - 1}")
    return int(c)
