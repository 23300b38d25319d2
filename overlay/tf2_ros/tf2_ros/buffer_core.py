# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""The tree of frames over time."""

from __future__ import annotations

import bisect
import math
import threading
from collections.abc import Callable

from geometry_msgs.msg import TransformStamped
from rclpy.duration import Duration
from rclpy.time import Time

from .exceptions import (
    ConnectivityException,
    ExtrapolationException,
    InvalidArgumentException,
    LookupException,
    TransformException,
)
from .rigid import IDENTITY, Rigid, compose, interpolate, inverse

DEFAULT_CACHE_TIME = Duration(seconds=10)
MAX_DEPTH = 1000  # frames between a frame and its root; more means a loop


def _seconds(stamp_ns: int) -> str:
    return f"{stamp_ns // 1_000_000_000}.{stamp_ns % 1_000_000_000:09d}"


class _MovingFrame:
    """Transforms of one frame to its parent, by stamp."""

    def __init__(self, cache_ns: int) -> None:
        self._cache_ns = cache_ns
        self._stamps: list[int] = []
        self._entries: list[tuple[str, Rigid]] = []

    def insert(self, stamp_ns: int, parent: str, parent_from_child: Rigid) -> bool:
        """False where just this is already known or the stamp is older than the cache reaches.

        As in tf2, another transform of an equal stamp is kept beside the first: asked for exactly that time the last
        one answers, for earlier times the first one is interpolated towards.
        """
        if self._stamps and stamp_ns < self._stamps[-1] - self._cache_ns:
            return False
        entry = (parent, parent_from_child)
        index = bisect.bisect_right(self._stamps, stamp_ns)
        if entry in self._entries[bisect.bisect_left(self._stamps, stamp_ns) : index]:
            return False
        self._stamps.insert(index, stamp_ns)
        self._entries.insert(index, entry)
        expired = bisect.bisect_left(self._stamps, self._stamps[-1] - self._cache_ns)
        del self._stamps[:expired], self._entries[:expired]
        return True

    def latest(self) -> tuple[int, str]:
        return self._stamps[-1], self._entries[-1][0]

    def at(self, stamp_ns: int) -> tuple[str, Rigid]:
        """Parent and transform at a time; 0 is the latest. ExtrapolationException outside of what is stored."""
        if stamp_ns == 0:
            return self._entries[-1]
        after = bisect.bisect_right(self._stamps, stamp_ns)
        if after and self._stamps[after - 1] == stamp_ns:
            return self._entries[after - 1]
        if len(self._stamps) == 1:
            raise ExtrapolationException(
                f"Lookup would require extrapolation at time {_seconds(stamp_ns)}, "
                f"but only time {_seconds(self._stamps[0])} is in the buffer"
            )
        if after == len(self._stamps):
            raise ExtrapolationException(
                f"Lookup would require extrapolation into the future.  Requested time {_seconds(stamp_ns)} "
                f"but the latest data is at time {_seconds(self._stamps[-1])}"
            )
        if after == 0:
            raise ExtrapolationException(
                f"Lookup would require extrapolation into the past.  Requested time {_seconds(stamp_ns)} "
                f"but the earliest data is at time {_seconds(self._stamps[0])}"
            )
        (parent, first), (next_parent, second) = self._entries[after - 1], self._entries[after]
        if parent != next_parent:  # moved to another parent in between: there is nothing to interpolate
            return parent, first
        start, end = self._stamps[after - 1], self._stamps[after]
        return parent, interpolate(first, second, (stamp_ns - start) / (end - start))


class _StaticFrame:
    """A transform that holds at all times."""

    def __init__(self, parent: str, parent_from_child: Rigid) -> None:
        self._entry = (parent, parent_from_child)

    def latest(self) -> tuple[int, str]:
        return 0, self._entry[0]

    def at(self, stamp_ns: int) -> tuple[str, Rigid]:
        return self._entry


