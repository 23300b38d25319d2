# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""The documentation: it is short, its links work, its examples run, and what it says of commands, parameters, topics and messages
is what the program knows."""

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
from pixloc_ros.node.parameters import PARAMETERS

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
USER_PAGES = [ROOT / "README.md", *sorted(DOCS.glob("*.md"))]
PAGES = sorted([*ROOT.glob("*.md"), *DOCS.rglob("*.md")])
each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())

pytest.importorskip("mkdocs", reason="the documentation's tools are not installed (requirements-dev.txt)")

from scripts import docs_site  # noqa: E402


def text_of(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def code_blocks(page: Path, *languages: str) -> list[str]:
    """Contents of the fenced blocks of some languages ("" for those without one)."""
    fences = re.findall(r"^ *```(\w*)\n(.*?)^ *```$", text_of(page), re.MULTILINE | re.DOTALL)
    return [body for language, body in fences if language in languages]


def prose(page: Path) -> str:
    return re.sub(r"^ *```.*?^ *```$", "", text_of(page), flags=re.MULTILINE | re.DOTALL)


def code_spans(page: Path) -> list[str]:
    return [" ".join(span.split()) for span in re.findall(r"(?<!`)`([^`]+)`(?!`)", prose(page))]


@cache
def strings_of(file: Path) -> tuple[str, ...]:
    """All strings of a source file, with … for what is filled in."""
    found = []
    for node in ast.walk(ast.parse(text_of(file))):
        if isinstance(node, ast.JoinedStr):
            found.append("".join(part.value if isinstance(part, ast.Constant) else "…" for part in node.values))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            found.append(node.value)
    return tuple(found)


# ---- what readers meet


def test_user_documentation_is_short():
    """README and docs/, without the measurements in docs/evidence/."""
    assert len(list(DOCS.glob("*.md"))) <= 9
    assert sum(len(text_of(page).split()) for page in USER_PAGES) <= 15_000
    assert "pixloc.Localizer.open(" in "".join(text_of(ROOT / "README.md").splitlines()[:40])


@each_page
def test_words_are_plain(page):
    found = re.findall(r"\b(?:mend(?:s|ed|ing)?|beside|alike|told|borne)\b", text_of(page), re.IGNORECASE)
    assert not found, "write: fix, next to, same or similar, given, withstood"


@each_page
def test_links_and_named_files_exist(page):
    for target in re.findall(r"\]\(([^)\s#]+)(?:#[^)\s]*)?\)", prose(page)):
        assert urlsplit(target).scheme or (page.parent / target).exists(), target
    # A word before the folder (../shared/data, sim/map) says that it is not the repository's.
    named = re.findall(
        r"(?<![\w./-])((?:scripts|benchmarks|experiments|config|launch|test|docs|docker)/[\w./*-]*\w)", text_of(page)
    )
    assert not {name for name in named if not list(ROOT.glob(name))}
    modules = {span for span in code_spans(page) if re.fullmatch(r"(?:\w+/)+\w+\.py", span)}
    assert not {name for name in modules if not (ROOT / name).is_file() and not (ROOT / "pixloc_ros" / name).is_file()}


def test_source_files_name_their_licence():
    kinds = ["*.py", "*.sh", "msg/*", "srv/*", "CMakeLists.txt", ".ci/run", "scripts/*", "*.js"]
    names = subprocess.run(["git", "ls-files", *kinds], cwd=ROOT, capture_output=True, text=True).stdout.split()
    if not names:
        pytest.skip("not a git repository")
    licence = "Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0"
    texts = {name: text_of(ROOT / name) for name in names if (ROOT / name).is_file()}
    assert not [name for name, text in texts.items() if text.strip() and licence not in text[:300]]


# ---- the site


class Html(HTMLParser):
    """Anchors, links and assets of a page."""

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.anchors, self.links, self.assets = set(), set(), set()
        self.feed(text_of(page))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value for name, value in attrs if value}
        self.anchors |= {values[name] for name in ("id", "name") if name in values}
        if "href" in values and tag in ("a", "link"):
            (self.links if tag == "a" else self.assets).add(values["href"])
        elif "src" in values:
            self.assets.add(values["src"])


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> dict[Path, Html]:
    """The pages of the site, by their files."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    run = subprocess.run(command, cwd=ROOT, env=os.environ | {"NO_MKDOCS_2_WARNING": "1"}, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
    return {path: Html(path) for path in folder.rglob("*.html")}


def page_of(site: dict[Path, Html], name: str) -> Html:
    return next(page for path, page in site.items() if path.name == name)


def test_links_of_the_site_lead_somewhere_and_nothing_comes_from_elsewhere(site):
    assert len(site) > 25
    broken = []
    for path, page in site.items():
        assert not [asset for asset in page.assets if urlsplit(asset).netloc], path.name
        for link in page.links | page.assets if path.name != "404.html" else ():
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            if not target.is_file() or parts.fragment and target in site and unquote(parts.fragment) not in site[target].anchors:
                broken.append(f"{path.name}: {link}")
    assert not broken
    # From a file system too: styles, the search index as a script, the stand-in for the worker that browsers refuse there.
    root = next(path.parent for path in site if path.name == "404.html")
    assert (root / "search" / "search_index.js").is_file() and "site/iframe-worker.js" in site[root / "index.html"].assets
    styles = "".join(map(text_of, root.rglob("*.css")))
    assert not re.findall(r"url\(\s*[\"']?(?:https?:)?//[^)]*|@import[^;]*//[^;]*", styles)


