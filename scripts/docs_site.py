# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""MkDocs hook (mkdocs.yml): what the site holds besides docs/.

- The pages of the repository's root (README and others), and every other file of the repository that a page links to. Links are
  written relative to the file that they stand in, so that they work wherever the repository is browsed; here they are turned
  into links of the site.
- The help of every command, and the definitions of messages and services.
"""

from __future__ import annotations

import argparse
import os
import posixpath
import re
from collections.abc import Iterator
from pathlib import Path

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[1]
ROOT_PAGES = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "QUALITY_DECLARATION.md": "quality_declaration.md",
    "SECURITY.md": "security.md",
    "CHANGELOG.md": "changelog.md",
}
OTHER_FILES = "repository"
"""Folder of the site for files that pages link to."""
HELP_WIDTH = 100

_LINK = re.compile(r"(\]\()([^)\s#]+)((?:#[^)\s]*)?\))")
_FENCE = re.compile(r"^\s*(```|~~~)")
_ELSEWHERE = re.compile(r"^[a-z][a-z0-9+.-]*:|^/")


def on_files(files: Files, config) -> Files:
    """Adds the pages and files that are not in docs/."""
    for source, page in ROOT_PAGES.items():
        files.append(File.generated(config, page, abs_src_path=str(ROOT / source)))
    made = {"commands.md": command_reference(), "messages.md": interface_reference(), "notice.md": notice()}
    for page, content in made.items():
        files.append(File.generated(config, page, content=content))
    for path in sorted(_linked_files(files)):
        files.append(File.generated(config, f"{OTHER_FILES}/{path}", abs_src_path=str(ROOT / path)))
    return files


def on_page_markdown(markdown: str, page, config, files: Files) -> str:
    """Turns links of the repository into links of the site."""
    source = _repository_path(page.file.src_uri)
    lines = list(_lines(markdown))
    return "\n".join(line if code else _LINK.sub(lambda link: _on_site(link, source), line) for line, code in lines)


def command_reference() -> str:
    """Markdown: the help of every verb of `pixloc`, as the parser prints it."""
    from pixloc_ros.cli.main import build_parser

    width, os.environ["COLUMNS"] = os.environ.get("COLUMNS"), str(HELP_WIDTH)
    try:
        entries = [f"## {parser.prog}\n\n```text\n{parser.format_help()}```\n" for parser in all_parsers(build_parser())]
    finally:
        os.environ.pop("COLUMNS")
        if width is not None:
            os.environ["COLUMNS"] = width
    return "# Commands\n\nWhat each prints with `--help`.\n\n" + "\n".join(entries)


def all_parsers(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    """A parser and those of its verbs, in their order."""
    yield parser
    for action in parser._subparsers._group_actions if parser._subparsers else ():
        for verb in dict.fromkeys(action.choices.values()):
            yield from all_parsers(verb)


def interface_reference() -> str:
    """Markdown: the .msg and .srv files."""
    parts = ["# Messages and services\n\nOf the package `pixloc_ros`; who publishes and serves them: [the node](node.md)."]
    for path in sorted(ROOT.glob("msg/*.msg")) + sorted(ROOT.glob("srv/*.srv")):
        parts.append(f"## pixloc_ros/{path.stem}\n\n```text\n{path.read_text(encoding='utf-8').strip()}\n```")
    return "\n\n".join(parts) + "\n"


def notice() -> str:
    """Markdown: NOTICE, and where the licence is."""
    text = (ROOT / "NOTICE").read_text(encoding="utf-8").strip()
    return f"# Notice\n\nThe licence of pixloc_ros is [Apache-2.0](../LICENSE).\n\n```text\n{text}\n```\n"


def _linked_files(files: Files) -> set[str]:
    """Paths in the repository of files outside of docs/ that pages link to."""
    linked = set()
    for file in files.documentation_pages():
        source = _repository_path(file.src_uri)
        for line, code in _lines(file.content_string):
            for link in () if code else _LINK.finditer(line):
                path = _resolve(link[2], source)
                if path and not path.startswith("docs/") and path not in ROOT_PAGES and (ROOT / path).is_file():
                    linked.add(path)
    return linked


def _lines(markdown: str) -> Iterator[tuple[str, bool]]:
    """(line, whether it is code)."""
    fenced = False
    for line in markdown.split("\n"):
        fence = bool(_FENCE.match(line))
        yield line, fenced or fence
        fenced ^= fence


def _repository_path(src_uri: str) -> str:
    """Where a page of the site is in the repository."""
    by_page = {page: source for source, page in ROOT_PAGES.items()}
    return by_page.get(src_uri, f"docs/{src_uri}")


def _resolve(target: str, source: str) -> str | None:
    """Path in the repository of a link in the file `source`; None where it leads elsewhere."""
    if _ELSEWHERE.match(target):
        return None
    path = posixpath.normpath(posixpath.join(posixpath.dirname(source), target))
    return None if path.startswith("..") else path


def _on_site(link: re.Match, source: str) -> str:
    path = _resolve(link[2], source)
    if path is None or not (ROOT / path).is_file():
        # a page that is made by this hook, a link out of the repository, or one that MkDocs will complain of
        return link[0]
    page = ROOT_PAGES.get(path) or (path.removeprefix("docs/") if path.startswith("docs/") else f"{OTHER_FILES}/{path}")
    here = posixpath.dirname(ROOT_PAGES.get(source, source.removeprefix("docs/")))
    return f"{link[1]}{posixpath.relpath(page, here or '.')}{link[3]}"
