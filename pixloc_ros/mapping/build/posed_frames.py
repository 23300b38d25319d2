# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""Maps from images with poses in the order of time, as a rosbag holds them.

Steps, each kept in the work folder until the map is written: keyframes; points, by triangulation or from depth; features.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import cv2
import numpy as np
import torch

from ...errors import InputError, none_left
from ...features import Extractor
from ...geometry.cameras import Camera
from ...io.calibration import Reading
from ...io.depth import without_edges
from ...io.frames import UnusableFrame
from ...io.work_folder import WorkFolder
from ..map_file import Map, coverage
from .building import BuildReport, PosedImages, Progress, build_map, unique_cameras
from .calibration_fit import fitting_reading
from .depth_points import DepthKeyframe, find_points, measured_depth_scale
from .keyframes import KeyframeFiles, KeyframeOptions, KeyframeSelector, PosedFrame
from .refinement import RefineOptions, refine_poses
from .triangulation import TriangulationOptions, triangulate

_DEPTH_UNITS_PER_METRE = 1000.0  # of the depth images in the work folder
_FEWEST_KEYFRAMES = 2
_POOR_KEYFRAME = 50
_LARGEST_DEPTH_SCALE_LOG = np.log(1.15)

FrameSource = Callable[[Callable[[int], bool]], Iterable[PosedFrame | UnusableFrame]]
"""Called with a function that says which stamps are still wanted; yields frames in the order of time. One with a method
`companions` has further cameras (`rig_frames.RigFrames`)."""


@dataclass(frozen=True, eq=False)
class SolvedKeyframes:
    """Keyframes with poses of their own, instead of those that they came with.

    Attributes:
        keyframe: int64 [n], which of the keyframes have one, rising.
        map_from_camera: float64 [n, 4, 4].
        cameras: [n].
        notes: What is to be known of them.
        spare: int64 [m], those that have one and that the map does not need.
    """

    keyframe: np.ndarray
    map_from_camera: torch.Tensor
    cameras: list[Camera]
    notes: tuple[str, ...] = ()
    spare: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64))


Solver = Callable[[KeyframeFiles, list[str]], SolvedKeyframes]
"""Called with the keyframes (poses as they came) and their names."""


@dataclass(frozen=True)
class PosedMapOptions:
    """How a map is made of images with poses.

    Attributes:
        mask: An image file, or a folder of those named like the keyframes; nothing black in them gives points.
        keyframes: See there.
        triangulation: See there.
        refine: The frames' poses are refined first (`refine_poses`); how well they are known.
    """

    mask: Path | None = None
    keyframes: KeyframeOptions = KeyframeOptions()
    triangulation: TriangulationOptions = TriangulationOptions()
    refine: RefineOptions | None = None

    def to_json(self) -> dict:
        """For the work folder's key."""
        return {**asdict(self), "mask": str(self.mask) if self.mask else None}


@dataclass(frozen=True, kw_only=True)
class PosedMapReport(BuildReport):
    """What became of images with poses, and how good their map is.

    Attributes:
        left_out, outside, notes: As of `BuildReport`; also of images that did not become keyframes, by their stamps.
        images: Given with a pose.
        rejected: Points and blank images left out, by reason.
        keyframes, points, observations: Of the map.
        points_per_keyframe: 5th percentile and median.
        coverage: Share of the cells of an 8x6 grid over the image that hold a point, median over keyframes.
        poor_keyframes: Names of those with fewer than 50 points.
        reprojection_px: Median and 95th percentile of the observations' distance from the projection, pixels; None with depth.
        descriptor_consistency: Median of the points' quality.
        length_m: Of the path through the keyframes.
    """

    images: int
    rejected: dict[str, int]
    keyframes: int
    points: int
    observations: int
    points_per_keyframe: tuple[float, float]
    coverage: float
    poor_keyframes: tuple[str, ...]
    reprojection_px: tuple[float, float] | None
    descriptor_consistency: float
    length_m: float