def test_commands_messages_and_public_interface_are_on_the_site(site):
    assert {prog.replace(" ", "-") for prog in parsers()} <= page_of(site, "commands.html").anchors
    interfaces = [*ROOT.glob("msg/*.msg"), *ROOT.glob("srv/*.srv")]
    assert {f"pixloc_ros{path.stem}".lower() for path in interfaces} <= page_of(site, "messages.html").anchors
    names = docs_site.public_names()
    for path in names:
        thing = pkgutil.resolve_name(path)
        members = vars(thing).items() if inspect.isclass(thing) else ()
        functions = {f"{path}.{name}": getattr(member, "__func__", member) for name, member in members if name[0] != "_"}
        public = {name: member for name, member in functions.items() if isinstance(member, (types.FunctionType, property))}
        assert not [name for name, member in {path: thing, **public}.items() if not inspect.getdoc(member)]
        assert {path, *public} <= page_of(site, "api.html").anchors
    exported = {name.rpartition(".")[2] for name in names}
    assert exported - {name.rpartition(".")[2] for name in docs_site.BEHIND_THE_DOOR} <= set(code_spans(DOCS / "python.md"))


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


@each_page
def test_commands_are_understood(page):
    for arguments in pixloc_commands(page):
        complaint = io.StringIO()
        try:
            with contextlib.redirect_stderr(complaint), contextlib.redirect_stdout(io.StringIO()):
                build_parser().parse_args(arguments)
        except SystemExit as end:
            assert end.code == 0, f"pixloc {shlex.join(arguments)}: {complaint.getvalue()}"


@each_page
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
        assert stands_for_one or not parser._subparsers, f"`{span}` names no verb"
        options = {option for action in parser._actions for option in action.option_strings}
        assert {word.split("=")[0] for word in words if word.startswith("--")} <= options, span


@each_page
def test_options_of_scripts_exist(page):
    """Of every command in the text that calls a script of experiments/ or benchmarks/."""
    text = "\n".join([*code_spans(page), *(block.replace("\\\n", " ") for block in code_blocks(page, "bash", "sh", ""))])
    for script, arguments in re.findall(r"((?:experiments|benchmarks)/\w+\.py)([^\n]*)", text):
        shared = (ROOT / script).with_name("common.py" if script.startswith("experiments") else "measuring.py")
        known = {word for file in (ROOT / script, shared) for word in strings_of(file)}
        assert set(re.findall(r"(?<!\S)--[a-z][\w-]*", arguments.split("#")[0])) <= known, script


def test_every_verb_is_documented():
    text = " ".join(" ".join(text_of(page).split()) for page in PAGES)
    assert not [prog for prog in parsers() if not re.search(rf"{prog}\b", text)]


# ---- the node


def test_every_parameter_topic_and_service_is_documented():
    spans = {
        word for page in ("robot", "reference") for span in code_spans(DOCS / f"{page}.md") for word in (span, span.split(":")[0])
    }
    names = {parameter.name for parameter in PARAMETERS}
    policy = ElementTree.parse(ROOT / "config" / "sros2_policy.xml")  # which a test compares with the running node
    for kind in ("topic", "service"):
        names |= {entry.text for entry in policy.iter(kind) if entry.text.startswith("~/") and "parameter" not in entry.text}
    of_every_lifecycle_node = "change_state get_state get_available_states get_available_transitions get_transition_graph"
    names -= {f"~/{name}" for name in f"{of_every_lifecycle_node} transition_event get_type_description".split()}
    assert len([name for name in names if name.startswith("~/")]) > 9
    assert not names - spans


def test_settings_in_the_text_exist():
    """Every `name:=value` is an argument of a launch file or a parameter."""
    known = {parameter.name for parameter in PARAMETERS}
    for file in ROOT.glob("launch/*.py"):
        known |= set(strings_of(file))
    for page in PAGES:
        assert set(re.findall(r"(?<![\w.])([a-z][\w.]*):=", text_of(page))) <= known, page.name


def test_quoted_messages_are_the_program_s():
    """The first column of the troubleshooting page's tables of messages, piece by piece between the …."""
    tables = re.findall(r"^\| message \|.*\n((?:\|.*\n)+)", text_of(DOCS / "troubleshooting.md"), re.MULTILINE)
    quoted = [
        message for table in tables for row in table.splitlines() for message in re.findall(r"`([^`]+)`", row.split("|")[1])
    ]
    assert len(quoted) > 25
    said = {text for file in ROOT.glob("pixloc_ros/**/*.py") for text in strings_of(file)}
    pieces = {piece.strip(" ():") for message in quoted for piece in message.split("…")}
    assert not [piece for piece in pieces if not any(piece in text for text in said)]


# ---- Python


def test_python_examples_run(scene, tmp_path, monkeypatch):
    """The pages' Python, one block after the other, on a small simulated place."""
    monkeypatch.chdir(tmp_path)
    Path("sim").symlink_to(scene.folder)
    Path("sim.pixmap").symlink_to(scene.map)
    names: dict[str, object] = {}
    with contextlib.redirect_stdout(io.StringIO()):
        for number, block in enumerate(code_blocks(DOCS / "python.md", "python")):
            exec(compile(block, f"python.md, block {number + 1}", "exec"), names)
            if "metres" in block:
                assert float(names["metres"]) < 0.05, number
    assert [result.state.name for result in names["results"]][-1] == "TRACKING"
    assert Path("again.pixmap").is_file()

    (readme,) = code_blocks(ROOT / "README.md", "python")
    Path("site.pixmap").symlink_to("sim.pixmap")
    exec(compile(readme, "README.md", "exec"), names | {"image": names["frame"].image, "camera": names["frame"].camera})

    for block in code_blocks(DOCS / "first_map.md", "python"):
        exec(compile(block, "first_map.md", "exec"), {})
    places = np.array([line.split()[1:] for line in text_of(Path("reference.txt")).splitlines()], float)
    assert places.shape[1] == 3 and len(places) > 1
