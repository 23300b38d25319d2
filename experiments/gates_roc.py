#!/usr/bin/env python3
# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""How well the tracker's gates tell right alignments from wrong ones: their ROC on drives with ground truth.

Every image of a drive that is not in the map is aligned as recorded and degraded, from a prior as odometry gives it, and from
wrong priors: another place of the drive, a robot pushed aside by a metre or two, and the right place with the image of another
drive. Once with the prior's covariance taking part (as in TRACKING), once without (as where a pose is searched for, or
found against the prior). A pose within 0.25 m and 2 degrees of the truth is right. For each measure that a gate could look at:
the area under its ROC (the chance that a right alignment looks better than a wrong one); for each gate in use: how many wrong
alignments it lets pass, and how many right ones it refuses.

    experiments/gates_roc.py ../shared/data -o out/gates --docs docs/evidence/reliability.md
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass

import common
import numpy as np
import torch
from scipy.stats import rankdata

from pixloc_ros.cli.progress import show_progress
from pixloc_ros.cli.scripts import run_script
from pixloc_ros.evaluation.degradation import Degradation, degraded
from pixloc_ros.evaluation.reliability import calibration_error
from pixloc_ros.evaluation.runs import TRUTH_GAP_NS
from pixloc_ros.evaluation.tables import markdown_table
from pixloc_ros.geometry import se3
from pixloc_ros.io.bags import BagReader
from pixloc_ros.io.files import write_text
from pixloc_ros.io.frames import CameraFrame
from pixloc_ros.report.curves import plot_reliability
from pixloc_ros.tracking.covariances import isotropic, mahalanobis, not_better_than
from pixloc_ros.tracking.options import TrackerOptions
from pixloc_ros.tracking.types import FrameAlignment

IMAGES = (
    *(Degradation("blur", px) for px in (0, 15, 30, 45)),
    *(Degradation("dark", stops) for stops in (2, 4)),
    *(Degradation("noise", levels) for levels in (40, 80)),
    *(Degradation("compression", lost) for lost in (95, 98)),
    *(Degradation("occlusion", covered) for covered in (30, 70)),
)
RIGHT = (0.25, 2.0)
"""Metres, degrees."""
PRIOR_STD = (0.05, 0.005)
"""Metres, radians: an honest prior's error after a step of odometry, and what all of them claim."""
PUSHED = (2.0, 0.2)
"""Metres, radians: standard deviation of a prior that is near and wrong."""
ELSEWHERE_M = 8.0
MEASURES = {
    "probability": ("probability of the judge", 1),
    "inliers": ("share of inliers", 1),
    "cost": ("cost", -1),
    "innovation": ("innovation", -1),
}
"""Title, and 1 where more is better."""


@dataclass(frozen=True)
class Sample:
    """One alignment.

    Attributes:
        held: Whether the prior's covariance took part.
        usable: The optimizer ended, enough of the map is in the image, and enough of that agrees.
        probability: That the pose is right, as the judge has it.
        innovation: Mahalanobis distance from the prior, infinite where it is not usable.
        error_m: From the truth; infinite for an image of another place.
        error_deg: As `error_m`.
    """

    drive: str
    images: str
    prior: str
    held: bool
    usable: bool
    probability: float
    inliers: float
    cost: float
    innovation: float
    error_m: float
    error_deg: float

    @property
    def right(self) -> bool:
        return self.error_m <= RIGHT[0] and self.error_deg <= RIGHT[1]


def main() -> int:
    parser = common.parser(__doc__, "out/gates", common.VALIDATION_DRIVES, drives=True)
    parser.add_argument("--every", type=int, default=1, metavar="N", help="only every Nth image")
    common.add_scheduler(parser)
    args = parser.parse_args()
    scenes = common.scenes_of(args)
    if len(scenes) < 2 or args.every < 1:
        parser.error("give two drives at least (each takes foreign images from the next), and --every 1 or more")
    found = dict(common.run_jobs(args, measured, [(*pair, args) for pair in zip(scenes, scenes[1:] + scenes[:1])]))
    samples = [sample for number in range(len(scenes)) for sample in found[number]]
    write_text(args.output / "samples.json", json.dumps([asdict(sample) for sample in samples]) + "\n")
    for folder in (args.output, *([args.docs.parent / "images"] if args.docs else [])):
        (folder / "gates_reliability.png").write_bytes(reliability_diagram(samples))
    return common.finish(args, {"gates": report(samples)})


