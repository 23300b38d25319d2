# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""The transforms of a recording: which way leads from one frame to another, and what it says at given times."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import torch

from ..geometry import se3
from .trajectory import Trajectory

Link = torch.Tensor | tuple[Trajectory, bool]
"""a_from_b float64 [4, 4], or how it moves and whether that is b_from_a."""


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
