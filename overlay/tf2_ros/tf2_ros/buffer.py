# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""The tree of frames over time."""

import bisect
import itertools
import math
import threading
from typing import NamedTuple

from geometry_msgs.msg import TransformStamped
from rclpy.clock import Clock, JumpThreshold, TimeJump
from rclpy.duration import Duration
from rclpy.node import Node
from rclpy.time import Time


class TransformException(Exception):
    """Base class of the exceptions below."""


class ConnectivityException(TransformException):
    """Both frames are known, but no chain of transforms connects them."""


class LookupException(TransformException):
    """A frame is unknown, or the frames form a loop."""


class ExtrapolationException(TransformException):
    """The requested time is outside the stored range."""


class InvalidArgumentException(TransformException):
    """A frame name is empty or begins with a slash."""


# ---- rigid transforms as plain tuples: for single ones several times faster than arrays

Vector = tuple[float, float, float]
Quaternion = tuple[float, float, float, float]


class Rigid(NamedTuple):
    """a_from_b: maps coordinates in frame b to frame a."""

    translation: Vector
    rotation: Quaternion


IDENTITY = Rigid((0.0, 0.0, 0.0), (0.0, 0.0, 0.0, 1.0))


def _multiply(a: Quaternion, b: Quaternion) -> Quaternion:
    ax, ay, az, aw = a
    bx, by, bz, bw = b
    return (
        aw * bx + ax * bw + ay * bz - az * by,
        aw * by - ax * bz + ay * bw + az * bx,
        aw * bz + ax * by - ay * bx + az * bw,
        aw * bw - ax * bx - ay * by - az * bz,
    )


def _rotate(q: Quaternion, v: Vector) -> Vector:
    x, y, z, w = q
    vx, vy, vz = v
    tx, ty, tz = 2.0 * (y * vz - z * vy), 2.0 * (z * vx - x * vz), 2.0 * (x * vy - y * vx)
    return (vx + w * tx + y * tz - z * ty, vy + w * ty + z * tx - x * tz, vz + w * tz + x * ty - y * tx)


def compose(a_from_b: Rigid, b_from_c: Rigid) -> Rigid:
    """a_from_c."""
    x, y, z = _rotate(a_from_b.rotation, b_from_c.translation)
    tx, ty, tz = a_from_b.translation
    return Rigid((x + tx, y + ty, z + tz), _multiply(a_from_b.rotation, b_from_c.rotation))


def inverse(a_from_b: Rigid) -> Rigid:
    """b_from_a."""
    x, y, z, w = a_from_b.rotation
    back = (-x, -y, -z, w)
    tx, ty, tz = _rotate(back, a_from_b.translation)
    return Rigid((-tx, -ty, -tz), back)


def interpolate(first: Rigid, second: Rigid, ratio: float) -> Rigid:
    """Straight line between the translations, shortest arc between the rotations; ratio 0 is first, 1 is second."""
    translation = tuple(a + ratio * (b - a) for a, b in zip(first.translation, second.translation))
    cosine = sum(a * b for a, b in zip(first.rotation, second.rotation))
    target = second.rotation if cosine >= 0.0 else tuple(-b for b in second.rotation)
    cosine = min(abs(cosine), 1.0)
    angle = math.acos(cosine)
    if angle < 1e-6:  # the sines below cancel; the chord is exact to the last digit
        weights = (1.0 - ratio, ratio)
    else:
        weights = (math.sin((1.0 - ratio) * angle) / math.sin(angle), math.sin(ratio * angle) / math.sin(angle))
    rotation = tuple(weights[0] * a + weights[1] * b for a, b in zip(first.rotation, target))
    norm = math.sqrt(sum(r * r for r in rotation))
    return Rigid(translation, tuple(r / norm for r in rotation))


# ---- the tree


def _seconds(stamp_ns: int) -> str:
    return f"{stamp_ns // 1_000_000_000}.{stamp_ns % 1_000_000_000:09d}"


