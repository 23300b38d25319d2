# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""The options about what runs the network, which `localize` and `track` share."""

from __future__ import annotations

import argparse


def add_execution_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("what runs the network")
    group.add_argument(
        "--backend",
        default="auto",
        metavar="NAME",
        help="torch, onnxruntime, openvino, or auto (default): ONNX Runtime where it can be used",
    )
    group.add_argument("--device", default="cpu", metavar="NAME", help="cpu (default) or cuda; of the optimizer, too")
    group.add_argument("--precision", default="float32", metavar="NAME", help="float32 (default), bfloat16 or float16")


def execution(args: argparse.Namespace):
    """`Execution` of the arguments. Raises InputError for what this machine cannot do."""
    from ..features import Execution

    return Execution(args.backend, args.device, args.precision)
