#!/usr/bin/env python3
# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""A Gazebo world of meshes, path-traced under changing light: a mapping drive, and query drives in changed conditions.

Poses, depth and odometry are exact or have stated errors. The world is an archive (or folder) with worlds/, models/ and LICENSE.
It needs Blender's renderer in some Python 3.11: `pip install bpy==5.0.1 OpenEXR pycollada`; name it with --renderer if it is
another one than this. Killed, the same command goes on; every image is kept as soon as it is rendered.

    experiments/render_world.py ../shared/data/worlds/small_house.tar.xz -o out/house
    experiments/render_world.py ../shared/data/worlds/small_house.tar.xz -o out/mini --map-images 40 --drives noon torch \\
        --images 20 --width 320 --height 240

Layout: images/ and map/ (COLMAP text model of the mapping drive), one folder for each query drive with drive/ (rosbag2) and
truth.tum (map_from_base), cases/ (the same as single images, for `under_change.py OUTPUT/cases --images OUTPUT/images`),
sequence/ (all drives of the map's camera in which no furniture has moved, as one RGB-D sequence, to train across conditions:
kind `rgbd` with `apart_s` 100), world.json (what was made), work/ (every image as PNG, its depth as npz float32 metres).
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import os
import shutil
import subprocess
import sys
import tarfile
import time
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from queue import Queue

import cv2
import numpy as np
import torch
from common import PRIOR_SIZES
from world_drives import CONDITIONS, Condition, FreeSpace, beside, free_space, moved_furniture, people_at, tour
from world_scene import Scene, load_scene

from pixloc_ros.cli.scripts import run_script
from pixloc_ros.datasets.odometry import OdometryErrors
from pixloc_ros.errors import InputError
from pixloc_ros.geometry import se3
from pixloc_ros.geometry.cameras import Camera
from pixloc_ros.io.bag_writer import RecordedDrive, RecordedImage, encode_image, write_drive_bag
from pixloc_ros.io.colmap import write_colmap_model
from pixloc_ros.io.files import replacing_folder, write_text
from pixloc_ros.io.trajectory import Trajectory, write_benchmark_poses, write_tum
from pixloc_ros.io.work_folder import WorkFolder
from pixloc_ros.training.pairs import perturbed
from pixloc_sim.drives import START_NS, DriveOptions, SimulatedDrive, camera_mount, wheel_odometry
from pixloc_sim.sparse_model import Keyframe, build_sparse_model

_HERE = Path(__file__).resolve().parent
_MAP_STEP_M, _MAP_TURN = 0.40, np.deg2rad(18.0)
_SPEED, _SHAKE = 0.6, 0.006
_RATE_HZ = 4.0
_ASIDE_M = 0.25


@dataclass(frozen=True)
class Plan:
    """A drive to be rendered: its condition, motion, camera, and when (seconds from its start) its images are taken."""

    name: str
    number: int
    condition: Condition
    drive: SimulatedDrive
    camera: Camera
    times: np.ndarray
    moved: dict[str, list]
    people: list[list[tuple[float, float, float]]]

    @property
    def mount(self) -> torch.Tensor:
        return camera_mount(up=self.condition.height_m)

    @property
    def stamps_ns(self) -> np.ndarray:
        return START_NS + self.number * 1000 * 10**9 + np.rint(self.times * 1e9).astype(np.int64)

    def pose(self, index: int) -> torch.Tensor:
        """map_from_camera of an image, float64 [4, 4]."""
        return self.drive.at(float(self.times[index])) @ self.mount