# ---- measuring


def measured(job: tuple) -> list[Sample]:
    """`measure` as a job."""
    return list(measure(*job))


def measure(scene: common.Scene, other: common.Scene, args) -> Iterator[Sample]:
    """All samples of one drive."""
    localizer, rng = scene.localizer(args), np.random.default_rng(0)
    with BagReader(scene.drive) as bag, BagReader(other.drive) as foreign_bag:
        truth, stamps = bag.truth(), np.array(list(bag.image_stamps()))
        poses, known = truth.at(stamps, TRUTH_GAP_NS)
        cameras = poses @ bag.base_from_camera
        left_out = {*stamps[:: common.MAP_STRIDE].tolist(), *stamps[~known].tolist()}
        for condition in IMAGES:
            frames, foreign = (
                [event for event in degraded(drive, condition, clear_s=0.0).events() if isinstance(event, CameraFrame)]
                for drive in (bag, foreign_bag)
            )
            frames = [frame for frame in frames if frame.stamp_ns not in left_out][:: args.every]
            with show_progress(f"{scene.name}, {condition}") as progress:
                for count, frame in enumerate(frames):
                    progress(count, len(frames))
                    here = cameras[int(np.searchsorted(stamps, frame.stamp_ns))]
                    starts = priors(here, cameras[torch.from_numpy(known)], rng)
                    stranger = foreign[int(rng.integers(len(foreign)))]
                    prepared, strange = (localizer.aligner.prepare(f.image, f.camera) for f in (frame, stranger))
                    for prior, start in starts.items():
                        image, true = (strange, None) if prior == "foreign image" else (prepared, here)
                        for held in (True, False):
                            covariance = isotropic(*PRIOR_STD)
                            found = localizer.aligner.localize_prepared(image, start, covariance if held else None)
                            yield Sample(scene.name, str(condition), prior, held, *judge(found, start, covariance, true))


def priors(here: torch.Tensor, places: torch.Tensor, rng: np.random.Generator) -> dict[str, torch.Tensor]:
    """map_from_camera [4, 4] to start from, by name. places: [N, 4, 4] of the drive. Where it never goes far, none elsewhere."""

    def moved(pose: torch.Tensor, std: tuple[float, float]) -> torch.Tensor:
        return pose @ se3.se3_exp(torch.from_numpy(rng.standard_normal(6) * np.repeat(std, 3)))

    away, _ = se3.pose_difference(here, places)
    far = torch.nonzero(away > ELSEWHERE_M)[:, 0]
    starts = {"honest": moved(here, PRIOR_STD), "pushed": moved(here, PUSHED), "foreign image": moved(here, PRIOR_STD)}
    if len(far):
        starts["elsewhere"] = moved(places[int(far[int(rng.integers(len(far)))])], PRIOR_STD)
    return starts


def judge(found: FrameAlignment, start: torch.Tensor, covariance: torch.Tensor, true: torch.Tensor | None) -> tuple:
    """What the tracker would look at, and the truth (None: the image shows another place): the rest of a `Sample`."""
    options = TrackerOptions()
    gates, floor = options.gates, isotropic(options.prior_translation_floor, options.prior_rotation_floor)
    error_m = error_deg = innovation = float("inf")
    if true is not None:
        distance, angle = se3.pose_difference(true, found.map_from_camera)
        error_m, error_deg = float(distance), float(torch.rad2deg(angle))
    visible = found.visible_fraction * found.points_used
    usable = found.success and found.visible_fraction >= gates.min_visible_fraction and visible >= gates.min_visible_points
    usable = usable and found.inlier_fraction >= gates.min_inlier_fraction
    if usable:
        innovation = mahalanobis(start, covariance, found.map_from_camera, not_better_than(found.covariance, floor))
    return usable, found.probability, found.inlier_fraction, found.cost, innovation, error_m, error_deg


# ---- figures


def area_under_roc(goodness: np.ndarray, right: np.ndarray) -> float:
    """The chance that a right one looks better than a wrong one, equal ones counting half; NaN without both.

    goodness: [N], larger is better. right: bool [N].
    """
    count = int(right.sum())
    if count in (0, len(right)):
        return float("nan")
    return float((rankdata(goodness)[right].sum() - count * (count + 1) / 2) / (count * (len(right) - count)))


