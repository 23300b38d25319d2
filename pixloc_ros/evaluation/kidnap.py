# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""Drives that go wrong: switched on somewhere, carried away, blinded, told a wrong pose. How soon is the pose right again, and
was a wrong one given meanwhile?"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch

from ..geometry import se3
from ..io.bags import BagReader
from ..io.frames import CameraFrame, Event, OdometryMessage
from ..localization import Localizer
from ..tracking.types import TrackState
from .offline import FALSE_TRACK, TRUTH_GAP_NS, run_bag

RIGHT = (0.25, 2.0)
"""Metres, degrees: a pose given as TRACKING that is no further off is right."""
EVENTS = ("cold start", "carried away", "blackout", "wrong initial pose")
BLACKOUT_S = 5.0
_NS = 1_000_000_000
_ODOMETRY_AHEAD_NS = _NS // 5
"""Odometry begins a little before the images do."""


@dataclass(frozen=True)
class Outcome:
    """What became of one drive. seconds: from the event (of a blackout: its end) to the first right TRACKING pose, None: never.
    images: processed after the event until then. wrong_tracking, wrong_degraded: images after the event whose pose was given in
    that state and wrong (`FALSE_TRACK`). frame_ms: of all images from the event until right again."""

    event: str
    begin_s: float
    seconds: float | None
    images: int
    wrong_tracking: int
    wrong_degraded: int
    frame_ms: tuple[float, ...]


class AlteredDrive:
    """A bag played differently: from a later image on, with a piece cut out that odometry knows nothing of (the robot was
    carried), or with black images for a while. Stamps after a cut are those of a drive without the cut."""

    def __init__(
        self, bag: BagReader, begin_ns: int, end_ns: int, cut: tuple[int, int] | None = None, black: tuple[int, int] | None = None
    ) -> None:
        """begin_ns, end_ns, cut, black: stamps of the bag; cut and black are from the first to before the second."""
        self._bag, self._begin_ns, self._end_ns, self._cut, self._black = bag, begin_ns, end_ns, cut, black
        self.base_from_camera, self.odometry_topic, self.path = bag.base_from_camera, bag.odometry_topic, bag.path
        self.options = bag.options
        self.image_count = sum(self._kept(stamp) for stamp in bag.image_stamps())
        self._rebased = torch.eye(4, dtype=torch.float64)
        if cut is not None and bag.odometry_topic is not None:
            poses, known = bag.odometry().at(np.array(cut), TRUTH_GAP_NS)
            if known.all():
                self._rebased = poses[0] @ se3.inverse(poses[1])

    def played_ns(self, stamp_ns: int) -> int:
        """The stamp given to what the bag has at stamp_ns."""
        return stamp_ns - (self._cut[1] - self._cut[0]) if self._cut is not None and stamp_ns >= self._cut[1] else stamp_ns

    def recorded_ns(self, played_ns: int) -> int:
        """The other way."""
        return played_ns + (self._cut[1] - self._cut[0]) if self._cut is not None and played_ns >= self._cut[0] else played_ns

    def image_stamps(self) -> Iterator[int]:
        return (self.played_ns(stamp) for stamp in self._bag.image_stamps() if self._kept(stamp))

    def truth(self):
        return self._bag.truth()

    def odometry(self):
        return self._bag.odometry()

    def events(self) -> Iterator[Event]:
        for event in self._bag.events():
            odometry = isinstance(event, OdometryMessage)
            if not self._kept(event.stamp_ns, _ODOMETRY_AHEAD_NS if odometry else 0):
                continue
            after = self._cut is not None and event.stamp_ns >= self._cut[1]
            if isinstance(event, CameraFrame):
                if self._black is not None and self._black[0] <= event.stamp_ns < self._black[1]:
                    event = replace(event, image=np.zeros_like(event.image))
            elif after and odometry:
                event = replace(event, odom_from_base=self._rebased @ event.odom_from_base)
            yield replace(event, stamp_ns=self.played_ns(event.stamp_ns))

    def _kept(self, stamp_ns: int, ahead_ns: int = 0) -> bool:
        cut = self._cut is not None and self._cut[0] <= stamp_ns < self._cut[1]
        return self._begin_ns - ahead_ns <= stamp_ns < self._end_ns and not cut


def run_event(event: str, localizer: Localizer, bag: BagReader, begin: float, after_s: float) -> Outcome | None:
    """One drive that starts at a share `begin` (0 to 1) of the bag, and goes on for `after_s` after the event; None where too
    little of the bag is left for that.

    The robot is carried over a quarter of the bag's length or blinded one second after the start; the wrong initial pose is
    that of the place a quarter of the bag away. event: one of `EVENTS`.
    """
    stamps = sorted(bag.image_stamps())
    truth = bag.truth()
    length = stamps[-1] - stamps[0]
    begin_ns = stamps[0] + round(begin * length)
    begin_ns = next(stamp for stamp in stamps if stamp >= begin_ns)
    seconds = round(after_s * _NS)
    cut = black = None
    event_ns = begin_ns
    start = None
    if event == "cold start":
        end_ns = begin_ns + seconds
    elif event == "wrong initial pose":
        other = stamps[0] + (begin_ns - stamps[0] + length // 4) % length
        start = truth.at(np.array([other]), TRUTH_GAP_NS)[0][0]
        end_ns = begin_ns + seconds
    elif event == "carried away":
        event_ns = begin_ns + _NS
        cut = (event_ns, event_ns + length // 4)
        end_ns = cut[1] + seconds
    elif event == "blackout":
        event_ns = begin_ns + _NS
        black = (event_ns, event_ns + min(round(BLACKOUT_S * _NS), length // 3))
        event_ns = black[1]
        end_ns = black[1] + seconds
    else:
        raise ValueError(event)
    if max(event_ns, cut[1] if cut else 0) > stamps[-1] - _NS:
        return None
    drive = AlteredDrive(bag, begin_ns, end_ns, cut, black)
    run = run_bag(localizer.tracker(), drive, start, cold_start=event == "cold start")
    return _outcome(event, drive, run.records, truth, drive.played_ns(event_ns), black, stamps[0])


def _outcome(
    event: str, drive: AlteredDrive, records: list, truth, event_ns: int, black: tuple[int, int] | None, zero_ns: int
) -> Outcome:
    since_ns = event_ns if black is None else black[0]
    after = [r for r in records if r.stamp_ns >= since_ns]
    poses, known = truth.at(np.array([drive.recorded_ns(r.stamp_ns) for r in after], np.int64), TRUTH_GAP_NS)
    seconds, images, wrong, times = None, 0, {TrackState.TRACKING: 0, TrackState.DEGRADED: 0}, []
    for record, pose, sure in zip(after, poses, known):
        if record.stamp_ns >= event_ns and seconds is None:
            images += 1
            times.append(record.timings_ms.get("total", 0.0))
        if record.map_from_base is None or not sure:
            continue
        metres, radians = (float(v) for v in se3.pose_difference(pose, record.map_from_base))
        degrees = float(np.degrees(radians))
        if metres > FALSE_TRACK[0] or degrees > FALSE_TRACK[1]:
            wrong[record.state] += 1
        right = record.state is TrackState.TRACKING and metres <= RIGHT[0] and degrees <= RIGHT[1]
        if right and seconds is None and record.stamp_ns >= event_ns:
            seconds = (record.stamp_ns - event_ns) / _NS
    return Outcome(
        event,
        (drive.recorded_ns(event_ns) - zero_ns) / _NS,
        seconds,
        images,
        wrong[TrackState.TRACKING],
        wrong[TrackState.DEGRADED],
        tuple(times),
    )
