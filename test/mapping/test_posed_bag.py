# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""Poses of the images of bags, and which images become keyframes."""

import cv2
import numpy as np
import pytest
import torch
from bag_writing import BASE_FROM_CAMERA
from posed_bag_writing import CAMERA, HEIGHT, PICTURE, START, STEP, WIDTH, pose_at, view, write_bag

from pixloc_ros.errors import InputError
from pixloc_ros.geometry import se3
from pixloc_ros.mapping.build.keyframes import KeyframeSelector, PosedFrame
from pixloc_ros.mapping.build.posed_bag import PosedBag, PosedBagOptions


@pytest.mark.parametrize(
    "storage, poses, image, asked",
    [
        ("mcap", "truth", "raw", {}),
        ("sqlite3", "tf", "compressed", {}),
        ("ros1", "truth", "raw", {}),
        ("mcap", "slam", "raw", {"poses": "/lio/odometry"}),
        ("mcap", "path", "raw", {}),
        ("mcap", "array", "raw", {"body_frame": "camera_optical"}),
    ],
)
def test_poses_of_every_kind_are_the_cameras_at_the_images_stamps(tmp_path, storage, poses, image, asked):
    path = tmp_path / ("drive.bag" if storage == "ros1" else "drive")
    write_bag(path, 5, storage, poses, image, pose_offset_ns=37_000_000)
    with PosedBag(path, PosedBagOptions(**asked)) as frames:
        seen = list(frames())
    assert [f.stamp_ns for f in seen] == [START + k * STEP for k in range(5)]
    for k, frame in enumerate(seen):
        distance, angle = se3.pose_difference(frame.map_from_camera, torch.from_numpy(pose_at(k * STEP / 1e9)))
        assert distance < 2e-3 and angle < 2e-3  # poses between stamps are interpolated
        assert frame.image.shape == (HEIGHT, WIDTH) and frame.depth is None


def test_what_cannot_be_guessed_is_asked_for(tmp_path):
    slam = write_bag(tmp_path / "slam", 2, poses="slam")
    with pytest.raises(InputError, match="/lio/odometry would do if it does not drift"):
        PosedBag(slam)
    with pytest.raises(InputError, match="no poses on /nothing"):
        PosedBag(slam, PosedBagOptions(poses="/nothing"))
    loose = write_bag(tmp_path / "loose", 2, static=False)
    with pytest.raises(InputError, match="--base-frame"):
        PosedBag(loose)
    with PosedBag(loose, PosedBagOptions(body_from_camera=torch.from_numpy(BASE_FROM_CAMERA))) as frames:
        assert len(list(frames())) == 2


def test_images_that_are_not_wanted_or_have_no_pose_are_left_out(tmp_path):
    bag = write_bag(tmp_path / "drive")
    with PosedBag(bag, PosedBagOptions(max_gap_ns=STEP // 2)) as frames:
        assert [type(frame) for frame in frames()] == [PosedFrame] * 16  # poses at the very stamps need no neighbour
    with PosedBag(bag, PosedBagOptions(every=3)) as frames:
        assert [f.stamp_ns for f in frames(lambda stamp_ns: stamp_ns > START)] == [START + k * STEP for k in (3, 6, 9, 12, 15)]
    with PosedBag(write_bag(tmp_path / "between", pose_offset_ns=1), PosedBagOptions(max_gap_ns=STEP // 2)) as frames:
        assert [frame.reason for frame in frames()] == ["no pose at the image's time"] * 16


def select(poses, image=lambda k, pose: view(pose)[0]):
    selector = KeyframeSelector()
    frames = [PosedFrame(START + k * STEP, image(k, pose), CAMERA, torch.from_numpy(pose)) for k, pose in enumerate(poses)]
    chosen = [*map(selector.feed, frames), selector.finish()]
    return [frame for frame in chosen if frame is not None], selector


def test_keyframes_follow_the_motion_of_the_picture():
    slow, _ = select([pose_at(0.04 * k) for k in range(40)])
    fast, _ = select([pose_at(0.2 * k) for k in range(8)])
    assert abs(len(slow) - len(fast)) <= 3 and len(slow) > 4  # the same path


def test_a_camera_that_stands_still_gives_one_keyframe_whatever_moves_before_it():
    def passing(k, pose):
        image = view(pose)[0]
        image[60:180, 10 * k : 10 * k + 120] = PICTURE[:120, :120]
        return image

    assert len(select([pose_at(0)] * 15, passing)[0]) == 1


def test_the_sharpest_image_of_a_stretch_is_kept_and_blank_ones_are_counted():
    def blurred(k, pose):
        image = view(pose)[0]
        return image if k == 2 else np.full_like(image, 80) if k >= 4 else cv2.GaussianBlur(image, (0, 0), 2)

    chosen, selector = select([pose_at(0.01 * k) for k in range(7)], blurred)
    assert [f.stamp_ns for f in chosen] == [START + 2 * STEP] and selector.blank == 3
