# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""Maps made smaller, merged, checked, made again with another network, and written for other programs (COLMAP, PLY)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np
import torch
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from scipy.spatial import cKDTree

from ...errors import InputError, none_left
from ...features import Extractor
from ...geometry import se3
from ...io.colmap import ColmapModel, write_colmap_model
from ...io.files import find_file, write_bytes
from .. import selection
from ..map_file import Map, decode_descriptors, encode_descriptors, keyframe_of_observations, keyframe_pixels
from .building import BuildReport, PosedImages, Progress, build_map, observation_fields

_SAME_POINT_SHARE, _SAME_POINT_COSINE = 0.004, 0.8
_TELLING_STRIDE = 4
_FEW_POINTS = 50
_KEYFRAME_TURN_RAD = float(np.radians(8.0))


# ---- smaller


@dataclass(frozen=True)
class PruneOptions:
    """What to leave out; 0 and None leave everything in.

    Attributes:
        keyframe_spacing: Keyframes nearer than this share of the scene's depth, and turned by less than 8°, to one that stays.
        points_per_keyframe: More than so many, spread over the image, those first that are seen most often and look most similar.
        min_track_length: Points below.
        min_quality: Points below.
        int8: Store descriptors in eight bits.
    """

    keyframe_spacing: float = 0.0
    points_per_keyframe: int | None = None
    min_track_length: int = 0
    min_quality: float = 0.0
    int8: bool = False

    def __post_init__(self) -> None:
        if self.keyframe_spacing < 0 or (self.points_per_keyframe is not None and self.points_per_keyframe < 16):
            raise InputError("prune: the spacing must not be negative, a keyframe keeps at least 16 points")


def prune(map_: Map, options: PruneOptions) -> Map:
    """A smaller map. Raises `InputError` where nothing would be left."""
    keyframes = _spaced_keyframes(map_, options.keyframe_spacing)
    good = (map_.track_length >= options.min_track_length) & (map_.quality >= options.min_quality)
    keep = good[map_.observation_point] & keyframes[keyframe_of_observations(map_)]
    if options.points_per_keyframe is not None:
        keep &= _best_spread(map_, keep, options.points_per_keyframe)
    map_ = subset(map_, keep)
    return with_int8(map_) if options.int8 else map_


def subset(map_: Map, keep: np.ndarray) -> Map:
    """The map with some of its observations (bool [M]); keyframes and points without any go too."""
    if not keep.any():
        raise InputError(f"nothing of map '{map_.name}' would be left: ask for less")
    rows = np.flatnonzero(keep)
    counts = np.bincount(keyframe_of_observations(map_)[rows], minlength=len(map_.keyframe_names))
    keyframes = np.flatnonzero(counts)
    used, point = np.unique(map_.observation_point[rows], return_inverse=True)
    cameras, camera = np.unique(map_.keyframe_camera[keyframes], return_inverse=True)
    descriptors = tuple(level[rows] for level in map_.descriptors)
    confidences = tuple(None if level is None else level[rows] for level in map_.confidences)
    return replace(
        map_,
        cameras=[map_.cameras[k] for k in cameras],
        keyframe_names=[map_.keyframe_names[k] for k in keyframes],
        map_from_keyframe=map_.map_from_keyframe[torch.from_numpy(keyframes)].contiguous(),
        keyframe_camera=camera.astype(np.int32),
        keyframe_stamp_ns=map_.keyframe_stamp_ns[keyframes],
        keyframe_depth=map_.keyframe_depth[keyframes],
        global_descriptors=map_.global_descriptors[keyframes],
        xyz=map_.xyz[used],
        **observation_fields(counts[keyframes], point, len(used), descriptors, confidences),
    )


def with_int8(map_: Map) -> Map:
    """The map with its descriptors in eight bits."""
    return replace(map_, descriptors=tuple(encode_descriptors(decode_descriptors(level)) for level in map_.descriptors))


