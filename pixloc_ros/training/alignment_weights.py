# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""Learns what the optimizer believes (`alignment.LevelWeights`) and what its results are worth (`tracking.AlignmentJudge`).

From poses only, through the optimizer that runs on the robot, compiled code included. Its outcome jumps where a step is refused
or another minimum is found, so that the gradient of the unrolled steps tells little of whether a pose is found at all; the few
numbers are therefore sought by CMA-ES (Hansen, 2016), whose steps follow the gradient of the loss smoothed over its samples. The
judge (`judge_training`) learns from alignments of other samples.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch

from ..alignment import AlignmentOptions, LevelWeights
from ..alignment.compiled import LevelResults, Problem, Task, problems, run_levels
from ..alignment.damping import ADAPTIVE_START, level_dampings
from ..alignment.level_weights import CUES, OUTPUTS
from ..alignment.types import batched
from ..errors import InputError
from ..evaluation.reliability import calibration_error
from ..features import Extractor, load_extractor
from ..features.weights import Weights
from ..io.files import write_text
from .alignment_samples import AlignmentSample, PhotoSamples, PlaceSamples, SampleOptions, draw_samples
from .augmentation import AugmentationOptions
from .config import open_weights, read_sections, weights_name
from .judge_training import JudgeSection, Outcome, fit_judge, honest_elsewhere, outcomes
from .pairs import PairShape
from .photos import MotionRange, PhotoPairs, list_photos

LEARNED_SLOPES = {(0,): (0, 1, 2, 4), (1,): (0, 1, 2, 3, 4), (2, 3): (0, 1, 2, 4), (4, 5): (1,)}
"""Of each output, or of both that share them, the cues that it depends on; slopes are the same for all levels, but those of
`LEVEL_CUES`: blur of some pixels is nothing to a coarse level."""
LEVEL_CUES = ("slopes of the image",)
_ERROR_FLOOR, _MOST_LOSS = 0.02, 3.0
_LOG = "alignment_log.jsonl"


@dataclass(frozen=True)
class PhotoSection:
    """Samples of photos: folders, the view's size, between which views, how many samples, how often a sample is used, the share
    of photos of which a part repeats, and how images are changed, if not as the other samples are."""

    folders: tuple[str, ...]
    samples: int
    view: tuple[int, int] = (320, 240)
    motion: MotionRange = MotionRange()
    weight: float = 1.0
    repeated: float = 0.0
    augmentation: AugmentationOptions | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.repeated <= 1:
            raise InputError("photos: repeated is a share, from 0 to 1")


@dataclass(frozen=True)
class PlaceSection:
    """Samples of a place: its map, and queries (a folder with cameras.txt and truth.txt) of images, or a drive with truth; the
    rest as of `PhotoSection`."""

    map: str
    samples: int
    queries: str = ""
    images: str = ""
    drive: str = ""
    weight: float = 1.0
    augmentation: AugmentationOptions | None = None

    def __post_init__(self) -> None:
        if bool(self.drive) == bool(self.queries) or bool(self.queries) != bool(self.images):
            raise InputError(f"places: {self.map} needs queries and images, or a drive")


@dataclass(frozen=True)
class SearchSection:
    """The search for the weights.

    Attributes:
        generations: In all; 0 keeps the weights and teaches the judge alone.
        population: Candidates per generation.
        batch: Samples that all of them are tried on.
        step: Standard deviation of the first candidates, in powers of ten.
        pull: How much a power of ten away from the start costs, squared: what the data does not tell stays there.
        held_out: Every so many samples are kept for the log, and for the judge's calibration.
        seed: Of all randomness.
        threads: 0 for all cores.
    """

    generations: int = 300
    population: int = 16
    batch: int = 150
    step: float = 0.25
    pull: float = 0.02
    held_out: int = 6
    seed: int = 0
    threads: int = 0

    def __post_init__(self) -> None:
        if self.generations < 0 or self.batch < 1 or self.population < 4 or self.held_out < 2 or self.step <= 0:
            raise InputError(
                "search: generations below 0, batch below 1, population below 4, held_out below 2, or step not above 0"
            )


