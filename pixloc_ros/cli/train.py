# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""`pixloc train`: train the network, or what the optimizer believes, from posed images or single photos.

Trains features, confidences and damping through the unrolled alignment (docs/python.md). The folder gets the weights, the log,
curves and a checkpoint after every step or as often as the configuration says; a run that was killed goes on with --resume. Under
torchrun the processes share the work. A configuration with a section "samples" teaches the optimizer instead: how much it
believes levels, residuals and priors, and how likely a pose is right.

examples:
  pixloc train config/training/compact.json -o runs/compact
  pixloc train config/training/compact.json -o runs/compact --resume
  pixloc train config/training/alignment.json -o runs/alignment
  torchrun --nproc_per_node 4 -m pixloc_ros.cli.main train CONFIG.json -o runs/compact
"""

import argparse
import functools

from .arguments import add_verb, flag, path
from .lazy import training


def add_parser(subparsers) -> None:
    parser = add_verb(subparsers, "train", run, __doc__)
    path(parser, "config CONFIG.json")
    path(parser, "-o --out DIR", "the run's folder")
    flag(parser, "--resume", "go on from the folder's checkpoint, if it has one")


def run(args: argparse.Namespace) -> int:
    say = functools.partial(print, flush=True)
    if "samples" in training.config.read_json(args.config):
        path = training.alignment_weights.run(training.alignment_weights.read_config(args.config), args.out, args.resume, say)
        say(f"{path}: give it as --weights, or put it in place of the shipped one; maps stay usable")
        return 0
    config = training.config.read_config(args.config)
    with training.trainer.processes():
        training.trainer.Trainer(config, args.out, args.resume, say).run()
    return 0
