"""Plots by matplotlib as SVG elements of a page, which follow its light and dark themes.

A plot is drawn with placeholder colors (`series`, INK, GRID), which are replaced by variables of the style sheet.
"""

import io
import re
import warnings
import xml.etree.ElementTree as ET
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from mgen.reports.style import CSS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    Canvas = Figure

SERIES = 6  # colors in the style sheet, --series-1 …; further lines repeat them with other markers
INK, GRID = "#010203", "#040506"
SVG, XLINK = "{http://www.w3.org/2000/svg}", "{http://www.w3.org/1999/xlink}"


def series(k: int) -> str:
    """The placeholder of the color of line k."""
    return f"#0a0b{k % SERIES:02x}"


def draw(
    fill: "Callable[[Figure], Mapping[str, str]]", prefix: str, title: str, *, size: tuple[float, float]
) -> str | None:
    """An <svg> element of what `fill` draws into a figure; None without matplotlib.

    Args:
        fill: returns the tooltips of elements by their ids. prefix: of the ids inside, unique in the page. size: in inches.
    """
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ImportError:
        return None
    with warnings.catch_warnings(), matplotlib.rc_context():
        warnings.simplefilter("ignore")  # about glyphs that matplotlib's font lacks; the page has its own font
        matplotlib.rcdefaults()  # independent of the user's style, which the context restores
        # Text stays text; ids are reproducible.
        matplotlib.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": prefix})
        figure = Figure(figsize=size, layout="constrained")
        titles = fill(figure)
        file = io.StringIO()
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
    return _for_page(file.getvalue(), prefix, title, titles)


def standalone(element: str) -> str:
    """The element of `draw` as a file of its own, in the light theme, with colors that every viewer knows."""
    light = CSS[: CSS.index("@media")]
    colors = dict(re.findall(r"--([a-z0-9-]+): ([^;]+);", light))
    text = re.sub(r"var\(--([a-z0-9-]+)\)", lambda match: colors[match[1]], element)
    root = ET.fromstring(text)
    root.set("xmlns", SVG.strip("{}"))
    width, height = root.attrib["viewBox"].split()[2:]
    root.insert(0, ET.Element("rect", width=width, height=height, fill=colors["paper"]))
    root.set("font-family", "sans-serif")
    root.set("aria-label", root.attrib["aria-label"].partition(";")[0])
    return ET.tostring(root, encoding="unicode") + "\n"


def finish_axes(axes: "Axes") -> None:
    """Grid, spines and text in the colors of the page."""
    axes.grid(color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(INK)
    axes.tick_params(colors=INK, labelsize=8)
    for axis in (axes.xaxis, axes.yaxis):
        axis.label.set(color=INK, fontsize=9)
        axis.get_offset_text().set(color=INK, fontsize=8)


def add_legend(figure: "Figure", handles: "list[Line2D]", names: list[str]) -> None:
    legend = figure.legend(handles, names, loc="outside lower center", ncols=2, frameon=False, fontsize=8)
    for text in legend.get_texts():
        text.set(color=INK, parse_math=False)


def _for_page(text: str, prefix: str, title: str, titles: Mapping[str, str]) -> str:
    """matplotlib's SVG as an element of a page: no links, unique ids, colors of the style sheet, tooltips at the points."""
    root = ET.fromstring(text)
    for parent in root.iter():
        for child in parent.findall(f"{SVG}metadata"):
            parent.remove(child)
    for element in root.iter():
        if element.tag == f"{SVG}g" and element.get("id") in titles:
            words = ET.Element(f"{SVG}title")
            words.text = titles[element.attrib["id"]]
            element.insert(0, words)
            element.set("class", "point")
        if href := element.attrib.pop(f"{XLINK}href", None):
            element.set("href", href)
        for key, value in element.attrib.items():
            if key == "id":
                value = f"{prefix}-{value}"
            value = re.sub(r"^#(?=[A-Za-z])", f"#{prefix}-", value) if key == "href" else value
            value = re.sub(r"url\(#", f"url(#{prefix}-", value).replace(INK, "var(--ink)").replace(GRID, "var(--rule)")
            element.set(key, re.sub(r"#0a0b(..)", lambda match: f"var(--series-{int(match[1], 16) + 1})", value))
        if element.tag == f"{SVG}text":  # the page's font
            element.set("style", re.sub(r"font: ([\d.]+px) [^;]+", r"font-size: \1", element.get("style", "")))
        if element.tag == f"{SVG}style":
            element.text = (element.text or "").replace("*{", f"#{prefix} *{{")
    root.set("id", prefix)
    root.set("role", "img")
    root.set("aria-label", f"{title}; the values are in the table below")
    for size in ("width", "height", "version"):
        root.attrib.pop(size, None)
    for element in root.iter():  # HTML has these elements without namespaces
        element.tag = element.tag.removeprefix(SVG)
    return ET.tostring(root, encoding="unicode")
