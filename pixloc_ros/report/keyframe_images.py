# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""The images that a map was made of, where they are still at hand: the map itself holds none."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ..errors import InputError
from ..io.images import fit_to_working_size, load_image
from ..mapping.map_file import Map
from ..tracking.frame_aligner import FrameAligner
from .feature_maps import ReferenceView


class KeyframeImages:
    """folder: what the keyframes' names are relative to, None where the images are not at hand."""

    def __init__(self, map_: Map, folder: Path | None = None) -> None:
        """Raises InputError where an image of the map is not there."""
        self.folder = folder
        if folder is not None:
            missing = [name for name in map_.keyframe_names if not (folder / name).is_file()]
            if missing:
                raise InputError(
                    f"{len(missing)} of {len(map_.keyframe_names)} images of map '{map_.name}' are not in {folder}, "
                    f"the first is {missing[0]}: give the folder that the map was made of, or none"
                )

    def image(self, map_: Map, keyframe: int) -> np.ndarray | None:
        """uint8, of the size of the keyframe's (shrunk) camera; None where it is not at hand."""
        if self.folder is None:
            return None
        image = load_image(self.folder / map_.keyframe_names[keyframe])
        camera = map_.cameras[int(map_.keyframe_camera[keyframe])]
        if image.shape[:2] == (camera.height, camera.width):
            return image
        full = camera.scaled(image.shape[1] / camera.width, image.shape[0] / camera.height, image.shape[1], image.shape[0])
        return fit_to_working_size(image, full, max(camera.width, camera.height))[0]

    def view(self, localizer: FrameAligner, keyframe: int) -> ReferenceView:
        """The keyframe with its image and features, as far as they are at hand."""
        image = self.image(localizer.map, keyframe)
        return ReferenceView(localizer.map, keyframe, image, None if image is None else localizer.extractor.extract(image))
