# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""Maps from a posed RGB-D sequence in the format of the TUM RGB-D benchmark (Sturm et al., IROS 2012).

A folder with rgb.txt and depth.txt (`stamp filename`), groundtruth.txt (`stamp tx ty tz qx qy qz qw`, the camera's
pose in the map, optical axes) and camera.txt (`MODEL WIDTH HEIGHT PARAMS...`, one line as in COLMAP's cameras.txt).
Depth images are 16-bit PNG, aligned with the colour images, in units of 1 / scale metres; 0 is no measurement.
"""

from __future__ import annotations

import decimal
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch

from ...errors import InputError
from ...features import Extractor
from ...geometry import se3
from ...geometry.cameras import Camera
from ...io.images import load_image
from ..map_file import Map
from .building import BuildReport, PosedImages, Progress, build_map
from .patch_tracks import Patches, cut_patches, lift, neighbours, patch_pixels, refine_points, track_patches

MAX_STAMP_DIFFERENCE_NS = 20_000_000
DEPTH_SCALES = (5000.0, 1000.0)
"""What depth images are written with: TUM's benchmark, and millimetres."""
_LONGEST_POSE_GAP_NS = 100_000_000
_SAME_INSTANT_NS = 1_000_000

_KEYFRAME_ROTATION_RAD = np.radians(6.0)
_KEYFRAME_TRANSLATION = 0.06  # of the median depth
_CORNERS = 700
_CORNER_DISTANCE_PX = 7.0
_CORNER_QUALITY = 0.01
_EDGE_WINDOW_PX = 7
_EDGE_STEP = 0.04  # of the depth: what counts as an edge within the window
_DEPTH_AGREEMENT = 0.03  # of the depth
_NEIGHBOURS = 30
_DEPTH_SIGMA = 0.02  # of measured depth, as a share
_SCALE_PAIRS, _SCALE_CORNERS, _SCALE_PATCH_PX = 24, 150, 5
_SCALE_MARGIN = 0.03


@dataclass(frozen=True, eq=False)
class RgbdFrame:
    """One colour image with its depth image and pose. stamp_ns: of the colour image. map_from_depth_camera: the pose
    at the depth image's stamp. Poses float64 [4, 4]."""

    stamp_ns: int
    image: Path
    depth: Path
    map_from_camera: torch.Tensor
    map_from_depth_camera: torch.Tensor
    same_instant: bool


@dataclass(frozen=True)
class DepthScale:
    """Units of the depth images per metre, and how it is known, for people."""

    value: float
    reason: str


def read_rgbd_sequence(sequence: Path) -> list[RgbdFrame]:
    """Colour images that have a depth image and a pose within 20 ms, in time order.

    Poses are interpolated between their neighbours in time, or taken from the nearest one where those lie far apart.
    Raises InputError where a list is missing or malformed, a pose is not a number, or nothing fits together.
    """
    sequence = Path(sequence)
    if not sequence.is_dir():
        raise InputError(f"no folder {sequence}: give a folder with rgb.txt, depth.txt and groundtruth.txt")
    rgb_stamps, rgb = read_stamped_list(sequence / "rgb.txt", 2)
    depth_stamps, depth = read_stamped_list(sequence / "depth.txt", 2)
    pose_stamps, poses = read_stamped_poses(sequence / "groundtruth.txt")
    frames = []
    for stamp, (name, *_) in zip(rgb_stamps.tolist(), rgb):
        k = nearest_stamp(depth_stamps, stamp)
        if abs(int(depth_stamps[k]) - stamp) > MAX_STAMP_DIFFERENCE_NS:
            continue
        depth_stamp = int(depth_stamps[k])
        image_pose, depth_pose = (_pose_at(pose_stamps, poses, instant) for instant in (stamp, depth_stamp))
        if image_pose is None or depth_pose is None:
            continue
        frames.append(
            RgbdFrame(
                stamp,
                sequence / name,
                sequence / depth[k][0],
                image_pose,
                depth_pose,
                abs(stamp - depth_stamp) < _SAME_INSTANT_NS,
            )
        )
    if not frames:
        raise InputError(
            f"{sequence}: no colour image has a depth image and a pose within 20 ms: "
            "check that rgb.txt, depth.txt and groundtruth.txt use the same clock"
        )
    return frames


def build_map_from_rgbd(
    sequence: Path,
    extractor: Extractor,
    camera: Camera | None = None,
    depth_scale: float | None = None,
    working_side: int | None = None,
    name: str | None = None,
    progress: Progress | None = None,
) -> tuple[Map, BuildReport, DepthScale]:
    """Map of a posed RGB-D sequence.

    camera: of the colour images; read from camera.txt in the folder by default. depth_scale: units of the depth
    images per metre; found by `find_depth_scale` by default. name: the map's, the folder's by default.

    Keyframes are taken where the camera has moved, the sharpest image of each stretch. Points are corners with sound
    depth away from edges of the depth; each is looked for in the keyframes around: it is seen where its projection's
    depth agrees. Raises InputError as `read_rgbd_sequence` and `build_map` do, and where depth and colour images have
    different sizes.
    """
    sequence = Path(sequence)
    frames = read_rgbd_sequence(sequence)
    camera = read_camera(sequence) if camera is None else camera
    present = [frame for frame in frames if frame.image.is_file() and frame.depth.is_file()]
    if not present:
        raise InputError(
            f"none of the {len(frames)} images of {sequence} was found, for example {frames[0].image}: "
            "keep the folders that rgb.txt and depth.txt name"
        )
    missing = tuple(frame.image.name for frame in frames if not (frame.image.is_file() and frame.depth.is_file()))
    scale = find_depth_scale(present, camera) if depth_scale is None else DepthScale(float(depth_scale), "as given")
    if not (np.isfinite(scale.value) and scale.value > 0):
        raise InputError(f"depth scale {scale.value:g}: give the depth images' units per metre, for example 1000 for millimetres")
    chosen, keyframes = _choose_keyframes(present, camera, scale.value, progress)
    xyz, image, point = find_points(keyframes, camera)
    source = PosedImages(
        name or sequence.resolve().name,
        [frame.image for frame in chosen],
        [frame.image.name for frame in chosen],
        [camera] * len(keyframes),
        torch.stack([frame.map_from_camera for frame in chosen]),
        np.array([frame.stamp_ns for frame in chosen], np.int64),
        xyz,
        image,
        point,
    )
    map_, report = build_map(source, extractor, working_side, progress)
    return map_, BuildReport(missing + report.missing, report.empty, report.outside), scale


# ---- files


def read_stamped_list(path: Path, words: int) -> tuple[np.ndarray, list[list[str]]]:
    """Stamps, int64 nanoseconds, rising, and the rest of each line. Lines have at least `words` words."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise InputError(f"cannot read {path} ({error.strerror}): an RGB-D sequence needs it") from None
    except UnicodeDecodeError:
        raise InputError(f"{path} is not a text file: an RGB-D sequence needs it") from None
    stamps, rest = [], []
    for number, line in enumerate(lines, 1):
        # Words are parted by blanks; some tools put commas.
        parts = line.split("#", 1)[0].replace(",", " ").split()
        if not parts:
            continue
        try:
            stamp = int((decimal.Decimal(parts[0]) * 10**9).to_integral_value())
            stamps.append(np.int64(stamp))
        except (decimal.InvalidOperation, ValueError, OverflowError):
            raise InputError(f"{path}, line {number}: '{parts[0]}' is no time stamp: write seconds first in every line") from None
        if len(parts) < words:
            raise InputError(f"{path}, line {number}: {len(parts)} words where {words} are needed: mend or remove the line")
        rest.append(parts[1:])
    if not stamps:
        raise InputError(f"{path} is empty: record the sequence again")
    order = np.argsort(np.array(stamps, np.int64), kind="stable")
    return np.array(stamps, np.int64)[order], [rest[k] for k in order]


def read_stamped_poses(path: Path) -> tuple[np.ndarray, torch.Tensor]:
    """Lines `stamp tx ty tz qx qy qz qw`: int64 nanoseconds [N], rising, and poses float64 [N, 4, 4]. Raises InputError."""
    stamps, rows = read_stamped_list(path, 8)
    try:
        values = torch.tensor([[float(word) for word in row[:7]] for row in rows], dtype=torch.float64)
    except ValueError as error:
        raise InputError(f"{path}: {error}: write 'stamp tx ty tz qx qy qz qw' in every line") from None
    norm = values[:, 3:].norm(dim=1)
    bad = ~torch.isfinite(values).all(1) | ((norm - 1).abs() > 0.01)
    if bool(bad.any()):
        k = int(torch.nonzero(bad)[0])
        raise InputError(f"{path}: the pose at {stamps[k] / 1e9:.6f} s is not finite or has no unit quaternion: remove that line")
    return stamps, se3.from_rotation_translation(se3.rotation_from_quaternion(values[:, 3:]), values[:, :3])


def read_camera(sequence: Path) -> Camera:
    path = sequence / "camera.txt"
    if not path.is_file():
        raise InputError(f'no camera for {sequence}: give --camera "MODEL WIDTH HEIGHT PARAMS..." or write that line to {path}')
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise InputError(f"{path} is not a text file: write the one camera as MODEL WIDTH HEIGHT PARAMS...") from None
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    if len(lines) != 1:
        raise InputError(f"{path} has {len(lines)} lines: write the one camera as MODEL WIDTH HEIGHT PARAMS...")
    return Camera.parse_colmap_line(lines[0])


def nearest_stamp(stamps: np.ndarray, stamp: int) -> int:
    """Index of the one nearest to `stamp` among rising stamps."""
    k = int(np.searchsorted(stamps, stamp))
    return min((i for i in (k - 1, k) if 0 <= i < len(stamps)), key=lambda i: abs(int(stamps[i]) - stamp))


def _pose_at(stamps: np.ndarray, poses: torch.Tensor, stamp: int) -> torch.Tensor | None:
    """The pose at an instant, None where the nearest is more than 20 ms away."""
    k = nearest_stamp(stamps, stamp)
    if abs(int(stamps[k]) - stamp) > MAX_STAMP_DIFFERENCE_NS:
        return None
    after = int(np.searchsorted(stamps, stamp))
    if stamps[k] == stamp or not 0 < after < len(stamps) or stamps[after] - stamps[after - 1] > _LONGEST_POSE_GAP_NS:
        return poses[k]
    fraction = (stamp - int(stamps[after - 1])) / int(stamps[after] - stamps[after - 1])
    return se3.interpolate(poses[after - 1], poses[after], fraction)


def load_depth(frame: RgbdFrame, camera: Camera, scale: float) -> np.ndarray:
    """Depth in metres as the colour camera saw it at its own stamp, float32 [H, W], 0 where unknown."""
    raw = cv2.imread(str(frame.depth), cv2.IMREAD_UNCHANGED)
    if raw is None or raw.dtype != np.uint16 or raw.ndim != 2:
        raise InputError(f"{frame.depth} is not a 16-bit depth image: replace the file or take it off depth.txt")
    if raw.shape != (camera.height, camera.width):
        raise InputError(
            f"{frame.depth} is {raw.shape[1]}x{raw.shape[0]} but the camera is {camera.width}x{camera.height}: "
            "depth must be aligned with the colour images"
        )
    depth = (raw / np.float32(scale)).astype(np.float32)
    if frame.same_instant:
        return depth
    return move_depth(depth, se3.inverse(frame.map_from_camera) @ frame.map_from_depth_camera, camera)


def move_depth(
    depth: np.ndarray, camera_from_depth_camera: torch.Tensor, camera: Camera, depth_camera: Camera | None = None
) -> np.ndarray:
    """A depth image float32 [h, w] as `camera` saw it from another pose: float32 [H, W]; the nearest surface wins.

    depth_camera: that of the depth image, the same by default.
    """
    rows, columns = np.nonzero(depth)
    pixels = np.stack((columns, rows), 1)
    points = se3.transform(camera_from_depth_camera, lift(depth_camera or camera, pixels, depth[rows, columns]))
    pixels, valid = camera.project(points)
    valid &= camera.in_image(pixels)
    column, row = pixels[valid].round().long().numpy().T
    z = points[valid, 2].numpy().astype(np.float32)
    moved = np.full((camera.height, camera.width), np.inf, np.float32)
    np.minimum.at(moved, (row, column), z)
    return np.where(np.isfinite(moved), moved, 0).astype(np.float32)


# ---- keyframes and points


@dataclass(frozen=True, eq=False)
class RgbdKeyframe:
    """A chosen image: map_from_camera float64 [4, 4], grey uint8 [H, W], depth float32 [H, W] metres, 0 where unknown or at
    an edge (`without_edges`)."""

    map_from_camera: torch.Tensor
    grey: np.ndarray
    depth: np.ndarray


def load_grey(path: Path, camera: Camera) -> np.ndarray:
    """An image file of the camera's size as uint8 [H, W]. Raises InputError where it has another or cannot be read."""
    image = load_image(path)
    if image.shape[:2] != (camera.height, camera.width):
        raise InputError(
            f"{path} is {image.shape[1]}x{image.shape[0]} but the camera is {camera.width}x{camera.height}: "
            "give the camera of these images"
        )
    return image if image.ndim == 2 else cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)


