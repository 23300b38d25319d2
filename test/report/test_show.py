# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""`pixloc show`, each picture end to end on a small simulated drive with the shipped network, and what it does with bad input."""

import json
import re
import sys

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from pixloc_ros.cli.main import main
from pixloc_ros.evaluation.altered_bag import AlteredBag, Change
from pixloc_ros.geometry import se3
from pixloc_ros.io.bags import BagReader
from pixloc_ros.io.trajectory import Trajectory
from pixloc_ros.localization import Localizer
from pixloc_ros.report.aligned_image import align_image, moved_off
from pixloc_ros.report.feature_maps import KeyframeImages
from pixloc_ros.report.frame_evidence import FrameChoice, examine, track_to
from pixloc_ros.report.frame_report import diagnose, frame_report, gates_of, innovation
from pixloc_ros.tracking.types import TrackState


@pytest.fixture(scope="module")
def show(scene):
    """Calls `pixloc show KIND` on the scene's map; further arguments follow."""

    def call(kind, *arguments, option="--map") -> int:
        words = ["show", kind, *([option] if option else []), scene.map, *arguments]
        return main([str(word) for word in words])

    return call


@pytest.fixture(scope="module")
def localizer(scene):
    return Localizer.open(scene.map)


@pytest.fixture(scope="module")
def aligned(scene, localizer):
    """Image 4 of the drive, started far enough off that points are chosen again."""
    with BagReader(scene.drive) as bag:
        tracked = track_to(localizer, bag, FrameChoice(4))
    prepared = localizer.aligner.prepare(tracked.frame.image, tracked.frame.camera)
    start = moved_off(tracked.camera_truth, 4.0, 0.2, seed=2)
    return align_image(localizer.aligner, "image 4", tracked.frame.image, prepared, start, truth=tracked.camera_truth)


def picture(path, least_width=800) -> np.ndarray:
    """The picture, which is neither blank nor small."""
    image = cv2.imread(str(path))
    assert image is not None and image.shape[1] >= least_width and image.shape[0] >= 200
    assert image.std() > 10 and len(np.unique(image.reshape(-1, 3), axis=0)) > 100
    return image


def self_contained(text: str) -> bool:
    return not re.search(r'(src|href|srcset)="(?!data:)', text) and not re.search(r"https?:|@import|<script|url\(", text)


# ---- what is drawn is what happened


def test_points_and_costs_are_those_of_the_optimizer(aligned):
    assert len(aligned.passes) == 2
    path = aligned.path()
    assert torch.allclose(path[0].map_from_camera, aligned.prior, atol=1e-5)
    starts = [step for step in path if step.step == 0]
    assert len(starts) == 2 * len(aligned.strides)
    last = [step for step in path if step.level == len(aligned.strides) - 1][-1]
    assert se3.pose_difference(last.map_from_camera, aligned.answer.map_from_camera)[0] < 0.01
    second = path[[k for k, step in enumerate(path) if step.step == 0][len(aligned.strides)] :]
    for step in second:
        assert aligned.agreement(step.map_from_camera, step.level).cost == pytest.approx(step.cost, rel=1e-3, abs=1e-6)
    seen = aligned.agreement(aligned.answer.map_from_camera)
    camera_xyz = se3.transform(se3.inverse(aligned.answer.map_from_camera), aligned.xyz)
    pixels, _ = aligned.prepared.camera.project(camera_xyz)
    np.testing.assert_allclose(seen.pixels[seen.visible], pixels.numpy()[seen.visible], atol=0.01)
    np.testing.assert_allclose(seen.pixels[seen.visible], aligned.answer.details.pixels.numpy()[seen.visible], atol=0.05)


def test_cost_is_lowest_at_the_answer(aligned):
    turns = torch.zeros(5, 6, dtype=torch.float64)
    turns[:, 4] = torch.deg2rad(torch.tensor([-3.0, -1, 0, 1, 3]))
    poses = aligned.answer.map_from_camera @ se3.se3_exp(turns)
    for level in range(len(aligned.strides)):
        assert aligned.costs(poses, level).argmin() in (1, 2, 3)
    assert aligned.costs(poses, -1).argmin() == 2
    away = torch.eye(4, dtype=torch.float64)[None].clone()
    away[0, :3, 3] = 1e3
    assert np.isnan(aligned.costs(away, 0)).all()


