#!/usr/bin/env python3
# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""What each learned part of the alignment is worth, on places that taught none of them.

Queries of the scenes are changed (blur alone, darkness and noise, other light and things), and aligned with the map from wrong
priors that claim about as much; every variant gets the same samples. Variants are weights files, and hand constants; the best
of the constants are chosen on the same samples, in their favour. A file's judge is compared with the rule by hand.

    experiments/weights_ablation.py ../shared/data --scenes fox kitti01 kitti07 strecha_castle strecha_entry \\
        --cases CASES --case-images ../shared/data/sacre_coeur/images \\
        --variants constants=out/constants/best.safetensors image=out/image/best.safetensors shipped=compact
"""

from __future__ import annotations

import argparse
import itertools
from dataclasses import replace
from pathlib import Path

import common
import numpy as np
from scipy.stats import rankdata

from pixloc_ros.alignment import LevelWeights
from pixloc_ros.cli.progress import show_progress
from pixloc_ros.cli.scripts import run_script
from pixloc_ros.evaluation.reliability import calibration_error
from pixloc_ros.evaluation.tables import format_number, markdown_table
from pixloc_ros.features import Extractor, load_extractor
from pixloc_ros.geometry import se3
from pixloc_ros.io.images import load_grey
from pixloc_ros.tracking.alignment_judge import AlignmentJudge
from pixloc_ros.tracking.frame_aligner import FrameAligner
from pixloc_ros.tracking.options import TrackerOptions
from pixloc_ros.training.alignment_samples import AlignmentSample, PlaceSamples, PriorKind, SampleOptions, draw_samples
from pixloc_ros.training.alignment_weights import Objective, loss
from pixloc_ros.training.augmentation import AugmentationOptions
from pixloc_ros.training.judge_training import JudgeSection, outcomes

NOTHING = AugmentationOptions(
    clean=0.0, light=0.0, dark=0.0, shadow=0.0, occlusion=0.0, blur=0.0, defocus=0.0, half_resolution=0.0, vignetting=0.0,
    noise=0.0, jpeg=0.0,
)  # fmt: skip
CHANGES = {
    "as taken": replace(NOTHING, clean=1.0),
    "blur": replace(NOTHING, blur=1.0, blur_px=45.0),
    "dark, noise": replace(NOTHING, dark=1.0, noise=1.0),
    "other light and things": replace(NOTHING, relight=0.9, tone=0.9, change=0.9),
}
PRIORS = (PriorKind("drive", 0.35, 0.006, 1.0), PriorKind("medium", 5.0, 0.1, 1.0))
CONSTANTS = tuple(itertools.product((0.05, 0.15, 0.4), (0.01, 0.05, 0.2), (1e-4, 0.02, 0.3), (0.1, 1.0)))
"""Robust scale, residual variance, hold, trust."""
WITHIN = (0.5, 1.0)
"""Degrees, per cent of the depth."""


def main() -> int:
    parser = common.parser(__doc__, "out/ablation")
    parser.add_argument("--cases", type=Path, metavar="DIR", help="a folder of further scenes, whose images are in one folder")
    parser.add_argument("--case-images", type=Path, metavar="DIR", help="images of the cases")
    parser.add_argument(
        "--variants", nargs="+", default=["shipped=compact"], metavar="NAME=FILE", help="weights; the last judges"
    )
    parser.add_argument("--samples", type=int, default=12, metavar="N", help="per scene and change, at most (default 12)")
    args = parser.parse_args()
    files = dict(text.split("=", 1) for text in args.variants)
    extractor = load_extractor(args.weights)
    levels, sets = len(extractor.strides), draw(args, extractor)
    objectives = [Objective(samples, levels, 0) for samples in sets.values()]

    def errors(weights: LevelWeights) -> list[np.ndarray]:
        table = weights.table.numpy().astype(np.float64)
        return [objective.errors([table], range(len(objective.samples)))[0] for objective in objectives]

    found = {"before: scale 0.05, neither hold nor prior": errors(LevelWeights.constant(levels, trust=0.0))}
    with show_progress("constants") as progress:
        tried = {}
        for number, constants in enumerate(CONSTANTS):
            progress(number, len(CONSTANTS))
            tried[constants] = errors(LevelWeights.constant(levels, *constants))
    best = min(tried, key=lambda constants: np.mean([loss(*e.T).mean() for e in tried[constants]]))
    found[f"best of {len(CONSTANTS)} by hand: scale {best[0]}, variance {best[1]}, hold {best[2]}, trust {best[3]}"] = tried[best]
    for name, file in files.items():
        found[name] = errors(LevelWeights.of(load_extractor(file).companions, levels, file))
    head = "weights | " + " | ".join(f"{name} ({len(samples)}): within, loss" for name, samples in sets.items()) + " | all"
    result = {
        "ablation of level weights": markdown_table(
            head, [(name, *map(cell, parts), cell(np.concatenate(parts))) for name, parts in found.items()]
        ),
        "ablation of the judge": judges(list(files.values())[-1], sets, extractor),
    }
    common.save(args, "ablation", {name: [part.tolist() for part in parts] for name, parts in found.items()}, result)
    return common.finish(args, result)


def draw(args: argparse.Namespace, extractor: Extractor) -> dict[str, list[AlignmentSample]]:
    """The samples of each change."""
    scenes = common.scenes_of(args)
    if args.cases:
        scenes += [common.Scene(folder, args.case_images) for folder in sorted(args.cases.iterdir()) if (folder / "map").is_dir()]
    sets: dict[str, list[AlignmentSample]] = {name: [] for name in CHANGES}
    for number, scene in enumerate(scenes):
        images = [(lambda q=q: load_grey(q.path), q.camera, se3.inverse(scene.truth[q.name])) for q in scene.queries]
        place = PlaceSamples(FrameAligner(scene.build_map(extractor), extractor), images, scene.name)
        for kind, change in enumerate(CHANGES.values()):
            options = SampleOptions(PRIORS, points=(300, 800), focal=0.0, clean=0.0, augmentation=change)
            count = min(args.samples, 2 * len(images))
            sets[list(CHANGES)[kind]] += draw_samples(place, count, options, (7, number, kind))
    return sets


def cell(errors: np.ndarray) -> str:
    """Share within the limits, and mean loss, of errors [N, 2]."""
    return f"{(errors <= WITHIN).all(1).mean():.2f}, {loss(*errors.T).mean():.2f}"


def judges(file: str, sets: dict[str, list[AlignmentSample]], extractor: Extractor) -> str:
    """Rows for the rule by hand and for the judge of a weights file, on alignments with its level weights."""
    companions = load_extractor(file).companions
    weights = LevelWeights.of(companions, len(extractor.strides), file)
    samples = [sample for some in sets.values() for sample in some]
    options = SampleOptions(PRIORS)
    found = outcomes(samples, weights, options, JudgeSection(alignments=4), 0)
    right = np.array([one.right for one in found])
    rows = []
    for name, judge in (("by hand", AlignmentJudge.by_hand()), ("learned", AlignmentJudge.of(companions, file))):
        likely = np.array([judge.probability(one.statistics) for one in found])
        rank = rankdata(likely)
        area = (rank[right].mean() - (right.sum() + 1) / 2) / (~right).sum()
        gate = TrackerOptions().gates.min_probability
        nees = np.array([one.nees(judge) for one in found if one.right])
        accepted, passed = (likely[right] >= gate).mean(), int((likely[~right] >= gate).sum())
        figures = (f"{area:.4f}", f"{accepted:.3f}", f"{passed} of {(~right).sum()}", f"{calibration_error(likely, right):.3f}")
        rows.append((name, len(found), *figures, format_number(float(nees.mean())), format_number(float(np.median(nees)))))
    head = (
        "judge | alignments | AUC | right ones accepted | wrong ones accepted | calibration error | NEES of right ones | median"
    )
    return markdown_table(head, rows)


if __name__ == "__main__":
    run_script(main)