@dataclass(frozen=True, eq=False)
class PosedPoints:
    """Keyframes, their images in the work folder, and the points they see.

    Attributes:
        source: All of it.
        images: How many were given with a pose.
        rejected: Points and blank images left out, by reason.
        left_out: Why other images were left out, by their stamps or names.
        error_px: float64 [M], of the observations; None with depth.
        notes: What else is to be known of the images.
        companions: Names of keyframes of a rig's other cameras.
    """

    source: PosedImages
    images: int
    rejected: dict[str, int]
    left_out: dict[str, str]
    error_px: np.ndarray | None
    notes: tuple[str, ...] = ()
    companions: frozenset[str] = frozenset()


@dataclass(frozen=True, eq=False)
class _Keyframe:
    name: str
    stamp_ns: int
    camera: Camera
    map_from_camera: torch.Tensor
    depth: bool
    readings: tuple[Reading, ...] = ()


def build_map_from_posed_frames(
    frames: FrameSource,
    extractor: Extractor,
    work: WorkFolder,
    options: PosedMapOptions = PosedMapOptions(),
    working_side: int | None = None,
    name: str = "drive",
    progress: Progress | None = None,
    solve: Solver | None = None,
) -> tuple[Map, PosedMapReport]:
    """Map of images with poses. Points come from depth where the keyframes have it, else from triangulation.

    Args:
        frames: Called once.
        extractor: Makes the features.
        work: The work folder, for the same frames and options as before.
        options: See there.
        working_side: As of `build_map`.
        name: The map's.
        progress: As of `build_map`.
        solve: Finds the keyframes' poses; None: the frames' are right.

    Raises:
        InputError: Fewer than two keyframes come out, or no points.
    """
    posed = points_of_posed_frames(frames, work, options, name, progress, solve)
    map_, build = build_map(posed.source, extractor, working_side, progress, work)
    counts = np.diff(map_.observation_offsets)
    path = [k for k, one in enumerate(map_.keyframe_names) if one not in posed.companions]
    centres = map_.map_from_keyframe[path, :3, 3].numpy()
    error = None
    if posed.error_px is not None:
        error = tuple(float(v) for v in np.percentile(posed.error_px, (50, 95)))
    several = map_.track_length > 1
    report = PosedMapReport(
        **vars(build) | {"left_out": posed.left_out | build.left_out, "notes": (*build.notes, *posed.notes)},
        images=posed.images,
        rejected=posed.rejected,
        keyframes=len(counts),
        points=len(map_.xyz),
        observations=len(map_.observation_point),
        points_per_keyframe=tuple(float(v) for v in np.percentile(counts, (5, 50))),
        coverage=float(np.median([coverage(map_, k) for k in range(len(counts))])),
        poor_keyframes=tuple(map_.keyframe_names[k] for k in np.flatnonzero(counts < _POOR_KEYFRAME)),
        reprojection_px=error,
        descriptor_consistency=float(np.median(map_.quality[several])) if several.any() else 0.0,
        length_m=float(np.linalg.norm(np.diff(centres, axis=0), axis=1).sum()),
    )
    return map_, report


