"""Which shards a text names: a tar, a folder of tars, braces, wildcards, several of them with `::`, or commands that write a tar."""

import glob
import hashlib
import itertools
import os
import re
from pathlib import Path

from mgen.utils.errors import MgenError, shown

PIPE = "pipe:"
MOST_SHARDS = 10**6
BRACES = re.compile(r"\{([^{}]*)\}")
IMAGES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")  # of a folder's classes


def names_tars(name: str) -> bool:
    """Whether a text names tar shards rather than a folder of images; MgenError for a folder that holds both."""
    if name.startswith(PIPE):
        return True
    if not os.path.isdir(name):
        return any(re.search(r"\.tar(\W|$)", os.path.basename(part)) for part in name.split("::"))
    with os.scandir(name) as found:
        entries = sorted(found, key=lambda entry: entry.name)
    tars = [entry.name for entry in entries if entry.name.endswith(".tar") and not entry.is_dir()]
    classes = (entry.name for entry in entries if entry.is_dir() and _has_image(entry.path))
    if tars and (other := next(classes, None)) is not None:
        raise MgenError(
            f"{shown(name, 200)} holds tars ({shown(tars[0])}) and folders of images ({shown(other)}): for the tars give "
            f"{shown(os.path.join(name, '*.tar'), 200)}, for the images move the tars elsewhere"
        )
    return bool(tars)


def _has_image(folder: str) -> bool:
    try:
        with os.scandir(folder) as entries:
            return any(entry.name.lower().endswith(IMAGES) for entry in entries)
    except OSError:  # whoever reads the folder says why
        return False


def find_tars(text: str) -> list[str]:
    """The shards that a text names, in order: paths of files, or commands with `pipe:` in front.

    Of commands `::` separates those with `pipe:` in front alone: addresses may have colons.

    Raises:
        MgenError: there are none, or one is missing; or both files and commands are named.
    """
    found: list[str] = []
    for piece in re.split(rf"::(?={PIPE})", text):
        for part in [piece] if piece.startswith(PIPE) else piece.split("::"):
            for name in expand_braces(part):
                found += [name] if name.startswith(PIPE) else _files(name)
    if len(set(found)) < len(found):
        double = next(name for name in found if found.count(name) > 1)
        raise MgenError(f"{shown(text, 200)} names {double} twice")
    pipes = sum(name.startswith(PIPE) for name in found)
    if pipes not in (0, len(found)):
        raise MgenError(f"{shown(text, 200)} names files and commands: give one kind alone")
    if pipes and (empty := [name for name in found if not name[len(PIPE) :].strip()]):
        raise MgenError(f"{shown(empty[0])} has no command: expected pipe:COMMAND, such as 'pipe:curl -s URL'")
    return found


def _files(name: str) -> list[str]:
    if re.match(r"[a-zA-Z][a-zA-Z0-9+.-]*://", name):
        raise MgenError(f"{shown(name, 200)} is an address: read it with a command, such as 'pipe:curl -sf {name}'")
    if os.path.isdir(name):
        found = sorted(os.path.join(name, entry) for entry in os.listdir(name) if entry.endswith(".tar"))
        if not found:
            raise MgenError(f"no .tar in the folder {name}: give the folder of the shards, or a pattern")
        return found
    if any(letter in name for letter in "*?[") and not os.path.lexists(name):
        found = sorted(glob.glob(name))
        if not found:
            raise MgenError(f"no file fits {shown(name, 200)}")
        return found
    if not os.path.exists(name):
        raise MgenError(f"no such tar: {name}")
    return [name]


def expand_braces(text: str) -> list[str]:
    """The texts that one with braces stands for: {000..146} for numbers of that width, {0..146} for those without
    zeros in front, {a,b} for words. Other braces stay.

    In a command those with a space stay too, as in a shell: they may be a program's, such as awk's {print $1, $2}.
    """
    parts: list[list[str]] = []
    end, count = 0, 1
    for match in BRACES.finditer(text):
        inside = match[1]
        if numbers := re.fullmatch(r"([0-9]{1,9})\.\.([0-9]{1,9})", inside):
            first, last = int(numbers[1]), int(numbers[2])
            # As in bash: a zero in front of further digits asks for a fixed width, a lone 0 is the number.
            padded = any(bound.startswith("0") and len(bound) > 1 for bound in numbers.groups())
            width = max(map(len, numbers.groups())) if padded else 0
            step = 1 if first <= last else -1
            some: range | list[str] = range(first, last + step, step)
            count *= len(some)
            if count > MOST_SHARDS:
                raise MgenError(f"{shown(text, 200)} stands for more than {MOST_SHARDS} shards")
            some = [f"{number:0{width}d}" for number in some]
        elif "," in inside and not (text.startswith(PIPE) and re.search(r"\s", inside)):
            some = inside.split(",")
            count *= len(some)
        else:
            continue
        if count > MOST_SHARDS:
            raise MgenError(f"{shown(text, 200)} stands for more than {MOST_SHARDS} shards")
        parts += [[text[end : match.start()]], some]
        end = match.end()
    parts.append([text[end:]])
    return ["".join(words) for words in itertools.product(*parts)]


def tar_name(name: str) -> str:
    """What to call a shard in messages: its path, or the command."""
    return name if name.startswith(PIPE) else os.path.basename(name)


def public_name(text: str) -> str:
    """A text that names images, as others may read it. Of a command the program and a digest: the rest may hold passwords."""
    if not text.startswith(PIPE):
        return os.fsencode(text).decode(errors="replace")
    program = re.match(r"[\w./+-]+(?=\s|$)", text[len(PIPE) :].lstrip())  # none: TOKEN=… in front, for instance
    digest = hashlib.sha256(text.encode(errors="replace")).hexdigest()[:8]
    return f"{PIPE}{os.path.basename(program[0]) if program else ''} … ({digest})"


def set_name(shards: list[str]) -> str:
    """What to call the data: the name of the first shard without its number. Of a command nothing but the name of a tar is taken."""
    first = shards[0]
    if first.startswith(PIPE):
        named = re.search(r"[:/\s'\"]([\w.-]+\.tar)(?!\w)", first)
        first = named[1] if named else "tars"
    stem = re.sub(r"\.tar.*$", "", os.path.basename(first))
    name = re.sub(r"[-_.]?[0-9]+$", "", stem) or Path(first).parent.name or stem
    return os.fsencode(name).decode(errors="replace").strip()[:100] or "tars"
