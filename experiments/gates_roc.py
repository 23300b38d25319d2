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

from pixloc_ros.cli.progress import show_progress
from pixloc_ros.cli.scripts import run_script
from pixloc_ros.evaluation.altered_bag import AlteredBag
from pixloc_ros.evaluation.degradation import CONDITIONS, degraded
from pixloc_ros.evaluation.runs import TRUTH_GAP_NS
from pixloc_ros.evaluation.tables import markdown_table
from pixloc_ros.geometry import se3
from pixloc_ros.io.bags import BagReader
from pixloc_ros.io.files import write_bytes, write_text
from pixloc_ros.io.frames import CameraFrame
from pixloc_ros.report.style import RUN_COLOURS, RUN_LINES, STYLE, plt, png
from pixloc_ros.tracking.covariances import isotropic, mahalanobis, not_better_than
from pixloc_ros.tracking.options import TrackerOptions
from pixloc_ros.tracking.types import FrameAlignment

IMAGES = ("nominal", "blurred", "dark", "occluded")
RIGHT = (0.25, 2.0)
"""Metres, degrees."""
PRIOR_STD = (0.05, 0.005)
"""Metres, radians: an honest prior's error after a step of odometry, and what all of them claim."""
PUSHED = (2.0, 0.2)
"""Metres, radians: standard deviation of a prior that is near and wrong."""
ELSEWHERE_M = 8.0
PRIORS = ("honest", "pushed", "elsewhere", "foreign image")
HELD, FREE = "with the prior", "without"
MEASURES = {"inliers": "share of inliers", "cost": "cost", "innovation": "innovation"}


@dataclass(frozen=True)
class Sample:
    """One alignment.

    Attributes:
        held: Whether the prior's covariance took part.
        usable: The optimizer ended and enough of the map is in the image.
        innovation: Mahalanobis distance from the prior, infinite where it is not usable.
        error_m: From the truth; infinite for an image of another place.
        error_deg: As `error_m`.
    """

    drive: str
    images: str
    prior: str
    held: bool
    usable: bool
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
    parser.add_argument("--images", nargs="+", choices=CONDITIONS, default=list(IMAGES))
    parser.add_argument("--every", type=int, default=1, metavar="N", help="only every Nth image")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    scenes = common.scenes_of(args)
    if len(scenes) < 2 or args.every < 1:
        parser.error("give two drives at least (each takes foreign images from the next), and --every 1 or more")
    samples = [sample for scene, other in zip(scenes, scenes[1:] + scenes[:1]) for sample in measure(scene, other, args)]
    write_text(args.output / "samples.json", json.dumps([asdict(sample) for sample in samples]) + "\n")
    write_bytes(args.output / "roc.png", draw(samples))
    return common.finish(args, {"gates": report(samples)})


# ---- measuring


def measure(scene: common.Scene, other: common.Scene, args) -> Iterator[Sample]:
    """All samples of one drive."""
    localizer, rng = scene.localizer(args), np.random.default_rng(args.seed)
    with BagReader(scene.drive) as bag, BagReader(other.drive) as foreign_bag:
        truth, stamps = bag.truth(), np.array(list(bag.image_stamps()))
        poses, known = truth.at(stamps, TRUTH_GAP_NS)
        cameras = poses @ bag.base_from_camera
        in_map = stamps[:: common.map_stride(scene, args)] if common.map_stride(scene, args) else stamps[:0]
        left_out = {*in_map.tolist(), *stamps[~known].tolist()}
        for condition in args.images:
            frames = [f for f in frames_of(degraded(bag, condition, args.seed, 0.0)) if f.stamp_ns not in left_out]
            frames, foreign = frames[:: args.every], list(frames_of(degraded(foreign_bag, condition, args.seed, 0.0)))
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
                            yield Sample(scene.name, condition, prior, held, *judge(found, start, covariance, true))


def frames_of(bag: AlteredBag) -> Iterator[CameraFrame]:
    return (event for event in bag.events() if isinstance(event, CameraFrame))


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
    if usable:
        cautious = not_better_than(found.covariance / max(found.inlier_fraction, 0.1) ** 2, floor)
        innovation = mahalanobis(start, covariance, found.map_from_camera, cautious)
    return usable, found.inlier_fraction, found.cost, innovation, error_m, error_deg


# ---- figures


