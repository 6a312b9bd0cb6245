"""Style sheet and scripts of the page. Colors follow gradio's light and dark theme."""

CSS = """
.gradio-container { --soft: #52525b; }
.dark .gradio-container, .gradio-container.dark { --soft: #b4b4bd; }
.gradio-container > main, main.fillable {
  width: 100% !important; max-width: 1500px !important; margin: 0 auto !important; padding: 16px !important;
}
.gradio-container .html-container { padding: 0 !important; }
.gradio-container .block:has(> .html-container > .prose:empty) { display: none; }
.mg-head h1 { font-size: 1.35rem; font-weight: 600; margin: 0; }
.mg-head p, .mg-about { color: var(--soft); margin: .15rem 0 0; font-size: .9rem; line-height: 1.4; }
.mg-board { display: grid; grid-template-columns: repeat(auto-fill, var(--tile)); gap: 12px; }
.mg-tile { all: unset; box-sizing: border-box; width: var(--tile); display: flex; flex-direction: column; gap: 3px; }
button.mg-tile { cursor: pointer; }
.mg-tile img { display: block; width: var(--tile); height: var(--tile); border-radius: 4px; background: #7f7f7f; }
.mg-tile span {
  font-size: .8rem; line-height: 1.3; color: var(--soft); text-align: center; overflow-wrap: anywhere;
}
button.mg-tile:hover img, button.mg-tile:focus-visible img { outline: 3px solid var(--color-accent); outline-offset: 1px; }
.mg-marked span::after { content: " (edited)"; color: var(--body-text-color); font-weight: 600; }
.mg-sharp img { image-rendering: pixelated; }
.mg-empty {
  display: grid; place-items: center; text-align: center; min-height: 180px; padding: 1.5rem; border-radius: 8px;
  border: 1px dashed var(--border-color-primary); color: var(--soft);
}
.mg-editor { position: relative; width: var(--side); max-width: 100%; aspect-ratio: 1; }
.mg-editor img { width: 100%; height: 100%; display: block; border-radius: 4px; }
.mg-cells {
  position: absolute; inset: 0; display: grid; touch-action: none; cursor: crosshair; user-select: none;
  grid-template: repeat(var(--rows), 1fr) / repeat(var(--columns), 1fr);
}
.mg-cells:focus-visible { outline: 3px solid var(--color-accent); outline-offset: 2px; }
.mg-cells i { box-shadow: inset 0 0 0 .5px rgb(255 255 255 / .35); }
.mg-cells i:hover { box-shadow: inset 0 0 0 2px #ff9d3c; }
.mg-cells:focus-visible i.at { box-shadow: inset 0 0 0 3px #ff9d3c; }
.mg-cells i.on {
  background: repeating-linear-gradient(45deg, rgb(249 115 22 / .75) 0 4px, rgb(249 115 22 / .45) 4px 8px);
}
.mg-done .mg-cells i.on { background: none; box-shadow: inset 0 0 0 1px rgb(249 115 22 / .9); }
.mg-tools { display: flex; flex-wrap: wrap; gap: 6px 8px; align-items: center; margin-top: 8px; font-size: .85rem; }
.mg-tools button, a.mg-link {
  all: unset; cursor: pointer; padding: 3px 10px; border-radius: 6px; border: 1px solid var(--border-color-primary);
  background: var(--button-secondary-background-fill); color: var(--button-secondary-text-color); font-size: .85rem;
}
.mg-tools button:hover, a.mg-link:hover { background: var(--button-secondary-background-fill-hover); }
.mg-tools button:focus-visible, a.mg-link:focus-visible { outline: 2px solid var(--color-accent); }
.mg-count { color: var(--soft); }
.mg-facts { display: flex; flex-wrap: wrap; gap: 4px 14px; margin: 0; font-size: .9rem; color: var(--soft); }
.mg-facts span:not(:last-child)::after { content: "·"; margin-left: 14px; }
.mg-links { display: flex; flex-wrap: wrap; gap: 8px; }
.mg-message { margin: 0; padding: .5rem .8rem; border-radius: 6px; font-size: .92rem; overflow-wrap: anywhere; }
.mg-note { background: var(--background-fill-secondary); }
.mg-error { background: #fdecea; color: #7a1712; border: 1px solid #e7a29d; }
.dark .mg-error { background: #3b1715; color: #ffd3cf; border-color: #8a332d; }
.gradio-container .mg-table tr { border: 0 !important; }
.gradio-container .mg-table { border: 0 !important; border-collapse: collapse; font-size: .92rem; font-variant-numeric: tabular-nums; }
.gradio-container .mg-table :is(th, td) {
  padding: .3rem 1.6rem .3rem 0 !important; text-align: left; border: 0 !important;
  border-bottom: 1px solid var(--border-color-primary) !important;
}
.mg-table thead th { font-weight: 600; }
.mg-table tbody th { font-weight: 400; color: var(--soft); }
@media (max-width: 720px) {  /* model and class, then the tabs, then the settings */
  #main { flex-direction: column; flex-wrap: nowrap; }
  #main > .column { display: contents; }
  #main > .column:first-child > * { order: 2; }
  #main > .column:first-child > :first-child { order: 0; }
  #main > .column:last-child > * { order: 1; }
}
.mg-changes { margin: 0 0 .6rem; padding-left: 1.1rem; font-size: .9rem; list-style: disc; overflow-wrap: anywhere; }
.mg-plan textarea {
  font: .78rem/1.45 ui-monospace, Menlo, Consolas, "DejaVu Sans Mono", monospace !important; white-space: pre; overflow-x: auto;
}
"""

