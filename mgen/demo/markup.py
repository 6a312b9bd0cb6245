"""What the page shows as HTML: pictures, the grid of tokens, tables and messages. Every text is escaped."""

from collections.abc import Collection, Sequence
from html import escape
from typing import Any

from mgen.demo.runs import Result, differing
from mgen.pipelines.pipeline import MaskedPipeline

SMALL = 96  # pixels; images up to this side are shown with sharp pixels


def shown_side(side: int, target: int) -> int:
    """The side at which an image is shown: a multiple of its own where it is smaller than `target`."""
    return side * (target // side) if side <= target else target


def captions(pipe: MaskedPipeline, classes: Sequence[int | None]) -> list[str]:
    """What stands below each image."""
    return [f"image {i + 1}" if c is None else str(pipe.class_names[c]) for i, c in enumerate(classes)]


def board(
    pictures: Sequence[str],
    texts: Sequence[str],
    side: int,
    *,
    clickable: bool = False,
    marked: Collection[int] = (),
    small: bool = False,
) -> str:
    """Images beside each other.

    Args:
        texts: below them. side: of an image, in its own pixels. clickable: a click chooses one. marked: images that were edited.
        small: in half a page.
    """
    target = (96 if small else 128) if len(pictures) > 4 else (128 if small else 192)
    shown = shown_side(side, target)
    tag, attributes = ("button", 'type="button" ') if clickable else ("div", "")
    tiles = [
        f'<{tag} {attributes}class="mg-tile{" mg-marked" if i in marked else ""}" data-index="{i}">'
        f'<img src="{picture}" alt="{escape(text)}, image {i + 1}" width="{shown}" height="{shown}">'
        f"<span>{escape(text)}</span></{tag}>"
        for i, (picture, text) in enumerate(zip(pictures, texts))
    ]
    sharp = " mg-sharp" if side <= SMALL else ""
    return f'<div class="mg-board{sharp}" style="--tile: {shown}px">{"".join(tiles)}</div>'


def empty_board(text: str) -> str:
    return f'<div class="mg-empty">{escape(text)}</div>'


def editor(
    picture: str, side: int, grid: tuple[int, int], masked: Collection[int], title: str, *, done: bool = False
) -> dict[str, Any]:
    """The value of the token editor: an image under a grid of cells that can be masked, and the places that are.

    `done`: the masked tokens have just been sampled again, and are only outlined.
    """
    shown = shown_side(side, 384)
    on = set(masked)
    cells = "".join(f'<i data-cell="{n}"{" class=on" if n in on else ""}></i>' for n in range(grid[0] * grid[1]))
    html = (
        f'<div class="mg-editor{" mg-sharp" if side <= SMALL else ""}{" mg-done" if done else ""}" '
        f'style="--side: {shown}px; --rows: {grid[0]}; --columns: {grid[1]}">'
        f'<img src="{picture}" alt="{escape(title)}">'
        f'<div class="mg-cells" tabindex="0" role="application" aria-label="Tokens: arrow keys move, space masks">{cells}</div></div>'
        '<div class="mg-tools"><button type="button" data-do="all">mask all</button>'
        '<button type="button" data-do="none">mask none</button><button type="button" data-do="invert">invert</button>'
        f'<output class="mg-count">{len(on)} of {grid[0] * grid[1]} masked</output></div>'
    )
    return {"html": html, "masked": sorted(on)}


def no_editor(text: str) -> dict[str, Any]:
    return {"html": empty_board(text), "masked": []}


def facts(parts: Sequence[str]) -> str:
    return f'<p class="mg-facts">{"".join(f"<span>{escape(part)}</span>" for part in parts)}</p>'


def run_facts(result: Result, tflops: float | None = None) -> list[str]:
    """Steps, forward passes, seconds and operations of a run."""
    stage = result.request.sampler.first_stage
    steps = f"{stage.config.steps} + " if stage else ""
    parts = [f"{steps}{result.request.sampler.config.steps} steps", f"{result.passes} forward passes per image"]
    parts.append(f"{result.seconds:.3g} s for {len(result.classes)} images")
    return parts + ([] if tflops is None else [f"{tflops:.3g} TFLOPs per image"])


def message(text: str, *, error: bool = False) -> str:
    """The line at the top of the results; empty without a text."""
    if not text:
        return ""
    kind, role = ("mg-error", "alert") if error else ("mg-note", "status")
    return f'<p class="mg-message {kind}" role="{role}">{escape(text)}</p>'


def links(files: Sequence[tuple[str, str, str]]) -> str:
    """Downloads: name of the file, what the link says, data URL."""
    every = (
        f'<a class="mg-link" download="{escape(name)}" href="{url}">{escape(text)}</a>' for name, text, url in files
    )
    return f'<div class="mg-links">{"".join(every)}</div>'


def comparison(one: Result, two: Result, tflops: Sequence[float | None]) -> str:
    """The table of two runs."""

    def row(name: str, *cells: str) -> str:
        return f"<tr><th scope=row>{escape(name)}</th>{''.join(f'<td>{escape(cell)}</td>' for cell in cells)}</tr>"

    rows = [
        row("steps", *(run_facts(r)[0].removesuffix(" steps") for r in (one, two))),
        row("forward passes per image", *(str(r.passes) for r in (one, two))),
        row(f"seconds for {len(one.classes)} images", *(f"{r.seconds:.3g}" for r in (one, two))),
        row("TFLOPs per image", *("…" if t is None else f"{t:.3g}" for t in tflops)),
    ]
    apart, total = sum(differing(one, two)), len(one.tokens) * one.tokens.shape[1]
    head = "<thead><tr><th></th><th scope=col>A</th><th scope=col>B</th></tr></thead>"
    foot = f"<tr><th scope=row>tokens that differ</th><td colspan=2>{apart} of {total} ({apart / total:.0%})</td></tr>"
    changed = [
        f"<li><code>{escape(name)}</code>: {escape(_short(a))} in A, {escape(_short(b))} in B</li>"
        for name, a, b in changes(one, two)
    ]
    what = (
        f"<ul class=mg-changes>{''.join(changed)}</ul>" if changed else "<p>The settings of A and B are the same.</p>"
    )
    return f"{what}<table class=mg-table>{head}<tbody>{''.join(rows)}{foot}</tbody></table>"


def changes(one: Result, two: Result) -> list[tuple[str, Any, Any]]:
    """Settings that differ between two runs."""
    a, b = one.request.sampler.settings, two.request.sampler.settings
    return [(name, a[name], b[name]) for name in a if a[name] != b[name]]


def _short(value: Any) -> str:
    text = "none" if value is None else str(value if not isinstance(value, dict) else dict(value))
    return text if len(text) <= 120 else f"{text[:117]} …"
