# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""Truth and image times of a bag that need not be one a camera can be tracked on: a recording of a motion capture, say."""

from __future__ import annotations

import contextlib
from pathlib import Path

import numpy as np

from ..errors import InputError
from .bags import BagOptions, BagReader
from .messages import COMPRESSED, IMAGE
from .trajectory import Trajectory


class _TruthReader(BagReader):
    """Looks for images, odometry's frames and the truth; a bag without images or camera will do."""

    def _find_topics(self) -> None:
        images = self._image_candidates()
        self.image_topic = images[0] if len(images) == 1 else None
        self.odometry_topic = None
        with contextlib.suppress(InputError):  # for the name of the base's frame; the odometry itself is not needed
            self._find_odometry()
        self._find_transforms()
        self._find_truth()


def read_bag_truth(path: Path, topic: str | None) -> tuple[Trajectory, np.ndarray | None]:
    """map_from_base as a bag's topic or transforms know it.

    Args:
        path: The bag.
        topic: As `BagOptions.truth`; None: the one whose name says so.

    Returns:
        The truth, and the images' stamps int64 [N]; None without a single image topic.

    Raises:
        InputError: There is no truth.
    """
    with _TruthReader(path, BagOptions(truth=topic)) as bag:
        truth = bag.truth()
        if not len(truth):
            found = ", ".join(bag.pose_topics()) or "none"
            raise InputError(
                f"{path} holds no truth{f' on {topic}' if topic else ''}: choose with --truth-topic, a topic of "
                f"poses (it has {found}) or a transform tf:PARENT:CHILD"
            )
        times = np.array(sorted(set(bag.image_stamps())), np.int64) if bag.image_topic is not None else None
    return truth, times


def read_bag_times(path: Path) -> np.ndarray:
    """Stamps of a bag's images, int64 [N]. Raises `InputError` where it has not one topic of images."""
    with _TruthReader(path, BagOptions(truth="none")) as bag:
        if bag.image_topic is None:
            raise InputError(f"{path} has {len(bag.topics_of_type(IMAGE, COMPRESSED))} topics of images: give a file of times")
        return np.array(sorted(set(bag.image_stamps())), np.int64)
