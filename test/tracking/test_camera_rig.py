# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""Robots with several cameras: better than one, and none the worse for one that fails."""

import math
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scenes import simulated_scene

from pixloc_ros.errors import InputError
from pixloc_ros.evaluation import offline
from pixloc_ros.evaluation.metrics import run_figures
from pixloc_ros.geometry import se3
from pixloc_ros.io.bag_sensors import IMU, find_sensor
from pixloc_ros.io.bags import BagOptions
from pixloc_ros.io.frames import CameraFrame
from pixloc_ros.io.rig_images import MAX_AGE_NS, WAIT_NS, LatestImages, open_bag
from pixloc_ros.localization import Localizer
from pixloc_ros.tracking.motion_prior import MotionOptions, motion_near
from pixloc_ros.tracking.odometry import OdometryBuffer
from pixloc_ros.tracking.options import TrackerOptions

FRONT, EVERY = ("front",), ("front", "left", "back")
MS = 1_000_000


@pytest.fixture(scope="module")
def rig(tmp_path_factory):
    return simulated_scene(tmp_path_factory, cameras=EVERY, imu=True, seconds=5.0)


@pytest.fixture(scope="module")
def localizer(rig):
    return Localizer.open(rig.map)


class Changed:
    """A bag whose frames another function changes."""

    def __init__(self, bag, change):
        self._bag, self._change = bag, change

    def __getattr__(self, name):
        return getattr(self._bag, name)

    def events(self):
        for event in self._bag.events():
            yield self._change(event) if isinstance(event, CameraFrame) else event


def drive(rig, localizer, cameras, change=None, imu=False, cold_start=False):
    """Figures of the drive, and what was said of cameras."""
    run, tracker = tracked(rig, localizer, cameras, change, imu, cold_start)
    return run_figures(run), tracker.rig.said


def tracked(rig, localizer, cameras, change=None, imu=False, cold_start=False):
    """The run, and its tracker."""
    tracker = localizer.tracker()
    with open_bag(rig.drive, BagOptions(), cameras) as bag:
        readings = find_sensor(bag, IMU, None)[0] if imu else None
        played = bag if change is None else Changed(bag, change)
        return offline.run_bag(tracker, played, imu=readings, cold_start=cold_start), tracker


def changed(name, change):
    """A change of the frames of the camera of that name."""

    def frame(event):
        others = tuple(replace(one, frame=change(one.frame)) if one.frame.name == name else one for one in event.others)
        return replace(change(event) if event.name == name else event, others=others)

    return frame


def covered(frame):
    return replace(frame, image=np.full_like(frame.image, 30))


def swapped(event):
    """With the images of left and back changed."""
    images = {one.name: one.image for one in (event, *(other.frame for other in event.others))}
    if len(images) < 3:
        return event
    images["left"], images["back"] = images["back"], images["left"]
    others = (replace(one, frame=replace(one.frame, image=images[one.frame.name])) for one in event.others)
    return replace(event, others=tuple(others))


def test_all_cameras_are_better_than_one(rig, localizer):
    alone, _ = drive(rig, localizer, FRONT, imu=True)
    together, said = drive(rig, localizer, EVERY, imu=True)
    assert not said and together["false_tracked_frames"] == 0 and together["tracked_fraction"] == 1.0
    assert together["rotation_error_median_deg"] < 0.8 * alone["rotation_error_median_deg"]


def test_without_a_gyro_images_of_other_times_do_no_harm(rig, localizer):
    alone, _ = drive(rig, localizer, FRONT)
    together, said = drive(rig, localizer, EVERY)
    assert not said and together["tracked_fraction"] == 1.0
    assert together["translation_error_median_m"] < 1.3 * alone["translation_error_median_m"]
    assert together["rotation_error_median_deg"] < 1.3 * alone["rotation_error_median_deg"]


@pytest.mark.parametrize("name", EVERY)
def test_a_covered_camera_is_left_out_and_named(rig, localizer, name):
    figures, said = drive(rig, localizer, EVERY, changed(name, covered))
    assert list(said) == [name] and "shows nothing of the map" in said[name]
    assert figures["tracked_fraction"] >= 0.9 and figures["false_tracked_frames"] == 0
    assert figures["translation_error_median_m"] < 0.02


def test_together_they_follow_what_the_map_does_not_show(rig, localizer):
    begin_ns = []

    def dark(event):
        begin_ns.append(event.stamp_ns)
        if event.stamp_ns < begin_ns[0] + 1000 * MS:
            return event
        others = (replace(one, frame=replace(one.frame, image=255 - one.frame.image)) for one in event.others)
        return replace(event, image=255 - event.image, others=tuple(others))

    figures, _ = drive(rig, localizer, EVERY, dark)
    assert figures["losses"] == 0 and figures["states"]["DEGRADED"] > 0.7 * figures["frames"]
    assert figures["translation_error_p95_m"] < 0.1