def main() -> int:
    args = _parser().parse_args()
    unknown = sorted(set(args.drives) - set(CONDITIONS))
    if unknown or "map" in args.drives:
        raise InputError(f"--drives {' '.join(unknown or ['map'])}: choose among {', '.join(list(CONDITIONS)[1:])}")
    if args.width % 8 or args.height % 8 or min(args.width, args.height, args.images, args.map_images, args.workers) < 1:
        raise InputError("--width and --height are multiples of 8, numbers of images and --workers at least 1")
    key = {name: getattr(args, name) for name in ("width", "height", "seed", "samples", "images", "map_images")} | {
        "world": args.world.name
    }
    args.output.mkdir(parents=True, exist_ok=True)
    work = WorkFolder(args.output / "work", key)
    scene, models = open_world(args.world, work, args.renderer)
    plans = make_plans(scene, args, work)
    began, made = time.monotonic(), render(plans, work, models, args)
    seconds = (time.monotonic() - began) / max(made, 1)
    write_map(plans[0], work, args)
    for plan in plans[1:]:
        write_query_drive(plan, work, args)
        write_case(plan, work, args)
    write_sequence(plans, work, args.output / "sequence")
    record = key | {"images": {plan.name: len(plan.times) for plan in plans}, "licence": _licence(models)}
    record["conditions"] = {plan.name: dataclasses.asdict(plan.condition) for plan in plans}
    record["moved"] = {plan.name: plan.moved for plan in plans if plan.moved}
    record["cameras"] = {plan.name: plan.camera.to_colmap_line() for plan in plans}
    if made:
        record["wall_seconds_an_image"] = round(seconds, 2)
    write_text(args.output / "world.json", json.dumps(record, indent=1) + "\n")
    print(f"{args.output}: {sum(len(plan.times) for plan in plans)} images, {made} of them rendered now, {seconds:.1f} s each")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("world", type=Path, help="archive or folder")
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--drives", nargs="*", default=list(CONDITIONS)[1:], help="query drives (default: all)")
    parser.add_argument("--images", type=int, default=240, help="of each query drive (default 240)")
    parser.add_argument("--map-images", type=int, default=360, help="of the mapping drive at most (default 360)")
    parser.add_argument("--width", type=int, default=640)
    parser.add_argument("--height", type=int, default=480)
    parser.add_argument("--samples", type=int, default=8, help="light paths a pixel, before noise is removed (default 8)")
    parser.add_argument("--workers", type=int, default=2, help="processes that render, one thread each (default 2)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--renderer", default=sys.executable, help="a Python with bpy, OpenEXR and pycollada")
    return parser


def open_world(world: Path, work: WorkFolder, renderer: str) -> tuple[Scene, Path]:
    """The scene, read once, and the folder of its models. Raises InputError."""
    folder = world
    if not world.exists():
        raise InputError(f"there is no {world}")
    if world.is_file():
        folder = work.path("world")
        if not folder.is_dir():
            with replacing_folder(folder) as unpacked, tarfile.open(world) as archive:
                archive.extractall(unpacked, filter="data")
    if not (folder / "worlds").is_dir():
        folder = next((path.parent for path in folder.glob("*/worlds")), folder)
    if not list((folder / "worlds").glob("*.world")):
        raise InputError(f"{world} holds no worlds/*.world")
    file = work.path("scene.npz")
    if not file.is_file():
        read = lambda path: _run([renderer, str(_HERE / "world_scene.py"), str(folder), str(path)])  # noqa: E731
        work.write("scene.npz", read)
    return load_scene(file), folder / "models"


def _run(command: list[str]) -> None:
    try:
        done = subprocess.run(command, stderr=subprocess.PIPE, text=True, check=False)
    except OSError as error:
        raise InputError(f"--renderer {command[0]}: {error.strerror}") from None
    if done.returncode:
        raise InputError(f"--renderer {command[0]}: {(done.stderr.strip().splitlines() or ['it failed'])[-1]}")
    print(done.stderr, end="", file=sys.stderr)


