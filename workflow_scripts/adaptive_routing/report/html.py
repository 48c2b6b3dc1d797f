"""The report as one HTML file, made from its Markdown."""

import base64
import re
from html import escape, unescape
from pathlib import Path
from urllib.parse import unquote

import markdown

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #1a1a1a; background: #fff; max-width: 70rem;
       margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.7rem; line-height: 1.25; } h2 { margin-top: 2.5rem; border-bottom: 1px solid #ccc; }
img { max-width: 100%; } nav { background: #f5f5f5; padding: 0.5rem 1rem; font-size: 0.9rem; }
code { background: #f2f2f2; padding: 0 0.2em; font-size: 0.88em; }
pre { background: #f2f2f2; padding: 0.8rem; }
pre code { padding: 0; } pre, .wide { overflow-x: auto; } nav ul { margin: 0.2rem 0; padding-left: 1.2rem; }
table { border-collapse: collapse; font-size: 0.8rem; font-variant-numeric: tabular-nums; }
th, td { padding: 0.25rem 0.45rem; border-bottom: 1px solid #ddd; text-align: right; white-space: nowrap; }
th { white-space: normal; vertical-align: bottom; }
th:first-child, td:first-child { text-align: left; position: sticky; left: 0; background: #fff; }
@page { size: A4 landscape; margin: 12mm; }
@media print {
  nav { display: none; } body { max-width: none; margin: 0; padding: 0; font-size: 10pt; }
  pre, .wide { overflow: visible; } pre { white-space: pre-wrap; } tr, img { break-inside: avoid; }
  table { font-size: 7.5pt; } th, td { padding: 0.15rem 0.3rem; white-space: normal; }
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
<nav><details><summary>Contents</summary>{contents}</details></nav>
{body}
</body>
</html>
"""


def to_html(text, folder):
    """Turn the report's Markdown into one HTML file that needs nothing else: images inside, no request.

    folder: where the Markdown's relative image links start.
    """
    converter = markdown.Markdown(
        extensions=["tables", "toc", "fenced_code", "sane_lists"],
        extension_configs={"toc": {"toc_depth": "2-3"}},
    )
    body = converter.convert(text)
    body = re.sub(r'src="([^"]+)"', lambda match: f'src="{_data_uri(Path(folder), match[1])}"', body)
    body = body.replace("<table>", '<div class="wide"><table>').replace("</table>", "</table></div>")
    title = escape(text.partition("\n")[0].removeprefix("# "))
    return PAGE.format(title=title, style=STYLE, contents=converter.toc, body=body)


def _data_uri(folder, link):
    data = (folder / unquote(unescape(link))).read_bytes()
    return f"data:image/png;base64,{base64.b64encode(data).decode('ascii')}"
