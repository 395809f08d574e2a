"""A report as one HTML file that loads nothing: its tables, its plots, a table of contents."""

from __future__ import annotations

import base64
from html import escape

from dept.evaluation.report.names import TOPICS
from dept.evaluation.report.plot import Plot
from dept.evaluation.report.table import Cell, Table

# Plots are drawn on white, so they keep a white ground where the page is dark.
_STYLE = """
:root { color-scheme: light dark; --ground: #fff; --text: #1c1e21; --dim: #5c6570; --line: #d5dae0;
  --strong: #e8f1fb; --link: #0b5cad; }
@media (prefers-color-scheme: dark) { :root { --ground: #15181c; --text: #e3e6ea; --dim: #9aa4b0;
  --line: #363d46; --strong: #1d3652; --link: #7db8f5; } }
body { margin: 0 auto; max-width: 80rem; padding: 1.5rem; background: var(--ground);
  color: var(--text); font: 16px/1.5 system-ui, sans-serif; }
h1, h2, h3 { line-height: 1.25; }
h2 { margin-top: 3rem; padding-top: 1rem; border-top: 2px solid var(--line); }
h3 { margin-top: 2.2rem; }
a { color: var(--link); }
nav { padding: .4rem 1.2rem; border: 1px solid var(--line); border-radius: .5rem; }
nav ul { padding-left: 1.2rem; margin: .3rem 0; }
nav > ul { padding-left: 0; list-style: none; display: flex; flex-wrap: wrap; gap: .5rem 2rem; }
nav > ul > li { flex: 1 1 18rem; }
nav > ul > li.all { flex-basis: 100%; }
figure { margin: 1.6rem 0; }
figcaption { color: var(--dim); font-size: .85rem; max-width: 60rem; margin-top: .4rem; }
.title { color: var(--text); font-size: 1rem; font-weight: 600; margin: 0 0 .4rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: .8rem; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .45rem; text-align: right; white-space: nowrap; }
.text { text-align: left; }
th:first-child { position: sticky; left: 0; background: var(--ground); }
thead th { vertical-align: bottom; border-bottom: 2px solid var(--line); }
thead small { display: block; font-weight: 400; color: var(--dim); }
tbody th { font-weight: 400; }
tbody tr.part > * { border-top: 1px solid var(--line); }
td b { background: var(--strong); border-radius: .25rem; }
img { display: block; max-width: 100%; height: auto; background: #fff; border-radius: .5rem; }
"""

_LEAD = (
    "Each value is computed from the records beside this page, <code>runs/*.json</code>, one a "
    "finished run, and the page can be made again from them alone: "
    "<code>python -m dept.evaluation.report results</code>. What each run was given stands at the "
    "end of its corpus, under &ldquo;Setting&rdquo;; times and memory, which are the machine's, "
    "are in the records only."
)


def html(tables: list[Table], plots: list[Plot]) -> str:
    """The page.

    Args:
        tables: in their order on the page; those over all corpora come first.
        plots: each is put after the tables of its topic.
    """
    corpora = list(dict.fromkeys(item.corpus for item in [*tables, *plots]))
    body, contents = [], []
    for corpus in corpora:
        here = [item for item in [*tables, *plots] if item.corpus == corpus]
        topics = [topic for topic in TOPICS if any(item.topic == topic for item in here)]
        entries = []
        if corpus:
            body.append(f'<h2 id="{_anchor(corpus)}">{escape(corpus)}</h2>')
        for topic in topics:
            anchor, level = _anchor(corpus, topic), "h3" if corpus else "h2"
            body.append(f'<{level} id="{anchor}">{TOPICS[topic]}</{level}>')
            everywhere = "" if corpus else ' class="all"'
            entries.append(f'<li{everywhere}><a href="#{anchor}">{TOPICS[topic]}</a></li>')
            body += [_show(item) for item in here if item.topic == topic]
        inner = "\n".join(entries)
        link = f'<a href="#{_anchor(corpus)}">{escape(corpus)}</a>'
        contents.append(f"<li>{link}\n<ul>\n{inner}\n</ul></li>" if corpus else inner)
    return "\n".join(
        [
            "<!DOCTYPE html>",
            '<html lang="en">',
            '<head><meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            "<title>DEPT: comparison of methods</title>",
            f"<style>{_STYLE}</style></head>",
            "<body>",
            "<h1>DEPT: comparison of methods</h1>",
            f"<p>{_LEAD}</p>",
            "<nav>\n<ul>",
            *contents,
            "</ul>\n</nav>",
            *body,
            "</body>",
            "</html>\n",
        ]
    )


def _show(item: Table | Plot) -> str:
    if isinstance(item, Table):
        title = f'<div class="title">{escape(item.title)}</div>'
        content = f'{title}\n<div class="wide">{_table(item)}</div>'
    else:  # its title is in the picture
        data = base64.b64encode(item.png).decode()
        content = f'<img alt="{escape(item.title)}" src="data:image/png;base64,{data}">'
    return f"<figure>{content}\n<figcaption>{escape(item.caption)}</figcaption></figure>"


def _table(table: Table) -> str:
    lines = ["<table><thead><tr>"]
    left = [' class="text"' if place < table.texts else "" for place in range(len(table.head))]
    for (name, note), text in zip(table.head, left, strict=True):
        small = f"<small>{escape(note)}</small>" if note else ""
        lines.append(f'<th scope="col"{text}>{escape(name)}{small}</th>')
    lines.append("</tr></thead><tbody>")
    for place, row in enumerate(table.rows):
        part = ' class="part"' if place in table.parts else ""
        first, *others = map(_cell, row)
        cells = "".join(f"<td{c}>{cell}</td>" for cell, c in zip(others, left[1:], strict=True))
        lines.append(f'<tr{part}><th scope="row"{left[0]}>{first}</th>{cells}</tr>')
    lines.append("</tbody></table>")
    return "\n".join(lines)


def _cell(cell: Cell) -> str:
    text = escape(cell.text)
    return f"<b>{text}</b>" if cell.best else text


def _anchor(*parts: str) -> str:
    return "-".join(part.replace("_", "-") for part in parts if part)
