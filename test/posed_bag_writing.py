# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""Bags of views of a textured plane with the poses of the camera, for tests of maps."""

import cv2
import numpy as np
import torch
from bag_writing import BASE_FROM_CAMERA, BagWriter
from mapping_helpers import look_at, pinhole, plane_view, texture

WIDTH, HEIGHT, FOCAL = 320, 240, 250.0
CAMERA = pinhole(WIDTH, HEIGHT, FOCAL)
START, STEP = 1_700_000_000_000_000_000, 100_000_000
CAMERA_FROM_BASE = np.linalg.inv(BASE_FROM_CAMERA)
PICTURE = texture()
DEPTH_TOPIC = "/camera/aligned_depth/image_raw"


def pose_at(seconds):
    """map_from_camera of a camera that moves sideways above a plane."""
    return look_at((0.5 * seconds - 0.8, -1.2 + 0.1 * seconds, 1.8), (0.6 * seconds - 0.9, 0.2, 0.0)).numpy()


def view(pose):
    """Grey image and depth in metres that the camera has of the plane from a pose [4, 4]."""
    return plane_view(torch.from_numpy(pose), CAMERA, PICTURE)


def write_bag(
    path, count=16, storage="mcap", poses="truth", image="raw", depth=None, pose_offset_ns=0, static=True, bad_pose=None, **more
):
    """Write a bag.

    Args:
        path: Of the bag.
        count: Of images.
        storage: As of `BagWriter`.
        poses: What gives them: "truth", "slam", "tf", "array" or "path".
        image: "raw" or "compressed".
        depth: Encoding of a depth topic.
        pose_offset_ns: From the images' stamps to the poses'.
        static: Whether there are static transforms.
        bad_pose: Number of an image whose pose is not a number.
        more: As of `write_image`.
    """
    with BagWriter(path, storage) as bag:
        if static:
            bag.transform("/tf_static", START, "base_link", "camera_optical", BASE_FROM_CAMERA)
        path_poses = []
        for k in range(-1, count + 1):  # poses on both sides of the images
            stamp = START + k * STEP + pose_offset_ns
            pose = pose_at((k * STEP + pose_offset_ns) / 1e9)
            base = pose @ CAMERA_FROM_BASE
            if k == bad_pose:
                base = base * np.nan
            if poses == "truth":
                bag.truth(stamp, base, "/ground_truth/pose")
            elif poses == "slam":
                bag.odometry(stamp, base, "/lio/odometry", ("map", "base_link"))
            elif poses == "tf":  # map -> odom -> base_link, both moving
                drift = np.eye(4)
                drift[:3, 3] = (0.01 * k, -0.02 * k, 0.5)
                bag.transform("/tf", stamp, "map", "odom", drift)
                bag.transform("/tf", stamp, "odom", "base_link", np.linalg.inv(drift) @ base)
            elif poses == "array":
                bag.put(stamp, "/poses", bag.make("geometry_msgs/PoseArray", bag.header(stamp, "map"), [bag.pose(pose)]))
            else:
                path_poses.append(bag.pose_stamped(stamp, "map", base))
            if 0 <= k < count:
                write_image(bag, k, image, depth, **more)
        if path_poses:
            bag.put(stamp, "/slam/path", bag.make("nav_msgs/Path", bag.header(START, "map"), path_poses))
    return path


def write_image(bag, k, image, depth, moving=None, other_depth=None, depth_units=None):
    """The k-th image with its camera and depth.

    Args:
        bag: Where it goes.
        k: Its number.
        image: As of `write_bag`.
        depth: As of `write_bag`.
        moving: Called with the image and the number, changes it.
        other_depth: Called with bag, number and stamp; writes another depth image and says whether it did.
        depth_units: Per metre, by default 1000 of 16UC1 and 1 of 32FC1.
    """
    stamp = START + k * STEP
    grey, metres = view(pose_at(k * STEP / 1e9))
    grey = grey if moving is None else moving(grey, k)
    bag.info(stamp, WIDTH, HEIGHT, FOCAL)
    if depth is not None and not (other_depth and other_depth(bag, k, stamp)):
        units = depth_units or (1000 if depth == "16UC1" else 1)
        values = (metres * units).round().astype(np.uint16) if depth == "16UC1" else (metres * units).astype(np.float32)
        bag.image(stamp + 1_000_000 * (k % 3), values, WIDTH, HEIGHT, depth, topic=DEPTH_TOPIC)
    if image == "raw":
        bag.image(stamp, grey, WIDTH, HEIGHT)
    else:
        bag.compressed(stamp, cv2.imencode(".png", grey)[1].tobytes(), "mono8; png compressed")
