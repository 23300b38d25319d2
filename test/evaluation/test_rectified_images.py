# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""Rectified images with the calibration of the raw ones beside them, whatever they are called: tracked as well as raw images."""

from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from bag_writing import BagWriter

from pixloc_ros.evaluation.metrics import evaluate
from pixloc_ros.evaluation.offline import run_bag
from pixloc_ros.features import load_extractor
from pixloc_ros.geometry.cameras import Camera
from pixloc_ros.io.bags import BagReader
from pixloc_ros.io.calibration import FILLED, RAW, RECTIFIED, RECTIFIED_K, WHOLE
from pixloc_ros.io.messages import image_of
from pixloc_ros.io.work_folder import WorkFolder
from pixloc_ros.localization import Localizer
from pixloc_ros.mapping.build import build_map_from_colmap
from pixloc_ros.mapping.build.keyframes import KeyframeOptions
from pixloc_ros.mapping.build.posed_bag import PosedBag
from pixloc_ros.mapping.build.posed_frames import PosedMapOptions, points_of_posed_frames
from pixloc_sim.recordings import SimulationOptions, simulate

LENSES = {"strong": (-0.28, 0.09, 0.0005, -0.0004, 0.0), "mild": (-0.06, 0.015, 0.0, 0.0, 0.0)}


@pytest.fixture(scope="module", params=LENSES)
def scene(request, tmp_path_factory) -> tuple[Path, Path]:
    """(map, drive) of a simulated camera with a lens."""
    folder = tmp_path_factory.mktemp("scene")
    params = torch.tensor([190.7, 190.7, 159.5, 119.5, *LENSES[request.param]], dtype=torch.float64)
    camera = Camera("plumb_bob", 320, 240, params)
    simulate(folder / "scene", SimulationOptions(seconds=2.0, rate_hz=5.0, width=320, height=240, texel=0.02, camera=camera))
    build_map_from_colmap(folder / "scene/map", folder / "scene/images", load_extractor())[0].save(folder / "site.pixmap")
    return folder / "site.pixmap", folder / "scene/drive"


def rewritten(drive, path, name: str, rectified: bool, alpha: float | None = 0.0, **calibration) -> None:
    """The drive with its images rectified or not, under another name, with K and D of the raw image and P of the rectified one,
    unless the calibration says otherwise. alpha: what P keeps of the image, as OpenCV counts it; None: P is K."""
    with BagReader(drive) as bag, BagWriter(path) as out:
        moving, static = bag.transform_topics()
        topics = [bag.image_topic, bag.camera_info_topic, bag.odometry_topic, bag.truth_topic, *moving, *static]
        info = next(message for _, message in bag.messages([bag.camera_info_topic]))
        k, d, size = info.k.reshape(3, 3), info.d, (info.width, info.height)
        new = k if alpha is None else cv2.getOptimalNewCameraMatrix(k, d, size, alpha)[0]
        p = np.hstack((new, np.zeros((3, 1)))).ravel()
        for raw in bag.raw_messages(topics):
            message, topic = out.store.deserialize_cdr(raw.cdr, raw.type_name), raw.topic
            if topic == bag.image_topic:
                pixels, topic = image_of(message), f"/camera/{name}/compressed"
                pixels = cv2.undistort(pixels, k, d, newCameraMatrix=new) if rectified else pixels
                data = cv2.imencode(".png", pixels if pixels.ndim == 2 else pixels[..., ::-1])[1].ravel()
                message = replace(out.make("sensor_msgs/CompressedImage", message.header, "png", data))
            elif topic == bag.camera_info_topic:
                message = replace(message, **{"p": p, **calibration})
            out.put(raw.time_ns, topic, message)


NO_K = {"k": np.zeros(9)}


