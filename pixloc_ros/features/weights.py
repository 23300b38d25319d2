# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""Weights files: safetensors whose header carries the card (architecture, data, licence) as JSON."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

import torch

from ..errors import InputError
from ..io.tensor_file import TensorFileError, load_tensors, save_tensors

SHIPPED = Path(__file__).resolve().parents[1] / "weights"
COMPANIONS = ("damping.", "levels.", "judge.")
"""What the names of tensors begin with that were learned together with a network and are none of its own."""


@dataclass(frozen=True)
class Weights:
    """What a weights file holds.

    Attributes:
        network: State dict of the network.
        card: Where the tensors come from: architecture, training data, licence.
        companions: Tensors that were learned together with the network, with their names in the file (see `COMPANIONS`).
            `alignment.damping.damping_of` and `alignment.LevelWeights.of` read the optimizer's,
            `tracking.alignment_judge.AlignmentJudge.of` the judge's.
    """

    network: dict[str, torch.Tensor]
    card: dict
    companions: dict[str, torch.Tensor] = field(default_factory=dict)

    @classmethod
    def open(cls, weights: str | Path) -> Weights:
        """Read a file or the weights of a shipped name. Raises InputError where there are none, or the file is damaged."""
        path = resolve_weights(weights)
        try:
            tensors, metadata = load_tensors(path)
            card = json.loads(metadata.get("card", "null"))
        except (TensorFileError, OSError, json.JSONDecodeError) as error:
            raise InputError(f"{path} is not a readable weights file ({error}): fetch or import it again") from error
        if not isinstance(card, dict) or "architecture" not in card:
            raise InputError(f"{path} has no card that names its architecture: it was not written by pixloc")
        companions = {name: tensors.pop(name) for name in list(tensors) if name.startswith(COMPANIONS)}
        return cls(tensors, card, companions)

    def save(self, path: Path) -> None:
        """Write a weights file under a temporary name, then rename it."""
        path.parent.mkdir(parents=True, exist_ok=True)
        save_tensors(path, self.network | self.companions, {"card": json.dumps(self.card, indent=1)})


def resolve_weights(weights: str | Path) -> Path:
    """The file of a shipped network's name ("compact"), or the path itself. InputError where neither exists."""
    shipped = SHIPPED / f"{weights}.safetensors"
    path = shipped if shipped.is_file() else Path(weights)
    if not path.is_file():
        names = ", ".join(sorted(p.stem for p in SHIPPED.glob("*.safetensors")))
        raise InputError(f"no weights '{weights}': give a .safetensors file or one of the shipped names ({names})")
    return path
