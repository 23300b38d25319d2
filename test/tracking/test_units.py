# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""An image is aligned with a map of any unit of length, as COLMAP makes them: the same pose, in that unit."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from mapping_helpers import look_at, pinhole, plane_images

from pixloc_ros.features import load_extractor
from pixloc_ros.geometry import se3
from pixloc_ros.io.images import load_image
from pixloc_ros.mapping.build.building import build_map
from pixloc_ros.tracking.frame_aligner import FrameAligner

CAMERA = pinhole(320, 240, 250.0)
POSES = torch.stack([look_at((0.1 * k, -1.5, 2.5), (0, 0, 0)) for k in range(3)])


@pytest.fixture(scope="module")
def plane(tmp_path_factory):
    """A map of the first and the last image of a plane, and the one between."""
    xyz = np.random.default_rng(0).uniform((-2, -2, 0), (2, 2, 0), (600, 3))
    source = plane_images(tmp_path_factory.mktemp("plane"), POSES, CAMERA, xyz)
    used = source.observation_image != 1
    mapped = replace(source, observation_image=source.observation_image[used], observation_point=source.observation_point[used])
    return build_map(mapped, load_extractor())[0], load_image(source.paths[1])


@pytest.mark.parametrize("with_prior", [False, True])
def test_the_pose_is_found_in_any_unit_of_length(plane, with_prior):
    (map_, image), extractor = plane, load_extractor()
    start = POSES[1] @ se3.se3_exp(torch.tensor([0.02, -0.03, 0.02, 0.01, -0.01, 0.01], dtype=torch.float64))
    found = {}
    for unit in (1.0, 1e-6, 1e-3, 1e3, 1e6):
        lengths = torch.tensor([unit] * 3 + [1.0] * 3, dtype=torch.float64)
        keyframes, prior = map_.map_from_keyframe.clone(), start.clone()
        keyframes[:, :3, 3] *= unit
        prior[:3, 3] *= unit
        depths = map_.keyframe_depth * np.float32(unit)
        scaled = replace(map_, map_from_keyframe=keyframes, xyz=map_.xyz * unit, keyframe_depth=depths)
        covariance = torch.diag((0.03 * lengths) ** 2) if with_prior else None
        result = FrameAligner(scaled, extractor).localize(image, CAMERA, prior, covariance)
        assert result.success, (unit, result.reason)
        pose = result.map_from_camera.clone()
        pose[:3, 3] /= unit
        found[unit] = pose, result.covariance / torch.outer(lengths, lengths), result.depth / unit
    assert se3.pose_difference(found[1.0][0], POSES[1])[0] < 0.005
    for pose, covariance, depth in found.values():
        torch.testing.assert_close(pose, found[1.0][0], rtol=0, atol=2e-5)
        torch.testing.assert_close(covariance, found[1.0][1], rtol=1e-2, atol=1e-12)
        assert depth == pytest.approx(found[1.0][2], rel=1e-4)
