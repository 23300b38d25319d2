# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""The report as a browser shows it, on a desk and on a phone."""

import numpy as np
import pytest
from browser import look
from test_runs import run_with

from pixloc_ros.evaluation.metrics import evaluate
from pixloc_ros.report.page import Picture
from pixloc_ros.report.run_plots import NARROW
from pixloc_ros.report.run_report import Scene, run_report

DPI, LETTERS_PT = 144, 9
"""Of the plots: how they are drawn, and the size of their smaller letters."""


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    rng = np.random.default_rng(0)
    scene = Scene(
        rng.normal(size=(500, 3)),
        rng.normal(size=(20, 3)),
        (Picture(rng.integers(0, 255, (480, 960, 3), np.uint8), caption="what the camera saw"),),
    )
    runs = [
        evaluate(run_with("IIT" + "T" * 50, name="ours", about={"bag": "a/very/long/path/" * 12})),
        evaluate(run_with("TTTTTTTLLLLRRDD" + "T" * 30, name="a rival with a long name", metres=0.3)),
        evaluate(run_with("T" * 45, name="third", metres=0.05)),
    ]
    path = tmp_path_factory.mktemp("page") / "report.html"
    path.write_text(run_report("three runs", "a lead", runs, scene, notes=["a note"], problems=["a problem"]))
    return path


@pytest.mark.parametrize("width", [1280, 390])
def test_page_is_whole_and_readable(page, width):
    seen = look(page, width)
    assert seen["errors"] == [] and seen["console"] == [] and seen["requests"] == []
    assert seen["width"] == width and seen["scrollWidth"] <= width  # nothing sticks out sideways
    assert len(seen["images"]) >= 10 and seen["smallest"] >= 12
    for image in seen["images"]:
        assert image["complete"] and image["pixels"] > 0
        if image["plot"]:  # the letters' size on the screen
            assert LETTERS_PT / 72 * DPI * image["shown"] / image["pixels"] > 8.5, image
    assert {"Path", "Errors in the map frame", "Covariances", "Time", "All figures"} <= set(seen["headings"])
    narrow = NARROW * DPI
    assert (min(image["pixels"] for image in seen["images"][:2]) > narrow) == (width > 560)


def test_what_a_browser_finds_wrong(tmp_path):
    path = tmp_path / "bad.html"
    path.write_text(
        '<!doctype html><html><head></head><body style="width:3000px">x<img src="none.png">'
        "<script>undefined_function()</script></body></html>"
    )
    seen = look(path, 800)
    assert seen["errors"] and seen["console"] and seen["scrollWidth"] > 800
    assert any("none.png" in name for name in seen["requests"]) and seen["images"][0]["pixels"] == 0
