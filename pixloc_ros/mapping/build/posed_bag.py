# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""The images of a bag with the camera's pose, for maps and training.

The pose comes from a topic (PoseStamped, PoseWithCovarianceStamped, Odometry, TransformStamped, Path, or PoseArray of one pose)
with the static transforms from its body to the camera, or from TF alone. It is interpolated to the image's stamp.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from ...errors import InputError
from ...features import Extractor
from ...geometry import se3
from ...io import messages
from ...io.bags import BagOptions, BagReader
from ...io.depth import decode_depth, move_depth, with_depth
from ...io.frames import CameraFrame, UnusableFrame
from ...io.rig_images import open_bag
from ...io.trajectory import Trajectory
from ...io.transforms import TransformChain
from ...io.tum import SAME_INSTANT_NS
from ...io.work_folder import WorkFolder
from ..map_file import Map
from .building import Progress
from .keyframes import PosedFrame
from .posed_frames import PosedMapOptions, PosedMapReport, build_map_from_posed_frames

PATH, POSE_ARRAY = "nav_msgs/msg/Path", "geometry_msgs/msg/PoseArray"
_IN_THE_MAP = (messages.POSE, messages.POSE_COVARIANCE, messages.TRANSFORM, PATH, POSE_ARRAY)


@dataclass(frozen=True)
class PosedBagOptions:
    """What cannot be guessed; None is detected.

    Attributes:
        image: Topic.
        camera_info: Topic.
        poses: Topic, or "tf".
        map_frame: Of TF, where the poses are from there.
        body_frame: The frame whose pose the topic gives, where its messages do not name it.
        body_from_camera: float64 [4, 4], instead of the static transforms.
        depth: Topic, or "none".
        depth_scale: Units of the depth images per metre, instead of 1000 of integers and 1 of floats.
        every: Use each N-th image only, from the first on.
        max_gap_ns: Poses are interpolated between neighbours no further apart.
        recording_time: As of `BagOptions`.
        camera: Namespace of the topics, where there are several cameras; there is no depth then.
    """

    image: str | None = None
    camera_info: str | None = None
    poses: str | None = None
    map_frame: str = "map"
    body_frame: str | None = None
    body_from_camera: torch.Tensor | None = None
    depth: str | None = None
    depth_scale: float | None = None
    every: int = 1
    max_gap_ns: int = 250_000_000
    recording_time: bool = False
    camera: str | None = None

    def __post_init__(self) -> None:
        if self.every < 1 or self.max_gap_ns <= 0 or not (self.depth_scale is None or 0 < self.depth_scale < np.inf):
            raise InputError("every, the longest gap between poses and the depth scale must be above 0")