def roc(goodness: np.ndarray, right: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
    """False and true positive rates [M], rising, over all thresholds, and the area under the curve; NaN without both classes.

    goodness: [N], larger is better. right: bool [N]. Equal values are accepted together.
    """
    positives, negatives = int(right.sum()), int((~right).sum())
    if not positives or not negatives:
        return np.array([0.0, 1.0]), np.array([0.0, 1.0]), float("nan")
    order = np.argsort(-goodness, kind="stable")
    ends = np.append(np.nonzero(np.diff(goodness[order]))[0], len(goodness) - 1)
    true_rate = np.concatenate(([0.0], np.cumsum(right[order])[ends] / positives))
    false_rate = np.concatenate(([0.0], np.cumsum(~right[order])[ends] / negatives))
    return false_rate, true_rate, float(np.trapezoid(true_rate, false_rate))


def goodness(samples: Sequence[Sample], name: str) -> np.ndarray:
    """Float64 [N], larger is better."""
    values = np.array([getattr(sample, name) for sample in samples], float)
    return values if name == "inliers" else -values


@dataclass(frozen=True)
class Gate:
    """A rule in use."""

    name: str
    held: bool
    inliers: float
    innovation: float = float("inf")

    def passes(self, sample: Sample) -> bool:
        return sample.usable and sample.inliers >= self.inliers and sample.innovation <= self.innovation


def gates_in_use() -> list[Gate]:
    g = TrackerOptions().gates
    sure = f"inliers ≥ {g.sure_inlier_fraction:g}, innovation ≤ {g.max_innovation_sure:g}: sure"
    search = f"inliers ≥ {g.min_inlier_fraction_search:g}: a candidate, confirmed by further images"
    return [
        Gate(f"inliers ≥ {g.min_inlier_fraction:g}", True, g.min_inlier_fraction),
        Gate(f"innovation ≤ {g.max_innovation:g}", True, 0.0, g.max_innovation),
        Gate("both: followed in TRACKING", True, g.min_inlier_fraction, g.max_innovation),
        Gate(sure, True, g.sure_inlier_fraction, g.max_innovation_sure),
        Gate(search, False, g.min_inlier_fraction_search),
    ]


def report(samples: Sequence[Sample]) -> str:
    """The tables, as Markdown."""
    groups = {
        HELD: lambda s: s.held,
        "of these, prior right": lambda s: s.held and s.prior in ("honest", "foreign image"),
        FREE: lambda s: not s.held,
    }
    areas = []
    for name, title in MEASURES.items():
        row = [title]
        for group, belongs in groups.items():
            chosen = [s for s in samples if belongs(s) and s.usable]
            area = roc(goodness(chosen, name), np.array([s.right for s in chosen], bool))[2]
            row.append("–" if np.isnan(area) or (name == "innovation" and group == FREE) else f"{area:.4f}")
        areas.append(row)
    gates = []
    for gate in gates_in_use():
        chosen = [s for s in samples if s.held == gate.held]
        good, wrong = [s for s in chosen if s.right], [s for s in chosen if not s.right]
        clean = [s for s in good if s.images == "nominal"]
        refused = [rate(sum(not gate.passes(s) for s in group), len(group)) for group in (good, clean)]
        shares = [s.inliers for s in wrong if s.usable] or [float("nan")]
        accepted, most = rate(sum(map(gate.passes, wrong)), len(wrong)), f"{np.percentile(shares, 99):.2f}, {max(shares):.2f}"
        gates.append((gate.name, HELD if gate.held else FREE, accepted, *refused, most))
    head = (
        "gate in use | alignment | wrong ones accepted | right ones refused | right ones, image as recorded, refused "
        "| inliers of the wrong: 99th percentile, most"
    )
    return (
        f"{len(samples)} alignments, {sum(sample.right for sample in samples)} of them right. Area under the ROC (1: a perfect "
        "measure, 0.5: useless) over those that ended, with enough of the map in the image:\n\n"
        f"{markdown_table(' | '.join(('measure', *groups)), areas)}\n{markdown_table(head, gates)}"
    )


def rate(count: int, of: int) -> str:
    return f"{100 * count / of:.2f} % ({count} of {of})" if of else "–"


def draw(samples: Sequence[Sample]) -> bytes:
    """PNG: the curves, and where the gates in use are on them."""
    with plt.rc_context(STYLE):
        figure, columns = plt.subplots(1, 2, figsize=(11.0, 4.8), sharey=True, layout="constrained")
        for axes, held in zip(columns, (True, False)):
            chosen = [s for s in samples if s.held == held and s.usable]
            right = np.array([s.right for s in chosen], bool)
            for (name, title), colour, line in zip(MEASURES.items(), RUN_COLOURS, RUN_LINES):
                if name != "innovation" or held:
                    false_rate, true_rate, area = roc(goodness(chosen, name), right)
                    style = {"color": colour, "linestyle": line, "linewidth": 1.8, "drawstyle": "steps-post"}
                    axes.plot(100 * false_rate, 100 * true_rate, label=f"{title} (area {area:.3f})", **style)
            for gate, marker in zip((g for g in gates_in_use() if g.held == held), "osDX"):
                passed = np.array([gate.passes(s) for s in chosen], bool)
                if right.any() and not right.all():
                    style = {"color": "#1f2937", "markersize": 7, "markerfacecolor": "white", "clip_on": False, "zorder": 3}
                    place = 100 * passed[~right].mean(), 100 * passed[right].mean()
                    axes.plot(*place, marker, label=gate.name.split(":")[0], **style)
            title = f"Aligned {HELD if held else 'without a prior'}"
            axes.set(title=title, xlabel="wrong alignments accepted (%)", ylim=(0, 102))
            axes.set_xscale("symlog", linthresh=0.1)
            axes.set_xlim(-0.01, 100)
            axes.legend(loc="lower right", fontsize=8)
        columns[0].set_ylabel("right alignments accepted (%)")
        return png(figure)


if __name__ == "__main__":
    run_script(main)
