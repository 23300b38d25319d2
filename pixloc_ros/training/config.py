# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""A training run's configuration: a JSON file whose sections are the dataclasses below. Unknown keys are refused."""

from __future__ import annotations

import dataclasses
import json
import math
import typing
from dataclasses import dataclass, field
from pathlib import Path

import torch

from ..alignment import AlignmentOptions, LearnedDamping, RobustLoss
from ..alignment.damping import LOG10_RANGE, damping_from
from ..errors import InputError
from ..features.extractor import NETWORKS
from ..features.weights import Weights
from ..io.text import read_text
from .augmentation import AugmentationOptions
from .feature_loss import FeatureLossOptions
from .loss import LossOptions
from .pairs import Curriculum, PairMixture, PairShape, PairSource
from .photos import MotionRange, PhotoPairs, list_photos
from .scenes import BagPairs, CmuPairs, ColmapPairs, MegaDepthPairs, RgbdPairs

CONFIDENCE_HEADS = "confidence."
"""What the names of the weights of confidence heads begin with."""
FIRST_CONFIDENCE = 2.0
"""What new heads begin with, before the sigmoid."""


@dataclass(frozen=True)
class NetworkSection:
    """The network and its damping.

    Attributes:
        architecture: A name of `features.extractor.NETWORKS`.
        start: Weights to begin with (a shipped name, or a file); none starts at random.
        confidences: Give the network confidence heads where the start has none; they begin equal everywhere.
        frozen: Beginnings of the names of parameters that are not trained.
        strides: The sets of levels to train, taken in turn; the network's own by default.
        companions: Weights (a shipped name, or a file) whose level weights and judge the result gets.
        damping: Where the damping starts if `start` has none.
        learn_damping: Otherwise it stays there, and the weights come without one.
    """

    architecture: str = "compact"
    start: str | None = None
    confidences: bool = True
    frozen: tuple[str, ...] = ()
    strides: tuple[tuple[int, ...], ...] = ()
    companions: str | None = None
    damping: float = 0.01
    learn_damping: bool = True


@dataclass(frozen=True)
class AlignmentSection:
    """The unrolled alignment.

    Attributes:
        strategy: "paper" or "adaptive", which the running system uses (see `AlignmentOptions`).
        iterations: Unrolled per level.
        robust_loss: Of the feature residual, as in `RobustLoss`.
        robust_scale: Likewise.
        detach_steps: Each step is taught by itself (see `AlignmentOptions`), which goes with loss.every_iteration.
    """

    strategy: str = "paper"
    iterations: int = 8
    robust_loss: str = "geman_mcclure"
    robust_scale: float = 0.05
    detach_steps: bool = False

    def __post_init__(self) -> None:
        self.options()  # refuses what it does not know

    def options(self) -> AlignmentOptions:
        return AlignmentOptions(
            self.strategy, self.iterations, RobustLoss(self.robust_loss, self.robust_scale), detach_steps=self.detach_steps
        )


@dataclass(frozen=True)
class DataSection:
    """One data source. Paths are relative to the configuration file.

    Attributes:
        kind: "photos" (needs folders), "colmap" (model, images), "rgbd" (sequence), "bag" (bag), "megadepth" or "cmu" (root).
        weight: How often it is drawn.
        folders: Of photos.
        leave_out: Names of photos, with * and ?, that are not taken.
        model: Folder of a COLMAP model.
        images: Its images.
        sequence: Folder of an RGB-D sequence.
        depth_scale: Units of its depth images per metre; 0 where images and poses tell it.
        apart_s: Least seconds between the two images of a pair, where the sequence holds several drives.
        bag: A recording; what is found in it is kept next to the configuration.
        pose_topic: Where the bag's poses are, if that cannot be guessed.
        root: Folder of MegaDepth, or a slice of Extended CMU Seasons.
        scenes: Names of folders of MegaDepth; all by default.
        motion: Between the views that photos are made into.
    """

    kind: str
    weight: float = 1.0
    folders: tuple[str, ...] = ()
    leave_out: tuple[str, ...] = ()
    model: str = ""
    images: str = ""
    sequence: str = ""
    depth_scale: float = 0.0
    apart_s: float = 0.0
    bag: str = ""
    pose_topic: str = ""
    root: str = ""
    scenes: tuple[str, ...] = ()
    motion: MotionRange = MotionRange()