@dataclass(frozen=True)
class AlignmentConfig:
    """A run: the sections of its file. Paths are relative to it.

    Attributes:
        samples: How they are drawn.
        start: Weights file or shipped name; its network is kept.
        constants: First robust scale, residual variance, hold and trust.
        cues: Names of the `CUES` that the weights may depend on; none: each level has its constants.
        weights: An earlier run's weights file to begin from, instead of the constants.
        average: Weights files of earlier runs; the weights become the means of theirs and of what is found, and the judge learns
            from these. Searches differ by their seeds; means of several are better than each ("Model soups", Wortsman et al.,
            ICML 2022).
        card: Added to the card of the weights.
    """

    samples: SampleOptions
    photos: tuple[PhotoSection, ...] = ()
    places: tuple[PlaceSection, ...] = ()
    start: str = "compact"
    constants: tuple[float, float, float, float] = (0.15, 0.15, 0.1, 1.0)
    cues: tuple[str, ...] = CUES
    weights: str = ""
    average: tuple[str, ...] = ()
    search: SearchSection = SearchSection()
    judge: JudgeSection = JudgeSection()
    card: dict = field(default_factory=dict)
    folder: str = "."

    def __post_init__(self) -> None:
        sections = (*self.photos, *self.places)
        if not sections or any(section.samples < 1 or section.weight <= 0 for section in sections):
            raise InputError("photos and places: give at least one, each with a sample or more and a weight above 0")
        unknown = sorted(set(self.cues) - set(CUES))
        if unknown:
            raise InputError(f"cues: '{unknown[0]}' is none of {', '.join(CUES)}")


def read_config(path: Path) -> AlignmentConfig:
    """Raises InputError where the file is missing, not JSON, or holds what is unknown or out of range."""
    return read_sections(path, AlignmentConfig, "samples")


# ---- samples


def draw_all(
    config: AlignmentConfig, extractor: Extractor, part: int, say: Callable[[str], None]
) -> tuple[list[AlignmentSample], np.ndarray]:
    """The samples of a part of the run, and how often each is used; the same for the same configuration."""
    folder, samples, shares = Path(config.folder), [], []
    points = config.samples.points[1]
    for number, section in enumerate((*config.photos, *config.places)):
        if isinstance(section, PhotoSection):
            files = list_photos([folder / f for f in section.folders], held_out=False)
            pairs = PhotoPairs(files, PairShape(*section.view, points), section.motion, section.repeated)
            source = PhotoSamples(pairs, extractor, f"photos {section.view[0]}")
        else:
            paths = {name: folder / getattr(section, name) for name in ("queries", "images", "drive") if getattr(section, name)}
            source = PlaceSamples.open(folder / section.map, extractor, **paths)
        options = replace(config.samples, augmentation=section.augmentation or config.samples.augmentation)
        drawn = draw_samples(source, section.samples, options, (config.search.seed, part, number))
        say(f"{source.name}: {len(drawn)} samples")
        samples += drawn
        shares += [section.weight / len(drawn)] * len(drawn)
    return samples, np.array(shares)


# ---- the weights as a vector


class Parameters:
    """Which numbers of a table are sought. Attributes: cells: of each, where in the table it stands: level, output, column."""

    def __init__(self, levels: int, cues: Sequence[str]) -> None:
        self.cells = [[(k, o, 0)] for k in range(levels) for o in range(len(OUTPUTS)) if k > 0 or o not in (2, 3)]
        for outputs, own in LEARNED_SLOPES.items():
            for c in (c for c in own if CUES[c] in cues):
                single = [[k] for k in range(levels)] if CUES[c] in LEVEL_CUES else [range(levels)]
                self.cells += [[(k, o, 1 + c) for k in some for o in outputs] for some in single]

    def vector(self, table: np.ndarray) -> np.ndarray:
        """From a table [levels, 6, 6]."""
        return np.array([table[cells[0]] for cells in self.cells])

    def table(self, vector: np.ndarray, start: np.ndarray) -> np.ndarray:
        """A table; what is not sought is as at the start."""
        table = start.copy()
        for cells, value in zip(self.cells, vector):
            for cell in cells:
                table[cell] = value
        return table


