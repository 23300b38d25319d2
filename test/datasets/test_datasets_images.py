# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""Public data sets of single images, from excerpts in their own layouts to poses as the benchmarks want them."""

import runpy
import sys
from pathlib import Path

import layouts
import numpy as np
import pytest
import torch
from layouts import KINECT, Studio, colmap_line, inverse, pixloc, save, write_colmap, write_nvm

from pixloc_ros.datasets.image_benchmarks import open_cambridge
from pixloc_ros.datasets.image_set import read_pairs
from pixloc_ros.datasets.nvm import nvm_camera, read_nvm
from pixloc_ros.datasets.seven_scenes import COLOUR_FROM_DEPTH, DEPTH
from pixloc_ros.errors import InputError
from pixloc_ros.geometry import se3
from pixloc_ros.io.trajectory import read_benchmark_poses

EXPERIMENTS = Path(__file__).resolve().parents[2] / "experiments"
FOCAL = 525.0


@pytest.fixture(scope="module")
def studio():
    return Studio()


@pytest.fixture(scope="module")
def shots(studio):
    return studio.shoot(KINECT, np.arange(16) * 0.4)


def check_poses(path, truth):
    """A file of poses holds those that are true, under these names. truth: shot by name."""
    found = read_benchmark_poses(path)
    assert list(found) == list(truth)
    expected = torch.stack([inverse(shot.pose) for shot in truth.values()])
    distance, angle = se3.pose_difference(*(se3.inverse(poses) for poses in (expected, torch.stack(list(found.values())))))
    assert float(distance.max()) < 0.03 and float(angle.max()) < np.radians(0.5), (distance, angle)


def write_cambridge(scene, shots):
    """The first and then each second image is for the training; VisualSFM's model holds all, and calls them .jpg."""
    names = [f"seq{1 + k % 2}/frame{k:05d}.png" for k in range(len(shots))]
    for shot, name in zip(shots, names):
        save(scene / name, shot.image)
    layouts.write_cambridge_list(scene / "dataset_train.txt", shots[::2], names[::2])
    layouts.write_cambridge_list(scene / "dataset_test.txt", shots[1::2], names[1::2])
    write_nvm(scene / "reconstruction.nvm", shots, [name.replace(".png", ".jpg") for name in names], FOCAL)
    return names


def test_cambridge(shots, tmp_path, capsys):
    names = write_cambridge(tmp_path / "ShopFacade", shots)
    nearest = [f"{query} {names[k - 1]}\n{query} {names[0]}" for k, query in enumerate(names) if k % 2]
    (tmp_path / "pairs.txt").write_text("\n".join(nearest) + "\n")
    out = tmp_path / "out"
    assert pixloc(f"dataset cambridge {tmp_path}/ShopFacade --pairs {tmp_path}/pairs.txt -o {out} --localize") == 0
    said = capsys.readouterr().out
    assert "8 queries, 8 with a prior, 8 with truth" in said and "median error over all queries" in said
    truth = {name: shot for name, shot in zip(names[1::2], shots[1::2])}
    check_poses(out / "truth.txt", truth)
    check_poses(out / "poses.txt", truth)
    check_poses(out / "submission.txt", truth)  # as the benchmark names them: folder and file
    (out / "submission.txt").unlink()  # what is there is localized again, not made again
    assert pixloc(f"dataset cambridge {tmp_path}/ShopFacade --pairs {tmp_path}/pairs.txt -o {out} --localize") == 0
    check_poses(out / "submission.txt", truth)
    priors = read_benchmark_poses(out / "priors.txt")
    for k in range(1, len(names), 2):
        torch.testing.assert_close(priors[names[k]], inverse(shots[k - 1].pose), atol=1e-6, rtol=0)
    # Points of the map are those that training images see.
    source = open_cambridge(tmp_path / "ShopFacade")
    assert len(source.queries) == 8 and "8 training images" in source.made_from


