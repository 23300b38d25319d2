# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""One HTML file that holds everything it shows: no network, no scripts."""

import base64
import html
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np

from ..evaluation.tables import Group

_STYLE = Path(__file__).with_name("page.css").read_text(encoding="utf-8")

Colour = tuple[int, int, int] | str
"""RGB from 0 to 255, or as CSS writes it."""


@dataclass(frozen=True)
class Picture:
    """A plot or photo.

    Attributes:
        image: A PNG file, or uint8 RGB [H, W, 3], which is packed as JPEG.
        title: Above it.
        caption: How to read it.
    """

    image: bytes | np.ndarray
    title: str = ""
    caption: str = ""


@dataclass(frozen=True)
class Card:
    """A figure in large print, what it is, and a word next to it."""

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

    def _add(self, tag: str, attributes: str, content: str) -> None:
        self._parts.append(f"<{tag} {attributes}>{content}</{tag}>")

    def cards(self, cards: Sequence[Card]) -> None:
        texts = (
            f'<div class="card{" bad" if c.bad else ""}"><b>{_text(c.value)}</b><span>{_text(c.label)}</span>'
            f"<small>{_text(c.note)}</small></div>"
            for c in cards
        )
        self._add("div", 'class="cards"', "".join(texts))

    def problems(self, lines: Sequence[str], kind: str = "problems") -> None:
        """What is wrong, a paragraph a line; nothing where there is none."""
        if lines:
            self._add("div", f'class="{kind}"', "".join(f"<p>{_text(line)}</p>" for line in lines))

    def notes(self, lines: Sequence[str]) -> None:
        """What a reader should know before trusting the figures."""
        self.problems(lines, "notes")

    def heading(self, text: str) -> None:
        self._parts.append(f"<h2>{_text(text)}</h2>")

    def text(self, text: str) -> None:
        self._add("p", 'class="lead"', _text(text))

    def table(
        self, rows: Sequence[Sequence[str]], colours: Sequence[Colour | None] = (), best: Collection[tuple[int, int]] = ()
    ) -> None:
        """A table.

        Args:
            rows: The first row is the head, the first column says what a row is.
            colours: Of a dot before each row's name.
            best: (row, column), counted without head and names, of figures to stand out.
        """
        head = "".join(f"<th>{_text(cell)}</th>" for cell in rows[0])
        body = ""
        for number, (name, *cells) in enumerate(rows[1:]):
            dot = _dot(colours[number]) if number < len(colours) and colours[number] is not None else ""
            body += _row(name, cells, {column for row, column in best if row == number}, dot)
        self._add("div", 'class="panel scroll"', f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>")

    def groups(self, names: Sequence[str], groups: Sequence[Group], colours: Sequence[Colour] = ()) -> None:
        """Groups of figures, each a small table with a column a run."""
        head = "".join(f"<th>{_dot(colours[i]) if i < len(colours) else ''}{_text(name)}</th>" for i, name in enumerate(names))
        head = f"<thead><tr><th></th>{head}</tr></thead>" if len(names) > 1 else ""
        panels = ""
        for group in groups:
            body = "".join(_row(row.label, row.cells, row.best) for row in group.rows)
            panels += (
                f'<div class="panel"><h3>{_text(group.title)}</h3><p>{_text(group.note)}</p><div class="scroll">'
                f'<table class="small">{head}<tbody>{body}</tbody></table></div></div>'
            )
        least = 300 if len(names) == 1 else 340 + 90 * (len(names) - 1)
        self._add("div", f'class="grid" style="--least: {least}px"', panels)

    def plot(self, wide: bytes, narrow: bytes | None, alternative: str, caption: str = "") -> None:
        """A plot as wide as the page, and the same one drawn for a phone, if there is one; PNG files."""
        source = "" if narrow is None else f'<source media="(max-width: 560px)" srcset="{_data(narrow, "png")}">'
        picture = f"<picture>{source}{_image(wide, 'png', alternative)}</picture>"
        self._add("figure", 'class="wide"', picture + _caption(caption))

    def pictures(self, pictures: Sequence[Picture]) -> None:
        """Plots and photos in two columns, on a phone in one."""
        figures = ""
        for picture in pictures:
            data, kind = picture.image, "png"
            if isinstance(data, np.ndarray):
                data = cv2.imencode(".jpg", cv2.cvtColor(data, cv2.COLOR_RGB2BGR), (cv2.IMWRITE_JPEG_QUALITY, 88))[1].tobytes()
                kind = "jpeg"
            title = f"<b>{_text(picture.title)}</b>" if picture.title else ""
            image = _image(data, kind, picture.title or picture.caption)
            figures += f"<figure>{title}{image}{_caption(picture.caption)}</figure>"
        self._add("div", 'class="grid"', figures)

    def legend(self, entries: Sequence[tuple[Colour, str]], text: str = "") -> None:
        self._add("p", 'class="lead"', _text(text) + "".join(_dot(colour) + _text(label) for colour, label in entries))

    def facts(self, facts: Mapping[str, str]) -> None:
        """Names and what they are, line by line."""
        lines = "".join(f"<dt>{_text(name)}</dt><dd>{_text(value)}</dd>" for name, value in facts.items())
        self._add("div", 'class="panel"', f"<dl>{lines}</dl>")

    def html(self) -> str:
        return (
            f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{_text(self.title)}</title>'
            f'<meta name="viewport" content="width=device-width, initial-scale=1"><style>\n{_STYLE}</style></head><body><main>'
            f'<h1>{_text(self.title)}</h1><p class="lead">{_text(self.lead)}</p>{"".join(self._parts)}'
            f"<footer>{_text(self.footer)}</footer></main></body></html>\n"
        )


def _text(text: str) -> str:
    return html.escape(str(text))


def _caption(text: str) -> str:
    return f"<figcaption>{_text(text)}</figcaption>" if text else ""


def _row(name: str, cells: Sequence[str], best: Collection[int], dot: str = "") -> str:
    cells = "".join(f"""<td{' class="best"' if i in best else ""}>{_text(cell)}</td>""" for i, cell in enumerate(cells))
    return f"<tr><td>{dot}{_text(name)}</td>{cells}</tr>"


def _dot(colour: Colour) -> str:
    return f'<span class="dot" style="background:{_text(colour if isinstance(colour, str) else f"rgb{colour}")}"></span>'


def _image(data: bytes, kind: str, alternative: str) -> str:
    return f'<img alt="{_text(alternative)}" src="{_data(data, kind)}">'


def _data(data: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