class _MovingFrame:
    """Transforms of one frame to its parent, by stamp."""

    def __init__(self, cache_ns: int) -> None:
        self._cache_ns = cache_ns
        self._stamps: list[int] = []
        self._entries: list[tuple[str, Rigid]] = []

    @property
    def latest_ns(self) -> int:
        return self._stamps[-1]

    def insert(self, stamp_ns: int, parent: str, parent_from_child: Rigid) -> None:
        """Ignores what is already known and what is older than the cache reaches.

        As in tf2, another transform with an equal stamp is kept next to the first: a lookup at exactly that time gives the
        last one, and lookups at earlier times interpolate towards the first one.
        """
        if self._stamps and stamp_ns < self._stamps[-1] - self._cache_ns:
            return
        entry = (parent, parent_from_child)
        index = bisect.bisect_right(self._stamps, stamp_ns)
        if entry in self._entries[bisect.bisect_left(self._stamps, stamp_ns) : index]:
            return
        self._stamps.insert(index, stamp_ns)
        self._entries.insert(index, entry)
        expired = bisect.bisect_left(self._stamps, self._stamps[-1] - self._cache_ns)
        del self._stamps[:expired], self._entries[:expired]

    def at(self, stamp_ns: int) -> tuple[str, Rigid]:
        """Parent and transform at a time; 0 means the latest. Raises ExtrapolationException outside the stored range."""
        if stamp_ns == 0:
            return self._entries[-1]
        after = bisect.bisect_right(self._stamps, stamp_ns)
        if after and self._stamps[after - 1] == stamp_ns:
            return self._entries[after - 1]
        if after in (0, len(self._stamps)):
            direction, end, nearest = ("future", "latest", -1) if after else ("past", "earliest", 0)
            raise ExtrapolationException(
                f"Lookup would require extrapolation into the {direction}.  Requested time {_seconds(stamp_ns)} "
                f"but the {end} data is at time {_seconds(self._stamps[nearest])}"
            )
        (parent, first), (next_parent, second) = self._entries[after - 1], self._entries[after]
        if parent != next_parent:  # the parent changed in between: there is nothing to interpolate
            return parent, first
        start, end = self._stamps[after - 1], self._stamps[after]
        return parent, interpolate(first, second, (stamp_ns - start) / (end - start))


class _StaticFrame:
    """A transform that holds at all times."""

    latest_ns = 0

    def __init__(self, parent: str, parent_from_child: Rigid) -> None:
        self._entry = (parent, parent_from_child)

    def at(self, stamp_ns: int) -> tuple[str, Rigid]:
        return self._entry


