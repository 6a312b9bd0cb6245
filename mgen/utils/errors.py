"""Errors a user can mend, and the words that help to mend them."""

import difflib
from collections.abc import Iterable


class MgenError(ValueError):
    """Bad input or a bad environment: the message says what was given, what is allowed and what to do next.

    The command line prints the message as one line and exits with status 2; anything else is a bug and keeps its traceback.
    """


def suggestion(given: str, allowed: Iterable[str]) -> str:
    """The tail of an error about an unknown name: the nearest valid one, then all of them."""
    names = sorted(allowed)
    near = difflib.get_close_matches(given, names, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}? " if near else ""
    return f"{hint}Valid: {', '.join(names)}"


def check_choice(what: str, given: str, allowed: Iterable[str]) -> str:
    """Return `given` if it is one of `allowed`, else raise an MgenError that names the nearest."""
    if given not in set(allowed):
        raise MgenError(f"unknown {what} {given!r}: {suggestion(given, allowed)}")
    return given
