# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""The documentation: the site builds strictly, its links lead somewhere, and what it says of commands, parameters, topics and
messages is what the program knows."""

from __future__ import annotations

import argparse
import ast
import contextlib
import inspect
import io
import os
import pkgutil
import re
import shlex
import subprocess
import sys
import types
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit
from xml.etree import ElementTree

import numpy as np
import pytest

from pixloc_ros.cli.main import build_parser
from pixloc_ros.cli.main import main as pixloc
from pixloc_ros.node.parameters import PARAMETERS
from pixloc_sim.recordings import SimulationOptions, simulate

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])

pytest.importorskip("mkdocs", reason="the documentation's tools are not installed (requirements-dev.txt)")

from scripts import docs_fields, docs_site  # noqa: E402


def text_of(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def code_blocks(page: Path, *languages: str) -> list[str]:
    """Contents of the fenced blocks of some languages ("" for those without one)."""
    fences = re.findall(r"^```(\w*)\n(.*?)^```$", text_of(page), re.MULTILINE | re.DOTALL)
    return [body for language, body in fences if language in languages]


def prose(page: Path) -> str:
    return re.sub(r"^```.*?^```$", "", text_of(page), flags=re.MULTILINE | re.DOTALL)


def code_spans(page: Path) -> list[str]:
    return [" ".join(span.split()) for span in re.findall(r"(?<!`)`([^`]+)`(?!`)", prose(page))]


# ---- the site


class Html(HTMLParser):
    """Anchors, links and assets of a page."""

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.anchors: set[str] = set()
        self.links: set[str] = set()
        self.assets: set[str] = set()
        self.feed(text_of(page))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value for name, value in attrs if value}
        self.anchors |= {values[name] for name in ("id", "name") if name in values}
        if tag == "a" and "href" in values:
            self.links.add(values["href"])
        elif tag == "link" and "href" in values:
            self.assets.add(values["href"])
        elif "src" in values:
            self.assets.add(values["src"])


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    run = subprocess.run(command, cwd=ROOT, env=os.environ | {"NO_MKDOCS_2_WARNING": "1"}, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
    return folder


def test_links_of_the_site_lead_somewhere(site):
    pages = {path: Html(path) for path in site.rglob("*.html")}
    assert len(pages) > 25
    broken = []
    for path, page in pages.items():
        for link in page.links | page.assets:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            if not target.is_file():
                broken.append(f"{path.name}: {link}")
            elif parts.fragment and target in pages and unquote(parts.fragment) not in pages[target].anchors:
                broken.append(f"{path.name}: {link} (no such place)")
    assert not [link for link in broken if not link.startswith("404.html")], broken


def test_site_needs_nothing_from_elsewhere(site):
    for path in site.rglob("*.html"):
        outside = [asset for asset in Html(path).assets if urlsplit(asset).netloc]
        assert not outside, (path.name, outside)
    for path in site.rglob("*.css"):
        assert not re.findall(r"url\(\s*[\"']?(?:https?:)?//[^)]*|@import[^;]*//[^;]*", text_of(path)), path.name


def test_help_of_every_command_and_every_message_is_on_the_site(site):
    commands, messages = Html(site / "commands.html").anchors, Html(site / "messages.html").anchors
    assert {"pixloc-map-colmap", "pixloc-track", "pixloc-simulate"} <= commands
    assert {f"pixloc_ros{path.stem}".lower() for path in [*ROOT.glob("msg/*.msg"), *ROOT.glob("srv/*.srv")]} <= messages


def test_search_works_from_a_file_system(site):
    """The index as a script, and the stand-in for the worker that browsers refuse there."""
    assert (site / "search" / "search_index.js").is_file()
    assert "site/iframe-worker.js" in Html(site / "index.html").assets


# ---- the repository's own view: without the site


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_in_the_repository_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)\s#]+)(?:#[^)\s]*)?\)", prose(page)):
        if not urlsplit(target).scheme:
            assert (page.parent / target).exists(), f"{page.name}: {target}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_that_are_named_exist(page):
    # A word before the folder (../shared/data, sim/map) says that it is not the repository's.
    named = re.findall(r"(?<![\w./-])((?:scripts|benchmarks|config|launch|test|docs|docker)/[\w./*-]*\w)", text_of(page))
    missing = {name for name in named if not list(ROOT.glob(name))}
    assert not missing, f"{page.name}: {missing}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_lists_follow_a_blank_line(page):
    """Or the site shows them as one paragraph, as Markdown was first meant."""
    lines = prose(page).splitlines()
    for before, line in zip(lines, lines[1:]):
        if re.match(r"([-*]|\d+\.) ", line):
            assert not before.strip() or re.match(r"([-*]|\d+\.| ) ?", before), f"{page.name}: {line}"


def test_source_files_name_their_licence():
    names = subprocess.run(
        ["git", "ls-files", "*.py", "*.sh", "msg/*", "srv/*", "CMakeLists.txt", ".ci/run", "scripts/*", "*.js"],
        cwd=ROOT, capture_output=True, text=True,
    ).stdout.split()  # fmt: skip
    if not names:
        pytest.skip("not a git repository")
    without = [name for name in names if (ROOT / name).is_file() and not _licensed(ROOT / name)]
    assert not without


def _licensed(path: Path) -> bool:
    text = text_of(path)
    return not text.strip() or "Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0" in text[:300]


# ---- commands


@cache
def parsers() -> dict[str, argparse.ArgumentParser]:
    return {parser.prog: parser for parser in docs_site.all_parsers(build_parser())}


def pixloc_commands(page: Path) -> list[list[str]]:
    """Arguments of all `pixloc ...` in a page's shell blocks."""
    commands = []
    for block in code_blocks(page, "bash", "sh", "console", ""):
        for line in block.replace("\\\n", " ").splitlines():
            if "pixloc " not in line or line.lstrip().startswith("#"):
                continue
            for piece in re.split(r"&&|\|\||[|;]", line):
                words = shlex.split(piece, comments=True)
                starts = [i for i, word in enumerate(words) if word in ("pixloc", ".venv/bin/pixloc", "scripts/pixloc")]
                if starts and all("=" in word for word in words[: starts[0]]) and "..." not in words:
                    commands.append(words[starts[0] + 1 :])
    return commands


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_are_understood(page):
    for arguments in pixloc_commands(page):
        complaint = io.StringIO()
        try:
            with contextlib.redirect_stderr(complaint), contextlib.redirect_stdout(io.StringIO()):
                build_parser().parse_args(arguments)
        except SystemExit as end:
            assert end.code == 0, f"{page.name}: pixloc {shlex.join(arguments)}: {complaint.getvalue()}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_verbs_and_options_in_the_text_exist(page):
    for span in code_spans(page):
        words = span.split()
        if words[:1] != ["pixloc"] or any(mark in span for mark in ("…", "...", "VERB")):
            continue
        prog = "pixloc"
        while words[1:] and f"{prog} {words[1].rstrip(',.:')}" in parsers():
            prog = f"{prog} {words.pop(1).rstrip(',.:')}"
        parser = parsers()[prog]
        stands_for_one = not words[1:] or words[1].startswith("-") or words[1].isupper()
        assert stands_for_one or not parser._subparsers, f"{page.name}: `{span}` names no verb"
        options = {option for action in parser._actions for option in action.option_strings}
        unknown = {word.split("=")[0] for word in words if word.startswith("--")} - options
        assert not unknown, f"{page.name}: `{span}`: {unknown}"


