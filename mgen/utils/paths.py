"""What can be the path of a file or folder on this machine."""

import os

LONGEST_NAME, LONGEST_PATH = 255, 4095  # bytes, of Linux


def path_fault(path: str) -> str:
    """What is wrong with a path, to stand behind it in a message; "" if a file may have it."""
    if "\0" in path:
        return "holds a null character"
    longest = max(len(os.fsencode(part)) for part in path.split("/"))
    if longest > LONGEST_NAME or len(os.fsencode(os.path.abspath(path))) > LONGEST_PATH:
        return f"is too long: a name has {LONGEST_NAME} bytes at most, a path {LONGEST_PATH}"
    return ""