# ---- every picture


@pytest.mark.parametrize(("colour", "suffix"), [("residual", "png"), ("inliers", "jpg"), ("weight", "webp")])
def test_reprojections(scene, show, tmp_path, capsys, colour, suffix):
    output = tmp_path / "new" / f"a.{suffix}"
    assert show("reprojections", scene.drive, "--frame", "4", "--colour", colour, "-o", output) == 0
    picture(output)
    assert re.search(r"image 4 of drive \(0\.67 s\), converged, .* points agree, .* off the truth", capsys.readouterr().out)
    assert [file.name for file in output.parent.iterdir()] == [output.name]


def test_an_image_file_with_and_without_a_prior(scene, show, tmp_path, capsys):
    lines = [line.split() for line in (scene.folder / "map" / "images.txt").read_text().splitlines() if not line.startswith("#")]
    poses = {words[9]: " ".join(words[1:8]) for words in lines[::2]}
    name = sorted(poses)[2]
    camera = json.loads((scene.folder / "simulation.json").read_text())["camera"]
    (tmp_path / "cameras.txt").write_text(f"{name} {camera}\n")
    (tmp_path / "poses.txt").write_text(f"{name} {poses[name]}\n")
    image = scene.images / name
    cameras, poses = tmp_path / "cameras.txt", tmp_path / "poses.txt"
    files = ("--cameras", cameras, "--prior", poses, "--truth", poses)
    assert show("reprojections", image, *files, "--start-off", 3, 5, "-o", tmp_path / "a.png") == 0
    assert "off the truth" in capsys.readouterr().out
    held = ("--prior-std", "0.0001", "0.0001m")
    *words, z = poses.read_text().split()
    poses.write_text(f"{' '.join(words)} {float(z) + 0.05}\n")
    for std, little in (((), False), (held, True)):
        assert show("reprojections", image, "--cameras", cameras, "--prior", poses, *std, "-o", tmp_path / "a.png") == 0
        moved = re.search(r"moved by ([\d.]+) (m|cm|mm)\b", capsys.readouterr().out)
        assert (float(moved[1]) * {"m": 1, "cm": 0.01, "mm": 0.001}[moved[2]] < 0.01) is little
    assert show("reprojections", scene.drive, *held, "-o", tmp_path / "a.png") == 2
    assert "--prior-std and --truth are for an image file" in capsys.readouterr().err
    assert show("reprojections", image, "--camera", camera, "--level", "0", "-o", tmp_path / "b.png") == 0
    assert f"from keyframe {name}" in capsys.readouterr().out
    picture(tmp_path / "a.png")
    picture(tmp_path / "b.png")


def test_features_beside_the_map(scene, show, tmp_path):
    call = ("features", scene.drive, "--at", "0.5")
    assert show(*call, "-o", tmp_path / "points.png") == 0
    assert show(*call, "--map-images", scene.images, "-o", tmp_path / "images.png") == 0
    points, images = picture(tmp_path / "points.png"), picture(tmp_path / "images.png")
    assert points.shape == images.shape and (points != images).any(2).mean() > 0.05


def test_optimization_as_animation_and_still(scene, show, aligned, tmp_path):
    output = tmp_path / "way.gif"
    size = ("--start-off", 1, 1, "--width", 400)
    assert show("optimization", scene.drive, "--frame", 4, *size, "-o", output) == 0
    picture(tmp_path / "way.png")
    with Image.open(output) as animation:
        assert animation.size[0] == 400 and animation.n_frames > 10
        frames = []
        for k in (0, animation.n_frames - 1):
            animation.seek(k)
            frames.append(np.asarray(animation.convert("RGB")).astype(int))
    assert np.abs(frames[0] - frames[1]).max(2).mean() > 2
    assert sorted(file.name for file in tmp_path.iterdir()) == ["way.gif", "way.png"]


