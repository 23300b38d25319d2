# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""Broken and hostile inputs: a short run of experiments/fuzz.py, and what its longer runs have found."""

import os
import resource
import struct
from pathlib import Path

import cv2
import fuzz
import numpy as np
import pytest
import torch

from pixloc_ros.errors import InputError
from pixloc_ros.geometry.cameras import Camera
from pixloc_ros.io.colmap import read_colmap_model
from pixloc_ros.io.image_format import decode_compressed
from pixloc_ros.io.tum import read_camera

INPUTS = 120


def test_every_parser_survives(tmp_path):
    for name, parser in fuzz.make_parsers(tmp_path).items():
        folder = tmp_path / name
        fuzz.put(parser.seeds[0], folder)
        assert fuzz.attempt(parser, folder) == "", f"{name}: the valid input is refused"
        for number in range(INPUTS):
            fuzz.put(fuzz.changed(parser.seeds, 1, number), folder)
            assert fuzz.attempt(parser, folder) == "", (name, number)


def test_what_goes_wrong_is_found():
    """A parser that crashes, one that fails with another error, and one that eats memory."""

    def crash(at: Path) -> None:
        if (at / "x").read_bytes() != b"12345678":
            os._exit(3)

    def fail(at: Path) -> None:
        struct.unpack("<Q", (at / "x").read_bytes())

    kept = []

    def eat(at: Path) -> None:
        if (at / "x").read_bytes() != b"12345678":
            kept.append(np.ones(2 * 10**7))

    seeds = [{"x": b"12345678"}]
    for read, inputs, expected in ((crash, 5, "ended the process (3)"), (fail, 30, "struct.error"), (eat, 8, "MB")):
        problems, _ = fuzz.fuzz(fuzz.Parser(seeds, read), 0, inputs)
        assert problems and all(expected in problem for problem in problems.values())


def test_track_of_impossible_length(tmp_path):
    model = fuzz.binary_model()
    points = bytearray(model["points3D.bin"])
    points[8 + 43 : 8 + 51] = struct.pack("<Q", 2**63 - 1)
    fuzz.put({**model, "points3D.bin": bytes(points)}, tmp_path)
    with pytest.raises(InputError, match="cut short"):
        read_colmap_model(tmp_path)


def test_camera_file_that_is_no_text(tmp_path):
    (tmp_path / "camera.txt").write_bytes(b"\xff\x80\x00")
    with pytest.raises(InputError, match="not UTF-8 text"):
        read_camera(tmp_path)


def test_image_bombs_are_refused():
    """A JPEG of a kilobyte that claims 30 000 x 30 000 pixels would take gigabytes."""
    picture = bytearray(cv2.imencode(".jpg", np.zeros((48, 64, 3), np.uint8))[1].tobytes())
    at = picture.index(b"\xff\xc0")
    picture[at + 5 : at + 9] = struct.pack(">HH", 30000, 30000)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(InputError, match="claims to be 30000x30000"):
        decode_compressed(bytes(picture))
    png = bytearray(cv2.imencode(".png", np.zeros((48, 64, 3), np.uint8))[1].tobytes())
    png[16:24] = struct.pack(">II", 30000, 30000)
    with pytest.raises(InputError, match="claims to be 30000x30000"):
        decode_compressed(bytes(png))
    png = cv2.imencode(".png", np.zeros((48, 64, 3), np.uint8))[1].tobytes()
    with pytest.raises(InputError, match="cannot be decoded"):
        decode_compressed(png[:33] + b"\xff\xff\x00\x20" + png[37:])
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000


def test_distortion_beyond_all_measure():
    for numbers in ([1e308] * 4, [float("inf"), 0.0, 0.0, 0.0], [1e200, 1e-200, 0.0, 0.0]):
        with pytest.raises(InputError):
            Camera("plumb_bob", 64, 48, torch.tensor([50.0, 50.0, 32.0, 24.0, *numbers, 0.0], dtype=torch.float64))