def test_seven_scenes_from_a_colmap_model(shots, tmp_path, capsys):
    scene = tmp_path / "chess"
    # With the original poses taken for the colour camera's, as the published tables do.
    layouts.write_seven_scenes(scene, shots[::2], shots[1::2], lambda pose: shots[0].depth, np.eye(4))
    write_colmap(tmp_path / "sfm", shots[::2], [f"seq-01/frame-{k:06d}.color.png" for k in range(8)])
    queries = [f"seq-02/frame-{k:06d}.color.png" for k in range(8)]
    (tmp_path / "queries.txt").write_text("".join(f"{name} {colmap_line(KINECT)}\n" for name in queries))
    (tmp_path / "pairs.txt").write_text("".join(f"{name} seq-01/frame-{k:06d}.color.png\n" for k, name in enumerate(queries)))
    out = tmp_path / "out"
    lists = f"--queries {tmp_path}/queries.txt --pairs {tmp_path}/pairs.txt"
    assert pixloc(f"dataset 7scenes {scene} --model {tmp_path}/sfm {lists} -o {out}") == 0
    given = f"--cameras {out}/queries.txt --prior {out}/priors.txt"
    assert pixloc(f"localize --map {out}/map.pixmap --images {scene} {given} -o {out}/poses.txt") == 0
    truth = dict(zip(queries, shots[1::2]))
    check_poses(out / "truth.txt", truth)
    check_poses(out / "poses.txt", truth)
    # A model with the test images in it would be measured on what it was made of.
    write_colmap(tmp_path / "leak", shots[1::2], queries)
    capsys.readouterr()
    assert pixloc(f"dataset 7scenes {scene} --model {tmp_path}/leak --queries {tmp_path}/queries.txt -o {tmp_path}/leaked") == 2
    assert "holds the query" in capsys.readouterr().err


def write_aachen(root, shots):
    for k, shot in enumerate(shots):
        save(root / "images_upright" / (f"query/day/milestone/{k}.jpg" if k % 2 else f"db/{k}.jpg"), shot.image)
    write_colmap(root / "3D-models" / "aachen_v_1_1", shots[::2], [f"db/{k}.jpg" for k in range(0, len(shots), 2)])
    (root / "queries").mkdir()
    for name, numbers in (("day", range(1, 8, 2)), ("night", range(9, 16, 2))):
        lines = (f"query/day/milestone/{k}.jpg {colmap_line(KINECT)}\n" for k in numbers)
        (root / "queries" / f"{name}_time_queries_with_intrinsics.txt").write_text("".join(lines))
    return {f"{k}.jpg": shots[k] for k in range(1, 16, 2)}


def write_aachen_v1(root, shots):
    truth = write_aachen(root, shots)
    for file in (root / "3D-models" / "aachen_v_1_1").iterdir():
        file.unlink()
    names = [f"./query/day/milestone/{k}.jpg" if k % 2 else f"./db/{k}.jpg" for k in range(len(shots))]
    write_nvm(root / "3D-models" / "aachen_cvpr2018_db.nvm", shots, names, FOCAL)
    lines = (f"db/{k}.jpg {colmap_line(KINECT)}\n" for k in range(0, len(shots), 2))
    (root / "3D-models" / "database_intrinsics.txt").write_text("".join(lines))
    return truth


def write_robotcar(root, shots):
    names = [f"night/rear/{k}.jpg" if k % 2 else f"overcast-reference/rear/{k}.jpg" for k in range(len(shots))]
    for shot, name in zip(shots, names):
        save(root / "images" / name, shot.image)
    (root / "intrinsics").mkdir()
    (root / "intrinsics" / "rear_intrinsics.txt").write_text(f"fx {FOCAL}\nfy {FOCAL}\ncx 320.0\ncy 240.0\n")
    reference = [f"./{name.replace('.jpg', '.png')}" for name in names[::2]]
    write_nvm(root / "3D-models" / "all-merged" / "all.nvm", shots[::2], reference, FOCAL)
    return {f"rear/{k}.jpg": shots[k] for k in sorted(range(1, len(shots), 2), key=str)}


@pytest.mark.parametrize(
    "name, folder, write",
    [
        ("aachen", "aachen_v1.1", write_aachen),
        ("aachen", "aachen", write_aachen_v1),
        ("cmu", "slice2", layouts.write_cmu),
        ("robotcar", "robotcar", write_robotcar),
    ],
    ids=["aachen 1.1", "aachen 1.0", "cmu", "robotcar"],
)
def test_benchmark_sets(name, folder, write, shots, tmp_path, capsys):
    (tmp_path / folder).mkdir()
    truth = write(tmp_path / folder, shots)
    assert pixloc(f"dataset {name} {tmp_path}/{folder} -o {tmp_path}/out --localize") == 0
    assert "submission.txt: 8 of 8 queries localized" in capsys.readouterr().out
    check_poses(tmp_path / "out" / "submission.txt", truth)
    assert not (tmp_path / "out" / "truth.txt").exists()


