#!/usr/bin/env python3
# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""Floors of one building that look the same: is a map of one floor ever confident on another floor's images?

Takes a folder FLOOR/CLIP_frame_NUMBER.jpg: clips of a camera that nothing is known of. A map is made of each clip,
as `pixloc map images` does it, without each N-th frame; a clip that structure from motion refuses is listed with its reason. Then
images are searched for in each map without a prior (`Localizer.locate`), with the camera that the mapper has found: the frames
that were left out, other clips of the same floor, and images of all other floors, evenly. None of the latter may be confident.
The first must be found, between their neighbours in the clip, or a zero says nothing.

A robot that is switched on on a wrong floor follows what it finds over images, and may stand still: then an error repeats itself.
So a tracker is given some of the images of other floors several times over, with odometry that says that it stands.

Everything that was found is kept in the output folder; the same command goes on where it was stopped.

    experiments/floors.py ../shared/data/tower -o out/floors --clips '*hallway*' '*central*' --docs docs/evidence/change.md
"""

from __future__ import annotations

import argparse
import json
import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

import common
import numpy as np
import torch
from cold_start import is_sure, largest_share

from pixloc_ros.cli.progress import show_progress
from pixloc_ros.cli.scripts import run_script
from pixloc_ros.errors import InputError
from pixloc_ros.evaluation.queries import Query, localize_queries
from pixloc_ros.evaluation.tables import markdown_table
from pixloc_ros.features import Extractor, load_extractor
from pixloc_ros.geometry import se3
from pixloc_ros.io.images import load_image
from pixloc_ros.io.work_folder import WorkFolder
from pixloc_ros.localization import Localizer
from pixloc_ros.mapping import Map
from pixloc_ros.mapping.build.drive import build_map_from_drive
from pixloc_ros.mapping.build.drive_frames import ImageFolder
from pixloc_ros.tracking.types import PreparedFrame, TrackState

FRAME = "_frame_"
LOOKS, PERIOD_NS = 8, 100_000_000
"""Images that a standing robot sees: all keyframes of a small map are tried, and what is found is confirmed."""
SLACK = (0.1, 10.0)
"""Share of the depth and degrees by which an image may be further from its neighbours in the clip than these are apart."""
KINDS = ("left out", "same floor", "standing", "other floors")
_GOLDEN, _AT_A_TIME = (math.sqrt(5) - 1) / 2, 10


@dataclass(frozen=True)
class Clip:
    """Frames of one clip, in their order."""

    floor: str
    name: str
    paths: tuple[Path, ...]

    def left_out(self, every: int) -> tuple[Path, ...]:
        """Each N-th frame, neither the first nor the last."""
        return self.paths[every // 2 : -1 : every]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=common.absolute, help="folder of the floors")
    parser.add_argument("-o", "--output", type=common.absolute, default="out/floors", metavar="DIR", help="results")
    parser.add_argument("--clips", nargs="+", default=["*"], metavar="PATTERN", help="make maps of these (default: all)")
    parser.add_argument("--left-out", type=int, default=8, metavar="N", help="each N-th frame is in no map (default 8)")
    parser.add_argument("--images", type=int, default=350, metavar="N", help="of other floors, for each map (default 350)")
    parser.add_argument("--same", type=int, default=10, metavar="N", help="of other clips of the floor (default 10)")
    parser.add_argument("--standing", type=int, default=12, metavar="N", help="of other floors, given to a tracker (default 12)")
    parser.add_argument("--weights", default="compact", metavar="NAME|FILE", help="network (default compact)")
    parser.add_argument("--docs", type=Path, metavar="PAGE", help="also put the tables between their markers in this page")
    args = parser.parse_args()
    clips, extractor = clips_of(args.data), load_extractor(args.weights)
    path = args.output / "floors.json"
    results = json.loads(path.read_text()) if path.is_file() else {"clips": {}, "found": {}}
    chosen = [clip for clip in clips if any(fnmatch(clip.name, pattern) for pattern in args.clips)]
    with show_progress("maps") as progress:
        for done, clip in enumerate(chosen):
            progress(done, len(chosen))
            if clip.name not in results["clips"]:
                results["clips"][clip.name] = make_map(clip, args, extractor)
                common.save(args, "floors", results, tables(results))
    searches = [search(clip, clips, args, extractor, results) for clip in chosen if not results["clips"][clip.name]["reason"]]
    while searches:  # by turns, so that a run that was stopped says something of all maps
        searches = [one for one in searches if next(one, None)]
        common.save(args, "floors", results, tables(results))
    return common.finish(args, tables(results))


def clips_of(folder: Path) -> list[Clip]:
    """All clips in a folder. Raises `InputError` where there is none."""
    frames = defaultdict(list)
    for path in sorted(folder.glob(f"*/*{FRAME}*.jpg")):
        frames[path.parent.name, path.name.split(FRAME)[0]].append(path)
    if not frames:
        raise InputError(f"{folder} holds no FLOOR/CLIP{FRAME}NUMBER.jpg: give the folder of the floors")
    return [Clip(*names, tuple(paths)) for names, paths in frames.items()]


def map_path(args: argparse.Namespace, clip: Clip) -> Path:
    return args.output / "maps" / f"{clip.name}.pixmap"


def make_map(clip: Clip, args: argparse.Namespace, extractor: Extractor) -> dict[str, object]:
    """Make the map of a clip; what came of it, with the reason where there is none."""
    folder = args.output / "clips" / clip.name
    folder.mkdir(parents=True, exist_ok=True)
    for path in set(clip.paths).difference(clip.left_out(args.left_out)):
        link = folder / path.name
        if not link.is_symlink():
            link.symlink_to(path)
    work = WorkFolder(args.output / "work" / clip.name, {"left_out": args.left_out, "network": extractor.fingerprint})
    result = {"floor": clip.floor, "images": len(clip.paths), "reason": ""}
    try:
        map_, report = build_map_from_drive(ImageFolder(folder), extractor, work, name=clip.name)
    except InputError as error:
        return result | {"reason": str(error)}
    map_.save(map_path(args, clip))
    work.remove()
    return result | {"posed": report.posed, "camera": map_.cameras[0].to_colmap_line()}


def evenly(items: Sequence, count: int) -> list:
    """So many of them, spread evenly; fewer would be the first of these."""
    step = round(_GOLDEN * len(items))
    while math.gcd(step, len(items)) > 1:
        step += 1
    return [items[k * step % len(items)] for k in range(min(count, len(items)))]


def images_for(clip: Clip, clips: Sequence[Clip], args: argparse.Namespace) -> Iterator[tuple[str, Path]]:
    """What is searched for in the map of a clip, and its kind."""
    others = [path for other in clips if other.floor != clip.floor for path in other.paths]
    known = {path.read_bytes() for path in clip.paths}  # one clip may be there twice, under two names
    same = [path for other in clips if other.floor == clip.floor and other.name != clip.name for path in other.paths]
    same = [path for path in same if path.read_bytes() not in known]
    chosen = clip.left_out(args.left_out), evenly(same, args.same), evenly(others, args.standing), evenly(others, args.images)
    for kind, paths in zip(KINDS, chosen):
        yield from ((kind, path) for path in paths)


def search(clip: Clip, clips: Sequence[Clip], args: argparse.Namespace, extractor: Extractor, results: dict) -> Iterator[int]:
    """Search for images in the map of a clip, those that were not yet; how many, after every few of them."""
    localizer = Localizer(Map.open(map_path(args, clip)), extractor)
    localizer.mount_check = "off"  # a phone
    camera, found = localizer.map.cameras[0], results["found"].setdefault(clip.name, {kind: {} for kind in KINDS})
    wanted = [(kind, path) for kind, path in images_for(clip, clips, args) if path.name not in found[kind]]
    with show_progress(f"images in {clip.name}") as progress:
        for done, (kind, path) in enumerate(wanted, 1):
            query = Query(path.name, path, camera)
            entry = stand(localizer, query) if kind == "standing" else locate(localizer, query)
            if kind == "left out":
                entry["between"] = entry["pose"] is not None and between(localizer.map, clip, path, entry["pose"])
            found[kind][path.name] = entry
            progress(done, len(wanted))
            if done % _AT_A_TIME == 0:
                yield done


def locate(localizer: Localizer, query: Query) -> dict[str, object]:
    """What became of one image without a prior, for JSON."""
    (result,) = localize_queries(localizer, [query], {})
    alignment = result.alignment
    return {
        "confident": is_sure(result),
        "doubt": result.reason or result.doubtful,
        "probability": alignment.probability if alignment else 0.0,
        "inliers": alignment.inlier_fraction if alignment else 0.0,
        "pose": None if result.reason else alignment.map_from_camera.tolist(),
        "ms": round(result.total_ms),
    }


def stand(localizer: Localizer, query: Query) -> dict[str, object]:
    """What a tracker makes of one image that it is given again and again, for JSON."""
    tracker, image, still = localizer.tracker(), load_image(query.path), torch.eye(4, dtype=torch.float64)
    prepared = localizer.aligner.prepare(image, query.camera)
    tracker.relocalize()
    for look in range(1, LOOKS + 1):
        for offset_ns in (-PERIOD_NS // 4, PERIOD_NS // 4):
            tracker.add_odometry(look * PERIOD_NS + offset_ns, still)
        result = tracker.track(PreparedFrame(look * PERIOD_NS, image, query.camera, prepared), still)
        if result.state is TrackState.TRACKING:
            return {"confident": True, "looks": look, "pose": result.map_from_base.tolist()}
    return {"confident": False, "looks": LOOKS, "doubt": result.message}


def between(map_: Map, clip: Clip, path: Path, map_from_camera: list[list[float]]) -> bool:
    """Whether a pose [4, 4] is where the nearest keyframes before and after a frame of the clip leave it."""
    names = [path.name for path in clip.paths]
    rows = np.array([names.index(name) for name in map_.keyframe_names])
    at = names.index(path.name)
    around = [
        max(np.flatnonzero(rows < at), key=rows.item, default=None),
        min(np.flatnonzero(rows > at), key=rows.item, default=None),
    ]
    known = [k for k in around if k is not None]
    first, last = (map_.map_from_keyframe[k] for k in (known[0], known[-1]))
    apart, turned = se3.pose_difference(first, last)
    most_m = float(apart) + SLACK[0] * float(map_.keyframe_depth[known[0]])
    most_rad = float(turned) + math.radians(SLACK[1])
    pose = torch.tensor(map_from_camera, dtype=torch.float64)
    off = [se3.pose_difference(end, pose) for end in (first, last)]
    return all(float(metres) <= most_m and float(radians) <= most_rad for metres, radians in off)


def tables(results: dict) -> dict[str, str]:
    """What became of the clips; a row for each map, and one for all."""
    clips, rows, totals = results["clips"], [], np.zeros(2 * len(KINDS) + 1, int)
    for name, found in results["found"].items():
        counts = []
        for kind in KINDS:
            entries = found[kind].values()
            counts += [len(entries), sum(entry["confident"] for entry in entries)]
            if kind == KINDS[0]:
                counts.append(sum(entry["confident"] and entry["between"] for entry in entries))
        totals += counts
        rows.append((name, "{} of {}".format(*clips[name]["posed"]), *counts))
    head = "map of | keyframes posed | frames left out | confident | and between their neighbours | same floor, other clips | "
    head += "confident | other floors, standing | TRACKING | other floors | confident"
    searched = markdown_table(head, [*rows, ("all", "", *totals)])
    of, wrong = map(int, totals[-2:])
    if of:
        share = 100 * largest_share(wrong, of)
        searched += (
            f"\nOther floors: {wrong} of {of} confident; with 95 % certainty fewer than {share:.2g} % of such images are.\n"
        )
    made = [
        (
            name,
            clip["images"],
            clip["reason"].split("(")[0].split(":")[0].strip() or "a map, {} of {} keyframes posed".format(*clip["posed"]),
        )
        for name, clip in clips.items()
    ]
    return {"floors": searched, "floors, clips": markdown_table("clip | images | what came of it", made)}


if __name__ == "__main__":
    run_script(main)
