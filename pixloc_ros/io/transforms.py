# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""The transforms of a recording: which way leads from one frame to another, and what it says at given times."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import torch

from ..errors import InputError
from ..geometry import se3
from .trajectory import Trajectory

Link = torch.Tensor | tuple[Trajectory, bool]
"""a_from_b float64 [4, 4], or how it moves and whether that is b_from_a."""
_STILL_M, _STILL_RAD = 1e-3, 1e-3
"""A transform that is published again and again is static where it changes less."""


class TransformChain:
    """a_from_b along static and moving transforms.

    Attributes:
        stamps_ns: Stamps of the moving transform with the most of them, int64 [N]; empty where none moves.
    """

    def __init__(self, links: Sequence[Link]) -> None:
        self._links: list[Link] = []
        for link in links:
            if self._links and all(isinstance(one, torch.Tensor) for one in (link, self._links[-1])):
                link = self._links.pop() @ link
            self._links.append(link)
        moving = [link[0].stamps_ns for link in self._links if not isinstance(link, torch.Tensor)]
        self.stamps_ns = max(moving, key=len, default=np.empty(0, np.int64))

    def at(self, stamps_ns: np.ndarray, max_gap_ns: int) -> tuple[torch.Tensor, np.ndarray]:
        """Poses at int64 stamps [M], interpolated as `Trajectory.at` does → (float64 [M, 4, 4], bool [M] whether known)."""
        poses = torch.eye(4, dtype=torch.float64).repeat(len(stamps_ns), 1, 1)
        known = np.ones(len(stamps_ns), bool)
        for link in self._links:
            if not isinstance(link, torch.Tensor):
                track, backwards = link
                link, there = track.at(stamps_ns, max_gap_ns)
                link = se3.inverse(link) if backwards else link
                known &= there
            poses = poses @ link
        return poses, known


class TransformTree:
    """Frames and what leads from one to the next, in both directions.

    Args:
        static: (parent, child, parent_from_child float64 [4, 4]).
        moving: parent_from_child over time, by (parent, child); goes before a static one.
    """

    def __init__(
        self, static: Iterable[tuple[str, str, torch.Tensor]], moving: Mapping[tuple[str, str], Trajectory] | None = None
    ) -> None:
        self._links: dict[str, dict[str, Link]] = {}
        for parent, child, pose in static:
            self._links.setdefault(parent, {})[child] = pose
            self._links.setdefault(child, {})[parent] = se3.inverse(pose)
        for (parent, child), track in (moving or {}).items():
            self._links.setdefault(parent, {})[child] = track, False
            self._links.setdefault(child, {})[parent] = track, True

    def __contains__(self, frame: str) -> bool:
        return frame in self._links

    @property
    def frames(self) -> list[str]:
        """Names of all frames, sorted."""
        return sorted(self._links)

    def chain(self, parent: str, child: str) -> TransformChain | None:
        """The way with the fewest transforms; None where there is none."""
        came_from, queue = {parent: parent}, deque([parent])
        while queue and child not in came_from:
            frame = queue.popleft()
            for other in self._links.get(frame, ()):
                if other not in came_from:
                    came_from[other] = frame
                    queue.append(other)
        if child not in came_from:
            return None
        way = [child]
        while way[-1] != parent:
            way.append(came_from[way[-1]])
        return TransformChain([self._links[a][b] for a, b in zip(way[:0:-1], way[-2::-1])])

    def static(self, parent: str, child: str) -> torch.Tensor | None:
        """parent_from_child float64 [4, 4] where the way is static; None where there is none."""
        chain = self.chain(parent, child)
        return None if chain is None or len(chain.stamps_ns) else chain.at(np.zeros(1, np.int64), 0)[0][0]


class RecordedTransforms:
    """The static and moving transforms of a recording.

    Args:
        path: Of the recording, for errors.
        static: Gives ((parent, child), stamp_ns, parent_from_child float64 [4, 4]) as on /tf_static.
        moving: Likewise, as on /tf; called where it must be.

    Attributes:
        notes: What is left out, for people.
    """

    def __init__(self, path: Path, static: Callable[[], Iterable], moving: Callable[[], Iterable]) -> None:
        self._path, self._read_moving, self.notes = path, moving, []
        edges: dict[tuple[str, str], torch.Tensor] = {}
        for edge, _, pose in static():
            try:
                se3.check_pose(pose, "it")
            except InputError:
                self.notes.append(f"the static transform {edge[0]} -> {edge[1]} is no pose: it is left out")
                continue
            if edge in edges and not _is_still(torch.stack((edges[edge], pose))):
                self.notes.append(f"the static transform {edge[0]} -> {edge[1]} has several values: the last one counts")
            edges[edge] = pose
        self._edges = [(*edge, pose) for edge, pose in edges.items()]
        self._static = TransformTree(self._edges)

    def __contains__(self, frame: str) -> bool:
        """Whether it is a frame of the robot, fixed to others."""
        return frame in self._static or frame in self._fixed

    @cached_property
    def _moving(self) -> dict[tuple[str, str], Trajectory]:
        moving: dict[tuple[str, str], list[tuple[int, torch.Tensor]]] = {}
        for edge, stamp_ns, pose in self._read_moving():
            moving.setdefault(edge, []).append((stamp_ns, pose))
        tracks = {edge: Trajectory.from_poses(poses) for edge, poses in moving.items()}
        for edge, track in tracks.items():
            if track.missing:
                self.notes.append(f"the transform {' -> '.join(edge)} on /tf is no pose {track.missing} times: left out")
        return {edge: track for edge, track in tracks.items() if len(track)}

    @cached_property
    def _fixed(self) -> TransformTree:
        """The static transforms, and those on /tf that do not change."""
        still = []
        for edge, track in self._moving.items():
            if _is_still(track.map_from_body):
                still.append((*edge, track.map_from_body[0]))
        return TransformTree([*still, *self._edges])

    def static(self, parent: str, child: str) -> torch.Tensor:
        """parent_from_child, float64 [4, 4], along transforms that do not change, upwards and downwards. Raises InputError where
        none leads there."""
        pose = self._static.static(parent, child)
        pose = self._fixed.static(parent, child) if pose is None else pose
        if pose is not None:
            return pose
        if TransformTree(self._edges, self._moving).chain(parent, child) is not None:
            raise InputError(
                f"the transform from {parent} to {child} changes on /tf in {self._path}: the camera must be fixed to the robot; "
                "give --base-from-camera if it is"
            )
        moving = sorted({frame for edge in self._moving for frame in edge})
        static, moving = (", ".join(frames) or "none at all" for frames in (self._static.frames, moving))
        raise InputError(
            f"no static transform from {parent} to {child or 'an unnamed frame'} in {self._path} (frames on /tf_static: "
            f"{static}; on /tf: {moving}): give --base-from-camera, or the right --base-frame"
            + "".join(f"; {note}" for note in self.notes)
        )

    def chain(self, parent: str, child: str) -> TransformChain:
        """parent_from_child along moving and static transforms. Raises `InputError` where none leads there."""
        chain = TransformTree(self._edges, self._moving).chain(parent, child)
        if chain is None:
            frames = ", ".join(sorted({frame for edge in self._moving for frame in edge})) or "none"
            raise InputError(f"no transforms lead from {parent} to {child} in {self._path}: its frames on /tf are {frames}")
        return chain


def _is_still(poses: torch.Tensor) -> bool:
    """Whether poses [N, 4, 4] are one, nearly."""
    metres, radians = se3.pose_difference(poses, poses[:1])
    return float(metres.max()) <= _STILL_M and float(radians.max()) <= _STILL_RAD
