"""Building blocks of a report's page. Plain text is escaped."""

from collections.abc import Iterable, Sequence
from html import escape

from mgen.reports.read import image_size, is_number

VOID = ("br", "img", "input")


class Html(str):
    """Text that is already HTML."""


def tag(name: str, *content: str, **attributes: object) -> Html:
    """An element. Content that is not Html is escaped. Attributes: class_ means class, _ means -, None and False omit one."""
    words = []
    for key, value in attributes.items():
        if value is None or value is False or value == "":
            continue
        key = key.rstrip("_").replace("_", "-")
        words.append(f" {key}" if value is True else f' {key}="{escape(str(value))}"')
    start = f"<{name}{''.join(words)}>"
    return Html(start if name in VOID else f"{start}{join(content)}</{name}>")


def join(parts: Iterable[str], between: str = "") -> Html:
    """Concatenated parts; those that are not Html are escaped."""
    return Html(between.join(part if isinstance(part, Html) else escape(part) for part in parts))


def listing(lines: Iterable[str], **attributes: object) -> Html:
    """A list; empty text if there are no lines."""
    items = [tag("li", line) for line in lines]
    return tag("ul", *items, **attributes) if items else Html()


def head(name: str, *, numeric: bool = False, sub: str = "") -> Html:
    """The head of a column, with a smaller line below."""
    return tag("th", tag("span", name, class_="name"), small(sub), scope="col", class_="num" if numeric else None)


def row_head(*content: str, value: object = None) -> Html:
    return tag("th", *content, scope="row", data_value=value)


def small(text: str) -> Html:
    return tag("span", text, class_="sub") if text else Html()


def cell(text: str, value: object = None, *, numeric: bool = False, best: bool = False) -> Html:
    """A cell; `value` is the number it is sorted by."""
    sort = repr(value) if is_number(value) else None
    return tag("td", text, class_=" ".join(["num"] * numeric + ["best"] * best), data_value=sort)


def table(
    heads: Sequence[str],
    rows: Iterable[Sequence[str]],
    *,
    label: str,
    caption: str = "",
    kind: str = "",
    id: str = "",
    long: bool = False,
) -> Html:
    """A table that scrolls on its own if the page is too narrow.

    Args:
        heads, rows: cells. label: description for screen readers. caption: text below, which does not scroll.
        kind: CSS classes. long: also scroll vertically.
    """
    top = tag("thead", tag("tr", *heads)) if heads else Html()
    shown = tag("table", top, tag("tbody", *(tag("tr", *row) for row in rows)), class_=kind, id=id)
    scroll = "scroll long" if long else "scroll"
    shown = tag("div", shown, class_=scroll, role="region", aria_label=label, tabindex=0)
    return join([shown, tag("p", caption, class_="caption")]) if caption else shown


def picture(uri: str, *, alt: str, caption: Iterable[str], class_: str = "") -> Html:
    """An image given as a data URI, with a caption."""
    width, height = image_size(uri)
    image = tag("img", src=uri, width=width, height=height, alt=alt, class_="small" if width <= 64 else None)
    return tag("figure", image, tag("figcaption", *caption), class_=class_)
