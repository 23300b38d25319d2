# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""The page about one image of a drive: why it was believed or not, by the gates it met and, in words, what speaks against it."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch

from .. import __version__
from ..evaluation.metrics import FALSE_TRACK
from ..evaluation.tables import format_number
from ..geometry import se3
from ..io.frames import CameraFrame, UnusableFrame
from ..mapping.map_file import Map
from ..tracking.covariances import isotropic, mahalanobis, not_better_than
from ..tracking.judge import located_share
from ..tracking.options import TrackerOptions
from ..tracking.types import FrameAlignment, MotionPrior, TrackState
from .aligned_image import difference_text, length_text
from .alignment_pictures import plot_cost_slices, plot_levels, plot_reprojections
from .feature_maps import KeyframeImages, plot_feature_maps
from .frame_evidence import Evidence, TrackedFrame
from .page import Card, Page, Picture
from .style import ANSWER, PRIOR, TRUTH, level_name, rgb

DARK, DARK_SHARE, WASHED_OUT, BLANK, BLURRED_SHARE = 25.0, 0.35, 0.4, 8.0, 0.35
"""Grey value; share of the usual one; share of white pixels; grey values of contrast; share of the usual gradient energy."""
FAR_SHARE, FAR_DEG = 0.15, 10.0
"""Share of the depth and degrees up to which nearly every prior of the validation scenes was good enough."""
DEFAULTS = TrackerOptions()
NEAR_SHARE, NEAR_DEG = 0.02, 0.5
"""A pose so near to the truth is the right one."""


@dataclass(frozen=True)
class Gate:
    """One demand on an image: what was measured, what was asked for, whether it passed."""

    name: str
    value: str
    limit: str
    passed: bool


@dataclass(frozen=True)
class Findings:
    """What a diagnosis says.

    Attributes:
        failed: Whether the tracker gave no pose of this image, or a wrong one.
        verdict: One line.
        causes: What speaks against the image, the prior or the map, the most telling first.
        notes: What else is known.
    """

    failed: bool
    verdict: str
    causes: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def innovation(
    prior: MotionPrior, alignment: FrameAlignment, base_from_camera: torch.Tensor, options: TrackerOptions = DEFAULTS
) -> float:
    """Distance between an aligned pose and its prior in standard deviations, as `Tracker` judges it."""
    image = se3.transform_covariance(alignment.covariance, base_from_camera)
    floor = isotropic(options.prior_translation_floor, options.prior_rotation_floor)
    covariance = not_better_than(image, floor)
    map_from_base = alignment.map_from_camera @ se3.inverse(base_from_camera)
    return mahalanobis(prior.map_from_base, prior.covariance, map_from_base, covariance)


def gates_of(frame: TrackedFrame, options: TrackerOptions = DEFAULTS) -> list[Gate]:
    """Every gate for the alignment that the tracker shows of this image; none where it aligned nothing."""
    result = frame.result
    found = None if result is None else result.alignment
    if found is None:
        return []
    gates, searching = options.gates, frame.before not in (TrackState.TRACKING, TrackState.DEGRADED)
    prior, share, floor = result.prior, found.inlier_fraction, gates.min_inlier_fraction
    noise_factor = 1.0 if prior is None else prior.noise_factor
    least, seen = gates.least_probability(searching, noise_factor), found.visible_fraction * found.points_used
    asked = f"≥ {least:.1%}" + (" (while no pose is believed)" if searching else "")
    visible = f"{found.visible_fraction:.0%} of {found.points_used}"
    enough = found.visible_fraction >= gates.min_visible_fraction
    rows = [
        Gate("alignment", found.reason, "a finite pose", found.success),
        Gate("map points in the image", visible, f"≥ {gates.min_visible_fraction:.0%}", enough),
        Gate("their number", f"{seen:.0f}", f"≥ {gates.min_visible_points}", seen >= gates.min_visible_points),
        Gate("of those, agree with the map", f"{share:.0%}", f"≥ {floor:.0%}", share >= floor),
        Gate("probability of a right pose", f"{found.probability:.1%}", asked, found.probability >= least),
    ]
    if searching:
        place = located_share(found)
        rows.append(Gate("map points in their place", f"{place:.0%}", f"≥ {gates.min_located:.0%}", place >= gates.min_located))
    if math.isfinite(gates.max_cost):
        rows.append(Gate("mean robust cost", f"{found.cost:.3g}", f"≤ {gates.max_cost:.3g}", found.cost <= gates.max_cost))
    if prior is not None and found.success and bool(torch.isfinite(found.covariance).all()):
        away = innovation(prior, found, frame.base_from_camera, options)
        sure = found.probability >= gates.sure_probability
        limit = gates.innovation_limit(sure, noise_factor)
        why = f" ({gates.sure_probability:.1%} sure or more)" if sure else ""
        name = f"distance from the {prior.source} prior"
        rows.append(Gate(name, f"{away:.1f} standard deviations", f"≤ {limit:.3g}{why}", away <= limit))
    return rows


