# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""The one recipe: a map, a network and a preset make a localizer, for single images and for drives.

The node, the command line, evaluation and Python users all assemble their localizer here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch

from .errors import InputError
from .features import Execution, Extractor, load_extractor
from .geometry import se3
from .geometry.cameras import Camera
from .io.images import load_image
from .mapping.georeference import Georeference
from .mapping.map_file import Map
from .tracking.calibration_check import CalibrationCheck
from .tracking.covariances import check_covariance, isotropic, mahalanobis
from .tracking.frame_aligner import DEFAULT, AlignerOptions, FrameAligner, preset_options
from .tracking.judge import located_share
from .tracking.mount_check import MountCheck, turned_prior
from .tracking.options import QualityGates, TrackerOptions
from .tracking.prior_std import WIDE_PRIOR, PriorStd
from .tracking.relocalization import Relocalizer, same_pose
from .tracking.tracker import Tracker
from .tracking.types import FrameAlignment, PreparedFrame, PreparedImage, RigView

_GATES = QualityGates()
"""A pose is doubtful where its probability is lower than they ask for."""
SURE = _GATES.sure_probability
"""A pose is sure that is as likely right as this."""
_MOST = 0.5
"""Of a single image, which no other image confirms, other poses are looked for but where one is sure and more of the points agree
with it: where places repeat, another pose may explain as many."""
_ENOUGH = PriorStd(2.0, depth_share=0.03)
"""A prior that leaves no room for another pose: things that repeat do so at a tenth of the depth and more."""
_WITHIN = 5.0
"""Standard deviations of its prior, within which a pose must be."""
SEARCH_TURNS, SEARCH_FINALISTS = 4, 5
"""Without a prior, further hypotheses are tried so many times until one is sure, and so many of them are aligned to the end."""
_FEW, _RIVALS = "few points agree with the map", "another place looks the same"
_ALIKE = "what looks the same is not in the same place to some pixels"
_LEAST_DOUBT = 1e-12
_SAME_PLACE_DEPTHS = 0.2
"""A pose that is no further from its prior, in depths of what the image shows, may have been turned only."""

_REHEARSED_IMAGES = 6
"""Half of them are tracked, the others are found in the whole map."""
_REHEARSED_PERIOD_NS = 100_000_000


@dataclass(frozen=True)
class Location:
    """Where one image was taken: what `Localizer.locate` returns.

    Attributes:
        success: Whether a pose was found that can be believed.
        reason: Why not, in a few words; empty on success.
        map_from_camera: Pose of the camera, float64 [4, 4] (optical axes, metres); None where none was found. A pose without
            success is doubtful: `reason` says why.
        covariance: Of that pose, float64 [6, 6] (translation, rotation) in the camera frame: true = map_from_camera · exp(error).
        probability: That the pose is right: within 2° and 2 % of the depth of what the image shows.
        quality: 0 to 1: share of the visible map points whose features agree with the image.
        alignment: All that is known of the alignment; None where there was none.
    """

    success: bool
    reason: str
    map_from_camera: torch.Tensor | None
    covariance: torch.Tensor | None
    probability: float
    quality: float
    alignment: FrameAlignment | None

    @property
    def doubtful(self) -> bool:
        """Whether a pose was found that may be wrong."""
        return self.map_from_camera is not None and not self.success

    @classmethod
    def of(cls, alignment: FrameAlignment | None, doubt: str) -> Location:
        """Of the best alignment of an image, None where there is none, and of what speaks against it."""
        if alignment is None or not alignment.success:
            reason = "nothing in the map looks like it" if alignment is None else alignment.reason
            return cls(False, reason, None, None, 0.0, 0.0, alignment)
        quality = alignment.probability, alignment.inlier_fraction
        return cls(not doubt, doubt, alignment.map_from_camera, alignment.published, *quality, alignment)