class BufferCore:
    """Stores transforms for `cache_time` (default 10 s) and answers for any pair of frames and any time between.

    Times are rclpy.time.Time; the zero time asks for the latest at which the whole chain is known. May be used from
    several threads.
    """

    def __init__(self, cache_time: Duration | None = None) -> None:
        self._cache_ns = (cache_time or DEFAULT_CACHE_TIME).nanoseconds
        self._frames: dict[str, _MovingFrame | _StaticFrame] = {}  # by child; roots are not in it
        self._authorities: dict[str, str] = {}
        self._names: set[str] = set()
        self._changed = threading.Condition(threading.RLock())

    def set_transform(self, transform: TransformStamped, authority: str) -> None:
        """Add a transform. What makes no sense (a frame on itself, no name, NaN, no unit quaternion) is ignored."""
        self._insert(transform, authority, static=False)

    def set_transform_static(self, transform: TransformStamped, authority: str) -> None:
        """Add a transform that holds at all times."""
        self._insert(transform, authority, static=True)

    def lookup_transform_core(self, target_frame: str, source_frame: str, time: Time) -> TransformStamped:
        """target_from_source at a time. Raises one of the TransformExceptions."""
        with self._changed:
            stamp_ns, target_from_source = self._lookup(target_frame, source_frame, time.nanoseconds)
        return self._message(target_frame, source_frame, stamp_ns, target_from_source)

    def lookup_transform_full_core(
        self, target_frame: str, target_time: Time, source_frame: str, source_time: Time, fixed_frame: str
    ) -> TransformStamped:
        """target (at target_time) from source (at source_time), through a frame that does not move in between."""
        with self._changed:
            _, fixed_from_source = self._lookup(fixed_frame, source_frame, source_time.nanoseconds)
            stamp_ns, target_from_fixed = self._lookup(target_frame, fixed_frame, target_time.nanoseconds)
        return self._message(target_frame, source_frame, stamp_ns, compose(target_from_fixed, fixed_from_source))

    def can_transform_core(self, target_frame: str, source_frame: str, time: Time) -> tuple[bool, str]:
        """Whether lookup_transform_core would succeed, and why not."""
        return self._explain(lambda: self.lookup_transform_core(target_frame, source_frame, time))

    def can_transform_full_core(
        self, target_frame: str, target_time: Time, source_frame: str, source_time: Time, fixed_frame: str
    ) -> tuple[bool, str]:
        """Whether lookup_transform_full_core would succeed, and why not."""
        return self._explain(
            lambda: self.lookup_transform_full_core(target_frame, target_time, source_frame, source_time, fixed_frame)
        )

    def get_latest_common_time(self, target_frame: str, source_frame: str) -> Time:
        """The latest time at which every transform between the frames is known; zero where all are static."""
        with self._changed:
            self._check_frame(target_frame)
            self._check_frame(source_frame)
            return Time(nanoseconds=self._latest_common_ns(target_frame, source_frame))

    def all_frames_as_yaml(self) -> str:
        """One YAML mapping per frame that has a parent."""
        with self._changed:
            lines = []
            for child, frame in sorted(self._frames.items()):
                stamp_ns, parent = frame.latest()
                lines += [
                    f"{child}: ",
                    f"  parent: '{parent}'",
                    f"  broadcaster: '{self._authorities[child]}'",
                    f"  most_recent_transform: {_seconds(stamp_ns)}",
                ]
            return "\n".join(lines) + "\n" if lines else "{}"

    def all_frames_as_string(self) -> str:
        """One sentence per frame that has a parent."""
        with self._changed:
            return "".join(
                f"Frame {child} exists with parent {frame.latest()[1]}.\n" for child, frame in sorted(self._frames.items())
            )

    def clear(self) -> None:
        """Forget all moving transforms; static ones stay, as nobody would send them again."""
        with self._changed:
            self._frames = {child: frame for child, frame in self._frames.items() if isinstance(frame, _StaticFrame)}

    def _insert(self, transform: TransformStamped, authority: str, static: bool) -> None:
        parent, child = transform.header.frame_id.lstrip("/"), transform.child_frame_id.lstrip("/")
        t, q = transform.transform.translation, transform.transform.rotation
        parent_from_child = Rigid((t.x, t.y, t.z), (q.x, q.y, q.z, q.w))
        if not parent or not child or parent == child:
            return
        squared_norm = q.x * q.x + q.y * q.y + q.z * q.z + q.w * q.w
        if not all(map(math.isfinite, parent_from_child.translation)) or not abs(squared_norm - 1.0) <= 1e-6:
            return
        stamp_ns = Time.from_msg(transform.header.stamp).nanoseconds
        with self._changed:
            if static:
                self._frames[child] = _StaticFrame(parent, parent_from_child)
            else:
                frame = self._frames.get(child)
                if not isinstance(frame, _MovingFrame):
                    frame = self._frames[child] = _MovingFrame(self._cache_ns)
                if not frame.insert(stamp_ns, parent, parent_from_child):
                    return
            self._authorities[child] = authority
            self._names.update((parent, child))
            self._changed.notify_all()

    def _check_frame(self, name: str) -> None:
        if not name:
            raise InvalidArgumentException("a frame_id in a lookup must not be empty")
        if name.startswith("/"):
            raise InvalidArgumentException(f"\"{name}\" in a lookup: frame_ids cannot start with a '/'")
        if name not in self._names:
            raise LookupException(f'"{name}" passed to lookupTransform does not exist. ')

    def _lookup(self, target_frame: str, source_frame: str, stamp_ns: int) -> tuple[int, Rigid]:
        self._check_frame(target_frame)
        self._check_frame(source_frame)
        if target_frame == source_frame:
            if stamp_ns == 0 and target_frame in self._frames:
                stamp_ns = self._frames[target_frame].latest()[0]
            return stamp_ns, IDENTITY
        if stamp_ns == 0:
            stamp_ns = self._latest_common_ns(target_frame, source_frame)

        # Up from the source as far as it goes, then up from the target until the ways meet. A gap in time above the
        # meeting point does no harm, so it is an error only where the ways do not meet.
        gap: ExtrapolationException | None = None
        ancestor_from_source = {source_frame: IDENTITY}
        frame, so_far = source_frame, IDENTITY
        while frame != target_frame and frame in self._frames:
            try:
                parent, parent_from_frame = self._frames[frame].at(stamp_ns)
            except ExtrapolationException as error:
                gap = error
                break
            so_far = compose(parent_from_frame, so_far)
            frame = parent
            self._check_loop(frame, ancestor_from_source)
            ancestor_from_source[frame] = so_far
        frame, so_far = target_frame, IDENTITY
        seen = {target_frame: IDENTITY}
        while frame not in ancestor_from_source and frame in self._frames:
            try:
                parent, parent_from_frame = self._frames[frame].at(stamp_ns)
            except ExtrapolationException as error:
                gap = error
                break
            so_far = compose(parent_from_frame, so_far)
            frame = parent
            self._check_loop(frame, seen)
            seen[frame] = so_far
        if frame in ancestor_from_source:
            return stamp_ns, compose(inverse(so_far), ancestor_from_source[frame])
        if gap is not None:
            raise ExtrapolationException(
                f"{gap}, when looking up transform from frame [{source_frame}] to frame [{target_frame}]"
            )
        raise self._not_connected(target_frame, source_frame)

    def _latest_common_ns(self, target_frame: str, source_frame: str) -> int:
        stamps_to_ancestor = self._latest_stamps_upwards(source_frame)
        for ancestor, stamps in self._latest_stamps_upwards(target_frame).items():
            if ancestor in stamps_to_ancestor:
                return min(stamps + stamps_to_ancestor[ancestor], default=0)
        raise self._not_connected(target_frame, source_frame)

    def _latest_stamps_upwards(self, frame: str) -> dict[str, list[int]]:
        """For the frame and each of its ancestors: the latest stamps of the moving transforms on the way there."""
        stamps: list[int] = []
        found = {frame: stamps}
        while frame in self._frames:
            stamp_ns, frame = self._frames[frame].latest()
            self._check_loop(frame, found)
            stamps = [*stamps, stamp_ns] if stamp_ns else stamps
            found[frame] = stamps
        return found

    @staticmethod
    def _check_loop(frame: str, seen: dict) -> None:
        if frame in seen or len(seen) > MAX_DEPTH:
            way = " -> ".join([*seen, frame][-10:])
            raise LookupException(f"The tf tree is invalid because it contains a loop. ({way})")

    @staticmethod
    def _not_connected(target_frame: str, source_frame: str) -> ConnectivityException:
        return ConnectivityException(
            f"Could not find a connection between '{target_frame}' and '{source_frame}' because they are not part of "
            "the same tree. Tf has two or more unconnected trees."
        )

    @staticmethod
    def _explain(lookup: Callable[[], TransformStamped]) -> tuple[bool, str]:
        try:
            lookup()
        except TransformException as error:
            return False, str(error)
        return True, ""

    @staticmethod
    def _message(target_frame: str, source_frame: str, stamp_ns: int, target_from_source: Rigid) -> TransformStamped:
        message = TransformStamped()
        message.header.stamp = Time(nanoseconds=stamp_ns).to_msg()
        message.header.frame_id = target_frame
        message.child_frame_id = source_frame
        translation, rotation = message.transform.translation, message.transform.rotation
        translation.x, translation.y, translation.z = target_from_source.translation
        rotation.x, rotation.y, rotation.z, rotation.w = target_from_source.rotation
        return message
