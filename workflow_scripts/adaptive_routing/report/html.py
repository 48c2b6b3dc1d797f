"""The report as one HTML file, made from its Markdown."""

from __future__ import annotations

import base64
import re
import xml.etree.ElementTree as etree
from html import escape, unescape
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote

import markdown
from markdown.treeprocessors import Treeprocessor

from adaptive_routing.report import words

if TYPE_CHECKING:
    from pathlib import Path

STYLE = """
:root { --ink: #1a1a1a; --grey: #555; --line: #d5d5d5; --tint: #f5f5f3; --mark: #fff4d6; }
* { box-sizing: border-box; }
body { font: 16px/1.5 system-ui, -apple-system, "Segoe UI", sans-serif; color: var(--ink); background: #fff;
       margin: 0 auto; padding: 1rem; max-width: 76rem; }
main { min-width: 0; }
h1 { font-size: 1.6rem; line-height: 1.25; margin: 0.5rem 0 1rem; }
h2 { margin: 2.5rem 0 0.8rem; padding-bottom: 0.2rem; border-bottom: 2px solid var(--line);
     font-size: 1.35rem; }
h3 { margin: 1.8rem 0 0.5rem; font-size: 1.08rem; }
p, li { max-width: 52rem; }
a { color: #0b4f9e; }
img { max-width: 100%; height: auto; }
code { background: #f0f0ee; padding: 0 0.2em; font-size: 0.88em; overflow-wrap: anywhere; }
pre { background: #f0f0ee; padding: 0.8rem; overflow-x: auto; }
pre code { padding: 0; overflow-wrap: normal; }
#answers + ol { background: var(--tint); border-left: 4px solid #0b4f9e; margin: 0 0 1rem;
                padding: 0.8rem 1.2rem 0.8rem 2.2rem; font-size: 1.05rem; }
#answers + ol li { margin: 0.35rem 0; max-width: 60rem; }
nav { font-size: 0.88rem; background: var(--tint); padding: 0.5rem 1rem; margin-bottom: 1rem; }
nav ul { margin: 0.2rem 0; padding-left: 1.1rem; } nav > div > ul { padding-left: 0; list-style: none; }
nav a { text-decoration: none; } nav a:hover { text-decoration: underline; }
summary { cursor: pointer; color: #0b4f9e; }
.wide { overflow-x: auto; margin: 0.8rem 0; }
.wide:focus-visible { outline: 2px solid #0b4f9e; }
table { border-collapse: collapse; font-size: 0.82rem; line-height: 1.35;
        font-variant-numeric: tabular-nums; }
th, td { padding: 0.28rem 0.55rem; border-bottom: 1px solid var(--line); text-align: left;
         vertical-align: top; }
thead th { vertical-align: bottom; border-bottom: 2px solid var(--grey); }
.number { text-align: right; white-space: nowrap; }
thead .number { white-space: normal; }
td:not(.number) { min-width: 9rem; }
th:first-child, td:first-child { position: sticky; left: 0; background: #fff; white-space: nowrap; }
td code { overflow-wrap: normal; white-space: nowrap; }
.baseline td, .baseline td:first-child { background: var(--mark); }
.better { color: #00528f; } .worse { color: #a33200; } .same { color: var(--grey); }
.panels { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(26rem, 100%), 1fr));
          gap: 0 2rem; }
.panels p { font-size: 0.92rem; }
@media (min-width: 75rem) {
  body { display: grid; grid-template-columns: 14rem minmax(0, 1fr); gap: 2.5rem; max-width: 92rem; }
  nav { position: sticky; top: 1rem; align-self: start; max-height: calc(100vh - 2rem); overflow-y: auto; }
}
@media not all and (min-width: 75rem) {
  nav ul ul { display: none; } nav > div > ul { display: flex; flex-wrap: wrap; gap: 0 1.2rem; }
}
@media (max-width: 40rem) {
  th:first-child, td:first-child { position: static; }
  #answers + ol { font-size: 1rem; }
}
@page { size: A4 landscape; margin: 12mm; }
@media print {
  nav { display: none; }
  body { display: block; max-width: none; padding: 0; font-size: 10pt; }
  p, li { max-width: none; }
  pre, .wide { overflow: visible; } pre { white-space: pre-wrap; }
  tr, img, section { break-inside: avoid; } h2, h3, summary { break-after: avoid; }
  table { font-size: 7.5pt; } th, td { padding: 0.12rem 0.3rem; }
  th:first-child, td:first-child { position: static; }
  img { max-height: 150mm; }
  .panels { grid-template-columns: 1fr 1fr; } .panels img { max-height: 75mm; }
  .baseline td { print-color-adjust: exact; -webkit-print-color-adjust: exact; }
}
"""

PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy"
      content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<nav aria-label="Contents">{contents}</nav>
<main>
{body}
</main>
</body>
</html>
"""

HEADINGS = ("h2", "h3")
NUMBER = re.compile(rf"[+−]?\d|[+−]?∞|<|{re.escape(words.NOTHING)}$")
MARKED = {mark.strip(): name for name, mark in words.MARKS.items()}


def to_html(text: str, folder: Path | str) -> str:
    """Turn the report's Markdown into one self-contained HTML file: images are embedded, nothing is loaded.

    folder: what the Markdown's image links are relative to.
    """
    converter = markdown.Markdown(
        extensions=["tables", "toc", "fenced_code", "sane_lists", "md_in_html"],
        extension_configs={"toc": {"toc_depth": "2-3"}},
    )
    # After the table of contents, which gives headings their ids.
    converter.treeprocessors.register(_Layout(converter), "layout", 2)
    body = converter.convert(text)
    body = re.sub(r'src="([^"]+)"', lambda match: f'src="{_data_uri(Path(folder), match[1])}"', body)
    body = re.sub(
        f" ([{''.join(MARKED)}])(?=</td>|<br)",
        lambda match: f' <span class="{MARKED[match[1]]}">{match[1]}</span>',
        body,
    )
    title = escape(text.partition("\n")[0].removeprefix("# "))
    return PAGE.format(title=title, style=STYLE, contents=converter.toc, body=body)  # ty: ignore[missing-attribute]


class _Layout(Treeprocessor):
    """What Markdown cannot express: scrolling tables, aligned numbers, the baseline's row, panel columns."""

    def run(self, root):
        heading = ""
        for parent in list(root.iter()):
            for i, child in enumerate(list(parent)):
                if child.tag in HEADINGS:
                    heading = _text(child)
                if child.tag == "table":
                    _style(child)
                    attributes = {"class": "wide", "role": "region", "tabindex": "0", "aria-label": heading}
                    box = etree.Element("div", attributes)
                    box.append(child)
                    box.tail, child.tail = child.tail, None
                    parent[i] = box
        _set_panels_side_by_side(root)


def _style(table):
    header, rows = table.find("thead/tr"), table.findall("tbody/tr")
    for row in rows:
        if len(row) and _text(row[0]).endswith(words.BASELINE_MARK):
            row.set("class", "baseline")
    for column, head in enumerate(header):
        cells = [row[column] for row in rows]
        if column and all(NUMBER.match(_text(cell)) for cell in cells):
            for cell in (head, *cells):
                cell.set("class", "number")


def _set_panels_side_by_side(root):
    """Lay out consecutive sections in columns where each is a heading, text and an image."""
    groups, start = [], None
    for i, child in enumerate(root):
        if child.tag in (*HEADINGS, "h1"):
            start = i if child.tag == "h3" else None
        elif start is not None and child.tag == "p" and len(child) == 1 and child[0].tag == "img":
            groups.append((start, i + 1))
            start = None
    sections = []
    for start, stop in groups:
        section = etree.Element("section")
        section.extend(root[start:stop])
        sections.append((section, root[start:stop]))
    if len(sections) > 1:
        box = etree.Element("div", {"class": "panels"})
        root.insert(groups[0][0], box)
        for section, children in sections:
            box.append(section)
            for child in children:
                root.remove(child)


def _text(element):
    return "".join(element.itertext()).strip()


def _data_uri(folder, link):
    data = (folder / unquote(unescape(link))).read_bytes()
    return f"data:image/png;base64,{base64.b64encode(data).decode('ascii')}"
