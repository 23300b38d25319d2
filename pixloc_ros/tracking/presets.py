# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""Named sets of options; docs/evidence/performance.md has what each costs and how exact it is."""

from __future__ import annotations

import dataclasses

from ..alignment import AlignmentOptions
from ..errors import InputError
from .frame_aligner import AlignerOptions

DEFAULT = "balanced"
PRESETS: dict[str, AlignerOptions] = {
    # The network costs most: three quarters of the size halve it, and double the error.
    "fast": AlignerOptions(max_points=512, image_scale=0.75, reselect_share=0.05),
    DEFAULT: AlignerOptions(),
    "accurate": AlignerOptions(AlignmentOptions(stop_cells=0.02, iterations=40), max_points=2048, reselect_share=0.01),
}


def preset_options(name: str = DEFAULT, max_points: int = 0) -> AlignerOptions:
    """The options of that name, with another number of points unless 0. Raises InputError for another name."""
    if name not in PRESETS:
        raise InputError(f"preset '{name}' is unknown: choose one of {', '.join(PRESETS)}")
    options = PRESETS[name]
    return dataclasses.replace(options, max_points=max_points) if max_points else options