def diagnose(evidence: Evidence, options: TrackerOptions = DEFAULTS) -> Findings:
    """The verdict on one image."""
    frame, result = evidence.frame, evidence.frame.result
    if result is None or isinstance(frame.frame, UnusableFrame):
        reason = frame.frame.reason if isinstance(frame.frame, UnusableFrame) else "the tracker refused it"
        return Findings(True, f"The image cannot be used: {reason}.")
    causes = [*_image_causes(evidence), *_place_causes(evidence, options)]
    wrong, off = False, ""
    if frame.given_off is not None:
        wrong = frame.given_off[0] > FALSE_TRACK[0] or frame.given_off[1] > FALSE_TRACK[1]
        off = f"{difference_text(frame.truth, result.map_from_base)} off the truth"
    tracked = result.state is TrackState.TRACKING and result.map_from_base is not None
    agree = "" if result.alignment is None else f", {result.alignment.inlier_fraction:.0%} of the points agree with the map"
    if tracked and not wrong:
        verdict = f"Nothing failed: the image was believed{agree}{off and f', {off}'}."
        return Findings(False, verdict, notes=tuple(f"Noticed all the same: {cause}" for cause in causes))
    what = "A wrong pose was believed" if wrong and tracked else f"Not believed, {result.state.name.lower()}"
    said = f" The tracker said: {result.message}." if result.message else ""
    cause = causes[0] if causes else "nothing stands out in image, prior and map: see the gates and the pictures."
    notes = (f"The pose that was given by dead reckoning is {off}.",) if off and not tracked else ()
    return Findings(True, f"{what}: {cause}{said}", tuple(f"{other[0].upper()}{other[1:]}" for other in causes[1:]), notes)


def _image_causes(evidence: Evidence) -> list[str]:
    frame, quality, usual = evidence.frame, evidence.quality, evidence.usual
    causes = []
    if frame.previous is not None and np.array_equal(frame.previous.image, frame.frame.image):
        causes.append("the image is the one before it, to the bit: the camera is stuck, or the robot stands in a simulator.")
    if quality is None:
        return causes
    if quality.contrast < BLANK:
        causes.append(f"the image is nearly blank: its grey values vary by {quality.contrast:.1f} of 255 (standard deviation).")
    elif quality.brightness < DARK or (usual is not None and quality.brightness < DARK_SHARE * usual.brightness):
        share = "" if usual is None else f", {quality.brightness / max(usual.brightness, 1e-9):.0%} of {evidence.usual_of}"
        causes.append(f"the image is dark: mean grey value {quality.brightness:.0f} of 255{share}.")
    elif quality.white > WASHED_OUT:
        causes.append(f"the image is overexposed: {quality.white:.0%} of its pixels are white.")
    if usual is not None and quality.contrast >= BLANK and quality.gradient_energy < BLURRED_SHARE * usual.gradient_energy:
        share = quality.gradient_energy / max(usual.gradient_energy, 1e-12)
        causes.append(f"the image is blurred: gradient energy {share:.0%} of {evidence.usual_of}.")
    return causes


def _place_causes(evidence: Evidence, options: TrackerOptions) -> list[str]:
    frame, result = evidence.frame, evidence.frame.result
    causes = []
    if evidence.from_prior is not None and evidence.from_prior.points_used < options.gates.min_visible_points:
        causes.append(f"the map shows next to nothing from the prior: {evidence.map_text}.")
    if evidence.reference is None:
        if evidence.from_prior is not None and evidence.from_prior.probability < options.gates.min_probability:
            causes.append(
                "no pose in the map explains the image: neither from the prior nor in a search of the whole map do "
                "enough points agree. Another place, moved things, something in front of the lens, or a wrong calibration "
                "do that."
            )
        return causes
    reference = evidence.from_reference
    share, likely = (0.0, 0.0) if reference is None else (reference.inlier_fraction, reference.probability)
    stays = evidence.from_reference is not None and _right(evidence, evidence.from_reference)
    good = stays and likely >= options.gates.min_probability
    found = evidence.from_prior is not None and _right(evidence, evidence.from_prior)
    if likely < options.gates.min_probability:
        causes.append(
            f"even from {evidence.reference_name} only {share:.0%} of the points agree: the image does not show what "
            f"the map holds ({evidence.map_text}). Blur, darkness, something in front of the lens, changes since the "
            "map was made, a wrong calibration or a wrong stamp do that."
        )
    elif not stays:
        led = difference_text(evidence.reference, evidence.from_reference.map_from_camera)
        causes.append(
            f"the image contradicts {evidence.reference_name}: aligned from there it leads {led} away, where "
            f"{share:.0%} of the points agree. A wrong calibration or mount, a wrong stamp, or an image of another "
            "time does that."
        )
    if frame.prior is not None:
        metres, radians = (float(v) for v in se3.pose_difference(evidence.reference, frame.prior))
        far = metres > FAR_SHARE * evidence.depth or math.degrees(radians) > FAR_DEG
        text = (
            f"the prior is {difference_text(evidence.reference, frame.prior)} off {evidence.reference_name} "
            f"({100 * metres / evidence.depth:.0f} % of the depth of the points)"
        )
        if far and not found:
            causes.append(f"{text}: more than {100 * FAR_SHARE:.0f} % or {FAR_DEG:g}°, from where not every alignment arrives.")
        if good and not found:
            causes.append(
                f"the alignment from the prior ended in a wrong minimum, while from {evidence.reference_name} "
                f"{share:.0%} of the points agree; {text}."
            )
        elif good and found and result.alignment is not None and result.state is not TrackState.TRACKING:
            away = innovation(result.prior, evidence.from_prior, frame.base_from_camera, options)
            if away > options.gates.max_innovation:
                causes.append(
                    f"the image was aligned well, but {away:.1f} standard deviations from the {result.prior.source} "
                    f"prior: {text}; the wheels slipped, or the odometry's covariance is too small."
                )
            else:
                waits = f"the tracker waits until {options.confirm_frames} images in a row agree"
                causes.append(f"the image was aligned well; {waits}.")
    return causes


def _right(evidence: Evidence, alignment: FrameAlignment) -> bool:
    """Whether an alignment ended where it should."""
    if not alignment.success:
        return False
    metres, radians = (float(v) for v in se3.pose_difference(evidence.reference, alignment.map_from_camera))
    return metres < max(NEAR_SHARE * evidence.depth, 0.02) and math.degrees(radians) < NEAR_DEG


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