def points_of_posed_frames(
    frames: FrameSource,
    work: WorkFolder,
    options: PosedMapOptions = PosedMapOptions(),
    name: str = "drive",
    progress: Progress | None = None,
    solve: Solver | None = None,
) -> PosedPoints:
    """All of a map but its features; arguments and errors as of `build_map_from_posed_frames`."""
    keyframes, count, rejected, left_out = _choose_keyframes(frames, work, options.keyframes, progress)
    companions: list[_Keyframe] = []
    if hasattr(frames, "companions"):
        companions = _companions(frames, keyframes, work, left_out, progress)
        # One camera after the other: images that follow each other are those of one camera, but for some.
        keyframes, count = keyframes + companions, count + len(companions)
    keyframes = _usable_keyframes(keyframes, work, options.mask, left_out)
    keyframes, notes = _solved(keyframes, work, solve, left_out) if solve else _with_fitting_cameras(keyframes, work)
    images = _files(keyframes, work, options.mask)
    if options.refine is not None:
        refined = refine_poses(images, work, options.refine, options.triangulation, progress)
        images, notes = replace(images, map_from_camera=refined.map_from_camera), (*notes, *refined.notes)
    error = None
    if all(keyframe.depth for keyframe in keyframes):
        _check_depth_unit(images, work)
        found = work.arrays("points", lambda: _points_from_depth(images, work))
        xyz, image, point = (found[name] for name in ("xyz", "image", "point"))
        if not len(point):
            raise InputError("the depth images give no point: check that depth is aligned with the images and in metres or mm")
    else:
        points = triangulate(images, work, options.triangulation, progress)
        xyz, image, point, error = points.xyz, points.observation_image, points.observation_point, points.error_px
        rejected |= points.rejected
    stamps = np.array([keyframe.stamp_ns for keyframe in keyframes], np.int64)
    names = [keyframe.name for keyframe in keyframes]
    source = PosedImages(name, images.paths, names, images.cameras, images.map_from_camera, stamps, xyz, image, point)
    rejected = {reason: number for reason, number in rejected.items() if number}
    return PosedPoints(source, count, rejected, left_out, error, notes, frozenset(one.name for one in companions))


def _with_fitting_cameras(keyframes: list[_Keyframe], work: WorkFolder) -> tuple[list[_Keyframe], tuple[str, ...]]:
    """The keyframes with the reading of their calibration that fits, and what to say where that is not the first."""
    readings = [keyframe.readings for keyframe in keyframes]
    if len({tuple(reading.taken for reading in one) for one in readings}) != 1 or len(readings[0]) < 2:
        return keyframes, ()
    images = _files(keyframes, work, None)

    def choose() -> dict[str, np.ndarray]:
        best, more = fitting_reading(images, [[reading.camera for reading in one] for one in readings])
        return {"best": np.array(best), "more": np.array(more)}

    found = work.arrays("calibration", choose)
    best = int(found["best"])
    if not best:
        return keyframes, ()
    first, taken = readings[0][0].taken, readings[0][best].taken
    more = f"{float(found['more']):+.0%} of the matches"
    note = f"the images fit {taken} of the CameraInfo better than {first} ({more}): that is taken"
    return [replace(keyframe, camera=keyframe.readings[best].camera) for keyframe in keyframes], (note,)


def _solved(
    keyframes: list[_Keyframe], work: WorkFolder, solve: Solver, left_out: dict[str, str]
) -> tuple[list[_Keyframe], tuple[str, ...]]:
    """The keyframes that get a pose, with it, and what to say; the others go to `left_out`."""
    found = solve(_files(keyframes, work, None), [keyframe.name for keyframe in keyframes])
    posed = found.keyframe.tolist()
    unposed = sorted(set(range(len(keyframes))) - {*posed, *found.spare.tolist()})
    left_out |= {keyframes[k].name: "no pose was found for it" for k in unposed}
    with_poses = zip(posed, found.map_from_camera, found.cameras)
    return [replace(keyframes[k], map_from_camera=pose, camera=camera) for k, pose, camera in with_poses], found.notes


def _files(keyframes: list[_Keyframe], work: WorkFolder, masks: Path | None) -> KeyframeFiles:
    paths = [work.path(f"images/{file_name(keyframe.name)}") for keyframe in keyframes]
    poses = torch.stack([keyframe.map_from_camera for keyframe in keyframes])
    return KeyframeFiles(paths, [keyframe.camera for keyframe in keyframes], poses, masks)


