# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""One HTML file that holds everything it shows: no network, no scripts."""

from __future__ import annotations

import base64
import html
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

import cv2
import numpy as np

from ..evaluation.tables import Group

_STYLE = """
:root { color-scheme: light; --ink: #111827; --soft: #5b6472; --line: #e5e7eb; --accent: #0072B2; --bad: #b3261e; }
* { box-sizing: border-box; }
body { margin: 0; background: #f3f4f6; color: var(--ink);
       font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
main { max-width: 1160px; margin: 0 auto; padding: 32px 20px 64px; }
h1 { font-size: 26px; line-height: 1.2; margin: 0 0 4px; }
h2 { font-size: 18px; margin: 40px 0 4px; }
h3 { font-size: 15px; margin: 0 0 2px; }
.lead { color: var(--soft); margin: 0 0 18px; overflow-wrap: anywhere; }
h2 + .lead { margin-bottom: 10px; }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(150px, 1fr)); gap: 10px; margin-bottom: 14px; }
.card, .panel, figure { background: #fff; border: 1px solid var(--line); border-radius: 10px; }
.card { padding: 12px 14px; }
.card b { display: block; font-size: 23px; line-height: 1.25; font-variant-numeric: tabular-nums; color: var(--accent); }
.card.bad b { color: var(--bad); }
.card span { display: block; font-weight: 600; }
.card small, .panel p { color: var(--soft); }
.panel { padding: 14px; }
.panel p { margin: 0 0 6px; font-size: 13px; }
:is(.panel, .grid, .wide) + :is(.panel, .grid, .wide) { margin-top: 14px; }
.problems { background: #fef2f2; border: 1px solid #fecaca; color: var(--bad); border-radius: 10px; padding: 10px 16px;
            margin-top: 14px; }
.notes { background: #fffbeb; border: 1px solid #fde68a; color: #78350f; border-radius: 10px; padding: 10px 16px;
         margin-top: 14px; }
.problems p, .notes p { margin: 2px 0; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { text-align: right; padding: 6px 10px; border-bottom: 1px solid var(--line); white-space: nowrap; }
th:first-child, td:first-child { text-align: left; padding-left: 2px; }
thead th { color: var(--soft); font-weight: 600; font-size: 13px; line-height: 1.3; vertical-align: bottom;
           white-space: pre-line; }
tbody th { font-weight: 600; }
.panel.scroll { font-size: 14px; }
.panel.scroll th, .panel.scroll td { padding: 6px 7px; }
.panel.scroll th { white-space: pre; font-size: 12.5px; }
.panel.scroll td:first-child { white-space: normal; min-width: 110px; }
.small th { overflow-wrap: anywhere; max-width: 130px; }
.best { font-weight: 700; color: var(--accent); }
tr:last-child td, tr:last-child tbody th { border-bottom: 0; }
img { display: block; width: 100%; height: auto; border-radius: 4px; }
.grid { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(var(--least, 440px), 100%), 1fr)); gap: 14px; }
.grid > .panel, .grid > figure { margin: 0; min-width: 0; }
figure { margin: 0; padding: 12px; }
figure b { display: block; padding: 0 2px 6px; }
figcaption { color: var(--soft); font-size: 13px; padding: 8px 2px 0; }
.dot { display: inline-block; width: .7em; height: .7em; border-radius: 50%; margin: 0 .35em 0 0; }
p .dot { margin-left: .6em; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 2px 16px; margin: 0; overflow-wrap: anywhere; }
dt { color: var(--soft); }
dd { margin: 0; }
footer { color: var(--soft); font-size: 13px; margin-top: 40px; }
@media (max-width: 560px) { main { padding: 20px 12px 40px; } h1 { font-size: 22px; } .card b { font-size: 20px; }
  .cards { grid-template-columns: 1fr 1fr; } figure, .panel { padding: 10px 8px; } dl { grid-template-columns: 1fr; }
  dd { margin-bottom: 6px; } .small td:first-child { white-space: normal; }
  .scroll td:first-child, .scroll th:first-child { position: sticky; left: 0; background: #fff; } }
@media print { body { background: #fff; } figure, .panel, .card { break-inside: avoid; } }
"""

Colour = tuple[int, int, int] | str
"""RGB from 0 to 255, or as CSS writes it."""


@dataclass(frozen=True)
class Picture:
    """A plot or photo. image: a PNG file, or uint8 RGB [H, W, 3], which is packed as JPEG. caption: how to read it."""

    image: bytes | np.ndarray
    title: str = ""
    caption: str = ""


@dataclass(frozen=True)
class Card:
    """A figure in large print, what it is, and a word beside it."""

    value: str
    label: str
    note: str = ""
    bad: bool = False


