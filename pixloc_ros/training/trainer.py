# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""The training loop: one process, or several under torchrun.

A run's folder holds config.json, log.jsonl (a line per step and validation), checkpoint.safetensors, weights.safetensors (the
latest), best.safetensors (lowest validation loss) and curves.png. The checkpoint holds all tensors of a run, and the rest as JSON
in its header: no pickle, never half written.
"""

from __future__ import annotations

import contextlib
import copy
import json
import math
import os
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from datetime import date
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from ..alignment import AlignmentOptions, ReferencePoints, View, align
from ..alignment.damping import damping_tensors
from ..errors import InputError
from ..features.pyramid import FeaturePyramid
from ..features.weights import Weights
from ..geometry import se3
from ..io.files import write_text
from ..io.tensor_file import TensorFileError, load_tensors, save_tensors
from .config import RunSection, TrainingConfig, build_mixture, build_network, open_weights
from .loss import squared_distances
from .pairs import Batch, TrainingSteps, validation_batches
from .refiner import PairRefiner, member
from .report import Validation, draw_curves, progress_line, read_log, validation_table

FILE_NAME = "checkpoint.safetensors"
_RANDOM = "random.torch"
FINAL_RATE = 0.1
"""What the learning rate ends at, as a share of its highest value."""


class Diverged(InputError):
    """Loss or gradient is not a number. The batch has been saved."""


class Trainer:
    """A run, ready to go on from where it is.

    Args:
        out: The run's folder, made here.
        resume: Go on from its checkpoint, or start if it has none.
        say: Where lines for people go.

    Raises:
        InputError: The folder already holds a run and `resume` is off, and for bad data or networks.
    """

    def __init__(self, config: TrainingConfig, out: Path, resume: bool = False, say: Callable[[str], None] = print) -> None:
        self.config, self.out = config, Path(out)
        self.rank, self.world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
        self.say = say if self.rank == 0 else lambda line: None
        torch.manual_seed(config.run.seed)
        network, damping, self.start_card = build_network(config.network, Path(config.folder))
        given = config.network.companions
        self.companions = open_weights(given, Path(config.folder)).companions if given else {}
        self.refiner = PairRefiner(network, damping, config.alignment.options(), config.loss, config.features)
        self.strides = config.network.strides or (tuple(network.strides),)
        _check_features(config, min(map(len, self.strides)))
        for strides in self.strides:  # refused here rather than in the middle of the run
            if strides != tuple(network.strides):
                network.with_strides(strides)
        self.optimizer = torch.optim.Adam(_parameter_groups(self.refiner, config.run))
        self.start = copy.deepcopy(self.refiner).requires_grad_(False)
        self.average = copy.deepcopy(self.start) if config.run.average else self.refiner
        self.state = torch.nn.ModuleDict({"latest": self.refiner})
        if config.run.average:
            self.state["average"] = self.average
        self.step, self.skipped, self.seconds, self.best = 0, 0, 0.0, math.inf
        self._open_folder(resume)
        unused = not config.features.poses  # confidences and some levels are learned from poses alone
        self.model = DistributedDataParallel(self.refiner, find_unused_parameters=unused) if self.world > 1 else self.refiner
        self.training = build_mixture(config, held_out=False, augmented=True)
        self.validation: dict[str, list[Batch]] | None = None
        self._asked_to_stop = self._stopping = False

    def _open_folder(self, resume: bool) -> None:
        checkpoint = self.out / FILE_NAME
        if resume and checkpoint.is_file():
            state = load_checkpoint(checkpoint, self.state, self.optimizer)
            self.step, self.skipped, self.seconds = state["step"], state["skipped"], state["seconds"]
            self.best = math.inf if state["best"] is None else state["best"]
            for key in _changed_keys(state["config"], json.loads(json.dumps(self.config.to_json()))):
                self.say(f"changed since the run began: {key}")
            self.say(f"going on at step {self.step}")
        elif checkpoint.is_file():
            raise InputError(f"{self.out} already holds a training run: add --resume to go on with it, or give another folder")
        if self.rank == 0:
            self.out.mkdir(parents=True, exist_ok=True)
            write_text(self.out / "config.json", json.dumps(self.config.to_json(), indent=1))
            # What was logged after the checkpoint is done again.
            kept = [r for r in read_log(self.out / "log.jsonl") if r["step"] <= self.step] if self.step else []
            write_text(self.out / "log.jsonl", "".join(json.dumps(r) + "\n" for r in kept))

    # ---- the loop

    def run(self) -> None:
        """Train until the last step. After SIGTERM or SIGINT the next step to end is saved, then KeyboardInterrupt is raised.
        Raises Diverged, the batch saved next to the checkpoint, where loss or gradient is not a number."""
        run = self.config.run
        if run.threads:
            torch.set_num_threads(run.threads)
        if self.step == 0 and self.rank == 0:
            self._validate()
        recent: list[dict] = []
        started = time.perf_counter()
        with self._signals():
            for batch in self._batches():
                waited = time.perf_counter()
                record = self._one_step(batch)
                now = time.perf_counter()
                record |= {"step_ms": 1e3 * (now - started), "data_ms": 1e3 * (waited - started)}
                self.seconds += now - started
                recent.append(record)
                last = self.step == run.steps
                if self.rank == 0:
                    self._log(record)
                    if self.step % run.report_every == 0 or last:
                        self.say(progress_line(recent, run.steps))
                        recent = []
                    if self.step % run.validate_every == 0 or last:
                        self._validate()
                    if self.step % run.checkpoint_every == 0 or self._stopping or last:
                        self._save()
                if self._stopping:
                    self.say(f"stopped after step {self.step}; go on with --resume")
                    raise KeyboardInterrupt
                started = time.perf_counter()

    def _batches(self) -> Iterator[Batch]:
        run = self.config.run
        steps = TrainingSteps(self.training, self.config.initial_error, run.batch, self.rank, self.world)
        # Fresh processes, since OpenCV's threads do not survive a fork; an own generator, since the loader takes a number from
        # it each time that a run goes on.
        how = {"num_workers": run.workers, "multiprocessing_context": "spawn" if run.workers else None}
        how |= {"generator": torch.Generator(), "worker_init_fn": _ignore_interrupts}
        yield from torch.utils.data.DataLoader(steps, batch_size=None, sampler=range(self.step, run.steps), **how)

    def learning_rate(self, step: int) -> float:
        """Share of the highest rate: a linear rise, then half a cosine down to a tenth."""
        run = self.config.run
        rise = min(1.0, (step + 1) / (run.warmup + 1))
        fall = 0.5 * (1 + math.cos(math.pi * min(step / run.steps, 1.0)))
        return rise * (FINAL_RATE + (1 - FINAL_RATE) * fall)

    def _one_step(self, batch: Batch) -> dict:
        share = self.learning_rate(self.step)
        for group in self.optimizer.param_groups:
            group["lr"] = share * group["peak"]
        self.optimizer.zero_grad(set_to_none=True)
        strides, start = self.strides[self.step % len(self.strides)], None
        if self.config.features.imitation:
            with torch.no_grad():
                start = self.start.pyramid(batch.clean, strides)
        loss, kept, errors, success = self.model(batch, strides, start)
        # Sums over all processes: the mean over the pairs is then the same however they are spread over processes.
        sums = kept.sum(), loss.detach().sum(), (errors[:, -1] * kept).sum()
        counts = torch.tensor(len(batch.skipped)), torch.tensor(self._asked_to_stop)
        totals = torch.cat((torch.stack((*sums, *counts)).double(), (success & kept[:, None]).sum(0).double()))
        if self.world > 1:
            dist.all_reduce(totals)
        count = max(float(totals[0]), 1.0)
        self._stopping = float(totals[4]) > 0  # all processes stop after the same step
        if not bool(torch.isfinite(totals).all()):
            self._give_up(batch, "the loss")
        # DistributedDataParallel averages over the processes; this makes it the mean over the pairs kept.
        (loss.sum() * (self.world / count)).backward()
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        norm = torch.nn.utils.clip_grad_norm_(parameters, self.config.run.clip_norm)
        if not bool(torch.isfinite(norm)):
            self._give_up(batch, "the gradient")
        self.optimizer.step()
        self._average()
        rotation, translation = self.config.initial_error.limits(self.step)
        self.step += 1
        self.skipped += int(totals[3])
        record = {"kind": "step", "step": self.step, "loss": float(totals[1]) / count, "error_px": float(totals[2]) / count}
        record |= {"success": (totals[5:] / count).tolist(), "kept": int(totals[0]), "gradient": float(norm)}
        record |= {"rate": self.optimizer.param_groups[0]["lr"], "rotation_deg": rotation, "translation": translation}
        return record | {"skipped": self.skipped}

    @torch.no_grad()
    def _average(self) -> None:
        """Bring the running means up to date; over the first steps they are plain means."""
        if self.average is not self.refiner:
            weight = max(1 - self.config.run.average, 1 / (self.step + 2))
            for mean, latest in zip(self.average.parameters(), self.refiner.parameters(), strict=True):
                mean.lerp_(latest, weight)

    @torch.no_grad()
    def result(self) -> PairRefiner:
        """What is validated and kept: the running means, where they are asked for, drawn back towards the start."""
        result = copy.deepcopy(self.average)
        for value, start in zip(result.parameters(), self.start.parameters(), strict=True):
            value.lerp_(start, self.config.run.start_share)
        return result

    def _give_up(self, batch: Batch, what: str) -> None:
        path = self.out / f"bad_batch_{self.step}_{self.rank}.safetensors"
        tensors = {name: value for name, value in vars(batch).items() if isinstance(value, torch.Tensor)}
        tensors |= {"reference_camera": batch.reference_camera.params, "query_camera": batch.query_camera.params}
        save_tensors(path, tensors, {"names": json.dumps(batch.names)})
        raise Diverged(
            f"{what} of step {self.step} is not a number: the batch is in {path}; go on from the last checkpoint with "
            "--resume and a lower learning_rate"
        )

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        """Note SIGTERM and SIGINT instead of dying in the middle of a step."""

        def stop(*_: object) -> None:
            self._asked_to_stop = True

        try:
            old = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
        except ValueError:  # not the main thread, so signals do not come here
            old = {}
        try:
            yield
        finally:
            for number, handler in old.items():
                signal.signal(number, handler)

    # ---- what is kept

    def _log(self, record: dict) -> None:
        with (self.out / "log.jsonl").open("a") as file:
            file.write(json.dumps(record) + "\n")

    def _save(self) -> None:
        best = self.best if math.isfinite(self.best) else None
        state = {"step": self.step, "skipped": self.skipped, "seconds": self.seconds, "best": best}
        save_checkpoint(self.out / FILE_NAME, self.state, self.optimizer, {**state, "config": self.config.to_json()})

    def _export(self, name: str, result: PairRefiner, figures: dict) -> None:
        state = {k: v.detach().contiguous() for k, v in result.network.state_dict().items()}
        damping = damping_tensors(result.damping) if self.config.network.learn_damping else {}
        training = {"date": date.today().isoformat(), "steps": self.step, "hours": round(self.seconds / 3600, 3)}
        training |= {"pairs": self.step * self.config.run.batch * self.world, "validation": figures}
        card = {"architecture": self.config.network.architecture, **self.config.card}
        card |= {"start": self.start_card, "training": training}
        Weights(state, card, {**self.companions, **damping}).save(self.out / name)

    # ---- validation

    def _validate(self) -> None:
        """Table, log line, curves and weights. The held-out pairs start with the curriculum's last errors."""
        if self.validation is None:
            count, size = self.config.run.validation_pairs, self.config.run.batch
            limits = self.config.initial_error.limits(self.config.run.steps)
            self.validation = {
                name: validation_batches(build_mixture(self.config, True, augmented), count, size, limits)
                for name, augmented in (("clean", False), ("augmented", True))
            }
        result = self.result()
        rows = {name: evaluate(result, batches, self.strides) for name, batches in self.validation.items()}
        self.say(validation_table(self.step, self.config.run.validation_pairs, rows))
        figures = {name: asdict(row) for name, row in rows.items()}
        self._log({"kind": "validation", "step": self.step, **figures})
        draw_curves(read_log(self.out / "log.jsonl"), self.out / "curves.png")
        self._export("weights.safetensors", result, figures)
        mean = float(np.mean([row.loss for row in rows.values()]))
        if mean < self.best:
            self.best = mean
            self._export("best.safetensors", result, figures)


