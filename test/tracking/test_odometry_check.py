# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""Odometry against the camera's poses: simulated wheels with slip and drift, and drives that show nothing."""

import threading
from functools import cache

import numpy as np
import pytest
import torch
from bag_writing import BASE_FROM_CAMERA, BagWriter
from test_tracker import NumberedAligner

from pixloc_ros.evaluation import offline
from pixloc_ros.evaluation.metrics import evaluate
from pixloc_ros.evaluation.runs import read_run, write_run
from pixloc_ros.evaluation.tables import format_run
from pixloc_ros.geometry import se3
from pixloc_ros.io.bags import BagReader
from pixloc_ros.report.run_report import run_report
from pixloc_ros.tracking.odometry import OdometryBuffer
from pixloc_ros.tracking.odometry_check import OdometryCheck, OdometryFindings
from pixloc_ros.tracking.tracker import Tracker
from pixloc_sim.drives import DriveOptions, OdometryErrors, SimulatedDrive, wheel_odometry

START_NS = 1_700_000_000_000_000_000
SECONDS = 35.0
MAP_FROM_START = se3.se3_exp(torch.tensor([30.0, -4.0, 1.0, 0.1, 0.05, 2.0], dtype=torch.float64))


@cache
def drive(seed: int = 0) -> SimulatedDrive:
    return SimulatedDrive(DriveOptions(duration_s=SECONDS, speed=0.9, wander=0.25, seed=seed))


def stamps_of(rate_hz: float, seconds: float = SECONDS) -> np.ndarray:
    return START_NS + (np.arange(int(seconds * rate_hz)) * 1e9 / rate_hz).astype(np.int64)


def seen(map_from_base: torch.Tensor, seed: int = 0) -> torch.Tensor:
    """Poses as a camera finds them: 3 mm and 0.05° of noise on each axis."""
    noise = np.random.default_rng([seed, 3]).normal(size=(len(map_from_base), 6)) * ([0.003] * 3 + [0.0009] * 3)
    return MAP_FROM_START @ map_from_base @ se3.se3_exp(torch.from_numpy(noise))


def check(odometry_ns, odom_from_base, image_ns, poses, after=lambda index, check: None) -> OdometryCheck:
    """A check that was given a drive as the node gives it: odometry up to the image, then the image's pose."""
    buffer = OdometryBuffer()
    found = OdometryCheck(buffer)
    upcoming = 0
    for index, (stamp_ns, pose) in enumerate(zip(image_ns.tolist(), poses)):
        while upcoming < len(odometry_ns) and (upcoming == 0 or odometry_ns[upcoming - 1] < stamp_ns):
            buffer.add(int(odometry_ns[upcoming]), odom_from_base[upcoming])
            upcoming += 1
        found.add(stamp_ns, pose)
        found.findings()
        after(index, found)
    return found


def measured(errors: OdometryErrors | None = None, seed: int = 0, rate_hz: float = 10.0, seconds: float = SECONDS):
    """Odometry of a simulated drive, the stamps of its images, and what a camera finds at them."""
    odometry = wheel_odometry(drive(seed), errors or OdometryErrors(), seed, START_NS)
    stamps = stamps_of(rate_hz, seconds)
    return odometry, stamps, seen(drive(seed).at((stamps - START_NS) * 1e-9), seed)


def wheels(late_s: float = 0.0, way: float = 1.0, turn: float = 1.0, seed: int = 0) -> OdometryFindings:
    """What is found on a simulated drive whose images are stamped late and whose wheels measure wrongly, besides slipping."""
    usual = OdometryErrors()
    errors = OdometryErrors(scale=usual.scale * way, yaw_scale=usual.yaw_scale * turn)
    odometry, stamps, poses = measured(errors, seed)
    return check(odometry.stamps_ns, odometry.odom_from_base, stamps + round(late_s * 1e9), poses).findings()


@pytest.mark.parametrize(("late_s", "seed"), [(-2.0, 1), (-2.0, 0), (1.5, 2), (0.8, 1)])
def test_an_offset_beyond_those_that_are_tried_is_not_taken_for_the_best_of_them(late_s, seed):
    assert wheels(late_s, seed=seed).time_offset_s is None