@pytest.mark.parametrize(
    "name, rectified, calibration, remark",
    [
        ("image_rect_color", True, {}, f"{RECTIFIED} of its calibration is used"),
        ("image", True, {}, f"the images fit {RECTIFIED} of the CameraInfo better than {RAW}"),
        ("image_raw", True, {}, f"the images fit {RECTIFIED} of the CameraInfo better than {RAW}"),
        ("image_rect", False, {}, f"the images fit {RAW} of the CameraInfo better than {RECTIFIED}"),
        ("image_raw", False, {}, ""),
        ("image", True, NO_K, "k of the CameraInfo is zero"),
    ],
)
@pytest.mark.parametrize("cold", [False, True], ids=["given", "cold"])
def test_every_image_is_tracked_with_the_calibration_that_fits(scene, tmp_path, name, rectified, calibration, remark, cold):
    rewritten(scene[1], tmp_path / "bag", name, rectified, **calibration)
    tracker = Localizer.open(scene[0]).tracker()
    with BagReader(tmp_path / "bag") as bag:
        run = run_bag(tracker, bag, cold_start=cold)
    figures = evaluate(run).figures
    assert figures["tracked_frames"] >= len(run.records) - 2 * cold, [record.message for record in run.records]
    assert figures["translation_error_median_m"] < 0.01 and figures["rotation_error_max_deg"] < 0.5
    remarks = [text for text in run.remarks if "twist" not in text]
    assert remark in " ".join(remarks) if remark else not remarks


@pytest.mark.parametrize("name", ["image_rect", "image"])
@pytest.mark.parametrize("alpha, found", [(None, RECTIFIED_K), (0.0, FILLED), (1.0, WHOLE)])
@pytest.mark.parametrize("cold", [False, True], ids=["given", "cold"])
def test_rectified_images_whose_p_is_empty_are_tracked_with_the_usual_one_that_fits(scene, tmp_path, name, alpha, found, cold):
    rewritten(scene[1], tmp_path / "bag", name, True, alpha, p=np.zeros(12))
    drawn = []
    with BagReader(tmp_path / "bag") as bag:
        watch = lambda frame, result: drawn.append(frame)  # noqa: E731
        run = run_bag(Localizer.open(scene[0]).tracker(), bag, cold_start=cold, watch=watch)
    figures = evaluate(run).figures
    assert figures["tracked_frames"] >= len(run.records) - 2 * cold, [record.message for record in run.records]
    assert figures["translation_error_median_m"] < 0.01 and figures["rotation_error_max_deg"] < 0.5
    camera = next(one.camera for one in drawn[-1].calibration.readings if one.taken == found)
    torch.testing.assert_close(drawn[-1].camera.params, camera.params)  # what pictures are drawn with
    assert f"the images fit {found}" in " ".join(run.remarks) or (alpha is None and name == "image_rect")


@pytest.mark.parametrize(
    "name, rectified, alpha, calibration, fits, taken",
    [
        ("image", True, 0.0, {}, RECTIFIED, True),
        ("image_rect", False, 0.0, {}, RAW, True),
        ("image_rect", True, 1.0, {"p": np.zeros(12)}, WHOLE, True),
        ("image_rect", True, 0.0, {}, RECTIFIED, False),
        ("image", False, 0.0, {}, RAW, False),
    ],
)
def test_maps_are_made_with_the_calibration_that_fits(scene, tmp_path, name, rectified, alpha, calibration, fits, taken):
    rewritten(scene[1], tmp_path / "bag", name, rectified, alpha, **calibration)
    with PosedBag(tmp_path / "bag") as frames:
        options = PosedMapOptions(keyframes=KeyframeOptions(shift=0.005))  # a short drive
        found = points_of_posed_frames(frames, WorkFolder(tmp_path / "work", {}), options)
        (expected,) = (one.camera for one in next(iter(frames())).calibration.readings if one.taken == fits)
    torch.testing.assert_close(found.source.cameras[0].params, expected.params)
    assert [fits in note for note in found.notes] == [True] * taken
    again = points_of_posed_frames(lambda wanted: (), WorkFolder(tmp_path / "work", {}), options)  # what was stopped goes on
    torch.testing.assert_close(again.source.cameras[0].params, expected.params)


def test_a_map_is_made_of_rectified_images_with_p(scene, tmp_path):
    rewritten(scene[1], tmp_path / "bag", "image_rect", True)
    with PosedBag(tmp_path / "bag") as frames:
        camera = next(iter(frames())).camera
        assert camera.model == "pinhole" and any(f"{RECTIFIED} of its calibration is used" in note for note in frames.bag.notes)
