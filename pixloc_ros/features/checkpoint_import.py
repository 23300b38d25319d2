# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""Checkpoints of the PixLoc authors (torch.save, `checkpoint_best.tar`) to weights files.

The only module that unpickles: those files hold numpy scalars beside the tensors. Everything is checked, nothing is
loaded by guess: a key that is missing or unknown, a shape or a setting that this network does not have ends the import.
"""

import hashlib
import math
import pickle
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from ..errors import InputError
from .vgg import CONVOLUTIONS, DECODER_CHANNELS, VggNetwork
from .weights import COMPANIONS, Weights

ENTRIES = {"model", "optimizer", "lr_scheduler", "conf", "epoch", "losses", "eval"}
NEEDED_ENTRIES = ("model", "conf")
DEPRECATED = {"pad", "verbose", "learned_damping", "lambda_", "sqrt_diag_damping", "bound_confidence", "no_conditions"}
DEPRECATED |= {"init_target_offset"}
SETTINGS = {
    # Allowed values of what decides the meaning of the weights: they must be those of this network.
    "model": {"name": ("two_view_refiner",), "normalize_features": (True,), "duplicate_optimizer_per_scale": (True,)},
    "model.extractor": {
        "name": ("unet",),
        "encoder": ("vgg16", "vgg19"),
        "num_downsample": (4,),
        "decoder": (list(DECODER_CHANNELS),),
        "decoder_norm": ("nn.BatchNorm2d",),
        "output_scales": ([0, 2, 4],),
        "output_dim": ([32, 128, 128],),
        "do_average_pooling": (False,),
        "compute_uncertainty": (True,),
    },
    "model.optimizer": {"name": ("learned_optimizer",), "jacobi_scaling": (False,), "normalize_features": (False,)},
    "model.optimizer.damping": {"type": ("constant",), "log_range": ([-6, 5],)},
    "model.optimizer.interpolation": {"mode": ("linear",)},
}
FREE = {
    # What only concerned training, and may be anything.
    "model": {"success_thresh", "clamp_error", "normalize_dt"},
    "model.extractor": {"checkpointed"},
    "model.optimizer": {"num_iters", "loss_fn", "feature_dim", "grad_stop_criteria", "dt_stop_criteria", "dR_stop_criteria"},
    "model.optimizer.damping": set(),
    "model.optimizer.interpolation": {"pad"},
}
COMMON = {"trainable", "freeze_batch_normalization"}
LICENCE = (
    "none of its own: the code it came with is Apache-2.0, the weights were published without a licence and "
    "learned from images with terms of their own; not to be bundled or passed on without asking their authors"
)


def import_checkpoint(path: Path, trust: bool = False) -> Weights:
    """A checkpoint's network and damping under our names, with a card.

    Args:
        path: What the authors' training saved.
        trust: Unpickle without restrictions where the restricted reader refuses the file. This runs whatever code the file
            contains.

    Raises:
        InputError: The file is cut short, is no checkpoint, or is of another network; the message names what is wrong.
    """
    if not path.is_file():
        raise InputError(f"no checkpoint {path}: give the .tar file that the PixLoc authors publish")
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    checkpoint = _unpickle(path, trust)
    if not isinstance(checkpoint, dict):
        raise InputError(f"{path} holds a {type(checkpoint).__name__}, no checkpoint: give checkpoint_best.tar")
    _check_names(path, "entries", set(checkpoint), set(NEEDED_ENTRIES), ENTRIES)
    conf = checkpoint["conf"]
    if not isinstance(conf, dict) or not isinstance(conf.get("model"), dict):
        raise InputError(f"{path}: its conf has no section 'model': this is no PixLoc checkpoint")
    _check_settings(path, conf["model"])
    source = checkpoint["model"]
    if not isinstance(source, dict) or not all(isinstance(value, torch.Tensor) for value in source.values()):
        raise InputError(f"{path}: its entry 'model' is not a table of tensors: this is no PixLoc checkpoint")
    depth = 19 if any(re.fullmatch(r"extractor\.encoder\.[234]\.7\.weight", key) for key in source) else 16
    declared = conf["model"].get("extractor", {}).get("encoder", f"vgg{depth}")
    if declared != f"vgg{depth}":
        raise InputError(f"{path}: its conf says {declared}, its tensors are those of vgg{depth}: the file was changed")
    network, damping = _rename(path, source, depth)
    return Weights(network, _card(path, checkpoint, depth, digest.hexdigest()), damping)


def _unpickle(path: Path, trust: bool) -> object:
    if not zipfile.is_zipfile(path):
        raise InputError(f"{path} is no checkpoint of torch.save, or is cut short: download it again")
    # numpy scalars: their constructor under the name of either major version of numpy, and the types they may have.
    scalar = np.float64(0).__reduce__()[0]
    safe = [(scalar, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")] + [np.dtype]
    safe += [type(np.dtype(kind)) for kind in ("f4", "f8", "i4", "i8", "?")]
    try:
        with torch.serialization.safe_globals(safe):
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if not trust:
            found = re.search(r"GLOBAL (\S+)", str(error))
            what = found[1] if found else "unknown objects"
            raise InputError(
                f"{path} holds more than tensors and numbers ({what}), and reading it could run code "
                "hidden in it: if you trust where it came from, add --trust"
            ) from error
    except Exception as error:  # a damaged archive fails in many ways, all of them the file's fault
        raise _unreadable(path, error) from error
    try:
        return torch.load(path, map_location="cpu", weights_only=False)
    except Exception as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: Exception) -> InputError:
    return InputError(
        f"{path} cannot be read ({str(error).splitlines()[0] if str(error) else type(error).__name__}): download it again"
    )


def _check_names(path: Path, what: str, found: set, needed: set, known: set) -> None:
    for problem, names in (("lacks", needed - found), ("has unknown", found - known)):
        if names:
            listed = sorted(map(str, names))
            more = f" and {len(listed) - 4} more" if len(listed) > 4 else ""
            raise InputError(
                f"{path} {problem} {what}: {', '.join(listed[:4])}{more}; this is not a PixLoc checkpoint of the published layout"
            )


def _check_settings(path: Path, model: dict) -> None:
    for section, known in SETTINGS.items():
        settings = model
        for name in section.split(".")[1:]:
            settings = settings.get(name, {})
        if not isinstance(settings, dict):
            raise InputError(f"{path}: conf.{section} is not a table of settings: this is no PixLoc checkpoint")
        inner = {name.rpartition(".")[2] for name in SETTINGS if name.rpartition(".")[0] == section}
        _check_names(
            path, f"settings in conf.{section}", set(settings), set(), {*known, *inner, *FREE[section], *COMMON, *DEPRECATED}
        )
        for name, allowed in known.items():
            if name in settings and settings[name] not in allowed:
                raise InputError(
                    f"{path}: conf.{section}.{name} is {settings[name]}: only {' or '.join(map(str, allowed))} can be imported"
                )


def _names(depth: int) -> Iterator[tuple[str, str]]:
    """(their module, our module) of the network. Theirs are ordered fine to coarse, and number ReLUs and pools too."""
    for stage, count in enumerate(CONVOLUTIONS[depth]):
        for k in range(count):
            yield f"extractor.encoder.{stage}.{2 * k + (stage > 0)}", f"encoder.{stage}.{k}"
    for k in range(len(DECODER_CHANNELS)):
        yield f"extractor.decoder.{k}.layers.0", f"decoder.{k}.conv"
        yield f"extractor.decoder.{k}.layers.1", f"decoder.{k}.norm"
    for level in range(len(VggNetwork.strides)):
        theirs = len(VggNetwork.strides) - 1 - level
        yield f"extractor.adaptation.{theirs}.0", f"feature_heads.{level}"
        yield f"extractor.uncertainty.{theirs}.0", f"uncertainty_heads.{level}"


def _rename(path: Path, source: dict[str, torch.Tensor], depth: int) -> tuple[dict, dict]:
    """Tensors of the network, and of the damping: [levels, 6], coarse to fine."""
    levels = len(VggNetwork.strides)
    with torch.device("meta"):
        ours = VggNetwork(depth).state_dict()
    theirs_of = {our: their for their, our in _names(depth)}
    keys = {}
    for name in ours:
        module, _, leaf = name.rpartition(".")
        keys[name] = f"{theirs_of[module]}.{leaf}"
    damping = [f"optimizer.{levels - 1 - level}.dampingnet.const" for level in range(levels)]
    wanted = {*keys.values(), *damping}
    _check_names(path, f"tensors of vgg{depth}", set(source), wanted, wanted)
    shapes = {key: ours[name].shape for name, key in keys.items()} | dict.fromkeys(damping, torch.Size((6,)))
    for key, shape in shapes.items():
        if source[key].shape != shape:
            raise InputError(f"{path}: {key} has shape {list(source[key].shape)}, vgg{depth} needs {list(shape)}")
        if not bool(source[key].isfinite().all()):
            raise InputError(f"{path}: {key} holds numbers that are not finite: the file is damaged")
    state = {name: source[key].detach().to(ours[name].dtype, copy=True) for name, key in keys.items()}
    return state, {f"{COMPANIONS[0]}theta": torch.stack([source[key].detach().float() for key in damping])}


def _card(path: Path, checkpoint: dict, depth: int, sha256: str) -> dict:
    data = checkpoint["conf"].get("data")
    trained_on = str(data.get("name", "unknown")) if isinstance(data, dict) else "unknown"
    figures = checkpoint["eval"] if isinstance(checkpoint.get("eval"), dict) else {}
    return {
        "architecture": f"vgg{depth}",
        "description": "PixLoc's U-Net and damping, as its authors trained them (Sarlin et al., CVPR 2021).",
        "initial_weights": f"VGG{depth} trained on ImageNet",
        "training_data": trained_on,
        "licence": LICENCE,
        "source": path.name,
        "source_sha256": sha256,
        "epoch": int(checkpoint["epoch"]) if isinstance(checkpoint.get("epoch"), int | np.integer) else None,
        "figures": {
            str(name): float(value)
            for name, value in figures.items()
            if isinstance(value, int | float | np.number) and math.isfinite(value)
        },
    }
