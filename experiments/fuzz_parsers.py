# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""All that reads what comes from outside, each with valid inputs made from a small simulated place: the parsers of `fuzz.py`."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import torch

from pixloc_ros.evaluation.metrics import evaluate
from pixloc_ros.evaluation.runs import BagRun, FrameRecord, read_run, write_run
from pixloc_ros.features import load_extractor
from pixloc_ros.features.weights import Weights
from pixloc_ros.geometry.cameras import Camera
from pixloc_ros.io import trajectory
from pixloc_ros.io.bags import BagReader
from pixloc_ros.io.colmap import read_colmap_model
from pixloc_ros.io.image_format import check_layout, decode_compressed, decode_raw
from pixloc_ros.io.trajectory import Trajectory
from pixloc_ros.io.tum import read_camera, read_rgbd_sequence
from pixloc_ros.mapping import Map
from pixloc_ros.mapping.build import build_map_from_colmap
from pixloc_ros.mapping.local_points import LocalPointSelector
from pixloc_ros.node.parameters import BY_NAME, PARAMETERS, check_values
from pixloc_ros.tracking.last_pose import LastPose, load_last_pose, save_last_pose
from pixloc_ros.tracking.types import TrackState
from pixloc_ros.training.config import read_config
from pixloc_sim.recordings import SimulationOptions, simulate

Files = dict[str, bytes]
"""An input: contents by file name."""

ENCODINGS = ("mono8", "mono16", "rgb8", "bgra8", "bayer_rggb8", "yuv422", "yuyv", "nonsense")
CONFIG = Path(__file__).resolve().parents[1] / "config" / "training" / "compact.json"


class Parser(NamedTuple):
    """Valid inputs, and what parses one that was written to a folder."""

    seeds: list[Files]
    read: Callable[[Path], object]


def make_parsers(folder: Path) -> dict[str, Parser]:
    """All of them, by name."""
    scene = folder / "scene"
    simulate(scene, SimulationOptions(seconds=1.0, rate_hz=4.0, width=160, height=120, texel=0.05, rgbd=True))
    build_map_from_colmap(scene / "map", scene / "images", load_extractor())[0].save(folder / "site.pixmap")
    # The head of the shipped weights would be lost in their megabytes: a few of their tensors.
    shipped = Weights.open("compact")
    Weights(dict(list(shipped.network.items())[:4]), shipped.card).save(folder / "w.safetensors")
    identities = (torch.eye(n, dtype=torch.float64) for n in (4, 6))
    save_last_pose(folder / "last.json", LastPose("site.pixmap", 10**18, *identities))
    write_run(scene / "run", short_run())
    tum = [f"{n}.5 {n} 2 3 0 0 0 1" for n in range(30)]
    named = [f"image{n}.jpg 1 0 0 0 {n} 2 3" for n in range(30)]
    values = {p.name: p.default for p in PARAMETERS}
    model = {name: b"\n".join(data.split(b"\n")[:40]) + b"\n" for name, data in files(scene / "map", "*.txt").items()}
    return {
        "map": Parser([files(folder, "site.pixmap")], read_map),
        "weights": Parser([files(folder, "w.safetensors")], lambda at: Weights.open(at / "w.safetensors")),
        "colmap_text": Parser([model], read_colmap_model),
        "colmap_binary": Parser([binary_model()], read_colmap_model),
        "rgbd": Parser([files(scene / "rgbd", "*.txt")], lambda at: (read_rgbd_sequence(at), read_camera(at))),
        "image_raw": Parser([raw_image(encoding) for encoding in ENCODINGS], read_raw_image),
        "image_compressed": Parser(compressed_images(), lambda at: decode_compressed((at / "image").read_bytes())),
        "poses_tum": Parser([{"poses": "\n".join(tum).encode()}], lambda at: trajectory.read_tum(at / "poses")),
        "poses_named": Parser([{"poses": "\n".join(named).encode()}], lambda at: trajectory.read_benchmark_poses(at / "poses")),
        "parameters": Parser([{"values": json.dumps(values).encode()}], read_parameters),
        "last_pose": Parser([files(folder, "last.json")], lambda at: load_last_pose(at / "last.json", "site.pixmap")),
        "run": Parser([files(scene / "run")], lambda at: evaluate(read_run(at))),
        "bag": Parser([files(scene / "drive")], read_bag),
        "training_config": Parser([files(CONFIG.parent, CONFIG.name)], lambda at: read_config(at / CONFIG.name)),
    }