def _choose_keyframes(
    frames: list[RgbdFrame], camera: Camera, scale: float, progress: Progress | None
) -> tuple[list[RgbdFrame], list[RgbdKeyframe]]:
    """One frame per stretch of little motion, that of the sharpest image, and what was read of it."""
    chosen: list[RgbdFrame] = []
    keyframes: list[RgbdKeyframe] = []
    first: torch.Tensor | None = None
    best_sharpness, reach = 0.0, 0.0
    for k, frame in enumerate(frames):
        if progress:
            progress(k, len(frames), f"depth of {frame.image.name}")
        grey = load_grey(frame.image, camera)
        sharpness = float(cv2.Laplacian(grey, cv2.CV_32F).var())
        new = True
        if first is not None:
            distance, angle = se3.pose_difference(first, frame.map_from_camera)
            new = float(angle) >= _KEYFRAME_ROTATION_RAD or float(distance) >= reach
            if not new and sharpness <= best_sharpness:
                continue
        depth = without_edges(load_depth(frame, camera, scale))
        keyframe = RgbdKeyframe(frame.map_from_camera, grey, depth)
        best_sharpness = sharpness
        if not new:
            chosen[-1], keyframes[-1] = frame, keyframe
            continue
        chosen.append(frame)
        keyframes.append(keyframe)
        known = depth[depth > 0]
        first = frame.map_from_camera
        reach = _KEYFRAME_TRANSLATION * float(np.median(known)) if known.size else 0.0
    return chosen, keyframes


