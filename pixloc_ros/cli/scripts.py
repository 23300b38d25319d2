# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""What the scripts of experiments/ and benchmarks/ have in common with the command line."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from ..errors import InputError


def run_script(main: Callable[[], int]) -> NoReturn:
    """Run a script and exit; an `InputError` becomes one line and exit code 2."""
    try:
        sys.exit(main())
    except InputError as error:
        print(f"{Path(sys.argv[0]).stem}: error: {error}", file=sys.stderr)
        sys.exit(2)
