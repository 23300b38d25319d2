# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""Consecutive frames with odometry, and learning the temporal prior from them."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from training_scene import SMALL, drawn, one_thread, write_config, write_photos  # noqa: F401

from pixloc_ros.alignment import TemporalPrior, damping_of
from pixloc_ros.cli.main import main
from pixloc_ros.errors import InputError
from pixloc_ros.features import load_extractor
from pixloc_ros.geometry import se3
from pixloc_ros.training.config import build_mixture, read_config
from pixloc_ros.training.pairs import PairShape
from pixloc_ros.training.photos import PhotoPairs, list_photos
from pixloc_ros.training.scenes import ColmapPairs
from pixloc_ros.training.sequences import OdometryDisturbance, PhotoSequences, SceneSequences, random_robot, with_odometry
from pixloc_ros.training.trainer import Trainer

VIEW = PairShape(**SMALL)


pytestmark = pytest.mark.usefixtures("one_thread")


@dataclasses.dataclass(frozen=True)
class NoErrors(OdometryDisturbance):
    """Odometry that measures the truth."""

    def measure(self, motion, seconds, rng):
        return motion, super().measure(motion, seconds, rng)[1]


def temporal_config(tmp_path, **run):
    path = write_config(tmp_path, **run)
    values = json.loads(path.read_text())
    values["network"] |= {"temporal": True, "confidences": False, "frozen": [""]}
    values["augmentation"] = {"blank": 0.2}
    path.write_text(json.dumps(values))
    return path


def check_step(pair):
    """The motion of the base, measured without errors, leads from the frame before to the query."""
    step = pair.step
    map_from_previous_base = se3.inverse(step.previous_from_reference) @ se3.inverse(step.base_from_camera)
    query_from_reference = se3.inverse(map_from_previous_base @ step.odometry @ step.base_from_camera)
    torch.testing.assert_close(query_from_reference, pair.query_from_reference, rtol=0, atol=1e-9)
    assert step.previous.shape == pair.query.shape and step.seconds > 0


def test_photos_become_consecutive_frames(tmp_path):
    write_photos(tmp_path / "photos")
    source = PhotoSequences(PhotoPairs(list_photos([tmp_path / "photos"], False), VIEW), NoErrors())
    pairs, _ = drawn(source, 6)
    assert len(pairs) >= 2
    for pair in pairs:
        check_step(pair)
        # Points look the same before and after: same brightness where they project to, up to the patches' edges.
        values = []
        for image, camera, pose in (
            (pair.query, pair.query_camera, pair.query_from_reference),
            (pair.step.previous, pair.step.previous_camera, pair.step.previous_from_reference),
        ):
            pixels, valid = camera.project(se3.transform(pose, pair.xyz))
            seen = valid & camera.in_image(pixels)
            column, row = torch.where(seen[:, None], pixels, 0).round().long().T
            values.append(np.where(seen, image[row, column].astype(float), np.nan))
        assert np.nanmedian(np.abs(values[0] - values[1])) < 12


def test_scenes_become_consecutive_frames(shared_data):
    folder = shared_data / "tum_fr1_rpy"
    source = SceneSequences(ColmapPairs(folder / "all", folder / "images", VIEW, False), 10.0, NoErrors())
    pairs, _ = drawn(source, 12)
    assert len(pairs) >= 2
    for pair in pairs:
        check_step(pair)
        assert pair.step.seconds in (0.1, 0.2, pytest.approx(0.3))


def test_odometry_claims_its_errors_where_nothing_slips():
    """Mean squared Mahalanobis distance 6; slips and a spread of their size make it more."""
    rng = np.random.default_rng(0)
    motions = [random_robot(rng)[1] for _ in range(800)]

    def nees(errors):
        values = []
        for motion in motions:
            measured, covariance = errors.measure(motion, 0.1, rng)
            error = se3.se3_log(se3.inverse(motion) @ measured)
            values.append(float(error @ torch.linalg.solve(covariance, error)))
        return np.mean(values)

    honest = nees(OdometryDisturbance(spread=0.0, slips=0.0))
    assert abs(honest - 6) < 5 * np.sqrt(12 / len(motions))
    assert nees(OdometryDisturbance(spread=0.0, slips=1.0)) > 2 * honest


