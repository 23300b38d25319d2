# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""The page about one image of a drive: why it was believed, or why it was not."""
from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from .. import __version__
from ..evaluation.bags import BagReader
from ..evaluation.localize import search_map
from ..evaluation.report import format_number
from ..features.images import load_image
from ..geometry import se3
from ..tracking.localizer import FrameLocalizer
from ..tracking.relocalization import Relocalizer
from ..tracking.types import CameraFrame, FrameAlignment
from .aligned_image import AlignedImage, difference_text, length_text
from .bag_frame import TrackedFrame
from .cost_slices import plot_cost_slices
from .feature_maps import ReferenceView, plot_feature_maps
from .figures import ANSWER, PRIOR, TRUTH, level_name
from .frame_diagnosis import Evidence, Findings, diagnose, gates_of, map_points_text
from .image_quality import ImageQuality
from .keyframe_images import KeyframeImages
from .level_progress import plot_levels
from .page import Card, Page, Picture
from .reprojections import plot_reprojections

_USUAL_IMAGES = 40


def frame_report(localizer: FrameLocalizer, bag: BagReader, frame: TrackedFrame, keyframes: KeyframeImages,
                 progress: Callable[..., None] = lambda done, of, note="": None) -> tuple[str, Findings]:
    """The whole page, and its verdict. keyframes: where the map's images are, if they are at hand."""
    return _FrameReport(localizer, bag, frame, keyframes, progress).make()


