# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""Structure from motion of a drive with odometry: its poses to begin with, all matches and its short motions adjusted together.

Odometry is right over short ways and drifts over long ones: it gives the scale, and holds it where the images alone would let it
drift. Loops are closed in two steps: first the poses (a pose graph of the motions and of the loops), then poses and points.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from ...errors import InputError
from .adjustment import Bundle, Links, Rays, adjust, errors_px, link_errors, triangulated
from .building import Progress
from .gyro_prior import GyroPrior
from .matching import pixel_scale, require_pycolmap
from .observations import rows_by_image
from .turns import ImageTurns, along, rotation_vectors, with_turns
from .two_view import AHEAD, PairFinder, colmap_camera

_STEP_SHARE, _STEP_M, _STEP_RAD, _STEP_RAD_PER_M = 0.02, 0.003, np.radians(0.5), np.radians(0.5)
"""Of the odometry between two keyframes, one standard deviation. Its errors last, so each motion is believed less than it is
right. Where wheels slip it is wrong by several and counts little."""
STAGES = ((20.0, 5), (5.0, 5), (1.0, 12), (0.5, 8))
"""Above how many pixels errors count little, and how many iterations at most."""
_FEATURE_STD_PX = 2.0
"""Features are found more exactly, but their many errors are not independent: they count so much against the motions. Distant
scenes hardly show how far each step went."""
_MOST_RAYS = 1_500_000
"""Observations; of a longer drive those of the points that most images see."""
_LEAST_ANGLE = np.radians(1.0)
_GRAPH_SHARE, _GRAPH_RAD = 0.01, np.radians(0.05)
_LOOP_SHARE, _LOOP_M, _LOOP_RAD = 0.02, 0.02, np.radians(0.2)
_LOOP_POINTS, _LOOP_STD = 20, 6.0
_FITS_PX = 5.0
_TORN_SHARE, _TORN_MATCHES, _TORN_AROUND = 0.2, 15, 10
"""Of so many matches over a step, or more, the least share that must fit; how many steps around it tell its scale."""
_TURNS_STEPS, _TURNS_LEFT, _TURNS_MATTER, _TURNS_ROUNDS = 6, 0.5, 0.5, 10
"""The fewest sure turns of the images; what a cause leaves of the difference at most; that difference in standard deviations."""
WHEELS = 0.02
"""How wrong wheels may be all the time: their diameter, the floor."""


@dataclass(frozen=True, eq=False)
class OdometryModel:
    """What came out.

    Attributes:
        poses: float64 [K, 4, 4], metres, in the first's frame.
        error_px: Median distance of the observations that fit.
        fitting: Share of the observations that do.
        scale_spread: Standard deviation of the scale between stretches of the drive; as a share.
        loops: Pairs of images whose loop was used.
        depth: Median.
        motions: What held the poses besides the images.
        torn: int64 [T], steps (from this keyframe to the next) where odometry and images contradict each other.
    """

    poses: np.ndarray
    error_px: float
    fitting: float
    scale_spread: float
    loops: list[tuple[int, int]]
    depth: float
    motions: Links
    torn: np.ndarray


