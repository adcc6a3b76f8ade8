"""The one look of all reports: self-contained HTML pages for the dashboard, the browser and paper.

Everything is inline (style, pictures as data URIs), so that a page opens offline and in a sandboxed
frame. Text from data is escaped: whatever is not `Markup` made by this module counts as text.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Sequence

from markupsafe import Markup, escape

_STYLE = """
:root { color-scheme: light dark; --ink: #1c2733; --soft: #5b6b7b; --line: #d9e0e7; --paper: #ffffff;
  --shade: #f4f7f9; --accent: #0b6e8a; --good: #1a7f4b; --bad: #b3261e; --warn: #8a5a00;
  --first: #0b6e8a; --second: #f0c050; --third: #c8553d; --rest: #c3cad1;
  --worst: #b3261e; }
@media (prefers-color-scheme: dark) { :root { --ink: #e4eaf0; --soft: #9fb0c0; --line: #33404d;
  --paper: #12181f; --shade: #1b242d; --accent: #5cc3e0; --good: #5fd39a; --bad: #ff8a80; --warn: #f2c063;
  --first: #4fb3d1; --second: #f6d48a; --third: #d9623f; --rest: #66727e;
  --worst: #f0604f; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1.5rem; max-width: 72rem; background: var(--paper); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
h1 { font-size: 1.5rem; margin: 0 0 1rem; }
h2 { font-size: 1.1rem; margin: 2rem 0 .6rem; padding-bottom: .25rem; border-bottom: 1px solid var(--line); }
h3 { font-size: 1rem; margin: 1rem 0 .3rem; }
p { max-width: 46rem; margin: .5rem 0; overflow-wrap: anywhere; }
.note { color: var(--soft); }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: .93em; margin: .5rem 0; }
th, td { text-align: left; vertical-align: top; padding: .35rem .9rem .35rem 0;
  border-bottom: 1px solid var(--line); overflow-wrap: anywhere; white-space: pre-wrap; min-width: 3rem; }
th { color: var(--soft); font-weight: 600; white-space: nowrap; }
td.number, th.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
td { unicode-bidi: plaintext; }
td img { display: block; max-height: 96px; }
figure { margin: .5rem 0 1rem; }
figure img { display: block; max-width: 100%; height: auto; background: #fff; border-radius: 4px; }
figcaption { color: var(--soft); font-size: .9em; margin-top: .3rem; white-space: pre-wrap; }
.tiles { display: flex; flex-wrap: wrap; gap: .6rem; margin: .5rem 0; }
.tile { flex: 1 1 8rem; max-width: 14rem; padding: .6rem .8rem; background: var(--shade); border-radius: 6px;
  break-inside: avoid; }
.tile b { display: block; font-size: 1.45rem; line-height: 1.25; font-variant-numeric: tabular-nums; }
.tile span { color: var(--soft); font-size: .88em; }
.grid { display: grid; gap: .8rem; margin: .5rem 0;
  grid-template-columns: repeat(auto-fill, minmax(10rem, 1fr)); }
.card { background: var(--shade); border-radius: 6px; overflow: hidden; break-inside: avoid; }
.card img { display: block; width: 100%; height: 10rem; object-fit: contain; background: #000; }
.card div { padding: .5rem .6rem .6rem; font-size: .88em; overflow-wrap: anywhere; white-space: pre-wrap;
  unicode-bidi: plaintext; }
.charts { columns: 2 24rem; column-gap: 2.5rem; } .charts figure { margin-top: 0; padding-top: .5rem; }
.bars { break-inside: avoid; min-width: 0; }
.bars figcaption { margin-bottom: .3rem; } .bars figcaption b { color: var(--ink); font-size: 1.08em; }
.bars > div { display: grid; gap: .12rem .6rem; align-items: center; font-size: .88em;
  grid-template-columns: fit-content(min(45%, 20rem)) minmax(4rem, 1fr) max-content; }
.bars span { overflow: hidden; text-overflow: ellipsis; white-space: nowrap; unicode-bidi: plaintext; }
.bars .track { display: flex; height: 1.05em; background: var(--shade); }
.bars .value { text-align: right; color: var(--soft); font-variant-numeric: tabular-nums; }
.bars i { display: block; height: 100%; min-width: 1px; print-color-adjust: exact;
  -webkit-print-color-adjust: exact; }
.bars .key { white-space: nowrap; margin-right: .9em; }
.bars .key i { display: inline-block; width: .8em; height: .8em; margin-right: .35em; }
.first { background: var(--first); } .second { background: var(--second); }
.third { background: var(--third); } .rest { background: var(--rest); }
.worst { background: var(--worst); }
.badge { display: inline-block; padding: .05rem .55rem; border-radius: 1rem; border: 1px solid currentColor;
  font-size: .85em; font-weight: 600; white-space: nowrap; color: var(--soft); }
.badge.good { color: var(--good); } .badge.bad { color: var(--bad); }
@media print { body { max-width: none; padding: 0; font-size: 11pt; } h2 { break-after: avoid; } }
"""


def page(title: str, *sections: str) -> str:
    """Return a whole document; `sections` are HTML as the other functions here make it."""
    head = Markup(
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        "<title>{0}</title><style>{1}</style></head>\n<body><h1>{0}</h1>\n"
    ).format(title, Markup(_STYLE))  # noqa: S704 (a constant)
    return f"{head}{''.join(sections)}\n</body></html>\n"


def section(title: str, body_html: str) -> Markup:
    """Return a headed part of a page; the title is text, the body is HTML already."""
    return Markup("<section><h2>{}</h2>{}</section>\n").format(title, Markup(body_html))  # noqa: S704 (as documented)


def table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> Markup:
    """Return a table. Cells are escaped, except `Markup` such as `badge` and `thumbnail` return.

    Columns that hold only numbers (or None) are set right-aligned; None shows as a dash.
    """
    rows = [list(row) for row in rows]
    if not rows:
        return note("none")
    numeric = [all(_is_number(row[column]) for row in rows) for column in range(len(header))]

    def line(tag: str, cells: Sequence[object]) -> Markup:
        return Markup("").join(
            Markup("<{0}{1}>{2}</{0}>").format(tag, Markup(' class="number"') if number else "", _text(cell))
            for cell, number in zip(cells, numeric, strict=True)
        )

    body = Markup("").join(Markup("<tr>{}</tr>\n").format(line("td", row)) for row in rows)
    return Markup(
        '<div class="wide"><table><thead><tr>{}</tr></thead><tbody>\n{}</tbody></table></div>'
    ).format(line("th", header), body)


def figure(png: bytes, caption: str = "") -> Markup:
    """Return a picture (PNG) in full width with its caption."""
    return Markup('<figure><img src="{}" alt="{}"><figcaption>{}</figcaption></figure>').format(
        _data_uri(png), caption, caption
    )


def thumbnail(png: bytes, alt: str = "") -> Markup:
    """Return a small picture for a table cell."""
    return Markup('<img src="{}" alt="{}">').format(_data_uri(png), alt)


def grid(cards: Iterable[tuple[bytes | None, str]]) -> Markup:
    """Return cards of a picture (PNG; None for no picture) over a text that may have several lines."""
    inner = Markup("").join(
        Markup('<div class="card">{}<div>{}</div></div>').format(thumbnail(png) if png else "", _text(text))
        for png, text in cards
    )
    return Markup('<div class="grid">{}</div>').format(inner)


def bars(
    title: str,
    rows: Iterable[tuple[str, Sequence[int], str]],
    series: Sequence[tuple[str, str]],
    caption: str = "",
    whole: int | None = None,
) -> Markup:
    """Return a chart of horizontal bars, which the browser draws: any script, any width, on paper too.

    The colours stay apart for colour-blind readers (CIE76 distance over 20 in each dichromacy's simulation).

    Args:
        title: What is counted.
        rows: Label, one count for each series, and the text at the bar's end.
        series: Name and colour of each stacked part: first, second, third, rest, worst.
            Names show in a key if there are several.
        caption: Follows the title.
        whole: What a bar of full length counts; without it, the longest one fills the width.
    """
    rows = [(label, list(counts), text) for label, counts, text in rows]
    longest = whole or max((sum(counts) for _, counts, _ in rows), default=0) or 1
    lines = Markup("").join(
        Markup(
            '<span title="{0}">{0}</span><span class="track">{1}</span><span class="value">{2}</span>'
        ).format(label, _track(counts, series, longest), text)
        for label, counts, text in rows
    )
    used = [item for number, item in enumerate(series) if any(counts[number] for _, counts, _ in rows)]
    key = Markup("").join(
        Markup('<span class="key"><i class="{}"></i>{}</span>').format(colour, name)
        for name, colour in (used if len(series) > 1 else ())
    )
    return Markup(
        '<figure class="bars"><figcaption><b>{}</b>  {}{}</figcaption><div>{}</div></figure>'
    ).format(title, caption, Markup("\n") + key if key else "", lines)


def _track(counts: Sequence[int], series: Sequence[tuple[str, str]], longest: int) -> Markup:
    return Markup("").join(
        Markup('<i class="{}" style="width:{}%" title="{}"></i>').format(
            colour, f"{100 * count / longest:.2f}", f"{name} {count:,}".strip()
        )
        for count, (name, colour) in zip(counts, series, strict=True)
        if count
    )


def charts(figures: Iterable[Markup]) -> Markup:
    """Return figures side by side, as many as fit."""
    return Markup('<div class="charts">{}</div>').format(Markup("").join(figures))


def tiles(figures: Iterable[tuple[object, str]]) -> Markup:
    """Return the headline figures of a page as tiles: (figure, what it counts)."""
    inner = Markup("").join(
        Markup('<div class="tile"><b>{}</b><span>{}</span></div>').format(_text(value), label)
        for value, label in figures
    )
    return Markup('<div class="tiles">{}</div>').format(inner)


def note(text: str) -> Markup:
    """Return a paragraph in a quieter tone."""
    return Markup('<p class="note">{}</p>').format(text)


def paragraph(text: str) -> Markup:
    """Return a paragraph."""
    return Markup("<p>{}</p>").format(text)


def badge(text: str, good: bool | None = None) -> Markup:
    """Return a verdict in one word: green, red, or neutral for None."""
    kind = {True: " good", False: " bad", None: ""}[good]
    return Markup('<span class="badge{}">{}</span>').format(kind, text)


def _data_uri(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode()


def _is_number(cell: object) -> bool:
    return cell is None or (isinstance(cell, (int, float)) and not isinstance(cell, bool))


def _text(cell: object) -> Markup:
    if cell is None:
        return Markup("&ndash;")
    if isinstance(cell, bool):
        return escape("yes" if cell else "no")
    if isinstance(cell, int):
        return escape(f"{cell:,}")
    if isinstance(cell, float):
        return escape(f"{cell:,.3f}" if abs(cell) < 10 else f"{cell:,.1f}")
    return escape(cell)
