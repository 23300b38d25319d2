# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""Images under change: measured for real on a small scene; what the table counts."""

import json
import shutil
import sys

import under_change


def test_cases_with_images_of_their_own_place(data, monkeypatch, capsys):
    cases, images = data / "cases", data / "images"
    shutil.move(data / "data", cases)
    shutil.move(cases / "plane" / "images", images)
    (cases / "plane" / "scene.json").unlink()
    words = [cases, "--images", images, "-o", data / "out", "--priors", "medium", "truth", "--each"]
    monkeypatch.setattr(sys, "argv", ["under_change", *map(str, words)])
    assert under_change.main() == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| as it ships")]
    assert [line.split(" | ")[1] for line in lines] == ["medium", "truth"] * 2
    assert [line.split(" | ")[0].endswith(", plane") for line in lines] == [True] * 2 + [False] * 2
    entries = json.loads((data / "out" / "under_change.json").read_text())["shipped"]["truth"]
    assert [entry["case"] for entry in entries] == ["plane"] * 2 and all(entry["degrees"] < 0.5 for entry in entries)


def test_what_is_confident_and_wrong():
    def entry(degrees, share, doubt=""):
        return {"degrees": degrees, "depth": share, "doubt": doubt, "ms": 10.0}

    entries = [
        entry(0.1, 0.001),
        entry(4.0, 0.02),
        entry(0.1, 0.2),
        entry(20.0, 0.5, "few points agree"),
        entry(None, None, "lost"),
    ]
    row = under_change.table({"shipped": {"medium": entries}}).splitlines()[-1]
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells[:5] == ["as it ships", "medium", "5", "0.20", "0.20"] and cells[7:] == ["3", "1", "10"]
