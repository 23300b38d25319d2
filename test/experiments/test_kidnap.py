# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""Altered drives: what the tracker is shown of a bag that is cut or blackened, and how its answers are counted."""

import kidnap
import pytest
import torch
from test_track_offline import FRAMES, PERIOD, SLIP, T0, TrueLocalizer, truth_at, write_drive

from pixloc_ros.evaluation.offline import run_bag
from pixloc_ros.geometry import se3
from pixloc_ros.io.bags import BagReader
from pixloc_ros.io.frames import OdometryMessage
from pixloc_ros.tracking.tracker import Tracker
from pixloc_ros.tracking.types import TrackState


@pytest.fixture(scope="module")
def bag(tmp_path_factory):
    with BagReader(write_drive(tmp_path_factory.mktemp("kidnap") / "b")) as bag:
        yield bag


def stamp(frame: int) -> int:
    return T0 + frame * PERIOD


def test_a_cut_is_unknown_to_stamps_and_odometry(bag):
    drive = kidnap.Part(stamp(1), stamp(11), cut=(stamp(4), stamp(8))).of(bag)
    events = list(drive.events())
    images = [e for e in events if not isinstance(e, OdometryMessage)]
    odometry = [e for e in events if isinstance(e, OdometryMessage)]
    assert [int(e.image[0, 0]) for e in images] == [1, 2, 3, 8, 9, 10]
    assert [e.stamp_ns for e in images] == [stamp(k) for k in range(1, 7)] == list(drive.image_stamps())
    assert drive.image_count == len(images)
    assert [drive.cause.recorded_ns(e.stamp_ns) for e in images] == [stamp(k) for k in (1, 2, 3, 8, 9, 10)]
    stamps = [e.stamp_ns for e in events]
    assert stamps == sorted(stamps)
    # Wheels see the robot go on as if it had not been carried: a fiftieth of a second of driving between all samples.
    for before, after in zip(odometry, odometry[1:]):
        step = se3.inverse(before.odom_from_base) @ after.odom_from_base
        seconds = (after.stamp_ns - before.stamp_ns) * 1e-9
        assert seconds < 0.05
        torch.testing.assert_close(step, torch.from_numpy(truth_at(SLIP * seconds)), atol=1e-3, rtol=0)
    assert odometry[0].stamp_ns < stamp(1)


def test_a_blackout_blackens(bag):
    drive = kidnap.Part(stamp(0), stamp(FRAMES), black=(stamp(2), stamp(5))).of(bag)
    shown = [int(e.image.max()) for e in drive.events() if not isinstance(e, OdometryMessage)]
    assert shown == [0, 1, 0, 0, 0, *range(5, FRAMES)]


def test_wrong_poses_are_counted_by_state_and_the_first_right_one_is_timed(bag):
    drive = kidnap.Part(stamp(0), stamp(FRAMES)).of(bag)
    records = run_bag(Tracker(TrueLocalizer(offset_m=1.0)), drive).records
    outcome = kidnap.outcome(drive.cause, records, bag.truth(), stamp(2))
    given = [r for r in records if r.map_from_base is not None and r.stamp_ns >= stamp(2)]
    assert outcome["seconds"] is None and outcome["wrong_tracking"] + outcome["wrong_degraded"] == len(given) > 5
    records = run_bag(Tracker(TrueLocalizer(fails=(2, 3))), drive).records
    assert records[2].state is TrackState.DEGRADED
    outcome = kidnap.outcome(drive.cause, records, bag.truth(), stamp(2))
    assert outcome["seconds"] == pytest.approx(0.2) and outcome["images"] == 3
    assert outcome["wrong_tracking"] == outcome["wrong_degraded"] == 0
    assert kidnap.run_event("carried away", TrueLocalizer(), bag, 0.9, 1.0) is None, "too little of the drive is left"
