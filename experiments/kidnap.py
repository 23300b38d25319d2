#!/usr/bin/env python3
# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""Drives that go wrong, through the tracker, offline: how soon the pose is right again, as in docs/evidence/results.md.

For each drive: a map of the scene's COLMAP model; then the drive from several places on, switched on without a pose, carried
away, blinded for 5 s (or a third of a shorter drive), or given a wrong pose.

Right again: the first pose given as TRACKING within 0.25 m and 2°. Wrong: a pose given that is more than 0.5 m or 5° off;
counted from the event on until the end of the run, by the state it was given in.

    experiments/kidnap.py ../shared/data --simulated -o out/kidnap --docs docs/evidence/results.md
"""

from __future__ import annotations

from dataclasses import dataclass

import common
import numpy as np
import torch

from pixloc_ros.cli.scripts import run_script
from pixloc_ros.evaluation.altered_bag import AlteredBag, Change
from pixloc_ros.evaluation.metrics import FALSE_TRACK
from pixloc_ros.evaluation.offline import run_bag
from pixloc_ros.evaluation.runs import TRUTH_GAP_NS, FrameRecord
from pixloc_ros.evaluation.tables import markdown_table
from pixloc_ros.geometry import se3
from pixloc_ros.io.bags import BagReader
from pixloc_ros.io.trajectory import Trajectory
from pixloc_ros.localization import Localizer
from pixloc_ros.tracking.types import TrackState

RIGHT = (0.25, 2.0)
"""Metres, degrees: a pose given as TRACKING that is no further off is right."""
EVENTS = ("cold start", "carried away", "blackout", "wrong initial pose")
BLACKOUT_S = 5.0
_NS = 1_000_000_000
_ODOMETRY_AHEAD_NS = _NS // 5
"""Odometry begins a little before the images do."""


def main() -> int:
    parser = common.parser(__doc__, "out/kidnap", drives=True)
    parser.add_argument("--starts", type=int, default=5, metavar="N", help="places to start from, evenly over the drive")
    parser.add_argument("--after", type=float, default=4.0, metavar="S", help="seconds that a drive continues after the event")
    args = parser.parse_args()
    results: dict[str, list[dict]] = {}
    for scene in common.scenes_of(args):
        localizer = scene.localizer(args)
        with BagReader(scene.drive) as bag:
            outcomes = [
                run_event(event, localizer, bag, float(begin), args.after)
                for event in EVENTS
                for begin in np.linspace(0.02, 0.9, args.starts)
            ]
        results[scene.name] = [outcome for outcome in outcomes if outcome is not None]
        common.save(args, "kidnap", results, {"kidnap": report(results)})
    return common.finish(args, {"kidnap": report(results)})


def report(results: dict[str, list[dict]]) -> str:
    """A row for each scene and event."""
    rows = []
    for scene, outcomes in results.items():
        for event in EVENTS:
            runs = [o for o in outcomes if o["event"] == event]
            found = [o for o in runs if o["seconds"] is not None]
            times = ([o["seconds"] for o in found], "{:.2f}, {:.2f}"), ([o["images"] for o in found], "{:.0f}, {:.0f}")
            cells = [text.format(np.median(v), max(v)) if v else "–" for v, text in times]
            cells += [sum(o[f"wrong_{state}"] for o in runs) for state in ("tracking", "degraded")]
            if runs:
                rows.append((scene, event, len(runs), len(found), *cells))
    head = (
        "drive | event | runs | right again | after s: median, worst | images: median, worst | wrong as TRACKING "
        "| wrong as DEGRADED"
    )
    return markdown_table(head, rows)


@dataclass(frozen=True)
class Part:
    """The part of a bag that is played; all stamps are the bag's, pieces are from the first stamp to before the second.

    Attributes:
        begin_ns: From here on.
        end_ns: Up to here.
        cut: A piece left out of which odometry knows nothing: the robot was carried. Stamps after it are those of a drive
            without it.
        black: A piece with black images.
    """

    begin_ns: int
    end_ns: int
    cut: tuple[int, int] = (0, 0)
    black: tuple[int, int] = (0, 0)

    def played_ns(self, recorded_ns: int) -> int:
        """The stamp given to what the bag has at another."""
        return recorded_ns - (self.cut[1] - self.cut[0]) * (recorded_ns >= self.cut[1])

    def recorded_ns(self, played_ns: int) -> int:
        """The other way."""
        return played_ns + (self.cut[1] - self.cut[0]) * (played_ns >= self.cut[0])

    def of(self, bag: BagReader) -> AlteredBag:
        """The bag played so."""
        rebased = torch.eye(4, dtype=torch.float64)
        if self.cut[1] and bag.odometry_topic is not None:
            poses, known = bag.odometry().at(np.array(self.cut), TRUTH_GAP_NS)
            if known.all():
                rebased = poses[0] @ se3.inverse(poses[1])

        def keeps(stamp_ns: int, is_image: bool) -> bool:
            begin_ns = self.begin_ns - (0 if is_image else _ODOMETRY_AHEAD_NS)
            return begin_ns <= stamp_ns < self.end_ns and not self.cut[0] <= stamp_ns < self.cut[1]

        def image(image: np.ndarray, stamp_ns: int) -> np.ndarray:
            return np.zeros_like(image) if self.black[0] <= stamp_ns < self.black[1] else image

        def odometry(stamp_ns: int, odom_from_base: torch.Tensor) -> torch.Tensor:
            return rebased @ odom_from_base if stamp_ns >= self.cut[1] else odom_from_base

        return AlteredBag(bag, Change(image, lambda: odometry, keeps, self.played_ns), cause=self)


def run_event(event: str, localizer: Localizer, bag: BagReader, begin: float, after_s: float) -> dict[str, object] | None:
    """One drive that starts at a share `begin` (0 to 1) of the bag, and goes on for `after_s` after the event.

    The robot is carried over a quarter of the bag's length or blinded one second after the start; the wrong initial pose is
    that of the place a quarter of the bag away. Returns its `outcome`, None where too little of the bag is left.
    """
    stamps, truth = sorted(bag.image_stamps()), bag.truth()
    length, after_ns = stamps[-1] - stamps[0], round(after_s * _NS)
    begin_ns = next(stamp for stamp in stamps if stamp >= stamps[0] + round(begin * length))
    part, event_ns, start = Part(begin_ns, begin_ns + after_ns), begin_ns, None
    if event == "wrong initial pose":
        other = stamps[0] + (begin_ns - stamps[0] + length // 4) % length
        start = truth.at(np.array([other]), TRUTH_GAP_NS)[0][0]
    elif event == "carried away":
        event_ns = begin_ns + _NS
        cut = (event_ns, event_ns + length // 4)
        part = Part(begin_ns, cut[1] + after_ns, cut=cut)
    elif event == "blackout":
        dark_ns = begin_ns + _NS
        event_ns = dark_ns + min(round(BLACKOUT_S * _NS), length // 3)
        part = Part(begin_ns, event_ns + after_ns, black=(dark_ns, event_ns))
    if max(event_ns, part.cut[1]) > stamps[-1] - _NS:
        return None
    run = run_bag(localizer.tracker(), part.of(bag), start, cold_start=event == "cold start")
    return {"event": event, "begin": begin, **outcome(part, run.records, truth, part.played_ns(event_ns))}


def outcome(part: Part, records: list[FrameRecord], truth: Trajectory, event_ns: int) -> dict[str, object]:
    """How a drive went on after an event at a stamp as played.

    seconds: from the event (of a blackout: its end) to the first right TRACKING pose, None: never. images: processed until then.
    wrong_tracking, wrong_degraded: images after the event whose pose was given so and is wrong.
    """
    after = [r for r in records if r.stamp_ns >= (part.black[0] or event_ns)]
    poses, known = truth.at(np.array([part.recorded_ns(r.stamp_ns) for r in after], np.int64), TRUTH_GAP_NS)
    seconds, images, wrong = None, 0, {TrackState.TRACKING: 0, TrackState.DEGRADED: 0}
    for record, pose, sure in zip(after, poses, known):
        waited = record.stamp_ns >= event_ns and seconds is None
        images += waited
        if record.map_from_base is None or not sure:
            continue
        metres, radians = (float(v) for v in se3.pose_difference(pose, record.map_from_base))
        degrees = float(np.degrees(radians))
        if metres > FALSE_TRACK[0] or degrees > FALSE_TRACK[1]:
            wrong[record.state] += 1
        elif waited and record.state is TrackState.TRACKING and metres <= RIGHT[0] and degrees <= RIGHT[1]:
            seconds = (record.stamp_ns - event_ns) / _NS
    result = {f"wrong_{state.name.lower()}": count for state, count in wrong.items()}
    return {"seconds": seconds, "images": images, **result}


if __name__ == "__main__":
    run_script(main)
