# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""Weights files: safetensors whose header carries the card (architecture, data, licence) as JSON."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from ..errors import InputError
from ..io.tensor_file import TensorFileError, load_tensors, save_tensors

SHIPPED = Path(__file__).resolve().parents[1] / "weights"


def resolve_weights(weights: str | Path) -> Path:
    """The file of a shipped network's name ("compact"), or the path itself. InputError where neither exists."""
    shipped = SHIPPED / f"{weights}.safetensors"
    path = shipped if shipped.is_file() else Path(weights)
    if not path.is_file():
        names = ", ".join(sorted(p.stem for p in SHIPPED.glob("*.safetensors")))
        raise InputError(f"no weights '{weights}': give a .safetensors file or one of the shipped names ({names})")
    return path


def load_weights(path: Path) -> tuple[dict[str, torch.Tensor], dict]:
    """State dict and card of a weights file. InputError where the file is not one, or is cut short."""
    try:
        state, metadata = load_tensors(path)
        card = json.loads(metadata.get("card", "null"))
    except (TensorFileError, OSError, json.JSONDecodeError) as error:
        raise InputError(f"{path} is not a readable weights file ({error}): fetch or import it again") from error
    if not isinstance(card, dict) or "architecture" not in card:
        raise InputError(f"{path} has no card that names its architecture: it was not written by pixloc")
    return state, card


def save_weights(path: Path, state: dict[str, torch.Tensor], card: dict) -> None:
    """Write a weights file under a temporary name, then rename it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    save_tensors(path, state, {"card": json.dumps(card, indent=1)})
