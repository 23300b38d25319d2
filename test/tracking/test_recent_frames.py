# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""Images that the map does not explain are followed by those before them, and nothing else changes."""

from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch

from pixloc_ros.evaluation import offline
from pixloc_ros.evaluation.altered_bag import AlteredBag, Change
from pixloc_ros.evaluation.degradation import Degradation, degraded
from pixloc_ros.evaluation.runs import TRUTH_GAP_NS
from pixloc_ros.geometry import se3
from pixloc_ros.io.bags import BagReader
from pixloc_ros.localization import Localizer
from pixloc_ros.tracking.recent_frames import RecentFrameOptions, _Anchor, _described, _Points
from pixloc_ros.tracking.types import RigView, TrackState

BEGIN_S = 0.6
SECOND = 1_000_000_000


@pytest.fixture(scope="module")
def localizer(scene):
    return Localizer.open(scene.map)


def without_odometry(bag):
    return AlteredBag(bag, Change(keeps=lambda stamp_ns, is_image: is_image))


def inverted(seconds):
    return lambda bag: degraded(bag, Degradation("inverted", seconds), clear_s=BEGIN_S)


def slipping(bag):
    return degraded(bag, Degradation("odometry", 10))


def covered(bag):
    """From `BEGIN_S` on the camera sees the same dirt wherever it goes, in other noise."""
    begin_ns = min(bag.image_stamps()) + round(BEGIN_S * SECOND)
    small = np.random.default_rng(1).integers(0, 255, (24, 32), np.uint8)

    def change(image, stamp_ns):
        if stamp_ns < begin_ns:
            return image
        dirt = cv2.resize(small, image.shape[1::-1], interpolation=cv2.INTER_CUBIC)
        noise = np.random.default_rng(stamp_ns).normal(0, 4, dirt.shape)
        dirt = np.clip(dirt + noise, 0, 255).astype(np.uint8)
        return dirt if image.ndim == 2 else np.repeat(dirt[..., None], image.shape[2], 2)

    return AlteredBag(bag, Change(image=change))


def track(scene, localizer, *changes, between=True):
    """Records of the drive, and their errors in metres and NEES; NaN without a pose."""
    with BagReader(scene.drive) as bag:
        for change in changes:
            bag = change(bag)
        run = offline.run_bag(localizer.tracker(between_frames=between), bag)
    poses, _ = run.truth.at(run.stamps_ns, TRUTH_GAP_NS)
    errors, nees = np.full((2, len(run.records)), np.nan)
    for k, (record, pose) in enumerate(zip(run.records, poses)):
        if record.map_from_base is not None:
            xi = se3.se3_log(se3.inverse(record.map_from_base) @ pose)
            errors[k], nees[k] = float(xi[:3].norm()), float(xi @ torch.linalg.solve(record.covariance, xi))
    return run.records, errors, nees


def changed(records):
    """bool [N]: the images after `BEGIN_S`."""
    stamps = np.array([record.stamp_ns for record in records])
    return stamps >= stamps[0] + round(BEGIN_S * SECOND)


def test_nothing_changes_where_the_map_is_seen(scene, localizer):
    with_terms, without = (track(scene, localizer, between=between)[0] for between in (True, False))
    for one, other in zip(with_terms, without, strict=True):
        assert one.state is other.state is TrackState.TRACKING
        assert torch.equal(one.map_from_base, other.map_from_base) and torch.equal(one.covariance, other.covariance)


@pytest.mark.parametrize("shared", [True, False])
def test_cameras_count_each_also_where_they_share_a_calibration(scene, localizer, shared):
    aligner, options = localizer.aligner, RecentFrameOptions()
    with BagReader(scene.drive) as bag:
        frame, base_from_camera = next(bag.frames()), bag.base_from_camera
        pose = bag.truth().at([frame.stamp_ns], TRUTH_GAP_NS)[0][0] @ base_from_camera
    view = RigView("one", aligner.prepare(frame.image, frame.camera))
    described = _described(view, pose, aligner.points_near(pose, view.prepared.camera, 200))
    points = _Points([_Anchor(None, (), pose, [described])], options, cameras=2)
    counts = []
    for camera in (view.prepared.camera, view.prepared.camera if shared else replace(view.prepared.camera)) * 2:  # chosen twice
        counts.append(len(points.select(pose, camera, 100).points))
    assert counts == [100] * 4 and points.used.tolist() == [200]
    assert points.worth == pytest.approx(200.0, rel=0.05)


@pytest.mark.parametrize("wheels", ["as simulated", "slipping"])
def test_better_than_wheels_where_the_contrast_is_inverted(scene, localizer, wheels):
    changes = [inverted(9.0)] + [slipping] * (wheels == "slipping")
    records, errors, nees = track(scene, localizer, *changes)
    _, alone, _ = track(scene, localizer, *changes, between=False)
    dark = changed(records)
    assert {record.state for record, is_dark in zip(records, dark) if is_dark} == {TrackState.DEGRADED}
    assert errors[dark].mean() < 0.8 * alone[dark].mean()
    assert "following recent images" in records[-1].message
    if wheels == "as simulated":
        assert nees[dark].mean() < 12
    spreads = [float(record.covariance[:3, :3].trace()) for record, is_dark in zip(records, dark) if is_dark]
    assert min(spreads) > 0.99 * spreads[0]  # never better known than the first of them, that all hang on


def test_without_odometry_images_bridge_what_the_map_does_not_show(scene, localizer):
    records, errors, nees = track(scene, localizer, inverted(9.0), without_odometry)
    alone, *_ = track(scene, localizer, inverted(9.0), without_odometry, between=False)
    dark = changed(records)
    assert {record.state for record, is_dark in zip(records, dark) if is_dark} == {TrackState.DEGRADED}
    assert errors[dark].max() < 0.05 and nees[dark].mean() < 12
    assert alone[-1].map_from_base is None


@pytest.mark.parametrize("odometry", [True, False])
def test_the_map_is_found_again(scene, localizer, odometry):
    changes = [inverted(0.9)] + [without_odometry] * (not odometry)
    records, errors, _ = track(scene, localizer, *changes)
    assert sum(record.state is TrackState.DEGRADED for record in records) >= 4
    assert records[-1].state is TrackState.TRACKING
    tracked = [k for k, record in enumerate(records) if record.state is TrackState.TRACKING]
    assert errors[tracked].max() < 0.02


def test_dirt_on_the_lens_does_not_stop_the_robot(scene, localizer):
    """What is the same in all images says that the camera stands still: without odometry, too, that is not believed."""
    records, *_ = track(scene, localizer, covered, without_odometry)
    assert records[-1].map_from_base is None and records[-1].state in (TrackState.LOST, TrackState.RELOCALIZING)
    records, errors, _ = track(scene, localizer, covered)
    _, alone, _ = track(scene, localizer, covered, between=False)
    assert all(record.state is not TrackState.TRACKING for record, is_dark in zip(records, changed(records)) if is_dark)
    np.testing.assert_allclose(errors, alone, atol=0.01)