def test_wheels_drive_forwards_and_turn_left_or_right():
    rng = np.random.default_rng(1)
    on_wheels = 0
    for _ in range(200):
        base_from_camera, moved = random_robot(rng)
        se3.check_pose(base_from_camera)
        se3.check_pose(moved)
        if bool(base_from_camera[:3, 3].any()):
            on_wheels += 1
            assert moved[0, 3] > 0 and not moved[1:3, 3].any()
            assert se3.so3_log(moved[:3, :3])[:2].abs().max() < 1e-12
    assert 80 < on_wheels < 160


def test_the_prior_of_a_perfect_robot_is_the_truth(tmp_path):
    """Frame before as the running system finds it, odometry without errors: the alignment starts at the truth."""
    config = read_config(temporal_config(tmp_path))
    trainer = Trainer(config, tmp_path / "run", say=lambda _: None)
    mixture = build_mixture(config, False, False)
    mixture.sources[0].errors = NoErrors(previous_rotation_deg=0.0, previous_translation=0.0)
    batch = mixture.batch([(0, k) for k in range(3)], (0.0, 0.0))
    points, mask, _ = trainer.refiner.features(batch, trainer.strides[0])
    start = trainer.refiner.start(batch, points, mask, trainer.strides[0])
    for b in range(3):
        distance, angle = se3.pose_difference(se3.inverse(start.initial[b]), se3.inverse(batch.query_from_reference[b]))
        depth = batch.xyz[b, :, 2].median()
        assert distance < 0.02 * depth and angle < np.radians(1.0)  # as found in images of 128 x 96 pixels
    assert start.cues.values.shape == (3, 14) and bool(start.cues.values.isfinite().all())
    assert bool((torch.linalg.eigvalsh(start.prior.information) > 0).all())


def test_temporal_prior_is_trained_kept_shown_and_drawn(tmp_path, capsys):
    path = temporal_config(tmp_path, steps=3, batch=2, damping_rate=100.0)
    assert main(["train", str(path), "-o", str(tmp_path / "run")]) == 0
    weights = tmp_path / "run" / "weights.safetensors"
    extractor = load_extractor(weights)
    damping = damping_of(extractor)
    assert isinstance(damping, TemporalPrior)
    untrained = TemporalPrior(len(extractor.strides))
    assert bool((damping.network[-1].weight != untrained.network[-1].weight).any())
    assert load_extractor("compact").fingerprint == extractor.fingerprint  # maps stay usable
    capsys.readouterr()
    assert main(["weights", "show", str(weights)]) == 0
    text = capsys.readouterr().out
    assert "forward" in text and "yaw" in text and "trust" in text
    assert main(["weights", "plot", str(weights), "-o", str(tmp_path / "prior.png")]) == 0
    assert (tmp_path / "prior.png").read_bytes()[:4] == b"\x89PNG"
    assert main(["weights", "plot", "compact", "-o", str(tmp_path / "none.png")]) == 2


def test_learned_constants_are_the_prior_without_a_network(tmp_path):
    path = temporal_config(tmp_path, steps=2, batch=2, damping_rate=100.0)
    config = read_config(path)
    config = dataclasses.replace(config, network=dataclasses.replace(config.network, conditional=False))
    Trainer(config, tmp_path / "run", say=lambda _: None).run()
    damping = damping_of(load_extractor(tmp_path / "run" / "weights.safetensors"))
    assert isinstance(damping, TemporalPrior) and damping.network is None
    assert len(damping.theta.unique()) > 6  # every level and degree of freedom its own


def test_scenes_need_a_frame_rate():
    class Scene:
        name = "office"

    with pytest.raises(InputError, match="rate_hz"):
        with_odometry([Scene()], [0.0], OdometryDisturbance())
    with pytest.raises(InputError, match="shares"):
        OdometryDisturbance(slips=2.0)
