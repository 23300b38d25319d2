# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
import json

import pytest
import torch

from pixloc_ros.errors import InputError
from pixloc_ros.geometry import se3
from pixloc_ros.tracking.last_pose import LastPose, load_last_pose, save_last_pose


def last_pose() -> LastPose:
    pose = se3.se3_exp(torch.tensor([1.0, -2, 0.5, 0.1, 0.2, 3.0], dtype=torch.float64))
    return LastPose("site.pixmap", 123, pose, 0.01 * torch.eye(6, dtype=torch.float64))


def test_the_last_pose_is_kept(tmp_path):
    path = tmp_path / "state" / "pose.json"
    assert load_last_pose(path, "site.pixmap") is None
    save_last_pose(path, last_pose())
    save_last_pose(path, last_pose())
    loaded = load_last_pose(path, "site.pixmap")
    torch.testing.assert_close(loaded.map_from_base, last_pose().map_from_base)
    assert loaded.stamp_ns == 123 and torch.equal(loaded.covariance, last_pose().covariance)
    assert float(loaded.prior_covariance()[0, 0]) == pytest.approx(0.01 + 0.25)
    assert load_last_pose(path, "another.pixmap") is None
    assert [p.name for p in path.parent.iterdir()] == ["pose.json"]
    assert path.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("change", [{"version": 2}, {"covariance": [1.0]}, {"quaternion_xyzw": [0, 0, 0, 0]},
                                    {"translation": [float("nan"), 0, 0]}, {"covariance": [-1.0] * 36}])  # fmt: skip
def test_a_damaged_last_pose_is_refused(tmp_path, change):
    path = tmp_path / "pose.json"
    save_last_pose(path, last_pose())
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(InputError, match="delete it"):
        load_last_pose(path, "site.pixmap")
    path.write_text("{")
    with pytest.raises(InputError, match="delete it"):
        load_last_pose(path, "site.pixmap")
