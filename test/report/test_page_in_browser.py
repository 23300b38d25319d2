# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""The report as a real browser shows it, headless Chromium without a network: on a desk and on a phone."""

import json
import os
import re
import shutil
import subprocess
from html import unescape
from pathlib import Path

import numpy as np
import pytest
from test_runs import run_with

from pixloc_ros.evaluation.metrics import evaluate
from pixloc_ros.report.page import Picture
from pixloc_ros.report.run_plots import NARROW
from pixloc_ros.report.run_report import Scene, run_report

DPI, LETTERS_PT = 144, 9
"""Of the plots: how they are drawn, and the size of their smaller letters."""
_PROBE = """<script>
window.probe = {errors: []};
addEventListener("error", e => window.probe.errors.push(String(e.message || e.target.src || e.target.href)), true);
addEventListener("load", () => {
  const images = [...document.images].filter(i => i.getClientRects().length);
  const speaks = e => [...e.childNodes].some(n => n.nodeType == 3 && n.data.trim());
  const text = [...document.querySelectorAll("body *")].filter(speaks);
  Object.assign(window.probe, {
    width: innerWidth, scrollWidth: document.documentElement.scrollWidth,
    images: images.map(i => ({shown: i.getBoundingClientRect().width, pixels: i.naturalWidth, complete: i.complete,
                              plot: i.src.startsWith("data:image/png")})),
    requests: [...performance.getEntriesByType("resource").map(r => r.name),
               ...[...document.querySelectorAll("[src], [href], [srcset]")].map(e => e.src || e.href || e.srcset)]
      .filter(n => !n.startsWith("data:")),
    smallest: Math.min(...text.filter(e => e.getClientRects().length).map(e => parseFloat(getComputedStyle(e).fontSize))),
    headings: [...document.querySelectorAll("h1, h2")].map(h => h.textContent)});
  parent.postMessage(JSON.stringify(window.probe), "*");
});
</script>"""
# A window is never narrower than 500 pixels, a frame is.
_FRAME = """<!doctype html><style>body {{ margin: 0 }}</style>
<iframe src="{page}" width="{width}" height="900" frameborder="0"></iframe>
<script>
addEventListener("message", e => {{
  const out = document.createElement("pre");
  out.id = "probe"; out.textContent = e.data; document.body.append(out);
}});
</script>"""


def look(page: Path, width: int) -> dict[str, object]:
    """What a browser says of a page that it shows `width` pixels wide: errors, requests to anywhere, images, widths.

    Skips the test where Chromium is not installed.
    """
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("Chromium is not installed")
    probed = page.with_name(f"probed_{width}.html")
    text = page.read_text()
    assert text.count("<head>") == 1
    probed.write_text(text.replace("<head>", f"<head>{_PROBE}"))
    frame = page.with_name(f"frame_{width}.html")
    frame.write_text(_FRAME.format(page=probed.name, width=width))
    options = "--headless --disable-gpu --no-first-run --disable-background-networking --dump-dom --disable-dev-shm-usage"
    options += f" --enable-logging=stderr --window-size={max(width, 500)},900 --virtual-time-budget=10000"
    options += " --no-sandbox" if os.getuid() == 0 else ""
    places = ["--host-resolver-rules=MAP * ~NOTFOUND", f"--user-data-dir={page.parent / 'profile'}", f"file://{frame}"]
    command = [chromium, *options.split(), *places]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    found = re.search(r'<pre id="probe">(.*?)</pre>', done.stdout, re.DOTALL)
    assert found, done.stderr[-2000:]
    seen = json.loads(unescape(found.group(1)))
    seen["console"] = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    return seen


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