def _usable_keyframes(
    keyframes: list[_Keyframe], work: WorkFolder, masks: Path | None, left_out: dict[str, str]
) -> list[_Keyframe]:
    """Those whose mask can be read, and with depth those of the calibration that most have; the others go to `left_out`."""
    images, usable = _files(keyframes, work, masks), []
    if masks is not None and masks.is_dir() and not any((masks / Path(one.name).name).is_file() for one in keyframes):
        raise InputError(f"no mask in {masks} is named like a keyframe, such as {keyframes[0].name}: rename them")
    cameras, which = unique_cameras(images.cameras)
    most = int(np.bincount(which).argmax())
    for k, keyframe in enumerate(keyframes):
        try:
            images.mask(k)
            if which[k] != most and all(one.depth for one in keyframes):
                raise InputError("the calibration changes within the bag: a map from depth needs one; cut the bag there")
            usable.append(keyframe)
        except InputError as error:
            left_out[keyframe.name] = str(error)
    if len(usable) < _FEWEST_KEYFRAMES:
        raise none_left(f"of {len(keyframes)} keyframes {len(usable)} can be used, a map needs {_FEWEST_KEYFRAMES}", left_out)
    return usable


# ---- keyframes


def _choose_keyframes(
    frames: FrameSource, work: WorkFolder, options: KeyframeOptions, progress: Progress | None
) -> tuple[list[_Keyframe], int, dict[str, int], dict[str, str]]:
    """The keyframes, their images in the work folder; the number of images with a pose; blank ones; why others were left out.

    Every keyframe is stored with the stamp of the frame at which its stretch ended: where the choice goes on.
    """
    keyframes: list[_Keyframe] = []
    left_out: dict[str, str] = {}
    state = {"images": 0, "blank": 0, "next_stamp_ns": -1, "last": False}
    while (path := work.path(f"keyframes/{len(keyframes):06d}.json")).is_file():
        state = json.loads(path.read_text())
        keyframes.append(_keyframe_of(state))
        left_out |= state.get("left_out", {})  # a folder that an earlier version has begun has none
    images, since = state["images"], state["next_stamp_ns"]
    selector = KeyframeSelector(options, state["blank"])
    if not state["last"]:
        last, unusable = since, {}
        for frame in frames(lambda stamp_ns: stamp_ns >= since):
            if isinstance(frame, UnusableFrame):
                unusable[str(frame.stamp_ns)] = frame.reason
                continue
            if progress:
                progress(len(keyframes), images, "keyframes of images read")
            blank, done = selector.blank, selector.feed(frame)
            if done is not None:
                # The frame that ended the stretch is counted with the next one.
                state = {"images": images, "blank": blank, "next_stamp_ns": frame.stamp_ns, "last": False, "left_out": unusable}
                keyframes.append(_store(done, f"keyframes/{len(keyframes):06d}", work, state))
                left_out, unusable = left_out | unusable, {}
            images += 1
            last = frame.stamp_ns
        done = selector.finish()
        if done is not None:
            state = {"images": images, "blank": selector.blank, "next_stamp_ns": last, "last": True, "left_out": unusable}
            keyframes.append(_store(done, f"keyframes/{len(keyframes):06d}", work, state))
        left_out |= unusable
    if len(keyframes) < _FEWEST_KEYFRAMES:
        what = f"{images} images with a pose give {len(keyframes)} keyframes, a map needs {_FEWEST_KEYFRAMES}"
        raise none_left(f"{what}: check that the camera moves and that the poses cover the images", left_out)
    return keyframes, images, {"blank images": selector.blank}, left_out


def _companions(
    frames: FrameSource, keyframes: list[_Keyframe], work: WorkFolder, left_out: dict[str, str], progress: Progress | None
) -> list[_Keyframe]:
    """The keyframes of the other cameras, their images in the work folder; why there are none of some goes to `left_out`."""
    path = work.path("companions.json")
    if not path.is_file():
        stored, unusable, stamps = 0, {}, np.array([one.stamp_ns for one in keyframes], np.int64)
        for frame in frames.companions(stamps):
            if isinstance(frame, UnusableFrame):
                unusable[str(frame.stamp_ns)] = frame.reason
                continue
            if progress:
                progress(stored, 0, "keyframes of the other cameras")
            _store(frame, f"companions/{stored:06d}", work, {})
            stored += 1
        work.write(path.name, lambda file: file.write_text(json.dumps({"stored": stored, "left_out": unusable})))
    found = json.loads(path.read_text())
    left_out |= found["left_out"]
    return [_keyframe_of(json.loads(work.path(f"companions/{k:06d}.json").read_text())) for k in range(found["stored"])]