def _spaced_keyframes(map_: Map, spacing: float) -> np.ndarray:
    """bool [K]: a keyframe goes where one that stays is near in place and direction."""
    keep = np.ones(len(map_.keyframe_names), bool)
    if spacing <= 0:
        return keep
    centres, rotations = map_.map_from_keyframe[:, :3, 3].numpy(), map_.map_from_keyframe[:, :3, :3].numpy()
    tree = cKDTree(centres)
    for k in range(len(keep)):
        if not keep[k]:
            continue
        for n in tree.query_ball_point(centres[k], spacing * float(map_.keyframe_depth[k])):
            angle = np.arccos(np.clip((np.trace(rotations[k].T @ rotations[n]) - 1) / 2, -1, 1))
            if n > k and angle < _KEYFRAME_TURN_RAD:
                keep[n] = False
    return keep


def _best_spread(map_: Map, keep: np.ndarray, limit: int) -> np.ndarray:
    """bool [M]: per keyframe at most `limit` of the observations to keep, spread over the image."""
    chosen = np.zeros(len(keep), bool)
    worth = (map_.track_length * (map_.quality + 0.1)).astype(np.float64)
    for k in range(len(map_.keyframe_names)):
        pixels, _, camera = keyframe_pixels(map_, k)
        here = keep[map_.observations(k)]
        rows = map_.observations(k).start + np.flatnonzero(here)
        size = (camera.width, camera.height)
        chosen[rows[selection.spread(pixels[here], worth[map_.observation_point[rows]], size, limit)]] = True
    return chosen


# ---- merged


Same = tuple[np.ndarray, np.ndarray]
"""Points of one map and the points of another that they are, int64 [n] each."""


def merge(maps: list[Map], names: list[str], same: Same | None = None) -> tuple[Map, int]:
    """Several maps in one frame as one: sessions of a place, or places next to each other.

    A point that two maps have, at the same place and of the same look, becomes one, with the descriptors of both: every keyframe
    keeps what the point looked like from there and then.

    Args:
        maps: At least two.
        names: Of the maps, put before their keyframes' names where those are not unique.
        same: Points of the second map that are known to be points of the first, whatever they look like.

    Returns:
        The map, and how many points of a later map are points of an earlier one.

    Raises:
        InputError: The maps are of different networks or levels, or differ in precision.
    """
    if len(maps) < 2:
        raise InputError("merge needs two maps or more")
    for other, name in zip(maps[1:], names[1:]):
        _require_same_kind(maps[0], other, names[0], name)
    everything = [name for map_ in maps for name in map_.keyframe_names]
    if len(set(everything)) < len(everything):
        maps = [
            replace(map_, keyframe_names=[f"{name}/{keyframe}" for keyframe in map_.keyframe_names])
            for map_, name in zip(maps, names)
        ]
    result, fused = maps[0], 0
    for other in maps[1:]:
        result, count = _merge_two(result, other, same)
        same = None
        fused += count
    return result, fused


def moved(map_: Map, new_from_map: torch.Tensor) -> Map:
    """The map in another frame, new_from_map float64 [4, 4]."""
    georeference = map_.georeference
    if georeference is not None:
        georeference = replace(georeference, enu_from_map=georeference.enu_from_map @ se3.inverse(new_from_map))
    return replace(
        map_,
        map_from_keyframe=new_from_map @ map_.map_from_keyframe,
        xyz=se3.transform(new_from_map, torch.from_numpy(np.array(map_.xyz))).numpy(),
        georeference=georeference,
    )


def _require_same_kind(a: Map, b: Map, name_a: str, name_b: str) -> None:
    if (a.extractor_fingerprint, a.strides, a.working_side) != (b.extractor_fingerprint, b.strides, b.working_side):
        made = (f"{m.extractor_name} ({m.extractor_fingerprint}, strides {m.strides}, {m.working_side} px)" for m in (a, b))
        raise InputError(
            f"map '{name_a}' was made with {next(made)}, '{name_b}' with {next(made)}: make one of them again with "
            "'pixloc map re-encode', the same --weights and --working-side"
        )
    stored_a, stored_b = ((m.version, m.global_descriptor_name, [level is None for level in m.confidences]) for m in (a, b))
    if stored_a != stored_b:
        raise InputError(f"maps '{name_a}' and '{name_b}' store descriptors differently: apply to both 'pixloc map prune --int8'")