def gates_in_use() -> list[tuple[str, bool, float, float]]:
    """Name, whether the prior takes part, least probability, largest innovation."""
    g, far = TrackerOptions().gates, float("inf")
    sure = f"probability ≥ {g.sure_probability:g}, innovation ≤ {g.max_innovation_sure:g}: sure"
    search = f"probability ≥ {g.min_probability_search:g}: a candidate, confirmed by further images"
    return [
        (f"probability ≥ {g.min_probability:g}", True, g.min_probability, far),
        (f"innovation ≤ {g.max_innovation:g}", True, 0.0, g.max_innovation),
        ("both: followed in TRACKING", True, g.min_probability, g.max_innovation),
        (sure, True, g.sure_probability, g.max_innovation_sure),
        (search, False, g.min_probability_search, far),
    ]


def reliability_diagram(samples: Sequence[Sample]) -> bytes:
    """PNG of the judge's probabilities, with and without the prior, over the alignments that are usable."""
    groups = {name: [s for s in samples if s.usable and s.held == held] for name, held in (("prior", True), ("none", False))}
    return plot_reliability(
        {name: (np.array([s.probability for s in g]), np.array([s.right for s in g])) for name, g in groups.items() if g}
    )


def report(samples: Sequence[Sample]) -> str:
    """The tables, as Markdown."""
    groups = {
        "with the prior": lambda s: s.held,
        "of these, prior right": lambda s: s.held and s.prior in ("honest", "foreign image"),
        "without": lambda s: not s.held,
    }
    areas = []
    for name, (title, sign) in MEASURES.items():
        row = [title]
        for group, belongs in groups.items():
            chosen = [s for s in samples if belongs(s) and s.usable]
            values, right = (np.array([getattr(s, key) for s in chosen]) for key in (name, "right"))
            area = area_under_roc(sign * values.astype(float), right.astype(bool))
            row.append("–" if np.isnan(area) or (name == "innovation" and group == "without") else f"{area:.4f}")
        areas.append(row)
    gates = []
    for name, held, probability, innovation in gates_in_use():

        def share(group: list[Sample], passes: bool, least: float = probability, innovation: float = innovation) -> str:
            passed = (s.usable and s.probability >= least and s.innovation <= innovation for s in group)
            count = sum(p == passes for p in passed)
            return f"{100 * count / len(group):.2f} % ({count} of {len(group)})" if group else "–"

        good, wrong = ([s for s in samples if s.held == held and s.right == right] for right in (True, False))
        refused = [share(group, False) for group in (good, [s for s in good if s.images == str(IMAGES[0])])]
        shares = [s.probability for s in wrong if s.usable] or [float("nan")]
        most = f"{np.percentile(shares, 99):.2f}, {max(shares):.2f}"
        gates.append((name, "with the prior" if held else "without", share(wrong, True), *refused, most))
    head = (
        "gate in use | alignment | wrong ones accepted | right ones refused | right ones, image as recorded, refused "
        "| probability of the wrong: 99th percentile, most"
    )
    return (
        f"{len(samples)} alignments, {sum(sample.right for sample in samples)} of them right. Area under the ROC (1: a perfect "
        "measure, 0.5: useless) over those that ended, with enough of the map in the image:\n\n"
        f"{markdown_table(' | '.join(('measure', *groups)), areas)}\n{markdown_table(head, gates)}\n{by_images(samples)}"
    )


def by_images(samples: Sequence[Sample]) -> str:
    """What is followed in TRACKING, and how well probabilities are calibrated, for each change of the images."""
    gates, rows = TrackerOptions().gates, []
    for condition in map(str, IMAGES):
        held = [s for s in samples if s.held and s.images == condition]
        if not held:
            continue
        followed = np.array(
            [s.usable and s.probability >= gates.min_probability and s.innovation <= gates.max_innovation for s in held]
        )
        right = np.array([s.right for s in held])
        usable = [s for s in held if s.usable]
        error = calibration_error(np.array([s.probability for s in usable]), np.array([s.right for s in usable]))
        shares = (f"{followed[which].sum()} of {which.sum()}" for which in (right, ~right))
        rows.append((condition, *shares, f"{error:.3f}"))
    return markdown_table(
        "images, alignments with the prior | right ones followed | wrong ones followed | calibration error", rows
    )


if __name__ == "__main__":
    run_script(main)
