# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""The page about one image of a drive: why it was believed, or why it was not."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from .. import __version__
from ..evaluation.tables import format_number
from ..geometry import se3
from ..io.frames import CameraFrame
from ..mapping.map_file import Map
from .aligned_image import AlignedImage, difference_text, length_text
from .cost_slices import plot_cost_slices
from .feature_maps import ReferenceView, plot_feature_maps
from .figures import ANSWER, PRIOR, TRUTH, level_name
from .frame_diagnosis import Findings, gates_of
from .frame_examination import Examination
from .keyframe_images import KeyframeImages
from .level_progress import plot_levels
from .page import Card, Page, Picture
from .reprojections import plot_reprojections


def frame_report(
    examination: Examination,
    findings: Findings,
    keyframes: KeyframeImages,
    map_: Map,
    progress: Callable[..., None] = lambda done, of, note="": None,
) -> str:
    """The whole page. findings: of `diagnose`. keyframes: where the map's images are, if they are at hand."""
    return _FrameReport(examination, findings, keyframes, progress).html(map_.name)


class _FrameReport:
    def __init__(
        self, examination: Examination, findings: Findings, keyframes: KeyframeImages, progress: Callable[..., None]
    ) -> None:
        self.title, self.evidence, self.aligned = examination.title, examination.evidence, examination.aligned
        self.frame, self.findings, self.keyframes, self.progress = self.evidence.frame, findings, keyframes, progress

    def html(self, map_name: str) -> str:
        findings = self.findings
        lead = f"{self.title[0].upper()}{self.title[1:]}, stamp {self.frame.frame.stamp_ns} ns, map {map_name}."
        page = Page("Why did it fail?" if findings.failed else "What happened here?", lead, f"pixloc_ros {__version__}")
        if findings.failed:
            page.problems((findings.verdict, *findings.causes))
            page.heading("In figures")
        page.cards(self._cards())
        for line in (*(() if findings.failed else (findings.verdict,)), *findings.notes):
            page.text(line)
        self._tables(page)
        if self.aligned is not None:
            self._pictures(page)
        elif isinstance(self.frame.frame, CameraFrame):
            page.heading("The image")
            page.pictures([Picture(_rgb(self.frame.frame.image), caption="as the camera gave it")])
        return page.html()

    def _cards(self) -> list[Card]:
        result, frame = self.frame.result, self.frame
        if result is None:
            return [Card("none", "pose", "the image could not be used", bad=True)]
        state, before = (state.name.lower() for state in (result.state, frame.before))
        cards = [Card(state, "state after it", f"before: {before}", bad=self.findings.failed)]
        if result.alignment is not None:
            visible = result.alignment.visible_fraction * result.alignment.points_used
            cards.append(
                Card(
                    f"{result.alignment.inlier_fraction:.0%}",
                    "of the points agree",
                    f"{visible:.0f} of {result.alignment.points_used} in the image",
                )
            )
        if math.isfinite(result.prior_distance_m):
            cards.append(
                Card(
                    length_text(result.prior_distance_m),
                    "from the prior to the found pose",
                    f"{format_number(math.degrees(result.prior_rotation_rad), 2)}°",
                )
            )
        if frame.truth is not None and result.map_from_base is not None:
            metres, radians = (float(v) for v in se3.pose_difference(frame.truth, result.map_from_base))
            cards.append(Card(length_text(metres), "error of the pose given", f"{format_number(math.degrees(radians), 2)}°"))
        quality, usual = self.evidence.quality, self.evidence.usual
        if quality is not None and usual is not None:
            cards.append(
                Card(
                    f"{quality.gradient_energy / max(usual.gradient_energy, 1e-12):.0%}",
                    "sharpness (gradient energy)",
                    f"of {self.evidence.usual_of}",
                )
            )
        return cards

    def _tables(self, page: Page) -> None:
        gates = gates_of(self.frame)
        if gates:
            page.heading("Gates that the image must pass")
            page.table(
                [
                    ["gate", "measured", "asked for", ""],
                    *([g.name, g.value, g.limit, "passed" if g.passed else "FAILED"] for g in gates),
                ]
            )
        rows = self._pose_rows()
        if len(rows) > 1:
            page.heading("Where it was thought to be")
            page.table(rows)
        quality, usual = self.evidence.quality, self.evidence.usual
        if quality is not None:
            page.heading("The image in figures")
            name = self.evidence.usual_of or "usual"
            rows = [["", "this image", name]]
            for label, key, factor, unit in (
                ("brightness, mean grey value of 255", "brightness", 1, ""),
                ("contrast, standard deviation of it", "contrast", 1, ""),
                ("sharpness: gradient energy over variance", "gradient_energy", 1, ""),
                ("black pixels", "black", 100, " %"),
                ("white pixels", "white", 100, " %"),
            ):
                rows.append(
                    [
                        label,
                        format_number(factor * getattr(quality, key)) + unit,
                        "–" if usual is None else format_number(factor * getattr(usual, key)) + unit,
                    ]
                )
            page.table(rows)
        if self.frame.last:
            page.heading("The images before")
            page.table(
                [
                    ["seconds before", "state", "agree", "message"],
                    *(
                        [
                            f"{(self.frame.frame.stamp_ns - r.stamp_ns) * 1e-9:.2f}",
                            r.state.name.lower(),
                            "–" if math.isnan(r.inlier_fraction) else f"{r.inlier_fraction:.0%}",
                            r.message or "–",
                        ]
                        for r in reversed(self.frame.last[-5:])
                    ),
                ]
            )

    def _pose_rows(self) -> list[list[str]]:
        frame, result, reference = self.frame, self.frame.result, self.evidence.reference
        rows = [["pose of the camera", "to the prior", f"to {self.evidence.reference_name}"]]
        if result is None:
            return rows
        poses = []
        if frame.prior is not None:
            std = result.prior.covariance.diagonal().clamp(min=0).sqrt()
            poses.append(
                (
                    f"prior: {result.prior.source}, {result.prior.age_s:.2f} s old, standard deviation "
                    f"{length_text(float(std[:3].max()))}, {math.degrees(float(std[3:].max())):.2g}°",
                    frame.prior,
                )
            )
        if result.alignment is not None:
            poses.append(("found by the alignment that the tracker shows", result.alignment.map_from_camera))
        if self.evidence.from_reference is not None:
            share = self.evidence.from_reference.inlier_fraction
            poses.append(
                (f"aligned from {self.evidence.reference_name} ({share:.0%} agree)", self.evidence.from_reference.map_from_camera)
            )
        if result.map_from_base is not None:
            poses.append(("given by the tracker", result.map_from_base @ frame.base_from_camera))
        for name, pose in poses:
            rows.append(
                [
                    name,
                    "–" if frame.prior is None else difference_text(frame.prior, pose),
                    "–" if reference is None else difference_text(reference, pose),
                ]
            )
        return rows

    def _pictures(self, page: Page) -> None:
        aligned, frame = self.aligned, self.frame
        self.progress(0, 4, "reprojections")
        page.heading("The map's points over the image")
        page.plot(plot_reprojections(aligned), None, "points before and after the alignment")
        if aligned.truth is not None:
            page.heading("The same from the truth")
            page.plot(plot_reprojections(self._from_truth(), "inliers"), None, "points at the true pose")
        self.progress(1, 4, "features")
        page.heading(f"Nearest keyframe, features, and {'confidences' if self._confident() else 'weights'}, coarse to fine")
        page.plot(plot_feature_maps(aligned, self._nearest()), None, "feature maps of keyframe and image")
        self.progress(2, 4, "levels")
        page.heading("Level by level")
        page.plot(plot_levels(aligned), None, "cost and share of points that agree, level by level")
        self.progress(3, 4, "cost around the pose")
        page.heading("The cost around the found pose")
        others = {} if frame.prior is None else {"prior": (frame.prior, PRIOR)}
        if self.evidence.reference is not None:
            others["truth" if frame.truth is not None else "search"] = (self.evidence.reference, TRUTH)
        page.plot(
            plot_cost_slices(aligned, aligned.answer.map_from_camera, frame.base_from_camera, "found", others),
            None,
            "cost along each axis of the base",
        )
        page.legend(
            ((_rgb_of(ANSWER), "found"), (_rgb_of(PRIOR), "prior"), (_rgb_of(TRUTH), "truth or search")),
            "A good place is a deep valley of every level at the same spot. Vertical lines:",
        )
        page.facts(
            {
                "levels, coarse to fine": ", ".join(level_name(stride) for stride in aligned.strides),
                "points": f"{aligned.answer.points_used}, median depth {length_text(aligned.depth)}",
            }
        )

    def _from_truth(self) -> AlignedImage:
        aligned = self.aligned
        start = aligned.truth
        alignment = self.evidence.from_reference
        if alignment is None or alignment.details is None:
            alignment = aligned.answer
        return AlignedImage(
            f"{self.title}: aligned from the truth",
            aligned.image,
            aligned.prepared,
            start,
            (alignment,),
            aligned.localizer,
            aligned.truth,
        )

    def _confident(self) -> bool:
        return any(level.confidence is not None for level in self.aligned.prepared.pyramid.levels)

    def _nearest(self) -> ReferenceView:
        ids = self.aligned.points.keyframe_ids
        return self.keyframes.view(self.aligned.localizer, int(ids[0]))


def _rgb(image: np.ndarray) -> np.ndarray:
    return image if image.ndim == 3 else np.repeat(image[..., None], 3, 2)


def _rgb_of(colour: str) -> tuple[int, int, int]:
    return tuple(int(colour[k : k + 2], 16) for k in (1, 3, 5))
