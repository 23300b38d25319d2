# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""The offline run with a localizer that reads the frame's number from its pixels and knows the truth."""

import json
import threading

import numpy as np
import pytest
import torch
from bag_writing import BASE_FROM_CAMERA, BagWriter

from pixloc_ros.errors import InputError
from pixloc_ros.evaluation import offline
from pixloc_ros.evaluation.metrics import run_figures
from pixloc_ros.evaluation.offline import read_ahead
from pixloc_ros.geometry import se3
from pixloc_ros.io.bags import BagOptions, BagReader
from pixloc_ros.tracking.tracker import Tracker
from pixloc_ros.tracking.types import FrameAlignment

W, H, T0 = 80, 64, 1_700_000_000_000_000_000
FRAMES, PERIOD = 12, 100_000_000
SLIP = 1.1


def truth_at(seconds: float) -> np.ndarray:
    """One metre a second forwards, turning slowly."""
    xi = torch.tensor([1.0, 0, 0, 0, 0, 0.1], dtype=torch.float64) * seconds
    return se3.se3_exp(xi).numpy()


class TrueLocalizer:
    """Returns the truth, moved by `offset_m`, except for the frames in `fails`."""

    def __init__(self, offset_m=0.0, fails=()):
        self.offset_m, self.fails, self.calls = offset_m, set(fails), []

    def prepare(self, image, camera):
        return image

    def localize_prepared(self, image, map_from_camera, prior_covariance=None):
        number = int(image[0, 0])
        self.calls.append(number)
        pose = torch.from_numpy(truth_at(number * PERIOD * 1e-9) @ BASE_FROM_CAMERA)
        pose[0, 3] += self.offset_m
        good = number not in self.fails
        pose, reason = (pose, "converged") if good else (map_from_camera, "diverged")
        covariance, times = torch.eye(6, dtype=torch.float64) * 1e-6, {"features": 1.0, "alignment": 2.0}
        return FrameAlignment(pose, covariance, good, reason, 0.1, 0.9, 1.0, 200, 5, times, probability=0.999)


def write_drive(path, odometry=True, truth=True, last_odometry=True, late_ns=0, numbers=range(FRAMES)):
    with BagWriter(path) as bag:
        bag.transform("/tf_static", T0, "base_link", "camera_optical", BASE_FROM_CAMERA)
        for i in numbers:
            stamp = T0 + i * PERIOD
            bag.info(stamp + late_ns, W, H, 70.0)
            bag.image(stamp + late_ns, np.full((H, W), i, np.uint8), W, H)
            if truth:
                bag.truth(stamp, truth_at(i * PERIOD * 1e-9))
        if odometry:
            for j in range(-1, (max(numbers) + 1) * 5 - (0 if last_odometry else 10)):
                # Odometry begins elsewhere and is 10 % too long; samples lie between the images, not at them.
                seconds = j * 0.02 + 0.007
                bag.odometry(T0 + round(seconds * 1e9), truth_at(SLIP * seconds))
    return path


def run(path, localizer, **arguments):
    with BagReader(path) as bag:
        return offline.run_bag(Tracker(localizer), bag, **arguments)


def test_every_frame_is_tracked_and_scored(tmp_path):
    path = write_drive(tmp_path / "b")
    result = run(path, TrueLocalizer(offset_m=0.01))
    stats = run_figures(result)
    assert (stats["frames"], stats["tracked_frames"], stats["tracked_fraction"], stats["losses"]) == (12, 12, 1.0, 0)
    assert stats["states"]["TRACKING"] == 12
    assert stats["scored_frames"] == 12
    assert stats["translation_error_median_m"] == pytest.approx(0.01, abs=1e-9)
    assert stats["rotation_error_max_deg"] == pytest.approx(0, abs=1e-6)
    assert stats["recall"]["0.05m_1deg"] == 1 and stats["false_tracked_frames"] == 0
    assert stats["nees_mean"] > 0
    # 10 % too long after 1.1 s at 1 m/s
    assert stats["odometry_error_max_m"] == pytest.approx(0.11, abs=0.005)
    assert set(stats["stage_ms"]) == {"features", "alignment"} and stats["frame_ms_p50"] > 0
    json.dumps(stats, allow_nan=False)


def test_a_time_offset_undoes_late_stamps(tmp_path):
    """Images stamped 80 ms late: with the offset the poses are at their stamps, and odometry agrees with them again."""
    late_s = 0.08
    path = write_drive(tmp_path / "b", late_ns=round(late_s * 1e9))
    for offset_s, error_m in ((0.0, late_s), (-late_s, 0.0)):
        with BagReader(path, BagOptions(time_offset_s=offset_s)) as bag:
            result = offline.run_bag(Tracker(TrueLocalizer()), bag)
        stats = run_figures(result)
        assert stats["tracked_frames"] == FRAMES
        assert [r.stamp_ns for r in result.records] == [T0 + i * PERIOD + round((late_s + offset_s) * 1e9) for i in range(FRAMES)]
        assert stats["translation_error_median_m"] == pytest.approx(error_m, abs=1e-3)


