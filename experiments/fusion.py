#!/usr/bin/env python3
# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""The published poses fused with wheel odometry by a Kalman filter set up from config/ekf.yaml, as in docs/nav2.md.

`PoseFilter` has the state, the motion model, the Mahalanobis gate, the start and the treatment of late data that
robot_localization documents for its `ekf_node`. Each drive is tracked from its start, from later on (the filter begins at the
map's origin, metres from the robot), with images missing for a while, and with wheels that report no velocity for a while.

    experiments/fusion.py ../shared/data --docs docs/evidence/reliability.md
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping
from pathlib import Path

import common
import numpy as np
import torch
import yaml
from scipy.spatial.transform import Rotation

from pixloc_ros.cli.progress import show_progress
from pixloc_ros.cli.scripts import run_script
from pixloc_ros.evaluation import offline
from pixloc_ros.evaluation.altered_bag import AlteredBag, Change
from pixloc_ros.evaluation.runs import TRUTH_GAP_NS
from pixloc_ros.evaluation.tables import markdown_table
from pixloc_ros.geometry import se3
from pixloc_ros.io.bags import BagReader
from pixloc_ros.io.trajectory import Trajectory
from pixloc_ros.localization import Localizer

EKF_FILE = Path(__file__).parents[1] / "config" / "ekf.yaml"
GAPS = {"from the start": (0, None), "from later on": (6, None), "images missing": (0, "images"), "no velocity": (0, "wheels")}
"""Situation: seconds into the drive that it begins at, and what is missing for `GAP_S` seconds from `GAP_AT_S` on."""
GAP_AT_S, GAP_S = 8.0, 2.0
AGE_S = 0.05
"""Age of an image's pose when the filter gets it."""
WHEEL_STD = (0.05, 0.02)
"""Standard deviations of the wheels' velocities: m/s, rad/s."""
GATES = {"as shipped": None, "with pose0_rejection_threshold 12": 12.0}


class PoseFilter:
    """Extended Kalman filter of a pose, its velocity and acceleration, from delayed poses and velocities.

    The state is float64 [15]: position (m), roll, pitch, yaw (rad) in the map; velocity, rotation rate and acceleration along the
    axes of the base. The first measurement sets what it measures; the rest begins at zero.
    """

    def __init__(self, parameters: Mapping[str, object], gate: float | None = None) -> None:
        """Set the filter up.

        Args:
            parameters: `ros__parameters` of the filter.
            gate: Replaces `pose0_rejection_threshold` where given; a measurement further off is ignored (Mahalanobis distance).
        """

        def matrix(name: str, default: float) -> np.ndarray:
            values = parameters.get(name)
            return default * np.eye(15) if values is None else np.asarray(values, np.float64).reshape(15, 15)

        self._noise = matrix("process_noise_covariance", 0.01)
        self._initial = matrix("initial_estimate_covariance", 1e-9)
        self._used = {name: np.flatnonzero(parameters[f"{name}_config"]) for name in ("odom0", "pose0")}
        self._gates = {"pose0": gate or parameters.get("pose0_rejection_threshold"), "odom0": None}
        self._history_ns = round(float(parameters["history_length"]) * 1e9) if parameters["smooth_lagged_data"] else 0
        self._past: list[tuple[int, str, np.ndarray, np.ndarray]] = []
        self._states: list[tuple[np.ndarray, np.ndarray]] = []
        self.refused = 0

    def add_pose(self, stamp_ns: int, map_from_base: torch.Tensor, covariance: torch.Tensor) -> None:
        """covariance: float64 [6, 6] along the axes of the map, about the base, as published."""
        turn = Rotation.from_matrix(map_from_base[:3, :3].numpy()).as_euler("xyz")
        self._add(stamp_ns, "pose0", np.r_[map_from_base[:3, 3].numpy(), turn, np.zeros(9)], covariance.numpy(), 0)

    def add_velocity(self, stamp_ns: int, velocity: np.ndarray, covariance: np.ndarray) -> None:
        """velocity: float64 [6], m/s and rad/s along the axes of the base, with its covariance [6, 6]."""
        self._add(stamp_ns, "odom0", np.r_[np.zeros(6), velocity, np.zeros(3)], covariance, 6)

    @property
    def map_from_base(self) -> torch.Tensor:
        """The latest estimate, [4, 4]."""
        state = self._states[-1][0]
        rotation = torch.from_numpy(Rotation.from_euler("xyz", state[3:6]).as_matrix())
        return se3.from_rotation_translation(rotation, torch.from_numpy(state[:3].copy()))

    def _add(self, stamp_ns: int, sensor: str, value: np.ndarray, covariance: np.ndarray, first: int) -> None:
        """Go back to the stamp, take the measurement in, and repeat those that are later."""
        noise = np.zeros((15, 15))
        noise[first : first + 6, first : first + 6] = covariance
        at = bisect_right(self._past, stamp_ns, key=lambda entry: entry[0])
        if self._past and self._past[-1][0] - stamp_ns > self._history_ns:
            return
        later = self._past[at:]
        del self._past[at:], self._states[at:]
        for entry in ((stamp_ns, sensor, value, noise), *later):
            self._states.append(self._updated(*entry))
            self._past.append(entry)
        while self._past[-1][0] - self._past[0][0] > 2 * self._history_ns + 1_000_000_000:
            del self._past[0], self._states[0]

    def _updated(self, stamp_ns: int, sensor: str, value: np.ndarray, noise: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        used = self._used[sensor]
        among = np.ix_(used, used)
        if not self._states:
            state, covariance = np.zeros(15), self._initial.copy()
            state[used], covariance[among] = value[used], noise[among]
            return state, covariance
        state, covariance = self._predicted(*self._states[-1], (stamp_ns - self._past[-1][0]) * 1e-9)
        innovation = value - state
        innovation[3:6] = (innovation[3:6] + np.pi) % (2 * np.pi) - np.pi
        innovation = innovation[used]
        spread = covariance[among] + noise[among]
        gate = self._gates[sensor]
        if gate is not None and innovation @ np.linalg.solve(spread, innovation) >= gate**2:
            self.refused += 1
            return state, covariance
        gain = np.linalg.solve(spread, covariance[used]).T
        rest = np.eye(15)
        rest[:, used] -= gain
        return state + gain @ innovation, rest @ covariance @ rest.T + gain @ noise[among] @ gain.T

    def _predicted(self, state: np.ndarray, covariance: np.ndarray, seconds: float) -> tuple[np.ndarray, np.ndarray]:
        step = 1e-6
        slopes = [(_moved(state + d, seconds) - _moved(state - d, seconds)) / (2 * step) for d in step * np.eye(15)]
        jacobian = np.column_stack(slopes)
        return _moved(state, seconds), jacobian @ covariance @ jacobian.T + self._noise * seconds


def _moved(state: np.ndarray, seconds: float) -> np.ndarray:
    """The state after constant acceleration and constant rotation rate."""
    roll, pitch, _ = state[3:6]
    velocity, rate, acceleration = state[6:9], state[9:12], state[12:15]
    shift = Rotation.from_euler("xyz", state[3:6]).apply(velocity * seconds + 0.5 * acceleration * seconds**2)
    turned = rate[1] * np.sin(roll) + rate[2] * np.cos(roll)
    euler_rate = (rate[0] + turned * np.tan(pitch), rate[1] * np.cos(roll) - rate[2] * np.sin(roll), turned / np.cos(pitch))
    return np.r_[
        state[:3] + shift, state[3:6] + seconds * np.array(euler_rate), velocity + acceleration * seconds, rate, acceleration
    ]


def velocities(odometry: Trajectory) -> np.ndarray:
    """float64 [N, 6]: m/s and rad/s along the axes of the base, from each pose of odometry to the next."""
    poses = odometry.map_from_body
    motion = se3.se3_log(se3.inverse(poses[:-1]) @ poses[1:]).numpy()
    seconds = np.diff(odometry.stamps_ns)[:, None] * 1e-9
    return np.concatenate([motion[:1] / seconds[:1], motion / seconds])


def fuse(localizer: Localizer, bag: BagReader, situation: str, parameters: Mapping[str, object]) -> dict[str, dict]:
    """Track the drive and fuse it → figures by the name of the gate."""
    begin_s, missing = GAPS[situation]
    first_ns = next(iter(bag.image_stamps()))
    begin_ns, gap_ns = first_ns + round(begin_s * 1e9), first_ns + round(GAP_AT_S * 1e9)

    def in_gap(stamp_ns: int) -> bool:
        return gap_ns <= stamp_ns < gap_ns + round(GAP_S * 1e9)

    def keeps(stamp_ns: int, is_image: bool) -> bool:
        return stamp_ns >= begin_ns and not (is_image and missing == "images" and in_gap(stamp_ns))

    run = offline.run_bag(localizer.tracker(), AlteredBag(bag, Change(keeps=keeps)))
    wheels, wheel_noise = bag.odometry(), np.diag([WHEEL_STD[0] ** 2] * 3 + [WHEEL_STD[1] ** 2] * 3)
    arrivals = [
        (stamp_ns, None, np.zeros(6) if missing == "wheels" and in_gap(stamp_ns) else velocity)
        for stamp_ns, velocity in zip(wheels.stamps_ns.tolist(), velocities(wheels))
        if stamp_ns >= begin_ns
    ]
    arrivals += [(r.stamp_ns + round(AGE_S * 1e9), r, None) for r in run.records if r.map_from_base is not None]
    filters = {name: PoseFilter(parameters, gate) for name, gate in GATES.items()}
    fused: dict[str, list] = {name: [] for name in filters}
    for now_ns, record, velocity in sorted(arrivals, key=lambda arrival: arrival[0]):
        for name, filter_ in filters.items():
            if record is not None:
                turn = torch.block_diag(*[record.map_from_base[:3, :3]] * 2)
                filter_.add_pose(record.stamp_ns, record.map_from_base, turn @ record.covariance @ turn.T)
            else:
                filter_.add_velocity(now_ns, velocity, wheel_noise)
                if now_ns - begin_ns >= 1e9:
                    fused[name].append((now_ns, filter_.map_from_base))
    return {name: {**errors(fused[name], run.truth), "refused": filters[name].refused} for name in filters}


def errors(fused: list[tuple[int, torch.Tensor]], truth: Trajectory) -> dict[str, float]:
    """Median and largest distance in metres, median angle in degrees."""
    estimate = Trajectory.from_poses(fused)
    poses, known = truth.at(estimate.stamps_ns, TRUTH_GAP_NS)
    distances, angles = se3.pose_difference(poses[known], estimate.map_from_body[known])
    return {
        "median_m": float(distances.median()),
        "max_m": float(distances.max()),
        "median_deg": float(angles.median().rad2deg()),
    }


def main() -> int:
    parser = common.parser(__doc__, "out/fusion", common.VALIDATION_DRIVES[:1], drives=True)
    parser.add_argument(
        "--ekf", type=Path, default=EKF_FILE, metavar="FILE", help="parameters of the filter (default: the shipped)"
    )
    args = parser.parse_args()
    parameters = yaml.safe_load(args.ekf.read_text(encoding="utf-8"))["/**/ekf_filter_node"]["ros__parameters"]
    results: dict[str, dict] = {}
    for scene in common.scenes_of(args):
        localizer = scene.localizer(args)
        with BagReader(scene.drive) as bag:
            for situation in GAPS:
                with show_progress(f"{scene.name}, {situation}"):
                    results.setdefault(scene.name, {})[situation] = fuse(localizer, bag, situation, parameters)
                common.save(args, "fusion", results, {"fusion": report(results)})
    return common.finish(args, {"fusion": report(results)})


def report(results: dict[str, dict]) -> str:
    """A row for each drive, situation and gate."""
    rows = [
        (drive, situation, gate, f"{100 * r['median_m']:.1f}", f"{100 * r['max_m']:.0f}", f"{r['median_deg']:.2f}", r["refused"])
        for drive, situations in results.items()
        for situation, gates in situations.items()
        for gate, r in gates.items()
    ]
    return markdown_table("drive | situation | gate of the filter | median cm | largest cm | median ° | poses refused", rows)


if __name__ == "__main__":
    run_script(main)
