# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""Pages in a real browser: headless Chromium, without a network."""

import json
import os
import re
import shutil
import subprocess
from html import unescape
from pathlib import Path

import pytest

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
