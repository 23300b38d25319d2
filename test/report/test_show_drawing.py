# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""The parts that pictures are made of: colours of features, figures of images and maps, files."""

import cv2
import numpy as np
import pytest
import torch
from alignment_scene import level_weights
from mapping_helpers import look_at, numbers_map, pinhole, plane_view, texture
from scenes import decoded, plane_map

from pixloc_ros.alignment.damping import LearnedDamping
from pixloc_ros.cli.main import main
from pixloc_ros.errors import InputError
from pixloc_ros.features import load_extractor
from pixloc_ros.features.vgg import VggNetwork
from pixloc_ros.features.weights import Weights
from pixloc_ros.io.files import write_bytes
from pixloc_ros.report import feature_maps
from pixloc_ros.report.aligned_image import align_image, moved_off
from pixloc_ros.report.alignment_pictures import animate_optimization, plot_reprojections
from pixloc_ros.report.curves import plot_learned
from pixloc_ros.report.feature_maps import KeyframeImages, ground_plan, measure_coverage, plot_coverage, plot_feature_maps
from pixloc_ros.report.frame_evidence import FrameChoice, ImageQuality
from pixloc_ros.report.style import check_suffix
from pixloc_ros.tracking.frame_aligner import FrameAligner

# ---- features as colours


def test_alike_features_have_alike_colours_on_both_sides():
    rng = np.random.default_rng(0)
    kinds = rng.normal(size=(6, 16))
    first, second = rng.integers(0, 6, 500), rng.integers(0, 6, 80)
    one, other = feature_maps.principal_colours((kinds[first], kinds[second]))
    assert one.shape == (500, 3) and other.shape == (80, 3)
    assert min(one.min(), other.min()) >= 0 and max(one.max(), other.max()) <= 1
    for kind in range(6):
        colours = np.concatenate((one[first == kind], other[second == kind]))
        np.testing.assert_allclose(colours, colours[:1].repeat(len(colours), 0), atol=1e-9)
    assert len(np.unique(one.round(6), axis=0)) == 6


# ---- figures of an image


def test_blur_lowers_the_gradient_energy_and_darkness_does_not():
    image = texture(480)
    sharp, dark = ImageQuality.of(image), ImageQuality.of((image * 0.25).astype(np.uint8))
    blurred = ImageQuality.of(cv2.GaussianBlur(image, (0, 0), 5))
    assert blurred.gradient_energy < 0.4 * sharp.gradient_energy
    assert dark.gradient_energy == pytest.approx(sharp.gradient_energy, rel=0.05)
    assert dark.brightness == pytest.approx(sharp.brightness / 4, abs=1)
    assert dark.contrast == pytest.approx(sharp.contrast / 4, abs=1)


def test_figures_of_images_without_anything_to_see():
    black, white = ImageQuality.of(np.zeros((100, 80), np.uint8)), ImageQuality.of(np.full((100, 80, 3), 255, np.uint8))
    assert (black.brightness, black.contrast, black.gradient_energy, black.black, black.white) == (0, 0, 0, 1, 0)
    assert (white.brightness, white.white, white.black) == (255, 1, 0)
    middle = ImageQuality.typical([black, white, ImageQuality.of(texture(120))])
    assert 0 < middle.brightness < 255


# ---- which image


def test_the_image_nearest_to_a_time_or_stamp():
    stamps = 10**18 + np.arange(5, dtype=np.int64) * 10**8
    assert FrameChoice(3).index_in(stamps) == 3
    assert FrameChoice(seconds=0.17).index_in(stamps) == 2 and FrameChoice(seconds=0.7).index_in(stamps) == 4
    assert FrameChoice(stamp_ns=10**18 + 249_000_000).index_in(stamps) == 2
    for wrong in (FrameChoice(5), FrameChoice(seconds=2.0), FrameChoice(stamp_ns=0)):
        with pytest.raises(InputError):
            wrong.index_in(stamps)
    with pytest.raises(InputError, match="no images"):
        FrameChoice(0).index_in(stamps[:0])
    for wrong in ({}, {"index": 1, "seconds": 1.0}, {"index": -1}, {"seconds": float("nan")}):
        with pytest.raises(InputError):
            FrameChoice(**wrong)


