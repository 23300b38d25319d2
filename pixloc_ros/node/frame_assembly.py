# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""Makes frames of images: each waits for the calibration, the odometry and the transforms of its stamp, and the tracker gets
the odometry and the initial pose that belong to it. Called by the worker only."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from geometry_msgs.msg import TwistWithCovariance

from ..errors import InputError
from ..io.frames import CameraFrame, MountedFrame
from ..mapping.georeference import Georeference
from ..tracking.last_pose import LastPose, load_last_pose
from ..tracking.tracker import Tracker
from .conversions import NS_PER_S, decode_image, stamp_to_ns, twist_from_vector
from .diagnostics import WARN, DiagnosticBoard
from .inputs import Inputs, Rejected
from .parameters import Value
from .work_queue import ReceivedImage

_MAX_INITIAL_POSE_AGE_NS = 10 * NS_PER_S
"""How old an initial pose may be: as long as the tracker keeps odometry."""
_ODOMETRY_ALIVE_S = 1.0
_IMPATIENT_S = 1.0


class FrameAssembly:
    """Serves one tracker after the other.

    Attributes:
        tracker: the tracker in use; None without a map.
        twist: velocity in the newest odometry message.
        last_image_ns: stamp of the last image that was tracked.
        time_offset_ns: what was added to the stamp of the newest image.
    """

    def __init__(self, inputs: Inputs, setting: Callable[[str], Value], board: DiagnosticBoard) -> None:
        self._inputs, self._setting, self._board = inputs, setting, board
        self._georeference: Georeference | None = None
        self._last_pose: LastPose | None = None
        self.tracker: Tracker | None = None
        self.forget()

    def forget(self) -> None:
        """A new time begins."""
        self.twist: TwistWithCovariance | None = None
        self.last_image_ns: int | None = None
        self.time_offset_ns = 0
        self._odometry_moved_at = 0.0

    def use(self, tracker: Tracker, map_name: str, georeference: Georeference | None) -> None:
        """Frames are made for this tracker from now on. It starts from the last pose in its file, if that is of this map."""
        self.tracker, self._georeference, self._last_pose = tracker, georeference, None
        path = self._setting("last_pose_file")
        if path and not self._inputs.starts_from_parameters:
            try:
                self._last_pose = load_last_pose(Path(path).expanduser(), map_name)
            except InputError as error:
                self._board.report("initial pose", "file", WARN, str(error))

    def assemble(self, received: ReceivedImage, stages_ms: dict[str, float]) -> tuple[ReceivedImage, CameraFrame, torch.Tensor]:
        """The image that leads, the frame, and base_from_camera of its own camera, float64 [4, 4].

        Of several cameras, those images take part that can be used. The first of them that is newer than the last frame leads.

        Args:
            received: the image, and those that belong to its frame.
            stages_ms: gets the times for decoding and waiting.

        Raises:
            Rejected: the image cannot be used; of several cameras, none can.
        """
        tracker = self.tracker
        if tracker is None:
            raise Rejected("map", "load", "no map is loaded: see the error at the start, fix it, call ~/load_map")
        stages_ms |= {"decode_ms": 0.0, "wait_ms": 0.0}
        images = {image.camera: image for image in (received, *received.others)}
        deadline = max(image.received_at for image in images.values()) + self._setting("odometry_wait_s")
        views: list[MountedFrame] = []
        rejections = []
        for image in images.values():
            try:
                views.append(self._view(image, deadline, stages_ms))
            except Rejected as rejection:
                rejections.append(rejection)
                if image.camera:
                    self._inputs.refuse(rejection, image.camera, image.stamp_ns)
                    if rejection.may_come:  # frames of the other cameras should not wait each time
                        self._inputs.cameras[image.camera].impatient_until = time.monotonic() + _IMPATIENT_S
        lead = next((view for view in views if self._is_new(view.frame.stamp_ns)), None)
        if lead is None:
            raise rejections[0] if rejections else self._too_old(received.stamp_ns)
        image, stamp_ns = images[lead.frame.name], lead.frame.stamp_ns
        offset_ns = stamp_ns - stamp_to_ns(image.message.header.stamp)
        if offset_ns != self.time_offset_ns:
            self.time_offset_ns = offset_ns
            tracker.restart_odometry_check()
        # The network runs while the odometry of the image's stamp is on its way.
        frame = tracker.prepare(replace(lead.frame, others=tuple(view for view in views if view is not lead)))
        began = time.monotonic()
        newest = max((images[view.frame.name] for view in views), key=lambda one: one.stamp_ns)
        self._feed_odometry(sorted({view.frame.stamp_ns for view in views}), stamp_ns, newest.received_at, deadline)
        for reading in self._inputs.gyro.take(frame.newest_ns) if self._inputs.gyro else ():
            tracker.gyro.add(*reading)
        stages_ms["wait_ms"] += (time.monotonic() - began) * 1e3
        self._feed_initial_pose(stamp_ns)
        if not tracker.has_pose:
            self._feed_hint(stamp_ns)
        self._inputs.accept(frame)
        return image, frame, lead.base_from_camera

    def _is_new(self, stamp_ns: int) -> bool:
        return self.last_image_ns is None or stamp_ns > self.last_image_ns

    def _too_old(self, stamp_ns: int) -> Rejected:
        late_s = (self.last_image_ns - stamp_ns) / NS_PER_S
        text = f"an image is {late_s:.3f} s older than the last one: it is not used; look for a second publisher"
        return Rejected("image", "order", text, WARN)

    def _view(self, image: ReceivedImage, deadline: float, stages_ms: dict[str, float]) -> MountedFrame:
        """One image, with its calibration and mount. Raises Rejected."""
        stamp_ns, camera = image.stamp_ns, self._inputs.cameras[image.camera]
        if stamp_ns <= 0:
            raise Rejected("image", "stamp", "images have no time stamp: the driver must fill in header.stamp")
        if not (image.camera or self._is_new(stamp_ns)):
            raise self._too_old(stamp_ns)
        began = time.monotonic()
        try:
            pixels = decode_image(image.message)
        except InputError as error:
            raise Rejected("image", "format", f"{error}; the image is not used") from None
        decoded = time.monotonic()
        stages_ms["decode_ms"] += (decoded - began) * 1e3
        deadline = deadline if decoded > camera.impatient_until else decoded
        calibration = camera.calibration(deadline)
        height, width = pixels.shape[:2]
        if (width, height) != (calibration.camera.width, calibration.camera.height):
            text = (
                f"images are {width}x{height} but {camera.topic('camera_info_topic')} says {calibration.camera.width}x"
                f"{calibration.camera.height}: publish the calibration of this image size (binning and roi are understood)"
            )
            raise Rejected("calibration", "size", text)
        base_from_camera = self._inputs.transforms.base_from_camera(image.message.header.frame_id, stamp_ns, deadline)
        stages_ms["wait_ms"] += (time.monotonic() - decoded) * 1e3
        what = {"calibration": calibration, "name": image.camera, "shown_ns": image.shown_ns}
        frame = CameraFrame(stamp_ns, pixels, calibration.camera, **what)
        return MountedFrame(frame, base_from_camera)

    def catch_up(self, elapsed_ns: int) -> int:
        """Takes the odometry that came since the last image. Returns the time, as a stamp: that of the newest odometry or, where
        that stands still, the last image's and `elapsed_ns`."""
        source, before_ns = self._setting("odom_source"), self.tracker.odometry.newest_stamp_ns
        if source == "tf" and (newest := self._inputs.transforms.newest_odom_from_base()) is not None:
            self.tracker.add_odometry(*newest)
        if source == "topic":
            self._take_odometry(self._inputs.newest_ns)
        newest_ns = self.tracker.odometry.newest_stamp_ns
        if newest_ns != before_ns:
            self._odometry_moved_at = time.monotonic()
        if newest_ns is not None and time.monotonic() - self._odometry_moved_at < _ODOMETRY_ALIVE_S:
            return max(newest_ns, self.last_image_ns)
        return self.last_image_ns + elapsed_ns

    def _feed_odometry(self, stamps_ns: Sequence[int], lead_ns: int, received_at: float, deadline: float) -> None:
        """Up to the newest of a frame's stamps; that image came at `received_at`."""
        source = self._setting("odom_source")
        if source == "tf":
            for stamp_ns in stamps_ns:
                if stamp_ns == lead_ns:
                    self.tracker.add_odometry(stamp_ns, self._inputs.transforms.odom_from_base(stamp_ns, deadline))
                elif stamp_ns > (self.tracker.odometry.newest_stamp_ns or 0):
                    with contextlib.suppress(Rejected):  # the image is placed less exactly
                        self.tracker.add_odometry(stamp_ns, self._inputs.transforms.odom_from_base(stamp_ns, deadline))
        if source != "topic":
            return
        self._inputs.odometry.wait_for(stamps_ns[-1], received_at, deadline)
        self._take_odometry(stamps_ns[-1])
        newest_ns = self.tracker.odometry.newest_stamp_ns
        if newest_ns is not None and lead_ns - newest_ns > NS_PER_S:
            self.twist = None

    def _take_odometry(self, stamp_ns: int) -> None:
        for message, twist in self._inputs.odometry.take(stamp_ns):
            self.twist = twist
            report = self.tracker.add_odometry(message.stamp_ns, message.odom_from_base, message.twist_covariance, message.twist)
            if report.message:
                self._board.report_once("odometry", "tracker", WARN, report.message)
        self._complete_twist()

    def _complete_twist(self) -> None:
        """What the twist leaves empty is taken from the poses."""
        odometry = self.tracker.odometry
        empty, problem = np.repeat(odometry.twist_check.empty, 3), odometry.twist_check.problem
        self._board.update("odometry", "twist", problem)
        if self.twist is None or not empty.any() or (found := odometry.velocity()) is None:
            return
        velocity, covariance = (value.numpy() for value in found)
        linear, angular = self.twist.twist.linear, self.twist.twist.angular
        told = np.array([linear.x, linear.y, linear.z, angular.x, angular.y, angular.z])
        covariance = np.where(empty[:, None] | empty, covariance, np.reshape(self.twist.covariance, (6, 6)))
        twist = twist_from_vector(torch.from_numpy(np.where(empty, velocity, told)))
        self.twist = TwistWithCovariance(twist=twist, covariance=covariance.ravel().tolist())

    def _feed_initial_pose(self, image_ns: int) -> None:
        pose = self._inputs.take_initial_pose()
        if pose is None:
            return
        stamp_ns = image_ns if pose.stamp_ns is None else pose.stamp_ns
        age_ns = image_ns - stamp_ns
        if not 0 <= age_ns <= _MAX_INITIAL_POSE_AGE_NS:
            # A little ahead is normal: the image was on its way when the pose was given.
            if abs(age_ns) > NS_PER_S:
                text = (
                    f"the initial pose ({stamp_ns / NS_PER_S:.3f}) is {age_ns / NS_PER_S:.1f} s older than the image "
                    f"({image_ns / NS_PER_S:.3f}): taken as valid at the image; give it again if the robot has moved since; if "
                    "it has only just been given, use one clock (use_sim_time) everywhere"
                )
                self._board.report_once("initial pose", "stamp", WARN, text)
            stamp_ns = image_ns
        self.tracker.initialize(pose.map_from_base, pose.covariance, stamp_ns)

    def _feed_hint(self, image_ns: int) -> None:
        """If nobody gave a pose: the one in the file, then a satellite fix."""
        if self._last_pose is not None:
            last, self._last_pose = self._last_pose, None
            self.tracker.initialize(last.map_from_base, last.prior_covariance(), image_ns)
            return
        fix = None if self._georeference is None else self._inputs.take_fix()
        if fix is not None:
            try:
                self.tracker.initialize(*self._georeference.prior(*fix), image_ns)
            except InputError as error:
                self._board.report("initial pose", "fix", WARN, f"{error}; it is ignored")