def test_a_gap_in_the_images_loses_the_pose_and_is_told(tmp_path):
    """As in the node: what odometry alone gives after a while is not believed, and images bring the pose back."""
    result = run(write_drive(tmp_path / "b", numbers=[*range(6), *range(80, 90)]), TrueLocalizer())
    states = [record.state.name for record in result.records]
    assert states[:6] == ["TRACKING"] * 6 and states[-1] == "TRACKING"
    assert "the first image after 7.5 s" in result.records[6].message
    assert [text for text in result.remarks if "no image could be used for 7.5 s" in text]


def test_last_frames_without_odometry_are_still_processed(tmp_path):
    localizer = TrueLocalizer()
    result = run(write_drive(tmp_path / "b", last_odometry=False), localizer)
    assert localizer.calls[1:] == list(range(FRAMES))
    assert len(result.records) == FRAMES


def test_failures_are_counted_and_skipped_frames_not_scored(tmp_path):
    path = write_drive(tmp_path / "b")
    result = run(path, TrueLocalizer(fails=range(6, 12)))
    stats = run_figures(result, skip_map_frames=3)
    assert stats["scored_frames"] == 8
    assert stats["tracked_frames"] == 6
    assert stats["states"]["DEGRADED"] == 6
    assert stats["published_frames"] == 12
    assert any("diverged" in message for message in stats["messages"])
    assert stats["translation_error_max_m"] > 0.02  # dead reckoning on odometry that slips


def test_unusable_images_are_counted(tmp_path):
    with BagWriter(tmp_path / "b") as bag:
        bag.transform("/tf_static", T0, "base_link", "camera_optical", BASE_FROM_CAMERA)
        for i in range(4):
            bag.info(T0 + i * PERIOD, W, H, 70.0)
            width = W if i != 2 else W // 2
            bag.image(T0 + i * PERIOD, np.full((H, width), i, np.uint8), width, H)
            bag.truth(T0 + i * PERIOD, truth_at(i * 0.1))
    result = run(tmp_path / "b", TrueLocalizer())
    stats = run_figures(result)
    assert (stats["frames"], stats["unusable_frames"], stats["tracked_frames"]) == (4, 1, 3)
    assert any("40x64" in message for message in stats["messages"])
    assert stats["recall"]["5m_10deg"] == 0.75


def test_without_truth_or_odometry_a_pose_must_be_given(tmp_path):
    path = write_drive(tmp_path / "b", truth=False, odometry=False)
    with pytest.raises(InputError, match="--initial-pose"):
        run(path, TrueLocalizer())
    stats = run_figures(run(path, TrueLocalizer(), initial_pose=torch.from_numpy(truth_at(0.0))))
    assert stats["tracked_frames"] == FRAMES
    assert "translation_error_median_m" not in stats and "odometry_error_median_m" not in stats


def test_reading_ahead_changes_nothing_but_the_time(tmp_path):
    path = write_drive(tmp_path / "b")
    plain, ahead = TrueLocalizer(0.01, fails=(4, 5)), TrueLocalizer(0.01, fails=(4, 5))
    one, other = run(path, plain), run(path, ahead, ahead=True)
    assert torch.equal(one.estimate.map_from_body, other.estimate.map_from_body)
    assert torch.equal(one.estimate.covariances, other.estimate.covariances)
    assert [r.state for r in one.records] == [r.state for r in other.records] and ahead.calls == plain.calls
    assert torch.equal(one.odometry.map_from_body, other.odometry.map_from_body)
    names = {thread.name for thread in threading.enumerate()}
    assert "read ahead" not in names


def test_reading_ahead_ends_early_and_hands_errors_on(tmp_path):
    path = write_drive(tmp_path / "b")
    few = run(path, TrueLocalizer(), ahead=True, watch=lambda frame, result: frame.stamp_ns >= T0 + 3 * PERIOD)
    assert len(few.records) == 4

    def torn():
        yield from range(3)
        raise InputError("the bag is damaged")

    events = read_ahead(torn(), lambda frame: None)
    assert [next(events) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(InputError, match="damaged"):
        next(events)
    assert "read ahead" not in {thread.name for thread in threading.enumerate()}


def test_an_image_that_cannot_be_prepared_is_told_by_the_tracker(tmp_path):
    class Picky(TrueLocalizer):
        def prepare(self, image, camera):
            if image[0, 0] == 3:
                raise InputError("too dark")
            return super().prepare(image, camera)

    stats = run_figures(run(write_drive(tmp_path / "b"), Picky(), ahead=True))
    assert (stats["frames"], stats["unusable_frames"], stats["messages"]) == (12, 1, {"too dark": 1})
