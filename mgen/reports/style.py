"""Style sheet and script of a report's page, both included in it. The page is readable without the script."""

CSS = """
:root {
  color-scheme: light dark;
  --paper: #fff; --panel: #f6f7f8; --ink: #1b1f24; --soft: #57606a; --rule: #d8dde3; --link: #0b5cad;
  --note: #fff8e6; --note-edge: #c98a04; --best: #e7f3ea;
  --series-1: #1f65ad; --series-2: #b4540a; --series-3: #2b7a4b; --series-4: #8a3f9e; --series-5: #b02a4c; --series-6: #5c6670;
}
@media (prefers-color-scheme: dark) {
  :root {
    --paper: #15181c; --panel: #1d2126; --ink: #e4e7eb; --soft: #a3adb8; --rule: #353c45; --link: #82b7f2;
    --note: #2b2410; --note-edge: #d6a02c; --best: #1d3326;
    --series-1: #7fb2ea; --series-2: #f0a35e; --series-3: #7cc796; --series-4: #cf9be0; --series-5: #f08b9f; --series-6: #b0b8c1;
  }
}
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body {
  margin: 0 auto; padding: 2rem 1.25rem 4rem; max-width: 74rem; background: var(--paper); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", "Liberation Sans", Arial, sans-serif;
}
h1 { font-size: 1.6rem; line-height: 1.25; margin: 0 0 .5rem; letter-spacing: -.01em; }
h2 { font-size: 1.2rem; margin: 2.5rem 0 .75rem; padding-top: .75rem; border-top: 1px solid var(--rule); }
h3 { font-size: 1rem; margin: 1.75rem 0 .5rem; }
h1, h2, h3, p, li, td, th, figcaption { overflow-wrap: anywhere; }
p, details { margin: .5rem 0; }
a, th button:hover { color: var(--link); }
a:focus-visible, summary:focus-visible, button:focus-visible, input:focus-visible, [tabindex]:focus-visible {
  outline: 2px solid var(--link); outline-offset: 2px;
}
.verdict { font-size: 1.08rem; max-width: 52rem; }
.verdict strong { font-variant-numeric: tabular-nums; white-space: nowrap; }
.soft, .caption, figcaption, .sub { color: var(--soft); }
.facts { margin: .25rem 0; font-size: .87rem; color: var(--soft); }
aside { margin: 1rem 0; padding: .6rem 1rem; background: var(--note); border-left: 3px solid var(--note-edge); }
aside h3 { margin: 0; font-size: .9rem; }
aside ul { margin: .2rem 0; padding-left: 1.1rem; }
.command { display: flex; align-items: flex-start; gap: .5rem; margin: .75rem 0; padding: .5rem .75rem; background: var(--panel); }
.command code { flex: 1; min-width: 0; white-space: pre-wrap; overflow-wrap: anywhere; }
code, .hash { font: .84em/1.5 ui-monospace, SFMono-Regular, Menlo, Consolas, "DejaVu Sans Mono", "Liberation Mono", monospace; }
button, input { font: inherit; color: inherit; }
.copy, input {
  padding: .15rem .6rem; font-size: .84rem; background: var(--paper); border: 1px solid var(--soft); border-radius: 4px;
}
.copy, summary { cursor: pointer; }
nav ol { margin: .5rem 0; padding-left: 1.4rem; columns: 22rem; }
.pair { display: grid; gap: 0 2.5rem; grid-template-columns: repeat(auto-fit, minmax(min(100%, 19rem), 1fr)); align-items: start; }
.pair td.wrap { white-space: normal; }
.pair ul { margin: .3rem 0; padding-left: 1.1rem; }
.beside { display: flex; flex-wrap: wrap; gap: 0 2.5rem; align-items: flex-start; }
.beside > * { max-width: 100%; min-width: 0; }
.beside > :first-child:not(:only-child) { flex: 1 1 26rem; }
.run .grid { max-width: 38rem; }
summary h3 { display: inline; }
ul.verdict { margin: .75rem 0; padding-left: 1.1rem; font-size: 1rem; }
.scroll { overflow-x: auto; margin: .5rem 0 1rem; }
.long { max-height: 34rem; overflow-y: auto; }
.long thead th { position: sticky; top: 0; background: var(--paper); }
table { border-collapse: collapse; font-size: .87rem; font-variant-numeric: tabular-nums; }
.pair table, .settings table { width: 100%; }
.caption { margin: -.6rem 0 1rem; font-size: .8rem; }
th, td { padding: .28rem .5rem; text-align: left; vertical-align: top; border-bottom: 1px solid var(--rule); }
th:first-child { padding-left: 0; }
th:last-child, td:last-child { padding-right: .25rem; }
thead th { vertical-align: bottom; font-weight: 600; border-bottom: 1.5px solid var(--soft); overflow-wrap: normal; }
tbody th { font-weight: 500; }
.num { text-align: right; white-space: nowrap; }
th.num { white-space: normal; }
.compare thead th { min-width: 4rem; max-width: 9rem; }
.compare tbody th { min-width: 10rem; }
.compare td { white-space: nowrap; }
.sub { display: block; font-size: .76rem; font-weight: 400; }
.best { font-weight: 700; background: var(--best); }
th button { all: unset; cursor: pointer; font-weight: 600; color: inherit; }
th button::after { content: "\\2195"; margin-left: .3em; color: var(--soft); font-weight: 400; }
th[aria-sort=ascending] button::after { content: "\\2191"; color: var(--ink); }
th[aria-sort=descending] button::after { content: "\\2193"; color: var(--ink); }
.filter { margin: .5rem 0; font-size: .87rem; }
.filter input { width: 14rem; max-width: 100%; margin: 0 .5rem; }
figure { margin: 0; }
.grid img { display: block; max-width: 100%; height: auto; border: 1px solid var(--rule); background: #fff; }
figcaption { font-size: .8rem; padding-top: .3rem; }
.settings { display: grid; gap: 0 2.5rem; grid-template-columns: repeat(auto-fill, minmax(min(100%, 19rem), 1fr)); align-items: start; }
.settings h4 { margin: .6rem 0 .1rem; font-size: .87rem; }
.settings th { white-space: nowrap; }
.settings td { text-align: right; }
.settings .hash { font-size: .76rem; word-break: break-all; }
.nearest { list-style: none; margin: .75rem 0; padding: 0; display: grid; gap: 1rem 2rem;
  grid-template-columns: repeat(auto-fill, minmax(min(100%, 29rem), 1fr)); }
.nearest li { display: flex; flex-wrap: wrap; gap: .4rem; }
.nearest figure { width: 4.6rem; }
.nearest img { display: block; width: 4.6rem; height: auto; border: 1px solid var(--rule); }
.nearest img.small { image-rendering: pixelated; }
.nearest figure:first-child { padding-right: .5rem; border-right: 2px solid var(--soft); width: 5.1rem; }
.nearest figcaption { font-size: .74rem; line-height: 1.3; font-variant-numeric: tabular-nums; }
.nearest strong { color: var(--ink); background: var(--note); }
.curves { display: grid; gap: 1.5rem 2.5rem; grid-template-columns: repeat(auto-fill, minmax(min(100%, 27rem), 1fr)); align-items: start; }
.curves svg { display: block; width: 100%; height: auto; color: var(--ink); }
.curves svg text { font-family: inherit; fill: var(--ink); }
.curves h4 { margin: 0 0 .25rem; font-size: .9rem; }
.point { cursor: help; }
.hidden { position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%); white-space: nowrap; }
@media (max-width: 30rem) {
  body { padding: 1rem .9rem 3rem; }
  h1 { font-size: 1.35rem; }
  .nearest figure, .nearest img { width: 3.2rem; }
  .nearest figure:first-child { width: 3.6rem; padding-right: .3rem; }
}
@media print {
  :root {
    color-scheme: light; --paper: #fff; --panel: #fff; --ink: #000; --soft: #444; --rule: #bbb; --link: #000; --note: #fff; --best: #fff;
    --series-1: #1f65ad; --series-2: #b4540a; --series-3: #2b7a4b; --series-4: #8a3f9e; --series-5: #b02a4c; --series-6: #5c6670;
  }
  body { max-width: none; padding: 0; font-size: 10pt; }
  .copy, .filter { display: none; }
  .scroll, .long { overflow: visible; max-height: none; }
  figure, tr, .nearest li, aside { break-inside: avoid; }
  h2, h3, h4 { break-after: avoid; }
  th button::after { content: none; }
}
"""

