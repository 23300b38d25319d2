# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""What is gathered about one image of a drive before it is judged: alignments from the prior and the truth, its quality."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..geometry import se3
from ..io.bags import BagReader
from ..io.frames import CameraFrame
from ..io.images import load_image
from ..localization import Localizer
from .aligned_image import AlignedImage
from .bag_frame import TrackedFrame
from .frame_diagnosis import Evidence, map_points_text
from .image_quality import ImageQuality
from .keyframe_images import KeyframeImages

_USUAL_IMAGES = 40


@dataclass(frozen=True)
class Examination:
    """title: of the image, for people. evidence: what a diagnosis is made of. aligned: the alignment that pictures are of: what
    the tracker believed or saw best, else what there is; None where the image could not be aligned."""

    title: str
    evidence: Evidence
    aligned: AlignedImage | None


def examine(localizer: Localizer, bag: BagReader, frame: TrackedFrame, keyframes: KeyframeImages) -> Examination:
    """Align the image from the prior and from the truth, or from what a search of the whole map finds; measure its quality."""
    title = f"image {frame.index} of {bag.path.name} ({frame.seconds:.2f} s)"
    if not isinstance(frame.frame, CameraFrame) or frame.result is None:
        quality = ImageQuality.of(frame.frame.image) if isinstance(frame.frame, CameraFrame) else None
        return Examination(title, Evidence(frame, quality, None, "", None, None, None, 1.0, ""), None)
    image = frame.frame.image
    aligner = localizer.aligner
    prepared = aligner.prepare(image, frame.frame.camera)
    reference = frame.camera_truth
    if reference is None:
        found = localizer.locate_prepared(image, prepared)
        reference = found.map_from_camera if found.success else None
    from_prior = from_reference = None
    if frame.prior is not None:
        covariance = se3.transform_covariance(frame.result.prior.covariance, se3.inverse(frame.base_from_camera))
        from_prior = aligner.localize_prepared(prepared, frame.prior, covariance)
    if reference is not None:
        from_reference = aligner.localize_prepared(prepared, reference)
    candidates = (frame.result.alignment, from_prior, from_reference)
    shown = next((one for one in candidates if one is not None and one.details is not None), None)
    start = frame.prior if frame.prior is not None else reference
    aligned = None
    if shown is not None:
        begins = shown.map_from_camera if start is None else start
        aligned = AlignedImage(title, image, prepared, begins, (shown,), aligner, frame.camera_truth)
    held = "" if start is None else map_points_text(aligner, prepared, start)
    evidence = Evidence(
        frame,
        ImageQuality.of(image),
        *_usual(localizer, bag, keyframes),
        from_prior,
        reference,
        from_reference,
        1.0 if aligned is None else aligned.depth,
        held,
    )
    return Examination(title, evidence, aligned)


def _usual(localizer: Localizer, bag: BagReader, keyframes: KeyframeImages) -> tuple[ImageQuality | None, str]:
    """What images of the map look like or, where these are not at hand, those of the drive; and which of them it is."""
    if keyframes.folder is not None:
        names = localizer.map.keyframe_names
        wanted = [names[k] for k in np.unique(np.linspace(0, len(names) - 1, _USUAL_IMAGES).round().astype(int))]
        return ImageQuality.typical([ImageQuality.of(load_image(keyframes.folder / name)) for name in wanted]), "the map's"
    stamps = sorted(bag.image_stamps())
    chosen = {stamps[k] for k in np.linspace(0, len(stamps) - 1, _USUAL_IMAGES).round().astype(int)}
    frames = bag.frames(lambda stamp: stamp in chosen)
    images = [ImageQuality.of(one.image) for one in frames if isinstance(one, CameraFrame)]
    return (ImageQuality.typical(images), "the drive's median") if images else (None, "")
