# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""One image of a recorded drive with what the tracker knew and said when it came."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from ..errors import InputError
from ..evaluation import offline
from ..evaluation.runs import TRUTH_GAP_NS, FrameRecord
from ..io.bags import BagReader
from ..io.frames import CameraFrame, UnusableFrame
from ..localization import Localizer
from ..tracking.types import TrackResult, TrackState


@dataclass(frozen=True)
class FrameChoice:
    """Which image of a drive: its number from 0 in the order of stamps, seconds since the first image, or its stamp. Exactly one
    must be given (InputError otherwise)."""

    index: int | None = None
    seconds: float | None = None
    stamp_ns: int | None = None

    def __post_init__(self) -> None:
        if sum(value is not None for value in (self.index, self.seconds, self.stamp_ns)) != 1:
            raise InputError("say which image: give one of --frame, --at and --stamp")
        if (self.index is not None and self.index < 0) or (self.seconds is not None and not self.seconds >= 0):
            raise InputError("--frame and --at count from the first image on: give 0 or more")

    def index_in(self, stamps_ns: np.ndarray) -> int:
        """Number of the image meant, of stamps in rising order; of a time, the nearest. Raises InputError beyond the drive."""
        if not len(stamps_ns):
            raise InputError("the bag has no images")
        seconds = (stamps_ns - stamps_ns[0]) * 1e-9
        if self.index is not None:
            if self.index >= len(stamps_ns):
                raise InputError(f"--frame {self.index}: the bag has {len(stamps_ns)} images, numbered from 0")
            return self.index
        at = self.seconds if self.stamp_ns is None else (self.stamp_ns - int(stamps_ns[0])) * 1e-9
        if not -0.5 <= at <= seconds[-1] + 0.5:
            raise InputError(f"{at:.3f} s after the first image is not in the bag, whose images span {seconds[-1]:.1f} s")
        return int(np.abs(seconds - at).argmin())


@dataclass(frozen=True)
class TrackedFrame:
    """index, seconds: of the image in the drive of `images` images. result: None where the image could not be used. before:
    state of the tracker when it came. previous: the image before it. truth: map_from_base float64 [4, 4], None where unknown.
    last: what was said of the images before, the newest last (at most ten)."""

    index: int
    images: int
    seconds: float
    frame: CameraFrame | UnusableFrame
    result: TrackResult | None
    before: TrackState
    previous: CameraFrame | None
    truth: torch.Tensor | None
    base_from_camera: torch.Tensor
    last: tuple[FrameRecord, ...] = ()

    @property
    def prior(self) -> torch.Tensor | None:
        """map_from_camera float64 [4, 4] that was expected."""
        prior = None if self.result is None else self.result.prior
        return None if prior is None else prior.map_from_base @ self.base_from_camera

    @property
    def camera_truth(self) -> torch.Tensor | None:
        """map_from_camera."""
        return None if self.truth is None else self.truth @ self.base_from_camera


def track_to(
    localizer: Localizer,
    bag: BagReader,
    choice: FrameChoice,
    initial_pose: torch.Tensor | None = None,
    cold_start: bool = False,
    progress: Callable[..., None] = lambda done, of, note="": None,
) -> TrackedFrame:
    """Run the tracker over the drive as `pixloc track` does, up to one image. Arguments as of `offline.run_bag`."""
    stamps = np.array(sorted(bag.image_stamps()), np.int64)
    index = choice.index_in(stamps)
    seen: list[tuple[CameraFrame | UnusableFrame, TrackResult | None, TrackState]] = []
    state = TrackState.INITIALIZING

    def watch(frame: CameraFrame | UnusableFrame, result: TrackResult | None) -> bool:
        nonlocal state
        seen.append((frame, result, state))
        state = state if result is None else result.state
        del seen[:-2]  # a drive's images would fill the memory
        return frame.stamp_ns >= stamps[index]

    run = offline.run_bag(
        localizer.tracker(),
        bag,
        initial_pose,
        cold_start=cold_start,
        progress=lambda done, of, note="": progress(done, index + 1, note),
        watch=watch,
    )
    frame, result, before = seen[-1]
    previous = seen[-2][0] if len(seen) > 1 and isinstance(seen[-2][0], CameraFrame) else None
    truth, known = run.truth.at(np.array([frame.stamp_ns]), TRUTH_GAP_NS)
    return TrackedFrame(
        index,
        len(stamps),
        (frame.stamp_ns - int(stamps[0])) * 1e-9,
        frame,
        result,
        before,
        previous,
        truth[0] if known[0] else None,
        bag.base_from_camera,
        tuple(run.records[:-1][-10:]),
    )
