# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""What is gathered about one image of a drive before it is judged: what the tracker knew and said when it came, alignments from
the prior and from the truth, and what can be said of the image by itself."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass

import cv2
import numpy as np
import torch

from ..errors import InputError
from ..evaluation.offline import run_bag
from ..evaluation.runs import TRUTH_GAP_NS, FrameRecord
from ..geometry import se3
from ..io.bags import BagReader
from ..io.files import find_file
from ..io.frames import CameraFrame, UnusableFrame
from ..io.images import load_image
from ..localization import Localizer
from ..mapping.local_points import LocalPointSelector
from ..tracking.frame_aligner import FrameAligner
from ..tracking.types import FrameAlignment, PreparedImage, TrackResult, TrackState
from .aligned_image import AlignedImage, length_text
from .feature_maps import KeyframeImages

_USUAL_IMAGES = 40
_SIDE_PX = 480
"""Images are shrunk to this longer side first: on larger ones the noise of the sensor counts as sharpness."""
_BLACK, _WHITE = 4, 251


@dataclass(frozen=True)
class FrameChoice:
    """Which image of a drive. Exactly one must be given (InputError otherwise).

    Attributes:
        index: Its number from 0 in the order of stamps.
        seconds: Since the first image.
        stamp_ns: Its stamp.
    """

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
        if self.index is not None:
            if self.index >= len(stamps_ns):
                raise InputError(f"--frame {self.index}: the bag has {len(stamps_ns)} images, numbered from 0")
            return self.index
        seconds = (stamps_ns - stamps_ns[0]) * 1e-9
        at = self.seconds if self.stamp_ns is None else (self.stamp_ns - int(stamps_ns[0])) * 1e-9
        if not -0.5 <= at <= seconds[-1] + 0.5:
            raise InputError(f"{at:.3f} s after the first image is not in the bag, whose images span {seconds[-1]:.1f} s")
        return int(np.abs(seconds - at).argmin())


@dataclass(frozen=True)
class TrackedFrame:
    """One image of a drive with what the tracker knew and said when it came.

    Attributes:
        index: Of the image in the drive.
        seconds: Since the first image.
        frame: The image.
        result: None where the image could not be used.
        before: State of the tracker when it came.
        previous: The image before it.
        truth: map_from_base float64 [4, 4], None where unknown.
        base_from_camera: The mount, float64 [4, 4].
        last: What was said of the images before, the newest last (at most ten).
    """

    index: int
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
    def prior_covariance(self) -> torch.Tensor:
        """float64 [6, 6] in camera axes; only where there is a prior."""
        return se3.transform_covariance(self.result.prior.covariance, se3.inverse(self.base_from_camera))

    @property
    def camera_truth(self) -> torch.Tensor | None:
        """map_from_camera."""
        return None if self.truth is None else self.truth @ self.base_from_camera

    @property
    def given_off(self) -> tuple[float, float] | None:
        """Metres and degrees between the truth and the pose given; None where one of them is not known."""
        if self.truth is None or self.result is None or self.result.map_from_base is None:
            return None
        metres, radians = se3.pose_difference(self.truth, self.result.map_from_base)
        return float(metres), math.degrees(float(radians))


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

    how = {"cold_start": cold_start, "progress": lambda done, of, note="": progress(done, index + 1, note), "watch": watch}
    run = run_bag(localizer.tracker(), bag, initial_pose, **how)
    frame, result, before = seen[-1]
    truth, known = run.truth.at(np.array([frame.stamp_ns]), TRUTH_GAP_NS)
    return TrackedFrame(
        index,
        (frame.stamp_ns - int(stamps[0])) * 1e-9,
        frame,
        result,
        before,
        seen[-2][0] if len(seen) > 1 and isinstance(seen[-2][0], CameraFrame) else None,
        truth[0] if known[0] else None,
        bag.base_from_camera,
        tuple(run.records[:-1][-10:]),
    )