def _merge_two(a: Map, b: Map, known: Same | None = None) -> tuple[Map, int]:
    same_b, same_a = _same_points(a, b)
    if known is not None:
        new = ~(np.isin(same_b, known[0]) | np.isin(same_a, known[1]))
        same_b, same_a = (np.concatenate((sure, found[new])) for sure, found in zip(known, (same_b, same_a)))
    number = np.empty(len(b.xyz), np.int64)
    new = np.setdiff1d(np.arange(len(b.xyz)), same_b)
    number[same_b], number[new] = same_a, len(a.xyz) + np.arange(len(new))
    xyz = np.concatenate((a.xyz, b.xyz[new]))
    weight_a, weight_b = (m.track_length[rows][:, None] for m, rows in ((a, same_a), (b, same_b)))
    xyz[same_a] = (a.xyz[same_a] * weight_a + b.xyz[same_b] * weight_b) / (weight_a + weight_b)
    point = np.concatenate((a.observation_point.astype(np.int64), number[b.observation_point]))
    counts = np.concatenate((np.diff(a.observation_offsets), np.diff(b.observation_offsets)))
    order = np.lexsort((point, np.repeat(np.arange(len(counts)), counts)))  # points rise within a keyframe

    def joined(name: str) -> tuple[np.ndarray | None, ...]:
        pairs = zip(getattr(a, name), getattr(b, name))
        return tuple(None if pair[0] is None else np.concatenate(pair)[order] for pair in pairs)

    keyframe_fields = ("keyframe_stamp_ns", "keyframe_depth", "global_descriptors")
    merged = replace(
        a,
        cameras=[*a.cameras, *b.cameras],
        keyframe_names=[*a.keyframe_names, *b.keyframe_names],
        map_from_keyframe=torch.cat((a.map_from_keyframe, b.map_from_keyframe)),
        keyframe_camera=np.concatenate((a.keyframe_camera, b.keyframe_camera + len(a.cameras))).astype(np.int32),
        **{name: np.concatenate((getattr(a, name), getattr(b, name))) for name in keyframe_fields},
        xyz=xyz,
        **observation_fields(counts, point[order], len(xyz), joined("descriptors"), joined("confidences")),
    )
    return merged, len(same_b)


def _same_points(a: Map, b: Map) -> tuple[np.ndarray, np.ndarray]:
    """Points of b and the points of a that they are: nearest to each other, near against the distance they are seen from, and
    similar in the finest features that tell points apart, which an intensity patch does not."""
    level = max((k for k, stride in enumerate(a.strides) if stride >= _TELLING_STRIDE), default=0)
    described = [_mean_descriptors(m, level) for m in (a, b)]
    distance, nearest = cKDTree(a.xyz).query(b.xyz)
    _, back = cKDTree(b.xyz).query(a.xyz)
    rows = np.flatnonzero(back[nearest] == np.arange(len(b.xyz)))
    rows = rows[distance[rows] < _SAME_POINT_SHARE * _seen_from(b)[rows]]
    similar = (described[1][rows] * described[0][nearest[rows]]).sum(1) > _SAME_POINT_COSINE
    return rows[similar], nearest[rows[similar]]


def _mean_descriptors(map_: Map, level: int) -> np.ndarray:
    """Unit means of every point's descriptors, float32 [P, C]."""
    values = decode_descriptors(map_.descriptors[level])
    ones, observations = np.ones(len(values), np.float32), np.arange(len(values))
    sums = coo_array((ones, (map_.observation_point, observations)), (len(map_.xyz), len(values))).tocsr()
    means = sums @ values
    return means / np.maximum(np.linalg.norm(means, axis=1, keepdims=True), 1e-6)


