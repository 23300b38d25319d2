# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""The part of the node that needs no ROS: a map and a network, ready to track with."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from ..errors import InputError
from ..features import Execution, load_extractor
from ..mapping.map_file import Map
from ..tracking.localizer import FrameLocalizer
from ..tracking.presets import preset
from ..tracking.relocalization import Relocalizer
from ..tracking.tracker import Tracker
from ..tracking.types import CameraFrame


class Engine:
    """Opens the map and the network once; makes trackers.

    map_name: the map's file name, without folder. network: its name and what runs it. georeference: the map's, None where
    it has none.
    """

    def __init__(self, map_path: str, weights: str, preset_name: str, max_points: int, backend: str = "auto", device: str = "cpu",
                 precision: str = "float32") -> None:
        """max_points: 0 for the preset's. backend, device, precision: see `Execution`. Raises InputError where the map or the
        weights cannot be used, or the network cannot be run like that."""
        if not map_path:
            raise InputError("parameter map is empty: give the map file, for example map:=site.pixmap")
        path = Path(map_path).expanduser()
        self.map_name = path.name
        options = preset(preset_name, max_points)
        extractor = load_extractor(weights, Execution(backend, device, precision))
        self._localizer = FrameLocalizer(Map.open(path), extractor, options)
        self.network = f"{extractor.name} by {extractor.backend}, {device}, {precision}"
        self._relocalizer = Relocalizer(self._localizer)
        self.georeference = self._localizer.map.georeference

    def tracker(self, relocalization: bool = True) -> Tracker:
        """A tracker that knows nothing yet. relocalization: let it look in the whole map."""
        return Tracker(self._localizer, pose_search=self._relocalizer if relocalization else None)

    def warm_up(self) -> None:
        """Takes the cost of first calls, many times that of later ones, before images come."""
        map_ = self._localizer.map
        camera = map_.cameras[int(map_.keyframe_camera[0])]
        noise = np.random.default_rng(0).integers(0, 255, (camera.height, camera.width), np.uint8)
        for _ in range(2):
            self._localizer.localize(noise, camera, map_.map_from_keyframe[0])
            frame = CameraFrame(0, noise, camera, self._localizer.prepare(noise, camera))
            self._relocalizer.search(frame, torch.eye(4, dtype=torch.float64))