@dataclass(frozen=True)
class RunSection:
    """How long and how fast.

    Attributes:
        steps: In all.
        batch: Pairs per step and process.
        learning_rate: At its highest, after `warmup` steps; it ends at a tenth.
        rates: Beginnings of parameters' names to what their learning rate is multiplied with.
        damping_rate: The same for the damping (PixLoc: 100).
        average: Validated and kept are the weights' running means, in which a step's weights count 1 - average; 0: the latest.
        start_share: So far these are drawn back to the start, from 0 to 1 (Wortsman et al., CVPR 2022: keeps what the start could
            do and the data does not teach).
        warmup: Steps until the highest learning rate.
        clip_norm: Longest gradient.
        checkpoint_every: Steps.
        validate_every: Steps.
        validation_pairs: Clean, and as many augmented.
        report_every: Steps.
        workers: Processes that prepare data next to the training, 0 for none.
        threads: Of the training process, 0 for all cores.
        seed: Of all randomness.
    """

    steps: int = 2000
    batch: int = 4
    learning_rate: float = 1e-4
    rates: dict = field(default_factory=dict)
    damping_rate: float = 100.0
    average: float = 0.0
    start_share: float = 0.0
    warmup: int = 50
    clip_norm: float = 1.0
    checkpoint_every: int = 1
    validate_every: int = 200
    validation_pairs: int = 24
    report_every: int = 10
    workers: int = 1
    threads: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        for names, good, what in (
            ("steps batch checkpoint_every validate_every validation_pairs report_every", lambda v: v >= 1, "at least 1"),
            ("warmup workers threads seed", lambda v: v >= 0, "at least 0"),
            ("learning_rate damping_rate clip_norm", lambda v: v > 0, "above 0"),
            ("average start_share", lambda v: 0 <= v < 1, "at least 0 and below 1"),
        ):
            for name in names.split():
                if not good(getattr(self, name)):
                    raise InputError(f"run: {name} must be {what}")
        if any(isinstance(v, bool) or not isinstance(v, (int, float)) or not 0 < v < math.inf for v in self.rates.values()):
            raise InputError("run: rates must be positive numbers; parameters that shall not change go to network.frozen")


@dataclass(frozen=True)
class TrainingConfig:
    """Everything that a run depends on: the sections of the file.

    Attributes:
        card: Goes into the weights file as it is: licence, credit, training data.
        folder: Of the file.
    """

    data: tuple[DataSection, ...]
    network: NetworkSection = NetworkSection()
    view: PairShape = PairShape()
    alignment: AlignmentSection = AlignmentSection()
    loss: LossOptions = LossOptions()
    features: FeatureLossOptions = FeatureLossOptions()
    initial_error: Curriculum = Curriculum()
    augmentation: AugmentationOptions = AugmentationOptions()
    run: RunSection = RunSection()
    card: dict = field(default_factory=dict)
    folder: str = "."

    def to_json(self) -> dict:
        """As a plain dictionary."""
        return dataclasses.asdict(self)


def read_config(path: Path) -> TrainingConfig:
    """Raises InputError where the file is missing, not JSON, or holds what is unknown or out of range."""
    return read_sections(path, TrainingConfig, "data")


def read_sections(path: Path, kind: type, needed: str) -> typing.Any:
    """A dataclass with the field `folder` from a JSON file that holds at least the section `needed`. Raises InputError."""
    values = read_json(path)
    if "folder" in values or not values.get(needed):
        raise InputError(f"{path} must be a JSON object with at least the section '{needed}'")
    try:
        return _build(kind, {**values, "folder": str(Path(path).resolve().parent)}, "")
    except InputError as error:
        raise InputError(f"{path}: {error}") from None


def read_json(path: Path) -> dict:
    """The object of a configuration file. Raises InputError where it is missing, or not a JSON object."""
    try:
        values = json.loads(read_text(path, "give a training configuration"))
    except json.JSONDecodeError as error:
        raise InputError(f"{path} is not JSON ({error}): fix it there") from None
    if not isinstance(values, dict):
        raise InputError(f"{path} must be a JSON object")
    return values


