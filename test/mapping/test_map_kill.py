# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""kill -9 in the middle of every command that writes a map: its file is the old or the new one, and the command then works."""

import json
import os
import shutil
import signal
import sys
from functools import partial
from pathlib import Path

import cv2
import pytest
from killing import in_child, run_alone
from mapping_helpers import FakeExtractor, write_sequence
from posed_bag_writing import write_bag

import pixloc_ros
from pixloc_ros.cli.main import main
from pixloc_ros.io import tensor_file
from pixloc_ros.mapping import Map

MOMENTS = ("step", "image", "write", "sync", "rename", "renamed")
"""At the third file of the work folder (only bags have one), at the second image's features (only where there are images), in the
middle of the file, before it is on the disk, before it gets its name, after that."""
BUILDERS, OTHERS = ("bag", "colmap", "rgbd", "re-encode"), ("merge", "prune", "georeference")


def moments(name: str) -> tuple[str, ...]:
    return MOMENTS[0 if name == "bag" else 1 if name in BUILDERS else 2 :]


def run_killed(command: list[str], output: str, moment: str) -> int:
    """In a child process: the command, killed at a moment."""
    images = steps = 0

    def die(now: str) -> None:
        if now == moment:
            os.kill(os.getpid(), signal.SIGKILL)

    class Extractor(FakeExtractor):
        def extract(self, image):
            nonlocal images
            images += 1
            if images == 2:
                die("image")
            return super().extract(image)

    def tensor_bytes(array, original=tensor_file.tensor_bytes):
        if any(Path(output).parent.glob(f".{Path(output).name}.*")):
            die("write")
        return original(array)

    def fsync(file, original=os.fsync):
        die("sync")
        original(file)

    def replace(source, target, original=os.replace):
        nonlocal steps
        steps += f"{output}.work" in str(target)
        if steps == 3:
            die("step")
        if str(target) == output:
            die("rename")
        original(source, target)
        if str(target) == output:
            die("renamed")

    pixloc_ros.load_extractor = lambda *_: Extractor()
    tensor_file.tensor_bytes, os.fsync, os.replace = tensor_bytes, fsync, replace
    return main(command)


def run_all(folder: Path) -> None:
    """Every command killed at every moment, then left alone; how each child ended goes to ended.json, what its file was then to
    NAME.MOMENT."""
    ended = {}
    for name, (command, output) in json.loads((folder / "commands.json").read_text()).items():
        for moment in (*moments(name), "never"):
            if moment != "never":
                shutil.copy(folder / "old.pixmap", output)
            ended[f"{name}.{moment}"] = in_child(partial(run_killed, command, output, moment))
            shutil.copy(output, folder / f"{name}.{moment}")
    (folder / "ended.json").write_text(json.dumps(ended))


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    """The folder that `run_all` has filled."""
    folder = tmp_path_factory.mktemp("killed")
    bag = write_bag(folder / "drive", 8, depth="16UC1")
    sequence = write_sequence(folder / "plane", [0.25 * k for k in range(6)])
    old, images, model = folder / "old.pixmap", folder / "images", folder / "model"
    load, pixloc_ros.load_extractor = pixloc_ros.load_extractor, lambda *_: FakeExtractor()
    try:
        assert main(["map", "bag", str(bag), "-o", str(old), "--keep-images", str(images), "--keyframe-shift", "0.02"]) == 0
        assert main(["map", "export", str(old), "--colmap", str(model)]) == 0
    finally:
        pixloc_ros.load_extractor = load
    for image in images.iterdir():  # the exported cameras are those of the shrunk images
        cv2.imwrite(str(image), cv2.resize(cv2.imread(str(image)), (160, 120), interpolation=cv2.INTER_AREA))
    map_ = Map.open(old)
    fixes = folder / "fixes.txt"
    places = ((0, 0), (40, 0), (0, 30), (50, 60))
    fixes.write_text("".join(f"{x} {y} 0 {48 + y / 111_200} {11 + x / 74_400} 500\n" for x, y in places))
    outputs = {name: str(folder / f"{name}.pixmap") for name in (*BUILDERS, *OTHERS)}
    commands = {
        "bag": ["bag", str(bag), "-o", outputs["bag"]],
        "colmap": ["colmap", "--model", str(model), "--images", str(images), "-o", outputs["colmap"], "--min-track-length", "3"],
        "rgbd": ["rgbd", "--sequence", str(sequence), "-o", outputs["rgbd"]],
        "re-encode": ["re-encode", str(old), "--images", str(images), "-o", outputs["re-encode"], "--working-side", "120"],
        "merge": ["merge", str(old), str(old), "-o", outputs["merge"]],
        "prune": ["prune", str(old), "-o", outputs["prune"], "--int8"],
        "georeference": ["georeference", outputs["georeference"], "--fixes", str(fixes)],
    }
    (folder / "commands.json").write_text(
        json.dumps({name: (["map", *command], outputs[name]) for name, command in commands.items()})
    )
    assert len(map_.keyframe_names) > 2
    run_alone(__file__, folder)
    return folder


@pytest.mark.parametrize("name", [*BUILDERS, *OTHERS])
def test_the_file_is_the_old_or_the_new_one(killed, name):
    ended = json.loads((killed / "ended.json").read_text())
    old, new = (killed / "old.pixmap").read_bytes(), (killed / f"{name}.never").read_bytes()
    assert ended[f"{name}.never"] == 0 and old != new
    Map.open(killed / f"{name}.never", verify=True)
    for moment in moments(name):
        assert ended[f"{name}.{moment}"] == -signal.SIGKILL, moment
        assert (killed / f"{name}.{moment}").read_bytes() == (new if moment == "renamed" else old), moment


if __name__ == "__main__":
    run_all(Path(sys.argv[1]))
