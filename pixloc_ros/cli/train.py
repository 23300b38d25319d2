# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""`pixloc train`: train features, confidences and damping."""

from __future__ import annotations

import argparse
import functools
from pathlib import Path


def add_parser(subparsers) -> None:
    parser = subparsers.add_parser(
        "train",
        help="train the network from posed images or single photos",
        description="Train features, confidences and damping through the unrolled alignment (docs/python.md). The folder gets "
        "the weights, the log, curves and a checkpoint after every step or as often as the configuration says; a run "
        "that was killed goes on with --resume. Under torchrun the processes share the work.",
        epilog="examples:\n  pixloc train config/training/compact.json -o runs/compact\n"
        "  pixloc train config/training/compact.json -o runs/compact --resume\n"
        "  torchrun --nproc_per_node 4 -m pixloc_ros.cli.main train CONFIG.json -o runs/compact",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("config", type=Path, metavar="CONFIG.json")
    parser.add_argument("-o", "--out", type=Path, required=True, metavar="DIR", help="the run's folder")
    parser.add_argument("--resume", action="store_true", help="go on from the folder's checkpoint, if it has one")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    from ..training.config import read_config
    from ..training.trainer import Trainer, processes

    config = read_config(args.config)
    with processes():
        Trainer(config, args.out, args.resume, functools.partial(print, flush=True)).run()
    return 0
