# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""Whether the camera sits on the robot as base_from_camera says.

A pose found in an image is the camera's. With a mount that is turned, the base's is wrong by the same turn in every image, and
all looks well. What speaks against the mount: a robot that would lie on its side; a pose that stands where the given one does but
looks elsewhere; and, for any turn, odometry that moves and turns along other axes than the camera. How far the mount is turned
and about which axis follows from the same three.
"""

from __future__ import annotations

import math
from collections import deque

import numpy as np
import torch

from ..errors import InputError
from ..geometry import se3
from .judge import FrameContext, Look
from .mount_fit import FEW_PAIRS, OUTLIER, Motion, MountFit, exp, fit_mount, log
from .odometry import OdometryNoise, OdometrySample
from .options import QualityGates

MODES = ("level", "motion", "off")
"""What is checked: all; all but that the robot stands level, for drones and hand-held cameras; nothing."""
MAX_TILT = math.radians(25)
"""A ground robot stands no steeper: a ramp of 20 degrees, and what springs and map add."""
_LEAST_TURN = math.radians(15)
"""A given pose may be this wrong,"""
_LEAST_TURN_BLIND = math.radians(45)
"""and this where no odometry will tell whether the pose or the mount is wrong."""
_SAME_ROTATION = math.radians(12)
"""A rotation so near to a usual mistake is called by its name."""
_SURE = QualityGates().sure_probability
_LIKELY = QualityGates().max_innovation

_STEP_M, _STEP_RAD = 0.04, 0.03
"""Least motion between two poses that are compared."""
_STEP_NS, _STEP_VERIFIED_NS = 250_000_000, 1_000_000_000
_PAIRS = 100
_LENGTH_SHARE = 0.3
"""Motions whose lengths differ by more are not of one place, or the wheels slip."""
_STRAIGHT_M, _STRAIGHT_RAD, _WAY_M = 0.2, 0.15, 3.0
"""Without odometry: steps of at least so many metres in which the robot turns no more than this, and how many metres tell."""
_ONE_WAY, _SIDEWAYS = 0.9, math.radians(20)
"""They must go one way as much as this; a robot moves along its x axis, or nearly."""

_OPTICAL = np.array([[0.0, 0, 1], [-1, 0, 0], [0, -1, 0]])
"""Axes of a camera's body (x forward, z up) from its optical axes (z forward, y down)."""
_OTHER_AXES, _IT_SEEMS = "odometry moves along other axes than the camera", ", it seems"
_USUAL = (
    (_OPTICAL, "is camera_link given for camera_optical? Images need the optical frame: z forward, x right, y down"),
    (_OPTICAL.T, "is camera_optical given for camera_link? Turn the transform once only"),
    (np.diag([-1.0, -1, 1]), "is the camera mounted upside down, 180° about its optical axis? Its transform must say so"),
)
"""What is often wrong: the rotation about the camera that is missing, and what to do."""