JS = """
"use strict";
for (const box of document.querySelectorAll(".command")) {
  const button = document.createElement("button");
  button.type = "button";
  button.className = "copy";
  button.textContent = "Copy";
  button.setAttribute("aria-label", "Copy the command");
  const done = (text) => { button.textContent = text; setTimeout(() => { button.textContent = "Copy"; }, 1500); };
  button.addEventListener("click", async () => {
    const code = box.querySelector("code");
    try {
      await navigator.clipboard.writeText(code.textContent);
      done("Copied");
    } catch {
      getSelection().selectAllChildren(code);  // selected, for the keyboard shortcut
      done(document.execCommand("copy") ? "Copied" : "Selected");
    }
  });
  box.append(button);
}
const parse = (cell) => cell.dataset.value === undefined ? cell.textContent.trim() : Number(cell.dataset.value);
const missing = (value) => value === "\\u2013" || Number.isNaN(value);
const compare = (a, b) => typeof a === "number" && typeof b === "number"
  ? a - b : String(a).localeCompare(String(b), undefined, { numeric: true });
for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => {
    const button = document.createElement("button");
    const name = head.querySelector(".name");
    button.type = "button";
    button.append(...name.childNodes);
    name.append(button);
    head.setAttribute("aria-sort", "none");
    button.addEventListener("click", () => {
      const up = head.getAttribute("aria-sort") !== "ascending";
      for (const other of heads) other.setAttribute("aria-sort", "none");
      head.setAttribute("aria-sort", up ? "ascending" : "descending");
      const rows = [...table.tBodies[0].rows].map((row) => [parse(row.cells[column]), row]);
      rows.sort(([a], [b]) => missing(a) - missing(b) || (up ? compare(a, b) : compare(b, a)));
      table.tBodies[0].append(...rows.map(([, row]) => row));
    });
  });
}
addEventListener("beforeprint", () => {
  for (const part of document.querySelectorAll("details")) part.open = true;
});
for (const box of document.querySelectorAll(".filter")) {
  const input = box.querySelector("input");
  const rows = [...document.getElementById(input.getAttribute("aria-controls")).tBodies[0].rows];
  const count = box.querySelector("output");
  const show = () => {
    const words = input.value.trim().toLowerCase();
    for (const row of rows) {
      row.hidden = ![row.cells[0], row.cells[1]].some((cell) => cell.textContent.toLowerCase().includes(words));
    }
    count.textContent = `${rows.filter((row) => !row.hidden).length} of ${rows.length} classes`;
  };
  input.addEventListener("input", show);
  box.hidden = false;
  show();
}
"""
