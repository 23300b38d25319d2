# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""Fix the CMake exports of the ROS wheels in this environment: they name the include folders of the machine they were
built on. Run after every installation of such wheels."""

import re
import sys
import sysconfig
from pathlib import Path

import numpy

BUILDER = r"/opt/python/cp\d+-cp\d+"


def patch(text: str) -> str:
    """`text` of a CMake file with this machine's include folders of Python and numpy."""
    text = re.sub(BUILDER + r"/include/python3\.\d+", lambda _: sysconfig.get_path("include"), text)
    return re.sub(BUILDER + r"/lib/python3\.\d+/site-packages/numpy/\w+/include", lambda _: numpy.get_include(), text)


def main() -> int:
    exports = sorted((Path(sys.prefix) / "share").glob("*/cmake/*.cmake"))
    if not exports:
        print("no ROS wheels in this environment: install requirements-ros.txt first", file=sys.stderr)
        return 1
    for path in exports:
        old = path.read_text(encoding="utf-8")
        new = patch(old)
        if re.search(BUILDER + r"/(include|lib)", new):
            print(f"{path} names a folder of the machine it was built on, in a way unknown here", file=sys.stderr)
            return 1
        if new != old:
            path.write_text(new, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