def files(folder: Path, pattern: str = "*") -> Files:
    return {path.name: path.read_bytes() for path in folder.glob(pattern)}


def short_run() -> BagRun:
    """Twelve images, two without a pose."""
    truth = Trajectory.from_poses((n * 10**8, torch.eye(4, dtype=torch.float64)) for n in range(12))
    covariance, ms = torch.eye(6, dtype=torch.float64), {"total": 10.0}
    records = [FrameRecord(n * 10**8, TrackState.TRACKING, truth.map_from_body[n], covariance, ms, 0.8, "") for n in range(10)]
    records += [FrameRecord(n * 10**8, TrackState.LOST, None, None, ms, 0.1, "lost") for n in (10, 11)]
    return BagRun(records, truth, truth, findings={"way_ratio": 1.0, "way_ratio_std": 0.1})


def read_map(at: Path) -> None:
    """Opens it and uses it as a frame would: a hostile map must not get further than InputError there either."""
    map_ = Map.open(at / "site.pixmap")
    camera = Camera("pinhole", 160, 120, torch.tensor([100.0, 100.0, 79.5, 59.5], dtype=torch.float64))
    selector = LocalPointSelector(map_)
    for pose in map_.map_from_keyframe[:2]:
        selector.select(pose, camera, 256)


def binary_model() -> Files:
    """One camera, two images, two points, as COLMAP writes them."""
    i4, u8, f8 = (lambda *v, dtype=dtype: np.array(v, dtype).tobytes() for dtype in ("<i4", "<u8", "<f8"))
    cameras = u8(1) + i4(1, 1) + u8(160, 120) + f8(100, 100, 80, 60)
    images, points = u8(2), u8(2)
    for n in (1, 2):
        images += i4(n) + f8(1, 0, 0, 0, 0.1 * n, 0, 0) + i4(1) + f"image{n}.jpg".encode() + b"\0" + u8(2)
        images += b"".join(f8(20.0 * p, 30.0) + np.array([p], "<i8").tobytes() for p in (1, 2))
        points += u8(n) + f8(n, 1, 4) + bytes((10, 20, 30)) + f8(0.5) + u8(2) + i4(1, n - 1, 2, n - 1)
    return {"cameras.bin": cameras, "images.bin": images, "points3D.bin": points}


def raw_image(encoding: str) -> Files:
    """A message's fields as JSON, and its data."""
    step = 16 * {"mono8": 1, "bayer_rggb8": 1, "rgb8": 3, "bgra8": 4}.get(encoding, 2)
    fields = {"height": 8, "width": 16, "encoding": encoding, "step": step, "is_bigendian": 0}
    return {"fields": json.dumps(fields).encode(), "data": bytes(range(256)) * (8 * step // 256) + bytes(8 * step % 256)}


def read_raw_image(at: Path) -> None:
    try:
        fields = json.loads((at / "fields").read_bytes())
        height, width, step = (int(fields[name]) for name in ("height", "width", "step"))
        encoding, bigendian = str(fields["encoding"]), bool(fields["is_bigendian"])
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
        return  # not what a ROS message can hold
    if not all(0 <= value < 2**32 for value in (height, width, step)):
        return
    data = (at / "data").read_bytes()
    check_layout(height, width, encoding, step, bigendian, len(data))
    decode_raw(data, height, width, encoding, step, bigendian)


def compressed_images() -> list[Files]:
    picture = cv2.GaussianBlur(np.random.default_rng(0).integers(0, 255, (48, 64, 3), np.uint8), (0, 0), 3)
    sorts = ((".jpg", picture), (".png", picture), (".png", picture.astype(np.uint16) * 200))
    return [{"image": cv2.imencode(suffix, pixels)[1].tobytes()} for suffix, pixels in sorts]


def read_parameters(at: Path) -> None:
    try:
        values = json.loads((at / "values").read_bytes())
    except (ValueError, RecursionError):
        return
    if isinstance(values, dict):
        check_values({name: value for name, value in values.items() if name in BY_NAME})


def read_bag(at: Path) -> None:
    """Reads what a tracker would read."""
    with BagReader(at) as bag:
        bag.truth()
        for _ in bag.events():
            pass