def _build(kind: type, values: typing.Any, where: str) -> typing.Any:
    """A value of a dataclass, tuple, number or text from what JSON gave."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if dataclasses.is_dataclass(kind):
        if not isinstance(values, dict):
            raise InputError(f"'{where}' must be an object")
        hints = typing.get_type_hints(kind)
        unknown = sorted(set(values) - set(hints))
        if unknown:
            raise InputError(f"unknown key '{'.'.join(filter(None, (where, unknown[0])))}': known here are {', '.join(hints)}")
        missing = dataclasses.MISSING
        optional = {f.name for f in dataclasses.fields(kind) if not f.default is f.default_factory is missing}
        required = [name for name in hints if name not in values and name not in optional]
        if required:
            raise InputError(f"'{where}' lacks '{required[0]}'")
        return kind(**{name: _build(hints[name], value, ".".join(filter(None, (where, name)))) for name, value in values.items()})
    if origin is tuple:
        kinds = [arguments[0]] * len(values) if isinstance(values, list) and arguments[-1] is Ellipsis else arguments
        if not isinstance(values, list) or len(kinds) != len(values):
            raise InputError(f"'{where}' must be a list" + ("" if arguments[-1] is Ellipsis else f" of {len(arguments)}"))
        return tuple(_build(k, value, f"{where}[{n}]") for n, (k, value) in enumerate(zip(kinds, values)))
    allowed = arguments or (kind,)
    section = next(filter(dataclasses.is_dataclass, allowed), None)
    if section is not None and values is not None:
        return _build(section, values, where)
    if float in allowed and isinstance(values, int) and not isinstance(values, bool):
        return float(values)
    if not isinstance(values, allowed) or isinstance(values, bool) and bool not in allowed:
        raise InputError(f"'{where}' must be {' or '.join(k.__name__ for k in allowed)}, not {values!r}")
    return values


def build_mixture(config: TrainingConfig, held_out: bool, augmented: bool) -> PairMixture:
    """The data of a run, or that held out from it. Raises InputError where a source is unusable."""
    sources = [_build_source(section, Path(config.folder), config.view, held_out) for section in config.data]
    weights = [section.weight for section in config.data]
    if min(weights) < 0 or sum(weights) == 0:
        raise InputError("data: weights must not be negative, and one above 0")
    augmentation, exponent = config.augmentation if augmented else None, config.initial_error.exponent
    return PairMixture(sources, weights, config.view.points, config.run.seed, augmentation, exponent)


def _build_source(section: DataSection, folder: Path, view: PairShape, held_out: bool) -> PairSource:
    if section.kind == "photos" and section.folders:
        return PhotoPairs(list_photos([folder / f for f in section.folders], held_out, section.leave_out), view, section.motion)
    if section.kind == "colmap" and section.model and section.images:
        return ColmapPairs(folder / section.model, folder / section.images, view, held_out)
    if section.kind == "rgbd" and section.sequence:
        return RgbdPairs(folder / section.sequence, view, held_out, section.depth_scale, section.apart_s)
    if section.kind == "bag" and section.bag:
        bag = folder / section.bag
        return BagPairs(bag, section.pose_topic, folder / f"{bag.stem}.frames", view, held_out)
    if section.kind == "megadepth" and section.root:
        return MegaDepthPairs(folder / section.root, section.scenes, view, held_out)
    if section.kind == "cmu" and section.root:
        return CmuPairs(folder / section.root, view, held_out)
    raise InputError(
        f"data: a source of kind '{section.kind}' is unknown or incomplete: use photos with folders, colmap with "
        "model and images, rgbd with sequence, bag with bag, megadepth or cmu with root"
    )


def build_network(section: NetworkSection, folder: Path) -> tuple[torch.nn.Module, LearnedDamping, dict]:
    """Network and damping as they start, and the card of the weights they start from. Raises InputError where those do not
    fit."""
    if section.architecture not in NETWORKS:
        raise InputError(f"network: architecture '{section.architecture}' is unknown: choose one of {', '.join(NETWORKS)}")
    start = Weights({}, {})
    if section.start is not None:
        start = open_weights(section.start, folder)
    # Architectures with heads to choose from look at the names of the weights.
    names = {**start.network, **dict.fromkeys((CONFIDENCE_HEADS,) if section.confidences else ())}
    network = NETWORKS[section.architecture](names)
    damping = _build_damping(section, start.companions, len(network.strides))
    if section.start is not None:
        fresh = _load_state(network, start.network, section)
        for name, parameter in network.named_parameters():
            if name in fresh:  # confidences that are the same everywhere change nothing at first
                torch.nn.init.constant_(parameter, FIRST_CONFIDENCE if name.endswith("bias") else 0.0)
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(not name.startswith(section.frozen) if section.frozen else True)
    damping.requires_grad_(section.learn_damping)
    # Evaluation mode: batch norms, where there are any, keep their statistics, so that processes compute the same.
    return network.eval().to(memory_format=torch.channels_last), damping, start.card


def open_weights(name: str, folder: Path) -> Weights:
    """Weights of a file, seen from the configuration's folder, or of a shipped name. Raises InputError."""
    return Weights.open(weights_name(name, folder))


def weights_name(name: str, folder: Path) -> str:
    """A file's path where the configuration's folder has it, else the name, which may be that of shipped weights."""
    return str(folder / name) if (folder / name).is_file() else name


def _build_damping(section: NetworkSection, companions: dict[str, torch.Tensor], levels: int) -> LearnedDamping:
    """What the start learned, or the same factor everywhere."""
    low, high = LOG10_RANGE
    if not 10.0**low < section.damping < 10.0**high:
        raise InputError(f"network: damping must lie between 1e{low:g} and 1e{high:g}")
    given = damping_from(companions, levels, f"network: {section.start}")
    if given is not None:
        return given
    damping = LearnedDamping(levels)
    share = (math.log10(section.damping) - low) / (high - low)
    with torch.no_grad():
        damping.theta.fill_(math.log(share / (1 - share)))
    return damping


def _load_state(network: torch.nn.Module, state: dict[str, torch.Tensor], section: NetworkSection) -> set[str]:
    """Put the start's weights in place → the names of the confidence heads that it lacks."""
    try:
        result = network.load_state_dict(state, strict=False)
    except RuntimeError as error:
        raise InputError(
            f"network: {section.start} does not fit '{section.architecture}': {str(error).splitlines()[1].strip()}"
        ) from error
    wrong = result.unexpected_keys + [name for name in result.missing_keys if not name.startswith(CONFIDENCE_HEADS)]
    if wrong:
        raise InputError(
            f"network: {section.start} and '{section.architecture}' do not agree about '{wrong[0]}': choose weights "
            "of this architecture"
        )
    return set(result.missing_keys)
