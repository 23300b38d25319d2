#!/usr/bin/env python3
# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""How well the tracker's gates tell right alignments from wrong ones: their ROC on drives with ground truth.

Every image of a drive that is not in the map is aligned as recorded and degraded, from a prior as odometry gives it, and from
priors that lie: another place of the drive, a robot pushed aside by a metre or two, and the right place with the image of
another drive. Once with the prior's covariance taking part (as in TRACKING), once without (as where a pose is looked for, or
found against the prior). A pose within 0.25 m and 2 degrees of the truth is right. For each measure that a gate could look at:
the area under its ROC (the chance that a right alignment looks better than a wrong one); for each gate in use: how many wrong
alignments it lets pass, and how many right ones it refuses.

    experiments/gates_roc.py ../shared/data -o out/gates --write docs/evidence/reliability.md
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch

from pixloc_ros.cli.progress import show_progress
from pixloc_ros.errors import InputError
from pixloc_ros.evaluation.altered_bag import AlteredBag
from pixloc_ros.evaluation.degradation import CONDITIONS, degraded
from pixloc_ros.evaluation.pages import write_section
from pixloc_ros.evaluation.runs import TRUTH_GAP_NS
from pixloc_ros.features import load_extractor
from pixloc_ros.geometry import se3
from pixloc_ros.io.bags import BagReader
from pixloc_ros.io.files import write_bytes, write_text
from pixloc_ros.io.frames import CameraFrame
from pixloc_ros.mapping.build import build_map_from_colmap
from pixloc_ros.report.style import RUN_COLOURS, RUN_LINES, STYLE, plt, png
from pixloc_ros.tracking.covariances import isotropic, mahalanobis, not_better_than
from pixloc_ros.tracking.frame_aligner import FrameAligner
from pixloc_ros.tracking.tracker import TrackerOptions
from pixloc_ros.tracking.types import FrameAlignment

SCENES = ("kitti07", "kitti01")
MAP_STRIDE = 3
"""Every third image of a scene's drive is in its map."""
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
    """One alignment. error_m, error_deg: from the truth; infinite for an image of another place. innovation: Mahalanobis distance
    from the prior, NaN where none takes part. usable: the optimizer ended and enough of the map is in the image."""

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
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="folder of scenes with map/, images/ and drive/")
    parser.add_argument("--scenes", nargs="+", default=list(SCENES), help="two at least: each takes foreign images from the next")
    parser.add_argument("--images", nargs="+", choices=CONDITIONS, default=list(IMAGES))
    parser.add_argument("--every", type=int, default=1, metavar="N", help="only every Nth image")
    parser.add_argument("--weights", default="compact")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("-o", "--output", type=Path, default=Path("out/gates"), help="folder of the samples and curves")
    parser.add_argument("--write", type=Path, metavar="PAGE", help="a page whose table between its markers is replaced")
    args = parser.parse_args()
    if len(args.scenes) < 2 or args.every < 1:
        parser.error("give two scenes at least, and --every 1 or more")
    samples: list[Sample] = []
    for number, name in enumerate(args.scenes):
        other = args.scenes[(number + 1) % len(args.scenes)]
        samples += measure(args.data / name, args.data / other, args.images, args.weights, args.every, args.seed)
    text = report(samples)
    write_text(args.output / "samples.json", json.dumps([asdict(sample) for sample in samples]) + "\n")
    write_bytes(args.output / "roc.png", draw(samples))
    print(text)
    if args.write:
        write_section(args.write, "gates", text)
    print(f"results: {args.output / 'samples.json'}, {args.output / 'roc.png'}")
    return 0


# ---- measuring


