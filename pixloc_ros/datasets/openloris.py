# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""OpenLORIS-Scene (Shi et al., ICRA 2020): a wheeled robot in the same places again and again.

As packages, a folder per recording (`office1-1`): `color.txt`, `aligned_depth.txt` (`stamp file`; depth in the colour camera's
pixels, millimetres), `groundtruth.txt` (`stamp px py pz qx qy qz qw`, base_link in a world that all recordings of a scene share),
`odom.txt` (`stamp`, position, quaternion x y z w, linear and angular velocity), `sensors.yaml` and `trans_matrix.yaml` in
OpenCV's format; intrinsics are in the order fx cx fy cy, matrices are parent_from_child.

As rosbags (`office1-1.bag`): /d400/color/image_raw and camera_info, /d400/aligned_depth_to_color/image_raw, /odom, /gt (a
TFMessage with base_link's pose), /tf_static from base_link to d400_color.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import torch

from ..errors import InputError
from ..geometry import se3
from ..geometry.cameras import Camera
from ..io.bags import BagOptions, BagReader
from ..io.depth import decode_depth, move_depth, with_depth
from ..io.frames import CameraFrame, Odometry
from ..io.messages import IMAGE, image_of, matrix, message_stamp
from ..io.text import read_text
from ..io.trajectory import Trajectory, read_stamped_list, read_tum, twist_of_poses
from ..io.transforms import TransformTree
from ..io.tum import read_stamped_files
from . import recording
from .odometry import with_covariances
from .recording import Picture, Pictures, Recording

DEPTH_SCALE = 1000.0
_FILES = ("color.txt", "aligned_depth.txt", "groundtruth.txt", "odom.txt", "sensors.yaml", "trans_matrix.yaml")
_CAMERA = "d400_color_optical_frame"
_IMAGES, _DEPTH, _ODOMETRY, _TRUTH = ("/d400/color/image_raw", "/d400/aligned_depth_to_color/image_raw", "/odom", "/gt")


def read_openloris_sequence(path: Path) -> Recording:
    """A recording, from its folder or its .bag; its base is base_link. Raises InputError where something is missing or
    malformed."""
    path = Path(path)
    return _from_bag(path) if path.is_file() else _from_folder(path)


# ---- folders


def _from_folder(folder: Path) -> Recording:
    folder = recording.need_folder(folder, "a recording of OpenLORIS-Scene: a folder like office1-1, or its .bag")
    camera = _camera(folder / "sensors.yaml")
    base_from_camera = _mount(folder / "trans_matrix.yaml")
    truth = read_tum(folder / "groundtruth.txt", more=True)
    lists = tuple(folder / name for name in _FILES)
    images, depths = (read_stamped_files(path) if path.is_file() or path is lists[0] else {} for path in lists[:2])
    depth = recording.aligned_depth_files(images, depths, truth, base_from_camera, camera, DEPTH_SCALE)
    pictures = recording.picture_files(folder.name, images, depth)
    odometry = _odometry(folder / "odom.txt")
    return Recording(folder.resolve().name, camera, pictures, truth, base_from_camera, odometry, lists)


def _odometry(path: Path) -> Odometry:
    stamps, rest = read_stamped_list(path)
    odometry = read_tum(path, more=True)
    rows = [row.replace(",", " ").split() for row in rest]
    try:
        twist = np.array([[float(word) for word in row[7:13]] for row in rows]).reshape(-1, 6)
    except ValueError:
        twist = np.full((len(rows), 6), np.nan)
    if not np.isfinite(twist).all():
        raise InputError(f"{path} must hold a stamp, a pose of 7 and a velocity of 6 numbers in every line: copy the file again")
    last = np.concatenate((np.diff(stamps) > 0, [True]))  # of several with one stamp, as of the poses
    return with_covariances(odometry.stamps_ns, odometry.map_from_body, twist[last])


def _camera(path: Path) -> Camera:
    file = _opencv_file(path)
    node = file.getNode(_CAMERA)
    intrinsics, distortion = (_matrix(node, name) for name in ("intrinsics", "distortion_coefficients"))
    width, height = (0 if node.empty() else int(node.getNode(name).real()) for name in ("width", "height"))
    model = "" if node.empty() else node.getNode("distortion_model").string()
    if intrinsics is None or intrinsics.size != 4 or not width or not height:
        raise InputError(f"{path} has no {_CAMERA} with width, height and 4 intrinsics: use the recording's own sensors.yaml")
    fx, cx, fy, cy = intrinsics.ravel().tolist()
    numbers = [] if distortion is None else distortion.ravel().tolist()
    if any(numbers) and model not in ("", "radial-tangential"):
        raise InputError(f"{path}: distortion model {model} of {_CAMERA} is not known: undistort the images")
    return Camera.from_camera_info("plumb_bob" if any(numbers) else "", width, height, [fx, 0, cx, 0, fy, cy, 0, 0, 1], numbers)


def _mount(path: Path) -> torch.Tensor:
    """base_from_camera, along the transforms of the file."""
    file = _opencv_file(path)  # nodes are gone with it
    rows, edges = file.getNode("trans_matrix"), []
    for row in (rows.at(k) for k in range(rows.size() if rows.isSeq() else 0)):
        parent, child = row.getNode("parent_frame").string(), row.getNode("child_frame").string()
        values = _matrix(row, "matrix")
        numbers = np.zeros(0) if values is None else values.ravel()
        edges.append((parent, child, recording.rigid(numbers, f"{path}: {parent} to {child}")))
    mount = TransformTree(edges).static("base_link", _CAMERA)
    if mount is None:
        raise InputError(f"{path} has no way from base_link to {_CAMERA}: use the recording's own trans_matrix.yaml")
    return mount


def _opencv_file(path: Path) -> cv2.FileStorage:
    remedy = "OpenLORIS-Scene's recordings have it"
    try:
        return cv2.FileStorage(read_text(path, remedy), cv2.FILE_STORAGE_MEMORY | cv2.FILE_STORAGE_FORMAT_YAML)
    except cv2.error:
        raise InputError(f"{path} is not an OpenCV YAML file: {remedy}") from None


def _matrix(node: cv2.FileNode, name: str) -> np.ndarray | None:
    child = None if node.empty() else node.getNode(name)
    try:
        return None if child is None or child.empty() else child.mat()
    except cv2.error:
        return None


# ---- bags


def _from_bag(path: Path) -> Recording:
    options = BagOptions(_IMAGES, "/d400/color/camera_info", "none", "none", base_frame="base_link")
    with BagReader(path, options) as bag:
        camera, base_from_camera = _recorded_camera(bag), bag.base_from_camera
        poses = {message_stamp(t): matrix(t.transform) for _, m in bag.messages([_TRUTH]) for t in m.transforms}
        odometry = _recorded_odometry(bag)
        stamps, left_out = set(), Counter()
        for _, message in bag.messages([_IMAGES]):
            try:
                image_of(message)
                stamps.add(message_stamp(message))
            except InputError as error:
                left_out[str(error)] += 1
        left_out.update(bag.notes)
        topics = [_IMAGES] + ([_DEPTH] if _DEPTH in bag.topics_of_type(IMAGE) else [])
    if not poses:
        raise InputError(f"{path} has no poses on {_TRUTH}: it is no bag of OpenLORIS-Scene")
    truth = Trajectory.from_poses(poses.items())

    def frames(bag: BagReader, wanted: Callable[[int], bool]) -> Iterator[CameraFrame | tuple[int, object]]:
        for topic, message in bag.messages(topics):
            stamp = message_stamp(message)
            if topic == _DEPTH:
                yield stamp, message
            elif stamp in stamps and wanted(stamp):
                yield CameraFrame(stamp, image_of(message), camera)

    def read(wanted: Callable[[int], bool]) -> Iterator[Picture]:
        with BagReader(path, options) as bag:
            for frame, depth in with_depth(frames(bag, wanted)):
                load = None if depth is None else partial(depth_at, frame.stamp_ns, *depth)
                yield Picture(frame.stamp_ns, recording.encode_png(frame.image), load)

    def depth_at(stamp_ns: int, depth_stamp_ns: int, message: object) -> np.ndarray:
        (now, then), known = truth.at(np.array([stamp_ns, depth_stamp_ns], np.int64), recording.MAX_POSE_GAP_NS)
        metres = decode_depth(message)
        if not known.all():
            return np.zeros_like(metres)
        return move_depth(metres, se3.inverse(now @ base_from_camera) @ then @ base_from_camera, camera)

    pictures = Pictures(np.array(sorted(stamps), np.int64), "png", read, _DEPTH in topics, left_out)
    return Recording(path.stem, camera, pictures, truth, base_from_camera, odometry, (path,))


def _recorded_camera(bag: BagReader) -> Camera:
    """The RealSense recorder writes its own names of distortion models, with coefficients that are zero."""
    info = next(message for _, message in bag.messages([bag.camera_info_topic]))
    k, d = (np.asarray(getattr(info, name.upper(), getattr(info, name, ())), float).tolist() for name in ("k", "d"))
    model = info.distortion_model if any(d) else ""
    return Camera.from_camera_info(model, info.width, info.height, k, d)


def _recorded_odometry(bag: BagReader) -> Odometry:
    """With its covariances as recorded; of base_link, whatever its messages call it. Velocities that are all zero are taken from
    the poses."""
    rows = {message_stamp(message): message for _, message in bag.messages([_ODOMETRY])}
    if not rows:
        raise InputError(f"{bag.path} has no odometry on {_ODOMETRY}: it is no bag of OpenLORIS-Scene")
    messages = [rows[stamp] for stamp in sorted(rows)]
    velocities = [message.twist.twist for message in messages]
    twist = np.array([[v.linear.x, v.linear.y, v.linear.z, v.angular.x, v.angular.y, v.angular.z] for v in velocities])
    pose_covariance, twist_covariance = (
        np.array([np.asarray(getattr(message, part).covariance, float).reshape(6, 6) for message in messages])
        for part in ("pose", "twist")
    )
    stamps, poses = np.array(sorted(rows), np.int64), torch.stack([matrix(message.pose.pose) for message in messages])
    if not twist.any():
        twist = twist_of_poses(stamps, poses)
    return Odometry(stamps, poses, pose_covariance, twist, twist_covariance)
