# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""Maps of a drive without anybody's poses: structure from motion gives them, the rest is as with poses (`posed_frames`).

The map frame begins at the first keyframe, z up. Its scale is that of the odometry, or given, or a guess.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from scipy.spatial import cKDTree

from ...errors import InputError
from ...features import Extractor
from ...geometry.cameras import Camera
from ...io.work_folder import WorkFolder
from ..georeference import Georeference
from ..map_file import Map
from .adjustment import Links
from .building import Progress
from .drive_frames import DriveFrames
from .drive_sensors import DriveSensors
from .keyframes import KeyframeFiles
from .map_frame import map_frame, upwards_of_cameras
from .mapper import MapperOptions, run_mapper
from .matching import Matcher, pixel_scale
from .odometry_structure import bridges, contradiction, scale_uncertainty, solve_with_odometry, turned_by_images
from .posed_frames import PosedMapOptions, PosedMapReport, SolvedKeyframes, build_map_from_posed_frames
from .rig_frames import RigFrames, RigSolver
from .turns import ImageTurns
from .two_view import PairFinder

_FEWEST_KEYFRAMES, _FEWEST_FEATURES = 5, 100
_LEAST_LINKED, _MOST_TURNING, _LEAST_POSED = 0.5, 0.9, 0.5
_LEAST_FITTING = 0.3  # of the observations, where the odometry is of use
_GUESSED_DEPTH_M = 5.0
_LONG_DRIVE, _VISITS, _VISIT_APART = 1000, 4, 20
_VISIT_REACH, _VISIT_TURN_COSINE = 0.1, float(np.cos(np.radians(10.0)))
_REVISIT = 3.0  # a way so many times as long as it is straight
SPARE = "spare"
"""Under this name the work folder holds `name` and `pose` of keyframes that are posed and not in the map."""


@dataclass(frozen=True)
class DriveOptions:
    """How a map is made of a drive.

    Attributes:
        posed: Keyframes and points.
        refine_camera: Refine focal length and distortion; always done where the camera is not known.
        path_length: Metres from the first to the last keyframe along the path; None: not known.
        distance: Names of two keyframes' images, and the metres between them; None: not known.
    """

    posed: PosedMapOptions = PosedMapOptions()
    refine_camera: bool = False
    path_length: float | None = None
    distance: tuple[str, str, float] | None = None

    def __post_init__(self) -> None:
        metres = [self.path_length, self.distance and self.distance[2]]
        if any(m is not None and not 0 < m < 1e6 for m in metres) or None not in metres:
            raise InputError("the scale: give the length of the path or one distance, in metres above 0")


class DriveTie(NamedTuple):
    """Two drives of one map that show the same places.

    Attributes:
        first, second: Names of the drives.
        keyframes: Of the second, that are found in the first's map at places that agree.
        tried: How many were searched for.
        before_m: How far these were off when the second was laid on the first unbent, median.
        after_m: How far they are in the end.
    """

    first: str
    second: str
    keyframes: int
    tried: int
    before_m: float
    after_m: float

    def __str__(self) -> str:
        return (
            f"{self.second} is tied to {self.first} by {self.keyframes} of {self.tried} keyframes searched for, "
            f"{100 * self.before_m:.1f} cm apart before all were adjusted together, {100 * self.after_m:.1f} cm after"
        )


@dataclass(frozen=True, kw_only=True)
class DriveReport(PosedMapReport):
    """What became of a drive, and how good its map is.

    Attributes:
        posed: Keyframes that structure from motion posed, and all of them.
        pairs: Pairs of images that were matched, and how many of them show parallax.
        loops: Names of two images each that time does not bring together but show one place.
        structure_px: Mean reprojection error of the structure from motion.
        scale: Where it comes from.
        scale_uncertainty: As a share; None where it is a guess.
        structure_s: Seconds until the poses were found, from reading the first image.
        structure_cpu_s: Seconds of the processor in these, of all cores and processes together.
        images_posed: Images that have a pose, and all of them, where all were localized in the map; else None.
        sensors: What became of gyro, accelerometer and satellite fixes; a line each.
        ties: Between the drives of a map of several, two by two.
    """

    posed: tuple[int, int]
    pairs: tuple[int, int]
    loops: tuple[tuple[str, str], ...]
    structure_px: float
    scale: str
    scale_uncertainty: float | None
    structure_s: float
    structure_cpu_s: float
    images_posed: tuple[int, int] | None = None
    sensors: tuple[str, ...] = ()
    ties: tuple[DriveTie, ...] = ()


