# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""Drives made worse: what changes, what does not, and that it is the same every time."""
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from training_scene import invented_photo

from pixloc_ros.errors import InputError
from pixloc_ros.evaluation.bags import OdometryMessage
from pixloc_ros.evaluation.degradation import CONDITIONS, DegradedBag
from pixloc_ros.tracking.types import CameraFrame

IMAGE = invented_photo(0, 320, 240)


def a_bag(seconds=8, rate=10):
    """A stand-in: frames, and odometry between them."""
    events = []
    for k in range(seconds * rate):
        stamp_ns = 10**18 + k * 10**9 // rate
        events += [OdometryMessage(stamp_ns, None), CameraFrame(stamp_ns, IMAGE, None)]
    return SimpleNamespace(events=lambda: iter(events), image_count=seconds * rate, odometry_topic="/odom")


def images(condition, seed=0):
    return [e.image for e in DegradedBag(a_bag(), condition, seed).events() if isinstance(e, CameraFrame)]


@pytest.mark.parametrize("condition", CONDITIONS)
def test_images_change_after_the_first_second_and_nothing_else_does(condition):
    bag = DegradedBag(a_bag(), condition)
    assert bag.image_count == 80 and bag.odometry_topic == "/odom"
    events = list(bag.events())
    assert sum(isinstance(e, OdometryMessage) for e in events) == 80
    found, again = images(condition), images(condition)
    assert all(np.array_equal(a, b) for a, b in zip(found, again, strict=True))
    assert all(i.shape == IMAGE.shape and i.dtype == np.uint8 for i in found)
    changed = [not np.array_equal(i, IMAGE) for i in found]
    assert not any(changed[:2])
    if condition in ("blurred", "dark", "occluded"):
        assert not any(changed[:10]) and all(changed[10:])
        assert not np.array_equal(found[20], images(condition, seed=1)[20])


def test_every_fourth_image_is_left():
    assert len(images("every fourth image")) == 20


def test_blank_images_come_in_bursts():
    blank = [abs(i.astype(float).mean() - 128) < 1 and i.std() < 5 for i in images("blank bursts")]
    assert blank[10:18] == [True] * 8 and blank[18:35] == [False] * 17 and blank[35:43] == [True] * 8


def test_degradations_are_as_strong_as_they_say():
    assert 0.29 < (images("occluded")[30] != IMAGE).mean() < 0.45
    assert images("dark")[30].mean() < 0.25 * IMAGE.mean()
    point = np.zeros((101, 101), np.uint8)
    point[50, 50] = 255
    blurred = DegradedBag(a_bag(), "blurred").degrade(point, 10**18 + 2 * 10**9, 2.0)
    rows, columns = np.nonzero(blurred)
    assert abs(np.hypot(np.ptp(rows), np.ptp(columns)) - 15) < 1.5
    moments = cv2.moments(blurred)
    assert abs(moments["m10"] / moments["m00"] - 50) < 0.3 and abs(moments["m01"] / moments["m00"] - 50) < 0.3


def test_unknown_conditions_are_refused():
    with pytest.raises(InputError, match="nominal"):
        DegradedBag(a_bag(), "fog")