def _store(frame: PosedFrame, where: str, work: WorkFolder, state: dict) -> _Keyframe:
    name, camera = frame.name or f"{frame.stamp_ns}.png", frame.camera
    image = frame.image if frame.image.ndim == 2 else cv2.cvtColor(frame.image, cv2.COLOR_RGB2BGR)
    work.write(f"images/{file_name(name)}", lambda path: _write_png(path, image))
    if frame.depth is not None:
        units = np.clip(np.round(frame.depth * _DEPTH_UNITS_PER_METRE), 0, 65535).astype(np.uint16)
        work.write(f"depth/{file_name(name)}", lambda path: _write_png(path, units))
    readings = frame.calibration.readings if frame.calibration else ()
    stored = {
        "name": name,
        "stamp_ns": frame.stamp_ns,
        "map_from_camera": frame.map_from_camera.tolist(),
        "camera": _camera_to_json(camera),
        "readings": [[one.taken, _camera_to_json(one.camera)] for one in readings],
        "depth": frame.depth is not None,
        **state,
    }
    work.write(f"{where}.json", lambda path: path.write_text(json.dumps(stored)))
    return _keyframe_of(stored)


def file_name(name: str) -> str:
    """Of a keyframe's image in the work folder, where none is packed with loss."""
    return name if name.endswith(".png") else f"{name}.png"


def _keyframe_of(stored: dict) -> _Keyframe:
    pose = torch.tensor(stored["map_from_camera"], dtype=torch.float64)
    readings = tuple(Reading(_camera_of(camera), taken) for taken, camera in stored.get("readings", ()))
    return _Keyframe(stored["name"], stored["stamp_ns"], _camera_of(stored["camera"]), pose, stored["depth"], readings)


def _camera_to_json(camera: Camera) -> list:
    return [camera.model, camera.width, camera.height, camera.params.tolist()]


def _camera_of(stored: list) -> Camera:
    model, width, height, params = stored
    return Camera(model, width, height, torch.tensor(params, dtype=torch.float64))


def _write_png(path: Path, image: np.ndarray) -> None:
    if not cv2.imwrite(str(path), image, [cv2.IMWRITE_PNG_COMPRESSION, 1]):
        raise InputError(f"cannot write {path}: choose a place that is writable and has room")


def _points_from_depth(images: KeyframeFiles, work: WorkFolder) -> dict[str, np.ndarray]:
    camera, keyframes = images.cameras[0], []
    for k, path in enumerate(images.paths):
        depth, mask = without_edges(_stored_depth(work, path)), images.mask(k)
        if mask is not None:
            depth[~mask] = 0
        keyframes.append(DepthKeyframe(images.map_from_camera[k], images.grey(k), depth))
    return dict(zip(("xyz", "image", "point"), find_points(keyframes, camera)))


def _stored_depth(work: WorkFolder, image: Path) -> np.ndarray:
    units = cv2.imread(str(work.path(f"depth/{image.name}")), cv2.IMREAD_UNCHANGED)
    return (units / np.float32(_DEPTH_UNITS_PER_METRE)).astype(np.float32)


def _check_depth_unit(images: KeyframeFiles, work: WorkFolder) -> None:
    """Raise `InputError` where images and poses say that depth is in another unit."""

    def measure() -> dict[str, np.ndarray]:
        return {"scale": np.array(measured_depth_scale(images, lambda k: _stored_depth(work, images.paths[k])) or 1.0)}

    scale = float(work.arrays("depth_scale", measure)["scale"])
    if not abs(np.log(scale)) < _LARGEST_DEPTH_SCALE_LOG:
        raise InputError(
            f"depth is {scale:.3g} times what images and poses say: it is in another unit, give --depth-scale, "
            f"about {1000 * scale:.0f} for integers or {scale:.3g} for floats where none was given"
        )