class MountCheck:
    """Collects what images and odometry say of one mount. For one thread.

    Attributes:
        problem: What spoke against it at the last good look; empty: nothing.
        suspicion: What is odd about it though nothing speaks against it; empty: nothing.
    """

    def __init__(
        self, mode: str = "level", map_from_keyframe: torch.Tensor | None = None, noise: OdometryNoise | None = None
    ) -> None:
        """What is asked of.

        Args:
            mode: Of `MODES`.
            map_from_keyframe: float64 [K, 4, 4] of the map, which tell whether its z is up; None: it is not known.
            noise: How far odometry errs; None: as usual.

        Raises:
            InputError: There is no such mode.
        """
        if mode not in MODES:
            raise InputError(f"mount check '{mode}' is unknown: use one of {', '.join(MODES)}")
        self._mode, self._noise = mode, noise or OdometryNoise()
        self._level = mode == "level" and map_from_keyframe is not None and _z_is_up(map_from_keyframe)
        self._mount: torch.Tensor | None = None
        self._tracked, self._odometry = False, False
        self._seen: tuple[Look, FrameContext] | None = None
        self._restart()

    def _restart(self) -> None:
        self._motions: deque[Motion] = deque(maxlen=_PAIRS)
        self._last: tuple[Look, OdometrySample] | None = None
        self._new = 0
        self._by_motion: MountFit | None = None
        self._given: np.ndarray | None = None
        self._agreed, self.problem, self.suspicion = False, "", ""
        self._straight: tuple[torch.Tensor, np.ndarray, float] | None = None

    def expect(self, map_from_base: torch.Tensor) -> None:
        """A pose is given: what was said against another is forgotten. One that is tilted says that robots may be."""
        self._given = None
        self._level = self._level and float(map_from_base[2, 2]) >= math.cos(MAX_TILT)

    @property
    def verified(self) -> bool:
        """Whether motion has proved the mount right."""
        return self._by_motion is not None and self._by_motion.right

    @property
    def unverified(self) -> str:
        """That nothing can tell by now whether the mount is right, and what would, where a robot is tracked; else empty."""
        if not self._tracked or self._agreed or self._by_motion is not None:
            return ""
        how = "the robot has not moved enough yet" if self._odometry else "there is no odometry, and no initial pose was given"
        return f"the camera's mount is not verified: {how}; a turn about the vertical would turn all poses"

    def judge(self, look: Look | None, view: FrameContext, tracked: bool) -> str:
        """What speaks against the mount by now and what to do; empty: nothing, or there is no good look.

        Args:
            look: The best at an image, whether it is believed or not.
            view: The image.
            tracked: Whether the robot is tracked: then only motion counts, until the image before, and `learn` adds this one.
        """
        if self._mode == "off" or look is None or look.pose is None or look.probability < _SURE:
            return ""
        if self._mount is None or not torch.equal(self._mount, view.base_from_camera):
            self._restart()
            self._mount = view.base_from_camera.clone()
        self._tracked, self._odometry = tracked, view.odometry is not None
        if tracked:
            self._seen = look, view
            return self.problem
        if self._odometry:
            self._add(look, view)
        self._straight = None
        return self.against(look, view)

    def learn(self) -> None:
        """Keeps what the image judged last says of the mount: up to some milliseconds."""
        if self._seen is None:
            return
        (look, view), self._seen = self._seen, None
        if not self._odometry and self._mode == "level":
            self._follow(look.alignment.map_from_camera)
        if not self.problem and not self._is_due(view):
            return
        if self._odometry:
            self._add(look, view)
        self.problem = self._against_motion(view, sure=True)
        if self._odometry:
            odd = not self.problem and self._by_motion is not None and self._by_motion.odd
            self.suspicion = _message(self._by_motion.turn.T, view, _OTHER_AXES + _IT_SEEMS) if odd else ""

    def _is_due(self, view: FrameContext) -> bool:
        """Once there are many motions, an image is looked at now and then, and more rarely where the mount is verified."""
        if len(self._motions) < 2 * FEW_PAIRS or self._last is None:
            return True
        since_ns = view.stamp_ns - self._last[0].pose.stamp_ns
        return not 0 <= since_ns < (_STEP_VERIFIED_NS if self.verified else _STEP_NS)

    def against(self, look: Look, view: FrameContext) -> str:
        """What speaks against the mount if a good look, of a robot that is not tracked, is right; empty: nothing."""
        self.problem = "" if self._mode == "off" else self._against(look, view)
        return self.problem

    def _against(self, look: Look, view: FrameContext) -> str:
        if view.gravity is not None and (tilted := view.gravity.against(view.stamp_ns, look.pose.map_from_base)):
            return tilted
        sure = self._against_motion(view, sure=True)
        if sure or self.verified:
            self._given = None
            return sure
        self._compare_with_given(look, view)
        if self._given is not None:
            drive = "" if view.odometry is None else ", or drive on"
            why = f"the pose found is turned like this against the initial pose: give another if that is wrong{drive}"
            return _message(self._given, view, why)
        up = look.pose.map_from_base[2, :3].numpy()  # the map's z in base axes
        if self._level and max(up[2], up @ _up_by_odometry(view)) < math.cos(MAX_TILT):
            tilt = math.degrees(math.acos(max(up[2], -1.0)))
            why = f"the robot would be tilted by {tilt:.0f}°; set mount_check to motion where it may be"
            return _message(_towards_z(up), view, why, yaw_unknown=True)
        return self._against_motion(view, sure=False)

    def _against_motion(self, view: FrameContext, sure: bool) -> str:
        moved = self._by_motion
        if moved is None or not (moved.wrong if sure else moved.suspicious):
            return ""
        return _message(moved.turn.T, view, _OTHER_AXES + ("" if sure else _IT_SEEMS))

    def _add(self, look: Look, view: FrameContext) -> None:
        last = self._last
        if last is not None and not self._is_apart(last[1], view.odometry):
            return
        self._last = look, view.odometry
        motion = None if last is None else self._compare(*last, look, view)
        if motion is None:
            return
        self._motions.append(motion)
        self._new += 1
        fit = self._by_motion
        if fit is None or self._new >= len(self._motions) // (8 if fit.doubtful else 2):
            self._new, self._by_motion = 0, fit_mount(self._motions)

    def _compare_with_given(self, look: Look, view: FrameContext) -> None:
        """Keeps what an initial pose says against the mount, until motion tells or another is given."""
        prior = view.prior
        if prior is None or prior.source != "initial pose":
            return
        camera, expected = look.alignment.map_from_camera, prior.map_from_base @ view.base_from_camera
        away = float((camera[:3, 3] - expected[:3, 3]).norm())
        std = math.sqrt(float(prior.covariance.diagonal()[:3].max()))
        if away > _LIKELY * std:
            return  # the pose is of another place
        turn = (prior.map_from_base[:3, :3].mT @ look.pose.map_from_base[:3, :3]).numpy()
        tilt = math.acos(min(max(float(turn[2, 2]), -1.0), 1.0))
        yaw = abs(2 * math.atan2(turn[1, 0] - turn[0, 1], 1 + np.trace(turn))) if np.trace(turn) > -1 + 1e-9 else math.pi
        likely = _LIKELY * math.sqrt(float(prior.covariance[5, 5] + look.pose.covariance[5, 5]))
        least = _LEAST_TURN_BLIND if view.odometry is None else _LEAST_TURN
        if self._given is not None and view.odometry is None and likely > least:
            return  # the given pose does not follow the robot and is vague by now: it told most at first
        tilted = tilt > MAX_TILT and self._mode == "level"
        against = tilted or (tilt <= MAX_TILT and yaw > max(least, likely))
        self._given = turn if against else None
        self._agreed = self._given is None

    def _follow(self, map_from_camera: torch.Tensor) -> None:
        """Which way the robot moves by its images alone, while it goes straight."""
        last, way, length = self._straight or (map_from_camera, np.zeros(3), 0.0)
        step = (se3.inverse(last) @ map_from_camera).numpy()
        moved = float(np.linalg.norm(step[:3, 3]))
        if moved >= _STRAIGHT_M:
            last = map_from_camera
            if float(np.linalg.norm(log(step[:3, :3]))) < _STRAIGHT_RAD:
                way, length = way + self._mount[:3, :3].numpy() @ step[:3, 3], length + moved
        self._straight = last, way, length
        off = math.atan2(math.hypot(way[1], way[2]), abs(way[0]))
        self.suspicion = ""
        if length > _WAY_M and np.linalg.norm(way) > _ONE_WAY * length and off > _SIDEWAYS:
            axis = 1 if abs(way[1]) > abs(way[2]) else 2
            side = (("to the left", "to the right"), ("up", "down"))[axis - 1][int(way[axis] < 0)]
            self.suspicion = (
                f"the robot seems to move {math.degrees(off):.0f}° off its x axis, {side}, for {length:.0f} m: where it does "
                "not, base_from_camera is turned by about so much"
            )

    def _is_apart(self, one: OdometrySample, other: OdometrySample) -> bool:
        """Whether the motion between two is worth comparing."""
        if one.epoch != other.epoch:
            return True
        return other.distance_m - one.distance_m >= _STEP_M or other.turn_rad - one.turn_rad >= _STEP_RAD

    def _compare(self, before: Look, sample: OdometrySample, look: Look, view: FrameContext) -> Motion | None:
        """The motion of the camera's centre between two looks, in axes of the base, and what odometry says of it."""
        now = view.odometry
        if sample.extrapolated_s or now.extrapolated_s or sample.epoch != now.epoch:
            return None
        moved = se3.inverse(sample.odom_from_base) @ now.odom_from_base
        mount = view.base_from_camera[:3, :3].numpy()
        seen = (se3.inverse(before.alignment.map_from_camera) @ look.alignment.map_from_camera).numpy()
        rotation, centre = moved[:3, :3].numpy(), view.base_from_camera[:3, 3].numpy()
        way = rotation @ centre + moved[:3, 3].numpy() - centre
        turn = log(rotation)
        seen_way, seen_turn = mount @ seen[:3, 3], log(mount @ seen[:3, :3] @ mount.T)
        variances = self._noise.variances(
            now.distance_m - sample.distance_m, now.turn_rad - sample.turn_rad, (now.stamp_ns - sample.stamp_ns) * 1e-9
        )
        covariance = (before.pose.covariance + look.pose.covariance).diagonal().numpy()
        stds = np.sqrt(variances + np.repeat([covariance[:3].mean(), covariance[3:].mean()], 3))
        for one, other, std in ((way, seen_way, stds[0]), (turn, seen_turn, stds[3])):
            lengths = np.linalg.norm(one), np.linalg.norm(other)
            if abs(lengths[0] - lengths[1]) > OUTLIER * std + _LENGTH_SHARE * max(lengths):
                return None
        return Motion(seen_way, way, seen_turn, turn, rotation, float(stds[0]), float(stds[3]))


