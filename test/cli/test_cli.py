# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
import argparse
import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest
from test_runs import off, some, walk

from pixloc_ros import __version__
from pixloc_ros.cli import lazy
from pixloc_ros.cli import main as cli
from pixloc_ros.errors import InputError
from pixloc_ros.io.trajectory import write_tum
from pixloc_ros.tracking.prior_std import WIDE_PRIOR


def call(capsys, *arguments) -> tuple[int, str, str]:
    """Exit code, stdout and stderr. arguments: text is split at spaces."""
    words = [word for argument in arguments for word in (argument.split() if isinstance(argument, str) else [str(argument)])]
    try:
        code = cli.main(words)
    except SystemExit as stop:
        code = stop.code
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def leaves(parser: argparse.ArgumentParser):
    """The parsers of all verbs and their actions."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for child in action.choices.values():
                yield child
                yield from leaves(child)


@pytest.fixture
def tracks(tmp_path):
    track = walk(5, 10**9)
    write_tum(tmp_path / "a.tum", track)
    write_tum(tmp_path / "b.tum", off(some(track, range(4))))
    return tmp_path


def test_help_of_every_verb_and_action_has_an_example(capsys):
    code, out, _ = call(capsys, "--help")
    assert code == 0 and all(verb in out for verb in cli.VERBS)
    parsers = list(leaves(cli.build_parser()))
    assert len(parsers) > 30
    for parser in parsers:
        assert parser.prog in parser.epilog and parser.epilog.startswith("example") and parser.description, parser.prog
        assert parser.format_help()


def test_the_same_thing_has_the_same_option_everywhere(capsys):
    texts = [parser.format_help() for parser in leaves(cli.build_parser())]
    assert not any(former in text for text in texts for former in ("--body-frame", "--body-from-camera", "--suite"))
    for option, verbs in (
        ("--base-frame NAME", 8),
        ("--base-from-camera X Y", 8),
        ("--preset NAME", 12),
        ("--weights NAME|FILE", 20),
    ):
        assert sum(option in text for text in texts) >= verbs, option
    # Former names still work.
    words = "map bag drive -o a.pixmap --body-frame imu --body-from-camera"
    args = cli.build_parser().parse_args([*words.split(), *"0000001"])
    assert args.base_frame == "imu" and args.base_from_camera == list("0000001")
    code, out, _ = call(capsys, "evaluate --suite --help")
    assert code == 0 and "pixloc suite" in out


@pytest.mark.parametrize("file", sorted(Path(lazy.__file__).parent.glob("*.py")), ids=lambda file: file.stem)
def test_what_is_imported_lazily_exists(file):
    """Otherwise a misspelt name would come out only when its verb runs."""
    nodes = list(ast.walk(ast.parse(file.read_text())))
    imported = {
        alias.name for node in nodes if isinstance(node, ast.ImportFrom) and node.module == "lazy" for alias in node.names
    }
    for node in nodes:
        names = []
        while isinstance(node, ast.Attribute):
            names.insert(0, node.attr)
            node = node.value
        if isinstance(node, ast.Name) and node.id in imported:
            found = getattr(lazy, node.id)
            for name in names:
                found = getattr(found, name)


def test_help_says_what_priors_are_believed_where_nothing_is_said(capsys):
    words = f"(default {WIDE_PRIOR.degrees:g} {100 * WIDE_PRIOR.depth_share:g}%)"
    for verb in ("localize", "show reprojections"):
        _, out, _ = call(capsys, f"{verb} --help")
        assert words in " ".join(out.split())
    assert "--prior gps.txt --prior-std 10 3m" in call(capsys, "localize --help")[1]


def test_help_is_quick():
    """Nothing heavy is imported to say what the arguments are."""
    code = (
        "import sys; from pixloc_ros.cli.main import build_parser; build_parser(); "
        "print([m for m in ('torch', 'cv2', 'rclpy', 'matplotlib', 'scipy', 'numpy') if m in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_runs_as_a_module():
    result = subprocess.run([sys.executable, "-m", "pixloc_ros.cli.main", "--version"], capture_output=True, text=True)
    assert result.returncode == 0 and __version__ in result.stdout


def test_evaluate(capsys, tracks):
    code, out, _ = call(capsys, "evaluate --truth", tracks / "a.tum", tracks / "b.tum")
    assert code == 0 and "4 (80.0 %)" in out
    runs = (tracks / "b.tum", f"perfect={tracks / 'a.tum'}")
    code, out, _ = call(capsys, "evaluate --truth", tracks / "a.tum", *runs, "--json -o", tracks / "out")
    content = json.loads(out)
    first, second = content["runs"]
    assert (first["name"], second["name"]) == ("b", "perfect") and content["notes"] == []
    assert first["translation_error_median_m"] == pytest.approx(0.02) and first["recall"]["0.05m_1deg"] == 0.8
    assert first["completion"] == 0.8 and first["losses"] == 1 and first["losses_not_recovered"] == 1
    assert second["translation_error_max_m"] == 0 and second["recall"]["0.05m_1deg"] == 1
    assert {p.name for p in (tracks / "out").iterdir()} == {"evaluation.json", "report.html"}
    assert json.loads((tracks / "out" / "evaluation.json").read_text()) == content
    assert "perfect" in (tracks / "out" / "report.html").read_text()


def test_input_errors_are_one_line_and_code_2(capsys, tracks):
    (tracks / "bad.tum").write_text("0 1 2\n")
    for arguments, text in (
        ((tracks / "none.tum",), "No such file"),
        ((tracks / "bad.tum",), "bad.tum:1"),
        ((tracks / "b.tum", "--step", "0"), "--step 0 must be a positive length"),
        ((tracks / "b.tum", "--step", "1.5poses"), "--step 1.5poses"),
        ((tracks / "b.tum", "--tolerance", "nan"), "--tolerance"),
        ((tracks / "b.tum", "--truth-topic", "/gt"), "--truth-topic is of a bag"),
        ((f"x={tracks / 'a.tum'}", f"x={tracks / 'b.tum'}"), "two runs are called 'x'"),
    ):
        code, out, err = call(capsys, "evaluate --truth", tracks / "a.tum", *arguments)
        assert code == 2 and out == "", arguments
        assert err.startswith("pixloc: error: ") and err.count("\n") == 1 and text in err
    code, _, err = call(capsys, "evaluate", tracks / "a.tum")
    assert code == 2 and "give --truth" in err


def test_bad_input_of_localize(capsys, tmp_path):
    arguments = [f"localize --map {tmp_path}/m.pixmap --images {tmp_path} --cameras {tmp_path}/cameras.txt -o {tmp_path}/out.txt"]
    camera = "a.jpg PINHOLE 64 64 50 50 32 32\n"
    for cameras, image, map_, text in (
        (camera, None, None, "1 of 1 images are not in"),
        (camera, b"x", None, "m.pixmap"),
        (camera, b"x", b"foreign" * 100, "m.pixmap"),
        ("# comment\na.jpg PINHOLE 64 64 50 50 32\n", b"x", None, "cameras.txt:2: COLMAP camera model PINHOLE takes 4 numbers"),
        (camera * 2, b"x", None, "second camera"),
    ):
        for name, content in (("cameras.txt", cameras.encode()), ("a.jpg", image), ("m.pixmap", map_)):
            if content:
                (tmp_path / name).write_bytes(content)
        code, _, err = call(capsys, *arguments)
        assert code == 2 and text in err and err.count("\n") == 1
    assert not (tmp_path / "out.txt").exists()


@pytest.mark.parametrize("verb", ["track", "replay"])
def test_bad_input_of_track_and_replay(capsys, tmp_path, verb):
    arguments = [verb, "--map", tmp_path / "m.pixmap", tmp_path / "bag", "-o", tmp_path / "out"]
    for extra, text in (
        (("--base-from-camera", *"000000x"), "not all numbers"),
        (("--initial-pose", *"0000000"), "quaternion has length 0"),
        (("--initial-pose", "nan", *"000001"), "NaN"),
        (("--skip-map-frames", "1"), "--skip-map-frames"),
        *([(("-o", tmp_path / "poses.tum"), "give a folder")] if verb == "track" else []),
    ):
        code, _, err = call(capsys, *arguments, *extra)
        assert code == 2 and text in err and err.count("\n") == 1


def test_bad_input_of_demo(capsys, tmp_path):
    code, _, err = call(capsys, "demo", "--data", tmp_path, "-o", tmp_path / "out")
    assert code == 2 and "has no folder map and no images and no drive" in err


@pytest.mark.parametrize(
    ("error", "code", "text"),
    [(InputError("two\nlines"), 2, "pixloc: error: two lines\n"), (KeyboardInterrupt(), 130, "interrupted")],
)
def test_exceptions_become_exit_codes(capsys, monkeypatch, error, code, text):
    def fail(_):
        raise error

    monkeypatch.setattr("pixloc_ros.cli.evaluate.run", fail)
    result = call(capsys, "evaluate", "--truth", "a", "b")
    assert result[0] == code and text in result[2]
