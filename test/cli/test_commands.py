# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""The commands one after the other, on a small simulated world, with the real network and the live node."""

import json
import re
import shutil

import cv2
import numpy as np
import pytest
from node_harness import isolate

from pixloc_ros.cli.main import main
from pixloc_ros.io.trajectory import read_benchmark_poses, read_tum

ERRORS = "translation_error_median_m rotation_error_rmse_deg aligned_translation_error_rmse_m relative_translation_error_rmse_m"
ERRORS = ERRORS.split()
RUN = ("run.json", "poses.tum", "truth.tum", "odometry.tum")


def pixloc(*arguments) -> int:
    """The exit code. arguments: text is split at spaces."""
    return main([word for a in arguments for word in (a.split() if isinstance(a, str) else [str(a)])])


def model_poses(scene) -> dict[str, list[str]]:
    lines = [line.split() for line in (scene.folder / "map" / "images.txt").read_text().splitlines() if not line.startswith("#")]
    return {words[9]: words[1:8] for words in lines[::2]}


def test_localize_finds_the_maps_own_images(scene, tmp_path, capsys):
    poses = model_poses(scene)
    names = sorted(poses)[:4]
    camera = json.loads((scene.folder / "simulation.json").read_text())["camera"]
    (tmp_path / "cameras.txt").write_text("".join(f"{name} {camera}\n" for name in sorted(poses)))
    (tmp_path / "priors.txt").write_text(f"{names[0]} {' '.join(poses[names[0]])}\n")
    images = shutil.copytree(scene.images, tmp_path / "images")
    (images / "list.txt").write_text("\n".join(names))
    jpeg = cv2.imencode(".jpg", cv2.imread(str(images / names[3])), [cv2.IMWRITE_JPEG_QUALITY, 95])[1].tobytes()
    exif = b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x03\0\0\0\0\0\0"
    (images / names[3]).write_bytes(jpeg[:2] + b"\xff\xe1\0" + bytes([len(exif) + 2]) + exif + jpeg[2:])
    code = pixloc(
        f"localize --map {scene.map} --images {images}/list.txt --cameras {tmp_path}/cameras.txt "
        f"--prior {tmp_path}/priors.txt -o {tmp_path}/out.txt --json {tmp_path}/stats.json"
    )
    said = capsys.readouterr().out
    assert code == 0 and "4 of 4 images localized" in said and f"({names[3]}: by 180°), which is not obeyed" in said
    found = read_benchmark_poses(tmp_path / "out.txt")
    assert list(found) == names
    for name in names:
        assert np.linalg.norm(found[name][:3, 3].numpy() - np.array(poses[name][4:], float)) < 0.02
    stats = json.loads((tmp_path / "stats.json").read_text())
    assert stats["localized"] == 4 and stats["priors"] == {"given": 1, "retrieval": 3}
    assert stats["frame_ms_p50"] > 0 and [entry["name"] for entry in stats["per_image"]] == names


@pytest.mark.parametrize("listed", [False, True], ids=["folder", "list"])
def test_one_bad_image_or_camera_is_named_and_the_others_are_localized(scene, tmp_path, capsys, listed):
    poses, camera = model_poses(scene), json.loads((scene.folder / "simulation.json").read_text())["camera"]
    images = shutil.copytree(scene.images, tmp_path / "images")
    names = sorted(poses)[:4]
    (images / names[1]).write_bytes(b"no image")
    cv2.imwrite(str(images / names[2]), np.zeros((50, 60), np.uint8))
    lines = [f"{name} {camera}" for name in [*names, "missing.jpg"]] + [f"{names[3]} NONSENSE 320 240 1 2 3"]
    (tmp_path / "cameras.txt").write_text("\n".join([*lines, "# gone.jpg NONSENSE 320 240 1"]))
    if listed:
        (images / "list.txt").write_text("\n".join([*names, "missing.jpg", "unlisted.jpg"]))
    files = f"--images {images / 'list.txt' if listed else images} --cameras {tmp_path}/cameras.txt -o {tmp_path}/out.txt"
    assert pixloc(f"localize --map {scene.map} {files} --json {tmp_path}/stats.json") == 0
    said, count = capsys.readouterr().out, 5 + listed
    assert f"1 of {count} images localized" in said and list(read_benchmark_poses(tmp_path / "out.txt")) == names[:1]
    reasons = [(names[1], "is not a readable image"), (names[2], "the image is 60x50"), (names[3], "cameras.txt:6: .* camera")]
    for name, reason in [*reasons, ("missing.jpg", "no image"), *[("unlisted.jpg", "has no camera for")] * listed]:
        assert re.search(f"no pose for {name}: .*{reason}", said), said
    stats = json.loads((tmp_path / "stats.json").read_text())
    assert stats["failed"] == count - 1 and len(stats["per_image"]) == count