class Localizer:
    """Finds where images were taken in a map.

    Attributes:
        aligner: Aligns one image from one prior.
        map_name: The map's file name without folder; empty for a map that was not opened from a file.
        mount_check: What its trackers check of base_from_camera: "level": all, also that the robot stands level, up to 25°;
            "motion": all but that, for drones and hand-held cameras; "off": nothing.
    """

    def __init__(
        self, map_: Map, extractor: Extractor | None = None, options: AlignerOptions | None = None, map_name: str = ""
    ) -> None:
        """From parts; `Localizer.open` makes them.

        Args:
            map_: The map.
            extractor: The network that made the map; None for the one that comes with the package.
            options: Of the alignment; None for those of the default preset.
            map_name: For messages.

        Raises:
            InputError: The map was made with another network.
        """
        self.aligner = FrameAligner(map_, extractor or load_extractor(), options or preset_options())
        self.map_name, self.mount_check = map_name, "level"

    @classmethod
    def open(
        cls,
        map_path: str | Path,
        weights: str | Path = "compact",
        preset: str | AlignerOptions = DEFAULT,
        max_points: int = 0,
        execution: Execution | None = None,
    ) -> Localizer:
        """Opens a map and its network.

        Args:
            map_path: A map file, made by `pixloc map` or `build_map_from_...`.
            weights: Name of a network that comes with the package, or its weights file: the one that made the map.
            preset: "fast", "balanced" or "accurate", or options of your own.
            max_points: Map points used per image; 0 for the preset's number.
            execution: What runs the network, and where; None for the CPU.

        Raises:
            InputError: The map or the weights cannot be used, or do not fit each other.
        """
        path = Path(map_path).expanduser()
        options = preset_options(preset) if isinstance(preset, str) else preset
        options = replace(options, max_points=max_points or options.max_points)
        return cls(Map.open(path), load_extractor(weights, execution), options, path.name)

    @property
    def map(self) -> Map:
        """The map."""
        return self.aligner.map

    @property
    def extractor(self) -> Extractor:
        """The network."""
        return self.aligner.extractor

    @property
    def georeference(self) -> Georeference | None:
        """Where the map lies on the Earth; None where that is not known."""
        return self.map.georeference

    @property
    def network(self) -> str:
        """The network and what runs it, for people."""
        execution = self.extractor.execution
        return f"{self.extractor.name} by {self.extractor.backend}, {execution.device}, {execution.precision}"

    @cached_property
    def relocalizer(self) -> Relocalizer:
        """The search in the whole map."""
        return Relocalizer(self.aligner)

    def tracker(self, options: TrackerOptions | None = None, relocalization: bool = True, between_frames: bool = True) -> Tracker:
        """A tracker for one drive, which knows nothing yet. It checks the camera's calibration and mount as it goes.

        Args:
            options: Limits of the tracker; None for the usual ones.
            relocalization: Whether it may look for its pose in the whole map.
            between_frames: Whether images that the map does not explain are aligned with those before them.
        """
        search, options = self.relocalizer if relocalization else None, options or TrackerOptions()
        mount = MountCheck(self.mount_check, self.map.map_from_keyframe, options.odometry.noise)
        return Tracker(self.aligner, options, search, CalibrationCheck(self.aligner.focal_length), mount, between_frames)

    def locate(
        self,
        image: np.ndarray | str | Path,
        camera: Camera,
        prior: torch.Tensor | np.ndarray | None = None,
        prior_covariance: torch.Tensor | np.ndarray | PriorStd | None = None,
    ) -> Location:
        """Finds where one image was taken.

        Args:
            image: uint8 [H, W] grey or [H, W, 3] RGB, or an image file.
            camera: Calibration of the camera, at the size of the image.
            prior: Rough pose map_from_camera [4, 4]; None: the image is searched for in the whole map.
            prior_covariance: How far off the prior may be: its standard deviations, or [6, 6] (translation, rotation) in the
                camera frame; None: `WIDE_PRIOR`. It holds the pose as far as the image leaves it open.

        Raises:
            InputError: The image, the camera or the prior cannot be used.
        """
        image = image if isinstance(image, np.ndarray) else load_image(Path(image))
        if prior is not None:
            prior = torch.as_tensor(prior, dtype=torch.float64)
            se3.check_pose(prior, "prior")
        elif prior_covariance is not None:
            raise InputError("prior_covariance needs a prior: give both or neither")
        if not isinstance(prior_covariance, PriorStd | None):
            prior_covariance = torch.as_tensor(prior_covariance, dtype=torch.float64)
            check_covariance(prior_covariance, "prior_covariance")
        prepared = self.aligner.prepare(image, camera)
        location = self.locate_prepared(image, prepared, prior, prior_covariance)
        if location.success or prior is None:
            return location
        turned = self._turned_against(prior, PreparedFrame(0, image, prepared.camera, prepared))
        return replace(location, reason=f"{location.reason}: {turned}") if turned else location

    def locate_prepared(
        self,
        image: np.ndarray,
        prepared: PreparedImage,
        prior: torch.Tensor | None = None,
        prior_covariance: torch.Tensor | PriorStd | None = None,
    ) -> Location:
        """`locate` for an image whose features are known already (`FrameAligner.prepare`)."""
        if prior is None:
            return self._search(PreparedFrame(0, image, prepared.camera, prepared))
        said = WIDE_PRIOR if prior_covariance is None else prior_covariance
        first = self.aligner.localize_prepared(prepared, prior, said)
        if not first.success:
            return Location.of(first, "")
        if not math.isfinite(first.depth):
            return _believed([first], free=False)
        covariance = said.covariance(first.depth) if isinstance(said, PriorStd) else said
        if bool((covariance.diagonal() <= _ENOUGH.covariance(first.depth).diagonal()).all()):
            return _believed([first], free=False)
        places = self._sought(prepared, [first], prior, covariance, given=True)
        within = lambda one: mahalanobis(prior, covariance, one.map_from_camera, one.covariance) <= _WITHIN  # noqa: E731
        return _believed([one for one in places if within(one)] or [first], free=True)

    def _sought(
        self,
        prepared: PreparedImage,
        places: list[FrameAlignment],
        pose: torch.Tensor,
        covariance: torch.Tensor,
        given: bool = False,
    ) -> list[FrameAlignment]:
        """What else an image may show if the first of its places is doubtful, and those places, likeliest first.

        pose, covariance: What is known of the camera, [4, 4] and [6, 6].
        given: By a prior, not by one of the places: the points around that would speak for it.
        """
        if alone(places) >= SURE and _clear(places[0]):
            return places
        # At least so far, whatever a prior says: places that repeat lie at its edge, and few hypotheses would begin there.
        wide = WIDE_PRIOR.covariance(places[0].depth)
        room = covariance if bool((covariance.diagonal() > wide.diagonal()).any()) else wide
        if given:
            likely = _apart(self.relocalizer.likeliest(prepared, pose, room, places))
            if likely and alone(likely) >= _GATES.min_probability_search:
                return likely
        others = self.relocalizer.around(prepared, pose, room, places)
        return _apart([*places, *(one for one in others if one.success)])

    def _turned_against(self, prior: torch.Tensor, frame: PreparedFrame) -> str:
        """Whether the image was taken where its prior says but looks elsewhere, in words: one look around in the whole map."""
        found = self.relocalizer.search(frame, torch.eye(4, dtype=torch.float64), finalists=1)
        if not (found and _believed(found, free=True).success):
            return ""
        away = float((found[0].map_from_camera[:3, 3] - prior[:3, 3]).norm())
        return turned_prior(prior, found[0].map_from_camera) if away < _SAME_PLACE_DEPTHS * found[0].depth else ""

    def _search(self, frame: PreparedFrame) -> Location:
        """The best pose of a prepared image in the whole map."""
        camera, places = torch.eye(4, dtype=torch.float64), []
        for turn in range(SEARCH_TURNS):
            found = self.relocalizer.search(frame, camera, turn, finalists=SEARCH_FINALISTS, enough=_clear)
            places = _apart([*places, *(one for one in found if one.success)])
            if places and places[0].probability >= _GATES.min_probability_search:
                break
        if not places:
            return Location.of(None, "")
        if math.isfinite(places[0].depth):
            around = WIDE_PRIOR.covariance(places[0].depth)
            places = self._sought(frame.prepared, places, places[0].map_from_camera, around)
            if alone(places) < _GATES.min_probability_search:
                others = self.relocalizer.around_similar(frame, around, places)
                places = _apart([*places, *(one for one in others if one.success)])
        return _believed(places, free=True)

    def warm_up(self, progress: Callable[[int, int], None] = lambda done, of: None, rig: bool = False) -> None:
        """Pays for first calls, which cost many times what later ones do, before images come: right after an installation, when
        nothing is compiled yet, some twenty seconds.

        Args:
            progress: Called with the steps done and all steps; it may raise.
            rig: Whether there will be images of several cameras, which are another program: once more as long.
        """
        map_, aligner = self.map, self.aligner
        keyframe = int(np.diff(map_.observation_offsets).argmax())
        camera, pose = map_.cameras[int(map_.keyframe_camera[keyframe])], map_.map_from_keyframe[keyframe]
        noise = np.random.default_rng(0).integers(0, 255, (camera.height, camera.width), np.uint8)
        count = _REHEARSED_IMAGES + 2 + rig
        steps = iter(range(1, count + 1))
        advance = lambda: progress(next(steps), count)  # noqa: E731
        progress(0, count)
        rehearsal = _Rehearsal(aligner, self.relocalizer)
        gates = QualityGates(min_located=0.0)  # noise is nowhere
        tracker = Tracker(rehearsal, TrackerOptions(gates=gates), rehearsal)
        base_from_camera = torch.eye(4, dtype=torch.float64)
        tracker.initialize(pose, None, 0)
        aligner.prepare(noise, camera)  # the network's second call may still be slow
        frame = PreparedFrame(0, noise, camera, aligner.prepare(noise, camera))
        advance()
        for number in range(1, _REHEARSED_IMAGES + 1):
            if number == _REHEARSED_IMAGES // 2:
                tracker.relocalize()
            for offset_ns in (-_REHEARSED_PERIOD_NS // 4, _REHEARSED_PERIOD_NS // 4):
                tracker.add_odometry(number * _REHEARSED_PERIOD_NS + offset_ns, base_from_camera)
            tracker.track(replace(frame, stamp_ns=number * _REHEARSED_PERIOD_NS), base_from_camera)
            advance()
        aligner.focal_length(frame.prepared, aligner.localize_prepared(frame.prepared, pose))
        advance()
        if rig:
            views = RigView("", frame.prepared), RigView("other", frame.prepared, base_from_camera)
            aligner.localize_prepared(views, pose, isotropic(0.1, 0.1))
            advance()


def _apart(found: Sequence[FrameAlignment]) -> list[FrameAlignment]:
    """The likeliest alignment of each pose, likeliest first."""
    places: list[FrameAlignment] = []
    for one in sorted(found, key=lambda alignment: -alignment.probability):
        if not any(same_pose(one.map_from_camera, place.map_from_camera, one.depth) for place in places):
            places.append(one)
    return places


def alone(places: Sequence[FrameAlignment]) -> float:
    """Probability that the first of some poses is right: they exclude one another, and each may be wrong. Each one's own
    probability says how much likelier it has made what the image shows, as odds."""
    odds = [one.probability / max(1 - one.probability, _LEAST_DOUBT) for one in places]
    return odds[0] / (1 + sum(odds))


def _clear(found: FrameAlignment) -> bool:
    """Whether an alignment of a single image is so good that others are not looked for."""
    return found.success and found.probability >= SURE and found.inlier_fraction > _MOST


def _believed(places: Sequence[FrameAlignment], free: bool) -> Location:
    """The first of the places that an image may show, and what speaks against it. free: no prior holds it, or a wide one."""
    best, least = replace(places[0], probability=alone(places)), _GATES.least_probability(free)
    if places[0].probability < least or best.inlier_fraction < _GATES.min_inlier_fraction:
        return Location.of(best, _FEW)
    if best.probability < least:
        return Location.of(best, _RIVALS)
    return Location.of(best, _ALIKE if free and located_share(best) < _GATES.min_located else "")


class _Rehearsal:
    """Aligner and search of a tracker: they do their work, and then call the pose where it began a good one. So an image of
    noise takes the tracker through all that an image of the map does."""

    def __init__(self, aligner: FrameAligner, relocalizer: Relocalizer) -> None:
        self._aligner, self._relocalizer = aligner, relocalizer
        self.prepare = aligner.prepare
        self._found: FrameAlignment | None = None

    def localize_prepared(self, prepared: PreparedImage, map_from_camera: torch.Tensor, *prior) -> FrameAlignment:
        found = self._aligner.localize_prepared(prepared, map_from_camera, *prior)
        good = dict.fromkeys(("probability", "inlier_fraction", "visible_fraction"), 1.0)
        good |= {"success": True, "cost": 0.0, "points_used": 1000}
        self._found = replace(found, map_from_camera=map_from_camera, covariance=isotropic(0.01, 0.01), **good)
        return self._found

    def search(self, *arguments) -> list[FrameAlignment]:
        self._relocalizer.search(*arguments)
        return [self._found]