def test_every_verb_is_documented():
    text = " ".join(" ".join(text_of(page).split()) for page in PAGES)
    missing = [prog for prog in parsers() if not re.search(rf"{prog}\b", re.sub(r"pixloc +", "pixloc ", text))]
    assert not missing


# ---- the node


def test_every_parameter_topic_and_service_is_documented():
    spans = {word for span in code_spans(ROOT / "docs" / "node.md") for word in (span, span.split(":")[0])}
    names = {parameter.name for parameter in PARAMETERS}
    policy = ElementTree.parse(ROOT / "config" / "sros2_policy.xml")  # which a test compares with the running node
    for kind in ("topic", "service"):
        names |= {entry.text for entry in policy.iter(kind) if entry.text.startswith("~/") and "parameter" not in entry.text}
    # Those that every lifecycle node has.
    names -= {f"~/{name}" for name in ("change_state", "get_state", "get_available_states", "get_available_transitions",
                                       "get_transition_graph", "transition_event", "get_type_description")}  # fmt: skip
    assert len([name for name in names if name.startswith("~/")]) > 9
    assert not names - spans


def test_settings_in_the_text_exist():
    """Every `name:=value` is an argument of a launch file or a parameter."""
    known = {parameter.name for parameter in PARAMETERS}
    for file in ROOT.glob("launch/*.py"):
        known |= {n.value for n in ast.walk(ast.parse(text_of(file))) if isinstance(n, ast.Constant) and isinstance(n.value, str)}
    for page in PAGES:
        unknown = set(re.findall(r"(?<![\w.])([a-z][\w.]*):=", text_of(page))) - known
        assert not unknown, f"{page.name}: {unknown}"


