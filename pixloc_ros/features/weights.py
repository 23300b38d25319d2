# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""Weights files: safetensors whose header carries the card (architecture, data, licence) as JSON."""
from __future__ import annotations

import json
import os
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from ..errors import InputError

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
        with safe_open(str(path), framework="pt") as file:
            card = json.loads((file.metadata() or {}).get("card", "null"))
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except (SafetensorError, OSError, json.JSONDecodeError) as error:
        raise InputError(f"{path} is not a readable weights file ({error}): fetch or import it again") from error
    if not isinstance(card, dict) or "architecture" not in card:
        raise InputError(f"{path} has no card that names its architecture: it was not written by pixloc")
    return state, card


def save_weights(path: Path, state: dict[str, torch.Tensor], card: dict) -> None:
    """Write a weights file under a temporary name, then rename it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_bytes(save({k: v.contiguous() for k, v in state.items()}, {"card": json.dumps(card, indent=1)}))
    os.replace(temporary, path)