@dataclass(frozen=True)
class ImageQuality:
    """How bright and how sharp an image is, and how much of it is lost.

    Attributes:
        brightness: Mean of the grey values, 0 to 255.
        contrast: Their standard deviation.
        gradient_energy: Mean squared slope of the grey values in units of their variance, per square pixel of the shrunk image:
            blur lowers it, brightness does not change it.
        black: Share of the pixels at that end.
        white: Share of the pixels at the other end.
    """

    brightness: float
    contrast: float
    gradient_energy: float
    black: float
    white: float

    @classmethod
    def of(cls, image: np.ndarray) -> ImageQuality:
        """image: uint8 [H, W] or [H, W, 3] RGB."""
        grey = image if image.ndim == 2 else cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
        black, white = float((grey <= _BLACK).mean()), float((grey >= _WHITE).mean())
        scale = _SIDE_PX / max(grey.shape)
        if scale < 1:
            grey = cv2.resize(grey, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
        values = grey.astype(np.float32)
        dy, dx = np.gradient(values)
        variance = float(values.var())
        energy = float((dx**2 + dy**2).mean()) / variance if variance > 0.25 else 0.0
        return cls(float(values.mean()), float(values.std()), energy, black, white)

    @classmethod
    def typical(cls, qualities: Sequence[ImageQuality]) -> ImageQuality:
        """The median of each figure."""
        return cls(*np.median([astuple(quality) for quality in qualities], 0).tolist())


@dataclass(frozen=True)
class Evidence:
    """What a diagnosis is made of.

    Attributes:
        title: Of the image, for people.
        frame: What the tracker knew and said.
        quality: Of the image, None where there is none.
        usual: What is normal here.
        usual_of: Where `usual` comes from.
        from_prior: The image aligned from the prior.
        reference: map_from_camera of the truth or, where there is none, of what a search in the whole map found, None where it is
            not sure.
        from_reference: The image aligned from there.
        aligned: The alignment that pictures are of: what the tracker believed or saw best, else what there is; None where the
            image could not be aligned.
        map_text: What the map holds there.
    """

    title: str
    frame: TrackedFrame
    quality: ImageQuality | None = None
    usual: ImageQuality | None = None
    usual_of: str = ""
    from_prior: FrameAlignment | None = None
    reference: torch.Tensor | None = None
    from_reference: FrameAlignment | None = None
    aligned: AlignedImage | None = None
    map_text: str = ""

    @property
    def depth(self) -> float:
        """Metres, of the points in view."""
        return 1.0 if self.aligned is None else self.aligned.depth

    @property
    def reference_name(self) -> str:
        return "the truth" if self.frame.truth is not None else "the pose that a search in the whole map finds"


def examine(localizer: Localizer, bag: BagReader, frame: TrackedFrame, keyframes: KeyframeImages) -> Evidence:
    """Align the image from the prior and from the truth, or from what a search of the whole map finds; measure its quality."""
    title = f"image {frame.index} of {bag.path.name} ({frame.seconds:.2f} s)"
    if not isinstance(frame.frame, CameraFrame) or frame.result is None:
        return Evidence(title, frame, ImageQuality.of(frame.frame.image) if isinstance(frame.frame, CameraFrame) else None)
    image, aligner = frame.frame.image, localizer.aligner
    prepared = aligner.prepare(image, frame.frame.camera)
    reference = frame.camera_truth
    if reference is None:
        found = localizer.locate_prepared(image, prepared)
        reference = found.map_from_camera if found.success else None
    from_prior = from_reference = None
    if frame.prior is not None:
        from_prior = aligner.localize_prepared(prepared, frame.prior, frame.prior_covariance)
    if reference is not None:
        from_reference = aligner.localize_prepared(prepared, reference)
    candidates = (frame.result.alignment, from_prior, from_reference)
    shown = next((one for one in candidates if one is not None and one.details is not None), None)
    start = frame.prior if frame.prior is not None else reference
    aligned = None
    if shown is not None:
        begins = shown.map_from_camera if start is None else start
        aligned = AlignedImage(title, image, prepared, begins, (shown,), aligner, frame.camera_truth)
    usual = _usual(localizer, bag, keyframes)
    map_text = "" if start is None else _map_points_text(aligner, prepared, start)
    quality = ImageQuality.of(image)
    return Evidence(title, frame, quality, *usual, from_prior, reference, from_reference, aligned, map_text)


def _usual(localizer: Localizer, bag: BagReader, keyframes: KeyframeImages) -> tuple[ImageQuality | None, str]:
    """What images of the map look like or, where these are not at hand, those of the drive; and which of them it is."""
    if keyframes.folder is not None:
        names = localizer.map.keyframe_names
        wanted = [names[k] for k in np.unique(np.linspace(0, len(names) - 1, _USUAL_IMAGES).round().astype(int))]
        return ImageQuality.typical(
            [ImageQuality.of(load_image(find_file(keyframes.folder, name))) for name in wanted]
        ), "the map's"
    stamps = sorted(bag.image_stamps())
    chosen = {stamps[k] for k in np.linspace(0, len(stamps) - 1, _USUAL_IMAGES).round().astype(int)}
    frames = bag.frames(lambda stamp: stamp in chosen)
    images = [ImageQuality.of(one.image) for one in frames if isinstance(one, CameraFrame)]
    return (ImageQuality.typical(images), "the drive's median") if images else (None, "")


def _map_points_text(localizer: FrameAligner, prepared: PreparedImage, map_from_camera: torch.Tensor) -> str:
    """What the map holds around a pose, in words."""
    selector, count = LocalPointSelector(localizer.map), localizer.options.max_points
    local = selector.select(map_from_camera, prepared.camera, count, prepared.description)
    poses = localizer.map.map_from_keyframe
    away, turned = se3.pose_difference(map_from_camera, poses[local.keyframe_ids[:1]] if len(local.keyframe_ids) else poses)
    nearest = int(away.argmin())
    return (
        f"{len(local.points)} map points to align with, the best keyframe is {length_text(float(away[nearest]))} away and "
        f"turned by {math.degrees(float(turned[nearest])):.0f}°"
    )
