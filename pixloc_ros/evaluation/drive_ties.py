# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""Drives tied to each other: keyframes of one, searched for in the map of another."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch

from ..features import Extractor
from ..io.images import load_image
from ..io.work_folder import WorkFolder
from ..localization import SURE, Localizer
from ..mapping.build.joined_drives import SolvedDrive, Ties

_MOST = 60  # keyframes of a drive that are searched for in a map


def find_ties(
    drives: Sequence[SolvedDrive] | Mapping[int, SolvedDrive],
    home: int,
    drive: int,
    extractor: Extractor,
    work: WorkFolder,
    progress: Callable[..., None] = lambda done, of, note="": None,
) -> Ties:
    """Search for keyframes of a drive in the map of another.

    Args:
        drives: By number.
        home: The one with the map.
        drive: The one that is searched for.
        extractor: That made their maps.
        work: Keeps what is found.
        progress: Called with the work done and all of it.
    """
    found = work.arrays(f"ties/{home}_{drive}", lambda: _search(drives[drive], Localizer(drives[home].map, extractor), progress))
    return Ties(home, drive, int(found["tried"]), found["keyframe"], torch.from_numpy(found["pose"]))


def _search(drive: SolvedDrive, localizer: Localizer, progress: Callable[..., None]) -> dict[str, np.ndarray]:
    count = len(drive.images)
    chosen = np.unique(np.linspace(0, count - 1, min(count, _MOST)).round().astype(np.int64))
    keyframes, poses = [], [np.empty((0, 4, 4))]
    for n, k in enumerate(chosen.tolist()):
        progress(n, len(chosen))
        image = load_image(drive.images[k])
        found = localizer.locate(image, drive.map.cameras[drive.map.keyframe_camera[k]].of_image(image))
        if found.success and found.probability >= SURE:
            keyframes.append(k)
            poses.append(found.map_from_camera.numpy()[None])
    return {"tried": np.array(len(chosen)), "keyframe": np.array(keyframes, np.int64), "pose": np.concatenate(poses)}