def solve_with_odometry(
    finder: PairFinder,
    odometry: np.ndarray,
    turns: ImageTurns,
    progress: Progress | None = None,
    gyro: GyroPrior | None = None,
    bridges: Links | None = None,
) -> OdometryModel:
    """Poses of the finder's images.

    Args:
        finder: With all pairs.
        odometry: float64 [K, 4, 4], of the camera.
        turns: What the result is checked against.
        progress: As of `build_map`.
        gyro: Has turned the odometry and says better how the base turned.
        bridges: Steps where the odometry is wrong; how they begin.
    """
    odometry = np.linalg.inv(odometry[0]) @ odometry
    if bridges is not None:
        odometry = _with_bridges(odometry, bridges)
    scale_px = pixel_scale(finder.matcher.images.cameras[0])
    motions = short_motions(odometry)
    if bridges is not None:
        motions = motions.only(~np.isin(motions.first, bridges.first))
    loops = set(finder.loops)
    steps = len(STAGES) + (len(STAGES) - 1 if loops else 0)
    say = lambda n: progress and progress(n, steps, "adjusting poses and points")  # noqa: E731
    rays, numbers = tracks(finder, [pair for pair in finder.pairs if pair not in loops])
    poses = odometry
    for n, (robust, iterations) in enumerate(STAGES):
        say(n)
        if gyro is not None and n == len(STAGES) - 2:  # once the path is nearly right
            motions = gyro.joined(motions, poses)
        bundle, rays_used = stage(poses, rays, numbers, motions, robust * scale_px, iterations)
        poses = bundle.poses
    used = []
    if loops:
        closing, used = _closing(finder, bundle, rays_used)
        if used:
            graph = Links.join([graph_links(poses), closing])
            empty = rays.only(np.zeros(0, np.int64))
            bent = adjust(Bundle(poses, np.zeros((0, 3))), empty, graph, 1.0, 30)
            # What contradicts the drive and the other loops is another place that looks the same.
            right = np.linalg.norm(link_errors(bent, closing), axis=1) < _LOOP_STD
            poses, used = bent.poses, [pair for pair, good in zip(used, right) if good]
            rays, numbers = tracks(finder, [pair for pair in finder.pairs if pair not in loops or pair in used])
            for n, (robust, iterations) in enumerate(STAGES[1:], len(STAGES)):
                say(n)
                bundle, rays_used = stage(poses, rays, numbers, motions, robust * scale_px, iterations)
                poses = bundle.poses
    error = errors_px(bundle, rays_used) / scale_px
    good = error < 3.0
    depth = np.linalg.norm(bundle.xyz[rays_used.point] - poses[rays_used.image, :3, 3], axis=1)
    figures = float(np.median(error[good])) if good.any() else float("inf"), len(rays_used.point) / max(len(rays.point), 1)
    spread, depth = _scale_spread(poses, odometry), float(np.median(depth)) if len(depth) else 0.0
    torn = np.union1d(_torn_steps(poses, rays, numbers, scale_px), turns.contradicted_by(poses))
    return OdometryModel(poses, *figures, spread, used, depth, motions, torn)


def turned_by_images(odometry: np.ndarray, turns: ImageTurns, base_from_camera: np.ndarray) -> tuple[np.ndarray, str]:
    """Odometry that turns wrongly all along, by so much a metre or by a share of each turn, with the turns that images show.

    Such an error adds up: the path begins too far off, and no motion contradicts the images by itself.

    Args:
        odometry: float64 [K, 4, 4], of the camera.
        turns: What the images show.
        base_from_camera: float64 [4, 4].

    Returns:
        The odometry, and how it turns, for people; as it was, and "", where errors are small, or of no such kind.
    """
    first, rotations = turns.first[turns.sure], turns.nearest(odometry)[turns.sure]
    if len(first) < _TURNS_STEPS:
        return odometry, ""
    motions = short_motions(odometry).only(first)
    way = np.linalg.norm(motions.first_from_second[:, :3, 3], axis=1)
    off, turn = turns.off_rad(odometry)[turns.sure], rotation_vectors(rotations)
    causes = np.concatenate((way[:, None, None] * np.eye(3), turn[:, :, None]), 2)  # [n, 3, 4]
    weight = np.ones(len(off))
    for _ in range(_TURNS_ROUNDS):
        root = np.sqrt(weight)[:, None]
        factors = np.linalg.lstsq((causes * root[..., None]).reshape(-1, 4), (off * root).ravel(), rcond=None)[0]
        left = np.linalg.norm(off - causes @ factors, axis=1)
        weight = 1 / (1 + (left / max(np.median(left), 1e-9)) ** 2)
    before = np.linalg.norm(off, axis=1)
    if np.median(left) > _TURNS_LEFT * np.median(before) or np.median(before / motions.rotation_std) < _TURNS_MATTER:
        return odometry, ""
    said = f"the odometry turns {np.degrees(np.linalg.norm(factors[:3])):.1f} deg a metre"
    said += f" and {100 * abs(factors[3]):.0f} % of each turn otherwise than the images: theirs are used; look after wheels"
    return with_turns(odometry, first, rotations, base_from_camera), said