def _seen_from(map_: Map) -> np.ndarray:
    """Least distance of every point from a keyframe that sees it, float64 [P]."""
    centres = map_.map_from_keyframe[:, :3, 3].numpy()[keyframe_of_observations(map_)]
    distance = np.full(len(map_.xyz), np.inf)
    np.minimum.at(distance, map_.observation_point, np.linalg.norm(map_.xyz[map_.observation_point] - centres, axis=1))
    return distance


# ---- checked


@dataclass(frozen=True)
class Finding:
    """What is wrong or odd.

    Attributes:
        serious: The map should not be used so.
        text: For people, with what to do.
    """

    serious: bool
    text: str


def check(map_: Map) -> list[Finding]:
    """What is wrong with a map, or odd; empty where it is sound. The file's checksums are checked by `Map.open`."""
    counts, names = np.diff(map_.observation_offsets), map_.keyframe_names
    wrong, odd = [], []
    outside = np.array([int((~keyframe_pixels(map_, k)[1]).sum()) for k in range(len(counts))])
    if outside.sum():
        worst = int(outside.argmax())
        wrong.append(
            f"{outside.sum()} observations lie outside their image, {outside[worst]} in {names[worst]}: "
            "poses, cameras and points do not belong together"
        )
    rising = [bool((np.diff(map_.observation_point[map_.observations(k)]) > 0).all()) for k in range(len(counts))]
    if not all(rising):
        wrong.append(f"the points of {names[rising.index(False)]} are out of order")
    if not np.array_equal(np.bincount(map_.observation_point, minlength=len(map_.xyz)), map_.track_length):
        wrong.append("the points' track lengths do not fit the observations")
    for level, stored in enumerate(map_.descriptors):
        bad = int((~(np.abs(np.linalg.norm(decode_descriptors(stored), axis=1) - 1) < 0.01)).sum())
        if bad:
            wrong.append(f"{bad} descriptors of level {level} are not of unit length")
    few = np.flatnonzero(counts < _FEW_POINTS)
    if len(few):
        odd.append(
            f"{len(few)} keyframes see fewer than {_FEW_POINTS} points, for example {names[few[0]]}: the camera may get lost "
            "there"
        )
    groups = _groups(map_)
    if len(groups) > 1:
        odd.append(
            f"the map falls into {len(groups)} parts that share no point, of {', '.join(map(str, groups[:5]))} keyframes: "
            "nothing ties their positions to each other but the poses they were made with"
        )
    once = float((map_.track_length == 1).mean())
    if once > 0.5:
        odd.append(f"{100 * once:.0f} % of the points are seen by one keyframe only: their positions are not confirmed")
    quality = map_.quality[map_.track_length > 1]
    if len(quality) and np.median(quality) < 0.5:
        odd.append(
            f"the same point looks different from keyframe to keyframe (median cosine {np.median(quality):.2f}): poses or "
            "calibration may be off, or exposure varies"
        )
    return [Finding(True, f"{text}: build the map again") for text in wrong] + [Finding(False, text) for text in odd]


def _groups(map_: Map) -> list[int]:
    """Numbers of keyframes of the parts of the map that share no point, largest first."""
    keyframe, count = keyframe_of_observations(map_), len(map_.keyframe_names)
    nodes, ones = count + len(map_.xyz), np.ones(len(keyframe), np.int8)
    graph = coo_array((ones, (keyframe, count + map_.observation_point)), (nodes, nodes))
    _, label = connected_components(graph, directed=False)
    return sorted(np.unique(label[:count], return_counts=True)[1].tolist(), reverse=True)


# ---- with another network


