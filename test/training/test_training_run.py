# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""Training runs: learning, resuming, several processes, trouble."""

import copy
import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from feature_variants import ReducedNetwork
from training_scene import invented_photo, one_thread, write_config  # noqa: F401

from pixloc_ros import alignment
from pixloc_ros.alignment import AlignmentOptions, ReferencePoints, align, damping_of
from pixloc_ros.cli.main import main
from pixloc_ros.errors import InputError
from pixloc_ros.features import load_extractor
from pixloc_ros.features.compact import CompactNetwork
from pixloc_ros.features.sampling import sample_level
from pixloc_ros.io.tensor_file import load_tensors
from pixloc_ros.training.config import build_mixture, build_network, read_config
from pixloc_ros.training.pairs import PairShape, collate, perturbed, validation_batches
from pixloc_ros.training.photos import MotionRange, render_pair
from pixloc_ros.training.refiner import PairRefiner, member
from pixloc_ros.training.report import read_log
from pixloc_ros.training.trainer import FILE_NAME, Diverged, Trainer, evaluate, load_checkpoint

ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2]), "OMP_NUM_THREADS": "1"}


pytestmark = pytest.mark.usefixtures("one_thread")


def silent(_):
    pass


class Killed(Exception):
    """Stands for a kill: nothing gets a chance to clean up the run."""


class KilledTrainer(Trainer):
    """Dies in the step after `survives` steps."""

    survives = 2

    def _one_step(self, batch):
        if self.step == self.survives:
            raise Killed
        return super()._one_step(batch)


def tensors_of(run):
    tensors, metadata = load_tensors(run / FILE_NAME)
    return tensors, json.loads(metadata["state"])


def test_one_pair_is_learned_by_heart(tmp_path):
    """Below a hundredth of a pixel, in the mean over the points, from 3 degrees and 6 % of the depth away, by what is learned
    alone: the exact levels, which are not, are left out."""
    config = read_config(write_config(tmp_path))
    network, damping, _ = build_network(dataclasses.replace(config.network, damping=1e-3), tmp_path)
    network = ReducedNetwork(network, CompactNetwork.robust)
    refiner = PairRefiner(network, damping, AlignmentOptions("paper", 4), dataclasses.replace(config.loss, scale_px=0.02))
    view = PairShape(128, 96, 96)
    pair = render_pair([invented_photo(3)], view, MotionRange(5, 3, 0.1), np.random.default_rng(2), "pair")
    depth = float(pair.xyz[:, 2].median())
    initial = perturbed(pair.query_from_reference, np.radians(3), 0.06 * depth, np.random.default_rng(0))
    batch = collate([pair], [initial], view.points)
    optimizer = torch.optim.Adam(
        [{"params": network.parameters(), "lr": 1e-3}, {"params": damping.parameters(), "lr": 0.05}], betas=(0.9, 0.99)
    )
    errors = []
    for _ in range(80):
        optimizer.zero_grad()
        loss, _ = refiner.refine(batch, tuple(network.strides))
        errors.append(float(loss.errors[0, -1]))
        if errors[-1] < 0.01:
            break
        loss.loss.sum().backward()
        optimizer.step()
    assert errors[-1] < 0.01 < errors[0], errors


def test_training_lowers_the_loss_on_held_out_photos(tmp_path):
    """From poses alone, on pairs and photos that it was not trained on."""
    path = write_config(tmp_path, steps=16, batch=4, learning_rate=3e-4, warmup=2, validation_pairs=12)
    config = read_config(path)
    limits = config.initial_error.limits(config.run.steps)
    held_out = validation_batches(build_mixture(config, True, True), 12, 6, limits)
    trainer = Trainer(config, tmp_path / "run", say=silent)
    before = evaluate(trainer.refiner, held_out, trainer.strides)
    trainer.run()
    after = evaluate(trainer.refiner, held_out, trainer.strides)
    assert after.loss < 0.9 * before.loss, (before, after)


def test_a_killed_run_goes_on_as_if_nothing_had_happened(tmp_path):
    config = read_config(write_config(tmp_path, steps=4, average=0.9))
    Trainer(config, tmp_path / "whole", say=silent).run()
    run = tmp_path / "killed"
    with pytest.raises(Killed):
        KilledTrainer(config, run, say=silent).run()
    assert tensors_of(run)[1]["step"] == 2
    with (run / "log.jsonl").open("a") as file:  # the kill came after the next step's log line and in the middle of another
        file.write(json.dumps({**read_log(run / "log.jsonl")[-1], "step": 3}) + '\n{"kind": "st')
    with pytest.raises(InputError, match="--resume"):
        Trainer(config, run, say=silent)
    Trainer(config, run, resume=True, say=silent).run()
    expected, found = (tensors_of(tmp_path / name)[0] for name in ("whole", "killed"))
    assert expected.keys() == found.keys() and any(name.startswith("optimizer.") for name in expected)
    for name, value in expected.items():
        assert torch.equal(value, found[name]), name
    logs = [
        [record for record in read_log(tmp_path / name / "log.jsonl") if record["kind"] == "step"] for name in ("whole", "killed")
    ]
    assert [record["step"] for record in logs[1]] == [1, 2, 3, 4]
    assert [record["loss"] for record in logs[0]] == [record["loss"] for record in logs[1]]


