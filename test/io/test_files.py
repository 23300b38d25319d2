# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""Files that appear whole, files found by other systems' names, text files and lists of cameras."""

import numpy as np
import pytest
import torch

from pixloc_ros.errors import InputError
from pixloc_ros.geometry.cameras import Camera
from pixloc_ros.io.camera_files import read_cameras, read_names, write_cameras
from pixloc_ros.io.files import find_file, match_names, replacing, replacing_folder, write_text
from pixloc_ros.io.text import read_lines, read_rows, read_table
from pixloc_ros.io.trajectory import Trajectory, pose_format, read_tum
from pixloc_ros.io.transforms import TransformTree


def test_a_file_is_replaced_whole_with_its_permissions(tmp_path):
    path = tmp_path / "made" / "file.txt"
    write_text(path, "old", mode=0o600)
    assert path.stat().st_mode & 0o777 == 0o600
    with pytest.raises(RuntimeError), replacing(path) as temporary:
        assert temporary.suffix == ".txt" and temporary.stat().st_mode & 0o777 == 0o600  # nobody else may read it yet
        temporary.write_text("half")
        raise RuntimeError
    assert path.read_text() == "old" and len(list(path.parent.iterdir())) == 1
    write_text(path, "new")
    assert path.read_text() == "new" and path.stat().st_mode & 0o777 == 0o644


def test_where_a_file_or_folder_cannot_be_renamed_the_old_one_stays(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("old")
    monkeypatch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(OSError("no space")))
    with pytest.raises(InputError, match="cannot write .*no space"):
        write_text(tmp_path / "file", "new")
    with pytest.raises(InputError, match="no space"), replacing_folder(tmp_path / "folder") as place:
        place.mkdir()
    assert [p.name for p in tmp_path.iterdir()] == ["file"] and (tmp_path / "file").read_text() == "old"


@pytest.mark.parametrize("name", ["a/B c.jpg", "a\\B c.jpg", "A/b C.JPG", ".\\a\\b c.jpg", "  a/B c.jpg "])
def test_files_are_found_by_the_names_of_other_systems(tmp_path, name):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "B c.jpg").touch()
    assert find_file(tmp_path, name).samefile(tmp_path / "a" / "B c.jpg")
    (tmp_path / "a" / "b C.jpg").touch()
    assert find_file(tmp_path, "a/B C.jpg") == tmp_path / "a" / "B C.jpg"  # two would do: neither is taken


def test_lines_and_tables_of_text_files(tmp_path):
    path = tmp_path / "list.txt"
    path.write_bytes("\ufeffheading\n# comment\r\n\n1 2 # why\n3\t4\n".encode())
    assert list(read_lines(path)) == [(f"{path}:{k}", line) for k, line in ((1, "heading"), (4, "1 2 # why"), (5, "3\t4"))]
    assert [words for _, words in read_rows(path, skip=1)] == [["1", "2"], ["3", "4"]]
    with pytest.raises(InputError, match="list.txt:1: 1 words instead of 2"):
        read_table(path, 2)
    path.write_text("1 2\n")
    assert read_table(path, 2).tolist() == [[1, 2]]
    with pytest.raises(InputError, match="No such file.*check the path"):
        list(read_lines(tmp_path / "none"))


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be"])
def test_text_of_another_encoding_is_named(tmp_path, encoding):
    (tmp_path / "wide.txt").write_bytes("1 0 0 0 0 0 0 1\r\n".encode(encoding))
    for read in (read_cameras, read_names, read_tum, pose_format, lambda path: read_table(path, 8)):
        with pytest.raises(InputError, match="wide.txt is UTF-16 text.*save it as UTF-8"):
            read(tmp_path / "wide.txt")


def test_marks_of_joined_files_are_no_text(tmp_path):
    (tmp_path / "joined.txt").write_bytes(b"\xef\xbb\xbf1 2\r\n\xef\xbb\xbf3 4\r5 6")
    assert read_table(tmp_path / "joined.txt", 2).tolist() == [[1, 2], [3, 4], [5, 6]]


def test_names_of_one_file_on_several_systems_match():
    known = {"cam0/A.JPG": 1, "u\u0308.png": 2, "b.png": 3, "B.png": 4}
    wanted = ["cam0\\a.jpg", "./cam0/A.jpg", "\u00fc.png", "b.PNG", "B.png", "c.png"]
    assert match_names(wanted, known) == {wanted[0]: 1, wanted[1]: 1, wanted[2]: 2, "B.png": 4}


def test_cameras_by_names_with_blanks(tmp_path):
    names = ["my photo 1.jpg", "#2.jpg", "#3 of 4.jpg", "PINHOLE 5 6.jpg", "ünï #7.jpg", "b.jpg", "# 8.jpg"]
    camera = Camera("plumb_bob", 64, 48, torch.tensor([50.0, 51, 31, 24, 0.1, 0, 0, 0, 0], dtype=torch.float64))
    write_cameras(tmp_path / "cameras.txt", dict.fromkeys(names, camera))
    found = read_cameras(tmp_path / "cameras.txt")
    assert list(found) == names
    torch.testing.assert_close(found["my photo 1.jpg"].params, camera.params)
    for name in ("#2.jpg", "# 8.jpg"):
        (tmp_path / name).touch()
    (tmp_path / "names.txt").write_text("# comment\nmy photo 1.jpg\n#2.jpg\n#3.jpg\n# 8.jpg\n# 9.jpg\n")
    assert read_names(tmp_path / "names.txt") == ["my photo 1.jpg", "#2.jpg", "# 8.jpg"]
    with (tmp_path / "cameras.txt").open("a") as file:  # commented out: twice, and one that is no camera any more
        file.write("# 8.jpg PINHOLE 64 48 50 50 32 24\n# 9.jpg PINHOLE 64 48 50 50 32\n# and PINHOLE 64 48 50 50 32 24\n")
    assert list(read_cameras(tmp_path / "cameras.txt")) == names


def test_chains_of_transforms_go_up_and_down():
    def moved(x):
        pose = torch.eye(4, dtype=torch.float64)
        pose[0, 3] = x
        return pose

    track = Trajectory(np.array([0, 10]), torch.stack((moved(1.0), moved(2.0))))
    tree = TransformTree([("base", "camera", moved(0.5)), ("base", "lidar", moved(3.0))], {("odom", "base"): track})
    poses, known = tree.chain("odom", "camera").at(np.array([5, 11]), 100)
    assert poses[0, 0, 3] == 2.0 and known.tolist() == [True, False]
    assert tree.chain("lidar", "odom").at(np.array([10]), 100)[0][0, 0, 3] == -5.0
    assert tree.static("lidar", "camera")[0, 3] == -2.5 and tree.static("odom", "base") is None
    assert tree.chain("base", "elsewhere") is None
