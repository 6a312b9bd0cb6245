"""User-facing errors, and helpers for their messages."""

import difflib
import reprlib
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager

MOST_CHARACTERS = 1500  # of a message; a list of valid names may be long


class MgenError(ValueError):
    """Bad input or a bad environment. The message says what was given, what is allowed and what to do next, in one line.

    The command line prints it and exits with status 2. Any other exception is a bug and keeps its traceback.
    """

    def __init__(self, message: object) -> None:
        super().__init__(one_line(str(message)))


@contextmanager
def naming(what: str) -> Iterator[None]:
    """Put what was given, such as the key of a setting, in front of the message of an MgenError that is raised within."""
    try:
        yield
    except MgenError as error:
        raise MgenError(f"{what}: {error}") from error


def one_line(text: str) -> str:
    """A text in one line, of bounded length, in which characters that a terminal obeys or hides are written as escapes."""
    text = " ".join(text.split())
    if not text.isprintable():
        text = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
    return text if len(text) <= MOST_CHARACTERS else f"{text[: MOST_CHARACTERS - 400]} … {text[-390:]}"


class Terminated(KeyboardInterrupt):
    """SIGTERM, which commands handle like Ctrl-C."""


def suggestion(given: str, allowed: Iterable[str]) -> str:
    """The end of an error message about an unknown name: the nearest valid name, then all of them."""
    names = sorted(allowed)
    given = given[:100]
    near = difflib.get_close_matches(given, names, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}? " if near else ""
    return f"{hint}Valid: {', '.join(names)}"


class _Short(reprlib.Repr):
    """Of bounded length; Python refuses to write integers of more than 4300 digits, and tensors take many lines."""

    def repr1(self, x: object, level: int) -> str:
        if isinstance(x, int) and x.bit_length() > 200:
            return f"a number of about {int(x.bit_length() * 0.30103) + 1} digits"
        if hasattr(x, "shape") and hasattr(x, "dtype") and not isinstance(x, type):
            meta = " on the meta device" if getattr(x, "is_meta", False) else ""
            return f"a {type(x).__name__} of shape {tuple(x.shape)} and type {x.dtype}{meta}"
        return super().repr1(x, level)


def shown(value: object, most: int = 60) -> str:
    """`repr` in at most about `most` characters, also of values whose own repr is huge or fails."""
    short = _Short()
    short.maxstring = short.maxother = most
    short.maxlevel, short.maxlist, short.maxtuple, short.maxdict = 3, 8, 8, 6
    text = " ".join(short.repr(value).split())
    return text if len(text) <= 2 * most else f"{text[:most]} …"


def first_line(error: BaseException, most: int = 200) -> str:
    """What an error says, in one line of `most` characters."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:most]


def check_choice(what: str, given: str, allowed: Iterable[str]) -> str:
    """Return `given` if it is allowed, else raise an MgenError that names the nearest valid name."""
    allowed = list(allowed)
    if not isinstance(given, str) or given not in allowed:
        raise MgenError(f"unknown {what} {shown(given)}: {suggestion(str(given)[:60], allowed)}")
    return given


def check_keys(given: Iterable[str], allowed: Collection[str], where: str) -> None:
    """Raise MgenError for the first key that is not allowed, naming the nearest valid one."""
    for key in given:
        if key not in allowed:
            raise MgenError(f"unknown key '{where}{key}': {suggestion(str(key), allowed)}")
