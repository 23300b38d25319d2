# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""How help is laid out."""

from __future__ import annotations

import argparse


class HelpFormatter(argparse.HelpFormatter):
    """Wraps descriptions, and leaves what has line breaks of its own (examples) as it is."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        if "\n" not in text:
            return super()._fill_text(text, width, indent)
        return "".join(indent + line for line in text.splitlines(keepends=True))
