# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""Several drives of a place in one map.

Each drive has a map of its own. Keyframes of one that are found in another's map tie the two; the drives are put together by
what most ties say, bent in a pose graph, and poses and points of all are adjusted together: what the images of each match, what
tied images of different drives match, and the motions that each drive by itself has found.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from ...errors import InputError
from ...features import Extractor
from ...geometry import se3
from ...io.images import load_image
from ...io.work_folder import WorkFolder
from ..georeference import Georeference
from ..map_file import Map
from .adjustment import Bundle, Links, Rays, adjust, link_errors
from .building import Progress
from .drive import DriveReport, DriveTie
from .drive_frames import Wanted
from .keyframes import KeyframeFiles, KeyframeOptions, PosedFrame
from .matching import Matcher, pixel_scale
from .odometry_structure import STAGES, graph_links, short_motions, stage, tracks
from .posed_frames import PosedMapOptions, SolvedKeyframes, build_map_from_posed_frames
from .two_view import AHEAD, PairFinder

FEWEST_TIES = 3
_AGREE_SHARE, _AGREE_DEPTHS, _AGREE_RAD = 0.05, 0.05, np.radians(5.0)
"""Ties agree where they put a keyframe of the drive into one place: to a share of how far it is from the other's keyframe (drives
drift), a share of the scene's depth, and an angle."""
_LEAST_WAY_DEPTHS = 0.2  # between two ties that tell a scale
_TIE_DEPTHS, _TIE_RAD, _TIE_STD = 0.01, np.radians(0.2), 6.0
_AROUND = (-2, -1, 0, 1, 2)  # keyframes about the nearest one of the other drive that a tied one is matched with
_EVERY_FRAME = KeyframeOptions(turn_rad=1e-12, still=(0.0, 0.0))


@dataclass(frozen=True, eq=False)
class SolvedDrive:
    """A drive with a map of its own.

    Attributes:
        name: Of the drive; no two have the same.
        map: Its map.
        report: What became of it.
        images: Of the map's keyframes.
    """

    name: str
    map: Map
    report: DriveReport
    images: list[Path]

    @property
    def is_metric(self) -> bool:
        """Whether its scale is known; else that of another drive counts."""
        return self.report.scale_uncertainty is not None

    @property
    def depth(self) -> float:
        """Median of its scene's."""
        return float(np.median(self.map.keyframe_depth))


@dataclass(frozen=True, eq=False)
class Ties:
    """Keyframes of a drive that are found in the map of another.

    Attributes:
        home: Number of the drive in whose map they are found.
        drive: Number of theirs.
        tried: How many were looked for.
        keyframe: int64 [n].
        home_from_camera: float64 [n, 4, 4].
    """

    home: int
    drive: int
    tried: int
    keyframe: np.ndarray
    home_from_camera: torch.Tensor

    def only(self, rows: np.ndarray) -> Ties:
        """Some of them."""
        return replace(self, keyframe=self.keyframe[rows], home_from_camera=self.home_from_camera[torch.from_numpy(rows)])


@dataclass(frozen=True, eq=False)
class Placement:
    """A similarity, by which poses of one drive get into the frame of another.

    Attributes:
        pose: float64 [4, 4], applied to what is scaled.
        scale: Of it.
    """

    pose: torch.Tensor
    scale: float = 1.0

    def __call__(self, poses: torch.Tensor) -> torch.Tensor:
        """Poses [..., 4, 4] there."""
        poses = poses.clone()
        poses[..., :3, 3] *= self.scale
        return self.pose @ poses

    def after(self, first: Placement) -> Placement:
        """The one that does what `first` does, and then this."""
        return Placement(self(first.pose), self.scale * first.scale)

    @property
    def inverse(self) -> Placement:
        pose = se3.inverse(self.pose)
        pose[:3, 3] /= self.scale
        return Placement(pose, 1 / self.scale)


@dataclass(frozen=True, eq=False)
class JoinedDrives:
    """Drives in one frame, in which the first one's first keyframe has the pose that it had.

    Attributes:
        poses: map_from_camera float64 [K, 4, 4] of each drive's keyframes.
        motions: Of each drive as it was solved alone. Keyframes of all drives are numbered through.
        ties: What ties them, without what contradicts the rest.
        links: The same.
        before_m: Of each of `ties`, how far its keyframes were off when the drives were laid on each other unbent, median.
    """

    poses: list[torch.Tensor]
    motions: Links
    ties: list[Ties]
    links: list[Links]
    before_m: list[float]


