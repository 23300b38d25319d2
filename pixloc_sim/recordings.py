# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""A whole simulated data set: a mapping drive as a COLMAP model with images, a test drive as a rosbag2, and the truth.

Layout of the folder::

    images/            keyframes of the mapping drive, JPEG
    map/               COLMAP text model of them (poses exact, points triangulated from noisy observations)
    rgbd/              the same keyframes in TUM RGB-D format (only when asked for)
    drive/             rosbag2 (MCAP) of the test drive: see `bag_writer`
    drive_truth.tum    map_from_base of its images
    simulation.json    what was simulated

The test drive takes another path than the mapping drive (its way points are moved), is faster, and the light has
changed: half of the lamps are off and there is more daylight; its exposure is longer, so that it blurs more.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch

from pixloc_ros.errors import InputError
from pixloc_ros.geometry import se3
from pixloc_ros.geometry.cameras import Camera
from pixloc_ros.io.bag_writer import (
    ENCODINGS,
    RecordedDrive,
    RecordedFixes,
    RecordedImage,
    RecordedImu,
    encode_image,
    write_drive_bag,
)
from pixloc_ros.io.colmap import write_colmap_model
from pixloc_ros.io.files import replacing_folder
from pixloc_ros.io.frames import Odometry
from pixloc_ros.io.trajectory import Trajectory, write_tum

from .drives import CAMERAS, START_NS, DriveOptions, OdometryErrors, SimulatedDrive, camera_mount, wheel_odometry
from .lighting import Lighting
from .rendering import Renderer, TextureSheet
from .sensor import Sensor
from .sensors import imu_readings, satellite_fixes
from .sparse_model import Keyframe, build_sparse_model, write_tum_rgbd
from .world import build_world, repainted

SUMMARY = "simulation.json"
MAPPING_LIGHT = Lighting(lamps=(1.0, 0.9, 1.1, 1.0, 0.95), daylight=0.5, ambient=0.30)
TEST_LIGHT = Lighting(lamps=(1.1, 0.0, 0.0, 0.9, 0.5, 0.0), daylight=2.2, ambient=0.22, seed=1)
MAPPING_SENSOR = Sensor(exposure_s=0.0)
TEST_SENSOR = Sensor(exposure_s=0.008, read_noise=0.004, shot_noise=0.02, vignetting=0.35)
_MAPPING_SPEED, _TEST_SPEED = 0.5, 0.9
_KEYFRAME_DISTANCE, _KEYFRAME_TURN = 0.42, np.deg2rad(18.0)
_TEST_START_M, _TEST_WANDER_M = 0.35, 0.25
_IMU_HZ, _FIX_HZ = 100, 5
_IMU_MOUNT = se3.from_rotation_translation(  # lying on its side, as there was room
    se3.so3_exp(torch.tensor([np.pi / 2, 0.0, 0.0], dtype=torch.float64)), torch.tensor([-0.1, 0.05, 0.2], dtype=torch.float64)
)
_ANTENNA = np.array((-0.2, 0.0, 0.9))
_JPEG = (cv2.IMWRITE_JPEG_QUALITY, 94)

Progress = Callable[[str, int, int], None]
"""Called with what is being done, how much of it is done, and how much there is."""


