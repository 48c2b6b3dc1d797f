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
h1 { font-size: 1.45rem; line-height: 1.25; margin: 0.2rem 0 0.6rem; }
h2 { margin: 2.5rem 0 0.8rem; padding-bottom: 0.2rem; border-bottom: 2px solid var(--line);
     font-size: 1.35rem; }
h3 { margin: 1.8rem 0 0.5rem; font-size: 1.08rem; }
p, li { max-width: 52rem; }
a { color: #0b4f9e; }
img { max-width: 100%; height: auto; }
code { background: #f0f0ee; padding: 0 0.2em; font-size: 0.88em; overflow-wrap: anywhere; }
pre { background: #f0f0ee; padding: 0.8rem; overflow-x: auto; }
pre code { padding: 0; overflow-wrap: normal; }
#answers { margin: 0 0 0.6rem; }
.first { display: grid; column-gap: 1.5rem; align-items: start; grid-template:
         "answer picture" auto "reasons picture" auto "reasons costs" 1fr / minmax(0, 1fr) minmax(0, 1fr); }
.first > ol { margin: 0; padding: 0.3rem 1rem 0.3rem 2rem; border-left: 4px solid #0b4f9e;
              background: var(--tint); font-size: 0.94rem; line-height: 1.42; }
.first > .answer { grid-area: answer; font-size: 1.02rem; font-weight: 600; }
.first > .reasons { grid-area: reasons; }
.first > .picture { grid-area: picture; }
.first > .costs { grid-area: costs; }
.first:not(:has(.picture)), .first:has(.picture[open]) {
  grid-template: "answer" auto "picture" auto "costs" auto "reasons" auto / minmax(0, 1fr); }
.first li { margin: 0.3rem 0; max-width: 60rem; }
.picture { margin: 0.6rem 0; } .first .picture { margin-top: 0; }
.picture summary { position: relative; display: block; cursor: zoom-in; }
.picture summary::after { content: "⤢ larger"; position: absolute; top: 0; right: 0; padding: 0 0.4rem;
                          background: #ffffffd9; font-size: 0.78rem; }
.picture[open] summary { cursor: zoom-out; overflow-x: auto; }
.picture[open] summary::after { content: "⤡ smaller"; }
.picture img { display: block; } .picture[open] img { width: max(100%, 58rem); max-width: none; }
nav { font-size: 0.88rem; background: var(--tint); padding: 0.5rem 1rem; margin-bottom: 1rem; }
nav ul { margin: 0.2rem 0; padding-left: 1.1rem; } nav > div > ul { padding-left: 0; list-style: none; }
nav a { text-decoration: none; } nav a:hover { text-decoration: underline; }
summary { cursor: pointer; color: #0b4f9e; }
.wide { overflow-x: auto; margin: 0.8rem 0; background:
          linear-gradient(to right, #fff 40%, #fff0) left / 3rem 100% local,
          linear-gradient(to left, #fff 40%, #fff0) right / 3rem 100% local,
          linear-gradient(to right, #0005, #0000) left / 0.8rem 100% scroll,
          linear-gradient(to left, #0005, #0000) right / 0.8rem 100% scroll; background-repeat: no-repeat; }
.wide:focus-visible { outline: 2px solid #0b4f9e; }
table { border-collapse: collapse; font-size: 0.82rem; line-height: 1.35;
        font-variant-numeric: tabular-nums; }
th, td { padding: 0.28rem 0.55rem; border-bottom: 1px solid var(--line); text-align: left;
         vertical-align: top; }
thead th { vertical-align: bottom; border-bottom: 2px solid var(--grey); }
.number { text-align: right; white-space: nowrap; }
thead .number { white-space: normal; }
td:not(.number) { min-width: 9rem; } .costs :is(th, td) { min-width: 0; padding: 0.2rem 0.4rem; }
.costs .wide { margin: 0 0 0.6rem; } .costs table { font-size: 0.76rem; width: 100%; }
th:first-child, td:first-child { position: sticky; left: 0; background: #fff; white-space: nowrap; }
td code { overflow-wrap: normal; white-space: nowrap; }
.baseline td, .baseline td:first-child { background: var(--mark); }
.better { color: #00528f; } .worse { color: #a33200; } .same { color: var(--grey); }
.panels { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(20rem, 100%), 1fr));
          gap: 0 1.5rem; }
.panels p { font-size: 0.88rem; line-height: 1.4; } .panels h3 { margin-top: 1rem; }
.panels section { display: flex; flex-direction: column; }
.panels .picture { order: 1; } .panels p { order: 2; }
.panels section:has([open]) { grid-column: 1 / -1; }
@media (min-width: 75rem) {
  body { display: grid; grid-template-columns: 14rem minmax(0, 1fr); gap: 2.5rem; max-width: 92rem; }
  nav { position: sticky; top: 1rem; align-self: start; max-height: calc(100vh - 2rem); overflow-y: auto; }
}
@media not all and (min-width: 75rem) {
  nav ul ul { display: none; }
  nav > div > ul { display: flex; gap: 0 1.2rem; overflow-x: auto; white-space: nowrap; }
}
@media (max-width: 40rem) {
  body { padding: 0.6rem; }
  h1 { font-size: 1.25rem; margin: 0.3rem 0; } h2 { margin-top: 1.6rem; } nav { margin-bottom: 0.4rem; }
  #answers { margin: 0.5rem 0; font-size: 1.1rem; }
  .first { grid-template: "answer" auto "picture" auto "costs" auto "reasons" auto / minmax(0, 1fr); }
  .first > ol { padding: 0.1rem 0.5rem 0.1rem 1.6rem; }
  .first > .answer { font-size: 1rem; line-height: 1.35; }
  th:first-child, td:first-child { position: static; background: none; }
  .columns::before { content: "Scroll sideways for all columns →"; position: sticky; left: 0; display: block;
                     width: max-content; font-size: 0.78rem; color: #0b4f9e; }
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
  .picture summary::after { display: none; }
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
FITTING = 3  # columns of a table that a phone shows side by side
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
    """What Markdown cannot express.

    The first screen; scrolling tables, aligned numbers, the baseline's row; panels in columns; pictures
    that a click enlarges.
    """

    def run(self, root):
        heading = ""
        for parent in list(root.iter()):
            for i, child in enumerate(list(parent)):
                if child.tag in HEADINGS:
                    heading = _text(child)
                if child.tag == "table":
                    _style(child)
                    columns = " columns" if len(child.find("thead/tr")) > FITTING else ""
                    attributes = {"class": f"wide{columns}", "role": "region", "tabindex": "0"}
                    attributes["aria-label"] = heading
                    box = etree.Element("div", attributes)
                    box.append(child)
                    box.tail, child.tail = child.tail, None
                    parent[i] = box
        _set_panels_side_by_side(root)
        for parent in list(root.iter()):
            for i, child in enumerate(list(parent)):
                if _is_picture(child):
                    parent[i] = _enlarging(child)
        _set_first_screen(root)


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
    """Lay out sections in columns where several follow each other that are a heading, a text and an image."""
    children = list(root)
    runs = []  # of the places where such sections begin
    for i in range(len(children) - 2):
        heading, text, picture = children[i : i + 3]
        if heading.tag == "h3" and text.tag == "p" and _is_picture(picture):
            if not runs or runs[-1][-1] != i - 3:
                runs.append([])
            runs[-1].append(i)
    for starts in runs:
        if len(starts) < 2:
            continue
        box = etree.Element("div", {"class": "panels"})
        root.insert(list(root).index(children[starts[0]]), box)
        for start in starts:
            section = etree.SubElement(box, "section")
            for child in children[start : start + 3]:
                root.remove(child)
                section.append(child)


def _is_picture(element):
    """Whether it is a paragraph of an image alone."""
    return element.tag == "p" and len(element) == 1 and element[0].tag == "img" and not _text(element)


def _enlarging(paragraph):
    """A picture that a click, or the return key, enlarges and makes small again, without a script."""
    details = etree.Element("details", {"class": "picture"})
    etree.SubElement(details, "summary").append(paragraph[0])
    details.tail = paragraph.tail
    return details


def _set_first_screen(root):
    """Lay out the answer, its picture, the costs and the other sentences as the parts of one block.

    A wide window shows picture and costs beside the text, a narrow one after the first sentence.
    """
    places = {child.get("id"): i for i, child in enumerate(root)}
    start = places["answers"] + 1 if "answers" in places else len(root)
    if start >= len(root) or root[start].tag != "ol":
        return
    sentences, *others = root[start : start + 3]
    box, first = etree.Element("div", {"class": "first"}), etree.Element("ol", {"class": "answer"})
    first.append(sentences[0])
    sentences.remove(sentences[0])
    box.append(first)
    for other in others:
        if other.get("class") in ("picture", "costs"):
            box.append(other)
            root.remove(other)
    if len(sentences):
        sentences.attrib |= {"class": "reasons", "start": "2"}
        box.append(sentences)
    root[start] = box


def _text(element):
    return "".join(element.itertext()).strip()


def _data_uri(folder, link):
    data = (folder / unquote(unescape(link))).read_bytes()
    return f"data:image/png;base64,{base64.b64encode(data).decode('ascii')}"