def without_edges(depth: np.ndarray) -> np.ndarray:
    """Depth with 0 wherever the window around holds an edge or a pixel without depth."""
    window = np.ones((_EDGE_WINDOW_PX, _EDGE_WINDOW_PX), np.uint8)
    low, high = cv2.erode(depth, window), cv2.dilate(depth, window)
    return np.where((low > 0) & (high - low < _EDGE_STEP * depth), depth, 0).astype(np.float32)


def find_points(keyframes: list[RgbdKeyframe], camera: Camera) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Points [P, 3] in the map, and the keyframe and point of every observation.

    Each keyframe is filled up with corners where it does not yet see a point found before, so that a corner of the
    room is one point, not one per keyframe; then every point is looked for in the keyframes around the one that it
    was found in.
    """
    poses = torch.stack([keyframe.map_from_camera for keyframe in keyframes])
    depth = float(np.median([np.median(k.depth[k.depth > 0]) for k in keyframes if (k.depth > 0).any()] or [1.0]))
    near = neighbours(poses, depth, _NEIGHBOURS)
    found: list[Patches] = []
    for k, keyframe in enumerate(keyframes):
        earlier = [found[n].xyz for n in near[k] if n < k]
        mask = (keyframe.depth > 0).astype(np.uint8)
        room = _CORNERS
        if earlier:
            pixels, seen = _visible(np.concatenate(earlier), keyframe, camera)
            for x, y in pixels[seen].round().astype(int):
                cv2.circle(mask, (int(x), int(y)), int(_CORNER_DISTANCE_PX), 0, -1)
            room -= int(seen.sum())
        found.append(_corners(keyframe, camera, mask, room))
    start = np.cumsum([0] + [len(patches.xyz) for patches in found])
    patches = Patches.concatenate(found)
    images, points, observed = [], [], []
    for k, keyframe in enumerate(keyframes):
        candidates = np.concatenate([np.arange(start[n], start[n + 1]) for n in near[k]])
        candidates = candidates[_visible(patches.xyz[candidates], keyframe, camera)[1]]
        pixels, tracked = track_patches(patches, candidates, keyframe.grey, camera, keyframe.map_from_camera)
        points.append(candidates[tracked])
        observed.append(pixels[tracked])
        images.append(np.full(int(tracked.sum()), k, np.int64))
    image, point = np.concatenate(images), np.concatenate(points)
    xyz = refine_points(patches.xyz, poses, [camera] * len(poses), image, point, np.concatenate(observed), _DEPTH_SIGMA)
    return xyz, image, point


def _corners(keyframe: RgbdKeyframe, camera: Camera, mask: np.ndarray, count: int) -> Patches:
    """Patches around corners of the image inside the mask, at most `count`."""
    corners = None
    if count > 0:
        corners = cv2.goodFeaturesToTrack(keyframe.grey, count, _CORNER_QUALITY, _CORNER_DISTANCE_PX, mask=mask)
    # Whole pixels: depth belongs to them.
    pixels = np.empty((0, 2)) if corners is None else corners[:, 0].round().astype(np.float64)
    column, row = pixels.astype(int).T
    centre = keyframe.depth[row, column][:, None]
    column, row = np.moveaxis(np.clip(patch_pixels(pixels), 0, [camera.width - 1, camera.height - 1]).astype(int), -1, 0)
    depth = keyframe.depth[row, column]
    # Where the patch reaches over an edge its middle's depth stands in.
    depth = np.where(np.abs(depth - centre) < _EDGE_STEP * centre, depth, centre)
    return cut_patches(keyframe.grey, camera, keyframe.map_from_camera, pixels, depth)


def _visible(xyz: np.ndarray, keyframe: RgbdKeyframe, camera: Camera) -> tuple[np.ndarray, np.ndarray]:
    """Pixels [n, 2] of map points in a keyframe, and where its depth agrees with theirs."""
    points = se3.transform(se3.inverse(keyframe.map_from_camera), torch.from_numpy(xyz))
    pixels, valid = camera.project(points)
    seen = (valid & camera.in_image(pixels)).numpy()
    column, row = pixels[seen].round().long().numpy().T
    measured, expected = keyframe.depth[row, column], points[seen, 2].numpy()
    seen[seen] = (measured > 0) & (np.abs(measured - expected) < _DEPTH_AGREEMENT * expected)
    return pixels.numpy(), seen


# ---- depth scale


def find_depth_scale(frames: list[RgbdFrame], camera: Camera) -> DepthScale:
    """Which of the usual scales makes the images agree: 5000 (TUM's benchmark) or 1000 (millimetres).

    Patches around corners are moved from one image to another with the depth of either scale; the scale is taken
    under which they look alike (mean normalised cross-correlation). Where the camera turns only, every scale agrees:
    then it is TUM's, unless that puts the scene nearer than depth cameras can see.
    """
    likeness = np.zeros(len(DEPTH_SCALES))
    pairs = _scale_pairs(frames)
    for a, b in pairs:
        likeness += [_likeness(frames[a], frames[b], camera, scale) for scale in DEPTH_SCALES]
    likeness /= max(len(pairs), 1)
    best = int(likeness.argmax())
    if likeness[best] - likeness.min() >= _SCALE_MARGIN:
        return DepthScale(
            DEPTH_SCALES[best],
            f"found: patches of neighbouring images agree to {likeness[best]:.2f} with it, "
            f"to {likeness[1 - best]:.2f} with {DEPTH_SCALES[1 - best]:.0f}",
        )
    raw = load_depth(frames[0], camera, 1.0)
    median = float(np.median(raw[raw > 0])) if (raw > 0).any() else 0.0
    nearest = 0.4  # metres: structured-light and time-of-flight cameras measure nothing nearer
    scale = DEPTH_SCALES[0] if median / DEPTH_SCALES[0] >= nearest else DEPTH_SCALES[1]
    return DepthScale(
        scale, f"assumed: the camera hardly moves, median depth {median / scale:.2f} m; set --depth-scale to be sure"
    )


def _scale_pairs(frames: list[RgbdFrame]) -> list[tuple[int, int]]:
    """Pairs of frames that look the same way from places as far apart as possible."""
    step = max(1, len(frames) // 60)
    chosen = list(range(0, len(frames), step))
    poses = torch.stack([frames[k].map_from_camera for k in chosen])
    distance, angle = se3.pose_difference(poses[:, None], poses[None])
    distance = torch.where((angle < np.radians(25.0)), distance, torch.zeros_like(distance)).triu(1)
    value, order = distance.flatten().sort(descending=True, stable=True)
    # Not the farthest pairs, which may share no view, but the middle of those that are some way apart.
    usable = order[value > 0.25 * float(value[0])] if float(value[0]) > 0 else order[:0]
    usable = usable[:: max(1, len(usable) // _SCALE_PAIRS)][:_SCALE_PAIRS]
    return [(chosen[int(k) // len(chosen)], chosen[int(k) % len(chosen)]) for k in usable]


def _likeness(a: RgbdFrame, b: RgbdFrame, camera: Camera, scale: float) -> float:
    """Mean normalised cross-correlation of patches of image a with where depth puts them in image b; 0 where none is
    seen."""
    grey_a, grey_b = (cv2.GaussianBlur(load_grey(frame.image, camera), (0, 0), 1.5).astype(np.float32) for frame in (a, b))
    depth = without_edges(load_depth(a, camera, scale))
    corners = cv2.goodFeaturesToTrack(grey_a, _SCALE_CORNERS, 0.01, 10, mask=(depth > 0).astype(np.uint8))
    if corners is None:
        return 0.0
    centre = corners[:, 0].round()
    column, row = centre.astype(int).T
    span = np.arange(-_SCALE_PATCH_PX, _SCALE_PATCH_PX + 1)
    offsets = np.stack(np.meshgrid(span, span), -1).reshape(-1, 2)
    pixels = (centre[:, None] + offsets).reshape(-1, 2)
    points = lift(camera, pixels, np.repeat(depth[row, column], len(offsets)))
    b_from_a = se3.inverse(b.map_from_camera) @ a.map_from_camera
    moved, valid = camera.project(se3.transform(b_from_a, points))
    valid = (valid & camera.in_image(moved)).numpy().reshape(len(centre), -1).all(1)
    if not valid.any():
        return 0.0
    patches_a, patches_b = (
        cv2.remap(
            grey,
            where.astype(np.float32).reshape(len(centre), -1, 2)[valid],
            None,
            cv2.INTER_LINEAR,
            borderMode=cv2.BORDER_REPLICATE,
        )
        for grey, where in ((grey_a, pixels), (grey_b, moved.numpy()))
    )
    patches_a, patches_b = (patch - patch.mean(1, keepdims=True) for patch in (patches_a, patches_b))
    product = (patches_a * patches_b).sum(1)
    return float((product / np.maximum(np.linalg.norm(patches_a, axis=1) * np.linalg.norm(patches_b, axis=1), 1e-6)).mean())
