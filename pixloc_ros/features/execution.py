# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""Ways to run a network on an image. All compute the same features; tests hold them together.

The compact network on a CPU has a path of its own, since half of what it costs otherwise is not convolutions: the image is
brought to zero mean and unit variance in NumPy, the convolutions run in torch, ONNX Runtime or OpenVINO, descriptors come to
unit length in place, and the exact levels are compiled.
"""

import copy
import importlib.util
import io
import math
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import cv2
import numba
import numpy as np
import torch

from ..errors import InputError
from ..geometry.single import FAST_JIT
from .compact import CompactNetwork, pad_sizes
from .patches import CHANNELS, patch_features_compiled
from .pyramid import FeatureLevel, FeaturePyramid

BACKENDS = ("auto", "torch", "onnxruntime", "openvino")
PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
VARIANCE_FLOOR = 1e-5
"""As in `torch.nn.functional.instance_norm`."""
NORM_FLOOR = np.float32(1e-12)
"""As in `torch.nn.functional.normalize`."""

Run = Callable[[np.ndarray], FeaturePyramid]
"""uint8 [H, W] grey or [H, W, 3] RGB, as the network takes it, to features of batch size 1."""
Convolutions = Callable[[np.ndarray], tuple[list[np.ndarray], "list[np.ndarray | None]"]]
"""float32 image [H, W] to the robust levels [H_k, W_k, C_k], not of unit length yet, and confidences [H_k, W_k] or None. All are
new arrays, which the caller may change."""


@dataclass(frozen=True)
class Execution:
    """How to run the network.

    Attributes:
        backend: "torch", "onnxruntime" or "openvino" (the compact network on a CPU only), or "auto": ONNX Runtime where it is
            installed and serves, else torch.
        device: torch's name of it, such as "cpu" or "cuda".
        precision: Of the convolutions: "float32", or "bfloat16" or "float16" where the machine is fast at that (torch only;
            OpenVINO knows bfloat16, too).
    """

    backend: str = "auto"
    device: str = "cpu"
    precision: str = "float32"

    def __post_init__(self) -> None:
        for value, known, what in ((self.backend, BACKENDS, "backend"), (self.precision, tuple(PRECISIONS), "precision")):
            if value not in known:
                raise InputError(f"{what} '{value}' of the network: choose one of {', '.join(known)}")
        try:
            device = torch.device(self.device)
        except RuntimeError as error:
            raise InputError(f"device '{self.device}' is none that torch knows: give cpu or cuda") from error
        if device.type == "cuda" and not torch.cuda.is_available():
            raise InputError(f"device '{self.device}': torch finds no GPU here: give cpu, or install torch for this GPU")
        if self.backend in ("onnxruntime", "openvino"):
            if device.type != "cpu":
                raise InputError(f"backend '{self.backend}' runs on the CPU here: give backend torch for device {self.device}")
            if self.precision == "float16" or (self.precision == "bfloat16" and self.backend == "onnxruntime"):
                raise InputError(f"backend '{self.backend}' has no {self.precision} here: give backend torch, or float32")
            if missing := _missing(self.backend):
                raise InputError(
                    f"backend '{self.backend}' needs the Python package {' and '.join(missing)}: install it with "
                    "pip, or give backend torch"
                )

    def backend_for(self, network: torch.nn.Module) -> str:
        """The backend that will run this network. Raises InputError where the one asked for cannot."""
        serves = isinstance(network, CompactNetwork)
        if self.backend == "auto":
            fits = serves and torch.device(self.device).type == "cpu" and self.precision == "float32"
            return "onnxruntime" if fits and not _missing("onnxruntime") else "torch"
        if self.backend != "torch" and not serves:
            raise InputError(f"backend '{self.backend}' runs the compact network only: give backend torch")
        return self.backend

    def runner(self, network: torch.nn.Module) -> Run:
        """The network in inference mode, ready to run: with as many CPU threads as torch has now."""
        backend, device, dtype = self.backend_for(network), torch.device(self.device), PRECISIONS[self.precision]
        if not isinstance(network, CompactNetwork) or device.type != "cpu":
            return _on_device(network, device, dtype)
        convolutions = {"torch": _torch, "onnxruntime": _onnxruntime, "openvino": _openvino}[backend]
        return _compact_on_cpu(network, convolutions(network, dtype))


def _missing(backend: str) -> list[str]:
    return [name for name in ("onnx", backend) if importlib.util.find_spec(name) is None]


def _on_device(network: torch.nn.Module, device: torch.device, dtype: torch.dtype) -> Run:
    """Any network on any device; convolutions and products in `dtype`, norms and results in single precision."""
    if device.type != "cpu":
        network = copy.deepcopy(network).to(device)

    def run(image: np.ndarray) -> FeaturePyramid:
        values = torch.from_numpy(np.ascontiguousarray(np.atleast_3d(image))).to(device)
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            pyramid = network(values.permute(2, 0, 1)[None].float())
        parts = [(level.features, level.confidence, level.lengths) for level in pyramid.levels]
        parts = [[None if values is None else values.float() for values in part] for part in parts]
        levels = [FeatureLevel(*part[:2], level.stride, part[2]) for part, level in zip(parts, pyramid.levels)]
        return FeaturePyramid(tuple(levels), pyramid.image_size)

    return run


def _compact_on_cpu(network: CompactNetwork, convolutions: Convolutions) -> Run:
    beside = ThreadPoolExecutor(1, "exact levels") if torch.get_num_threads() > 1 else None
    memory = _Memory()

    def run(image: np.ndarray) -> FeaturePyramid:
        full = normalize_image(image, network.multiple)
        waiting = None if beside is None else beside.submit(_exact_levels, full, memory)
        levels, confidences = convolutions(_shrunk(full, network.deep_scale))
        for values in levels:
            _to_unit_length(values.reshape(-1, values.shape[-1]))
        levels += _exact_levels(full, memory) if waiting is None else waiting.result()
        features = [torch.from_numpy(values)[None].permute(0, 3, 1, 2) for values in levels]
        sure = [None if values is None else torch.from_numpy(values)[None] for values in (*confidences, None, None)]
        return FeaturePyramid(tuple(map(FeatureLevel, features, sure, map(float, network.strides))), image.shape[1::-1])

    return run


class _Memory:
    """Arrays that are used again when nobody holds them, nor a tensor made of them, any more. Fresh memory comes from the system
    page by page, which can take longer than the features that are written to it."""

    def __init__(self) -> None:
        self._arrays: list[np.ndarray] = []
        self._lock = threading.Lock()

    def take(self, *shape: int) -> np.ndarray:
        """float32 of that shape, with anything in it."""
        with self._lock:
            for array in self._arrays:
                if array.shape == shape and sys.getrefcount(array) == _UNUSED:
                    return array
            array = np.empty(shape, np.float32)
            self._arrays = [*self._arrays[-_MOST_ARRAYS:], array]
            return array


_UNUSED = 3
"""Who refers to an array of `_Memory` that nobody holds: its list, its loop, the function that counts them."""
_MOST_ARRAYS = 32
"""Of two levels, for the last frames of a tracker and of several cameras."""


def _exact_levels(full: np.ndarray, memory: _Memory) -> list[np.ndarray]:
    images = _shrunk(full, 2), full
    return [patch_features_compiled(image, memory.take(*image.shape, CHANNELS)) for image in images]


def _shrunk(image: np.ndarray, times: int) -> np.ndarray:
    """By averaging; the same array for 1."""
    if times == 1:
        return image
    return cv2.resize(image, (image.shape[1] // times, image.shape[0] // times), interpolation=cv2.INTER_AREA)


def normalize_image(grey: np.ndarray, multiple: int) -> np.ndarray:
    """What the compact network does to an image first: uint8 [H, W], cropped or padded to multiples, to zero mean and unit
    variance, float32."""
    height, width = grey.shape
    rows, columns = pad_sizes(height, width, multiple)
    grey = grey[: height + min(rows, 0), : width + min(columns, 0)]
    if max(rows, columns) > 0:
        grey = cv2.copyMakeBorder(grey, 0, max(rows, 0), 0, max(columns, 0), cv2.BORDER_REPLICATE)
    mean, deviation = (float(value[0, 0]) for value in cv2.meanStdDev(grey))
    gain = 1 / math.sqrt(deviation**2 + VARIANCE_FLOOR)
    full = np.subtract(grey, np.float32(mean), dtype=np.float32)  # first, or rounding would be all there is in a blank image
    full *= np.float32(gain)
    return full


@numba.njit(**FAST_JIT)
def _to_unit_length(rows):
    """float32 [N, C], in place; zeros stay zeros."""
    count, channels = rows.shape
    for i in range(count):
        squared = np.float32(0)
        for k in range(channels):
            squared += rows[i, k] * rows[i, k]
        gain = np.float32(1) / max(np.sqrt(squared), NORM_FLOOR)
        for k in range(channels):
            rows[i, k] *= gain


def _torch(network: CompactNetwork, dtype: torch.dtype) -> Convolutions:
    if dtype != torch.float32:
        network = copy.deepcopy(network).to(dtype)

    def run(image: np.ndarray) -> tuple[list[np.ndarray], list[np.ndarray | None]]:
        levels, confidences = network.robust_levels(torch.from_numpy(image)[None, None].to(dtype))
        return (
            [level.permute(0, 2, 3, 1).contiguous().float().numpy()[0] for level in levels],
            [None if one is None else one.float().numpy()[0] for one in confidences],
        )

    return run


def _onnxruntime(network: CompactNetwork, dtype: torch.dtype) -> Convolutions:
    import onnxruntime

    from .onnx_graph import compact_model

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    # Waiting threads sleep. Spinning ones are a tenth quicker on an idle machine, but where other work wants the cores they
    # wait for a thread that cannot run because of them, and an image takes twice as long.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = onnxruntime.InferenceSession(compact_model(network), options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return _of_graph(network, lambda image: dict(zip(names, session.run(names, {"image": image}))))


def _openvino(network: CompactNetwork, dtype: torch.dtype) -> Convolutions:
    import openvino

    from .onnx_graph import compact_model

    precision = {torch.float32: "f32", torch.bfloat16: "bf16"}[dtype]
    core = openvino.Core()
    compiled = core.compile_model(
        core.read_model(io.BytesIO(compact_model(network))),
        "CPU",
        {"INFERENCE_PRECISION_HINT": precision, "INFERENCE_NUM_THREADS": torch.get_num_threads(), "PERFORMANCE_HINT": "LATENCY"},
    )
    request = compiled.create_infer_request()

    def run(image: np.ndarray) -> dict[str, np.ndarray]:
        results = request.infer({"image": image}, share_inputs=True)
        return {output.get_any_name(): results[output] for output in compiled.outputs}

    return _of_graph(network, run)


def _of_graph(network: CompactNetwork, run: Callable[[np.ndarray], dict[str, np.ndarray]]) -> Convolutions:
    """What a graph of `onnx_graph.compact_model` gives, as `Convolutions`."""

    def convolutions(image: np.ndarray) -> tuple[list[np.ndarray], list[np.ndarray | None]]:
        outputs = run(image[None, None])
        levels, confidences = [], []
        for k, (channels, stride) in enumerate(zip(network.channels[: network.robust], network.strides)):
            shape = tuple(n * network.deep_scale // stride for n in image.shape)
            levels.append(outputs[f"level_{k}"].reshape(*shape, channels))
            confidences.append(outputs[f"confidence_{k}"].reshape(shape) if f"confidence_{k}" in outputs else None)
        return levels, confidences

    return convolutions