def build_map_from_drive(
    frames: DriveFrames,
    extractor: Extractor,
    work: WorkFolder,
    options: DriveOptions = DriveOptions(),
    working_side: int | None = None,
    name: str = "drive",
    progress: Progress | None = None,
) -> tuple[Map, DriveReport]:
    """Map of a drive.

    Args:
        frames: Called once.
        extractor: Makes the features.
        work: The work folder, for the same frames and options as before.
        options: See there.
        working_side: As of `build_map`.
        name: The map's.
        progress: As of `build_map`.

    Raises:
        InputError: The images do not show how the camera moved; it says why.
    """
    posed = options.posed
    if not frames.has_odometry:  # nothing says that the camera stands still
        posed = replace(posed, keyframes=replace(posed.keyframes, still=(0.0, 0.0)))
    solver = DriveSolver(frames, extractor, work, options, progress)
    solve = RigSolver(solver, frames) if isinstance(frames, RigFrames) else solver
    if solve is not solver and not (frames.has_odometry or frames.fixes or options.path_length or options.distance):
        raise InputError(
            "several cameras: the scale must be known, as their mounts are in metres: give --path-length or --distance"
        )
    map_, report = build_map_from_posed_frames(frames, extractor, work, posed, working_side, name, progress, solve)
    map_ = replace(map_, georeference=solver.georeference)
    if not frames.stamped:
        map_ = replace(map_, keyframe_stamp_ns=np.full_like(map_.keyframe_stamp_ns, -1))
    return map_, DriveReport(**vars(report) | solver.found)