@pytest.mark.parametrize("late_ms", [-200, -100, -60, -30, 0, 30, 60, 100, 200])
def test_late_stamps_are_found(late_ms):
    found = wheels(late_ms * 1e-3)
    assert found.time_offset_s == pytest.approx(-late_ms * 1e-3, abs=0.008)
    assert found.time_offset_s == pytest.approx(-late_ms * 1e-3, abs=3 * found.time_offset_std_s)
    assert found.time_offset_std_s < 0.008
    if late_ms == 0:
        assert not found.warnings()
        return
    assert set(found.warnings()) == {"clocks"}
    text = found.warnings()["clocks"]
    assert ("later" if late_ms > 0 else "earlier") in text
    assert f"set time_offset to {found.time_offset_s:.3f}, or" in text
    # Where one was set already, what is left comes on top.
    text = found.warnings(0.25)["clocks"]
    assert "time_offset 0.25 included" in text and f"set time_offset to {0.25 + found.time_offset_s:.3f}, or" in text


@pytest.mark.parametrize(
    "way, turn", [(0.8, 1.0), (0.9, 1.0), (1.1, 1.0), (1.4, 1.0), (1.0, 0.8), (1.0, 0.9), (1.0, 1.1), (1.0, 1.4)]
)
def test_wrong_scales_are_found_and_are_no_offset(way, turn):
    found = wheels(way=way, turn=turn)
    usual = OdometryErrors()
    assert found.way_ratio == pytest.approx(way * usual.scale, abs=0.02)
    assert found.turn_ratio == pytest.approx(turn * usual.yaw_scale, abs=0.02)
    assert set(found.warnings()) == {"way" if way != 1.0 else "turning"}
    assert abs(found.time_offset_s) < 0.008


def test_a_wrong_scale_does_not_hide_an_offset():
    found = wheels(late_s=0.1, way=1.4, turn=0.8)
    assert found.time_offset_s == pytest.approx(-0.1, abs=0.01)
    assert set(found.warnings()) == {"clocks", "way", "turning"}


@pytest.mark.parametrize("seed", range(1, 7))
def test_usual_wheels_are_never_warned_of(seed):
    """On six other drives, at no time during them."""
    odometry, stamps, poses = measured(seed=seed)
    warned = []
    check(odometry.stamps_ns, odometry.odom_from_base, stamps, poses, lambda _, found: warned.append(found.findings().warnings()))
    assert len(warned) == len(stamps) and not any(warned)


def steady(speed: float, turn_rate: float, times_s: np.ndarray) -> torch.Tensor:
    twist = torch.tensor([speed, 0.0, 0.0, 0.0, 0.0, turn_rate], dtype=torch.float64)
    return se3.se3_exp(torch.from_numpy(times_s)[:, None] * twist)


@pytest.mark.parametrize("turn_rate", [0.0, 0.4])
def test_steady_motion_tells_no_offset(turn_rate):
    """Whatever the clocks: at a constant speed and turn rate every shift fits. The ratios are seen all the same."""
    odometry_ns, stamps = stamps_of(50.0), stamps_of(10.0)
    odometry = steady(1.1, 0.9 * turn_rate, (odometry_ns - START_NS) * 1e-9)
    poses = seen(steady(1.0, turn_rate, (stamps - START_NS) * 1e-9))
    found = check(odometry_ns, odometry, stamps + 100_000_000, poses).findings()
    assert found.pairs > 50
    assert found.time_offset_s is None
    assert found.way_ratio == pytest.approx(1.1, abs=0.01)
    # While the way grows as the angle does, turning read wrongly cannot be told from turning read for no reason.
    assert found.turn_ratio is None
    assert set(found.warnings()) == {"way"}


def test_a_robot_at_rest_tells_nothing():
    odometry_ns, stamps = stamps_of(50.0), stamps_of(10.0)
    still = torch.eye(4, dtype=torch.float64)
    found = check(odometry_ns, still.repeat(len(odometry_ns), 1, 1), stamps, seen(still.repeat(len(stamps), 1, 1)))
    assert found.findings().known() == {} and found.findings().pairs < 5


def test_too_few_images_tell_nothing():
    odometry, stamps, poses = measured(seconds=3.0)
    found = check(odometry.stamps_ns, odometry.odom_from_base, stamps, poses).findings()
    assert 0 < found.pairs < 10 and found.known() == {} and not found.warnings()