def test_cmu_training_slices_have_truth(shots, tmp_path, capsys):
    truth = layouts.write_cmu(tmp_path / "slice7", shots, training=True)
    assert pixloc(f"dataset cmu {tmp_path}/slice7 -o {tmp_path}/out --localize") == 0
    assert "within 5 cm and 5 deg: 100.0 %" in capsys.readouterr().out
    check_poses(tmp_path / "out" / "truth.txt", truth)


def test_two_queries_never_share_a_name_in_the_submission(shots, tmp_path, capsys):
    write_aachen(tmp_path / "aachen", shots)
    path = tmp_path / "aachen" / "queries" / "night_time_queries_with_intrinsics.txt"
    save(tmp_path / "aachen" / "images_upright" / "query/night/nexus5x/1.jpg", shots[1].image)
    path.write_text(f"query/night/nexus5x/1.jpg {colmap_line(KINECT)}\n")
    assert pixloc(f"dataset aachen {tmp_path}/aachen -o {tmp_path}/out --localize") == 2
    assert "one name in the submission" in capsys.readouterr().err


def test_visualsfm_distortion_is_fitted_to_a_hundredth_of_a_pixel():
    focal, width, height = 1670.0, 1920, 1080
    for radial in (-0.05, 0.03):
        camera = nvm_camera(focal, radial, width, height)
        measured = np.stack(np.meshgrid(np.linspace(-960, 960, 21), np.linspace(-540, 540, 13)), -1).reshape(-1, 2) / focal
        rays = measured * (1 + radial * (measured**2).sum(1, keepdims=True))
        pixels, valid = camera.project(torch.from_numpy(np.hstack((rays, np.ones((len(rays), 1))))))
        expected = measured * focal + [(width - 1) / 2, (height - 1) / 2]
        assert bool(valid.all()) and np.abs(pixels.numpy() - expected).max() < 0.01
    with pytest.raises(InputError, match="folds"):
        nvm_camera(300.0, -2.0, width, height)


def test_bad_files_are_told(shots, tmp_path):
    write_nvm(tmp_path / "a.nvm", shots[:2], ["a.jpg", "b.jpg"], FOCAL)
    text = (tmp_path / "a.nvm").read_text()
    assert len(read_nvm(tmp_path / "a.nvm").names) == 2
    for old, new in (
        (text, "NVM_V2\n"),
        (text, text[:2000]),
        ("\n2\n", "\n9999999\n"),
        (f"b.jpg\t{FOCAL:.9g}", "b.jpg\tnan"),
        (text, ""),
    ):
        (tmp_path / "a.nvm").write_text(text.replace(old, new, 1))
        with pytest.raises(InputError):
            read_nvm(tmp_path / "a.nvm")
    (tmp_path / "pairs.txt").write_text("a.jpg b.jpg c.jpg\n")
    with pytest.raises(InputError, match="3 words instead of 2"):
        read_pairs(tmp_path / "pairs.txt")


def test_paper_tables(studio, shots, tmp_path, capsys, monkeypatch):
    write_cambridge(tmp_path / "cambridge" / "ShopFacade", shots)
    layouts.write_seven_scenes(
        tmp_path / "7scenes" / "chess", shots[::2], shots[1::2], lambda pose: studio.depth(DEPTH, pose), COLOUR_FROM_DEPTH.numpy()
    )
    (tmp_path / "aachen").mkdir()
    write_aachen(tmp_path / "aachen", shots)
    options = f"--cambridge {tmp_path}/cambridge --7scenes {tmp_path}/7scenes --aachen {tmp_path}/aachen -o {tmp_path}/out"
    monkeypatch.setattr(sys, "argv", ["paper_tables.py", *options.split()])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(EXPERIMENTS / "paper_tables.py"), run_name="__main__")
    assert ended.value.code == 0
    said = capsys.readouterr().out
    cells = ([cell.strip() for cell in line.split("|")[1:-1]] for line in said.splitlines() if line.startswith("|"))
    rows = {row[0]: row[1:] for row in cells}
    for scene, quoted in (("ShopFacade", "5/0.23"), ("chess", "2/0.80")):
        ours, images, paper, _ = rows[scene]
        centimetres, degrees = (float(value) for value in ours.split("/"))
        assert centimetres < 2 and degrees < 0.3 and images == "8 of 8" and paper == quoted, rows[scene]
    assert rows["GreatCourt"][0] == "no data" and rows["stairs"][2] == "5/1.30"
    assert len(read_benchmark_poses(tmp_path / "out" / "aachen" / "submission.txt")) == 8