def measure(scene: Path, other: Path, conditions: Sequence[str], weights: str, every: int, seed: int) -> Iterator[Sample]:
    """All samples of one drive."""
    extractor = load_extractor(weights)
    with show_progress(f"{scene.name}: map") as progress:
        map_, _ = build_map_from_colmap(scene / "map", scene / "images", extractor, progress=progress)
    localizer = FrameAligner(map_, extractor)
    rng = np.random.default_rng(seed)
    with BagReader(scene / "drive") as bag, BagReader(other / "drive") as foreign_bag:
        base_from_camera, truth = bag.base_from_camera, bag.truth()
        stamps = np.array(list(bag.image_stamps()))
        poses, known = truth.at(stamps, TRUTH_GAP_NS)
        cameras = poses @ base_from_camera
        left_out = set(stamps[::MAP_STRIDE].tolist()) | set(stamps[~known].tolist())
        for condition in conditions:
            frames = [f for f in frames_of(degraded(bag, condition, seed, 0.0)) if f.stamp_ns not in left_out][::every]
            foreign = list(frames_of(degraded(foreign_bag, condition, seed, 0.0)))
            with show_progress(f"{scene.name}, {condition}") as progress:
                for count, frame in enumerate(frames):
                    progress(count, len(frames))
                    here = cameras[int(np.searchsorted(stamps, frame.stamp_ns))]
                    starts = priors(here, cameras[torch.from_numpy(known)], rng)
                    prepared = localizer.prepare(frame.image, frame.camera)
                    stranger = foreign[int(rng.integers(len(foreign)))]
                    strange = localizer.prepare(stranger.image, stranger.camera)
                    for prior, start in starts.items():
                        image, true = (strange, None) if prior == "foreign image" else (prepared, here)
                        for held in (True, False):
                            covariance = isotropic(*PRIOR_STD)
                            found = localizer.localize_prepared(image, start, covariance if held else None)
                            yield judge(found, start, covariance, true, held, (scene.name, condition, prior))


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


def judge(
    found: FrameAlignment,
    start: torch.Tensor,
    covariance: torch.Tensor,
    true: torch.Tensor | None,
    held: bool,
    names: tuple[str, str, str],
) -> Sample:
    """What the tracker would look at, and the truth (None: the image shows another place)."""
    options = TrackerOptions()
    gates = options.gates
    error_m = error_deg = innovation = float("inf")
    if true is not None:
        distance, angle = se3.pose_difference(true, found.map_from_camera)
        error_m, error_deg = float(distance), float(torch.rad2deg(angle))
    visible = found.visible_fraction * found.points_used
    usable = found.success and found.visible_fraction >= gates.min_visible_fraction and visible >= gates.min_visible_points
    if usable:
        floor = isotropic(options.prior_translation_floor, options.prior_rotation_floor)
        cautious = not_better_than(found.covariance / max(found.inlier_fraction, 0.1) ** 2, floor)
        innovation = mahalanobis(start, covariance, found.map_from_camera, cautious)
    return Sample(*names, held, usable, found.inlier_fraction, found.cost, innovation, error_m, error_deg)


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
    """A rule in use. passes: bool of a sample."""

    name: str
    held: bool
    inliers: float
    innovation: float = float("inf")

    def passes(self, sample: Sample) -> bool:
        return sample.usable and sample.inliers >= self.inliers and sample.innovation <= self.innovation


def gates_in_use() -> list[Gate]:
    g = TrackerOptions().gates
    return [
        Gate(f"inliers ≥ {g.min_inlier_fraction:g}", True, g.min_inlier_fraction),
        Gate(f"innovation ≤ {g.max_innovation:g}", True, 0.0, g.max_innovation),
        Gate("both: followed in TRACKING", True, g.min_inlier_fraction, g.max_innovation),
        Gate(f"inliers ≥ {g.sure_inlier_fraction:g}, innovation ≤ {g.max_innovation_sure:g}: sure", True, g.sure_inlier_fraction,
             g.max_innovation_sure),
        Gate(f"inliers ≥ {g.min_inlier_fraction_search:g}: a candidate, confirmed by further images", False,
             g.min_inlier_fraction_search),
    ]  # fmt: skip


