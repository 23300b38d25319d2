# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""One HTML file that holds everything it shows: no network, no scripts."""
from __future__ import annotations

import base64
import html
from collections.abc import Sequence
from dataclasses import dataclass, field

import cv2
import numpy as np

_STYLE = """
:root { color-scheme: light; --ink: #111827; --soft: #6b7280; --line: #e5e7eb; --accent: #2563eb; --bad: #b91c1c; }
* { box-sizing: border-box; }
body { margin: 0; background: #f3f4f6; color: var(--ink);
       font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
main { max-width: 1040px; margin: 0 auto; padding: 32px 20px 64px; }
h1 { font-size: 26px; line-height: 1.2; margin: 0 0 4px; }
h2 { font-size: 17px; margin: 36px 0 10px; }
.lead { color: var(--soft); margin: 0 0 22px; }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(150px, 1fr)); gap: 10px; }
.card { background: #fff; border: 1px solid var(--line); border-radius: 10px; padding: 12px 14px; }
.card b { display: block; font-size: 23px; line-height: 1.25; font-variant-numeric: tabular-nums; color: var(--accent); }
.card.bad b { color: var(--bad); }
.card span { display: block; font-weight: 600; }
.card small { color: var(--soft); }
.panel { background: #fff; border: 1px solid var(--line); border-radius: 10px; padding: 14px; }
.panel + .panel { margin-top: 14px; }
.problems { background: #fef2f2; border: 1px solid #fecaca; color: var(--bad); border-radius: 10px; padding: 10px 16px;
            margin-top: 14px; }
.problems p { margin: 2px 0; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { text-align: right; padding: 7px 12px; border-bottom: 1px solid var(--line); white-space: nowrap; }
th:first-child, td:first-child { text-align: left; }
th { color: var(--soft); font-weight: 600; font-size: 13px; }
tr:last-child td { border-bottom: 0; }
img { display: block; width: 100%; height: auto; border-radius: 4px; }
.grid { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(440px, 100%), 1fr)); gap: 14px; }
figure { margin: 0; background: #fff; border: 1px solid var(--line); border-radius: 10px; padding: 10px; }
figcaption { color: var(--soft); font-size: 13px; padding: 8px 2px 0; }
.dot { display: inline-block; width: .7em; height: .7em; border-radius: 50%; margin: 0 .3em 0 .6em; }
footer { color: var(--soft); font-size: 13px; margin-top: 40px; }
"""


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
        self._parts.append('<div class="cards">' + "".join(
            f'<div class="card{" bad" if c.bad else ""}"><b>{_text(c.value)}</b><span>{_text(c.label)}</span>'
            f"<small>{_text(c.note)}</small></div>" for c in cards) + "</div>")

    def problems(self, lines: Sequence[str]) -> None:
        if lines:
            self._parts.append('<div class="problems">' + "".join(f"<p>{_text(line)}</p>" for line in lines) + "</div>")

    def heading(self, text: str) -> None:
        self._parts.append(f"<h2>{_text(text)}</h2>")

    def table(self, rows: Sequence[Sequence[str]]) -> None:
        """The first row is the head."""
        head = "".join(f"<th>{_text(cell)}</th>" for cell in rows[0])
        body = "".join("<tr>" + "".join(f"<td>{_text(cell)}</td>" for cell in row) + "</tr>" for row in rows[1:])
        self._parts.append(f'<div class="panel scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>')

    def plot(self, png: bytes, alternative: str) -> None:
        self._parts.append(f'<div class="panel">{_image(png, "png", alternative)}</div>')

    def pictures(self, pictures: Sequence[tuple[np.ndarray, str]]) -> None:
        """uint8 RGB images with captions, in two columns."""
        figures = []
        for image, caption in pictures:
            _, data = cv2.imencode(".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), (cv2.IMWRITE_JPEG_QUALITY, 88))
            figures.append(f'<figure>{_image(data.tobytes(), "jpeg", caption)}<figcaption>{_text(caption)}</figcaption></figure>')
        self._parts.append(f'<div class="grid">{"".join(figures)}</div>')

    def legend(self, entries: Sequence[tuple[tuple[int, int, int], str]], text: str) -> None:
        dots = "".join(f'<span class="dot" style="background:rgb{colour}"></span>{_text(label)}' for colour, label in entries)
        self._parts.append(f'<p class="lead">{_text(text)}{dots}</p>')

    def html(self) -> str:
        return (f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{_text(self.title)}</title>'
                f'<meta name="viewport" content="width=device-width, initial-scale=1"><style>{_STYLE}</style></head><body><main>'
                f'<h1>{_text(self.title)}</h1><p class="lead">{_text(self.lead)}</p>{"".join(self._parts)}'
                f"<footer>{_text(self.footer)}</footer></main></body></html>\n")


def _text(text: str) -> str:
    return html.escape(str(text))


def _image(data: bytes, kind: str, alternative: str) -> str:
    return f'<img alt="{_text(alternative)}" src="data:image/{kind};base64,{base64.b64encode(data).decode()}">'