def make_plans(scene: Scene, args: argparse.Namespace, work: WorkFolder) -> list[Plan]:
    """The mapping drive, then the query drives, each over a part of what it has seen."""
    found = work.arrays("paths", lambda: _paths(scene))
    space, path = FreeSpace(found["clearance"], found["origin"]), found["path"]
    drive = SimulatedDrive(DriveOptions(speed=_SPEED, shake=_SHAKE, seed=args.seed), path)
    times, seen_m = _keyframe_times(drive, args.map_images)
    plans = [Plan("map", 0, CONDITIONS["map"], drive, _camera(CONDITIONS["map"], args), times, {}, [[]] * len(times))]
    for number, name in enumerate(CONDITIONS):
        if name not in args.drives:
            continue
        condition, seed = CONDITIONS[name], args.seed * 100 + number
        seconds = args.images / _RATE_HZ + 0.2
        way = beside(path, space, _ASIDE_M, seed)
        room = max(0.0, seen_m - seconds * _SPEED - 1.0)
        start = 0.35 + float(np.random.default_rng([seed, 59]).uniform(0, room))
        drive = SimulatedDrive(DriveOptions(seconds, _SPEED, start=start, shake=_SHAKE, seed=seed), way)
        times = 0.1 + np.arange(args.images) / _RATE_HZ
        moved = moved_furniture(scene, path, condition.furniture, args.seed) if condition.furniture else {}
        people = [people_at(condition.people, way, space, float(moment), seed) for moment in times]
        plans.append(Plan(name, number, condition, drive, _camera(condition, args), times, moved, people))
    return plans


def _paths(scene: Scene) -> dict[str, np.ndarray]:
    space = free_space(scene)
    return {"clearance": space.clearance, "origin": space.origin, "path": tour(space)}


def _keyframe_times(drive: SimulatedDrive, most: int) -> tuple[np.ndarray, float]:
    """Times of keyframes, every 0.4 m or 18 degrees of one round, and the metres that they cover."""
    time_s = np.arange(0.0, drive.duration_s, 0.02)
    planar = drive.planar(time_s)
    way = np.concatenate(([0.0], np.cumsum(np.hypot(*np.diff(planar[:, :2], axis=0).T))))
    chosen = [0]
    for index in range(1, len(time_s)):
        last = chosen[-1]
        if way[index] - way[last] >= _MAP_STEP_M or abs(planar[index, 2] - planar[last, 2]) >= _MAP_TURN:
            chosen.append(index)
        if len(chosen) >= most:
            break
    return time_s[chosen], float(way[chosen[-1]])