# ---- the loss


def problem_of(sample: AlignmentSample, levels: int) -> Problem:
    """What the compiled optimizer is given."""
    view = replace(sample.view, points=batched(sample.view.points))
    dampings = level_dampings(None, levels, ADAPTIVE_START, torch.device("cpu"))
    priors, weights = (batched(sample.prior),), LevelWeights.constant(levels)
    task = Task((view,), sample.start[None], AlignmentOptions(), dampings, priors, weights)
    return problems(task)(0)


def error_of(sample: AlignmentSample, problem: Problem, table: np.ndarray) -> tuple[float, float]:
    """Of the pose that the optimizer finds with a table: degrees, and per cent of the depth; the start's where it finds none."""
    levels = len(table)
    results = LevelResults(*(array[0] for array in LevelResults.empty(1, levels, problem.iterations, len(sample.view.points))))
    start = sample.start.numpy()
    alive = run_levels(problem._replace(weights=table), start, results)
    pose = results.poses[-1, results.done[-1]]
    if not alive or not np.isfinite(pose).all():
        pose = start
    return sample.error(torch.from_numpy(pose))


def loss(degrees: np.ndarray, percent: np.ndarray) -> np.ndarray:
    """The logarithm of the pose's error, where half a degree counts as one per cent of the depth; bounded at both ends, so that
    a tenth better counts the same in sharp and in blurred images, and lost ones are all the same."""
    return np.minimum(np.log(np.hypot(2 * degrees, percent) + _ERROR_FLOOR), _MOST_LOSS)


class Objective:
    """Errors and losses of tables over some samples, on several threads: the compiled code holds no lock."""

    def __init__(self, samples: Sequence[AlignmentSample], levels: int, threads: int) -> None:
        self.samples, self._problems = samples, [problem_of(sample, levels) for sample in samples]
        self._pool = ThreadPoolExecutor(threads or torch.get_num_threads())

    def errors(self, tables: Sequence[np.ndarray], which: Sequence[int]) -> np.ndarray:
        """[tables, samples, 2], as of `error_of`."""
        jobs = [(table, i) for table in tables for i in which]
        found = self._pool.map(lambda job: error_of(self.samples[job[1]], self._problems[job[1]], job[0]), jobs)
        return np.array(list(found)).reshape(len(tables), len(which), 2)

    def losses(self, tables: Sequence[np.ndarray], which: Sequence[int]) -> np.ndarray:
        """[tables, samples]."""
        return loss(*np.moveaxis(self.errors(tables, which), -1, 0))


# ---- the search


def learn_weights(
    objective: Objective, shares: np.ndarray, start: np.ndarray, config: AlignmentConfig, out: Path, resume: bool, say
) -> np.ndarray:
    """The table [levels, 6, 6] found; a checkpoint is kept in the folder after every generation."""
    try:
        import cma  # a tool of training alone
    except ImportError:
        raise InputError("cma, which seeks the weights, is missing: python3 -m pip install 'pixloc_ros[training]'") from None

    search, parameters = config.search, Parameters(len(start), config.cues)
    state, first = out / "search.json", parameters.vector(start)
    mean, deviations, done = first, np.ones_like(first), 0
    step = search.step
    if resume and state.is_file():
        known = json.loads(state.read_text())
        mean, deviations, done, step = np.array(known["mean"]), np.array(known["deviations"]), known["done"], known["step"]
        say(f"going on after generation {done}")
    options = {"popsize": search.population, "seed": search.seed + done + 1, "verbose": -9, "CMA_stds": deviations}
    strategy = cma.CMAEvolutionStrategy(mean, step, options)
    kept = np.array([i for i in range(len(objective.samples)) if i % search.held_out == 0])
    taught = np.setdiff1d(np.arange(len(objective.samples)), kept)
    began = time.monotonic()
    for generation in range(done, search.generations):
        rng = np.random.default_rng((search.seed, generation))
        chances = shares[taught] / shares[taught].sum()
        some = rng.choice(taught, min(search.batch, len(taught)), replace=False, p=chances)
        candidates = strategy.ask()
        losses = objective.losses([parameters.table(v, start) for v in candidates], some).mean(1)
        pulls = [search.pull * float(np.mean((v - first) ** 2)) for v in candidates]
        strategy.tell(candidates, list(losses + pulls))
        mean, done = strategy.mean, generation + 1
        values = {"mean": mean.tolist(), "deviations": (strategy.result.stds / strategy.sigma).tolist()}
        write_text(state, json.dumps(values | {"done": done, "step": strategy.sigma}))
        if done % 10 == 0 or done == search.generations:
            held = objective.losses([parameters.table(mean, start)], kept).mean()
            row = {"generation": done, "loss": float(losses.mean()), "held_out": float(held), "step": float(strategy.sigma)}
            with open(out / _LOG, "a") as log:
                log.write(json.dumps(row) + "\n")
            spent = time.monotonic() - began
            say(f"generation {done}/{search.generations}: loss {row['loss']:.3f}, held out {held:.3f}, {spent:.0f} s")
    return parameters.table(mean, start)