def _torn_steps(poses: np.ndarray, rays: Rays, points: int, scale_px: float) -> np.ndarray:
    """Steps, int64 [T], over which images match but hardly any match fits the poses."""
    error = errors_px(Bundle(poses, triangulated(poses, rays, points)[0]), rays) / scale_px
    order = np.lexsort((rays.image, rays.point))
    image, point, fits = rays.image[order], rays.point[order], error[order] < _FITS_PX
    over = (point[1:] == point[:-1]) & (np.diff(image) <= AHEAD[-1])  # what time brings together, no loops
    counts = []
    for rows in (np.flatnonzero(over), np.flatnonzero(over & fits[1:] & fits[:-1])):
        begun, ended = (np.bincount(image[at], minlength=len(poses)) for at in (rows, rows + 1))
        counts.append(np.cumsum(begun - ended)[:-1])
    return np.flatnonzero((counts[0] >= _TORN_MATCHES) & (counts[1] < _TORN_SHARE * counts[0]))


def bridges(odometry: np.ndarray, torn: np.ndarray, image: np.ndarray, poses: np.ndarray) -> Links:
    """The motions over torn steps, and over others that are wrong, as images alone see them; as long as the odometry says of the
    steps around.

    Args:
        odometry: float64 [K, 4, 4].
        torn: int64 [T], the first image of each step.
        image: int64 [P], which images structure from motion has posed.
        poses: float64 [P, 4, 4], theirs, at any scale.

    Raises:
        InputError: Images alone do not lead over a step.
    """
    row = np.full(len(odometry), -1)
    row[image] = np.arange(len(image))
    lost = torn[(row[torn] < 0) | (row[torn + 1] < 0)]
    if len(lost):
        raise InputError(contradiction(lost) + ", and images alone do not bridge them: use the drive up to there, or drive again")
    first = np.flatnonzero((row[:-1] >= 0) & (row[1:] >= 0))
    relative = np.linalg.inv(poses[row[first]]) @ poses[row[first + 1]]
    said = np.linalg.inv(odometry[first]) @ odometry[first + 1]
    ways = [np.linalg.norm(steps[:, :3, 3], axis=1) for steps in (said, relative)]
    good = np.flatnonzero(~np.isin(first, torn) & (ways[1] > 0))
    for n, step in enumerate(first):
        near = good[np.argsort(np.abs(first[good] - step), kind="stable")[: 2 * _TORN_AROUND]]
        scale = float(np.median(ways[0][near] / ways[1][near])) if len(near) else 0.0
        if not scale > 0:
            raise InputError(contradiction(torn) + " and says no scale elsewhere: leave it out (--odometry-topic none)")
        relative[n, :3, 3] *= scale
    # A wrong step bends those around it, too: which one it is, images alone tell.
    seen = replace(short_motions(odometry).only(first), first_from_second=relative)
    off = link_errors(Bundle(odometry, np.zeros((0, 3))), seen)
    wrong = np.isin(first, torn) | (np.linalg.norm(off, axis=1) > _LOOP_STD)
    torn, relative = first[wrong], relative[wrong]
    nothing = np.full(len(torn), np.inf)
    return Links(torn, torn + 1, relative, nothing, nothing, np.zeros(len(torn), bool))


def contradiction(torn: np.ndarray) -> str:
    """What is to be said of torn steps."""
    steps = ", ".join(f"{step + 1} to {step + 2}" for step in torn[:5].tolist()) + (", ..." if len(torn) > 5 else "")
    return f"the odometry contradicts the images (from keyframe {steps})"


def _with_bridges(odometry: np.ndarray, bridges: Links) -> np.ndarray:
    """The odometry [K, 4, 4] with other steps where there are bridges."""
    steps = np.linalg.inv(odometry[:-1]) @ odometry[1:]
    steps[bridges.first] = bridges.first_from_second
    return along(odometry[0], steps)


