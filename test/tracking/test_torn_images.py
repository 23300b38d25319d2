# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""Images of which a part is shifted sideways, as by a few wrong bytes of a JPEG: a pose that fits one part is not believed."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from pixloc_ros.evaluation.offline import run_bag
from pixloc_ros.geometry import se3
from pixloc_ros.io import messages
from pixloc_ros.io.bags import BagReader
from pixloc_ros.localization import Localizer
from pixloc_ros.tracking.judge import is_torn
from pixloc_ros.tracking.types import TrackState


@pytest.mark.parametrize("upright", [0.2, 0.3, 0.5, 0.8], ids=lambda share: f"{share:.0%} in place")
def test_the_pose_of_a_torn_image_is_not_believed(scene, monkeypatch, upright):
    """Half of the points agree with the wrong pose and the judge is sure of it."""
    read, torn = messages.image_of, []

    def image_of(message):
        image = read(message)
        if len(torn) % 4 == 3:
            row = round(upright * len(image) / 16) * 16
            image = np.concatenate((image[:row], np.roll(image[row:], 16, 1)))
        torn.append(image)
        return image

    monkeypatch.setattr(messages, "image_of", image_of)
    with BagReader(scene.drive) as bag:
        run, truth = run_bag(Localizer.open(scene.map).tracker(), bag), bag.truth()
    states = [record.state for record in run.records]
    assert states.count(TrackState.TRACKING) >= len(states) * 0.7 and TrackState.LOST not in states, states
    for record in run.records:
        pose, _ = truth.at(np.array([record.stamp_ns]), 10**9)
        away, angle = se3.pose_difference(pose[0], record.map_from_base)
        assert record.state is not TrackState.TRACKING or (away < 0.25 and angle < np.radians(2)), record
    said = [record.message for record in run.records if record.state is TrackState.DEGRADED]
    assert upright > 0.3 or any("torn across: check the camera's cable and driver" in text for text in said), said


@pytest.mark.parametrize("upper, lower, torn", [(0.9, 0.1, True), (0.1, 0.6, True), (0.9, 0.6, False), (0.2, 0.2, False)])
def test_parts_that_agree_in_unlike_shares_are_torn(upper, lower, torn):
    rng = np.random.default_rng(0)
    rows = rng.uniform(0, 240, 300)
    agrees = rng.uniform(size=300) < np.where(rows < 80, upper, lower)
    visible = rng.uniform(size=300) < 0.9
    pixels = torch.from_numpy(np.stack((rows, rows), 1))
    result = SimpleNamespace(visible=torch.from_numpy(visible), inliers=torch.from_numpy(agrees & visible), pixels=pixels)
    assert is_torn(SimpleNamespace(details=result, views=())) == torn
    few = {name: value[:20] for name, value in vars(result).items()}
    assert not is_torn(SimpleNamespace(details=SimpleNamespace(**few), views=()))
    assert not is_torn(SimpleNamespace(details=None, views=()))