# ---- maps


def corridor(gap: float = 0.0, turn=lambda xyz: xyz):
    """A map of a drive along x past a wall; the second half of the way begins `gap` metres later. turn: of the whole world."""
    rng = np.random.default_rng(0)
    places = [0.3 * k + gap * (k >= 8) for k in range(16)]
    xyz = np.stack((rng.uniform(-2, 10, 4000), np.full(4000, 2.0), rng.uniform(0, 1.5, 4000)), 1)
    poses = torch.stack([look_at((x, 0.0, 0.7), (x, 2.0, 0.7)) for x in places])
    rotation = turn(np.eye(3)).T
    poses[:, :3] = torch.from_numpy(rotation) @ poses[:, :3]
    return numbers_map(poses, xyz @ rotation.T, pinhole())


def test_coverage_counts_what_there_is():
    map_ = corridor()
    found = measure_coverage(map_)
    assert len(found.gaps) == len(found.weak) == len(found.alone) == 0
    counts = np.diff(map_.observation_offsets)
    assert (found.points == counts).all() and (found.image_share > 0.9).all()
    sets = [set(map_.observation_point[map_.observations(k)].tolist()) for k in range(16)]
    shared = [max(len(one & other) for j, other in enumerate(sets) if j != k) for k, one in enumerate(sets)]
    assert found.shared.tolist() == shared
    decoded(plot_coverage(map_, found))


def test_gaps_and_weak_keyframes_are_flagged():
    found = measure_coverage(corridor(gap=2.5))
    assert found.gaps.tolist() == [[7, 8]] and found.gap_m[0] == pytest.approx(2.8)
    assert "gaps along the way: 1, the widest 2.8 m" in found.summary()
    away = torch.stack(
        [look_at((0.3 * k, 0.0, 0.7), (0.3 * k, 2.0, 0.7)) for k in range(4)]
        + [look_at((1.0, 0.0, 0.7), (1.0, 0.0, -3.0), up=(0, 1, 0))]
    )
    rng = np.random.default_rng(0)
    wall = np.stack((rng.uniform(-2, 4, 3000), np.full(3000, 2.0), rng.uniform(0, 1.5, 3000)), 1)
    floor = np.stack((rng.uniform(0.9, 1.1, 20), rng.uniform(-0.1, 0.1, 20), np.full(20, -0.5)), 1)
    map_ = numbers_map(away, np.concatenate((wall, floor)), pinhole())
    found = measure_coverage(map_)
    assert found.weak.tolist() == [4] and found.alone.tolist() == [4]
    decoded(plot_coverage(map_, found, ".jpg"))


@pytest.mark.parametrize("seen_before", [False, True])
def test_what_another_visit_shows_is_no_gap(seen_before):
    """A long drive keeps no keyframes where other visits have been: its second visit seems to jump."""
    whole = [0.3 * k for k in range(16)]
    places = [x for x in whole if seen_before or not 1.0 < x < 3.5] + [x for x in whole if not 1.0 < x < 3.5]
    rng = np.random.default_rng(0)
    wall = np.stack((rng.uniform(-2, 7, 4000), np.full(4000, 2.0), rng.uniform(0, 1.5, 4000)), 1)
    found = measure_coverage(numbers_map(torch.stack([look_at((x, 0.0, 0.7), (x, 2.0, 0.7)) for x in places]), wall, pinhole()))
    across = [step for step in found.gaps.tolist() if abs(places[step[0]] - places[step[1]]) < 4]
    assert len(across) == (0 if seen_before else 2)


def test_ground_plan_lies_flat_whatever_the_maps_axes():
    assert ground_plan(corridor()).names[0] == "x (m)"
    turned = corridor(turn=lambda xyz: xyz[:, [0, 2, 1]] * (1, -1, 1))  # y downwards, as structure from motion has it
    plan = ground_plan(turned)
    assert plan.names[0] != "x (m)"
    np.testing.assert_allclose(plan.axes @ plan.axes.T, np.eye(2), atol=1e-6)
    wall = plan.flat(turned.xyz)
    assert np.ptp(wall[:, 0]) > 10 and np.ptp(wall[:, 1]) < 0.5


