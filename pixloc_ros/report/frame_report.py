# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""The page about one image of a drive: why it was believed, or why it was not."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from .. import __version__
from ..evaluation.tables import format_number
from ..io.frames import CameraFrame
from ..mapping.map_file import Map
from .aligned_image import difference_text, length_text
from .alignment_pictures import plot_cost_slices, plot_levels, plot_reprojections
from .feature_maps import KeyframeImages, plot_feature_maps
from .frame_diagnosis import Findings, gates_of
from .frame_evidence import Evidence
from .page import Card, Page, Picture
from .style import ANSWER, PRIOR, TRUTH, level_name, rgb

_QUALITIES = (
    ("brightness, mean grey value of 255", "brightness", 1, ""),
    ("contrast, standard deviation of it", "contrast", 1, ""),
    ("sharpness: gradient energy over variance", "gradient_energy", 1, ""),
    ("black pixels", "black", 100, " %"),
    ("white pixels", "white", 100, " %"),
)
"""Of the image: label, attribute, factor, unit."""


def frame_report(
    evidence: Evidence,
    findings: Findings,
    keyframes: KeyframeImages,
    map_: Map,
    progress: Callable[..., None] = lambda done, of, note="": None,
) -> str:
    """The whole page.

    Args:
        evidence: Of `examine`.
        findings: Of `diagnose`.
        keyframes: Where the map's images are, if they are at hand.
        map_: The map.
        progress: Called before each picture.
    """
    frame = evidence.frame.frame
    lead = f"{evidence.title[0].upper()}{evidence.title[1:]}, stamp {frame.stamp_ns} ns, map {map_.name}."
    page = Page("Why did it fail?" if findings.failed else "What happened here?", lead, f"pixloc_ros {__version__}")
    if findings.failed:
        page.problems((findings.verdict, *findings.causes))
        page.heading("In figures")
    page.cards(_cards(evidence, findings.failed))
    for line in (*(() if findings.failed else (findings.verdict,)), *findings.notes):
        page.text(line)
    for title, rows in _tables(evidence):
        page.heading(title)
        page.table(rows)
    if evidence.aligned is not None:
        _pictures(page, evidence, keyframes, progress)
    elif isinstance(frame, CameraFrame):
        page.heading("The image")
        image = frame.image if frame.image.ndim == 3 else np.repeat(frame.image[..., None], 3, 2)
        page.pictures([Picture(image, caption="as the camera gave it")])
    return page.html()


def _cards(evidence: Evidence, failed: bool) -> list[Card]:
    frame, result = evidence.frame, evidence.frame.result
    if result is None:
        return [Card("none", "pose", "the image could not be used", bad=True)]
    cards = [Card(result.state.name.lower(), "state after it", f"before: {frame.before.name.lower()}", bad=failed)]
    if result.alignment is not None:
        used = result.alignment.points_used
        seen = f"{result.alignment.visible_fraction * used:.0f} of {used} in the image"
        cards.append(Card(f"{result.alignment.inlier_fraction:.0%}", "of the points agree", seen))
    if math.isfinite(result.prior_distance_m):
        turned = f"{format_number(math.degrees(result.prior_rotation_rad), 2)}°"
        cards.append(Card(length_text(result.prior_distance_m), "from the prior to the found pose", turned))
    if frame.given_off is not None:
        metres, degrees = frame.given_off
        cards.append(Card(length_text(metres), "error of the pose given", f"{format_number(degrees, 2)}°"))
    quality, usual = evidence.quality, evidence.usual
    if quality is not None and usual is not None:
        share = f"{quality.gradient_energy / max(usual.gradient_energy, 1e-12):.0%}"
        cards.append(Card(share, "sharpness (gradient energy)", f"of {evidence.usual_of}"))
    return cards