def short_motions(odometry: np.ndarray) -> Links:
    """Between keyframes that follow each other."""
    first = np.arange(len(odometry) - 1)
    relative = np.linalg.inv(odometry[:-1]) @ odometry[1:]
    way = np.linalg.norm(relative[:, :3, 3], axis=1)
    deviations = np.hypot(_STEP_SHARE * way, _STEP_M), _STEP_RAD + _STEP_RAD_PER_M * way
    return Links(first, first + 1, relative, *deviations, np.ones(len(first), bool))


def graph_links(poses: np.ndarray) -> Links:
    """Motions as adjusted, which loops may bend."""
    first = np.arange(len(poses) - 1)
    relative = np.linalg.inv(poses[:-1]) @ poses[1:]
    way = np.linalg.norm(relative[:, :3, 3], axis=1)
    deviations = _GRAPH_SHARE * way + 1e-3, np.full(len(first), _GRAPH_RAD)
    return Links(first, first + 1, relative, *deviations, np.zeros(len(first), bool))


def tracks(finder: PairFinder, pairs: list[tuple[int, int]]) -> tuple[Rays, int]:
    """What the images see of the same points, and how many points there are. A point that two features of one image show is
    none."""
    matcher = finder.matcher
    counts = [len(matcher.features(k)[0]) for k in range(finder.count)]
    start = np.concatenate(([0], np.cumsum(counts)))
    used = [pair for pair in sorted(pairs) if finder.pairs[pair].is_link]
    edges = [finder.pairs[a, b].matches.astype(np.int64) + (start[a], start[b]) for a, b in used]
    edges = np.concatenate(edges) if edges else np.zeros((0, 2), np.int64)
    graph = coo_array((np.ones(len(edges), bool), (edges[:, 0], edges[:, 1])), shape=(start[-1], start[-1]))
    _, label = connected_components(graph, directed=False)
    feature = np.unique(edges)
    image, label = np.searchsorted(start, feature, side="right") - 1, label[feature]
    pair = label.astype(np.int64) * finder.count + image
    _, inverse, times = np.unique(pair, return_inverse=True, return_counts=True)
    twice = np.zeros(label.max(initial=0) + 1, bool)
    twice[label[times[inverse] > 1]] = True
    keep = np.flatnonzero(~twice[label])
    if len(keep) > _MOST_RAYS:
        closing = [finder.pairs[a, b].matches.astype(np.int64) + (start[a], start[b]) for a, b in finder.loops]
        closing = np.isin(feature[keep], np.concatenate([np.zeros((0, 2), np.int64), *closing]))
        keep = keep[_in_long_tracks(image[keep], label[keep], closing, _MOST_RAYS // finder.count)]
    feature, image = feature[keep], image[keep]
    points, point = np.unique(label[keep], return_inverse=True)
    cameras, ray, focal = matcher.images.cameras, np.empty((len(feature), 3)), np.empty(len(feature))
    rows_of = rows_by_image(image, finder.count)
    for k, rows in enumerate(rows_of):
        ray[rows] = matcher.features(k)[1][feature[rows] - start[k]]
        focal[rows] = float(cameras[k].params[0])
    return Rays(image, point, ray, focal, feature - start[image]), len(points)


def _in_long_tracks(image: np.ndarray, point: np.ndarray, closing: np.ndarray, limit: int) -> np.ndarray:
    """bool [M]: the observations of points that are among the `limit` of an image that close loops, or that most images see."""
    order = np.lexsort((-np.bincount(point)[point], ~closing, image))
    rank = np.arange(len(order)) - np.searchsorted(image[order], image[order])
    chosen = np.zeros(point.max() + 1, bool)
    chosen[point[order[rank < limit]]] = True
    return chosen[point]


def stage(poses: np.ndarray, rays: Rays, points: int, motions: Links, robust_px: float, iterations: int) -> tuple[Bundle, Rays]:
    """Triangulate with the poses, leave out what is far off, adjust; the bundle, and what it was made of."""
    xyz, angle = triangulated(poses, rays, points)
    error = errors_px(Bundle(poses, xyz), rays)
    good = (error < 4 * robust_px) & (angle > _LEAST_ANGLE / 2)[rays.point]
    good &= (np.bincount(rays.point[good], minlength=points) >= 2)[rays.point]
    rays = rays.only(good)
    used, point = np.unique(rays.point, return_inverse=True)
    rays = replace(rays, point=point)
    return adjust(Bundle(poses, xyz[used]), rays, motions, robust_px, iterations, _FEATURE_STD_PX), rays


def _closing(finder: PairFinder, bundle: Bundle, rays: Rays) -> tuple[Links, list[tuple[int, int]]]:
    """The loops' relative poses: the points that the earlier image sees, found in the later one."""
    pycolmap, matcher = require_pycolmap(), finder.matcher
    first, second, relative, used = [], [], [], []
    rows_of = rows_by_image(rays.image, finder.count)
    for a, b in finder.loops:
        rows = rows_of[a]
        where = dict(zip(rays.feature[rows].tolist(), rays.point[rows].tolist()))
        known = [(where[i], j) for i, j in finder.pairs[a, b].matches.tolist() if i in where]
        if len(known) < _LOOP_POINTS:
            continue
        point, feature = np.array(known).T
        pose = bundle.poses[a]
        inside = (bundle.xyz[point] - pose[:3, 3]) @ pose[:3, :3]
        options = pycolmap.AbsolutePoseEstimationOptions()
        options.ransac.max_error, options.ransac.random_seed = 3.0 * pixel_scale(matcher.images.cameras[b]), 0
        camera = colmap_camera(matcher.images.cameras[b], 1)
        found = pycolmap.estimate_and_refine_absolute_pose(matcher.features(b)[0][feature] + 0.5, inside, camera, options)
        if found is None or found["num_inliers"] < _LOOP_POINTS:
            continue
        first.append(a)
        second.append(b)
        relative.append(np.linalg.inv(np.vstack((found["cam_from_world"].matrix(), (0, 0, 0, 1)))))
        used.append((a, b))
    count = len(used)
    relative = np.array(relative).reshape(-1, 4, 4)
    deviation = _LOOP_M + _LOOP_SHARE * np.linalg.norm(relative[:, :3, 3], axis=1)
    index = np.array(first, np.int64), np.array(second, np.int64)
    return Links(*index, relative, deviation, np.full(count, _LOOP_RAD), np.ones(count, bool)), used


def scale_uncertainty(spread: float, poses: np.ndarray, base_from_camera: np.ndarray | None) -> float:
    """Of a scale from the odometry, as a share: wheels err by a share of the way of the base, which may be much longer.

    Args:
        spread: Of the scale between stretches of the drive.
        poses: float64 [K, 4, 4], of the camera.
        base_from_camera: float64 [4, 4]; None: not known.
    """
    bases = poses if base_from_camera is None else poses @ np.linalg.inv(base_from_camera)
    base, camera = (float(np.linalg.norm(np.diff(p[:, :3, 3], axis=0), axis=1).sum()) for p in (bases, poses))
    return float(np.hypot(spread, WHEELS * max(base / camera, 1.0) if camera > 0 else WHEELS))


def _scale_spread(poses: np.ndarray, odometry: np.ndarray) -> float:
    """How much the scales of stretches of the drive differ: wheels slip for long, so that stretches do not average it out."""
    ways = [np.linalg.norm(np.diff(p[:, :3, 3], axis=0), axis=1) for p in (poses, odometry)]
    parts = min(max(len(ways[0]) // 5, 1), 20)
    ratio = [a.sum() / b.sum() for a, b in zip(*(np.array_split(way, parts) for way in ways)) if b.sum() > 0.01]
    return float(np.std(np.log(ratio))) if len(ratio) > 2 else WHEELS