def join_drives(drives: Sequence[SolvedDrive], ties: Sequence[Ties]) -> JoinedDrives:
    """Put drives together. Where the scale of some is known, it becomes that of all.

    Raises:
        InputError: Drives cannot be tied to the others; it names them.
    """
    ties, placed = _placed(drives, ties)
    start = np.concatenate(([0], np.cumsum([len(drive.images) for drive in drives])))
    poses = [place(drive.map.map_from_keyframe) for place, drive in zip(placed, drives)]
    bundle = Bundle(torch.cat(poses).numpy(), np.zeros((0, 3)))
    paths, motions = (
        [
            replace(links, first=links.first + offset, second=links.second + offset)
            for offset, own in zip(start, poses)
            for links in [made(own.numpy())]
        ]
        for made in (graph_links, short_motions)
    )
    links = [_links(drives, placed, poses, one, start) for one in ties]
    before = [_apart(bundle.poses, one) for one in links]
    none = np.zeros(0, np.int64)
    no_rays = Rays(none, none, np.zeros((0, 3)), np.zeros(0), none)
    for _ in range(2):  # the second time without what contradicts the first
        bundle = adjust(bundle, no_rays, Links.join([*paths, *links]), 1.0, 30)
        right = [np.flatnonzero(np.linalg.norm(link_errors(bundle, one), axis=1) < _TIE_STD) for one in links]
        ties = [one.only(rows) for one, rows in zip(ties, right)]
        links = [Links(*(values[rows] for values in vars(one).values())) for one, rows in zip(links, right)]
        before = [apart[rows] for apart, rows in zip(before, right)]
    _require_ties(drives, ties)
    found = torch.from_numpy(bundle.poses)
    found = drives[0].map.map_from_keyframe[0] @ se3.inverse(found[0]) @ found
    kept = [k for k, one in enumerate(ties) if len(one.keyframe)]
    tied = ([values[k] for k in kept] for values in (ties, links, [float(np.median(v)) if len(v) else 0.0 for v in before]))
    return JoinedDrives(list(found.split(np.diff(start).tolist())), Links.join(motions), *tied)


def build_map_of_drives(
    drives: Sequence[SolvedDrive],
    ties: Sequence[Ties],
    extractor: Extractor,
    work: WorkFolder,
    options: PosedMapOptions,
    working_side: int | None = None,
    name: str = "drives",
    progress: Progress | None = None,
) -> tuple[Map, DriveReport]:
    """One map, in the first drive's frame.

    Args:
        drives: Two or more.
        ties: Between them.
        extractor, work, options, working_side, name, progress: As of `build_map_from_posed_frames`; keyframes are the drives'.

    Raises:
        InputError: As of `join_drives`.
    """
    joined = join_drives(drives, ties)
    frames = _Keyframes(drives, joined.poses)
    solve = _Adjustment(joined, frames.names, extractor, work, options, progress)
    options = replace(options, keyframes=_EVERY_FRAME)
    map_, report = build_map_from_posed_frames(frames, extractor, work, options, working_side, name, progress, solve)
    stamps = dict(zip(frames.names, np.concatenate([drive.map.keyframe_stamp_ns for drive in drives])))
    map_ = replace(map_, keyframe_stamp_ns=np.array([stamps[one] for one in map_.keyframe_names], np.int64))
    map_ = replace(map_, georeference=_georeference(drives, joined.poses))
    after = dict(zip(frames.names, torch.cat(joined.poses))) | dict(zip(map_.keyframe_names, map_.map_from_keyframe))
    after = torch.stack([after[one] for one in frames.names]).numpy()
    tied = []
    for one, links, before_m in zip(joined.ties, joined.links, joined.before_m):
        names, apart = (drives[k].name for k in (one.home, one.drive)), float(np.median(_apart(after, links)))
        tied.append(DriveTie(*names, len(one.keyframe), one.tried, before_m, apart))
    return map_, DriveReport(**vars(report) | _summary(drives, report), ties=tuple(tied))


def _georeference(drives: Sequence[SolvedDrive], poses: Sequence[torch.Tensor]) -> Georeference | None:
    """Of the first drive that has one, where it begins."""
    for drive, own in zip(drives, poses):
        if (known := drive.map.georeference) is not None:
            drive_from_map = drive.map.map_from_keyframe[0] @ se3.inverse(own[0])
            return replace(known, enu_from_map=known.enu_from_map @ drive_from_map)
    return None