def test_map(show, tmp_path, capsys):
    assert show("map", "-o", tmp_path / "map.png", option="") == 0
    picture(tmp_path / "map.png")
    assert "weak keyframes" in capsys.readouterr().out


def test_page_about_a_frame(scene, show, tmp_path, capsys):
    output = tmp_path / "why.html"
    with BagReader(scene.drive) as bag:
        stamp = sorted(bag.image_stamps())[3]
    which = ("--stamp", stamp + 10**6, "--map-images", scene.images)
    assert show("frame", scene.drive, *which, "-o", output) == 0
    said, text = capsys.readouterr().out, output.read_text()
    assert "Nothing failed" in said and "Nothing failed" in text and "What happened here?" in text
    assert self_contained(text) and "<table" in text and text.count("data:image/png") == 5
    for part in ("Gates that the image must pass", "Level by level", "The cost around the found pose", "of the map&#x27;s"):
        assert part in text, part


def examined(scene, localizer, change, index=4, initial_pose=None, truth=None):
    """The tracked frame, the evidence and the findings of a drive with a change."""
    with BagReader(scene.drive) as bag:
        changed = AlteredBag(bag, change, truth)
        tracked = track_to(localizer, changed, FrameChoice(index), initial_pose)
        evidence = examine(localizer, changed, tracked, KeyframeImages(localizer.map))
    return tracked, evidence, diagnose(evidence)


def from_the_fourth_on(scene, change):
    """A `Change` of the images."""
    with BagReader(scene.drive) as bag:
        begin = sorted(bag.image_stamps())[3]
    return Change(image=lambda image, stamp_ns: change(image) if stamp_ns >= begin else image)


BAD = {
    "nearly blank": lambda image: np.full_like(image, 120),
    "is blurred: gradient energy": lambda image: cv2.GaussianBlur(image, (0, 0), 9),
    "even from the truth only": lambda image: np.random.default_rng(int(image.sum())).integers(0, 256, image.shape, np.uint8),
}


@pytest.mark.parametrize("cause", BAD)
def test_bad_images_are_told_apart(scene, localizer, cause):
    tracked, _, findings = examined(scene, localizer, from_the_fourth_on(scene, BAD[cause]))
    assert tracked.result.state is TrackState.DEGRADED and findings.failed
    assert "Not believed, degraded" in findings.verdict and "The tracker said: " in findings.verdict
    assert cause in " ".join((findings.verdict, *findings.causes)), findings
    failed = [gate for gate in gates_of(tracked) if not gate.passed]
    # Where nothing agrees, the pose may go anywhere.
    causes = ("of those, agree", "probability of a right pose", "distance from")
    assert failed and all(gate.name.startswith(causes) for gate in failed)
    assert any(gate.name.startswith("probability of a right pose") for gate in failed)


def test_a_frozen_camera(scene, localizer):
    kept = []

    def freeze(image):
        kept.append(image)
        return kept[0]

    tracked, evidence, findings = examined(scene, localizer, from_the_fourth_on(scene, freeze), 6)
    page = frame_report(evidence, findings, KeyframeImages(localizer.map), localizer.map)
    assert self_contained(page)
    assert "the one before it, to the bit" in findings.verdict and "camera repeats" in findings.verdict
    assert gates_of(tracked) == [] and "Gates" not in page and "Why did it fail?" in page


def test_slipping_odometry(scene, localizer):
    """Between the images 3 and 4 the wheels report 0.8 m too much: the image is right, and contradicts them."""
    with BagReader(scene.drive) as bag:
        begin = sorted(bag.image_stamps())[3]
    slip = torch.eye(4, dtype=torch.float64)
    slip[0, 3] = 0.8

    def slipping():
        count = 0

        def moved(stamp_ns, pose):
            nonlocal count
            count += stamp_ns > begin
            return pose @ se3.interpolate(torch.eye(4, dtype=torch.float64), slip, min(count / 5, 1.0))

        return moved

    tracked, _, findings = examined(scene, localizer, Change(odometry=slipping))
    result = tracked.result
    away = innovation(result.prior, result.alignment, tracked.base_from_camera)
    said = re.search(r"contradicts the odometry prior \(([\d.]+) standard deviations\)", result.message)
    # One decimal is printed. With AVX2 it is 0.4 % off, on a commit that passes with AVX-512, too: why is not known.
    assert said and float(said.group(1)) == pytest.approx(away, rel=0.005, abs=0.051)
    assert findings.failed and "aligned well" in findings.verdict and "the wheels slipped" in findings.verdict
    assert not [gate for gate in gates_of(tracked) if gate.name.startswith("distance")][0].passed