class Buffer:
    """Stores transforms and answers for any pair of frames and any time in between. Thread-safe.

    When time jumps back by more than a second (a bag is played again), the buffer forgets all moving transforms.

    Args:
        cache_time: how long transforms are kept.
        node: the node whose clock is followed; None means system time.
    """

    def __init__(self, cache_time: Duration | None = None, node: Node | None = None) -> None:
        self._cache_ns = (cache_time or Duration(seconds=10)).nanoseconds
        self._frames: dict[str, _MovingFrame | _StaticFrame] = {}  # by child; roots are not in it
        self._names: set[str] = set()
        self._lock = threading.RLock()
        clock = Clock() if node is None else node.get_clock()
        threshold = JumpThreshold(min_forward=None, min_backward=Duration(seconds=-1), on_clock_change=True)
        self._jump_handle = clock.create_jump_callback(threshold, post_callback=self._on_time_jump)

    def set_transform(self, transform: TransformStamped, authority: str) -> None:
        """Add a transform. An invalid one (a frame on itself, no name, NaN, no unit quaternion) is ignored."""
        self._insert(transform, static=False)

    def set_transform_static(self, transform: TransformStamped, authority: str) -> None:
        """Add a transform that holds at all times."""
        self._insert(transform, static=True)

    def lookup_transform(self, target_frame: str, source_frame: str, time: Time) -> TransformStamped:
        """Returns target_from_source at a time; zero means the latest time at which the whole chain is known.

        Raises:
            LookupException: a frame is unknown, or the frames form a loop.
            ConnectivityException: the frames are in different trees.
            ExtrapolationException: the time is outside the stored range.
            InvalidArgumentException: a frame name is empty or begins with a slash.
        """
        with self._lock:
            self._check_frame(target_frame)
            self._check_frame(source_frame)
            stamp_ns = time.nanoseconds
            target_from_source, links = self._connect(target_frame, source_frame, stamp_ns)
            if stamp_ns == 0:
                stamp_ns = min((ns for link in links if (ns := self._frames[link].latest_ns)), default=0)
                target_from_source, _ = self._connect(target_frame, source_frame, stamp_ns)
        message = TransformStamped(child_frame_id=source_frame)
        message.header.stamp, message.header.frame_id = Time(nanoseconds=stamp_ns).to_msg(), target_frame
        translation, rotation = message.transform.translation, message.transform.rotation
        translation.x, translation.y, translation.z = target_from_source.translation
        rotation.x, rotation.y, rotation.z, rotation.w = target_from_source.rotation
        return message

    def clear(self) -> None:
        """Forget all moving transforms; static ones stay, because nobody would send them again."""
        with self._lock:
            self._frames = {child: frame for child, frame in self._frames.items() if isinstance(frame, _StaticFrame)}

    def _on_time_jump(self, jump: TimeJump) -> None:
        self.clear()

    def _insert(self, transform: TransformStamped, static: bool) -> None:
        parent, child = transform.header.frame_id.lstrip("/"), transform.child_frame_id.lstrip("/")
        t, q = transform.transform.translation, transform.transform.rotation
        parent_from_child = Rigid((t.x, t.y, t.z), (q.x, q.y, q.z, q.w))
        squared_norm = q.x * q.x + q.y * q.y + q.z * q.z + q.w * q.w
        finite = all(map(math.isfinite, parent_from_child.translation))
        if not parent or not child or parent == child or not finite or not abs(squared_norm - 1.0) <= 1e-6:
            return
        with self._lock:
            self._names.update((parent, child))
            if static:
                self._frames[child] = _StaticFrame(parent, parent_from_child)
                return
            if not isinstance(self._frames.get(child), _MovingFrame):
                self._frames[child] = _MovingFrame(self._cache_ns)
            self._frames[child].insert(Time.from_msg(transform.header.stamp).nanoseconds, parent, parent_from_child)

    def _check_frame(self, name: str) -> None:
        if not name or name.startswith("/"):
            raise InvalidArgumentException(f"\"{name}\" in a lookup: frame_ids must not be empty or start with a '/'")
        if name not in self._names:
            raise LookupException(f'"{name}" passed to lookupTransform does not exist. ')

    def _connect(self, target: str, source: str, stamp_ns: int) -> tuple[Rigid, list[str]]:
        """target_from_source, and the children of all transforms on the way.

        A gap in time above the common ancestor is harmless: it is an error only if the two ways do not meet.
        """
        from_source, _, gap = self._climb(source, stamp_ns, {target})
        from_target, ancestor, other_gap = self._climb(target, stamp_ns, from_source)
        if ancestor in from_source:
            links = [*itertools.takewhile(lambda frame: frame != ancestor, from_source), *list(from_target)[:-1]]
            return compose(inverse(from_target[ancestor]), from_source[ancestor]), links
        if gap or other_gap:
            where = f"when looking up transform from frame [{source}] to frame [{target}]"
            raise ExtrapolationException(f"{other_gap or gap}, {where}")
        raise ConnectivityException(
            f"Could not find a connection between '{target}' and '{source}' because they are not part of "
            "the same tree. Tf has two or more unconnected trees."
        )

    def _climb(self, frame: str, stamp_ns: int, until) -> tuple[dict[str, Rigid], str, ExtrapolationException | None]:
        """ancestor_from_frame by ancestor, up to a frame in `until`, to the root, or to a gap in time; where it ended, why."""
        found = {frame: IDENTITY}
        while frame not in until and frame in self._frames:
            try:
                parent, parent_from_frame = self._frames[frame].at(stamp_ns)
            except ExtrapolationException as gap:
                return found, frame, gap
            if parent in found:
                way = " -> ".join([*found, parent][-10:])
                raise LookupException(f"The tf tree is invalid because it contains a loop. ({way})")
            found[parent] = compose(parent_from_frame, found[frame])
            frame = parent
        return found, frame, None
