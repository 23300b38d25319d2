# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""A whole run as a recording for the Rerun viewer: map, path, images with the map's points on them, state and errors."""

from __future__ import annotations

import math
from pathlib import Path
from types import ModuleType

import cv2
import numpy as np
import torch

from ..errors import InputError
from ..evaluation import offline
from ..evaluation.runs import TRUTH_GAP_NS, BagRun, odometry_in_map
from ..geometry import se3
from ..geometry.cameras import Camera
from ..io.bags import BagReader
from ..io.files import replacing
from ..io.frames import CameraFrame, UnusableFrame
from ..localization import Localizer
from ..mapping.map_file import Map
from ..tracking.types import TrackResult
from .aligned_image import image_corners
from .overlays import AGREES, DISAGREES
from .style import BLUE, ORANGE, STATE_COLOURS, rgb

_JPEG_QUALITY = 80
_PIECE = 100
_FRUSTUM_DEPTHS = 0.12
"""Length of a camera's pyramid as a share of the scene's depth."""
_ESTIMATE, _TRUTH, _ODOMETRY, _KEYFRAME = rgb(BLUE), (17, 24, 39), rgb(ORANGE), (130, 130, 140)


def viewer() -> ModuleType:
    """The Rerun library. Raises InputError where it is not installed."""
    try:
        import rerun
    except ImportError:
        raise InputError(
            "recordings for the 3D viewer need Rerun, which is not installed: python -m pip install rerun-sdk "
            "(170 MB), or pixloc_ros[viewer]"
        ) from None
    return rerun


