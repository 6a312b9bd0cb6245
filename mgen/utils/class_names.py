"""Class names as model_index.json has them: {"0": …, "1": …}. diffusers takes every list there for the package and class of a part."""

from collections.abc import Mapping, Sequence


def names_by_id(names: object) -> object:
    """Saved names, or a list of them as earlier versions wrote, as a tuple; anything else as it is."""
    if isinstance(names, Mapping) and set(names) == {str(i) for i in range(len(names))}:
        return tuple(names[str(i)] for i in range(len(names)))
    return tuple(names) if isinstance(names, list) else names


def by_id(names: Sequence[str]) -> dict[str, str]:
    """Names as they are saved."""
    return {str(i): name for i, name in enumerate(names)}