def test_a_wrong_mount_is_measured(rig, localizer):
    turn = torch.tensor([0.0, 0.0, math.radians(6.0)], dtype=torch.float64)
    wrong = se3.from_rotation_translation(se3.so3_exp(turn), torch.zeros(3, dtype=torch.float64))

    def remounted(event):
        others = (
            replace(one, base_from_camera=wrong @ one.base_from_camera) if one.frame.name == "left" else one
            for one in event.others
        )
        return replace(event, others=tuple(others))

    figures, said = drive(rig, localizer, EVERY, remounted, imu=True)
    assert list(said) == ["left"] and "check base_from_camera" in said["left"]
    assert float(said["left"].split("mounted ")[1].split("°")[0]) == pytest.approx(6.0, abs=0.5)
    assert figures["tracked_fraction"] == 1.0 and figures["false_tracked_frames"] == 0
    assert figures["translation_error_median_m"] < 0.02


@pytest.mark.parametrize("factor", [1.0, 1.02, 1.06])
def test_the_focal_length_of_each_camera_is_checked(rig, localizer, factor):
    def other_lens(frame):
        params = frame.camera.params.clone()
        params[:2] *= factor
        return replace(frame, camera=replace(frame.camera, params=params))

    run, tracker = tracked(rig, localizer, EVERY, changed("left", other_lens), imu=True)
    wrong = {name: text for name, text in tracker.rig.calibrations.items() if text}
    assert list(wrong) == ["left"] * (factor > 1.0)
    figures = run_figures(run)
    assert figures["tracked_fraction"] == 1.0 and figures["translation_error_median_m"] < 0.02
    if factor > 1.0:
        assert float(wrong["left"].split("some ")[1].split("%")[0]) == pytest.approx(100 * (factor - 1), abs=0.7)
        assert "too long" in wrong["left"] and tracker.rig.problems["left"] == ""


@pytest.mark.parametrize("name", ["front", "left"])
def test_a_camera_that_hangs_is_named(rig, localizer, name):
    first = {}

    def hangs(frame):
        return replace(frame, image=first.setdefault(frame.name, frame.image))

    figures, said = drive(rig, localizer, EVERY, changed(name, hangs))
    assert list(said) == [name] and "repeats a picture" in said[name]
    assert figures["tracked_fraction"] >= 0.9 and figures["false_tracked_frames"] == 0


def test_an_image_in_two_frames_is_no_camera_that_hangs(localizer):
    rig, buffer = localizer.tracker().rig, OdometryBuffer()
    for ms in range(0, 500, 20):
        buffer.add(ms * MS, moving(ms / 1000))
    image = np.arange(64, dtype=np.uint8).reshape(8, 8)

    def hangs(stamp_ms, ms):
        return rig._hangs(CameraFrame(stamp_ms * MS, image, None, name="left"), SimpleNamespace(odometry=buffer.lookup(ms * MS)))

    assert not hangs(100, 100) and not hangs(100, 200) and hangs(300, 300) and hangs(300, 400)


@pytest.mark.parametrize("hangs", [False, True])
def test_a_camera_that_hangs_is_noticed_at_the_first_image_that_is_used(rig, localizer, hangs):
    """Images in between were dropped, so that the tracker never saw the picture before."""
    bag, tracker = open_bag(rig.drive, BagOptions(), FRONT), localizer.tracker(relocalization=False)
    with bag:
        stamp_ns, pose = offline.first_pose(bag, bag.truth(), None)
        tracker.initialize(pose, offline.initial_covariance(), stamp_ns)
        frames, result = [], None
        for event in bag.events():
            if not isinstance(event, CameraFrame):
                tracker.add_odometry(event.stamp_ns, event.odom_from_base, event.twist_covariance)
            elif event.stamp_ns >= stamp_ns:
                frames.append(event)
        for frame in frames[:10]:
            assert tracker.track(frame, bag.base_from_camera).state.name == "TRACKING"
        first, later = frames[11], frames[16]
        image = first.image if hangs else later.image
        result = tracker.track(replace(later, image=image, shown_ns=(first if hangs else later).stamp_ns), bag.base_from_camera)
    assert (result.state.name == "TRACKING") != hangs
    assert ("repeats a picture" in result.message) == hangs


def test_images_of_two_cameras_changed_places(rig, localizer):
    figures, said = drive(rig, localizer, EVERY, swapped, imu=True)
    assert set(said) == {"left", "back"}
    assert figures["tracked_fraction"] >= 0.95 and figures["false_tracked_frames"] == 0


def test_an_image_of_another_size_is_not_used(rig, localizer):
    figures, said = drive(rig, localizer, EVERY, changed("left", lambda frame: replace(frame, image=frame.image[:-20])))
    assert list(said) == ["left"] and "cannot be used" in said["left"]
    assert figures["tracked_fraction"] == 1.0 and figures["false_tracked_frames"] == 0