@dataclass(frozen=True)
class SimulationOptions:
    """What to simulate.

    Attributes:
        seed: Of the place, the paths and all noise.
        seconds: Length of the test drive; the mapping drive is as long as that needs.
        rate_hz: Images a second of the test drive.
        width: Of the images.
        height: Of the images.
        field_of_view_deg: Horizontal, of a pinhole camera.
        texel: Detail of the textures (m); shadows are as rough as these.
        encoding: Images of the bag, one of `bag_writer.ENCODINGS`.
        rgbd: Whether rgbd/ is written, too.
        workers: Threads.
        repainted: Share of the place's textures that look otherwise than in the place of the same seed.
        camera: Replaces the pinhole.
        imu: Whether the bag holds an IMU's readings, too.
        fixes: Whether the bag holds a satellite receiver's fixes, too.
        cameras: Names of several cameras, of `drives.CAMERAS`; one that looks ahead if there are none.
        unsynchronised_s: How far apart their images of one moment are at most.

    Raises:
        InputError: The values make no data set.
    """

    seed: int = 0
    seconds: float = 25.0
    rate_hz: float = 10.0
    width: int = 640
    height: int = 480
    field_of_view_deg: float = 80.0
    texel: float = 0.004
    encoding: str = "jpeg"
    rgbd: bool = False
    workers: int = 2
    repainted: float = 0.0
    camera: Camera | None = None
    imu: bool = False
    fixes: bool = False
    cameras: tuple[str, ...] = ()
    unsynchronised_s: float = 0.03

    def __post_init__(self) -> None:
        for name, low, high in (
            ("seconds", 1.0, 3600.0),
            ("rate_hz", 0.5, 120.0),
            ("width", 64, 4096),
            ("height", 64, 4096),
            ("field_of_view_deg", 20.0, 130.0),
            ("texel", 0.001, 0.05),
            ("workers", 1, 64),
            ("repainted", 0.0, 1.0),
            ("seed", 0, 2**63),
        ):
            value = getattr(self, name)
            if not low <= value <= high:
                raise InputError(f"simulation: {name} is {value:g}, use a value from {low:g} to {high:g}")
        unknown = [name for name in self.cameras if name not in CAMERAS]
        if unknown or len(set(self.cameras)) < len(self.cameras):
            raise InputError(f"simulation: cameras {', '.join(self.cameras)}: choose among {', '.join(CAMERAS)}, each once")
        if self.encoding not in ENCODINGS:
            raise InputError(f"simulation: image encoding '{self.encoding}' is not known: use one of {', '.join(ENCODINGS)}")
        if self.width % 2 or self.height % 2:
            raise InputError(f"simulation: the image size {self.width}x{self.height} is odd: use even numbers")

    def make_camera(self) -> Camera:
        """The camera given, or a pinhole with the principal point a little off the middle, as real ones have it."""
        if self.camera is not None:
            return self.camera
        focal = 0.5 * self.width / np.tan(np.deg2rad(self.field_of_view_deg) / 2)
        params = [focal, focal * 1.002, (self.width - 1) / 2 + 0.006 * self.width, (self.height - 1) / 2 - 0.004 * self.height]
        return Camera("pinhole", self.width, self.height, torch.tensor(params, dtype=torch.float64))


def simulate(output: Path, options: SimulationOptions, progress: Progress | None = None) -> dict:
    """Make a data set in the folder `output` (layout above) → what simulation.json holds.

    The folder appears when it is complete. Raises `InputError` if it exists and is not an earlier simulation.
    """
    output = Path(output)
    if output.exists() and not (output / SUMMARY).is_file() and (not output.is_dir() or any(output.iterdir())):
        raise InputError(f"{output} exists and was not made by a simulation: give another folder")
    progress = progress or (lambda what, done, total: None)
    with replacing_folder(output) as folder:
        folder.mkdir()
        summary = _Simulation(options, progress).write(folder)
        (folder / SUMMARY).write_text(json.dumps(summary, indent=2) + "\n")
    return summary


def simulate_drive(
    output: Path, options: SimulationOptions, light: Lighting, number: int, progress: Progress | None = None
) -> None:
    """A further drive through the place of the same options, as a bag `output`.

    Args:
        output: Of the bag.
        options: Of the place.
        light: There at that time.
        number: Of the drive: each takes a path of its own; 1 is that of `simulate`.
        progress: As of `simulate`.
    """
    simulation = _Simulation(options, progress or (lambda what, done, total: None), light, number)
    with replacing_folder(Path(output)) as folder:
        simulation.drive(folder)


