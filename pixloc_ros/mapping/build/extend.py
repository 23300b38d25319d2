# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""Maps that grow: keyframes of a later drive where the look has changed or the map has none, points long unseen retired, and the
whole bounded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from scipy.spatial import cKDTree

from ...errors import InputError
from ...features import Extractor
from ...geometry import se3
from ...io.work_folder import WorkFolder
from ..map_file import Map, decode_descriptors, keyframe_of_observations
from .building import BuildReport, PosedImages, Progress, build_map
from .care import merge, subset, with_int8
from .given_poses import RefineOptions
from .observations import project
from .posed_frames import FrameSource, PosedMapOptions, points_of_posed_frames
from .triangulation import should_see

_NEAR_TURN_RAD = float(np.radians(15.0))
_ALIKE = 0.8  # cosine of coarse descriptors of one thing
_TWICE = 2
_ODOMETRY_SHARE, _TURN_SHARE = 0.15, 0.1  # of the way; radians for each depth of the scene on the way: wheels slip
_NEAR_SHARE, _NEAR_ANGLE = 0.02, 0.03  # of the scene's depth; radians
_TRACKED_STD = 0.01, float(np.radians(0.5))
"""Of poses between sure ones: share of the scene's depth, and radians."""


@dataclass(frozen=True)
class ExtendOptions:
    """What is added, and what goes.

    Attributes:
        agreement: A frame becomes a keyframe where fewer of the visible points than this share agree with it.
        distance: Or where no keyframe of about its direction is nearer than this share of the scene's depth.
        retire: A point goes where so many new keyframes should see it and none shows it; 0: none goes.
        keyframes: At most so many are left in the map; None: any number.
        bytes: The map's file has at most so many; None: any number.
    """

    agreement: float = 0.85
    distance: float = 0.2
    retire: int = 5
    keyframes: int | None = None
    bytes: int | None = None

    def __post_init__(self) -> None:
        if not (0 <= self.agreement <= 1 and self.distance > 0 and self.retire >= 0):
            raise InputError("extend: agreement between 0 and 1, distance above 0, retire not negative")
        if (self.keyframes is not None and self.keyframes < 2) or (self.bytes is not None and self.bytes < 1):
            raise InputError("extend: the budget must leave two keyframes")


@dataclass(frozen=True, eq=False)
class TrackedFrame:
    """A frame of the drive that has a pose.

    Attributes:
        stamp_ns: Of the image.
        map_from_camera: float64 [4, 4].
        agreement: Share of the visible points that agree.
        sure: Whether the pose is.
        odom_from_camera: float64 [4, 4]; None where there is no odometry.
    """

    stamp_ns: int
    map_from_camera: torch.Tensor
    agreement: float
    sure: bool = True
    odom_from_camera: torch.Tensor | None = None


@dataclass(frozen=True)
class Choice:
    """Frames to make keyframes of.

    Attributes:
        changed: Stamps of those where the look has changed.
        unseen: Stamps of those where the map has no keyframe.
    """

    changed: frozenset[int]
    unseen: frozenset[int]

    @property
    def stamps(self) -> frozenset[int]:
        return self.changed | self.unseen


def believed(map_: Map, frames: Sequence[TrackedFrame]) -> list[TrackedFrame]:
    """Those whose pose is sure, and those between two of them where odometry, tied to both, says the same.

    Where most has changed, few points agree and no frame is sure for long; but what a tracker has lost or taken for another place
    does not end where the wheels say.

    Args:
        map_: That they are tracked in.
        frames: In the order of time.
    """
    depth = float(np.median(map_.keyframe_depth))
    sure = [k for k, frame in enumerate(frames) if frame.sure]
    result = []
    for first, last in zip(sure, [*sure[1:], len(frames)]):
        result.append(frames[first])
        between = [] if last == len(frames) else frames[first + 1 : last]
        if between and all(frame.odom_from_camera is not None for frame in frames[first : last + 1]):
            result += _as_odometry_says(frames[first], between, frames[last], depth)
    return result


def _as_odometry_says(
    first: TrackedFrame, between: Sequence[TrackedFrame], last: TrackedFrame, depth: float
) -> Sequence[TrackedFrame]:
    """All frames between two that are sure, or none."""
    poses = torch.stack([frame.map_from_camera for frame in (first, *between, last)])
    odometry = torch.stack([frame.odom_from_camera for frame in (first, *between, last)])
    steps = np.linalg.norm(np.diff(odometry[:, :3, 3].numpy(), axis=0), axis=1)
    way = np.concatenate(([0.0], np.cumsum(steps)))
    for anchor, far in ((0, way), (-1, way[-1] - way)):
        said = poses[anchor] @ se3.inverse(odometry[anchor]) @ odometry
        distance, angle = (values.numpy() for values in se3.pose_difference(said, poses))
        if (distance > _ODOMETRY_SHARE * far + _NEAR_SHARE * depth).any() or (
            angle > _NEAR_ANGLE + _TURN_SHARE * far / depth
        ).any():
            return ()
    return between