def test_localize_takes_how_far_off_priors_are(scene, tmp_path, capsys):
    """A tight prior holds the pose, a wide one does not; what the line says counts more than the option."""
    poses, camera = model_poses(scene), json.loads((scene.folder / "simulation.json").read_text())["camera"]
    names, words = sorted(poses)[:3], ["1 30%", "0.0001 0.0001m", ""]
    (tmp_path / "cameras.txt").write_text("".join(f"{name} {camera}\n" for name in names))
    priors = {name: [*poses[name][:4], *(f"{float(v) + 0.05}" for v in poses[name][4:])] for name in names}

    def localize(*options) -> list[float]:
        """How far each pose moved from its prior, metres."""
        lines = (f"{name} {' '.join(priors[name])} {std}\n" for name, std in zip(names, words))
        (tmp_path / "priors.txt").write_text("".join(lines))
        files = f"--images {scene.images} --cameras {tmp_path}/cameras.txt -o {tmp_path}/out.txt"
        assert pixloc(f"localize --map {scene.map} {files} --prior {tmp_path}/priors.txt", *options) == 0
        found = read_benchmark_poses(tmp_path / "out.txt")
        return [float(np.linalg.norm(found[n][:3, 3].numpy() - np.array(priors[n][4:], float))) for n in names]

    own = localize()
    assert own[0] > 0.05 and own[1] < 0.01 and own[2] > 0.05
    held = localize("--prior-std 0.0001 0.001%")
    assert held[0] > 0.05 and held[1] < 0.01 and held[2] < 0.01
    files = f"--images {scene.images} --cameras {tmp_path}/cameras.txt -o {tmp_path}/out.txt"
    capsys.readouterr()
    for options, message in (
        (f"--prior {tmp_path}/priors.txt --prior-std 5 10", "'10' has no unit: write 10% (of the depth) or 10m (metres)"),
        ("--prior-std 5 10%", "--prior-std says how far off the poses of --prior may be: give --prior, too"),
    ):
        assert pixloc(f"localize --map {scene.map} {files} {options}") == 2
        assert message in capsys.readouterr().err
    words[2] = "5 10mm"
    (tmp_path / "priors.txt").write_text(f"{names[0]} {' '.join(priors[names[0]])} {words[2]}\n")
    assert pixloc(f"localize --map {scene.map} {files} --prior {tmp_path}/priors.txt") == 2
    assert "priors.txt:1: '5 10mm' says no standard deviations" in capsys.readouterr().err


def test_names_that_other_systems_write_go_from_localize_to_evaluate(scene, tmp_path, capsys):
    poses, camera = model_poses(scene), json.loads((scene.folder / "simulation.json").read_text())["camera"]
    names = ["#1.jpg", "My photo 2 # new.jpg", "Ünterwegs/3.jpg", "# 4.jpg"]
    (tmp_path / "Ünterwegs").mkdir()
    for name, source in zip(names, sorted(poses)):
        (tmp_path / name).write_bytes((scene.images / source).read_bytes())
    written = [*names[:2], "ünterwegs\\3.JPG", names[3]]
    commented_out = ("# 5.jpg", "# 5.jpg", "#6.jpg", "# and 7")
    lines = "".join(f"{name} {camera}\r\n" for name in [*written, *commented_out])
    (tmp_path / "cameras.txt").write_text(f"\ufeff# NAME CAMERA\r\n{lines}")
    truth = "".join(f"{name} {' '.join(poses[source])}\n" for name, source in zip(names, sorted(poses)))
    (tmp_path / "truth.txt").write_text(truth + "".join(f"{name} 1 0 0 0 1 2 3\n" for name in commented_out))
    files = f"--cameras {tmp_path}/cameras.txt --prior {tmp_path}/truth.txt -o {tmp_path}/out.txt"
    assert pixloc(f"localize --map {scene.map} --images {tmp_path} {files} --json {tmp_path}/stats.json") == 0
    assert json.loads((tmp_path / "stats.json").read_text())["priors"] == {"given": 4}
    assert list(read_benchmark_poses(tmp_path / "out.txt")) == written
    assert pixloc(f"evaluate --truth {tmp_path}/truth.txt {tmp_path}/out.txt -o {tmp_path}/evaluated") == 0
    (figures,) = json.loads((tmp_path / "evaluated" / "evaluation.json").read_text())["runs"]
    assert figures["frames"] == figures["published_frames"] == 4 and figures["translation_error_max_m"] < 0.02


def test_track_finds_its_own_start(scene, tmp_path, capsys):
    assert pixloc("track", "--map", scene.map, scene.drive, "-o", tmp_path / "run", "--cold-start", "--no-report") == 0
    stats = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert stats["states"]["INITIALIZING"] == 2 and stats["tracked_frames"] == stats["frames"] - 2
    assert stats["time_to_first_pose_s"] == pytest.approx(2 / 6, abs=0.01)
    assert stats["translation_error_max_m"] < 0.1 and stats["false_tracked_frames"] == 0
    code = pixloc(f"track --map {scene.map} {scene.drive} -o {tmp_path}/p --cold-start --initial-pose 0 0 0 0 0 0 1")
    assert code == 2 and "--cold-start" in capsys.readouterr().err


