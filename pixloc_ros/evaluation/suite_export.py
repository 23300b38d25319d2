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
from ..io.frames import CameraFrame
from ..io.messages import COMPRESSED, IMAGE, RawMessage, frame_name, message_stamp
from .altered_bag import AlteredBag
from .runs import TRUTH_GAP_NS


def export_bag(path: Path, drive: AlteredBag) -> None:
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
    def __init__(self, writer, drive: AlteredBag) -> None:
        self._writer, self._drive = writer, drive
        self._store = get_typestore(Stores.ROS2_HUMBLE)
        self._connections: dict[str, object] = {}
        self._odometry = drive.odometry() if drive.change.odometry is not None else None
        self._offset_ns = drive.change.late_ns + drive.options.time_offset_ns

    def write(self) -> None:
        """Images come from the drive's events; everything else is copied in the order of recording, changed where it must be."""
        drive = self._drive
        moving, static = drive.transform_topics()
        topics = [drive.camera_info_topic, *moving, *static]
        topics += [t for t in (drive.odometry_topic, drive.truth_topic) if t and t != "tf" and not t.startswith("tf:")]
        images = self._images()
        upcoming = next(images, None)
        for raw in drive.raw_messages(dict.fromkeys(topics)):
            while upcoming is not None and upcoming[0] <= raw.time_ns:
                self._put(*upcoming)
                upcoming = next(images, None)
            self._put(*self._changed(raw, self._store.deserialize_cdr(raw.cdr, raw.type_name), static))
        while upcoming is not None:
            self._put(*upcoming)
            upcoming = next(images, None)

    def _put(self, time_ns: int, topic: str, type_name: str, message) -> None:
        if topic not in self._connections:
            profiles = latched_profile() if topic.strip("/").split("/")[-1] == "tf_static" else []
            self._connections[topic] = self._writer.add_connection(
                topic, type_name, typestore=self._store, offered_qos_profiles=profiles
            )
        self._writer.write(self._connections[topic], time_ns, self._store.serialize_cdr(message, type_name))

    def _changed(self, raw: RawMessage, message, static: list[str]) -> tuple[int, str, str, object]:
        drive, time_ns = self._drive, raw.time_ns
        if raw.topic == drive.camera_info_topic:
            time_ns += self._offset_ns
            stamp_ns = message.header.stamp.sec * 10**9 + message.header.stamp.nanosec + self._offset_ns
            stamp = replace(message.header.stamp, sec=stamp_ns // 10**9, nanosec=stamp_ns % 10**9)
            message = replace(message, header=replace(message.header, stamp=stamp))
            if drive.change.focal != 1.0:
                message = replace(message, k=self._stretched(message.k, 3), p=self._stretched(message.p, 4))
        elif self._odometry is not None and raw.topic == drive.odometry_topic:
            pose = self._moved(message.pose.pose, message_stamp(message), "position", "orientation")
            message = replace(message, pose=replace(message.pose, pose=pose))
        elif self._odometry is not None and hasattr(message, "transforms") and raw.topic not in static:
            message = replace(message, transforms=[self._transform(t) for t in message.transforms])
        return time_ns, raw.topic, raw.type_name, message

    def _images(self) -> Iterator[tuple[int, str, str, object]]:
        drive, types = self._drive, self._store.types
        for frame in drive.events():
            if not isinstance(frame, CameraFrame):
                continue
            stamp = types["builtin_interfaces/msg/Time"](frame.stamp_ns // 10**9, frame.stamp_ns % 10**9)
            header, grey = types["std_msgs/msg/Header"](stamp, drive.camera_frame), frame.image.ndim == 2
            if drive.image_compressed:
                data = cv2.imencode(".png", frame.image if grey else frame.image[..., ::-1])[1].ravel()
                message = types[COMPRESSED](header, "png", data)
            else:
                (height, width), data = frame.image.shape[:2], np.ascontiguousarray(frame.image).reshape(-1)
                message = types[IMAGE](header, height, width, "mono8" if grey else "rgb8", 0, data.size // height, data)
            yield frame.stamp_ns, drive.image_topic, COMPRESSED if drive.image_compressed else IMAGE, message

    def _stretched(self, matrix: np.ndarray, columns: int) -> np.ndarray:
        """A row-major matrix with its two focal lengths wrong, as `Change.camera` makes them."""
        matrix = np.array(matrix, float)
        matrix[[0, columns + 1]] *= self._drive.change.focal
        return matrix

    def _transform(self, transform):
        """odom → base with the change of the odometry; any other as it is."""
        names = frame_name(transform.header.frame_id), frame_name(transform.child_frame_id)
        if names != (self._drive.odom_frame, self._drive.base_frame):
            return transform
        return replace(transform, transform=self._moved(transform.transform, message_stamp(transform), "translation", "rotation"))

    def _moved(self, message, stamp_ns: int, translation: str, rotation: str):
        """A pose or transform that says what the drive's odometry says; as it is where that is not known."""
        poses, known = self._odometry.at(np.array([stamp_ns]), TRUTH_GAP_NS)
        if not known[0]:
            return message
        pose: torch.Tensor = poses[0]
        place = dict(zip("xyz", pose[:3, 3].tolist()))
        turn = dict(zip("xyzw", se3.quaternion_from_rotation(pose[:3, :3]).tolist()))
        return replace(
            message,
            **{
                translation: replace(getattr(message, translation), **place),
                rotation: replace(getattr(message, rotation), **turn),
            },
        )