# A click on an image chooses it.
BOARD_SCRIPT = """
element.addEventListener("click", (event) => {
  const tile = event.target.closest("button[data-index]");
  if (tile) trigger("pick", { index: Number(tile.dataset.index) });
});
"""

# Masking of tokens: click, drag, or arrow keys and space. The places are kept in the component's value.
EDITOR_SCRIPT = """
let painting = null;
let at = 0;
const cells = () => [...element.querySelectorAll("[data-cell]")];
const keep = () => {
  const masked = cells().filter((cell) => cell.classList.contains("on")).map((cell) => Number(cell.dataset.cell));
  const count = element.querySelector(".mg-count");
  if (count) count.textContent = `${masked.length} of ${cells().length} masked`;
  props.value = { ...props.value, masked };
};
element.addEventListener("pointerdown", (event) => {
  const cell = event.target.closest("[data-cell]");
  if (!cell || event.button !== 0) return;
  if (cell.hasPointerCapture(event.pointerId)) cell.releasePointerCapture(event.pointerId);
  element.querySelector(".mg-done")?.classList.remove("mg-done");
  painting = !cell.classList.contains("on");
  cell.classList.toggle("on", painting);
});
element.addEventListener("pointermove", (event) => {
  if (painting === null) return;
  const cell = document.elementFromPoint(event.clientX, event.clientY)?.closest("[data-cell]");
  if (cell && element.contains(cell)) cell.classList.toggle("on", painting);
});
for (const name of ["pointerup", "pointercancel"]) {
  window.addEventListener(name, () => {
    if (painting === null) return;
    painting = null;
    keep();
  });
}
element.addEventListener("click", (event) => {
  const what = event.target.closest("[data-do]")?.dataset.do;
  if (!what) return;
  for (const cell of cells()) {
    cell.classList.toggle("on", what === "all" || (what === "invert" && !cell.classList.contains("on")));
  }
  keep();
});
element.addEventListener("keydown", (event) => {
  const grid = event.target.closest(".mg-cells");
  if (!grid) return;
  const columns = Number(getComputedStyle(grid).getPropertyValue("--columns"));
  const move = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -columns, ArrowDown: columns }[event.key];
  const every = cells();
  if (move === undefined && event.key !== " ") return;
  event.preventDefault();
  every[at]?.classList.remove("at");
  if (move !== undefined && at + move >= 0 && at + move < every.length) at += move;
  every[at]?.classList.add("at");
  if (event.key === " ") {
    every[at]?.classList.toggle("on");
    keep();
  }
});
"""