@dataclass
class DriveSolver:
    """Finds the keyframes' poses.

    Attributes:
        frames, extractor, work, options, progress: As of `build_map_from_drive`.
        found: After the call, the fields that `DriveReport` adds.
        georeference: After the call; None where there are no satellite fixes.
    """

    frames: DriveFrames
    extractor: Extractor
    work: WorkFolder
    options: DriveOptions
    progress: Progress | None
    found: dict = field(default_factory=dict)
    georeference: Georeference | None = None
    _sensors: DriveSensors | None = None
    _begin: tuple[float, float] = field(default_factory=lambda: (time.monotonic(), sum(os.times()[:4])))

    def __call__(self, images: KeyframeFiles, names: list[str]) -> SolvedKeyframes:
        """Raises `InputError`: the images do not show how the camera moved."""
        if len(names) < _FEWEST_KEYFRAMES:
            raise InputError(
                f"{len(names)} keyframes come out of the drive, structure from motion needs {_FEWEST_KEYFRAMES}: drive further"
            )
        matcher = Matcher(images, self.work, self.options.posed.triangulation)
        self._check_features(matcher)
        finder = PairFinder(matcher, self.extractor, self.frames.known_camera)
        finder.find(self.progress)
        self._check_pairs(finder)
        if self.frames.imu is not None or self.frames.fixes is not None:
            stamps_ns = np.array([int(Path(name).stem) for name in names], np.int64)
            self._sensors = DriveSensors(self.frames.imu, self.frames.fixes, stamps_ns)
        stored = self.work.arrays("structure", lambda: self._structure(finder))
        image, poses = stored["image"], torch.from_numpy(stored["poses"])
        if self._sensors:
            self._sensors.said |= dict(zip(stored["sensors"].tolist(), stored["said"].tolist()))
        if len(image) < _LEAST_POSED * len(names):
            raise InputError(
                f"structure from motion poses only {len(image)} of {len(names)} keyframes ({_stretches(image, len(names))}): "
                "the rest does not hang together with them; drive slower there, or in more light"
            )
        cameras = [Camera.parse_colmap_line(str(line)) for line in stored["cameras"]]
        scale, said, uncertainty = self._scale(poses, [names[k] for k in image], stored)
        poses = self._in_map_frame(image, poses, scale)
        sensors = self._use_sensors(image, poses.numpy(), stored) if self._sensors else ()
        needed = np.ones(len(image), bool)
        if len(image) > _LONG_DRIVE:
            depth = scale * float(stored["depth"])
            needed = showing_something_new(poses.numpy(), image, _VISIT_REACH * depth)
        spare = {"name": np.array(names)[image[~needed]], "pose": poses[~needed].numpy()}
        self.work.write(f"{SPARE}.npz", lambda path: np.savez(path, **spare))
        self.found = {
            "posed": (len(image), len(names)),
            "pairs": (sum(p.is_link for p in finder.pairs.values()), sum(p.has_parallax for p in finder.pairs.values())),
            "loops": tuple((names[a], names[b]) for a, b in _revisits(stored["loops"], image, poses[:, :3, 3].numpy())),
            "structure_px": float(stored["error_px"]),
            "scale": said,
            "scale_uncertainty": uncertainty,
            "structure_s": round(time.monotonic() - self._begin[0], 1),
            "structure_cpu_s": round(sum(os.times()[:4]) - self._begin[1], 1),
            "sensors": sensors,
        }
        notes = (*stored.get("notes", np.empty(0, str)).tolist(), *self._notes(images, cameras, names, image, needed))
        spare, image = image[~needed], image[needed]
        return SolvedKeyframes(image, poses[needed], [cameras[k] for k in image], notes, spare)

    # ---- what the images show

    def _check_features(self, matcher: Matcher) -> None:
        counts = matcher.extract(self.progress)
        if np.median(counts) < _FEWEST_FEATURES:
            raise InputError(
                f"half of the keyframes show fewer than {np.median(counts):.0f} features: the images are blurred, dark or blank; "
                "drive slower, in more light, with a short exposure"
            )

    def _check_pairs(self, finder: PairFinder) -> None:
        neighbours = [pair for (a, b), pair in finder.pairs.items() if b - a == 1]
        linked = np.mean([pair.is_link for pair in neighbours])
        if linked < _LEAST_LINKED:
            raise InputError(
                f"only {100 * linked:.0f} % of the keyframes have enough matches with the one before: are the images those of "
                "one drive, in its order, and sharp? Drive slower, in more light"
            )
        # Neighbours may be near each other; images further apart show parallax where there is any.
        apart = [pair for (a, b), pair in finder.pairs.items() if b - a > 1 and pair.is_link]
        turning = np.mean([not pair.has_parallax for pair in apart]) if apart else 0.0
        if turning > _MOST_TURNING:
            raise InputError(
                f"the camera only turned or stood still: {100 * turning:.0f} % of the pairs have no parallax, so that no "
                "distance can be seen; drive sideways or forward"
            )

    def _structure(self, finder: PairFinder) -> dict[str, np.ndarray]:
        """Poses and cameras, as arrays: metric where there is odometry."""
        refine, matcher = self.options.refine_camera or not self.frames.known_camera, finder.matcher
        mapped = None if self.frames.has_odometry and not refine else self._mapped(finder, refine)
        if not (self.frames.has_odometry or self._sensors):
            return mapped
        if refine:  # the rays are those of the refined camera
            cameras = [Camera.parse_colmap_line(str(line)) for line in mapped["cameras"]]
            matcher = Matcher(replace(matcher.images, cameras=cameras), self.work, matcher.options)
            finder = PairFinder(matcher, self.extractor)
            finder.find(None)
        if not self.frames.has_odometry:
            return self._held_by_sensors(finder, mapped, None)
        turns, base_from_camera, notes = ImageTurns.of(finder, self.progress), self.frames.base_from_camera.numpy(), []
        if gyro := self._sensors and self._sensors.gyro(turns):
            odometry = gyro.turn(matcher.poses, base_from_camera)
        else:
            odometry, note = turned_by_images(matcher.poses, turns, base_from_camera)
            notes.append(note)
        model = solve_with_odometry(finder, odometry, turns, self.progress, gyro)
        if len(model.torn) and model.fitting >= _LEAST_FITTING:
            mapped = mapped or self._mapped(finder, refine)
            over = bridges(odometry, model.torn, mapped["image"], mapped["poses"])
            notes.append(f"{contradiction(over.first)}: the images bridge it; look after wheels and driver")
            model = solve_with_odometry(finder, odometry, turns, self.progress, gyro, over)
            if len(model.torn):
                raise InputError(f"{contradiction(model.torn)}: leave it out (--odometry-topic none), or drive again")
        if model.fitting < _LEAST_FITTING:
            return self._held_by_sensors(finder, _scaled(mapped or self._mapped(finder, refine), matcher.poses), None)
        found = {
            "image": np.arange(finder.count),
            "poses": model.poses,
            "cameras": np.array([camera.to_colmap_line() for camera in matcher.images.cameras]),
            "depth": np.array(model.depth),
            "error_px": np.array(model.error_px),
            "scale_spread": np.array(model.scale_spread),
            "loops": np.array(model.loops, np.int64).reshape(-1, 2),
            "notes": np.array([note for note in notes if note]),
        }
        return self._held_by_sensors(finder, found, model.motions)

    def _mapped(self, finder: PairFinder, refine: bool) -> dict[str, np.ndarray]:
        images = finder.matcher.images
        error_px = self.options.posed.triangulation.max_error_px * pixel_scale(images.cameras[0])
        model = run_mapper(finder, MapperOptions(refine, error_px), self.progress)
        return {
            "image": model.image,
            "poses": model.map_from_camera,
            "cameras": np.array([camera.to_colmap_line() for camera in model.cameras]),
            "depth": np.array(_median_depth(model.map_from_camera, model.xyz)),
            "error_px": np.array(model.error_px),
            "loops": np.array(finder.loops, np.int64).reshape(-1, 2),
        }

    # ---- other sensors

    def _held_by_sensors(self, finder: PairFinder, stored: dict[str, np.ndarray], motions: Links | None) -> dict[str, np.ndarray]:
        sensors = self._sensors
        if sensors is None:
            return stored
        wheels = self._wheels(stored) if "scale_spread" in stored else None
        stored = sensors.refined(finder, stored, motions, wheels, self._up)
        return stored | {"sensors": np.array(list(sensors.said)), "said": np.array(list(sensors.said.values()))}

    def _use_sensors(self, image: np.ndarray, poses: np.ndarray, stored: dict[str, np.ndarray]) -> tuple[str, ...]:
        """Georeference the map; what is to be said."""
        if "fixes_used" in stored:
            self.georeference = self._sensors.georeference(image, poses, stored["fixes_used"])
        return tuple(line for line in self._sensors.said.values() if line)

    # ---- scale and frame

    def _scale(self, poses: torch.Tensor, names: list[str], stored: dict[str, np.ndarray]) -> tuple[float, str, float | None]:
        """What to multiply with to have metres; where that comes from; its uncertainty as a share."""
        centres, options = poses[:, :3, 3].numpy(), self.options
        if options.path_length is not None:
            length = float(np.linalg.norm(np.diff(centres, axis=0), axis=1).sum())
            return options.path_length / length, f"the path is {options.path_length:g} m long, as given", 0.0
        if options.distance is not None:
            first, second, metres = options.distance
            missing = [one for one in (first, second) if one not in names]
            if missing:
                raise InputError(f"{missing[0]} is no keyframe with a pose: choose among {', '.join(names[:5])}, ...")
            units = float(np.linalg.norm(centres[names.index(first)] - centres[names.index(second)]))
            if not units > 0:
                raise InputError(f"{first} and {second} are at one place: give two that are apart")
            return metres / units, f"{metres:g} m from {first} to {second}, as given", 0.0
        if "fixes_used" in stored:
            both = "from the odometry and satellite fixes" if "scale_spread" in stored else "from satellite fixes"
            return 1.0, both, float(stored["scale_uncertainty"])
        if "scale_spread" in stored:
            return 1.0, "from the odometry", self._wheels(stored)
        return (
            _GUESSED_DEPTH_M / float(stored["depth"]),
            f"unknown: things are taken to be {_GUESSED_DEPTH_M:g} m away in the median",
            None,
        )

    def _up(self, image: np.ndarray, poses: np.ndarray) -> np.ndarray:
        """Unit vector [3] upwards in the poses' frame: by gravity, by the camera's mount, or as cameras are held."""
        up, base_from_camera = self._sensors and self._sensors.up(image, poses), self.frames.base_from_camera
        if up is None and base_from_camera is not None:
            up = poses[0, :3, :3] @ base_from_camera[2, :3].numpy()
        return upwards_of_cameras(poses[:, :3, :3]) if up is None else up

    def _wheels(self, stored: dict[str, np.ndarray]) -> float:
        base_from_camera = self.frames.base_from_camera
        base_from_camera = None if base_from_camera is None else base_from_camera.numpy()
        return scale_uncertainty(float(stored["scale_spread"]), stored["poses"], base_from_camera)

    def _in_map_frame(self, image: np.ndarray, poses: torch.Tensor, scale: float) -> torch.Tensor:
        """Scaled, z up, the first pose at the origin: that of the base where its camera's mount is known."""
        poses, base_from_camera = poses.clone(), self.frames.base_from_camera
        poses[:, :3, 3] *= scale
        up = self._up(image, poses.numpy())
        level = bool(self._sensors and self._sensors.said.get("gravity"))
        return map_frame(poses, up, base_from_camera, level) @ poses

    def _notes(self, images: KeyframeFiles, cameras: list[Camera], names: list[str], image: np.ndarray, needed: np.ndarray):
        if not needed.all():
            yield (f"{np.sum(~needed)} of {len(image)} keyframes are not in the map: {_VISITS} other visits show their places")
        if len(image) < len(names):
            yield f"{len(image)} of {len(names)} keyframes have a pose: {_stretches(image, len(names))}"
        if self.options.refine_camera or not self.frames.known_camera:
            why = "as asked" if self.frames.known_camera else "none is known: calibrate the camera for a better map"
            yield f"the camera was refined ({why}): {cameras[0].to_colmap_line()}, from {images.cameras[0].to_colmap_line()}"


