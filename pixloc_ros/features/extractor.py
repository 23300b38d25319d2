# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""From an image as it came to a feature pyramid: one network with its weights, ready to run."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path

import cv2
import numpy as np
import torch

from ..errors import InputError
from ..io.images import check_image_size
from .compact import CompactNetwork
from .execution import Execution, Run
from .pyramid import FeaturePyramid
from .vgg import VggNetwork
from .weights import Weights, resolve_weights

NETWORKS = {"compact": CompactNetwork.for_weights, "vgg16": lambda _: VggNetwork(16), "vgg19": lambda _: VggNetwork(19)}
"""Architecture to what makes the network for a state dict: with `strides` and `channels` per level, `takes_grey` (one
channel in, or three), and a forward pass from float32 [B, 1 or 3, H, W], 0 to 255, to a pyramid."""
WORKING_SIDE_PX = 640


class Extractor:
    """A network in inference mode.

    Attributes:
        network: The network itself.
        name: The weights' name.
        fingerprint: Of architecture and weights. Maps carry it, so that features of two networks are never compared.
        execution: How to run the network.
        backend: What runs it; where `execution` says "auto", what was chosen.
        companions: Tensors that were learned together with the network (see `Weights`).
        strides: Image pixels per cell of each level, coarse to fine.
        channels: Of each level.
        working_side: Images are shrunk to this longer side, in pixels.
    """

    def __init__(
        self,
        network: torch.nn.Module,
        name: str,
        fingerprint: str,
        execution: Execution | None = None,
        companions: Mapping[str, torch.Tensor] | None = None,
    ) -> None:
        """Raises InputError where the network cannot be run like that."""
        self.network = network.eval().requires_grad_(False).to(memory_format=torch.channels_last)
        self.name, self.fingerprint = name, fingerprint
        self.execution = execution or Execution()
        self.companions = companions or {}
        self.backend = self.execution.backend_for(network)
        self.strides: tuple[int, ...] = network.strides
        self.channels: tuple[int, ...] = network.channels
        self.working_side = WORKING_SIDE_PX

    def suited_to(self, width: int, height: int) -> Extractor:
        """The same network with its levels chosen for images of a size in pixels: for building a map."""
        return self._around(self.network.suited_to(width, height))

    def with_strides(self, strides: tuple[int, ...]) -> Extractor:
        """The same network with the levels that a map was made with. Raises InputError where it has no such levels."""
        return self._around(self.network.with_strides(strides))

    def _around(self, network: torch.nn.Module) -> Extractor:
        return Extractor(network, self.name, self.fingerprint, self.execution, self.companions)

    @cached_property
    def _run(self) -> Run:
        """Made at the first image, when the number of threads is settled."""
        return self.execution.runner(self.network)

    @torch.inference_mode()
    def extract(self, image: np.ndarray) -> FeaturePyramid:
        """uint8 [H, W] grey or [H, W, 3] RGB, at the resolution given, to a pyramid with batch size 1.

        Raises InputError where the image is not such an array or smaller than 64 pixels along a side.
        """
        fits = isinstance(image, np.ndarray) and image.dtype == np.uint8 and image.ndim in (2, 3)
        if not fits or (image.ndim == 3 and image.shape[2] != 3):
            raise InputError(
                f"an image must be uint8 [H, W] or [H, W, 3], not {getattr(image, 'dtype', type(image))} "
                f"{getattr(image, 'shape', '')}: convert it first"
            )
        check_image_size(image.shape[1], image.shape[0])
        if self.network.takes_grey and image.ndim == 3:
            image = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
        elif not self.network.takes_grey and image.ndim == 2:
            image = cv2.cvtColor(image, cv2.COLOR_GRAY2RGB)
        return self._run(image)


def load_extractor(weights: str | Path = "compact", execution: Execution | None = None) -> Extractor:
    """The network of a shipped name or of a weights file. Raises InputError for missing or unfit files."""
    path = resolve_weights(weights)
    held = Weights.open(path)
    architecture = held.card["architecture"]
    if architecture not in NETWORKS:
        raise InputError(f"{path} is of architecture '{architecture}': this version knows {', '.join(NETWORKS)}")
    network = NETWORKS[architecture](held.network)
    try:
        network.load_state_dict(held.network)
    except RuntimeError as error:
        reason = str(error).splitlines()[1].strip()
        raise InputError(f"{path} does not fit the architecture '{architecture}': {reason}") from error
    # Without the companions: features of the same network stay comparable whatever optimizer they are used with.
    digest = hashlib.sha256(architecture.encode())
    for name in sorted(held.network):
        digest.update(name.encode() + held.network[name].contiguous().numpy().tobytes())
    return Extractor(network, path.stem, digest.hexdigest()[:16], execution, held.companions)