# ---- one alignment, with the paper's network: three levels with confidences


@pytest.fixture(scope="module")
def vgg(tmp_path_factory):
    """Weights of random numbers, and an image aligned with a map of two views of a textured plane."""
    folder = tmp_path_factory.mktemp("vgg")
    torch.manual_seed(0)
    state = {name: value.clone() for name, value in VggNetwork(16).state_dict().items()}
    state["damping.theta"] = torch.linspace(-1, 1, 18).view(3, 6)
    Weights(state, {"architecture": "vgg16", "training_data": "none", "licence": "none"}).save(folder / "vgg.safetensors")
    extractor, camera, picture = load_extractor(folder / "vgg.safetensors"), pinhole(128, 96, 100.0), texture()
    poses = torch.stack([look_at((x, -1.0, 2.0), (x, 0.0, 0.0)) for x in (-0.2, 0.1)])
    map_ = plane_map(folder, extractor, camera, poses)
    localizer = FrameAligner(map_, extractor)
    truth = look_at((0.0, -1.0, 2.0), (0.0, 0.0, 0.0))
    image, _ = plane_view(truth, camera, picture)
    aligned = align_image(localizer, "plane", image, localizer.prepare(image, camera), moved_off(truth, 1.0, 0.02), truth=truth)
    return folder, localizer, aligned


def test_features_and_confidences_of_the_papers_network(vgg):
    folder, localizer, aligned = vgg
    assert aligned.strides == (16, 4, 1)
    with_images = KeyframeImages(localizer.map, folder).view(localizer, 0)
    without = KeyframeImages(localizer.map).view(localizer, 0)
    one, other = decoded(plot_feature_maps(aligned, with_images)), decoded(plot_feature_maps(aligned, without))
    assert one.shape == other.shape and (one != other).any()
    decoded(plot_reprojections(aligned, "confidence", 1))


def test_damping_of_the_papers_network_as_a_picture(vgg, tmp_path, capsys):
    folder, _, _ = vgg
    assert main(["weights", "plot", str(folder / "vgg.safetensors"), "-o", str(tmp_path / "damping.png")]) == 0
    decoded((tmp_path / "damping.png").read_bytes())
    assert main(["weights", "plot", str(folder / "vgg.safetensors"), "-o", str(tmp_path / "damping.txt")]) == 2
    assert "must end in .png" in capsys.readouterr().err
    strides, damping, weights = (64, 16, 8, 2, 1), LearnedDamping(5), level_weights(5)
    sizes = [decoded(plot_learned(*learned, strides)).shape for learned in ((damping, None), (None, weights), (damping, weights))]
    assert sizes[2][0] == sizes[0][0] + sizes[1][0]


def test_bad_input_to_the_drawings(vgg, tmp_path):
    folder, localizer, aligned = vgg
    with pytest.raises(InputError, match=".gif or .webp"):
        animate_optimization(aligned, tmp_path / "a.mp4")
    with pytest.raises(InputError, match="no map points near the prior"):
        align_image(localizer, "x", aligned.image, aligned.prepared, look_at((0.0, 50.0, 2.0), (0.0, 90.0, 2.0)))
    with pytest.raises(InputError, match="the first is 0.png"):
        KeyframeImages(localizer.map, tmp_path)
    (tmp_path / "folder.png").mkdir()
    for path, says in ((tmp_path / "a.tiff", "must end in"), (tmp_path / "folder.png", "is a folder")):
        with pytest.raises(InputError, match=says):
            check_suffix(path)
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot write"):
        write_bytes(tmp_path / "file" / "a.png", b"")
    with pytest.raises(InputError, match="cannot write"):
        animate_optimization(aligned, tmp_path / "file" / "a.gif")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "folder.png"]