@cache
def messages_of_the_program() -> tuple[str, ...]:
    """All strings of the sources, with … for what is filled in."""
    found = []
    for file in ROOT.glob("pixloc_ros/**/*.py"):
        for node in ast.walk(ast.parse(text_of(file))):
            if isinstance(node, ast.JoinedStr):
                found.append("".join(part.value if isinstance(part, ast.Constant) else "…" for part in node.values))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
    return tuple(found)


def test_quoted_messages_are_the_program_s():
    """The first column of the troubleshooting page's tables of messages, piece by piece between the …."""
    quoted, in_table = [], False
    for line in text_of(ROOT / "docs" / "troubleshooting.md").splitlines():
        in_table = line.startswith("|") and (in_table or line.startswith("| message |"))
        if in_table:
            quoted += re.findall(r"`([^`]+)`", line.split("|")[1])
    assert len(quoted) > 25
    for message in quoted:
        for piece in filter(None, (piece.strip(" ():") for piece in message.split("…"))):
            assert any(piece in text for text in messages_of_the_program()), f"'{piece}' of '{message}' is said nowhere"


# ---- Python


def test_docstrings_become_lists():
    text = "What it is.\n\nfirst: one: thing. second [2], third: the\nothers. Raises Error: never. fourth: of no object."
    shown = docs_fields.as_lists(text, {"first", "second", "third"})
    assert shown.split("\n\n") == [
        "What it is.",
        "",
        "- **first**: one: thing. ",
        "- **second [2], third**: the others. Raises Error: never. fourth: of no object.",
    ]


def test_public_interface_is_documented(site):
    """Every class and function that docs/api.md names, with its public methods, has a docstring and is on the site."""
    anchors = Html(site / "api.html").anchors
    paths = re.findall(r"^::: (\S+)$", text_of(ROOT / "docs" / "api.md"), re.MULTILINE)
    assert len(paths) > 30
    for path in paths:
        thing = pkgutil.resolve_name(path)
        assert inspect.getdoc(thing), path
        assert path in anchors
        for name, member in vars(thing).items() if inspect.isclass(thing) else ():
            function = getattr(member, "__func__", member)
            if name.startswith("_") or not isinstance(function, (types.FunctionType, property)):
                continue
            assert inspect.getdoc(function), f"{path}.{name}"
            assert f"{path}.{name}" in anchors


def test_python_examples_run(tmp_path, monkeypatch):
    """The pages' Python, one block after the other, on a small simulated place."""
    monkeypatch.chdir(tmp_path)
    simulate(Path("sim"), SimulationOptions(seconds=2.0, rate_hz=6.0, width=320, height=240, texel=0.02))
    assert pixloc(["map", "colmap", "--model", "sim/map", "--images", "sim/images", "-o", "sim.pixmap"]) == 0
    said = io.StringIO()
    blocks = code_blocks(ROOT / "docs" / "api_use.md", "python")
    assert len(blocks) == 5
    names: dict[str, object] = {}
    with contextlib.redirect_stdout(said):
        for number, block in enumerate(blocks):
            exec(compile(block, f"api_use.md, block {number + 1}", "exec"), names)
            if "metres" in block:
                assert float(names["metres"]) < 0.05, (number, said.getvalue())
    assert [result.state.name for result in names["results"]][-1] == "TRACKING"
    assert Path("again.pixmap").is_file()

    for block in code_blocks(ROOT / "docs" / "tutorial.md", "python"):
        exec(compile(block, "tutorial.md", "exec"), {})
    places = np.array([line.split()[1:] for line in text_of(Path("reference.txt")).splitlines()], float)
    assert places.shape[1] == 3 and len(places) > 1