class PosedBag:
    """The frames of an open bag with their poses; use it in a `with` statement.

    Attributes:
        pose_source: Where the poses come from, for people.
        depth_topic: Or None.

    Raises:
        InputError: The bag, its poses or the way from body to camera cannot be used.
    """

    def __init__(self, path: Path, options: PosedBagOptions = PosedBagOptions()) -> None:
        self.options = options
        self._broken_poses: list[int] = []
        self.bag = _open(path, options)
        try:
            self.depth_topic = self._find_depth()
            self._chain, self.pose_source = self._find_poses()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> PosedBag:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self.bag.close()

    # ---- frames

    def __call__(self, wanted: Callable[[int], bool] = lambda stamp_ns: True) -> Iterator[PosedFrame | UnusableFrame]:
        """The frames whose stamps are wanted, in the order of time; images that are not are not decoded."""
        count = -1
        unposed = [UnusableFrame(stamp_ns, "the pose is not a number") for stamp_ns in self._broken_poses]

        def usable(stamp_ns: int) -> bool:
            nonlocal count
            count += 1
            if count % self.options.every or not wanted(stamp_ns):
                return False
            if not self.map_from_camera(np.array([stamp_ns]))[1][0]:
                unposed.append(UnusableFrame(stamp_ns, "no pose at the image's time"))
                return False
            return True

        frames = self.bag.frames(usable, self.depth_topic)
        for frame, depth in with_depth(frames) if self.depth_topic else ((frame, None) for frame in frames):
            yield from unposed
            unposed.clear()
            try:
                yield frame if isinstance(frame, UnusableFrame) else self._posed(frame, depth)
            except InputError as error:
                yield UnusableFrame(frame.stamp_ns, str(error))
        yield from unposed

    def map_from_camera(self, stamps_ns: np.ndarray) -> tuple[torch.Tensor, np.ndarray]:
        """Poses at int64 stamps [M] → (float64 [M, 4, 4], bool [M] whether known)."""
        return self._chain.at(stamps_ns, self.options.max_gap_ns)

    def _posed(self, frame: CameraFrame, depth: tuple[int, object] | None) -> PosedFrame:
        pose = self.map_from_camera(np.array([frame.stamp_ns]))[0][0]
        posed = PosedFrame(frame.stamp_ns, frame.image, frame.camera, pose, calibration=frame.calibration)
        if self.depth_topic is None:
            return posed
        if depth is None:
            raise InputError("no depth image within 20 ms")
        stamp_ns, message = depth
        metres = decode_depth(message, self.options.depth_scale)
        if metres.shape != (frame.camera.height, frame.camera.width):
            raise InputError(
                f"{self.depth_topic} is {metres.shape[1]}x{metres.shape[0]} but the images are "
                f"{frame.camera.width}x{frame.camera.height}: depth must be aligned with the images; give that "
                "topic, or --depth-topic none"
            )
        if abs(stamp_ns - frame.stamp_ns) > SAME_INSTANT_NS:
            then, known = self.map_from_camera(np.array([stamp_ns]))
            if known[0]:
                metres = move_depth(metres, se3.inverse(pose) @ then[0], frame.camera)
        return replace(posed, depth=metres)

    # ---- what is in the bag

    def _find_depth(self) -> str | None:
        asked, bag = self.options.depth, self.bag
        if asked == "none" or self.options.camera is not None:
            return None
        topics = bag.topics_of_type(messages.IMAGE, messages.COMPRESSED)
        if asked:
            if asked not in topics:
                raise InputError(f"no depth topic {asked} in {bag.path}: it has the image topics {', '.join(topics)}")
            return asked
        # Only depth in the camera's own pixels can be used without its calibration.
        aligned = [t for t in topics if "depth" in t.lower() and "aligned" in t.lower() and not t.endswith("camera_info")]
        raw = [t for t in aligned if not t.endswith("/compressedDepth")]
        found = raw or aligned
        if len(found) > 1:
            raise InputError(
                f"{bag.path} has {len(found)} topics with aligned depth ({', '.join(found)}): choose with --depth-topic"
            )
        return found[0] if found else None

    def _find_poses(self) -> tuple[TransformChain, str]:
        asked, bag = self.options.poses, self.bag
        known = bag.topics_of_type(*_IN_THE_MAP, messages.ODOMETRY)
        if asked not in (None, "tf"):
            if asked not in known:
                raise InputError(f"no poses on {asked} in {bag.path}: topics with poses are {', '.join(known) or 'none'}")
            return self._topic_chain(asked)
        candidates = [t for t in known if messages.is_truth_name(t)] or bag.topics_of_type(*_IN_THE_MAP)
        if asked is None and len(candidates) == 1:
            return self._topic_chain(candidates[0])
        if asked is None and candidates:
            raise InputError(
                f"{bag.path} has {len(candidates)} topics with poses ({', '.join(candidates)}): choose with --pose-topic"
            )
        try:
            return bag.transforms.chain(self.options.map_frame, bag.camera_frame), f"TF {self.options.map_frame} to camera"
        except InputError as error:
            if asked:
                raise
            odometry = bag.topics_of_type(messages.ODOMETRY)
            hint = f"; {', '.join(odometry)} would do if it does not drift: name it with --pose-topic" if odometry else ""
            raise InputError(f"nothing says where the camera was in the map: no topic with poses, and {error}{hint}") from None

    def _topic_chain(self, topic: str) -> tuple[TransformChain, str]:
        """map_from_body over time, then body_from_camera."""
        body, poses = self.options.body_frame, {}
        for _, message in self.bag.messages([topic]):
            body = body or messages.frame_name(getattr(message, "child_frame_id", ""))
            for stamp_ns, pose in _poses_of(message, topic):
                if bool(torch.isfinite(pose).all()):
                    poses[stamp_ns] = pose
                else:
                    self._broken_poses.append(stamp_ns)
        if not poses:
            raise InputError(f"no usable pose on {topic} in {self.bag.path}: choose another --pose-topic")
        mount = self.options.body_from_camera
        if mount is None:
            body = body or "base_link"
            try:
                mount = self.bag.transforms.static(body, self.bag.camera_frame)
            except InputError as error:
                raise InputError(f"{error}; --base-frame names the frame whose pose {topic} gives") from None
        return TransformChain([(Trajectory.from_poses(poses.items()), False), mount]), topic