def test_without_truth_a_search_stands_in(scene, localizer):
    with BagReader(scene.drive) as bag:
        begin = bag.truth().map_from_body[0]
    _, evidence, findings = examined(scene, localizer, None, 0, begin, Trajectory.from_poses([]))
    assert evidence.reference_name == "the pose that a search in the whole map finds"
    assert se3.pose_difference(evidence.reference, evidence.from_reference.map_from_camera)[0] < 0.01
    assert not findings.failed and "off the truth" not in findings.verdict


def test_recording_needs_rerun(scene, show, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "rerun", None)
    assert show("run", scene.drive, "-o", tmp_path / "run.rrd") == 2
    assert "python -m pip install rerun-sdk" in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_recording_of_a_run(scene, show, tmp_path, capsys):
    pytest.importorskip("rerun", reason="rerun-sdk is not installed")
    assert show("run", scene.drive, "-o", tmp_path / "run.rrd") == 0
    assert "open it with: rerun" in capsys.readouterr().out
    data = (tmp_path / "run.rrd").read_bytes()
    assert data[:3] == b"RRF" and len(data) > 100_000 and len(list(tmp_path.iterdir())) == 1


# ---- bad input


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("reprojections", "DRIVE", "--frame", "1", "--at", "1", "-o", "a.png"), "one of --frame, --at and --stamp"),
        (("reprojections", "DRIVE", "--frame", "99", "-o", "a.png"), "has 14 images"),
        (("reprojections", "DRIVE", "--frame", "1", "-o", "a.bmp"), "must end in"),
        (("reprojections", "DRIVE", "--frame", "1", "--colour", "red", "-o", "a.png"), "choose residual"),
        (("reprojections", "DRIVE", "--frame", "1", "--level", "9", "-o", "a.png"), "no feature level 9"),
        (("reprojections", "DRIVE", "--frame", "1", "--start-off", "200", "5", "-o", "a.png"), "0 to 180 degrees"),
        (("reprojections", "DRIVE", "--frame", "1", "--camera", "PINHOLE 1 1 1 1 1 1", "-o", "a.png"), "is taken for a bag"),
        (("reprojections", "IMAGE", "-o", "a.png"), "one of --camera and --cameras"),
        (("reprojections", "IMAGE", "--frame", "1", "--camera", "x", "-o", "a.png"), "is an image"),
        (("reprojections", "IMAGE", "--cameras", "OTHER", "-o", "a.png"), "no line for"),
        (("features", "DRIVE", "--frame", "1", "--map-images", "EMPTY", "-o", "a.png"), "are not in"),
        (("optimization", "DRIVE", "--frame", "1", "--width", "5", "-o", "a.gif"), "--width"),
        (("frame", "DRIVE", "--frame", "1", "-o", "a.txt"), ".html"),
        (("frame", "DRIVE", "--frame", "1", "--cold-start", "--initial-pose", *"0000001", "-o", "a.html"), "contradict"),
    ],
)
def test_bad_input_is_explained_in_a_line(scene, show, tmp_path, capsys, monkeypatch, arguments, says):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "other.txt").write_text("other.jpg PINHOLE 320 240 200 200 160 120\n")
    places = {"DRIVE": scene.drive, "IMAGE": next(scene.images.glob("*.jpg")), "EMPTY": "empty", "OTHER": "other.txt"}
    assert show(arguments[0], *(places.get(a, a) for a in arguments[1:])) == 2
    error = capsys.readouterr().err
    assert says in error and error.count("\n") == 1, error
    assert sorted(file.name for file in tmp_path.iterdir()) == ["empty", "other.txt"]
