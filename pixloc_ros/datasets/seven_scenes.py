# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""7-Scenes (Shotton et al., CVPR 2013).

A folder per scene: `TrainSplit.txt`, `TestSplit.txt` (lines `sequence1`), `seq-01/` with `frame-000000.color.png`, `.depth.png`
(640x480, 16-bit millimetres, 65535 or 0 unknown) and `.pose.txt` (4x4, camera to world). Recorded at 30 Hz, without stamps.

The poses are those of the depth camera (focal length 585), the images those of the colour camera next to it
(focal length taken as 525), and depth is not aligned with colour. `calibrated`: the colour camera's pose and depth as it would
see it, with the offset between the two of a Kinect calibrated at LIRIS, as scene coordinate networks use it. `original`: the
written poses are taken for the colour camera's, as the published tables of feature-based methods do; depth is then not used.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import torch

from ..errors import InputError
from ..features import Extractor
from ..geometry import se3
from ..geometry.cameras import Camera
from ..io.depth import move_depth
from ..io.text import read_rows, read_text
from ..io.trajectory import Trajectory
from ..io.work_folder import WorkFolder
from ..mapping.build.building import BuildReport, Progress
from ..mapping.build.keyframes import KeyframeOptions
from ..mapping.build.posed_frames import PosedMapOptions, build_map_from_posed_frames
from ..mapping.map_file import Map
from . import image_set
from .image_set import ImageSet, MapBuilder, MapSource
from .recording import BASE_FROM_OPTICAL, EPOCH_NS, Recording, frames_for_map, need_folder, picture_files, rigid

POSES = ("calibrated", "original")
KEYFRAME_SHIFT = 0.1
"""A scene has thousands of training images: keyframes are set further apart than those of a drive."""
_RATE_HZ, _GAP_NS = 30, 1_000_000_000_000
_UNKNOWN_DEPTH = 65535
# Principal points at 320, 240 in pixels that begin at their corner: centre convention from here on.
COLOUR = Camera("pinhole", 640, 480, torch.tensor([525.0, 525.0, 319.5, 239.5], dtype=torch.float64))
DEPTH = Camera("pinhole", 640, 480, torch.tensor([585.0, 585.0, 319.5, 239.5], dtype=torch.float64))
COLOUR_FROM_DEPTH = rigid(
    np.array(
        [
            [0.99996518012567637, 0.0026765126468950343, -0.0079041012313000904, -0.025558943178152542],
            [-0.0027409311281316700, 0.99996302803027592, -0.0081504520778013286, 0.00010109636268061706],
            [0.0078819942130445332, 0.0081718328771890631, 0.99993554558014031, 0.0020318321729487039],
        ]
    ),
    "COLOUR_FROM_DEPTH",
)
"""Between the cameras of a Kinect, metres (LIRIS, kinect calibration)."""


def read_split(scene: Path, which: str) -> list[str]:
    """Folders of the sequences for training ("Train") or testing ("Test"). Raises InputError."""
    path = need_folder(scene, "a scene of 7-Scenes, with TrainSplit.txt and seq-01") / f"{which}Split.txt"
    words = [word for _, row in read_rows(path, "every scene of 7-Scenes has it") for word in row]
    try:
        names = [f"seq-{int(word.lower().removeprefix('sequence')):02d}" for word in words]
    except ValueError:
        raise InputError(f"{path} must hold lines like 'sequence1': unpack the scene again") from None
    if not names:
        raise InputError(f"{path} names no sequence: unpack the scene again")
    return names


def read_seven_scenes_sequence(scene: Path, name: str, poses: str = "calibrated") -> Recording:
    """One sequence ("seq-01"); its base is the colour camera. Frames without a usable pose are left out and counted. Raises
    InputError where there is none."""
    if poses not in POSES:
        raise InputError(f"poses '{poses}': use one of {', '.join(POSES)}")
    folder = need_folder(scene / name, "a scene whose sequences are unpacked (seq-01.zip to seq-01/)")
    files = sorted(folder.glob("frame-*.pose.txt"))
    number = int(name.split("-")[1])
    images, loaders, map_from_base, broken = {}, {}, {}, 0
    for file in files:
        stem = file.name.removesuffix(".pose.txt")
        stamp = EPOCH_NS + number * _GAP_NS + round(int(stem.split("-")[1]) * 1e9 / _RATE_HZ)
        pose = _pose(file)
        if pose is None:
            broken += 1
            continue
        images[stamp] = folder / f"{stem}.color.png"
        map_from_colour = pose
        if poses == "calibrated":
            map_from_colour = pose @ se3.inverse(COLOUR_FROM_DEPTH)
            depth = folder / f"{stem}.depth.png"
            if depth.is_file():
                loaders[stamp] = partial(_registered_depth, depth)
        map_from_base[stamp] = map_from_colour @ se3.inverse(BASE_FROM_OPTICAL)
    if not images:
        raise InputError(f"{folder} holds no frame-NNNNNN.pose.txt with a pose: unpack the whole sequence")
    pictures = picture_files(f"{scene.name} {name}", images, loaders)
    if broken:
        pictures = replace(pictures, left_out={**pictures.left_out, "no usable pose": broken})
    truth = Trajectory.from_poses(map_from_base.items())
    return Recording(name, COLOUR, pictures, truth, BASE_FROM_OPTICAL, files=(folder,))


