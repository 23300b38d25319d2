# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""The table "Where the equations are" of docs/design.md names files and names that exist."""

import importlib
import re
from functools import reduce
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_every_equation_is_where_the_table_says():
    section = (ROOT / "docs/design.md").read_text().split("## Where the equations are")[1].split("\n## ")[0]
    rows = re.findall(r"^\|[^|]*\| `([^`|]+)\.py` \| `([^`|]+)` \|$", section, re.MULTILINE)
    assert len(rows) == section.count("\n|") - 2 > 20
    for file, name in rows:
        module = importlib.import_module("pixloc_ros." + file.replace("/", "."))
        found = reduce(getattr, name.split("."), module)
        assert callable(found) and getattr(found, "__module__", module.__name__) == module.__name__, (file, name)
