# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""Checkpoints: all tensors of a run in one safetensors file, the rest as JSON in its header. No pickle, never half written."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from torch import nn

from ..errors import InputError
from ..io.tensor_file import TensorFileError, load_tensors, save_tensors

FILE_NAME = "checkpoint.safetensors"
_RANDOM = "random.torch"


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