def turned_prior(prior: torch.Tensor, found: torch.Tensor) -> str:
    """How the prior of a single image, map_from_camera [4, 4], is turned against the pose found; empty: not much."""
    turn = (found[:3, :3].mT @ prior[:3, :3]).numpy()
    if np.linalg.norm(log(turn)) < _LEAST_TURN:
        return ""
    for missing, question in _USUAL:
        if (np.trace(missing @ turn) - 1) / 2 > math.cos(_SAME_ROTATION):
            return f"the prior seems turned by {_words(missing.T)}: {question}"
    return f"the prior seems turned by {_words(turn)}"


def _message(right_from_given: np.ndarray, view: FrameContext, why: str, yaw_unknown: bool = False) -> str:
    """What is wrong with the mount and what to do.

    Args:
        right_from_given: Rotation [3, 3] that turns the mount given, from the left, into the one that fits.
        view: An image with that mount.
        why: What was seen.
        yaw_unknown: Whether the rotation is right only up to a turn about z.
    """
    mount, turn = view.base_from_camera[:3, :3].numpy(), right_from_given
    advice = "correct roll, pitch or yaw of its transform"
    for missing, question in _USUAL:
        usual = mount @ missing @ mount.T
        same = usual[2] @ turn[2] if yaw_unknown else (np.trace(usual.T @ turn) - 1) / 2
        if same > math.cos(_SAME_ROTATION):
            turn, advice = usual, question
            break
    return f"base_from_camera seems turned by {_words(turn.T)}: {advice} ({why})"