def choose_frames(map_: Map, frames: Sequence[TrackedFrame], options: ExtendOptions) -> Choice:
    """Frames that the map should have."""
    changed = frozenset(frame.stamp_ns for frame in frames if frame.agreement < options.agreement)
    centres, axes = map_.map_from_keyframe[:, :3, 3].numpy(), map_.map_from_keyframe[:, :3, 2].numpy()
    reach = options.distance * float(np.median(map_.keyframe_depth))
    tree, unseen = cKDTree(centres), set()
    for frame in frames:
        pose = frame.map_from_camera.numpy()
        near = tree.query_ball_point(pose[:3, 3], reach)
        if not near or (axes[near] @ pose[:3, 2]).max() < np.cos(_NEAR_TURN_RAD):
            unseen.add(frame.stamp_ns)
    return Choice(changed, frozenset(unseen))


def with_old_points(source: PosedImages, old: Map) -> PosedImages:
    """New keyframes that also observe the old map's points that they should see, behind their own ones."""
    keyframe, old_xyz = keyframe_of_observations(old), np.array(old.xyz)  # the map's own is read-only
    first = np.full(len(old.xyz), len(old.keyframe_names))
    np.minimum.at(first, old.observation_point, keyframe)
    homes = old.map_from_keyframe[torch.from_numpy(first), :3, 3].numpy()
    image, point = [source.observation_image], [source.observation_point]
    for k, (camera, pose) in enumerate(zip(source.cameras, source.map_from_camera)):
        seen = np.flatnonzero(should_see(old_xyz, homes, camera, pose))
        seen = seen[_not_hidden(camera, pose, old_xyz[seen], source, k)]
        image.append(np.full(len(seen), k))
        point.append(len(source.xyz) + seen)
    observed = {"observation_image": np.concatenate(image), "observation_point": np.concatenate(point)}
    return replace(source, xyz=np.concatenate((source.xyz, old_xyz)), **observed)


def _not_hidden(camera, pose: torch.Tensor, xyz: np.ndarray, source: PosedImages, k: int) -> np.ndarray:
    """bool [n]: points that no new point of the image near them stands before."""
    mine = source.xyz[source.observation_point[source.observation_image == k]]
    if len(mine) < 3 or not len(xyz):
        return np.ones(len(xyz), bool)
    pixels, _, depth = project(camera, se3.inverse(pose), xyz)
    my_pixels, _, my_depth = project(camera, se3.inverse(pose), mine)
    _, nearest = cKDTree(my_pixels).query(pixels, k=3)
    return depth < 1.3 * my_depth[nearest].max(1)


def map_of_frames(
    old: Map,
    frames: FrameSource,
    extractor: Extractor,
    work: WorkFolder,
    options: PosedMapOptions,
    progress: Progress | None = None,
) -> tuple[Map, BuildReport]:
    """Map of frames in the old map's frame, with what they show of its points. Errors as of `build_map_from_posed_frames`."""
    posed = points_of_posed_frames(frames, work, options, old.name, progress)
    new, report = build_map(with_old_points(posed.source, old), extractor, old.working_side, progress, work)
    return new, replace(report, left_out=posed.left_out | report.left_out, notes=(*posed.notes, *report.notes))


def refining(old: Map) -> RefineOptions:
    """How well poses of frames are known that are not sure, in the old map."""
    share, angle = _TRACKED_STD
    return RefineOptions(share * float(np.median(old.keyframe_depth)), angle, mount=False)


@dataclass(frozen=True)
class Extension:
    """What became of the map.

    Attributes:
        map: The new one.
        added: Keyframes.
        observed: Old points that new keyframes show.
        retired: Old points that went, as new keyframes should show them and do not.
        dropped: Keyframes that went, as the budget leaves no room.
    """

    map: Map
    added: int
    observed: int
    retired: int
    dropped: int


