# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""MkDocs hook (mkdocs.yml): adds to the site what is not in docs/.

These are pages of the repository outside of docs/, the files of the repository that pages link to, and three generated pages:
commands, messages and services, and API. Links in the pages are relative to the repository, so that they work wherever it is
browsed. The hook turns them into links of the site.
"""

from __future__ import annotations

import argparse
import os
import posixpath
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest import mock

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[1]
ROOT_PAGES = {"README.md": "index.md", "experiments/README.md": "experiments.md"} | {
    f"{name}.md": f"{name.lower()}.md" for name in ("CONTRIBUTING", "QUALITY_DECLARATION", "SECURITY", "CHANGELOG")
}
ROOT_SOURCES = {page: source for source, page in ROOT_PAGES.items()}
BEHIND_THE_DOOR = [
    "tracking.types.TrackResult",
    "tracking.tracker.TrackerOptions",
    "tracking.frame_aligner.AlignerOptions",
    "alignment.AlignmentOptions",
    "geometry.se3",
    "io.bags.BagReader",
]
"""What programs need besides the names that `pixloc_ros` exports, for the API page."""

_LINK_OR_CODE = re.compile(r"^ *```.*?^ *```$|(?<=\]\()[^)\s#:]+(?=[#)])", re.MULTILINE | re.DOTALL)


def on_files(files: Files, config) -> Files:
    """Adds the pages and files that are not in docs/."""
    for source, page in ROOT_PAGES.items():
        files.append(File.generated(config, page, abs_src_path=str(ROOT / source)))
    for page, content in {"commands.md": commands(), "messages.md": messages(), "api.md": api()}.items():
        files.append(File.generated(config, page, content=content))
    linked: set[str] = set()
    for file in files.documentation_pages():
        _map_links(file.content_string, file.src_uri, lambda target: linked.add(target) or target)
    for path in sorted(path for path in linked if not path.startswith("docs/") and path not in ROOT_PAGES):
        files.append(File.generated(config, f"repository/{path}", abs_src_path=str(ROOT / path)))
    return files


def on_page_markdown(markdown: str, page, config, files: Files) -> str:
    """Turns links of the repository into links of the site."""

    def on_site(path: str) -> str:
        return ROOT_PAGES.get(path) or (path.removeprefix("docs/") if path.startswith("docs/") else f"repository/{path}")

    here = posixpath.dirname(page.file.src_uri) or "."
    return _map_links(markdown, page.file.src_uri, lambda path: posixpath.relpath(on_site(path), here))


def _map_links(markdown: str, page: str, new: Callable[[str], str]) -> str:
    """The text with the target of each link to a file of the repository replaced by `new` of its path there."""
    folder = posixpath.dirname(ROOT_SOURCES.get(page, f"docs/{page}"))

    def replaced(link: re.Match) -> str:
        path = posixpath.normpath(posixpath.join(folder, link[0]))
        return new(path) if "```" not in link[0] and (ROOT / path).is_file() else link[0]

    return _LINK_OR_CODE.sub(replaced, markdown)


def commands() -> str:
    """Markdown: the help of every verb of `pixloc`, as the parser prints it."""
    from pixloc_ros.cli.main import build_parser

    with mock.patch.dict(os.environ, COLUMNS="100"):
        entries = [f"## {parser.prog}\n\n```text\n{parser.format_help()}```\n" for parser in all_parsers(build_parser())]
    return "# Commands\n\nWhat each command prints with `--help`.\n\n" + "\n".join(entries)


def all_parsers(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    """A parser and those of its verbs, in their order."""
    yield parser
    for action in parser._subparsers._group_actions if parser._subparsers else ():
        for verb in dict.fromkeys(action.choices.values()):
            yield from all_parsers(verb)


def messages() -> str:
    """Markdown: the .msg and .srv files."""
    parts = ["# Messages and services\n\nWho publishes and serves them: [the node](robot.md)."]
    for path in sorted(ROOT.glob("msg/*.msg")) + sorted(ROOT.glob("srv/*.srv")):
        parts.append(f"## pixloc_ros/{path.stem}\n\n```text\n{path.read_text(encoding='utf-8').strip()}\n```")
    return "\n\n".join(parts) + "\n"


def public_names() -> list[str]:
    """Full names of what the API page documents."""
    import pixloc_ros

    exported = [getattr(pixloc_ros, name) for name in pixloc_ros.__all__ if not name.startswith("__")]
    return [f"{thing.__module__}.{thing.__qualname__}" for thing in exported] + [f"pixloc_ros.{name}" for name in BEHIND_THE_DOOR]


def api() -> str:
    """Markdown: directives of mkdocstrings for all public names."""
    head = "# API\n\nThe names that `pixloc_ros` exports, and a few that they take or return. Examples: [Python](python.md).\n\n"
    return head + "\n\n".join(f"::: {name}" for name in public_names()) + "\n"