# ---- a run


def table_of(config: AlignmentConfig, name: str, levels: int) -> np.ndarray:
    """The level weights float64 [levels, 6, 6] of a weights file. Raises InputError where it holds none."""
    learned = LevelWeights.of(open_weights(name, Path(config.folder)).companions, levels, name)
    if learned is None:
        raise InputError(f"{name} holds no level weights: give the file of an earlier run of this kind")
    return learned.table.numpy().astype(np.float64)


def run(config: AlignmentConfig, out: Path, resume: bool, say: Callable[[str], None]) -> Path:
    """Learns weights and judge; the folder gets settings, log, checkpoint and `best.safetensors`.

    Raises:
        InputError: The data or the start cannot be used.
    """
    if not resume and (out / "search.json").exists():
        raise InputError(f"{out} holds a run already: go on with --resume, or choose another folder")
    out.mkdir(parents=True, exist_ok=True)
    name = weights_name(config.start, Path(config.folder))
    extractor, weights = load_extractor(name), Weights.open(name)
    levels = len(extractor.strides)
    averaged = [table_of(config, one, levels) for one in config.average]
    start = LevelWeights.constant(levels, *config.constants).table.numpy().astype(np.float64)
    if config.weights:
        start = table_of(config, config.weights, levels)
    table = start
    if config.search.generations:
        samples, shares = draw_all(config, extractor, 0, say)
        table = learn_weights(Objective(samples, levels, config.search.threads), shares, start, config, out, resume, say)
        del samples
    learned = LevelWeights(torch.from_numpy(np.mean([table, *averaged], 0)).float())
    # The weights do better on what they were learned from: the judge learns from other samples.
    drawn = replace(config, samples=replace(config.samples, elsewhere=config.judge.elsewhere))
    found: list[Outcome] = []
    for part in range(1, 1 + config.judge.rounds):
        samples = draw_all(drawn, extractor, part, say)[0]
        some = outcomes(samples, learned, config.samples, config.judge, config.search.seed + part - 1)
        found += [replace(one, sample=one.sample + (part - 1) * len(samples)) for one in some]
        say(f"judge: {len(found)} alignments")
        del samples
    held = [one for one in found if one.sample % config.search.held_out == 0]
    taught = [one for one in found if one.sample % config.search.held_out]
    judge = honest_elsewhere(fit_judge(taught, config.judge.ridge), taught, config.judge.ridge)
    likely, right = np.array([judge.probability(one.statistics) for one in held]), np.array([one.right for one in held])
    nees = [one.nees(judge) for one in held if one.right]
    told, gap = np.mean((likely >= 0.5) == right), calibration_error(likely, right)
    say(f"judge, {len(held)} held-out alignments, {right.sum()} right: {told:.1%} told apart, calibration error {gap:.3f}")
    say(f"variances times {judge.elsewhere:.1f}, for places unlike these")
    say(f"NEES of the right ones {np.mean(nees):.1f} (6 is right), median {np.median(nees):.1f} (5.35 is right)")
    companions = {**weights.companions, **learned.tensors(), **judge.tensors()}
    path = out / "best.safetensors"
    replace(weights, companions=companions, card={**weights.card, **config.card}).save(path)
    return path