def test_rates_are_each_parameter_s_own_and_means_are_kept(tmp_path):
    """Adam's first step is as long as the rate, whatever the gradient; the means of two weights are half-way, and drawn back
    to the start by a fifth."""
    run = {"steps": 1, "warmup": 0, "learning_rate": 1e-4, "average": 0.9, "start_share": 0.2}
    config = read_config(write_config(tmp_path, **run, rates={"stem.0": 5.0, "confidence.": 2.0}))
    config = dataclasses.replace(config, network=dataclasses.replace(config.network, learn_damping=False, frozen=("fusion",)))
    trainer = Trainer(config, tmp_path / "run", say=silent)
    before = copy.deepcopy(trainer.refiner)
    trainer.run()
    share = trainer.learning_rate(0) * 1e-4
    for part, longest in (("stem.0", 5), ("stem.1", 1), ("block5", 1), ("confidence", 2), ("fusion", 0)):
        old, new, kept = (r.network.get_submodule(part).state_dict() for r in (before, trainer.refiner, trainer.result()))
        steps = torch.cat([(new[name] - old[name]).abs().flatten() for name in old])
        assert float(steps.max()) == pytest.approx(longest * share, rel=2e-2, abs=1e-9), part
        for name in old:
            torch.testing.assert_close(kept[name], 0.6 * old[name] + 0.4 * new[name])
    extractor = load_extractor(tmp_path / "run" / "weights.safetensors")
    assert damping_of(extractor) is None  # it was not learned
    assert torch.equal(extractor.network.stem[0][0].weight, trainer.result().network.stem[0][0].weight)
    with pytest.raises(InputError, match="rates names 'stern'"):
        run = dataclasses.replace(config.run, rates={"stern": 2.0})
        Trainer(dataclasses.replace(config, run=run), tmp_path / "other", say=silent)


def test_weights_of_a_run_serve_the_extractor(tmp_path, capsys):
    path = write_config(tmp_path, steps=1)
    assert main(["train", str(path), "-o", str(tmp_path / "run")]) == 0
    text = capsys.readouterr().out
    assert "step 1/1" in text and "validation at step 1" in text
    extractor = load_extractor(tmp_path / "run" / "best.safetensors")
    pyramid = extractor.extract(invented_photo(0))
    assert damping_of(extractor) is not None and pyramid.levels[0].confidence is not None
    assert (tmp_path / "run" / "curves.png").read_bytes()[:4] == b"\x89PNG"
    assert main(["train", str(path), "-o", str(tmp_path / "run")]) == 2


def test_inference_gives_the_poses_of_training(tmp_path):
    """The extractor, one image at a time and without gradients, against the training's batch, with gradients."""
    config = read_config(write_config(tmp_path, steps=2))
    trainer = Trainer(config, tmp_path / "run", say=silent)
    trainer.run()
    batch = trainer.training.batch([(0, 100 + k) for k in range(3)], (3.0, 0.05))
    _, trained = trainer.refiner.refine(batch, trainer.strides[0])
    assert trained.camera_from_map.requires_grad
    extractor = load_extractor(tmp_path / "run" / "weights.safetensors")
    options = dataclasses.replace(config.alignment.options(), stop_cells=0.0)
    for b in range(3):
        reference, query = (extractor.extract(images[b, 0].byte().numpy()) for images in (batch.reference, batch.query))
        pixels, _ = member(batch.reference_camera, b).project(batch.xyz[b])
        samples = [sample_level(level, pixels[None]) for level in reference.levels]
        descriptors = tuple(torch.nn.functional.normalize(v[0], dim=-1) for v, _, _ in samples)
        points = ReferencePoints(batch.xyz[b], descriptors, tuple(c if c is None else c[0] for _, c, _ in samples))
        camera, damping = member(batch.query_camera, b), damping_of(extractor)
        with torch.inference_mode():
            view = alignment.View(query, camera, points, batch.mask[b : b + 1])
            result = align(view, batch.initial[b], options, damping)
        torch.testing.assert_close(result.camera_from_map, trained.camera_from_map[b].detach(), rtol=0, atol=1e-4)


