# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""Consecutive frames with odometry: what the temporal prior is learned from.

A sample is a pair whose query follows another frame. The base moved in between, and odometry measured that motion wrongly:
distances and turns by a factor, the heading by a drift along the way, and now and then the wheels slip. What the odometry
claims of itself is what the running system makes of it (`OdometryNoise`), times what a driver may report.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch

from ..errors import InputError
from ..geometry import se3
from ..geometry.cameras import Camera
from ..tracking.odometry import OdometryNoise
from .pairs import BadSample, Pair, Step, random_rotation_vector
from .photos import PhotoPairs, random_camera, random_motion, random_scale, render_views
from .scenes import ScenePairs

OPTICAL_FROM_BASE = torch.tensor([[0.0, -1.0, 0.0], [0.0, 0.0, -1.0], [1.0, 0.0, 0.0]], dtype=torch.float64)
_LARGEST_SKIP = 3
_LARGEST_STEP_TURN = np.radians(20.0)


class Previous(NamedTuple):
    """The frame before a query, its pose [4, 4] from the reference, and the camera's place on the base [4, 4]."""

    image: np.ndarray
    camera: Camera
    previous_from_reference: torch.Tensor
    base_from_camera: torch.Tensor


@dataclass(frozen=True)
class OdometryDisturbance:
    """How wrong odometry is, per sample.

    Attributes:
        spread: The true size of errors is the claimed one times exp(N(0, spread)).
        slips: Share of samples in which the wheels slip.
        slip: They do so by up to this share of the distance driven.
        slip_yaw: And by up to so many radians per metre.
        reported: Share of samples whose driver reports larger errors, and makes them.
        largest_report: Up to so many times.
        previous_rotation_deg: Largest error of what was known of the frame before, before it was seen.
        previous_translation: Likewise, as a share of the depth.
    """

    spread: float = 0.5
    slips: float = 0.15
    slip: float = 0.5
    slip_yaw: float = 0.25
    reported: float = 0.5
    largest_report: float = 6.0
    previous_rotation_deg: float = 2.0
    previous_translation: float = 0.03

    def __post_init__(self) -> None:
        if (
            not (0 <= self.slips <= 1 and 0 <= self.reported <= 1)
            or self.largest_report < 1
            or min(self.spread, self.slip, self.slip_yaw, self.previous_rotation_deg, self.previous_translation) < 0
        ):
            raise InputError(
                "odometry: slips and reported are shares between 0 and 1, largest_report at least 1, the others not negative"
            )

    def measure(self, motion: torch.Tensor, seconds: float, rng: np.random.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        """What odometry makes of a motion of the base [4, 4] → measured motion [4, 4], claimed covariance [6, 6]."""
        distance, turn = (float(v) for v in se3.pose_difference(torch.eye(4, dtype=torch.float64), motion))
        report = np.exp(rng.uniform(0, np.log(self.largest_report))) if rng.random() < self.reported else 1.0
        std = report * np.sqrt(OdometryNoise().variances(distance, turn, seconds))
        error = std * np.exp(rng.normal() * self.spread) * rng.normal(size=6)
        if rng.random() < self.slips:
            error[0] += rng.uniform(-1, 1) * self.slip * distance
            error[5] += rng.uniform(-1, 1) * self.slip_yaw * distance
        return motion @ se3.se3_exp(torch.from_numpy(error)), torch.diag(torch.from_numpy(std**2))

    def step(self, previous: Previous, moved: torch.Tensor, seconds: float, depth: float, rng: np.random.Generator) -> Step:
        """What is measured of a motion of the base, and was known of the frame before.

        Args:
            previous: That frame.
            moved: The motion since then, previous base from base [4, 4].
            seconds: Since then.
            depth: Of the points, metres.
            rng: Randomness.
        """
        odometry, covariance = self.measure(moved, seconds, rng)
        std = np.repeat((self.previous_translation * depth, np.radians(self.previous_rotation_deg)), 3) * rng.uniform(0.1, 0.6)
        error = se3.se3_exp(torch.from_numpy(std * rng.normal(size=6)))
        start = se3.inverse(previous.base_from_camera) @ error @ previous.base_from_camera @ previous.previous_from_reference
        known = previous.image, previous.camera, previous.previous_from_reference, start, torch.diag(torch.from_numpy(std**2))
        return Step(*known, odometry, covariance, seconds, previous.base_from_camera)


class PhotoSequences:
    """Photos (see `PhotoPairs`) seen by a robot that drives or a camera that is carried."""

    def __init__(self, photos: PhotoPairs, errors: OdometryDisturbance) -> None:
        self.photos, self.errors = photos, errors

    def draw(self, rng: np.random.Generator) -> Pair:
        """Raises BadSample as `PhotoPairs.draw` does."""
        textures, name = self.photos.textures(rng)
        camera = random_camera(self.photos.view, rng)
        base_from_camera, moved = random_robot(rng)
        query_from_reference = random_motion(self.photos.motion, rng)
        # previous camera from query camera
        previous_from_reference = se3.inverse(base_from_camera) @ moved @ base_from_camera @ query_from_reference
        poses = [query_from_reference, previous_from_reference]
        reference, (query, previous), xyz = render_views(textures, self.photos.view, camera, poses, rng)
        metres = random_scale(rng)
        for pose in (base_from_camera, moved, *poses):
            pose[:3, 3] *= metres
        seconds = float(np.exp(rng.uniform(np.log(0.03), np.log(1.0))))
        before = Previous(previous, camera, previous_from_reference, base_from_camera)
        step = self.errors.step(before, moved, seconds, metres, rng)
        return Pair(reference, query, camera, camera, xyz * metres, query_from_reference, name, step)


def random_robot(rng: np.random.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """base_from_camera [4, 4] and the base's motion in one frame [4, 4] (before from after), lengths as shares of the depth.

    Mostly on wheels: forwards and turning, the camera looking ahead, aside or back; else carried: any motion, base axes at
    the camera.
    """
    turn = torch.zeros(3, dtype=torch.float64)
    if rng.random() < 0.4:
        shift = rng.normal(size=3)
        shift *= np.exp(rng.uniform(np.log(1e-3), np.log(0.1))) / np.linalg.norm(shift)
        turn = random_rotation_vector(rng, np.exp(rng.uniform(np.log(0.002), np.log(0.12))))
        mount, arm = OPTICAL_FROM_BASE.mT, torch.zeros(3, dtype=torch.float64)
    else:
        shift = np.array([np.exp(rng.uniform(np.log(1e-3), np.log(0.15))), 0, 0])
        turn[2] = rng.normal() * np.exp(rng.uniform(np.log(0.002), np.log(0.08)))
        look = torch.tensor(
            [0, rng.normal() * 0.1, rng.choice((0, 1, 2, 3), p=(0.7, 0.1, 0.1, 0.1)) * np.pi / 2], dtype=torch.float64
        )
        mount = se3.so3_exp(look) @ OPTICAL_FROM_BASE.mT
        arm = torch.from_numpy(rng.uniform((-0.1, -0.05, 0.0), (0.2, 0.05, 0.2)))
    moved = se3.from_rotation_translation(se3.so3_exp(turn), torch.from_numpy(shift))
    return se3.from_rotation_translation(mount, arm), moved


class SceneSequences:
    """Frames of a scene in the order of their names, a camera carried by hand: base axes at the camera."""

    def __init__(self, scene: ScenePairs, rate_hz: float, errors: OdometryDisturbance) -> None:
        """rate_hz: of the frames. Raises InputError where no pair's query follows another frame."""
        self.scene, self.rate_hz, self.errors = scene, rate_hz, errors
        order = sorted(range(len(scene.paths)), key=lambda k: scene.paths[k].name)
        self.order, self.place = order, {image: place for place, image in enumerate(order)}
        self.candidates = [(int(a), int(b)) for a, b in scene.candidates if self.place[int(b)] > 0]
        if not self.candidates:
            raise InputError(f"{scene.name}: no frame follows another one: train on it without odometry")

    def draw(self, rng: np.random.Generator) -> Pair:
        """Raises BadSample where the frame before is too far, and as `ScenePairs.draw` does."""
        a, b = self.candidates[rng.integers(len(self.candidates))]
        skip = int(rng.integers(1, min(_LARGEST_SKIP, self.place[b]) + 1))
        last = self.order[self.place[b] - skip]
        poses = self.scene.camera_from_map
        base_from_camera = se3.from_rotation_translation(OPTICAL_FROM_BASE.mT, torch.zeros(3, dtype=torch.float64))
        moved = base_from_camera @ poses[last] @ se3.inverse(poses[b]) @ se3.inverse(base_from_camera)
        if float(se3.rotation_angle(moved[:3, :3])) > _LARGEST_STEP_TURN:
            raise BadSample("turned too far")
        pair = self.scene.pair(a, b, rng)
        previous, camera = self.scene.cut_out(last, rng)
        previous_from_reference = poses[last] @ se3.inverse(poses[a])
        depth = float(se3.transform(pair.query_from_reference, pair.xyz)[:, 2].median())
        before = Previous(previous, camera, previous_from_reference, base_from_camera)
        return replace(pair, step=self.errors.step(before, moved, skip / self.rate_hz, abs(depth), rng))


Sequences = PhotoSequences | SceneSequences


def with_odometry(
    sources: Sequence[PhotoPairs | ScenePairs], rate_hz: Sequence[float], errors: OdometryDisturbance
) -> list[Sequences]:
    """The sources' images as consecutive frames. Raises InputError where a scene's frame rate is missing."""
    result: list[Sequences] = []
    for source, rate in zip(sources, rate_hz, strict=True):
        if isinstance(source, PhotoPairs):
            result.append(PhotoSequences(source, errors))
        elif rate > 0:
            result.append(SceneSequences(source, rate, errors))
        else:
            raise InputError(f"{source.name}: consecutive frames need rate_hz, the frames a second")
    return result