class _Simulation:
    """A data set in the making."""

    def __init__(self, options: SimulationOptions, progress: Progress, light: Lighting = TEST_LIGHT, number: int = 1) -> None:
        self.options, self.progress, self.number = options, progress, number
        self.camera = options.make_camera()
        self.mounts = {name: camera_mount(yaw=CAMERAS[name]) for name in options.cameras} or {"camera": camera_mount()}
        progress("building the world", 0, 2)
        self.sheet = TextureSheet(repainted(build_world(options.seed, options.texel), options.repainted, options.seed))
        progress("building the world", 1, 2)
        self.test_renderer = self._renderer(light)
        progress("building the world", 2, 2)
        way = {"wander": _TEST_WANDER_M, "start": _TEST_START_M, "seed": options.seed + number}
        self.test = SimulatedDrive(DriveOptions(options.seconds, _TEST_SPEED, **way))

    def _renderer(self, light: Lighting) -> Renderer:
        return Renderer(self.sheet, dataclasses.replace(light, spacing=max(0.15, 30.0 * self.options.texel)))

    def write(self, folder: Path) -> dict:
        """Everything into an empty folder → what simulation.json holds."""
        options, camera = self.options, self.camera
        keyframes = self.mapping_drive()
        (folder / "images").mkdir()
        for frame in keyframes:
            (folder / "images" / frame.name).parent.mkdir(exist_ok=True)
            cv2.imwrite(str(folder / "images" / frame.name), frame.image[..., ::-1], _JPEG)
        self.progress("points of the map", 0, 1)
        model, rgb = build_sparse_model(keyframes, camera, np.random.default_rng([options.seed, 5]))
        write_colmap_model(folder / "map", model, rgb)
        if options.rgbd:
            write_tum_rgbd(folder / "rgbd", keyframes, camera, "../images")
        self.progress("points of the map", 1, 1)

        stamps_ns, truth, odometry = self.drive(folder / "drive")
        write_tum(folder / "drive_truth.tum", Trajectory(stamps_ns, truth))

        nearest = np.searchsorted(odometry.stamps_ns, stamps_ns).clip(0, len(odometry.stamps_ns) - 1)
        dead_reckoned = truth[0] @ se3.inverse(odometry.odom_from_base[nearest[0]]) @ odometry.odom_from_base[nearest]
        drift, _ = se3.pose_difference(truth, dead_reckoned)
        plain = {field.name: getattr(options, field.name) for field in dataclasses.fields(options) if field.name != "camera"}
        summary = {"options": plain, "camera": camera.to_colmap_line()}
        mounts = {name: mount.tolist() for name, mount in self.mounts.items()}
        summary["base_from_camera"] = mounts if options.cameras else mounts["camera"]
        summary |= {"keyframes": len(keyframes), "points": len(model.xyz), "observations": len(model.observation_point)}
        summary |= {"point_noise_px": 0.5, "frames": len(truth), "drive_length_m": round(self.test.length, 3)}
        drifts = {"odometry_drift_end_m": drift[-1], "odometry_drift_median_m": drift.median()}
        return summary | {name: round(float(metres), 3) for name, metres in drifts.items()}

    def drive(self, bag: Path) -> tuple[np.ndarray, torch.Tensor, Odometry]:
        """The test drive into a bag → stamps of its images, true map_from_base there, odometry."""
        options, start_ns = self.options, START_NS + self.number * 1000 * 10**9
        taken = self._taken(_image_stamps(options, start_ns))
        stamps_ns = np.array([stamp_ns for stamp_ns, _ in taken])
        truth = self.test.at((stamps_ns - start_ns) * 1e-9)
        odometry = wheel_odometry(self.test, OdometryErrors(), options.seed + self.number - 1, start_ns)
        sensors = self._sensors(start_ns)
        recorded = RecordedDrive(options.encoding, self.camera, self.mounts, odometry, truth, sensors=sensors)
        write_drive_bag(bag, self.test_images(taken, start_ns), recorded)
        return stamps_ns, truth, odometry

    def _sensors(self, start_ns: int) -> tuple[RecordedImu | RecordedFixes, ...]:
        seed, made = self.options.seed + self.number - 1, []
        every = lambda hz: start_ns + np.arange(0, int(self.test.duration_s * 1e9), 1_000_000_000 // hz)  # noqa: E731
        if self.options.imu:
            made.append(imu_readings(self.test.at, every(_IMU_HZ), start_ns, _IMU_MOUNT, seed))
        if self.options.fixes:
            made.append(satellite_fixes(self.test.at, every(_FIX_HZ), start_ns, _ANTENNA, seed))
        return tuple(made)

    def _taken(self, stamps_ns: np.ndarray) -> list[tuple[int, str]]:
        """Stamp and camera of every image, in the order of time."""
        rng, taken = np.random.default_rng([self.options.seed, 8]), []
        for number, name in enumerate(self.mounts):
            late_s = rng.uniform(0.0, self.options.unsynchronised_s, len(stamps_ns)) if number else np.zeros(len(stamps_ns))
            taken += [(int(stamp_ns), name) for stamp_ns in stamps_ns + np.rint(late_s * 1e9).astype(np.int64)]
        return sorted(taken)

    def mapping_drive(self) -> list[Keyframe]:
        """Sharp keyframes every 0.4 m or 18 degrees, over the whole round or as much of it as the test drive sees."""
        renderer = self._renderer(MAPPING_LIGHT)
        drive = SimulatedDrive(DriveOptions(speed=_MAPPING_SPEED, seed=self.options.seed))
        needed = _TEST_START_M + self.test.length + 1.5
        time = np.arange(0.0, drive.duration_s, 0.02)
        planar = drive.planar(time)
        chosen, distance, driven = [0], 0.0, 0.0
        for i in range(1, len(time)):
            step = float(np.hypot(*(planar[i, :2] - planar[i - 1, :2])))
            distance, driven = distance + step, driven + step
            if driven > needed:
                break
            if distance >= _KEYFRAME_DISTANCE or abs(planar[i, 2] - planar[chosen[-1], 2]) >= _KEYFRAME_TURN:
                chosen.append(i)
                distance = 0.0

        names = list(self.mounts)

        def make(index: int) -> Keyframe:
            number, name = index // len(names), names[index % len(names)]
            at = float(time[chosen[number]])
            rng = np.random.default_rng([self.options.seed, 11, index])
            pose = drive.at(at) @ self.mounts[name]
            radiance, depth = renderer.radiance(self.camera, pose)
            file = f"{number:04d}.jpg" if len(names) == 1 else f"{name}/{number:04d}.jpg"
            return Keyframe(file, START_NS + round(at * 1e9), MAPPING_SENSOR.develop(radiance, rng), depth, pose)

        return list(self._in_order(make, len(chosen) * len(names), "mapping drive"))

    def test_images(self, taken: list[tuple[int, str]], start_ns: int) -> Iterator[RecordedImage]:
        def make(number: int) -> RecordedImage:
            stamp_ns, name = taken[number]
            at = float(stamp_ns - start_ns) * 1e-9
            rng = np.random.default_rng([self.options.seed, 12 + self.number, number])
            poses = lambda offset: self.test.at(at + offset) @ self.mounts[name]  # noqa: E731
            image = TEST_SENSOR.capture(self.test_renderer, self.camera, poses, rng)
            return RecordedImage(stamp_ns, encode_image(image, self.options.encoding), name)

        return self._in_order(make, len(taken), "test drive")

    def _in_order(self, make: Callable, count: int, what: str) -> Iterator:
        """make(0), make(1), ... by several threads, a few ahead of the reader.

        NumPy and OpenCV let go of the interpreter's lock, so threads do what processes would.
        """
        self.progress(what, 0, count)
        workers = self.options.workers
        with ThreadPoolExecutor(workers) as pool:
            waiting = [pool.submit(make, number) for number in range(min(2 * workers, count))]
            for number in range(count):
                result = waiting.pop(0).result()
                if number + 2 * workers < count:
                    waiting.append(pool.submit(make, number + 2 * workers))
                self.progress(what, number + 1, count)
                yield result


def _image_stamps(options: SimulationOptions, start_ns: int) -> np.ndarray:
    """Stamps that are not those of the odometry and jitter a little, as a free-running camera's do; int64 [N]."""
    period = 1.0 / options.rate_hz
    count = int((options.seconds - 0.1) / period)
    jitter = np.random.default_rng([options.seed, 7]).uniform(-0.02, 0.02, count) * period
    return start_ns + np.rint((0.053 + np.arange(count) * period + jitter) * 1e9).astype(np.int64)