def open_seven_scenes(
    scene: Path, model: Path | None = None, pairs: Path | None = None, queries: Path | None = None, every: int = 1
) -> ImageSet:
    """All test images of a scene as single queries.

    Args:
        scene: The folder.
        model: A COLMAP model of the training images (whose poses are the original ones), to make the map of instead of the
            training sequences with their depth.
        pairs: Retrieval results.
        queries: The intrinsics that go with the model.
        every: Look at each N-th training image.

    Raises:
        InputError: Files are missing or malformed.
    """
    if (model is None) != (queries is None):
        raise InputError("--model and --queries go together: a COLMAP model, and the list of queries with its intrinsics")
    poses = "calibrated" if model is None else "original"
    truth, cameras = {}, {}
    for name in read_split(scene, "Test"):
        for image, pose in image_poses(read_seven_scenes_sequence(scene, name, poses)).items():
            truth[image], cameras[image] = pose, COLOUR
    name = scene.resolve().name
    if model is None:
        asked = image_set.queries_of(cameras, scene)
        training = [read_seven_scenes_sequence(scene, sequence) for sequence in read_split(scene, "Train")]
        source = MapSource(_training_map(training, every, name), "the training sequences' images and depth", scene)
    else:
        asked = image_set.read_query_lists([queries], scene)
        truth = {query.name: truth[query.name] for query in asked if query.name in truth}
        source = image_set.colmap_source(model, scene, asked, name)
    files = image_set.existing(scene / "TrainSplit.txt", scene / "TestSplit.txt", model, pairs, queries)
    return ImageSet("7scenes", name, scene, asked, source, truth, image_set.read_pairs(pairs), files, folders=1)


def _training_map(training: list[Recording], every: int, name: str) -> MapBuilder:
    def build(extractor: Extractor, side: int | None, work: WorkFolder, progress: Progress | None) -> tuple[Map, BuildReport]:
        options = PosedMapOptions(keyframes=KeyframeOptions(shift=KEYFRAME_SHIFT))
        frames = frames_for_map(training, True, every)
        return build_map_from_posed_frames(frames, extractor, work, options, side, f"7scenes {name}", progress)

    return build


def image_poses(sequence: Recording) -> dict[str, torch.Tensor]:
    """camera_from_map [4, 4] of the images of a sequence, by their name within the scene."""
    stamps, map_from_base = sequence.posed()
    return {
        frame_name(sequence.name, stamp): pose
        for stamp, pose in zip(stamps.tolist(), se3.inverse(map_from_base @ sequence.base_from_camera))
    }


def frame_name(sequence: str, stamp_ns: int) -> str:
    """Of an image within the scene, `seq-01/frame-000000.color.png`, from its stamp."""
    number = round((stamp_ns - EPOCH_NS) % _GAP_NS * _RATE_HZ / 1e9)
    return f"{sequence}/frame-{number:06d}.color.png"


def _pose(path: Path) -> torch.Tensor | None:
    try:
        return rigid(np.array([float(word) for word in read_text(path).split()]), path)
    except ValueError:  # InputError is one
        return None


def _registered_depth(path: Path) -> np.ndarray:
    """Depth in metres as the colour camera would see it, float32 [H, W], 0 where unknown."""
    raw = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    if raw is None or raw.dtype != np.uint16 or raw.shape != (DEPTH.height, DEPTH.width):
        raise InputError(f"{path} is not a 16-bit depth image of {DEPTH.width}x{DEPTH.height}: unpack the sequence again")
    metres = np.where(raw == _UNKNOWN_DEPTH, 0, raw).astype(np.float32) / 1000
    return move_depth(metres, COLOUR_FROM_DEPTH, COLOUR, DEPTH)