def _words(rotation: np.ndarray) -> str:
    """Angle and axis."""
    vector = log(rotation)
    angle = float(np.linalg.norm(vector))
    axis = np.round(vector / max(angle, 1e-9), 1)
    if angle > math.pi - _SAME_ROTATION and axis[np.abs(axis).argmax()] < 0:
        axis = -axis  # half a turn either way is the same
    return f"{math.degrees(angle):.0f}° about ({', '.join(f'{value + 0.0:g}' for value in axis)})"


def _z_is_up(map_from_keyframe: torch.Tensor) -> bool:
    """Whether nothing says that the map's z is not up: cameras are upright on average, as in maps that were never turned."""
    up = -map_from_keyframe[:, :3, 1].double().mean(0)
    length = float(up.norm())
    return length < 0.7 or abs(float(up[2])) > 0.7 * length


def _up_by_odometry(view: FrameContext) -> np.ndarray:
    """The odometry's z in base axes [3]: wheels say that the robot is level, others may say how it is tilted."""
    return np.array([0.0, 0, 1]) if view.odometry is None else view.odometry.odom_from_base[2, :3].numpy()


def _towards_z(up: np.ndarray) -> np.ndarray:
    """The smallest rotation [3, 3] that turns a unit vector to z."""
    axis = np.cross(up, (0.0, 0.0, 1.0))
    sine = np.linalg.norm(axis)
    axis = axis / sine if sine > 1e-6 else np.array([1.0, 0.0, 0.0])
    return exp(axis * math.atan2(sine, up[2]))