@dataclass
class Page:
    """Collects parts and makes the file's text."""

    title: str
    lead: str
    footer: str = ""
    _parts: list[str] = field(default_factory=list)

    def cards(self, cards: Sequence[Card]) -> None:
        self._parts.append(
            '<div class="cards">'
            + "".join(
                f'<div class="card{" bad" if c.bad else ""}"><b>{_text(c.value)}</b><span>{_text(c.label)}</span>'
                f"<small>{_text(c.note)}</small></div>"
                for c in cards
            )
            + "</div>"
        )

    def problems(self, lines: Sequence[str]) -> None:
        if lines:
            self._parts.append('<div class="problems">' + "".join(f"<p>{_text(line)}</p>" for line in lines) + "</div>")

    def heading(self, text: str) -> None:
        self._parts.append(f"<h2>{_text(text)}</h2>")

    def notes(self, lines: Sequence[str]) -> None:
        """What a reader should know before trusting the figures."""
        if lines:
            self._parts.append('<div class="notes">' + "".join(f"<p>{_text(line)}</p>" for line in lines) + "</div>")

    def text(self, text: str) -> None:
        self._parts.append(f'<p class="lead">{_text(text)}</p>')

    def table(
        self, rows: Sequence[Sequence[str]], colours: Sequence[Colour | None] = (), best: Collection[tuple[int, int]] = ()
    ) -> None:
        """The first row is the head, the first column says what a row is. colours: a dot before each row's name. best: (row,
        column), counted without head and names, of figures to stand out."""
        head = "".join(f"<th>{_text(cell)}</th>" for cell in rows[0])
        body = ""
        for number, row in enumerate(rows[1:]):
            dot = _dot(colours[number]) if number < len(colours) and colours[number] is not None else ""
            cells = "".join(_cell(cell, (number, column) in best) for column, cell in enumerate(row[1:]))
            body += f"<tr><td>{dot}{_text(row[0])}</td>{cells}</tr>"
        self._parts.append(f'<div class="panel scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>')

    def groups(self, names: Sequence[str], groups: Sequence[Group], colours: Sequence[Colour] = ()) -> None:
        """Groups of figures, each a small table with a column a run."""
        panels = ""
        head = "".join(f"<th>{_dot(colours[i]) if i < len(colours) else ''}{_text(name)}</th>" for i, name in enumerate(names))
        head = f"<thead><tr><th></th>{head}</tr></thead>" if len(names) > 1 else ""
        for group in groups:
            body = "".join(
                f"<tr><td>{_text(row.label)}</td>{''.join(_cell(cell, i in row.best) for i, cell in enumerate(row.cells))}</tr>"
                for row in group.rows
            )
            panels += (
                f'<div class="panel"><h3>{_text(group.title)}</h3><p>{_text(group.note)}</p><div class="scroll">'
                f'<table class="small">{head}<tbody>{body}</tbody></table></div></div>'
            )
        least = 300 if len(names) == 1 else 340 + 90 * (len(names) - 1)
        self._parts.append(f'<div class="grid" style="--least: {least}px">{panels}</div>')

    def plot(self, wide: bytes, narrow: bytes | None, alternative: str, caption: str = "") -> None:
        """A plot as wide as the page, and the same one drawn for a phone, if there is one; PNG files."""
        image = _image(wide, "png", alternative)
        source = "" if narrow is None else f'<source media="(max-width: 560px)" srcset="{_data(narrow, "png")}">'
        self._parts.append(f'<figure class="wide"><picture>{source}{image}</picture>{_caption(caption)}</figure>')

    def pictures(self, pictures: Sequence[Picture]) -> None:
        """Plots and photos in two columns, on a phone in one."""
        figures = []
        for picture in pictures:
            data, kind = picture.image, "png"
            if isinstance(data, np.ndarray):
                data = cv2.imencode(".jpg", cv2.cvtColor(data, cv2.COLOR_RGB2BGR), (cv2.IMWRITE_JPEG_QUALITY, 88))[1].tobytes()
                kind = "jpeg"
            figures.append(
                f"<figure>{_title(picture.title)}{_image(data, kind, picture.title or picture.caption)}"
                f"{_caption(picture.caption)}</figure>"
            )
        self._parts.append(f'<div class="grid">{"".join(figures)}</div>')

    def legend(self, entries: Sequence[tuple[Colour, str]], text: str = "") -> None:
        dots = "".join(_dot(colour) + _text(label) for colour, label in entries)
        self._parts.append(f'<p class="lead">{_text(text)}{dots}</p>')

    def facts(self, facts: Mapping[str, str]) -> None:
        """Names and what they are, line by line."""
        self._parts.append(
            '<div class="panel"><dl>'
            + "".join(f"<dt>{_text(name)}</dt><dd>{_text(value)}</dd>" for name, value in facts.items())
            + "</dl></div>"
        )

    def html(self) -> str:
        return (
            f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{_text(self.title)}</title>'
            f'<meta name="viewport" content="width=device-width, initial-scale=1"><style>{_STYLE}</style></head><body><main>'
            f'<h1>{_text(self.title)}</h1><p class="lead">{_text(self.lead)}</p>{"".join(self._parts)}'
            f"<footer>{_text(self.footer)}</footer></main></body></html>\n"
        )


def _text(text: str) -> str:
    return html.escape(str(text))


def _title(text: str) -> str:
    return f"<b>{_text(text)}</b>" if text else ""


def _caption(text: str) -> str:
    return f"<figcaption>{_text(text)}</figcaption>" if text else ""


def _cell(text: str, best: bool) -> str:
    return f"""<td{' class="best"' if best else ""}>{_text(text)}</td>"""


def _dot(colour: Colour) -> str:
    return f'<span class="dot" style="background:{_text(colour if isinstance(colour, str) else f"rgb{colour}")}"></span>'


def _image(data: bytes, kind: str, alternative: str) -> str:
    return f'<img alt="{_text(alternative)}" src="{_data(data, kind)}">'


def _data(data: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