def test_a_robot_that_was_carried_and_odometry_that_was_reset_leave_no_trace():
    odometry, stamps, poses = measured()
    late = stamps + 60_000_000
    plain = check(odometry.stamps_ns, odometry.odom_from_base, late, poses).findings()

    carried = poses.clone()
    carried[170:] = MAP_FROM_START @ carried[170:]
    reset = odometry.odom_from_base.clone()
    reset[1200:] = se3.inverse(reset[1200])[None] @ reset[1200:]

    def carry(index: int, found: OdometryCheck) -> None:
        if index == 169:
            found.interrupt()

    interrupted = check(odometry.stamps_ns, reset, late, carried, carry)
    found = interrupted.findings()
    assert plain.pairs - 12 < found.pairs < plain.pairs
    assert found.time_offset_s == pytest.approx(plain.time_offset_s, abs=0.01)
    assert found.way_ratio == pytest.approx(plain.way_ratio, abs=0.01)
    interrupted.restart()
    assert interrupted.findings().pairs == 0 and interrupted.findings().known() == {}


def test_wrong_poses_among_the_right_ones_do_not_count():
    """One image in twenty shows another place, one metre away."""
    odometry, stamps, poses = measured()
    poses[::60, 0, 3] += 1.0
    found = check(odometry.stamps_ns, odometry.odom_from_base, stamps + 60_000_000, poses).findings()
    assert found.time_offset_s == pytest.approx(-0.06, abs=0.012)
    assert found.way_ratio == pytest.approx(OdometryErrors().scale, abs=0.02)


def test_odometry_may_come_from_another_thread():
    odometry, stamps, poses = measured()
    buffer = OdometryBuffer()
    found = OdometryCheck(buffer)

    def fill():
        for stamp_ns, pose in zip(odometry.stamps_ns.tolist(), odometry.odom_from_base):
            buffer.add(stamp_ns, pose)

    thread = threading.Thread(target=fill)
    thread.start()
    for stamp_ns, pose in zip(stamps.tolist(), poses):
        found.add(stamp_ns, pose)
        found.findings()
    thread.join()
    assert found.findings().pairs <= len(stamps)


# ---- through a bag, the tracker and the report


LATE_NS = 80_000_000


@pytest.fixture(scope="module")
def bag_with_late_images(tmp_path_factory):
    """(bag, map_from_base of its images): images at 5 Hz, stamped 80 ms late; the odometry's way is 1.2 times too long."""
    path = tmp_path_factory.mktemp("late") / "bag"
    odometry, stamps, poses = measured(OdometryErrors(scale=1.2), rate_hz=5.0)
    with BagWriter(path) as bag:
        bag.transform("/tf_static", START_NS, "base_link", "camera_optical", BASE_FROM_CAMERA)
        for number, stamp_ns in enumerate(stamps.tolist()):
            bag.info(stamp_ns + LATE_NS, 80, 64, 70.0)
            bag.image(stamp_ns + LATE_NS, np.full((64, 80), number, np.uint8), 80, 64)
            bag.truth(stamp_ns, poses[number].numpy())
        for stamp_ns, pose in zip(odometry.stamps_ns.tolist(), odometry.odom_from_base.numpy()):
            bag.odometry(stamp_ns, pose)
    return path, poses


def test_a_run_tells_of_late_images_in_the_terminal_and_on_the_page(bag_with_late_images, tmp_path):
    path, poses = bag_with_late_images
    with BagReader(path) as bag:
        run = offline.run_bag(Tracker(NumberedAligner(poses @ torch.from_numpy(BASE_FROM_CAMERA))), bag)
    assert sum(record.state.name == "TRACKING" for record in run.records) > 0.95 * len(run.records)
    assert run.findings["time_offset_s"] == pytest.approx(-LATE_NS * 1e-9, abs=0.01)
    assert run.findings["way_ratio"] == pytest.approx(1.2, abs=0.02)
    assert len(run.remarks) == 3
    write_run(tmp_path / "run", run)
    again = read_run(tmp_path / "run")
    assert again.findings == run.findings and again.remarks == run.remarks
    evaluation = evaluate(again)
    text = format_run(evaluation.figures)
    said = ("images are stamped 0.0", "the odometry's way is 1.", "the odometry's linear and angular twist is zero")
    assert all(f"WARNING: {words}" in text for words in said)
    page = run_report("run", "", [evaluation])
    assert all(remark.replace("'", "&#x27;") in page for remark in run.remarks)
    assert f"{run.findings['way_ratio']:.4f} ± " in page
