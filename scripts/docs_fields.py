# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""Griffe extension (mkdocs.yml): docstrings explain fields and parameters in running text ("name: what it is. other: ..."); the
API reference shows them as a list."""

from __future__ import annotations

import re

from griffe import Class, Extension, Function, Object

_NAME = r"\*{0,2}\w+(?: \[[^\]]*\])?"
_ENTRY = re.compile(rf"(?:^|(?<=[.;)] ))({_NAME}(?:(?:, and | and |, ){_NAME})*): ")


class FieldLists(Extension):
    """Rewrites the docstrings of classes and functions."""

    def on_object(self, *, obj: Object, **_: object) -> None:
        if obj.docstring is not None and isinstance(obj, (Class, Function)):
            obj.docstring.value = as_lists(obj.docstring.value, _names(obj))


def as_lists(text: str, names: set[str]) -> str:
    """Markdown with one list entry for each explanation of some of the names."""

    def entry(match: re.Match) -> str:
        explained = re.findall(r"\w+", re.sub(r"\[[^\]]*\]|\band\b", "", match[1]))
        return f"\n\n- **{match[1]}**: " if set(explained) <= names else match[0]

    return "\n\n".join(_ENTRY.sub(entry, " ".join(part.split())) if _is_prose(part) else part for part in text.split("\n\n"))


def _is_prose(paragraph: str) -> bool:
    return not re.search(r"^( {4}|[-*] |\d+\. |```)", paragraph, re.MULTILINE)


def _names(obj: Class | Function) -> set[str]:
    if isinstance(obj, Function):
        return {parameter.name for parameter in obj.parameters}
    init = obj.members.get("__init__")
    return set(obj.attributes) | ({p.name for p in init.parameters} if isinstance(init, Function) else set())