def re_encode(
    map_: Map, images: Path, extractor: Extractor, working_side: int | None = None, progress: Progress | None = None
) -> tuple[Map, BuildReport]:
    """The same keyframes and points with the features of another network.

    Args:
        map_: Gives keyframes and points.
        images: The folder that the keyframes' names are relative to. Images may have any size of the same proportions; those that
            are missing or have others are left out and reported.
        extractor: The other network.
        working_side: As of `build_map`.
        progress: As of `build_map`.

    Raises:
        InputError: No image can be used.
    """
    images = Path(images)
    if not images.is_dir():
        raise InputError(f"no folder {images}: give the folder of the keyframes' images")
    paths, cameras, left_out = [find_file(images, name) for name in map_.keyframe_names], [], {}
    for name, path, index in zip(map_.keyframe_names, paths, map_.keyframe_camera.tolist()):
        camera = map_.cameras[index]
        image = cv2.imread(str(path), cv2.IMREAD_UNCHANGED | cv2.IMREAD_IGNORE_ORIENTATION) if path.is_file() else None
        if image is not None:
            height, width = image.shape[:2]
            if abs(width * camera.height - height * camera.width) > max(width, height):
                left_out[name] = (
                    f"{path} is {width}x{height}, the map was made of images like {camera.width}x{camera.height}: "
                    "give the images it was made of"
                )
            camera = camera.scaled(width / camera.width, height / camera.height, width, height)
        cameras.append(camera)
    if len(left_out) == len(paths):
        raise none_left(f"no image of {images} fits the map", left_out)
    keyframe = keyframe_of_observations(map_)
    fitting = ~np.isin(np.array(map_.keyframe_names)[keyframe], list(left_out))
    images_seen, points_seen = keyframe[fitting], map_.observation_point[fitting].astype(np.int64)
    known = map_.map_from_keyframe, np.array(map_.keyframe_stamp_ns), np.array(map_.xyz)
    source = PosedImages(map_.name, paths, map_.keyframe_names, cameras, *known, images_seen, points_seen)
    made, report = build_map(source, extractor, working_side, progress)
    return replace(made, georeference=map_.georeference), replace(report, left_out=report.left_out | left_out)


# ---- for other programs


def export_colmap(map_: Map, folder: Path) -> None:
    """Write a COLMAP model as text: the shrunk images' cameras, observations where points project, the quality as grey.

    Raises:
        InputError: The folder cannot be written.
    """
    keyframes, points = len(map_.keyframe_names), len(map_.xyz)
    by_point = np.argsort(map_.observation_point, kind="stable")
    pixels = np.concatenate([keyframe_pixels(map_, k)[0] for k in range(keyframes)])
    model = ColmapModel(
        cameras=dict(enumerate(map_.cameras, 1)),
        image_ids=np.arange(1, keyframes + 1),
        names=map_.keyframe_names,
        camera_ids=map_.keyframe_camera + 1,
        camera_from_map=se3.inverse(map_.map_from_keyframe),
        point_ids=np.arange(1, points + 1),
        xyz=map_.xyz,
        error_px=np.zeros(points),
        observation_image=keyframe_of_observations(map_)[by_point],
        observation_point=map_.observation_point[by_point],
        observation_px=pixels[by_point],
    )
    write_colmap_model(folder, model, np.repeat(_grey(map_)[:, None], 3, 1))


def export_ply(map_: Map, path: Path) -> None:
    """Write a binary PLY: the points, grey by quality, and the keyframes' centres in red. Raises `InputError` where it cannot."""
    centres = map_.map_from_keyframe[:, :3, 3].numpy()
    vertices = np.empty(len(map_.xyz) + len(centres), [("xyz", "<f8", 3), ("rgb", "u1", 3)])
    vertices["xyz"] = np.concatenate((map_.xyz, centres))
    vertices["rgb"][: len(map_.xyz)] = _grey(map_)[:, None]
    vertices["rgb"][len(map_.xyz) :] = (255, 0, 0)
    fields = [f"property double {axis}" for axis in "xyz"] + [f"property uchar {name}" for name in ("red", "green", "blue")]
    header = ["ply", "format binary_little_endian 1.0", f"element vertex {len(vertices)}", *fields, "end_header", ""]
    write_bytes(path, "\n".join(header).encode() + vertices.tobytes())


def _grey(map_: Map) -> np.ndarray:
    return np.round(55 + 200 * np.clip(map_.quality, 0, 1)).astype(np.uint8)