def _tables(evidence: Evidence) -> list[tuple[str, list[list[str]]]]:
    """Titles and rows, the first one of which is the head."""
    frame, quality, usual = evidence.frame, evidence.quality, evidence.usual
    gates = [[g.name, g.value, g.limit, "passed" if g.passed else "FAILED"] for g in gates_of(frame)]
    figures = []
    for label, key, factor, unit in _QUALITIES if quality is not None else ():
        cells = ["–" if one is None else format_number(factor * getattr(one, key)) + unit for one in (quality, usual)]
        figures.append([label, *cells])
    before = [
        [
            f"{(frame.frame.stamp_ns - r.stamp_ns) * 1e-9:.2f}",
            r.state.name.lower(),
            "–" if math.isnan(r.inlier_fraction) else f"{r.inlier_fraction:.0%}",
            r.message or "–",
        ]
        for r in reversed(frame.last[-5:])
    ]
    tables = (
        ("Gates that the image must pass", ["gate", "measured", "asked for", ""], gates),
        (
            "Where it was thought to be",
            ["pose of the camera", "to the prior", f"to {evidence.reference_name}"],
            _pose_rows(evidence),
        ),
        ("The image in figures", ["", "this image", evidence.usual_of or "usual"], figures),
        ("The images before", ["seconds before", "state", "agree", "message"], before),
    )
    return [(title, [head, *rows]) for title, head, rows in tables if rows]


def _pose_rows(evidence: Evidence) -> list[list[str]]:
    frame, result = evidence.frame, evidence.frame.result
    if result is None:
        return []
    poses = {}
    if frame.prior is not None:
        std = result.prior.covariance.diagonal().clamp(min=0).sqrt()
        spread = f"{length_text(float(std[:3].max()))}, {math.degrees(float(std[3:].max())):.2g}°"
        age = f"prior: {result.prior.source}, {result.prior.age_s:.2f} s old, standard deviation {spread}"
        poses[age] = frame.prior
    if result.alignment is not None:
        poses["found by the alignment that the tracker shows"] = result.alignment.map_from_camera
    if evidence.from_reference is not None:
        share = evidence.from_reference.inlier_fraction
        poses[f"aligned from {evidence.reference_name} ({share:.0%} agree)"] = evidence.from_reference.map_from_camera
    if result.map_from_base is not None:
        poses["given by the tracker"] = result.map_from_base @ frame.base_from_camera
    goals = (frame.prior, evidence.reference)
    return [[name, *("–" if goal is None else difference_text(goal, pose) for goal in goals)] for name, pose in poses.items()]


def _pictures(page: Page, evidence: Evidence, keyframes: KeyframeImages, progress: Callable[..., None]) -> None:
    aligned, frame = evidence.aligned, evidence.frame
    progress(0, 4, "reprojections")
    page.heading("The map's points over the image")
    page.plot(plot_reprojections(aligned), None, "points before and after the alignment")
    if aligned.truth is not None:
        page.heading("The same from the truth")
        found = evidence.from_reference
        passes = (aligned.answer if found is None or found.details is None else found,)
        title = f"{evidence.title}: aligned from the truth"
        from_truth = replace(aligned, title=title, prior=aligned.truth, passes=passes)
        page.plot(plot_reprojections(from_truth, "inliers"), None, "points at the true pose")
    progress(1, 4, "features")
    confident = any(level.confidence is not None for level in aligned.prepared.pyramid.levels)
    page.heading(f"Nearest keyframe, features, and {'confidences' if confident else 'weights'}, coarse to fine")
    nearest = keyframes.view(aligned.localizer, int(aligned.points.keyframe_ids[0]))
    page.plot(plot_feature_maps(aligned, nearest), None, "feature maps of keyframe and image")
    progress(2, 4, "levels")
    page.heading("Level by level")
    page.plot(plot_levels(aligned), None, "cost and share of points that agree, level by level")
    progress(3, 4, "cost around the pose")
    page.heading("The cost around the found pose")
    others = {} if frame.prior is None else {"prior": (frame.prior, PRIOR)}
    if evidence.reference is not None:
        others["truth" if frame.truth is not None else "search"] = (evidence.reference, TRUTH)
    slices = plot_cost_slices(aligned, aligned.answer.map_from_camera, frame.base_from_camera, others)
    page.plot(slices, None, "cost along each axis of the base")
    page.legend(
        ((rgb(ANSWER), "found"), (rgb(PRIOR), "prior"), (rgb(TRUTH), "truth or search")),
        "A good place is a deep valley of every level at the same spot. Vertical lines:",
    )
    page.facts(
        {
            "levels, coarse to fine": ", ".join(level_name(stride) for stride in aligned.strides),
            "points": f"{aligned.answer.points_used}, median depth {length_text(aligned.depth)}",
        }
    )