def test_numbers_that_are_none_stop_the_run_and_save_the_batch(tmp_path):
    config = read_config(write_config(tmp_path, steps=3))
    trainer = Trainer(config, tmp_path / "run", say=silent)
    step = trainer._one_step

    def poisoned(batch):
        if trainer.step == 1:
            with torch.no_grad():
                next(iter(trainer.refiner.network.parameters())).fill_(float("nan"))
        return step(batch)

    trainer._one_step = poisoned
    with pytest.raises(Diverged, match="not a number: the batch is in"):
        trainer.run()
    (saved,) = (tmp_path / "run").glob("bad_batch_1_*.safetensors")
    batch, metadata = load_tensors(saved)
    assert batch["query"].shape == (2, 1, 96, 128) and len(json.loads(metadata["names"])) == 2
    tensors, state = tensors_of(tmp_path / "run")
    assert state["step"] == 1 and all(bool(t.isfinite().all()) for t in tensors.values() if t.is_floating_point())


def test_a_damaged_checkpoint_is_refused(tmp_path):
    config = read_config(write_config(tmp_path, steps=1))
    trainer = Trainer(config, tmp_path / "run", say=silent)
    trainer.run()
    file = tmp_path / "run" / FILE_NAME
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(InputError, match="not a readable checkpoint"):
        load_checkpoint(file, trainer.refiner, trainer.optimizer)


DDP_SCRIPT = """
import sys
from pathlib import Path
import torch
from pixloc_ros.training.config import read_config
from pixloc_ros.training.trainer import Trainer, processes
torch.set_num_threads(1)
with processes():
    trainer = Trainer(read_config(Path(sys.argv[1])), Path(sys.argv[2]), say=lambda line: None)
    batch = next(iter(trainer._batches()))
    if trainer.rank == 0:
        batch.mask[0] = False
    trainer._one_step(batch)  # what no loss reaches is an error in the second step, not in the first
    record = trainer._one_step(batch)
    gradients = {n: p.grad for n, p in trainer.refiner.named_parameters() if p.grad is not None}
    if trainer.rank == 0:
        torch.save((gradients, record["loss"], record["kept"], record["success"]), sys.argv[3])
"""


@pytest.mark.parametrize("features", [{}, {"poses": 0, "contrast": [0.5, 1.0]}], ids=["poses", "contrast alone"])
def test_two_processes_compute_the_gradients_of_one(tmp_path, features):
    """Two with two pairs each, or one with four; one of the pairs is dropped, so that the means are over three."""
    results = []
    for world in (1, 2):
        path = write_config(tmp_path, steps=1, batch=4 // world, clip_norm=1e9)
        values = json.loads(path.read_text())
        values["network"]["learn_damping"] = not features
        path.write_text(json.dumps(values | {"features": features}))
        script = tmp_path / "step.py"
        script.write_text(DDP_SCRIPT)
        found = tmp_path / f"gradients{world}.pt"
        environment = ENVIRONMENT | {"MASTER_ADDR": "localhost", "MASTER_PORT": str(20000 + os.getpid() % 20000)}
        command = [sys.executable, str(script), str(path), str(tmp_path / f"run{world}"), str(found)]
        ranks = [environment | {"WORLD_SIZE": str(world), "RANK": str(rank)} for rank in range(world)]
        running = [subprocess.Popen(command, env=one) for one in ranks]
        assert [process.wait(timeout=120) for process in running] == [0] * world
        results.append(torch.load(found, weights_only=True))
    (one, loss_one, kept_one, success_one), (two, loss_two, kept_two, success_two) = results
    assert kept_one == kept_two and success_one == success_two and loss_one == pytest.approx(loss_two, rel=1e-6)
    assert one.keys() == two.keys() and sum(float(g.abs().sum()) for g in one.values()) > 0
    assert kept_one == 3
    largest = max(float(gradient.abs().max()) for gradient in one.values())
    for name, gradient in one.items():
        torch.testing.assert_close(two[name], gradient, rtol=1e-3, atol=1e-5 * largest, msg=name)


def test_sigterm_saves_and_sigkill_loses_no_finished_step(tmp_path):
    path = write_config(tmp_path, steps=500)
    command = [sys.executable, "-m", "pixloc_ros.cli.main", "train", str(path), "-o", str(tmp_path / "run"), "--resume"]
    log = tmp_path / "run" / "log.jsonl"
    steps = []
    for number, code in ((signal.SIGKILL, -signal.SIGKILL), (signal.SIGTERM, 130)):
        goal = (steps[-1] if steps else 0) + 3
        process = subprocess.Popen(command, env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        for _ in range(600):
            if max((record["step"] for record in read_log(log)), default=0) >= goal:
                break
            assert process.poll() is None
            time.sleep(0.1)
        process.send_signal(number)
        assert process.wait(timeout=60) == code
        steps.append(tensors_of(tmp_path / "run")[1]["step"])
        assert 0 <= read_log(log)[-1]["step"] - steps[-1] <= (1 if number == signal.SIGKILL else 0)
    assert steps[1] > steps[0] >= 2