def extend(old: Map, new: Map, names: tuple[str, str], options: ExtendOptions) -> Extension:
    """The old map with the new keyframes.

    An old point is the same in a new keyframe where its coarse descriptors look like those it has, or where new keyframes agree
    with each other on its look: light changes the look, but what moved or hides it agrees on nothing.

    Args:
        old: The map.
        new: Of keyframes of `with_old_points`; its points at the place of an old one are that point.
        names: Of both, as of `care.merge`.
        options: See there.

    Raises:
        InputError: As `care.merge`.
    """
    if old.version == "2" and new.version != "2":
        new = with_int8(new)
    number = _old_points_of(old, new)
    shown, expected = _shown(old, new, number)
    counts, should = (np.bincount(number[new.observation_point[rows]], minlength=len(old.xyz)) for rows in (shown, expected))
    gone = (should >= options.retire) & (counts == 0) & (options.retire > 0)
    keep = shown | (number < 0)[new.observation_point]
    old, new = subset(old, ~gone[old.observation_point]), subset(new, keep)
    number = _old_points_of(old, new)
    known = np.flatnonzero(number >= 0)
    merged, _ = merge([old, new], list(names), (known, number[known]))
    result = bounded(merged, options.keyframes, options.bytes)
    dropped = len(merged.keyframe_names) - len(result.keyframe_names)
    return Extension(result, len(new.keyframe_names), int((counts > 0).sum()), int(gone.sum()), dropped)


def _old_points_of(old: Map, new: Map) -> np.ndarray:
    """int64 [P]: which old point each new one is, -1 where it is none."""
    distance, nearest = cKDTree(old.xyz).query(new.xyz)
    return np.where(distance == 0, nearest, -1)


def _shown(old: Map, new: Map, number: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """bool [M] twice, of the new map's observations: of old points that are there; of old points."""
    of_old = (number >= 0)[new.observation_point]
    level = 0
    descriptors = decode_descriptors(new.descriptors[level])
    known = np.zeros((len(old.xyz), descriptors.shape[1]))
    np.add.at(known, old.observation_point, decode_descriptors(old.descriptors[level]))
    known /= np.maximum(np.linalg.norm(known, axis=1, keepdims=True), 1e-6)
    rows = np.flatnonzero(of_old)
    point = number[new.observation_point[rows]]
    same = (descriptors[rows] * known[point]).sum(1) > _ALIKE
    total = np.zeros((len(old.xyz), descriptors.shape[1]))
    np.add.at(total, point, descriptors[rows])
    times = np.bincount(point, minlength=len(old.xyz))
    others = (total[point] - descriptors[rows]) / np.maximum(times[point] - 1, 1)[:, None]
    agree = (others * descriptors[rows]).sum(1) > _ALIKE
    shown = np.zeros(len(of_old), bool)
    shown[rows] = same | (agree & (times[point] >= _TWICE))
    return shown, of_old


def bounded(map_: Map, keyframes: int | None, most_bytes: int | None) -> Map:
    """The map with fewer keyframes: of those that show nearly the same, in the same light, the older one goes."""
    count = len(map_.keyframe_names)
    most = count if keyframes is None else min(count, keyframes)
    if most_bytes is not None:
        most = min(most, max(2, int(count * most_bytes / size_in_bytes(map_))))
    order, result = _least_missed(map_), map_
    while most < count or result is map_:
        stays = np.zeros(count, bool)
        stays[order[count - most :]] = True
        result = subset(map_, stays[keyframe_of_observations(map_)]) if most < count else map_
        if most_bytes is None or size_in_bytes(result) <= most_bytes:
            return result
        if most <= 2:
            raise InputError(f"the budget of {most_bytes} bytes does not hold two keyframes: give more")
        most = max(2, int(0.95 * most))
    return result


def size_in_bytes(map_: Map) -> int:
    """About that of the map's file."""
    arrays = (map_.xyz, map_.track_length, map_.quality, map_.observation_point, map_.global_descriptors)
    more = [level for level in (*map_.descriptors, *map_.confidences) if level is not None]
    return sum(array.nbytes for array in (*arrays, *more)) + 400 * len(map_.keyframe_names)


def _least_missed(map_: Map) -> np.ndarray:
    """Keyframes in the order in which they can go, int64 [K]."""
    count = len(map_.keyframe_names)
    described = map_.global_descriptors.astype(np.float32)
    centres, axes = map_.map_from_keyframe[:, :3, 3].numpy(), map_.map_from_keyframe[:, :3, 2].numpy()
    depth = float(np.median(map_.keyframe_depth))
    neighbours = cKDTree(np.concatenate((centres, depth * axes), 1)).query(
        np.concatenate((centres, depth * axes), 1), k=min(count, 16)
    )
    distance, near = (np.asarray(values).reshape(count, -1) for values in neighbours)
    likeness = np.einsum("kc,knc->kn", described, described[near]) - (distance / depth) ** 2
    likeness[near == np.arange(count)[:, None]] = -np.inf
    left, order = np.ones(count, bool), []
    for _ in range(count):
        alive = np.where(left[near], likeness, -np.inf).max(1)
        alive[~left] = -np.inf
        most = alive.max()
        rivals = np.flatnonzero(left & (alive >= most - 1e-6))
        oldest = rivals[np.argmin(map_.keyframe_stamp_ns[rivals])]
        left[oldest] = False
        order.append(int(oldest))
    return np.array(order)