def save_checkpoint(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, state: dict) -> None:
    """model's (all modules of a run together) and optimizer's tensors, torch's random state, and `state`, which JSON must be
    able to hold."""
    tensors = {f"model.{name}": value for name, value in model.state_dict().items()}
    for index, values in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{name}": value for name, value in values.items()}
    tensors[_RANDOM] = torch.get_rng_state()
    save_tensors(path, tensors, {"state": json.dumps(state)})


def load_checkpoint(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> dict:
    """Put a checkpoint's tensors in place → its `state`. Raises InputError where the file is damaged or of another model."""
    try:
        tensors, metadata = load_tensors(path)
        state = json.loads(metadata["state"])
    except (TensorFileError, OSError, KeyError, json.JSONDecodeError) as error:
        raise InputError(f"{path} is not a readable checkpoint ({error}): start again in another folder") from error
    try:
        model.load_state_dict({n.removeprefix("model."): v for n, v in tensors.items() if n.startswith("model.")})
        slots: dict[int, dict[str, torch.Tensor]] = {}
        for name, value in tensors.items():
            if name.startswith("optimizer."):
                _, index, key = name.split(".")
                slots.setdefault(int(index), {})[key] = value
        groups = optimizer.state_dict()["param_groups"]
        optimizer.load_state_dict({"state": slots, "param_groups": groups})
    except (RuntimeError, ValueError) as error:
        raise InputError(
            f"{path} is of another network ({str(error).splitlines()[-1].strip()}): resume with the configuration "
            "it was made with"
        ) from error
    torch.set_rng_state(tensors[_RANDOM])
    return state


@torch.no_grad()
def evaluate(refiner: PairRefiner, batches: list[Batch], strides: tuple[tuple[int, ...], ...]) -> Validation:
    """The training loss, and the errors of the running system's optimizer (`AlignmentOptions()` with the learned damping) on
    the same pairs. The sets of levels take turns over the batches."""
    losses, success, errors = [], [], []
    for k, batch in enumerate(batches):
        levels = strides[k % len(strides)]
        loss, _ = refiner.refine(batch, levels)
        losses.append(loss.loss[loss.kept])
        success.append(loss.success[loss.kept].double())
        points, mask, query = refiner.features(batch, levels)
        errors += [_running_errors(refiner, batch, b, points, mask, query) for b in range(len(batch))]
    pixels, degrees, shares = np.array(errors).T
    within = (float(((degrees < angle) & (shares < share)).mean()) for angle, share in ((0.1, 0.002), (0.5, 0.01)))
    levels_reached = tuple(torch.cat(success).mean(0).tolist())
    return Validation(float(torch.cat(losses).mean()), levels_reached, float(np.median(pixels)), *within)


def _check_features(config: TrainingConfig, levels: int) -> None:
    """Raises InputError where weights of losses mean nothing for this network."""
    features = config.features
    if max(len(features.contrast), len(features.imitation)) > levels:
        raise InputError(f"features: the network has {levels} levels: give contrast and imitation no more weights than that")
    if not features.poses and config.network.learn_damping:
        raise InputError("features: without a loss of poses nothing teaches the damping: set network.learn_damping to false")


def _running_errors(
    refiner: PairRefiner, batch: Batch, b: int, points: ReferencePoints, mask: torch.Tensor, query: FeaturePyramid
) -> tuple[float, float, float]:
    """Mean reprojection error in pixels, rotation in degrees and translation as a share of the depth, of one pair."""
    one, camera = slice(b, b + 1), member(batch.query_camera, b)
    options = replace(AlignmentOptions(), loss=refiner.alignment.loss)
    view = View(member(query, one), camera, member(points, b), mask[one])
    result = align(view, batch.initial[b], options, refiner.damping)
    truth, estimate, xyz = batch.query_from_reference[b], result.camera_from_map, batch.xyz[b].double()
    seen = camera.in_image(camera.project(se3.transform(truth, xyz))[0]) & mask[b]
    distance, angle = se3.pose_difference(se3.inverse(estimate), se3.inverse(truth))
    depth = se3.transform(truth, xyz)[mask[b], 2].median()
    error = squared_distances(camera, xyz[None], truth[None], estimate[None])[0].sqrt()[seen].mean()
    return float(error), math.degrees(float(angle)), float(distance / depth)


def _parameter_groups(refiner: PairRefiner, run: RunSection) -> list[dict]:
    """What is trained, one group per learning rate. Raises InputError where a rate is for nothing."""
    unused = [start for start in run.rates if not any(name.startswith(start) for name, _ in refiner.network.named_parameters())]
    if unused:
        raise InputError(f"run: rates names '{unused[0]}', with which no parameter's name begins")
    groups: dict[float, list] = {}
    for name, parameter in refiner.network.named_parameters():
        if parameter.requires_grad:
            factor = math.prod(factor for start, factor in run.rates.items() if name.startswith(start))
            groups.setdefault(factor, []).append(parameter)
    groups.setdefault(run.damping_rate, []).extend(p for p in refiner.damping.parameters() if p.requires_grad)
    groups = {factor: parameters for factor, parameters in groups.items() if parameters}
    if not groups:
        raise InputError("network: everything is frozen: nothing is left to train")
    rate = run.learning_rate
    return [{"params": parameters, "lr": rate, "peak": rate * factor} for factor, parameters in groups.items()]


def _ignore_interrupts(_: int) -> None:
    """Ctrl-C and torchrun's SIGTERM reach the processes that prepare data as well: these end with the training process, not
    before it."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


def _changed_keys(old: dict, new: dict, prefix: str = "") -> list[str]:
    """Names of the settings in which two configurations differ."""
    changed = []
    for key in sorted(set(old) | set(new)):
        a, b = old.get(key), new.get(key)
        if isinstance(a, dict) and isinstance(b, dict):
            changed += _changed_keys(a, b, f"{prefix}{key}.")
        elif a != b:
            changed.append(f"{prefix}{key}")
    return changed


@contextlib.contextmanager
def processes() -> Iterator[None]:
    """Join the other processes that torchrun started, if it did."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield
        return
    dist.init_process_group("gloo")
    try:
        yield
    finally:
        dist.destroy_process_group()