def build_map_from_bag(
    bag: Path,
    extractor: Extractor,
    source: PosedBagOptions = PosedBagOptions(),
    options: PosedMapOptions | None = None,
    working_side: int | None = None,
    name: str = "drive",
    progress: Progress | None = None,
) -> tuple[Map, PosedMapReport]:
    """Map of the images of a bag whose poses are known.

    Args:
        bag: rosbag2 folder, .mcap or .db3 file, or ROS 1 .bag.
        extractor: The network.
        source: Topics, frames and mount that cannot be found in the bag.
        options: How keyframes and points are chosen; None for the usual way.
        working_side: Images are shrunk to this longer side; None for the network's own.
        name: Of the map.
        progress: Called with the work done, the whole work, and what it is.

    Raises:
        InputError: The bag cannot be used, or too few keyframes or points come out.
    """
    with tempfile.TemporaryDirectory() as folder, PosedBag(Path(bag), source) as frames:
        work = WorkFolder(Path(folder) / "work", {})
        how = (work, options or PosedMapOptions(), working_side, name, progress)
        map_, report = build_map_from_posed_frames(frames, extractor, *how)
        return map_, replace(report, notes=(*report.notes, *frames.bag.notes))


def has_poses(path: Path, options: PosedBagOptions = PosedBagOptions()) -> bool:
    """Whether a topic or TF of the bag says where the camera was in the map; also where there are several to choose from. Raises
    `InputError`: the bag cannot be used."""
    with _open(path, options) as reader:
        known = reader.topics_of_type(*_IN_THE_MAP, messages.ODOMETRY)
        if any(messages.is_truth_name(topic) for topic in known) or reader.topics_of_type(*_IN_THE_MAP):
            return True
        try:
            reader.transforms.chain(options.map_frame, reader.camera_frame)
        except InputError:
            return False
        return True


def _open(path: Path, options: PosedBagOptions) -> BagReader:
    """Without odometry, truth or mount."""
    bag = BagOptions(options.image, options.camera_info, "none", "none", recording_time=options.recording_time)
    bag = replace(bag, base_from_camera=torch.eye(4, dtype=torch.float64))
    return open_bag(path, bag, () if options.camera is None else (options.camera,))


def _poses_of(message, topic: str) -> Iterator[tuple[int, torch.Tensor]]:
    """(stamp_ns, pose [4, 4]) of a message of one of the types; NaN where its numbers make none."""
    if not hasattr(message, "poses"):
        yield messages.message_stamp(message), messages.matrix(messages.pose_of(message))
    elif hasattr(message.poses[0] if message.poses else None, "header"):  # Path; the last one counts where stamps repeat
        for stamped in message.poses:
            yield messages.message_stamp(stamped), messages.matrix(stamped.pose)
    elif len(message.poses) == 1:
        yield messages.message_stamp(message), messages.matrix(message.poses[0])
    elif message.poses:
        raise InputError(
            f"{topic} holds {len(message.poses)} poses under one stamp: which is the camera's? Give another --pose-topic"
        )


def bag_identity(path: Path) -> list:
    """What distinguishes a bag from another, or from itself recorded again, as JSON can hold it."""
    files = sorted(path.rglob("*")) if path.is_dir() else [path]
    return [[str(file.resolve()), file.stat().st_size, file.stat().st_mtime_ns] for file in files if file.is_file()]