class _FrameReport:
    def __init__(self, localizer: FrameLocalizer, bag: BagReader, frame: TrackedFrame, keyframes: KeyframeImages,
                 progress: Callable[..., None]) -> None:
        self.localizer, self.bag, self.frame, self.keyframes, self.progress = localizer, bag, frame, keyframes, progress
        self.title = f"image {frame.index} of {bag.path.name} ({frame.seconds:.2f} s)"

    def make(self) -> tuple[str, Findings]:
        self.progress(0, 5, "judging the image")
        self.aligned: AlignedImage | None = None
        if isinstance(self.frame.frame, CameraFrame) and self.frame.result is not None:
            self._align()
        else:
            self._nothing()
        findings = diagnose(self.evidence)
        lead = f"{self.title[0].upper()}{self.title[1:]}, stamp {self.frame.frame.stamp_ns} ns, map {self.localizer.map.name}."
        page = Page("Why did it fail?" if findings.failed else "What happened here?", lead, f"pixloc_ros {__version__}")
        if findings.failed:
            page.problems((findings.verdict, *findings.causes))
        page.cards(self._cards(findings))
        for line in (*(() if findings.failed else (findings.verdict,)), *findings.notes):
            page.text(line)
        self._tables(page)
        if self.aligned is not None:
            self._pictures(page)
        elif isinstance(self.frame.frame, CameraFrame):
            page.heading("The image")
            page.pictures([Picture(_rgb(self.frame.frame.image), caption="as the camera gave it")])
        return page.html(), findings

    # ---- what is known

    def _nothing(self) -> None:
        image = self.frame.frame.image if isinstance(self.frame.frame, CameraFrame) else None
        quality = None if image is None else ImageQuality.of(image)
        self.evidence = Evidence(self.frame, quality, None, "", None, None, None, 1.0, "")

    def _align(self) -> None:
        frame, localizer = self.frame, self.localizer
        prepared = localizer.prepare(frame.frame.image, frame.frame.camera)
        reference = frame.camera_truth
        if reference is None:
            found, doubt = search_map(Relocalizer(localizer), CameraFrame(frame.frame.stamp_ns, frame.frame.image,
                                                                         frame.frame.camera, prepared))
            reference = None if found is None or doubt else found.map_from_camera
        from_prior = None
        if frame.prior is not None:
            covariance = se3.transform_covariance(frame.result.prior.covariance, se3.inverse(frame.base_from_camera))
            from_prior = localizer.localize_prepared(prepared, frame.prior, covariance)
        from_reference = None if reference is None else localizer.localize_prepared(prepared, reference)
        shown = self._shown(from_prior, from_reference)
        if shown is not None:
            start = frame.prior if frame.prior is not None else reference if reference is not None else shown.map_from_camera
            self.aligned = AlignedImage(self.title, frame.frame.image, prepared, start, (shown,), localizer, frame.camera_truth)
        looked_from = frame.prior if frame.prior is not None else reference
        text = "" if looked_from is None else map_points_text(localizer, prepared, looked_from)
        usual, usual_of = self._usual()
        depth = 1.0 if self.aligned is None else self.aligned.depth
        self.evidence = Evidence(frame, ImageQuality.of(frame.frame.image), usual, usual_of, from_prior, reference,
                                 from_reference, depth, text)

    def _shown(self, from_prior: FrameAlignment | None, from_reference: FrameAlignment | None) -> FrameAlignment | None:
        """The alignment that the pictures are of: what the tracker believed or saw best, else what there is."""
        for alignment in (self.frame.result.alignment, from_prior, from_reference):
            if alignment is not None and alignment.details is not None:
                return alignment
        return None

    def _usual(self) -> tuple[ImageQuality | None, str]:
        """What images of the map look like or, where these are not at hand, those of the drive."""
        if self.keyframes.folder is not None:
            names = self.localizer.map.keyframe_names
            wanted = [names[k] for k in np.unique(np.linspace(0, len(names) - 1, _USUAL_IMAGES).round().astype(int))]
            images = [ImageQuality.of(load_image(self.keyframes.folder / name)) for name in wanted]
            return ImageQuality.typical(images), "the map's"
        stamps = sorted(self.bag.image_stamps())
        chosen = {stamps[k] for k in np.linspace(0, len(stamps) - 1, _USUAL_IMAGES).round().astype(int)}
        frames = self.bag.frames(lambda stamp: stamp in chosen)
        images = [ImageQuality.of(one.image) for one in frames if isinstance(one, CameraFrame)]
        return (ImageQuality.typical(images), "the drive's median") if images else (None, "")

    # ---- the page's parts

    def _cards(self, findings: Findings) -> list[Card]:
        result, frame = self.frame.result, self.frame
        if result is None:
            return [Card("none", "pose", "the image could not be used", bad=True)]
        cards = [Card(result.state.name.lower(), "state after it", f"before: {frame.before.name.lower()}", bad=findings.failed)]
        if result.alignment is not None:
            visible = result.alignment.visible_fraction * result.alignment.points_used
            cards.append(Card(f"{result.alignment.inlier_fraction:.0%}", "of the points agree",
                              f"{visible:.0f} of {result.alignment.points_used} in the image"))
        if math.isfinite(result.prior_distance_m):
            cards.append(Card(length_text(result.prior_distance_m), "from the prior to the found pose",
                              f"{format_number(math.degrees(result.prior_rotation_rad), 2)}°"))
        if frame.truth is not None and result.map_from_base is not None:
            metres, radians = (float(v) for v in se3.pose_difference(frame.truth, result.map_from_base))
            cards.append(Card(length_text(metres), "error of the pose given", f"{format_number(math.degrees(radians), 2)}°"))
        quality, usual = self.evidence.quality, self.evidence.usual
        if quality is not None and usual is not None:
            cards.append(Card(f"{quality.gradient_energy / max(usual.gradient_energy, 1e-12):.0%}", "sharpness (gradient energy)",
                              f"of {self.evidence.usual_of}"))
        return cards

    def _tables(self, page: Page) -> None:
        gates = gates_of(self.frame)
        if gates:
            page.heading("Gates that the image must pass")
            page.table([["gate", "measured", "asked for", ""],
                        *([g.name, g.value, g.limit, "passed" if g.passed else "FAILED"] for g in gates)])
        rows = self._pose_rows()
        if len(rows) > 1:
            page.heading("Where it was thought to be")
            page.table(rows)
        quality, usual = self.evidence.quality, self.evidence.usual
        if quality is not None:
            page.heading("The image in figures")
            name = self.evidence.usual_of or "usual"
            rows = [["", "this image", name]]
            for label, key, factor, unit in (("brightness, mean grey value of 255", "brightness", 1, ""),
                                             ("contrast, standard deviation of it", "contrast", 1, ""),
                                             ("sharpness: gradient energy over variance", "gradient_energy", 1, ""),
                                             ("black pixels", "black", 100, " %"), ("white pixels", "white", 100, " %")):
                rows.append([label, format_number(factor * getattr(quality, key)) + unit,
                             "–" if usual is None else format_number(factor * getattr(usual, key)) + unit])
            page.table(rows)
        if self.frame.last:
            page.heading("The images before")
            page.table([["seconds before", "state", "agree", "message"],
                        *([f"{(self.frame.frame.stamp_ns - r.stamp_ns) * 1e-9:.2f}", r.state.name.lower(),
                           "–" if math.isnan(r.inlier_fraction) else f"{r.inlier_fraction:.0%}", r.message or "–"]
                          for r in reversed(self.frame.last[-5:]))])

    def _pose_rows(self) -> list[list[str]]:
        frame, result, reference = self.frame, self.frame.result, self.evidence.reference
        rows = [["pose of the camera", "to the prior", f"to {self.evidence.reference_name}"]]
        if result is None:
            return rows
        poses = []
        if frame.prior is not None:
            std = result.prior.covariance.diagonal().clamp(min=0).sqrt()
            poses.append((f"prior: {result.prior.source}, {result.prior.age_s:.2f} s old, standard deviation "
                          f"{length_text(float(std[:3].max()))}, {math.degrees(float(std[3:].max())):.2g}°", frame.prior))
        if result.alignment is not None:
            poses.append(("found by the alignment that the tracker shows", result.alignment.map_from_camera))
        if self.evidence.from_reference is not None:
            share = self.evidence.from_reference.inlier_fraction
            poses.append((f"aligned from {self.evidence.reference_name} ({share:.0%} agree)",
                          self.evidence.from_reference.map_from_camera))
        if result.map_from_base is not None:
            poses.append(("given by the tracker", result.map_from_base @ frame.base_from_camera))
        for name, pose in poses:
            rows.append([name, "–" if frame.prior is None else difference_text(frame.prior, pose),
                         "–" if reference is None else difference_text(reference, pose)])
        return rows

    def _pictures(self, page: Page) -> None:
        aligned, frame = self.aligned, self.frame
        self.progress(1, 5, "reprojections")
        page.heading("The map's points over the image")
        page.plot(plot_reprojections(aligned), None, "points before and after the alignment")
        if aligned.truth is not None:
            page.heading("The same from the truth")
            page.plot(plot_reprojections(self._from_truth(), "inliers"), None, "points at the true pose")
        self.progress(2, 5, "features")
        page.heading(f"Nearest keyframe, features, and {'confidences' if self._confident() else 'weights'}, coarse to fine")
        page.plot(plot_feature_maps(aligned, self._nearest()), None, "feature maps of keyframe and image")
        self.progress(3, 5, "levels")
        page.heading("Level by level")
        page.plot(plot_levels(aligned), None, "cost and share of points that agree, level by level")
        self.progress(4, 5, "cost around the pose")
        page.heading("The cost around the found pose")
        others = {} if frame.prior is None else {"prior": (frame.prior, PRIOR)}
        if self.evidence.reference is not None:
            others["truth" if frame.truth is not None else "search"] = (self.evidence.reference, TRUTH)
        page.plot(plot_cost_slices(aligned, aligned.answer.map_from_camera, frame.base_from_camera, "found", others),
                  None, "cost along each axis of the base")
        page.legend(((_rgb_of(ANSWER), "found"), (_rgb_of(PRIOR), "prior"), (_rgb_of(TRUTH), "truth or search")),
                    "A good place is a deep valley of every level at the same spot. Vertical lines:")
        page.facts({"levels, coarse to fine": ", ".join(level_name(stride) for stride in aligned.strides),
                    "points": f"{aligned.answer.points_used}, median depth {length_text(aligned.depth)}"})

    def _from_truth(self) -> AlignedImage:
        aligned = self.aligned
        start = aligned.truth
        alignment = self.evidence.from_reference
        if alignment is None or alignment.details is None:
            alignment = aligned.answer
        return AlignedImage(f"{self.title}: aligned from the truth", aligned.image, aligned.prepared, start, (alignment,),
                            aligned.localizer, aligned.truth)

    def _confident(self) -> bool:
        return any(level.confidence is not None for level in self.aligned.prepared.pyramid.levels)

    def _nearest(self) -> ReferenceView:
        ids = self.aligned.points.keyframe_ids
        return self.keyframes.view(self.localizer, int(ids[0]))


def _rgb(image: np.ndarray) -> np.ndarray:
    return image if image.ndim == 3 else np.repeat(image[..., None], 3, 2)


def _rgb_of(colour: str) -> tuple[int, int, int]:
    return tuple(int(colour[k:k + 2], 16) for k in (1, 3, 5))
