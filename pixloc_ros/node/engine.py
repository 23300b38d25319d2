# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""The part of the node that needs no ROS: a map and a network, ready to track with."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from ..errors import InputError
from ..features import Execution, load_extractor
from ..geometry.cameras import Camera
from ..mapping.map_file import Map
from ..tracking.checks.calibration import CalibrationCheck
from ..tracking.covariances import isotropic
from ..tracking.frame_aligner import FrameAligner
from ..tracking.presets import preset
from ..tracking.relocalization import Relocalizer
from ..tracking.tracker import Tracker
from ..tracking.types import CameraFrame, FrameAlignment, FrameMotion, PreparedImage

_REHEARSED = 6
"""Images: half of them are tracked, the others are found in the whole map."""
_PERIOD_NS = 100_000_000


class Engine:
    """Opens the map and the network once; makes trackers.

    map_name: the map's file name, without folder. network: its name and what runs it. georeference: the map's, None where
    it has none.
    """

    def __init__(
        self,
        map_path: str,
        weights: str,
        preset_name: str,
        max_points: int,
        backend: str = "auto",
        device: str = "cpu",
        precision: str = "float32",
    ) -> None:
        """max_points: 0 for the preset's. backend, device, precision: see `Execution`. Raises InputError where the map or the
        weights cannot be used, or the network cannot be run like that."""
        if not map_path:
            raise InputError("parameter map is empty: give the map file, for example map:=site.pixmap")
        path = Path(map_path).expanduser()
        self.map_name = path.name
        options = preset(preset_name, max_points)
        extractor = load_extractor(weights, Execution(backend, device, precision))
        self._localizer = FrameAligner(Map.open(path), extractor, options)
        self.network = f"{extractor.name} by {extractor.backend}, {device}, {precision}"
        self._relocalizer = Relocalizer(self._localizer)
        self.georeference = self._localizer.map.georeference

    def tracker(self, relocalization: bool = True) -> Tracker:
        """A tracker that knows nothing yet. relocalization: let it look in the whole map."""
        return Tracker(
            self._localizer,
            pose_search=self._relocalizer if relocalization else None,
            calibration_check=CalibrationCheck(self._localizer.focal_length),
        )

    def warm_up(self) -> None:
        """Takes the cost of first calls, many times that of later ones, before images come: after an installation, when nothing
        is compiled yet, some twenty seconds."""
        map_ = self._localizer.map
        keyframe = int(np.diff(map_.observation_offsets).argmax())
        camera, pose = map_.cameras[int(map_.keyframe_camera[keyframe])], map_.map_from_keyframe[keyframe]
        noise = np.random.default_rng(0).integers(0, 255, (camera.height, camera.width), np.uint8)
        rehearsal = _Rehearsal(self._localizer, self._relocalizer)
        tracker = Tracker(rehearsal, pose_search=rehearsal)
        base_from_camera = torch.eye(4, dtype=torch.float64)
        tracker.initialize(pose, None, 0)
        self._localizer.prepare(noise, camera)  # the network's second call may still be slow
        frame = CameraFrame(0, noise, camera, self._localizer.prepare(noise, camera))
        for number in range(1, _REHEARSED + 1):
            if number == _REHEARSED // 2:
                tracker.relocalize()
            for offset_ns in (-_PERIOD_NS // 4, _PERIOD_NS // 4):
                tracker.add_odometry(number * _PERIOD_NS + offset_ns, base_from_camera)
            tracker.track(replace(frame, stamp_ns=number * _PERIOD_NS), base_from_camera)
        self._localizer.focal_length(frame.prepared, self._localizer.localize_prepared(frame.prepared, pose))


class _Rehearsal:
    """Localizer and search of a tracker: they do their work, and then call the pose where it began a good one. So an image of
    noise takes the tracker through all that an image of the map does."""

    def __init__(self, localizer: FrameAligner, relocalizer: Relocalizer) -> None:
        self._localizer, self._relocalizer = localizer, relocalizer
        self._found: FrameAlignment | None = None

    def prepare(self, image: np.ndarray, camera: Camera) -> PreparedImage:
        return self._localizer.prepare(image, camera)

    def localize_prepared(
        self,
        prepared: PreparedImage,
        map_from_camera: torch.Tensor,
        prior_covariance: torch.Tensor | None = None,
        motion: FrameMotion | None = None,
    ) -> FrameAlignment:
        alignment = self._localizer.localize_prepared(prepared, map_from_camera, prior_covariance, motion)
        self._found = replace(
            alignment,
            map_from_camera=map_from_camera,
            covariance=isotropic(0.01, 0.01),
            success=True,
            cost=0.0,
            inlier_fraction=1.0,
            visible_fraction=1.0,
            points_used=1000,
        )
        return self._found

    def search(self, *arguments) -> list[FrameAlignment]:
        self._relocalizer.search(*arguments)
        return [self._found]
