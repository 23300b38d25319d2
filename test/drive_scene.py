# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""A drive through a textured hall, as images, a video and bags, for tests of maps without poses."""

import cv2
import numpy as np
import torch
from bag_writing import BASE_FROM_CAMERA, BagWriter
from mapping_helpers import look_at, pinhole, texture

WIDTH, HEIGHT, FOCAL = 320, 240, 250.0
CAMERA = pinhole(WIDTH, HEIGHT, FOCAL)
START, STEP = 1_700_000_000_000_000_000, 100_000_000
HALF = np.array((5.0, 4.0, 1.5))  # of the hall's sides; its middle is the origin
PICTURES = [texture(seed=seed) for seed in range(6)]
TURN_BACK = 24


def pose_at(k, count=TURN_BACK):
    """map_from_camera of the k-th image: sideways along a wall, looking at it."""
    along = k / max(count - 1, 1)
    return look_at((-2.0 + 3.0 * along, -0.6 + 0.4 * np.sin(3 * along), 0.1), (-1.4 + 3.0 * along, 4.0, -0.2)).numpy()


def turning_at(k):
    """map_from_camera of a camera that only turns."""
    angle = 0.06 * k
    return look_at((0.0, 0.0, 0.0), (np.sin(angle), np.cos(angle), 0.0)).numpy()


def view(pose, camera=CAMERA):
    """Grey image uint8 [H, W] of the hall from a pose [4, 4]."""
    columns, rows = np.meshgrid(np.arange(WIDTH), np.arange(HEIGHT))
    rays, _ = camera.unproject(torch.from_numpy(np.stack((columns, rows), -1).reshape(-1, 2).astype(float)))
    rays = rays.numpy() @ pose[:3, :3].T
    with np.errstate(divide="ignore"):
        reach = (np.sign(rays) * HALF - pose[:3, 3]) / rays
    side = reach.argmin(1)
    hit = pose[:3, 3] + rays * reach.min(1)[:, None]
    image = np.zeros(len(rays), np.uint8)
    for axis in range(3):
        others = [other for other in range(3) if other != axis]
        where = ((hit[:, others] + 5.0) * 100).astype(np.float32).reshape(HEIGHT, WIDTH, 2)
        for sign in (0, 1):
            seen = cv2.remap(PICTURES[2 * axis + sign], where, None, cv2.INTER_LINEAR, borderMode=cv2.BORDER_WRAP).ravel()
            image = np.where((side == axis) & ((rays[:, axis] > 0) == sign), seen, image)
    return image.reshape(HEIGHT, WIDTH)


def write_images(folder, poses, camera=CAMERA):
    """The views of poses as files; the folder."""
    folder.mkdir(parents=True)
    for k, pose in enumerate(poses):
        cv2.imwrite(str(folder / f"{k:04d}.png"), view(pose, camera))
    return folder


def write_video(path, poses):
    """The views of poses as a video; its path."""
    video = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), 10.0, (WIDTH, HEIGHT))
    for pose in poses:
        video.write(cv2.cvtColor(view(pose), cv2.COLOR_GRAY2BGR))
    video.release()
    return path


def write_bag(path, poses, odometry=None, storage="mcap", static=True, light=1.0):
    """The views of poses as a bag; its path. odometry: called with number and odom_from_base, gives what the wheels say."""
    with BagWriter(path, storage) as bag:
        if static:
            bag.transform("/tf_static", START, "base_link", "camera_optical", BASE_FROM_CAMERA)
        for k, pose in enumerate(poses):
            stamp = START + k * STEP
            bag.info(stamp, WIDTH, HEIGHT, FOCAL)
            bag.image(stamp, (light * view(pose)).astype(np.uint8), WIDTH, HEIGHT)
            if odometry is not None:
                bag.odometry(stamp, odometry(k, pose @ np.linalg.inv(BASE_FROM_CAMERA)), "/odom", ("odom", "base_link"))
    return path


def similarity(found, truth):
    """Scale and root mean square distance of centres [K, 3] after the similarity that fits them best."""
    a, b = found - found.mean(0), truth - truth.mean(0)
    u, s, v = np.linalg.svd(b.T @ a)
    d = np.array((1.0, 1.0, np.linalg.det(u @ v)))
    scale = (s * d).sum() / (a**2).sum()
    return scale, float(np.sqrt(((scale * a @ (u * d @ v).T - b) ** 2).sum(1).mean()))
