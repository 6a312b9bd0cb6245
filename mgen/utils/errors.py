"""User-facing errors, and helpers for their messages."""

import difflib
from collections.abc import Collection, Iterable


class MgenError(ValueError):
    """Bad input or a bad environment. The message says what was given, what is allowed and what to do next.

    The command line prints it as one line and exits with status 2. Any other exception is a bug and keeps its traceback.
    """


def suggestion(given: str, allowed: Iterable[str]) -> str:
    """The end of an error message about an unknown name: the nearest valid name, then all of them."""
    names = sorted(allowed)
    near = difflib.get_close_matches(given, names, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}? " if near else ""
    return f"{hint}Valid: {', '.join(names)}"


def first_line(error: Exception, most: int = 200) -> str:
    """What an error says, in one line of `most` characters."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:most]


def check_choice(what: str, given: str, allowed: Iterable[str]) -> str:
    """Return `given` if it is allowed, else raise an MgenError that names the nearest valid name."""
    if given not in set(allowed):
        raise MgenError(f"unknown {what} {given!r}: {suggestion(given, allowed)}")
    return given


def check_keys(given: Iterable[str], allowed: Collection[str], where: str) -> None:
    """Raise MgenError for the first key that is not allowed, naming the nearest valid one."""
    for key in given:
        if key not in allowed:
            raise MgenError(f"unknown key '{where}{key}': {suggestion(key, allowed)}")