def report(samples: Sequence[Sample]) -> str:
    """The tables, as Markdown."""
    right = sum(sample.right for sample in samples)
    groups = {
        HELD: lambda s: s.held,
        "of these, prior right": lambda s: s.held and s.prior in ("honest", "foreign image"),
        FREE: lambda s: not s.held,
    }
    lines = [
        f"{len(samples)} alignments, {right} of them right. Area under the ROC (1: a perfect measure, 0.5: useless) over "
        "those that ended, with enough of the map in the image:",
        "",
        f"| measure | {' | '.join(groups)} |",
        "|---" * (len(groups) + 1) + "|",
    ]
    for name, title in MEASURES.items():
        cells = []
        for group, belongs in groups.items():
            chosen = [s for s in samples if belongs(s) and s.usable]
            area = roc(goodness(chosen, name), np.array([s.right for s in chosen], bool))[2]
            cells.append("–" if np.isnan(area) or (name == "innovation" and group == FREE) else f"{area:.4f}")
        lines.append(f"| {title} | " + " | ".join(cells) + " |")
    lines += [
        "",
        "| gate in use | alignment | wrong ones accepted | right ones refused | right ones, image as recorded, refused "
        "| inliers of the wrong: 99th percentile, most |",
        "|---|---|---|---|---|---|",
    ]
    for gate in gates_in_use():
        chosen = [s for s in samples if s.held == gate.held]
        good, wrong = [s for s in chosen if s.right], [s for s in chosen if not s.right]
        clean = [s for s in good if s.images == "nominal"]
        shares = [s.inliers for s in wrong if s.usable] or [float("nan")]
        lines.append(
            f"| {gate.name} | {HELD if gate.held else FREE} | {rate(sum(map(gate.passes, wrong)), len(wrong))} "
            f"| {rate(sum(not gate.passes(s) for s in good), len(good))} "
            f"| {rate(sum(not gate.passes(s) for s in clean), len(clean))} | {np.percentile(shares, 99):.2f}, {max(shares):.2f} |"
        )
    return "\n".join(lines) + "\n"


def rate(count: int, of: int) -> str:
    return f"{100 * count / of:.2f} % ({count} of {of})" if of else "–"


def draw(samples: Sequence[Sample]) -> bytes:
    """PNG: the curves, and where the gates in use are on them."""
    with plt.rc_context(STYLE):
        figure, columns = plt.subplots(1, 2, figsize=(11.0, 4.8), sharey=True, layout="constrained")
        for axes, held in zip(columns, (True, False)):
            chosen = [s for s in samples if s.held == held and s.usable]
            right = np.array([s.right for s in chosen], bool)
            for k, (name, title) in enumerate(MEASURES.items()):
                if name == "innovation" and not held:
                    continue
                false_rate, true_rate, area = roc(goodness(chosen, name), right)
                axes.plot(
                    100 * false_rate,
                    100 * true_rate,
                    color=RUN_COLOURS[k],
                    linestyle=RUN_LINES[k],
                    linewidth=1.8,
                    label=f"{title} (area {area:.3f})",
                    drawstyle="steps-post",
                )
            for gate, marker in zip((g for g in gates_in_use() if g.held == held), "osDX"):
                passed = np.array([gate.passes(s) for s in chosen], bool)
                if right.all() or not right.any():
                    continue
                place = 100 * passed[~right].mean(), 100 * passed[right].mean()
                axes.plot(
                    *place,
                    marker,
                    color="#1f2937",
                    markersize=7,
                    markerfacecolor="white",
                    clip_on=False,
                    zorder=3,
                    label=gate.name.split(":")[0],
                )
            title = f"Aligned {HELD if held else 'without a prior'}"
            axes.set(title=title, xlabel="wrong alignments accepted (%)", ylim=(0, 102))
            axes.set_xscale("symlog", linthresh=0.1)
            axes.set_xlim(-0.01, 100)
            axes.legend(loc="lower right", fontsize=8)
        columns[0].set_ylabel("right alignments accepted (%)")
        return png(figure)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except InputError as error:
        print(f"gates_roc: error: {error}", file=sys.stderr)
        sys.exit(2)