def test_track_writes_run_figures_and_page(scene, tmp_path, capsys):
    output = tmp_path / "run"
    assert pixloc("track", "--map", scene.map, scene.drive, "-o", output) == 0
    out = capsys.readouterr().out
    assert "state TRACKING" in out and str(output / "report.html") in out
    assert {p.name for p in output.iterdir()} == {*RUN, "summary.json", "report.html"}
    stats = json.loads((output / "summary.json").read_text())
    assert stats["tracked_fraction"] > 0.9 and stats["translation_error_median_m"] < 0.05
    assert {"frames", "frame_ms_p50", "frame_ms_p99", "odometry_error_median_m", "nees_mean", "real_time_factor"} <= stats.keys()
    assert stats["cpu_s"] > 0 and stats["memory_peak_mib"] > 100
    assert len(read_tum(output / "poses.tum")) == stats["published_frames"]
    page = (output / "report.html").read_text()
    assert page.count("data:image/jpeg") == 6 and "</html>" in page
    # Scored again from its folder, and against the truth of other sources: the same figures.
    for arguments in (
        (output,),
        (output, "--truth", scene.drive),
        (output, "--truth", scene.folder / "drive_truth.tum"),
        (output / "poses.tum", "--truth", scene.drive),
    ):
        assert pixloc("evaluate", *arguments, "--json") == 0
        again = json.loads(capsys.readouterr().out)["runs"][0]
        assert again["frames"] == stats["frames"] and again["completion"] == stats["completion"]
        for key in ERRORS:
            assert again[key] == pytest.approx(stats[key], abs=1e-6), (arguments, key)
        if arguments[0] == output:
            assert again["nees_mean"] == pytest.approx(stats["nees_mean"], rel=1e-3)
            assert again["odometry_error_median_m"] == pytest.approx(stats["odometry_error_median_m"], abs=1e-6)
            assert again["frame_ms_p95"] == pytest.approx(stats["frame_ms_p95"], abs=1e-3)
            assert all(again[key] == stats[key] for key in ("states", "messages", "cpu_s"))


def test_demo_through_the_live_node(scene, tmp_path, capsys):
    isolate()
    output = tmp_path / "demo"
    code = pixloc("demo", "--data", scene.folder, "-o", output, "--all-frames", "--rate", "0.7")
    out = capsys.readouterr().out
    summary = json.loads((output / "summary.json").read_text())
    assert code == 0 and summary["problems"] == [], summary["problems"]
    errors = ("translation_error_median_m", "translation_error_p95_m", "rotation_error_median_deg", "rotation_error_p95_deg")
    assert {*errors, "frames", "odometry_error_median_m", "latency_p50_ms", "latency_p95_ms"} <= summary.keys()
    assert summary["tracked_fraction"] > 0.9 and summary["unreported_frames"] == 0
    assert "odometry alone" in out and str(output / "index.html") in out
    assert summary["cpu_s"] > 0 and summary["age_p95_ms"] > 0 and summary["dropped_frames"] == 0
    written = {*RUN, "index.html", "summary.json", "recording.jsonl", "node.log", "scene.pixmap"}
    assert {p.name for p in output.iterdir()} == written


def test_images_of_another_place_are_doubtful_and_small_ones_refused(scene, tmp_path, capsys):
    """None may pass for localized: noise that aligns with nothing, with and without a prior, and a stamp-sized picture."""
    rng = np.random.default_rng(0)
    cv2.imwrite(str(tmp_path / "noise.png"), cv2.GaussianBlur(rng.integers(0, 255, (240, 320), np.uint8), (0, 0), 2))
    cv2.imwrite(str(tmp_path / "tiny.png"), rng.integers(0, 255, (40, 50), np.uint8))
    (tmp_path / "broken.png").write_bytes(b"not an image")
    noise = "PINHOLE 320 240 250 250 160 120"
    (tmp_path / "c.txt").write_text(f"noise.png {noise}\nbroken.png {noise}\ntiny.png PINHOLE 50 40 40 40 25 20\n")
    localize = f"localize --map {scene.map} --images {tmp_path} --cameras {tmp_path}/c.txt -o {tmp_path}/out.txt"
    code, out = pixloc(localize), capsys.readouterr().out
    assert code == 1 and "0 of 3 images localized" in out
    assert (
        "1 doubtful" in out or "no pose for noise.png: nothing in the map looks like it" in out
    ) and "the image is 50x40" in out
    assert "not a readable image" in out
    pose = next(iter(model_poses(scene).values()))
    (tmp_path / "prior.txt").write_text(f"noise.png {' '.join(pose)}\n")
    assert pixloc(localize, "--prior", tmp_path / "prior.txt") == code == 1
    out = capsys.readouterr().out
    assert "0 of 3 images localized" in out and "1 doubtful" in out