def _summary(drives: Sequence[SolvedDrive], report) -> dict:
    """The fields of a report that the drives give."""
    reports = [drive.report for drive in drives]
    metric = [one for one in reports if one.scale_uncertainty is not None]
    posed, pairs = (tuple(map(sum, zip(*(getattr(one, field) for one in reports)))) for field in ("posed", "pairs"))
    return {
        "images": sum(one.images for one in reports),
        "length_m": sum(one.length_m for one in reports),
        "left_out": report.left_out | {f"{d.name}/{one}": why for d in drives for one, why in d.report.left_out.items()},
        "notes": (*report.notes, *(f"{drive.name}: {note}" for drive in drives for note in drive.report.notes)),
        "posed": posed,
        "pairs": pairs,
        "loops": tuple((f"{d.name}/{a}", f"{d.name}/{b}") for d in drives for a, b in d.report.loops),
        "structure_px": sum(one.structure_px * one.posed[0] for one in reports) / max(posed[0], 1),
        "scale": (metric or reports)[0].scale,
        "scale_uncertainty": max((one.scale_uncertainty for one in metric), default=None),
        "sensors": tuple(f"{drive.name}: {line}" for drive in drives for line in drive.report.sensors),
        "structure_s": round(sum(one.structure_s for one in reports), 1),
        "structure_cpu_s": round(sum(one.structure_cpu_s for one in reports), 1),
    }


class _Keyframes:
    """The drives' keyframes as frames, numbered instead of stamped: drives may have stamps in common."""

    def __init__(self, drives: Sequence[SolvedDrive], poses: Sequence[torch.Tensor]) -> None:
        self._rows = [
            (f"{drive.name}/{name}", path, drive.map.cameras[camera], pose)
            for drive, own in zip(drives, poses)
            for name, path, camera, pose in zip(drive.map.keyframe_names, drive.images, drive.map.keyframe_camera, own)
        ]
        self.names = [name for name, *_ in self._rows]

    def __call__(self, wanted: Wanted) -> Iterator[PosedFrame]:
        for number, (name, path, camera, pose) in enumerate(self._rows):
            if wanted(number):
                image = load_image(path)
                yield PosedFrame(number, image, camera.of_image(image), pose, name=name)


@dataclass(frozen=True, eq=False)
class _Adjustment:
    """Adjusts keyframes of all drives together: the solver of `build_map_from_posed_frames`.

    Attributes:
        joined: The drives, put together.
        names: Of all keyframes, numbered through.
        extractor, work, options, progress: As of `build_map_of_drives`.
    """

    joined: JoinedDrives
    names: list[str]
    extractor: Extractor
    work: WorkFolder
    options: PosedMapOptions
    progress: Progress | None

    def __call__(self, images: KeyframeFiles, names: list[str]) -> SolvedKeyframes:
        found = self.work.arrays("joined", lambda: {"poses": self._adjusted(images, names)})
        return SolvedKeyframes(np.arange(len(names)), torch.from_numpy(found["poses"]), images.cameras)

    def _adjusted(self, images: KeyframeFiles, names: list[str]) -> np.ndarray:
        number = np.full(len(self.names), -1)
        number[[self.names.index(name) for name in names]] = np.arange(len(names))
        finder = PairFinder(Matcher(images, self.work, self.options.triangulation), self.extractor)
        drive = np.repeat(np.arange(len(self.joined.poses)), [len(own) for own in self.joined.poses])[number >= 0]
        ties, motions = (_renumbered(one, number) for one in (Links.join(self.joined.links), self.joined.motions))
        wanted = {k: [(k - step, k) for step in AHEAD if k >= step and drive[k - step] == drive[k]] for k in range(len(names))}
        for a, b in zip(ties.first.tolist(), ties.second.tolist()):
            near = [a + step for step in _AROUND if 0 <= a + step < len(drive) and drive[a + step] == drive[a]]
            wanted[b] += [(min(one, b), max(one, b)) for one in near]
        for k, pairs in wanted.items():
            if self.progress:
                self.progress(k, len(names), "matching images of all drives")
            found = finder.compared(f"joined_pairs/{k:06d}", sorted(set(pairs)))
            finder.pairs |= {(a, b): pair for (a, b), pair in found.items() if drive[a] == drive[b] or pair.is_loop}
        rays, points = tracks(finder, list(finder.pairs))
        poses, links, scale_px = images.map_from_camera.numpy(), Links.join([motions, ties]), pixel_scale(images.cameras[0])
        for n, (robust, iterations) in enumerate(STAGES[1:]):
            if self.progress:
                self.progress(n, len(STAGES) - 1, "adjusting poses and points")
            poses = stage(poses, rays, points, links, robust * scale_px, iterations)[0].poses
        return poses


def _renumbered(links: Links, number: np.ndarray) -> Links:
    """Between those that have another number, -1 where there is none."""
    first, second = number[links.first], number[links.second]
    rows = (first >= 0) & (second >= 0)
    return replace(Links(*(values[rows] for values in vars(links).values())), first=first[rows], second=second[rows])


# ---- the pieces


