"""Text for Markdown files."""

import re
from html import escape


def words(text: object) -> str:
    """Text escaped for Markdown, on one line."""
    line = " ".join(str(text).split())
    return re.sub(r"([\\`*|\[\]])", r"\\\1", escape(line, quote=False))