class RunRecording:
    """Writes a run while it goes on; use it in a `with` statement and call it for every image (`offline.run_bag`'s `watch`).

    The file appears under its name when all is written. Raises InputError where Rerun is missing or the file cannot be written.
    """

    def __init__(self, path: Path, map_: Map, bag: BagReader) -> None:
        self._rerun, self._map = viewer(), map_
        self._base_from_camera, self._mount_of = bag.base_from_camera, bag.mount_of
        self._cameras: tuple[str, ...] = getattr(bag, "cameras", ())
        self._truth = bag.truth()
        self._odometry = odometry_in_map(bag.odometry(), self._truth)
        self._way: list[list[float]] = []
        self._piece = 0
        self._first_ns: int | None = None
        depth = map_.keyframe_depth[map_.keyframe_depth > 0]
        self._length = _FRUSTUM_DEPTHS * (float(np.median(depth)) if depth.size else 1.0)
        self._file = replacing(path)
        temporary = self._file.__enter__()
        self._stream = self._rerun.RecordingStream("pixloc_ros")
        self._stream.save(temporary, default_blueprint=self._blueprint())

    def __enter__(self) -> RunRecording:
        self._log_map()
        return self

    def __exit__(self, *error: object) -> None:
        self._stream.flush()
        self._stream.disconnect()
        self._file.__exit__(*error)

    def __call__(self, frame: CameraFrame | UnusableFrame, result: TrackResult | None) -> bool:
        """Record one image; never ends the run."""
        rr, stream = self._rerun, self._stream
        self._first_ns = frame.stamp_ns if self._first_ns is None else self._first_ns
        stream.set_time("time", duration=(frame.stamp_ns - self._first_ns) * 1e-9)
        if isinstance(frame, UnusableFrame) or result is None:
            stream.log("log", rr.TextLog(getattr(frame, "reason", "image not used"), level="WARN"))
            return False
        stream.log("state", rr.Scalars(float(result.state)))
        if result.message:
            stream.log("log", rr.TextLog(f"{result.state.name}: {result.message}", level="WARN"))
        for name, problem in result.cameras.items():
            if problem:
                stream.log("log", rr.TextLog(f"camera {name}: {problem}", level="WARN"))
        for one in (frame, *(other.frame for other in frame.others)):
            self._log_image(one)
        self._log_points(frame, result)
        self._log_pose(frame, result)
        return False

    def _image_of(self, name: str) -> str:
        """Where the images of a camera are."""
        return f"camera/{name}/image" if self._cameras else "camera/image"

    # ---- once

    def _blueprint(self):
        import rerun.blueprint as rrb

        return rrb.Blueprint(
            rrb.Horizontal(
                rrb.Spatial3DView(origin="/", name="map"),
                rrb.Vertical(
                    self._image_views(rrb),
                    rrb.TimeSeriesView(origin="agree", name="points that agree (%)"),
                    rrb.TimeSeriesView(origin="error", name="error (cm, degrees)"),
                    rrb.TimeSeriesView(origin="state", name="state: 1 tracking, 2 degraded, 3 lost, 4 relocalizing"),
                    rrb.TextLogView(origin="log", name="messages"),
                    row_shares=(4, 2, 2, 2, 1),
                ),
                column_shares=(3, 2),
            )
        )

    def _image_views(self, rrb):
        places = {name or "image": self._image_of(name) for name in self._cameras or ("",)}
        views = [rrb.Spatial2DView(origin=place, contents=[f"{place}/**"], name=name) for name, place in places.items()]
        return views[0] if len(views) == 1 else rrb.Grid(*views)

    def _log_map(self) -> None:
        rr, stream, map_ = self._rerun, self._stream, self._map
        stream.log("/", rr.ViewCoordinates.RIGHT_HAND_Z_UP, static=True)
        stream.log("map/points", rr.Points3D(map_.xyz, colors=(150, 156, 166), radii=rr.Radius.ui_points(1.0)), static=True)
        cameras = [map_.cameras[int(k)] for k in map_.keyframe_camera]
        lines = [line for pose, camera in zip(map_.map_from_keyframe, cameras) for line in self._pyramid(pose, camera, 0.5)]
        thin = rr.Radius.ui_points(0.5)
        stream.log("map/keyframes", rr.LineStrips3D(lines, colors=_KEYFRAME, radii=thin), static=True)
        for name, track, colour in (("truth", self._truth, _TRUTH), ("odometry_alone", self._odometry, _ODOMETRY)):
            if len(track):
                line = (track.map_from_body @ self._base_from_camera)[:, :3, 3].numpy()
                stream.log(f"path/{name}", rr.LineStrips3D([line], colors=colour, radii=rr.Radius.ui_points(1.0)), static=True)
        for name, label, colour in (
            ("error/centimetres", "off the truth (cm)", _ESTIMATE),
            ("error/degrees", "off the truth (degrees)", _ODOMETRY),
            ("agree", "agree (%)", _ESTIMATE),
            ("state", "state", _ESTIMATE),
        ):
            stream.log(name, rr.SeriesLines(colors=colour, names=label), static=True)

    def _pyramid(self, map_from_camera: torch.Tensor, camera: Camera, share: float = 1.0) -> list[np.ndarray]:
        """A camera as lines: over the four corners of its image and around them."""
        places = image_corners(camera) * self._length * share
        corner = se3.transform(map_from_camera, places).numpy()
        tip = map_from_camera[:3, 3].numpy()
        return [np.stack((corner[0], tip, corner[1], corner[2], tip, corner[3])), corner[[0, 1, 2, 3, 0]]]

    # ---- for every image

    def _log_image(self, frame: CameraFrame) -> None:
        pixels = frame.image if frame.image.ndim == 2 else cv2.cvtColor(frame.image, cv2.COLOR_RGB2BGR)
        _, data = cv2.imencode(".jpg", pixels, (cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY))
        self._stream.log(self._image_of(frame.name), self._rerun.EncodedImage(contents=data.tobytes(), media_type="image/jpeg"))

    def _log_points(self, frame: CameraFrame, result: TrackResult) -> None:
        rr, stream, alignment = self._rerun, self._stream, result.alignment
        views = {one.view.name: one for one in alignment.views} if alignment is not None else {}
        places, shades = [], []
        for one in (frame, *(other.frame for other in frame.others)):
            entity, own = f"{self._image_of(one.name)}/points", views.get(one.name)
            if own is None:
                stream.log(entity, rr.Clear(recursive=False))
                continue
            details = alignment.details
            visible, agrees = details.visible[own.rows].numpy(), details.inliers[own.rows].numpy()
            colours = np.where(agrees[visible, None], AGREES, DISAGREES).astype(np.uint8)
            xyz = (own.points.points.xyz.double() + own.points.origin)[visible]
            camera_from_map = se3.inverse(alignment.map_from_camera)
            if own.view.camera_from_rig is not None:
                camera_from_map = own.view.camera_from_rig @ camera_from_map
            pixels, _ = one.camera.project(se3.transform(camera_from_map, xyz))
            # Rerun counts pixels from the corner of the first one.
            stream.log(entity, rr.Points2D(pixels.numpy() + 0.5, colors=colours, radii=rr.Radius.ui_points(2.0)))
            places.append(xyz.numpy())
            shades.append(colours)
        if not places:
            stream.log("map/used", rr.Clear(recursive=False))
            return
        xyz, colours = np.concatenate(places), np.concatenate(shades)
        stream.log("map/used", rr.Points3D(xyz, colors=colours, radii=rr.Radius.ui_points(2.5)))
        stream.log("agree", rr.Scalars(100 * alignment.inlier_fraction))

    def _log_pose(self, frame: CameraFrame, result: TrackResult) -> None:
        rr, stream = self._rerun, self._stream
        if result.map_from_base is None:
            stream.log("camera/pyramid", rr.Clear(recursive=False))
            return
        place = result.map_from_base @ self._base_from_camera
        # In pieces: the whole path with every image would grow with the square of the drive.
        if len(self._way) > _PIECE:
            self._way, self._piece = self._way[-1:], self._piece + 1
        self._way.append(place[:3, 3].tolist())
        colour = rgb(STATE_COLOURS[result.state.name])
        stream.log(f"path/tracked/{self._piece}", rr.LineStrips3D([self._way], colors=_ESTIMATE, radii=rr.Radius.ui_points(1.5)))
        lines = self._pyramid(result.map_from_base @ self._mount_of(frame), frame.camera)
        for other in frame.others:
            lines += self._pyramid(result.map_from_base @ other.base_from_camera, other.frame.camera)
        stream.log("camera/pyramid", rr.LineStrips3D(lines, colors=colour, radii=rr.Radius.ui_points(2.0)))
        truth, known = self._truth.at(np.array([frame.stamp_ns]), TRUTH_GAP_NS)
        if known[0]:
            metres, radians = (float(v) for v in se3.pose_difference(truth[0], result.map_from_base))
            stream.log("error/centimetres", rr.Scalars(100 * metres))
            stream.log("error/degrees", rr.Scalars(math.degrees(radians)))


def record_run(path: Path, localizer: Localizer, bag: BagReader, **arguments) -> BagRun:
    """Track a bag (arguments as of `offline.run_bag`) and record it."""
    with RunRecording(path, localizer.map, bag) as recording:
        return offline.run_bag(localizer.tracker(), bag, watch=recording, **arguments)