def test_a_pose_is_found_by_another_camera_than_the_first(rig, localizer):
    figures, _ = drive(rig, localizer, EVERY, changed("front", covered), cold_start=True)
    assert figures["tracked_fraction"] > 0.6 and figures["false_tracked_frames"] == 0


def test_of_too_many_cameras_some_are_used_by_turns(rig, localizer):
    tracker, used = localizer.tracker(options=TrackerOptions(max_cameras=2)), []
    with open_bag(rig.drive, BagOptions(), EVERY) as bag:
        for event in bag.events():
            if isinstance(event, CameraFrame):
                prepared = tracker.rig.prepare(event)
                used.append([one.frame.name for one in prepared.others])
                assert prepared.name == "front" and len(prepared.others_prepared) == 1
            if len(used) == 4:
                break
    assert used == [["left"], ["back"], ["left"], ["back"]] or used == [["back"], ["left"], ["back"], ["left"]]


def test_what_cannot_be_a_rig(rig):
    for cameras, options, text in (
        (("front", "front"), BagOptions(), "named twice"),
        (("front", "top"), BagOptions(), "no images below /top"),
        (EVERY, BagOptions(base_from_camera=torch.eye(4, dtype=torch.float64)), "let TF say"),
    ):
        with pytest.raises(InputError, match=text), open_bag(rig.drive, options, cameras):
            pass


# ---- which images make a frame


def frames_of(names, *images):
    """The frames that images (camera, stamp in ms) make, as stamps in ms by camera."""
    latest, frames = LatestImages(names), []
    for name, ms in images:
        frames.append(latest.add(name, ms * MS, (name, ms)))
    frames.append(latest.rest())
    return [{name: stamp // MS for name, (stamp, _) in frame.items()} for frame in frames if frame]


def test_frames_hold_the_nearest_images():
    frames = frames_of(("a", "b"), ("a", 0), ("b", 10), ("b", 95), ("a", 100), ("b", 115), ("a", 200))
    assert frames == [{"a": 0, "b": 10}, {"a": 100, "b": 95}, {"a": 200, "b": 115}]


def test_a_frame_waits_only_a_little_for_a_camera_that_is_late():
    late = WAIT_NS // MS + 1
    frames = frames_of(("a", "b"), ("a", 0), ("b", 5), ("a", 100), ("a", 100 + late), ("b", 102 + late))
    assert [frame["a"] for frame in frames] == [0, 100, 100 + late]


def test_a_slow_camera_does_not_hold_up_a_fast_one():
    images = [("a", 30 * k) for k in range(7)] + [("b", 100), ("b", 5)]
    frames = frames_of(("a", "b"), *sorted(images, key=lambda image: image[1]))
    assert [frame["a"] for frame in frames] == [30 * k for k in range(7)]
    assert [frame.get("b") for frame in frames] == [5, 5, 5, 100, 100, 100, 100]


def test_another_camera_leads_when_the_first_is_silent_and_time_never_goes_back():
    images = [("a", 0), ("b", 3)] + [("b", 3 + 100 * k) for k in range(1, 8)] + [("a", 690), ("a", 790), ("b", 803)]
    leads = [next(iter(frame.items())) for frame in frames_of(("a", "b"), *images)]
    assert {name for name, _ in leads[2:-1]} >= {"b"} and leads[-1][0] == "a"
    assert [ms for _, ms in leads] == sorted({ms for _, ms in leads})


def test_an_old_image_is_not_used():
    frames = frames_of(("a", "b"), ("b", 0), ("a", MAX_AGE_NS // MS + 1))
    assert frames[-1] == {"a": MAX_AGE_NS // MS + 1}


# ---- motion between images


def moving(seconds):
    return se3.se3_exp(seconds * torch.tensor([0.5, 0.0, 0.0, 0.0, 0.0, 0.4], dtype=torch.float64))


@pytest.mark.parametrize("other_ms", [-25, 30])
def test_motion_to_an_image_before_or_after(other_ms):
    buffer = OdometryBuffer()
    for ms in range(0, 300, 20):
        buffer.add(ms * MS, moving(ms / 1000))
    here, then = (buffer.lookup(ms * MS) for ms in (120, 120 + other_ms))
    motion, covariance = motion_near(120 * MS, None, here, (120 + other_ms) * MS, then, buffer, MotionOptions())
    torch.testing.assert_close(motion, moving(other_ms / 1000), atol=2e-5, rtol=0)  # odometry is interpolated
    known = covariance.diagonal()
    motion, covariance = motion_near(120 * MS, None, None, (120 + other_ms) * MS, None, buffer, MotionOptions())
    torch.testing.assert_close(motion, torch.eye(4, dtype=torch.float64))
    assert bool((covariance.diagonal() > 4 * known).all())
