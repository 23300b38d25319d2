# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""Degraded drives as bags, for systems that read bags: the same images, odometry, calibration and stamps as ours sees."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import torch
from rosbags.typesys import Stores, get_typestore

from ..errors import InputError
from ..geometry import se3
from ..io.bag_writer import latched_profile, new_bag
from ..io.bags import COMPRESSED, IMAGE, RawMessage, frame_name, message_stamp
from ..io.frames import CameraFrame
from .degradation import DegradedBag
from .offline import TRUTH_GAP_NS


def export_bag(path: Path, drive: DegradedBag) -> None:
    """Write a rosbag2 (MCAP) folder of what a localizer needs: images (raw topics as mono8 or rgb8, compressed ones as PNG, so
    that nothing more is lost), CameraInfo, odometry, transforms and truth. Raises InputError where the folder cannot be written.

    Images that cannot be used are left out. The folder appears when it is complete, and replaces an earlier one.
    """
    path = Path(path)
    if path.exists() and not (path / "metadata.yaml").is_file():
        raise InputError(f"{path} exists and is no bag: give another folder with --export")
    try:
        with new_bag(path) as writer:
            _Exporter(writer, drive).write()
    except OSError as error:
        raise InputError(f"cannot write {path} ({error.strerror}): give a place that is writable and has room") from error


class _Exporter:
    def __init__(self, writer, drive: DegradedBag) -> None:
        self._writer, self._drive = writer, drive
        self._store = get_typestore(Stores.ROS2_HUMBLE)
        self._connections: dict[str, object] = {}
        self._odometry = drive.odometry() if drive.kind == "odometry" else None
        self._offset_ns = drive.stamp_offset_ns + drive.options.time_offset_ns

    def write(self) -> None:
        """Images come from the drive's events; everything else is copied in the order of recording, changed where it must be."""
        drive = self._drive
        frames = (event for event in drive.events() if isinstance(event, CameraFrame))
        moving, static = drive.transform_topics()
        topics = [drive.camera_info_topic, *moving, *static]
        topics += [t for t in (drive.odometry_topic, drive.truth_topic) if t and t != "tf" and not t.startswith("tf:")]
        images = self._images(frames)
        upcoming = next(images, None)
        for raw in drive.raw_messages(dict.fromkeys(topics)):
            while upcoming is not None and upcoming[0] <= raw.time_ns:
                self._put(*upcoming)
                upcoming = next(images, None)
            message = self._store.deserialize_cdr(raw.cdr, raw.type_name)
            self._put(*self._changed(raw, message, static))
        while upcoming is not None:
            self._put(*upcoming)
            upcoming = next(images, None)

    def _put(self, time_ns: int, topic: str, type_name: str, message) -> None:
        if topic not in self._connections:
            latched = topic.strip("/").split("/")[-1] == "tf_static"
            self._connections[topic] = self._writer.add_connection(
                topic, type_name, typestore=self._store, offered_qos_profiles=latched_profile() if latched else []
            )
        self._writer.write(self._connections[topic], time_ns, self._store.serialize_cdr(message, type_name))

    def _changed(self, raw: RawMessage, message, static: list[str]) -> tuple[int, str, str, object]:
        drive, time_ns = self._drive, raw.time_ns
        if raw.topic == drive.camera_info_topic:
            header = self._later(message.header)
            if drive.kind == "calibration":
                message = replace(message, k=self._stretched(message.k, 3), p=self._stretched(message.p, 4))
            return time_ns + self._offset_ns, raw.topic, raw.type_name, replace(message, header=header)
        if self._odometry is not None and raw.topic == drive.odometry_topic:
            message = replace(message, pose=replace(message.pose, pose=self._pose(message_stamp(message), message.pose.pose)))
        elif self._odometry is not None and hasattr(message, "transforms") and raw.topic not in static:
            message = replace(message, transforms=[self._transform(t) for t in message.transforms])
        return time_ns, raw.topic, raw.type_name, message

    def _images(self, frames: Iterator[CameraFrame]) -> Iterator[tuple[int, str, str, object]]:
        drive, types = self._drive, self._store.types
        for frame in frames:
            stamp = types["builtin_interfaces/msg/Time"](frame.stamp_ns // 10**9, frame.stamp_ns % 10**9)
            header = types["std_msgs/msg/Header"](stamp, drive.camera_frame)
            if drive.image_compressed:
                image = frame.image if frame.image.ndim == 2 else frame.image[..., ::-1]
                data = cv2.imencode(".png", image)[1].ravel()
                yield frame.stamp_ns, drive.image_topic, COMPRESSED, types[COMPRESSED](header, "png", data)
            else:
                height, width = frame.image.shape[:2]
                data = np.ascontiguousarray(frame.image).reshape(-1)
                encoding = "mono8" if frame.image.ndim == 2 else "rgb8"
                yield (
                    frame.stamp_ns,
                    drive.image_topic,
                    IMAGE,
                    types[IMAGE](header, height, width, encoding, 0, data.size // height, data),
                )

    def _later(self, header):
        stamp_ns = header.stamp.sec * 10**9 + header.stamp.nanosec + self._offset_ns
        return replace(header, stamp=replace(header.stamp, sec=stamp_ns // 10**9, nanosec=stamp_ns % 10**9))

    def _stretched(self, matrix: np.ndarray, columns: int) -> np.ndarray:
        """A row-major matrix with its two focal lengths wrong, as `DegradedBag.camera` makes them."""
        matrix = np.array(matrix, float)
        matrix[[0, columns + 1]] *= 1 + self._drive.severity / 100
        return matrix

    def _noisy(self, stamp_ns: int) -> torch.Tensor | None:
        poses, known = self._odometry.at(np.array([stamp_ns]), TRUTH_GAP_NS)
        return poses[0] if known[0] else None

    def _pose(self, stamp_ns: int, pose):
        noisy = self._noisy(stamp_ns)
        if noisy is None:
            return pose
        return replace(pose, position=_set_vector(pose.position, noisy), orientation=_set_quaternion(pose.orientation, noisy))

    def _transform(self, transform):
        """odom → base with the noise of the odometry; any other as it is."""
        drive = self._drive
        names = frame_name(transform.header.frame_id), frame_name(transform.child_frame_id)
        noisy = self._noisy(message_stamp(transform)) if names == (drive.odom_frame, drive.base_frame) else None
        if noisy is None:
            return transform
        inner = transform.transform
        return replace(
            transform,
            transform=replace(
                inner, translation=_set_vector(inner.translation, noisy), rotation=_set_quaternion(inner.rotation, noisy)
            ),
        )


def _set_vector(vector, pose: torch.Tensor):
    x, y, z = pose[:3, 3].tolist()
    return replace(vector, x=x, y=y, z=z)


def _set_quaternion(quaternion, pose: torch.Tensor):
    x, y, z, w = se3.quaternion_from_rotation(pose[:3, :3]).tolist()
    return replace(quaternion, x=x, y=y, z=z, w=w)