def _placed(drives: Sequence[SolvedDrive], ties: Sequence[Ties]) -> tuple[list[Ties], list[Placement]]:
    """The ties that agree with most, and where that puts each drive: the surest tied first, from one of known scale on."""
    agreeing = {(one.home, one.drive): _agreeing(drives, one) for one in ties}
    agreeing = {pair: found for pair, found in agreeing.items() if len(found[0].keyframe) >= FEWEST_TIES}
    root = next((n for n, drive in enumerate(drives) if drive.is_metric), 0)
    placed = {root: Placement(torch.eye(4, dtype=torch.float64))}
    while len(placed) < len(drives):
        open_ = [pair for pair in agreeing if (pair[0] in placed) != (pair[1] in placed)]
        if not open_:
            raise _untied(drives, [n for n in range(len(drives)) if n not in placed])
        home, drive = max(open_, key=lambda pair: len(agreeing[pair][0].keyframe))
        home_from_drive = agreeing[home, drive][1]
        if home in placed:
            placed[drive] = placed[home].after(home_from_drive)
        else:
            placed[home] = placed[drive].after(home_from_drive.inverse)
    return [one for one, _ in agreeing.values()], [placed[n] for n in range(len(drives))]


def _require_ties(drives: Sequence[SolvedDrive], ties: Sequence[Ties]) -> None:
    """Raises `InputError` where drives are tied to the first by too little, directly or by others."""
    tied, strong = {0}, [{one.home, one.drive} for one in ties if len(one.keyframe) >= FEWEST_TIES]
    for _ in drives:
        tied |= set().union(*(pair for pair in strong if pair & tied))
    if len(tied) < len(drives):
        raise _untied(drives, [n for n in range(len(drives)) if n not in tied])


def _untied(drives: Sequence[SolvedDrive], numbers: list[int]) -> InputError:
    names, they = ", ".join(drives[n].name for n in numbers), "drives" if len(numbers) > 1 else "drive"
    return InputError(
        f"the {they} {names} cannot be tied to the others: fewer than {FEWEST_TIES} keyframes are found in their maps, at places "
        "that agree. Drive a stretch that another drive has too, in the same direction and similar light, or leave it out"
    )


def _agreeing(drives: Sequence[SolvedDrive], ties: Ties) -> tuple[Ties, Placement]:
    """The ties that agree with the one (without a common scale: the two) that most agree with, and home_from_drive of these."""
    home, drive = drives[ties.home], drives[ties.drive]
    own, there = drive.map.map_from_keyframe[torch.from_numpy(ties.keyframe)], ties.home_from_camera
    rigid = home.is_metric and drive.is_metric
    best, found = np.zeros(len(own), bool), Placement(torch.eye(4, dtype=torch.float64))
    for one in range(len(own)):
        for scale in [1.0] if rigid else _scales(own, there, one, home.depth):
            scaled = Placement(torch.eye(4, dtype=torch.float64), scale)(own)
            placement = Placement(there[one] @ se3.inverse(scaled[one]), scale)
            metres, angle = (v.numpy() for v in se3.pose_difference(placement(own), there))
            way = (there[:, :3, 3] - there[one, :3, 3]).norm(dim=1).numpy()
            good = (metres < _AGREE_SHARE * way + _AGREE_DEPTHS * home.depth) & (angle < _AGREE_RAD)
            if good.sum() > best.sum():
                best, found = good, placement
    return ties.only(np.flatnonzero(best)), found


def _scales(own: torch.Tensor, there: torch.Tensor, one: int, depth: float) -> list[float]:
    """Of the distances from a tie to the later ones that are far enough away."""
    ways = [(poses[one + 1 :, :3, 3] - poses[one, :3, 3]).norm(dim=1) for poses in (own, there)]
    far = (ways[1] > _LEAST_WAY_DEPTHS * depth) & (ways[0] > 0)
    return (ways[1][far] / ways[0][far]).tolist()


def _links(
    drives: Sequence[SolvedDrive], placed: Sequence[Placement], poses: Sequence[torch.Tensor], ties: Ties, start: np.ndarray
) -> Links:
    """Each tied keyframe relative to the keyframe of the other drive that is nearest to where it is found."""
    place, home = placed[ties.home], poses[ties.home]
    found = place(ties.home_from_camera)
    near = torch.cdist(found[:, :3, 3], home[:, :3, 3]).argmin(1)
    relative, count = (se3.inverse(home[near]) @ found).numpy(), len(near)
    deviations = np.full(count, _TIE_DEPTHS * drives[ties.home].depth * place.scale), np.full(count, _TIE_RAD)
    index = start[ties.home] + near.numpy(), start[ties.drive] + ties.keyframe
    return Links(*index, relative, *deviations, np.ones(count, bool))


def _apart(poses: np.ndarray, links: Links) -> np.ndarray:
    """How far the second keyframe of each link is from where the link has it, [L]."""
    wanted = poses[links.first] @ links.first_from_second
    return np.linalg.norm((wanted - poses[links.second])[:, :3, 3], axis=1)