def _median_depth(map_from_camera: np.ndarray, xyz: np.ndarray) -> float:
    """Of the points before the cameras, each seen by the one nearest to it in the order they came."""
    depths = []
    for pose in map_from_camera[:: max(len(map_from_camera) // 50, 1)]:
        inside = (xyz - pose[:3, 3]) @ pose[:3, :3]
        ahead = inside[(inside[:, 2] > 0) & (np.abs(inside[:, :2]) < inside[:, 2:] * 0.6).all(1), 2]
        depths.append(np.median(ahead) if len(ahead) else np.nan)
    return float(np.nanmedian(depths))


def _revisits(pairs: np.ndarray, image: np.ndarray, centres: np.ndarray) -> list[tuple[int, int]]:
    """The pairs of images to which the camera came back, rather than going on and seeing the same from further on."""
    way, row = (
        np.concatenate(([0], np.cumsum(np.linalg.norm(np.diff(centres, axis=0), axis=1)))),
        {k: n for n, k in enumerate(image)},
    )
    found = [(a, b, row[a], row[b]) for a, b in pairs.tolist() if a in row and b in row]
    return [(a, b) for a, b, i, j in found if way[j] - way[i] > _REVISIT * np.linalg.norm(centres[j] - centres[i])]


def showing_something_new(poses: np.ndarray, image: np.ndarray, reach: float) -> np.ndarray:
    """Which keyframes a map needs, bool [K]: not those at places that enough earlier visits have shown.

    Args:
        poses: float64 [K, 4, 4], map_from_camera.
        image: int64 [K], their numbers in the order of time.
        reach: How near two keyframes of one place are.
    """
    near = cKDTree(poses[:, :3, 3]).query_ball_point(poses[:, :3, 3], reach)
    needed = np.ones(len(poses), bool)
    for k, around in enumerate(near):
        before = np.sort([n for n in around if image[n] < image[k] - _VISIT_APART and needed[n]])
        before = before.astype(int)
        alike = (np.einsum("nij,ij->n", poses[before, :3, :3], poses[k, :3, :3]) - 1) / 2 > _VISIT_TURN_COSINE
        visits = image[before[alike]]
        needed[k] = len(visits) == 0 or 1 + (np.diff(visits) > _VISIT_APART).sum() < _VISITS
    return needed


def _scaled(mapped: dict[str, np.ndarray], odometry: np.ndarray) -> dict[str, np.ndarray]:
    """A structure from images alone with the odometry's scale: that of steps from image to image."""
    ways = [np.linalg.norm(np.diff(p[:, :3, 3], axis=0), axis=1) for p in (odometry[mapped["image"]], mapped["poses"])]
    moving = (ways[0] > 0.01) & (ways[1] > 0)
    if not moving.any():
        raise InputError("the odometry does not move while the images do: leave it out with --odometry-topic none")
    ratio = ways[0][moving] / ways[1][moving]
    scale = float(np.median(ratio))
    spread = np.array(np.subtract(*np.percentile(np.log(ratio), (84, 16))) / 2)
    poses = mapped["poses"].copy()
    poses[:, :3, 3] *= scale
    return mapped | {"poses": poses, "depth": mapped["depth"] * scale, "scale_spread": spread}


def _stretches(posed: np.ndarray, count: int) -> str:
    """Which of so many keyframes have no pose, for people."""
    missing = np.setdiff1d(np.arange(count), posed)
    runs = np.split(missing, np.flatnonzero(np.diff(missing) > 1) + 1)
    shown = [f"{run[0] + 1}" if len(run) == 1 else f"{run[0] + 1} to {run[-1] + 1}" for run in runs if len(run)]
    return f"keyframes {', '.join(shown[:5])}{', ...' if len(shown) > 5 else ''} have none" if shown else "all"