def _camera(condition: Condition, args: argparse.Namespace) -> Camera:
    width, height = (int(size * condition.scale) // 2 * 2 for size in (args.width, args.height))
    focal = 0.5 * width / np.tan(np.deg2rad(condition.field_of_view_deg) / 2)
    params = torch.tensor([focal, focal, (width - 1) / 2, (height - 1) / 2], dtype=torch.float64)
    return Camera("pinhole", width, height, params)


def render(plans: list[Plan], work: WorkFolder, models: Path, args: argparse.Namespace) -> int:
    """Every image that is not there yet, by several processes → how many there were."""
    waiting = deque()
    for plan in plans:
        work.path(plan.name).mkdir(exist_ok=True)
        names = [f"{plan.name}/{index:05d}" for index in range(len(plan.times))]
        waiting += [(plan, index, name) for index, name in enumerate(names) if not work.path(f"{name}.png").is_file()]
    total, done, began = len(waiting), 0, time.monotonic()
    if not total:
        return 0
    free: Queue[_Renderer] = Queue()
    renderers = [_Renderer(number, work, models, args) for number in range(min(args.workers, total))]
    for renderer in renderers:
        free.put(renderer)

    def one(job: tuple[Plan, int, str]) -> None:
        nonlocal done
        renderer = free.get()
        try:
            renderer.make(*job)
        finally:
            free.put(renderer)
        done += 1
        each = (time.monotonic() - began) / done
        line = f"{job[2]}: {done} of {total}, {each:.1f} s each, {each * (total - done) / 60:.0f} min left"
        print(f"\r\033[K{line}" if sys.stderr.isatty() else f"{line}\n", end="", file=sys.stderr, flush=True)

    try:
        with ThreadPoolExecutor(len(renderers)) as pool:
            running = [pool.submit(one, job) for job in waiting]
            try:
                for future in running:
                    future.result()
            finally:
                for future in running:
                    future.cancel()
    finally:
        for renderer in renderers:
            renderer.close()
    return total


class _Renderer:
    """A process that renders views (`world_cycles.py`)."""

    def __init__(self, number: int, work: WorkFolder, models: Path, args: argparse.Namespace) -> None:
        self.work, self.seed, self.drive = work, args.seed, None
        self.scratch = work.path(f"view_{number}.npz")
        command = [args.renderer, str(_HERE / "world_cycles.py"), str(work.path("scene.npz")), str(models), str(args.samples)]
        with open(work.path("renderer.log"), "a") as log:
            pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": log}
            self.process = subprocess.Popen(command, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"}, **pipes)

    def make(self, plan: Plan, index: int, name: str) -> None:
        """Render one image; its depth is written before it."""
        camera = {"width": plan.camera.width, "height": plan.camera.height, "focal": float(plan.camera.params[0])}
        view = {"camera": camera, "pose": plan.pose(index).tolist(), "people": plan.people[index], "out": str(self.scratch)}
        view["seed"] = self.seed * 1_000_003 + plan.number * 10_007 + index
        if plan.name != self.drive:
            view["condition"], self.drive = plan.condition.light(plan.moved), plan.name
        try:
            self.process.stdin.write(json.dumps(view) + "\n")
            self.process.stdin.flush()
            while not (line := self.process.stdout.readline()).startswith("RENDERED"):
                if not line:
                    raise BrokenPipeError
        except BrokenPipeError:
            lines = self.work.path("renderer.log").read_text().strip().splitlines() or ["no word"]
            raise InputError(f"the renderer ended: {lines[-1]} (see {self.work.path('renderer.log')})") from None
        with np.load(self.scratch, allow_pickle=False) as arrays:
            radiance, depth = arrays["radiance"].astype(np.float32), arrays["depth"]
        image = plan.condition.sensor.develop(radiance, np.random.default_rng([view["seed"], 61]))
        self.work.write(f"{name}.npz", lambda path: np.savez_compressed(path, depth=depth))
        self.work.write(f"{name}.png", lambda path: cv2.imwrite(str(path), image[..., ::-1]))

    def close(self) -> None:
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        self.process.terminate()
        self.process.wait()
        self.process.stdout.close()
        self.scratch.unlink(missing_ok=True)


def _image(work: WorkFolder, name: str) -> np.ndarray:
    return np.ascontiguousarray(cv2.imread(str(work.path(f"{name}.png")))[..., ::-1])


def write_map(plan: Plan, work: WorkFolder, args: argparse.Namespace) -> None:
    """images/ and map/ of the mapping drive, as the simulation makes them."""
    frames = []
    for index, stamp_ns in enumerate(plan.stamps_ns.tolist()):
        with np.load(work.path(f"map/{index:05d}.npz"), allow_pickle=False) as arrays:
            depth = arrays["depth"]
        frames.append(Keyframe(f"{index:05d}.png", stamp_ns, _image(work, f"map/{index:05d}"), depth, plan.pose(index)))
    with replacing_folder(args.output / "images") as folder:
        folder.mkdir()
        for frame in frames:
            shutil.copyfile(work.path(f"map/{frame.name}"), folder / frame.name)
    model, rgb = build_sparse_model(frames, plan.camera, np.random.default_rng([args.seed, 5]))
    write_colmap_model(args.output / "map", model, rgb)


def write_query_drive(plan: Plan, work: WorkFolder, args: argparse.Namespace) -> None:
    """The bag of a query drive and its truth."""
    folder = args.output / plan.name
    folder.mkdir(exist_ok=True)
    start_ns, stamps_ns = START_NS + plan.number * 1000 * 10**9, plan.stamps_ns
    truth = plan.drive.at(plan.times)
    odometry = wheel_odometry(plan.drive, OdometryErrors(), args.seed * 100 + plan.number, start_ns)
    recorded = RecordedDrive("png", plan.camera, plan.mount, odometry, truth)
    names = [f"{plan.name}/{index:05d}" for index in range(len(stamps_ns))]
    images = (RecordedImage(stamp, encode_image(_image(work, name), "png")) for stamp, name in zip(stamps_ns.tolist(), names))
    write_drive_bag(folder / "drive", images, recorded)
    write_tum(folder / "truth.tum", Trajectory(stamps_ns, truth))


def write_case(plan: Plan, work: WorkFolder, args: argparse.Namespace) -> None:
    """A query drive as single images, which are in images/NAME/: map, cameras, truth, depths, and priors that are wrong."""
    with replacing_folder(args.output / "images" / plan.name) as folder:
        folder.mkdir()
        for index in range(len(plan.times)):
            shutil.copyfile(work.path(f"{plan.name}/{index:05d}.png"), folder / f"{index:05d}.png")
    truth, depths, rng = {}, {}, np.random.default_rng([args.seed, plan.number, 67])
    for index in range(len(plan.times)):
        name = f"{plan.name}/{index:05d}"
        with np.load(work.path(f"{name}.npz"), allow_pickle=False) as arrays:
            depth = arrays["depth"][arrays["depth"] > 0]
        if len(depth):  # else it shows nothing but the sky behind a window
            depths[f"{name}.png"] = float(np.median(depth))
            truth[f"{name}.png"] = se3.inverse(plan.pose(index))
    with replacing_folder(args.output / "cases" / plan.name) as folder:
        shutil.copytree(args.output / "map", folder / "map")
        queries = folder / "queries"
        queries.mkdir()
        write_text(queries / "cameras.txt", "".join(f"{name} {plan.camera.to_colmap_line()}\n" for name in truth))
        write_text(queries / "scale.json", json.dumps(depths))
        write_benchmark_poses(queries / "truth.txt", truth)
        for size, std in PRIOR_SIZES.items():
            wrong = {
                name: perturbed(pose, np.deg2rad(std.degrees), std.depth_share * depths[name], rng)
                for name, pose in truth.items()
            }
            write_benchmark_poses(queries / f"priors_{size}.txt", wrong)


def write_sequence(plans: list[Plan], work: WorkFolder, output: Path) -> None:
    """The drives of the map's camera, where no furniture has moved, as an RGB-D sequence in the layout of `io.tum`."""
    camera = plans[0].camera.to_colmap_line()
    plans = [plan for plan in plans if plan.camera.to_colmap_line() == camera and not plan.moved]
    stamps = np.concatenate([plan.stamps_ns for plan in plans])
    poses = torch.stack([plan.pose(index) for plan in plans for index in range(len(plan.times))])
    names = [(plan.name, index) for plan in plans for index in range(len(plan.times))]
    with replacing_folder(output) as folder:
        for kind in ("rgb", "depth"):
            (folder / kind).mkdir(parents=True)
            files = (f"{kind}/{name}_{index:05d}.png" for name, index in names)
            lines = (f"{stamp // 10**9}.{stamp % 10**9:09d} {file}\n" for stamp, file in zip(stamps.tolist(), files))
            write_text(folder / f"{kind}.txt", "".join(lines))
        for name, index in names:
            shutil.copyfile(work.path(f"{name}/{index:05d}.png"), folder / "rgb" / f"{name}_{index:05d}.png")
            with np.load(work.path(f"{name}/{index:05d}.npz"), allow_pickle=False) as arrays:
                depth = np.rint(1000 * arrays["depth"].astype(np.float64))
            depth[depth > np.iinfo(np.uint16).max] = 0
            cv2.imwrite(str(folder / "depth" / f"{name}_{index:05d}.png"), depth.astype(np.uint16))
        write_tum(folder / "groundtruth.txt", Trajectory(stamps, poses))
        write_text(folder / "camera.txt", f"{camera}\n")


def _licence(models: Path) -> str:
    file = models.parent / "LICENSE"
    return file.read_text().strip().splitlines()[0] if file.is_file() else "unknown"


if __name__ == "__main__":
    run_script(main)
